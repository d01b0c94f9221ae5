"""Sprites as pixels: an icon set's SVG bodies, painted in named colours and resized without pale edges."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmgen.errors import ModelError
from mmgen.storybook.catalogue import COLOURS, SPRITES, Colour, Sprite

__all__ = ["COLOURS", "SPRITES", "ByteCache", "SpriteBank", "area_resize", "default_icons_path", "recolour"]
Pixels = NDArray[np.float32]
DRAWN_PX = 768  # at least the largest sprite of a 1024-px picture (22/32 of 1024 is 704)
_ICON_PX = 1024  # the whole icon, margins included: resvg fails on icons cut by their view box
_MIDDLE_PX = 192  # small sizes are resized from here: 16 times fewer pixels to read
_SMALL_PX = 96


class ByteCache:
    """Arrays by key, the least recently used dropped once they hold more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._arrays: OrderedDict[object, NDArray[np.generic]] = OrderedDict()

    def get(self, key: object) -> NDArray[np.generic] | None:
        """The array stored under `key`, or None."""
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
        return array

    def put(self, key: object, array: NDArray[np.generic]) -> None:
        """Store `array`, which must not be written to afterwards."""
        array.setflags(write=False)
        replaced = self._arrays.pop(key, None)
        self._held += array.nbytes - (0 if replaced is None else replaced.nbytes)
        self._arrays[key] = array
        while self._held > self._limit and len(self._arrays) > 1:
            self._held -= self._arrays.popitem(last=False)[1].nbytes


def default_icons_path() -> Path:
    """Where the icon set is looked for: the environment variable MMGEN_SPRITES, else the cache folder in the home."""
    return Path(
        os.environ.get("MMGEN_SPRITES") or Path.home() / ".cache" / "mmgen" / "fluent-emoji" / "icons.json"
    )


def _area_weights(source: int, target: int) -> Pixels:
    """[target, source]: the share of every source pixel in every target pixel; rows sum to 1."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * (target / source)).astype(np.float32)


def area_resize(image: Pixels, px: int) -> Pixels:
    """Mean over the area of every new pixel. image: [S, S, C] with px <= S. Returns [px, px, C]."""
    side, _, channels = image.shape
    if side == px:
        return image
    if side % px == 0:
        k = side // px
        return image.reshape(px, k, px, k, channels).mean(axis=(1, 3), dtype=np.float32)
    weights = _area_weights(side, px)
    rows = (weights @ image.reshape(side, side * channels)).reshape(px, side, channels)
    return np.ascontiguousarray(np.einsum("ts,rsc->rtc", weights, rows, optimize=True), dtype=np.float32)


def _to_hsl(rgb: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Hue in degrees, saturation and lightness in [0, 1], each [H, W]. rgb: [H, W, 3] in [0, 1]."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    chroma = high - low
    safe = np.where(chroma > 0, chroma, 1)
    hue = (
        np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
        * 60
    )
    lightness = (high + low) / 2
    span = 1 - np.abs(2 * lightness - 1)
    return hue, np.where(span > 1e-6, chroma / np.maximum(span, 1e-6), 0), lightness


def _from_hsl(hue: float, saturation: float, lightness: Pixels) -> Pixels:
    """[H, W, 3] in [0, 1] of one hue (degrees) and saturation at every lightness [H, W]."""
    a = saturation * np.minimum(lightness, 1 - lightness)
    channels = []
    for n in (0, 8, 4):
        k = (n + hue / 30) % 12
        channels.append(lightness - a * max(-1.0, min(k - 3, 9 - k, 1)))
    return np.stack(channels, axis=-1).astype(np.float32)


def _painted(rgb: Pixels, sprite: Sprite) -> Pixels:
    """How far paint covers each pixel, [H, W] in [0, 1]: the sprite's hues (and greys), never its darkest details."""
    hue, _, lightness = _to_hsl(rgb)
    chroma = rgb.max(axis=-1) - rgb.min(axis=-1)
    inside = np.zeros_like(lightness)
    for low, high in sprite.hues:
        if high - low >= 360:
            inside[:] = 1
            break
        centre, half = (low + (high - low) % 360 / 2) % 360, (high - low) % 360 / 2
        away = np.abs((hue - centre + 180) % 360 - 180)
        inside = np.maximum(inside, np.clip((half + 4 - away) / 8, 0, 1))
    coloured = np.clip((chroma - 0.06) / 0.08, 0, 1)
    covered = inside * coloured + (1 - coloured) * (1.0 if sprite.greys else 0.0)
    covered *= np.clip((lightness - 0.12) / 0.08, 0, 1) * np.clip(
        (sprite.lightest + 0.1 - lightness) / 0.1, 0, 1
    )
    return covered.astype(np.float32)


def recolour(rgba: Pixels, sprite: Sprite, colour: Colour) -> Pixels:
    """The sprite painted in one colour, with its own shading around that colour's lightness.

    rgba: [H, W, 4] straight alpha in [0, 1]. Returns the same shape.
    """
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    cover = _painted(rgb, sprite)
    weight = cover * alpha
    lightness = _to_hsl(rgb)[2]
    mean = float((lightness * weight).sum() / max(float(weight.sum()), 1e-6))
    shaded = np.clip(colour.lightness + (lightness - mean) * colour.contrast, 0.04, 0.98)
    paint = _from_hsl(colour.hue, colour.saturation, shaded)
    return np.concatenate([rgb + cover[..., None] * (paint - rgb), rgba[..., 3:]], axis=-1).astype(np.float32)


class SpriteBank:
    """All sprites in all colours at any size, drawn once and kept on disk and in memory.

    icons_path: an Iconify JSON file; None: `default_icons_path()`. cache: folder for drawn sprites.
    Raises ModelError if the file is missing or lacks an icon.
    """

    def __init__(self, icons_path: Path | str | None = None, cache: Path | str | None = None) -> None:
        self.icons_path = Path(icons_path) if icons_path is not None else default_icons_path()
        if not self.icons_path.is_file():
            raise ModelError(
                f"no sprites at {self.icons_path}: run 'npm pack @iconify-json/fluent-emoji@1.2.7' and "
                f"'tar xzf iconify-json-fluent-emoji-1.2.7.tgz', then put package/icons.json there "
                f"or name it in MMGEN_SPRITES"
            )
        stat = self.icons_path.stat()
        digest = hashlib.sha256(
            f"{self.icons_path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
        ).hexdigest()
        root = Path(cache) if cache is not None else Path.home() / ".cache" / "mmgen" / "sprites"
        self._folder = root / digest[:16]
        self._bodies: dict[str, tuple[str, int]] = {}
        self._small: dict[tuple[str, str | None, int], Pixels] = {}
        self._middle: dict[tuple[str, str | None], Pixels] = {}
        self._large = ByteCache(256 * 2**20)

    def rgba(self, sprite: str, colour: str | None, px: int) -> Pixels:
        """One sprite, [px, px, 4] float32 in [0, 1], premultiplied, read-only; it stands on its box's lower edge.

        colour: None for its natural colours. px: 1 to 768. Raises ValueError for a colour it cannot have.
        """
        key = (sprite, colour, px)
        known = self._small.get(key)
        return known if known is not None else self._resized(key)

    def _resized(self, key: tuple[str, str | None, int]) -> Pixels:
        sprite, colour, px = key
        if not 1 <= px <= DRAWN_PX:
            raise ValueError(f"px is {px}: sprites are drawn at 1 to {DRAWN_PX} px")
        if px <= _SMALL_PX:
            if (sprite, colour) not in self._middle:
                self._middle[sprite, colour] = area_resize(self._premultiplied(sprite, colour), _MIDDLE_PX)
            small = area_resize(self._middle[sprite, colour], px)
            small.setflags(write=False)
            self._small[key] = small
            return small
        large = self._large.get(key)
        if large is None:
            large = area_resize(self._premultiplied(sprite, colour), px)
            self._large.put(key, large)
        return large  # type: ignore[return-value]

    def width(self, sprite: str) -> float:
        """The sprite's width in its box, (0, 1]."""
        alpha = self.rgba(sprite, None, 64)[..., 3].max(axis=0)
        return float(np.count_nonzero(alpha > 0.25) / 64)

    def _premultiplied(self, sprite: str, colour: str | None) -> Pixels:
        """[768, 768, 4] premultiplied in [0, 1]."""
        rgba = self._drawn(sprite, colour)
        return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)

    def _drawn(self, sprite: str, colour: str | None) -> Pixels:
        """[768, 768, 4] straight alpha in [0, 1], from the disk cache or drawn now."""
        kind = SPRITES[sprite]
        if colour is not None and colour not in kind.colours:
            allowed = ", ".join(sorted(kind.colours)) or "its natural colours only"
            raise ValueError(f"the sprite {sprite!r} cannot be {colour!r}: choose from {allowed}")
        path = self._folder / f"{sprite}-{colour or 'natural'}-{_recipe(kind, colour)}.png"
        if path.is_file():
            with Image.open(path) as image:
                return np.asarray(image, dtype=np.float32) / np.float32(255)
        natural = None if colour is None else self._drawn(sprite, None)
        rgba = self._rasterised(kind) if natural is None else recolour(natural, kind, COLOURS[str(colour)])
        self._keep(path, rgba)
        return rgba

    def _keep(self, path: Path, rgba: Pixels) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        Image.fromarray((rgba * 255 + 0.5).astype(np.uint8)).save(partial, format="PNG", compress_level=1)
        partial.replace(path)

    def _rasterised(self, kind: Sprite) -> Pixels:
        """The icon filling a square of 768 px: centred across, standing on the lower edge."""
        drawn = _rasterise(*self._body(kind.icon), _ICON_PX)
        solid = drawn[..., 3] > 0.02
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        bottom, left, right = rows[-1] + 1, columns[0], columns[-1] + 1
        extent = max(bottom - rows[0], right - left)
        square = np.zeros((extent, extent, 4), np.float32)
        x = (extent - (right - left)) // 2
        square[extent - (bottom - rows[0]) :, x : x + right - left] = drawn[rows[0] : bottom, left:right]
        square[..., :3] *= square[..., 3:]
        resized = area_resize(square, DRAWN_PX)
        resized[..., :3] /= np.maximum(resized[..., 3:], 1e-6)
        return np.ascontiguousarray(resized[:, ::-1]) if kind.mirrored else resized

    def _body(self, icon: str) -> tuple[str, int]:
        if not self._bodies:
            try:
                icons = json.loads(self.icons_path.read_text(encoding="utf-8"))
                side = int(icons.get("width", 32))
                wanted = {kind.icon for kind in SPRITES.values()}
                self._bodies = {
                    k: (v["body"], v.get("width", side)) for k, v in icons["icons"].items() if k in wanted
                }
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{self.icons_path} is not an Iconify JSON file: {error!r}") from None
        if icon not in self._bodies:
            raise ModelError(f"{self.icons_path} has no icon {icon!r}: use @iconify-json/fluent-emoji 1.2.7")
        return self._bodies[icon]


def _recipe(kind: Sprite, colour: str | None) -> str:
    """A digest of all that a drawing follows from, so that a changed table never meets an old file."""
    paint = None if colour is None else dataclasses.astuple(COLOURS[colour])[1:]
    facts = (kind.icon, kind.mirrored, paint and (paint, kind.hues, kind.greys, kind.lightest))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def _rasterise(body: str, side: int, px: int) -> Pixels:
    """[px, px, 4] straight alpha in [0, 1] of a whole SVG body that is `side` units wide and high."""
    import resvg_py  # an optional dependency: only drawing needs it

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {side} {side}" width="{px}" height="{px}">{body}</svg>'
    )
    with Image.open(BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))) as image:
        return np.asarray(image.convert("RGBA"), dtype=np.float32) / np.float32(255)
