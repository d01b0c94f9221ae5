"""The phrases captions are made of: what training uses, what only the wording test uses, and more for training."""

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
    (
        "a photo of ",
        "a watercolour of ",
        "artwork of ",
        "a poster of ",
        "a postcard of ",
        "a view of ",
        "a simple drawing of ",
        "a nice picture of ",
        "a painting with ",
        "draw ",
        "i want a picture of ",
    ),
)
TWO = Words(
    ("two {}", "two {}", "two {}", "a pair of {}", "2 {}"),
    ("a couple of {}",),
    ("exactly two {}", "a duo of {}", "twin {}", "just two {}", "a set of two {}"),
)
AND = Words(
    ("{} and {}", "{} and {}", "{} and {}", "{} with {}", "{} next to {}", "{} beside {}", "{} by {}"),
    ("{} together with {}", "{} alongside {}"),
    (
        "{} along with {}",
        "{} plus {}",
        "{} near {}",
        "{} close to {}",
        "{} as well as {}",
        "{} and also {}",
        "{} accompanied by {}",
    ),
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
            (
                "{} at the left of {}",
                "{} just to the left of {}",
                "{} at the left and {} at the right",
                "{} immediately left of {}",
            ),
        ),
        "right of": Words(
            (
                "{} to the right of {}",
                "{} right of {}",
                "{} on the right of {}",
                "{} on the right and {} on the left",
            ),
            ("{} on the right side of {}",),
            (
                "{} at the right of {}",
                "{} just to the right of {}",
                "{} at the right and {} at the left",
                "{} immediately right of {}",
            ),
        ),
        "above": Words(
            ("{} above {}", "{} over {}", "{} above {}", "{} high above {}"),
            ("{} directly above {}",),
            ("{} up above {}", "{} higher than {}", "{} just above {}", "{} hovering over {}"),
        ),
        "below": Words(
            ("{} below {}", "{} under {}", "{} beneath {}"),
            ("{} underneath {}",),
            ("{} down below {}", "{} lower than {}", "{} just below {}", "{} far below {}"),
        ),
    }
)
INVERSE: Mapping[str, str] = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)
PLACES: Mapping[str, Words] = MappingProxyType(
    {
        "grass": Words(
            ("on the grass", "in a meadow", "in the meadow", "in a field", "on grass"),
            ("on a lawn",),
            (
                "in the grass",
                "in a grassy field",
                "on a grassy hill",
                "in a park",
                "in a pasture",
                "in the garden",
                "in the countryside",
            ),
        ),
        "beach": Words(
            ("on the beach", "at the beach", "on a beach", "on a sandy beach"),
            ("on the seashore",),
            (
                "on the sand",
                "on the shore",
                "at the seaside",
                "on a tropical beach",
                "on the coast",
                "at the shore",
            ),
        ),
        "snow": Words(
            ("in the snow", "on the snow", "in snow", "on snowy ground"),
            ("on a snowy field",),
            (
                "in a snowy landscape",
                "in fresh snow",
                "in deep snow",
                "in winter",
                "in a wintry landscape",
                "on snow",
            ),
        ),
        "ocean": Words(
            ("on the ocean", "at sea", "on the sea", "in the ocean", "on the water"),
            ("on the open sea",),
            (
                "on the waves",
                "in the sea",
                "out at sea",
                "on the high seas",
                "in the water",
                "far out on the ocean",
            ),
        ),
        "street": Words(
            ("on the street", "on a street", "on the road", "on a road"),
            ("in a city street",),
            (
                "in the street",
                "in a town",
                "in town",
                "on the highway",
                "on an avenue",
                "on a busy street",
                "on an empty road",
            ),
        ),
        "desert": Words(
            ("in the desert", "in a desert", "among the dunes"),
            ("in a sandy desert",),
            ("in the sahara", "on the dunes", "among sand dunes", "on desert sand", "in the hot desert"),
        ),
        "room": Words(
            ("in a room", "in the room", "indoors", "in the living room"),
            ("inside a room",),
            (
                "in a bedroom",
                "in the kitchen",
                "in an empty room",
                "in a hall",
                "in a lounge",
                "in a parlour",
            ),
        ),
        "mountains": Words(
            ("in the mountains", "in front of mountains", "in front of the mountains", "near the mountains"),
            ("with mountains behind",),
            (
                "in the alps",
                "in a mountain valley",
                "before the mountains",
                "among the mountains",
                "with a mountain view",
                "in the hills",
            ),
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
            (
                "on a flat {} background",
                "on an empty {} background",
                "on a solid {} background",
                "with a {} background",
                "on a {} backdrop",
                "against plain {}",
                "on {} paper",
            ),
        ),
    }
)
LIGHTS: Mapping[str, Words] = MappingProxyType(
    {
        "day": Words(
            ("during the day", "in the daytime", "by day", "on a sunny day", "in daylight"),
            ("at noon",),
            (
                "in the morning",
                "in the afternoon",
                "at midday",
                "in bright sunlight",
                "in the sunshine",
                "on a bright day",
                "under the sun",
            ),
        ),
        "sunset": Words(
            ("at sunset", "at sunset", "at dusk", "in the evening", "during sunset"),
            ("at sundown",),
            (
                "at twilight",
                "in the evening light",
                "as the sun sets",
                "in the sunset",
                "late in the evening",
                "at the end of the day",
            ),
        ),
        "night": Words(
            ("at night", "at night", "during the night", "by night", "in the moonlight"),
            ("after dark",),
            ("at midnight", "late at night", "in the night", "in moonlight", "under the moon"),
        ),
        "starry night": Words(
            ("on a starry night", "under the stars", "under a starry sky", "on a starry night"),
            ("beneath the stars",),
            (
                "with stars in the sky",
                "under many stars",
                "under a sky full of stars",
                "in starlight",
                "by starlight",
                "on a night full of stars",
            ),
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
    return frozenset(p for words in _spoken() for p in words.told + (words.held_out if held_out else ()))
