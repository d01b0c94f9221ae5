"""`mmgen upscale`: any picture, enlarged."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import say_cut
from mmgen.cli.options import MACHINE, stage_settings, with_options
from mmgen.cli.terminal import note
from mmgen.errors import NonFiniteError, UsageError
from mmgen.types import DRAWN_SEEDS, MAX_SEED, Size, StageSettings, check_prompt

if TYPE_CHECKING:
    from mmgen.images import Format

STAGE = "super-res"  # stands for whichever of them enlarges the picture
OPTIONS = (
    click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."),
    click.option("-o", "--out", default="mmgen-out", show_default=True, type=click.Path(path_type=Path),
                 metavar="FOLDER", help="Folder for the pictures."),
    click.option("--prompt", default="", metavar="TEXT",
                 help="What the pictures show, for a model whose super-resolution is told a text."),
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
    images: tuple[Path, ...],
    out: Path,
    prompt: str,
    seed: int | None,
    settings: tuple[str, ...],
    **given: Any,
) -> None:
    """Make each IMAGE larger, four times with most models.

    Any size and shape; large pictures are drawn in squares that are blended at every step.

    \b
    mmgen upscale photo.jpg small.png -o large
    mmgen upscale cat.jpg --model stable-diffusion-x4-upscaler --prompt "a cat" --set noise_level=0.1
    """
    chosen = _settings(settings)
    check_prompt(prompt, may_be_empty=True)
    if not given["model"].strip():
        raise UsageError("--model is empty: give a name or a folder")
    sizes = _sizes(images, out)
    _check(sizes, given["model"], prompt, chosen, given["format"])
    if given["attention"] is not None:
        from mmgen.attention import use

        use(given["attention"])
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEEDS)
        note(f"seed {seed} (drawn; --seed {seed} gives the same again)")
    note(f"loading {given['model']}")
    import mmgen
    from mmgen.images import write_picture
    from mmgen.inputs import open_picture

    pipe = mmgen.load(given["model"], device=given["device"], dtype=given["dtype"])
    failed, said = 0, set[tuple[str, str]]()
    for path in images:
        try:
            result = pipe.upscale(open_picture(path), prompt=prompt, seed=seed, settings=chosen)
        except NonFiniteError as error:
            failed += 1
            note(f"error: {path.name}: {error}")
            continue
        say_cut(pipe.name, result.cut_words, said)
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


def _sizes(images: tuple[Path, ...], out: Path) -> list[Size]:
    """Of all pictures, which can be read and written; many photos would not fit in memory together."""
    from mmgen.images import check_folder
    from mmgen.inputs import open_picture

    sizes = [open_picture(path).size for path in images]
    check_folder(out)
    return sizes


def _check(
    sizes: list[Size], model: str, prompt: str, settings: StageSettings | None, format: Format
) -> None:
    """All that can be wrong with a model for these pictures, before its weights are read."""
    from mmgen.images import check_side
    from mmgen.pipelines.forms import complete, enlarging
    from mmgen.pipelines.sources import locate

    checkpoint = locate(model)
    forms = checkpoint.loaded_forms()
    for size in sizes:
        form = enlarging(forms, max(size), prompt, checkpoint.name)
        complete(form, settings or StageSettings())
        check_side(format, max(form.enlarged(size)))
