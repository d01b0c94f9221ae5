"""`mmgen generate`: what it writes, what it says, and what it refuses before a model is loaded."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mmgen
from mmgen.cli import generate as generate_module
from mmgen.cli import main as main_module
from mmgen.cli.options import STAGE_NAMES, parse_settings, parse_threshold
from mmgen.errors import UsageError
from mmgen.images import read_metadata, slug
from mmgen.types import StageSettings
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command

TRAVERSAL = "../../etc/passwd a fox"
REFUSED = {
    "no prompt": [],
    "empty prompt": [""],
    "blank prompt": [" \t\n"],
    "second prompt empty": ["a fox", ""],
    "emoji only": ["🦊🎈"],
    "control characters only": ["\x1b[31m\x07\x00\r"],
    "control characters": ["\x1b\x07\r"],
    "a megabyte": ["fox " * 250_000],
    "half a character": ["a fox \udc80"],
    "size zero": ["a fox", "--size", "0"],
    "size negative": ["a fox", "--size=-1"],
    "size nonsense": ["a fox", "--size", "big"],
    "size of three": ["a fox", "--size", "1x2x3"],
    "size huge": ["a fox", "--size", "99999999999999999999"],
    "size of other digits": ["a fox", "--size", "６４"],
    "sampler unknown": ["a fox", "--sampler", "magic"],
    "count zero": ["a fox", "--count", "0"],
    "count negative": ["a fox", "-n", "-3"],
    "count huge": ["a fox", "-n", "1000000000000"],
    "seed not a number": ["a fox", "--seed", "lucky"],
    "seed negative": ["a fox", "--seed", "-1"],
    "seed too large": ["a fox", "--seed", str(2**63)],
    "seeds that grow too large": ["a fox", "--seed", str(2**63 - 1), "-n", "2"],
    "steps zero": ["a fox", "--steps", "0"],
    "steps fraction": ["a fox", "--steps", "1.5"],
    "steps too many": ["a fox", "--steps", "1001"],
    "guidance nan": ["a fox", "--guidance", "nan"],
    "guidance infinite": ["a fox", "--guidance", "inf"],
    "guidance negative": ["a fox", "--guidance", "-1"],
    "threshold nonsense": ["a fox", "--threshold", "some"],
    "threshold nan": ["a fox", "--threshold", "nan"],
    "threshold one": ["a fox", "--threshold", "1"],
    "threshold zero": ["a fox", "--threshold", "0"],
    "negative without words": ["a fox", "--negative", "!!!"],
    "negative half a character": ["a fox", "--negative", "rain \udc80"],
    "model empty": ["a fox", "--model", " "],
    "model unknown": ["a fox", "--model", "nothing"],
    "model is a file": ["a fox", "--model", "file"],
    "model is no checkpoint": ["a fox", "--model", "."],
    "model name too long": ["a fox", "--model", "x" * 5000],
    "model name of zeros": ["a fox", "--model", "a\0b"],
    "size that the model has not": ["a fox", "--size", "100"],
    "size of two that the model has": ["a fox", "--size", "64x256"],
    "device unknown": ["a fox", "--device", "tpu"],
    "dtype unknown": ["a fox", "--dtype", "int8"],
    "format unknown": ["a fox", "--format", "gif"],
    "set without value": ["a fox", "--set", "decoder.steps"],
    "set with empty value": ["a fox", "--set", "decoder.steps="],
    "set without stage": ["a fox", "--set", "steps=3"],
    "set unknown name": ["a fox", "--set", "decoder.stepz=3"],
    "set wrong type": ["a fox", "--set", "decoder.steps=few"],
    "set fraction of steps": ["a fox", "--set", "decoder.steps=2.5"],
    "set unknown sampler": ["a fox", "--set", "decoder.sampler=magic"],
    "set nan": ["a fox", "--set", "decoder.eta=nan"],
    "set backward interval": ["a fox", "--set", "decoder.guidance_interval=0.8,0.2"],
    "set half an interval": ["a fox", "--set", "decoder.guidance_interval=0.8"],
    "set twice": ["a fox", "--set", "decoder.steps=3", "--set", "decoder.steps=4"],
    "set and option": ["a fox", "--set", "decoder.steps=3", "--steps", "4"],
    "option unknown": ["a fox", "--stepz", "3"],
    "option without value": ["a fox", "--seed"],
    "out empty": ["a fox", "--out", ""],
    "out below a file": ["a fox", "--out", "file/below/pictures"],
    "out file below a file": ["a fox", "--out", "file/a.png"],
    "out is a file": ["a fox", "--out", "file"],
    "out exists": ["a fox", "--out", "old.png"],
    "out name too long": ["a fox", "--out", "x" * 300],
    "out in another format": ["a fox", "--out", "new.png", "--format", "webp"],
    "out in no format": ["a fox", "--out", "new.gif"],
    "out one file for two": ["a fox", "--out", "new.png", "-n", "2"],
    "overwrite a folder": ["a fox", "--overwrite"],
}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: Any, **_names: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setitem(mmgen.__dict__, "load", load)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("args", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line_before_anything_is_loaded(
    mmgen_command: Callable[..., Any], tmp_path: Path, args: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "old.png").write_bytes(b"mine")
    outcome = mmgen_command("generate", *args)
    assert outcome.code in (2, 3), outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err) < 1100
    assert outcome.err.strip().isprintable()
    assert _files(tmp_path) == {"file": b"mine", "old.png": b"mine"}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"", "no prompt on standard input"),
        (b"\n \r\n", "no prompt on standard input"),
        (b"a fox\n!!!\n", "line 2: the prompt '!!!' has no letter"),
        (b"a fox\r\xff", "not UTF-8 text: byte 7"),
        (b"fox " * 250_000, "line 1: the prompt has 1,000,000 characters"),
    ],
)
def test_bad_lines_are_named(
    mmgen_command: Callable[..., Any], tmp_path: Path, stdin: bytes, words: str
) -> None:
    outcome = mmgen_command("generate", "-", stdin=stdin)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert _files(tmp_path) == {}


@pytest.mark.usefixtures("no_model")
def test_an_unknown_setting_is_answered_with_the_known_ones(mmgen_command: Callable[..., Any]) -> None:
    err = mmgen_command("generate", "a fox", "--set", "decoder.stepz=3").err
    assert all(name in err for name in STAGE_NAMES)


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_refuses_is_known_before_loading(
    mmgen_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    outcome = mmgen_command("generate", "a fox")
    monkeypatch.undo()
    assert outcome.code == 3
    assert outcome.err == (
        "error: cannot write into mmgen-out: permission denied: choose a folder that you may write to\n"
    )
    assert _files(tmp_path) == {}


def test_a_picture_carries_what_was_asked_for(mmgen_command: Callable[..., Any], loads: list[Any]) -> None:
    outcome = mmgen_command(
        "generate", "a fox", "--seed", "7", "--steps", "2", "--guidance", "1.5", "--sampler", "ddim",
        "--threshold", "clip", "--negative", "rain", "--set", "decoder.eta=0.5",
        "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert loads == [("storybook", "cpu", "float32")]
    assert outcome.out == "mmgen-out/0001-a-fox-7.png\n"
    request = read_metadata("mmgen-out/0001-a-fox-7.png")["request"]
    assert request is not None
    assert (request.prompts, request.seeds, request.negative_prompt) == (("a fox",), (7,), "rain")
    assert (request.size, request.model, request.model_digest) == ((8, 8), "tiny", "0123456789abcdef")
    assert request.stages["decoder"].to_dict() == {
        "steps": 2, "sampler": "ddim", "eta": 0.5, "guidance_scale": 1.5, "threshold": "clip",
    }  # fmt: skip


def test_same_command_same_bytes(mmgen_command: Callable[..., Any], loads: list[Any], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert mmgen_command("generate", "a fox", "-n", "2", "--seed", "3", "-o", folder).code == 0
    assert len(loads) == 2
    assert list(_files(tmp_path / "one")) == ["0001-a-fox-3.png", "0002-a-fox-4.png"]
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


@pytest.mark.usefixtures("loads")
def test_a_drawn_seed_is_said_and_stored(mmgen_command: Callable[..., Any]) -> None:
    outcome = mmgen_command("generate", "a fox")
    seed = int(outcome.err.split()[1])
    assert f"--seed {seed}" in outcome.err.splitlines()[0]
    assert outcome.out == f"mmgen-out/0001-a-fox-{seed}.png\n"


@pytest.mark.usefixtures("loads")
def test_names_go_on_and_nothing_is_overwritten(mmgen_command: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "mmgen-out"
    folder.mkdir()
    (folder / "0041-mine.png").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine")
    for _ in range(2):
        assert mmgen_command("generate", "a fox", "--seed", "7").code == 0
    files = _files(folder)
    assert list(files) == ["0041-mine.png", "0042-a-fox-7.png", "0043-a-fox-7.png", "notes.txt"]
    assert files["0042-a-fox-7.png"] == files["0043-a-fox-7.png"]
    assert files["0041-mine.png"] == files["notes.txt"] == b"mine"


@pytest.mark.usefixtures("loads")
def test_one_file_is_replaced_only_when_asked(mmgen_command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "old.jpg").write_bytes(b"mine")
    assert mmgen_command("generate", "a fox", "-o", "old.jpg").code == 2
    assert (tmp_path / "old.jpg").read_bytes() == b"mine"
    assert mmgen_command("generate", "a fox", "-o", "old.jpg", "--overwrite").code == 0
    assert _format(tmp_path / "old.jpg") == "JPEG"
    assert (
        mmgen_command("generate", "a fox", "-o", "sub/new.webp", "--format", "webp").out == "sub/new.webp\n"
    )
    assert _format(tmp_path / "sub/new.webp") == "WEBP"


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(("format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_formats(mmgen_command: Callable[..., Any], format: str, suffix: str) -> None:
    outcome = mmgen_command("generate", "a fox", "--seed", "1", "--format", format)
    assert outcome.out == f"mmgen-out/0001-a-fox-1.{suffix}\n"
    assert _format(Path(outcome.out.strip())) == format.upper()


@pytest.mark.usefixtures("loads")
def test_standard_input_is_split_at_line_ends_alone(mmgen_command: Callable[..., Any]) -> None:
    stdin = "\ufeffa fox\r\na\u2028fox\r\n\na\x0bfox\x85and\x0cfox\rfox".encode()
    outcome = mmgen_command("generate", "a lamp", "-", "--seed", "1", "--json", stdin=stdin)
    prompts = [picture["request"]["prompts"][0] for picture in outcome.objects()]
    assert prompts == ["a lamp", "a fox", "a\u2028fox", "a\x0bfox\x85and\x0cfox", "fox"]


@pytest.mark.usefixtures("loads")
def test_json_has_one_object_per_picture(mmgen_command: Callable[..., Any]) -> None:
    outcome = mmgen_command("generate", "a chandelier", "a nan fox", "-n", "2", "--seed", "5", "--json")
    assert outcome.code == 1
    good, bad = outcome.objects()[:2], outcome.objects()[2:]
    assert [picture["file"] for picture in good] == [
        f"mmgen-out/000{i}-a-chandelier-{i + 4}.png" for i in (1, 2)
    ]
    assert good[0]["request"]["seeds"] == [5]
    assert list(good[0]["unknown_words"]) == ["chandelier"]
    assert good[0]["seconds"] >= 0
    assert [picture["file"] for picture in bad] == [None, None]
    assert "NaN" in bad[0]["error"]
    assert "2 of 4 pictures failed" in outcome.err


@pytest.mark.usefixtures("loads")
def test_unknown_words_are_said_once_with_the_nearest(mmgen_command: Callable[..., Any]) -> None:
    outcome = mmgen_command("generate", "a lampe", "-n", "3", "--seed", "5")
    assert [line for line in outcome.err.splitlines() if "nearest" in line] == [
        "tiny has no 'lampe'; nearest: 'lamp'"
    ]


@pytest.mark.usefixtures("loads")
def test_a_failed_picture_leaves_the_others(mmgen_command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = mmgen_command("generate", "a nan", "a fox", "--seed", "5")
    assert outcome.code == 1
    assert [line[:28] for line in outcome.err.splitlines() if "error" in line] == [
        "error: 'a nan', seed 5: pict"
    ]
    assert list(_files(tmp_path / "mmgen-out")) == ["0001-a-fox-5.png"]


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--set", "prior.steps=3"], "no stage 'prior': tiny has decoder"),
        (["--set", "decoder.noise_level=0.1", "--json"],
         "stage 'decoder' does not take noise_level: it takes steps, sampler, eta, guidance_scale, threshold"),
        (["--set", "decoder.eta=0.5", "--sampler", "heun"], "stage 'decoder': sampler 'heun' has no eta"),
    ],
)  # fmt: skip
def test_what_only_the_model_knows_is_refused_by_it(
    mmgen_command: Callable[..., Any], tmp_path: Path, args: list[str], says: str
) -> None:
    outcome = mmgen_command("generate", "a fox", "--seed", "1", *args)
    assert outcome.code == 2
    assert outcome.out == ""
    loading, error = outcome.err.splitlines()
    assert loading == "loading storybook"
    assert error.startswith(f"error: {says}")
    assert _files(tmp_path) == {}


@pytest.mark.usefixtures("loads")
def test_settings_too_long_for_jpeg_are_refused_before_drawing(
    mmgen_command: Callable[..., Any], tmp_path: Path
) -> None:
    args = ["猫" * 10_000, "--negative", "a" + "🦊" * 9_999, "--seed", "1"]
    assert mmgen_command("generate", *args, "--format", "jpeg").code == 2
    assert _files(tmp_path) == {}
    assert mmgen_command("generate", *args).code == 0


@pytest.mark.usefixtures("loads")
def test_an_interruption_keeps_what_is_finished(mmgen_command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = mmgen_command("generate", "a fox", "stop", "a fox", "--seed", "5")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "error: interrupted: what was finished stays"
    assert list(_files(tmp_path / "mmgen-out")) == ["0001-a-fox-5.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    def load(*_args: Any, **_names: Any) -> None:
        signal.raise_signal(number)  # in this thread: another one would take its time

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mmgen.__dict__, "load", load)
    monkeypatch.setattr(main_module, "_silence_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["mmgen", "generate", "a fox", "--seed", "1"])
    before = signal.getsignal(signal.SIGTERM)
    # a process that was begun in the background ignores Ctrl-C
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as caught:
            main_module.run()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
    assert caught.value.code == code
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.usefixtures("loads")
def test_a_full_disk_ends_the_command_with_one_line(
    mmgen_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    outcome = mmgen_command("generate", "a fox", "a lamp", "--seed", "1")
    assert outcome.code == 3
    assert outcome.err.splitlines()[-1].startswith("error: cannot write into mmgen-out: the disk is full")
    assert _files(tmp_path / "mmgen-out") == {}


@pytest.mark.usefixtures("loads")
def test_plain_lines_without_a_terminal(mmgen_command: Callable[..., Any]) -> None:
    lines = mmgen_command("generate", "a fox", "--seed", "1").err.splitlines()
    assert lines[0] == "loading storybook"
    assert lines[1].startswith("1/1 decoder: ")
    assert len(lines) == 2


@pytest.mark.usefixtures("loads")
def test_bars_on_a_terminal(mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert mmgen_command("generate", "a fox", "--seed", "1").code == 0
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal with an error
        while part := os.read(leader, 10_000):
            shown += part
    os.close(leader)
    assert b"1/1 decoder" in shown
    assert b"/3" in shown


def test_a_prompt_cannot_leave_the_folder() -> None:
    assert slug(TRAVERSAL) == "etc-passwd-a-fox"
    assert slug("Ein FUCHS, über\nSeen!") == "ein-fuchs-über-seen"
    assert slug("猫" * 100) == "猫" * 26


@given(st.text().filter(lambda text: any(c.isalnum() for c in text)))
def test_every_prompt_makes_a_name(prompt: str) -> None:
    name = slug(prompt)
    assert 0 < len(name.encode()) <= 80
    assert not set(name) & set('/\\:*?"<>|. \n\0')


def test_every_setting_of_a_stage_can_be_written() -> None:
    written = {
        "steps": ("4", 4), "sampler": ("heun", "heun"), "eta": ("0.5", 0.5), "guidance_scale": ("2", 2.0),
        "guidance_interval": ("0.2,0.8", (0.2, 0.8)), "guidance_rescale": ("0.7", 0.7),
        "guidance_parallel": ("0.4", 0.4), "guidance_limit": ("0.3", 0.3), "threshold": ("0.99", 0.99),
        "threshold_cap": ("1.5", 1.5), "noise_level": ("0.1", 0.1), "resample": ("3", 3),
        "timesteps": ("smart50", "smart50"),
    }  # fmt: skip
    assert set(written) == set(STAGE_NAMES)
    parsed = parse_settings([f"prior.{name}={text}" for name, (text, _) in written.items()])
    assert parsed == {"prior": {name: value for name, (_, value) in written.items()}}
    StageSettings.from_dict({**parsed["prior"], "steps": 50})
    with pytest.raises(UsageError, match="a preset is given as timesteps=smart50"):
        parse_settings(["decoder.steps=smart50"])
    assert (parse_threshold("clip"), parse_threshold("0.9")) == ("clip", 0.9)


def test_options_are_what_the_command_takes() -> None:
    names = {parameter.name for parameter in generate_module.generate.params if parameter.expose_value}
    assert names == set(generate_module.Options.__dataclass_fields__)


# ---- kept to some memory -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = write_tiny(tmp_path_factory.mktemp("models") / "tiny")
    fast = ("--set", "prior.steps=2", "--set", "decoder.steps=2")
    return ("--model", str(folder), "--device", "cpu", "--dtype", "float32", *fast)


def picture(mmgen_command: Command, *args: str) -> bytes:
    done = mmgen_command("generate", "a cat", "--seed", "3", *args, "-o", "now.png", "--overwrite")
    assert done.code == 0, done.err
    return Path("now.png").read_bytes()


def megabytes(count: int) -> str:
    return f"{count / 1e6:.6f}MB"


def test_in_less_memory_the_picture_is_the_same(
    mmgen_command: Command, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (*model, "--size", "16")
    (whole,) = mmgen_command("plan", *small, "--json").objects()
    (batch,) = mmgen_command("plan", *small, "--json", "--prompts", "1").objects()
    drawn = picture(mmgen_command, *small)
    assert picture(mmgen_command, *small, "--memory", megabytes(whole["least"])) == drawn
    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("all weights were read"))
    assert picture(mmgen_command, *small, "--memory", megabytes(batch["least"] + 1000)) == drawn


def test_what_cannot_fit_is_refused_as_it_is_planned(
    mmgen_command: Command, model: tuple[str, ...], tmp_path: Path
) -> None:
    small = (*model, "--size", "16", "--memory", "1MB")
    planned = mmgen_command("plan", *small)
    done = mmgen_command("generate", "a cat", "--seed", "3", *small)
    assert (planned.code, done.code) == (3, 3)
    assert done.err.splitlines()[-1] == planned.err.splitlines()[-1]
    assert "at 16 px needs" in done.err
    assert _files(tmp_path) == {}


def test_in_less_memory_large_pictures_are_those_of_a_batch(
    mmgen_command: Command, model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmgen.render.planning.KEPT", 0)
    (whole,) = mmgen_command("plan", *model, "--json").objects()
    less = ("--memory", megabytes(whole["least"] - 200_000))
    done = mmgen_command("generate", "a cat", "--seed", "3", *model, *less)
    assert "memory is short in stage super-res-256: in squares of 128 px" in done.err
    (tmp_path / "prompts.txt").write_text("a cat\n", "utf-8")
    assert mmgen_command("batch", "prompts.txt", "--seed", "3", *model, *less, "-o", "batch").code == 0
    (other,) = (tmp_path / "batch").glob("*.png")
    found = Path(done.out.strip()).read_bytes()
    assert found == other.read_bytes()
    assert found != picture(mmgen_command, *model)


def _format(path: Path) -> str | None:
    with Image.open(path) as image:
        return image.format


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
