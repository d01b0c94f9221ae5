"""The frozen prompts: written once by `write_prompts`, then read from the package. Their truth is GenEval's schema.

Each line: id, cluster (the unit of resampling: a prompt, or two twins), tag, level, prompt, seed (of the first picture;
the others follow it), include, exclude, and place, light, backdrop where the prompt names them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mmgen.evaluation.verdict import Entry
from mmgen.storybook import wording
from mmgen.storybook.captions import caption
from mmgen.storybook.catalogue import BACKDROPS, COLOURS, SPRITES, Words
from mmgen.storybook.holdout import held_out_colour, held_out_count, held_out_pair, held_out_relation
from mmgen.storybook.scene import Group, Light, Place, Relation, Scene
from mmgen.storybook.scenes import PLACES, RELATIONS, VARIANTS, compose

SEED = 20_261_121
NAMES = tuple(sorted(SPRITES))
DAY: Light = "day"
SCENERY = ("place", "light", "backdrop")
INVERSE: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
_SAID: dict[Relation, str] = {
    "left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below",
}  # fmt: skip
Groups = tuple[Group, ...]
# (groups, relation of the first to the second, place, light, backdrop); None where the prompt does not say
Asked = tuple[Groups, Relation | None, Place | None, Light | None, str | None]
Shuffle = Callable[[Iterable[Asked]], list[Asked]]


def prompts_path() -> Path:
    """The frozen prompt file of the package."""
    return Path(str(resources.files("mmgen.evaluation") / "prompts" / "storybook.jsonl"))


def read_prompts(path: Path | None = None) -> list[Entry]:
    """The entries of a prompt file, by default the frozen one."""
    lines = (path or prompts_path()).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def write_prompts(path: Path) -> list[Entry]:
    """Write the prompt file; the same file at every call as long as the world is the same. Returns its entries."""
    entries = list(_entries())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8"
    )
    return entries


def level(groups: Groups, relation: Relation | None) -> str:
    """L2: the pair, relation or count was never trained; L1: only a colour on its sprite was not; L0: all seen."""
    if any(held_out_count(g.sprite, g.count) for g in groups):
        return "L2"
    if len(groups) == 2:
        a, b = (g.sprite for g in groups)
        if held_out_pair(a, b) or (relation and held_out_relation(a, relation, b)):
            return "L2"
    return "L1" if any(held_out_colour(g.sprite, g.colour) for g in groups) else "L0"


def include(groups: Groups, relation: Relation | None) -> list[dict[str, Any]]:
    """GenEval's lines for what is asked for: with a relation the second group is named first, as the reference."""
    lines = [
        {"class": g.sprite, "count": g.count, **({"color": g.colour} if g.colour else {})} for g in groups
    ]
    if relation is not None:
        lines = [lines[1], {**lines[0], "position": [relation, 0]}]
    return lines


def asked_of(entry: Entry) -> tuple[Groups, Relation | None]:
    """The inverse of `include`: the groups and how the first stands to the second."""
    groups = [Group(line["class"], line.get("color"), line["count"]) for line in entry["include"]]
    positioned = [i for i, line in enumerate(entry["include"]) if "position" in line]
    if not positioned:
        return tuple(groups), None
    return tuple(reversed(groups)), entry["include"][positioned[0]]["position"][0]


def truth_scene(entry: Entry, seed: int) -> Scene:
    """A scene that is what the entry asks for; what it leaves open is drawn from the seed."""
    rng = np.random.default_rng(seed)
    groups, relation = asked_of(entry)
    place = entry.get("place") or PLACES[int(rng.integers(len(PLACES)))]
    drawn: Light = get_args(Light)[int(rng.integers(4))]
    light: Light = "day" if place == "plain" else entry.get("light", drawn)
    variant = int(rng.integers(VARIANTS))
    return compose(
        groups, relation, place, light, entry.get("backdrop"), variant, rng, entry.get("prompt", "")
    )


def _entries() -> Iterator[Entry]:
    rng = np.random.default_rng(SEED)

    def shuffle(asked: Iterable[Asked]) -> list[Asked]:
        pool = list(asked)
        return [pool[i] for i in rng.permutation(len(pool))]

    makers = (
        _single,
        _pairs,
        _counts,
        _colours,
        _positions,
        _bindings,
        _coloured_positions,
        _count_two,
        _backgrounds,
    )
    tags = (
        "single_object", "two_object", "counting", "colors", "position", "color_attr", "color_position", "count_two",
        "background",
    )  # fmt: skip
    for tag, maker in zip(tags, makers, strict=True):
        for number, cluster in enumerate(maker(shuffle)):
            for letter, asked in zip("ab", cluster, strict=False):
                name = f"{tag}-{number:03d}"
                prompt = sentence(asked, counted=tag == "counting")
                yield _entry(tag, name, name + (letter if len(cluster) > 1 else ""), asked, prompt)
        yield from _reworded(tag, maker(shuffle), rng)


def _entry(tag: str, cluster: str, name: str, asked: Asked, prompt: str, known: str | None = None) -> Entry:
    groups, relation, *scenery = asked
    said = {k: v for k, v in zip(SCENERY, scenery, strict=True) if v is not None}
    digest = hashlib.sha256(cluster.encode()).digest()
    return {
        "id": name, "cluster": cluster, "tag": tag, "level": known or level(groups, relation), "prompt": prompt,
        "seed": int.from_bytes(digest[:4], "big") >> 1, "include": include(groups, relation),
        "exclude": [{"class": g.sprite, "count": g.count + 1} for g in groups if tag.startswith("count")], **said,
    }  # fmt: skip


def sentence(asked: Asked, counted: bool = False) -> str:
    """The plainest way to ask for it, in words of the training captions. counted: "one cat" for "a cat"."""
    groups, relation, place, light, backdrop = asked
    first, *second = (_noun(group, counted) for group in groups)
    text = first
    if second:
        text = f"{first} {_SAID[relation] if relation else 'and'} {second[0]}"
    if place is not None:
        text = f"{text} {wording.PLACES[place].trained[0].format(backdrop)}"
    return text if light is None else f"{text} {wording.LIGHTS[light].trained[0]}"


def _noun(group: Group, counted: bool) -> str:
    kind = SPRITES[group.sprite]
    words = (kind.singular if group.count == 1 else kind.plural).trained[0]
    noun = f"{group.colour} {words}" if group.colour else words
    if group.count > 1 or counted:
        return f"{('one', 'two')[group.count - 1]} {noun}"
    return f"an {noun}" if noun[0] in "aeio" or noun.startswith("umb") else f"a {noun}"


def _ask(*groups: Group, relation: Relation | None = None, place: Place | None = None) -> Asked:
    return groups, relation, place, None, None


def _one(sprite: str, colour: str | None = None, count: int = 1) -> Group:
    return Group(sprite, colour, count)


def _split(asked: Iterable[Asked]) -> dict[str, list[Asked]]:
    by_level: dict[str, list[Asked]] = {"L0": [], "L1": [], "L2": []}
    for one in asked:
        by_level[level(one[0], one[1])].append(one)
    return by_level


def _placed(asked: Sequence[Asked], shift: int = 0) -> list[Asked]:
    """The same in one place after the other, beginning with the place number `shift`."""
    places = PLACES[shift:] + PLACES[:shift]
    return [
        (groups, relation, places[i % len(places)], None, None)
        for i, (groups, relation, *_) in enumerate(asked)
    ]


Clusters = list[tuple[Asked, ...]]


def _alone(asked: Iterable[Asked]) -> Clusters:
    return [(one,) for one in asked]


def _single(shuffle: Shuffle) -> Clusters:
    """Every sprite by itself, then in a place, then some in another: 80."""
    every = [_ask(_one(s)) for s in NAMES]
    order = shuffle(every)
    return _alone([*every, *(asked for shift in (0, 3, 6) for asked in _placed(order, shift))][:80])


def _pairs(shuffle: Shuffle) -> Clusters:
    """All held-out pairs (at most 40) and as many others as make 120."""
    found = _split(shuffle(_ask(_one(a), _one(b)) for a, b in combinations(NAMES, 2)))
    novel = found["L2"][:40]
    return _alone([*found["L0"][: 120 - len(novel)], *novel])


def _counts(shuffle: Shuffle) -> Clusters:
    """One and two of every sprite, two in a place, two in a trained colour: about 95."""
    two = [_ask(_one(s, None, 2)) for s in NAMES]
    painted = [
        _ask(_one(s, c, 2)) for s in NAMES for c in sorted(SPRITES[s].colours) if not held_out_colour(s, c)
    ]
    first = {asked[0][0].sprite: asked for asked in shuffle(painted)}
    return _alone(
        [*(_ask(_one(s)) for s in NAMES), *two, *_placed(shuffle(two)), *(first[s] for s in sorted(first))]
    )


def _colours(shuffle: Shuffle) -> Clusters:
    """60 trained pairs of colour and sprite, 60 held-out ones; where there are fewer, some again in a place."""
    found = _split(shuffle(_ask(_one(s, c)) for s in NAMES for c in sorted(SPRITES[s].colours)))
    novel = [*found["L1"], *_placed(found["L1"])][:60]
    bare = min(len(found["L1"]), 60)
    return _alone([*found["L0"][:bare], *_placed(found["L0"][bare:])[: 60 - bare], *novel])


def _positions(shuffle: Shuffle) -> Clusters:
    """80 twins: a relation and its mirror; in 20 of them the first is a held-out triple."""
    pairs = [p for p in permutations(NAMES, 2) if not held_out_pair(*p)]
    every = shuffle(_ask(_one(a), _one(b), relation=r) for a, b in pairs for r in RELATIONS)
    both = [(one, _mirrored(one)) for one in every]
    seen = [twins for twins in both if {level(t[0], t[1]) for t in twins} == {"L0"}]
    novel = [twins for twins in both if level(*twins[0][:2]) == "L2"]
    return [*_distinct(seen, 60), *_distinct(novel, 20)]


def _mirrored(asked: Asked) -> Asked:
    groups, relation, *rest = asked
    assert relation is not None
    return groups, INVERSE[relation], *rest  # type: ignore[return-value]


def _bindings(shuffle: Shuffle) -> Clusters:
    """80 twins, their colours exchanged: 50 all seen, 15 with a held-out colour, 15 held-out pairs."""
    both = [
        (one, (tuple(_exchanged(one[0])), *one[1:]))
        for one in shuffle(_painted_pairs())
        if all(g.colour in SPRITES[g.sprite].colours for g in _exchanged(one[0]))
    ]
    levels = [{level(t[0], t[1]) for t in twins} for twins in both]
    seen = [t for t, found in zip(both, levels, strict=True) if found == {"L0"}]
    painted = [t for t, found in zip(both, levels, strict=True) if "L1" in found]
    novel = [t for t, found in zip(both, levels, strict=True) if found == {"L2"}]
    return [*_distinct(seen, 50), *_distinct(painted, 15), *_distinct(novel, 15)]


def _painted_pairs(relations: Sequence[Relation | None] = (None,)) -> Iterator[Asked]:
    """Two sprites in two different named colours, a spread of all there are."""
    for i, (a, b) in enumerate(permutations(NAMES, 2)):
        for j, (c, d) in enumerate(permutations(sorted(COLOURS), 2)):
            if (i + j) % 7 == 0 and c in SPRITES[a].colours and d in SPRITES[b].colours:
                yield _ask(_one(a, c), _one(b, d), relation=relations[(i + j // 7) % len(relations)])


def _exchanged(groups: Groups) -> list[Group]:
    a, b = groups
    return [Group(a.sprite, b.colour, a.count), Group(b.sprite, a.colour, b.count)]


def _distinct(clusters: Iterable[tuple[Asked, ...]], count: int) -> Clusters:
    """The first `count` clusters such that no two speak of the same sprites in the same order or its reverse."""
    found: dict[tuple[str, ...], tuple[Asked, ...]] = {}
    for cluster in clusters:
        found.setdefault(tuple(sorted(g.sprite for g in cluster[0][0])), cluster)
    return list(found.values())[:count]


def _coloured_positions(shuffle: Shuffle) -> Clusters:
    """120: 60 all seen, 30 with a held-out colour, 30 with a held-out pair or triple."""
    found = _split(shuffle(_painted_pairs(RELATIONS)))
    return [c for name, n in (("L0", 60), ("L1", 30), ("L2", 30)) for c in _distinct(_alone(found[name]), n)]


def _count_two(shuffle: Shuffle) -> Clusters:
    """80: two of one and one of another; 60 all seen, 20 held-out pairs or counts."""
    found = _split(shuffle(_ask(_one(a, None, 2), _one(b)) for a, b in permutations(NAMES, 2)))
    return [*_distinct(_alone(found["L0"]), 60), *_distinct(_alone(found["L2"]), 20)]


def _backgrounds(shuffle: Shuffle) -> Clusters:
    """60: every place by every light, and every plain colour, with one sprite each."""
    lights: Sequence[Light] = get_args(Light)
    where: list[tuple[Place, Light | None, str | None]] = [
        (p, light, None) for p in PLACES for light in lights
    ]
    where += [("plain", None, colour) for colour in BACKDROPS]
    where += [(p, lights[i % 4], None) for i, p in enumerate([*PLACES, *PLACES, *PLACES])]
    who = shuffle(_ask(_one(s)) for s in NAMES if SPRITES[s].natural != "white")
    return [((who[(i + i // len(who)) % len(who)][0], None, *place),) for i, place in enumerate(where[:60])]


def _reworded(tag: str, clusters: Clusters, rng: np.random.Generator) -> Iterator[Entry]:
    """12 seen combinations of a category, said as no training caption says it."""
    seen = [cluster[0] for cluster in clusters if level(cluster[0][0], cluster[0][1]) == "L0"]
    for number, asked in enumerate(seen[i] for i in rng.permutation(len(seen))[:12]):
        groups, relation, place, light, backdrop = asked
        place, light = place or PLACES[int(rng.integers(len(PLACES)))], light or DAY
        said = caption(groups, relation, place, light, backdrop, rng, "wording")
        tell = partial(_tells, said.lower())
        shown = place if tell(wording.PLACES[place], backdrop) else None
        lit = light if tell(wording.LIGHTS[light]) else None
        name = f"{tag}-wording-{number:02d}"
        yield _entry(tag, name, name, (groups, relation, shown, lit, backdrop if shown else None), said, "L3")


def _tells(said: str, words: Words, backdrop: str | None = None) -> bool:
    """Whether a caption names a place or light."""
    colours = COLOURS[backdrop].words if backdrop else Words(("",))
    names = [*colours.trained, *colours.held_out]
    return any(phrase.format(name) in said for phrase in (*words.trained, *words.held_out) for name in names)
