"""Pipelines of diffusers that run as they are, beside those that diffusers loads from the same folders."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPixelPipeline,
    PRXTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLTextConfig,
    Qwen3VLTextModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, NonFiniteError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.families.whole import WHOLE
from mmgen.pipelines.families.whole_stage import handed, mended, packed, unpacked
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.estimate import cost, picture_bytes
from mmgen.render.jobs import Job
from mmgen.render.windows import Budget
from mmgen.types import StageSettings
from tests.checkpoints import LETTERS, WORDS, rewrite
from tests.render.whole import (
    drawn,
    image_of,
    in_parts,
    is_read_per_turn,
    one_by_one,
    three_jobs,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT, STEPS = "a red cat on the beach", 2
FAST = {"decoder": StageSettings(steps=STEPS)}
TOLERANCE = 1e-5  # of pictures in [-1, 1]
WIDTH, POOLED = 16, 24  # of CLIP's states and of its pooled vector
# Of the latents of pipelines whose files do not say it; here they are smaller, for the time that they take.
PUBLISHED_SIDE = WHOLE["FluxPipeline"].latent_side
SIDE = 16
PIECES = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]


# ---- tiny folders --------------------------------------------------------------------------------


def clip(kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(PIECES), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=POOLED, bos_token_id=len(PIECES) - 2, eos_token_id=len(PIECES) - 1,
        pad_token_id=len(PIECES) - 1,
    )  # fmt: skip
    return kind(config)


def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[], model_max_length=40)


def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=80, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5EncoderModel(config)


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, *(f"▁{word}" for word in WORDS)]
    return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def vae(levels: int = 2, **changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "block_out_channels": (8, 16)[:levels],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "scaling_factor": 1.5,
            "shift_factor": 0.06,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            **changes,
        }
    )


def sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=2 * POOLED, pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=clip(CLIPTextModelWithProjection), tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def pixart() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            sample_size=8, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            cross_attention_dim=16, caption_channels=32, use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=0.0001, beta_end=0.02, solver_order=2
        ),
        vae=vae(shift_factor=None, use_quant_conv=True, use_post_quant_conv=True),
        text_encoder=t5(), tokenizer=t5_tokenizer(),
    )  # fmt: skip


def sana() -> SanaPipeline:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    encoder = Gemma2Config(
        vocab_size=len(pieces), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    decoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.41,
        encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip
    return SanaPipeline(
        transformer=SanaTransformer2DModel(
            sample_size=16, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        ),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
        vae=decoder,
        text_encoder=Gemma2Model(encoder),
        tokenizer=GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]),
    )  # fmt: skip


def flux(**changes: Any) -> FluxPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(**{
            "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": WIDTH,
            "guidance_embeds": True, "axes_dims_rope": (2, 2, 4), **changes,
        }),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=clip(CLIPTextModel), tokenizer=clip_tokenizer(),
        text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Of bytes, and two marks around what somebody says."""
    pieces = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def z_image(**changes: Any) -> ZImagePipeline:
    encoder = Qwen3Config(
        vocab_size=272, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = (
        "{% for said in messages %}<|im_start|>{{ said.role }}\n{{ said.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 2, 2], axes_lens=[1024, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **changes}),
        vae=vae(), text_encoder=Qwen3Model(encoder), tokenizer=tokenizer,
    )  # fmt: skip


def qwen_image() -> QwenImagePipeline:
    encoder = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 272, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16
        },
    )  # fmt: skip
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 2, 2),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 0.5, 1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(encoder), tokenizer=qwen_tokenizer(),
    )  # fmt: skip


def prx_pixel() -> PRXPixelPipeline:
    encoder = Qwen3VLTextConfig(
        vocab_size=272, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    transformer = PRXTransformer2DModel(
        in_channels=3, patch_size=4, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2,
        axes_dim=[4, 4], bottleneck_size=8, resolution_embeds=True,
    )  # fmt: skip
    for parameter in transformer.parameters():
        if not parameter.any():  # its layers begin by doing nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return PRXPixelPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=Qwen3VLTextModel(encoder), tokenizer=qwen_tokenizer(), default_sample_size=32,
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd3": sd3,
    "pixart-sigma": pixart,
    "sana": sana,
    "flux": flux,
    "z-image": z_image,
    "qwen-image": qwen_image,
    "prx-pixel": prx_pixel,
}
SIDES = {
    "sd3": 16,
    "pixart-sigma": 16,
    "sana": 32,
    "flux": 32,
    "z-image": 32,
    "qwen-image": 32,
    "prx-pixel": 32,
}
NEGATIVE = [name for name in BUILDERS if name != "flux"]  # are told a negative prompt
# What diffusers does otherwise by default: sizes that the networks were trained on, and cleaning where it can.
CALLS: dict[str, dict[str, Any]] = {
    "sd3": {},
    "pixart-sigma": {"use_resolution_binning": False, "clean_caption": False},
    "sana": {"use_resolution_binning": False, "height": 32, "width": 32},
    "flux": {"height": 32, "width": 32},
    "z-image": {"height": 32, "width": 32},
    "qwen-image": {"height": 32, "width": 32},
    "prx-pixel": {"use_resolution_binning": False},
}


def write(folder: Path, build: Callable[[], Any]) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    assert PUBLISHED_SIDE == WHOLE["ZImagePipeline"].latent_side == WHOLE["QwenImagePipeline"].latent_side
    with pytest.MonkeyPatch.context() as patch:
        for name, whole in WHOLE.items():
            if whole.latent_side is not None:
                patch.setitem(WHOLE, name, replace(whole, latent_side=SIDE))
        # diffusers does not name what it reads texts through, and which leaves plain ones alone
        ftfy = SimpleNamespace(fix_text=lambda text: text)
        patch.setattr("diffusers.pipelines.prx.pipeline_prx_pixel.ftfy", ftfy, raising=False)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """To be read, never to be changed."""
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name, build) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, TextToImage]:
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Of SD3, to be changed at will."""
    return Path(shutil.copytree(folders["sd3"], tmp_path / "copy"))


def load(folder: Path, dtype: str = "float32") -> TextToImage:
    return mmgen.load(folder, device="cpu", dtype=dtype)


# ---- the same pictures ---------------------------------------------------------------------------


def ours(
    pipe: TextToImage, prompts: Sequence[str], seeds: Sequence[int], negative: str = "", **settings: Any
) -> Tensor:
    """In [-1, 1], all in one batch."""
    return image_of(
        drawn(pipe, prompts, seeds, negative, {"decoder": StageSettings(steps=STEPS, **settings)})
    )


@cache
def pipeline_of(folder: Path) -> Any:
    """That of diffusers; every call of it begins anew."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(
    folder: Path, prompts: Sequence[str], seeds: Sequence[int], negative: str, **settings: Any
) -> Tensor:
    """The same by diffusers, which draws the noise itself from generators as ours."""
    if folder.name == "prx-pixel" and len(prompts) > 1:  # with guidance it takes one picture alone
        alone = [
            theirs(folder, [one], [seed], negative, **settings)
            for one, seed in zip(prompts, seeds, strict=True)
        ]
        return torch.cat(alone)
    pipeline = pipeline_of(folder)
    told = {"negative_prompt": [negative] * len(prompts)} if folder.name in NEGATIVE else {}
    if folder.name == "qwen-image" and "guidance_scale" in settings:
        settings["true_cfg_scale"] = settings.pop("guidance_scale")
    images = pipeline(
        prompt=list(prompts),
        num_inference_steps=STEPS,
        generator=Noise(seeds, "decoder").generators,
        output_type="pt",
        **told,
        **CALLS[folder.name],
        **settings,
    ).images
    return images.clamp(-1, 1) if folder.name == "prx-pixel" else 2 * images - 1  # the one as it was drawn


@pytest.mark.parametrize(
    ("name", "guidance_scale"),
    [("z-image", 0.0), *((name, scale) for name in BUILDERS for scale in (1.0, 5.0))],
)
def test_pictures_are_those_of_diffusers(
    folders: dict[str, Path], pipes: dict[str, TextToImage], name: str, guidance_scale: float
) -> None:
    asked = ([PROMPT, "Two dogs"], [3, 5], "snow" if name in NEGATIVE else "")
    mine = ours(pipes[name], *asked, guidance_scale=guidance_scale)
    other = theirs(folders[name], *asked, guidance_scale=guidance_scale)
    assert mine.shape == other.shape == (2, 3, SIDES[name], SIDES[name])
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print(f"{name} at guidance {guidance_scale}: pictures differ by {difference:.1e}")  # noqa: T201
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", NEGATIVE)
def test_all_that_is_told_counts(pipes: dict[str, TextToImage], name: str) -> None:
    pipe = pipes[name]
    plain = ours(pipe, [PROMPT], [3])
    for other in (
        ours(pipe, ["two dogs"], [3]),
        ours(pipe, [PROMPT], [5]),
        ours(pipe, [PROMPT], [3], "snow"),
        ours(pipe, [PROMPT], [3], guidance_scale=1.0),
    ):
        assert (plain - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_gives_the_pictures_of_single_runs(pipes: dict[str, TextToImage], name: str) -> None:
    prompts, seeds, negative = [PROMPT, "two dogs", ""], [3, 5, 7], "snow" if name in NEGATIVE else ""
    together = ours(pipes[name], prompts, seeds, negative)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipes[name], [prompt], [seed], negative)
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)


def test_noise_of_a_solver_is_of_each_picture(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["pixart-sigma"], tmp_path / "pixart-sigma"))
    rewrite(folder / "scheduler" / "scheduler_config.json", algorithm_type="sde-dpmsolver++")
    pipe, asked = load(folder), ([PROMPT, "two dogs"], [3, 5])
    together = ours(pipe, *asked)
    assert (together - theirs(folder, *asked, "")).abs().max() < TOLERANCE
    assert (together[1:] - ours(pipe, ["two dogs"], [5])).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", NEGATIVE)
def test_half_precision(folders: dict[str, Path], pipes: dict[str, TextToImage], name: str) -> None:
    half = load(folders[name], "bfloat16")
    # as its configuration asks for
    vae_in = torch.bfloat16 if name in ("sana", "qwen-image") else torch.float32
    dtypes = [next(stage.networks[0].parameters()).dtype for stage in half.cascade.stages]
    assert dtypes == [torch.bfloat16, torch.bfloat16, *([] if name == "prx-pixel" else [vae_in])]
    assert (ours(half, [PROMPT], [3]) - ours(pipes[name], [PROMPT], [3])).abs().mean() < 0.1


# ---- steps, stage by stage -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd3", "pixart-sigma"])
def test_every_step_is_handed_out(pipes: dict[str, TextToImage], name: str) -> None:
    steps = list(pipes[name].stream(PROMPT, seeds=[3], stages={"decoder": StageSettings(steps=4)}))
    assert [(step.stage, step.index, step.total, step.t) for step in steps] == [
        *(("decoder", i, 4, 1 - i / 4) for i in range(1, 5)), ("vae", 1, 1, 0.0)
    ]  # fmt: skip
    assert all(step.x.shape == (1, 4, 8, 8) for step in steps[:-1])
    assert not torch.equal(steps[0].x, steps[1].x)


def three(pipe: TextToImage, name: str) -> list[Job]:
    """As `three_jobs`, without the one that has a negative prompt where there can be none."""
    jobs = three_jobs(pipe, FAST, {"decoder": StageSettings(steps=3)})
    return [job for job in jobs if name in NEGATIVE or not job.request.negative_prompt]


@pytest.fixture(scope="module")
def alone(pipes: dict[str, TextToImage]) -> Callable[[str], dict[int, bytes]]:
    """The pictures of `three`, each drawn for itself."""
    return cache(lambda name: one_by_one(three(pipes[name], name), pipes[name]))


@pytest.mark.parametrize(
    ("name", "budget"),
    [*((name, Budget()) for name in BUILDERS), ("sd3", Budget(memory=0)), ("z-image", Budget(memory=0))],
)
def test_stage_by_stage_gives_the_same_bytes(
    folders: dict[str, Path],
    alone: Callable[[str], dict[int, bytes]],
    tmp_path: Path,
    name: str,
    budget: Budget,
) -> None:
    model = open_model(folders[name], "cpu", "float32")
    assert together(three(model, name), model, tmp_path, budget=budget) == alone(name)
    assert is_read_per_turn(model)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    folders: dict[str, Path], alone: Callable[[str], dict[int, bytes]], tmp_path: Path, name: str
) -> None:
    model = open_model(folders[name], "cpu", "float32")
    assert in_parts(three(model, name), model, tmp_path) == alone(name)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_single_step_is_enough(pipes: dict[str, TextToImage], name: str) -> None:
    pipe, one = pipes[name], {"decoder": StageSettings(steps=1)}
    first, second = pipe([PROMPT, "two dogs"], seeds=[3], stages=one).images
    assert first.tobytes() != second.tobytes()


def test_two_runs_of_one_model_do_not_disturb_each_other(pipes: dict[str, TextToImage]) -> None:
    pipe = pipes["pixart-sigma"]
    whole = pipe(PROMPT, seeds=[3], stages={"decoder": StageSettings(steps=3)}).images[0].tobytes()
    one = pipe.stream(PROMPT, seeds=[3], stages={"decoder": StageSettings(steps=3)})
    next(one)
    pipe("two dogs", seeds=[5], stages=FAST)
    assert finish(one).images[0].tobytes() == whole


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [
        ("sd3", 16 + 40 + 256, 64),
        ("pixart-sigma", 2 * 16, 64),
        ("sana", 2 * 256, 80),
        ("flux", 64 + 512, 64),
        ("z-image", 2 * (64 + 32), 42),
        ("qwen-image", 64 + 100, 64),
        ("prx-pixel", 2 * (64 + 256), 32),
    ],
)
def test_what_a_picture_takes_is_estimated(
    pipes: dict[str, TextToImage], name: str, tokens: int, width: int
) -> None:
    """At least what is inside a layer, of the tokens of the picture, with guidance twice, and those of the text."""
    text, decoder, *_ = pipes[name].cascade.stages
    draft = finish(text.run(Draft((PROMPT,)), StageSettings(), Noise([3])))
    estimate = picture_bytes(decoder, draft, decoder.defaults)
    assert estimate is not None
    assert estimate > 4 * tokens * width


@pytest.mark.parametrize("name", BUILDERS)
def test_every_stage_is_planned_from_the_one_before(pipes: dict[str, TextToImage], name: str) -> None:
    draft = Draft((PROMPT,))
    for stage in pipes[name].cascade.stages:
        found = cost(stage, draft, stage.defaults)
        assert found is not None, stage.name
        draft = found.draft
    assert draft.image is not None
    assert draft.image.shape == (1, 3, SIDES[name], SIDES[name])


# ---- a function whose values are asked for -------------------------------------------------------


def test_values_are_handed_over_as_they_are_asked_for() -> None:
    done: list[int] = []

    def call(hand: Callable[[int], None]) -> str:
        for i in range(3):
            done.append(i)
            hand(i)
        return "end"

    run = handed(call)
    assert next(run) == 0
    assert done == [0]
    assert next(run) == 1
    assert done == [0, 1]
    assert finish(run) == "end"  # type: ignore[arg-type]
    left = handed(call)
    next(left)
    left.close()
    assert done == [0, 1, 2, 0]


def test_what_a_function_raises_is_raised_where_it_is_asked() -> None:
    def call(hand: Callable[[int], None]) -> None:
        hand(1)
        raise torch.OutOfMemoryError("no room")

    run = handed(call)
    assert next(run) == 1
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        next(run)


def test_its_thread_computes_as_the_one_that_asks() -> None:
    def call(_hand: Callable[[int], None]) -> tuple[bool, int]:
        return torch.is_inference_mode_enabled(), torch.get_num_threads()

    with torch.inference_mode():
        assert finish(handed(call)) == (True, torch.get_num_threads())  # type: ignore[arg-type]
    assert finish(handed(call)) == (False, torch.get_num_threads())  # type: ignore[arg-type]


def test_packing_is_that_of_diffusers() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(packed(x), FluxPipeline._pack_latents(x, 2, 4, 6, 6))
    assert torch.equal(unpacked(packed(x), 6), x)


# ---- what is known, said and refused -------------------------------------------------------------


def test_the_commands_take_such_a_folder(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    folder, out = folders["sana"], tmp_path / "cat.png"
    given = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--steps", "2", "--seed", "3"]
    run("generate", PROMPT, "--out", str(out), "--negative", "snow", *given)
    request = read_metadata(out)["request"]
    assert request is not None
    again = load(folder).run(request).images[0]
    assert again.tobytes() == inputs.open_picture(out).tobytes()
    assert "sana" in run("models", "info", str(folder))
    assert "every file is as it should be" in run("models", "verify", str(folder))


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_known_without_weights(
    folders: dict[str, Path], pipes: dict[str, TextToImage], name: str
) -> None:
    folder, pipe = folders[name], pipes[name]
    assert verify(folder) == []
    told = describe(folder)
    assert (told["name"], told["family"], told["digest"]) == (name, name, pipe.digest)
    stages = ["text", "decoder", *([] if name == "prx-pixel" else ["vae"])]
    assert (told["stages"], told["sides"]) == (stages, [SIDES[name]])
    assert facts(folder).request(PROMPT, 3) == pipe.request(PROMPT, seeds=[3])


def test_defaults_are_the_published_ones(pipes: dict[str, TextToImage]) -> None:
    found = {name: pipe.request(PROMPT, seeds=[3]).stages for name, pipe in pipes.items()}
    assert found == {
        name: {"decoder": StageSettings(steps=steps, guidance_scale=scale)}
        for name, steps, scale in (
            ("sd3", 28, 7.0), ("pixart-sigma", 20, 4.5), ("sana", 20, 4.5), ("flux", 28, 3.5), ("z-image", 50, 4.0),
            ("prx-pixel", 28, 5.0),
            ("qwen-image", 50, 4.0),
        )
    }  # fmt: skip
    with pytest.raises(UsageError, match="'decoder' does not take sampler: it takes steps, guidance_scale"):
        pipes["sd3"].request(PROMPT, stages={"decoder": StageSettings(sampler="euler")})


def test_a_side_that_no_file_says_is_that_of_diffusers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WHOLE, "FluxPipeline", replace(WHOLE["FluxPipeline"], latent_side=PUBLISHED_SIDE))
    monkeypatch.setitem(CALLS, "flux", {})
    mine, other = ours(load(folders["flux"]), [PROMPT], [3]), theirs(folders["flux"], [PROMPT], [3], "")
    assert mine.shape == other.shape == (1, 3, 256, 256)
    assert (mine - other).abs().max() < 1e-4  # of sums over 4,608 tokens


def test_a_flux_that_is_told_no_guidance_takes_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "flux", lambda: flux(guidance_embeds=False))
    pipe = load(folder)
    assert pipe.request(PROMPT, seeds=[3]).stages == {"decoder": StageSettings(steps=4)}
    assert facts(folder).request(PROMPT, 3) == pipe.request(PROMPT, seeds=[3])
    with pytest.raises(UsageError, match="does not take guidance_scale: it takes steps"):
        pipe.request(PROMPT, stages={"decoder": StageSettings(guidance_scale=3.5)})
    assert (ours(pipe, [PROMPT], [3]) - theirs(folder, [PROMPT], [3], "")).abs().max() < TOLERANCE


def test_a_turbo_has_settings_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "z-image", lambda: z_image(shift=3.0))
    pipe = load(folder)
    assert pipe.request(PROMPT, seeds=[3]).stages == {"decoder": StageSettings(steps=9, guidance_scale=0.0)}
    assert facts(folder).request(PROMPT, 3) == pipe.request(PROMPT, seeds=[3])


def make_older(encoder: Path, kind: str, rename: Callable[[str], str]) -> None:
    """As transformers wrote it before 5: one level of settings for texts, and other names."""
    values = json.loads((encoder / "config.json").read_text("utf-8"))
    values |= values.pop("text_config", {})  # beside what is said of the part that sees
    rope = values.pop("rope_parameters")
    values |= {"model_type": kind, "rope_theta": rope["rope_theta"], "rope_scaling": None}
    if "mrope_section" in rope:
        values["rope_scaling"] = {"type": "default", "mrope_section": rope["mrope_section"]}
    (encoder / "config.json").write_text(json.dumps(values), "utf-8")
    weights = encoder / "model.safetensors"
    save_file({rename(key): value for key, value in load_file(weights).items()}, weights, {"format": "pt"})


def make_older_tokenizer(folder: Path) -> None:
    """Its vocabulary in files of its own."""
    pieces = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(pieces["model"]["vocab"]), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    added = {one["content"]: one["id"] for one in pieces["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")


def test_files_of_z_image_as_they_are_published(
    folders: dict[str, Path], pipes: dict[str, TextToImage], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["z-image"], tmp_path / "z-image"))
    make_older(folder / "text_encoder", "qwen3", lambda key: f"model.{key}")
    make_older_tokenizer(folder / "tokenizer")
    assert torch.equal(ours(load(folder), [PROMPT], [3]), ours(pipes["z-image"], [PROMPT], [3]))


def test_files_of_qwen_image_as_they_are_published(
    folders: dict[str, Path], pipes: dict[str, TextToImage], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["qwen-image"], tmp_path / "qwen-image"))
    rename = {"model.language_model": "model", "model.visual": "visual"}
    make_older(
        folder / "text_encoder",
        "qwen2_5_vl",
        lambda key: re.sub(r"^model\.(?:language_model|visual)", lambda found: rename[found[0]], key),
    )
    make_older_tokenizer(folder / "tokenizer")
    rewrite(folder / "transformer" / "config.json", pooled_projection_dim=768)
    assert torch.equal(ours(load(folder), [PROMPT], [3]), ours(pipes["qwen-image"], [PROMPT], [3]))


def test_what_a_folder_says_of_conversations_is_not_run(
    folders: dict[str, Path], pipes: dict[str, TextToImage], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["z-image"], tmp_path / "z-image"))
    (folder / "tokenizer" / "chat_template.jinja").write_text("{{ raise_exception('it was run') }}", "utf-8")
    assert torch.equal(ours(load(folder), [PROMPT], [3]), ours(pipes["z-image"], [PROMPT], [3]))
    with pytest.raises(Exception, match="it was run"):
        theirs(folder, [PROMPT], [3], "")


def test_what_other_programs_left_in_a_text_is_mended(
    pipes: dict[str, TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"seeds": [3], "stages": FAST}
    plain = pipes["prx-pixel"]("salt & pepper", **asked).images[0].tobytes()  # type: ignore[arg-type]
    assert pipes["prx-pixel"](" salt &amp; pepper", **asked).images[0].tobytes() == plain  # type: ignore[arg-type]
    assert mended("salt,\n\tpepper &amp;amp; snow\n") == "salt,\n\tpepper & snow"  # lines are plain, too
    monkeypatch.setitem(
        sys.modules, "ftfy", SimpleNamespace(fix_text=lambda text: text.replace("\u2019", "'"))
    )  # type: ignore[arg-type]
    quoted, bent = pipes["prx-pixel"](["a cat's", "a cat\u2019s"], **asked).images  # type: ignore[arg-type]
    assert quoted.tobytes() == bent.tobytes()


def test_guidance_below_one_is_none_to_a_call_that_takes_no_less(pipes: dict[str, TextToImage]) -> None:
    less, none = (ours(pipes["prx-pixel"], [PROMPT], [3], guidance_scale=scale) for scale in (0.5, 1.0))
    assert torch.equal(less, none)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"default_sample_size": 34}, "default_sample_size is 34, which patches of 4 do not fill"),
        ({"default_sample_size": 10**6}, "default_sample_size is 1000000 in the index"),
        ({"default_sample_size": True}, "default_sample_size is True in the index"),
        ({"noise_scale": "2"}, "noise_scale is '2' in the index"),
        ({"prompt_max_tokens": 512}, "prompt_max_tokens is 512 in the index: models of this family read 256"),
    ],
)
def test_an_index_that_says_what_cannot_be_drawn(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder = Path(shutil.copytree(folders["prx-pixel"], tmp_path / "copy"))
    rewrite(folder / "model_index.json", **changes)
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_kernels_that_a_part_of_a_configuration_names_are_passed_by(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["qwen-image"], tmp_path / "qwen-image"))
    path = folder / "text_encoder" / "config.json"
    values = json.loads(path.read_text("utf-8"))
    for part in (values, values["text_config"], values["vision_config"]):
        part |= {"attn_implementation": "somebody/kernel", "_attn_implementation": "somebody/kernel"}
    path.write_text(json.dumps(values), "utf-8")
    config = load(folder).cascade.stages[0].networks[0].config
    parts = (config, config.text_config, config.vision_config)
    assert {part._attn_implementation for part in parts} == {"sdpa"}


@pytest.mark.parametrize(
    ("name", "path", "changes", "says"),
    [
        ("z-image", "transformer", {"axes_dims": [4, 4, 4]}, "does not describe a ZImageTransformer2DModel"),
        ("z-image", "vae", {"scaling_factor": 0}, "scaling_factor is 0"),
        ("qwen-image", "transformer", {"axes_dims_rope": [2, 2, 2]}, r"axes_dims_rope \[2, 2, 2\], which must be 3"),
        ("flux", "transformer", {"axes_dims_rope": [8]}, r"axes_dims_rope \[8\], which must be 3 even numbers"),
        ("flux", "transformer", {"axes_dims_rope": [3, 3, 2]}, "axes_dims_rope .* which must be 3 even numbers"),
        ("pixart-sigma", "transformer", {"sample_size": 7}, "sample_size is 7, which patches of 2 do not fill"),
        ("sd3", "transformer", {"sample_size": 64}, "sample_size is 64, and pos_embed_max_size 8: it knows no more"),
        ("qwen-image", "transformer", {"guidance_embeds": True}, "guidance_embeds True, but models of .* have False"),
        ("qwen-image", "transformer", {"use_layer3d_rope": True}, "use_layer3d_rope True, but models of .* have False"),
        ("qwen-image", "vae", {"latents_std": [1, 1, 1]}, "latents_std must be 4 numbers"),
        ("qwen-image", "vae", {"latents_mean": [0, 0, 0, "0"]}, "latents_mean must be 4 numbers"),
        ("qwen-image", "vae", {"latents_mean": 4}, "latents_mean must be 4 numbers"),
        ("qwen-image", "vae", {"latents_std": None}, "latents_std must be 4 numbers"),
        ("qwen-image", "vae", {"latents_std": [1, 1, 1, 0]}, "latents_std holds 0"),
        ("qwen-image", "vae", {"dim_mult": None}, "dim_mult"),
        ("qwen-image", "text_encoder", {"vision_config": [1]}, "text_encoder cannot be read"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_drawn_with(
    folders: dict[str, Path], tmp_path: Path, name: str, path: str, changes: dict[str, Any], says: str
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / "copy"))
    rewrite(folder / path / "config.json", **changes)
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_words_that_no_encoder_reads_are_named(
    pipes: dict[str, TextToImage], capfd: pytest.CaptureFixture[str]
) -> None:
    def cut(name: str, text: str) -> dict[str, tuple[str, ...]]:
        return dict(pipes[name](text, seeds=[3], stages=FAST).cut_words)  # type: ignore[arg-type]

    # every letter is a token, and the space before a word another; CLIP reads 38 of them, T5 goes on
    long = "a " * 127 + "cat"
    assert cut("sd3", "a " * 100 + "cat") == cut("pixart-sigma", long) == {}
    assert cut("sd3", long) == {long: ("cat",)}
    loud, slow = "A " * 149 + "CAT", "a" * 290 + " cat" + " snow" * 3
    assert cut("pixart-sigma", loud) == {loud: ("cat",)}
    assert cut("sana", slow) == {slow: ("snow",) * 2}
    # every byte is a token, what stands before a text counts among the 512, and at Qwen-Image not the first 34 of it
    template, _, _ = qwen_image().prompt_template_encode.partition("{}")
    before = len(qwen_tokenizer()(template)["input_ids"]) - 34
    for name, room in (
        ("prx-pixel", 256),
        ("z-image", 512 - len(["<|im_start|>", *"user\n"])),
        ("qwen-image", 512 - before),
    ):
        fits, slow = ("a" * (room - left) + " cat" for left in (4, 3))
        assert cut(name, fits) == {}
        assert cut(name, slow) == {slow: ("cat",)}
    assert capfd.readouterr().err == ""


def test_what_it_cannot_do_is_said(pipes: dict[str, TextToImage]) -> None:
    with pytest.raises(UsageError, match="models of family flux are told no negative prompt: leave it out"):
        pipes["flux"](PROMPT, seeds=[3], negative_prompt="snow", stages=FAST)
    with pytest.raises(UsageError, match=r"'a café': this model reads .* through ftfy. Install it"):
        pipes["prx-pixel"]("a café", seeds=[3], stages=FAST)
    with pytest.raises(UsageError, match="stage 'decoder' of this model cannot begin with a picture"):
        pipes["sd3"].edit(Image.new("RGB", (32, 32)), PROMPT, seeds=[3])


def test_a_transformer_that_fails_says_so(copy: Path) -> None:
    pipe = load(copy)
    transformer = pipe.cascade.stages[1].networks[0]
    with torch.no_grad():
        next(transformer.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        pipe(PROMPT, seeds=[3], stages=FAST)


@pytest.mark.parametrize(
    ("path", "changes", "says"),
    [
        ("model_index.json", {"_class_name": "LattePipeline"}, "is of class 'LattePipeline': mmgen knows"),
        ("model_index.json", {"transformer": ["os", "system"]}, "component 'transformer' is"),
        ("model_index.json", {"text_encoder_3": [None, None]}, "component 'text_encoder_3' is"),
        ("transformer/config.json", {"sample_size": None}, r"transformer/config\.json: sample_size is None"),
        ("scheduler/scheduler_config.json", {"_class_name": ["os", "system"]}, "is of class .*: mmgen runs FlowMatch"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "is of class 'DDIMScheduler'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": True}, "num_train_timesteps is True"),
        ("scheduler/scheduler_config.json", {"solver_order": 10**9}, "solver_order is 1000000000"),
        ("scheduler/scheduler_config.json", {"max_shift": "x"}, "max_shift is 'x', and must be a number"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "noise that no seed decides"),
    ],
)  # fmt: skip
def test_what_is_refused_before_weights_are_read(
    copy: Path, path: str, changes: dict[str, Any], says: str
) -> None:
    rewrite(copy / path, **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd3", {"time_shift_type": "none"}),
        ("sd3", {"shift": "x"}),
        ("pixart-sigma", {"algorithm_type": "none"}),
        ("pixart-sigma", {"prediction_type": "none"}),
        ("pixart-sigma", {"timestep_spacing": "none"}),
    ],
)
def test_a_scheduler_that_can_take_no_step(
    folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / "copy"))
    rewrite(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ModelError, match=r"scheduler_config\.json does not describe a .*Scheduler: "):
        load(folder)


def test_parts_that_do_not_fit_each_other(copy: Path, folders: dict[str, Path]) -> None:
    vae(latent_channels=8).save_pretrained(copy / "vae")
    with pytest.raises(ModelError, match="transformer has in_channels 4, but latents of this VAE need 8"):
        load(copy)
    shutil.copytree(folders["sd3"] / "vae", copy / "vae", dirs_exist_ok=True)
    CLIPTextModelWithProjection(
        CLIPTextConfig(**{**clip(CLIPTextModel).config.to_dict(), "projection_dim": 8})
    ).save_pretrained(copy / "text_encoder")
    with pytest.raises(ModelError, match="pooled_projection_dim 48, but the text encoders give 32"):
        load(copy)


def test_an_encoder_of_another_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["sana"], tmp_path / "sana"))
    shutil.copytree(folders["flux"] / "text_encoder_2", folder / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(
        ModelError, match=r"says that text_encoder is Gemma2Model, but .* describes a T5Encoder"
    ):
        load(folder)


def test_pictures_differ_from_prompt_to_prompt(pipes: dict[str, TextToImage]) -> None:
    images = pipes["sana"]([PROMPT, "two dogs"], seeds=[3], stages=FAST).images
    assert np.abs(np.asarray(images[0], float) - np.asarray(images[1], float)).max() > 1
