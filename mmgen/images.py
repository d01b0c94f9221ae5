"""Pictures in memory and as files: tensors, resizing, grids, safe writing, and the settings stored in them.

Each file carries the request that made it as JSON (the record to repeat it from), the same as the text that
other tools read, and the label that says it was made by a machine. Nothing depends on time or machine.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from mmgen import __version__
from mmgen.errors import MachineError, MmgenError, NonFiniteError, UsageError
from mmgen.temporary import temporary_name
from mmgen.types import MAX_SEED, SAMPLERS, Request, Size, StageSettings
from mmgen.values import check_setting, parse_setting, parse_size, parse_whole

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

    parameters: what another tool wrote, or mmgen for others to read; `parse_parameters` reads it.
    Raises UsageError if the file is not there, not a picture, or holds a damaged record.
    """
    info, comment = _read_blocks(Path(path))
    fields = _xmp_fields(info.get(_XMP_PNG_KEY) or info.get("xmp"))
    record = info.get("mmgen") or fields.get(f"{{{_NS_MMGEN}}}request")
    parameters = info.get("parameters") or _user_comment(comment) or info.get("invokeai_metadata")
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


# ---- settings of other tools ---------------------------------------------------------------------


@dataclass(frozen=True)
class Foreign:
    """What another tool says of how it drew a picture, as far as mmgen has the same; None where it says nothing.

    steps, guidance_scale, sampler: in the values of StageSettings. others: all else, by that tool's own names.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    size: Size | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)


def parse_parameters(text: str) -> Foreign:
    """What AUTOMATIC1111's web UI, stable-diffusion.cpp or InvokeAI wrote into a picture.

    Raises UsageError for anything else. The text is ambiguous: the first line that begins with "Negative prompt:" is
    taken for it, the last that begins with "Steps:" for the settings.
    Source: the `parameters` text of AUTOMATIC1111's web UI; the `invokeai_metadata` of InvokeAI 3 and later.
    """
    values = _invokeai_values(text) or _a1111_values(text)
    if not values:
        raise UsageError("its settings are those of a tool that mmgen does not read")
    known: dict[str, Any] = {}
    for name, (meaning, read) in _FOREIGN.items():
        with contextlib.suppress(UsageError, KeyError):
            known[meaning] = read(values[name])
            del values[name]
    return Foreign(**known, others=values)


def _a1111_values(text: str) -> dict[str, str]:
    lines = re.split(r"\r\n|\n", text)
    for index, line in reversed(list(enumerate(lines))):
        pairs = _pairs(line.strip()) if line.startswith("Steps:") else {}
        if len(pairs) >= 3:
            prompt, _, negative = "\n".join(["", *lines[:index]]).partition("\nNegative prompt:")
            rest = {"text below": " ".join(lines[index + 1 :]).strip()}
            found = {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **pairs, **rest}
            return {name: value for name, value in found.items() if value}
    return {}


def _pairs(line: str) -> dict[str, str]:
    """The pairs of such a line as "Steps: 20, Size: 512x512"; a value may hold commas, a name none."""
    pair = r'([^:,"]+): ?("(?:[^"\\]|\\.)*"|.*?)(?:, (?=[^:,"]+:)|,?$)'
    return {name.strip(): _unquoted(value.strip()) for name, value in re.findall(pair, line)}


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def _invokeai_values(text: str) -> dict[str, str]:
    """The values of InvokeAI by the names that A1111 has for them; none if the text is not InvokeAI's."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or "positive_prompt" not in record:
        return {}
    if "width" in record and "height" in record:
        record["Size"] = f"{record.pop('width')}x{record.pop('height')}"
    return {
        _INVOKEAI.get(name, str(name)): value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
        if value not in (None, "", [], {})
    }


_INVOKEAI = {
    "positive_prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "scheduler": "Sampler",
    "seed": "Seed",
    "model": "Model",
    "app_version": "Version",
}


def _setting(name: str, text: str) -> Any:
    return check_setting(name, parse_setting(name, text))


def _seed(text: str) -> int:
    if not 0 <= (seed := parse_whole(text)) <= MAX_SEED:
        raise UsageError(f"a seed lies between 0 and {MAX_SEED}")
    return seed


def _sampler(text: str) -> str:
    """One of ours by any tool's spelling: "DPM++ 2M" and "dpmpp_2m" are "dpmpp-2m", while "Euler a" is none of them."""
    for name in SAMPLERS:
        if _plain(name) == _plain(text):
            return name
    raise UsageError(f"no sampler {text!r}")


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower().replace("+", "p"))


_FOREIGN: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative_prompt", str),
    "Seed": ("seed", _seed),
    "Size": ("size", parse_size),
    "Steps": ("steps", partial(_setting, "steps")),
    "CFG scale": ("guidance_scale", partial(_setting, "guidance_scale")),
    "Sampler": ("sampler", _sampler),
}


# ---- files without settings ----------------------------------------------------------------------

_ORIENTATION = 0x0112  # the one Exif tag that says how a picture looks
# what a PNG may hold besides its critical chunks that changes how it looks: transparency, colours, density
_PNG_LOOKS = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"cICP", b"mDCV", b"cLLI", b"pHYs"}
_WEBP_LOOKS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP"}
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04  # flags of VP8X
_JPEG_NEXT = re.compile(rb"\xff+[\xc0-\xcf\xd8-\xfe]")  # behind a scan, where FF 00 and FF D0 to D7 are data


def format_of(data: bytes) -> Format | None:
    """The kind of a picture file by its first 12 bytes; None if mmgen does not write such files."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "png" if data[:8] == b"\x89PNG\r\n\x1a\n" else "jpeg" if data[:3] == b"\xff\xd8\xff" else None


def stripped(data: bytes) -> bytes:
    """A picture file without text, Exif, XMP, comments and anything else that does not change how it looks.

    data: a whole PNG, JPEG or WebP file with one picture. It is not encoded anew; colour profile and orientation stay.
    Raises UsageError for other files and damaged ones.
    Source: PNG third edition, ch. 5; ITU T.81, annex B; RFC 9649, section 2.
    """
    format = format_of(data)
    if format is None:
        raise UsageError("it is not a PNG, JPEG or WebP picture")
    try:
        return _STRIPPED[format](data, _orientation(data))
    except (struct.error, IndexError):
        raise UsageError("its blocks are damaged") from None


def _orientation(data: bytes) -> bytes:
    """A TIFF block that says no more than how a picture is turned; empty if it is upright."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        turned = image.getexif().get(_ORIENTATION, 1)
    if turned not in range(2, 9):
        return b""
    short = 3
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, _ORIENTATION, short, 1, turned, 0, 0)


def _png_stripped(data: bytes, exif: bytes) -> bytes:
    kept, at, kind = [data[:8]], 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind[:1].isupper() or kind in _PNG_LOOKS:
            kept.append(data[at:end])
        if kind == b"IHDR" and exif:
            body = b"eXIf" + exif
            kept.append(struct.pack(">I", len(exif)) + body + struct.pack(">I", zlib.crc32(body)))
        at = end
    return b"".join(kept)


def _jpeg_stripped(data: bytes, exif: bytes) -> bytes:
    """Up to the end of the first picture: behind it there may be others, or a film."""
    head, rest, at = [data[:2]], [], 2
    end_of_image, start_of_scan = 0xD9, 0xDA
    while (marker := data[at + 1]) != end_of_image:
        if data[at] != 0xFF:
            raise UsageError("its blocks are damaged")
        if marker == 0xFF:  # filling
            at += 1
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == start_of_scan:
            found = _JPEG_NEXT.search(data, end)
            end = found.start() if found else len(data)
        segment = data[at:end]
        if segment[:2] == b"\xff\xe0" and segment[4:9] == b"JFIF\0":
            # without its thumbnail, which would show what was cut off later
            head.append(b"\xff\xe0\0\x10" + segment[4:16] + b"\0\0")
        elif _is_look(segment):
            rest.append(segment)
        if end == len(data):
            break
        at = end
    turned = struct.pack(">2sH", b"\xff\xe1", len(exif) + 8) + b"Exif\0\0" + exif if exif else b""
    return b"".join([*head, turned, *rest, b"\xff\xd9"])


def _is_look(segment: bytes) -> bool:
    """Whether a JPEG segment decides how the picture looks: the picture itself, a colour profile, Adobe's colours."""
    marker, body = segment[1], segment[4:]
    if marker == 0xE2:
        return body.startswith(b"ICC_PROFILE\0")
    return body.startswith(b"Adobe") if marker == 0xEE else not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _webp_stripped(data: bytes, exif: bytes) -> bytes:
    kept, at, last = [], 12, min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at < last:
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        chunk = data[at:end]
        if kind == b"VP8X":
            flags = chunk[8] & ~(_WEBP_EXIF | _WEBP_XMP) | (_WEBP_EXIF if exif else 0)
            chunk = chunk[:8] + bytes([flags]) + chunk[9:]
        if kind in _WEBP_LOOKS:
            kept.append(chunk)
        at = end
    if exif:
        kept.append(struct.pack("<4sI", b"EXIF", len(exif)) + exif)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_STRIPPED: Mapping[Format, Callable[[bytes, bytes], bytes]] = {
    "png": _png_stripped,
    "jpeg": _jpeg_stripped,
    "webp": _webp_stripped,
}


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
    if plain.isascii():
        kept = plain.encode().translate(_SPACES)
    else:
        kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in plain).encode()
    return b"-".join(kept.split())[:SLUG_BYTES].decode("utf-8", "ignore").rstrip("-")


# far quicker than a look at each character
_SPACES = bytes(code if chr(code).isalnum() else ord(" ") for code in range(256))


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


def write_new(
    path: Path,
    data: bytes,
    *,
    alternatives: Iterable[Path] = (),
    overwrite: bool = False,
    mode: int | None = None,
) -> Path:
    """Commit `data` to a name that nobody has taken, whole or not at all, and return that name.

    alternatives: names in the same folder, tried in turn if `path` is taken. overwrite: replace `path`. mode: who may
    read and write the file, from the first byte on; what is usual here if None.
    Raises UsageError if every name is taken, MachineError if disk, folder or permission is in the way.
    A crash at any moment leaves no half file under a final name, and no error leaves a temporary one.
    """
    temporary = path.parent / temporary_name()
    try:
        try:
            _write_synced(temporary, data, mode)
            names = itertools.chain([path], alternatives)
            final = _replace(temporary, path) if overwrite else _claim(temporary, names)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        _sync_folder(path.parent)
    except OSError as error:
        raise machine_error(error, path) from error
    if final is None:
        raise UsageError(f"{path} exists already and stays as it is: choose another name")
    return final


def check_folder(folder: Path) -> None:
    """Raise MachineError unless files can be written into `folder`, which need not exist. Leaves no trace."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if _exists(parent))
    probe = nearest / temporary_name()
    try:
        _write_synced(probe, b"")
    except OSError as error:
        raise machine_error(error, folder / "picture") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it. Raises MachineError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise machine_error(error, folder / "picture") from error


def _exists(path: Path) -> bool:
    """Whether there is anything at `path`, even if it may not be looked into."""
    try:
        return path.exists()
    except OSError:
        return True


def _write_synced(path: Path, data: bytes, mode: int | None = None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666 if mode is None else mode & 0o777)
    try:
        if mode is not None:
            os.chmod(path, mode)  # also what the umask has taken away
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


def read_error(error: OSError, path: Path) -> MachineError:
    """What is said where `path`, a file or a folder, cannot be read: the reason, and what to do."""
    reasons = {
        errno.EACCES: "permission denied: choose another folder, or ask its owner",
        errno.EPERM: "permission denied: choose another folder, or ask its owner",
        errno.ENOENT: "it does not exist: look at its name again",
        errno.ENOTDIR: "there is a file where a folder is needed: choose another folder",
        errno.EISDIR: "there is a folder where a file is needed: move it away",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return MachineError(f"cannot read {path}: {reason}")


def machine_error(error: OSError, path: Path) -> MachineError:
    """What is said where `path` cannot be written: the reason, and what to do."""
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
