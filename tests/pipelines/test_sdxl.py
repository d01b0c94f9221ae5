"""Published folders of Stable Diffusion XL through our stages, beside the pipeline of diffusers that wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.windows import Budget
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import BETAS, LETTERS
from tests.pipelines.test_stable_diffusion import (
    FAST,
    PROMPT,
    SCHEDULERS,
    SIDE,
    STEPS,
    TOLERANCE,
    assert_same,
    ours,
    rewrite,
)
from tests.render.whole import (
    check_sampler,
    in_parts,
    is_read_per_turn,
    load,
    one_by_one,
    three_jobs,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
WIDTH, WIDTH_2, POOLED = 32, 48, 24  # of the token states of both encoders, and of the pooled vector
PIECES = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def encoder_config(width: int, **changes: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        **{
            "vocab_size": len(PIECES),
            "hidden_size": width,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": 40,
            "projection_dim": POOLED,
            "bos_token_id": len(PIECES) - 2,
            "eos_token_id": len(PIECES) - 1,
            "pad_token_id": len(PIECES) - 1,
            **changes,
        }
    )


def tokenizer(pad: str) -> CLIPTokenizer:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=40, pad_token=pad)


def write_sdxl(folder: Path, *, zeros: bool = True, unet: Any = None, vae: Any = None) -> Path:
    """A folder as diffusers publishes Stable Diffusion XL: pictures of 16 px from latents of 8.

    zeros: told without a negative prompt. unet, vae: changes of their configs. As there, the encoders pad otherwise,
    and the second says the end of a text to be another token than it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                **{
                    "block_out_channels": (8, 16),
                    "layers_per_block": 1,
                    "norm_num_groups": 4,
                    "latent_channels": 4,
                    "down_block_types": ("DownEncoderBlock2D",) * 2,
                    "up_block_types": ("UpDecoderBlock2D",) * 2,
                    "scaling_factor": 0.13025,
                    **(vae or {}),
                }
            ),
            text_encoder=CLIPTextModel(encoder_config(WIDTH)),
            text_encoder_2=CLIPTextModelWithProjection(
                encoder_config(WIDTH_2, hidden_act="gelu", eos_token_id=2)
            ),
            tokenizer=tokenizer("<|endoftext|>"),
            tokenizer_2=tokenizer("a"),
            unet=UNet2DConditionModel(
                **{
                    "sample_size": 8,
                    "block_out_channels": (8, 16),
                    "layers_per_block": 1,
                    "norm_num_groups": 4,
                    "attention_head_dim": (2, 4),
                    "transformer_layers_per_block": (1, 2),
                    "use_linear_projection": True,
                    "cross_attention_dim": WIDTH + WIDTH_2,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                    **(unet or {}),
                }
            ),
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """That of diffusers, with the folder's networks."""
    found = StableDiffusionXLPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def theirs(
    pipeline: Any,
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    *,
    guidance_scale: float,
) -> tuple[Tensor, Tensor]:
    """The same by diffusers, with the index and the scheduler of a folder; no negative prompt is None to it."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    pipeline.register_to_config(force_zeros_for_empty_prompt=index["force_zeros_for_empty_prompt"])
    pipeline.scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder / "scheduler")
    with torch.no_grad():
        latent = pipeline(
            list(prompts),
            negative_prompt=[negative] * len(prompts) if negative else None,
            latents=Noise(seeds, "decoder").draw((4, SIDE // 2, SIDE // 2)),
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).images
        image = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return latent, image.clamp(-1, 1)


def write_scheduler(folder: Path, sampler: str, **settings: Any) -> None:
    kind, values = SCHEDULERS[sampler]
    kind(**values, **settings).save_pretrained(folder / "scheduler")
    rewrite(folder / "model_index.json", scheduler=["diffusers", kind.__name__])


# ---- the pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance_scale", "negative"), [(1.0, ""), (5.0, ""), (5.0, "snow")])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_pictures_are_those_of_diffusers(
    pipeline: Any, copy: Path, sampler: str, guidance_scale: float, negative: str
) -> None:
    write_scheduler(copy, sampler)
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    mine = ours(load(copy), *asked, steps=STEPS, sampler=sampler, guidance_scale=guidance_scale)
    assert_same(mine, theirs(pipeline, copy, *asked, guidance_scale=guidance_scale))


def test_a_model_that_predicts_v(pipeline: Any, copy: Path) -> None:
    write_scheduler(copy, "ddim", prediction_type="v_prediction")
    mine = ours(load(copy), [PROMPT], [3], steps=STEPS, sampler="ddim", guidance_scale=5.0)
    assert_same(mine, theirs(pipeline, copy, [PROMPT], [3], guidance_scale=5.0))


def test_where_the_index_says_so_guidance_leads_away_from_the_empty_prompt(
    pipeline: Any, copy: Path, pipe: TextToImage
) -> None:
    rewrite(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    mine = ours(load(copy), [PROMPT], [3], steps=STEPS, sampler="euler", guidance_scale=5.0)
    assert_same(mine, theirs(pipeline, copy, [PROMPT], [3], guidance_scale=5.0))
    zeros = ours(pipe, [PROMPT], [3], steps=STEPS, sampler="euler", guidance_scale=5.0)
    assert not torch.allclose(mine[1], zeros[1], atol=1e-2)


def test_the_network_is_told_the_size_and_the_pooled_text(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet: Any = pipe.cascade.stages[1].networks[0]
    seen: list[dict[str, Tensor]] = []
    forward = unet.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["added_cond_kwargs"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(unet, "forward", noted)
    ours(pipe, [PROMPT], [3], steps=1)
    assert seen[0]["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2
    assert seen[0]["text_embeds"].shape == (2, POOLED)
    assert seen[0]["text_embeds"][0].any()
    assert not seen[0]["text_embeds"][1].any()


@pytest.mark.parametrize("sampler", [*SAMPLERS, "PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    check_sampler(pipe, sampler, FAST)


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = ours(pipe, prompts, seeds, "snow", steps=3)[1]
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe, [prompt], [seed], "snow", steps=3)[1]
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_half_precision_does_not_reach_a_vae_that_overflows_in_it(folder: Path) -> None:
    model = mmgen.load(folder, "cpu", "bfloat16")
    networks = [network for stage in model.cascade.stages for network in stage.networks]
    half, single = torch.bfloat16, torch.float32
    assert [next(network.parameters()).dtype for network in networks] == [half, half, half, single]
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


# ---- stage by stage ------------------------------------------------------------------------------


def test_stage_by_stage_gives_the_same_bytes(pipe: TextToImage, folder: Path, tmp_path: Path) -> None:
    model, jobs = (
        open_model(folder, "cpu", "float32"),
        three_jobs(pipe, FAST, {"decoder": StageSettings(steps=3)}),
    )
    assert together(jobs, model, tmp_path, budget=Budget(memory=0)) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    pipe: TextToImage, folder: Path, tmp_path: Path
) -> None:
    model, jobs = (
        open_model(folder, "cpu", "float32"),
        three_jobs(pipe, FAST, {"decoder": StageSettings(steps=3)}),
    )
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, pipe)


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], stages={"decoder": StageSettings(steps=4)}))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *(("decoder", i, 4) for i in range(1, 5)), ("vae", 1, 1)
    ]  # fmt: skip
    assert [step.preview()[0].size for step in steps] == [(8, 8)] * 4 + [(SIDE, SIDE)]


# ---- the command line, and what is known ---------------------------------------------------------


def test_the_commands_take_such_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out = tmp_path / "cat.png"
    given = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--steps", "3", "--seed", "3"]
    run("generate", PROMPT, "--out", str(out), "--negative", "snow", *given)
    request = read_metadata(out)["request"]
    assert request is not None
    assert load(folder).run(request).images[0].tobytes() == inputs.open_picture(out).tobytes()
    assert "sdxl" in run("models", "info", str(folder))
    assert "every file is as it should be" in run("models", "verify", str(folder))


def test_what_is_known_without_weights(folder: Path, pipe: TextToImage) -> None:
    assert verify(folder) == []
    told = describe(folder)
    assert (told["name"], told["family"], told["digest"]) == ("sdxl", "sdxl", pipe.digest)
    assert {part: values["class"] for part, values in told["components"].items()} == {
        "text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel", "vae": "AutoencoderKL",
    }  # fmt: skip
    request = pipe.request(PROMPT, seeds=[3])
    assert facts(folder).request(PROMPT, 3) == request
    assert request.size == (SIDE, SIDE)
    assert request.stages == {"decoder": StageSettings(steps=30, sampler="dpmpp-2m", guidance_scale=5.0)}


def test_a_saved_copy_draws_the_same(pipe: TextToImage, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    copied = load(tmp_path / "saved")
    request = pipe.request(PROMPT, seeds=[3], stages=FAST)
    assert copied.digest == pipe.digest
    assert copied.run(request).images[0].tobytes() == pipe.run(request).images[0].tobytes()


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_encoder_2": None}, "component 'text_encoder_2' is None"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "component 'text_encoder_2' is"),
        ({"force_zeros_for_empty_prompt": "no"}, "force_zeros_for_empty_prompt is 'no' in the index"),
    ],
)
def test_an_index_that_says_something_else(copy: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(copy / "model_index.json", **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unet": {"cross_attention_dim": 32}}, "cross_attention_dim 32, but the text encoder has 80"),
        (
            {"unet": {"addition_embed_type": None, "projection_class_embeddings_input_dim": None}},
            "addition_embed_type None: that of this family has 'text_time'",
        ),
        (
            {"unet": {"projection_class_embeddings_input_dim": 80}},
            "input_dim 80, but the pooled text has 24, and each of 6 sizes 8",
        ),
        ({"vae": {"latent_channels": 8}}, "unet has in_channels 4, but the VAE has 8"),
        ({"vae": {"latents_mean": [0.1] * 4}}, r"vae/config\.json has latents_mean"),
    ],
)
def test_parts_that_do_not_fit_each_other(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load(write_sdxl(tmp_path / "sdxl", **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_position_embeddings": 50}, "read 40 and 50 tokens: they must read as many"),
        ({"num_hidden_layers": 0}, "text_encoder_2 has no layers"),
    ],
)
def test_encoders_that_do_not_fit_each_other(copy: Path, changes: dict[str, Any], says: str) -> None:
    shutil.rmtree(copy / "text_encoder_2")
    CLIPTextModelWithProjection(encoder_config(WIDTH_2, **changes)).save_pretrained(copy / "text_encoder_2")
    with pytest.raises(ModelError, match=says):
        load(copy)
