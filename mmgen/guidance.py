"""Guidance: how what the network sees with the prompt and what it sees without are put together.

t is the flow time of the step (`mmgen.schedulers.flow_time`): 0 is data, 1 is noise, whatever the schedule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Guidance = Callable[[Tensor, Tensor, float], Tensor]
"""(x0_cond, x0_uncond, t) -> x0; both [B, ...] of one shape."""
Interval = tuple[float, float]


def classifier_free(scale: float) -> Guidance:
    """Away from the unconditional picture by `scale`: 0 is unconditional, 1 exactly conditional, more is stronger.

    The mixture's weights sum to 1, so mixing x0 is mixing eps or v. Source: Ho & Salimans 2022, arXiv:2207.12598.
    """

    def guide(x0_cond: Tensor, x0_uncond: Tensor, _t: float) -> Tensor:
        return x0_cond if scale == 1 else x0_uncond + scale * (x0_cond - x0_uncond)

    return guide


def rescaled(guidance: Guidance, amount: float) -> Guidance:
    """Pull each picture's standard deviation back to the conditional one. amount: 0 not at all, 1 wholly.

    Source: Lin et al. 2023, arXiv:2305.08891, equations 15 and 16, here on x0.
    """

    def guide(x0_cond: Tensor, x0_uncond: Tensor, t: float) -> Tensor:
        x0 = guidance(x0_cond, x0_uncond, t)
        ratio = _std(x0_cond) / _std(x0).clamp(min=torch.finfo(x0.dtype).tiny)
        # Written so that it is exactly 1 where the two deviations agree.
        return x0 * (1 + amount * (ratio - 1))

    return guide


def within(guidance: Guidance, interval: Interval) -> Guidance:
    """Guide between the two times, both included; elsewhere follow the conditional picture.

    Source: Kynkäänniemi et al. 2024, arXiv:2404.07724.
    """

    def guide(x0_cond: Tensor, x0_uncond: Tensor, t: float) -> Tensor:
        return guidance(x0_cond, x0_uncond, t) if interval[0] <= t <= interval[1] else x0_cond

    return guide


def is_active(scale: float, interval: Interval | None, t: float) -> bool:
    """Whether guidance changes anything at t; where it does not, the network need not be asked without the prompt.

    interval None: all times.
    """
    return scale != 1 and (interval is None or interval[0] <= t <= interval[1])


def make(scale: float, interval: Interval | None = None, rescale: float = 0.0) -> Guidance:
    """The guidance that a stage's settings describe. interval None: all times."""
    guidance = classifier_free(scale)
    if rescale:
        guidance = rescaled(guidance, rescale)
    return guidance if interval is None else within(guidance, interval)


def _std(x: Tensor) -> Tensor:
    return x.std(dim=list(range(1, x.dim())), keepdim=True)
