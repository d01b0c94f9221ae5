"""Every sampler, step by step, beside its counterpart in diffusers, free-running from the same noise.

TOLERANCE bounds the largest difference, relative to the largest value of the picture. diffusers keeps its tables in
float32, and 1 - alpha_bar loses four digits there: what is left is mostly its rounding.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from mmgen import threshold
from mmgen.noise import Noise
from mmgen.schedulers import schedules
from mmgen.schedulers.prediction import Prediction, from_diffusers_config, to_x0
from mmgen.schedulers.samplers import Denoise, sampler
from mmgen.schedulers.schedules import FlowSchedule, NoiseSchedule

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
TOLERANCE = 1e-5
SEEDS = (3, 5)
SHAPE = (3, 4, 4)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
Threshold = Callable[[Tensor], Tensor]


def network(x: Tensor, t: Tensor, channels: int = 3) -> Tensor:
    """Smooth, nonlinear, dependent on time, bounded by the size of x."""
    out = 0.8 * x + 0.4 * torch.sin(3 * x + t.float() / 200)
    return torch.cat([out, torch.cos(x)], dim=1)[:, :channels]


def start() -> Tensor:
    return Noise(SEEDS, "start").draw(SHAPE)


def denoiser(schedule: NoiseSchedule, config: Any, limit: Threshold = lambda x0: x0) -> Denoise:
    kind = from_diffusers_config(config)
    channels = 6 if kind == "learned-range" else 3

    def denoise(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        out = network(x_t, t, channels)
        x0, variance = to_x0(out, x_t, schedule.alpha(t), schedule.sigma(t), kind)
        return Prediction(limit(x0), variance)

    return denoise


def assert_same_steps(ours: Iterator[Any], theirs: Iterator[Tensor], tolerance: float = TOLERANCE) -> None:
    worst = 0.0
    for step, x in zip(ours, theirs, strict=True):
        worst = max(worst, float((step.x - x).abs().max() / x.abs().max().clamp(min=1)))
    assert worst < tolerance


def feed_noise(patch: pytest.MonkeyPatch, module: str) -> None:
    noise = Noise(SEEDS, "steps")
    patch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda shape, **_: noise.draw(shape[1:]))


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm(monkeypatch, beta_schedule, spacing, prediction):
    theirs = DDPMScheduler(
        **BETAS,
        beta_schedule=beta_schedule,
        timestep_spacing=spacing,
        prediction_type=prediction,
        clip_sample=False,
    )
    theirs.set_timesteps(10)
    feed_noise(monkeypatch, "scheduling_ddpm")

    def run() -> Iterator[Tensor]:
        x = start()
        for t in theirs.timesteps:
            x = theirs.step(network(x, t), t, x).prev_sample
            yield x

    schedule = schedules.from_diffusers_config(theirs.config)
    ours = sampler("ddpm")(
        denoiser(schedule, theirs.config), start(), schedule.times(10), schedule, Noise(SEEDS, "steps")
    )
    # The cosine's last level has alpha 5e-5: an eps prediction there multiplies rounding errors by 2e4.
    ill = (beta_schedule, prediction) == ("squaredcos_cap_v2", "epsilon")
    assert_same_steps(ours, run(), 3e-4 if ill else TOLERANCE)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_ddpm_variances_with_clipping(monkeypatch, variance):
    theirs = DDPMScheduler(
        **BETAS,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        prediction_type="epsilon",
        variance_type=variance,
        clip_sample=True,
    )
    theirs.set_timesteps(10)
    feed_noise(monkeypatch, "scheduling_ddpm")
    channels = 6 if variance == "learned_range" else 3

    def run() -> Iterator[Tensor]:
        x = start()
        for t in theirs.timesteps:
            x = theirs.step(network(x, t, channels), t, x).prev_sample
            yield x

    schedule = schedules.from_diffusers_config(theirs.config)
    ours = sampler("ddpm", variance="large" if variance == "fixed_large" else "small")(
        denoiser(schedule, theirs.config, threshold.static_clip),
        start(),
        schedule.times(10),
        schedule,
        Noise(SEEDS, "steps"),
    )
    assert_same_steps(ours, run())


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("spacing", "final"), [("leading", True), ("leading", False), ("trailing", True)])
def test_ddim(eta, prediction, spacing, final):
    theirs = DDIMScheduler(
        **BETAS,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=final,
        steps_offset=1,
    )
    theirs.set_timesteps(10)

    def run() -> Iterator[Tensor]:
        x, noise = start(), Noise(SEEDS, "steps")
        for t in theirs.timesteps:
            fresh = noise.draw(SHAPE)
            x = theirs.step(network(x, t), t, x, eta=eta, variance_noise=fresh).prev_sample
            yield x

    schedule = schedules.from_diffusers_config(theirs.config)
    ours = sampler("ddim", eta=eta)(
        denoiser(schedule, theirs.config), start(), schedule.times(10), schedule, Noise(SEEDS, "steps")
    )
    assert_same_steps(ours, run())


def test_ddim_with_clipping_derives_eps_again():
    theirs = DDIMScheduler(
        **BETAS,
        beta_schedule="linear",
        timestep_spacing="trailing",
        prediction_type="epsilon",
        clip_sample=True,
    )
    theirs.set_timesteps(10)

    def run() -> Iterator[Tensor]:
        x = start()
        for t in theirs.timesteps:
            x = theirs.step(network(x, t), t, x, use_clipped_model_output=True).prev_sample
            yield x

    schedule = schedules.from_diffusers_config(theirs.config)
    denoise = denoiser(schedule, theirs.config, threshold.static_clip)
    ours = sampler("ddim")(denoise, start(), schedule.times(10), schedule, Noise(SEEDS))
    assert_same_steps(ours, run())


def exploding(theirs: Any, each: int) -> Iterator[Tensor]:
    """Run a scheduler that keeps x / alpha, and give x after every interval. each: evaluations in one interval."""
    x = start() * (theirs.sigmas[0] ** 2 + 1).sqrt()
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(network(theirs.scale_model_input(x, t), t), t, x).prev_sample
        if (i + 1) % each == 0 or i == len(theirs.timesteps) - 1:
            yield x / (theirs.sigmas[i + 1] ** 2 + 1).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("name", "each"), [("euler", 1), ("heun", 2)])
def test_euler_and_heun(name, each, prediction, spacing):
    kind = {"euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}[name]
    theirs = kind(
        **BETAS, beta_schedule="scaled_linear", timestep_spacing=spacing, prediction_type=prediction
    )
    theirs.set_timesteps(10)
    schedule = schedules.from_diffusers_config(theirs.config)
    denoise = denoiser(schedule, theirs.config)
    ours = sampler(name)(denoise, start(), schedule.times(10), schedule, Noise(SEEDS))
    assert_same_steps(ours, exploding(theirs, each))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("steps", "final"), [(5, "zero"), (20, "zero"), (20, "sigma_min")])
def test_dpmpp_2m(prediction, spacing, steps, final):
    theirs = DPMSolverMultistepScheduler(
        **BETAS,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        prediction_type=prediction,
        final_sigmas_type=final,
    )
    theirs.set_timesteps(steps)
    schedule = schedules.from_diffusers_config(theirs.config)
    # This scheduler alone spaces the steps over one more than it takes.
    times = torch.tensor([*theirs.timesteps.tolist(), -1], dtype=torch.float64)
    ours = sampler("dpmpp-2m")(denoiser(schedule, theirs.config), start(), times, schedule, Noise(SEEDS))
    assert_same_steps(ours, plain(theirs))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_on_the_flow_schedule(shift):
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )
    theirs.set_timesteps(10)
    schedule = FlowSchedule(shift)
    denoise = denoiser(schedule, theirs.config)
    ours = sampler("dpmpp-2m")(denoise, start(), theirs.sigmas, schedule, Noise(SEEDS))
    assert_same_steps(ours, plain(theirs, theirs.sigmas))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_the_flow_schedule(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = schedules.from_diffusers_config(json.loads(theirs.to_json_string()))
    unshifted = [1 - i / 10 for i in range(10)]
    theirs.set_timesteps(sigmas=unshifted)
    torch.testing.assert_close(schedule.times(10), theirs.sigmas.double(), atol=1e-6, rtol=0)
    denoise = denoiser(schedule, {"prediction_type": "flow_prediction"})
    ours = sampler("euler")(denoise, start(), schedule.times(10), schedule, Noise(SEEDS))
    assert_same_steps(ours, plain(theirs, theirs.sigmas))


def plain(theirs: Any, network_times: Tensor | None = None) -> Iterator[Tensor]:
    x = start()
    for i, t in enumerate(theirs.timesteps):
        out = network(x, t if network_times is None else network_times[i])
        x = theirs.step(out, t, x).prev_sample
        yield x


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_discrete_levels(beta_schedule, zero_snr):
    theirs = DDIMScheduler(
        **BETAS, beta_schedule=beta_schedule, timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr
    )
    schedule = schedules.from_diffusers_config(theirs.config)
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2, theirs.alphas_cumprod.double(), atol=5e-6, rtol=0)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    assert (schedule.alpha(t[-1:]) == 0).item() is zero_snr


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 50, 81, 999, 1000])
def test_discrete_times(spacing, steps):
    theirs = DDIMScheduler(**BETAS, beta_schedule="linear", timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    times = schedules.from_diffusers_config(theirs.config).times(steps)
    assert times.tolist() == [*theirs.timesteps.tolist(), -1]


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_karras_times(steps):
    theirs = EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(steps)
    times = schedules.KarrasSchedule().times(steps)
    torch.testing.assert_close(times, theirs.sigmas.double(), atol=0, rtol=1e-5)
