"""`mmgen vary`, `mix`, `interpolate` and `diff-text`: pictures drawn from what other pictures and texts show."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import FILE, OUT, SEED, SIZE, cut_of, print_picture, say_cut, say_unknown, seeds_from
from mmgen.cli.options import MACHINE, Shared, stage_settings, with_options
from mmgen.cli.terminal import note
from mmgen.errors import NonFiniteError, UsageError
from mmgen.types import AMOUNT, Request, Verb, check_prompt
from mmgen.values import MAX_COUNT

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmgen.cli.output import Output
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.result import Result

    Draw = Callable[[TextToImage, int, dict[str, Any]], Result]
    """(model, seed, size and stages) -> the pictures of that seed."""

MAX_FRAMES = 400
OF_PICTURES = (
    ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".svg",
)  # fmt: skip
IMAGE = click.argument("image", type=click.Path(path_type=Path), metavar="IMAGE")
COUNT = click.option(
    "-n", "--count", type=click.IntRange(1, MAX_COUNT), default=1, show_default=True,
    help="Pictures, with the seeds SEED, SEED+1, ...",
)  # fmt: skip


SHARED = (OUT, SEED, SIZE, *MACHINE, *FILE)


@click.command()
@IMAGE
@COUNT
@with_options(*SHARED)
def vary(image: Path, **given: Any) -> None:
    """Draw other pictures of what IMAGE shows.

    \b
    mmgen vary house.png -n 4
    """  # fmt: skip
    shown = _opened(image)
    _draw_all(
        _Asked("vary", [shown], (), image.stem),
        Shared(**given),
        lambda pipe, seed, how: pipe.vary(shown, seeds=[seed], **how),
    )


@click.command()
@click.argument("parts", nargs=-1, required=True, metavar="IMAGE|TEXT...")
@click.option("--weights", metavar="W,W,...", help="One number for each, together 1; equal if not given.")
@COUNT
@with_options(*SHARED)
def mix(parts: tuple[str, ...], weights: str | None, **given: Any) -> None:
    """Draw what several pictures and texts show together.

    \b
    mmgen mix house.png beach.jpg --weights 0.7,0.3
    mmgen mix cat.png "a boat at sunset"
    """  # fmt: skip
    shown = [_part(word) for word in parts]
    numbers = [1 / len(parts)] * len(parts) if weights is None else parse_weights(weights)
    _draw_all(
        _Asked("mix", shown, numbers, _name(parts)),
        Shared(**given),
        lambda pipe, seed, how: pipe.mix(shown, numbers, seeds=[seed], **how),
    )


@click.command()
@click.argument("a", metavar="IMAGE|TEXT")
@click.argument("b", metavar="IMAGE|TEXT")
@click.option(
    "--frames",
    type=click.IntRange(2, MAX_FRAMES),
    default=9,
    show_default=True,
    help="Pictures, both ends included.",
)
@with_options(*SHARED)
def interpolate(a: str, b: str, frames: int, **given: Any) -> None:
    """Draw the way from one picture or text to another.

    The frames are also written side by side, as strip-0001.png.

    \b
    mmgen interpolate cat.png dog.png --frames 9
    mmgen interpolate "a house by day" "a house at night"
    """  # fmt: skip
    first, last = _part(a), _part(b)
    weights = [frame / (frames - 1) for frame in range(frames)]
    output, images = _draw_all(
        _Asked("interpolate", [first, last], weights, _name([a, b])),
        Shared(**given),
        lambda pipe, seed, how: pipe.interpolate(first, last, frames=frames, seed=seed, **how),
    )
    if images:
        note(f"side by side: {_write_strip(images, output.folder)}")


@click.command("diff-text")
@IMAGE
@click.option("--from", "before", required=True, metavar="TEXT", help="What the picture shows.")
@click.option("--to", "after", required=True, metavar="TEXT", help="What it is to show instead.")
@click.option(
    "--amount",
    type=float,
    default=AMOUNT,
    show_default=True,
    help="How far it is changed, from 0 to 1; up to 0.5 the picture is still to be known.",
)
@with_options(*SHARED)
def diff_text(image: Path, before: str, after: str, amount: float, **given: Any) -> None:
    """Change IMAGE by what one text says and another says instead.

    \b
    mmgen diff-text cat.png --from "a cat" --to "a red cat"
    """  # fmt: skip
    for text in (before, after):
        check_prompt(text)
    shown = _opened(image)
    _draw_all(
        _Asked("diff-text", [shown, before, after], [amount], f"{image.stem} {after}"),
        Shared(**given),
        lambda pipe, seed, how: pipe.diff_text(shown, before, after, amount=amount, seed=seed, **how),
    )


def parse_weights(text: str) -> list[float]:
    """ "0.7,0.3" -> numbers. Raises UsageError if there are others in it."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights {text!r}: write one number for each part, such as 0.7,0.3") from None


def _part(word: str) -> Image | str:
    """The picture of that name, or a text. Raises UsageError where a name was meant and there is no such file."""
    if os.path.isfile(word) or Path(word).suffix.lower() in OF_PICTURES:
        return _opened(Path(word))
    check_prompt(word)
    return word


def _opened(path: Path) -> Image:
    from mmgen.inputs import open_picture

    shown = open_picture(path)
    if shown.width != shown.height:
        note(f"{path.name} is {shown.width}x{shown.height}: its middle square is seen")
    return shown


def _name(words: Sequence[str]) -> str:
    """What the file of a picture made of these is called."""
    return " ".join(Path(word).stem if os.path.isfile(word) else word for word in words)


@dataclass(frozen=True)
class _Asked:
    """What a command draws from; name: that of its files."""

    verb: Verb
    parts: Sequence[Image | str]
    weights: Sequence[float]
    name: str


def _draw_all(asked: _Asked, options: Shared, draw: Draw) -> tuple[Output, list[Image]]:
    """Check everything, load the model, draw, and write the pictures of each seed before the next begins."""
    request, output = _check(asked, options)
    note(f"loading {options.model}")
    import mmgen

    pipe = mmgen.load(options.model, device=options.device, dtype=options.dtype)
    images: list[Image] = []
    failed = 0
    for seed in request.seeds:
        try:
            result = draw(pipe, seed, {"size": request.size, "stages": request.stages})
        except NonFiniteError as error:
            failed += 1
            note(f"error: seed {seed}: {error}")
            continue
        _write(result, output, asked.name, options.as_json)
        images += result.images
        if not result.complete:
            raise KeyboardInterrupt
    if failed:
        note(f"{failed} of {len(request.seeds)} pictures failed; the others are there")
        click.get_current_context().exit(1)
    return output, images


def _check(asked: _Asked, options: Shared) -> tuple[Request, Output]:
    """All that can be wrong before a model is loaded: the model's kind, values, and whether files can be written."""
    stages = stage_settings(options.settings)
    if not options.model.strip():
        raise UsageError("--model is empty: give a name or a folder")
    from mmgen.cli.output import plan
    from mmgen.images import check_fits
    from mmgen.inputs import from_parts
    from mmgen.pipelines.catalogue import fitting_side, sizes
    from mmgen.pipelines.families.storybook import no_image_embed
    from mmgen.pipelines.sources import locate

    if locate(options.model).base.index.get("image_embed") == "none":
        raise no_image_embed(options.model)
    sides = sizes(options.model)
    side = sides[-1] if options.size is None else fitting_side(options.size, sides, options.model)
    frames = len(asked.weights) if asked.verb == "interpolate" else 1
    output = plan(options.out, options.format, options.count * frames, options.overwrite)
    if options.attention is not None:
        from mmgen.attention import use

        use(options.attention)
    request, _ = from_parts(
        asked.verb,
        asked.parts,
        asked.weights,
        seeds=seeds_from(options.seed, options.count),
        size=(side, side),
        stages=stages,
    )
    check_fits(output.format, next(request.singles()))
    return request, output


def _write(result: Result, output: Output, name: str, as_json: bool) -> None:
    """Save every picture that is there, and say its name."""
    unknown = {word: near for words in result.unknown_words.values() for word, near in words.items()}
    say_unknown(result.request.model, unknown, set())
    say_cut(result.request.model, result.cut_words, set())
    words = {"unknown_words": unknown, "cut_words": cut_of(result.cut_words)}
    seconds = round(sum(record.seconds for record in result.records) / max(1, len(result)), 3)
    for image, single in zip(result, result.request.singles(), strict=False):
        path = output.save(image, single, name)
        print_picture(single, path, as_json, {"seconds": seconds, **words})


def _write_strip(images: Sequence[Image], folder: Path) -> Path:
    """Thumbnails side by side, under the first free name strip-0001.png, strip-0002.png, ..."""
    from mmgen.images import encode, grid, write_new
    from mmgen.thumbnails import thumbnail

    strip = grid([thumbnail(image) for image in images], len(images))
    names = (folder / f"strip-{number:04d}.png" for number in itertools.count(1))
    return write_new(next(names), encode(strip, "png"), alternatives=names)
