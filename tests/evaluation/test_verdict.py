"""The two rules, on sights that are written down."""

from dataclasses import replace

import pytest

from mmgen.evaluation.verdict import Detection, Sight, relations, verdict


def _seen(
    sprite: str, colour: str | None = None, x: float = 0.5, y: float = 0.5, own: str | None = None
) -> Detection:
    colours = frozenset({colour, own} if own and not colour else {colour})
    return Detection(sprite, colour, colours, (x - 0.15, y - 0.15, x + 0.15, y + 0.15), 0.9)


def _sight(*seen: Detection) -> Sight:
    return Sight(seen, "beach", "day", None)


def _entry(*include: dict, **more: object) -> dict:
    return {"tag": "", "prompt": "", "include": list(include), "exclude": [], **more}


CAT = {"class": "cat", "count": 1}
RED_CAR = {"class": "car", "count": 1, "color": "red"}


def _verdicts(sight: Sight, entry: dict) -> tuple[bool, bool]:
    found = verdict(sight, entry)
    assert found.strict == (not found.reasons)
    return found.strict, found.lax


@pytest.mark.parametrize(
    ("seen", "include", "strict", "lax"),
    [
        ([_seen("cat")], [CAT], True, True),
        ([], [CAT], False, False),
        ([_seen("dog")], [CAT], False, False),
        ([_seen("cat"), _seen("dog")], [CAT], False, True),
        ([_seen("cat"), _seen("cat")], [CAT], False, True),
        ([_seen("cat", "blue")], [CAT], False, True),
        ([_seen("car", "blue")], [RED_CAR], False, False),
        ([_seen("car", "red")], [RED_CAR], True, True),
        ([_seen("car", own="red")], [RED_CAR], True, True),
        ([_seen("cat"), _seen("car", "red")], [RED_CAR, CAT], True, True),
        ([_seen("cat", "red"), _seen("car")], [RED_CAR, CAT], False, False),
        ([_seen("cat"), _seen("cat")], [{"class": "cat", "count": 2}], True, True),
        ([_seen("cat")], [{"class": "cat", "count": 2}], False, False),
    ],
)
def test_objects_and_colours(seen, include, strict, lax):
    assert _verdicts(_sight(*seen), _entry(*include)) == (strict, lax)


def test_an_unknown_object_is_wrong_by_the_strict_rule_only():
    sight = replace(_sight(_seen("cat")), unknown=((0.1, 0.1, 0.3, 0.3),))
    assert _verdicts(sight, _entry(CAT)) == (False, True)


def test_one_sprite_in_two_colours():
    include = [{"class": "car", "count": 1}, {"class": "car", "count": 1, "color": "red"}]
    assert _verdicts(_sight(_seen("car", own="red"), _seen("car", "red")), _entry(*include)) == (True, True)
    assert not verdict(_sight(_seen("car", "red"), _seen("car", "red")), _entry(*include)).strict


@pytest.mark.parametrize(("relation", "holds"), [("left of", True), ("right of", False), ("above", False)])
def test_positions(relation, holds):
    dog = {"class": "dog", "count": 1, "position": [relation, 0]}
    sight = _sight(_seen("cat", x=0.8), _seen("dog", x=0.2))
    assert _verdicts(sight, _entry(CAT, dog)) == (holds, holds)


def test_every_member_of_a_group_must_stand_where_it_should():
    dogs = {"class": "dog", "count": 2, "position": ["left of", 0]}
    either_side = _sight(_seen("cat"), _seen("dog", x=0.1), _seen("dog", x=0.9))
    assert not verdict(either_side, _entry(CAT, dogs)).strict


def test_relations_follow_genevals_margin():
    centre = (0.4, 0.4, 0.6, 0.6)
    assert relations((0.0, 0.4, 0.2, 0.6), centre) == {"left of"}
    assert relations((0.8, 0.8, 1.0, 1.0), centre) == {"right of", "below"}
    assert relations((0.42, 0.4, 0.62, 0.6), centre) == set()
    assert relations((0.4, 0.0, 0.6, 0.2), centre) == {"above"}


def test_place_light_and_absence():
    assert _verdicts(_sight(_seen("cat")), _entry(CAT, place="beach", light="day")) == (True, True)
    assert _verdicts(_sight(_seen("cat")), _entry(CAT, place="snow")) == (False, False)
    assert _verdicts(_sight(_seen("cat")), _entry(CAT, light="night")) == (False, False)
    assert _verdicts(_sight(_seen("cat")), _entry(exclude=[{"class": "cat", "count": 1}])) == (False, False)
    assert _verdicts(_sight(), _entry(exclude=[{"class": "cat", "count": 1}])) == (True, True)
