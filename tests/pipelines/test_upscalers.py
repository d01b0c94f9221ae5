"""What enlarges the pictures of another model: stage II of DeepFloyd IF, the x4 upscaler, and storybook's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.pipelines.deepfloyd_if import timesteps as published
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale
from diffusers.schedulers import UnCLIPScheduler, scheduling_ddpm, scheduling_unclip
from PIL import Image
from torch import Tensor

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata, to_pil, to_tensor
from mmgen.noise import Noise
from mmgen.pipelines import loading
from mmgen.pipelines.catalogue import describe, facts, sizes, verify
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.editing import Known
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.reference import Reference
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.upscaling import ShownUNet, UpscalerVaeStage
from mmgen.render.estimate import picture_bytes
from mmgen.schedulers.schedules import DiscreteSchedule, cosine_betas
from mmgen.types import SAMPLERS, Request, StageSettings
from tests.checkpoints import rewrite, write_clip, write_deepfloyd, write_tiny
from tests.pipelines.test_karlo import write_karlo
from tests.render.whole import in_parts, is_read_per_turn, one_by_one, three_jobs, together

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red cat on the beach"
STEPS, SIDE = 5, 16
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of pictures in [-1, 1]
IF_2, X4 = "super-res-32", "super-res-64"  # as they are called above pictures of SIDE
FAST = {"decoder": StageSettings(steps=2), IF_2: StageSettings(steps=2)}
FAST_X4 = {"decoder": StageSettings(steps=2), X4: StageSettings(steps=2)}
ALONE, KARLO = "super-res-32", "super-res-16"  # of both upscalers by themselves, and of Karlo
# a U-Net of four levels: its sides are multiples of 8
DEEP: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("ResnetDownsampleBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",),
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 3,
}


# ---- folders -------------------------------------------------------------------------------------


def write_if_super_res(folder: Path, *, text: bool = False, **unet: Any) -> Path:
    """A folder as diffusers publishes stage II of DeepFloyd IF, for pictures of 32 px. text: with its own encoder.

    unet: changes of its config.
    """
    changes = {"sample_size": 32, "in_channels": 6, "class_embed_type": "timestep", **unet}
    write_deepfloyd(folder, **changes)
    rewrite(folder / "scheduler" / "scheduler_config.json", sample_max_value=1.0)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "image_noising_scheduler")
    parts = {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
    if not text:
        parts = {part: [None, None] for part in parts}
        for part in parts:
            shutil.rmtree(folder / part)
    rewrite(
        folder / "model_index.json",
        _class_name="IFSuperResolutionPipeline",
        image_noising_scheduler=["diffusers", "DDPMScheduler"],
        **parts,
    )
    return folder


def write_x4(folder: Path, *, most: int = 350, **unet: Any) -> Path:
    """A folder as diffusers publishes the x4 upscaler. most: its max_noise_level. unet: changes of its config."""
    write_clip(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DConditionModel(
            **{
                "sample_size": 8,
                "in_channels": 7,
                "num_class_embeds": 1000,
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "attention_head_dim": 4,
                "cross_attention_dim": 32,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                **unet,
            }
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.08333,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
    network.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    betas: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.0001, "beta_end": 0.02}
    DDPMScheduler(**betas).save_pretrained(folder / "low_res_scheduler")
    DDIMScheduler(
        **betas, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionUpscalePipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "low_res_scheduler": ["diffusers", "DDPMScheduler"],
        "max_noise_level": most,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "watermarker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """if, if-2, if-2-text, x4, tiny and karlo; to be read, never to be changed."""
    folder = tmp_path_factory.mktemp("models")
    write_deepfloyd(folder / "if")
    write_if_super_res(folder / "if-2")
    write_if_super_res(folder / "if-2-text", text=True, **DEEP)
    write_karlo(folder / "karlo")
    write_x4(folder / "x4")
    write_tiny(folder / "tiny")
    return folder


def joined(models: Path, base: str, *upscalers: str) -> str:
    return str(Reference(str(models / base), upscalers=tuple(str(models / name) for name in upscalers)))


def load(models: Path, base: str, *upscalers: str) -> TextToImage:
    return mmgen.load(joined(models, base, *upscalers), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def larger(models: Path) -> TextToImage:
    return load(models, "if", "if-2")


@pytest.fixture(scope="module")
def x4(models: Path) -> TextToImage:
    return load(models, "if", "x4")


def ours(
    pipe: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    stages: dict[str, StageSettings] | None = None,
) -> Draft:
    """All in one batch."""
    settings = pipe.cascade.resolve(stages or {})
    return finish(pipe.cascade.run(Draft(tuple(prompts), negative), settings, seeds, Clock(CPU)))  # type: ignore[arg-type]


def picture(draft: Draft) -> Tensor:
    """In [-1, 1]."""
    assert draft.image is not None
    return draft.image


def run(pipe: TextToImage, name: str, draft: Draft, seeds: Sequence[int], **given: Any) -> Draft:
    """One stage of a model."""
    (stage,) = [stage for stage in pipe.cascade.stages if stage.name == name]
    settings = StageSettings(**given).with_defaults(stage.defaults)
    with torch.inference_mode():
        return finish(stage.run(draft, settings, Noise(seeds, name)))


def drawing(source: Callable[[Sequence[int]], Tensor], *modules: Any) -> pytest.MonkeyPatch:
    """diffusers' noise from our own source; to be undone."""
    patch = pytest.MonkeyPatch()
    for module in modules:
        patch.setattr(module, "randn_tensor", lambda shape, **_: source(shape[1:]))
    return patch


# ---- stage II of DeepFloyd IF --------------------------------------------------------------------


def theirs(
    models: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str,
    guidance_scale: float,
    noise_level: int,
    timesteps: list[int] | None = None,
) -> Tensor:
    """Both stages by diffusers, with the noise that ours draw.

    Their schedule is in float64: float32 keeps few digits of the beta between neighbouring training steps.
    """
    small = IFPipeline.from_pretrained(models / "if")
    large = IFSuperResolutionPipeline.from_pretrained(models / "if-2", text_encoder=None, tokenizer=None)
    given: dict[str, Any] = {"output_type": "pt", "num_inference_steps": STEPS}
    for pipeline in (small, large):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler.alphas_cumprod = DiscreteSchedule(cosine_betas(), "leading").alpha_bar[1:]
    told, away = small.encode_prompt(list(prompts), True, negative_prompt=[negative] * len(prompts))
    embeds = {"prompt_embeds": told, "negative_prompt_embeds": away}
    patch = drawing(Noise(seeds, "decoder").draw, pipeline_if, scheduling_ddpm)
    image = small(**embeds, **given, guidance_scale=7.0).images
    patch.undo()
    patch = drawing(Noise(seeds, IF_2).draw, pipeline_if_superresolution, scheduling_ddpm)
    found: Tensor = large(
        **embeds,
        **given,
        image=image,
        guidance_scale=guidance_scale,
        noise_level=noise_level,
        timesteps=timesteps,
    ).images
    patch.undo()
    return found.clamp(-1, 1)


@pytest.mark.parametrize(
    ("negative", "guidance_scale", "level"),
    [("", 4.0, None), ("Snow at night", 4.0, None), ("", 1.0, None), ("snow", 4.0, 0.0), ("", 4.0, 1.0)],
)
def test_pictures_are_those_of_both_pipelines(
    larger: TextToImage, models: Path, negative: str, guidance_scale: float, level: float | None
) -> None:
    prompts, seeds = [PROMPT, "Two DOGS "], [3, 5]
    stages = {
        "decoder": StageSettings(steps=STEPS),
        IF_2: StageSettings(steps=STEPS, guidance_scale=guidance_scale, noise_level=level),
    }
    mine = picture(ours(larger, prompts, seeds, negative, stages))
    step = {None: 250, 0.0: 0, 1.0: 999}[level]
    other = theirs(
        models, [p.lower().strip() for p in prompts], seeds, negative.lower(), guidance_scale, step
    )
    assert mine.shape == (2, 3, 32, 32)
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_a_preset_of_timesteps_is_that_of_diffusers(larger: TextToImage, models: Path) -> None:
    stages = {"decoder": StageSettings(steps=STEPS), IF_2: StageSettings(timesteps="super27")}
    mine = picture(ours(larger, [PROMPT], [3], "", stages))
    other = theirs(models, [PROMPT], [3], "", 4.0, 250, published.super27_timesteps)
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_an_encoder_of_its_own_is_passed_by(models: Path, larger: TextToImage, tmp_path: Path) -> None:
    shutil.copytree(models / "if", tmp_path / "if")
    write_if_super_res(tmp_path / "if-2", text=True)
    other = load(tmp_path, "if", "if-2")
    assert [stage.name for stage in other.cascade.stages] == ["text", "decoder", IF_2]
    one, same = (model(PROMPT, seeds=[3], stages=FAST).images[0].tobytes() for model in (larger, other))
    assert one == same


def test_the_defaults_are_those_of_stage_two(larger: TextToImage, models: Path) -> None:
    request = larger.request(PROMPT, seeds=[3])
    assert request.stages[IF_2] == StageSettings(
        steps=50, sampler="ddpm", guidance_scale=4.0, threshold="clip", noise_level=0.25
    )
    assert (larger.sizes, request.size) == ((SIDE, 32), (32, 32))
    assert facts(joined(models, "if", "if-2")).request(PROMPT, 3) == request
    assert larger.request(PROMPT, seeds=[3], size=SIDE).stages.keys() == {"decoder"}


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("steps", [1, 2])
def test_every_sampler_runs(larger: TextToImage, x4: TextToImage, sampler: str, steps: int) -> None:
    for pipe, name, side in ((larger, IF_2, 32), (x4, X4, 64)):
        settings = {
            "decoder": StageSettings(steps=1),
            name: StageSettings(sampler=sampler, steps=steps),
        }
        once, again = (pipe(PROMPT, seeds=[3], stages=settings).images[0] for _ in range(2))
        assert once.size == (side, side)
        assert np.asarray(once).std() > 1
        assert once.tobytes() == again.tobytes()


def test_what_the_larger_picture_depends_on(larger: TextToImage) -> None:
    small = Noise([7]).draw((3, SIDE, SIDE)).clamp(-1, 1)

    def drawn(prompt: str = PROMPT, image: Tensor = small, **given: Any) -> Tensor:
        told = run(larger, "text", Draft((prompt,), image=image), [3])
        return picture(run(larger, IF_2, told, [3], **{"steps": 4, **given}))

    plain = drawn()
    assert torch.equal(plain, drawn())
    for other in (
        drawn("two dogs"),
        drawn(image=-small),
        drawn(guidance_scale=1),
        drawn(noise_level=0.9),
        drawn(threshold="none"),
    ):
        assert not torch.allclose(plain, other, atol=1e-3)
    # pictures of another shape are enlarged as often
    assert drawn(image=small[..., :8]).shape == (1, 3, 32, 16)


# ---- the x4 upscaler -----------------------------------------------------------------------------


def x4_theirs(
    models: Path,
    image: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str,
    guidance_scale: float,
    noise_level: int,
    *,
    name: str = X4,
    kept: Sequence[int] | None = None,
) -> Tensor:
    """diffusers draws the noise of the picture that is enlarged first, and ours that of the latents.

    name: what our stage is called. kept: rows and columns of latents that are decoded; None: all.
    """
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(models / "x4")
    pipeline.set_progress_bar_config(disable=True)
    if kept is not None:
        pipeline.image_processor = VaeImageProcessor(vae_scale_factor=1)  # or it would stretch the picture
    noise = Noise(seeds, name)
    latents, shown = (noise.draw((channels, *image.shape[-2:])) for channels in (4, 3))
    patch = drawing(lambda shape: shown if shape[0] == 3 else latents, pipeline_stable_diffusion_upscale)
    found: Tensor = pipeline(
        prompt=list(prompts),
        image=(image + 1) / 2,
        negative_prompt=[negative] * len(prompts),
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        noise_level=noise_level,
        output_type="pt" if kept is None else "latent",
    ).images
    patch.undo()
    if kept is None:
        return 2 * found - 1
    found = found[..., : kept[0], : kept[1]] / pipeline.vae.config.scaling_factor
    with torch.no_grad():
        return pipeline.vae.decode(found, return_dict=False)[0].clamp(-1, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("negative", "guidance_scale", "level", "step"),
    [("", 9.0, None, 20), ("snow", 9.0, None, 20), ("", 1.0, None, 20), ("", 9.0, 0.0, 0), ("", 4.0, 0.35, 350)],
)  # fmt: skip
def test_pictures_are_those_of_the_upscaler_of_diffusers(
    x4: TextToImage, models: Path, negative: str, guidance_scale: float, level: float | None, step: int
) -> None:
    prompts, seeds = (PROMPT, "two dogs"), [3, 5]
    image = Noise(seeds, "small").draw((3, SIDE, SIDE)).clamp(-1, 1)
    draft = run(x4, "text-64", Draft(prompts, negative, image=image), seeds)
    draft = run(x4, X4, draft, seeds, steps=STEPS, guidance_scale=guidance_scale, noise_level=level)
    mine = picture(run(x4, "vae-64", draft, seeds))
    other = x4_theirs(models, image, prompts, seeds, negative, guidance_scale, step)
    assert mine.shape == (2, 3, 64, 64)
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_the_defaults_are_those_of_the_upscaler(x4: TextToImage, models: Path) -> None:
    request = x4.request(PROMPT, seeds=[3])
    assert request.stages[X4] == StageSettings(steps=75, sampler="ddim", guidance_scale=9.0, noise_level=0.02)
    assert x4.stage_names == ("text", "decoder", "text-64", X4, "vae-64")
    assert (x4.sizes, request.size) == ((SIDE, 64), (64, 64))
    assert facts(joined(models, "if", "x4")).request(PROMPT, 3) == request


def test_more_noise_than_it_has_learned_is_refused(x4: TextToImage, models: Path) -> None:
    says = r"'super-res-64' takes a noise_level of at most 0\.35, .*: 0\.351 is more"
    stages, known = {X4: StageSettings(noise_level=0.351)}, facts(joined(models, "if", "x4"))
    with pytest.raises(UsageError, match=says):
        x4.request(PROMPT, seeds=[3], stages=stages)
    with pytest.raises(UsageError, match=says):
        known.request(PROMPT, 3, stages=stages)
    assert known.request(PROMPT, 3, stages={X4: StageSettings(noise_level=0.35)})


def test_its_steps_can_be_looked_at(x4: TextToImage) -> None:
    steps = list(x4.stream(PROMPT, seeds=[3], stages=FAST_X4))
    assert [(step.stage, step.index) for step in steps] == [
        ("decoder", 1), ("decoder", 2), (X4, 1), (X4, 2), ("vae-64", 1)
    ]  # fmt: skip
    assert [step.preview()[0].size[0] for step in steps] == [SIDE, SIDE, SIDE, SIDE, 64]


def test_its_vae_keeps_its_name_in_smaller_squares(x4: TextToImage) -> None:
    vae = x4.cascade.stages[-1]
    assert isinstance(vae, UpscalerVaeStage)
    assert vae.smaller() is None, "pictures of 64 px are too small"
    smaller = UpscalerVaeStage(vae.network, size=1024).smaller()
    assert smaller is not None
    assert (smaller.name, smaller.size, smaller.square) == ("vae-1024", 1024, 512)


# ---- storybook's own, and several ----------------------------------------------------------------


def test_storybook_enlarges_the_pictures_of_others(models: Path) -> None:
    model = load(models, "if", "tiny")
    assert model.stage_names == ("text", "decoder", "super-res-64", "super-res-256")
    drawn = ours(model, [PROMPT], [3], "", {"decoder": StageSettings(steps=2)})
    whole = load(models, "tiny")
    small = picture(ours(load(models, "if"), [PROMPT], [3], "", {"decoder": StageSettings(steps=2)}))
    again = Draft((PROMPT,), image=small)
    for name in ("super-res-64", "super-res-256"):
        again = run(whole, name, again, [3])
    assert torch.equal(picture(drawn), picture(again))


@pytest.mark.parametrize(("side", "sizes"), [(16, [64, 256]), (64, [256, 1024]), (128, [512]), (512, [2048])])
def test_storybook_enlarges_twice_what_is_small(side: int, sizes: list[int]) -> None:
    upscaler = FAMILIES["storybook"].upscaler
    assert upscaler is not None
    assert [form.size for form in upscaler.forms({}, {}, side)] == sizes


def test_upscalers_stand_above_each_other(models: Path) -> None:
    model = load(models, "if", "if-2", "x4")
    assert model.stage_names == ("text", "decoder", IF_2, "text-128", "super-res-128", "vae-128")
    stages = {**FAST, "super-res-128": StageSettings(steps=1)}
    large = model(PROMPT, seeds=[3], stages=stages).images[0]
    assert large.size == (128, 128)
    small = model(PROMPT, seeds=[3], size=32, stages=FAST).images[0]
    assert small.tobytes() == load(models, "if", "if-2")(PROMPT, seeds=[3], stages=FAST).images[0].tobytes()


# ---- given pictures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(models: Path) -> dict[str, TextToImage]:
    """What enlarges given pictures, each of its own folder: if-2-text, x4 and karlo."""
    return {name: load(models, name) for name in ("if-2-text", "x4", "karlo")}


def photo(width: int, height: int) -> Image.Image:
    """Smooth in large and rough in small, as photos are."""
    rough = Noise([7]).draw((3, height, width)) / 4
    return to_pil(rough + torch.linspace(-0.7, 0.7, width))[0]


def enlarged(pipe: TextToImage, image: Image.Image, prompt: str = "", seed: int = 3, **given: Any) -> Tensor:
    """In [-1, 1], as `pipe.upscale` draws it."""
    form, cascade = pipe.cascade.enlarging(max(image.size), prompt, pipe.name)
    settings = cascade.resolve({form.name: StageSettings(**given)})
    draft = Draft((prompt,), image=to_tensor([image]))
    return picture(finish(cascade.run(draft, settings, [seed], Clock(CPU))))


def if_theirs(models: Path, image: Image.Image, prompt: str, guidance_scale: float, level: int) -> Tensor:
    """Stage II of diffusers by itself, called with this picture.

    Where its sides are none that the network takes, the pipeline is shown the enlarged picture with its edge going on.
    """
    pipeline = IFSuperResolutionPipeline.from_pretrained(models / "if-2-text")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.alphas_cumprod = DiscreteSchedule(cosine_betas(), "leading").alpha_bar[1:]
    exact = [4 * side for side in (image.height, image.width)]
    height, width = (side + -side % 8 for side in exact)

    def enlarge(small: Tensor, sides: Sequence[int], **how: Any) -> Tensor:
        large = F.interpolate(small, exact, **how)
        return F.pad(large, (0, sides[1] - exact[1], 0, sides[0] - exact[0]), mode="replicate")

    patch = drawing(Noise([3], ALONE).draw, pipeline_if_superresolution, scheduling_ddpm)
    if [height, width] != exact:
        patch.setattr(pipeline_if_superresolution, "F", SimpleNamespace(interpolate=enlarge))
    found: Tensor = pipeline(
        prompt=prompt,
        image=to_tensor([image]),
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        noise_level=level,
        clean_caption=False,
        output_type="pt",
    ).images
    patch.undo()
    return found[..., : exact[0], : exact[1]].clamp(-1, 1)


@pytest.mark.parametrize(
    ("size", "prompt", "guidance_scale", "level"),
    [((8, 8), PROMPT, 4.0, 0.25), ((8, 4), "", 4.0, 0.0), ((6, 4), PROMPT, 1.0, 0.25), ((5, 7), PROMPT, 4.0, 0.25)],
)  # fmt: skip
def test_a_given_picture_is_enlarged_as_by_stage_two_of_diffusers(
    alone: dict[str, TextToImage],
    models: Path,
    size: tuple[int, int],
    prompt: str,
    guidance_scale: float,
    level: float,
) -> None:
    image, given = photo(*size), {"guidance_scale": guidance_scale, "noise_level": level}
    mine = enlarged(alone["if-2-text"], image, prompt, steps=STEPS, **given)
    other = if_theirs(models, image, prompt, guidance_scale, round(1000 * level))
    assert mine.shape == (1, 3, 4 * size[1], 4 * size[0])
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


@pytest.mark.parametrize(
    ("size", "prompt", "guidance_scale", "level"),
    [
        ((16, 16), PROMPT, 9.0, 0.02),
        ((8, 20), "", 9.0, 0.35),
        ((12, 8), PROMPT, 1.0, 0.0),
        ((13, 9), PROMPT, 9.0, 0.02),
    ],
)
def test_a_given_picture_is_enlarged_as_by_the_upscaler_of_diffusers(
    alone: dict[str, TextToImage],
    models: Path,
    size: tuple[int, int],
    prompt: str,
    guidance_scale: float,
    level: float,
) -> None:
    image, given = photo(*size), {"guidance_scale": guidance_scale, "noise_level": level}
    mine = enlarged(alone["x4"], image, prompt, steps=STEPS, **given)
    width, height = size
    shown = F.pad(to_tensor([image]), (0, width % 2, 0, height % 2), mode="replicate")
    kept = (height, width) if width % 2 else None
    other = x4_theirs(
        models, shown, [prompt], [3], "", guidance_scale, round(1000 * level), name=ALONE, kept=kept
    )
    assert mine.shape == (1, 3, 4 * height, 4 * width)
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


@torch.no_grad()
def karlo_theirs(folder: Path, image: Image.Image, steps: int) -> Tensor:
    """Karlo's super-resolution by the networks and the scheduler of diffusers, its tables in float64."""
    first, last = (
        UNet2DModel.from_pretrained(folder / name) for name in ("super_res_first", "super_res_last")
    )
    scheduler = UnCLIPScheduler.from_pretrained(folder / "super_res_scheduler")
    betas = torch.tensor(cosine_betas(), dtype=torch.float64)
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, (1 - betas).cumprod(0)
    scheduler.set_timesteps(steps)
    sides = [2 * image.height, 2 * image.width]
    shown = F.interpolate(to_tensor([image]), sides, mode="bicubic", align_corners=False, antialias=True)
    noise = Noise([3], KARLO)
    x, times = noise.draw((3, *sides)), [*scheduler.timesteps.tolist(), None]
    patch = drawing(noise.draw, scheduling_unclip)
    for i, t in enumerate(times[:-1]):
        network = first if i < steps - 1 else last
        said = network(torch.cat([x, shown], dim=1), t).sample
        x = scheduler.step(said, t, x, prev_timestep=times[i + 1]).prev_sample
    patch.undo()
    return x.clamp(-1, 1)


@pytest.mark.parametrize("size", [(8, 8), (5, 8)])
def test_a_given_picture_is_enlarged_as_by_karlo(
    alone: dict[str, TextToImage], models: Path, size: tuple[int, int]
) -> None:
    image = photo(*size)
    mine = enlarged(alone["karlo"], image, steps=3)
    assert mine.shape == (1, 3, 2 * size[1], 2 * size[0])
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - karlo_theirs(models / "karlo", image, 3)).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


@pytest.mark.parametrize(
    ("name", "stage", "prompt", "factor"),
    [("if-2-text", ALONE, PROMPT, 4), ("x4", ALONE, PROMPT, 4), ("karlo", KARLO, "", 2)],
)
@pytest.mark.parametrize("size", [(1, 1), (19, 7)])
def test_an_enlarged_picture_says_how_it_was_made(
    alone: dict[str, TextToImage], name: str, stage: str, prompt: str, factor: int, size: tuple[int, int]
) -> None:
    pipe, image = alone[name], photo(*size)
    result = pipe.upscale(image, prompt=prompt, seed=3, settings=StageSettings(steps=2))
    assert result[0].size == result.request.size == (factor * size[0], factor * size[1])
    assert result[0].tobytes() == to_pil(enlarged(pipe, image, prompt, steps=2))[0].tobytes()
    (form,) = [one for one in pipe.cascade.stages if one.name == stage]
    assert result.request.stages == {stage: StageSettings(steps=2).with_defaults(form.defaults)}
    assert (result.request.verb, result.request.prompts, result.request.seeds) == ("upscale", (prompt,), (3,))
    assert result.request.inputs == {"image": inputs.digest(image)}
    assert (result.request.model, result.request.model_digest) == (name, pipe.digest)
    assert Request.from_json(result.request.to_json()) == result.request


def test_what_an_enlarged_picture_depends_on(alone: dict[str, TextToImage]) -> None:
    image = photo(8, 8)
    for name in ("if-2-text", "x4"):
        plain = enlarged(alone[name], image, PROMPT, steps=2)
        assert torch.equal(plain, enlarged(alone[name], image, PROMPT, steps=2))
        for other in (
            enlarged(alone[name], image, "two dogs", steps=2),
            enlarged(alone[name], photo(8, 8).rotate(90), PROMPT, steps=2),
            enlarged(alone[name], image, PROMPT, seed=4, steps=2),
            enlarged(alone[name], image, PROMPT, steps=2, noise_level=0.3),
        ):
            assert not torch.allclose(plain, other, atol=1e-3)


def test_large_pictures_are_seen_in_squares(larger: TextToImage) -> None:
    (stage,) = [stage for stage in larger.cascade.stages if stage.name == IF_2]
    (network,) = stage.networks
    text = run(larger, "text", Draft((PROMPT,)), [3]).text
    assert text is not None
    noise = Noise([3])
    x, shown, t = noise.draw((3, 40, 12)), noise.draw((3, 40, 12)), torch.tensor([300.0])

    def predicted(rows: slice, square: int) -> Tensor:
        face = ShownUNet(network, 3, square=square)
        told = face.prepare(Conditioning(text=text.text, low_res=shown[..., rows, :]))
        with torch.inference_mode():
            return face(x[..., rows, :], t, told)

    whole = predicted(slice(0, 40), 16)
    assert whole.shape == (1, 6, 40, 12)
    parts = [predicted(slice(top, top + 16), 64) for top in (0, 12, 24)]
    # where one lies alone; and between two, what both say
    torch.testing.assert_close(whole[..., :12, :], parts[0][..., :12, :], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole[..., 28:, :], parts[2][..., 4:, :], atol=1e-6, rtol=1e-5)
    one, other = parts[0][..., 12:, :], parts[1][..., :4, :]
    between = whole[..., 12:16, :]
    assert (between >= torch.minimum(one, other) - 1e-6).all()
    assert (between <= torch.maximum(one, other) + 1e-6).all()
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "most"), [("if-2-text", (21, 9), 32), ("karlo", (13, 6), 16), ("x4", (260, 3), 256)]
)
def test_no_network_sees_more_than_a_square(
    alone: dict[str, TextToImage], name: str, size: tuple[int, int], most: int
) -> None:
    seen: list[int] = []
    _, cascade = alone[name].cascade.enlarging(max(size), "", name)
    (stage,) = [stage for stage in cascade.stages if "image" in stage.needs]
    hooks = [
        network.register_forward_pre_hook(lambda _, given: seen.extend(given[0].shape[-2:]))
        for network in stage.networks
    ]
    large = enlarged(alone[name], photo(*size), steps=1)
    for hook in hooks:
        hook.remove()
    assert max(seen) == most
    assert large.isfinite().all()


def test_the_first_stage_that_is_trained_for_as_much_enlarges(models: Path, larger: TextToImage) -> None:
    several = load(models, "if", "if-2", "x4")
    fast = StageSettings(steps=1)
    small, same = (
        pipe.upscale(photo(16, 9), prompt=PROMPT, seed=3, settings=fast) for pipe in (several, larger)
    )
    assert (small[0].size, list(small.request.stages)) == ((32, 18), [IF_2])
    assert small[0].tobytes() == same[0].tobytes()
    large = several.upscale(photo(17, 9), prompt=PROMPT, seed=3, settings=fast)
    assert (large[0].size, list(large.request.stages)) == ((68, 36), ["super-res-128"])
    assert [record.stage for record in large.records] == ["text-128", "super-res-128", "vae-128"]
    ours = load(models, "if", "if-2", "tiny").upscale(photo(20, 12), seed=3)
    assert (ours[0].size, list(ours.request.stages)) == ((80, 48), ["super-res-128"])


def test_words_that_are_not_read_are_named(alone: dict[str, TextToImage], models: Path) -> None:
    fast = StageSettings(steps=1)
    cut = alone["x4"].upscale(photo(4, 4), prompt="a dog " * 40, seed=3, settings=fast).cut_words
    assert list(cut) == ["a dog " * 40]
    known = load(models, "tiny", "x4")
    assert known("a lamp", seeds=[3], size=16, stages={"decoder": fast}).unknown_words
    told = known.upscale(photo(65, 4), prompt="a lamp", seed=3, settings=fast)
    assert list(told.request.stages) == ["super-res-1024"]
    assert not told.unknown_words, "the x4 upscaler has an encoder of its own"


def test_weights_are_there_for_their_turn_only(alone: dict[str, TextToImage], models: Path) -> None:
    model, fast = open_model(models / "x4", "cpu", "float32"), StageSettings(steps=2)
    one, other = (
        pipe.upscale(photo(9, 5), prompt=PROMPT, seed=3, settings=fast)[0].tobytes()
        for pipe in (model, alone["x4"])
    )
    assert one == other
    assert is_read_per_turn(model)


def test_an_encoder_of_its_own_must_fit(tmp_path: Path) -> None:
    write_if_super_res(tmp_path / "if-2", text=True, encoder_hid_dim=48)
    with pytest.raises(ModelError, match="unet has encoder_hid_dim 48, but the text encoder has 32"):
        load(tmp_path, "if-2")


def test_what_cannot_be_enlarged_is_said(alone: dict[str, TextToImage], models: Path) -> None:
    image = photo(4, 4)
    with pytest.raises(UsageError, match="has no super-resolution stage: it cannot enlarge pictures"):
        load(models, "if").upscale(image)
    with pytest.raises(
        UsageError, match="stage 'super-res-16' of karlo is told no text: leave the prompt out"
    ):
        alone["karlo"].upscale(image, prompt=PROMPT)
    with pytest.raises(UsageError, match="'super-res-16' does not take noise_level"):
        alone["karlo"].upscale(image, settings=StageSettings(noise_level=0.1))
    with pytest.raises(UsageError, match=r"takes a noise_level of at most 0\.35"):
        alone["x4"].upscale(image, settings=StageSettings(noise_level=0.5))
    with pytest.raises(UsageError, match=r"has no letter or digit"):
        alone["x4"].upscale(image, prompt="?!")


@pytest.mark.parametrize("name", [IF_2, X4])
def test_what_a_larger_picture_takes_is_known_before(larger: TextToImage, x4: TextToImage, name: str) -> None:
    pipe = larger if name == IF_2 else x4
    draft, need = Draft((PROMPT,), image=torch.zeros(1, 3, SIDE, SIDE)), []
    for stage in pipe.cascade.stages:
        if stage.name in ("text", "text-64"):
            draft = run(pipe, stage.name, draft, [3])
    (stage,) = [stage for stage in pipe.cascade.stages if stage.name == name]
    for settings in (StageSettings(), StageSettings(timesteps="fast27"), StageSettings(guidance_scale=1)):
        need.append(picture_bytes(stage, draft, settings.with_defaults(stage.defaults)))
    even, preset, unguided = need
    assert min(even, preset) > unguided > 0


# ---- many pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize(("upscaler", "stages"), [("if-2", FAST), ("x4", FAST_X4)])
def test_a_batch_gives_the_pictures_of_single_runs(
    models: Path, upscaler: str, stages: dict[str, StageSettings]
) -> None:
    pipe = load(models, "if", upscaler)
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = picture(ours(pipe, prompts, seeds, "snow", stages))
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = picture(ours(pipe, [prompt], [seed], "snow", stages))
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize(("upscaler", "stages"), [("if-2", FAST), ("x4", FAST_X4)])
def test_stage_by_stage_gives_the_same_bytes(
    models: Path, tmp_path: Path, upscaler: str, stages: dict[str, StageSettings]
) -> None:
    pipe = load(models, "if", upscaler)
    model, jobs = open_model(joined(models, "if", upscaler), "cpu", "float32"), three_jobs(pipe, stages)
    assert together(jobs, model, tmp_path) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(models: Path, tmp_path: Path) -> None:
    model = open_model(joined(models, "if", "x4"), "cpu", "float32")
    jobs = three_jobs(model, FAST_X4)
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, load(models, "if", "x4"))


def test_half_precision_draws(models: Path) -> None:
    for upscaler, stages in (("if-2", FAST), ("x4", FAST_X4)):
        model = mmgen.load(joined(models, "if", upscaler), "cpu", "bfloat16")
        assert np.asarray(model(PROMPT, seeds=[3], stages=stages).images[0]).std() > 1


def test_the_commands_take_them(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def called(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out = tmp_path / "cat.png"
    reference = joined(models, "if", "if-2")
    given = ["--model", reference, "--dtype", "float32", "--device", "cpu", "--steps", "2", "--seed", "3"]
    called("generate", PROMPT, "--out", str(out), "--set", f"{IF_2}.steps=2", *given)
    request = read_metadata(out)["request"]
    assert request is not None
    again = mmgen.load(reference, "cpu", "float32").run(request).images[0]
    assert again.tobytes() == inputs.open_picture(out).tobytes()
    for name, family, stages in (
        ("if-2", "if-super-res", [IF_2]),
        ("if-2-text", "if-super-res", ["text", ALONE]),
        ("x4", "x4-upscaler", ["text-32", "super-res-32", "vae-32"]),
    ):
        assert "UNet2DConditionModel" in called("models", "info", str(models / name))
        assert verify(models / name) == []
        assert (describe(models / name)["family"], describe(models / name)["stages"]) == (family, stages)


@pytest.mark.parametrize(("upscaler", "stage"), [("if-2", IF_2), ("x4", X4)])
def test_pictures_that_were_chosen_are_enlarged_later(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], upscaler: str, stage: str
) -> None:
    prompts, begun = tmp_path / "prompts.txt", tmp_path / "begun"
    prompts.write_text(f'{PROMPT}\n--prompt "two dogs" --negative snow\n', "utf-8")
    given = ["--model", joined(models, "if", upscaler), "--dtype", "float32", "--device", "cpu"]
    drawn = ["--steps", "2", "--set", f"{stage}.steps=2", *given]
    assert main(["batch", str(prompts), "-o", str(begun), "--stop-after", "decoder", *drawn]) == 0
    small = sorted(map(str, begun.glob("*.decoder.png")))
    assert len(small) == 2
    assert main(["batch", "--from-stage", "super-res", *small, "-o", str(tmp_path / "later"), *given]) == 0
    assert main(["batch", str(prompts), "-o", str(tmp_path / "once"), *drawn]) == 0
    capsys.readouterr()
    later, once = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        for name in ("later", "once")
    )
    assert len(once) == 2
    assert later == once


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["if-2-text", "x4"])
def test_an_upscaler_draws_nothing_by_itself(models: Path, alone: dict[str, TextToImage], name: str) -> None:
    for read in (facts, sizes):
        with pytest.raises(
            ModelError, match=f"{name}: it draws no pictures by itself: give it as --upscaler"
        ):
            read(str(models / name))
    pipe = alone[name]
    assert pipe.sizes == ()
    for draw in (pipe, pipe.request, lambda prompt: pipe.edit(photo(8, 8), prompt)):
        with pytest.raises(UsageError, match=f"{name} draws no pictures by itself: give one to `upscale`"):
            draw(PROMPT)


def test_stage_two_without_a_text_encoder_enlarges_nothing_by_itself(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "read_component", pytest.fail)
    with pytest.raises(
        ModelError, match="if-2: it has no text_encoder, without which it enlarges pictures only"
    ):
        load(models, "if-2")


def test_a_batch_of_an_upscaler_alone_is_refused_before_it_begins(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPT, "utf-8")
    given = [str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out"), "--model", str(models / "x4")]
    assert main(["batch", *given, "--dry-run"]) == 3
    assert "give it as --upscaler" in capsys.readouterr().err


def test_texts_of_another_encoder_are_refused(x4: TextToImage) -> None:
    draft = run(x4, "text-64", Draft((PROMPT,), image=torch.zeros(1, 3, SIDE, SIDE)), [3])
    assert draft.text is not None
    assert draft.text.text is not None
    wide = replace(draft, text=replace(draft.text, text=draft.text.text.repeat(1, 1, 2)))
    with pytest.raises(UsageError, match="is told texts of width 32, and those of this model have 64"):
        run(x4, X4, wide, [3], steps=1)


def test_stage_two_is_not_told_what_another_decoder_was(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    write_if_super_res(tmp_path / "if-2", sample_size=512, encoder_hid_dim=48)
    with pytest.raises(UsageError, match="is told texts of width 48, and those of this model have 32"):
        load(tmp_path, "tiny", "if-2")


def test_what_is_drawn_over_is_refused_before_the_first_step(
    models: Path, alone: dict[str, TextToImage]
) -> None:
    model, image = load(models, "tiny", "x4"), photo(16, 16)
    begun = model.stream(PROMPT, seeds=[3], image=image)
    with pytest.raises(
        UsageError, match=r"'super-res-\d+' of this model cannot .*: choose another --upscaler"
    ):
        next(begun)
    drawn = model.edit(image, PROMPT, seeds=[3], size=16, stages={"decoder": StageSettings(steps=1)})
    assert drawn[0].size == (16, 16)
    for name, stage in (("if-2-text", ALONE), ("karlo", KARLO)):
        over = Draft((PROMPT,), known=Known(to_tensor([image])))
        with pytest.raises(UsageError, match=f"'{stage}' of this model cannot .*: choose another --upscaler"):
            next(alone[name].cascade.enlarging(4, "", name)[1].run(over, {}, [3], Clock(CPU)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_channels": 3}, "unet has in_channels 3, but the picture has 3, and what it enlarges 3"),
        ({"out_channels": 3}, "unet has out_channels 3, but one that predicts learned-range has 6"),
        (
            {"class_embed_type": None},
            "unet has class_embed_type None and encoder_hid_dim 32: one that enlarges",
        ),
        ({"class_embed_type": "identity"}, "unet has class_embed_type 'identity': it must be told more"),
        ({"sample_size": 16}, "unet draws pictures of 16 px, and those before have 16"),
        ({"sample_size": 24}, "unet draws pictures of 24 px, and those before have 16"),
    ],
)
def test_a_unet_that_enlarges_otherwise(
    models: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    shutil.copytree(models / "if", tmp_path / "if")
    write_if_super_res(tmp_path / "if-2", **changes)
    with pytest.raises(ModelError, match=says):
        load(tmp_path, "if", "if-2")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_channels": 4}, "unet has in_channels 4, but the VAE has 4, and what it enlarges 3"),
        (
            {"num_class_embeds": None},
            "unet has num_class_embeds None, but the noise that it is told has 1000",
        ),
        ({"num_class_embeds": 350}, "unet has num_class_embeds 350, but the noise that it is told has 1000"),
        ({"cross_attention_dim": 16}, "unet has cross_attention_dim 16, but the text encoder has 32"),
        ({"most": -1}, "max_noise_level is -1 in the index: it must be a training step"),
    ],
)
def test_an_upscaler_whose_parts_do_not_fit(
    models: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    shutil.copytree(models / "if", tmp_path / "if")
    write_x4(tmp_path / "x4", **changes)
    with pytest.raises(ModelError, match=says):
        load(tmp_path, "if", "x4")


def test_a_noise_that_nobody_says_is_not_guessed(models: Path, tmp_path: Path) -> None:
    for base in ("if", "if-2", "x4"):
        shutil.copytree(models / base, tmp_path / base)
    rewrite(tmp_path / "if-2" / "model_index.json", image_noising_scheduler=[None, None])
    (tmp_path / "x4" / "low_res_scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ModelError, match="does not name 'image_noising_scheduler'"):
        load(tmp_path, "if", "if-2")
    with pytest.raises(ModelError, match="scheduler_config"):
        load(tmp_path, "if", "x4")
