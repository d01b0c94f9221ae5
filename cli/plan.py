"""`mmgen plan`: what a model will take of memory and time here, before it does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import SIZE
from mmgen.cli.options import MACHINE, parse_memory, stage_settings, with_options
from mmgen.cli.terminal import note
from mmgen.errors import MachineError
from mmgen.types import Size

if TYPE_CHECKING:
    from mmgen.pipelines.editing import Known
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.render.planning import Plan, StagePlan
    from mmgen.render.windows import Budget
    from mmgen.types import Request

MAX_PROMPTS = 1_000_000_000
# as long as a prompt often is: which will be drawn, nobody has said
PROMPT = "two cats and a big red balloon on the left of a tree in the snow at night"
COLUMNS = ("stage", "weights", "a picture", "dtype", "at once", "where", "seconds each")

OPTIONS = (
    SIZE,
    click.option("--memory", type=parse_memory, metavar="SIZE",
                 help="What a run may take of its device, such as 8GB; what is free if not given."),
    click.option("--prompts", type=click.IntRange(1, MAX_PROMPTS), metavar="N",
                 help="Plan mmgen batch over so many pictures, not mmgen generate."),
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
    that mmgen generate follows, with --prompts the one of mmgen batch, both with the same --memory. Seconds are an
    estimate, from what is to be done and speeds that are measured in a moment. Exit code 3 if it does not fit.

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
    request = opened.request(PROMPT, seeds=[0], size=options.size, stages=stages)
    run = _Run(opened, request, setup.budget(opened), options.prompts, None)
    found = run.planned()
    faster = _faster(run, found)
    if options.as_json:
        click.echo(json.dumps(_values(found) | {"faster": faster}))
    else:
        click.echo("\n".join(_table(found)))
        for way in faster:
            note(f"faster: {way}")
    run.check(found)


def fitting(
    model: TextToImage,
    request: Request,
    budget: Budget,
    prompts: int | None = None,
    known: Known | None = None,
) -> Plan:
    """The plan of a run that is about to begin: of mmgen batch over so many prompts, None: of mmgen generate.

    model: as `open_model` gives it. request: its longest prompt first. known: what is drawn over.
    Raises MachineError, which says what would help, where it does not fit.
    """
    run = _Run(model, request, budget, prompts, known)
    found = run.planned()
    run.check(found)
    return found


@dataclass(frozen=True)
class _Run:
    """What is planned, as `fitting` takes it."""

    model: TextToImage
    request: Request
    budget: Budget
    prompts: int | None
    known: Known | None

    def planned(self) -> Plan:
        from mmgen.render.planning import plan_batch, plan_one

        if self.prompts is None:
            return plan_one(self.model, self.request, self.budget, self.known)
        return plan_batch(self.model, self.request, self.budget, self.prompts, self.known)

    def check(self, found: Plan) -> None:
        """Raise MachineError where its plan does not fit."""
        if not found.fits:
            raise MachineError(_too_little(found, list(_ways(self, found))))

    def smaller(self, side: int) -> _Run:
        """The same with smaller pictures."""
        names = self.model.cascade.up_to(side).names
        stages = {name: given for name, given in self.request.stages.items() if name in names}
        return replace(self, request=replace(self.request, size=(side, side), stages=stages))


def _faster(run: _Run, found: Plan) -> list[str]:
    """What it would take to be faster here."""
    from mmgen.memory import choose_device, choose_dtype
    from mmgen.render.planning import room_for, room_together

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
        ways.append(f"{_megabytes(room_together(found))} of {device}, in which all weights stay there")
    for stage in found.stages:
        if run.prompts is not None and stage.batch < most:
            needed = _megabytes(room_for(stage, most, device))
            ways.append(f"{needed}, in which stage {stage.name} draws {most} at once")
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

    room = run.budget.room
    if room is not None and not room.asked:
        whole = room.bytes // 10**6  # as it can be written
        asked = replace(run, budget=replace(run.budget, room=Room(whole * 10**6, asked=True)))
        if asked.planned().fits:
            yield (
                f"give --memory {whole}MB, for which weights are there for their turn only and squares become "
                "smaller"
            )
    for side in reversed([side for side in run.model.sizes if side < found.size]):
        if (smaller := run.smaller(side).planned()).fits:
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
    lines.append(
        f"mmgen {found.command}, at most at once: {_megabytes(found.peak)}{room}, beside the libraries"
    )
    if found.seconds is not None:
        lines.append(f"{found.pictures} to draw: about {found.seconds:,.1f} s, once weights are read")
    return lines


def _row(found: Plan, stage: StagePlan) -> tuple[str, ...]:
    how = {"resident": "", "turn": ", its turn only", "streamed": ", streamed layer by layer"}
    return (
        stage.name,
        _megabytes(stage.weights),
        "not known" if stage.each is None else _megabytes(stage.each),
        stage.dtype,
        str(stage.batch) if stage.square is None else f"{stage.batch}, {stage.square}-px squares",
        f"on {found.device}{how[stage.place]}",
        "not known" if stage.seconds is None else f"{stage.seconds:.3f}",
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
