"""`mmgen strip`: pictures without the settings and everything else that they tell besides what they show."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from mmgen.cli.terminal import note
from mmgen.errors import UsageError


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder for copies under the same names.",
)
@click.option("--in-place", is_flag=True, help="Replace the pictures themselves; what is taken out is lost.")
def strip(images: tuple[Path, ...], out: Path | None, in_place: bool) -> None:
    """Take all metadata out of pictures.

    Settings, texts, Exif, XMP, comments, thumbnails and the label that a machine made it. The picture is not encoded
    again; how it is turned and its colour profile stay. Exit code 1 if a picture cannot be read, after the others.

    \b
    mmgen strip mmgen-out/*.png -o bare
    mmgen strip photo.jpg --in-place
    """
    if (out is None) != in_place:
        said = "both are given" if in_place else "neither is given"
        raise UsageError(f"-o FOLDER for copies, or --in-place to replace the pictures: {said}, choose one")
    if out is not None:
        _check_folder(out, images)
    failed = False
    for path in images:
        try:
            data = _bare(path)
        except UsageError as error:
            failed = True
            note(f"error: {error}")
            continue
        click.echo(str(_replaced(path, data) if out is None else _copied(path, data, out)))
    if failed:
        click.get_current_context().exit(1)


def _check_folder(out: Path, images: tuple[Path, ...]) -> None:
    """Raise UsageError before anything is written if a name is taken, or two pictures would have one."""
    from mmgen.images import check_folder

    check_folder(out)
    names: set[str] = set()
    for path in images:
        if path.name in names:
            raise UsageError(f"two pictures are called {path.name}: strip them into folders of their own")
        if os.path.lexists(out / path.name):
            raise UsageError(f"{out / path.name} exists already and stays as it is: choose another folder")
        names.add(path.name)


def _bare(path: Path) -> bytes:
    """The file without metadata, looked at once more. Raises UsageError where that cannot be done."""
    from mmgen.images import stripped
    from mmgen.inputs import open_picture

    open_picture(path)  # refuses by name what is no single whole picture
    try:
        before = path.read_bytes()
        after = stripped(before)
        same = _seen(before) == _seen(after)
    except (UsageError, OSError) as error:
        raise UsageError(f"{path} cannot be stripped: {error}") from None
    if not same:
        raise UsageError(f"{path} cannot be stripped without a change to its pixels: it stays as it is")
    return after


def _seen(data: bytes) -> tuple[str, object, object]:
    """What decides how a picture looks: its pixels, turned as they are shown, its transparency, its colour profile."""
    import io

    from PIL import Image, ImageOps

    from mmgen.inputs import digest

    with Image.open(io.BytesIO(data)) as image:
        shown = digest(ImageOps.exif_transpose(image))
        return shown, image.info.get("transparency"), image.info.get("icc_profile")


def _copied(path: Path, data: bytes, out: Path) -> Path:
    from mmgen.images import make_folder, write_new

    make_folder(out)
    return write_new(out / path.name, data)


def _replaced(path: Path, data: bytes) -> Path:
    """Put the new file in the old one's place at once, for the same people to read."""
    from mmgen.images import write_new

    file = path.resolve()  # a link goes on to point at the picture
    if file.read_bytes() == data:
        return path
    write_new(file, data, overwrite=True, mode=stat.S_IMODE(file.stat().st_mode))
    return path
