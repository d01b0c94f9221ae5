"""The places of the storybook world, drawn from analytic shapes, so that they are crisp at any resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mmgen.storybook.scene import GRID, Light, Place
from mmgen.storybook.scenes import horizon

Plane = NDArray[np.float32]
Rgb = tuple[float, float, float]
PASTELS: Mapping[str, Rgb] = MappingProxyType(
    {
        "orange": (0.99, 0.80, 0.60),
        "yellow": (0.99, 0.94, 0.64),
        "green": (0.74, 0.90, 0.72),
        "blue": (0.70, 0.84, 0.98),
        "purple": (0.82, 0.76, 0.95),
        "pink": (0.99, 0.81, 0.88),
        "white": (0.97, 0.97, 0.97),
    }
)


@dataclass(frozen=True)
class _Sky:
    """top, low: the sky's colours. tint: what the light leaves of the ground's colours. disc: sun or moon, if any."""

    top: Rgb
    low: Rgb
    tint: Rgb
    disc: Rgb | None
    cloud: Rgb | None


SKIES: Mapping[Light, _Sky] = MappingProxyType(
    {
        "day": _Sky((0.50, 0.76, 0.97), (0.84, 0.94, 0.99), (1, 1, 1), (1.0, 0.90, 0.45), (1, 1, 1)),
        "sunset": _Sky(
            (0.60, 0.42, 0.68), (1.0, 0.72, 0.46), (0.78, 0.62, 0.74), (1.0, 0.56, 0.34), (1.0, 0.78, 0.72)
        ),
        "night": _Sky(
            (0.13, 0.18, 0.42), (0.30, 0.38, 0.62), (0.48, 0.55, 0.78), (0.98, 0.97, 0.86), (0.36, 0.43, 0.66)
        ),
        "starry night": _Sky((0.07, 0.06, 0.24), (0.26, 0.20, 0.48), (0.40, 0.40, 0.66), None, None),
    }
)


class _Canvas:
    """A window of the picture being painted. x, y: coordinates in [0, 1] of pixel centres; px: pixels per picture."""

    def __init__(self, px: int, window: tuple[int, int, int], colour: Rgb) -> None:
        left, top, side = window
        self.px = px
        self.x: Plane = ((np.arange(left, left + side) + 0.5) / px).astype(np.float32)[None, :]
        self.y: Plane = ((np.arange(top, top + side) + 0.5) / px).astype(np.float32)[:, None]
        self.rgb = np.empty((side, side, 3), np.float32)
        self.rgb[:] = colour

    def fill(self, inside: Plane, colour: Rgb, alpha: float = 1, soft: float = 0) -> None:
        """Paint where `inside`, a signed distance in picture sides, is positive.

        soft: width of the edge in picture sides, at least one pixel.
        """
        width = max(soft, 1 / self.px)
        cover = np.clip(inside / width + 0.5, 0, 1)[..., None] * np.float32(alpha)
        self.rgb += cover * (np.asarray(colour, np.float32) - self.rgb)

    def disc(
        self, cx: float, cy: float, radius: float, colour: Rgb, alpha: float = 1, soft: float = 0
    ) -> None:
        self.fill(radius - np.hypot(self.x - cx, self.y - cy), colour, alpha, soft)

    def blob(self, cx: float, cy: float, rx: float, ry: float, colour: Rgb, alpha: float = 1) -> None:
        """A soft ellipse."""
        distance = (1 - np.hypot((self.x - cx) / rx, (self.y - cy) / ry)) * min(rx, ry)
        self.fill(distance, colour, alpha, min(rx, ry) * 0.5)

    def below(self, line: Plane | float, colour: Rgb, soft: float = 0) -> None:
        """Everything under a line y(x), [1, side] or a height."""
        self.fill(np.broadcast_to(self.y - line, self.rgb.shape[:2]), colour, soft=soft)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Rgb, alpha: float = 1
    ) -> None:
        across = np.minimum(self.x - left, right - self.x)
        self.fill(np.minimum(across, np.minimum(self.y - top, bottom - self.y)), colour, alpha)


def draw_background(
    place: Place, light: Light, backdrop: str | None, variant: int, px: int, window: tuple[int, int, int]
) -> NDArray[np.float32]:
    """The empty scene inside a window (left, top, side in pixels of a picture of px), [side, side, 3] in [0, 1]."""
    if place == "plain":
        return _plain(backdrop or "white", variant, px, window)
    sky = SKIES[light]
    canvas = _Canvas(px, window, sky.low)
    ground = horizon(place, variant) / GRID
    if place == "room":
        _room(canvas, light, variant, ground)
    else:
        _draw_sky(canvas, light, variant, ground)
        _PAINTERS[place](
            canvas, lambda r, g, b: (r * sky.tint[0], g * sky.tint[1], b * sky.tint[2]), variant, ground
        )
    return np.clip(canvas.rgb, 0, 1)


def _plain(backdrop: str, variant: int, px: int, window: tuple[int, int, int]) -> NDArray[np.float32]:
    """A pastel, a little lighter around one point."""
    colour = PASTELS[backdrop]
    canvas = _Canvas(px, window, colour)
    lighter = (0.5 + colour[0] / 2, 0.5 + colour[1] / 2, 0.5 + colour[2] / 2)
    canvas.blob(0.3 + 0.4 * (variant % 2), 0.3 + 0.1 * (variant // 2 % 4), 0.9, 0.9, lighter, 0.5)
    return np.clip(canvas.rgb, 0, 1)


def _draw_sky(canvas: _Canvas, light: Light, variant: int, ground: float) -> None:
    """Gradient, sun or moon, clouds or stars, down to the horizon."""
    sky = SKIES[light]
    share = np.clip(canvas.y / ground, 0, 1)[..., None]
    canvas.rgb[:] = np.asarray(sky.top, np.float32) * (1 - share) + np.asarray(sky.low, np.float32) * share
    cx = (0.14, 0.86, 0.24, 0.76, 0.86, 0.14, 0.68, 0.32)[variant]
    if light == "starry night":
        _stars(canvas, variant, ground)
    elif sky.disc:
        cy = ground - 0.07 if light == "sunset" else 0.13 + 0.03 * (variant % 3)
        canvas.disc(cx, cy, 0.16, sky.disc, 0.30 if light != "night" else 0.12, soft=0.16)
        canvas.disc(cx, cy, 0.07, sky.disc)
        if light == "night":
            canvas.disc(cx - 0.02, cy - 0.015, 0.018, (0.90, 0.89, 0.78), 0.8)
            canvas.disc(cx + 0.025, cy + 0.02, 0.012, (0.90, 0.89, 0.78), 0.8)
    if sky.cloud:
        for i in range(2):
            x = (cx + 0.30 + 0.33 * i + 0.02 * (variant % 4)) % 1.0
            y = 0.10 + 0.09 * ((variant + i * 2) % 3)
            _cloud(canvas, x, y, 0.75 + 0.2 * ((variant + i) % 2), sky.cloud)


def _cloud(canvas: _Canvas, x: float, y: float, size: float, colour: Rgb) -> None:
    for dx, dy, rx, ry in (
        (-0.07, 0.012, 0.07, 0.035),
        (0.0, -0.01, 0.08, 0.055),
        (0.075, 0.01, 0.075, 0.038),
    ):
        canvas.blob(x + dx * size, y + dy * size, rx * size, ry * size, colour, 0.75)


def _stars(canvas: _Canvas, variant: int, ground: float) -> None:
    """Thirty stars of four sizes, spread evenly but in no rows: an additive low-discrepancy sequence of the plane."""
    for i in range(30):
        x = ((i + 1) * 0.7548777 + variant * 0.137) % 1.0
        y = 0.02 + (((i + 1) * 0.5698403 + variant * 0.211) % 1.0) * (ground - 0.06)
        radius = (0.016, 0.010, 0.012, 0.009)[i % 4]
        canvas.disc(x, y, radius, (1.0, 0.97, 0.80), 0.95)


Tinted = Callable[[float, float, float], Rgb]


def _wave(canvas: _Canvas, height: float, size: float, count: float, phase: float) -> Plane:
    """[1, side]: a smooth line around `height`."""
    turn = 2 * np.pi * (count * canvas.x + phase)
    line: Plane = (height - size * (np.sin(turn) + 0.3 * np.sin(2.3 * turn + 1.7))).astype(np.float32)
    return line


def _grass(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    canvas.below(_wave(canvas, ground - 0.05, 0.05, 1.0, variant / 8), tint(0.62, 0.84, 0.50))
    canvas.below(_wave(canvas, ground + 0.02, 0.02, 0.8, 0.4 + variant / 5), tint(0.50, 0.77, 0.38))
    canvas.below(_wave(canvas, ground + 0.19, 0.02, 0.7, 0.1 + variant / 7), tint(0.43, 0.71, 0.34))


def _beach(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    canvas.below(ground - 0.10, tint(0.25, 0.62, 0.86))
    canvas.below(ground - 0.05, tint(0.36, 0.73, 0.88), soft=0.03)
    shore = _wave(canvas, ground + 0.02, 0.012, 1.2, variant / 8)
    canvas.below(shore - np.float32(0.022), tint(0.95, 0.98, 1.0))
    canvas.below(shore, tint(0.93, 0.82, 0.60))
    canvas.below(shore + np.float32(0.03), tint(0.98, 0.89, 0.68))


def _snow(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    for i in range(3):
        x = ((0.16, 0.5, 0.86)[i] + 0.11 * variant) % 1.0
        _fir(canvas, x, ground, 0.16 + 0.03 * ((i + variant) % 2), tint(0.42, 0.58, 0.62))
    canvas.below(_wave(canvas, ground - 0.02, 0.03, 0.9, variant / 8), tint(0.80, 0.87, 0.96))
    canvas.below(_wave(canvas, ground + 0.07, 0.02, 0.7, 0.3 + variant / 6), tint(0.84, 0.90, 0.97))
    canvas.below(_wave(canvas, ground + 0.22, 0.015, 0.8, 0.6 + variant / 5), tint(0.88, 0.925, 0.98))


def _fir(canvas: _Canvas, x: float, base: float, height: float, colour: Rgb) -> None:
    across = np.abs(canvas.x - x)
    canvas.fill(((canvas.y - (base - height)) * 0.32 - across) * 0.95, colour)


def _ocean(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    canvas.below(ground, tint(0.44, 0.74, 0.92))
    shades = ((0.36, 0.68, 0.90), (0.28, 0.60, 0.86), (0.21, 0.52, 0.80))
    for i, shade in enumerate(shades):
        height = ground + 0.07 + 0.12 * i
        line = _wave(canvas, height, 0.012 + 0.004 * i, 3.2 - 0.6 * i, variant / 8 + 0.37 * i)
        canvas.below(line, tint(0.66, 0.87, 0.96))
        canvas.below(line + np.float32(0.010), tint(*shade))


def _street(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    shades = (tint(0.70, 0.74, 0.82), tint(0.76, 0.72, 0.76), tint(0.66, 0.72, 0.76))
    for i in range(7):
        left = i / 7 + 0.015 * ((i * 3 + variant) % 4) - 0.03
        top = ground - 0.13 - 0.045 * ((i * 5 + variant * 3) % 4)
        canvas.box(left, top, left + 0.125, ground + 0.1, shades[(i + variant) % 3])
    canvas.below(ground - 0.005, tint(0.80, 0.79, 0.77))
    canvas.below(ground + 0.055, tint(0.62, 0.62, 0.64))
    canvas.below(ground + 0.07, tint(0.46, 0.47, 0.51))
    middle = ground + 0.25
    along = np.abs((canvas.x * 4 + variant / 8) % 1.0 - 0.5) - 0.22
    canvas.fill(np.minimum(along / 4, 0.012 - np.abs(canvas.y - middle)), tint(0.95, 0.92, 0.80))


def _desert(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    canvas.below(_wave(canvas, ground - 0.08, 0.05, 0.9, variant / 8), tint(0.90, 0.68, 0.44))
    canvas.below(_wave(canvas, ground + 0.01, 0.035, 0.7, 0.35 + variant / 6), tint(0.94, 0.75, 0.49))
    canvas.below(_wave(canvas, ground + 0.17, 0.025, 0.8, 0.7 + variant / 5), tint(0.91, 0.70, 0.43))


def _mountains(canvas: _Canvas, tint: Tinted, variant: int, ground: float) -> None:
    peaks = ((0.22, 0.36, 0.85), (0.78, 0.32, 0.80), (0.52, 0.44, 0.95))
    for i, (x, height, slope) in enumerate(peaks):
        cx = x + 0.05 * ((variant + 2 * i) % 4) - 0.08
        top = ground + 0.02 - height + 0.03 * ((variant + i) % 3)
        flank = np.abs(canvas.x - cx) / slope * 1.25
        shade = 0.04 * i
        inside = (canvas.y - top - flank) * 0.6
        canvas.fill(inside, tint(0.52 + shade, 0.56 + shade, 0.68 + shade))
        cap = top + 0.10 + 0.018 * np.sin(canvas.x * 55 + variant + i)
        canvas.fill(np.minimum(inside, cap - canvas.y), tint(0.95, 0.97, 1.0))
    canvas.below(_wave(canvas, ground, 0.015, 0.9, variant / 8), tint(0.55, 0.74, 0.50))
    canvas.below(_wave(canvas, ground + 0.13, 0.02, 0.7, 0.5 + variant / 6), tint(0.48, 0.68, 0.44))


def _room(canvas: _Canvas, light: Light, variant: int, ground: float) -> None:
    """A wall, a window that shows the sky, a wooden floor."""
    dim: Mapping[Light, Rgb] = {
        "day": (1, 1, 1), "sunset": (1.0, 0.86, 0.76), "night": (0.58, 0.60, 0.76), "starry night": (0.47, 0.46, 0.68),
    }  # fmt: skip
    r, g, b = dim[light]
    walls = ((0.96, 0.90, 0.78), (0.88, 0.92, 0.86), (0.93, 0.86, 0.86), (0.86, 0.89, 0.95))
    wall = walls[variant % 4]
    _draw_sky(canvas, light, variant, 0.5)
    left = (0.10, 0.58, 0.34, 0.16, 0.52, 0.24, 0.44, 0.60)[variant]
    top, wide, tall = 0.10, 0.30, 0.32
    x, y = canvas.x, canvas.y
    inside = np.minimum(np.minimum(x - left, left + wide - x), np.minimum(y - top, top + tall - y))
    canvas.fill(-inside, (wall[0] * r, wall[1] * g, wall[2] * b))
    edge = 0.016
    bars = np.minimum(np.abs(x - left - wide / 2), np.abs(y - top - tall / 2))
    frame = np.maximum(edge - np.abs(inside), np.minimum(inside, edge * 0.6 - bars))
    canvas.fill(frame, (0.99 * r, 0.98 * g, 0.95 * b))
    canvas.below(ground - 0.03, (0.98 * r, 0.96 * g, 0.92 * b))
    canvas.below(ground, (0.80 * r, 0.60 * g, 0.42 * b))
    for i in range(1, 3):
        line = ground + (1 - ground) * (i / 3) ** 1.3
        canvas.fill(0.004 - np.abs(y - line) + 0 * x, (0.70 * r, 0.51 * g, 0.35 * b))


_PAINTERS: Mapping[Place, Callable[[_Canvas, Tinted, int, float], None]] = MappingProxyType(
    {
        "grass": _grass,
        "beach": _beach,
        "snow": _snow,
        "ocean": _ocean,
        "street": _street,
        "desert": _desert,
        "mountains": _mountains,
    }
)
