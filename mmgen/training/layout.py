"""Lessons beside the losses: networks must tell what stands where in which colour, as the scenes know it.

The squared error of a noisy picture hardly says which word belongs to which object, and a contrastive loss not where it
stands. So linear readings of the decoder's lowest features, of the unfolded image embedding and of what the prior
predicts are taught by the scenes themselves, and left behind when training ends. Source of the idea: Yu et al. 2024
(REPA), arXiv:2410.06940, who align a denoiser's features with those of a pretrained image encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.nn.blocks import channel_norm

WEIGHT = 0.05  # of the decoder's features, beside the diffusion loss
EMBED_WEIGHT = 2.0  # of the image embedding, beside the contrastive loss
PRIOR_WEIGHT = 0.3  # of the prior's prediction, beside the diffusion loss
LESSON_CELLS = 8  # on a side, of the map that the prior's prediction is unfolded into


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
        told = layout[:, :, *_centres(features.shape[-2:], layout)].long()
        losses, right = [], told[:, 0] > 0
        count = right.sum()
        scores = self.read(channel_norm(features)).float().split(self.sizes, dim=1)
        for score, truth in zip(scores, told.unbind(1), strict=True):
            losses.append(F.cross_entropy(score, truth, reduction="none").flatten(1).mean(1))
            right = right & (score.detach().argmax(1) == truth)
        return torch.stack(losses).sum(0), right.sum() / count


class MapHead(nn.Module):
    """What an unfolded image embedding must tell: what stands where, and in which colours.

    channels: of the map. sizes: as in `LayoutHead`; empty: nobody knows the layouts.
    """

    def __init__(self, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layout = LayoutHead(channels, sizes) if sizes else None
        self.colours = nn.Conv2d(channels, 3, 1)

    def forward(
        self, cells: Tensor, pixels: Tensor, layout: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """cells: [B, C, g, g], the map; pixels: [B, 3, H, W]; layout: [B, P, G, G], as in `LayoutHead`.

        Returns the loss [B], the squared error of the mean colours of all cells and the cross entropy of what stands in
        them, and figures for the log.
        """
        blurred = F.interpolate(pixels, cells.shape[-2:], mode="area")
        loss = (self.colours(cells).float() - blurred).square().flatten(1).mean(1)
        figures = {"colours": loss.mean().item()}
        if self.layout is not None and layout is not None:
            wrong, right = self.layout(cells, layout)
            loss = loss + wrong
            figures |= {"layout": wrong.mean().item(), "layout_right": right.item()}
        return loss, figures


def _centres(cells: Sequence[int], layout: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the layout that lie in the middle of so many cells."""
    rows, columns = (
        ((torch.arange(count, device=layout.device) + 0.5) * side / count).long()
        for count, side in zip(cells, layout.shape[-2:], strict=True)
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
