"""`mmgen upscale`: any picture, four times as large."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import click

from mmgen.cli.options import parse_device, stage_settings
from mmgen.cli.terminal import note
from mmgen.errors import UsageError
from mmgen.types import DRAWN_SEEDS, MAX_SEED

STAGE = "super-res"  # stands for whichever of them enlarges the picture


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option(
    "-o",
    "--out",
    default="mmgen-out",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder for the pictures.",
)
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), help="For every picture; drawn and printed if not given."
)
@click.option(
    "--model",
    default="storybook",
    show_default=True,
    metavar="NAME|FOLDER",
    help="A bundled model or a folder of weights.",
)
@click.option("--device", type=parse_device, metavar="DEVICE", help="Where to run: cpu, cuda, cuda:1 or mps.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Numbers to compute with."
)
@click.option(
    "--format",
    type=click.Choice(["png", "jpeg", "webp"]),
    default="png",
    show_default=True,
    help="Kind of file.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the enlargement, such as steps=4; may be repeated.",
)
def upscale(
    images: tuple[Path, ...], out: Path, seed: int | None, settings: tuple[str, ...], **given: Any
) -> None:
    """Make each IMAGE four times as large.

    Any size and shape; large pictures are drawn in squares that are blended at every step.

    \b
    mmgen upscale photo.jpg small.png -o large
    """  # fmt: skip
    from mmgen.images import check_folder, write_picture
    from mmgen.inputs import open_picture

    chosen = stage_settings([f"{STAGE}.{text}" for text in settings], {}).get(STAGE)
    opened = [open_picture(path) for path in images]
    check_folder(out)
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEEDS)
        note(f"seed {seed} (drawn; --seed {seed} gives the same again)")
    if not given["model"].strip():
        raise UsageError("--model is empty: give a name or a folder")
    note(f"loading {given['model']}")
    import mmgen

    pipe = mmgen.load(given["model"], device=given["device"], dtype=given["dtype"])
    for path, image in zip(images, opened, strict=True):
        result = pipe.upscale(image, seed=seed, settings=chosen)
        (width, height), seconds = result.request.size, sum(record.seconds for record in result.records)
        note(f"{path.name}: {width}x{height}, {seconds:.1f} s")
        click.echo(str(write_picture(result[0], result.request, out, given["format"], path.stem)))
