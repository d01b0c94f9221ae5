"""How a run is cut: jobs into micro-batches, which place alone decides, and micro-batches into windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from mmgen.memory import Room
from mmgen.render.jobs import Job

BLOCK = 1024  # jobs, within which those that are drawn alike find each other
SHARES = 2  # of what is left, for each worker: the last windows are small, and nobody waits long for them
TEXT_BYTES = 256 * 1024  # of a draft: 77 token states of width 768 in float32, as CLIP's
Batch = tuple[Job, ...]
Window = tuple[Sequence[Batch], frozenset[str]]
"""Micro-batches that run together, and the keys of their jobs that are not done."""


@dataclass(frozen=True)
class Budget:
    """What unfinished pictures may take, and how many there are at a time: of a window, at least one micro-batch.

    memory: bytes of drafts in memory; what is beyond goes to disk. drafts: bytes of a window's in both together.
    batches: micro-batches of a window, so that pictures arrive while the run goes on. room: of the device, by which
    stages are told beforehand how many pictures they take at once; None: they learn it where memory runs out.
    """

    memory: int = 256 * 2**20
    drafts: int = 2**30
    batches: int = 64
    room: Room | None = None


BUDGET = Budget()


def batches(jobs: Iterable[Job], size: int) -> Iterator[Batch]:
    """Micro-batches of at most `size` jobs that are drawn alike: all but prompt and seed is the same.

    Their places among all jobs alone decide who is with whom. In the order of their first jobs, BLOCK by BLOCK.
    """
    remaining = iter(jobs)
    while block := list(islice(remaining, BLOCK)):
        alike: dict[str, list[tuple[int, Job]]] = {}
        for place, job in enumerate(block):
            alike.setdefault(replace(job.request, prompts=("x",), seeds=(0,)).to_json(), []).append(
                (place, job)
            )
        cut = [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]
        for batch in sorted(cut, key=lambda batch: batch[0][0]):
            yield tuple(job for _, job in batch)


def windows(
    cut: Iterable[Batch],
    done: Callable[[Job], bool],
    sizes: Sequence[int],
    budget: Budget,
    most: Callable[[], float] = lambda: math.inf,
) -> Iterator[Window]:
    """Micro-batches, joined to windows.

    Those that are done are left out; whether they are is asked for one window at a time. sizes: sides of the pictures
    that the model draws, smallest first. most: pictures of a window, asked whenever one more could be joined to it.
    """
    window: list[Batch] = []
    keys: set[str] = set()
    held = pictures = 0
    for batch in cut:
        missing = {job.key for job in batch if not done(job)}
        if not missing:
            continue
        need = len(batch) * _draft_bytes(batch[0], sizes)
        full = held + need > budget.drafts or len(window) >= budget.batches or pictures >= most()
        if window and full:
            yield window, frozenset(keys)
            window, keys, held, pictures = [], set(), 0, 0
        window.append(batch)
        keys |= missing
        held += need
        pictures += len(batch)
    if window:
        yield window, frozenset(keys)


def _draft_bytes(job: Job, sizes: Sequence[int]) -> int:
    """What a draft of the job takes at most, between two stages: its text, or its last picture but one."""
    before = max((side for side in sizes if side < job.request.size[0]), default=0)
    return max(TEXT_BYTES, 3 * 4 * before**2)


def shared(
    cut: Iterable[Batch],
    done: Callable[[Job], bool],
    sizes: Sequence[int],
    *,
    total: int,
    workers: int,
) -> Iterator[Window]:
    """Windows for so many workers: the nearer the end, the smaller, if there are several. total: pictures of `cut`."""
    seen = 0

    def counted() -> Iterator[Batch]:
        nonlocal seen
        for batch in cut:
            seen += len(batch)
            yield batch

    def share() -> float:
        return (total - seen) / (SHARES * workers) if workers > 1 else math.inf

    return windows(counted(), done, sizes, BUDGET, share)
