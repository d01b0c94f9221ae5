"""The scores: means as the protocol defines them, and intervals that hold what they promise."""

import json

import numpy as np
import pytest

from mmgen.evaluation.scores import Row, bootstrap, summarise


def _rows(tag: str, right: list[bool], level: str = "L0") -> list[Row]:
    return [Row(f"{tag}-{i}", tag, level, strict, True) for i, strict in enumerate(right)]


def test_overall_is_the_unweighted_mean_of_categories():
    rows = _rows("counting", [True] * 9 + [False]) + _rows("position", [True, False], "L2")
    summary = summarise(rows)
    assert summary.categories["counting"]["strict"].mean == pytest.approx(0.9)
    assert summary.overall["strict"].mean == pytest.approx((0.9 + 0.5) / 2)
    assert summary.overall["lax"].mean == 1
    assert summary.levels["L2"]["strict"].mean == 0.5
    assert summary.overall["strict"].pictures == 12


def test_the_interval_of_independent_pictures_is_the_binomial_one():
    values = [1.0] * 80 + [0.0] * 20
    score = bootstrap(values, [str(i) for i in range(100)], ["one"] * 100)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 100)
    assert score.low == pytest.approx(0.8 - half, abs=0.015)
    assert score.high == pytest.approx(0.8 + half, abs=0.015)


def test_pictures_of_one_prompt_do_not_count_as_independent():
    values = [1.0] * 320 + [0.0] * 80
    alone = bootstrap(values, [str(i) for i in range(400)], ["one"] * 400)
    clustered = bootstrap(values, [str(i // 4) for i in range(400)], ["one"] * 400)
    assert clustered.high - clustered.low == pytest.approx(2 * (alone.high - alone.low), rel=0.15)


def test_about_95_percent_of_intervals_hold_the_true_mean():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        drawn = rng.random(120) < 0.7
        score = bootstrap([float(v) for v in drawn], [str(i) for i in range(120)], ["one"] * 120, folds=1000)
        held += score.low <= 0.7 <= score.high
    assert 180 <= held <= 199


def test_categories_have_one_weight_whatever_their_size_in_every_fold():
    values = [1.0] * 1000 + [0.0, 1.0]
    score = bootstrap(values, [str(i) for i in range(1002)], ["large"] * 1000 + ["small"] * 2)
    assert score.mean == 0.75
    assert (score.low, score.high) == (0.5, 1.0)


def test_twins_are_right_when_both_are():
    rows = [
        Row("p-0", "position", "L0", True, True, "p-0"),
        Row("p-0", "position", "L0", True, True, "p-0"),
        Row("p-1", "position", "L0", True, True, "p-1"),
        Row("p-1", "position", "L0", False, True, "p-1"),
        Row("c-0", "counting", "L0", False, True),
    ]
    twins = summarise(rows).twins
    assert twins is not None
    assert (twins.mean, twins.pictures) == (0.5, 2)


def test_without_twins_there_is_no_twin_score():
    summary = summarise(_rows("counting", [True]))
    assert summary.twins is None
    assert "twins" not in summary.table()


def test_the_summary_is_json_and_a_table():
    summary = summarise(_rows("counting", [True, False]), {"seeds": 4})
    values = json.loads(json.dumps(summary.to_dict()))
    assert set(values["overall"]["strict"]) == {"mean", "low", "high", "pictures"}
    assert values["overall"]["lax"]["low"] == 1
    assert values["categories"]["counting"]["strict"]["mean"] == 0.5
    assert values["seeds"] == 4
    assert "0.500 [0.000, 1.000]" in summary.table()


def test_nothing_judged_is_an_error():
    with pytest.raises(ValueError, match="no judged picture"):
        summarise([])
