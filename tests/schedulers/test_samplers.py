"""What holds for every sampler: few steps, the ends of every schedule, independence of the batch, the right law."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgen import types
from mmgen.errors import UsageError
from mmgen.noise import Noise
from mmgen.schedulers import steps
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import SAMPLERS, Sampler, Step, sampler
from mmgen.schedulers.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    KarrasSchedule,
    NoiseSchedule,
    cosine_betas,
    linear_betas,
    zero_terminal_snr,
)

ALL: dict[str, Sampler] = {name: sampler(name) for name in SAMPLERS} | {
    "ddim eta 0.4": sampler("ddim", eta=0.4),
    "ddim eta 1": sampler("ddim", eta=1.0),
    "ddpm large": sampler("ddpm", variance="large"),
}
SCHEDULES: dict[str, NoiseSchedule] = {
    "flow": FlowSchedule(),
    "flow shifted": FlowSchedule(3.0),
    "cosine": CosineSchedule(),
    "cosine shifted": CosineSchedule(4.0),
    "karras": KarrasSchedule(),
    "linear": DiscreteSchedule(linear_betas(), "leading"),
    "cosine betas": DiscreteSchedule(cosine_betas(), "linspace"),
    "zero snr": DiscreteSchedule(zero_terminal_snr(linear_betas()), "trailing"),
}
every_sampler = pytest.mark.parametrize("name", ALL)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


class Counted:
    """Pictures of a Gaussian with mean 0.3 and deviation 0.5 in every pixel, known exactly; counts its calls."""

    mean, std = 0.3, 0.5

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule, self.times = schedule, []

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
        assert t.shape == s.shape == ()
        assert t.dtype == s.dtype == torch.float64
        self.times.append((float(t), float(s)))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(self.mean + gain * (x_t - alpha * self.mean))


def run(
    name: str, schedule: NoiseSchedule, count: int, seeds: tuple[int, ...] = (7,)
) -> tuple[list[Step], Counted]:
    noise, denoise, times = Noise(seeds, name), Counted(schedule), schedule.times(count)
    x = noise.draw((3, 4, 4)) * schedule.sigma(times[0])
    return list(ALL[name](denoise, x, times, schedule, noise)), denoise


@every_sampler
@every_schedule
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_few_steps_are_finite_and_end_on_the_networks_own_picture(name, schedule, count):
    done, denoise = run(name, schedule, count)
    assert [(step.index, step.total, step.stage) for step in done] == [
        (i + 1, count, "") for i in range(count)
    ]
    assert [step.t for step in done] == schedule.times(count)[1:].tolist()
    assert all(bool(torch.isfinite(step.x).all() and torch.isfinite(step.x0).all()) for step in done)
    assert all(step.x.dtype == step.x0.dtype == torch.float32 for step in done)
    assert torch.equal(done[-1].x, done[-1].x0)
    assert len(denoise.times) == (2 * count - 1 if name == "heun" else count)


@every_sampler
def test_a_picture_does_not_depend_on_its_batch(name):
    together, _ = run(name, FlowSchedule(), 5, seeds=(3, 5, 8))
    for row, seed in enumerate((3, 5, 8)):
        alone, _ = run(name, FlowSchedule(), 5, seeds=(seed,))
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a.x[row], b.x[0])
            assert torch.equal(a.x0[row], b.x0[0])


@every_sampler
def test_the_input_is_left_as_it_was(name):
    schedule = FlowSchedule()
    x = Noise((1,)).draw((3, 4, 4))
    before = x.clone()
    done = list(ALL[name](Counted(schedule), x, schedule.times(4), schedule, Noise((1,))))
    assert torch.equal(x, before)
    assert len({step.x.data_ptr() for step in done}) == 4


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m"])
def test_deterministic_samplers_draw_nothing(name):
    schedule, noise = FlowSchedule(), Noise((1,))
    list(ALL[name](Counted(schedule), torch.ones(1, 3, 4, 4), schedule.times(4), schedule, noise))
    assert torch.equal(noise.draw((5,)), Noise((1,)).draw((5,)))


@every_sampler
def test_half_precision_is_worked_in_float32(name):
    schedule = FlowSchedule()
    exact = Counted(schedule)

    def denoise(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
        return Prediction(exact(x_t, t, s).x0.bfloat16())

    x = Noise((1,)).draw((3, 4, 4)).bfloat16()
    for step in ALL[name](denoise, x, schedule.times(3), schedule, Noise((1,))):
        assert step.x.dtype == step.x0.dtype == torch.float32


@pytest.mark.parametrize("name", ["ddpm", "ddpm large", "ddim eta 0.4", "ddim eta 1"])
@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule(), SCHEDULES["linear"]], ids=type)
def test_noisy_samplers_draw_from_the_gaussian(name, schedule):
    noise, times = Noise((7,), name), schedule.times(250)
    x = noise.draw((20_000,)) * schedule.sigma(times[0])
    *_, last = ALL[name](Counted(schedule), x, times, schedule, noise)
    # The standard error of the deviation is 0.0025; the rest is discretisation.
    assert float(last.x.mean()) == pytest.approx(Counted.mean, abs=0.02)
    assert float(last.x.std()) == pytest.approx(Counted.std, abs=0.02)


@pytest.mark.parametrize(("fraction", "fixed"), [(-1, "small"), (1, "large")])
def test_a_learned_variance_goes_before_a_fixed_one(fraction, fixed):
    schedule = SCHEDULES["linear"]
    exact = Counted(schedule)

    def denoise(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
        # Half precision, as a network in it would say.
        return Prediction(exact(x_t, t, s).x0, torch.full_like(x_t, fraction, dtype=torch.bfloat16))

    x, times = torch.ones(1, 3, 4, 4), schedule.times(6)
    learned = list(sampler("ddpm", variance="small")(denoise, x, times, schedule, Noise((1,))))
    known = list(sampler("ddpm", variance=fixed)(exact, x, times, schedule, Noise((1,))))
    for a, b in zip(learned, known, strict=True):
        torch.testing.assert_close(a.x, b.x, atol=1e-5, rtol=1e-5)


def test_the_table_has_every_name():
    assert tuple(SAMPLERS) == types.SAMPLERS


def test_one_update_is_one_function():
    assert sampler("ddim") is sampler("ddim", eta=0.0) is sampler("euler")


@pytest.mark.parametrize("name", ["Euler", "", "flow-map", "dpm"])
def test_an_unknown_name_is_named(name):
    with pytest.raises(UsageError, match="choose one of ddpm, ddim, euler, heun, dpmpp-2m"):
        sampler(name)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "ddpm"])
def test_an_eta_that_would_be_ignored_is_refused(name):
    with pytest.raises(UsageError, match=r"no eta, got 0\.5"):
        sampler(name, eta=0.5)


@every_sampler
@pytest.mark.parametrize(
    "times", [[1.0], [], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.0, math.nan], [[1.0, 0.0]]]
)
def test_times_that_do_not_fall_are_refused(name, times):
    schedule = FlowSchedule()
    with pytest.raises(ValueError, match="each less than the one before"):
        next(ALL[name](Counted(schedule), torch.ones(1, 1), torch.tensor(times), schedule, Noise((1,))))


unit = st.floats(0.0, 1.0)


@given(t=unit, s=unit, eta=unit)
@settings(max_examples=200)
def test_the_noise_left_is_the_levels_own(t, s, eta):
    """Kept and fresh noise add up to sigma_s, and at eta 1 DDIM is DDPM: as properties of the coefficients."""
    t, s = max(t, s), min(t, s)
    if t - s < 1e-6:
        return
    schedule = FlowSchedule()
    now, then = (steps.level(schedule, torch.tensor(u, dtype=torch.float64)) for u in (t, s))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    # With x0 = 0, x_t is sigma_t eps: the answer to eps = 1 and noise = 0 is the part kept, and the other way round.
    kept = steps.ddim(now.sigma * one, zero, zero, now, then, eta=eta)
    fresh = steps.ddim(zero, zero, one, now, then, eta=eta)
    assert float(kept**2 + fresh**2) == pytest.approx(float(then.sigma**2), abs=1e-12)
    variance = steps.small_variance(now, then)
    full = steps.ddpm(now.sigma * one, one, one, now, then, variance=variance)
    assert float(full) == pytest.approx(
        float(steps.ddim(now.sigma * one, one, one, now, then, eta=1.0)), abs=1e-6
    )


@every_schedule
@pytest.mark.parametrize("name", types.ONE_STEP)
def test_a_step_taken_again_is_as_noisy_as_it_was(name: str, schedule: NoiseSchedule) -> None:
    """Where the picture is known to be 0.3, what else there is in x is sigma times standard normal noise."""
    times, count, asked = schedule.times(6), 3, []

    def known(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        asked.append(float(t))
        return Prediction(torch.full_like(x_t, 0.3), None)

    begin = Noise(range(40)).draw((64,)) * schedule.sigma(times[0])
    found = list(sampler(name, resample=count)(known, begin, times, schedule, Noise(range(40), "again")))
    assert [step.index for step in found] == [1, 2, 3, 4, 5, 6]
    assert {step.total for step in found} == {6}
    assert [step.t for step in found] == pytest.approx(times[1:].tolist())
    if name != "heun":  # which asks in between
        assert asked == [float(t) for t in times[:-1] for _ in range(count)]
    for step in found:
        t = torch.tensor(step.t, dtype=torch.float64)
        spread = float((step.x - 0.3 * schedule.alpha(t)).std())
        assert spread == pytest.approx(float(schedule.sigma(t)), rel=0.08, abs=1e-3)


def test_once_is_the_sampler_itself_and_who_looks_back_cannot_step_again() -> None:
    assert sampler("ddpm", resample=1).func is sampler("ddpm").func  # type: ignore[attr-defined]
    assert sampler("euler", resample=None) is SAMPLERS["euler"]
    for name in ("dpmpp-2m", "EulerDiscreteScheduler"):
        with pytest.raises(
            UsageError, match=f"sampler '{name}' cannot take a step again: .* ddpm, ddim, euler"
        ):
            sampler(name, resample=2)
