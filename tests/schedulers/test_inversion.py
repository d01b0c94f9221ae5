"""Back up the sampler's way, on a Gaussian, where every denoiser is exact: pictures of mean m and deviation c."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mmgen.noise import Noise
from mmgen.schedulers import samplers
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import euler, invert
from mmgen.schedulers.schedules import CosineSchedule, FlowSchedule, NoiseSchedule

MEAN = 0.3
# of one pixel each, from nearly known to nearly unknown
STD = torch.tensor([[0.05, 0.2, 0.5, 2.0, 20.0]], dtype=torch.float64)
X = MEAN + STD * torch.tensor([[-1.0, 0.5, 0.0, 1.5, -0.7]], dtype=torch.float64)
SCHEDULES = {"flow": FlowSchedule(), "shifted": FlowSchedule(3.0), "cosine": CosineSchedule()}


def exact(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor, Tensor], Prediction]:
    def denoise(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return Prediction(MEAN + gain * (x_t - alpha * MEAN))

    return denoise


def noise_of(schedule: NoiseSchedule, times: Tensor, x: Tensor = X) -> Tensor:
    *_, last = invert(exact(schedule), schedule.alpha(times[-1]) * x, times, schedule)
    return last.x


def drawn(schedule: NoiseSchedule, times: Tensor, x: Tensor) -> Tensor:
    *_, last = euler(exact(schedule), x, times, schedule, Noise((0,)))
    return last.x


@pytest.mark.parametrize("cut", [(4, 1, 3), (4, 0, 4), (32, 0, 32)], ids=["one step", "few", "many"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_sampler_comes_back_to_where_the_inversion_began(name: str, cut: tuple[int, int, int]) -> None:
    schedule, (steps, first, end) = SCHEDULES[name], cut
    times = schedule.times(steps)[first:end]
    back = drawn(schedule, times, noise_of(schedule, times))
    assert ((back - schedule.alpha(times[-1]) * X).abs() / X.abs()).max() < 2e-3


def test_every_round_leaves_a_third_of_the_error_or_less(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, errors = FlowSchedule(), []
    for rounds in range(1, 6):
        monkeypatch.setattr(samplers, "INVERSION_ROUNDS", rounds)
        times = schedule.times(32)[:-1]
        errors.append(
            (drawn(schedule, times, noise_of(schedule, times)) - schedule.alpha(times[-1]) * X).abs()
        )
    # of the pixel that is hardest
    worst = [float(error.max()) for error in errors]
    assert all(after < 0.36 * before for before, after in pairwise(worst))


def test_fine_steps_find_the_noise_of_the_closed_form() -> None:
    # x / std stays what it was: the probability flow of a Gaussian
    schedule = FlowSchedule()
    times = schedule.times(512)[:-1]
    start = schedule.alpha(times[-1]) * X
    spread = (schedule.alpha(times[-1]) ** 2 * STD**2 + schedule.sigma(times[-1]) ** 2).sqrt()
    expected = (start - schedule.alpha(times[-1]) * MEAN) / spread
    torch.testing.assert_close(noise_of(schedule, times), expected, rtol=0.03, atol=0.01)


def test_a_picture_comes_back_but_for_what_the_last_step_takes_for_noise() -> None:
    schedule = FlowSchedule()
    times = schedule.times(32)
    picture = drawn(schedule, times, noise_of(schedule, times[:-1]))
    alpha, sigma = schedule.alpha(times[-2]), schedule.sigma(times[-2])
    lost = sigma**2 / (alpha**2 * STD**2 + sigma**2)
    torch.testing.assert_close(picture, X - lost * (X - MEAN), rtol=0, atol=1e-3)
    assert lost[0, 2] < 0.005  # of a pixel with the deviation of real ones


def test_steps_go_up_and_hold_working_precision() -> None:
    schedule = FlowSchedule()
    times = schedule.times(4)[:-1]
    steps = list(invert(exact(schedule), X.half(), times, schedule))
    assert [(step.index, step.total, step.t) for step in steps] == [(1, 3, 0.5), (2, 3, 0.75), (3, 3, 1.0)]
    assert steps[-1].x.dtype == steps[-1].x0.dtype == torch.float32


def test_times_that_cannot_be_gone_back() -> None:
    schedule = FlowSchedule()
    with pytest.raises(ValueError, match="a step to sigma 0 cannot be inverted: leave the last time out"):
        next(invert(exact(schedule), X, schedule.times(4), schedule))
    for times in ([0.5], [0.2, 0.5]):
        with pytest.raises(ValueError, match="times must be two or more numbers, each less"):
            next(invert(exact(schedule), X, torch.tensor(times), schedule))
