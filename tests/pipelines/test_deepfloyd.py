"""Published folders of DeepFloyd IF through our stages, beside the pipeline of diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, IFPipeline
from diffusers.pipelines.deepfloyd_if import pipeline_if
from diffusers.pipelines.deepfloyd_if import timesteps as published
from diffusers.schedulers import scheduling_ddpm
from PIL import Image
from torch import Tensor

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.adapters import noise_of
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.schedulers.schedules import DiscreteSchedule, FlowSchedule, cosine_betas, preset_times
from mmgen.types import PRESETS, SAMPLERS, Request, StageSettings
from tests.checkpoints import rewrite, write_clip, write_deepfloyd
from tests.render.whole import (
    check_sampler,
    drawn,
    image_of,
    in_parts,
    is_read_per_turn,
    load,
    one_by_one,
    three_jobs,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red cat on the beach"
STEPS, SIDE = 5, 16
FAST = {"decoder": StageSettings(steps=2)}
TOLERANCE = 1e-4  # of pictures in [-1, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_deepfloyd(tmp_path_factory.mktemp("models") / "if")


def ours(
    pipe: TextToImage, prompts: Sequence[str], seeds: Sequence[int], negative: str = "", **settings: Any
) -> Tensor:
    """Pictures in [-1, 1], all in one batch."""
    return image_of(drawn(pipe, prompts, seeds, negative, {"decoder": StageSettings(**settings)}))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """That of diffusers."""
    found = IFPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def theirs(
    pipeline: Any,
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str,
    guidance_scale: float,
    timesteps: list[int] | None = None,
) -> Tensor:
    """The same by diffusers, with the scheduler of a folder and the noise that we begin with and add at every step.

    timesteps: with the schedule in float64, because float32 keeps few digits of the beta between neighbouring ones.
    """
    pipeline.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    if timesteps is not None:
        pipeline.scheduler.alphas_cumprod = DiscreteSchedule(cosine_betas(), "leading").alpha_bar[1:]
    noise = Noise(seeds, "decoder")
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline_if, scheduling_ddpm):
            patch.setattr(module, "randn_tensor", lambda shape, **_: noise.draw(shape[1:]))
        images: Tensor = pipeline(
            list(prompts),
            negative_prompt=[negative] * len(prompts),
            num_inference_steps=STEPS,
            timesteps=timesteps,
            guidance_scale=guidance_scale,
            output_type="pt",
            clean_caption=False,
        ).images
    return images.clamp(-1, 1)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.0])
@pytest.mark.parametrize("negative", ["", "Snow at night"])
def test_pictures_are_those_of_diffusers(
    pipe: TextToImage, pipeline: Any, folder: Path, negative: str, guidance_scale: float
) -> None:
    asked = ([PROMPT, "Two DOGS "], [3, 5], negative)
    mine = ours(pipe, *asked, steps=STEPS, guidance_scale=guidance_scale)
    other = theirs(pipeline, folder, *asked, guidance_scale)
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_a_preset_of_timesteps_is_that_of_diffusers(pipe: TextToImage, pipeline: Any, folder: Path) -> None:
    """Of those with steps between neighbours, whose betas are the smallest."""
    asked = ([PROMPT, "two dogs"], [3, 5], "snow")
    mine = ours(pipe, *asked, timesteps="fast27")
    listed = published.fast27_timesteps
    difference = float((mine - theirs(pipeline, folder, *asked, 7.0, timesteps=listed)).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE
    assert float((mine - ours(pipe, *asked, steps=27)).abs().max()) > 1e-2


def test_every_preset_takes_the_steps_that_it_says() -> None:
    schedule = DiscreteSchedule(cosine_betas(), "leading")
    assert sorted(PRESETS) == sorted(
        name.removesuffix("_timesteps") for name in vars(published) if name.endswith("_timesteps")
    )
    for name, steps in PRESETS.items():
        times = preset_times(name, schedule)
        assert len(times) == steps + 1
        assert bool((times.diff() < 0).all())
        assert (times[0], times[-1]) == (999, -1)
    for other in (FlowSchedule(), DiscreteSchedule(cosine_betas(500), "leading")):
        with pytest.raises(UsageError, match="timesteps fast27 are some of 1000, and this network"):
            preset_times("fast27", other)


def test_a_preset_says_how_many_steps_it_takes(pipe: TextToImage, folder: Path) -> None:
    given = {"decoder": StageSettings(timesteps="smart50")}
    request = pipe.request(PROMPT, seeds=[3], stages=given)
    assert (request.stages["decoder"].steps, request.stages["decoder"].timesteps) == (50, "smart50")
    assert facts(folder).request(PROMPT, 3, stages=given) == request
    assert Request.from_json(request.to_json()) == request
    fewer = StageSettings(steps=9).with_defaults(request.stages["decoder"])
    assert (fewer.steps, fewer.timesteps) == (9, None)
    for settings, says in (
        ({"timesteps": "smart50", "sampler": "PNDMScheduler"}, "'PNDMScheduler' has steps of its own"),
        ({"timesteps": "smart50", "steps": 9}, "timesteps smart50 are 50 steps, not 9: leave steps out"),
        ({"timesteps": "smart5"}, "no timesteps 'smart5': choose one of fast27, smart27, smart50"),
    ):
        with pytest.raises(UsageError, match=says):
            pipe.request(PROMPT, stages={"decoder": StageSettings(**settings)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "threshold", "cap"),
    [
        ({}, 0.95, 1.5),
        ({"dynamic_thresholding_ratio": 0.9, "sample_max_value": 2}, 0.9, 2.0),
        ({"sample_max_value": 1.0}, "clip", None),
        ({"thresholding": False}, "clip", None),
        ({"thresholding": False, "clip_sample": False}, "none", None),
        ({"thresholding": False, "clip_sample": False, "clip_sample_range": 2.0}, "none", None),
    ],
)
def test_thresholds_are_those_of_the_schedulers_file(
    pipeline: Any, copy: Path, changes: dict[str, Any], threshold: float | str, cap: float | None
) -> None:
    # without the list of what diffusers is to read as its default, whatever the file says
    rewrite(copy / "scheduler" / "scheduler_config.json", _use_default_values=[], **changes)
    model = load(copy)
    settings = model.request(PROMPT, seeds=[3]).stages["decoder"]
    assert (settings.threshold, settings.threshold_cap) == (threshold, cap)
    assert facts(copy).request(PROMPT, 3).stages["decoder"] == settings
    asked = ([PROMPT], [3], "")
    mine = ours(model, *asked, steps=STEPS)
    assert float((mine.clamp(-1, 1) - theirs(pipeline, copy, *asked, 7.0)).abs().max()) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio 1.5, which is no threshold"),
        ({"dynamic_thresholding_ratio": "0.9"}, "dynamic_thresholding_ratio '0.9', which is no threshold"),
        ({"sample_max_value": 0.5}, "sample_max_value 0.5, which is no threshold"),
        ({"thresholding": False, "clip_sample_range": 2.0}, "clip_sample_range 2.0: pictures lie within 1"),
        ({"thresholding": False, "clip_sample_range": "1"}, "clip_sample_range '1': it must be a positive"),
    ],
)
def test_thresholds_that_are_none(copy: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(copy / "scheduler" / "scheduler_config.json", **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


@pytest.mark.parametrize(
    ("name", "threshold"), [("DDIMScheduler", "clip"), ("DPMSolverMultistepScheduler", "none")]
)
def test_where_a_file_does_not_say_its_class_does(copy: Path, name: str, threshold: str) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    rewrite(path, _class_name=name, thresholding=False)
    kept = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if "clip" not in key}
    path.write_text(json.dumps(kept), "utf-8")
    assert facts(copy).request(PROMPT, 3).stages["decoder"].threshold == threshold
    assert load(copy).request(PROMPT, seeds=[3]).stages["decoder"].threshold == threshold


def test_what_the_picture_depends_on(pipe: TextToImage) -> None:
    def drawn(prompt: str = PROMPT, negative: str = "", **settings: Any) -> Tensor:
        return ours(pipe, [prompt], [3], negative, **{"steps": STEPS, **settings})

    plain = drawn()
    assert torch.equal(plain, drawn(negative="  "))
    assert torch.equal(plain, drawn("A Red CAT on the beach\n"))
    for other in (
        drawn("two dogs"),
        drawn(negative="snow"),
        drawn(guidance_scale=1),
        drawn(threshold="clip"),
        drawn(threshold_cap=1.0),
    ):
        assert not torch.allclose(plain, other, atol=1e-2)


def test_texts_have_the_length_of_the_training(pipe: TextToImage) -> None:
    stage, many = pipe.cascade.stages[0], "cat " * 77
    draft = Draft((PROMPT, f"{many} moon", f"{many} dog"))
    told = finish(stage.run(draft, StageSettings(), Noise([3] * 3))).text
    assert told is not None
    assert told.text is not None
    assert told.text_mask is not None
    assert told.text.shape == (3, 77, 32)
    assert told.text_mask.all(dim=1).tolist() == [False, True, True]
    assert torch.equal(told.text[1], told.text[2])


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    check_sampler(pipe, sampler, ("decoder",))


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = ours(pipe, prompts, seeds, "snow", steps=3)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe, [prompt], [seed], "snow", steps=3)
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_defaults_are_the_familys(pipe: TextToImage, folder: Path) -> None:
    request = pipe.request(PROMPT, seeds=[3])
    defaults = StageSettings(steps=50, sampler="ddpm", guidance_scale=7.0, threshold=0.95, threshold_cap=1.5)
    assert request.stages == {"decoder": defaults}
    assert (pipe.stage_names, pipe.sizes, request.size) == (("text", "decoder"), (SIDE,), (SIDE, SIDE))
    assert facts(folder).request(PROMPT, 3) == request
    with pytest.raises(UsageError, match="stage 'decoder' does not take noise_level"):
        pipe.request(PROMPT, stages={"decoder": StageSettings(noise_level=0.1)})


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], stages={"decoder": StageSettings(steps=4)}))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        ("decoder", i, 4) for i in range(1, 5)
    ]
    assert {step.preview()[0].size for step in steps} == {(SIDE, SIDE)}
    times = [step.t for step in steps]
    assert times == sorted(times, reverse=True)
    assert 1 > times[0] > times[-1] == 0


def test_half_precision_draws(folder: Path) -> None:
    model = mmgen.load(folder, "cpu", "bfloat16")
    assert [network.dtype for stage in model.cascade.stages for network in stage.networks] == [
        torch.bfloat16
    ] * 2
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


def test_what_overflows_in_half_precision_stays_in_float32(folder: Path) -> None:
    model = mmgen.load(folder, "cpu", "float16")
    encoder = model.cascade.stages[0].networks[0]
    dtypes = {name.split(".")[-2] == "wo": value.dtype for name, value in encoder.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.float16}
    exact, half = (
        finish(one.cascade.stages[0].run(Draft((PROMPT,)), StageSettings(), Noise([3]))).text
        for one in (load(folder), model)
    )
    assert exact is not None and exact.text is not None and half is not None and half.text is not None  # noqa: PT018
    torch.testing.assert_close(half.text.float(), exact.text, atol=1e-2, rtol=1e-2)


def test_stage_by_stage_gives_the_same_bytes(pipe: TextToImage, folder: Path, tmp_path: Path) -> None:
    model, jobs = open_model(folder, "cpu", "float32"), three_jobs(pipe, FAST)
    assert together(jobs, model, tmp_path) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    pipe: TextToImage, folder: Path, tmp_path: Path
) -> None:
    model, jobs = open_model(folder, "cpu", "float32"), three_jobs(pipe, FAST)
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, pipe)


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
    again = load(folder).run(request).images[0]
    assert again.tobytes() == inputs.open_picture(out).tobytes()
    other = tmp_path / "dog.png"
    run(
        "generate",
        PROMPT,
        "--out",
        str(other),
        "--set",
        "decoder.timesteps=fast27",
        *given[:6],
        "--seed",
        "3",
    )
    run("rerun", str(other), "--sampler", "PNDMScheduler", "--out", str(tmp_path / "rerun"), *given[:6])
    (path,) = (tmp_path / "rerun").glob("*.png")
    found = [read_metadata(drawn)["request"] for drawn in (other, path)]
    assert [(one.stages["decoder"].steps, one.stages["decoder"].timesteps) for one in found if one] == [
        (27, "fast27"),
        (27, None),
    ]
    assert "T5EncoderModel" in run("models", "info", str(folder))
    assert verify(folder) == []
    assert describe(folder)["family"] == "if"


def test_what_it_cannot_do_is_said(pipe: TextToImage) -> None:
    picture = Image.new("RGB", (32, 32))
    with pytest.raises(UsageError, match="cannot begin with a picture"):
        pipe.edit(picture, PROMPT, seeds=[3])
    with pytest.raises(UsageError, match="draws from texts alone"):
        pipe.vary(picture)


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_passed_by_may_be_there(copy: Path, pipe: TextToImage) -> None:
    rewrite(
        copy / "model_index.json",
        safety_checker=["deepfloyd_if", "IFSafetyChecker"],
        watermarker=["deepfloyd_if", "IFWatermarker"],
    )
    for part in ("safety_checker", "watermarker"):
        (copy / part).mkdir()
        (copy / part / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
        (copy / part / "config.json").write_text("{}", "utf-8")
    one, other = (model(PROMPT, seeds=[3], stages=FAST).images[0].tobytes() for model in (load(copy), pipe))
    assert one == other


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "IFSuperResolutionPipeline"}, "does not name 'image_noising_scheduler'"),
        ({"_class_name": "IFInpaintingPipeline"}, r"is of class 'IFInpaintingPipeline': mmgen knows"),
        ({"_class_name": "StableDiffusionPipeline"}, "component 'text_encoder' is"),
        ({"unet": ["os", "system"]}, r"component 'unet' is \['os', 'system'\]"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, r"not transformers\.T5EncoderModel"),
    ],
)
def test_an_index_that_names_something_else(copy: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(copy / "model_index.json", **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


def test_a_text_encoder_that_is_something_else(copy: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(copy / part)
    write_clip(copy)
    with pytest.raises(ModelError, match=r"text_encoder is T5EncoderModel, but its .* a CLIPTextModel"):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"out_channels": 3}, "unet has out_channels 3, but one that predicts learned-range has 6"),
        ({"in_channels": 6}, "unet has in_channels 6, but the picture has 3"),
        ({"encoder_hid_dim": 40}, "unet has encoder_hid_dim 40, but the text encoder has 32"),
        ({"class_embed_type": "timestep"}, "unet has class_embed_type 'timestep': it must be told more"),
    ],
)
def test_a_unet_that_draws_something_else(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder = write_deepfloyd(tmp_path / "if", **changes)
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_a_variance_that_is_not_learned_is_not_read_as_one(copy: Path) -> None:
    rewrite(copy / "scheduler" / "scheduler_config.json", variance_type="fixed_small")
    with pytest.raises(ModelError, match="unet has out_channels 6, but one that predicts eps has 3"):
        load(copy)


def test_pure_noise_says_nothing_to_it(folder: Path) -> None:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert noise_of(config)[1] == "learned-range"
    with pytest.raises(ModelError, match="these do not fit together"):
        noise_of({**config, "rescale_betas_zero_snr": True})
