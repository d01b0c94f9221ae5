"""`mmgen sweep`: a prompt under every value of one or two settings, and a sheet that is labelled with them."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.batch import run_checked
from mmgen.cli.generate import DECODER, SIZE
from mmgen.cli.grid import fitting_cell, font_size, in_cell, letters
from mmgen.cli.options import MACHINE, with_options
from mmgen.cli.planned import Given, Plan, plan_of
from mmgen.cli.progress import pictures
from mmgen.cli.terminal import note
from mmgen.errors import UsageError
from mmgen.render.options import Line, Options, from_text
from mmgen.render.promptfile import PromptFileError
from mmgen.types import MAX_SEED, check_prompt
from mmgen.values import SETTING_NAMES

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmgen.render.jobs import Job
    from mmgen.types import Size

MAX_VALUES = 1000  # of one setting; how many pictures fit on the sheet is checked besides
LABEL_LINES = 4  # where a cell is as high as that
SHORT = ("steps", "guidance", "sampler", "threshold")  # of the stage 'decoder'
SOURCE = "the sweep"

OPTIONS = (
    click.argument("prompt", metavar="PROMPT"),
    click.option("--vary", multiple=True, required=True, metavar="NAME=VALUES",
                 help="A setting and its values, as in guidance=2,4,6 or seed=1..4; columns, then rows of the sheet."),
    click.option("-o", "--out", default="mmgen-out", show_default=True, metavar="FOLDER",
                 help="Where the pictures go, manifest.jsonl, which lists them, and the sheet."),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Seed of every picture; 0 if not given."),
    SIZE,
    *DECODER,
    click.option("--set", "settings", multiple=True, metavar="STAGE.NAME=VALUE",
                 help="Any setting of any stage; may be repeated."),
    *MACHINE,
    click.option("--format", type=click.Choice(["png", "jpeg", "webp"]),
                 help="Kind of the pictures' files; png if not given. The sheet is a png."),
    click.option("--dry-run", is_flag=True, help="Check everything and list the pictures; draw nothing."),
    click.option("--retry-failed", is_flag=True, help="Draw those again that failed in a run before."),
    click.option("--json", "as_json", is_flag=True, help="What happens as JSON, a line each, on standard output."),
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """A setting that is varied.

    name: as it was given. option: what it means, "seed", "size" or STAGE.NAME. values: all different, by their text.
    """

    name: str
    option: str
    values: Mapping[str, Any]

    @property
    def labels(self) -> list[str]:
        return [f"{self.name} {text}" for text in self.values]


@click.command()
@with_options(*OPTIONS)
def sweep(prompt: str, vary: tuple[str, ...], **given: Any) -> None:
    """Draw a PROMPT under every value of a setting.

    The values of the first --vary are the columns of a sheet, those of a second one its rows. NAME is seed, size,
    steps, guidance, sampler, threshold, or STAGE.NAME for any setting of any stage. The pictures go into the folder as
    those of `mmgen batch` do: run again, the same command draws only what is missing.

    \b
    mmgen sweep "a fox in the snow" --vary decoder.guidance=2,4,6 --vary seed=1..4
    mmgen sweep "a fox" --vary sampler=ddim,heun,dpmpp-2m --steps 12 -o samplers
    """
    check_prompt(prompt)
    axes = _axes(vary)
    run = Given(**given)
    plan = plan_of(run, SOURCE, partial(_lines, prompt, axes))
    _check_free(axes, plan.options)
    cell = fitting_cell(_count(axes), partial(_sheet_size, axes), "png")
    jobs = _jobs(plan, axes)
    failed = None
    try:
        run_checked(run, plan.checked())
    except click.exceptions.Exit as exit:
        failed = exit
    if not run.dry_run:
        _write_sheet(run, plan, axes, jobs, cell)
    if failed is not None:
        raise failed


# ---- what is varied ------------------------------------------------------------------------------


def _axes(texts: Sequence[str]) -> list[Axis]:
    if len(texts) > 2:
        raise UsageError(
            f"--vary is given {len(texts)} times: a sheet has columns and rows, so give two at most"
        )
    axes = [_axis(text) for text in texts]
    if len({axis.option for axis in axes}) < len(axes):
        raise UsageError(f"--vary {axes[0].name} and --vary {axes[1].name} are the same: keep one")
    return axes


def _axis(text: str) -> Axis:
    name, _, listed = text.partition("=")
    if not name or not listed:
        raise UsageError(f"--vary {text!r}: write NAME=VALUES, such as seed=1..4 or guidance=2,4,6")
    option = _option(name)
    values: dict[str, Any] = {}
    try:
        for word in _words(listed):
            value = from_text(option, word)
            if value in values.values():
                raise UsageError(f"{word} is given twice: keep one")
            values[word] = value
    except UsageError as error:
        raise UsageError(f"--vary {text}: {error}") from None
    return Axis(name, option, values)


def _option(name: str) -> str:
    """What is meant by a name. Raises UsageError if that cannot be varied."""
    if name in ("seed", "size"):
        return name
    stage, _, setting = f"decoder.{name}".rpartition(".") if name in SHORT else name.rpartition(".")
    setting = "guidance_scale" if setting == "guidance" else setting
    if not re.fullmatch(r"[^.=\s]+", stage) or setting not in SETTING_NAMES:
        raise UsageError(
            f"--vary {name}: it is none of seed, size, {', '.join(SHORT)}, and no STAGE.NAME with one of "
            f"{', '.join(SETTING_NAMES)}"
        )
    return f"{stage}.{setting}"


def _words(listed: str) -> Iterator[str]:
    """The values of a list as texts, at most MAX_VALUES; 2..4 stands for 2, 3 and 4."""
    count = 0
    for word in map(str.strip, listed.split(",")):
        found = re.fullmatch(r"(\d{1,19})\.\.(\d{1,19})", word, re.ASCII)
        first, last = (int(found[1]), int(found[2])) if found else (0, 0)
        if first > last:
            raise UsageError(f"{word} goes down: write {last}..{first}")
        count += last - first + 1
        if count > MAX_VALUES:
            raise UsageError(f"more than {MAX_VALUES:,} values: give fewer")
        yield from map(str, range(first, last + 1)) if found else [word]


def _check_free(axes: Sequence[Axis], run: Options) -> None:
    """Raise UsageError if a setting that is varied is given one value besides."""
    given = {
        "seed": run.seed,
        "size": run.size,
        "decoder.steps": run.steps,
        "decoder.guidance_scale": run.guidance,
        "decoder.sampler": run.sampler,
        "decoder.threshold": run.threshold,
    }
    for stage, settings in run.settings.items():
        given |= {f"{stage}.{name}": value for name, value in settings.items()}
    for axis in axes:
        if given.get(axis.option) is not None:
            raise UsageError(f"--vary {axis.name} says what one value is given for besides: keep one of both")


# ---- pictures ------------------------------------------------------------------------------------


def _count(axes: Sequence[Axis]) -> int:
    columns, rows = _shape(axes)
    return columns * rows


def _shape(axes: Sequence[Axis]) -> tuple[int, int]:
    """(columns, rows) of the sheet."""
    return len(axes[0].values), len(axes[1].values) if len(axes) == 2 else 1


def _lines(prompt: str, axes: Sequence[Axis]) -> Iterator[Line]:
    """One picture each, row by row."""
    options = [axis.option for axis in reversed(axes)]
    every = product(*(axis.values.values() for axis in reversed(axes)))
    for number, values in enumerate(every, start=1):
        yield Line(number, prompt, _options(dict(zip(options, values, strict=True))))


def _options(values: Mapping[str, Any]) -> Options:
    settings: dict[str, dict[str, Any]] = {}
    for option, value in values.items():
        stage, dot, name = option.partition(".")
        if dot:
            settings.setdefault(stage, {})[name] = value
    return Options(seed=values.get("seed"), size=values.get("size"), settings=settings)


def _jobs(plan: Plan, axes: Sequence[Axis]) -> list[Job]:
    """The pictures row by row. Raises UsageError, with the values, for one that cannot be drawn."""
    try:
        return list(plan.jobs())
    except PromptFileError as error:
        column, row = (error.line - 1) % len(axes[0].values), (error.line - 1) // len(axes[0].values)
        said = ", ".join(axis.labels[at] for axis, at in zip(axes, (column, row), strict=False))
        text = str(error).removeprefix(f"{SOURCE}, line {error.line}: ")
        raise UsageError(f"--vary, {said}: {text}") from None


# ---- the sheet -----------------------------------------------------------------------------------


def _write_sheet(run: Given, plan: Plan, axes: Sequence[Axis], jobs: Sequence[Job], cell: int) -> None:
    """Beside the pictures, under a name that says what is on it, so that the same sweep replaces its own alone."""
    from mmgen.images import encode, slug, write_new
    from mmgen.render.folder import Folder

    folder = Folder(Path(run.out), plan.format)
    found = [folder.find(job) for job in jobs]
    if not any(found):
        return
    if missing := found.count(None):
        note(f"{pictures(missing)} could not be drawn: the cells on the sheet stay empty")
    told = "\n".join([*(label for axis in axes for label in axis.labels), *(job.key for job in jobs)])
    key = hashlib.sha256(told.encode()).hexdigest()[:8]
    name = "-".join(filter(None, ["sweep", slug(jobs[0].request.prompts[0]), key]))
    data = encode(_sheet(found, axes, cell), "png")
    path = write_new(folder.path / f"{name}.png", data, overwrite=True)
    click.echo(json.dumps({"event": "sheet", "file": str(path)}) if run.as_json else str(path))


def _sheet_size(axes: Sequence[Axis], cell: int) -> Size:
    left, top = _margins(axes, cell)
    columns, rows = _shape(axes)
    return left + columns * cell, top + rows * cell


def _margins(axes: Sequence[Axis], cell: int) -> Size:
    """(left, top) of the pictures, where the labels stand."""
    return cell if len(axes) == 2 else 0, 8 + _line_height(cell) * _label_lines(cell)


def _sheet(found: Sequence[Path | None], axes: Sequence[Axis], cell: int) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    from mmgen.images import grid

    blank = Image.new("RGB", (cell, cell), "white")
    cells = [blank if path is None else in_cell(path, cell) for path in found]
    left, top = _margins(axes, cell)
    sheet = Image.new("RGB", _sheet_size(axes, cell), "white")
    sheet.paste(grid(cells, len(axes[0].values)), (left, top))
    write = partial(
        ImageDraw.Draw(sheet).multiline_text,
        fill="black",
        font=ImageFont.load_default(font_size(cell)),
        anchor="mm",
        align="center",
    )
    columns, rows = ([_label(axis.name, text, cell) for text in axis.values] for axis in (axes[0], axes[-1]))
    for index, label in enumerate(columns):
        write((left + (index + 0.5) * cell, top / 2), label)
    for index, label in enumerate(rows if left else ()):
        write((left / 2, top + (index + 0.5) * cell), label)
    return sheet


def _label(name: str, value: str, cell: int) -> str:
    """One line if there is room; else the end of the name, which says most, above the value."""
    room, most = letters(cell) - 1, _label_lines(cell)
    if len(f"{name} {value}") <= room:
        return f"{name} {value}"
    values = textwrap.wrap(value, room)[:most]
    names = textwrap.wrap(name, room)
    shown = min(len(names), most - len(values))
    return "\n".join([*names[len(names) - shown :], *values])


def _label_lines(cell: int) -> int:
    return min(LABEL_LINES, cell // _line_height(cell))


def _line_height(cell: int) -> int:
    return round(1.4 * font_size(cell))
