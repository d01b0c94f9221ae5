"""The storybook evaluation: draw every prompt, judge every picture, and say how often all of it was right.

`evaluate` takes any callable that draws, so that the trainer can pass its network and a command its pipeline.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from mmgen.errors import MmgenError
from mmgen.evaluation.judge import Judge
from mmgen.evaluation.prompts import prompts_path, read_prompts, truth_scene
from mmgen.evaluation.scores import Row, Summary, summarise
from mmgen.evaluation.sheets import sheet
from mmgen.evaluation.verdict import Entry, Sight, Verdict, verdict
from mmgen.storybook.render import render
from mmgen.storybook.sprites import SpriteBank

Generate = Callable[[list[str], list[int]], list[Image.Image]]
RESULTS = "results.jsonl"
SHEET = 200  # pictures on a sheet at most
COLUMNS = 10


def quick(entries: Sequence[Entry] | None = None, count: int = 100) -> list[Entry]:
    """`count` prompts of the file, spread evenly over categories and levels, twins together; the same at every call."""
    clusters: dict[str, dict[str, list[Entry]]] = {}
    for entry in read_prompts() if entries is None else entries:
        clusters.setdefault(entry["tag"], {}).setdefault(entry["cluster"], []).append(entry)
    turns = zip_longest(*(_spread(list(by_name.values())) for by_name in clusters.values()))
    chosen: list[Entry] = []
    for cluster in (c for turn in turns for c in turn if c is not None):
        if len(chosen) + len(cluster) <= count:
            chosen += cluster
    return sorted(chosen, key=lambda entry: str(entry["id"]))


def _spread(clusters: list[list[Entry]]) -> list[list[Entry]]:
    """The clusters, each level's taken in turn, so that any beginning of the list holds them all about alike."""
    by_level: dict[str, list[list[Entry]]] = {}
    for cluster in clusters:
        by_level.setdefault(cluster[0]["level"], []).append(cluster)
    return [c for turn in zip_longest(*by_level.values()) for c in turn if c is not None]


def evaluate(
    generate: Generate,
    entries: Sequence[Entry],
    out: Path | None = None,
    batch: int = 16,
    *,
    judge: Judge | None = None,
    seeds: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Draw and judge `seeds` pictures of every entry; a picture that cannot be drawn is wrong.

    generate: (prompts, seeds) -> as many pictures, of any size. out: a folder for results.jsonl, to which each batch's
    verdicts are added, and at the end summary.json, all.png and worst.png; None: write nothing.
    settings: what the caller wants to be kept beside the scores.
    """
    eye = judge or Judge()
    jobs = [(entry, number) for entry in entries for number in range(seeds)]
    rows, lines, pictures = [], [], []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / RESULTS).write_text("", "utf-8")
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        for (entry, number), drawn in zip(part, _draw(generate, part), strict=True):
            sight = eye.see(drawn) if isinstance(drawn, Image.Image) else None
            found = verdict(sight, entry) if sight else Verdict(False, False, (f"no picture: {drawn}",))
            rows.append(_row(entry, number, found))
            lines.append(_line(entry, number, found, sight))
            pictures.append(drawn if isinstance(drawn, Image.Image) else Image.new("RGB", (64, 64)))
        if out is not None:
            with (out / RESULTS).open("a", encoding="utf-8") as results:
                results.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[start:])
    summary = summarise(rows, _facts(entries, seeds, settings))
    if out is not None:
        _write(out, summary, lines, pictures)
    return summary


def _draw(generate: Generate, jobs: Sequence[tuple[Entry, int]]) -> list[Image.Image | str]:
    """A picture for each job, or why there is none: where a batch fails, its jobs are drawn one by one."""
    try:
        return [*generate([e["prompt"] for e, _ in jobs], [e["seed"] + n for e, n in jobs])]
    except MmgenError as error:
        return [str(error)] if len(jobs) == 1 else [one for job in jobs for one in _draw(generate, [job])]


def _row(entry: Entry, number: int, found: Verdict) -> Row:
    twin = entry["cluster"] if entry["id"] != entry["cluster"] else None
    return Row(entry["cluster"], entry["tag"], entry["level"], found.strict, found.lax, twin, number)


def _line(entry: Entry, number: int, found: Verdict, sight: Sight | None) -> dict[str, Any]:
    """One line of results.jsonl."""
    seen = [] if sight is None else [
        {"object": str(d), "box": [round(float(v), 4) for v in d.box], "score": round(d.score, 4)}
        for d in sight.detections
    ]  # fmt: skip
    return {
        "id": entry["id"], "tag": entry["tag"], "level": entry["level"], "prompt": entry["prompt"],
        "seed": entry["seed"] + number, "strict": found.strict, "lax": found.lax, "reasons": list(found.reasons),
        "seen": seen, **({} if sight is None else {"place": sight.place, "light": sight.light}),
    }  # fmt: skip


def _facts(entries: Sequence[Entry], seeds: int, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    path = prompts_path()
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    asked = hashlib.sha256("\n".join(entry["id"] for entry in entries).encode()).hexdigest()
    return {
        "prompts": len(entries), "prompts_sha256": digest, "ids_sha256": asked, "seeds_per_prompt": seeds,
        "settings": dict(settings or {}),
    }  # fmt: skip


def _write(out: Path, summary: Summary, lines: list[dict[str, Any]], pictures: list[Image.Image]) -> None:
    (out / "summary.json").write_text(json.dumps(summary.to_dict(), indent=1) + "\n", encoding="utf-8")
    captions = [f"{'ok' if line['strict'] else 'NO'} {line['prompt']}" for line in lines]
    sheet(pictures[:SHEET], captions[:SHEET], COLUMNS, out / "all.png")
    # the wrong ones, the furthest from right first
    wrong = sorted(
        (i for i, line in enumerate(lines) if not line["strict"]), key=lambda i: -len(lines[i]["reasons"])
    )
    if wrong[:SHEET]:
        why = [f"{lines[i]['prompt']}: {'; '.join(lines[i]['reasons'])}"[:140] for i in wrong[:SHEET]]
        sheet([pictures[i] for i in wrong[:SHEET]], why, COLUMNS, out / "worst.png")


def truth(entries: Iterable[Entry], bank: SpriteBank, px: int = 64) -> Generate:
    """Draws what each prompt asks for from the world itself: the ceiling of any model."""
    by_prompt = {entry["prompt"]: entry for entry in entries}

    def generate(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        scenes = [truth_scene(by_prompt[p], s) for p, s in zip(prompts, seeds, strict=True)]
        return [Image.fromarray(render(scene, px, bank)) for scene in scenes]

    return generate


def shuffled(generate: Generate, entries: Sequence[Entry]) -> Generate:
    """Draws another entry's prompt for each prompt, half the list away: what guessing would score."""
    asked = [entry["prompt"] for entry in entries]
    other = dict(zip(asked, asked[len(asked) // 2 :] + asked[: len(asked) // 2], strict=True))
    return lambda prompts, seeds: generate([other[prompt] for prompt in prompts], seeds)
