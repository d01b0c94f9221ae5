"""What the storybook world holds: its sprites, its colours, and the words for them. Plain tables, no imaging library.

A sprite is known by its name, never by a position, so that widening the world moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Words:
    """The words for one thing.

    trained: used in training captions and, as what is known, in the wording test. held_out: only in the wording test.
    more: only in training captions; with many words for each thing, one that was never read is likelier to be near.
    """

    trained: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """All that training captions use."""
        return self.trained + self.more


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


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(",") if phrase.strip())


def _colour(
    words: str, hue: float, saturation: float, lightness: float, contrast: float, *, more: str
) -> Colour:
    """words: "red, crimson | ruby", held-out ones after the bar. more: likewise."""
    trained, _, held_out = words.partition("|")
    return Colour(
        Words(_phrases(trained), _phrases(held_out), _phrases(more)), hue, saturation, lightness, contrast
    )


COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": _colour(
            "red, crimson, scarlet | ruby",
            358,
            0.85,
            0.48,
            0.7,
            more="bright red, cherry red, vermilion, blood-red, cherry, strawberry, garnet",
        ),
        "orange": _colour(
            "orange | tangerine",
            26,
            0.97,
            0.53,
            0.6,
            more="amber, apricot, bright orange, carrot-coloured, mandarin, copper",
        ),
        "yellow": _colour(
            "yellow, golden | lemon",
            50,
            0.97,
            0.56,
            0.6,
            more="bright yellow, canary yellow, gold, mustard, sunny yellow, banana, honey, buttery",
        ),
        "green": _colour(
            "green, emerald",
            128,
            0.6,
            0.4,
            0.7,
            more="olive, lime green, jade, moss green, bright green, mint green, avocado, pea green",
        ),
        "blue": _colour(
            "blue, azure | sapphire",
            216,
            0.85,
            0.5,
            0.7,
            more="navy, navy blue, sky blue, cobalt, royal blue, bright blue, turquoise, cerulean, "
            "aquamarine, ocean blue",
        ),
        "purple": _colour(
            "purple, violet",
            272,
            0.62,
            0.47,
            0.7,
            more="lavender, lilac, plum, mauve, bright purple, amethyst, grape",
        ),
        "pink": _colour(
            "pink | rosy",
            334,
            0.88,
            0.75,
            0.45,
            more="hot pink, salmon pink, rose pink, bright pink, pale pink, fuchsia, blush, "
            "flamingo pink, rose",
        ),
        "brown": _colour(
            "brown, chocolate",
            22,
            0.5,
            0.3,
            0.6,
            more="chestnut, coffee-coloured, hazel, mahogany, caramel, cocoa, walnut",
        ),
        "black": _colour(
            "black | jet-black",
            240,
            0.06,
            0.15,
            0.4,
            more="ebony, pitch-black, coal-black, inky black, onyx, charcoal",
        ),
        "white": _colour(
            "white | snow-white",
            230,
            0.2,
            0.93,
            0.3,
            more="ivory, milky white, pure white, chalk-white, bright white, pearly, porcelain",
        ),
    }
)
BACKDROPS = ("orange", "yellow", "green", "blue", "purple", "pink", "white")
SMALL = Words(("small", "little", "tiny"), ("miniature",), ("teeny", "wee", "petite"))
BIG = Words(("big", "large", "huge"), ("giant",), ("enormous", "massive", "great big"))
_ANY = ((0.0, 360.0),)
_WARM = ((330.0, 65.0),)


def _sprite(
    icon: str,
    nouns: str,
    *,
    more: str = "",
    without: str = "",
    natural: str | None = None,
    hues: tuple[tuple[float, float], ...] = _ANY,
    greys: bool = False,
    flies: bool = False,
    mirrored: bool = False,
    lightest: float = 1,
) -> Sprite:
    """nouns: "car/cars, automobile/automobiles | auto/autos", held-out ones after the bar. more: likewise.

    without: colours left out beside the natural one, because they look almost like it; "all": only natural.
    """
    trained, _, held_out = nouns.partition("|")
    pairs = [
        [pair.split("/") for pair in _phrases(part.replace("_", " "))] for part in (trained, held_out, more)
    ]
    singular, plural = (Words(*(tuple(pair[i].strip() for pair in part) for part in pairs)) for i in (0, 1))
    left_out = {*without.split(), natural}
    colours = frozenset() if without == "all" else frozenset(c for c in COLOURS if c not in left_out)
    return Sprite(icon, singular, plural, colours, natural, hues, greys, flies, mirrored, lightest)


SPRITES: Mapping[str, Sprite] = MappingProxyType(
    {
        "cat": _sprite(
            "cat",
            "cat/cats, kitten/kittens | kitty/kitties",
            more="tabby/tabbies, feline/felines, pussycat/pussycats, tomcat/tomcats, moggy/moggies",
            natural="orange",
        ),
        "dog": _sprite(
            "dog",
            "dog/dogs, puppy/puppies | hound/hounds",
            more="pup/pups, doggy/doggies, terrier/terriers, beagle/beagles, spaniel/spaniels, "
            "poodle/poodles, mutt/mutts",
            without="orange yellow",
            mirrored=True,
        ),
        "penguin": _sprite(
            "penguin",
            "penguin/penguins",
            more="baby penguin/baby penguins, emperor penguin/emperor penguins",
            without="black purple white",
            hues=((210, 300),),
            lightest=0.6,
        ),
        "rabbit": _sprite(
            "rabbit",
            "rabbit/rabbits, bunny/bunnies | hare/hares",
            more="bunny rabbit/bunny rabbits, wild rabbit/wild rabbits, baby rabbit/baby rabbits",
            without="white",
            greys=True,
        ),
        "elephant": _sprite(
            "elephant",
            "elephant/elephants",
            more="baby elephant/baby elephants, african elephant/african elephants, jumbo/jumbos",
            greys=True,
        ),
        "turtle": _sprite(
            "turtle",
            "turtle/turtles, tortoise/tortoises",
            more="sea turtle/sea turtles, terrapin/terrapins, baby turtle/baby turtles",
            natural="green",
        ),
        "fish": _sprite(
            "fish",
            "fish/fish",
            more="tropical fish/tropical fish, trout/trout, goldfish/goldfish, carp/carp",
            natural="blue",
        ),
        "butterfly": _sprite(
            "butterfly",
            "butterfly/butterflies",
            more="monarch butterfly/monarch butterflies, moth/moths, painted butterfly/painted butterflies",
            without="red brown",
            natural="orange",
            hues=_WARM,
            flies=True,
        ),
        "bird": _sprite(
            "bird",
            "bird/birds | songbird/songbirds",
            more="robin/robins, sparrow/sparrows, finch/finches, thrush/thrushes, wild bird/wild birds, "
            "warbler/warblers, wren/wrens",
            natural="red",
            flies=True,
            hues=((320, 20),),
        ),
        "snail": _sprite(
            "snail",
            "snail/snails",
            more="garden snail/garden snails, land snail/land snails, slug/slugs",
            without="orange",
            natural="brown",
        ),
        "car": _sprite(
            "automobile",
            "car/cars, automobile/automobiles | auto/autos",
            more="motor car/motor cars, sedan/sedans, hatchback/hatchbacks, coupe/coupes, motorcar/motorcars",
            without="brown",
            natural="red",
            hues=((320, 30),),
        ),
        "bus": _sprite(
            "bus",
            "bus/buses | coach/coaches",
            more="minibus/minibuses, shuttle bus/shuttle buses, omnibus/omnibuses, school bus/school buses",
            without="orange yellow white brown purple",
            hues=((0, 65),),
            greys=True,
        ),
        "boat": _sprite(
            "sailboat",
            "boat/boats, sailboat/sailboats, sailing boat/sailing boats | sailing ship/sailing ships",
            more="yacht/yachts, dinghy/dinghies, sloop/sloops, sail boat/sail boats, "
            "catamaran/catamarans, schooner/schooners, sailing vessel/sailing vessels, "
            "galleon/galleons",
            without="orange yellow brown",
            hues=_WARM,
        ),
        "rocket": _sprite(
            "rocket",
            "rocket/rockets, spaceship/spaceships",
            more="spacecraft/spacecraft, space rocket/space rockets, moon rocket/moon rockets",
            without="red white",
            hues=((230, 60),),
            greys=True,
            flies=True,
        ),
        "helicopter": _sprite(
            "helicopter",
            "helicopter/helicopters | chopper/choppers",
            more="copter/copters, rescue helicopter/rescue helicopters, toy helicopter/toy helicopters, "
            "gyrocopter/gyrocopters, rotorcraft/rotorcraft",
            without="brown",
            natural="orange",
            hues=_WARM,
            flies=True,
        ),
        "balloon": _sprite(
            "balloon",
            "balloon/balloons",
            more="party balloon/party balloons, toy balloon/toy balloons, air balloon/air balloons",
            natural="red",
            hues=((260, 30),),
            flies=True,
        ),
        "umbrella": _sprite(
            "umbrella",
            "umbrella/umbrellas, parasol/parasols",
            more="brolly/brollies, sunshade/sunshades, sun umbrella/sun umbrellas, "
            "rain umbrella/rain umbrellas",
            natural="purple",
            hues=((210, 310),),
        ),
        "house": _sprite(
            "house",
            "house/houses, home/homes | cottage/cottages",
            more="cabin/cabins, hut/huts, bungalow/bungalows, villa/villas, farmhouse/farmhouses",
            without="orange brown",
            hues=((350, 60),),
        ),
        "tree": _sprite(
            "deciduous-tree",
            "tree/trees",
            more="oak/oaks, oak tree/oak trees, maple tree/maple trees, elm/elms, leafy tree/leafy trees",
            natural="green",
            hues=((70, 170),),
        ),
        "tulip": _sprite(
            "tulip",
            "tulip/tulips, flower/flowers | blossom/blossoms",
            more="bloom/blooms, spring flower/spring flowers, garden flower/garden flowers, lily/lilies",
            natural="pink",
            hues=((270, 20),),
        ),
        "mushroom": _sprite(
            "mushroom",
            "mushroom/mushrooms | toadstool/toadstools",
            more="fungus/fungi, wild mushroom/wild mushrooms, forest mushroom/forest mushrooms",
            natural="red",
            hues=((260, 20),),
        ),
        "snowman": _sprite(
            "snowman-without-snow",
            "snowman/snowmen",
            more="snow figure/snow figures, frosty snowman/frosty snowmen",
            without="all",
            natural="white",
        ),
        "apple": _sprite(
            "red-apple",
            "apple/apples",
            more="ripe apple/ripe apples, juicy apple/juicy apples, fresh apple/fresh apples, fruit/fruits",
            natural="red",
            hues=((260, 40),),
        ),
        "chair": _sprite(
            "chair",
            "chair/chairs | stool/stools",
            more="wooden chair/wooden chairs, kitchen chair/kitchen chairs, armchair/armchairs, seat/seats",
            natural="brown",
        ),
    }
)
