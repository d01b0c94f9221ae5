"""The phrases captions are made of, each with what training uses and what only the wording test uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from mmgen.storybook.catalogue import BIG, COLOURS, SMALL, SPRITES, Words

PREFIXES = Words(
    (
        "a picture of ",
        "an illustration of ",
        "a drawing of ",
        "a painting of ",
        "a cartoon of ",
        "an image of ",
    ),
    ("a storybook page with ", "a sketch of ", "a scene showing "),
)
TWO = Words(("two {}", "two {}", "two {}", "a pair of {}", "2 {}"), ("a couple of {}",))
AND = Words(
    ("{} and {}", "{} and {}", "{} and {}", "{} with {}", "{} next to {}", "{} beside {}", "{} by {}"),
    ("{} together with {}", "{} alongside {}"),
)
RELATIONS: Mapping[str, Words] = MappingProxyType(
    {
        "left of": Words(
            (
                "{} to the left of {}",
                "{} left of {}",
                "{} on the left of {}",
                "{} on the left and {} on the right",
            ),
            ("{} on the left side of {}",),
        ),
        "right of": Words(
            (
                "{} to the right of {}",
                "{} right of {}",
                "{} on the right of {}",
                "{} on the right and {} on the left",
            ),
            ("{} on the right side of {}",),
        ),
        "above": Words(
            ("{} above {}", "{} over {}", "{} above {}", "{} high above {}"), ("{} directly above {}",)
        ),
        "below": Words(("{} below {}", "{} under {}", "{} beneath {}"), ("{} underneath {}",)),
    }
)
INVERSE: Mapping[str, str] = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)
PLACES: Mapping[str, Words] = MappingProxyType(
    {
        "grass": Words(
            ("on the grass", "in a meadow", "in the meadow", "in a field", "on grass"), ("on a lawn",)
        ),
        "beach": Words(
            ("on the beach", "at the beach", "on a beach", "on a sandy beach"), ("on the seashore",)
        ),
        "snow": Words(("in the snow", "on the snow", "in snow", "on snowy ground"), ("on a snowy field",)),
        "ocean": Words(
            ("on the ocean", "at sea", "on the sea", "in the ocean", "on the water"), ("on the open sea",)
        ),
        "street": Words(("on the street", "on a street", "on the road", "on a road"), ("in a city street",)),
        "desert": Words(("in the desert", "in a desert", "among the dunes"), ("in a sandy desert",)),
        "room": Words(("in a room", "in the room", "indoors", "in the living room"), ("inside a room",)),
        "mountains": Words(
            ("in the mountains", "in front of mountains", "in front of the mountains", "near the mountains"),
            ("with mountains behind",),
        ),
        "plain": Words(
            (
                "on a plain {} background",
                "on a {} background",
                "against a {} background",
                "with a plain {} background",
                "on plain {}",
            ),
            ("in front of a {} wall",),
        ),
    }
)
LIGHTS: Mapping[str, Words] = MappingProxyType(
    {
        "day": Words(
            ("during the day", "in the daytime", "by day", "on a sunny day", "in daylight"), ("at noon",)
        ),
        "sunset": Words(
            ("at sunset", "at sunset", "at dusk", "in the evening", "during sunset"), ("at sundown",)
        ),
        "night": Words(
            ("at night", "at night", "during the night", "by night", "in the moonlight"), ("after dark",)
        ),
        "starry night": Words(
            ("on a starry night", "under the stars", "under a starry sky", "on a starry night"),
            ("beneath the stars",),
        ),
    }
)


def _spoken() -> Iterator[Words]:
    """All the phrases, in no order that matters."""
    yield from (PREFIXES, TWO, AND, SMALL, BIG)
    for table in (RELATIONS, PLACES, LIGHTS):
        yield from table.values()
    yield from (colour.words for colour in COLOURS.values())
    for sprite in SPRITES.values():
        yield from (sprite.singular, sprite.plural)


def held_out_phrases() -> frozenset[str]:
    """Phrases of the wording test that no training caption contains, without their gaps."""
    return frozenset(
        part.strip()
        for words in _spoken()
        for phrase in words.held_out
        for part in phrase.split("{}")
        if part.strip()
    )


def all_phrases(held_out: bool) -> frozenset[str]:
    """Every phrase captions are made of, gaps as "{}"; those of the wording test too if `held_out`."""
    return frozenset(p for words in _spoken() for p in words.trained + (words.held_out if held_out else ()))
