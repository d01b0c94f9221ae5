"""A scene as data: what is there, where it stands, and what a person would say of it.

Places and sizes lie on a grid of 1/32 of the picture's side, so that the same scene has whole pixels at 32, 64, 256
and 1024 px and a sprite of one size always has the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["grass", "beach", "snow", "ocean", "street", "desert", "room", "mountains", "plain"]
Light = Literal["day", "sunset", "night", "starry night"]
Relation = Literal["left of", "right of", "above", "below"]
GRID = 32


@dataclass(frozen=True)
class Item:
    """One sprite in the picture. left, top, size: in 1/32 of the picture's side; a sprite's box is square."""

    sprite: str
    colour: str | None  # None: its natural colours
    left: int
    top: int
    size: int

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in [0, 1]."""
        return (self.left + self.size / 2) / GRID, (self.top + self.size / 2) / GRID


@dataclass(frozen=True)
class Group:
    """What a caption names once: "two red cats"."""

    sprite: str
    colour: str | None
    count: int
    size_word: Literal["small", "big"] | None = None


@dataclass(frozen=True)
class Scene:
    """A picture of the storybook world.

    groups: one or two. relation: how the first group stands to the second, None where the caption does not say.
    items: every single sprite, group by group. backdrop: the colour of a plain place, else None.
    variant: which drawing of the place, 0 to 7. caption: what a person would say.
    """

    groups: tuple[Group, ...]
    relation: Relation | None
    place: Place
    light: Light
    backdrop: str | None
    variant: int
    items: tuple[Item, ...]
    caption: str
