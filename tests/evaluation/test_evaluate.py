"""The evaluation from prompts to scores, with the world itself as the model."""

import json
from collections import Counter

import pytest
import torch
from PIL import Image

from mmgen.errors import NonFiniteError
from mmgen.evaluation.prompts import (
    asked_of,
    include,
    level,
    prompts_path,
    read_prompts,
    truth_scene,
    write_prompts,
)
from mmgen.evaluation.sheets import sheet
from mmgen.evaluation.storybook import evaluate, quick, shuffled, truth
from mmgen.images import to_tensor
from mmgen.models import presets
from mmgen.models.text import TextEncoder
from mmgen.pipelines.vocabulary import unknown_words
from mmgen.storybook.holdout import held_out_wording
from mmgen.storybook.scene import Group
from mmgen.storybook.vocabulary import words
from mmgen.training import sheets
from tests.checkpoints import write_bert

ENTRIES = read_prompts()
NAMES = {"cat", "car", "balloon", "house", "fish", "tree", "chair", "butterfly"}
KNOWN = [e for e in ENTRIES if all(line["class"] in NAMES for line in e["include"])]


def test_the_frozen_prompts_are_what_the_function_writes(tmp_path):
    write_prompts(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == prompts_path().read_bytes()


def test_prompts_are_distinct_and_of_the_protocol():
    assert len({e["id"] for e in ENTRIES}) == len({e["prompt"] for e in ENTRIES}) == len(ENTRIES)
    tags = Counter(e["tag"] for e in ENTRIES)
    assert len(tags) == 9
    assert min(tags.values()) >= 70
    colours = Counter(e["level"] for e in ENTRIES if e["tag"] == "colors")
    assert colours["L0"] == colours["L1"] == 60


def test_levels_say_what_is_held_out():
    for entry in ENTRIES:
        groups, relation = asked_of(entry)
        assert level(groups, relation) == ("L0" if entry["level"] == "L3" else entry["level"])
        assert (held_out_wording(entry["prompt"]) is not None) == (entry["level"] == "L3")
        if entry["level"] != "L3":
            assert not unknown_words(entry["prompt"], words(held_out=False))


def test_twins_are_two_and_differ():
    clusters: dict[str, list] = {}
    for entry in ENTRIES:
        clusters.setdefault(entry["cluster"], []).append(entry)
    twins = [pair for pair in clusters.values() if len(pair) > 1]
    assert len(twins) == 160
    for a, b in twins:
        assert a["include"] != b["include"]
        assert a["seed"] == b["seed"]


def test_include_and_back():
    groups = (Group("cat", "red", 1), Group("dog", None, 1))
    lines = include(groups, "above")
    assert lines == [
        {"class": "dog", "count": 1},
        {"class": "cat", "count": 1, "color": "red", "position": ["above", 0]},
    ]
    assert asked_of({"include": lines}) == (groups, "above")
    assert asked_of({"include": include(groups, None)}) == (groups, None)


def test_truth_scenes_are_what_is_asked_for():
    for entry in ENTRIES[::25]:
        scene = truth_scene(entry, 5)
        assert scene == truth_scene(entry, 5)
        assert include(scene.groups, scene.relation) == entry["include"]
        assert scene.place == entry.get("place", scene.place)
        assert scene.light == entry.get("light", scene.light)


def test_quick_is_a_hundred_of_every_kind():
    chosen = quick()
    assert len(chosen) == 100
    assert chosen == quick()
    tags = Counter(e["tag"] for e in chosen)
    assert len(tags) == 9
    assert max(tags.values()) - min(tags.values()) <= 8
    assert {e["level"] for e in chosen} == {"L0", "L1", "L2", "L3"}
    clusters = Counter(e["cluster"] for e in chosen)
    whole = Counter(e["cluster"] for e in ENTRIES)
    assert all(whole[cluster] == count for cluster, count in clusters.items())


def test_the_truth_is_right_and_shuffled_prompts_are_not(judge, bank, tmp_path):
    entries = quick(KNOWN, 40)
    summary = evaluate(truth(entries, bank), entries, tmp_path, judge=judge, settings={"steps": 3})
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values["overall"]["strict"]["mean"] >= 0.97, (tmp_path / "results.jsonl").read_text()
    assert {"mean", "low", "high"} <= set(values["overall"]["strict"])
    assert values["settings"] == {"steps": 3}
    assert len(values["prompts_sha256"]) == 64
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(entries)
    assert (tmp_path / "all.png").is_file()
    assert "overall" in summary.table()
    wrong = evaluate(shuffled(truth(KNOWN, bank), entries), entries, tmp_path / "shuffled", judge=judge)
    assert wrong.overall["strict"].mean <= 0.05
    assert (tmp_path / "shuffled" / "worst.png").is_file()


def test_a_picture_that_cannot_be_drawn_is_wrong_and_the_others_are_judged(judge, bank):
    entries = quick(KNOWN, 4)
    drawn = truth(entries, bank)

    def fails_on_the_first(prompts, seeds):
        if entries[0]["prompt"] in prompts:
            raise NonFiniteError("stage 'decoder' gave NaN")
        return drawn(prompts, seeds)

    summary = evaluate(fails_on_the_first, entries, judge=judge, batch=4)
    assert sum(score["strict"].mean * score["strict"].pictures for score in summary.levels.values()) > 0
    assert summary.overall["strict"].pictures == len(entries)
    assert summary.overall["lax"].mean < 1


def test_several_pictures_of_each_prompt(judge, bank):
    entries = quick(KNOWN, 3)
    asked = []

    def generate(prompts, seeds):
        asked.extend(zip(prompts, seeds, strict=True))
        return truth(entries, bank)(prompts, seeds)

    assert evaluate(generate, entries, judge=judge, seeds=2).overall["strict"].pictures == 2 * len(entries)
    assert len(set(asked)) == 2 * len(entries)


def test_a_sheet_holds_all_pictures(tmp_path):
    path = sheet(
        [Image.new("RGB", (64, 64), "red")] * 5,
        ["a red picture of nothing much at all"] * 5,
        3,
        tmp_path / "s.png",
    )
    with Image.open(path) as page:
        assert page.width > 3 * 128
        assert page.getpixel((10, 10)) == (255, 0, 0)
    with pytest.raises(ValueError, match="one caption"):
        sheet([Image.new("RGB", (8, 8))], [], 3, tmp_path / "t.png")


def test_the_trainer_scores_its_network_on_the_quick_prompts(monkeypatch, tmp_path, judge, bank):
    """The network's pictures are judged by their own prompts and seeds: the truth is right, grey is not."""
    asked = KNOWN[:3]
    right = truth(asked, bank)
    monkeypatch.setattr(sheets, "quick", lambda: asked)
    folder = write_bert(tmp_path)
    text = TextEncoder.load(folder / "text_encoder", folder / "tokenizer", layer=1, dtype=torch.float32)

    def score(draw):
        monkeypatch.setattr(
            sheets, "_draw", lambda _stage, draft, _network, seeds: draw(draft.prompts, seeds)
        )
        return sheets.quick_score(presets.decoder_tiny(), text, judge)

    assert score(lambda prompts, seeds: to_tensor(right(prompts, seeds))) == {"strict": 1.0, "lax": 1.0}
    assert score(lambda prompts, _seeds: torch.zeros(len(prompts), 3, 64, 64)) == {"strict": 0.0, "lax": 0.0}
