"""Every sprite in every colour and size, laid over a picture at every place at once.

The picture is looked at in 32 px, where a place is one number: the error saved by the template there. Fourier transforms
give the whole map of one template for little more than the cost of reading it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmgen.evaluation.pixels import Pixels
from mmgen.storybook.catalogue import SPRITES
from mmgen.storybook.sprites import SpriteBank

PX = 32
PAD = 2
SIDE = PX + 2 * PAD  # 36: its only prime factors are 2 and 3
SIZES = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22)


class Candidate(NamedTuple):
    """A template at a place of the picture, all in pixels of 32. gain: the squared error that it saves."""

    sprite: str
    colour: str | None
    size: int
    left: int
    top: int
    gain: float


class Templates:
    """The bank of templates as spectra. kinds: (sprite, colour) of every look; looks x sizes templates in all."""

    def __init__(self, bank: SpriteBank) -> None:
        self.kinds = [(s, c) for s in SPRITES for c in (None, *sorted(SPRITES[s].colours))]
        self.names = list(SPRITES)
        self._owner = torch.tensor([self.names.index(s) for s, _ in self.kinds])
        paints, norms, alphas = [], [], []
        for sprite, colour in self.kinds:
            drawn = [bank.rgba(sprite, colour, size) for size in SIZES]
            paints.append(torch.stack([_canvas(d[..., :3]) for d in drawn]))
            norms.append([float(((d[..., :3] ** 2).sum(-1) / np.maximum(d[..., 3], 1e-4)).sum()) for d in drawn])
        for sprite in self.names:
            alphas.append(torch.stack([_canvas(bank.rgba(sprite, None, size)[..., 3:])[0] for size in SIZES]))
        self._paint = torch.fft.rfft2(torch.stack(paints)).conj()  # [looks, sizes, 3, SIDE, SIDE / 2 + 1]
        self._alpha = torch.fft.rfft2(torch.stack(alphas)).conj()  # [sprites, sizes, SIDE, SIDE / 2 + 1]
        self._norm = torch.tensor(norms)[..., None, None]
        self._outside = torch.stack([_outside(size) for size in SIZES])

    def errors(self, picture: Pixels) -> Tensor:
        """Squared error of every template at every place less the picture's own power under it.

        picture: [32, 32, 3] in [0, 1]. Returns [looks, sizes, SIDE, SIDE], places by the upper left corner in the
        padded picture, infinite where the template would leave it.
        """
        spectrum = torch.fft.rfft2(_padded(picture))
        product = (self._paint * spectrum).sum(dim=2)
        return self._norm - 2 * torch.fft.irfft2(product, s=(SIDE, SIDE)) + self._outside

    def under(self, power: Pixels) -> Tensor:
        """The sum of `power` [32, 32] under every silhouette: [sprites, sizes, SIDE, SIDE]."""
        spectrum = torch.fft.rfft2(_padded(power[..., None])[0])
        return torch.fft.irfft2(self._alpha * spectrum, s=(SIDE, SIDE))

    def gains(self, errors: Tensor, picture: Pixels, scene: Pixels) -> Tensor:
        """What every template would save over the explanation `scene`, as `errors` is shaped; -inf outside."""
        saved = self.under((((picture - scene) ** 2) - picture**2).sum(axis=-1))
        return saved[self._owner] - errors

    def rivals(self, gains: Tensor, share: float, reach: float) -> list[Candidate]:
        """The best template of each sprite around the best of all, best first; none if nothing is gained.

        share: rivals gain at least this part of the best. reach: how far their centres lie apart at most, in its size.
        """
        best = self.candidate(int(gains.argmax()), gains)
        if best.gain <= 0:
            return []
        found = []
        near = gains + self._far(best, reach)
        peaks = near.flatten(1).max(dim=1)
        for sprite in range(len(self.names)):
            looks = torch.nonzero(self._owner == sprite).flatten()
            look = int(looks[peaks.values[looks].argmax()])
            candidate = self.candidate(look * near[0].numel() + int(peaks.indices[look]), near)
            if candidate.gain >= share * best.gain:
                found.append(candidate)
        return sorted(found, key=lambda c: -c.gain)

    def candidate(self, index: int, gains: Tensor) -> Candidate:
        """The template and place behind a flat index into `gains`."""
        look, size, top, left = (int(i) for i in np.unravel_index(index, tuple(gains.shape)))
        sprite, colour = self.kinds[look]
        return Candidate(sprite, colour, SIZES[size], left - PAD, top - PAD, float(gains[look, size, top, left]))

    def _far(self, centre: Candidate, reach: float) -> Tensor:
        """[sizes, SIDE, SIDE]: 0 where a template's centre lies near, -inf elsewhere."""
        sizes = torch.tensor(SIZES)[:, None] / 2
        x = torch.arange(SIDE) - PAD + sizes - (centre.left + centre.size / 2)
        y = torch.arange(SIDE) - PAD + sizes - (centre.top + centre.size / 2)
        far = torch.maximum(x.abs()[:, None, :], y.abs()[:, :, None]) > reach * centre.size
        return torch.where(far, -torch.inf, 0.0)


def _canvas(drawn: Pixels) -> Tensor:
    """[C, SIDE, SIDE] with the drawing [S, S, C] in its upper left corner."""
    canvas = torch.zeros(drawn.shape[-1], SIDE, SIDE)
    canvas[:, : drawn.shape[0], : drawn.shape[1]] = torch.tensor(drawn).permute(2, 0, 1)
    return canvas


def _padded(picture: Pixels) -> Tensor:
    """[C, SIDE, SIDE]: the picture [32, 32, C] with its edges repeated outwards."""
    wide = np.pad(picture, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
    return torch.from_numpy(np.ascontiguousarray(wide.transpose(2, 0, 1), dtype=np.float32))


def _outside(size: int) -> Tensor:
    """[SIDE, SIDE]: infinite where a template of this size would wrap around."""
    wall = torch.full((SIDE, SIDE), torch.inf)
    wall[: SIDE - size + 1, : SIDE - size + 1] = 0
    return wall
