"""Randomness: one generator per image and stage, so that a picture never depends on its neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """Standard normal noise for a batch of pictures, one stream per picture.

    seeds: one per picture, each with its own of `generators`. stream: the stage's name; other stages with the same
    seeds draw other noise. Drawn in float32 on the CPU whatever the device, because other dtypes draw other numbers,
    then cast and moved.
    """

    def __init__(self, seeds: Sequence[int], stream: str = "") -> None:
        self.seeds = tuple(seeds)
        self.generators = [torch.Generator().manual_seed(_derive(seed, stream)) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def draw(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """The next noise of every picture: [B, *shape], on the device and in the dtype of `like` (float32, CPU)."""
        drawn = torch.stack([torch.randn(*shape, generator=g) for g in self.generators])
        return drawn if like is None else drawn.to(device=like.device, dtype=like.dtype)


def _derive(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
