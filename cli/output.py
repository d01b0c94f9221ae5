"""Where the pictures of a command go: folder or file, format, and names that never overwrite anything."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from mmgen.errors import UsageError
from mmgen.images import (
    FORMATS,
    SUFFIXES,
    Format,
    check_folder,
    encode,
    make_folder,
    write_new,
    write_picture,
)
from mmgen.types import Request

_FORMAT_OF: dict[str, Format] = {**{SUFFIXES[name]: name for name in FORMATS}, ".jpeg": "jpeg"}
_NOT_WRITTEN = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".svg", ".pdf")


@dataclass(frozen=True)
class Output:
    """folder: where pictures go. file: the name of the one picture, None = names that are made."""

    folder: Path
    file: Path | None
    format: Format
    overwrite: bool

    def save(self, image: Image, request: Request, name: str = "") -> Path:
        """Write one picture with the request that made it, under a new name, which is returned.

        name: in the prompt's place, where names are made.
        """
        if self.file is None:
            return write_picture(image, request, self.folder, self.format, name)
        make_folder(self.folder)
        return write_new(self.file, encode(image, self.format, request), overwrite=self.overwrite)


def plan(out: str, format: Format | None, pictures: int, overwrite: bool) -> Output:
    """Decide where the pictures go, and try it, before anything is drawn.

    Raises UsageError for a name that cannot be meant or is taken, MachineError if nothing can be written there.
    """
    if not out.strip() or "\0" in out:
        raise UsageError(f"--out {out!r}: give a folder, or a file name for one picture")
    path = Path(out)
    suffix = path.suffix.lower()
    if os.path.isdir(path) or out.endswith(("/", os.sep)) or suffix not in (*_FORMAT_OF, *_NOT_WRITTEN):
        output = Output(path, None, format or "png", overwrite)
        if overwrite:
            raise UsageError(f"--overwrite is for one file, and {out} is a folder, where each name is new")
    else:
        output = _one_file(path, suffix, format, pictures, overwrite)
    check_folder(output.folder)
    return output


def _one_file(path: Path, suffix: str, format: Format | None, pictures: int, overwrite: bool) -> Output:
    if suffix not in _FORMAT_OF:
        raise UsageError(f"--out {path}: mmgen writes png, jpeg and webp, not {suffix[1:]}")
    if format not in (None, _FORMAT_OF[suffix]):
        raise UsageError(f"--out {path} says {_FORMAT_OF[suffix]} and --format says {format}: keep one")
    if pictures != 1:
        raise UsageError(f"--out {path} is one file for {pictures} pictures: give a folder")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path} exists already: choose another name, or replace it with --overwrite")
    return Output(path.parent, path, _FORMAT_OF[suffix], overwrite)
