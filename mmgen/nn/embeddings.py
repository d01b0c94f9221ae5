"""Numbers as vectors: times, noise levels, places in the picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal(values: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of each number, at geometrically spaced frequencies.

    values: [B], usually in [0, 1]; they are scaled by 1000 first. dim: even. Returns [B, dim] float32.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, as used for time by Ho et al. 2020.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=values.device) / half)
    angles = 1000.0 * values.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ScalarEmbedding(nn.Module):
    """A number in [0, 1] as a learned function of its sinusoids: [B] -> [B, out_dim]."""

    def __init__(self, out_dim: int, *, frequencies: int = 128, zero_init: bool = False) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.inner = nn.Linear(frequencies, out_dim)
        self.outer = nn.Linear(out_dim, out_dim)
        if zero_init:
            zero_(self.outer)

    def forward(self, values: Tensor) -> Tensor:
        features = sinusoidal(values, self.frequencies).to(self.inner.weight.dtype)
        out: Tensor = self.outer(nn.functional.silu(self.inner(features)))
        return out


def with_coordinates(x: Tensor) -> Tensor:
    """Tell each pixel where it stands: [B, C, H, W] -> [B, C + 2, H, W], with x and y from -1 to 1 over the picture.

    Independent of the resolution, so that a network trained at 32 px knows left from right at 64.
    """
    batch, _, height, width = x.shape
    down = (torch.arange(height, device=x.device) + 0.5) * (2 / height) - 1
    right = (torch.arange(width, device=x.device) + 0.5) * (2 / width) - 1
    grid = torch.stack(torch.meshgrid(down, right, indexing="ij")[::-1])
    return torch.cat([x, grid.to(x.dtype).expand(batch, 2, height, width)], dim=1)


def zero_(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Set a layer to zero, so that its branch says nothing before training."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
