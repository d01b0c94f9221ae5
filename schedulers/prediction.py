"""What a network's output means: from eps, v, x0, flow velocity or learned-range output to x0, and back to eps.

alpha, sigma: float64, either 0-dim (one time for the batch, as samplers have it) or [B] (as training has it).
v and flow are solved for x0 without dividing by alpha or sigma, so they hold at both ends of every schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from mmgen.errors import ModelError

PredictionKind = Literal["eps", "v", "x0", "flow", "learned-range"]
_FROM_DIFFUSERS: Mapping[str, PredictionKind] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}


class Prediction(NamedTuple):
    """x0: [B, C, ...]. variance: the same shape, where between the smallest (-1) and the largest (1) posterior
    log-variance the network puts it; None for networks that do not say."""

    x0: Tensor
    variance: Tensor | None = None


def to_x0(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, kind: PredictionKind) -> Prediction:
    """What `output` says of the finished picture.

    output: as x_t, [B, C, ...]; with "learned-range" [B, 2C, ...], eps first. Raises ValueError for "eps" and
    "learned-range" where alpha is 0: noise alone says nothing of the picture, and for an unknown kind.
    v = alpha eps - sigma x0: Salimans & Ho 2022, arXiv:2202.00512. flow = eps - x0: Liu et al. 2022, arXiv:2209.03003.
    learned-range: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15.
    """
    a, s = match(alpha, x_t), match(sigma, x_t)
    if kind == "x0":
        return Prediction(output)
    if kind == "v":
        return Prediction((a * x_t - s * output) / (a * a + s * s))
    if kind == "flow":
        return Prediction((x_t - s * output) / (a + s))
    if kind not in ("eps", "learned-range"):
        raise ValueError(f"no kind of prediction {kind!r}: choose eps, v, x0, flow or learned-range")
    if bool((alpha == 0).any()):
        raise ValueError("an eps prediction gives no x0 where alpha is 0: begin below pure noise")
    eps, variance = output.chunk(2, dim=1) if kind == "learned-range" else (output, None)
    return Prediction((x_t - s * eps) / a, variance)


def eps_from_x0(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise in x_t if x0 is right: [B, C, ...]. Zero where sigma is 0, as there is none left."""
    clean = match(sigma, x_t) == 0
    eps = (x_t - match(alpha, x_t) * x0) / match(sigma, x_t).masked_fill(clean, 1)
    return eps.masked_fill(clean.to(eps.device), 0)


def add_noise(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps."""
    return match(alpha, x0) * x0 + match(sigma, x0) * eps


def match(coefficient: Tensor, x: Tensor) -> Tensor:
    """`coefficient`, 0-dim or [B], shaped to multiply x: [B, ...]. Raises ValueError for any other shape."""
    if coefficient.dim() == 0:
        return coefficient
    if coefficient.shape != x.shape[:1]:
        raise ValueError(
            f"one number per picture is needed: {list(coefficient.shape)} for a batch {list(x.shape)}"
        )
    # Unlike a 0-dim tensor, one of float64 with a shape would turn x into float64.
    coefficient = coefficient.to(device=x.device, dtype=x.dtype)
    return coefficient.reshape(-1, *(1 for _ in x.shape[1:]))


def from_diffusers_config(config: Mapping[str, Any]) -> PredictionKind:
    """What the network beside a diffusers scheduler_config.json predicts.

    Raises ModelError if the config does not say, or says something unknown.
    """
    name, variance = str(config.get("prediction_type")), str(config.get("variance_type"))
    if name not in _FROM_DIFFUSERS:
        known = ", ".join(_FROM_DIFFUSERS)
        raise ModelError(f"scheduler config has prediction_type {name!r}: write in one of {known}")
    if variance.startswith("learned"):
        if (name, variance) != ("epsilon", "learned_range"):
            raise ModelError(f"variance_type {variance!r} with prediction_type {name!r} is not supported")
        return "learned-range"
    return _FROM_DIFFUSERS[name]
