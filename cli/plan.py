"""`mmgen plan`: what a model will take of memory and time here, before it does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import SIZE
from mmgen.cli.options import MACHINE, parse_memory, stage_settings, with_options
from mmgen.cli.terminal import note
from mmgen.errors import MachineError
from mmgen.types import Size

if TYPE_CHECKING:
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.render.planning import Plan, StagePlan
    from mmgen.render.windows import Budget
    from mmgen.types import StageSettings

MAX_PROMPTS = 1_000_000_000
# as long as a prompt often is: which will be drawn, nobody has said
PROMPT = "two cats and a big red balloon on the left of a tree in the snow at night"
COLUMNS = ("stage", "weights", "a picture", "dtype", "at once", "where", "seconds each")

OPTIONS = (
    SIZE,
    click.option("--memory", type=parse_memory, metavar="SIZE",
                 help="Plan mmgen batch, which may be told what to take of its device, such as 8GB."),
    click.option("--prompts", type=click.IntRange(1, MAX_PROMPTS), metavar="N",
                 help="Plan mmgen batch over so many pictures; 1 with --memory alone."),
    click.option("--set", "settings", multiple=True, metavar="STAGE.NAME=VALUE",
                 help="Any setting of any stage; may be repeated."),
    *MACHINE,
    click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line as it was given; None where the model or the machine decides."""

    size: Size | None
    memory: int | None
    prompts: int | None
    settings: tuple[str, ...]
    model: str
    device: str | None
    dtype: str | None
    attention: str | None
    as_json: bool


@click.command()
@with_options(*OPTIONS)
def plan(**given: Any) -> None:
    """Say what a model will take of memory and time here.

    Nothing is drawn. For each stage: the bytes of its weights and of what a picture takes beside them, how many
    pictures it draws at once, and whether its weights stay in memory or are there for its turn only. It is the plan
    that mmgen generate follows, which takes what is free; with --memory or --prompts the plan of mmgen batch, also for
    a single picture. Seconds are an estimate, from arithmetic and a speed that is measured in a moment. Exit code 3 if
    it does not fit.

    \b
    mmgen plan --size 1024
    mmgen plan --model FOLDER --memory 8GB --prompts 200
    """
    options = Options(**given)
    stages = stage_settings(options.settings)
    note(f"looking at {options.model}")
    from mmgen.render.pool import Setup

    setup = Setup(
        options.model, "png", options.device, options.dtype, options.attention, memory=options.memory
    )
    opened = setup.open()
    prompts = 1 if options.prompts is None and options.memory is not None else options.prompts
    run = _Run(opened, stages, setup.budget(opened), prompts)
    found = run.planned(options.size)
    faster = _faster(run, found)
    if options.as_json:
        click.echo(json.dumps(_values(found) | {"faster": faster}))
    else:
        click.echo("\n".join(_table(found)))
        for way in faster:
            note(f"faster: {way}")
    if not found.fits:
        raise MachineError(_too_little(found, list(_ways(run, found))))


@dataclass(frozen=True)
class _Run:
    """What is planned: prompts for mmgen batch, None for mmgen generate."""

    model: TextToImage
    stages: Mapping[str, StageSettings]
    budget: Budget
    prompts: int | None

    def planned(self, size: Size | int | None) -> Plan:
        from mmgen.render.planning import plan_batch, plan_one

        request = self.model.request(PROMPT, seeds=[0], size=size, stages=self.stages)
        if self.prompts is None:
            return plan_one(self.model, request, self.budget)
        return plan_batch(self.model, request, self.budget, self.prompts)


def _faster(run: _Run, found: Plan) -> list[str]:
    """What it would take to be faster here."""
    from mmgen.memory import WEIGHTS_SHARE, choose_device, choose_dtype
    from mmgen.render.planning import room_for

    device, ways = run.model.device, list[str]()
    if choose_device().type != device.type:
        ways.append(f"--device {choose_device()}")
    best = str(choose_dtype(None, device)).removeprefix("torch.")
    if best not in {"float32", *(stage.dtype for stage in found.stages)}:
        ways.append(f"--dtype {best}")
    most = run.model.batch_size if run.prompts is None else min(run.model.batch_size, run.prompts)
    if run.prompts is None and most > 1:
        ways.append(f"mmgen batch, which draws up to {most} at once")
    if run.prompts is None and not found.resident:
        room = _megabytes(int(found.weights / WEIGHTS_SHARE))
        ways.append(f"{room} of {device}, of which all weights stay there")
    for stage in found.stages:
        if run.prompts is not None and stage.batch < most:
            room = _megabytes(room_for(stage, most, device))
            ways.append(f"{room}, in which stage {stage.name} draws {most} at once")
    slowest = max(found.stages, key=lambda stage: stage.seconds or 0)
    if found.seconds and slowest.seconds and (slowest.steps or 1) > 1:
        share = found.pictures * slowest.seconds / found.seconds
        ways.append(f"fewer --set {slowest.name}.steps: {share:.0%} of the time is that of this stage")
    return ways


def _too_little(found: Plan, ways: Sequence[str]) -> str:
    room = _megabytes(found.room or 0)
    said = f"{found.model} at {found.size} px needs {_megabytes(found.least)} at least, and there are {room}"
    return f"{said}: {', or '.join(ways or ['free memory, or choose a smaller model'])}"


def _ways(run: _Run, found: Plan) -> Iterator[str]:
    """What would make it fit."""
    from mmgen.memory import Room

    if run.prompts is None and (other := replace(run, prompts=1).planned(found.size)).fits:
        yield f"draw with mmgen batch, which needs {_megabytes(other.least)}"
    room = run.budget.room
    if run.prompts is not None and room is not None and not room.asked:
        asked = replace(run.budget, room=Room(room.bytes, asked=True))
        if replace(run, budget=asked).planned(found.size).fits:
            yield f"give --memory {room.bytes // 10**6}MB, for which squares become smaller"
    for side in reversed([side for side in run.model.sizes if side < found.size]):
        names = run.model.cascade.up_to(side).names
        kept = {name: given for name, given in run.stages.items() if name in names}
        if (smaller := replace(run, stages=kept).planned(side)).fits:
            yield f"draw {side} px, which needs {_megabytes(smaller.least)}"
            break
    if {stage.dtype for stage in found.stages} == {"float32"} and found.least / 2 <= (found.room or 0):
        yield "choose --dtype bfloat16, which needs about half"


def _values(found: Plan) -> dict[str, Any]:
    """All that is known of a plan, as JSON has it."""
    more = {"peak": found.peak, "fits": found.fits, "seconds": found.seconds}
    return asdict(found) | more


def _table(found: Plan) -> list[str]:
    """A line for each stage under its heading, then what holds for the whole run."""
    rows = [COLUMNS, *(_row(found, stage) for stage in found.stages)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    room = "" if found.room is None else f" of {_megabytes(found.room)}"
    if found.room is not None and found.peak > found.room:
        room += ", and more: weights are there twice while they are read, and a process keeps what it had"
    lines.append(
        f"mmgen {found.command}, at most at once: {_megabytes(found.peak)}{room}, beside the libraries"
    )
    if found.seconds is not None:
        lines.append(f"{found.pictures} to draw: about {found.seconds:,.1f} s, once weights are read")
    return lines


def _row(found: Plan, stage: StagePlan) -> tuple[str, ...]:
    where = f"on {found.device}" if found.resident else f"on {found.device}, its turn only"
    return (
        stage.name,
        _megabytes(stage.weights),
        "not known" if stage.each is None else _megabytes(stage.each),
        stage.dtype,
        str(stage.batch) if stage.square is None else f"{stage.batch}, {stage.square}-px squares",
        where,
        "not known" if stage.seconds is None else f"{stage.seconds:.3f}",
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
