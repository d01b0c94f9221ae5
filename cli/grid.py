"""`mmgen grid`: a contact sheet of pictures, each with its caption."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmgen.cli.terminal import note, one_line
from mmgen.errors import UsageError
from mmgen.types import MAX_SEED

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmgen.images import Format
    from mmgen.types import Size

CELL, MIN_CELL, MAX_CELL = 256, 32, 4096  # pixels
PROMPT_LINES = 3
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("-o", "--out", required=True, metavar="FILE", help="The sheet: a png, jpg or webp file.")
@click.option(
    "--columns", type=click.IntRange(1), help="Pictures in a row; as many as there are rows if not given."
)
@click.option(
    "--caption",
    type=click.Choice(["prompt", "seed", "name", "none"]),
    default="prompt",
    show_default=True,
    help="What stands below each picture; prompt is with its seed.",
)
@click.option(
    "--cell",
    type=click.IntRange(MIN_CELL, MAX_CELL),
    metavar="PIXELS",
    help=f"Side of a cell; {CELL}, or less where very many pictures would not fit, if not given.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file that --out names.")
def grid(
    images: tuple[Path, ...], out: str, columns: int | None, caption: str, cell: int | None, overwrite: bool
) -> None:
    """Put pictures on one sheet, row by row.

    A folder stands for the pictures in it, in the order of their names. Larger pictures are scaled down to a cell,
    whole; a picture without settings has its name as its caption.

    \b
    mmgen grid mmgen-out -o sheet.png
    mmgen grid a.png b.png c.png -o row.jpg --columns 3 --caption seed
    """
    from mmgen import images as files
    from mmgen.cli.output import plan

    output = plan(out, None, 1, overwrite)
    if output.file is None:
        raise UsageError(
            f"--out {out} is a folder: give the name of the sheet, such as {Path(out) / 'sheet.png'}"
        )
    paths = _pictures(images, output.file)
    columns = min(columns or math.isqrt(len(paths) - 1) + 1, len(paths))
    size_of = partial(_sheet_size, len(paths), columns, caption != "none")
    cell = fitting_cell(len(paths), size_of, output.format, asked=cell)
    captions = None if caption == "none" else [_caption(path, caption, cell) for path in paths]
    sheet = files.grid([in_cell(path, cell) for path in paths], columns, captions)
    files.check_side(output.format, max(sheet.size))
    files.make_folder(output.folder)
    data = files.encode(sheet, output.format)
    click.echo(str(files.write_new(output.file, data, overwrite=overwrite)))


def _pictures(given: tuple[Path, ...], sheet: Path) -> list[Path]:
    """The files, folders replaced by the pictures in them, but for an old sheet that is about to be replaced."""
    paths: list[Path] = []
    for path in given:
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(
            file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."
        )
        if not (found := [file for file in found if os.path.realpath(file) != os.path.realpath(sheet)]):
            raise UsageError(f"the folder {path} holds no pictures ({', '.join(SUFFIXES)})")
        paths += found
    return paths


def fitting_cell(count: int, size_of: Callable[[int], Size], format: Format, asked: int | None = None) -> int:
    """The side of a cell with which a sheet of so many pictures can be written and opened again.

    size_of: width and height of the sheet, at most, by that side. Raises UsageError if there is none, or it is not the
    one that was asked for.
    """
    from mmgen.images import MAX_SIDES
    from mmgen.inputs import MAX_PIXELS

    longest = MAX_SIDES.get(format, MAX_PIXELS)

    def fits(cell: int) -> bool:
        width, height = size_of(cell)
        return width * height <= MAX_PIXELS and max(width, height) <= longest

    cell = asked or CELL
    fitting = next((side for side in range(cell, MIN_CELL - 1, -1) if fits(side)), None)
    if fitting != cell and (asked or fitting is None):
        width, height = size_of(cell if asked else MIN_CELL)
        advice = f"give --cell {fitting}, or fewer" if fitting else "give fewer"
        raise UsageError(
            f"{count:,} pictures in cells of {cell if asked else MIN_CELL} px make a sheet of about {width}x{height}, "
            f"and at most {MAX_PIXELS:,} pixels are written, {longest:,} on a side: {advice} pictures"
        )
    assert fitting is not None
    if fitting != cell:
        width, height = size_of(fitting)
        note(f"{count:,} pictures: in cells of {fitting} px, the sheet is about {width}x{height}")
    return fitting


def _sheet_size(count: int, columns: int, captioned: bool, cell: int) -> Size:
    """Width and height at most, with captions as long as they may get."""
    lines = PROMPT_LINES + 1 + -(-len(str(MAX_SEED)) // letters(cell))
    strip = 8 + round(1.4 * font_size(cell)) * lines if captioned else 0
    return columns * cell, -(-count // columns) * (cell + strip)


def font_size(cell: int) -> int:
    """As `mmgen.images.grid` chooses it."""
    return max(10, cell // 20)


def letters(cell: int) -> int:
    """That fit into a line."""
    return max(4, round(cell / (0.65 * font_size(cell))))


def _caption(path: Path, kind: str, cell: int) -> str:
    """However long the prompt is, the seed stands below it."""
    prompt, seed = ("", None) if kind == "name" else _prompt_and_seed(path)
    words = [_wrapped(prompt, cell)] if kind == "prompt" and prompt else []
    words += [] if seed is None else [_wrapped(f"seed {seed}", cell)]
    return ", ".join(words) or _wrapped(path.name, cell)


def _wrapped(text: str, cell: int) -> str:
    """At most PROMPT_LINES lines, as the font is wide, so that no caption runs into the next one."""
    from PIL import ImageFont

    font = ImageFont.load_default(font_size(cell))

    def fits(line: str) -> bool:
        return font.getlength(line) <= cell - 8  # as `mmgen.images.grid` leaves room

    lines = list(islice(_lines(one_line(text), fits), PROMPT_LINES + 1))
    if len(lines) > PROMPT_LINES:
        last = lines[PROMPT_LINES - 1]
        while last and not fits(f"{last}..."):
            last = last[:-1]
        lines[PROMPT_LINES - 1 :] = [f"{last}..."]
    return " ".join(lines)


def _lines(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """The words of a text in lines that fit; of a word that does not, as many letters as do, at least one."""
    line = ""
    for word in text.split():
        if fits(longer := f"{line} {word}".strip()):
            line = longer
            continue
        if line:
            yield line
        line = ""
        for letter in word:
            if line and not fits(line + letter):
                yield line
                line = ""
            line += letter
    if line:
        yield line


def _prompt_and_seed(path: Path) -> tuple[str, int | None]:
    from mmgen.images import parse_parameters, read_metadata

    metadata = read_metadata(path)
    if metadata["request"] is not None:
        return next(metadata["request"].pictures())
    try:
        foreign = parse_parameters(metadata["parameters"] or "")
    except UsageError:  # of a tool that is not read, or of none
        return "", None
    return foreign.prompt, foreign.seed


def in_cell(path: Path, side: int) -> Image:
    """The whole picture in the middle of a white square; one that is smaller is not enlarged."""
    from PIL import Image

    from mmgen.inputs import open_picture

    picture = open_picture(path)
    picture.thumbnail((side, side))
    cell = Image.new("RGB", (side, side), "white")
    cell.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return cell
