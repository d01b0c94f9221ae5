"""The stage-major engine: every stage over many pictures before the next one, its weights in memory for its turn only.

Jobs run in micro-batches, which place alone cuts, and micro-batches in windows. Within a window each stage runs over
all of them before the next stage's weights are read. A run that is repeated cuts the same micro-batches and draws those
again of which a picture is missing, so that every picture has the bytes that it would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from PIL.Image import Image

from mmgen.errors import MachineError, ModelError, NonFiniteError, UsageError
from mmgen.images import to_pil
from mmgen.memory import is_out_of_memory, release_unused
from mmgen.noise import Noise
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.stage import Draft, Stage, finish
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.drafts import Drafts, Kept, map_tensors, rows_of
from mmgen.render.jobs import Job
from mmgen.types import StageRecord, StageSettings

BLOCK = 1024  # jobs, within which those that are drawn alike find each other
TEXT_BYTES = 256 * 1024  # of a draft: 77 token states of width 768 in float32, as CLIP's
Batch = tuple[Job, ...]


@dataclass(frozen=True)
class Budget:
    """What unfinished pictures may take, and how many there are at a time: of a window, at least one micro-batch.

    memory: bytes of drafts in memory; what is beyond goes to disk. drafts: bytes of a window's in both together.
    batches: micro-batches of a window, so that pictures arrive while the run goes on.
    """

    memory: int = 256 * 2**20
    drafts: int = 2**30
    batches: int = 64


@dataclass(frozen=True)
class Done:
    """A picture that is drawn, or one that failed: then image is None and error says why, in one line.

    seconds: its share of what its micro-batches took. peak_bytes: the most memory in use by then, 0: not measured.
    """

    job: Job
    image: Image | None
    seconds: float
    peak_bytes: int
    error: str = ""


@dataclass(frozen=True)
class Event:
    """What has just happened.

    what: "stage": the weights of a stage are there; "batch": a micro-batch is through it; "less": memory ran out, and
    note says what is tried from now on. done, total: micro-batches of the window that are through the stage, and all.
    """

    what: Literal["stage", "batch", "less"]
    stage: str
    done: int = 0
    total: int = 0
    note: str = ""


def render(
    jobs: Iterable[Job],
    model: TextToImage,
    commit: Callable[[Done], None],
    *,
    folder: Path,
    done: Callable[[Job], bool] = lambda _job: False,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Event], None] = lambda _event: None,
    batch_size: int | None = None,
    budget: Budget = Budget(),
) -> None:
    """Draw all jobs that are not done; each picture is committed as soon as it is there, and so is each failure.

    jobs: all of a run, the done ones too, in order, of this model. folder: where drafts may be put for a while; it must
    exist. stop: asked between micro-batches whether to end; what is unfinished then is lost. batch_size: pictures that
    run together at most, None: what the model says; a CPU draws the same bytes as single runs if it is 1.
    Where memory runs out, the batch of that stage is halved for the rest of the run, then super-resolution draws in
    smaller squares, then a picture fails alone; so does one that becomes NaN. What `commit` raises ends the run.
    Raises ModelError for weights that are not sound or a job of another model, MachineError where the weights of a
    stage have no room or drafts cannot be put away.
    """
    size = model.batch_size if batch_size is None else batch_size
    with Drafts(folder, budget.memory) as drafts, model.cascade.residency:
        run = _Run(model, drafts, commit, stop, watch)
        for window in windows(batches(jobs, size), done, model.sizes, budget):
            if not run.draw(*window):
                return


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
    cut: Iterable[Batch], done: Callable[[Job], bool], sizes: Sequence[int], budget: Budget
) -> Iterator[tuple[list[Batch], frozenset[str]]]:
    """Micro-batches that run together, and the keys of their jobs that are not done.

    Micro-batches that are done are left out; whether they are is asked for one window at a time. sizes: sides of the
    pictures that the model draws, smallest first.
    """
    window: list[Batch] = []
    keys: set[str] = set()
    held = 0
    for batch in cut:
        missing = {job.key for job in batch if not done(job)}
        if not missing:
            continue
        need = len(batch) * _draft_bytes(batch[0], sizes)
        if window and (held + need > budget.drafts or len(window) >= budget.batches):
            yield window, frozenset(keys)
            window, keys, held = [], set(), 0
        window.append(batch)
        keys |= missing
        held += need
    if window:
        yield window, frozenset(keys)


def _draft_bytes(job: Job, sizes: Sequence[int]) -> int:
    """What a draft of the job takes at most, between two stages: its text, or its last picture but one."""
    before = max((side for side in sizes if side < job.request.size[0]), default=0)
    return max(TEXT_BYTES, 3 * 4 * before**2)


@dataclass(frozen=True)
class _Piece:
    """A micro-batch between two stages, or what is left of it; seconds: that each of its pictures took so far."""

    jobs: Batch
    draft: Kept
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class _Failure:
    """Why a stage could not be run over some pictures."""

    text: str
    out_of_memory: bool


@dataclass(frozen=True)
class _Drawn:
    """Pictures behind a stage; images: if it was their last."""

    draft: Draft
    images: list[Image]
    record: StageRecord


class _Run:
    """One run: what is remembered from window to window is where memory ran out."""

    def __init__(
        self,
        model: TextToImage,
        drafts: Drafts,
        commit: Callable[[Done], None],
        stop: Callable[[], bool],
        watch: Callable[[Event], None],
    ) -> None:
        self._model, self._drafts = model, drafts
        self._commit, self._stop, self._watch = commit, stop, watch
        self._most: dict[str, int] = {}  # by stage: pictures at once
        self._smaller: dict[str, SuperResStage] = {}  # by stage: what stands in for it
        self._missing: frozenset[str] = frozenset()

    def draw(self, window: Sequence[Batch], missing: frozenset[str]) -> bool:
        """Every stage over the window in turn; False: it was stopped."""
        self._missing = missing
        pieces = [_Piece(jobs, self._drafts.keep(self._begun(jobs))) for jobs in window]
        for stage in self._model.cascade.stages:
            if not pieces:
                break
            if self._stop():
                return False
            self._hold(stage)
            self._watch(Event("stage", stage.name, 0, len(pieces)))
            behind: list[_Piece] = []
            for number, piece in enumerate(pieces, 1):
                if number > 1 and self._stop():
                    return False
                behind += self._through(stage, piece, self._drafts.take(piece.draft))
                self._watch(Event("batch", stage.name, number, len(pieces)))
            pieces = behind
        return True

    def _begun(self, jobs: Batch) -> Draft:
        for job in jobs:
            if job.request.model_digest != self._model.digest:
                raise ModelError(
                    f"line {job.line} is for {job.request.model} {job.request.model_digest[:12]}, and "
                    f"{self._model.name} {self._model.digest[:12]} was read: start again"
                )
        return Draft(tuple(job.request.prompts[0] for job in jobs), jobs[0].request.negative_prompt)

    def _hold(self, stage: Stage) -> None:
        """Have the weights of a stage, and of no other one, in memory."""
        residency = self._model.cascade.residency
        for again in (True, False):
            try:
                residency.hold(stage.networks)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not again:
                    raise MachineError(
                        f"there is no memory for the weights of stage {stage.name!r}: close other programs, or "
                        "choose --dtype bfloat16 or another --device"
                    ) from None
            else:
                return
            residency.hold(())
            self._drafts.spill()
            release_unused(self._model.device)

    def _through(self, stage: Stage, piece: _Piece, draft: Draft) -> list[_Piece]:
        """A micro-batch through a stage, in parts where it must be: what goes on to the next stage."""
        count = len(piece.jobs)
        if count > (most := self._most.get(stage.name, count)):
            return self._in_parts(stage, piece, draft, most)
        outcome = self._attempt(stage, piece.jobs, draft)
        if isinstance(outcome, _Drawn):
            return self._behind(piece, outcome)
        if outcome.out_of_memory:
            release_unused(self._model.device)
            if self._less(stage, count):
                return self._through(stage, piece, draft)
        if count > 1:
            return self._in_parts(stage, piece, draft, 1)
        self._finish(piece, None, outcome.text)
        return []

    def _in_parts(self, stage: Stage, piece: _Piece, draft: Draft, most: int) -> list[_Piece]:
        parts = [slice(i, i + most) for i in range(0, len(piece.jobs), most)]
        return [
            one
            for rows in parts
            for one in self._through(stage, replace(piece, jobs=piece.jobs[rows]), rows_of(draft, rows))
        ]

    def _attempt(self, stage: Stage, jobs: Batch, draft: Draft) -> _Drawn | _Failure:
        """Run a stage over pictures whose draft is on the CPU. What went wrong is told, for an error keeps memory."""
        device = self._model.device
        clock = Clock(device)
        settings = jobs[0].request.stages.get(stage.name, StageSettings())
        noise = Noise([job.request.seeds[0] for job in jobs], stage.name)
        runs = self._smaller.get(stage.name, stage)
        try:
            draft = map_tensors(draft, lambda _, value: value.to(device))
            draft = finish(clock.watch(stage.name, runs.run(draft, settings, noise)))
            last = stage.size == jobs[0].request.size[0]
            images = to_pil(draft.image) if last and draft.image is not None else []
        except (NonFiniteError, UsageError) as error:
            return _Failure(str(error), out_of_memory=False)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _Failure(
                f"stage {stage.name!r} ran out of memory, also with one picture at a time: draw it smaller, or free "
                "memory",
                out_of_memory=True,
            )
        return _Drawn(draft, images, clock.records[0])

    def _less(self, stage: Stage, count: int) -> bool:
        """Ask for less memory from now on, after so many pictures had too little; False: there is no less."""
        if count > 1:
            self._most[stage.name] = count // 2
            note = f"{count // 2} at a time"
        elif self._drafts.spill():
            note = "unfinished pictures go to disk"
        elif smaller := self._squares(stage):
            self._smaller[stage.name] = smaller
            note = "in smaller squares"
        else:
            return False
        self._watch(Event("less", stage.name, note=note))
        return True

    def _squares(self, stage: Stage) -> SuperResStage | None:
        now = self._smaller.get(stage.name, stage)
        return now.smaller() if isinstance(now, SuperResStage) else None

    def _behind(self, piece: _Piece, drawn: _Drawn) -> list[_Piece]:
        """Commit the pictures of a stage that was their last, else keep the draft for the next one."""
        piece = replace(
            piece,
            seconds=piece.seconds + drawn.record.seconds / len(piece.jobs),
            peak_bytes=max(piece.peak_bytes, drawn.record.peak_bytes),
        )
        if not drawn.images:
            return [replace(piece, draft=self._drafts.keep(self._needed(piece.jobs, drawn)))]
        for job, image in zip(piece.jobs, drawn.images, strict=True):
            self._finish(replace(piece, jobs=(job,)), image, "")
        return []

    def _needed(self, jobs: Batch, drawn: _Drawn) -> Draft:
        """The draft without what no later stage of its chain needs."""
        stages = self._model.cascade.up_to(jobs[0].request.size[0]).stages
        behind = [stage.name for stage in stages].index(drawn.record.stage) + 1
        needs = {name for stage in stages[behind:] for name in stage.needs}
        draft = drawn.draft
        return replace(
            draft,
            text=draft.text if "text" in needs else None,
            negative=draft.negative if "text" in needs else None,
            image_embed=draft.image_embed if "image_embed" in needs else None,
        )

    def _finish(self, piece: _Piece, image: Image | None, error: str) -> None:
        (job,) = piece.jobs
        if job.key in self._missing:
            self._commit(Done(job, image, piece.seconds, piece.peak_bytes, error))
