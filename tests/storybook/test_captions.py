"""Captions say what is there, in words that the vocabulary knows."""

import re
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.pipelines.vocabulary import split_words, unknown_words
from mmgen.storybook import data
from mmgen.storybook.captions import caption
from mmgen.storybook.catalogue import BIG, COLOURS, SMALL, SPRITES
from mmgen.storybook.scene import Group
from mmgen.storybook.vocabulary import words
from mmgen.storybook.wording import LIGHTS, PLACES, TWO

SCENES = data.scenes(5, 0, 3000)


def says(text: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(p)}(?![\w-])", text.lower()) for p in phrases)


def test_captions_name_every_thing_and_its_colour():
    two = tuple(phrase.format("").strip() for phrase in TWO.told)
    for scene in SCENES:
        for group in scene.groups:
            kind = SPRITES[group.sprite]
            noun = kind.singular if group.count == 1 else kind.plural
            assert says(scene.caption, noun.told), scene
            if group.colour:
                assert says(scene.caption, COLOURS[group.colour].words.told), scene
            if group.size_word:
                assert says(scene.caption, (SMALL if group.size_word == "small" else BIG).told), scene
            if group.count == 2:
                assert says(scene.caption, two), scene


def test_captions_name_nothing_that_is_not_there():
    nouns = {w: n for n, k in SPRITES.items() for ws in (k.singular, k.plural) for w in ws.told}
    for scene in SCENES:
        there = {g.sprite for g in scene.groups}
        assert all(nouns[w] in there for w in split_words(scene.caption) if w in nouns), scene
        said = {c for c, k in COLOURS.items() if says(scene.caption, k.words.told)}
        natural = {SPRITES[s].natural for s in there}
        assert said <= {g.colour for g in scene.groups} | natural | {scene.backdrop}, scene


def test_place_and_light_are_true_and_often_left_out():
    said: Counter[str] = Counter()
    outdoors = [s for s in SCENES if s.place != "plain"]
    for scene in outdoors:
        places = {p for p, ws in PLACES.items() if p != "plain" and says(scene.caption, ws.told)}
        lights = {x for x, ws in LIGHTS.items() if says(scene.caption, ws.told)}
        assert places <= {scene.place}
        assert lights <= {scene.light}
        said.update(place=len(places), light=len(lights))
    assert abs(said["place"] / len(outdoors) - 0.85) < 0.04
    assert abs(said["light"] / len(outdoors) - 0.70) < 0.04


def test_relations_are_said_the_right_way_round():
    groups = (Group("cat", None, 1), Group("house", None, 1))
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = caption(groups, "above", "grass", "day", None, rng).replace("under the sun", "")
        cat, house = (
            re.search("|".join(rf"\b{word}\b" for word in SPRITES[name].singular.told), text.lower())
            for name in ("cat", "house")
        )
        assert cat is not None
        assert house is not None
        cat_first = cat.start() < house.start()
        assert cat_first == says(text, ("above", "over", "higher"))
        assert cat_first != says(text, ("below", "under", "beneath", "lower"))


def test_articles_and_capitals():
    for scene in SCENES:
        assert not re.search(r"\b[Aa] [aeio]", scene.caption.replace("a one", "a 1")), scene.caption
        assert not re.search(r"\b[Aa]n [^aeiou]", scene.caption), scene.caption
        assert "{" not in scene.caption
        assert "  " not in scene.caption
        assert scene.caption[0].islower() != scene.caption.endswith(".") or scene.caption[0] == "2"


def test_every_word_of_a_thing_is_said_in_training_and_only_known_ones_in_the_wording_test():
    groups, rng = (Group("dog", None, 1),), np.random.default_rng(0)
    kind = SPRITES["dog"].singular
    trained = " ".join(caption(groups, None, "snow", "night", None, rng) for _ in range(600))
    tested = " ".join(caption(groups, None, "snow", "night", None, rng, "wording") for _ in range(600))
    for said, never in ((trained, kind.held_out), (tested, kind.more)):
        assert not says(said, never)
    assert all(says(trained, (word,)) for word in kind.told)
    assert all(says(tested, (word,)) for word in kind.trained + kind.held_out)


def test_captions_vary():
    groups = (Group("car", None, 1),)
    rng = np.random.default_rng(0)
    assert len({caption(groups, None, "snow", "night", None, rng) for _ in range(300)}) > 150


def test_the_vocabulary_covers_every_caption():
    trained = words(held_out=False)
    for scene in SCENES:
        assert set(split_words(scene.caption)) <= trained
    for scene in data.scenes(6, 0, 1000, split="wording"):
        assert set(split_words(scene.caption)) <= words()
    assert trained < words()


def test_unknown_words_by_example():
    assert unknown_words("Please draw two red cats, with some balloons!", words()) == {}
    assert unknown_words("a lampp", ["lamp", "cat"]) == {"lampp": "lamp"}
    assert unknown_words("the cat's red-blue balloon", words()) == {}
    assert unknown_words("a baloon and a baloon", words()) == {"baloon": "balloon"}
    assert unknown_words("a chandelier", []) == {"chandelier": ""}


@settings(deadline=None)  # the first example builds the vocabulary
@given(st.text(max_size=80), st.lists(st.text(min_size=1, max_size=8), max_size=8))
def test_unknown_words_of_any_text(prompt, known):
    found = unknown_words(prompt, known)
    lower = {word.lower() for word in known}
    said = split_words(prompt)
    assert list(found) == [w for w in dict.fromkeys(said) if w in found]
    assert set(found).isdisjoint(lower)
    assert set(found.values()) <= lower | {""}


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(words())), max_size=12))
def test_known_words_are_never_reported(chosen):
    assert unknown_words(" ".join(chosen), words()) == {}
    assert unknown_words(" ".join(chosen).upper(), words()) == {}


@settings(deadline=None)
@given(st.from_regex(r"[bcdfgz]{9,12}", fullmatch=True))
def test_nonsense_is_always_reported(word):
    assert word in unknown_words(f"a red {word} on the beach", words())
