"""`mmgen edit` and `mmgen upscale` from end to end on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen.cli.edit import parse_sides
from mmgen.errors import UsageError
from mmgen.images import read_metadata
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "house.png")
    Image.new("RGB", (24, 16), "red").save(tmp_path / "wide.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (16, 16), 0).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no picture")


def test_an_edit_is_written_with_what_it_was_made_from(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command(
        "edit", "house.png", "a red cat", "--mask", "mask.png", "--model", tiny, "--size", "16", "--seed", "3",
        "--steps", "2", "-o", "out.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    with Image.open("house.png") as before, Image.open("out.png") as after:
        np.testing.assert_array_equal(np.asarray(after)[:, 8:], np.asarray(before)[:, 8:])
        assert not np.array_equal(np.asarray(after)[:, :8], np.asarray(before)[:, :8])
    request = read_metadata("out.png")["request"]
    assert request is not None
    assert (request.verb, request.strength, sorted(request.inputs)) == ("edit", 1.0, ["image", "mask"])
    shown = mmgen_command("inspect", "out.png").out
    assert "verb: edit" in shown
    assert "strength: 1" in shown
    assert "mask sha256: " in shown


def test_an_edit_in_less_memory_is_the_same(mmgen_command: Command, tiny: str) -> None:
    args = ("edit", "house.png", "a cat", "--mask", "mask.png", "--model", tiny, "--size", "16", "--seed", "3",
            "--steps", "2", "--set", "prior.steps=2", "--overwrite", "-o")  # fmt: skip
    assert mmgen_command(*args, "whole.png").code == 0
    done = mmgen_command(*args, "less.png", "--memory", "19MB")  # too little for all weights together
    assert done.code == 0, done.err
    assert Path("less.png").read_bytes() == Path("whole.png").read_bytes()
    refused = mmgen_command(*args, "none.png", "--memory", "1MB")
    assert refused.code == 3
    assert "at 16 px needs" in refused.err


def test_a_wide_picture_is_cut_and_that_is_said(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command(
        "edit", "wide.png", "a cat", "--strength", "0.4", "--model", tiny, "--size", "16", "--seed", "3", "--steps", "5"
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "wide.png is 24x16: its middle square is drawn over" in done.err


def test_a_picture_grows_to_a_square(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command(
        "edit", "wide.png", "a cat", "--outpaint", "top=3,bottom=5", "--model", tiny, "--size", "16", "--seed", "3",
        "--steps", "2", "-o", "grown.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    with Image.open("grown.png") as grown:
        assert grown.size == (16, 16)
        kept = np.asarray(grown)[4:10, 4:12].astype(int)  # well inside the picture, which is scaled down
    assert np.abs(kept - [255, 0, 0]).max() <= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing.png", "a cat"], "there is no picture nothing.png"),
        (["text.png", "a cat"], "text.png is no picture that can be read"),
        (["house.png", "a cat", "--mask", "wide.png"], "wide.png is 24x16 and the picture 16x16"),
        (["house.png", "a cat", "--mask", "black.png"], "black.png is all black: nothing would be drawn"),
        (["house.png", "a cat", "--mask", "mask.png", "--outpaint", "left=4"], "give one of them"),
        (["house.png", "a cat", "--strength", "0"], "--strength 0: give a number from 0.01 to 1"),
        (["house.png", "a cat", "--strength", "nan"], "--strength nan: give a number"),
        (["wide.png", "a cat", "--outpaint", "top=4"], "makes 24x20, and squares are drawn: add 4 more at the top or"),
        (["house.png", "a cat", "--outpaint", "up=4"], "write SIDE=PIXELS once for each of left, top"),
        (["house.png", "a cat", "--outpaint", "left=0"], "add some on at least one side"),
        (["house.png", ""], "the prompt is empty"),
        (["house.png"], "Missing argument"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    mmgen_command: Command, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    import mmgen

    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("a model was loaded"))
    done = mmgen_command("edit", *args, "--seed", "1")
    assert done.code == 2, done.err
    assert words in done.err
    assert len(done.err.splitlines()) <= 2
    assert not Path("mmgen-out").exists()


@pytest.mark.parametrize(
    "text", ["", "left", "left=", "left=-1", "left=1,left=2", "left=99999", "left=1;top=2"]
)
def test_sides_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="--outpaint"):
        parse_sides(text)


def test_pictures_are_enlarged(mmgen_command: Command, tiny: str, tmp_path: Path) -> None:
    done = mmgen_command(
        "upscale", "wide.png", "house.png", "--model", tiny, "--seed", "3", "-o", "large", "--set", "steps=2"
    )  # fmt: skip
    assert done.code == 0, done.err
    names = [Path(line).name for line in done.out.split()]
    assert names == ["0001-wide-3.png", "0002-house-3.png"]
    with Image.open(tmp_path / "large" / names[0]) as wide:
        assert wide.size == (96, 64)
    request = read_metadata(tmp_path / "large" / names[1])["request"]
    assert request is not None
    assert request.verb == "upscale"
    assert "verb: upscale" in mmgen_command("inspect", f"large/{names[1]}").out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["house.png", "text.png"], "text.png is no picture"),
        (["house.png", "--set", "stepz=2"], "no setting 'stepz'"),
        (["house.png", "--model", " "], "--model is empty"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_enlarged_is_refused_before_a_model_is_loaded(
    mmgen_command: Command, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    import mmgen

    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("a model was loaded"))
    done = mmgen_command("upscale", *args, "--seed", "1")
    assert done.code == 2, done.err
    assert words in done.err
