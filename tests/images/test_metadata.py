"""What is written into a picture comes out again, in the form that the formats and other tools ask for."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmgen.errors import UsageError
from mmgen.images import (
    FORMATS,
    MACHINE_MADE,
    Format,
    check_fits,
    encode,
    parameters_text,
    read_metadata,
)
from mmgen.types import SAMPLERS, Request, StageSettings

SLOW_MACHINES = settings(deadline=None, max_examples=60)
PICTURE = Image.linear_gradient("L").resize((16, 12)).convert("RGB")
NASTY = (
    'a "red" kite',
    "two lines\nof prompt\r\nand more",
    "Steps: 20, Sampler: none, CFG scale: 1",
    "a fox\nNegative prompt: no\nSteps: 3, Seed: 4, Size: 1x1",
    "ein Fuchs über dem Fluß",
    "кошка и 🦊 at 日本 \u2028\x85\x0b\x1f\ufffe end",
    "<rdf:li>&amp;]]></rdf:li> {json} \\u0041 '\"",
    "a, b: c",
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
prompts = st.one_of(st.sampled_from(NASTY), texts.filter(lambda text: any(c.isalnum() for c in text)))
negatives = st.one_of(st.just(""), prompts)
stage_settings = st.builds(
    StageSettings,
    steps=st.none() | st.integers(1, 1000),
    sampler=st.none() | st.sampled_from(SAMPLERS),
    guidance_scale=st.none() | st.floats(0, 100),
    threshold=st.sampled_from([None, "clip", "none", 0.995]),
    guidance_interval=st.sampled_from([None, (0.25, 0.75)]),
)
requests = st.builds(
    Request,
    prompts=prompts.map(lambda prompt: (prompt,)),
    seeds=st.integers(0, 2**63 - 1).map(lambda seed: (seed,)),
    size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    negative_prompt=negatives,
    stages=st.dictionaries(st.sampled_from(["prior", "decoder", "super-res-256"]), stage_settings),
    model=st.sampled_from(["", "storybook", "a, model: 'x'"]),
    model_digest=st.sampled_from(["", "0123456789abcdef"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.mark.parametrize("format", FORMATS)
@SLOW_MACHINES
@given(request_=requests)
def test_settings_come_back(folder: Path, format: Format, request_: Request) -> None:
    path = folder / f"picture.{format}"
    path.write_bytes(encode(PICTURE, format, request_))
    found = read_metadata(path)
    assert found["request"] == request_
    assert found["parameters"] == parameters_text(request_)
    assert found["label"] == MACHINE_MADE


@pytest.mark.parametrize("format", FORMATS)
def test_same_settings_same_bytes(format: Format) -> None:
    request = _request("a fox")
    assert encode(PICTURE, format, request) == encode(
        PICTURE.copy(), format, Request.from_json(request.to_json())
    )


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_kept(format: Format) -> None:
    image = Image.open(io.BytesIO(encode(PICTURE, format, _request("a fox"))))
    assert image.format == format.upper()
    pairs = zip(image.convert("RGB").tobytes(), PICTURE.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= (0 if format == "png" else 8)


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_without_request_is_still_labelled(tmp_path: Path, format: Format) -> None:
    path = tmp_path / "grid"
    path.write_bytes(encode(PICTURE, format))
    assert read_metadata(path) == {"request": None, "parameters": None, "label": MACHINE_MADE}


@SLOW_MACHINES
@given(request_=requests)
def test_last_line_has_three_pairs_that_other_tools_can_take_apart(request_: Request) -> None:
    pair = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    last = parameters_text(request_).split("\n")[-1]
    pairs = dict(pair.findall(last))
    assert len(pairs) >= 3
    assert pairs["Seed"] == str(request_.seeds[0])
    assert pairs["Size"] == f"{request_.size[0]}x{request_.size[1]}"
    assert pair.sub("", last) == ""


def test_parameters_text_reads_as_other_tools_write_it() -> None:
    text = parameters_text(_request("a fox", negative="rain"))
    assert re.sub(r"mmgen .*", "mmgen V", text) == (
        "a fox\nNegative prompt: rain\n"
        "Steps: 16, Sampler: ddim, CFG scale: 3, Seed: 7, Size: 64x64, Model: storybook, Version: mmgen V"
    )


def test_png_text_is_latin1_or_uncompressed_unicode() -> None:
    latin = _png_chunks(encode(PICTURE, "png", _request("ein Fuchs über dem Fluß")))
    assert [kind for kind, _ in latin] == ["IHDR", "tEXt", "tEXt", "iTXt", "IDAT", "IEND"]
    assert latin[1][1].startswith(b"parameters\0ein Fuchs \xfcber")
    wide = _png_chunks(encode(PICTURE, "png", _request("ein Fuchs 🦊")))
    assert [kind for kind, _ in wide] == ["IHDR", "iTXt", "iTXt", "iTXt", "IDAT", "IEND"]
    for key, (_, data) in zip((b"parameters", b"mmgen", b"XML:com.adobe.xmp"), wide[1:4], strict=True):
        assert data.startswith(key + b"\0\0\0\0\0")  # not compressed, no language


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_user_comment_is_undefined_in_the_exif_directory(format: Format) -> None:
    data = encode(PICTURE, format, _request("кошка 🦊"))
    tiff = Image.open(io.BytesIO(data)).info["exif"].removeprefix(b"Exif\0\0")
    assert struct.unpack(">2sHI", tiff[:8]) == (b"MM", 42, 8)
    assert struct.unpack(">HHHIII", tiff[8:26]) == (1, 0x8769, 4, 1, 26, 0)
    entries, tag, kind, count, offset, following = struct.unpack(">HHHIII", tiff[26:44])
    assert (entries, tag, kind, offset, following) == (1, 0x9286, 7, 44, 0)
    comment = tiff[offset : offset + count]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == parameters_text(_request("кошка 🦊"))
    assert len(tiff) == offset + count


@pytest.mark.parametrize("format", FORMATS)
def test_label_is_where_readers_of_xmp_look(format: Format) -> None:
    info = Image.open(io.BytesIO(encode(PICTURE, format, _request("a fox")))).info
    packet = info["XML:com.adobe.xmp"] if format == "png" else info["xmp"].decode()
    source = ElementTree.fromstring(packet).find(
        ".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    )
    assert source is not None
    assert source.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_settings_are_found_after_another_tool_rewrote_the_file(tmp_path: Path) -> None:
    chunks = _png_chunks(encode(PICTURE, "png", _request("a fox")))
    behind = [
        *(c for c in chunks[:-1] if "EXt" not in c[0]),
        *(c for c in chunks if c[0] == "tEXt"),
        chunks[-1],
    ]
    path = tmp_path / "moved.png"
    path.write_bytes(_png(behind))
    assert read_metadata(path)["request"] == _request("a fox")
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<r:Description xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" i:DigitalSourceType="x"/>'
        b"</r:RDF></x:xmpmeta>"
    )
    PICTURE.save(tmp_path / "other.jpg", xmp=packet)
    assert read_metadata(tmp_path / "other.jpg")["label"] == "x"


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    packet = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'
    PICTURE.save(tmp_path / "bomb.jpg", xmp=packet)
    assert read_metadata(tmp_path / "bomb.jpg") == {"request": None, "parameters": None, "label": None}


def test_what_does_not_fit_into_jpeg_is_said_before_drawing() -> None:
    request = _request("猫" * 10_000, negative="a" + "🦊" * 9_999)
    with pytest.raises(UsageError, match="a JPEG file holds"):
        check_fits("jpeg", request)
    check_fits("png", request)
    check_fits("webp", request)


@pytest.mark.parametrize("format", FORMATS)
def test_long_prompts_fit_where_they_can(tmp_path: Path, format: Format) -> None:
    request = _request("猫" * 10_000)
    path = tmp_path / "long"
    path.write_bytes(encode(PICTURE, format, request))
    assert read_metadata(path)["request"] == request


@pytest.mark.parametrize("format", FORMATS)
def test_half_a_character_is_refused(format: Format) -> None:
    with pytest.raises(UsageError, match="half a character"):
        encode(PICTURE, format, _request("a fox \udc80"))


@SLOW_MACHINES
@given(data=st.binary(max_size=200))
def test_nonsense_is_refused_in_one_line(folder: Path, data: bytes) -> None:
    path = folder / "nonsense"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_metadata(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
@SLOW_MACHINES
@given(data=st.data())
def test_damaged_pictures_are_read_or_refused(folder: Path, format: Format, data: st.DataObject) -> None:
    whole = bytearray(encode(PICTURE, format, _request("a fox 🦊")))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with contextlib.suppress(UsageError):
        assert set(read_metadata(path)) == {"request", "parameters", "label"}


@pytest.mark.parametrize(
    "record", ["{", "[]", '{"prompts": ["a"]}', '{"new_field": 1}', "nul", "[" * 100_000]
)
def test_a_damaged_record_is_named(tmp_path: Path, record: str) -> None:
    chunks = _png_chunks(encode(PICTURE, "png", _request("a fox")))
    path = tmp_path / "damaged.png"
    path.write_bytes(
        _png([(k, b"mmgen\0" + record.encode()) if d[:6] == b"mmgen\0" else (k, d) for k, d in chunks])
    )
    with pytest.raises(UsageError, match="mmgen record is damaged"):
        read_metadata(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_metadata(tmp_path / "none.png")
    with pytest.raises(UsageError, match="cannot be read as a picture: Is a directory"):
        read_metadata(tmp_path)


def _request(prompt: str, negative: str = "") -> Request:
    decoder = StageSettings(steps=16, sampler="ddim", guidance_scale=3.0)
    return Request((prompt,), (7,), (64, 64), negative, {"decoder": decoder}, model="storybook")


def _png_chunks(data: bytes) -> list[tuple[str, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append((kind.decode(), data[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


def _png(chunks: list[tuple[str, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        named = kind.encode() + data
        parts.append(struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named)))
    return b"".join(parts)
