"""What is never trained on, decided by hashes of names: the trainer and the evaluation both ask here.

Widening the world moves nothing: a combination is held out by its own names alone.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

from mmgen.storybook.catalogue import SPRITES
from mmgen.storybook.scene import Item, Relation, Scene
from mmgen.storybook.wording import held_out_phrases

_CANONICAL: dict[str, tuple[Relation, bool]] = {
    "left of": ("left of", False),
    "right of": ("left of", True),
    "above": ("above", False),
    "below": ("above", True),
}


def _one_in(n: int, *names: str) -> bool:
    """Whether a hash of the names falls on one of n equal shares."""
    return int.from_bytes(hashlib.sha256("|".join(names).encode()).digest()[:8], "big") % n == 0


@cache
def held_out_colour(sprite: str, colour: str | None) -> bool:
    """One colour-sprite pair in five. A sprite's own colours, None or by name ("red apple"), are always trained."""
    return colour in SPRITES[sprite].colours and _one_in(5, "colour", sprite, str(colour))


@cache
def held_out_pair(a: str, b: str) -> bool:
    """One unordered pair of different sprites in twelve: never in one picture."""
    return a != b and _one_in(12, "pair", *sorted((a, b)))


@cache
def held_out_relation(a: str, relation: str, b: str) -> bool:
    """One triple in twenty; "a left of b" and "b right of a" are the same triple."""
    canonical, swapped = _CANONICAL[relation]
    first, second = (b, a) if swapped else (a, b)
    return _one_in(20, "relation", first, canonical, second)


@cache
def held_out_count(sprite: str, count: int) -> bool:
    """One sprite in eight never appears twice; every sprite appears once."""
    return count > 1 and _one_in(8, "count", sprite, str(count))


@cache
def trained_colours(sprite: str) -> tuple[str, ...]:
    """The named colours a sprite is trained in, sorted."""
    return tuple(sorted(c for c in SPRITES[sprite].colours if not held_out_colour(sprite, c)))


@cache
def _held_out_wording() -> re.Pattern[str]:
    phrases = sorted(held_out_phrases(), key=len, reverse=True)
    return re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, phrases)) + r")(?![\w-])")


def held_out_wording(caption: str) -> str | None:
    """The first phrase in the caption that training never uses, or None."""
    found = _held_out_wording().search(caption.lower())
    return found.group() if found else None


def between(a: Item, b: Item) -> Relation:
    """How `a` stands to `b` in the picture: along the axis on which their centres lie further apart."""
    dx = 2 * (b.left - a.left) + b.size - a.size
    dy = 2 * (b.top - a.top) + b.size - a.size
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def in_training(scene: Scene) -> bool:
    """Whether nothing in the scene, seen or said, is held out; a triple counts even where only the picture shows it."""
    groups = scene.groups
    for group in groups:
        if held_out_colour(group.sprite, group.colour) or held_out_count(group.sprite, group.count):
            return False
    if len(groups) == 2:
        a, b = groups
        if held_out_pair(a.sprite, b.sprite):
            return False
        if scene.relation is not None and held_out_relation(a.sprite, scene.relation, b.sprite):
            return False
        for first in scene.items[: a.count]:
            for second in scene.items[a.count :]:
                if held_out_relation(a.sprite, between(first, second), b.sprite):
                    return False
    return not scene.caption or held_out_wording(scene.caption) is None
