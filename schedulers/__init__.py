"""Noise schedules, what a network's output means, one-step equations and samplers, also those of diffusers."""

from typing import Any

from mmgen.schedulers.prediction import Prediction, PredictionKind, add_noise, eps_from_x0, to_x0
from mmgen.schedulers.samplers import SAMPLERS, Denoise, Sampler, Step, sampler
from mmgen.schedulers.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    KarrasSchedule,
    NoiseSchedule,
    flow_time,
    schedule,
)

# Loaded when first used: they import diffusers, which takes seconds.
_INTEROP = ("MmgenScheduler", "adapted", "foreign_sampler", "foreign_samplers")
__all__ = [
    *_INTEROP,
    "SAMPLERS",
    "CosineSchedule",
    "Denoise",
    "DiscreteSchedule",
    "FlowSchedule",
    "KarrasSchedule",
    "NoiseSchedule",
    "Prediction",
    "PredictionKind",
    "Sampler",
    "Step",
    "add_noise",
    "eps_from_x0",
    "flow_time",
    "sampler",
    "schedule",
    "to_x0",
]


def __getattr__(name: str) -> Any:
    if name not in _INTEROP:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmgen.schedulers import interop

    return getattr(interop, name)
