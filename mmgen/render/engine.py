"""The stage-major engine: every stage over many pictures before the next one, its weights in memory for its turn only.

Jobs run in micro-batches, which place alone cuts, and micro-batches in windows. Within a window each stage runs over
all of them before the next stage's weights are read. A run that is repeated cuts the same micro-batches and draws those
again of which a picture is missing, so that every picture has the bytes that it would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from mmgen.errors import MachineError, ModelError, NonFiniteError, UsageError
from mmgen.images import to_pil
from mmgen.memory import Room, is_out_of_memory, release_unused
from mmgen.memory import room as room_of
from mmgen.noise import Noise
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.stage import Draft, Stage, finish
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.text_stage import cut_words
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.render import stopped
from mmgen.render.drafts import Drafts, Kept, map_tensors, rows_of
from mmgen.render.estimate import alike, fit, in_smaller_squares, picture_bytes
from mmgen.render.jobs import Job
from mmgen.render.windows import BUDGET, Batch, Budget, Window
from mmgen.types import StageRecord, StageSettings

DRAFTS_SHARE = 1 / 8  # of the memory of a CPU, for drafts


def budget_of(room: Room | None, device: torch.device) -> Budget:
    """The budget of a run that may use so much of its device; drafts are in the memory of the CPU always."""
    here = room if device.type == "cpu" else room_of(torch.device("cpu"))
    if here is None:
        return Budget(room=room)
    return Budget(memory=min(Budget.memory, int(DRAFTS_SHARE * here.bytes)), room=room)


def drafts_on(device: torch.device, budget: Budget) -> int:
    """Bytes of a device that drafts may take."""
    return budget.memory if device.type == "cpu" else 0


@dataclass(frozen=True)
class Done:
    """A picture that is drawn, or one that failed: then image is None and error says why, in one line.

    image: or the bytes of its file, where another process has encoded it.
    seconds: its share of what its micro-batches took. peak_bytes: the most memory in use by then, 0: not measured.
    draft: what a picture that is stopped holds to go on from it, as `mmgen.render.stopped.packed` gives it.
    cut_words: as in `mmgen.result.Result`.
    """

    job: Job
    image: Image | bytes | None
    seconds: float
    peak_bytes: int
    error: str = ""
    draft: bytes = b""
    cut_words: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What has just happened.

    what: "stage": the weights of a stage are there; "batch": a micro-batch is through it; "tight": a stage is estimated
    to have too little memory, and note says what is tried; "less": memory ran out, and note says what is tried from now
    on; "lost": a worker is, and note says how. done, total: micro-batches of the window that are through the stage, and
    all.
    """

    what: Literal["stage", "batch", "tight", "less", "lost"]
    stage: str = ""
    done: int = 0
    total: int = 0
    note: str = ""


def draw(
    cut: Iterable[Window],
    commit: Callable[[Done], None],
    *,
    model: TextToImage,
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Event], None] = lambda _event: None,
    budget: Budget = BUDGET,
) -> None:
    """Draw windows of jobs of this model; each picture is committed as soon as it is there, and so is each failure.

    cut: taken when the one before is through. folder: where drafts may be put for a while; it must exist. stop: asked
    between micro-batches whether to end; what is unfinished then is lost.
    Where memory runs out, the batch of that stage is halved for the rest of the run, then super-resolution and VAEs
    draw in smaller squares, then a picture fails alone; so does one that becomes NaN. What `commit` raises ends the
    run.
    Raises ModelError for weights that are not sound or a job of another model, MachineError where the weights of a
    stage have no room or drafts cannot be put away.
    """
    with Drafts(folder, budget.memory) as drafts, model.cascade.residency:
        run = _Run(model, drafts, commit, stop, watch, budget)
        for window in cut:
            if not run.draw(*window):
                return


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
        budget: Budget,
    ) -> None:
        self._model, self._drafts, self._budget = model, drafts, budget
        self._commit, self._stop, self._watch = commit, stop, watch
        self._most: dict[str, int] = {}  # by stage: pictures at once
        self._smaller: dict[str, SuperResStage | VaeStage] = {}  # by stage: what stands in for it
        self._tight: set[str] = set()  # stages of which it was said
        self._estimates: dict[Hashable, int | None] = {}  # by stage, settings and size: bytes of a picture
        self._begins_at: int | None = None  # side of the pictures that are gone on with
        self._missing: frozenset[str] = frozenset()

    def draw(self, window: Sequence[Batch], missing: frozenset[str]) -> bool:
        """Every stage over the window in turn; False: it was stopped."""
        self._missing = missing
        pieces = [piece for jobs in window for piece in self._begin(jobs)]
        for stage in self._stages():
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

    def _stages(self) -> tuple[Stage, ...]:
        """What pictures go through; all of a run begin alike."""
        stages = self._model.cascade.stages
        if self._begins_at is None:
            return stages
        begin = [stage.size for stage in stages].index(self._begins_at) + 1
        return (*_needed_again(stages[:begin], stages[begin:]), *stages[begin:])

    def _begin(self, jobs: Batch) -> list[_Piece]:
        """A micro-batch before its first stage; one that cannot be gone on with fails alone."""
        try:
            return [_Piece(jobs, self._drafts.keep(self._begun(jobs)))]
        except UsageError as error:
            if len(jobs) > 1:
                return [piece for job in jobs for piece in self._begin((job,))]
            self._finish(_Piece(jobs, draft=0), None, error=str(error))
            return []

    def _begun(self, jobs: Batch) -> Draft:
        for job in jobs:
            if job.request.model_digest != self._model.digest:
                raise ModelError(
                    f"line {job.line} is for {job.request.model} {job.request.model_digest[:12]}, and "
                    f"{self._model.name} {self._model.digest[:12]} was read: start again"
                )
        draft = Draft(tuple(job.request.prompts[0] for job in jobs), jobs[0].request.negative_prompt)
        if jobs[0].start is None:
            return draft
        images = [_image(job) for job in jobs]
        self._begins_at = images[0].shape[-1]
        return replace(draft, image=torch.cat(images) if len(images) > 1 else images[0])

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
                        f"there is no memory for the weights of stage {stage.name!r}: close other programs, give a "
                        "--memory for which they are streamed, or choose --dtype bfloat16 or another --device"
                    ) from None
            else:
                return
            residency.hold(())
            self._drafts.spill()
            release_unused(self._model.device)

    def _through(self, stage: Stage, piece: _Piece, draft: Draft) -> list[_Piece]:
        """A micro-batch through a stage, in parts where it must be: what goes on to the next stage."""
        count = len(piece.jobs)
        most = min(self._most.get(stage.name, count), self._fitting(stage, piece.jobs, draft))
        if count > most:
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
        self._finish(piece, None, error=outcome.text)
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
        elif self._in_smaller_squares(stage):
            note = "in smaller squares"
        else:
            return False
        self._watch(Event("less", stage.name, note=note))
        return True

    def _in_smaller_squares(self, stage: Stage) -> bool:
        """Draw in squares of half the side from now on; False: they would be too small, or there are none."""
        smaller = in_smaller_squares(self._smaller.get(stage.name, stage))
        if smaller is None:
            return False
        self._smaller[stage.name] = smaller
        return True

    def _fitting(self, stage: Stage, jobs: Batch, draft: Draft) -> int:
        """How many pictures at once the room is estimated to hold, one at least."""
        room = self._budget.room
        if room is None:
            return len(jobs)
        settings = jobs[0].request.stages.get(stage.name, StageSettings())
        now = self._smaller.get(stage.name, stage)
        weights = self._model.cascade.residency.held(stage.networks)
        taken = weights + drafts_on(self._model.device, self._budget)
        found = fit(now, lambda one: self._estimate(one, draft, settings), room, taken)
        each = self._estimate(now, draft, settings)
        if isinstance(found.stage, SuperResStage | VaeStage) and found.stage is not now:
            self._smaller[stage.name] = found.stage
        if each is not None and each > found.free and stage.name not in self._tight:
            self._tight.add(stage.name)
            note = f"a picture is estimated at {_megabytes(each)}, and there is room for {_megabytes(found.free)}"
            if found.stage is not now:
                note += (
                    f"; in squares of {self._smaller[stage.name].square} px at {_megabytes(found.each or 0)}"
                )
            note += "; it is tried all the same" if found.tight else ""
            self._watch(Event("tight", stage.name, note=note))
        return len(jobs) if found.most is None else found.most

    def _estimate(self, stage: Stage, draft: Draft, settings: StageSettings) -> int | None:
        """Of one picture. Kept, for a run on the meta device takes a while too."""
        square = stage.square if isinstance(stage, SuperResStage | VaeStage) else None
        key = (stage.name, square, settings, alike(draft))
        if key not in self._estimates:
            self._estimates[key] = picture_bytes(stage, draft, settings)
        return self._estimates[key]

    def _behind(self, piece: _Piece, drawn: _Drawn) -> list[_Piece]:
        """Commit the pictures of a stage that was their last, else keep the draft for the next one."""
        piece = replace(
            piece,
            seconds=piece.seconds + drawn.record.seconds / len(piece.jobs),
            peak_bytes=max(piece.peak_bytes, drawn.record.peak_bytes),
        )
        if not drawn.images:
            return [replace(piece, draft=self._drafts.keep(self._needed(piece.jobs, drawn)))]
        assert drawn.draft.image is not None
        for row, (job, image) in enumerate(zip(piece.jobs, drawn.images, strict=True)):
            one = drawn.draft.image[row : row + 1]
            draft = b"" if job.goal is None else stopped.packed(job.goal, one.cpu().numpy())
            self._finish(replace(piece, jobs=(job,)), image, draft=draft)
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
            negative_embed=draft.negative_embed if "image_embed" in needs else None,
            latent=draft.latent if "latent" in needs else None,
        )

    def _finish(self, piece: _Piece, image: Image | None, *, error: str = "", draft: bytes = b"") -> None:
        (job,) = piece.jobs
        if job.key in self._missing:
            cut = self._cut_words(job)
            self._commit(Done(job, image, piece.seconds, piece.peak_bytes, error, draft, cut))

    def _cut_words(self, job: Job) -> dict[str, tuple[str, ...]]:
        """A job that goes on with a picture does so with a text that has been read."""
        request = job.request
        stages = self._model.cascade.up_to(request.size[0]).stages if job.start is None else ()
        return cut_words(stages, [*request.prompts, request.negative_prompt])


def _needed_again(before: Sequence[Stage], stages: Sequence[Stage]) -> list[Stage]:
    """Those of the stages before a picture that later ones cannot do without: of it, the picture alone was kept."""
    there, lacking, again = {"prompts", "image"}, set[str](), list[Stage]()
    for stage in stages:
        lacking |= stage.needs - there
        there |= stage.gives
    for stage in reversed(before):
        if stage.gives & lacking:
            again.insert(0, stage)
            lacking = (lacking - stage.gives) | (stage.needs - {"prompts"})
    return again


def _image(job: Job) -> Tensor:
    """[1, 3, H, W], float32: what a job that goes on begins with. Raises UsageError if its file is not what it was."""
    assert job.start is not None
    found = stopped.read(job.start)
    if found is None or found.goal.key != (job.goal or job).key:
        raise UsageError(
            f"{job.start} cannot be read here, or has changed since it was checked: run the command again"
        )
    return torch.from_numpy(found.image)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
