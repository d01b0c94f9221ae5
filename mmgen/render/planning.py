"""How a run will use memory and time, before any weight is read: what `mmgen plan` prints, by what the engine does.

Places, batches and squares are decided by the functions that decide them in a run. Bytes and arithmetic are counted on
the meta device; seconds are that arithmetic at a speed that is measured here in a moment, so they are rough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from mmgen.memory import stays, wait_for, weight_bytes
from mmgen.pipelines.stage import Draft, Stage
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.render.engine import DRAFTS_SHARE, drafts_on
from mmgen.render.estimate import WORKING_SHARE, Cost, cost, fit, picture_bytes, stage_weights
from mmgen.render.windows import BUDGET, Budget
from mmgen.types import Request, StageSettings

# Measured on a CPU, in benchmarks/plan.md: what a process keeps of tokenizers and such, and the part that tensors are
# of all that is in memory while a stage draws; the rest are workspaces of kernels, and gaps.
KEPT, TENSORS_SHARE = 18_000_000, 0.9
SECONDS = 0.1  # for which either operation is measured


@dataclass(frozen=True)
class StagePlan:
    """How a stage is to run.

    weights: bytes. reading: bytes beside them while they are read: the files of its largest component, which are in
    memory, in their own dtype, until all its tensors are as they are drawn with. each: bytes that one picture takes
    beside the weights, seconds: that it takes; None where shapes alone do not say it. steps: None where it takes none.
    batch: pictures at once. square: pixels per side of the squares in which it draws, None: in one piece.
    """

    name: str
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
    room in which nothing is tight.
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


def plan_one(model: TextToImage, request: Request, budget: Budget) -> Plan:
    """The plan of `mmgen generate`, which draws one picture after the other, in what is free.

    model: as `open_model` gives it.
    """
    stages = _stages(model, request, lambda stage, _draft, _settings: (stage, 1))
    done = _plan(model, request, budget, 1, stages)
    resident = stays(done.weights, model.device)
    least = max(
        int(stage.working / WORKING_SHARE) + (done.weights if resident else stage.weights) for stage in stages
    )
    return replace(done, command="generate", resident=resident, least=least)


def plan_batch(model: TextToImage, request: Request, budget: Budget, pictures: int) -> Plan:
    """The plan of `mmgen batch` over so many pictures, each as the request says."""

    def run(stage: Stage, draft: Draft, settings: StageSettings) -> tuple[Stage, int]:
        most = min(model.batch_size, pictures)
        if budget.room is None:
            return stage, most
        drafts = drafts_on(model.device, budget)
        found = fit(stage, lambda one: picture_bytes(one, draft, settings), budget.room, drafts)
        return found.stage, most if found.most is None else min(most, found.most)

    stages = _stages(model, request, run)
    least = max(room_for(stage, 1, model.device) for stage in stages)
    return replace(_plan(model, request, budget, pictures, stages), least=least)


def room_for(stage: StagePlan, pictures: int, device: torch.device) -> int:
    """Bytes of the room in which a batch takes so many pictures at once through a stage."""
    needed = stage.weights + pictures * (stage.each or 0) / WORKING_SHARE
    # of a CPU, drafts have a share up to a limit
    drafts = min(BUDGET.memory, needed * DRAFTS_SHARE / (1 - DRAFTS_SHARE)) if device.type == "cpu" else 0
    return int(needed + drafts) + 1


@cache
def arithmetic_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second here, the mean of a 3x3 convolution and a matrix product as large as those of small pictures."""
    layer = torch.nn.Conv2d(192, 192, 3, padding=1, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    picture = torch.ones(2, 192, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    square = torch.ones(512, 512, device=device, dtype=dtype)
    with torch.inference_mode():
        seconds = [_seconds(lambda: layer(picture), device), _seconds(lambda: square @ square, device)]
    return 0.5 * (2 * 9 * 192**2 * 2 * 16**2 / seconds[0] + 2 * 512**3 / seconds[1])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of several runs: what else the machine does is no part of it."""
    taken = list[float]()
    run()
    until = time.perf_counter() + SECONDS
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


Run = Callable[[Stage, Draft, StageSettings], tuple[Stage, int]]
"""A stage, what it is given and its settings -> what runs of it, and over how many pictures at once."""


def _stages(model: TextToImage, request: Request, run: Run) -> tuple[StagePlan, ...]:
    """Every stage of the request after the other, each given what the one before has made on the meta device."""
    planned = list[StagePlan]()
    draft: Draft | None = Draft(request.prompts[:1], request.negative_prompt)
    for stage in model.cascade.up_to(request.size[0]).stages:
        settings = request.stages.get(stage.name, StageSettings())
        runs, batch, found = stage, 1, None
        if draft is not None:
            runs, batch = run(stage, draft, settings)
            batch = min([batch, *(before.batch for before in planned)])  # what was parted stays so
            found = cost(runs, draft, settings)
        planned.append(_planned(runs, settings, found, batch, model))
        draft = None if found is None else found.draft
    return tuple(planned)


def _planned(
    stage: Stage, settings: StageSettings, found: Cost | None, batch: int, model: TextToImage
) -> StagePlan:
    dtypes = [value.dtype for network in stage.networks for value in network.parameters()]
    dtype = max(set(dtypes), key=dtypes.count, default=torch.float32)
    read = [model.file_bytes.get(network, 0) for network in stage.networks]
    square = stage.square if isinstance(stage, SuperResStage | VaeStage) else None
    return StagePlan(
        name=stage.name,
        weights=stage_weights(stage),
        reading=max(read, default=0) if model.device.type == "cpu" else 0,
        each=None if found is None else found.bytes,
        dtype=str(dtype).removeprefix("torch."),
        steps=settings.steps,
        batch=batch,
        square=square if square is not None and square < (stage.size or 0) else None,
        seconds=None if found is None else found.flop / arithmetic_rate(model.device, dtype),
    )


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
