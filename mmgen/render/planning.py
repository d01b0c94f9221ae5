"""How a run will use memory and time, before any weight is read: what `mmgen plan` prints, by what the engine does.

Places, batches and squares are decided by the functions that decide them in a run. Bytes and arithmetic are counted on
the meta device; seconds follow from them and from speeds that are measured here in a moment, so they are rough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch

from mmgen.memory import WEIGHTS_SHARE, Place, stays, weight_bytes
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.editing import Known
from mmgen.pipelines.stage import Draft, Stage
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.render.engine import DRAFTS_SHARE, drafts_on
from mmgen.render.estimate import WORKING_SHARE, Cost, cost, fit, stage_weights
from mmgen.render.speed import speed_of
from mmgen.render.windows import BUDGET, Budget
from mmgen.types import Request, StageSettings

# Measured on a CPU, in benchmarks/plan.md: what a process keeps of tokenizers and such, and the part that tensors are
# of all that is in memory while a stage draws; the rest are workspaces of kernels, and gaps.
KEPT, TENSORS_SHARE = 18_000_000, 0.9


@dataclass(frozen=True)
class StagePlan:
    """How a stage is to run.

    place: of its weights. weights: their bytes, those that are there at once where they are streamed. reading: bytes
    beside them while they are read: the file of a component is in memory, in its own dtype, until all its tensors are
    as they are drawn with. each: bytes that one picture takes beside the weights, seconds: that it takes; None where
    shapes alone do not say it, and where weights are read while it draws. steps: None where it takes none. batch:
    pictures at once. square: pixels per side of the squares in which it draws, None: in one piece.
    """

    name: str
    place: Place
    weights: int
    reading: int
    each: int | None
    dtype: str
    steps: int | None
    batch: int
    square: int | None
    seconds: float | None

    @property
    def working(self) -> int:
        """Bytes of the pictures that it draws at once."""
        return self.batch * (self.each or 0)


@dataclass(frozen=True)
class Plan:
    """How a run is to go.

    command: of mmgen, which draws so. pictures: of the run. room: bytes that it may take, None: not known. resident:
    all weights are in memory together, else those of a stage for its turn. weights: bytes of all. least: bytes of a
    room in which nothing is tight, also while weights are read.
    """

    model: str
    size: int
    device: str
    command: Literal["generate", "batch"]
    pictures: int
    room: int | None
    resident: bool
    weights: int
    least: int
    stages: tuple[StagePlan, ...]

    @property
    def peak(self) -> int:
        """Bytes that the run takes at once, beside what the libraries take."""
        kept = KEPT if self.device == "cpu" else 0
        return kept + max(
            max(int(stage.working / TENSORS_SHARE), stage.reading)
            + (self.weights if self.resident else stage.weights)
            for stage in self.stages
        )

    @property
    def seconds(self) -> float | None:
        """Of all pictures, once weights are read; None where a stage is not known."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return self.pictures * sum(known) if len(known) == len(self.stages) else None

    @property
    def fits(self) -> bool:
        """Whether the room is enough, as far as it is known."""
        return self.room is None or self.least <= self.room


def plan_one(model: TextToImage, request: Request, budget: Budget, known: Known | None = None) -> Plan:
    """The plan of `mmgen generate`, which draws one picture after the other.

    In what is free, all weights are in memory together as `load` has them. Who asks for less memory gets the same where
    they fit so, and else what a batch gets. model: as `open_model` gives it. known: what is drawn over.
    """
    stages = _stages(model, request, lambda stage, _each: (stage, 1), known)
    done = replace(_plan(model, request, budget, 1, stages), command="generate")
    together = replace(done, resident=True, least=room_together(done))
    if stays(done.weights, model.device) and (_asked(budget) is None or together.fits):
        return replace(together, stages=tuple(replace(stage, place="resident") for stage in stages))
    if _asked(budget) is not None:
        return replace(plan_batch(model, request, budget, 1, known), command="generate")
    stages = _placed(stages, model, budget)
    least = max(int(stage.weights + stage.working / WORKING_SHARE) for stage in stages)
    return replace(done, stages=stages, least=least)


def plan_batch(
    model: TextToImage, request: Request, budget: Budget, pictures: int, known: Known | None = None
) -> Plan:
    """The plan of `mmgen batch` over so many pictures, each as the request says."""

    def run(stage: Stage, each: Each) -> tuple[Stage, int]:
        most = min(model.batch_size, pictures)
        if budget.room is None:
            return stage, most
        weights = model.cascade.residency.held(stage.networks, _asked(budget))
        taken = weights + drafts_on(model.device, budget)
        found = fit(stage, each, budget.room, taken)
        return found.stage, most if found.most is None else min(most, found.most)

    stages = _placed(_stages(model, request, run, known), model, budget)
    done = _plan(model, request, budget, pictures, stages)
    alone = replace(done, stages=tuple(replace(stage, batch=1) for stage in stages))
    return replace(done, least=max(alone.peak, *(room_for(stage, 1, model.device) for stage in stages)))


def room_together(plan: Plan) -> int:
    """Bytes of the room in which a picture is drawn with all weights there."""
    working = max(int(stage.working / WORKING_SHARE) for stage in plan.stages)
    needed = max(replace(plan, resident=True).peak, plan.weights + working)
    return needed if plan.device == "cpu" else max(needed, int(plan.weights / WEIGHTS_SHARE))


def follow(model: TextToImage, plan: Plan) -> None:
    """Have a model draw in the squares of its plan."""
    squares = {stage.name: stage.square for stage in plan.stages}
    stages = [_in_squares(stage, squares.get(stage.name)) for stage in model.cascade.stages]
    model.cascade = Cascade(stages, model.cascade.residency)


def _in_squares(stage: Stage, square: int | None) -> Stage:
    while square is not None and isinstance(stage, SuperResStage | VaeStage) and stage.square > square:
        smaller = stage.smaller()
        assert smaller is not None  # the plan has found it
        stage = smaller
    return stage


def _asked(budget: Budget) -> int | None:
    """Bytes that a person allows."""
    return budget.room.bytes if budget.room is not None and budget.room.asked else None


def _placed(stages: tuple[StagePlan, ...], model: TextToImage, budget: Budget) -> tuple[StagePlan, ...]:
    """The same, with those streamed whose weights have no room even for their turn."""
    residency, networks = model.cascade.residency, {one.name: one.networks for one in model.cascade.stages}
    asked, placed = _asked(budget), list[StagePlan]()
    for stage in stages:
        own = networks[stage.name]
        if residency.place(own, asked) == "streamed":
            held = residency.held(own, asked)
            stage = replace(stage, place="streamed", weights=held, reading=0, seconds=None)
        placed.append(stage)
    return tuple(placed)


def room_for(stage: StagePlan, pictures: int, device: torch.device) -> int:
    """Bytes of the room in which a batch takes so many pictures at once through a stage."""
    needed = stage.weights + pictures * (stage.each or 0) / WORKING_SHARE
    # of a CPU, drafts have a share up to a limit
    drafts = min(BUDGET.memory, needed * DRAFTS_SHARE / (1 - DRAFTS_SHARE)) if device.type == "cpu" else 0
    return int(needed + drafts) + 1


Each = Callable[[Stage], int | None]
"""What a picture takes in a stage, in bytes; None where shapes alone do not say it."""
Run = Callable[[Stage, Each], tuple[Stage, int]]
"""A stage, and what a picture takes in it -> what runs of it, and over how many pictures at once."""


def _stages(model: TextToImage, request: Request, run: Run, known: Known | None) -> tuple[StagePlan, ...]:
    """Every stage of the request after the other, each given what the one before has made on the meta device."""
    planned = list[StagePlan]()
    draft: Draft | None = Draft(request.prompts[:1], request.negative_prompt, known=known)
    for stage in model.cascade.up_to(request.size[0]).stages:
        settings = request.stages.get(stage.name, StageSettings())
        runs, batch, found = stage, 1, None
        if draft is not None:
            costs = _Costs(draft, settings)
            runs, batch = run(stage, costs.each)
            batch = min([batch, *(before.batch for before in planned)])  # what was parted stays so
            found = costs.of(runs)
        planned.append(_planned(runs, settings, found, batch, model))
        draft = None if found is None else found.draft
    return tuple(planned)


class _Costs:
    """What a picture of a draft takes in stages, each counted once."""

    def __init__(self, draft: Draft, settings: StageSettings) -> None:
        self._draft, self._settings = draft, settings
        self._known: list[tuple[Stage, Cost | None]] = []

    def of(self, stage: Stage) -> Cost | None:
        for known, found in self._known:
            if known is stage:
                return found
        found = cost(stage, self._draft, self._settings)
        self._known.append((stage, found))
        return found

    def each(self, stage: Stage) -> int | None:
        found = self.of(stage)
        return None if found is None else found.bytes


def _planned(
    stage: Stage, settings: StageSettings, found: Cost | None, batch: int, model: TextToImage
) -> StagePlan:
    dtypes = [value.dtype for network in stage.networks for value in network.parameters()]
    dtype = max(set(dtypes), key=dtypes.count, default=torch.float32)
    square = stage.square if isinstance(stage, SuperResStage | VaeStage) else None
    return StagePlan(
        name=stage.name,
        place="turn",
        weights=stage_weights(stage),
        reading=_reading(stage, model) if model.device.type == "cpu" else 0,
        each=None if found is None else found.bytes,
        dtype=str(dtype).removeprefix("torch."),
        steps=settings.steps,
        batch=batch,
        square=square if square is not None and square < (stage.size or 0) else None,
        seconds=None if found is None else speed_of(model.device, dtype).seconds(found.work, batch) / batch,
    )


def _reading(stage: Stage, model: TextToImage) -> int:
    """Bytes that are there beside all weights of a stage, at most, while its networks are read one after the other."""
    there = accumulate(map(weight_bytes, stage.networks))
    read = [
        held + model.file_bytes.get(network, 0) for held, network in zip(there, stage.networks, strict=True)
    ]
    return max(0, max(read, default=0) - stage_weights(stage))


def _plan(
    model: TextToImage, request: Request, budget: Budget, pictures: int, stages: tuple[StagePlan, ...]
) -> Plan:
    """Stage by stage, as `mmgen batch` draws, and as if any room were enough."""
    networks = {network for stage in model.cascade.stages for network in stage.networks}
    return Plan(
        model=model.name,
        size=request.size[0],
        device=str(model.device),
        command="batch",
        pictures=pictures,
        room=None if budget.room is None else budget.room.bytes,
        resident=False,
        weights=sum(map(weight_bytes, networks)),
        least=0,
        stages=stages,
    )
