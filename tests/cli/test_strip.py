"""`mmgen strip`: nothing but the picture stays, and the picture stays as it is."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from mmgen.errors import UsageError
from mmgen.images import FORMATS, encode, read_metadata, stripped
from mmgen.types import Request
from tests.cli.conftest import Command

SECRET = "a secret fox"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET
    exif[0x8769] = {0x9286: b"ASCII\0\0\0" + SECRET.encode()}
    return exif


def _saved(image: Image.Image, format: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **more)
    return buffer.getvalue()


def _text() -> PngInfo:
    chunks = PngInfo()
    chunks.add_text("Comment", SECRET)
    chunks.add_itxt("XML:com.adobe.xmp", f"<x>{SECRET}</x>")
    chunks.add(b"tIME", b"\x07\xe8\x01\x01\0\0\0")
    chunks.add_text("late", SECRET, zip=True)
    chunks.add(b"teXt", SECRET.encode(), after_idat=True)
    return chunks


REQUEST = Request((SECRET,), (1,), (8, 8))
XMP = f"<x>{SECRET}</x>".encode()
COLOUR = {"icc_profile": PROFILE}
TEXT = {"xmp": XMP, "exif": _exif()}
CASES = {
    "png": _saved(NOISE, "png", pnginfo=_text(), exif=_exif(), dpi=(72, 72), **COLOUR),
    "png turned": _saved(NOISE, "png", pnginfo=_text(), exif=_exif(8)),
    "png palette": _saved(NOISE.quantize(16), "png", pnginfo=_text(), transparency=3),
    "png 16 bits": _saved(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)), "png", pnginfo=_text()),
    "png one bit": _saved(NOISE.convert("1"), "png", pnginfo=_text()),
    "png transparent": _saved(NOISE.convert("RGBA"), "png", pnginfo=_text()),
    "png behind its end": _saved(NOISE, "png") + SECRET.encode(),
    "jpeg": _saved(NOISE, "jpeg", comment=SECRET, dpi=(72, 72), **TEXT, **COLOUR),
    "jpeg turned": _saved(NOISE, "jpeg", exif=_exif(6)),
    "jpeg progressive": _saved(NOISE, "jpeg", progressive=True, restart_marker_blocks=1, **TEXT),
    "jpeg of Adobe": _saved(NOISE.convert("CMYK"), "jpeg", **TEXT),
    "jpeg in greys": _saved(NOISE.convert("L"), "jpeg", **TEXT),
    "jpeg behind its end": _saved(NOISE, "jpeg") + SECRET.encode(),
    "webp": _saved(NOISE, "webp", **TEXT, **COLOUR),
    "webp turned": _saved(NOISE, "webp", lossless=True, exif=_exif(5)),
    "webp transparent": _saved(NOISE.convert("RGBA"), "webp", quality=50, **TEXT),
    "webp bare": _saved(NOISE, "webp"),
    **{f"{format} of mmgen": encode(NOISE, format, REQUEST) for format in FORMATS},
}  # fmt: skip


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_nothing_but_the_picture_stays(mmgen_command: Command, data: bytes) -> None:
    Path("a").write_bytes(data)
    done = mmgen_command("strip", "a", "-o", "bare")
    assert (done.code, done.out, done.err) == (0, "bare/a\n", "")
    after = Path("bare/a").read_bytes()
    assert SECRET.encode() not in after
    assert SECRET.encode("utf-16-be") not in after
    assert read_metadata("bare/a") == {"request": None, "parameters": None, "label": None}
    with Image.open("a") as old, Image.open("bare/a") as new:
        assert new.mode == old.mode
        assert ImageOps.exif_transpose(new).tobytes() == ImageOps.exif_transpose(old).tobytes()
        looks = ["icc_profile", "transparency", "jfif_density", *(["dpi"] if old.format == "PNG" else [])]
        assert [new.info.get(name) for name in looks] == [old.info.get(name) for name in looks]
        assert set(new.getexif()) <= {0x0112}
        assert not set(new.info) & {"xmp", "comment", "Comment", "late", "XML:com.adobe.xmp"}
    assert stripped(after) == after
    assert Path("a").read_bytes() == data


def test_a_thumbnail_is_metadata_too() -> None:
    shown = _saved(NOISE, "jpeg")
    assert shown[:4] == b"\xff\xd8\xff\xe0"
    thumbnail = bytes([1, 1, 11, 22, 33])
    head = b"\xff\xe0" + (16 + 3).to_bytes(2, "big") + shown[6:18] + thumbnail
    with_thumbnail = shown[:2] + head + shown[20:]
    assert stripped(with_thumbnail) == stripped(shown) == shown


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no modes")
def test_what_is_private_is_never_for_others(mmgen_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.png").write_bytes(CASES["png"])
    Path("a.png").chmod(0o600)
    modes: list[int] = []
    real = os.open

    def opened(path: str, flags: int, *mode: int) -> int:
        file = real(path, flags, *mode)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(file).st_mode))
        return file

    monkeypatch.setattr(os, "open", opened)
    assert mmgen_command("strip", "a.png", "--in-place").code == 0
    assert modes == [0o600]


def test_in_place_keeps_permissions_and_links(mmgen_command: Command) -> None:
    Path("a.png").write_bytes(CASES["png"])
    os.chmod("a.png", 0o640)
    os.symlink("a.png", "link.png")
    done = mmgen_command("strip", "link.png", "--in-place")
    assert (done.code, done.out) == (0, "link.png\n")
    assert Path("link.png").is_symlink()
    assert stat.S_IMODE(os.stat("a.png").st_mode) == 0o640
    assert Path("a.png").read_bytes() == stripped(CASES["png"])
    written = os.stat("a.png").st_ino
    assert mmgen_command("strip", "a.png", "--in-place").code == 0
    assert os.stat("a.png").st_ino == written  # there was nothing to do
    assert sorted(os.listdir()) == ["a.png", "link.png"]


def test_what_cannot_be_read_is_named_and_the_others_are_done(mmgen_command: Command) -> None:
    Path("cut.png").write_bytes(CASES["png"][:1500])
    Path("text.png").write_text("no picture")
    NOISE.save("film.webp", save_all=True, append_images=[NOISE.transpose(Image.Transpose.ROTATE_180)])
    NOISE.save("a.bmp")
    Path("a.png").write_bytes(CASES["png"])
    files = ["cut.png", "text.png", "none.png", "film.webp", "a.bmp", "a.png"]
    before = {name: Path(name).read_bytes() for name in files if name != "none.png"}
    done = mmgen_command("strip", *files, "-o", "bare")
    assert (done.code, done.out) == (1, "bare/a.png\n")
    lines = done.err.splitlines()
    assert len(lines) == 5
    for line, words in zip(
        lines,
        [
            "cut.png cannot be read as a picture", "text.png is no picture that can be read",
            "there is no picture none.png", "film.webp holds 2 pictures one after another",
            "a.bmp cannot be stripped: it is not a PNG, JPEG or WebP picture",
        ],
        strict=True,
    ):  # fmt: skip
        assert words in line
    assert {name: Path(name).read_bytes() for name in before} == before
    assert os.listdir("bare") == ["a.png"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a.png"], "-o FOLDER for copies, or --in-place to replace the pictures: neither is given"),
        (["a.png", "-o", "bare", "--in-place"], "both are given"),
        (["a.png", "-o", "."], "a.png exists already and stays as it is"),
        (["a.png", "./a.png", "-o", "bare"], "two pictures are called a.png"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_meant(mmgen_command: Command, args: list[str], words: str) -> None:
    Path("a.png").write_bytes(CASES["png"])
    done = mmgen_command("strip", *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert os.listdir() == ["a.png"]
    assert Path("a.png").read_bytes() == CASES["png"]


@given(st.sampled_from(list(CASES.values())), st.data())
def test_a_damaged_file_is_stripped_or_refused(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = data[:at] + draw.draw(st.binary(max_size=4)) + data[at + draw.draw(st.integers(0, 4)) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmgen.images._orientation", lambda _data: b"")  # which Pillow reads
        try:
            stripped(changed)
        except UsageError as error:
            assert str(error) in ("its blocks are damaged", "it is not a PNG, JPEG or WebP picture")
