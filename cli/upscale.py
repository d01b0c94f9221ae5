"""`mmgen upscale`: any picture, four times as large."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import click

from mmgen.cli.options import MACHINE, stage_settings, with_options
from mmgen.cli.terminal import note
from mmgen.errors import NonFiniteError, UsageError
from mmgen.types import DRAWN_SEEDS, MAX_SEED, StageSettings

STAGE = "super-res"  # stands for whichever of them enlarges the picture
OPTIONS = (
    click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."),
    click.option("-o", "--out", default="mmgen-out", show_default=True, type=click.Path(path_type=Path),
                 metavar="FOLDER", help="Folder for the pictures."),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), help="For every picture; drawn and printed if not given."),
    *MACHINE,
    click.option("--format", type=click.Choice(["png", "jpeg", "webp"]), default="png", show_default=True,
                 help="Kind of file."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
                 help="A setting of the enlargement, such as steps=4; may be repeated."),
)  # fmt: skip


@click.command()
@with_options(*OPTIONS)
def upscale(
    images: tuple[Path, ...], out: Path, seed: int | None, settings: tuple[str, ...], **given: Any
) -> None:
    """Make each IMAGE four times as large.

    Any size and shape; large pictures are drawn in squares that are blended at every step.

    \b
    mmgen upscale photo.jpg small.png -o large
    """
    chosen = _settings(settings)
    if not given["model"].strip():
        raise UsageError("--model is empty: give a name or a folder")
    _check(images, out, given["format"], given["attention"])
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEEDS)
        note(f"seed {seed} (drawn; --seed {seed} gives the same again)")
    note(f"loading {given['model']}")
    import mmgen
    from mmgen.images import write_picture
    from mmgen.inputs import open_picture

    pipe = mmgen.load(given["model"], device=given["device"], dtype=given["dtype"])
    failed = 0
    for path in images:
        try:
            result = pipe.upscale(open_picture(path), seed=seed, settings=chosen)
        except NonFiniteError as error:
            failed += 1
            note(f"error: {path.name}: {error}")
            continue
        (width, height), seconds = result.request.size, sum(record.seconds for record in result.records)
        note(f"{path.name}: {width}x{height}, {seconds:.1f} s")
        click.echo(str(write_picture(result[0], result.request, out, given["format"], path.stem)))
    if failed:
        note(f"{failed} of {len(images)} pictures failed; the others are there")
        click.get_current_context().exit(1)


def _settings(texts: tuple[str, ...]) -> StageSettings | None:
    if wrong := [text for text in texts if not re.match(r"[^.=\s]+=.", text)]:
        raise UsageError(f"--set {wrong[0]!r}: write NAME=VALUE, such as steps=4")
    return stage_settings([f"{STAGE}.{text}" for text in texts]).get(STAGE)


def _check(images: tuple[Path, ...], out: Path, format: Any, kernel: str | None) -> None:
    """All that can be wrong with pictures and files before a model is loaded; many photos would not fit in memory."""
    from mmgen.images import check_folder, check_side
    from mmgen.inputs import open_picture
    from mmgen.pipelines.forms import FACTOR

    for path in images:
        check_side(format, FACTOR * max(open_picture(path).size))
    check_folder(out)
    if kernel is not None:
        from mmgen.attention import use

        use(kernel)
