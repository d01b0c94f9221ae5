"""Every sprite in every colour and size, laid over a picture at every place at once.

The picture is looked at in 32 px, where a place is one number: the error saved by the template there. Fourier
transforms give the whole map of one template for little more than the cost of reading it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmgen.evaluation.pixels import Pixels
from mmgen.storybook.catalogue import SPRITES
from mmgen.storybook.sprites import SpriteBank

PX = 32
PAD = 2
SIDE = PX + 2 * PAD  # 36: its only prime factors are 2 and 3
SIZES = (8, 9, 10, 11, 12, 14, 16, 18, 20, 22)
# A template is worth a closer look where it saves this much squared error, and this share of what there is to explain.
GAIN, SHARE = 0.25, 0.35
REACH = 0.35
Floats = NDArray[np.float32]


class Candidate(NamedTuple):
    """A template at a place of the picture, all in pixels of 32. gain: the squared error that it saves."""

    sprite: str
    size: int
    left: int
    top: int
    gain: float


@dataclass(frozen=True)
class Pool:
    """The templates and places worth a closer look, one per row. at: sprite, size, top and left as indices, [4, N].

    errors: [N], the template's squared error less `powers`, the picture's own power under it.
    """

    at: NDArray[np.intp]
    errors: Floats
    powers: Floats

    def without(self, near: NDArray[np.bool_]) -> Pool:
        """The rows where `near` [N] is false."""
        return Pool(self.at[:, ~near], self.errors[~near], self.powers[~near])


class Templates:
    """The bank of templates as spectra: looks (sprite and colour) x sizes."""

    def __init__(self, bank: SpriteBank, sprites: Iterable[str]) -> None:
        self.names = list(sprites)
        looks = [(s, c) for s in self.names for c in (None, *sorted(SPRITES[s].colours))]
        self._owner = torch.tensor([self.names.index(s) for s, _ in looks])
        paints, norms = [], []
        for sprite, colour in looks:
            drawn = [bank.rgba(sprite, colour, size) for size in SIZES]
            paints.append(torch.fft.rfft2(torch.stack([_canvas(d[..., :3]) for d in drawn])).conj())
            norms.append([_power(d) for d in drawn])
        alphas = [[_canvas(bank.rgba(s, None, size)[..., 3:])[0] for size in SIZES] for s in self.names]
        self._paint = torch.stack(paints).resolve_conj()  # [looks, sizes, 3, SIDE, SIDE / 2 + 1]
        self._alpha = torch.fft.rfft2(torch.stack([torch.stack(a) for a in alphas])).conj().resolve_conj()
        self._wall = torch.tensor(norms)[..., None, None] + torch.stack([_outside(size) for size in SIZES])

    def pool(self, picture: Pixels, scene: Pixels) -> Pool:
        """All templates and places that save enough over the explanation `scene`. Both: [32, 32, 3] in [0, 1]."""
        spectrum = torch.fft.rfft2(_padded(picture))
        product = (self._paint * spectrum).sum(dim=2)
        errors = torch.fft.irfft2(product, s=(SIDE, SIDE)).mul_(-2).add_(self._wall)
        power = self._under((picture**2).sum(axis=-1))
        rest = self._under(((picture - scene) ** 2).sum(axis=-1))
        # gain = rest - (errors + power); kept where it is large, and a large part of the rest
        least = torch.maximum(SHARE * rest, torch.tensor(GAIN))
        kept = torch.nonzero(errors < (rest - power - least)[self._owner])
        values = errors[tuple(kept.T)].numpy()
        kept[:, 0] = self._owner[kept[:, 0]]
        return Pool(kept.T.numpy(), values, power[tuple(kept.T)].numpy())

    def gains(self, pool: Pool, picture: Pixels, scene: Pixels) -> tuple[Floats, Floats]:
        """What every row of the pool saves over the explanation `scene`, [N]; and of how much, [N]."""
        rest = self._under(((picture - scene) ** 2).sum(axis=-1)).numpy()[tuple(pool.at)]
        return rest - pool.powers - pool.errors, rest

    def rivals(self, pool: Pool, gains: Floats, rest: Floats, share: float) -> list[Candidate]:
        """The row that saves most, and most of what is there; then the best row of each other sprite near it.

        share: rivals save at least this part of what the first saves. None where nothing saves enough.
        """
        worth = np.where(gains >= GAIN, gains * gains / np.maximum(rest, GAIN), 0)
        best = int(worth.argmax())
        if worth[best] <= 0:
            return []
        first = self._candidate(pool, gains, best)
        rows = np.flatnonzero(self._near(pool, first) & (gains >= share * gains[best]))
        order = np.concatenate([[best], rows[np.argsort(-gains[rows], kind="stable")]])
        _, kept = np.unique(pool.at[0, order], return_index=True)
        return [self._candidate(pool, gains, int(order[i])) for i in np.sort(kept)]

    def like(self, pool: Pool, centre: Candidate) -> NDArray[np.bool_]:
        """Which rows lie where `centre` lies and are about as large, [N]."""
        ratio = np.asarray(SIZES)[pool.at[1]] / centre.size
        return self._near(pool, centre) & (ratio > 0.8) & (ratio < 1.25)

    def _near(self, pool: Pool, centre: Candidate) -> NDArray[np.bool_]:
        """Which rows have their centres nearer to that of `centre` than REACH of its size, [N]."""
        _, sizes, tops, lefts = pool.at
        half = np.asarray(SIZES)[sizes] / 2 - PAD
        x = np.abs(lefts + half - centre.left - centre.size / 2)
        y = np.abs(tops + half - centre.top - centre.size / 2)
        return np.asarray(np.maximum(x, y) <= REACH * centre.size)

    def _under(self, power: Pixels) -> Tensor:
        """The sum of `power` [32, 32] under every silhouette: [sprites, sizes, SIDE, SIDE]."""
        spectrum = torch.fft.rfft2(_padded(power[..., None])[0])
        return torch.fft.irfft2(self._alpha * spectrum, s=(SIDE, SIDE))

    def _candidate(self, pool: Pool, gains: Floats, row: int) -> Candidate:
        sprite, size, top, left = (int(i) for i in pool.at[:, row])
        return Candidate(self.names[sprite], SIZES[size], left - PAD, top - PAD, float(gains[row]))


def _power(drawn: Pixels) -> float:
    """The sum of the squared colour under the silhouette. drawn: [S, S, 4] premultiplied."""
    return float(((drawn[..., :3] ** 2).sum(axis=-1) / np.maximum(drawn[..., 3], 1e-4)).sum())


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
