"""Weights in prompts: what is read of them, and what becomes of the token states."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from compel import Compel
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmgen.errors import UsageError
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines import prompt_weights
from mmgen.pipelines.prompt_weights import Piece, pieces, plain, weighed
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_stage import TextStage
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.types import StageSettings
from tests.checkpoints import write_clip, write_stable_diffusion
from tests.pipelines.test_stable_diffusion import SIDE, ours
from tests.render.whole import load

# As in the tests of Stable Diffusion.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
TOLERANCE = 1e-4
WEIGHTED, IN_COMPEL = "a (red:1.3) cat++ on (the beach:0.4)", "a (red)1.3 cat++ on (the beach)0.4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextToImage:
    return load(folder)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32)


def states(encoder: TextEncoder, *prompts: str) -> Tensor:
    found = encoder.encode(list(prompts), length=encoder.max_tokens, seen=True).text
    assert found is not None
    return found


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.2) cat", [("a ", 1), ("red", 1.2), (" cat", 1)]),
        ("a red++ cat, blue--.", [("a ", 1), ("red", 1.21), (" cat, ", 1), ("blue", 0.81), (".", 1)]),
        ("(two dogs)++ (far: .5)", [("two dogs", 1.21), (" ", 1), ("far", 0.5)]),
        ("jet-black+++", [("jet-black", 1.331)]),
        ("猫++ と (犬:0)", [("猫", 1.21), (" と ", 1), ("犬", 0)]),
        ("(a:b:1.3)", [("a:b", 1.3)]),
        ("(red:1.2)(blue:1.2)", [("redblue", 1.2)]),
        (r"(\(a\):2) C\+\+", [("(a)", 2), (" C++", 1)]),
        ("((red:1.2) cat:1.1)", [("(", 1), ("red", 1.2), (" cat:1.1)", 1)]),
    ],
)
def test_weights_are_read(prompt: str, found: list[tuple[str, float]]) -> None:
    read = pieces(prompt)
    assert [piece.text for piece in read] == [text for text, _ in found]
    assert [piece.weight for piece in read] == pytest.approx([weight for _, weight in found])


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat",
        "(a small cat)",
        "[red]",
        "in 16:9 (16:9)",
        "A+ x- a--b -- ++ c ++",
        "(:1.2) ( :2)",
        "(a:1",
        "a \\ b",
        "()++",
    ],
)
def test_what_is_text_stays_text(prompt: str) -> None:
    assert pieces(prompt) == (Piece(prompt),)


@given(st.text() | st.text("ab(:1.5)+-\\ ,"))
def test_any_text_can_be_read(prompt: str) -> None:
    read = pieces(prompt)
    assert "".join(piece.text for piece in read) == plain(prompt)
    assert all(one.weight != other.weight for one, other in pairwise(read))
    assert all(piece.text.strip() for piece in read if piece.weight != 1)
    if not set(prompt) & set("()+-\\"):
        assert plain(prompt) == prompt


# ---- what becomes of the states ------------------------------------------------------------------


def test_without_weights_nothing_changes(pipe: TextToImage, encoder: TextEncoder) -> None:
    prompts = ["a red cat (small)", "", "two dogs"]
    before = states(encoder, *prompts)
    assert torch.equal(weighed(encoder, prompts, before), before)
    stage, literal = (
        TextStage(encoder, length=40, seen=True, weighted=weighted) for weighted in (True, False)
    )
    one, other = (_told(one, *prompts) for one in (stage, literal))
    assert torch.equal(one, other)
    assert pipe.cascade.stages[0].weighted  # type: ignore[attr-defined]


def _told(stage: TextStage, *prompts: str) -> Tensor:
    draft = finish(stage.run(Draft(prompts, "snow"), StageSettings(), Noise(range(len(prompts)), "text")))
    assert draft.text is not None
    assert draft.text.text is not None
    return draft.text.text


def test_more_leads_away_from_the_empty_prompt(encoder: TextEncoder) -> None:
    """Letters are tokens here: those of the word, and no others, are 1.5 times as far."""
    before, empty = states(encoder, "a cat on"), states(encoder, "")
    (after,) = weighed(encoder, ["a (cat:1.5) on"], before)
    wanted = before[0].clone()
    wanted[2:5] = empty[0, 2:5] + 1.5 * (before[0, 2:5] - empty[0, 2:5])
    torch.testing.assert_close(after, wanted, atol=1e-6, rtol=0)
    assert not torch.allclose(after, before[0], atol=1e-2)


def test_less_leads_to_the_empty_prompt_and_half_way_to_one_without_the_word(encoder: TextEncoder) -> None:
    before = states(encoder, "a cat on")
    (after,) = weighed(encoder, ["a (cat:0.5) on"], before)
    tokens = encoder.tokenizer("a cat on", padding="max_length", max_length=40, return_tensors="pt")[
        "input_ids"
    ]
    mask = torch.ones_like(tokens)
    mask[:, 2:5] = 0
    with torch.no_grad():
        (without,) = encoder.model(tokens, mask).last_hidden_state
    wanted, (empty,) = (before[0] + without) / 2, states(encoder, "")
    wanted[2:5] = empty[2:5] + 0.5 * (wanted[2:5] - empty[2:5])
    torch.testing.assert_close(after, wanted, atol=1e-6, rtol=0)
    assert not torch.allclose(after, before[0], atol=1e-2)


def test_pictures_are_those_of_diffusers_with_the_states_of_compel(folder: Path, pipe: TextToImage) -> None:
    image = ours(pipe, [WEIGHTED], [3], "(snow:1.5)", steps=2, sampler="ddim", guidance_scale=3.0)[1]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    compel = Compel(pipeline.tokenizer, pipeline.text_encoder)
    with torch.no_grad():
        latent = pipeline(
            prompt_embeds=compel(IN_COMPEL),
            negative_prompt_embeds=compel("(snow)1.5"),
            latents=Noise([3], "decoder").draw((4, SIDE // 2, SIDE // 2)),
            num_inference_steps=2,
            guidance_scale=3.0,
            output_type="latent",
        ).images
        other = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)
    plainly = ours(pipe, [plain(WEIGHTED)], [3], "snow", steps=2, sampler="ddim", guidance_scale=3.0)[1]
    assert image.std() > 0.05, "a grey picture says nothing"
    assert float((image - plainly).abs().max()) > 1e-3
    difference = float((image - other).abs().max())
    print("with weights differs by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [WEIGHTED, "two dogs", "(two:0.1) dogs"], [3, 5, 5]
    together = ours(pipe, prompts, seeds, "snow", steps=2)[1]
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe, [prompt], [seed], "snow", steps=2)[1]
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.equal(together[1], together[2])


def test_of_two_encoders_the_pooled_vector_is_that_of_the_plain_text(tmp_path: Path) -> None:
    both = []
    for name, kind in (("one", "CLIPTextModel"), ("two", "CLIPModel")):
        folder = write_clip(tmp_path / name, kind)
        read = TextEncoder.load(
            folder / "text_encoder", folder / "tokenizer", dtype=torch.float32, projected=kind == "CLIPModel"
        )
        both.append(TextEncoder(read.model, read.tokenizer, layer=-2))
    stage = TextStage(both[0], length=40, seen=True, beside=both[1], zeros=True, weighted=True)
    draft = finish(stage.run(Draft((WEIGHTED, plain(WEIGHTED))), StageSettings(), Noise([1, 2], "text")))
    assert draft.text is not None
    assert draft.text.text is not None
    assert draft.text.pooled is not None
    assert draft.text.text.shape == (2, 40, 64)
    assert torch.equal(draft.text.pooled[0], draft.text.pooled[1])
    for half in draft.text.text.split(32, dim=-1):
        assert not torch.allclose(half[0], half[1], atol=1e-3)


def test_words_that_do_not_fit_are_named_without_their_weights(encoder: TextEncoder) -> None:
    stage = TextStage(encoder, length=8, seen=True, weighted=True)
    assert stage.cut_words("a (red:1.5) cat++ (dog:0.5)") == ("cat", "dog")
    assert _told(stage, "a (red:1.5) cat++ (dog:0.5)").shape == (1, 8, 32)


def test_what_stands_in_the_way_is_said(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = TextEncoder(encoder.model, encoder.tokenizer, layer=1)
    with pytest.raises(UsageError, match="reads layer 1 of its text encoder"):
        weighed(lower, ["a cat++"], states(lower, "a cat"))
    monkeypatch.setattr(prompt_weights, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"gives 'cat' the weight 1\.21, .* pip install 'mmgen\[weights\]'"):
        weighed(encoder, ["a cat++"], states(encoder, "a cat"))
    before = states(encoder, "a (cat)")
    assert torch.equal(weighed(encoder, ["a (cat)"], before), before)
