"""Tensors become pictures and pictures tensors; grids and sizes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmgen.errors import NonFiniteError, UsageError
from mmgen.images import grid, resize, to_pil, to_tensor


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256).div(127.5).sub(1).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    images = to_pil(levels)
    assert [image.size for image in images] == [(16, 16), (16, 16)]
    assert sorted(images[0].getchannel("R").tobytes()) == list(range(256))
    assert torch.allclose(to_tensor(images), levels, atol=1e-6)


def test_values_out_of_range_are_clipped_and_halves_are_rounded() -> None:
    x0 = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pil(x0)[0].getchannel("G").tobytes() == bytes([0, 0, 128, 255, 255])


def test_axes_are_height_and_width() -> None:
    x0 = torch.full((1, 3, 2, 3), -1.0)
    x0[0, 0, 1, 2] = 1
    image = to_pil(x0)[0]
    assert image.size == (3, 2)
    assert image.getpixel((2, 1)) == (255, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_taken(dtype: torch.dtype) -> None:
    assert to_pil(torch.zeros(1, 3, 2, 2, dtype=dtype))[0].getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_that_is_not_finite_is_named(bad: float) -> None:
    x0 = torch.zeros(3, 3, 2, 2)
    x0[1, 2, 1, 1] = bad
    with pytest.raises(NonFiniteError, match="picture 2 of 3"):
        to_pil(x0)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (1, 4, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected pictures as \[B, 3, H, W\]"):
        to_pil(torch.zeros(shape))


def test_pictures_of_two_sizes_make_no_tensor() -> None:
    with pytest.raises(ValueError, match="expected pictures of one size"):
        to_tensor([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))])


def test_resize_cuts_and_never_stretches() -> None:
    wide = Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (15, 0, 25, 10))
    square = resize(wide, (10, 10))
    assert square.size == (10, 10)
    assert square.getpixel((5, 5)) == (0, 0, 255)
    assert resize(wide, (40, 10)) is wide


def test_grid_puts_pictures_row_by_row() -> None:
    colours = ["red", "lime", "blue"]
    sheet = grid([Image.new("RGB", (4, 6), colour) for colour in colours], columns=2)
    assert sheet.size == (8, 12)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((7, 5)) == (0, 255, 0)
    assert sheet.getpixel((3, 6)) == (0, 0, 255)
    assert sheet.getpixel((7, 11)) == (255, 255, 255)


def test_captions_stand_below_their_pictures() -> None:
    black = [Image.new("RGB", (64, 64))] * 2
    short, long = (
        grid(black, 2, ["a", "b"]),
        grid(black, 2, ["a", "a caption of very many words, so long that it wraps"]),
    )
    assert long.height > short.height > 64
    strip = short.crop((0, 64, 64, short.height)).convert("L")
    assert strip.getextrema()[0] < 64
    assert short.crop((0, 0, 128, 64)).getextrema() == ((0, 0),) * 3


def test_a_grid_needs_pictures_columns_and_captions() -> None:
    with pytest.raises(UsageError, match="needs pictures"):
        grid([], 2)
    with pytest.raises(UsageError, match="needs pictures and columns"):
        grid([Image.new("RGB", (2, 2))], 0)
    with pytest.raises(UsageError, match="needs as many captions"):
        grid([Image.new("RGB", (2, 2))], 1, ["a", "b"])
