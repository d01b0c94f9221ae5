"""Scores with their uncertainty: category means, their unweighted mean, and a cluster bootstrap over the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 10_000
LEVEL_95 = (2.5, 97.5)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A mean in [0, 1] with its 95 % interval, over `pictures` pictures (pairs of pictures for twins)."""

    mean: float
    low: float
    high: float
    pictures: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Row:
    """One judged picture. cluster: the prompt, twins together; tag: the category; twin: None, or the pair it is of."""

    cluster: str
    tag: str
    level: str
    strict: bool
    lax: bool
    twin: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Summary:
    """All scores of an evaluation. overall, and each category and level: by rule, "strict" and "lax"."""

    overall: Mapping[str, Score]
    levels: Mapping[str, Mapping[str, Score]]
    categories: Mapping[str, Mapping[str, Score]]
    twins: Score | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `facts` (prompt file, seeds, settings) stand at the top level."""
        values = asdict(self)
        return {"overall": values.pop("overall"), **values.pop("facts"), **values}

    def table(self) -> str:
        """One line per score, strict and lax, with intervals, as plain text."""
        lines = [f"{'':<16}{'pictures':>9}  {'strict':<22}{'lax':<22}"]
        rows = {"overall": self.overall, **self.levels, **self.categories}
        for name, by_rule in rows.items():
            strict, lax = by_rule["strict"], by_rule["lax"]
            lines.append(f"{name:<16}{strict.pictures:>9}  {strict!s:<22}{lax!s:<22}".rstrip())
        if self.twins is not None:
            lines.append(f"{'twins':<16}{self.twins.pictures:>9}  {self.twins!s:<22}".rstrip())
        return "\n".join(lines)


def summarise(rows: Sequence[Row], facts: Mapping[str, Any] | None = None, folds: int = FOLDS) -> Summary:
    """All scores of the judged pictures. Raises ValueError if there is none."""
    if not rows:
        raise ValueError("no judged picture: there is nothing to score")
    tags = list(dict.fromkeys(row.tag for row in rows))
    levels = sorted({row.level for row in rows})
    return Summary(
        overall=_by_rule(rows, folds),
        levels={name: _by_rule([r for r in rows if r.level == name], folds) for name in levels},
        categories={name: _by_rule([r for r in rows if r.tag == name], folds) for name in tags},
        twins=_twins(rows, folds),
        facts=dict(facts or {}),
    )


def bootstrap(
    values: Sequence[float], clusters: Sequence[str], tags: Sequence[str], folds: int = FOLDS
) -> Score:
    """The unweighted mean over categories of their mean value, with its 95 % percentile interval.

    values, clusters, tags: one per picture. Whole clusters are drawn with replacement, within each category, `folds`
    times; a cluster lies in one category. The draws are the same at every call.
    """
    rng = np.random.default_rng(0)
    means, folded = [], np.zeros(folds)
    names = list(dict.fromkeys(tags))
    for name in names:
        sums, sizes = _cluster_sums(
            [(c, v) for c, v, t in zip(clusters, values, tags, strict=True) if t == name]
        )
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=folds)
        folded += (drawn @ sums) / (drawn @ sizes) / len(names)
        means.append(sums.sum() / sizes.sum())
    low, high = np.percentile(folded, LEVEL_95)
    return Score(float(np.mean(means)), float(low), float(high), len(values))


def _cluster_sums(pairs: Sequence[tuple[str, float]]) -> tuple[Floats, Floats]:
    """(sum of values, number of values) of every cluster."""
    names = {name: i for i, name in enumerate(dict.fromkeys(c for c, _ in pairs))}
    index = np.array([names[c] for c, _ in pairs])
    sums = np.bincount(index, weights=[v for _, v in pairs])
    return sums.astype(np.float64), np.bincount(index).astype(np.float64)


def _by_rule(rows: Sequence[Row], folds: int) -> dict[str, Score]:
    clusters, tags = [row.cluster for row in rows], [row.tag for row in rows]
    return {
        "strict": bootstrap([float(row.strict) for row in rows], clusters, tags, folds),
        "lax": bootstrap([float(row.lax) for row in rows], clusters, tags, folds),
    }


def _twins(rows: Sequence[Row], folds: int) -> Score | None:
    """The share of twin pairs (same seed) that are both right by the strict rule, mean over their categories."""
    pairs: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.twin is not None:
            pairs.setdefault((row.twin, row.seed), []).append(row)
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    if not whole:
        return None
    right = [float(all(row.strict for row in pair)) for pair in whole]
    return bootstrap(right, [pair[0].cluster for pair in whole], [pair[0].tag for pair in whole], folds)
