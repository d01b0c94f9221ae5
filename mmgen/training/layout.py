"""Two lessons beside diffusion: the decoder's features, and its words, must tell what stands where in which colour.

The squared error of a noisy picture hardly says which word belongs to which object: once both are visible the text is
not needed, and before that they are a few pixels of a blur. A linear reading of the lowest features, taught by the
scenes themselves, says it at every noise level. That alone did not teach who is above whom in 700,000 pictures: nearly
all show it through the noise. So the adapted text by itself must tell it too. Both readings are left behind when
training ends. Source of the idea: Yu et al. 2024 (REPA), arXiv:2410.06940, who align a denoiser's features with those
of a pretrained image encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.attention import attention
from mmgen.nn.blocks import channel_norm

WEIGHT = 0.05  # of the features' lesson beside the diffusion loss
TEXT_WEIGHT = 0.1  # of the words'
TEXT_CELLS = 8  # on a side: as coarse as the text can know
TEXT_HEADS = 4


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


class TextLayoutHead(nn.Module):
    """Asks the words for one kind at a time, so that who stands where is not drowned by what is there.

    width: of the adapted tokens. sizes: as in `LayoutHead`, the kind first.
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        kinds, *properties = sizes
        self.sizes = (TEXT_CELLS**2, *properties)
        self.query = nn.Embedding(kinds, width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.read = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor, mask: Tensor, layout: Tensor) -> Tensor:
        """tokens: [B, L, width]; mask: [B, L]. layout: [B, P, G, G] whole numbers, 0 where nothing stands.

        For every kind that a picture shows: in which cells it stands, and its other properties. Returns the cross
        entropy [N], one for each picture and kind, in the order of the pictures; N may be 0.
        """
        rows, columns = _centres((TEXT_CELLS, TEXT_CELLS), layout)
        kinds, *properties = layout[:, :, rows, columns].long().flatten(2).unbind(1)
        where = F.one_hot(kinds, self.query.num_embeddings).transpose(1, 2).float()
        picture, kind = where[:, 1:].any(2).nonzero(as_tuple=True)
        cells = where[picture, kind + 1]
        scores, *told = self.read(self._ask(tokens, mask, picture, kind + 1)).float().split(self.sizes, dim=1)
        # a mean over cells would hear little of where things stand beside their colour
        loss = F.binary_cross_entropy_with_logits(scores, cells, reduction="none").sum(1) / TEXT_CELLS
        for score, values in zip(told, properties, strict=True):
            truth = (values[picture] * cells.long()).amax(1)
            loss = loss + F.cross_entropy(score, truth, reduction="none")
        return loss

    def _ask(self, tokens: Tensor, mask: Tensor, picture: Tensor, kind: Tensor) -> Tensor:
        """[N, width]: what the words of a picture say of a kind."""
        q, k, v = (
            x.unflatten(-1, (TEXT_HEADS, -1)).transpose(1, 2)
            for x in (self.query(kind)[:, None], *self.keys_values(tokens)[picture].chunk(2, dim=-1))
        )
        return attention(q.to(k.dtype), k, v, mask[picture]).flatten(1)


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
