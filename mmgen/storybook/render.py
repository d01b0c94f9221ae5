"""Draws a scene at any resolution: an analytic background, soft shadows, and sprites on the 1/32 grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from mmgen.storybook.backgrounds import draw_background
from mmgen.storybook.scene import GRID, Item, Light, Place, Scene
from mmgen.storybook.scenes import horizon
from mmgen.storybook.sprites import ByteCache, area_resize

if TYPE_CHECKING:
    from mmgen.storybook.sprites import SpriteBank

Window = tuple[int, int, int]  # left, top, side in pixels
_BACKGROUNDS = ByteCache(96 * 2**20)
_SHADOWS = ByteCache(32 * 2**20)
_LARGEST_KEPT = 256  # px; larger backgrounds are drawn anew
_FINE_PX = 256  # smaller backgrounds are area means of this one: stars are smaller than their pixels
SHADOW_ALPHA = 0.25


def render(scene: Scene, px: int, bank: SpriteBank) -> NDArray[np.uint8]:
    """The whole scene, [px, px, 3]. px: a multiple of 32. Raises ValueError for another size."""
    return render_window(scene, px, (0, 0, px), bank)


def render_window(scene: Scene, px: int, window: Window, bank: SpriteBank) -> NDArray[np.uint8]:
    """The part of the scene at `px` that the window shows, [side, side, 3], without drawing the rest."""
    if px < GRID or px % GRID:
        raise ValueError(f"px is {px}: scenes are drawn at multiples of {GRID} px")
    left, top, side = window
    if not (0 <= left <= px - side and 0 <= top <= px - side):
        raise ValueError(f"the window {window} does not lie inside a picture of {px} px")
    canvas = _background(scene, px, window).astype(np.float32)
    unit = px // GRID
    for item in scene.items:
        if _stands(scene, item):
            _cast_shadow(canvas, item, unit, window, bank.width(item.sprite))
    for item in scene.items:
        _paste(canvas, item, unit, window, bank)
    canvas += 0.5
    return canvas.astype(np.uint8)


def background(
    place: Place, light: Light, backdrop: str | None, variant: int, px: int, window: Window
) -> NDArray[np.uint8]:
    """The empty scene, [side, side, 3], read-only and kept for the next time."""
    key = (place, light, backdrop, variant, px, window)
    kept = _BACKGROUNDS.get(key)
    if kept is None:
        finer = _FINE_PX // px if window == (0, 0, px) and px < _FINE_PX and _FINE_PX % px == 0 else 1
        left, top, side = window
        fine = (left * finer, top * finer, side * finer)
        drawn = draw_background(place, light, backdrop, variant, px * finer, fine)
        kept = (area_resize(drawn, side) * 255 + 0.5).astype(np.uint8)
        if px <= _LARGEST_KEPT and window == (0, 0, px):
            _BACKGROUNDS.put(key, kept)
    return cast(NDArray[np.uint8], kept)


def _background(scene: Scene, px: int, window: Window) -> NDArray[np.uint8]:
    left, top, side = window
    if px > _LARGEST_KEPT:
        return background(scene.place, scene.light, scene.backdrop, scene.variant, px, window)
    whole = background(scene.place, scene.light, scene.backdrop, scene.variant, px, (0, 0, px))
    return whole[top : top + side, left : left + side]


def _stands(scene: Scene, item: Item) -> bool:
    """Whether the item throws a shadow: its base is on solid ground."""
    if scene.place in ("plain", "ocean"):
        return False
    return item.top + item.size >= horizon(scene.place, scene.variant) + 2


def _overlap(
    left: int, top: int, width: int, height: int, window: Window
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Where a box of pixels and the window meet: (rows, columns) in the window and in the box; None if nowhere."""
    x, y, side = window
    x0, x1 = max(left, x), min(left + width, x + side)
    y0, y1 = max(top, y), min(top + height, y + side)
    if x0 >= x1 or y0 >= y1:
        return None
    return (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)), (
        slice(y0 - top, y1 - top),
        slice(x0 - left, x1 - left),
    )


def _shadow(width: int, height: int) -> NDArray[np.float32]:
    """[height, width, 1]: what remains of the ground's light under a soft ellipse."""
    key = (width, height)
    kept = _SHADOWS.get(key)
    if kept is None:
        y = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None]
        x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :]
        depth = np.clip((1 - np.hypot(x, y)) / 0.6, 0, 1)
        kept = (1 - SHADOW_ALPHA * depth * depth * (3 - 2 * depth)).astype(np.float32)[..., None]
        _SHADOWS.put(key, kept)
    return cast(NDArray[np.float32], kept)


def _cast_shadow(canvas: NDArray[np.float32], item: Item, unit: int, window: Window, wide: float) -> None:
    """wide: the sprite's share of its box's width; the ellipse is a little wider than the sprite."""
    half = max(1, round(item.size * wide * 0.6))
    tall = max(1, round(item.size * 0.1))
    centre, base = item.left * unit + item.size * unit // 2, (item.top + item.size) * unit
    box = (centre - half * unit, base - tall * unit, 2 * half * unit, 2 * tall * unit)
    if met := _overlap(*box, window):
        canvas[met[0]] *= _shadow(box[2], box[3])[met[1]]


def _paste(canvas: NDArray[np.float32], item: Item, unit: int, window: Window, bank: SpriteBank) -> None:
    size = item.size * unit
    if met := _overlap(item.left * unit, item.top * unit, size, size, window):
        sprite = bank.rgba(item.sprite, item.colour, size)[met[1]]
        region = canvas[met[0]]
        region *= 1 - sprite[..., 3:]
        region += sprite[..., :3] * 255
