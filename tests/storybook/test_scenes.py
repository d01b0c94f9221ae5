"""Scenes keep to the rules of their world; training scenes keep clear of everything held out."""

import itertools
import os
from collections import Counter

import numpy as np
import pytest

from mmgen.pipelines.vocabulary import split_words
from mmgen.storybook import data
from mmgen.storybook.catalogue import COLOURS, SPRITES
from mmgen.storybook.holdout import (
    between,
    held_out_colour,
    held_out_count,
    held_out_pair,
    held_out_relation,
    held_out_wording,
    in_training,
    trained_colours,
)
from mmgen.storybook.scene import GRID, Group, Item, Scene
from mmgen.storybook.scenes import compose, horizon

SCENES = data.scenes(1, 0, 4000)
STREAM = int(os.environ.get("MMGEN_LEAK_STREAM", "1_000_000"))  # scenes; fewer for a quick look


def test_items_stay_inside_and_apart():
    for scene in SCENES:
        for i, a in enumerate(scene.items):
            assert 1 <= a.left <= GRID - 1 - a.size
            assert 1 <= a.top <= GRID - 1 - a.size
            for b in scene.items[i + 1 :]:
                apart_x = a.left + a.size <= b.left or b.left + b.size <= a.left
                apart_y = a.top + a.size <= b.top or b.top + b.size <= a.top
                assert apart_x or apart_y


def test_items_are_the_groups_one_by_one():
    for scene in SCENES:
        said = [(g.sprite, g.colour) for g in scene.groups for _ in range(g.count)]
        assert [(i.sprite, i.colour) for i in scene.items] == said
        assert len(scene.groups) <= 2
        assert len(scene.items) <= 3


def test_relations_are_what_the_picture_shows():
    seen = Counter(scene.relation for scene in SCENES)
    assert len(seen) == 5
    for scene in SCENES:
        if scene.relation:
            a, b = scene.items
            assert between(a, b) == scene.relation
            (ax, ay), (bx, by) = a.centre, b.centre
            along, across = abs(ax - bx), abs(ay - by)
            if scene.relation in ("above", "below"):
                along, across = across, along
            assert along >= min(a.size, b.size) / GRID
            assert across <= 5.5 / GRID


def test_what_cannot_fly_stands_on_the_ground():
    """Except where the caption wants it above something."""
    for scene in SCENES:
        for item in scene.items:
            if not SPRITES[item.sprite].flies and scene.relation not in ("above", "below"):
                assert item.top + item.size >= horizon(scene.place, scene.variant) + 2


def test_kinds_come_in_their_shares():
    kinds = Counter(tuple(g.count for g in scene.groups) for scene in SCENES)
    for kind, share in (((1,), 0.20), ((1, 1), 0.46), ((2,), 0.12), ((2, 1), 0.22)):
        assert abs(kinds[kind] / len(SCENES) - share) < 0.04
    assert {g.size_word for s in SCENES for g in s.groups} == {None, "small", "big"}


def test_size_words_are_true():
    sizes: dict[str | None, set[int]] = {}
    for scene in SCENES:
        if len(scene.items) == 1:
            sizes.setdefault(scene.groups[0].size_word, set()).add(scene.items[0].size)
    assert max(sizes["small"]) < min(sizes[None])
    assert max(sizes[None]) < min(sizes["big"])


def test_a_million_training_scenes_leak_nothing():
    """The stream that the trainer reads, by scene and by the caption's own words."""
    nouns = {w: n for n, k in SPRITES.items() for words in (k.singular, k.plural) for w in words.told}
    colours = {w: c for c, k in COLOURS.items() for w in k.words.told}
    for index in range(STREAM // 1000):
        for scene in data.scenes(20, index, 1000):
            assert in_training(scene), scene
            words = split_words(scene.caption)
            for word, after in itertools.pairwise(words):
                assert not (
                    word in colours and after in nouns and held_out_colour(nouns[after], colours[word])
                ), scene


def test_each_rule_can_catch():
    """The leak test can fail: for every kind of hold-out there is a scene that `in_training` refuses."""
    names = sorted(SPRITES)
    colour = next((s, c) for s in names for c in sorted(SPRITES[s].colours) if held_out_colour(s, c))
    pair = next((a, b) for a in names for b in names if held_out_pair(a, b))
    count = next(s for s in names if held_out_count(s, 2))
    triple = next(
        (a, b) for a in names for b in names if held_out_relation(a, "left of", b) and not held_out_pair(a, b)
    )
    rng = np.random.default_rng(0)
    for groups, relation in (
        ((Group(*colour, 1),), None),
        ((Group(pair[0], None, 1), Group(pair[1], None, 1)), None),
        ((Group(count, None, 2),), None),
        ((Group(triple[0], None, 1), Group(triple[1], None, 1)), "left of"),
        ((Group(triple[1], None, 1), Group(triple[0], None, 1)), "right of"),
    ):
        assert not in_training(compose(groups, relation, "grass", "day", None, 0, rng))
    seen = compose((Group("cat", None, 1),), None, "grass", "day", None, 0, rng, caption="A kitty.")
    assert not in_training(seen)


def test_hold_out_shares():
    pairs = [(s, c) for s in SPRITES for c in SPRITES[s].colours]
    assert 0.15 < sum(held_out_colour(*p) for p in pairs) / len(pairs) < 0.32
    assert not held_out_colour("balloon", "red")
    assert all(trained_colours(s) for s in SPRITES if SPRITES[s].colours)
    assert held_out_pair("cat", "dog") == held_out_pair("dog", "cat")
    assert held_out_relation("cat", "above", "dog") == held_out_relation("dog", "below", "cat")
    assert not any(held_out_count(s, 1) for s in SPRITES)


def test_between_takes_the_longer_axis():
    cat = Item("cat", None, 10, 10, 8)
    assert between(cat, Item("dog", None, 22, 13, 8)) == "left of"
    assert between(cat, Item("dog", None, 12, 1, 8)) == "below"


def test_the_wording_split_speaks_otherwise_of_trained_things():
    for scene in data.scenes(3, 0, 500, split="wording"):
        assert held_out_wording(scene.caption)
        silent = Scene(**{**vars(scene), "caption": ""})
        assert in_training(silent)


def test_compose_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match=r"groups of \(3,\) items"):
        compose((Group("cat", None, 3),), None, "grass", "day", None, 0, np.random.default_rng(0))
