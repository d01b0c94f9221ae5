"""What a pipeline of diffusers expects of a scheduler, asked of ours; and the equations beside diffusers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from mmgen import schedulers
from mmgen.errors import ModelError, NonFiniteError, UsageError
from mmgen.noise import Noise
from mmgen.schedulers import schedules
from mmgen.schedulers.interop import MmgenScheduler
from mmgen.schedulers.prediction import Prediction, from_diffusers_config, to_x0
from mmgen.schedulers.samplers import SAMPLERS, sampler
from mmgen.schedulers.schedules import DiscreteSchedule, linear_betas

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (3, 4, 4)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def network(x: Tensor, t: float | Tensor, channels: int = 3) -> Tensor:
    """Smooth, nonlinear, dependent on time, bounded by the size of x."""
    out = 0.8 * x + 0.4 * torch.sin(3 * x + float(t) / 200)
    return torch.cat([out, torch.cos(x)], dim=1)[:, :channels]


def start(*seeds: int) -> Tensor:
    return Noise(seeds or (3, 5), "start").draw(SHAPE)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(scheduler: Any, x: Tensor, channels: int = 3, **given: Any) -> list[Any]:
    """The output of every step, by the loop of a pipeline; set_timesteps has been called."""
    done = []
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t, channels)
        done.append(scheduler.step(out, t, x, **given))
        x = done[-1].prev_sample
    return done


def started(name: str, steps: int = 5, **settings: Any) -> MmgenScheduler:
    scheduler = MmgenScheduler(sampler=name, **settings)
    scheduler.set_timesteps(steps)
    return scheduler


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_few_steps_end_on_the_networks_own_picture(name: str, steps: int, spacing: str) -> None:
    scheduler = started(name, steps, timestep_spacing=spacing)
    done = run(scheduler, start(), generator=generators(1, 2))
    assert len(done) == len(scheduler.timesteps) == (2 * steps - 1 if name == "heun" else steps)
    assert scheduler.num_inference_steps == steps
    assert scheduler.order == (2 if name == "heun" else 1)
    assert all(bool(torch.isfinite(step.prev_sample).all()) for step in done)
    assert torch.equal(done[-1].prev_sample, done[-1].pred_original_sample)


@every_sampler
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_pushed_run_is_the_pulled_one(name: str, prediction: str, eta: float) -> None:
    """Step after step what the sampler's generator says, with the same noise."""
    if eta and name != "ddim":
        return
    theirs = started(name, 6, prediction_type=prediction)
    schedule = DiscreteSchedule(linear_betas(), "leading")

    def denoise(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return to_x0(network(x_t, t), x_t, alpha, sigma, from_diffusers_config(theirs.config))

    run_of_ours = sampler(name, eta=eta or None)(
        denoise, start(), schedule.times(6), schedule, Noise((3, 5), "steps")
    )
    ours = [step.x for step in run_of_ours]
    pushed = run(theirs, start(), eta=eta, generator=Noise((3, 5), "steps").generators)
    ends = pushed[1::2] + pushed[-1:] if name == "heun" else pushed
    for a, b in zip(ends, ours, strict=True):
        torch.testing.assert_close(a.prev_sample, b, atol=1e-6, rtol=1e-6)


def exploding(theirs: Any, x: Tensor) -> list[Tensor]:
    """The samples of a scheduler that keeps x / alpha, times alpha."""
    # It divides by the sigma of training step 0, of which 1 - alpha_bar leaves its own table four digits.
    schedule, t = schedules.from_diffusers_config(theirs.config), theirs.timesteps.double()
    theirs.sigmas = torch.cat([schedule.sigma(t) / schedule.alpha(t), torch.zeros(1, dtype=torch.float64)])
    done = run(theirs, x * (theirs.sigmas[0] ** 2 + 1).sqrt())
    return [
        step.prev_sample / (sigma**2 + 1).sqrt() for step, sigma in zip(done, theirs.sigmas[1:], strict=False)
    ]


def plain(theirs: Any, x: Tensor, **given: Any) -> list[Tensor]:
    return [step.prev_sample for step in run(theirs, x, **given)]


def assert_beside(ours: MmgenScheduler, theirs: Sequence[Tensor], channels: int = 3, **given: Any) -> None:
    """The largest difference, relative to the largest value, is the rounding of their float32 tables."""
    for a, b in zip(run(ours, start(), channels, **given), theirs, strict=True):
        assert float((a.prev_sample - b).abs().max() / b.abs().max().clamp(min=1)) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    ("kind", "name", "samples"),
    [
        (DDIMScheduler, "ddim", plain),
        (DDPMScheduler, "ddpm", plain),
        (DPMSolverMultistepScheduler, "dpmpp-2m", plain),
        (EulerDiscreteScheduler, "euler", exploding),
        (HeunDiscreteScheduler, "heun", exploding),
    ],
)
def test_beside_its_counterpart(
    kind: Any, name: str, samples: Callable[..., list[Tensor]], spacing: str, prediction: str
) -> None:
    settings: dict[str, Any] = {**BETAS, "timestep_spacing": spacing, "prediction_type": prediction}
    if name in ("ddim", "ddpm"):
        settings["clip_sample"] = False
    theirs = kind(**settings)
    theirs.set_timesteps(10)
    ours = MmgenScheduler.from_config(theirs.config, sampler=name)
    if name == "dpmpp-2m":
        # It alone spaces the steps over one more than it takes.
        ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    else:
        ours.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    given = [{"generator": generators(1, 2)} if name == "ddpm" else {} for _ in range(2)]
    assert_beside(ours, samples(theirs, start(), **given[0]), **given[1])


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_with_noise_beside_its_counterpart(eta: float) -> None:
    theirs = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(10)
    ours = MmgenScheduler.from_config(theirs.config, sampler="ddim")
    ours.set_timesteps(10)
    samples = plain(theirs, start(), eta=eta, generator=generators(1, 2))
    assert ours.config.set_alpha_to_one is False
    assert_beside(ours, samples, eta=eta, generator=generators(1, 2))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("limit", ["clip_sample", "thresholding"])
def test_ddpm_keeps_to_settings_it_is_not_made_with(variance: str, limit: str) -> None:
    theirs = DDPMScheduler(
        **BETAS,
        variance_type=variance,
        rescale_betas_zero_snr=True,
        prediction_type="epsilon",
        timestep_spacing="leading",
        clip_sample=limit == "clip_sample",
        thresholding=limit == "thresholding",
        dynamic_thresholding_ratio=0.9,
        sample_max_value=1.5,
    )
    theirs.set_timesteps(10)
    ours = MmgenScheduler.from_config(theirs.config, sampler="ddpm")
    ours.set_timesteps(10)
    channels = 6 if variance == "learned_range" else 3
    samples = run(theirs, start(), channels, generator=generators(1, 2))
    assert_beside(ours, [s.prev_sample for s in samples], channels, generator=generators(1, 2))


@every_sampler
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    scheduler = started(name, 5, **BETAS, prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path)
    loaded = MmgenScheduler.from_pretrained(tmp_path)
    again = MmgenScheduler.from_config(scheduler.config)
    assert dict(loaded.config) == {
        k: v for k, v in scheduler.config.items() if k != "_use_default_values"
    } | {k: v for k, v in loaded.config.items() if k.startswith("_")}
    before = run(scheduler, start(), generator=generators(1, 2))[-1].prev_sample
    for other in (loaded, again):
        other.set_timesteps(5)
        after = run(other, start(), generator=generators(1, 2))[-1].prev_sample
        assert torch.equal(before, after)


def test_what_another_scheduler_was_told_survives_saving(tmp_path: Path) -> None:
    theirs = DDIMScheduler(**BETAS, set_alpha_to_one=False, rescale_betas_zero_snr=True, clip_sample=False)
    MmgenScheduler.from_config(theirs.config).save_pretrained(tmp_path)
    loaded = MmgenScheduler.from_pretrained(tmp_path)
    assert loaded.config.set_alpha_to_one is False
    loaded.set_timesteps(timesteps=[999])
    with pytest.raises(ValueError, match="alpha is 0"):
        run(loaded, start())


def test_its_settings_go_to_those_it_is_compatible_with() -> None:
    ours = MmgenScheduler(**BETAS, prediction_type="v_prediction", steps_offset=1)
    assert {DDIMScheduler, DPMSolverMultistepScheduler} < set(ours.compatibles)
    for kind in (DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler):
        theirs = kind.from_config(ours.config)
        assert theirs.config.prediction_type == "v_prediction"
        assert theirs.config.beta_end == BETAS["beta_end"]
        assert theirs.config.steps_offset == 1
        assert MmgenScheduler.from_config(theirs.config).config.steps_offset == 1
    assert schedulers.MmgenScheduler is MmgenScheduler


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True), "use_karras_sigmas=True"),
        (DDPMScheduler(**BETAS, variance_type="fixed_large_log"), "variance_type 'fixed_large_log'"),
        (DDIMScheduler(**BETAS, clip_sample=True, clip_sample_range=2.0), "clip_sample_range other than 1"),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow-matching"),
    ],
    ids=["karras", "variance", "range", "flow"],
)
def test_settings_that_it_cannot_keep_to_are_refused(theirs: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        MmgenScheduler.from_config(theirs.config).set_timesteps(3)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(UsageError, match="no sampler 'dpm': choose one of ddpm, ddim, euler, heun, dpmpp-2m"):
        MmgenScheduler(sampler="dpm")
    with pytest.raises(ModelError, match="beta_schedule 'quadratic'"):
        MmgenScheduler(beta_schedule="quadratic")


def test_trained_betas_are_used() -> None:
    betas = [0.1, 0.2, 0.3, 0.4]
    scheduler = MmgenScheduler(sampler="euler", trained_betas=betas, prediction_type="sample")
    assert len(scheduler) == 4
    scheduler.set_timesteps(timesteps=[3, 1])
    x, x0 = start(), torch.zeros(2, *SHAPE)
    after = scheduler.step(x0, 3, x).prev_sample
    # With x0 = 0 a step keeps the noise: sigma_1 / sigma_3.
    ratio = ((1 - 0.9 * 0.8) / (1 - 0.9 * 0.8 * 0.7 * 0.6)) ** 0.5
    torch.testing.assert_close(after, ratio * x)


@every_sampler
def test_a_step_before_the_times_are_set_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="call set_timesteps before step"):
        MmgenScheduler(sampler=name).step(start(), 10, start())


@pytest.mark.parametrize("given", [{}, {"num_inference_steps": 3, "timesteps": [500, 0]}])
def test_steps_and_times_are_given_one_at_a_time(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="either num_inference_steps or timesteps"):
        MmgenScheduler().set_timesteps(**given)


@pytest.mark.parametrize("timesteps", [[], [1000, 0], [500, 500], [1, 2], [5, -1]])
def test_times_that_do_not_fall_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(UsageError, match="falling numbers from 999 to 0"):
        MmgenScheduler().set_timesteps(timesteps=timesteps)


def test_more_steps_than_were_trained_are_refused() -> None:
    with pytest.raises(UsageError, match="trained with 1000"):
        MmgenScheduler().set_timesteps(1001)


def test_a_timestep_out_of_turn_is_refused() -> None:
    scheduler = started("euler", 4)
    first, second, *_ = scheduler.timesteps.tolist()
    with pytest.raises(UsageError, match="timestep 123 is not in this run"):
        scheduler.step(start(), 123, start())
    scheduler.step(start(), first, start())
    with pytest.raises(UsageError, match=f"timestep {first}, but timestep {second} comes next"):
        scheduler.step(start(), first, start())
    scheduler.set_timesteps(1)
    scheduler.step(start(), 999, start())
    with pytest.raises(UsageError, match="nothing comes next"):
        scheduler.step(start(), 999, start())


@pytest.mark.parametrize("name", ["ddpm", "euler", "heun", "dpmpp-2m"])
def test_an_eta_that_would_be_ignored_is_refused(name: str) -> None:
    scheduler = started(name)
    with pytest.raises(UsageError, match=r"no eta, got 0\.5"):
        scheduler.step(start(), scheduler.timesteps[0], start(), eta=0.5)


@every_sampler
def test_a_run_begins_anew_or_on_its_way(name: str) -> None:
    scheduler = started(name, 6)
    first = run(scheduler, start(), generator=generators(1, 2))
    scheduler.set_timesteps(6)
    again = run(scheduler, start(), generator=generators(1, 2))
    assert torch.equal(first[-1].prev_sample, again[-1].prev_sample)
    # From the third step: one that ends there is the same as one that never looked further up.
    late = list(dict.fromkeys(scheduler.timesteps.tolist()))[2:]
    other = MmgenScheduler(sampler=name)
    other.set_timesteps(timesteps=late)
    whole = run(other, start(), generator=generators(1, 2))[-1].prev_sample
    scheduler.set_timesteps(6)
    rest = scheduler.timesteps[2 * scheduler.order :]
    x = start()
    drawn = generators(1, 2)
    for t in rest:
        x = scheduler.step(network(x, t), t, x, generator=drawn).prev_sample
    assert torch.equal(x, whole)


@every_sampler
def test_a_tuple_is_what_the_output_holds(name: str) -> None:
    one, other, x, y = started(name), started(name), start(), start()
    for t in one.timesteps:
        step = one.step(network(x, t), t, x, generator=generators(1, 2))
        pair = other.step(network(y, t), t, y, generator=generators(1, 2), return_dict=False)
        assert isinstance(pair, tuple)
        assert torch.equal(step.prev_sample, pair[0])
        assert torch.equal(step.pred_original_sample, pair[1])
        x, y = step.prev_sample, pair[0]


@pytest.mark.parametrize(("name", "eta"), [("ddpm", 0.0), ("ddim", 1.0)])
def test_a_picture_with_its_own_generator_does_not_depend_on_its_batch(name: str, eta: float) -> None:
    together = run(started(name), start(3, 5), eta=eta, generator=generators(1, 2))
    for row, (seed, own) in enumerate([(3, 1), (5, 2)]):
        alone = run(started(name), start(seed), eta=eta, generator=generators(own))
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a.prev_sample[row], b.prev_sample[0])


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_comes_back_without_nan(name: str, dtype: torch.dtype) -> None:
    scheduler = started(name, 4, beta_schedule="squaredcos_cap_v2", thresholding=True)
    for step in run(scheduler, start().to(dtype), generator=generators(1, 2)):
        assert step.prev_sample.dtype == step.pred_original_sample.dtype == dtype
        assert bool(torch.isfinite(step.prev_sample).all())
        assert float(step.pred_original_sample.abs().max()) <= 1


def test_nan_is_an_error() -> None:
    scheduler = started("euler")
    with pytest.raises(NonFiniteError, match="picture 2 of 2"):
        scheduler.step(torch.tensor([1.0, torch.nan]), scheduler.timesteps[0], torch.ones(2))


def test_noise_is_added_as_in_training() -> None:
    t = torch.tensor([7, 800])
    ours = MmgenScheduler(**BETAS).add_noise(start(), start(1, 2), t)
    theirs = DDIMScheduler(**BETAS).add_noise(start(), start(1, 2), t)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    half = MmgenScheduler(**BETAS).add_noise(start().half(), start(1, 2).half(), t)
    assert half.dtype == torch.float16


def unet() -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ).eval()


@every_sampler
def test_in_a_pipeline_it_is_the_loop_by_hand(name: str, tmp_path: Path) -> None:
    pipe = DDPMPipeline(unet(), MmgenScheduler(sampler=name, clip_sample=True))
    pipe.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is MmgenScheduler
    images = []
    for one in (pipe, loaded):
        one.set_progress_bar_config(disable=True)
        images.append(
            one(batch_size=2, generator=generators(1, 2), num_inference_steps=3, output_type="pt").images
        )
    drawn = generators(1, 2)
    x = torch.cat([torch.randn(1, 3, 8, 8, generator=g) for g in drawn])
    scheduler = started(name, 3, clip_sample=True)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.unet(x, t).sample, t, x, generator=drawn).prev_sample
    for image in images:
        torch.testing.assert_close(image, (x / 2 + 0.5).clamp(0, 1), atol=0, rtol=0)


def test_a_pipeline_that_wants_another_scheduler_reads_our_settings() -> None:
    """DDIMPipeline makes a DDIMScheduler of whatever it is given; its pictures are those of our ddim."""
    ours = MmgenScheduler(
        sampler="ddim", **BETAS, prediction_type="sample", clip_sample=True, timestep_spacing="trailing"
    )
    pipe = DDIMPipeline(unet(), ours)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        generator=generators(1), num_inference_steps=4, use_clipped_model_output=True, output_type="pt"
    )
    x = torch.randn(1, 3, 8, 8, generator=generators(1)[0])
    ours.set_timesteps(4)
    with torch.no_grad():
        for t in ours.timesteps:
            x = ours.step(pipe.unet(x, t).sample, t, x).prev_sample
    shown = (x / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(image.images, shown, atol=1e-5, rtol=0)
