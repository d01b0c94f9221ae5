"""`mmgen generate`: prompts in, picture files out."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mmgen.cli.options import (
    MACHINE,
    WithPrompts,
    parse_memory,
    parse_size,
    read_prompts,
    stage_settings,
    with_options,
)
from mmgen.cli.terminal import StageBars, note
from mmgen.errors import NonFiniteError, UsageError
from mmgen.types import DRAWN_SEEDS, MAX_SEED, MAX_STEPS, SAMPLERS, Request, check_prompt
from mmgen.values import MAX_COUNT

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmgen.cli.output import Output
    from mmgen.cli.preview import Views
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.result import Result
    from mmgen.schedulers.samplers import Step

SHOWN_WORDS = 10  # of those at the end of a text that were not read

Stream = Callable[[Request], "Generator[Step, None, Result]"]


class Over(NamedTuple):
    """A picture that is drawn over. mask: white where it is drawn anew, None: anywhere. strength: None = by default."""

    image: Image
    mask: Image | None
    strength: float | None


@dataclass(frozen=True, kw_only=True)
class Options(WithPrompts):
    """The command line as it was given."""

    prompts: tuple[str, ...]
    memory: int | None
    preview: str | None
    grid: bool
    no_show: bool


# what every command that draws from pictures or prompts takes
OUT = click.option(
    "-o",
    "--out",
    default="mmgen-out",
    show_default=True,
    metavar="PATH",
    help="Folder for the pictures, or the file name of one picture.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), help="First seed; drawn and printed if not given."
)
SIZE = click.option(
    "--size", type=parse_size, metavar="N|WxH", help="Pixels, one side or both; the model's own if not given."
)
FILE = (
    click.option(
        "--format", type=click.Choice(["png", "jpeg", "webp"]), help="Kind of file; png, or what --out says."
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="STAGE.NAME=VALUE",
        help="Any setting of any stage; may be repeated.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object per picture on standard output."),
    click.option("--overwrite", is_flag=True, help="Replace the file that --out names."),
)
COUNT = click.option(
    "-n",
    "--count",
    type=click.IntRange(1, MAX_COUNT),
    default=1,
    show_default=True,
    help="Pictures per prompt, with the seeds SEED, SEED+1, ...",
)
DECODER = (
    click.option("--steps", type=click.IntRange(1, MAX_STEPS), help="Steps of the decoder."),
    click.option("--guidance", type=float, help="How closely the decoder follows the prompt; 1 is off."),
    click.option("--sampler", metavar="NAME",
                 help=f"How the decoder steps: {', '.join(SAMPLERS)}, or a scheduler class of diffusers."),
    click.option("--threshold", metavar="PERCENTILE|clip|none",
                 help="What the decoder does with colours out of range."),
    click.option("--negative", default="", metavar="TEXT", help="What should not be in the picture."),
)  # fmt: skip
OPTIONS = (
    click.argument("prompts", nargs=-1, required=True, metavar="PROMPT..."),
    OUT,
    COUNT,
    SEED,
    SIZE,
    *DECODER,
    *MACHINE,
    click.option("--memory", type=parse_memory, metavar="SIZE",
                 help="What the run may take of its device, such as 8GB; what is free if not given."),
    *FILE,
    click.option("--preview", metavar="FILE",
                 help="A png, jpg or webp file that shows the picture so far, rewritten after every step."),
    click.option("--grid", is_flag=True, help="Also one sheet of all pictures, grid-0001.png."),
    click.option("--no-show", is_flag=True,
                 help="No thumbnails between the lines of a terminal that can show them."),
)  # fmt: skip


def seeds_from(first: int | None, count: int) -> tuple[int, ...]:
    """`count` seeds in a row from the first, or from one that is drawn and said."""
    if first is None:
        first = secrets.randbelow(DRAWN_SEEDS)
        note(f"seed {first} (drawn; --seed {first} gives the same again)")
    return tuple(range(first, first + count))


@click.command()
@with_options(*OPTIONS)
def generate(**given: Any) -> None:
    """Draw a picture for each PROMPT.

    The PROMPT - stands for the lines of standard input. Each file carries its settings: `mmgen inspect` shows
    them. No file is overwritten unless you say so.

    \b
    mmgen generate "a red kite over a lake" --size 512 --seed 7
    mmgen generate "a fox" -n 4 --set super-res-256.steps=10
    mmgen generate - --json < prompts.txt
    mmgen generate "a boat" -n 9 --grid --preview now.png
    """
    draw_all(Options(**given))


def draw_all(options: Options, over: Over | None = None) -> None:
    """Check everything, load the model, draw and write; over: the picture that is drawn over."""
    asked, output, views = _check(options)
    note(f"loading {options.model}")
    from mmgen.images import check_fits

    pipe = _opened(options)
    request = pipe.request(
        asked.prompts,
        seeds=asked.seeds,
        size=options.size,
        negative_prompt=asked.negative_prompt,
        stages=asked.stages,
    )
    if over is not None:
        from mmgen.pipelines import editing

        request = editing.over(request, over.image, over.mask, over.strength)
    for prompt in request.prompts:
        check_fits(output.format, request.single(prompt, request.seeds[-1]))
    if options.memory is not None:
        pipe = _within(options, options.memory, pipe, request, over)
    stream = pipe.stream if over is None else partial(pipe.stream, image=over.image, mask=over.mask)
    failed = _draw(pipe, request, stream, output, views, options.as_json)
    views.show_all(output.folder)
    if failed:
        note(f"{failed} of {len(asked.prompts) * len(asked.seeds)} pictures failed; the others are there")
        click.get_current_context().exit(1)


def _opened(options: Options) -> TextToImage:
    """The model, whose weights are not read yet where a run is kept to some memory."""
    if options.memory is None:
        import mmgen

        return mmgen.load(options.model, device=options.device, dtype=options.dtype)
    from mmgen.render.pool import Setup

    return Setup(options.model, "png", options.device, options.dtype, memory=options.memory).open()


def _within(
    options: Options, memory: int, opened: TextToImage, request: Request, over: Over | None
) -> TextToImage:
    """The model as it draws in so much memory: as a whole, if that fits. Raises MachineError where nothing does."""
    import mmgen
    from mmgen.cli.plan import fitting
    from mmgen.memory import room
    from mmgen.pipelines import editing
    from mmgen.render.engine import budget_of
    from mmgen.render.planning import follow

    longest = request.single(max(request.prompts, key=len), request.seeds[0])
    known = None if over is None else editing.known(over.image, over.mask, request)
    found = fitting(opened, longest, budget_of(room(opened.device, memory), opened.device), known=known)
    if found.resident:
        return mmgen.load(options.model, device=options.device, dtype=options.dtype)
    for stage in found.stages:
        if stage.square is not None:
            note(f"memory is short in stage {stage.name}: in squares of {stage.square} px")
    follow(opened, found)
    return opened


def _check(options: Options) -> tuple[Request, Output, Views]:
    """All that can be wrong before a model is loaded: values, names, and whether pictures can be written."""
    prompts = read_prompts(options.prompts)
    check_prompt(options.negative, what="negative prompt", may_be_empty=True)
    stages = stage_settings(
        options.settings,
        steps=options.steps,
        guidance=options.guidance,
        sampler=options.sampler,
        threshold=options.threshold,
    )
    if options.sampler is not None:
        from mmgen.schedulers import sampler

        sampler(options.sampler)
    if not options.model.strip():
        raise UsageError("--model is empty: give a name or a folder")
    if options.seed is not None and options.seed + options.count - 1 > MAX_SEED:
        raise UsageError(f"--seed {options.seed} with --count {options.count} goes past {MAX_SEED}")
    from mmgen.cli.output import plan
    from mmgen.pipelines.catalogue import fitting_side, sizes

    sides = sizes(options.model)
    if options.size is not None:
        fitting_side(options.size, sides, options.model)
    pictures = len(prompts) * options.count
    output = plan(options.out, options.format, pictures, options.overwrite)
    views = _views(options, output, pictures)
    if options.attention is not None:
        from mmgen.attention import use

        use(options.attention)
    asked = Request(
        prompts=prompts,
        seeds=seeds_from(options.seed, options.count),
        size=options.size or (1, 1),  # stands in until the model has said its own
        negative_prompt=options.negative,
        stages=stages,
    )
    return asked, output, views


def _views(options: Options, output: Output, pictures: int) -> Views:
    """What is shown besides the files, as far as it can be. Raises UsageError where that cannot be meant."""
    from mmgen.cli.preview import MAX_ON_SHEET, Sheet, Views, inline_protocol, plan_preview

    if options.grid and pictures > MAX_ON_SHEET:
        raise UsageError(f"--grid holds {MAX_ON_SHEET} pictures and {pictures} are asked for: leave it out")
    return Views(
        preview=None if options.preview is None else plan_preview(options.preview, output.file),
        inline=None if options.no_show else inline_protocol(os.environ, sys.stderr.isatty()),
        sheet=Sheet() if options.grid else None,
    )


def _draw(
    pipe: TextToImage, request: Request, stream: Stream, output: Output, views: Views, as_json: bool
) -> int:
    """Draw and write the pictures one by one, so that each is safe before the next begins. How many failed."""
    from mmgen.pipelines.notebook import drain

    pictures = list(request.pictures())
    failed = 0
    said: set[tuple[str, str]] = set()
    show_step = partial(views.show_step, size=request.size)
    for number, (prompt, seed) in enumerate(pictures, start=1):
        single = request.single(prompt, seed)
        started = time.monotonic()
        try:
            with StageBars(f"{number}/{len(pictures)}") as bars:
                result = drain(stream(single), [bars.show, show_step])
        except NonFiniteError as error:
            failed += 1
            note(f"error: {prompt!r}, seed {seed}: {error}")
            print_picture(single, None, as_json, {"error": str(error)})
            continue
        unknown = result.unknown_words.get(prompt, {})
        say_unknown(pipe.name, unknown, said)
        say_cut(pipe.name, result.cut_words, said)
        path = output.save(result.images[0], result.request)
        seconds = round(time.monotonic() - started, 3)
        words = {"unknown_words": dict(unknown), "cut_words": cut_of(result.cut_words)}
        print_picture(result.request, path, as_json, {"seconds": seconds, **words})
        views.show_picture(result.images[0], prompt, seed)
    return failed


def say_unknown(model: str, unknown: Mapping[str, str], said: set[tuple[str, str]]) -> None:
    """Name the words that a model does not know, each once. said: those that have been named, which grows."""
    for word, nearest in unknown.items():
        if (word, nearest) not in said:
            said.add((word, nearest))
            note(f"{model} has no {word!r}" + (f"; nearest: {nearest!r}" if nearest else ""))


def say_cut(model: str, cut: Mapping[str, Sequence[str]], said: set[tuple[str, str]]) -> None:
    """Name the words that a model did not read, once for each text. said: as in `say_unknown`."""
    for text, words in cut.items():
        if (text, words[0]) not in said:
            said.add((text, words[0]))
            more = len(words) - SHOWN_WORDS
            named = ", ".join(map(repr, words[:SHOWN_WORDS])) + (f" and {more} more" if more > 0 else "")
            note(f"{model} did not read {named}: the text is too long for it")


def cut_of(cut: Mapping[str, Sequence[str]]) -> list[str]:
    """All words that were not read, as JSON has them."""
    return [word for words in cut.values() for word in words]


def print_picture(request: Request, path: Path | None, as_json: bool, more: Mapping[str, Any]) -> None:
    """A line on standard output: the file's name, or as JSON everything about the picture."""
    if as_json:
        file = None if path is None else str(path)
        click.echo(json.dumps({"file": file, "request": request.to_dict(), **more}))
    elif path is not None:
        click.echo(str(path))
