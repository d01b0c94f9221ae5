"""Samplers: from noise to pictures, one generator function each, and back. They see only x0, times and a schedule.

`denoise(x_t, t, s)` says what the picture is, on the way from t to s; t and s are 0-dim float64 tensors on the CPU, in
the schedule's own unit. x at the first time is sigma times standard normal noise. Between steps x and x0 are float32
(float64 stays float64). A run that ends at sigma 0 ends on the network's own x0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from mmgen.noise import Noise
from mmgen.schedulers import steps
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.schedules import NoiseSchedule
from mmgen.schedulers.steps import Level, level
from mmgen.types import check_sampler

if TYPE_CHECKING:
    from PIL.Image import Image


class Step(NamedTuple):
    """What a sampler hands out after each step.

    stage: "" until a stage writes its name there. index: steps done, 1 to total. t: the time x has reached.
    x, x0: [B, ...]; x0 is the latest guess at the finished pictures, of the last x the network saw.
    """

    stage: str
    index: int  # type: ignore[assignment]  # the field's word; nobody asks a step for tuple.index
    total: int
    t: float
    x: Tensor
    x0: Tensor

    def preview(self) -> list[Image]:
        """The latest guess as pictures, one for each of the batch; none where the stage makes no pictures."""
        from mmgen.images import to_pil

        return to_pil(self.x0) if self.x0.ndim == 4 and self.x0.shape[1] == 3 else []


Denoise = Callable[[Tensor, Tensor, Tensor], Prediction]
Sampler = Callable[[Denoise, Tensor, Tensor, NoiseSchedule, Noise], Iterator[Step]]
FixedVariance = Literal["small", "large"]
INVERSION_ROUNDS = 5  # of `invert`; each leaves a third of the error or less, measured in tests/schedulers


def euler(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule, _noise: Noise
) -> Iterator[Step]:
    """First order, one evaluation a step, no noise added: Euler, DDIM with eta 0."""
    intervals, x = _intervals(times), _working(x)
    for index, (t, s) in enumerate(intervals, 1):
        x0 = denoise(x, t, s).x0.to(x.dtype)
        x = steps.euler(x, x0, level(schedule, t), level(schedule, s))
        yield Step("", index, len(intervals), float(s), x, x0)


def heun(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule, _noise: Noise
) -> Iterator[Step]:
    """Second order, two evaluations a step, but one in a step that ends at sigma 0. No noise added."""
    intervals, x = _intervals(times), _working(x)
    for index, (t, s) in enumerate(intervals, 1):
        now, then = level(schedule, t), level(schedule, s)
        x0 = denoise(x, t, s).x0.to(x.dtype)
        x_s = steps.euler(x, x0, now, then)
        if then.sigma > 0:
            x0_s = denoise(x_s, s, s).x0.to(x.dtype)
            x_s, x0 = steps.heun(x, x0, x_s, x0_s, now, then), x0_s
        x = x_s
        yield Step("", index, len(intervals), float(s), x, x0)


def dpmpp_2m(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule, _noise: Noise
) -> Iterator[Step]:
    """Second order from the second step on, one evaluation a step, no noise added: DPM-Solver++ 2M."""
    intervals, x = _intervals(times), _working(x)
    # Before the first step there is nothing but noise: with no x0 to extrapolate from it is first-order.
    before, x0_before = Level(torch.tensor(0.0), torch.tensor(1.0)), x
    for index, (t, s) in enumerate(intervals, 1):
        now, then = level(schedule, t), level(schedule, s)
        x0 = denoise(x, t, s).x0.to(x.dtype)
        x = steps.dpmpp_2m(x, x0, x0_before, before, now, then)
        before, x0_before = now, x0
        yield Step("", index, len(intervals), float(s), x, x0)


def ddim(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule, noise: Noise, *, eta: float
) -> Iterator[Step]:
    """First order, one evaluation a step, noise drawn for every step but one that ends at sigma 0."""
    intervals, x = _intervals(times), _working(x)
    for index, (t, s) in enumerate(intervals, 1):
        now, then = level(schedule, t), level(schedule, s)
        x0 = denoise(x, t, s).x0.to(x.dtype)
        if then.sigma > 0:
            x = steps.ddim(x, x0, noise.draw(x.shape[1:], like=x), now, then, eta=eta)
        else:
            x = steps.euler(x, x0, now, then)
        yield Step("", index, len(intervals), float(s), x, x0)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    noise: Noise,
    *,
    variance: FixedVariance = "small",
) -> Iterator[Step]:
    """Ancestral, one evaluation a step, noise drawn for every step but one that ends at sigma 0.

    variance: which fixed one, for networks that do not learn it; a learned one always goes first.
    """
    intervals, x = _intervals(times), _working(x)
    fixed = {"small": steps.small_variance, "large": steps.large_variance}[variance]
    for index, (t, s) in enumerate(intervals, 1):
        now, then = level(schedule, t), level(schedule, s)
        x0, learned = denoise(x, t, s)
        x0 = x0.to(x.dtype)
        if then.sigma > 0:
            # The learned fraction is an exponent's weight: half precision would show in the noise.
            spread = (
                fixed(now, then)
                if learned is None
                else steps.learned_variance(learned.to(x.dtype), now, then)
            )
            x = steps.ddpm(x, x0, noise.draw(x.shape[1:], like=x), now, then, variance=spread)
        else:
            x = steps.euler(x, x0, now, then)
        yield Step("", index, len(intervals), float(s), x, x0)


def invert(denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule) -> Iterator[Step]:
    """Back up the way of `euler`: to the x from which its steps along `times` come to the x that is given.

    x: [B, ...] at the last of times. Its sigma is above 0: a step to 0 forgets the noise, so begin with alpha times a
    picture at the time before. times: falling, as samplers take them. The steps go up: the last one holds the noise.
    Raises ValueError for times that do not fall or end at 0.
    Each step is guessed by DDIM inversion (Song et al. 2021, arXiv:2010.02502, section 4.3), then solved by iteration
    (Pan et al. 2023, arXiv:2309.04907), which `_relaxation` keeps from overshooting.
    """
    intervals, x = _intervals(times), _working(x)
    if schedule.sigma(intervals[-1][1]) == 0:
        raise ValueError("a step to sigma 0 cannot be inverted: leave the last time out")
    for index, (t, s) in enumerate(reversed(intervals), 1):
        now, then, x_s = level(schedule, t), level(schedule, s), x
        x = steps.euler(x_s, denoise(x_s, s, s).x0.to(x.dtype), then, now)
        relaxation = _relaxation(now, then).to(x.dtype)
        for _ in range(INVERSION_ROUNDS):
            x0 = denoise(x, t, s).x0.to(x.dtype)
            x = x - relaxation * (steps.euler(x, x0, now, then) - x_s)
        yield Step("", index, len(intervals), float(t), x, x0)


def _relaxation(now: Level, then: Level) -> Tensor:
    """What part of its error an iterate of `invert` is corrected by.

    x_s changes with x_t by sigma_s / sigma_t where x0 stays, by alpha_s / alpha_t where x0 follows x_t: the harmonic
    middle serves both ends alike. In pure noise there is nothing to follow.
    """
    kept, followed = then.sigma / now.sigma, then.alpha / now.alpha
    return 1 / kept if now.alpha == 0 else 2 / (kept + followed)


# Keyed by types.SAMPLERS, in their order.
SAMPLERS: Mapping[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": euler,
    "euler": euler,
    "heun": heun,
    "dpmpp-2m": dpmpp_2m,
}


def sampler(
    name: str, *, eta: float | None = None, variance: FixedVariance = "small", resample: int | None = None
) -> Sampler:
    """The sampler of that name; one that ends in Scheduler is a class of diffusers (`interop.foreign_sampler`).

    eta: for "ddim", 0 (also None) deterministic to 1 ancestral. variance: for "ddpm", see there. resample: how often
    each step is taken (`resampled`), None once. Raises UsageError for an unknown name, for an eta that the named
    sampler would ignore, and to take steps again for one that is not of `types.ONE_STEP`.
    """
    check_sampler(name, eta=eta, resample=resample)
    if resample is not None and resample > 1:
        return resampled(sampler(name, eta=eta, variance=variance), resample)
    if name.endswith("Scheduler"):
        from mmgen.schedulers.interop import foreign_sampler  # imports diffusers, which takes seconds

        return foreign_sampler(name)
    if eta:
        return partial(ddim, eta=eta)
    return partial(ddpm, variance=variance) if name == "ddpm" else SAMPLERS[name]


def resampled(once: Sampler, count: int) -> Sampler:
    """Every step taken `count` times, noised again in between: what is drawn has time to fit what stays.

    once: a sampler whose steps do not depend on those before. Source: Lugmayr et al. 2022 (RePaint), arXiv:2201.09865,
    section 4.2, with a jump length of one step.
    """

    def run(
        denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule, noise: Noise
    ) -> Iterator[Step]:
        intervals = _intervals(times)
        for index, (t, s) in enumerate(intervals, 1):
            for left in reversed(range(count)):
                (step,) = once(denoise, x, torch.stack([t, s]), schedule, noise)
                x = step.x
                if left:
                    drawn = noise.draw(x.shape[1:], like=x)
                    x = steps.noised(x, drawn, level(schedule, s), level(schedule, t))
            yield step._replace(index=index, total=len(intervals))

    return run


def _intervals(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(t, s) of every step, 0-dim float64. Raises ValueError unless times fall strictly and there are two or more."""
    times = times.detach().to(device="cpu", dtype=torch.float64)
    if times.dim() != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(
            f"times must be two or more numbers, each less than the one before, got {times.tolist()}"
        )
    return list(pairwise(times))


def _working(x: Tensor) -> Tensor:
    # Half precision loses more in the sum of many steps than any network costs.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
