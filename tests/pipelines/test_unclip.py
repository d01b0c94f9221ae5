"""Drawing from image embeddings: the geometry, what comes back, what a request repeats, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mmgen
from mmgen.conditioning import Conditioning
from mmgen.errors import UsageError
from mmgen.images import read_metadata
from mmgen.inputs import digest
from mmgen.noise import Noise
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.decoder_stage import INVERSION, DecoderStage
from mmgen.pipelines.families.storybook import DECODER
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.unclip import mixed, slerp, text_diff
from mmgen.result import Result
from mmgen.types import StageSettings
from tests.checkpoints import write_tiny

FAST = {"decoder": StageSettings(steps=3)}
GIVEN: dict[str, Any] = {"size": 16, "stages": FAST, "progress": False}


def picture(seed: int = 0, side: int = 16) -> Image.Image:
    """Far from black and white, so that no threshold touches it."""
    values = np.random.default_rng(seed).integers(64, 192, (side, side, 3), np.uint8)
    return Image.fromarray(values)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def decoder_of(pipe: TextToImage) -> DecoderStage:
    return next(stage for stage in pipe.cascade.stages if isinstance(stage, DecoderStage))


# ---- the geometry --------------------------------------------------------------------------------


def test_an_interpolation_ends_at_its_inputs_and_keeps_their_norm() -> None:
    a, b = unit(4, 16), unit(4, 16, seed=1)
    assert slerp(a, b, 0) is a
    assert slerp(a, b, 1) is b
    for fraction in (1e-6, 0.2, 0.5, 0.9):
        between = slerp(a, b, fraction)
        torch.testing.assert_close(between.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(between, slerp(b, a, 1 - fraction))
        angle = torch.acos((a * b).sum(1))
        torch.testing.assert_close(torch.acos((a * between).sum(1)), fraction * angle, atol=1e-3, rtol=0)


def test_noise_is_interpolated_picture_by_picture_and_changes_its_length_evenly() -> None:
    a, b = Noise([1, 2]).draw((3, 8, 8)), 2 * Noise([3, 4]).draw((3, 8, 8))
    between = slerp(a, b, 0.25)
    assert between.shape == a.shape
    lengths = [x.flatten(1).norm(dim=1) for x in (a, b, between)]
    torch.testing.assert_close(lengths[2], 0.75 * lengths[0] + 0.25 * lengths[1])
    assert torch.equal(between[1:], slerp(a[1:], b[1:], 0.25))


def test_one_direction_twice_is_that_direction() -> None:
    a = unit(2, 16)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, a + 1e-7, 0.3), a)


@pytest.mark.parametrize(("other", "says"), [(-1.0, "opposite"), (0.0, "no length")])
def test_no_way_between_such_vectors(other: float, says: str) -> None:
    a = unit(2, 16)
    with pytest.raises(ValueError, match=says):
        slerp(a, other * a, 0.5)
    with pytest.raises(ValueError, match=r"no way from vectors \[2, 16\] to \[2, 8\]"):
        slerp(a, a[:, :8], 0.5)


def test_a_mixture_stays_on_the_sphere_and_obeys_its_weights() -> None:
    embeds = [unit(2, 16, seed=seed) for seed in range(3)]
    assert mixed(embeds, (0, 1, 0)) is embeds[1]
    torch.testing.assert_close(mixed(embeds[:2], (0.7, 0.3)), slerp(embeds[0], embeds[1], 0.3))
    torch.testing.assert_close(mixed(embeds, (0.5, 0.25, 0.25)).norm(dim=1), torch.ones(2))
    near = [float((mixed(embeds, (w, 0.1, 0.9 - w)) * embeds[0]).sum()) for w in (0.1, 0.4, 0.8)]
    assert near == sorted(near)
    with pytest.raises(ValueError, match="at least one must be above 0"):
        mixed(embeds, (0, 0, 0))


def test_a_text_diff_turns_towards_the_change_and_no_change_is_the_picture_itself() -> None:
    seen, before, after = (unit(3, 16, seed=seed) for seed in range(3))
    after[0] = before[0]
    turned = text_diff(seen, before, after, 0.4)
    assert torch.equal(turned[0], seen[0])
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(3))
    aim = torch.nn.functional.normalize(after - before, dim=1)[1:]
    assert ((turned[1:] * aim).sum(1) > (seen[1:] * aim).sum(1)).all()
    assert torch.equal(text_diff(seen, before, after, 0), seen)
    torch.testing.assert_close(text_diff(seen, before, after, 1)[1:], aim)


# ---- what comes back, with a decoder that is exact ------------------------------------------------


class ExactDecoder:
    """The exact denoiser of pixels with deviation 0.5 around a mean that the image embedding decides.

    It takes the place of a trained network: of a random one no picture comes back.
    """

    config = SimpleNamespace(sample_size=16, image_dim=16)
    dtype, device = torch.float32, torch.device("cpu")

    def prepare(self, cond: Conditioning) -> Tensor:
        assert cond.drop_text is not None
        assert cond.drop_text.all(), "these verbs leave the text out"
        assert cond.image_embed is not None
        return 0.2 * cond.image_embed[:, :3, None, None]

    def __call__(self, x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        alpha, sigma = 1 - t[0], t[0]
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return mean + gain * (x_t - alpha * mean)


@pytest.fixture(scope="module")
def exact(pipe: TextToImage) -> TextToImage:
    network: Any = ExactDecoder()
    decoder = DecoderStage(network, DECODER, uses_image_embed=True, prior=decoder_of(pipe).prior)
    stages = [*pipe.cascade.stages[:2], decoder]
    return TextToImage(Cascade(stages), name="exact", digest="", device=torch.device("cpu"))


def test_the_ends_of_an_interpolation_are_the_pictures(exact: TextToImage) -> None:
    a, b = picture(1), picture(2)
    frames = exact.interpolate(a, b, frames=3, seed=1, progress=False)
    for drawn, given in ((frames[0], a), (frames[-1], b)):
        assert np.abs(pixels(drawn) - pixels(given)).max() <= 2  # of 255 levels: what the last step smoothes
    assert np.abs(pixels(frames[1]) - pixels(a)).max() > 20
    assert np.abs(pixels(frames[1]) - pixels(b)).max() > 20


def test_a_text_diff_of_nothing_is_the_picture_and_one_of_something_is_near(exact: TextToImage) -> None:
    given = picture(1)
    same = exact.diff_text(given, "a cat", "a cat", seed=1, progress=False)
    assert np.abs(pixels(same[0]) - pixels(given)).max() <= 2
    other = exact.diff_text(given, "a cat", "a red cat", amount=0.5, seed=1, progress=False)
    assert 0 < np.abs(pixels(other[0]) - pixels(given)).mean() < 20


def test_a_picture_on_one_end_and_a_text_on_the_other(exact: TextToImage) -> None:
    given = picture(1)
    frames = exact.interpolate("a cat", given, frames=3, seed=1, progress=False)
    assert np.abs(pixels(frames[-1]) - pixels(given)).max() <= 2
    # the text's end has the seed's own noise
    alone = exact.interpolate("a cat", "a dog", frames=2, seed=1, progress=False)
    assert frames[0].tobytes() == alone[0].tobytes()


# ---- on a real, tiny network ----------------------------------------------------------------------


def test_a_tiny_network_is_inverted(pipe: TextToImage) -> None:
    decoder = decoder_of(pipe)
    settings = StageSettings(steps=16, sampler="ddim", guidance_scale=1.0, threshold="none").with_defaults(
        DECODER
    )
    draft = replace(
        finish(pipe.cascade.stages[0].run(Draft(("",)), StageSettings(), Noise([0]))),
        image_embed=unit(1, 16),
        image=0.5 * Noise([2]).draw((3, 16, 16)).clamp(-2, 2),
    )
    inverted = finish(decoder.invert(draft, settings))
    assert inverted.start is not None
    assert draft.image is not None
    reached = [step.x for step in decoder.run(inverted, settings, Noise([5]))]
    assert len(reached) == 16
    assert (reached[-2] - draft.image * 15 / 16).abs().max() < 0.02  # of [-1, 1]: its slopes are steep
    with pytest.raises(UsageError, match="no picture comes back in 1 step, take 2 or more"):
        finish(decoder.invert(draft, replace(settings, steps=1)))


def test_a_variation_is_told_the_embedding_and_nothing_else(pipe: TextToImage) -> None:
    given, decoder = picture(), decoder_of(pipe)
    result = pipe.vary(given, seeds=[1, 2], **GIVEN)
    assert result[0].tobytes() != result[1].tobytes()
    assert result[0].tobytes() != pipe.vary(picture(1), seeds=[1], **GIVEN)[0].tobytes()
    assert decoder.prior is not None
    with torch.inference_mode():
        embed = decoder.prior.dual.image_embed(mmgen.images.to_tensor([given]))
        text = pipe.cascade.stages[0].run(Draft(("a red cat",)), StageSettings(), Noise([0]))
        draft = replace(finish(text), prompts=("",), image_embed=embed)
        drawn = finish(decoder.run(draft, result.request.stages["decoder"], Noise([1], "decoder"))).image
    assert drawn is not None
    assert mmgen.images.to_pil(drawn)[0].tobytes() == result[0].tobytes()


def test_a_zero_text_diff_is_told_what_an_interpolation_begins_with(pipe: TextToImage) -> None:
    given = picture()
    same = pipe.diff_text(given, "a cat", "a cat", seed=1, **GIVEN)
    assert same[0].tobytes() == pipe.interpolate(given, picture(1), frames=2, seed=1, **GIVEN)[0].tobytes()
    other = pipe.diff_text(given, "a cat", "a red car on the beach", amount=1.0, seed=1, **GIVEN)
    assert other[0].tobytes() != same[0].tobytes()


def test_a_mixture_ends_at_its_parts_and_lies_between(pipe: TextToImage) -> None:
    a, b = picture(1), picture(2)

    def drawn(weights: list[float]) -> bytes:
        return pipe.mix([a, b], weights, seeds=[1], **GIVEN)[0].tobytes()

    assert drawn([1, 0]) == pipe.vary(a, seeds=[1], **GIVEN)[0].tobytes()
    assert drawn([0, 1]) == pipe.vary(b, seeds=[1], **GIVEN)[0].tobytes()
    assert len({drawn([1, 0]), drawn([0.5, 0.5]), drawn([0, 1])}) == 3
    equal = pipe.mix([a, "a cat", b], seeds=[1], **GIVEN).request
    assert equal.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_two_texts_share_the_noise_and_the_seed_decides(pipe: TextToImage) -> None:
    frames = pipe.interpolate("a red cat", "a dog on the beach", frames=3, seed=1, **GIVEN)
    assert INVERSION not in [record.stage for record in frames.records]
    assert len({frame.tobytes() for frame in frames}) == 3
    again = pipe.interpolate("a red cat", "a dog on the beach", frames=2, seed=1, **GIVEN)
    assert [frames[0].tobytes(), frames[2].tobytes()] == [frame.tobytes() for frame in again]
    other = pipe.interpolate("a red cat", "a dog on the beach", frames=2, seed=2, **GIVEN)
    assert other[0].tobytes() != frames[0].tobytes()
    assert "guitar" in pipe.interpolate("a guitar", "a cat", frames=2, **GIVEN).unknown_words["a guitar"]


def test_frames_of_a_batch_stay_within_two_levels(pipe: TextToImage) -> None:
    wide = TextToImage(pipe.cascade, name="tiny", digest=pipe.digest, device=pipe.device, batch_size=4)
    one, other = (p.interpolate(picture(1), picture(2), frames=5, seed=1, **GIVEN) for p in (pipe, wide))
    for a, b in zip(one, other, strict=True):
        assert np.abs(pixels(a) - pixels(b)).max() <= 2


def test_any_size_and_shape_is_seen(pipe: TextToImage) -> None:
    wide = Image.new("RGBA", (40, 20), (255, 0, 0, 128))
    result = pipe.vary(wide, seeds=[1], **{**GIVEN, "size": 64})
    assert result[0].size == (64, 64)
    assert result.request.size == (64, 64)


# ---- requests ------------------------------------------------------------------------------------

VERBS: dict[str, tuple[int, Callable[[TextToImage, Image.Image, Image.Image], Result]]] = {
    "vary": (1, lambda p, a, _b: p.vary(a, seeds=[7, 8], **GIVEN)),
    "mix": (2, lambda p, a, b: p.mix([a, "a cat", b], [0.5, 0.25, 0.25], seeds=[7, 8], **GIVEN)),
    "interpolate": (2, lambda p, a, b: p.interpolate(a, b, frames=3, seed=7, **GIVEN)),
    "diff-text": (1, lambda p, a, _b: p.diff_text(a, "a cat", "a red cat", seed=7, **GIVEN)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_picture_is_repeated_from_its_own_record(pipe: TextToImage, tmp_path: Path, verb: str) -> None:
    count, draw = VERBS[verb]
    given = [picture(1), picture(2)]
    result = draw(pipe, *given)
    assert result.complete
    images = given[:count]
    assert result.request.verb == verb
    assert result.request.inputs == dict(zip(("image", "image-2"), map(digest, images), strict=False))
    whole = pipe.run(result.request, images)
    assert [image.tobytes() for image in whole] == [image.tobytes() for image in result]
    paths = result.save(tmp_path)
    assert len(paths) == len(result)
    for path, image in zip(paths, result, strict=True):
        found = read_metadata(path)["request"]
        assert found is not None
        assert pipe.run(found, images)[0].tobytes() == image.tobytes()
    assert found == list(result.request.singles())[-1]
    with pytest.raises(UsageError, match="made with another image: give the same again"):
        pipe.run(found, [picture(3), *images[1:]])
    with pytest.raises(UsageError, match=f"{verb} starts from {count} pictures here, not 0"):
        pipe.run(found)
    with pytest.raises(UsageError, match=f"of the verb '{verb}': give it to `run`, with its pictures"):
        pipe(found)
    with pytest.raises(UsageError, match="was made for tiny"):
        pipe.run(replace(found, model_digest="0" * 64), images)


def test_a_prompt_starts_from_no_picture(pipe: TextToImage) -> None:
    with pytest.raises(UsageError, match="'generate', which starts from no picture: leave them out"):
        pipe.run(pipe.request("a cat", seeds=[1], size=16), [picture()])


def test_what_brings_a_picture_back_is_the_default_and_what_is_given_wins(pipe: TextToImage) -> None:
    def decoder(**settings: Any) -> StageSettings:
        stages = {"decoder": StageSettings(steps=2, **settings)}
        frames = pipe.interpolate("a cat", "a dog", frames=2, seed=1, size=16, stages=stages, progress=False)
        return frames.request.stages["decoder"]

    assert (decoder().sampler, decoder().guidance_scale) == ("ddim", 1.0)
    assert (decoder(sampler="heun").sampler, decoder(guidance_scale=3).guidance_scale) == ("heun", 3.0)
    plain = pipe.vary(picture(), seeds=[1], **GIVEN).request.stages
    assert plain == {"decoder": StageSettings(steps=3).with_defaults(DECODER)}


def test_the_prior_has_settings_where_it_runs(pipe: TextToImage) -> None:
    of_prior = {**FAST, "prior": StageSettings(steps=2)}
    mixture = pipe.mix([picture(), "a cat"], seeds=[1], size=16, stages=of_prior, progress=False)
    assert mixture.request.stages["prior"].steps == 2
    assert next(record.steps for record in mixture.records if record.stage == "prior") == 4
    with pytest.raises(UsageError, match="settings for stage 'prior', which does not run"):
        pipe.vary(picture(), size=16, stages=of_prior)
    with pytest.raises(UsageError, match="settings for stage 'super-res-64', but at 16 px only"):
        pipe.vary(picture(), size=16, stages={"super-res-64": StageSettings(steps=1)})


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (
            lambda p: p.mix([picture(), picture(1)], [0.7, 0.4]),
            "the weights 0.7, 0.4 sum to 1.1: they must sum",
        ),
        (lambda p: p.mix([picture(), picture(1)], [1.0]), "1 weights for 2 parts: give one for each"),
        (
            lambda p: p.mix([picture(), picture(1)], [1.5, -0.5]),
            "a weight is 1.5: it must lie between 0 and 1",
        ),
        (lambda p: p.mix([picture()]), "and 1 is given: give two or more"),
        (lambda p: p.mix([]), "and 0 is given: give two or more"),
        (lambda p: p.mix([picture(), ""]), "a part is ''"),
        (lambda p: p.mix([picture(), 7]), "a part is 7"),
        (lambda p: p.mix([picture(), "?!"]), "no letter or digit"),
        (
            lambda p: p.interpolate("a cat", "a dog", frames=1),
            "frames is 1: give a whole number from 2 to 1,000",
        ),
        (lambda p: p.interpolate("a cat", "a dog", frames=2.5), "frames is 2.5"),
        (lambda p: p.diff_text(picture(), "a cat", "a dog", amount=1.5), "the amount is 1.5"),
        (lambda p: p.diff_text(picture(), "a cat", ""), "a part is ''"),
        (lambda p: p.diff_text(picture(), "a cat", picture()), "diff-text"),
        (lambda p: p.vary(picture(), size=20), "tiny cannot draw 20x20"),
        (lambda p: p.vary(Image.new("F", (8, 8))), "floating-point values"),
        (lambda p: p.upscale("cat.png"), "is str, and must be a picture of Pillow"),
    ],
)
def test_what_cannot_be_meant(pipe: TextToImage, draw: Callable[[TextToImage], Result], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        draw(pipe)
    assert "\n" not in str(caught.value)


def test_an_embedding_of_another_width_is_refused(pipe: TextToImage) -> None:
    draft = finish(pipe.cascade.stages[0].run(Draft(("a cat",)), StageSettings(), Noise([1])))
    with pytest.raises(UsageError, match="stage 'decoder' is told image embeddings of width 16, not 12"):
        finish(decoder_of(pipe).run(replace(draft, image_embed=unit(1, 12)), DECODER, Noise([1])))


# ---- what an index may say -----------------------------------------------------------------------


def test_a_decoder_that_can_do_without_draws_prompts_without(tmp_path: Path) -> None:
    given = mmgen.load(write_tiny(tmp_path / "given", image_embed="given"), device="cpu", dtype="float32")
    assert given.stage_names[:2] == ("text", "decoder")
    assert given("a cat", seeds=[1], size=16, stages=FAST).complete
    mixture = given.mix([picture(), "a cat"], seeds=[1], **GIVEN)
    assert "prior" in mixture.request.stages
    assert mixture[0].tobytes() != given.vary(picture(), seeds=[1], **GIVEN)[0].tobytes()


def test_a_decoder_that_never_saw_an_embedding_says_so(tmp_path: Path) -> None:
    none = mmgen.load(write_tiny(tmp_path / "none", image_embed="none"), device="cpu", dtype="float32")
    assert none("a cat", seeds=[1], size=16, stages=FAST).complete
    for _, draw in VERBS.values():
        with pytest.raises(
            UsageError, match="tiny draws from texts alone: its decoder was not trained on image"
        ):
            draw(none, picture(1), picture(2))
