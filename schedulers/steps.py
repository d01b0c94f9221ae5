"""One-step equations, each with its source. Pure functions from x_t at `now` to x_s at `then`, a less noisy level.

x_t, x0, noise: [B, ...] of one dtype, float32 in use. Coefficients are computed in float64 and are 0-dim, so that they
meet the pictures only in the last multiplication. All hold where alpha is 0 at `now` and where sigma is 0 at `then`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmgen.schedulers.schedules import NoiseSchedule

# Below this alpha / sigma a level counts as pure noise: the axis sigma / alpha has become too long to average over.
PURE_NOISE = 1e-3


class Level(NamedTuple):
    """How noisy: x = alpha x0 + sigma eps. Both 0-dim float64."""

    alpha: Tensor
    sigma: Tensor

    @property
    def log_snr(self) -> Tensor:
        """2 log(alpha / sigma): -inf at pure noise, inf at data."""
        return 2 * (self.alpha.log() - self.sigma.log())


def level(schedule: NoiseSchedule, t: Tensor) -> Level:
    """The level at time t: 0-dim."""
    return Level(schedule.alpha(t), schedule.sigma(t))


def euler(x_t: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """Keep the eps that x_t and x0 imply: x_s = alpha_s x0 + sigma_s eps.

    It is the Euler step in sigma / alpha (Karras et al. 2022, arXiv:2206.00364, algorithm 1), in flow time (Liu et al.
    2022, arXiv:2209.03003), DDIM with eta 0 (Song et al. 2021, arXiv:2010.02502, equation 12) and first-order
    DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095, equation 9): the same line.
    """
    ratio = then.sigma / now.sigma
    return ratio * x_t + (then.alpha - now.alpha * ratio) * x0


def heun(x_t: Tensor, x0_t: Tensor, x_s: Tensor, x0_s: Tensor, now: Level, then: Level) -> Tensor:
    """Correct the Euler step x_s by what the network says there, x0_s: the mean of both slopes.

    In x / scale against sigma / scale the slope is (x - scale x0) / sigma, exactly eps where scale is alpha. From pure
    noise that axis is infinite: scale is then alpha + sigma, which is flow time. Needs sigma > 0 at `then`.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1, lines 6-8.
    """
    at_noise = bool(now.alpha <= PURE_NOISE * now.sigma)
    scale_t, scale_s = (n.alpha + n.sigma if at_noise else n.alpha for n in (now, then))
    slope_t = (x_t - scale_t * x0_t) / now.sigma
    slope_s = (x_s - scale_s * x0_s) / then.sigma
    return x_s + (then.sigma - now.sigma * scale_s / scale_t) / 2 * (slope_s - slope_t)


def dpmpp_2m(x_t: Tensor, x0: Tensor, x0_before: Tensor, before: Level, now: Level, then: Level) -> Tensor:
    """The Euler step with x0 extrapolated, in log-SNR, to the middle of the step from this and the previous x0.

    Where the previous level was pure noise or the next is data, a step is infinitely long in log-SNR and first-order;
    so is one behind a step of no length.
    Source: Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, algorithm 2.
    """
    if then.sigma == 0 or before.alpha == 0 or before == now:
        return euler(x_t, x0, now, then)
    step, step_before = then.log_snr - now.log_snr, now.log_snr - before.log_snr
    return euler(x_t, x0 + step / (2 * step_before) * (x0 - x0_before), now, then)


def ddim(x_t: Tensor, x0: Tensor, noise: Tensor, now: Level, then: Level, *, eta: float) -> Tensor:
    """`euler` with a part of eps replaced by fresh noise of the same size. eta: 0 none, 1 as ancestral sampling.

    Source: Song et al. 2021 (DDIM), arXiv:2010.02502, equations 12 and 16.
    """
    fresh = eta**2 * small_variance(now, then)
    # At eta 1 and tiny steps the two can differ by a rounding error below 0.
    kept = (then.sigma**2 - fresh).clamp(min=0).sqrt() / now.sigma
    return kept * x_t + (then.alpha - now.alpha * kept) * x0 + fresh.sqrt() * noise


def ddpm(x_t: Tensor, x0: Tensor, noise: Tensor, now: Level, then: Level, *, variance: Tensor) -> Tensor:
    """Draw from the posterior of x_s with that variance, 0-dim or [B, ...]. It is `ddim` at eta 1 for the small one.

    Source: Ho et al. 2020 (DDPM), arXiv:2006.11239, equations 6 and 7, for any alpha and sigma.
    """
    kept = now.alpha / then.alpha * (then.sigma / now.sigma) ** 2
    # The noise is scaled in the pictures' dtype: a float64 variance of one number per pixel would promote them.
    std = variance.sqrt().to(x_t.dtype) if variance.dim() else variance.sqrt()
    return kept * x_t + (then.alpha - now.alpha * kept) * x0 + std * noise


def noised(x_s: Tensor, noise: Tensor, then: Level, now: Level) -> Tensor:
    """The way back: x_t drawn from x_s, by the noise that the step from `now` to `then` took away.

    Source: Lugmayr et al. 2022 (RePaint), arXiv:2201.09865, algorithm 1, line 10.
    """
    return now.alpha / then.alpha * x_s + large_variance(now, then).sqrt() * noise


def small_variance(now: Level, then: Level) -> Tensor:
    """The posterior's own variance, right for pictures known exactly. 0-dim. DDPM, section 3.2 (beta tilde)."""
    return (then.sigma / now.sigma) ** 2 * large_variance(now, then)


def large_variance(now: Level, then: Level) -> Tensor:
    """The variance of the noising step itself, right for pictures that are noise. 0-dim. DDPM, section 3.2 (beta)."""
    return now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2


def learned_variance(fraction: Tensor, now: Level, then: Level) -> Tensor:
    """Between the small (-1) and the large (1) variance, in their logarithms. Shape of `fraction`.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15. The small one is 0 at data: floored at 1e-20.
    """
    low = small_variance(now, then).clamp(min=1e-20).log()
    high = large_variance(now, then).clamp(min=1e-20).log()
    return torch.exp(low + (fraction + 1) / 2 * (high - low))
