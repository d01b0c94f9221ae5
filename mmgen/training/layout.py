"""A second lesson beside diffusion: the decoder's lowest features must tell what stands where, and in which colour.

The squared error of a noisy picture hardly says which word belongs to which object: once both are visible the text is
not needed, and before that they are a few pixels of a blur. A linear reading of the features, taught by the scenes
themselves, says it at every noise level; it is left behind when training ends. Source of the idea: Yu et al. 2024
(REPA), arXiv:2410.06940, who align a denoiser's features with those of a pretrained image encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.nn.blocks import channel_norm

WEIGHT = 0.05  # of the lesson beside the diffusion loss


class LayoutHead(nn.Module):
    """sizes: how many values each property has, nothing included (kind, colour)."""

    def __init__(self, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.read = nn.Conv2d(channels, sum(sizes), 1)

    def forward(self, features: Tensor, layout: Tensor) -> tuple[Tensor, Tensor]:
        """features: [B, C, g, g]. layout: [B, P, G, G] whole numbers, 0 where nothing stands, g <= G.

        Returns the cross entropy [B], summed over properties, and the share of the cells with something in them whose
        every property is read right, NaN if there is no such cell.
        """
        told = layout[:, :, *_centres(features, layout)].long()
        losses, right = [], told[:, 0] > 0
        count = right.sum()
        scores = self.read(channel_norm(features)).float().split(self.sizes, dim=1)
        for score, truth in zip(scores, told.unbind(1), strict=True):
            losses.append(F.cross_entropy(score, truth, reduction="none").flatten(1).mean(1))
            right = right & (score.detach().argmax(1) == truth)
        return torch.stack(losses).sum(0), right.sum() / count


def _centres(features: Tensor, layout: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the layout that lie in the middle of the features' cells."""
    rows, columns = (
        ((torch.arange(cells, device=layout.device) + 0.5) * side / cells).long()
        for cells, side in zip(features.shape[-2:], layout.shape[-2:], strict=True)
    )
    return rows[:, None], columns[None]


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which every output of the module is added while the block runs."""
    kept: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        hook.remove()
