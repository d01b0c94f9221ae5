"""An exponential moving average of a network's weights, in float32."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """module: an averaged copy of `source`, for sampling. The decay warms up: (1 + n) / (10 + n), at most `decay`."""

    def __init__(self, source: nn.Module, decay: float = 0.9995) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the average towards the source's present weights."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = [*self.module.parameters()]
        values: list[Tensor] = [*source.parameters()]
        torch._foreach_lerp_(averages, values, weight)
