"""Pictures in memory and as files: tensors, resizing, grids, safe writing, and the settings stored in them.

Each file carries the request that made it as JSON (the record to repeat it from), the same as the text that
other tools read, and the label that says it was made by a machine. Nothing depends on time or machine.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import secrets
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from mmgen import __version__
from mmgen.errors import MachineError, MmgenError, NonFiniteError, UsageError
from mmgen.types import Request, Size, StageSettings

if TYPE_CHECKING:
    from torch import Tensor

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)
MAX_SIDES: Mapping[Format, int] = {"jpeg": 65_500, "webp": 16_383}  # pixels
SUFFIXES: Mapping[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
SLUG_BYTES = 80

# PNG level 3 takes 0.13 s for 1024 x 1024; the library's default 6 takes 0.42 s to save an eighth of that.
_QUALITY: Mapping[Format, Mapping[str, Any]] = {
    "png": {"compress_level": 3},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}

MACHINE_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP_PNG_KEY = "XML:com.adobe.xmp"
_NS_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NS_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_NS_MMGEN = "urn:mmgen:1.0/"

# A JPEG segment holds 65,533 bytes; the name of its kind ("Exif", or the address of XMP) takes some of them.
_JPEG_EXIF_BYTES = 65_533 - len(b"Exif\0\0")
_JPEG_XMP_BYTES = 65_533 - len(b"http://ns.adobe.com/xap/1.0/\0")


# ---- tensors -------------------------------------------------------------------------------------


def to_pil(x0: Tensor) -> list[Image.Image]:
    """Pictures from a tensor.

    x0: [B, 3, H, W]; values outside [-1, 1] are clipped. Raises NonFiniteError for NaN or infinity.
    """
    if x0.ndim != 4 or x0.shape[1] != 3:
        raise ValueError(f"expected pictures as [B, 3, H, W], got {list(x0.shape)}")
    finite = x0.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        broken = ", ".join(str(i + 1) for i, good in enumerate(finite) if not good)
        raise NonFiniteError(
            f"picture {broken} of {len(finite)} holds NaN or infinity and is not written: try --dtype float32"
        )
    levels = x0.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    arrays = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """The inverse of `to_pil`: [B, 3, H, W], float32 in [-1, 1]. All pictures must have one size."""
    import numpy
    import torch

    if len({image.size for image in images}) != 1:
        raise ValueError(f"expected pictures of one size, got {sorted({image.size for image in images})}")
    levels = torch.from_numpy(numpy.stack([numpy.asarray(image.convert("RGB")) for image in images]))
    return levels.permute(0, 3, 1, 2).contiguous().float().div(127.5).sub(1)


# ---- pictures ------------------------------------------------------------------------------------


def resize(image: Image.Image, size: Size) -> Image.Image:
    """The picture at `size` (width, height): scaled to cover it, cut at the centre, never stretched."""
    if image.size == size:
        return image
    return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)


def grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """One picture of many, row by row, each cell the size of the first picture, with its caption below it.

    Raises UsageError if there are no pictures or not one caption for each.
    """
    if not images or columns < 1:
        raise UsageError(f"a grid needs pictures and columns: got {len(images)} and {columns}")
    if captions is not None and len(captions) != len(images):
        raise UsageError(f"a grid of {len(images)} pictures needs as many captions: got {len(captions)}")
    columns = min(columns, len(images))
    width, height = images[0].size
    font = ImageFont.load_default(max(10, width // 20))
    texts = [] if captions is None else [_wrap(caption, font, width - 8) for caption in captions]
    strip = max((_text_height(text, font) for text in texts), default=0)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + strip)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = column * width, row * (height + strip)
        sheet.paste(resize(image.convert("RGB"), (width, height)), (left, top))
        if texts:
            draw.multiline_text((left + 4, top + height + 4), texts[index], fill="black", font=font)
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _text_height(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    pen = ImageDraw.Draw(Image.new("L", (1, 1)))
    return round(pen.multiline_textbbox((0, 0), text, font=font)[3]) + 8


# ---- settings in files: writing ------------------------------------------------------------------


def encode(image: Image.Image, format: Format, request: Request | None = None) -> bytes:
    """The bytes of a picture file that carries its own settings.

    request: what made this one picture (`Request.single`); None leaves only the machine-made label.
    Raises UsageError if the settings do not fit into the format (see `check_fits`).
    """
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format=format, **_QUALITY[format], **_embedded(format, request))
    return buffer.getvalue()


def check_fits(format: Format, request: Request) -> None:
    """Raise UsageError if this one picture or its settings cannot be stored in `format`."""
    check_side(format, max(request.size))
    _embedded(format, request)


def check_side(format: Format, side: int) -> None:
    """Raise UsageError if a file of this format holds no picture with such a side, in pixels."""
    if side > MAX_SIDES.get(format, side):
        raise UsageError(
            f"{side:,} pixels a side are too many for {format}, which holds {MAX_SIDES[format]:,}: write png"
        )


def parameters_text(request: Request) -> str:
    """The settings of one picture as other tools read them: prompt, negative prompt, then one line of pairs.

    The pairs describe the decoder, the stage that draws.
    Source: the `parameters` text of AUTOMATIC1111's web UI.
    """
    ((prompt, seed),) = request.pictures()
    decoder = request.stages.get("decoder", StageSettings())
    pairs = {
        "Steps": decoder.steps,
        "Sampler": decoder.sampler,
        "CFG scale": None if decoder.guidance_scale is None else f"{decoder.guidance_scale:g}",
        "Seed": seed,
        "Denoising strength": None if request.strength is None else f"{request.strength:g}",
        "Size": "x".join(map(str, request.size)),
        "Model hash": request.model_digest[:10] or None,
        "Model": request.model or None,
        "Version": f"mmgen {__version__}",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items() if value is not None)
    negative = [f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else []
    return "\n".join([prompt, *negative, line])


def _quoted(value: str) -> str:
    if not any(mark in value for mark in ',:\n"'):
        return value
    inner = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{inner}"'


def _embedded(format: Format, request: Request | None) -> dict[str, Any]:
    """What `Image.save` takes to store the settings in this format."""
    try:
        if format == "png":
            return {"pnginfo": _png_chunks(request)}
        xmp = _xmp(request)
        exif = b"" if request is None else _exif(parameters_text(request))
    except UnicodeEncodeError:
        raise UsageError(
            "the prompt holds half a character, which no file can store: type it again"
        ) from None
    if format == "jpeg":
        _check_segment(len(xmp), _JPEG_XMP_BYTES)
        _check_segment(len(exif), _JPEG_EXIF_BYTES)
    return {"xmp": xmp, "exif": b"Exif\0\0" + exif} if exif else {"xmp": xmp}


def _check_segment(size: int, limit: int) -> None:
    if size > limit:
        raise UsageError(
            f"the settings take {size:,} bytes and a JPEG file holds {limit:,}: "
            "shorten the prompt, or write png or webp"
        )


def _png_chunks(request: Request | None) -> PngImagePlugin.PngInfo:
    """Latin-1 text becomes tEXt, other text iTXt: uncompressed, as compressed text has a limit when read."""
    chunks = PngImagePlugin.PngInfo()
    if request is not None:
        chunks.add_text("parameters", parameters_text(request))
        chunks.add_text("mmgen", request.to_json())
    chunks.add_itxt(_XMP_PNG_KEY, _xmp(None).decode("utf-8"))
    return chunks


def _xmp(request: Request | None) -> bytes:
    """An XMP packet with the machine-made label and, where there is no chunk for it, the request."""
    record = ""
    if request is not None:
        # JSON escapes every control character below space; these others are unsafe or not allowed in XML 1.0.
        text = re.sub("[\x7f-\x9f\ufffe\uffff]", lambda c: f"\\u{ord(c[0]):04x}", request.to_json())
        record = f"<mmgen:request>{escape(text)}</mmgen:request>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_NS_RDF}">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_NS_IPTC}" xmlns:mmgen="{_NS_MMGEN}">'
        f"<Iptc4xmpExt:DigitalSourceType>{MACHINE_MADE}</Iptc4xmpExt:DigitalSourceType>{record}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _exif(text: str) -> bytes:
    """A TIFF block whose Exif directory holds `text` as its user comment.

    Built by hand because Pillow writes type BYTE, on which other readers fail; the standard says UNDEFINED.
    Source: Exif 2.32, section 4.6.5 (UserComment), TIFF 6.0, section 2.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    long, undefined, exif_directory, user_comment = 4, 7, 0x8769, 0x9286
    header = struct.pack(">2sHI", b"MM", 42, 8)
    entry = ">HHHIII"  # entries, tag, type, count, value or its offset, next directory
    first = struct.pack(entry, 1, exif_directory, long, 1, 26, 0)
    second = struct.pack(entry, 1, user_comment, undefined, len(comment), 44, 0)
    return header + first + second + comment


# ---- settings in files: reading ------------------------------------------------------------------


class Metadata(TypedDict):
    """What a picture file says about itself; None where it says nothing."""

    request: Request | None
    parameters: str | None
    label: str | None


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """The settings stored in a PNG, JPEG or WebP file, also after another tool has rewritten them.

    Raises UsageError if the file is not there, not a picture, or holds a damaged record.
    """
    info, comment = _read_blocks(Path(path))
    fields = _xmp_fields(info.get(_XMP_PNG_KEY) or info.get("xmp"))
    record = info.get("mmgen") or fields.get(f"{{{_NS_MMGEN}}}request")
    parameters = info.get("parameters") or _user_comment(comment)
    try:
        request = Request.from_json(record) if isinstance(record, str) else None
    except MmgenError as error:
        raise UsageError(f"{path}: its mmgen record is damaged: {error}") from None
    return {
        "request": request,
        "parameters": str(parameters) if parameters else None,
        "label": fields.get(f"{{{_NS_IPTC}}}DigitalSourceType"),
    }


def _read_blocks(path: Path) -> tuple[dict[Any, Any], object]:
    """The text blocks of a picture file, and its Exif user comment."""
    exif_directory, user_comment = 0x8769, 0x9286
    try:
        with warnings.catch_warnings():
            # They are about damaged or very large files, where the outcome says all there is to say.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.format != "PNG":
                    return dict(image.info), image.getexif().get_ifd(exif_directory).get(user_comment)
                if "mmgen" not in image.info:
                    image.load()  # another tool may have put the text behind the pixels
                return dict(image.info), None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not a PNG, JPEG or WebP picture") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no file {path}") from None
    except Exception as error:  # noqa: BLE001 - the parsers raise a dozen types on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path} cannot be read as a picture: {reason or type(error).__name__}") from None


def _user_comment(value: object) -> str | None:
    if not isinstance(value, bytes):
        return None
    codecs = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii"}
    codec = codecs.get(value[:8])
    return value[8:].decode(codec, "replace") if codec else None


def _xmp_fields(packet: object) -> dict[str, str]:
    """The properties of an XMP packet by their full names; none if it is not one."""
    text = packet.encode("utf-8", "replace") if isinstance(packet, str) else packet
    # No packet has a DOCTYPE; the entities in one could grow without bound.
    if not isinstance(text, bytes) or b"<!DOCTYPE" in text:
        return {}
    try:
        root = ElementTree.fromstring(text.strip(b"\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError, LookupError):
        return {}
    fields: dict[str, str] = {}
    for description in root.iter(f"{{{_NS_RDF}}}Description"):
        fields.update(description.attrib)
        fields.update({child.tag: child.text for child in description if child.text})
    return fields


# ---- files ---------------------------------------------------------------------------------------


def write_picture(image: Image.Image, request: Request, folder: Path, format: Format, name: str = "") -> Path:
    """Write one picture with the request that made it into `folder`, under a name of its own. Returns the name.

    request: of this one picture (`Request.single`). The file is NUMBER-PROMPT-SEED, with the number after the highest
    in the folder, which is made if it is not there; name: in the prompt's place. Raises as `encode` and `write_new` do.
    """
    make_folder(folder)
    ((prompt, seed),) = request.pictures()
    names = _numbered(folder, "-".join(filter(None, [slug(name or prompt), f"{seed}{SUFFIXES[format]}"])))
    return write_new(next(names), encode(image, format, request), alternatives=names)


def slug(prompt: str) -> str:
    """The prompt as part of a file name: letters, digits and hyphens of any script, at most SLUG_BYTES bytes."""
    plain = unicodedata.normalize("NFC", prompt).lower()
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in plain)
    text = "-".join("".join(kept).split())
    return text.encode()[:SLUG_BYTES].decode("utf-8", "ignore").rstrip("-")


def _numbered(folder: Path, rest: str) -> Iterator[Path]:
    first = 1 + max(_leading_numbers(folder), default=0)
    return (folder / f"{index:04d}-{rest}" for index in itertools.count(first))


def _leading_numbers(folder: Path) -> Iterator[int]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise MachineError(f"cannot list {folder}: {error.strerror}") from error
    for name in names:
        if found := re.match(r"(\d{4,9})-", name, re.ASCII):
            yield int(found[1])


def write_new(path: Path, data: bytes, *, alternatives: Iterable[Path] = (), overwrite: bool = False) -> Path:
    """Commit `data` to a name that nobody has taken, whole or not at all, and return that name.

    alternatives: names in the same folder, tried in turn if `path` is taken. overwrite: replace `path`.
    Raises UsageError if every name is taken, MachineError if disk, folder or permission is in the way.
    A crash at any moment leaves no half file under a final name, and no error leaves a temporary one.
    """
    temporary = path.parent / f".mmgen-{secrets.token_hex(8)}.tmp"
    try:
        try:
            _write_synced(temporary, data)
            names = itertools.chain([path], alternatives)
            final = _replace(temporary, path) if overwrite else _claim(temporary, names)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        _sync_folder(path.parent)
    except OSError as error:
        raise _machine_error(error, path) from error
    if final is None:
        raise UsageError(f"{path} exists already and stays as it is: choose another name")
    return final


def check_folder(folder: Path) -> None:
    """Raise MachineError unless files can be written into `folder`, which need not exist. Leaves no trace."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if _exists(parent))
    probe = nearest / f".mmgen-{secrets.token_hex(8)}.tmp"
    try:
        _write_synced(probe, b"")
    except OSError as error:
        raise _machine_error(error, folder / "picture") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it. Raises MachineError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _machine_error(error, folder / "picture") from error


def _exists(path: Path) -> bool:
    """Whether there is anything at `path`, even if it may not be looked into."""
    try:
        return path.exists()
    except OSError:
        return True


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(temporary: Path, final: Path) -> Path:
    os.replace(temporary, final)
    return final


def _claim(temporary: Path, names: Iterable[Path]) -> Path | None:
    """Give the temporary file the first name that is free; None if none is."""
    for name in names:
        with contextlib.suppress(FileExistsError):
            _link(temporary, name)
            return name
    return None


_NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def _link(temporary: Path, final: Path) -> None:
    """A hard link never replaces a file. Where there are none (FAT, some networks), reserve the name."""
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(temporary, final)
        except BaseException:
            os.unlink(final)
            raise


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last. Windows cannot open folders, and some file systems cannot sync them."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _machine_error(error: OSError, path: Path) -> MachineError:
    folder = path.parent
    reasons = {
        errno.ENOSPC: "the disk is full: free some space, or choose another folder",
        errno.EDQUOT: "your share of the disk is used up: free some space, or choose another folder",
        errno.EACCES: "permission denied: choose a folder that you may write to",
        errno.EPERM: "permission denied: choose a folder that you may write to",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.ENOENT: "the folder does not exist: make it first",
        errno.ENOTDIR: "there is a file where a folder is needed: choose another folder",
        errno.EEXIST: "there is a file where a folder is needed: choose another folder",
        errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return MachineError(f"cannot write into {folder}: {reason}")
