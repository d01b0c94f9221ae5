"""The chain and its stages: what they need and give, and what guidance asks a network for."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmgen.conditioning import Conditioning
from mmgen.errors import UsageError
from mmgen.noise import Noise
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.families.storybook import DECODER
from mmgen.pipelines.prior_stage import PriorStage
from mmgen.pipelines.sampling import guided_pair
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.super_res_stage import SuperResStage, enlarge
from mmgen.pipelines.text_stage import TextStage
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.schedulers.samplers import Step
from mmgen.threshold import dynamic_threshold, static_clip
from mmgen.types import StageSettings

ROOT = Path(__file__).parents[2]
EVERY: dict[str, Any] = {  # no default of any stage
    "steps": 2, "sampler": "heun", "eta": 0.5, "guidance_scale": 3.0, "guidance_interval": (0.2, 0.8),
    "guidance_rescale": 0.5, "guidance_parallel": 0.4, "guidance_limit": 0.3,
    "threshold": 0.9, "threshold_cap": 1.0, "noise_level": 0.1, "resample": 3,
}  # fmt: skip
HALF = torch.tensor(0.5, dtype=torch.float64)


def stage(pipe: TextToImage, name: str) -> Any:
    return next(s for s in pipe.cascade.stages if s.name == name)


def start(one: Any, draft: Draft, seeds: list[int], **given: Any) -> Generator[Step, None, Draft]:
    """A stage's run with these settings, the others by default."""
    return one.run(draft, StageSettings(**given).with_defaults(one.defaults), Noise(seeds, one.name))


def finish(run: Generator[Step, None, Draft]) -> Draft:
    while True:
        try:
            next(run)
        except StopIteration as done:
            return done.value


@pytest.fixture(scope="module")
def told(pipe: TextToImage) -> Draft:
    """Two prompts with a negative one, up to the image embedding."""
    draft = Draft(("a red cat", "two dogs on the beach at night"), "a blue house")
    for name in ("text", "prior"):
        draft = finish(start(stage(pipe, name), draft, [1, 2]))
    return draft


def test_a_chain_that_lacks_a_part_says_which(pipe: TextToImage) -> None:
    text, decoder = stage(pipe, "text"), stage(pipe, "decoder")
    with pytest.raises(UsageError, match=r"stage 'decoder' needs image_embed, .* only prompts, text"):
        Cascade([text, decoder])
    with pytest.raises(UsageError, match="stage 'super-res-64' needs image"):
        Cascade([stage(pipe, "super-res-64")])
    blind = DecoderStage(decoder.network, decoder.defaults, uses_image_embed=False)
    assert Cascade([text, blind]).sizes == (16,)


def test_two_stages_of_one_name_are_refused(pipe: TextToImage) -> None:
    with pytest.raises(UsageError, match="one name: text, text"):
        Cascade([stage(pipe, "text"), stage(pipe, "text")])


def test_up_to_ends_the_chain_at_a_size(pipe: TextToImage) -> None:
    assert pipe.cascade.up_to(64).names == ("text", "prior", "decoder", "super-res-64")
    with pytest.raises(UsageError, match="no stage gives pictures of 32 px: choose 16 or 64 or 256"):
        pipe.cascade.up_to(32)


def test_a_stage_adds_its_own_field_and_keeps_the_others(pipe: TextToImage, told: Draft) -> None:
    assert told.text is not None
    assert told.negative is not None
    assert told.text.text is not None
    assert told.negative.text is not None
    assert told.negative.text.shape == told.text.text.shape
    assert told.text.text.shape[::2] == (2, 32)
    assert told.image_embed is not None
    torch.testing.assert_close(told.image_embed.norm(dim=1), torch.ones(2))
    small = finish(start(stage(pipe, "decoder"), told, [1, 2], steps=1))
    assert small.image is not None
    assert small.image.shape == (2, 3, 16, 16)
    assert small.image.abs().max() <= 1
    assert small.image_embed is told.image_embed


def test_the_prior_keeps_the_candidate_that_fits_the_text_better(pipe: TextToImage, told: Draft) -> None:
    prior, told = stage(pipe, "prior"), replace(told, image_embed=None)
    steps = list(start(prior, told, [1, 2], steps=2))
    ends = [torch.nn.functional.normalize(step.x, dim=1) for step in steps if step.index % 2 == 0]
    best = finish(start(prior, told, [1, 2], steps=2)).image_embed
    assert best is not None
    with torch.no_grad():
        text = prior.dual.text_embed(told.text)
    fits = torch.stack([(end * text).sum(1) for end in ends])
    assert (fits[0] != fits[1]).all()
    torch.testing.assert_close((best * text).sum(1), fits.max(0).values)


def test_an_embedding_that_is_given_goes_past_the_prior(pipe: TextToImage, told: Draft) -> None:
    assert finish(start(stage(pipe, "prior"), told, [3, 4])) is told


def test_an_empty_prompt_says_nothing(pipe: TextToImage, told: Draft) -> None:
    decoder = stage(pipe, "decoder")

    def drawn(draft: Draft) -> torch.Tensor:
        image = finish(start(decoder, draft, [1, 1], steps=2, guidance_scale=1.0)).image
        assert image is not None
        return image

    assert told.image_embed is not None
    alike = replace(told, negative=None, image_embed=told.image_embed[:1].expand(2, -1))
    first, second = drawn(replace(alike, prompts=("", "")))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    first, second = drawn(alike)
    assert not torch.allclose(first, second, atol=1e-2)


def test_guidance_one_is_the_conditional_branch_exactly(pipe: TextToImage, told: Draft) -> None:
    assert told.text is not None
    network = stage(pipe, "decoder").network
    cond, null = guided_pair(told.text, None)
    x = Noise([1, 2]).draw((3, 16, 16))

    def x0(other: Conditioning | None, **settings: Any) -> torch.Tensor:
        return make_denoiser(network, cond, other, StageSettings(**settings), stage="decoder")(
            x, HALF, HALF
        ).x0

    alone = x0(None)
    assert torch.equal(x0(null, guidance_scale=1), alone)
    assert torch.equal(x0(None, guidance_scale=4), alone)
    # prepared with the other half beside it: another batch may differ in the last bits
    torch.testing.assert_close(x0(null, guidance_scale=4, guidance_interval=(0.6, 0.9)), alone)
    assert not torch.allclose(x0(null, guidance_scale=4), alone, atol=1e-3)


def test_guidance_mixes_the_two_branches(pipe: TextToImage, told: Draft) -> None:
    assert told.text is not None
    network = stage(pipe, "decoder").network
    cond, null = guided_pair(told.text, None)
    x = Noise([1, 2]).draw((3, 16, 16))

    def x0(first: Conditioning, other: Conditioning | None, scale: float) -> torch.Tensor:
        settings = StageSettings(guidance_scale=scale)
        return make_denoiser(network, first, other, settings, stage="decoder")(x, HALF, HALF).x0

    with_text, without = x0(cond, None, 1), x0(null, None, 1)
    expected = without + 3 * (with_text - without)
    torch.testing.assert_close(x0(cond, null, 3), expected, atol=1e-4, rtol=1e-4)


def test_the_null_is_the_same_for_every_prompt_and_the_negative_is_not_it(told: Draft) -> None:
    assert told.text is not None
    assert told.negative is not None
    cond, null = guided_pair(told.text, None)
    assert cond.drop_text is not None
    assert null.drop_text is not None
    assert not cond.drop_text.any()
    assert null.drop_text.all()
    _, negative = guided_pair(told.text, told.negative)
    assert negative.text is told.negative.text
    assert negative.drop_text is not None
    assert not negative.drop_text.any()


def test_the_decoder_sees_the_image_embedding(pipe: TextToImage, told: Draft) -> None:
    assert told.image_embed is not None
    decoder = stage(pipe, "decoder")

    def drawn(draft: Draft, *, embeds: bool = True) -> torch.Tensor:
        one = DecoderStage(decoder.network, decoder.defaults, uses_image_embed=embeds)
        image = finish(start(one, draft, [1, 2], steps=2)).image
        assert image is not None
        return image

    other = replace(told, image_embed=-told.image_embed)
    assert not torch.allclose(drawn(told), drawn(other), atol=1e-2)
    assert torch.equal(drawn(told, embeds=False), drawn(other, embeds=False))


def test_super_resolution_keeps_the_picture_and_obeys_its_noise_level(pipe: TextToImage) -> None:
    network = stage(pipe, "super-res-64")
    image = enlarge(Noise([3]).draw((3, 4, 4))).clamp(-0.9, 0.9)
    draft = Draft(("a cat",), image=image)

    def drawn(level: float) -> torch.Tensor:
        out = finish(start(network, draft, [3], steps=1, noise_level=level)).image
        assert out is not None
        return out

    assert drawn(0).shape == (1, 3, 64, 64)
    assert drawn(0).abs().max() <= 1
    assert (drawn(0) - enlarge(image)).abs().mean() < 0.5  # a residual, not another picture
    assert not torch.equal(drawn(0), drawn(0.3))


@pytest.mark.parametrize("name", ["prior", "decoder", "super-res-64"])
def test_a_stage_without_its_input_says_so(pipe: TextToImage, name: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        finish(start(stage(pipe, name), Draft(("a cat",)), [1]))


def test_super_resolution_thresholds_the_whole_picture(pipe: TextToImage) -> None:
    network = stage(pipe, "super-res-64")
    draft = Draft(("a cat",), image=Noise([3]).draw((3, 16, 16)).clamp(-1, 1))

    def x0(threshold: float | str) -> torch.Tensor:
        (step,) = start(network, draft, [3], steps=1, threshold=threshold)
        return step.x0

    free = x0("none")
    assert free.abs().max() > 1.1
    for threshold, limit in (("clip", static_clip), (0.9, partial(dynamic_threshold, percentile=0.9))):
        torch.testing.assert_close(x0(threshold), limit(free), atol=1e-5, rtol=0)
    assert not torch.allclose(x0(0.9), x0("clip"), atol=1e-2)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("prior", "steps"), ("prior", "sampler"), ("decoder", "steps"), ("decoder", "sampler"),
        ("super-res-64", "steps"), ("super-res-64", "sampler"), ("super-res-64", "noise_level"),
        ("super-res-64", "threshold"),
    ],
)  # fmt: skip
def test_a_stage_has_no_second_default(pipe: TextToImage, told: Draft, name: str, missing: str) -> None:
    one = stage(pipe, name)
    draft = replace(told, image=torch.zeros(2, 3, 16, 16))
    if name == "prior":
        draft = replace(draft, image_embed=None)
    with pytest.raises(UsageError, match=f"stage '{name}' was given no {missing}: complete"):
        finish(one.run(draft, replace(one.defaults, **{missing: None}), Noise([1, 2], name)))


def test_the_chain_completes_settings_and_refuses_what_is_ignored(pipe: TextToImage) -> None:
    chain = pipe.cascade.up_to(64)
    complete = chain.resolve({"text": StageSettings(), "decoder": StageSettings(steps=3)})
    assert list(complete) == ["prior", "decoder", "super-res-64"]
    assert complete["decoder"] == StageSettings(steps=3).with_defaults(DECODER)
    assert chain.resolve(complete) == complete
    for one in pipe.cascade.stages:
        assert set(one.defaults.to_dict()) <= one.takes
        assert one.takes <= set(EVERY)
        for name in set(EVERY) - one.takes:
            with pytest.raises(UsageError, match=f"stage '{one.name}' does not take {name}: it takes "):
                pipe.cascade.resolve({one.name: StageSettings(**{name: EVERY[name]})})
    with pytest.raises(UsageError, match="stage 'text' does not take steps: it takes no settings"):
        chain.resolve({"text": StageSettings(steps=1)})
    with pytest.raises(UsageError, match=r"noise_level: it takes steps, sampler, guidance_scale$"):
        chain.resolve({"prior": StageSettings(noise_level=0.1)})


def test_every_setting_that_a_stage_takes_changes_its_picture(pipe: TextToImage, told: Draft) -> None:
    draft = replace(told, image=Noise([1, 2]).draw((3, 16, 16)).clamp(-1, 1))

    def drawn(one: Any, **given: Any) -> torch.Tensor:
        strong = (
            {"guidance_scale": 4.0} if "guidance_scale" in one.takes else {}
        )  # out of range, within the cap
        return [step.x0 for step in start(one, draft, [1, 2], **{"steps": 3, **strong, **given})][-1]

    for name in ("prior", "decoder", "super-res-64"):
        one = stage(pipe, name)
        # the prior lets an embedding pass that is there already
        draft = replace(draft, image_embed=None if name == "prior" else told.image_embed)
        for setting in one.takes:
            only = {"sampler": "ddim"} if setting == "eta" else {}  # no other sampler takes it
            plain, other = drawn(one, **only), drawn(one, **only, **{setting: EVERY[setting]})
            assert not torch.equal(other, plain), f"{name}.{setting}"


def test_readme_says_what_each_stage_takes() -> None:
    kinds = {"text": TextStage, "prior": PriorStage, "decoder": DecoderStage, "super-res": SuperResStage}
    head = "| stage | what it does | settings |\n|---|---|---|\n"
    table = (ROOT / "README.md").read_text("utf-8").partition(head)[2]
    promised = {}
    for row in table.partition("\n\n")[0].splitlines():
        _, names, _, settings, _ = row.split("|")
        (kind,) = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)(?:-\d+)?`", names))
        promised[kind] = set(re.findall(r"\w+", settings))
    assert promised == {name: kind.takes for name, kind in kinds.items()}
