"""The refiner of Stable Diffusion XL through our stages, beside the two pipelines of diffusers that do the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img
from torch import Tensor
from transformers import CLIPTextModelWithProjection

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.estimate import cost
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import BETAS, write_stable_diffusion
from tests.pipelines.test_sdxl import (
    POOLED,
    PROMPT,
    SIDE,
    STEPS,
    TOLERANCE,
    WIDTH_2,
    assert_same,
    encoder_config,
    rewrite,
    tokenizer,
    write_scheduler,
    write_sdxl,
)
from tests.pipelines.test_stable_diffusion import CPU
from tests.render.whole import in_parts, is_read_per_turn, load, one_by_one, three_jobs, together

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
REFINED, LEVEL = 3, 0.3  # steps that are taken, and from where: the last of ten
FAST = {"decoder": StageSettings(steps=2), "refiner": StageSettings(steps=2)}


def write_refiner(
    folder: Path, *, scored: bool = True, zeros: bool = False, unet: Any = None, vae: Any = None
) -> Path:
    """A folder as diffusers publishes the refiner. unet, vae: changes of their configs."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipeline = StableDiffusionXLImg2ImgPipeline(
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
            text_encoder=None,
            text_encoder_2=CLIPTextModelWithProjection(
                encoder_config(WIDTH_2, hidden_act="gelu", eos_token_id=2)
            ),
            tokenizer=None,
            tokenizer_2=tokenizer("a"),
            unet=UNet2DConditionModel(
                **{
                    "sample_size": 8,
                    "block_out_channels": (8, 16),
                    "layers_per_block": 1,
                    "norm_num_groups": 4,
                    "attention_head_dim": (2, 4),
                    "use_linear_projection": True,
                    "cross_attention_dim": WIDTH_2,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": POOLED + (5 if scored else 6) * 8,
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                    **(unet or {}),
                }
            ),
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
            requires_aesthetics_score=scored,
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed, like the next one."""
    return write_sdxl(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def folder(base: Path) -> Path:
    return write_refiner(base.parent / "refiner")


@pytest.fixture(scope="module")
def pipe(base: Path, folder: Path) -> TextToImage:
    return load(joined(base, folder))


def joined(base: Path, folder: Path) -> Path:
    return Path(f"{base}?refiner={folder}")


def ours(
    pipe: TextToImage, prompts: Sequence[str], seeds: Sequence[int], negative: str = "", **settings: Any
) -> tuple[Tensor, Tensor]:
    """Latents and pictures in [-1, 1], all in one batch. settings: of the refiner."""
    guidance = settings.get("guidance_scale", 5.0)
    stages = pipe.cascade.resolve(
        {
            "decoder": StageSettings(steps=STEPS, sampler="euler", guidance_scale=guidance),
            "refiner": StageSettings(**{"steps": REFINED, "noise_level": LEVEL, **settings}),
        }
    )
    draft = finish(pipe.cascade.run(Draft(tuple(prompts), negative), stages, seeds, Clock(CPU)))  # type: ignore[arg-type]
    assert draft.latent is not None
    assert draft.image is not None
    return draft.latent, draft.image


def theirs(
    base: Path,
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    *,
    guidance_scale: float = 5.0,
) -> tuple[Tensor, Tensor]:
    """The same by diffusers: the base to latents, which its other pipeline is given as a picture."""
    asked: dict[str, Any] = {
        "negative_prompt": [negative] * len(prompts) if negative else None,
        "guidance_scale": guidance_scale,
        "output_type": "latent",
    }
    first = StableDiffusionXLPipeline.from_pretrained(base)
    # which two of its components the published folder lacks, it says, and asks for them all the same
    second = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    shape = (4, SIDE // 2, SIDE // 2)
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        latent = first(
            list(prompts), latents=Noise(seeds, "decoder").draw(shape), num_inference_steps=STEPS, **asked
        ).images
        patch.setattr(
            pipeline_stable_diffusion_xl_img2img,
            "randn_tensor",
            lambda *_, **__: Noise(seeds, "refiner").draw(shape),
        )
        refined = second(
            list(prompts),
            image=latent,
            strength=LEVEL,
            num_inference_steps=round(REFINED / LEVEL),
            **asked,
        ).images
        image = first.vae.decode(refined / first.vae.config.scaling_factor).sample
    assert not torch.allclose(latent, refined, atol=0.1), "what changes nothing shows nothing"
    return refined, image.clamp(-1, 1)


# ---- the pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "guidance_scale", "negative"),
    [
        ("euler", 5.0, ""),
        ("euler", 1.0, ""),
        ("euler", 5.0, "snow"),
        ("ddim", 5.0, "snow"),
        ("dpmpp-2m", 5.0, "snow"),
    ],
)
def test_pictures_are_those_of_diffusers(
    base: Path, copy: Path, sampler: str, guidance_scale: float, negative: str
) -> None:
    write_scheduler(copy, sampler)
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    mine = ours(load(joined(base, copy)), *asked, sampler=sampler, guidance_scale=guidance_scale)
    assert_same(mine, theirs(base, copy, *asked, guidance_scale=guidance_scale))


def test_a_refiner_that_is_told_sizes_alone(base: Path, tmp_path: Path) -> None:
    folder = write_refiner(tmp_path / "refiner", scored=False, zeros=True)
    mine = ours(load(joined(base, folder)), [PROMPT], [3], sampler="euler")
    assert_same(mine, theirs(base, folder, [PROMPT], [3]))


def test_the_network_is_told_how_well_pictures_are_to_please(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet: Any = pipe.cascade.stages[3].networks[0]
    seen: list[Tensor] = []
    forward = unet.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(unet, "forward", noted)
    ours(pipe, [PROMPT], [3])
    assert [one.tolist() for one in seen] == [[[SIDE, SIDE, 0, 0, 6.0], [SIDE, SIDE, 0, 0, 2.5]]] * REFINED


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = ours(pipe, prompts, seeds, "snow")[1]
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe, [prompt], [seed], "snow")[1]
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    for steps, level in ((1, 0.3), (2, 0.02), (3, 1.0)):
        settings = StageSettings(sampler=sampler, steps=steps, noise_level=level)
        stages = {"decoder": StageSettings(steps=1), "refiner": settings}
        once, again = (pipe(PROMPT, seeds=[3], stages=stages).images[0] for _ in range(2))
        assert np.asarray(once).std() > 1
        assert once.tobytes() == again.tobytes()


def test_half_precision(base: Path, folder: Path) -> None:
    model = mmgen.load(joined(base, folder), "cpu", "bfloat16")
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


# ---- stage by stage ------------------------------------------------------------------------------


def test_stage_by_stage_gives_the_same_bytes(
    pipe: TextToImage, base: Path, folder: Path, tmp_path: Path
) -> None:
    model = open_model(joined(base, folder), "cpu", "float32")
    jobs = three_jobs(pipe, FAST, {**FAST, "refiner": StageSettings(steps=3, noise_level=0.5)})
    assert together(jobs, model, tmp_path / "one") == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)
    assert in_parts(jobs, model, tmp_path / "parts") == one_by_one(jobs, pipe)


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    stages = {"decoder": StageSettings(steps=2), "refiner": StageSettings(steps=3)}
    steps = list(pipe.stream(PROMPT, seeds=[3], stages=stages))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *(("decoder", i, 2) for i in (1, 2)), *(("refiner", i, 3) for i in (1, 2, 3)), ("vae", 1, 1)
    ]  # fmt: skip
    assert [step.preview()[0].size for step in steps] == [(8, 8)] * 5 + [(SIDE, SIDE)]
    assert steps[2].t < 0.3


def test_what_it_takes_is_counted_in_its_steps(pipe: TextToImage) -> None:
    stage = pipe.cascade.stages[3]
    settings = pipe.cascade.resolve({})["refiner"]
    draft = Draft((PROMPT,))
    for before in pipe.cascade.stages[:3]:
        noise = Noise([3], before.name)
        draft = finish(before.run(draft, before.defaults.with_defaults(StageSettings(steps=2)), noise))

    def convolved(steps: int) -> int:
        found = cost(stage, draft, replace(settings, steps=steps))
        assert found is not None
        return sum(count * work.flop for work, count in found.work.items() if work.kind == "convolution")

    assert convolved(15) == 15 * convolved(1) > 0


# ---- the command line, and what is known ---------------------------------------------------------


def test_the_commands_take_a_refiner(
    base: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out, model = tmp_path / "cat.png", str(joined(base, folder))
    given = ["--model", str(base), "--refiner", str(folder), "--dtype", "float32", "--device", "cpu"]
    fast = ["--set", "decoder.steps=2", "--set", "refiner.steps=2", "--set", "refiner.noise_level=0.4"]
    run(
        "generate", PROMPT, "--out", str(out), "--negative", "snow", "--seed", "3", "--no-show", *given, *fast
    )
    request = read_metadata(out)["request"]
    assert request is not None
    assert request.model == "base?refiner=refiner"
    assert load(joined(base, folder)).run(request).images[0].tobytes() == inputs.open_picture(out).tobytes()
    told = run("models", "info", model)
    assert "refiner.unet" in told
    assert "--set refiner.…: steps=15, sampler=dpmpp-2m" in told
    assert "every file is as it should be" in run("models", "verify", model)
    assert "sdxl-refiner" in run("models", "info", str(folder))
    run("plan", "--model", model, "--device", "cpu")


def test_what_is_known_without_weights(base: Path, folder: Path, pipe: TextToImage) -> None:
    text = joined(base, folder)
    assert (verify(text), verify(folder)) == ([], [])
    told = describe(text)
    assert (told["name"], told["digest"]) == ("base?refiner=refiner", pipe.digest)
    assert told["stages"] == ["text", "decoder", "refiner-text", "refiner", "vae"]
    assert list(told["components"])[-2:] == ["refiner.text_encoder_2", "refiner.unet"]
    request = pipe.request(PROMPT, seeds=[3])
    assert facts(text).request(PROMPT, 3) == request
    assert request.stages["refiner"] == StageSettings(
        steps=15, sampler="dpmpp-2m", guidance_scale=5.0, noise_level=0.3
    )
    assert pipe.digest != facts(base).digest


def test_what_is_not_read_need_not_be_there(base: Path, copy: Path) -> None:
    text = joined(base, copy)
    digest = facts(text).digest
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert facts(text).digest == load(text).digest == digest
    (copy / "tokenizer_2" / "tokenizer_config.json").write_text("{}", "utf-8")
    assert facts(text).digest != digest


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"noise_level": 0}, "a noise_level of 0 refines nothing"),
        ({"noise_level": 0.01}, "15 steps from a noise_level of 0.01 are the last of 1,500"),
        ({"noise_level": 1e-320}, "are the last of 9,223,372,036,854,775,807"),
        ({"sampler": "UniPCMultistepScheduler"}, "only runs all the way from noise to picture"),
        ({"timesteps": "fast27"}, "stage 'refiner' does not take timesteps"),
    ],
)
def test_settings_that_cannot_be_meant(
    pipe: TextToImage, base: Path, folder: Path, settings: dict[str, Any], says: str
) -> None:
    stages = {"refiner": StageSettings(**settings)}
    with pytest.raises(UsageError, match=says):
        pipe.request(PROMPT, seeds=[3], stages=stages)
    with pytest.raises(UsageError, match=says):
        facts(joined(base, folder)).request(PROMPT, 3, stages=stages)


@pytest.mark.parametrize("steps", [None, 0, "many"])
def test_a_training_without_steps(base: Path, copy: Path, steps: Any) -> None:
    rewrite(copy / "scheduler" / "scheduler_config.json", num_train_timesteps=steps)
    with pytest.raises(ModelError, match=r"checkpoint .*: scheduler config has num_train_timesteps"):
        facts(joined(base, copy))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_encoder_2": None}, "component 'text_encoder_2' is None"),
        ({"vae": None}, "does not name 'vae'"),
        ({"requires_aesthetics_score": "yes"}, "requires_aesthetics_score is 'yes' in the index"),
        ({"_class_name": "StableDiffusionXLPipeline"}, r"holds no refiner of this kind \(it is a StableD"),
        ({"_class_name": "NewPipeline"}, "is of class 'NewPipeline'"),
    ],
)
def test_an_index_that_says_something_else(
    base: Path, copy: Path, changes: dict[str, Any], says: str
) -> None:
    rewrite(copy / "model_index.json", **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(joined(base, copy))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unet": {"cross_attention_dim": 32}}, "cross_attention_dim 32, but the text encoder has 48"),
        ({"unet": {"in_channels": 8}}, "unet has in_channels 8, but the VAE has 4"),
        ({"scored": False, "zeros": True}, "input_dim 72, but the pooled text has 24, and each of 5 sizes 8"),
        (
            {"vae": {"scaling_factor": 0.5}},
            "latents of scaling_factor 0.5, and those of the model have 0.13025",
        ),
        ({"vae": {"latents_mean": [0.1] * 4}}, "was trained on latents of latents_mean"),
    ],
)
def test_a_refiner_that_does_not_fit(base: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder = write_refiner(tmp_path / "refiner", **changes)
    rewrite(folder / "model_index.json", requires_aesthetics_score=True)
    with pytest.raises(ModelError, match=f"checkpoint refiner: .*{says}"):
        load(joined(base, folder))


def test_only_models_of_its_family_are_refined(
    base: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_stable_diffusion(tmp_path / "sd")
    capsys.readouterr()

    def fails(*args: str) -> tuple[int, str]:
        return main(["generate", PROMPT, *args]), capsys.readouterr().err

    assert fails("--model", str(other), "--refiner", str(folder)) == (
        2, "error: models of family stable-diffusion are not refined: leave --refiner out\n",
    )  # fmt: skip
    assert fails("--model", str(base), "--refiner", str(other)) == (
        3, "error: sd holds no refiner of this kind (it is a StableDiffusionPipeline)\n",
    )  # fmt: skip
    code, said = fails("--model", str(folder))
    assert code == 3
    assert "it draws no pictures by itself: give it as --refiner of a model of family sdxl" in said


def test_a_saved_copy_is_of_one_folder(pipe: TextToImage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no single folder"):
        pipe.save_pretrained(tmp_path / "saved")
