"""Judge A: what is in a picture, from its pixels alone.

The picture is explained as an empty scene with sprites over it. Sprites are added one at a time, the one that saves the
most squared error first; each must explain most of what differs from the scene in its silhouette and a ring around it,
so that a red patch on a red wall is no balloon. What no sprite explains and no scenery shows is an unknown object. The
judge never knows the prompt while it looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmgen.evaluation.pixels import PX, Mask, Pixels, blobs, halved, pixels
from mmgen.evaluation.scenery import Scenery
from mmgen.evaluation.templates import Candidate, Templates
from mmgen.evaluation.verdict import Box, Detection, Sight
from mmgen.storybook.catalogue import SPRITES
from mmgen.storybook.sprites import SpriteBank

RING = 3  # px of 64 around a silhouette in which the background must show
MARGIN = 16  # px of 64 by which pictures are widened, so that windows may reach over their edges
TRIES = 16  # places looked at closely; more is clutter anyway
ACCEPT = 0.75  # share of the variation a sprite must explain
# By how much of that share the best sprite must lead the next one: a shapeless patch fits several alike.
CLEAR = 0.05
FLOOR = 0.0008  # squared error per pixel that counts as nothing to explain
CLIP = 0.25  # the most by which the ring may move the background
# Rivals of the best template gain at least this share of what it gains; so many are looked at closely.
RIVAL_SHARE, RIVALS = 0.5, 5
CLIMBS = 3  # steps of 1 px by which the best fit may move on; more could leave the margin
SHIFTS = tuple(product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)))  # of size, left and top, in px of 64
# Colours further than this outside the scenery's, over so many pixels in one piece, are an unknown object.
UNKNOWN_COLOUR, UNKNOWN_AREA = 0.22, 40
SHADOW = 0.7  # of the ground's light is left under a sprite at least


class Look(NamedTuple):
    """One sprite at one size.

    paint: [colours, px, px, 3] premultiplied. alpha: [px, px, 1]. window, ring: as alpha, but wider by
    RING on each side.
    """

    colours: tuple[str | None, ...]
    paint: Pixels
    alpha: Pixels
    window: Pixels
    ring: Pixels


class Fit(NamedTuple):
    """One sprite at a place. gains: the squared error saved, by colour; variation: all there was in its window."""

    sprite: str
    size: int  # these three in px of 64
    left: int
    top: int
    gains: NDArray[np.float32]
    variation: float

    @property
    def worth(self) -> float:
        """What the best colour saves, and the larger a part of all there was, the more."""
        best = max(float(self.gains.max()), 0.0)
        return best * best / self.variation


@dataclass
class _View:
    """A picture and its explanation so far, both widened by MARGIN. inside: 1 on the picture, 0 around it.

    covered: where sprites have been put, and a pixel around them.
    """

    picture: Pixels
    scene: Pixels
    inside: Pixels
    covered: Mask

    def cut(self, left: int, top: int, side: int) -> tuple[slice, slice]:
        return slice(top + MARGIN, top + MARGIN + side), slice(left + MARGIN, left + MARGIN + side)

    @property
    def explained(self) -> Pixels:
        """The explanation without its margin, [64, 64, 3]."""
        return self.scene[MARGIN:-MARGIN, MARGIN:-MARGIN]


class Judge:
    """Sees pictures. Building it draws every template once (half a minute); seeing takes a fifth of a second each.

    sprites: the names it looks for; anything else is an unknown object. By default the whole world's.
    """

    def __init__(self, bank: SpriteBank | None = None, sprites: Iterable[str] = tuple(SPRITES)) -> None:
        self._bank = bank or SpriteBank()
        self._templates = Templates(self._bank, sprites)
        self._scenery = Scenery()
        self._looks: dict[tuple[str, int], Look] = {}

    def see(self, image: Image.Image) -> Sight:
        """Everything in one picture of any size; it is judged at 64 px."""
        seen = pixels(image)
        match = self._scenery.nearest(seen)
        picture = np.minimum(seen / np.float32(match.brightness), 1)
        view = _view(picture, self._scenery.pictures[match.setting, match.variant])
        detections = self._objects(view)
        free, shaded = _covered(detections)
        setting = self._scenery.nearest(seen, free).setting
        shown = self._scenery.settings[setting]
        explained = np.where(shaded[..., None], _darkened(view.explained, picture), view.explained)
        unknown = self._unknown(picture, explained, view.covered[MARGIN:-MARGIN, MARGIN:-MARGIN], setting)
        return Sight(tuple(detections), shown.place, shown.light, shown.backdrop, tuple(unknown))

    def _objects(self, view: _View) -> list[Detection]:
        """Sprites put into the view's explanation one at a time, the greatest saving first."""
        small = halved(view.picture[MARGIN:-MARGIN, MARGIN:-MARGIN])
        found: list[Detection] = []
        pool = self._templates.pool(small, halved(view.explained))
        tries = 0
        while pool.errors.size and tries < TRIES:
            tries += 1
            gains, rest = self._templates.gains(pool, small, halved(view.explained))
            rivals = self._templates.rivals(pool, gains, rest, RIVAL_SHARE)
            if not rivals:
                break
            detection = self._settle(view, rivals[:RIVALS])
            if detection is not None:
                found.append(detection)
            else:
                pool = pool.without(self._templates.like(pool, rivals[0]))
        return found

    def _settle(self, view: _View, rivals: list[Candidate]) -> Detection | None:
        """The best of the rivals, put into the view's explanation; None if it explains too little, or too unclearly."""
        scene = self._levelled(view, rivals[0])
        fits = sorted((self._fit(view, scene, rival) for rival in rivals), key=lambda fit: -fit.worth)
        if fits[0].worth <= 0:
            return None
        fits[0] = best = self._climbed(view, scene, fits[0])
        look = self._look(best.sprite, best.size)
        detection = _detection(fits, look.colours, self._share(view, scene, best, look))
        if detection.score < ACCEPT or detection.sprite_margin < CLEAR:
            return None
        _put(view, best, look)
        return detection

    def _levelled(self, view: _View, place: Candidate) -> Pixels:
        """The explained scene, moved around one place by a plane of colour so that it meets the picture in the ring."""
        look = self._look(place.sprite, 2 * place.size)
        cut = view.cut(2 * place.left - RING, 2 * place.top - RING, 2 * place.size + 2 * RING)
        weight = look.ring * view.inside[cut]
        plane = _plane(np.clip(view.picture[cut] - view.scene[cut], -CLIP, CLIP), weight)
        scene = view.scene.copy()
        scene[cut] += plane
        return scene

    def _fit(self, view: _View, scene: Pixels, rival: Candidate) -> Fit:
        """The rival's sprite at its best size and place near where it was seen, in every colour."""
        return self._nearby(view, scene, rival.sprite, 2 * rival.size, 2 * rival.left, 2 * rival.top)

    def _climbed(self, view: _View, scene: Pixels, fit: Fit) -> Fit:
        """The fit moved and resized for as long as that makes it better: sizes are seen only roughly at first."""
        for _ in range(CLIMBS):
            better = self._nearby(view, scene, fit.sprite, fit.size, fit.left, fit.top)
            if better.worth <= fit.worth:
                break
            fit = better
        return fit

    def _nearby(self, view: _View, scene: Pixels, sprite: str, size: int, left: int, top: int) -> Fit:
        """The best of the fits with a size, left and top that differ by at most 1 px of 64."""
        fits = [self._gains(view, scene, sprite, size + s, left + x, top + y) for s, x, y in SHIFTS]
        return max(fits, key=lambda fit: fit.worth)

    def _gains(self, view: _View, scene: Pixels, sprite: str, size: int, left: int, top: int) -> Fit:
        """The squared error each colour of a sprite saves at one place."""
        look = self._look(sprite, size)
        cut = view.cut(left - RING, top - RING, size + 2 * RING)
        window = look.window * view.inside[cut]
        rest = window * (view.picture[cut] - scene[cut]) ** 2
        cut = view.cut(left, top, size)
        under, inside = scene[cut], view.inside[cut]
        after = (inside * (view.picture[cut] - (1 - look.alpha) * under - look.paint) ** 2).sum(
            axis=(1, 2, 3)
        )
        before = (inside * (view.picture[cut] - under) ** 2).sum()
        return Fit(sprite, size, left, top, before - after, float(rest.sum()) + FLOOR * float(window.sum()))

    def _share(self, view: _View, scene: Pixels, fit: Fit, look: Look) -> float:
        """The part of its window's variation that a fit explains, picture and fit both seen through a 3x3 mean.

        Edges that are a pixel off and the grain of a JPEG do not count then; a wrong shape does.
        """
        cut = view.cut(fit.left - RING, fit.top - RING, fit.size + 2 * RING)
        window = look.window * view.inside[cut]
        before = window * (view.picture[cut] - scene[cut])
        after = before.copy()
        inner = slice(RING, RING + fit.size)
        cover = look.paint[int(fit.gains.argmax())] - look.alpha * scene[cut][inner, inner]
        after[inner, inner] -= window[inner, inner] * cover
        flat = FLOOR * float(window.sum())
        return 1 - float((_smooth(after) ** 2).sum() + flat) / float((_smooth(before) ** 2).sum() + flat)

    def _look(self, sprite: str, size: int) -> Look:
        if (sprite, size) not in self._looks:
            self._looks[sprite, size] = _look(self._bank, sprite, size)
        return self._looks[sprite, size]

    def _unknown(self, picture: Pixels, explained: Pixels, covered: Mask, setting: int) -> list[Box]:
        """Boxes of what neither the scenery nor a detection explains.

        Where a sprite was found, how well it fits has been asked already: a JPEG's colours run at its edges.
        """
        away = np.where(covered, 0, np.sqrt(((picture - explained) ** 2).sum(axis=-1)))
        beyond = np.minimum(self._scenery.beyond(picture, setting), away)
        parts = [part for part in blobs(_smooth(beyond) > UNKNOWN_COLOUR) if part.sum() >= UNKNOWN_AREA]
        return [_box(part) for part in parts]


def _covered(detections: list[Detection]) -> tuple[Mask, Mask]:
    """[64, 64] each: where neither a sprite's box nor its shadow lies, and where a shadow may lie."""
    free, shaded = np.ones((PX, PX), np.bool_), np.zeros((PX, PX), np.bool_)
    for left, top, right, bottom in (detection.box for detection in detections):
        reach = 0.12 * (right - left) + 1 / PX
        columns = slice(max(0, round((left - reach) * PX)), round((right + reach) * PX))
        base = round((bottom + reach) * PX)
        free[max(0, round(top * PX)) : base, columns] = False
        shaded[max(0, round((bottom - reach) * PX)) : base, columns] = True
    return free, shaded


def _darkened(scene: Pixels, picture: Pixels) -> Pixels:
    """The scene, each pixel as dark as the picture there, down to SHADOW of its light."""
    light = (scene * picture).sum(axis=-1) / np.maximum((scene**2).sum(axis=-1), 1e-6)
    return np.asarray(scene * np.clip(light, SHADOW, 1)[..., None], dtype=np.float32)


def _look(bank: SpriteBank, sprite: str, size: int) -> Look:
    colours = (None, *sorted(SPRITES[sprite].colours))
    drawn = np.stack([bank.rgba(sprite, colour, size) for colour in colours])
    alpha = drawn[0, ..., 3:]
    wide = np.pad(alpha, ((RING, RING), (RING, RING), (0, 0)))
    span = 2 * RING + 1
    reach = np.pad(wide[..., 0], RING)
    window = np.lib.stride_tricks.sliding_window_view(reach, (span, span)).max(axis=(-2, -1)) > 0.5
    return Look(
        colours, np.ascontiguousarray(drawn[..., :3]), alpha, window[..., None].astype(np.float32),
        (window[..., None] & (wide < 0.05)).astype(np.float32),
    )  # fmt: skip


def _detection(fits: list[Fit], colours: tuple[str | None, ...], score: float) -> Detection:
    """The first fit as a detection; the others are its rivals."""
    best = fits[0]
    order = np.argsort(-best.gains)
    colour = colours[int(order[0])]
    own = SPRITES[best.sprite].natural
    second = fits[1].worth / best.worth if len(fits) > 1 else 0.0
    return Detection(
        sprite=best.sprite,
        colour=colour,
        colours=frozenset({colour} if colour or not own else {colour, own}),
        box=(best.left / PX, best.top / PX, (best.left + best.size) / PX, (best.top + best.size) / PX),
        score=score,
        sprite_margin=1 - second**0.5,
        colour_margin=1 - float(best.gains[order[1]] / best.gains[order[0]]) if len(order) > 1 else 1.0,
    )


def _put(view: _View, fit: Fit, look: Look) -> None:
    """Lay a sprite over the explanation."""
    cut = view.cut(fit.left, fit.top, fit.size)
    view.scene[cut] = look.paint[int(fit.gains.argmax())] + (1 - look.alpha) * view.scene[cut]
    cut = view.cut(fit.left - 1, fit.top - 1, fit.size + 2)
    view.covered[cut] |= _smooth(np.pad(look.alpha[..., 0], 1)) > 0.01


def _plane(rest: Pixels, weight: Pixels) -> Pixels:
    """The plane of colour nearest to `rest` [S, S, 3] where weight [S, S, 1] is 1; steep ones are held back."""
    side = rest.shape[0]
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    basis = np.stack([np.ones_like(x), x, y], axis=-1)
    weighted = (basis * weight).reshape(-1, 3)
    held = np.diag([1.0, 0.2 * weight.sum() + 1, 0.2 * weight.sum() + 1]).astype(np.float32)
    factors = np.linalg.solve(weighted.T @ basis.reshape(-1, 3) + held, weighted.T @ rest.reshape(-1, 3))
    return (basis @ factors).astype(np.float32)


def _smooth(plane: Pixels) -> Pixels:
    """Mean over 3x3 pixels. plane: [H, W] or [H, W, C]."""
    wide = np.pad(plane, ((1, 1), (1, 1), *((0, 0),) * (plane.ndim - 2)), mode="edge")
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9, dtype=np.float32)


def _box(part: Mask) -> Box:
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    return columns[0] / PX, rows[0] / PX, (columns[-1] + 1) / PX, (rows[-1] + 1) / PX


def _view(picture: Pixels, scene: Pixels) -> _View:
    wide = ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    inside = np.pad(np.ones((PX, PX, 1), np.float32), wide)
    covered = np.zeros(inside.shape[:2], np.bool_)
    return _View(np.pad(picture, wide, mode="edge"), np.pad(scene, wide, mode="edge"), inside, covered)
