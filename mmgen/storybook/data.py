"""Training pictures without end: a batch depends on (seed, index) alone, so that a resumed run continues exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmgen.storybook.captions import Split
from mmgen.storybook.catalogue import COLOURS, SPRITES
from mmgen.storybook.render import render, render_window
from mmgen.storybook.scene import GRID, Scene
from mmgen.storybook.scenes import sample_scene

if TYPE_CHECKING:
    from mmgen.storybook.sprites import SpriteBank

Images = NDArray[np.uint8]
CROPS_PER_SCENE = 4  # drawing a large sprite costs more than learning from a crop of it
CROP_GRID = 4  # what is enlarged four times begins at a whole pixel
_CROPS = 0x63726F70  # a stream of its own beside the scenes'
_SPRITES = tuple(SPRITES)
_COLOURS = (None, *COLOURS)
LAYOUT_SIZES = (1 + len(_SPRITES), 1 + len(_COLOURS))


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


def layouts(batch_scenes: list[Scene]) -> Images:
    """What stands in each cell of 1/32: [count, 2, 32, 32], the sprite and its colour; both 0 where nothing stands.

    Sprites and colours are numbered from 1 in the order of the catalogue, a sprite's own colours first: numbers for one
    training run, never to be kept.
    """
    drawn = np.zeros((len(batch_scenes), 2, GRID, GRID), np.uint8)
    for layout, scene in zip(drawn, batch_scenes, strict=True):
        for item in scene.items:
            box = (slice(item.top, item.top + item.size), slice(item.left, item.left + item.size))
            layout[0][box] = 1 + _SPRITES.index(item.sprite)
            layout[1][box] = 1 + _COLOURS.index(item.colour)
    return drawn


def crops(seed: int, index: int, count: int, side: int, bank: SpriteBank, px: int) -> Images:
    """Crops [count, 3, side, side] of pictures of `px`, aligned to squares of 4 pixels; half are centred on an item.

    Raises ValueError if side exceeds px or is no multiple of 4, or px no multiple of 32.
    """
    if not 0 < side <= px or side % CROP_GRID:
        raise ValueError(
            f"crops of {side} px do not fit pictures of {px} px, or are no multiple of {CROP_GRID}"
        )
    rng = np.random.default_rng((seed, index, _CROPS))
    drawn = np.empty((count, side, side, 3), np.uint8)
    for i, image in enumerate(drawn):
        if i % CROPS_PER_SCENE == 0:
            scene = sample_scene(rng)
        image[:] = render_window(scene, px, _window(rng, scene, px, side), bank)
    return np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))


def _window(rng: np.random.Generator, scene: Scene, px: int, side: int) -> tuple[int, int, int]:
    """(left, top, side), aligned to the low-resolution pixels."""
    room = px - side
    x, y = rng.random() * room, rng.random() * room
    if rng.random() < 0.5:
        item = scene.items[int(rng.random() * len(scene.items))]
        x, y = (c * px - side * (0.25 + 0.5 * rng.random()) for c in item.centre)
    left, top = (int(min(max(v, 0), room)) // CROP_GRID * CROP_GRID for v in (x, y))
    return left, top, side
