"""Thresholding: keep a predicted x0 inside [-1, 1], where pictures are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmgen.errors import NonFiniteError

Threshold = Callable[[Tensor], Tensor]


def make(threshold: float | Literal["clip", "none"], cap: float | None = None) -> Threshold:
    """The threshold that a stage's settings describe: a percentile, "clip" or "none".

    Every one of them raises NonFiniteError for NaN or infinity. cap: of the percentile's scale; the others ignore it.
    """
    if threshold == "none":
        return unchanged
    if threshold == "clip":
        return static_clip
    _check(threshold, cap)
    return partial(dynamic_threshold, percentile=threshold, cap=cap)


def unchanged(x0: Tensor) -> Tensor:
    """x0 itself. Raises NonFiniteError if it is not finite."""
    if not bool(torch.isfinite(x0).all()):
        bad = [i for i, picture in enumerate(x0) if not bool(torch.isfinite(picture).all())]
        pictures = ", ".join(str(i + 1) for i in bad[:8])
        raise NonFiniteError(
            f"the network returned NaN or infinity for picture {pictures} of {len(x0)}: "
            "use --dtype float32, or check the weights"
        )
    return x0


def static_clip(x0: Tensor) -> Tensor:
    """Clip to [-1, 1]. Raises NonFiniteError. Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3."""
    return unchanged(x0).clamp(-1, 1)


def dynamic_threshold(x0: Tensor, percentile: float = 0.995, cap: float | None = None) -> Tensor:
    """Scale each picture back into [-1, 1] by its own percentile.

    x0: [B, C, H, W], unbounded. Returns the same shape in [-1, 1]; pictures already inside are unchanged.
    cap: upper bound on the scale, at least 1, None = no bound. Raises ValueError if percentile is not in (0, 1] or cap
    is below 1, NonFiniteError for NaN or infinity.
    Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, section 2.3.
    """
    _check(percentile, cap)
    # Half precision has steps of 0.1 % at 1, coarser than the percentile means.
    wide = unchanged(x0).float() if x0.dtype in (torch.float16, torch.bfloat16) else unchanged(x0)
    scale = _percentile(wide.abs().flatten(1), percentile).clamp(min=1, max=cap)
    scale = scale.reshape(-1, *(1 for _ in x0.shape[1:]))
    return (torch.clamp(wide, -scale, scale) / scale).to(x0.dtype)


def _percentile(values: Tensor, percentile: float) -> Tensor:
    """[B, N] -> [B], as torch.quantile interpolates it, by selection: sorting a 1024-px picture takes 0.3 s.

    Not by kthvalue, which MPS does not have in every torch that mmgen runs with.
    """
    position = percentile * (values.shape[1] - 1)
    below = math.floor(position)
    largest = values.topk(values.shape[1] - below, dim=1).values
    if position == below:
        return largest[:, -1]
    return torch.lerp(largest[:, -1], largest[:, -2], position - below)


def _check(percentile: float, cap: float | None) -> None:
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile is {percentile}: it must lie in (0, 1]")
    if cap is not None and not cap >= 1:
        raise ValueError(f"cap is {cap}: a bound on the scale is at least 1")
