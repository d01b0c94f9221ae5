"""Pictures larger than a network sees at once: overlapping squares whose answers are blended at every step.

Every square's x0 is mixed before the sampler moves on, so that neighbours agree while they are drawn and no seam has to
be hidden afterwards. Source: Bar-Tal et al. 2023 (MultiDiffusion), arXiv:2302.08113, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Box = tuple[slice, slice]
"""Rows and columns of a square."""


def squares(height: int, width: int, side: int, overlap: int) -> list[Box]:
    """Squares that cover an area, neighbours sharing at least `overlap`, evenly spread.

    An area smaller than `side` one way is one strip that way. Raises ValueError unless 0 <= overlap < side.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"an overlap of {overlap} does not fit squares of {side}")
    return [
        (slice(top, min(top + side, height)), slice(left, min(left + side, width)))
        for top in _starts(height, side, overlap)
        for left in _starts(width, side, overlap)
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    last = max(0, length - side)
    gaps = -(-last // (side - overlap))
    return [round(i * last / gaps) for i in range(gaps)] + [last]


def blended(draw: Callable[[Box], Tensor], boxes: list[Box], like: Tensor) -> Tensor:
    """One picture of all squares, each fading towards its edges where another one lies beside it.

    draw: a box -> [B, C, h, w]. like: a tensor [B, C, H, W] of the whole's shape. Every pixel must lie in a box.
    """
    if len(boxes) == 1:
        return draw(boxes[0])
    total, weights = torch.zeros_like(like), like.new_zeros(like.shape[-2:])
    for box in boxes:
        weight = _fade(box, like)
        total[(..., *box)] += weight * draw(box)
        weights[box] += weight
    return total / weights


def _fade(box: Box, like: Tensor) -> Tensor:
    """[h, w]: 1 in the middle, falling linearly to nearly 0 at the edges that are not the whole's."""
    rows, columns = (_ramp(part, whole, like) for part, whole in zip(box, like.shape[-2:], strict=True))
    return rows[:, None] * columns[None]


def _ramp(part: slice, whole: int, like: Tensor) -> Tensor:
    length = part.stop - part.start
    place = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    before = place if part.start > 0 else torch.full_like(place, torch.inf)
    after = length - place if part.stop < whole else torch.full_like(place, torch.inf)
    return torch.minimum(before, after).clamp(max=length / 2) / (length / 2)
