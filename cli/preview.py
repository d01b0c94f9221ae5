"""What is seen of pictures besides their files: a preview while they are drawn, thumbnails, a sheet of all of them."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from PIL import Image

from mmgen.cli.terminal import note, one_line
from mmgen.errors import UsageError
from mmgen.images import FORMATS, SUFFIXES, Format, check_folder, encode, grid, write_new
from mmgen.result import short
from mmgen.thumbnails import thumbnail
from mmgen.types import Size

if TYPE_CHECKING:
    from mmgen.schedulers.samplers import Step

Inline = Callable[[bytes], str]  # a PNG file as the text that shows it

PREVIEW_SIDE = 512  # pixels at most
MAX_ON_SHEET = 400  # 20 x 20 thumbnails are 5120 px a side
MARK = "mmgen preview: unfinished, made by a machine"
_DESCRIPTION = 0x010E  # the Exif tag ImageDescription: PNG, JPEG and WebP all hold it
_KITTY_LETTERS = 4096  # of base64 in one escape sequence


# ---- the picture so far --------------------------------------------------------------------------


@dataclass(frozen=True)
class PreviewFile:
    """A file that always holds the latest guess at the picture that is being drawn."""

    path: Path
    format: Format

    def show(self, step: Step, size: Size) -> None:
        """Rewrite the file with what a step guesses; a step without a picture leaves it as it is.

        size: of the finished picture. Raises MachineError if the file cannot be written.
        """
        for image in step.preview()[:1]:
            write_new(self.path, encode_preview(as_preview(image, size), self.format), overwrite=True)


def plan_preview(file: str, picture: Path | None) -> PreviewFile:
    """Decide where the preview goes, and try it, before anything is drawn.

    picture: the file that the finished picture is to have, None = a name that is new. Raises UsageError for a name that
    cannot be meant or holds something else than a preview, MachineError if nothing can be written there.
    """
    formats = {suffix: format for format, suffix in SUFFIXES.items()}
    path = Path(file)
    if "\0" in file or path.suffix.lower() not in formats:
        raise UsageError(f"--preview {file!r}: give a file name that ends in {', '.join(formats)}")
    if not os.path.isdir(path.parent):
        raise UsageError(f"--preview {file}: there is no folder {path.parent}, make it first")
    if picture is not None and os.path.realpath(path) == os.path.realpath(picture):
        raise UsageError(f"--preview {file} is also what --out names: give the preview a name of its own")
    if _is_taken(path) and not is_preview(path):
        raise UsageError(f"--preview {file}: it exists and is no preview of mmgen's, choose another name")
    check_folder(path.parent)
    return PreviewFile(path, formats[path.suffix.lower()])


def as_preview(image: Image.Image, size: Size) -> Image.Image:
    """A guess of any stage at one size: the finished picture's, or less where that has a side above PREVIEW_SIDE.

    size: width and height of the finished picture.
    """
    scale = min(1, PREVIEW_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode_preview(image: Image.Image, format: Format) -> bytes:
    """The bytes of a picture file with the mark of a preview: one that may be replaced."""
    exif = Image.Exif()
    exif[_DESCRIPTION] = MARK
    buffer = io.BytesIO()
    # each format reads its own: a preview is written at every step, so speed counts more than size
    image.save(buffer, format=format, exif=exif, compress_level=1, quality=90)
    return buffer.getvalue()


def is_preview(path: Path) -> bool:
    """Whether a file carries the mark of a preview; one that is no picture does not."""
    if not os.path.isfile(path):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged or very large files, which are not ours
            with Image.open(path, formats=FORMATS) as image:
                return bool(image.getexif().get(_DESCRIPTION) == MARK)
    except Exception:  # noqa: BLE001 - the parsers raise a dozen types on damaged files
        return False


def _is_taken(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"--preview {path}: {error.strerror}") from None
    return True


# ---- a thumbnail in the terminal -----------------------------------------------------------------


def inline_protocol(environ: Mapping[str, str], terminal: bool) -> Inline | None:
    """How this terminal shows pictures between its lines; None if it is not known to.

    environ: environment variables. terminal: whether anybody sees what is written.
    """
    if not terminal or {"TMUX", "STY"} & environ.keys():  # tmux and screen show none of it
        return None
    if "kitty" in environ.get("TERM", "") or "KITTY_WINDOW_ID" in environ:
        return kitty
    return iterm2 if environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") else None


def kitty(png: bytes) -> str:
    """The text that shows a PNG file on a terminal with kitty's graphics protocol, which takes it in pieces.

    Asks for no answer (q=2): it would arrive as if it had been typed. Source: kitty, "Terminal graphics protocol".
    """
    letters = base64.standard_b64encode(png).decode()
    pieces = [letters[i : i + _KITTY_LETTERS] for i in range(0, len(letters), _KITTY_LETTERS)]
    first, last = "a=T,f=100,q=2,", len(pieces) - 1
    return "".join(
        f"\x1b_G{first * (i == 0)}m={int(i < last)};{piece}\x1b\\" for i, piece in enumerate(pieces)
    )


def iterm2(png: bytes) -> str:
    """The text that shows a picture file on iTerm2 and WezTerm. Source: iTerm2, "Inline images protocol"."""
    return f"\x1b]1337;File=inline=1;size={len(png)}:{base64.standard_b64encode(png).decode()}\x07"


# ---- all pictures on one sheet -------------------------------------------------------------------


class Sheet:
    """Thumbnails of the pictures so far, each with its prompt and seed."""

    def __init__(self) -> None:
        self.images: list[Image.Image] = []
        self.captions: list[str] = []

    def add(self, image: Image.Image, prompt: str, seed: int) -> None:
        self.images.append(thumbnail(image))
        self.captions.append(f"{one_line(short(prompt))}, seed {seed}")

    def save(self, folder: Path) -> Path | None:
        """Write the sheet under the first free name grid-0001.png, grid-0002.png, ...; None if there are no pictures.

        Raises MachineError if disk, folder or permission is in the way.
        """
        if not self.images:
            return None
        columns = math.isqrt(len(self.images) - 1) + 1
        data = encode(grid(self.images, columns, self.captions), "png")
        names = (folder / f"grid-{number:04d}.png" for number in itertools.count(1))
        return write_new(next(names), data, alternatives=names)


# ---- what one command shows ----------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """What `mmgen generate` shows besides the files; None is not shown."""

    preview: PreviewFile | None
    inline: Inline | None
    sheet: Sheet | None

    def show_step(self, step: Step, size: Size) -> None:
        """After each step. size: of the finished picture."""
        if self.preview is not None:
            self.preview.show(step, size)

    def show_picture(self, image: Image.Image, prompt: str, seed: int) -> None:
        """After each finished picture."""
        if self.inline is not None:
            click.echo(self.inline(encode(thumbnail(image), "png")), err=True)
        if self.sheet is not None:
            self.sheet.add(image, prompt, seed)

    def show_all(self, folder: Path) -> None:
        """After the last picture. folder: where the pictures went."""
        if self.sheet is not None and (path := self.sheet.save(folder)):
            note(f"all on one sheet: {path}")
