"""Guidance: how what the network sees with the prompt and what it sees without are put together, and when."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Guidance = Callable[[Tensor, Tensor], Tensor]
"""(x0_cond, x0_uncond) -> x0; both [B, ...] of one shape."""
Interval = tuple[float, float]


def classifier_free(scale: float) -> Guidance:
    """Away from the unconditional picture by `scale`: 0 is unconditional, 1 exactly conditional, more is stronger.

    The mixture's weights sum to 1, so mixing x0 is mixing eps or v. Source: Ho & Salimans 2022, arXiv:2207.12598.
    """

    def guide(x0_cond: Tensor, x0_uncond: Tensor) -> Tensor:
        return x0_cond if scale == 1 else x0_uncond + scale * (x0_cond - x0_uncond)

    return guide


def projected(scale: float, parallel: float, limit: float | None = None) -> Guidance:
    """Classifier-free guidance whose part along the conditional picture, which only burns its colours, is scaled.

    parallel: 1 keeps that part, 0 leaves it out. limit: the largest root mean square of what the two sides differ by,
    in units of a picture in [-1, 1]; None: no limit.
    Source: Sadat et al. 2024 (adaptive projected guidance), arXiv:2410.02416, section 4, without its momentum.
    """

    def guide(x0_cond: Tensor, x0_uncond: Tensor) -> Tensor:
        difference, along = (x0_cond - x0_uncond).float(), x0_cond.float()
        if limit is not None:
            difference = difference * (limit / _rms(difference).clamp(min=limit))
        share = (difference * along).flatten(1).sum(1) / along.square().flatten(1).sum(1).clamp(min=1e-12)
        share = share.reshape(-1, *[1] * (along.ndim - 1))
        update = difference - (1 - parallel) * share * along
        return (along + (scale - 1) * update).to(x0_cond.dtype)

    return guide


def rescaled(guidance: Guidance, amount: float) -> Guidance:
    """Pull each picture's standard deviation back to the conditional one. amount: 0 not at all, 1 wholly.

    Source: Lin et al. 2023, arXiv:2305.08891, equations 15 and 16, here on x0.
    """

    def guide(x0_cond: Tensor, x0_uncond: Tensor) -> Tensor:
        x0 = guidance(x0_cond, x0_uncond)
        ratio = _std(x0_cond) / _std(x0).clamp(min=torch.finfo(x0.dtype).tiny)
        # Written so that it is exactly 1 where the two deviations agree.
        return x0 * (1 + amount * (ratio - 1))

    return guide


def is_active(scale: float, interval: Interval | None, t: float) -> bool:
    """Whether guidance changes anything at t; where it does not, the network need not be asked without the prompt.

    interval: between these two times, both included; None: all times. t: the flow time of the step
    (`mmgen.schedulers.flow_time`), 0 is data, 1 is noise, whatever the schedule.
    Source: Kynkäänniemi et al. 2024, arXiv:2404.07724.
    """
    return scale != 1 and (interval is None or interval[0] <= t <= interval[1])


def make(scale: float, rescale: float = 0.0, parallel: float = 1.0, limit: float | None = None) -> Guidance:
    """The guidance that a stage's settings describe, at the times when it acts (`is_active`)."""
    plain = scale == 1 or (parallel == 1 and limit is None)
    guidance = classifier_free(scale) if plain else projected(scale, parallel, limit)
    return rescaled(guidance, rescale) if rescale else guidance


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=list(range(1, x.dim())), keepdim=True).sqrt()


def _std(x: Tensor) -> Tensor:
    return x.std(dim=list(range(1, x.dim())), keepdim=True)
