"""Draws scenes by chance: what is in them, where it stands, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mmgen.storybook.captions import Split, caption
from mmgen.storybook.catalogue import BACKDROPS, SPRITES
from mmgen.storybook.holdout import between, held_out_count, held_out_pair, held_out_relation, trained_colours
from mmgen.storybook.scene import GRID, Group, Item, Light, Place, Relation, Scene

if TYPE_CHECKING:
    import numpy as np

Chance = Callable[[], float]
Box = tuple[int, int, int]  # left, top, size in 1/32
PLACES: tuple[Place, ...] = ("grass", "beach", "snow", "ocean", "street", "desert", "room", "mountains")
LIGHTS: tuple[Light, ...] = (
    "day",
    "day",
    "day",
    "sunset",
    "sunset",
    "night",
    "night",
    "starry night",
    "starry night",
)
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
VARIANTS = 8
_NAMES = tuple(sorted(SPRITES))
_HORIZON: dict[Place, int] = {
    "grass": 19, "beach": 20, "snow": 19, "ocean": 17, "street": 19, "desert": 19, "room": 22, "mountains": 20,
    "plain": 20,
}  # fmt: skip


def horizon(place: Place, variant: int) -> int:
    """Where the ground begins, in 1/32 from the top; things stand below it."""
    return _HORIZON[place] + (variant % 3 - 1 if place not in ("plain", "room") else 0)


def _whole(chance: Chance, low: int, high: int) -> int:
    """A whole number from low to high, both included; low if there is no room."""
    return low if high <= low else low + int(chance() * (high - low + 1))


def sample_scene(rng: np.random.Generator, split: Split = "train") -> Scene:
    """One scene with its caption; nothing held out for "train", only the wording held out for "wording"."""
    chance: Chance = rng.random
    groups, relation = _content(chance)
    place: Place = "plain" if chance() < 0.2 else PLACES[int(chance() * len(PLACES))]
    light: Light = "day" if place == "plain" else LIGHTS[int(chance() * len(LIGHTS))]
    backdrop = _backdrop(chance, groups) if place == "plain" else None
    variant = int(chance() * VARIANTS)
    while True:
        boxes = _layout(chance, groups, relation, horizon(place, variant))
        items = _items(groups, boxes)
        if _shows_nothing_held_out(groups, items):
            break
    text = caption(groups, relation, place, light, backdrop, rng, split)
    return Scene(groups, relation, place, light, backdrop, variant, items, text)


def compose(
    groups: tuple[Group, ...],
    relation: Relation | None,
    place: Place,
    light: Light,
    backdrop: str | None,
    variant: int,
    rng: np.random.Generator,
    caption: str = "",
) -> Scene:
    """A scene of given contents, held out or not, its items placed by chance: one, two, or two and one of them.

    Raises ValueError for other numbers of items.
    """
    counts = tuple(group.count for group in groups)
    if counts not in ((1,), (2,), (1, 1), (2, 1)):
        raise ValueError(f"groups of {counts} items: scenes hold one, two, one and one, or two and one")
    boxes = _layout(rng.random, groups, relation, horizon(place, variant))
    return Scene(groups, relation, place, light, backdrop, variant, _items(groups, boxes), caption)


def _content(chance: Chance) -> tuple[tuple[Group, ...], Relation | None]:
    """Who is there: single 20 %, pair 46 % (seven in ten with a relation), two of a kind 12 %, two and one 22 %."""
    r = chance()
    if r < 0.2:
        return (_group(chance, 1, 0.16),), None
    while True:
        if r < 0.66:
            a, b = _group(chance, 1, 0.1), _group(chance, 1, 0.1)
            relation = RELATIONS[int(chance() * 4)] if chance() < 0.7 else None
            if a.sprite == b.sprite or held_out_pair(a.sprite, b.sprite):
                continue
            if relation and held_out_relation(a.sprite, relation, b.sprite):
                continue
            if not relation and _never_side_by_side(a, b):
                continue
            return (a, b), relation
        a = _group(chance, 2, 0.08 if r < 0.78 else 0)
        if held_out_count(a.sprite, 2):
            continue
        if r < 0.78:
            return (a,), None
        b = _group(chance, 1, 0)
        if a.sprite == b.sprite or held_out_pair(a.sprite, b.sprite):
            continue
        if _never_side_by_side(a, b):
            continue
        return (a, b), None


def _never_side_by_side(a: Group, b: Group) -> bool:
    return all(held_out_relation(a.sprite, side, b.sprite) for side in ("left of", "right of"))


def _backdrop(chance: Chance, groups: tuple[Group, ...]) -> str:
    """A plain place's colour; nothing white stands before white, where nobody could see it."""
    white = any((g.colour or SPRITES[g.sprite].natural) == "white" for g in groups)
    colours = [c for c in BACKDROPS if c != "white"] if white else BACKDROPS
    return colours[int(chance() * len(colours))]


def _group(chance: Chance, count: int, sized: float) -> Group:
    """sized: the share of groups with a size word. 60 % have a trained named colour."""
    sprite = _NAMES[int(chance() * len(_NAMES))]
    colours = trained_colours(sprite)
    colour = colours[int(chance() * len(colours))] if colours and chance() < 0.6 else None
    word = None if chance() >= sized else "small" if chance() < 0.5 else "big"
    return Group(sprite, colour, count, word)  # type: ignore[arg-type]


def _size(chance: Chance, group: Group, single: bool) -> int:
    if group.size_word == "small":
        return 10 if single else 8
    if group.size_word == "big":
        return 22 if single else 14
    if single:
        return (14, 16, 16, 16, 16, 18)[int(chance() * 6)]
    return 10 if chance() < 0.5 else 12


def _layout(chance: Chance, groups: tuple[Group, ...], relation: Relation | None, ground: int) -> list[Box]:
    """One box for every item, group by group."""
    if len(groups) == 1 and groups[0].count == 1:
        size = _size(chance, groups[0], True)
        left = min(max((GRID - size) // 2 + _whole(chance, -5, 5), 1), GRID - 1 - size)
        return [(left, _top(chance, groups[0].sprite, size, ground), size)]
    if len(groups) == 1:
        size = _size(chance, groups[0], False)
        return _row(chance, [groups[0].sprite] * 2, [size, size], ground, level=True)
    sprites = [g.sprite for g in groups for _ in range(g.count)]
    if len(sprites) == 3:
        return _three(chance, sprites, ground)
    sizes = [_size(chance, g, False) for g in groups]
    if relation in ("above", "below"):
        boxes = _column(chance, sizes if relation == "above" else sizes[::-1])
        return boxes if relation == "above" else boxes[::-1]
    mirrored = relation == "right of" or (relation is None and chance() < 0.5)
    if mirrored:
        return _row(chance, sprites[::-1], sizes[::-1], ground, level=relation is not None)[::-1]
    return _row(chance, sprites, sizes, ground, level=relation is not None)


def _top(chance: Chance, sprite: str, size: int, ground: int) -> int:
    """Flying things: three in four in the sky. Everything else stands on the ground."""
    if SPRITES[sprite].flies and chance() < 0.75:
        return _whole(chance, 1, max(ground - size + 2, 3))
    return _whole(chance, max(ground + 3, size + 1), 30) - size


def _row(chance: Chance, sprites: list[str], sizes: list[int], ground: int, level: bool) -> list[Box]:
    """Side by side from left to right. level: all at about the same height."""
    spare = GRID - 2 - sum(sizes)
    gap = _whole(chance, 1, min(6, spare // (len(sizes) - 1)))
    left = 1 + _whole(chance, 0, spare - gap * (len(sizes) - 1))
    if level and all(SPRITES[s].flies for s in sprites) and chance() < 0.6:
        base = _whole(chance, max(sizes) + 2, ground)
    else:
        base = _whole(chance, max(ground + 3, max(sizes) + 2), 29)
    boxes = []
    for sprite, size in zip(sprites, sizes, strict=True):
        top = base - size + _whole(chance, -1, 1)
        if not level and SPRITES[sprite].flies and chance() < 0.7:
            top = _whole(chance, 1, max(ground - size, 2))
        boxes.append((left, top, size))
        left += size + gap
    return boxes


def _column(chance: Chance, sizes: list[int]) -> list[Box]:
    """One on top of the other, the first one above."""
    upper, lower = sizes
    base = _whole(chance, max(28, upper + lower + 2), 30)
    top = base - lower - upper - _whole(chance, 1, min(4, base - lower - upper - 1))
    widest = max(sizes)
    centre = _whole(chance, widest // 2 + 3, GRID - widest // 2 - 3)
    shift = _whole(chance, -2, 2)
    return [(centre - upper // 2 + shift, top, upper), (centre - lower // 2, base - lower, lower)]


def _three(chance: Chance, sprites: list[str], ground: int) -> list[Box]:
    """Two of one kind side by side and one other next to them, all three in one row."""
    pair, other = ((8, 10), (8, 8), (10, 8))[int(chance() * 3)]
    if chance() < 0.5:
        return _row(chance, sprites, [pair, pair, other], ground, level=True)
    boxes = _row(chance, sprites[::-1], [other, pair, pair], ground, level=True)
    return boxes[::-1]


def _items(groups: tuple[Group, ...], boxes: list[Box]) -> tuple[Item, ...]:
    kinds = [g for g in groups for _ in range(g.count)]
    return tuple(Item(g.sprite, g.colour, *box) for g, box in zip(kinds, boxes, strict=True))


def _shows_nothing_held_out(groups: tuple[Group, ...], items: tuple[Item, ...]) -> bool:
    if len(groups) == 1:
        return True
    a, b = groups
    return not any(
        held_out_relation(a.sprite, between(first, second), b.sprite)
        for first in items[: a.count]
        for second in items[a.count :]
    )
