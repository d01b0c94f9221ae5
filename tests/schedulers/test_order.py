"""Orders of convergence on a Gaussian, whose probability-flow ODE has a solution in closed form.

With pictures of mean m and deviation c: x_s = alpha_s m + (x_t - alpha_t m) std_s / std_t, where std^2 is
alpha^2 c^2 + sigma^2.
The runs stop short of data: a last first-order step would hide the second order.
"""

import math

import pytest
import torch
from torch import Tensor

from mmgen.noise import Noise
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import sampler
from mmgen.schedulers.schedules import CosineSchedule, FlowSchedule, KarrasSchedule, NoiseSchedule

MEAN, STD = 0.3, 0.5
FINEST = 512
EVEN = torch.linspace(0, 1, FINEST + 1, dtype=torch.float64)
# From, to, of the times; Karras' in their own spacing, sigma^(1/7).
RUNS: dict[str, tuple[NoiseSchedule, Tensor]] = {
    "flow": (FlowSchedule(), 0.9 - 0.8 * EVEN),
    "flow from pure noise": (FlowSchedule(), 1 - 0.9 * EVEN),
    "flow shifted": (FlowSchedule(3.0), FlowSchedule(3.0).times(FINEST) * 0.9 + 0.05),
    "cosine": (CosineSchedule(), 0.9 - 0.8 * EVEN),
    "cosine shifted, from pure noise": (CosineSchedule(2.0), 1 - 0.9 * EVEN),
    "karras": (KarrasSchedule(), (10 ** (1 / 7) + EVEN * (0.05 ** (1 / 7) - 10 ** (1 / 7))) ** 7),
}


def spread(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    return (schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2).sqrt()


def error(name: str, schedule: NoiseSchedule, times: Tensor) -> float:
    def denoise(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        alpha = schedule.alpha(t)
        gain = alpha * STD**2 / spread(schedule, t) ** 2
        return Prediction(MEAN + gain * (x_t - alpha * MEAN))

    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9) * schedule.sigma(times[0])
    *_, last = sampler(name)(denoise, x, times, schedule, Noise((0,)))
    ratio = spread(schedule, times[-1]) / spread(schedule, times[0])
    exact = schedule.alpha(times[-1]) * MEAN + (x - schedule.alpha(times[0]) * MEAN) * ratio
    assert last.x.dtype == torch.float64
    return float((last.x - exact).abs().max())


def slope(name: str, schedule: NoiseSchedule, times: Tensor) -> float:
    """Of log error against log step size, between 256 and 512 steps."""
    return math.log2(error(name, schedule, times[::2]) / error(name, schedule, times))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp-2m", 2)])
@pytest.mark.parametrize("path", RUNS)
def test_order_of_convergence(name, order, path):
    assert slope(name, *RUNS[path]) == pytest.approx(order, abs=0.1)
