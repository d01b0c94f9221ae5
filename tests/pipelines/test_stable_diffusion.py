"""Published folders of Stable Diffusion through our stages, beside the pipeline of diffusers that wrote them."""

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
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, NonFiniteError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines import vae_stage
from mmgen.pipelines.adapters import colours, noise_of, scaled
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.checkpoint import write_manifest
from mmgen.pipelines.diffusers_pipeline import MmgenPipeline
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.render.engine import Done, Event
from mmgen.render.windows import Budget
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import BETAS, rewrite, write_bert, write_scheduler, write_stable_diffusion
from tests.pipelines.test_residency import CUDA, FakeDevice, for_turns, same
from tests.render.whole import (
    check_sampler,
    drawn,
    image_of,
    in_parts,
    is_read_per_turn,
    load,
    one_by_one,
    render,
    three_jobs,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red cat on the beach"
STEPS, SIDE = 5, 16  # DDIM of diffusers misses its own next step where 1000 is no multiple of the steps
FAST = {"decoder": StageSettings(steps=2)}
CPU = torch.device("cpu")
# Of pictures in [-1, 1]; of latents relative to the largest.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


def ours(
    pipe: TextToImage, prompts: Sequence[str], seeds: Sequence[int], negative: str = "", **settings: Any
) -> tuple[Tensor, Tensor]:
    """Latents and pictures in [-1, 1], all in one batch."""
    draft = drawn(pipe, prompts, seeds, negative, {"decoder": StageSettings(**settings)})
    assert draft.latent is not None
    return draft.latent, image_of(draft)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """That of diffusers, with the folder's networks."""
    found = StableDiffusionPipeline.from_pretrained(folder)
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
    """The same by diffusers, with the scheduler of a folder and the noise that we begin with."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    pipeline.scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder / "scheduler")
    with torch.no_grad():
        latent = pipeline(
            list(prompts),
            negative_prompt=[negative] * len(prompts),
            latents=Noise(seeds, "decoder").draw((4, SIDE // 2, SIDE // 2)),
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).images
        image = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return latent, image.clamp(-1, 1)


def assert_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    (latent, image), (latent_2, image_2) = one, other
    assert image.std() > 0.05, "a grey picture says nothing"
    differences = (
        float((latent - latent_2).abs().max() / latent.abs().max()),
        float((image - image_2).abs().max()),
    )
    print("latents and pictures differ by", differences)  # noqa: T201
    assert max(differences) < TOLERANCE


LEADING = {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}
# diffusers warns of any other offset, though nothing is added to these
TRAILING = {**BETAS, "timestep_spacing": "trailing", "steps_offset": 1}
SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {**LEADING, "clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, TRAILING),
    "euler": (EulerDiscreteScheduler, LEADING),
    # by its name, on the same betas and from the last training step, as mmgen runs those of diffusers
    "UniPCMultistepScheduler": (UniPCMultistepScheduler, TRAILING),
}


@pytest.mark.parametrize(
    ("sampler", "prediction", "guidance_scale"),
    [
        *((sampler, kind, 7.5) for sampler in SCHEDULERS for kind in ("epsilon", "v_prediction")),
        ("dpmpp-2m", "epsilon", 1.0),  # without guidance, of which no sampler knows
        ("ddim", "v_prediction", 1.0),
    ],
)
def test_pictures_are_those_of_diffusers(
    pipeline: Any, copy: Path, sampler: str, prediction: str, guidance_scale: float
) -> None:
    kind, settings = SCHEDULERS[sampler]
    write_scheduler(copy, kind(**settings, prediction_type=prediction))
    asked = ([PROMPT, "two dogs"], [3, 5], "snow")
    mine = ours(load(copy), *asked, steps=STEPS, sampler=sampler, guidance_scale=guidance_scale)
    assert_same(mine, theirs(pipeline, copy, *asked, guidance_scale=guidance_scale))


def test_without_a_negative_prompt_guidance_leads_away_from_the_empty_one(
    pipe: TextToImage,
) -> None:
    empty, blank = (ours(pipe, [PROMPT], [3], negative, steps=STEPS) for negative in ("", "  "))
    snow, none = (
        ours(pipe, [PROMPT], [3], "snow", steps=STEPS),
        ours(pipe, [PROMPT], [3], steps=STEPS, guidance_scale=1),
    )
    assert torch.equal(empty[1], blank[1])
    assert not torch.allclose(empty[1], snow[1], atol=1e-2)
    assert not torch.allclose(empty[1], none[1], atol=1e-2)


def test_an_older_scheduler_file_is_read_as_its_class_would(pipeline: Any, copy: Path) -> None:
    """PNDM, whose spacing and prediction are left out: the levels are those of DDIM at the same steps."""
    mine = ours(load(copy), [PROMPT], [3], steps=STEPS, sampler="ddim", guidance_scale=7.5)
    write_scheduler(copy, SCHEDULERS["ddim"][0](**SCHEDULERS["ddim"][1]))
    assert_same(mine, theirs(pipeline, copy, [PROMPT], [3], guidance_scale=7.5))


def test_zero_terminal_snr(pipeline: Any, copy: Path) -> None:
    settings = {**TRAILING, "clip_sample": False, "rescale_betas_zero_snr": True}
    write_scheduler(copy, DDIMScheduler(**settings, prediction_type="v_prediction"))
    mine = ours(load(copy), [PROMPT], [3], steps=STEPS, sampler="ddim", guidance_scale=7.5)
    assert_same(mine, theirs(pipeline, copy, [PROMPT], [3], guidance_scale=7.5))


@pytest.mark.parametrize("sampler", [*SAMPLERS, "PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    check_sampler(pipe, sampler, ("decoder",))


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = ours(pipe, prompts, seeds, "snow", steps=3)[1]
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe, [prompt], [seed], "snow", steps=3)[1]
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_defaults_are_the_familys(pipe: TextToImage) -> None:
    request = pipe.request(PROMPT, seeds=[3])
    assert request.stages == {
        "decoder": StageSettings(steps=25, sampler="dpmpp-2m", guidance_scale=7.5),
    }
    assert (pipe.stage_names, pipe.sizes, request.size) == (("text", "decoder", "vae"), (SIDE,), (SIDE, SIDE))
    with pytest.raises(UsageError, match="stage 'decoder' does not take threshold"):
        pipe.request(PROMPT, stages={"decoder": StageSettings(threshold=0.9)})
    with pytest.raises(UsageError, match="stage 'vae' does not take steps: it takes no settings"):
        pipe.request(PROMPT, stages={"vae": StageSettings(steps=2)})


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


def test_each_stage_has_the_device_for_itself(
    pipe: TextToImage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice(monkeypatch)
    device.free = int(for_turns(pipe))
    monkeypatch.setattr("mmgen.pipelines.loading.choose_device", lambda _name: CUDA)
    model = mmgen.load(folder, dtype="float32")
    # the clock is where the numbers are
    model.device, model.batch_size = CPU, 1
    networks = [stage.networks[0] for stage in model.cascade.stages]
    device.spoil_elsewhere(networks)
    one, other = (one(PROMPT, seeds=[3], stages=FAST).images for one in (model, pipe))
    assert same(one, other)
    assert device.moves == [(network, inward) for network in networks for inward in (True, False)]


def test_networks_that_were_read_for_their_turn_show_no_preview(folder: Path) -> None:
    model = open_model(folder, "cpu", "float32")
    steps = list(model.stream(PROMPT, seeds=[3], stages=FAST))
    assert [(step.stage, len(step.preview())) for step in steps] == [
        ("decoder", 0),
        ("decoder", 0),
        ("vae", 1),
    ]


# ---- what is seen meanwhile ----------------------------------------------------------------------


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], stages={"decoder": StageSettings(steps=4)}))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *(("decoder", i, 4) for i in range(1, 5)), ("vae", 1, 1)
    ]  # fmt: skip
    assert [step.preview()[0].size for step in steps] == [(8, 8)] * 4 + [(SIDE, SIDE)]
    times = [step.t for step in steps]
    assert times == sorted(times, reverse=True)
    assert 1 > times[0] > times[-1] == 0


def test_colours_are_those_that_the_vae_means(pipe: TextToImage) -> None:
    """Of a VAE as it was drawn at random they fit as well as a linear map can: better than grey."""
    vae = pipe.cascade.stages[-1].networks[0]
    found = colours(vae)
    assert found is not None
    assert found.shape == (5, 3)
    shown = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    with torch.no_grad():
        latent = vae.encode(shown[:, :, None, None].expand(-1, -1, SIDE, SIDE)).latent_dist.mean  # type: ignore[operator]
    told = scaled(latent, vae.config).mean((2, 3)) @ found[:-1] + found[-1]
    assert (told - shown).square().mean() < 0.5 * shown.square().mean()


# ---- the VAE -------------------------------------------------------------------------------------


def test_half_precision_does_not_reach_a_vae_that_overflows_in_it(folder: Path, tmp_path: Path) -> None:
    def dtypes(model: TextToImage) -> list[torch.dtype]:
        return [next(stage.networks[0].parameters()).dtype for stage in model.cascade.stages]

    half, single = torch.bfloat16, torch.float32
    assert dtypes(mmgen.load(folder, "cpu", "bfloat16")) == [half, half, single]
    assert dtypes(open_model(folder, "cpu", "bfloat16")) == [half, half, single]
    other = write_stable_diffusion(tmp_path / "sd", force_upcast=False)
    model = mmgen.load(other, "cpu", "bfloat16")
    assert dtypes(model) == [half, half, half]
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


def test_large_pictures_are_decoded_in_squares(pipe: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_stage, "MIN_SQUARE", 32)
    monkeypatch.setattr(vae_stage, "OVERLAP", 24)
    vae: Any = pipe.cascade.stages[-1].networks[0]
    stage = VaeStage(vae, size=64)
    latent = Noise([3, 5]).draw((4, 32, 32))
    seen: list[tuple[int, ...]] = []
    decode = vae.decode
    monkeypatch.setattr(
        vae, "decode", lambda z, **given: (seen.append(tuple(z.shape)), decode(z, **given))[1]
    )

    def decoded(stage: VaeStage) -> Tensor:
        run = stage.run(Draft(("", ""), latent=latent), StageSettings(), Noise([3, 5], "vae"))
        image = finish(run).image
        assert image is not None
        return image

    whole, smaller = decoded(stage), stage.smaller()
    assert smaller is not None
    assert smaller.square == 32
    squares = decoded(smaller)
    assert seen == [(1, 4, 32, 32)] * 2 + [(1, 4, 16, 16)] * 2 * 25
    assert squares.shape == whole.shape == (2, 3, 64, 64)
    # what is normed over a square is another thing than what is normed over the whole
    assert (squares - whole).abs().mean() < 0.5 * whole.std()
    assert smaller.smaller() is None


def test_where_memory_runs_out_a_batch_decodes_in_squares(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_stage, "MIN_SQUARE", 4)
    monkeypatch.setattr(vae_stage, "OVERLAP", 4)
    model = load(folder)
    vae: Any = model.cascade.stages[-1].networks[0]
    decode = vae.decode

    def in_little_room(z: Tensor, **given: Any) -> Any:
        if z.shape[-1] > 4:
            raise MemoryError
        return decode(z, **given)

    monkeypatch.setattr(vae, "decode", in_little_room)
    done: list[Done] = []
    events: list[Event] = []
    render(three_jobs(model, FAST), model, done.append, folder=tmp_path, watch=events.append)
    assert [one.error for one in done] == [""] * 3
    assert [(event.stage, event.note) for event in events if event.what == "less"][-1] == (
        "vae",
        "in smaller squares",
    )


def test_a_vae_that_fails_says_so(pipe: TextToImage) -> None:
    draft = Draft(("",), latent=torch.full((1, 4, 8, 8), torch.nan))
    with pytest.raises(NonFiniteError, match=r"stage 'vae': .* --dtype float32"):
        finish(pipe.cascade.stages[-1].run(draft, StageSettings(), Noise([3])))


# ---- the command line, and what is written -------------------------------------------------------


def test_the_commands_take_such_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out, seen = tmp_path / "cat.png", tmp_path / "seen.png"
    given = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--steps", "3", "--seed", "3"]
    run("generate", PROMPT, "--out", str(out), "--preview", str(seen), "--negative", "snow", *given)
    assert inputs.open_picture(seen).size == (SIDE, SIDE)
    request = read_metadata(out)["request"]
    assert request is not None
    again = load(folder).run(request).images[0]
    assert again.tobytes() == inputs.open_picture(out).tobytes()
    assert "stable-diffusion" in run("models", "info", str(folder))
    assert "every file is as it should be" in run("models", "verify", str(folder))
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n", "utf-8")
    run("batch", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "--negative", "snow", *given)
    (picture,) = (tmp_path / "out").glob("*.png")
    assert inputs.open_picture(picture).tobytes() == again.tobytes()


def test_what_is_known_without_weights(folder: Path, pipe: TextToImage) -> None:
    assert verify(folder) == []
    told = describe(folder)
    assert (told["name"], told["family"], told["digest"]) == ("sd", "stable-diffusion", pipe.digest)
    assert {part: values["class"] for part, values in told["components"].items()} == {
        "text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL",
    }  # fmt: skip
    assert facts(folder).request(PROMPT, 3) == pipe.request(PROMPT, seeds=[3])


def test_a_saved_copy_draws_the_same(pipe: TextToImage, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    copied = load(tmp_path / "saved")
    request = pipe.request(PROMPT, seeds=[3], stages=FAST)
    assert copied.digest == pipe.digest
    assert copied.run(request).images[0].tobytes() == pipe.run(request).images[0].tobytes()


def test_what_it_cannot_do_is_said(pipe: TextToImage, folder: Path) -> None:
    picture = Image.new("RGB", (32, 32))
    with pytest.raises(UsageError, match="stage 'decoder' of this model cannot begin with a picture"):
        pipe.edit(picture, PROMPT, seeds=[3])
    with pytest.raises(UsageError, match="has no super-resolution stage"):
        pipe.upscale(picture)
    with pytest.raises(UsageError, match="draws from texts alone"):
        pipe.vary(picture)
    with pytest.raises(ModelError, match="has a pipeline of its own, StableDiffusionPipeline"):
        MmgenPipeline.from_pretrained(folder)


# ---- what is refused -----------------------------------------------------------------------------


def test_a_module_may_be_written_in_full(copy: Path) -> None:
    rewrite(copy / "model_index.json", vae=["diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL"])
    assert describe(copy)["components"]["vae"]["class"] == "AutoencoderKL"


def test_what_is_passed_by_may_be_there(copy: Path, pipe: TextToImage) -> None:
    rewrite(copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    one, other = (model(PROMPT, seeds=[3], stages=FAST).images[0].tobytes() for model in (load(copy), pipe))
    assert one == other


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"_class_name": "LattePipeline"},
            r"is of class 'LattePipeline': mmgen knows StableDiffusionPipeline",
        ),
        ({"_class_name": ["os", "system"]}, r"is of class \['os', 'system'\]: mmgen knows"),
        (
            {"unet": ["os", "system"]},
            r"component 'unet' is \['os', 'system'\], not diffusers\.UNet2DConditionModel",
        ),
        ({"unet": ["diffusersx", "UNet2DConditionModel"]}, "component 'unet' is"),
        ({"unet": ["diffusers", "UNet2DModel"]}, r"component 'unet' is \['diffusers', 'UNet2DModel'\]"),
        ({"vae": ["diffusers", "UNet2DConditionModel"]}, "component 'vae' is"),
        ({"vae": None}, "component 'vae' is None"),
        ({"scheduler": None}, "does not name 'scheduler'"),
        ({"scheduler": [None, None]}, "does not name 'scheduler'"),
    ],
)
def test_an_index_that_names_something_else(copy: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(copy / "model_index.json", **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("unet", {"_class_name": "UNet2DModel"}, "is of class 'UNet2DModel'"),
        ("unet", {"_class_name": ["os", "system"]}, r"is of class \['os', 'system'\]"),
        ("unet", {"sample_size": [8, 8]}, r"unet/config\.json: sample_size is \[8, 8\]"),
        ("unet", {"sample_size": None}, r"unet/config\.json: sample_size is None"),
        ("vae", {"block_out_channels": 8}, r"vae/config\.json: block_out_channels is 8"),
    ],
)
def test_a_component_that_is_something_else(
    copy: Path, part: str, changes: dict[str, Any], says: str
) -> None:
    rewrite(copy / part / "config.json", **changes)
    for read in (load, open_model, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scaling_factor": None}, "scaling_factor is None"),
        ({"scaling_factor": "x"}, "scaling_factor is 'x'"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"shift_factor": "x"}, "shift_factor is 'x'"),
        ({"shift_factor": float("nan")}, "shift_factor is nan"),
        ({"shift_factor": -16_385}, "shift_factor is -16385: numbers from -16,384 to 16,384"),
    ],
)
def test_a_vae_whose_scale_is_no_number(copy: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(copy / "vae" / "config.json", **changes)
    for read in (load, open_model):
        with pytest.raises(ModelError, match=says):
            read(copy)


def test_a_unet_of_which_its_class_makes_nothing(copy: Path) -> None:
    rewrite(copy / "unet" / "config.json", time_embedding_act_fn=1)
    with pytest.raises(ModelError, match=r"unet/config\.json does not describe a UNet2DConditionModel"):
        load(copy)


def test_a_negative_shift_is_a_number(copy: Path) -> None:
    rewrite(copy / "vae" / "config.json", shift_factor=-0.05)
    assert load(copy).cascade.stages[-1].networks[0].config.shift_factor == -0.05  # type: ignore[union-attr, index]


def test_a_vae_that_overflows_is_refused(copy: Path) -> None:
    (path,) = (copy / "vae").glob("*.safetensors")
    tensors = {name: torch.full_like(value, 1e38) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="vae gives NaN or infinity"):
        load(copy)


@pytest.mark.parametrize("path", ["model_index.json", "unet", "vae/config.json", "scheduler"])
@pytest.mark.parametrize("manifest", [True, False])
def test_nothing_is_known_by_a_link_out_of_the_folder(
    copy: Path, tmp_path: Path, path: str, manifest: bool
) -> None:
    if manifest:
        write_manifest(copy)
    shutil.move(copy / path, tmp_path / "away")
    (copy / path).symlink_to(tmp_path / "away")
    for read in (load, facts, describe):
        with pytest.raises(ModelError, match=f"{path} is a link that leads out of the folder"):
            read(copy)


def test_a_text_encoder_that_is_something_else(copy: Path) -> None:
    shutil.rmtree(copy / "text_encoder")
    shutil.rmtree(copy / "tokenizer")
    write_bert(copy)
    with pytest.raises(ModelError, match=r"text_encoder is CLIPTextModel, but its .* describes a BertModel"):
        load(copy)


def test_parts_that_do_not_fit_each_other(copy: Path, tmp_path: Path) -> None:
    other = write_stable_diffusion(tmp_path / "other", latent_channels=8)
    shutil.rmtree(copy / "vae")
    shutil.copytree(other / "vae", copy / "vae")
    with pytest.raises(ModelError, match="unet has in_channels 4, but the VAE has 8"):
        load(copy)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (DDIMScheduler(**TRAILING, rescale_betas_zero_snr=True), "these do not fit together"),
        (DPMSolverMultistepScheduler(**TRAILING, use_karras_sigmas=True), "use_karras_sigmas=True"),
        (FlowMatchEulerDiscreteScheduler(), "which has no betas"),
    ],
)
def test_a_scheduler_whose_noise_is_another(scheduler: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        noise_of({"_class_name": type(scheduler).__name__, **scheduler.config})


def test_a_spacing_that_nobody_says_is_not_guessed(copy: Path) -> None:
    rewrite(copy / "scheduler" / "scheduler_config.json", _class_name="NewScheduler")
    with pytest.raises(ModelError, match="no 'timestep_spacing'"):
        load(copy)
