"""`mmgen upscale` with published super-resolution from end to end, on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen.images import read_metadata
from mmgen.types import StageSettings
from tests.checkpoints import write_deepfloyd, write_tiny
from tests.cli.conftest import Command
from tests.pipelines.test_upscalers import write_if_super_res, write_x4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x4, if, if-2 and tiny; to be read, never to be changed."""
    folder = tmp_path_factory.mktemp("models")
    write_x4(folder / "x4")
    write_deepfloyd(folder / "if")
    write_if_super_res(folder / "if-2")
    write_tiny(folder / "tiny")
    return folder


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "cat.png")
    Image.new("RGB", (8, 5), "red").save(tmp_path / "dog.jpg")
    Image.new("RGB", (4096, 1), "red").save(tmp_path / "wide.png")


def test_pictures_are_enlarged_by_what_a_prompt_says(
    mmgen_command: Command, models: Path, tmp_path: Path
) -> None:
    asked = ["--model", str(models / "x4"), "--device", "cpu", "--dtype", "float32", "--seed", "3"]
    said = ["--prompt", "a cat", "--set", "steps=2", "--set", "noise_level=0.1", "--set", "guidance_scale=4"]
    for out in ("large", "again"):
        done = mmgen_command("upscale", "cat.png", "dog.jpg", "-o", out, *asked, *said)
        assert done.code == 0, done.err
    names = ["0001-cat-3.png", "0002-dog-3.png"]
    assert [Path(line).name for line in done.out.split()] == names
    for name, size in zip(names, [(52, 36), (32, 20)], strict=True):
        with Image.open(tmp_path / "large" / name) as large:
            assert large.size == size
        assert (tmp_path / "large" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    request = read_metadata(tmp_path / "large" / names[0])["request"]
    assert request is not None
    assert (request.verb, request.prompts, request.size) == ("upscale", ("a cat",), (52, 36))
    asked_for = StageSettings(steps=2, sampler="ddim", guidance_scale=4, noise_level=0.1)
    assert request.stages == {"super-res-32": asked_for}
    shown = mmgen_command("inspect", f"large/{names[0]}").out
    assert all(line in shown for line in ("prompt: a cat", "verb: upscale", "super-res-32.noise_level: 0.1"))
    again = mmgen_command("rerun", f"large/{names[0]}", "--model", str(models / "x4"))
    assert again.code == 2
    assert "it was made by 'mmgen upscale' from its image" in again.err


def test_words_that_are_not_read_are_said_once(mmgen_command: Command, models: Path) -> None:
    done = mmgen_command(
        "upscale", "cat.png", "dog.jpg", "--model", str(models / "x4"), "--prompt", "a cat " * 40, "--seed", "3",
        "--set", "steps=1",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.err.count("the text is too long for it") == 1


def test_stage_two_is_told_by_the_encoder_of_stage_one(mmgen_command: Command, models: Path) -> None:
    done = mmgen_command(
        "upscale", "dog.jpg", "--model", str(models / "if"), "--upscaler", str(models / "if-2"), "--prompt", "a dog",
        "--seed", "3", "--set", "steps=2", "-o", "large",
    )  # fmt: skip
    assert done.code == 0, done.err
    request = read_metadata("large/0001-dog-3.png")["request"]
    assert request is not None
    assert (request.model, request.size) == ("if?upscaler=if-2", (16, 10))


@pytest.mark.parametrize(
    ("model", "args", "code", "words"),
    [
        (
            "tiny",
            ["--prompt", "a cat"],
            2,
            "stage 'super-res-64' of tiny is told no text: leave the prompt out",
        ),
        ("if", [], 2, "if has no super-resolution stage: it cannot enlarge pictures"),
        ("if-2", [], 3, "it has no text_encoder, without which it enlarges pictures only"),
        ("x4", ["--prompt", "..."], 2, "has no letter or digit"),
        ("x4", ["--set", "threshold=clip"], 2, "stage 'super-res-32' does not take threshold"),
        ("x4", ["wide.png", "--format", "webp"], 2, "16,384 pixels a side are too many for webp"),
        ("nowhere", [], 3, "no model"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_weights_are_read(
    mmgen_command: Command,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    args: list[str],
    code: int,
    words: str,
) -> None:
    import mmgen

    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("a model was loaded"))
    done = mmgen_command("upscale", "cat.png", *args, "--model", str(models / model), "--seed", "1")
    assert done.code == code, done.err
    assert words in done.err
    assert not Path("mmgen-out").exists()


def test_a_prompt_draws_nothing_with_it(mmgen_command: Command, models: Path) -> None:
    done = mmgen_command("generate", "a cat", "--model", str(models / "x4"), "--seed", "1")
    assert done.code == 3
    assert (
        "it draws no pictures by itself: give it as --upscaler of a model that does, or a picture to"
        in done.err
    )
