"""Which place and light a picture shows, by comparison with every empty scene of the world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mmgen.evaluation.pixels import PX, Pixels, halved
from mmgen.storybook.catalogue import BACKDROPS
from mmgen.storybook.render import background
from mmgen.storybook.scene import Light, Place
from mmgen.storybook.scenes import PLACES, VARIANTS

# Squared colour distance (RGB in [0, 1], three channels) beyond which no pixel counts more: it is an object.
_BOUND = 0.04
# How far a drawn shape may lie from where the world draws it, in pixels of 64, before it counts as unknown.
_SLACK = 4
# A whole picture may be a little darker or brighter than the world draws it.
BRIGHTNESS = (0.92, 0.96, 1.0, 1.04, 1.08)


class Setting(NamedTuple):
    """The class of a background."""

    place: Place
    light: Light
    backdrop: str | None


class Match(NamedTuple):
    """An empty scene by its place in `Scenery.pictures`, and how much brighter than it the picture is."""

    setting: int
    variant: int
    brightness: float


class Scenery:
    """All empty scenes at 64 px: settings x variants.

    pictures: [settings, variants, 64, 64, 3] in [0, 1].
    """

    def __init__(self) -> None:
        lights: Sequence[Light] = get_args(Light)
        self.settings = [Setting(place, light, None) for place in PLACES for light in lights]
        self.settings += [Setting("plain", "day", colour) for colour in BACKDROPS]
        drawn = [
            background(s.place, s.light, s.backdrop, v, PX, (0, 0, PX))
            for s in self.settings for v in range(VARIANTS)
        ]  # fmt: skip
        stacked = np.stack(drawn).astype(np.float32) / 255
        self.pictures = stacked.reshape(len(self.settings), VARIANTS, PX, PX, 3)
        self._small = np.stack([halved(p) for p in stacked]).reshape(len(stacked), -1)
        self._bounds: dict[int, tuple[Pixels, Pixels]] = {}

    def nearest(self, picture: Pixels, free: NDArray[np.bool_] | None = None) -> Match:
        """The empty scene most like the picture where it is free of objects, at the brightness that fits best.

        picture: [64, 64, 3] in [0, 1]. free: [64, 64]; None: not known, and far pixels count little.
        """
        small = halved(picture).reshape(-1)
        weight = None if free is None else halved(free[..., None].astype(np.float32)).reshape(-1)
        costs = []
        for brightness in BRIGHTNESS:
            apart = (np.minimum(self._small * np.float32(brightness), 1) - small) ** 2
            cost = np.minimum(apart.reshape(len(self._small), -1, 3).sum(axis=-1), _BOUND)
            costs.append(cost.sum(axis=-1) if weight is None else cost @ weight)
        level, best = np.unravel_index(int(np.argmin(costs)), (len(BRIGHTNESS), len(self._small)))
        return Match(int(best) // VARIANTS, int(best) % VARIANTS, BRIGHTNESS[level])

    def beyond(self, picture: Pixels, setting: int) -> Pixels:
        """How far each pixel's colour lies outside what any variant shows within a few pixels, [64, 64]."""
        low, high = self._envelope(setting)
        away = np.maximum(picture - high, 0) + np.maximum(low - picture, 0)
        return np.sqrt((away**2).sum(axis=-1)).astype(np.float32)

    def _envelope(self, setting: int) -> tuple[Pixels, Pixels]:
        if setting not in self._bounds:
            shown = np.pad(
                self.pictures[setting], ((0, 0), (_SLACK, _SLACK), (_SLACK, _SLACK), (0, 0)), mode="edge"
            )
            span = 2 * _SLACK + 1
            views = np.lib.stride_tricks.sliding_window_view(shown, (span, span), axis=(1, 2))
            self._bounds[setting] = views.min(axis=(0, -2, -1)), views.max(axis=(0, -2, -1))
        return self._bounds[setting]
