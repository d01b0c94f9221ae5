"""Noise schedules, what a network's output means, one-step equations and samplers."""

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

__all__ = [
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
