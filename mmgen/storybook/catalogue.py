"""What the storybook world holds: its sprites, its colours, and the words for them. Plain tables, no imaging library.

A sprite is known by its name, never by a position, so that widening the world moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Words:
    """The words for one thing. trained: used in training captions. held_out: only in the wording test."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sprite:
    """One drawing of the world.

    icon: id in the icon set. singular, plural: its nouns, the usual one first.
    colours: the named colours it may be painted in. natural: the name of its own colour, if it has one.
    hues: (from, to) in degrees, the hues that paint covers; from > to wraps past 360.
    greys: paint covers unsaturated parts too. lightest: parts lighter than this stay as they are.
    flies: it may be in the sky. mirrored: drawn the other way round than the icon.
    """

    icon: str
    singular: Words
    plural: Words
    colours: frozenset[str]
    natural: str | None
    hues: tuple[tuple[float, float], ...]
    greys: bool
    flies: bool
    mirrored: bool
    lightest: float


@dataclass(frozen=True)
class Colour:
    """A named colour. hue in degrees; saturation and lightness in [0, 1]; contrast scales the sprite's own shading."""

    words: Words
    hue: float
    saturation: float
    lightness: float
    contrast: float


COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": Colour(Words(("red", "crimson", "scarlet"), ("ruby",)), 358, 0.85, 0.48, 0.7),
        "orange": Colour(Words(("orange",), ("tangerine",)), 26, 0.97, 0.53, 0.6),
        "yellow": Colour(Words(("yellow", "golden"), ("lemon",)), 50, 0.97, 0.56, 0.6),
        "green": Colour(Words(("green", "emerald")), 128, 0.60, 0.40, 0.7),
        "blue": Colour(Words(("blue", "azure"), ("sapphire",)), 216, 0.85, 0.50, 0.7),
        "purple": Colour(Words(("purple", "violet")), 272, 0.62, 0.47, 0.7),
        "pink": Colour(Words(("pink",), ("rosy",)), 334, 0.88, 0.75, 0.45),
        "brown": Colour(Words(("brown", "chocolate")), 22, 0.50, 0.30, 0.6),
        "black": Colour(Words(("black",), ("jet-black",)), 240, 0.06, 0.15, 0.4),
        "white": Colour(Words(("white",), ("snow-white",)), 230, 0.20, 0.93, 0.3),
    }
)
BACKDROPS = ("orange", "yellow", "green", "blue", "purple", "pink", "white")
SMALL = Words(("small", "little", "tiny"), ("miniature",))
BIG = Words(("big", "large", "huge"), ("giant",))
_ANY = ((0.0, 360.0),)
_WARM = ((330.0, 65.0),)


def _sprite(
    icon: str,
    nouns: str,
    *,
    without: str = "",
    natural: str | None = None,
    hues: tuple[tuple[float, float], ...] = _ANY,
    greys: bool = False,
    flies: bool = False,
    mirrored: bool = False,
    lightest: float = 1,
) -> Sprite:
    """nouns: "car/cars, automobile/automobiles | auto/autos", held-out ones after the bar.

    without: colours left out beside the natural one, because they look almost like it; "all": only natural.
    """
    trained, _, held_out = nouns.partition("|")
    pairs = [
        [pair.split("/") for pair in part.replace("_", " ").split(",") if pair.strip()]
        for part in (trained, held_out)
    ]
    singular, plural = (Words(*(tuple(pair[i].strip() for pair in part) for part in pairs)) for i in (0, 1))
    left_out = {*without.split(), natural}
    colours = frozenset() if without == "all" else frozenset(c for c in COLOURS if c not in left_out)
    return Sprite(icon, singular, plural, colours, natural, hues, greys, flies, mirrored, lightest)


SPRITES: Mapping[str, Sprite] = MappingProxyType(
    {
        "cat": _sprite("cat", "cat/cats, kitten/kittens | kitty/kitties", natural="orange"),
        "dog": _sprite(
            "dog", "dog/dogs, puppy/puppies | hound/hounds", without="orange yellow", mirrored=True
        ),
        "penguin": _sprite(
            "penguin", "penguin/penguins", without="black purple white", hues=((210, 300),), lightest=0.6
        ),
        "rabbit": _sprite(
            "rabbit", "rabbit/rabbits, bunny/bunnies | hare/hares", without="white", greys=True
        ),
        "elephant": _sprite("elephant", "elephant/elephants", greys=True),
        "turtle": _sprite("turtle", "turtle/turtles, tortoise/tortoises", natural="green"),
        "fish": _sprite("fish", "fish/fish", natural="blue"),
        "butterfly": _sprite(
            "butterfly",
            "butterfly/butterflies",
            without="red brown",
            natural="orange",
            hues=_WARM,
            flies=True,
        ),
        "bird": _sprite(
            "bird", "bird/birds | songbird/songbirds", natural="red", flies=True, hues=((320, 20),)
        ),
        "snail": _sprite("snail", "snail/snails", without="orange", natural="brown"),
        "car": _sprite(
            "automobile",
            "car/cars, automobile/automobiles | auto/autos",
            without="brown",
            natural="red",
            hues=((320, 30),),
        ),
        "bus": _sprite(
            "bus",
            "bus/buses | coach/coaches",
            without="orange yellow white brown purple",
            hues=((0, 65),),
            greys=True,
        ),
        "boat": _sprite(
            "sailboat",
            "boat/boats, sailboat/sailboats, sailing boat/sailing boats | sailing ship/sailing ships",
            without="orange yellow brown",
            hues=_WARM,
        ),
        "rocket": _sprite(
            "rocket",
            "rocket/rockets, spaceship/spaceships",
            without="red white",
            hues=((230, 60),),
            greys=True,
            flies=True,
        ),
        "helicopter": _sprite(
            "helicopter",
            "helicopter/helicopters | chopper/choppers",
            without="brown",
            natural="orange",
            hues=_WARM,
            flies=True,
        ),
        "balloon": _sprite("balloon", "balloon/balloons", natural="red", hues=((260, 30),), flies=True),
        "umbrella": _sprite(
            "umbrella", "umbrella/umbrellas, parasol/parasols", natural="purple", hues=((210, 310),)
        ),
        "house": _sprite(
            "house", "house/houses, home/homes | cottage/cottages", without="orange brown", hues=((350, 60),)
        ),
        "tree": _sprite("deciduous-tree", "tree/trees", natural="green", hues=((70, 170),)),
        "tulip": _sprite(
            "tulip", "tulip/tulips, flower/flowers | blossom/blossoms", natural="pink", hues=((270, 20),)
        ),
        "mushroom": _sprite(
            "mushroom", "mushroom/mushrooms | toadstool/toadstools", natural="red", hues=((260, 20),)
        ),
        "snowman": _sprite("snowman-without-snow", "snowman/snowmen", without="all", natural="white"),
        "apple": _sprite("red-apple", "apple/apples", natural="red", hues=((260, 40),)),
        "chair": _sprite("chair", "chair/chairs | stool/stools", natural="brown"),
    }
)
