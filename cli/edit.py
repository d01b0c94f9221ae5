"""`mmgen edit`: draw over a picture, all of it, a part of it, or around it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import OPTIONS, Options, Over, draw_all
from mmgen.cli.options import with_options
from mmgen.cli.terminal import note
from mmgen.errors import UsageError
from mmgen.types import MIN_STRENGTH, STRENGTH

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = ("left", "top", "right", "bottom")


@click.command()
@click.argument("image", type=click.Path(path_type=Path), metavar="IMAGE")
@click.option(
    "--strength",
    type=float,
    help=f"How far the picture may move away; {STRENGTH} if not given, 1 with a mask.",
)
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="White where the picture is drawn anew, black where it stays.",
)
@click.option(
    "--outpaint",
    metavar="SIDE=PIXELS,...",
    help="Draw around the picture: left, top, right, bottom, such as left=256,top=256.",
)
@with_options(*OPTIONS)
def edit(image: Path, strength: float | None, mask: Path | None, outpaint: str | None, **given: Any) -> None:
    """Draw over IMAGE what each PROMPT says.

    Where a mask is black the picture stays as it is. Pictures that are not square are cut to their middle.

    \b
    mmgen edit house.png "a house in the snow at night" --strength 0.7
    mmgen edit beach.png "a red boat" --mask sea.png
    mmgen edit cat.png "a cat on the grass" --outpaint left=256,top=256
    """  # fmt: skip
    if mask is not None and outpaint is not None:
        raise UsageError("--mask and --outpaint both say what is drawn anew: give one of them")
    if strength is not None and not MIN_STRENGTH <= strength <= 1:  # click's own range lets nan pass
        raise UsageError(f"--strength {strength:g}: give a number from {MIN_STRENGTH} to 1")
    from mmgen.inputs import open_mask, open_picture

    shown = open_picture(image)
    drawn_anew = None if mask is None else open_mask(mask, shown.size)
    if outpaint is not None:
        shown, drawn_anew = _around(shown, outpaint)
    elif shown.width != shown.height:
        note(f"{image.name} is {shown.width}x{shown.height}: its middle square is drawn over")
    draw_all(Options(**given), Over(shown, drawn_anew, strength))


def _around(image: Image, outpaint: str) -> tuple[Image, Image]:
    """The larger canvas and its mask. Raises UsageError unless it is a square, which models draw."""
    from mmgen.inputs import extended

    canvas, mask = extended(image, **parse_sides(outpaint))
    if canvas.width != canvas.height:
        lacks = abs(canvas.width - canvas.height)
        where = "top or bottom" if canvas.width > canvas.height else "left or right"
        raise UsageError(
            f"--outpaint {outpaint} makes {canvas.width}x{canvas.height}, and squares are drawn: "
            f"add {lacks} more at the {where}"
        )
    return canvas, mask


def parse_sides(text: str) -> dict[str, int]:
    """ "left=256,top=64" -> pixels by side. Raises UsageError if it cannot be meant."""
    sides: dict[str, int] = {}
    for part in text.split(","):
        side, _, pixels = part.strip().partition("=")
        if (
            side not in SIDES
            or side in sides
            or not re.fullmatch(r"\d{1,4}", pixels, re.ASCII)
            or int(pixels) > 4096
        ):
            raise UsageError(
                f"--outpaint {text!r}: write SIDE=PIXELS once for each of {', '.join(SIDES)}, at most 4096, "
                "such as left=256,top=256"
            )
        sides[side] = int(pixels)
    return sides
