"""From what is seen in a picture and what its prompt asked for to right or wrong, with the reasons.

A prompt's truth is an entry in GenEval's schema (Ghosh et al. 2023, arXiv:2310.11513), `{tag, prompt, include: [{class,
count, color?, position?}], exclude: [{class, count}]}`, with `place`, `light` and `backdrop` beside it where the prompt
names them. Two rules read it:

strict: exactly the declared objects, in the declared colours (natural where none is named) and places, nothing else.
lax: GenEval's own: enough of each declared object; what else is there, or its colour where none is named, is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Box = tuple[float, float, float, float]
Entry = Mapping[str, Any]
Assignment = list[list["Detection"]]

# GenEval's own margin: two objects must be apart by a tenth of their summed sides before a relation holds.
POSITION_MARGIN = 0.1


@dataclass(frozen=True)
class Detection:
    """One object found in a picture.

    colour: None is the sprite's natural one; colours: every colour it could rightly be called. box: left, top, right
    and bottom in [0, 1]. score: share of the picture's variation there that the sprite explains, up to 1.
    sprite_margin, colour_margin: by which part of it the best other sprite, and the best other colour, stay behind.
    """

    sprite: str
    colour: str | None
    colours: frozenset[str | None]
    box: Box
    score: float
    sprite_margin: float = 1.0
    colour_margin: float = 1.0

    def __str__(self) -> str:
        return f"{self.colour} {self.sprite}" if self.colour else self.sprite


@dataclass(frozen=True)
class Sight:
    """All that is seen in one picture. unknown: boxes of foreground that no sprite explains."""

    detections: tuple[Detection, ...]
    place: str
    light: str
    backdrop: str | None
    unknown: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Right or wrong by either rule, and why not."""

    strict: bool
    lax: bool
    reasons: tuple[str, ...]


def verdict(sight: Sight, entry: Entry) -> Verdict:
    """Hold what was seen against what was asked for. reasons: what the strict rule found wrong, empty if nothing."""
    reasons = [
        *_objects(sight.detections, entry),
        *_excluded(sight.detections, entry),
        *_scenery(sight, entry),
    ]
    reasons += [f"unknown object at {_percent(box)}" for box in sight.unknown]
    lax = not (
        _too_few(sight.detections, entry) or _excluded(sight.detections, entry) or _scenery(sight, entry)
    )
    return Verdict(strict=not reasons, lax=lax, reasons=tuple(reasons))


def relations(first: Box, second: Box) -> set[str]:
    """How `first` stands to `second`: none, one or two of left of, right of, above, below (GenEval's rule)."""
    offset = [(first[i] + first[i + 2] - second[i] - second[i + 2]) / 2 for i in (0, 1)]
    sides = [first[i + 2] - first[i] + second[i + 2] - second[i] for i in (0, 1)]
    apart = [max(abs(o) - POSITION_MARGIN * s, 0.0) for o, s in zip(offset, sides, strict=True)]
    if max(apart) < 1e-3:
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    share = [a / length for a in apart]
    names = ("left of", "right of"), ("above", "below")
    return {names[i][offset[i] > 0] for i in (0, 1) if share[i] > 0.5}


def _objects(found: Sequence[Detection], entry: Entry) -> list[str]:
    """What the strict rule finds wrong with the objects."""
    wanted = entry["include"]
    missing, extra = _count(found, wanted)
    if missing or extra:
        return missing + extra
    assignment = _assign(found, wanted, strict=True)
    if assignment is not None:
        return _misplaced(assignment, wanted)
    seen = ", ".join(str(d) for d in found)
    return [f"{', '.join(_name(line) for line in wanted)} wanted, {seen} seen"]


def _count(found: Sequence[Detection], wanted: Sequence[Entry]) -> tuple[list[str], list[str]]:
    names = [d.sprite for d in found]
    asked = {w["class"]: sum(v["count"] for v in wanted if v["class"] == w["class"]) for w in wanted}
    missing = [f"{n} {s} wanted, {names.count(s)} seen" for s, n in asked.items() if names.count(s) != n]
    return missing, [f"undeclared {d}" for d in found if d.sprite not in asked]


def _assign(found: Sequence[Detection], wanted: Sequence[Entry], strict: bool) -> Assignment | None:
    """The detections of each line of `wanted`, every one used once; None where a line lacks some."""
    free, assignment = list(found), []
    for line in sorted(wanted, key=lambda line: "color" not in line):
        fits = [d for d in free if d.sprite == line["class"] and _coloured(d, line, strict)]
        # a natural red car may stand for "a car" too, so what is painted red goes first
        fits = sorted(fits, key=lambda d: len(d.colours))[: line["count"]]
        if len(fits) < line["count"]:
            return None
        free = [d for d in free if d not in fits]
        assignment.append((line, fits))
    return [next(fits for other, fits in assignment if other is line) for line in wanted]


def _coloured(found: Detection, line: Entry, strict: bool) -> bool:
    colour = line.get("color")
    return colour in found.colours if colour or strict else True


def _misplaced(assignment: Assignment, wanted: Sequence[Entry]) -> list[str]:
    """One reason for each relation that does not hold between every pair of its two groups."""
    reasons = []
    for chosen, line in zip(assignment, wanted, strict=True):
        relation, other = line.get("position", (None, 0))
        for a, b in product(chosen, assignment[other]):
            seen = relations(a.box, b.box)
            if relation is not None and relation not in seen:
                reasons.append(
                    f"{a} {relation} {b} wanted, {' and '.join(sorted(seen)) or 'no relation'} seen"
                )
    return reasons


def _too_few(found: Sequence[Detection], entry: Entry) -> bool:
    assignment = _assign(found, entry["include"], strict=False)
    return assignment is None or bool(_misplaced(assignment, entry["include"]))


def _excluded(found: Sequence[Detection], entry: Entry) -> list[str]:
    names = [d.sprite for d in found]
    lines = entry.get("exclude", ())
    return [
        f"{line['class']}: fewer than {line['count']} wanted"
        for line in lines
        if names.count(line["class"]) >= line["count"]
    ]


def _scenery(sight: Sight, entry: Entry) -> list[str]:
    lines = ("place", "light", "backdrop")
    return [
        f"{line} {entry[line]} wanted, {getattr(sight, line)} seen"
        for line in lines
        if line in entry and entry[line] != getattr(sight, line)
    ]


def _name(line: Entry) -> str:
    return " ".join(str(v) for v in (line["count"], line.get("color"), line["class"]) if v is not None)


def _percent(box: Box) -> str:
    return ",".join(f"{100 * v:.0f}" for v in box)
