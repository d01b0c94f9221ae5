"""`mmgen vary`, `mix`, `interpolate` and `diff-text` from end to end on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmgen
from mmgen.cli.unclip import parse_weights
from mmgen.errors import NonFiniteError, UsageError
from mmgen.images import read_metadata
from mmgen.result import Result
from mmgen.types import Request
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def blind(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "blind", image_embed="none"))


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "cat.png")
    Image.fromarray(values.transpose(1, 0, 2)).save(tmp_path / "dog.webp", lossless=True)
    Image.new("RGB", (24, 16), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (4, 4)).save(
        tmp_path / "two.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), 9)]
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "a cat", format="png")  # a name may look like a prompt
    (tmp_path / "text.png").write_text("no picture")


def quick(tiny: str) -> list[str]:
    return ["--model", tiny, "--size", "16", "--seed", "3", "--set", "decoder.steps=2"]


def written(out: str) -> list[tuple[str, Request]]:
    """(name, request) of every picture that a command says it has written."""
    found = []
    for line in out.splitlines():
        request = read_metadata(line)["request"]
        assert request is not None
        found.append((Path(line).name, request))
    return found


def test_variations(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("vary", "wide.png", "-n", "2", *quick(tiny))
    assert done.code == 0, done.err
    assert "wide.png is 24x16: its middle square is seen" in done.err
    files = written(done.out)
    assert [name for name, _ in files] == ["0001-wide-3.png", "0002-wide-4.png"]
    assert [(request.verb, request.seeds) for _, request in files] == [("vary", (3,)), ("vary", (4,))]


def test_a_mixture_says_what_it_is_made_of(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command(
        "mix",
        "cat.png",
        "a red guitar",
        "dog.webp",
        "--weights",
        "0.5,0.25,0.25",
        "-o",
        "out.jpg",
        *quick(tiny),
    )
    assert done.code == 0, done.err
    assert "tiny has no 'guitar'" in done.err
    ((name, request),) = written(done.out)
    assert name == "out.jpg"
    assert (request.prompts, request.weights) == (("", "a red guitar", ""), (0.5, 0.25, 0.25))
    shown = mmgen_command("inspect", "out.jpg").out
    for line in ("verb: mix", "prompt: a red guitar", "weights: 0.5, 0.25, 0.25", "image-2 sha256: "):
        assert line in shown
    equal = mmgen_command("mix", "cat.png", "dog.webp", "--json", *quick(tiny))
    (told,) = equal.objects()
    assert told["request"]["weights"] == [0.5, 0.5]
    assert Path(told["file"]).name == "0001-cat-dog-3.png"


def test_an_interpolation_is_frames_and_a_strip(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("interpolate", "cat.png", "dog.webp", "--frames", "3", "-o", "way", *quick(tiny))
    assert done.code == 0, done.err
    files = written(done.out)
    assert [name for name, _ in files] == [f"000{i}-cat-dog-3.png" for i in (1, 2, 3)]
    assert [request.weights for _, request in files] == [(0.0,), (0.5,), (1.0,)]
    assert "side by side: way/strip-0001.png" in done.err
    with Image.open("way/strip-0001.png") as strip, Image.open(f"way/{files[1][0]}") as frame:
        assert strip.size == (48, 16)
        np.testing.assert_array_equal(np.asarray(strip)[:, 16:32], np.asarray(frame))
    pipe = mmgen.load(tiny, device="cpu")
    with Image.open("cat.png") as cat, Image.open("dog.webp") as dog:
        again = pipe.run(files[1][1], [cat, dog])
    assert again[0].tobytes() == Image.open(f"way/{files[1][0]}").tobytes()


def test_prompts_are_interpolated(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("interpolate", "a red cat", "a dog", "--frames", "2", *quick(tiny))
    assert done.code == 0, done.err
    assert [request.prompts for _, request in written(done.out)] == [("a red cat", "a dog")] * 2


def test_a_text_diff(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command(
        "diff-text", "cat.png", "--from", "a cat", "--to", "a red cat", "--amount", "0.5", *quick(tiny)
    )
    assert done.code == 0, done.err
    ((name, request),) = written(done.out)
    assert name == "0001-cat-a-red-cat-3.png"
    assert (request.prompts, request.weights) == (("a cat", "a red cat"), (0.5,))
    assert request.stages["decoder"].sampler == "ddim"


MIX = ["mix", "cat.png", "dog.webp"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["vary", "nothing.png"], "there is no picture nothing.png"),
        (["vary", "text.png"], "text.png is no picture that can be read"),
        (["vary", "two.gif"], "two.gif holds 2 pictures one after another"),
        (["vary", "cat.png", "--size", "20"], "cannot draw 20x20"),
        (["vary", "cat.png", "--set", "decoder.stepz=2"], "no setting 'stepz'"),
        (["vary", "cat.png", "-n", "2", "-o", "one.png"], "one.png is one file for 2 pictures"),
        (["vary"], "Missing argument"),
        (["mix", "cat.png"], "mix puts pictures and texts together, and 1 is given"),
        (["mix", "cat.png", "a dgo.png"], "there is no picture a dgo.png"),
        (["mix", "cat.png", "?!"], "no letter or digit"),
        ([*MIX, "--weights", "0.7,0.4"], "the weights 0.7, 0.4 sum to 1.1: they must sum to 1"),
        ([*MIX, "--weights", "1"], "1 weights for 2 parts: give one for each"),
        ([*MIX, "--weights", "2,-1"], "a weight is 2.0: it must lie between 0 and 1"),
        ([*MIX, "--weights", "nan,1"], "a weight is nan"),
        ([*MIX, "--weights", "half"], "--weights 'half': write one number for each part"),
        (["interpolate", "cat.png", "dog.webp", "--frames", "1"], "1 is not in the range 2<=x<=400"),
        (["interpolate", "cat.png", "dog.webp", "-o", "one.png"], "one.png is one file for 9 pictures"),
        (["interpolate", "cat.png", ""], "the prompt is empty"),
        (["diff-text", "cat.png", "--from", "a cat"], "Missing option '--to'"),
        (["diff-text", "cat.png", "--from", "a cat", "--to", " "], "the prompt is empty"),
        (["diff-text", "cat.png", "--from", "a", "--to", "b", "--amount", "2"], "the amount is 2.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    mmgen_command: Command, monkeypatch: pytest.MonkeyPatch, tiny: str, args: list[str], words: str
) -> None:
    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("a model was loaded"))
    done = mmgen_command(*args, "--seed", "1", "--model", tiny)
    assert done.code == 2, done.err
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("mmgen-out").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["vary", "cat.png"],
        MIX,
        ["interpolate", "a cat and", "a dog"],
        ["diff-text", "cat.png", "--from", "a", "--to", "b"],
    ],
)
def test_a_model_that_never_saw_an_embedding_is_not_loaded(
    mmgen_command: Command, monkeypatch: pytest.MonkeyPatch, blind: str, args: list[str]
) -> None:
    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("a model was loaded"))
    done = mmgen_command(*args, "--model", blind)
    assert done.code == 2
    assert "its decoder was not trained on image embeddings" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_file_is_a_picture_whatever_its_name(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("mix", "a cat", "dog.webp", *quick(tiny))
    assert done.code == 0, done.err
    assert written(done.out)[0][1].prompts == ("", "")


@pytest.mark.parametrize("text", ["", ",", "0.5,", "a,b", "0.5;0.5"])
def test_weights_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--weights"):
        parse_weights(text)


def test_what_is_done_stays_when_a_picture_fails_or_a_person_stops(
    mmgen_command: Command, monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    from mmgen.pipelines.text_to_image import TextToImage

    vary = TextToImage.vary

    def failing(pipe: TextToImage, image: Image.Image, **given: Any) -> Result:
        if given["seeds"] == [4]:
            raise NonFiniteError("stage 'decoder' gave NaN")
        return vary(pipe, image, **given)

    monkeypatch.setattr(TextToImage, "vary", failing)
    done = mmgen_command("vary", "cat.png", "-n", "3", *quick(tiny))
    assert done.code == 1
    assert "error: seed 4: stage 'decoder' gave NaN" in done.err
    assert "1 of 3 pictures failed; the others are there" in done.err
    assert len(written(done.out)) == 2

    interpolate = TextToImage.interpolate

    def stopped(pipe: TextToImage, *parts: Any, **given: Any) -> Result:
        whole = interpolate(pipe, *parts, **given)
        return Result(whole.request, whole.images[:1], whole.records)

    monkeypatch.setattr(TextToImage, "interpolate", stopped)
    done = mmgen_command("interpolate", "a red cat", "a dog", "--frames", "2", *quick(tiny))
    assert done.code == 130
    assert len(written(done.out)) == 1
