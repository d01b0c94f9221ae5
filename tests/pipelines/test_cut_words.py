"""Words that did not fit the text encoder, from the stage to the lines of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmgen.cli.main import main
from mmgen.models.text import TextEncoder
from mmgen.pipelines.text_stage import TextStage, cut_words
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.types import StageSettings
from tests.checkpoints import write_bert, write_clip, write_stable_diffusion
from tests.render.whole import load

# The tiny CLIP reads 38 letters.
FITS, LONG = "a red cat on the beach", "a big red cat and two small dogs on the wide beach at night"
CUT = ("beach", "at", "night")
FAST = {"decoder": StageSettings(steps=1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextToImage:
    return load(folder)


def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32)


def test_a_result_names_them_by_text(pipe: TextToImage) -> None:
    result = pipe([FITS, LONG], seeds=[1], negative_prompt=f"{LONG} {FITS}", stages=FAST)
    assert dict(result.cut_words) == {LONG: CUT, f"{LONG} {FITS}": (*CUT, *FITS.split())}
    assert not pipe(FITS, seeds=[1], stages=FAST).cut_words


def test_what_is_cut_changes_no_picture(pipe: TextToImage) -> None:
    one, other = (pipe(prompt, seeds=[1], stages=FAST)[0] for prompt in (LONG, f"{LONG} and a star"))
    assert one.tobytes() == other.tobytes()


def test_of_two_encoders_the_one_that_reads_less_counts(tmp_path: Path) -> None:
    clip, bert = encoder(write_clip(tmp_path / "clip")), encoder(write_bert(tmp_path / "bert"))
    text = "A " * 34 + "red cat"
    assert (clip.cut_words(text), bert.cut_words(text)) == (("cat",), ())
    for stage in (TextStage(clip, beside=bert), TextStage(bert, beside=clip)):
        assert stage.cut_words(text) == ("cat",)
    assert TextStage(clip, length=4, lower=True).cut_words("A B C") == ("c",)
    assert cut_words([TextStage(bert), TextStage(clip)], [text, FITS]) == {text: ("cat",)}


def test_the_commands_name_them_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(folder), "--device", "cpu", "--steps", "1", "--seed", "3", "--json"]
    (tmp_path / "prompts.txt").write_text(f"{LONG}\n{FITS}\n", "utf-8")
    commands = (
        ["generate", LONG, FITS, "-n", "2"],
        ["batch", str(tmp_path / "prompts.txt"), "-n", "2"],
    )
    for command in commands:
        assert main([*command, "--out", str(tmp_path / command[0]), *given]) == 0
        said = capsys.readouterr()
        assert [line for line in said.err.splitlines() if "did not read" in line] == [
            "sd did not read 'beach', 'at', 'night': the text is too long for it"
        ]
        told = [json.loads(line) for line in said.out.splitlines()]
        pictures = [one for one in told if one.get("event", "picture") == "picture"]
        assert [one.get("cut_words", []) for one in pictures] == [list(CUT), list(CUT), [], []]


def test_of_many_words_some_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(folder), "--device", "cpu", "--steps", "1", "--seed", "3"]
    assert main(["generate", LONG + " star" * 10, "--out", str(tmp_path / "out"), *given]) == 0
    stars = ", ".join(["'star'"] * 7)
    assert f"sd did not read 'beach', 'at', 'night', {stars} and 3 more: the" in capsys.readouterr().err
