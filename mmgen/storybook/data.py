"""Training pictures without end: a batch depends on (seed, index) alone, so that a resumed run continues exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmgen.storybook.captions import Split
from mmgen.storybook.render import render, render_window
from mmgen.storybook.scene import Scene
from mmgen.storybook.scenes import sample_scene

if TYPE_CHECKING:
    from mmgen.storybook.sprites import SpriteBank

Images = NDArray[np.uint8]
CROPS_PER_SCENE = 4  # drawing a large sprite costs more than learning from a crop of it
_CROPS = 0x63726F70  # a stream of its own beside the scenes'


def scenes(seed: int, index: int, count: int, split: Split = "train") -> list[Scene]:
    """The scenes of one batch. seed, index: whole numbers from 0."""
    rng = np.random.default_rng((seed, index))
    return [sample_scene(rng, split) for _ in range(count)]


def draw(batch_scenes: list[Scene], px: int, bank: SpriteBank) -> Images:
    """[count, 3, px, px]."""
    pixels = np.empty((len(batch_scenes), px, px, 3), np.uint8)
    for image, scene in zip(pixels, batch_scenes, strict=True):
        image[:] = render(scene, px, bank)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def batch(seed: int, index: int, count: int, px: int, bank: SpriteBank) -> tuple[Images, list[str]]:
    """Pictures [count, 3, px, px] and their captions; equal arguments, equal bytes."""
    drawn = scenes(seed, index, count)
    return draw(drawn, px, bank), [scene.caption for scene in drawn]


def crop_pair(
    seed: int, index: int, count: int, n: int, bank: SpriteBank, px: int = 256, factor: int = 4
) -> tuple[Images, Images]:
    """Aligned crops for super-resolution, (hi, lo), out of pictures of `px`.

    hi: [count, 3, factor n, factor n]. lo: [count, 3, n, n], the area mean of hi, rounded.
    Half of the crops are centred on an item, where the edges are.
    Raises ValueError if factor * n exceeds px or px is not a multiple of 32.
    """
    side = factor * n
    if not 0 < side <= px:
        raise ValueError(f"crops of {side} px do not fit pictures of {px} px: lower n or factor")
    rng = np.random.default_rng((seed, index, _CROPS))
    hi = np.empty((count, side, side, 3), np.uint8)
    for i, image in enumerate(hi):
        if i % CROPS_PER_SCENE == 0:
            scene = sample_scene(rng)
        image[:] = render_window(scene, px, _window(rng, scene, px, side, factor), bank)
    mean = hi.reshape(count, n, factor, n, factor, 3).mean(axis=(2, 4), dtype=np.float32)
    lo = (mean + 0.5).astype(np.uint8)
    return np.ascontiguousarray(hi.transpose(0, 3, 1, 2)), np.ascontiguousarray(lo.transpose(0, 3, 1, 2))


def _window(rng: np.random.Generator, scene: Scene, px: int, side: int, factor: int) -> tuple[int, int, int]:
    """(left, top, side), aligned to the low-resolution pixels."""
    room = px - side
    x, y = rng.random() * room, rng.random() * room
    if rng.random() < 0.5:
        item = scene.items[int(rng.random() * len(scene.items))]
        x, y = (c * px - side * (0.25 + 0.5 * rng.random()) for c in item.centre)
    left, top = (int(min(max(v, 0), room)) // factor * factor for v in (x, y))
    return left, top, side
