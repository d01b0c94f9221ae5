"""What the diffusion stages share: the run of a sampler, settings that must be there, and guidance's two sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.errors import UsageError
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import FLOW
from mmgen.schedulers.samplers import Denoise, Sampler, Step, sampler
from mmgen.schedulers.schedules import NoiseSchedule, flow_time, preset_times
from mmgen.types import StageSettings

T = TypeVar("T")


def resolved(value: T | None, name: str, stage: str) -> T:
    """`value`, the setting `name` of `stage`. Raises UsageError if it was left open."""
    if value is None:
        raise UsageError(
            f"stage {stage!r} was given no {name}: complete its settings with "
            "`settings.with_defaults(stage.defaults)`, as a request does"
        )
    return value


def diffuse(
    denoise: Denoise,
    x: Tensor,
    settings: StageSettings,
    noise: Noise,
    *,
    stage: str,
    begin: tuple[Tensor, float] | None = None,
    by: Sampler | None = None,
    schedule: NoiseSchedule = FLOW,
) -> Iterator[Step]:
    """From noise x down the schedule, by the sampler and in the steps that the settings say; at least one step.

    x: [B, ...], standard normal. stage: the name that the steps carry; their t is flow time. begin: (x0, t), as x and a
    time of the schedule: what to begin from instead of noise alone, and how noisy; only the steps from t on are taken.
    by: instead of the sampler that the settings name. Raises UsageError without steps or sampler.
    """
    steps = resolved(settings.steps, "steps", stage)
    run = by or sampler(
        resolved(settings.sampler, "sampler", stage), eta=settings.eta, resample=settings.resample
    )
    preset = settings.timesteps
    times = schedule.times(steps) if preset is None else preset_times(preset, schedule)
    if begin is not None:
        x0, t = begin
        times = torch.cat([times.new_tensor([t]), times[times < t]])
        x = (schedule.alpha(times[0]) * x0 + schedule.sigma(times[0]) * x).to(x.dtype)
    for step in run(denoise, x, times, schedule, noise):
        reached = flow_time(schedule, times.new_tensor(step.t))
        yield step._replace(stage=stage, t=float(reached))


def guided_pair(text: Conditioning, negative: Conditioning | None) -> tuple[Conditioning, Conditioning]:
    """What is asked for, and what guidance leads away from: the negative prompt, or the learned null."""
    kept = torch.zeros(
        len(given(text.text, "text")), dtype=torch.bool, device=given(text.text, "text").device
    )
    cond = Conditioning(text=text.text, text_mask=text.text_mask, pooled=text.pooled, drop_text=kept)
    other, drop = (text, ~kept) if negative is None else (negative, kept)
    return cond, Conditioning(text=other.text, text_mask=other.text_mask, pooled=other.pooled, drop_text=drop)
