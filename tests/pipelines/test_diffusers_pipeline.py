"""What programs expect of a pipeline of diffusers, asked of ours over a whole tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers.pipelines
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    ImagePipelineOutput,
    UnCLIPScheduler,
)
from torch import Tensor, nn

import mmgen
from mmgen import MmgenPipeline, threshold
from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError, UsageError
from mmgen.models import presets
from mmgen.noise import Noise
from mmgen.pipelines.catalogue import verify
from mmgen.pipelines.checkpoint import write_manifest
from mmgen.pipelines.families.storybook import DECODER, PRIOR, SUPER_RES
from mmgen.pipelines.loading import VOCABULARY
from mmgen.pipelines.prior_stage import CANDIDATES
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.schedulers.interop import MmgenScheduler
from mmgen.types import MAX_SEED, StageSettings
from tests.checkpoints import awake

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
CAT, DOG = "a red cat on the beach", "two dogs"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}


def quiet(pipe: MmgenPipeline) -> MmgenPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def face(tiny_folder: Path) -> MmgenPipeline:
    """To be called, never to be changed: `changed` gives one with other components."""
    return quiet(MmgenPipeline.from_pretrained(tiny_folder))


def changed(face: MmgenPipeline, **components: Any) -> MmgenPipeline:
    return quiet(MmgenPipeline(**{**face.components, **components}, **face.parameters, words=face.words))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(*seeds: int) -> list[int]:
    """The seeds of pictures whose generators are `generators(*seeds)`."""
    return [int(torch.randint(MAX_SEED, (), generator=one)) for one in generators(*seeds)]


def images(pipe: MmgenPipeline, prompt: Any = CAT, side: int = 16, **given: Any) -> Any:
    given = {"num_inference_steps": 2, "output_type": "pt", "generator": generators(1), **given}
    return pipe(prompt, width=side, height=side, **given).images


# ---- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_draws_the_same_bits(
    tiny_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipe = quiet(MmgenPipeline.from_pretrained(tiny_folder, dtype=dtype))
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(MmgenPipeline.from_pretrained(tmp_path / "saved", dtype=dtype))
    assert again.dtype == dtype
    assert torch.equal(images(pipe, side=64), images(again, side=64))
    assert again.config.index == pipe.config.index
    assert again.words == pipe.words
    assert again.words


def test_one_folder_is_read_by_both_faces(face: MmgenPipeline, pipe: TextToImage, tmp_path: Path) -> None:
    face.save_pretrained(tmp_path / "saved")
    assert verify(tmp_path / "saved") == []
    fast = {"decoder": StageSettings(steps=2)}
    one = images(face, side=64, output_type="pil")[0]
    for model in (pipe, mmgen.load(tmp_path / "saved", device="cpu", dtype="float32")):
        (other,) = model(CAT, seeds=drawn(1), size=64, stages=fast)
        assert other.tobytes() == one.tobytes()
        assert model.name == "tiny"


def test_a_vocabulary_that_was_not_there_is_not_invented(tiny_copy: Path, tmp_path: Path) -> None:
    (tiny_copy / VOCABULARY).unlink()
    write_manifest(tiny_copy)
    MmgenPipeline.from_pretrained(tiny_copy).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / VOCABULARY).exists()
    assert mmgen.load(tmp_path / "saved", device="cpu", dtype="float32").words is None


def test_without_a_scheduler_there_is_none_in_the_folder(face: MmgenPipeline, tmp_path: Path) -> None:
    assert face.scheduler is None
    face.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "scheduler").exists()
    assert MmgenPipeline.from_pretrained(tmp_path / "saved").scheduler is None


@pytest.mark.parametrize(
    "scheduler",
    [DPMSolverMultistepScheduler(**FLOW), MmgenScheduler(sampler="heun", timestep_spacing="trailing")],
    ids=["theirs", "ours"],
)
def test_a_scheduler_comes_back_with_its_settings(
    face: MmgenPipeline, tmp_path: Path, scheduler: Any
) -> None:
    pipe = changed(face, scheduler=scheduler)
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(MmgenPipeline.from_pretrained(tmp_path / "saved"))
    assert type(again.scheduler) is type(scheduler)
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert {k: again.scheduler.config[k] for k in settings} == settings
    assert torch.equal(images(pipe), images(again))
    other = MmgenPipeline.from_pretrained(tmp_path / "saved", scheduler=DDIMScheduler())
    assert type(other.scheduler) is DDIMScheduler
    mmgen.load(tmp_path / "saved", device="cpu", dtype="float32")


def test_diffusers_itself_cannot_find_the_class(
    tiny_folder: Path, face: MmgenPipeline, tmp_path: Path
) -> None:
    face.save_pretrained(tmp_path / "saved")
    for folder in (tiny_folder, tmp_path / "saved"):
        with pytest.raises(AttributeError, match="module diffusers has no attribute"):
            DiffusionPipeline.from_pretrained(folder)


class Held(DiffusionPipeline):
    """Somebody else's pipeline, which holds our networks and is read by diffusers alone."""

    def __init__(self, dual_encoder: Any, prior: Any, decoder: Any, super_res: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            dual_encoder=dual_encoder, prior=prior, decoder=decoder, super_res=super_res, scheduler=scheduler
        )


@pytest.mark.parametrize("decoder", [presets.decoder_tiny, presets.unet_tiny])
def test_every_network_comes_back_from_somebody_elses_pipeline(
    face: MmgenPipeline, tmp_path: Path, decoder: Any
) -> None:
    own = {name: face.components[name] for name in ("dual_encoder", "prior", "super_res")}
    held = Held(**own, decoder=awake(decoder), scheduler=MmgenScheduler(sampler="euler"))
    held.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    again = Held.from_pretrained(tmp_path)
    for name, part in held.components.items():
        kind = type(part)
        assert index[name] == [kind.__module__, kind.__name__]
        assert type(again.components[name]) is kind
        # a folder of this name in diffusers' pipelines would be taken for the class's own
        assert not any(hasattr(diffusers.pipelines, folder) for folder in kind.__module__.split("."))
        if isinstance(part, nn.Module):
            other = again.components[name].state_dict()
            assert all(torch.equal(value, other[key]) for key, value in part.state_dict().items())


def test_what_could_not_be_loaded_again_is_not_saved(face: MmgenPipeline, tmp_path: Path) -> None:
    class Mine(DDIMScheduler):
        pass

    plain = changed(face)
    plain.decoder = nn.Linear(2, 2)
    for pipe, says in (
        (plain, "component 'decoder' is Linear, .* give EfficientUNet or UNet"),
        (changed(face, scheduler=Mine()), "scheduler 'Mine' is not of diffusers"),
    ):
        with pytest.raises(ModelError, match=says):
            pipe.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_a_folder_with_something_in_it_is_left_alone(face: MmgenPipeline, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(ModelError, match="is not empty"):
        face.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_folder_is_refused(tiny_copy: Path) -> None:
    (tiny_copy / "prior" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match=r"prior/config.json has 2 bytes"):
        MmgenPipeline.from_pretrained(tiny_copy)
    with pytest.raises(ModelError, match="no model 'nowhere/at/all'"):
        MmgenPipeline.from_pretrained("nowhere/at/all")


@pytest.mark.parametrize("named", ["Scheduler", "DDPMPipeline", None])
def test_a_folder_whose_scheduler_is_of_no_known_class_is_refused(tiny_copy: Path, named: str | None) -> None:
    (tiny_copy / "scheduler").mkdir()
    config = tiny_copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": named}), "utf-8")
    write_manifest(tiny_copy)
    with pytest.raises(ModelError, match=f"scheduler '{named}' is not of diffusers"):
        MmgenPipeline.from_pretrained(tiny_copy)
    assert MmgenPipeline.from_pretrained(tiny_copy, scheduler=DDIMScheduler()).scheduler is not None


# ---- components ------------------------------------------------------------------------------------


def test_components_make_the_same_pipeline_again(face: MmgenPipeline) -> None:
    assert list(face.components) == [
        "text_encoder", "tokenizer", "dual_encoder", "prior", "decoder", "super_res", "scheduler"
    ]  # fmt: skip
    for again in (MmgenPipeline(**face.components, **face.parameters), MmgenPipeline.from_pipe(face)):
        assert all(again.components[name] is part for name, part in face.components.items())
        assert torch.equal(images(quiet(again)), images(face))


def test_a_component_that_is_put_in_later_draws(face: MmgenPipeline) -> None:
    pipe = changed(face)
    pipe.decoder = awake(presets.unet_tiny)
    assert pipe.config.decoder == ("mmgen.models.unet", "UNet")
    assert not torch.equal(images(pipe), images(face))
    pipe.scheduler = MmgenScheduler(sampler="heun")
    with_heun = images(pipe)
    pipe.scheduler = None
    assert not torch.equal(images(pipe), with_heun)


@pytest.mark.parametrize(
    ("components", "says"),
    [
        ({"prior": None}, "component 'prior' is NoneType, .* give DiffusionPrior"),
        ({"tokenizer": None}, "component 'tokenizer' is missing"),
        ({"decoder": presets.prior_tiny()}, "component 'decoder' is DiffusionPrior"),
        ({"prior": presets.prior_storybook()}, "prior has text_dim 384, but the encoder before it gives 32"),
    ],
)
def test_components_that_do_not_fit_are_refused(
    face: MmgenPipeline, components: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        changed(face, **components)


@pytest.mark.parametrize("index", [None, {"family": "imagen"}, {"family": "x4-upscaler"}])
def test_an_index_without_a_known_family_is_refused(
    face: MmgenPipeline, index: dict[str, Any] | None
) -> None:
    with pytest.raises(ModelError, match="it must name its family, one of storybook"):
        MmgenPipeline(**face.components, index=index)


def test_a_scheduler_that_cannot_be_a_sampler_is_refused(face: MmgenPipeline) -> None:
    with pytest.raises(UsageError, match="UnCLIPScheduler cannot be a sampler"):
        changed(face, scheduler=UnCLIPScheduler())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cast_to_half_precision_it_draws_nearly_the_same(tiny_folder: Path, dtype: torch.dtype) -> None:
    pipe = quiet(MmgenPipeline.from_pretrained(tiny_folder))
    before = images(pipe, side=64)
    assert pipe.to(dtype) is pipe
    assert {part.dtype for part in pipe.components.values() if isinstance(part, nn.Module)} == {dtype}
    after = images(pipe, side=64)
    assert after.dtype == torch.float32
    assert after.isfinite().all()
    assert float((after - before).abs().mean()) < 0.05


# ---- pictures --------------------------------------------------------------------------------------


def test_a_batch_is_its_pictures_one_by_one(face: MmgenPipeline) -> None:
    prompts = [CAT, "a moon", "three small dogs and a big moon above the green grass at night"]
    together = images(face, prompts, side=64, generator=generators(1, 2, 3))
    assert together.shape == (3, 3, 64, 64)
    for i, (prompt, one) in enumerate(zip(prompts, generators(1, 2, 3), strict=True)):
        alone = images(face, [prompt], side=64, generator=[one])
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)


def test_one_generator_goes_from_picture_to_picture(face: MmgenPipeline) -> None:
    (one,), (other,) = generators(5), generators(5)
    together = images(face, num_images_per_prompt=3, generator=one)
    alone = torch.cat([images(face, generator=other) for _ in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert torch.equal(images(face, num_images_per_prompt=3, generator=generators(5)[0]), together)


def test_without_a_generator_torchs_own_decides(face: MmgenPipeline) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first, second = (images(face, generator=None) for _ in range(2))
        torch.manual_seed(7)
        again = images(face, generator=None)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_the_pictures_of_a_prompt_stand_together(face: MmgenPipeline) -> None:
    pictures = images(face, [CAT, DOG], num_images_per_prompt=2, generator=generators(1, 2, 3, 4))
    listed = images(face, [CAT, CAT, DOG, DOG], generator=generators(1, 2, 3, 4))
    assert len(pictures) == 4
    assert torch.equal(pictures, listed)


def test_a_negative_prompt_leads_away(face: MmgenPipeline) -> None:
    plain, dog, none = (images(face, negative_prompt=text) for text in (None, "a dog", " "))
    assert not torch.equal(plain, dog)
    assert torch.equal(plain, none)


def test_guidance_and_steps_are_the_decoders(face: MmgenPipeline, pipe: TextToImage) -> None:
    (ours,) = pipe(CAT, seeds=drawn(1), size=16, stages={"decoder": StageSettings(steps=3, guidance_scale=5)})
    (theirs,) = images(face, num_inference_steps=3, guidance_scale=5, output_type="pil")
    assert theirs.tobytes() == ours.tobytes()
    (by_default,) = pipe(CAT, seeds=drawn(1), size=16)
    (said_nothing,) = images(face, num_inference_steps=None, output_type="pil")
    assert said_nothing.tobytes() == by_default.tobytes()


def test_the_largest_size_is_the_models_own(face: MmgenPipeline) -> None:
    (picture,) = face(CAT, num_inference_steps=1, generator=generators(1)).images
    assert picture.size == (256, 256)


def test_output_types_are_one_picture(face: MmgenPipeline) -> None:
    shown = {
        name: images(face, [CAT, DOG], generator=generators(1, 2), output_type=name)
        for name in ("pil", "np", "pt")
    }
    assert shown["pt"].shape == (2, 3, 16, 16)
    assert shown["np"].shape == (2, 16, 16, 3)
    for name in ("np", "pt"):
        assert 0 <= float(shown[name].min()) < float(shown[name].max()) <= 1
    np.testing.assert_array_equal(shown["pt"].permute(0, 2, 3, 1).numpy(), shown["np"])
    pil = np.stack([np.asarray(picture) for picture in shown["pil"]])
    assert np.abs(pil - 255 * shown["np"]).max() <= 0.501
    # what comes out may be learnt from: it does not carry the mode it was drawn in
    assert (shown["pt"].clone().requires_grad_() * 2).requires_grad


def test_a_tuple_is_what_the_output_holds(face: MmgenPipeline) -> None:
    given: dict[str, Any] = {"width": 16, "height": 16, "num_inference_steps": 2, "output_type": "pt"}
    whole = face(CAT, generator=generators(1), **given)
    pair = face(CAT, generator=generators(1), return_dict=False, **given)
    assert isinstance(whole, ImagePipelineOutput)
    assert isinstance(pair, tuple)
    assert len(pair) == 1
    assert torch.equal(whole.images, pair[0])
    assert torch.equal(whole["images"], whole[0])


# ---- callbacks and bars ----------------------------------------------------------------------------


def test_a_callback_sees_every_step(face: MmgenPipeline) -> None:
    def see(pipe: MmgenPipeline, index: int, t: float, given: dict[str, Any]) -> dict[str, Any]:
        assert pipe is face
        assert list(given) == ["x0", "stage"]
        seen.append((given["stage"], index, t, tuple(given["x0"].shape)))
        return given

    seen: list[tuple[str, int, float, tuple[int, ...]]] = []
    watched = images(face, [CAT, DOG], side=64, generator=generators(1, 2), callback_on_step_end=see)
    assert torch.equal(watched, images(face, [CAT, DOG], side=64, generator=generators(1, 2)))
    assert list(dict.fromkeys(stage for stage, *_ in seen)) == ["prior", "decoder", "super-res-64"]
    decoder = [step[1:] for step in seen if step[0] == "decoder"]
    assert [index for index, *_ in decoder] == [0, 1]
    assert {shape for *_, shape in decoder} == {(2, 3, 16, 16)}
    assert decoder[0][1] > decoder[1][1] == 0


@pytest.mark.parametrize("names", [[], ["x0"], ["stage"]])
def test_a_callback_is_given_what_it_asks_for(face: MmgenPipeline, names: list[str]) -> None:
    seen: list[list[str]] = []
    images(
        face,
        callback_on_step_end=lambda _pipe, _index, _t, given: seen.append(list(given)),
        callback_on_step_end_tensor_inputs=names,
    )
    assert seen
    assert all(given == names for given in seen)
    assert set(names) <= set(face._callback_tensor_inputs)


def test_a_callback_that_would_change_a_step_is_refused(face: MmgenPipeline) -> None:
    with pytest.raises(UsageError, match="returned another 'x0': steps can be watched, not changed"):
        images(face, callback_on_step_end=lambda _pipe, _index, _t, given: {"x0": 0 * given["x0"]})
    with pytest.raises(UsageError, match="has 'latents': choose of x0, stage"):
        images(face, callback_on_step_end_tensor_inputs=["latents"])


def test_bars_are_shown_as_they_are_set(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = MmgenPipeline.from_pretrained(tiny_folder)
    images(pipe, side=64)
    shown = capsys.readouterr().err
    assert all(f"{total}/{total}" in shown for total in (CANDIDATES * PRIOR.steps, SUPER_RES.steps))
    images(quiet(pipe), side=64)
    assert capsys.readouterr().err == ""


# ---- schedulers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["heun", "dpmpp-2m"])
def test_our_scheduler_is_its_sampler(face: MmgenPipeline, pipe: TextToImage, name: str) -> None:
    given = changed(face, scheduler=MmgenScheduler(sampler=name))
    (theirs,) = images(given, num_inference_steps=4, output_type="pil")
    settings = {"decoder": StageSettings(steps=4, sampler=name)}
    (ours,) = pipe(CAT, seeds=drawn(1), size=16, stages=settings)
    assert theirs.tobytes() == ours.tobytes()


def by_hand(face: MmgenPipeline, draft: Draft, x: Tensor, scheduler: Any, steps: int, scale: float) -> Tensor:
    """The loop of a pipeline that knows this scheduler and this network: guided x0, then what the scheduler expects."""
    assert draft.text is not None
    text, flow = draft.text, bool(scheduler.config.use_flow_sigmas)
    told = Conditioning(
        text=text.text, text_mask=text.text_mask, pooled=text.pooled, image_embed=draft.image_embed
    )
    every = torch.ones(len(x), dtype=torch.bool)
    null = Conditioning(**{**vars(told), "drop_text": every, "drop_image": every})
    limit = threshold.make(DECODER.threshold, DECODER.threshold_cap)
    scheduler.set_timesteps(steps)
    sample = x
    for i, t in enumerate(scheduler.timesteps):
        noisy = scheduler.sigmas[i]
        alpha, sigma = (
            (1 - noisy, noisy) if flow else (1 / (1 + noisy**2).sqrt(), noisy / (1 + noisy**2).sqrt())
        )
        at = (sigma / (alpha + sigma)).expand(len(x))
        said, unsaid = (
            face.decoder(sample / (alpha + sigma), at, face.decoder.prepare(cond)) for cond in (told, null)
        )
        x0 = limit(unsaid + scale * (said - unsaid))
        eps = (sample - alpha * x0) / sigma
        sample = scheduler.step(eps - x0 if flow else eps, t, sample).prev_sample
    return sample


@pytest.mark.parametrize(
    "settings",
    [FLOW, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"}],
    ids=["flow", "betas", "karras"],
)
def test_the_cascade_runs_with_their_scheduler_as_a_loop_by_hand(
    face: MmgenPipeline, pipe: TextToImage, settings: dict[str, Any]
) -> None:
    """Within 1e-4 of pictures in [0, 1]: times are found by bisection there, and tables are float32 here."""
    seeds, steps, scale = drawn(1, 2), 5, 3.0
    draft = Draft((CAT, DOG))
    with torch.no_grad():
        for stage in pipe.cascade.stages[:2]:
            draft = finish(stage.run(draft, stage.defaults, Noise(seeds, stage.name)))
        x = Noise(seeds, "decoder").draw((3, 16, 16))
        expected = by_hand(face, draft, x, DPMSolverMultistepScheduler(**settings), steps, scale)
    given = changed(face, scheduler=DPMSolverMultistepScheduler(**settings))
    got = images(
        given, [CAT, DOG], generator=generators(1, 2), num_inference_steps=steps, guidance_scale=scale
    )
    torch.testing.assert_close(got, (expected / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    assert not torch.allclose(
        got, images(face, [CAT, DOG], generator=generators(1, 2), num_inference_steps=steps), atol=1e-2
    )


def test_their_scheduler_draws_through_every_stage(face: MmgenPipeline) -> None:
    pipe = changed(face, scheduler=EulerDiscreteScheduler())
    negative, plain = (images(pipe, side=64, negative_prompt=text) for text in ("a dog", None))
    assert plain.shape == (1, 3, 64, 64)
    assert not torch.equal(negative, plain)
    assert pipe.scheduler.num_inference_steps is None


# ---- what cannot be meant --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": ""}, "say what to draw"),
        ({"prompt": []}, "say what to draw"),
        ({"prompt": 7}, "prompt is 7: say what to draw"),
        ({"prompt": [CAT, None]}, "the prompt is None: give text"),
        ({"negative_prompt": ["a dog"]}, "the negative prompt is .*: give text"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0: draw at least one"),
        ({"num_images_per_prompt": 1.5}, r"num_images_per_prompt is 1\.5"),
        ({"num_inference_steps": 0}, "steps is 0: it must lie between 1 and 1000"),
        ({"guidance_scale": -1}, "guidance_scale is -1"),
        ({"generator": generators(1, 2)}, "2 generators for 1 pictures: give one, or one for each"),
        ({"generator": 7}, r"generator is 7: give a torch\.Generator"),
        ({"generator": [None]}, r"generator is \[None\]"),
        ({"output_type": "latent"}, "no output_type 'latent': choose one of pil, np, pt"),
        ({"width": 32}, "MmgenPipeline cannot draw 32x16: choose 16x16 or 64x64 or 256x256"),
        ({"width": None}, "cannot draw 256x16"),
    ],
)
def test_what_cannot_be_meant_is_refused(face: MmgenPipeline, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        face(**{"prompt": CAT, "width": 16, "height": 16, "generator": generators(1)[0], **given})
