"""Pictures that people give: read as they look, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen import inputs
from mmgen.errors import UsageError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_turned_picture_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    found = inputs.open_picture(saved(image, tmp_path / "turned.png", exif=exif))
    assert found.size == (2, 4)
    assert found.getpixel((1, 0)) == RED


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    found = inputs.open_picture(saved(image, tmp_path / "a.png"))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_greys(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    found = inputs.open_picture(saved(image, tmp_path / f"a.{suffix}"))
    assert [found.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_every_usual_mode_is_read(mode: str) -> None:
    found = inputs.picture(Image.new("RGB", (3, 3), "white").convert(mode))
    assert (found.mode, found.getpixel((1, 1))) == ("RGB", WHITE)


def refused(path: Path, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inputs.open_picture(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "there is no picture .*none.png")
    refused(tmp_path, "there is no picture|cannot be read")
    (tmp_path / "text.png").write_text("hello")
    refused(tmp_path / "text.png", "text.png is no picture that can be read .PNG, JPEG")
    whole = saved(Image.new("RGB", (64, 64), "red"), tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "half.jpg", "half.jpg cannot be read as a picture: ")
    refused(saved(Image.new("F", (2, 2)), tmp_path / "f.tif"), "f.tif holds floating-point values")


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    refused(path, "a.gif holds 2 pictures one after another")


def test_a_picture_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(Image.new("L", (101, 100)), tmp_path / "large.png")
    monkeypatch.setattr(inputs, "MAX_PIXELS", 10_000)
    refused(path, "large.png is 101x100: at most 10,000 pixels are read")
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 1000
    )  # Pillow's own limit, which comes first for the largest
    refused(path, "large.png is too large: at most 10,000 pixels are read")


def test_a_mask_fits_its_picture(tmp_path: Path) -> None:
    mask = Image.new("L", (8, 4), 0)
    mask.paste(255, (0, 0, 4, 4))
    path = saved(mask, tmp_path / "mask.png")
    assert inputs.open_mask(path, (8, 4)).getpixel((1, 1)) == 255
    for image, size, words in (
        (mask, (4, 8), "the mask is 8x4 and the picture 4x8"),
        (Image.new("L", (8, 4), 0), (8, 4), "all black: nothing would be drawn. White is what is drawn anew"),
        (Image.new("L", (8, 4), 255), (8, 4), "all white: nothing would be kept"),
    ):
        with pytest.raises(UsageError, match=words):
            inputs.checked_mask(image, size)


def test_a_digest_is_of_what_is_seen(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "red")
    again = inputs.open_picture(saved(image, tmp_path / "a.png", compress_level=0))
    assert inputs.digest(again) == inputs.digest(image)
    others = [Image.new("RGB", (2, 4), "red"), Image.new("RGB", (4, 2), "blue"), image.convert("L")]
    assert len({inputs.digest(other) for other in (image, *others)}) == 4


def test_a_canvas_is_extended_by_its_edges() -> None:
    image = Image.new("RGB", (2, 2), "red")
    image.putpixel((1, 1), (0, 0, 255))
    canvas, mask = inputs.extended(image, left=3, bottom=1)
    assert canvas.size == mask.size == (5, 3)
    assert canvas.getpixel((0, 0)) == RED
    assert canvas.getpixel((4, 2)) == (0, 0, 255)
    kept = [(x, y) for x in range(5) for y in range(3) if mask.getpixel((x, y)) == 0]
    assert kept == [(3, 0), (3, 1), (4, 0), (4, 1)]


@pytest.mark.parametrize("sides", [{}, {"left": -1, "top": 5}])
def test_a_canvas_must_grow(sides: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="outpainting by"):
        inputs.extended(Image.new("RGB", (2, 2)), **sides)
