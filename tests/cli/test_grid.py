"""`mmgen grid`: what stands on the sheet, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from mmgen.cli.grid import PROMPT_LINES, _sheet_size, _wrapped
from mmgen.images import _wrap, encode, grid
from mmgen.types import Request
from tests.cli.conftest import Command

COLOURS = ("red", "lime", "blue", "yellow", "black")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Five pictures of one colour each in the folder `drawn`, the first four with settings."""
    monkeypatch.chdir(tmp_path)
    Path("drawn").mkdir()
    paths = [f"drawn/{number}-{colour}.png" for number, colour in enumerate(COLOURS)]
    for seed, (path, colour) in enumerate(zip(paths, COLOURS, strict=True)):
        request = Request((f"a {colour} fox",), (seed,), (64, 64)) if seed < 4 else None
        Path(path).write_bytes(encode(Image.new("RGB", (64, 64), colour), "png", request))
    return paths


def _colour(sheet: Image.Image, column: int, row: int, cell: int, height: int) -> tuple[int, ...]:
    """At the middle of a cell; height: of a row."""
    pixel = sheet.getpixel((column * cell + cell // 2, row * height + cell // 2))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.usefixtures("pictures")
def test_a_folder_stands_for_its_pictures_in_the_order_of_their_names(mmgen_command: Command) -> None:
    Path("drawn/notes.txt").write_text("no picture")
    Path("drawn/.hidden.png").write_text("no picture")
    done = mmgen_command("grid", "drawn", "-o", "sheet.png", "--cell", "64", "--caption", "none")
    assert (done.code, done.out, done.err) == (0, "sheet.png\n", "")
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (3 * 64, 2 * 64)
        found = [_colour(sheet, column, row, 64, 64) for row in (0, 1) for column in (0, 1, 2)]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)]


def test_pictures_are_whole_and_never_enlarged(mmgen_command: Command) -> None:
    Image.new("RGB", (400, 100), "red").save("wide.png")
    Image.new("RGB", (20, 20), "blue").save("small.jpg", quality=100)
    done = mmgen_command(
        "grid", "wide.png", "small.jpg", "-o", "sheet.png", "--caption", "none", "--columns", "1"
    )
    assert done.code == 0, done.err
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (256, 512)
        coloured = np.asarray(sheet).min(axis=2) < 128
    assert (coloured[:256].any(axis=1).sum(), coloured[:256].any(axis=0).sum()) == (64, 256)
    assert (coloured[256:].any(axis=1).sum(), coloured[256:].any(axis=0).sum()) == (20, 20)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("prompt", ["a red fox, seed 0", "a lime fox, seed 1", "4-black.png"]),
        ("seed", ["seed 0", "seed 1", "4-black.png"]),
        ("name", ["0-red.png", "1-lime.png", "4-black.png"]),
    ],
)
def test_captions(mmgen_command: Command, pictures: list[str], caption: str, expected: list[str]) -> None:
    chosen = [pictures[0], pictures[1], pictures[4]]
    done = mmgen_command("grid", *chosen, "-o", "sheet.png", "--caption", caption, "--columns", "3")
    assert done.code == 0, done.err
    cells = []
    for path in chosen:
        cell = Image.new("RGB", (256, 256), "white")
        with Image.open(path) as image:
            cell.paste(image, (96, 96))
        cells.append(cell)
    with Image.open("sheet.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(grid(cells, 3, expected)))


@pytest.mark.parametrize("cell", [32, 64, 256, 500])
@pytest.mark.parametrize("prompt", ["fox " * 400, "x" * 3000, "狐" * 300])
def test_a_long_caption_stays_in_its_cell_with_its_seed(
    mmgen_command: Command, cell: int, prompt: str
) -> None:
    request = Request((prompt,), (2**63 - 1,), (8, 8))
    Path("a.png").write_bytes(encode(Image.new("RGB", (8, 8)), "png", request))
    Image.new("RGB", (8, 8)).save("b.png")
    options = ["--cell", str(cell), "--columns", "1"]
    assert mmgen_command("grid", "a.png", "b.png", "-o", "sheet.png", *options).code == 0
    with Image.open("sheet.png") as sheet:
        width, most = _sheet_size(2, 1, True, cell)
        assert sheet.width == width
        assert 2 * cell < sheet.height <= most


@pytest.mark.parametrize("cell", [32, 64, 256, 500])
@pytest.mark.parametrize("text", ["ill " * 99, "W" * 99, "a fox", "i" * 40 + " " + "W" * 40 + " a fox", ""])
def test_a_caption_is_as_wide_as_its_letters(cell: int, text: str) -> None:
    font = ImageFont.load_default(max(10, cell // 20))
    caption = _wrapped(text, cell)
    lines = _wrap(caption, font, cell - 8).splitlines()
    assert len(lines) <= PROMPT_LINES
    assert all(font.getlength(line) <= cell - 8 for line in lines)
    said = caption.removesuffix("...").replace(" ", "")
    assert text.replace(" ", "").startswith(said)
    if caption.endswith("..."):
        assert len(lines) == PROMPT_LINES
        assert len(set(text.split())) > 1 or font.getlength(f"{lines[-1]} ill WW") > cell - 8  # it is full
    else:
        assert said == text.replace(" ", "")


@pytest.mark.usefixtures("pictures")
def test_a_sheet_is_replaced_only_on_demand_and_never_part_of_itself(mmgen_command: Command) -> None:
    args = ["grid", "drawn", "-o", "drawn/sheet.png", "--caption", "none", "--cell", "32"]
    assert mmgen_command(*args).code == 0
    before = Path("drawn/sheet.png").read_bytes()
    refused = mmgen_command(*args)
    assert refused.code == 2
    assert "drawn/sheet.png exists already" in refused.err
    assert mmgen_command(*args, "--overwrite").code == 0
    assert Path("drawn/sheet.png").read_bytes() == before
    other = mmgen_command("grid", "drawn", "-o", "new/sheet.jpg", "--caption", "none", "--cell", "32")
    assert other.code == 0, other.err
    with Image.open("new/sheet.jpg") as sheet:
        assert sheet.size == (96, 64)  # six pictures now


def test_very_many_pictures_get_smaller_cells(mmgen_command: Command, pictures: list[str]) -> None:
    done = mmgen_command("grid", *pictures * 14, "-o", "sheet.webp", "--caption", "none", "--columns", "1")
    assert done.code == 0, done.err
    assert done.err == "70 pictures: in cells of 234 px, the sheet is about 234x16380\n"
    with Image.open("sheet.webp") as sheet:
        assert sheet.size == (234, 16380)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.png", "-o", "s.png"], "there is no file none.png"),
        (["none.png", "-o", "s.png", "--caption", "none"], "there is no picture none.png"),
        (["bad.png", "-o", "s.png"], "bad.png is not a PNG, JPEG or WebP picture"),
        (["film.webp", "-o", "s.png"], "film.webp holds 2 pictures one after another"),
        (["huge.png", "-o", "s.png"], "huge.png is 9000x9000: at most 64,000,000 pixels are read"),
        (["empty", "-o", "s.png"], "the folder empty holds no pictures (.png, .jpg"),
        (
            ["a.png", "-o", "sheets"],
            "--out sheets is a folder: give the name of the sheet, such as sheets/sheet.png",
        ),
        (["a.png", "-o", "s.gif"], "mmgen writes png, jpeg and webp, not gif"),
        (["a.png"] * 3 + ["-o", "s.png", "--cell", "4096", "--columns", "5"], "fewer pictures"),
        (["a.png"] * 600 + ["-o", "s.webp", "--columns", "1"], "16,383 on a side: give fewer pictures"),
        (["a.png", "-o", "s.png", "--cell", "8"], "--cell"),
        (["a.png", "-o", "s.png", "--columns", "0"], "--columns"),
        (["a.png"], "Missing option '-o'"),
        (["-o", "s.png"], "Missing argument"),
    ],
)
def test_what_cannot_be_meant(mmgen_command: Command, args: list[str], words: str) -> None:
    Path("empty").mkdir()
    Path("bad.png").write_text("no picture")
    small = Image.new("RGB", (8, 8))
    small.save("a.png")
    small.save("film.webp", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    Image.new("1", (9000, 9000)).save("huge.png")
    before = sorted(path.name for path in Path.cwd().iterdir())
    done = mmgen_command("grid", *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert sorted(path.name for path in Path.cwd().iterdir()) == before
