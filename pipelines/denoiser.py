"""A network, guidance and a threshold as one function from noise to x0: the first thing that needs them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmgen import guidance, threshold
from mmgen.conditioning import Conditioning, concat
from mmgen.errors import NonFiniteError
from mmgen.schedulers.prediction import Prediction, PredictionKind, to_x0
from mmgen.schedulers.samplers import Denoise
from mmgen.schedulers.schedules import FlowSchedule, NoiseSchedule, flow_time
from mmgen.types import StageSettings

FLOW = FlowSchedule()  # what our own networks are trained on


@torch.no_grad()
def make_denoiser(
    network: Any,
    cond: Conditioning,
    other: Conditioning | None,
    settings: StageSettings,
    *,
    stage: str,
    schedule: NoiseSchedule = FLOW,
    kind: PredictionKind = "x0",
) -> Denoise:
    """Denoise with classifier-free guidance, both halves in one batched call.

    network: with `prepare` and `dtype`. schedule, kind: what it is trained on, and what it predicts.
    cond: what is asked for. other: what guidance leads away from, the null or a negative prompt, with the same fields;
    None: no guidance. A variance that the network has learned is what it says to cond.
    Raises NonFiniteError when a network's output is not finite.
    """
    count = _rows_of(cond)
    scale = 1.0 if settings.guidance_scale is None or other is None else settings.guidance_scale
    interval = settings.guidance_interval
    parallel = 1.0 if settings.guidance_parallel is None else settings.guidance_parallel
    mix = guidance.make(scale, settings.guidance_rescale or 0.0, parallel, settings.guidance_limit)
    limit = threshold.make(
        "none" if settings.threshold is None else settings.threshold, settings.threshold_cap
    )
    both = cond if scale == 1 or other is None else concat([cond, other])
    prepared_both = network.prepare(both)
    prepared = prepared_both if scale == 1 else rows(prepared_both, count)

    @torch.no_grad()
    def denoise(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        x = x_t.to(network.dtype)
        at = t.to(device=x.device, dtype=torch.float32).expand(count)
        time, level = float(flow_time(schedule, t)), (schedule.alpha(t), schedule.sigma(t))
        if guidance.is_active(scale, interval, time):
            out = network(torch.cat([x, x]), torch.cat([at, at]), prepared_both).float()
            found, away = (to_x0(half, x_t, *level, kind) for half in (out[:count], out[count:]))
            found = found._replace(x0=mix(found.x0, away.x0))
        else:
            found = to_x0(network(x, at, prepared).float(), x_t, *level, kind)
        try:
            return found._replace(x0=limit(found.x0))
        except NonFiniteError as error:
            raise NonFiniteError(f"stage {stage!r} at time {time:.3f}: {error}") from None

    return denoise


def rows(prepared: Any, count: int) -> Any:
    """The first `count` rows of every tensor in a nested tuple or list."""
    if isinstance(prepared, Tensor):
        return prepared[:count]
    if isinstance(prepared, tuple) and hasattr(prepared, "_fields"):
        return type(prepared)(*(rows(part, count) for part in prepared))
    if isinstance(prepared, list | tuple):
        return type(prepared)(rows(part, count) for part in prepared)
    return prepared


def _rows_of(cond: Conditioning) -> int:
    for value in (cond.text, cond.pooled, cond.image_embed, cond.low_res):
        if value is not None:
            return len(value)
    raise ValueError("the conditioning is empty")
