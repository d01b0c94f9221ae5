"""What is seen besides the files: a preview that is never half, thumbnails in a terminal, one sheet of all pictures."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import pty
import re
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mmgen
from mmgen import attention
from mmgen.cli import preview as preview_module
from mmgen.cli.preview import (
    MARK,
    MAX_ON_SHEET,
    PreviewFile,
    Sheet,
    as_preview,
    encode_preview,
    inline_protocol,
    is_preview,
    iterm2,
    kitty,
    plan_preview,
)
from mmgen.errors import MachineError
from mmgen.images import SUFFIXES, Format, encode, read_metadata, to_pil
from mmgen.schedulers.samplers import Step
from mmgen.thumbnails import thumbnail

REFUSED = {
    "no suffix": ["--preview", "now"],
    "empty": ["--preview", ""],
    "another format": ["--preview", "now.gif"],
    "no text": ["--preview", "a\0.png"],
    "no folder": ["--preview", "nowhere/now.png"],
    "below a file": ["--preview", "mine.png/now.png"],
    "a picture of mine": ["--preview", "mine.png"],
    "a file of mine": ["--preview", "notes.jpg"],
    "a folder": ["--preview", "folder.webp"],
    "name too long": ["--preview", "x" * 300 + ".png"],
    "what out names": ["--preview", "new.png", "--out", "new.png"],
    "what out names otherwise": ["--preview", "./folder.webp/../new.png", "--out", "new.png"],
    "sheet too large": ["--grid", "-n", str(MAX_ON_SHEET + 1)],
    "attention unknown": ["--attention", "magic"],
    "attention empty": ["--attention", ""],
}
SHOWN_IN_KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")
SHOWN_IN_ITERM2 = re.compile(r"\x1b\]1337;File=inline=1;size=(\d+):([^\x07]*)\x07")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: Any, **_names: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setitem(mmgen.__dict__, "load", load)


@pytest.fixture
def kernel_of_before() -> Iterator[None]:
    before = attention.kernel()
    yield
    attention.use(before)


def _step(image: torch.Tensor) -> Step:
    return Step("decoder", 1, 2, 0.5, image, image)


def _pixels(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as image:
        return image.size, image.tobytes()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("args", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_shown_is_one_line_before_anything_is_loaded(
    mmgen_command: Callable[..., Any], tmp_path: Path, args: list[str]
) -> None:
    mine = encode(Image.new("RGB", (4, 4)), "png")
    (tmp_path / "mine.png").write_bytes(mine)
    (tmp_path / "notes.jpg").write_bytes(b"mine")
    (tmp_path / "folder.webp").mkdir()
    outcome = mmgen_command("generate", "a fox", *args)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert re.fullmatch(r"error: .*\n", outcome.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.webp", "mine.png", "notes.jpg"]
    assert (tmp_path / "mine.png").read_bytes() == mine
    assert (tmp_path / "notes.jpg").read_bytes() == b"mine"


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_takes_no_preview_is_known_before_loading(
    mmgen_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def refuse(path: Any, *args: Any) -> int:
        if Path(path).parent.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, *args)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "open", refuse)
    outcome = mmgen_command("generate", "a fox", "--preview", "locked/now.png")
    monkeypatch.undo()
    assert outcome.code == 3
    assert outcome.err.startswith("error: cannot write into locked: permission denied")
    assert outcome.err.count("\n") == 1


# ---- the picture so far --------------------------------------------------------------------------


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("format", SUFFIXES)
def test_the_preview_follows_every_step(
    mmgen_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    shown: list[bool] = []
    original = preview_module.write_new

    def write_new(path: Path, data: bytes, *, overwrite: bool) -> Path:
        written = original(path, data, overwrite=overwrite)
        shown.append(is_preview(path))
        return written

    monkeypatch.setattr(preview_module, "write_new", write_new)
    file = f"now{SUFFIXES[format]}"
    for _ in range(2):  # a preview of ours is replaced by the next command
        outcome = mmgen_command(
            "generate", "a fox", "a lamp", "--seed", "1", "--preview", file, "--steps", "4"
        )
        assert outcome.code == 0, outcome.err
        assert len(outcome.out.splitlines()) == 2
    assert shown == [True] * 4 * 2 * 2
    finished = _pixels(tmp_path / outcome.out.splitlines()[-1])
    assert _pixels(tmp_path / file)[0] == finished[0]
    assert (_pixels(tmp_path / file) == finished) == (format == "png")  # the others lose a little
    assert read_metadata(tmp_path / file)["request"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mmgen-out", file]


@pytest.mark.usefixtures("loads")
def test_a_preview_changes_no_picture(mmgen_command: Callable[..., Any], tmp_path: Path) -> None:
    mmgen_command("generate", "a fox", "--seed", "1", "-o", "without.png")
    mmgen_command("generate", "a fox", "--seed", "1", "-o", "with.png", "--preview", "now.png", "--grid")
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()


@pytest.mark.usefixtures("loads")
def test_a_guess_that_is_not_finite_fails_its_picture_alone(mmgen_command: Callable[..., Any]) -> None:
    outcome = mmgen_command("generate", "a nan", "a fox", "--seed", "5", "--preview", "now.png")
    assert outcome.code == 1
    assert outcome.out == "mmgen-out/0001-a-fox-5.png\n"
    assert "error: 'a nan', seed 5: picture 1 of 1 holds NaN" in outcome.err


def test_a_step_without_a_picture_leaves_the_file(tmp_path: Path) -> None:
    file = PreviewFile(tmp_path / "now.png", "png")
    file.show(_step(torch.zeros(1, 16)), (64, 64))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PreviewFile(tmp_path / "now.png", "png")
    file.show(_step(torch.zeros(1, 3, 8, 8)), (64, 64))
    before = file.path.read_bytes()
    original, written = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal written
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = original(descriptor, data[:10])
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MachineError, match="the disk is full"):
        file.show(_step(torch.ones(1, 3, 8, 8)), (64, 64))
    monkeypatch.undo()
    assert written == 10
    assert file.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file.path]


@pytest.mark.parametrize(
    ("drawn", "finished", "shown"),
    [
        ((64, 64), (1024, 1024), (512, 512)),
        ((1024, 1024), (1024, 1024), (512, 512)),
        ((64, 64), (256, 256), (256, 256)),
        ((64, 64), (64, 64), (64, 64)),
        ((64, 32), (2048, 1024), (512, 256)),
        ((64, 1), (6400, 1), (512, 1)),
    ],
)
def test_previews_of_all_stages_have_one_size(
    drawn: tuple[int, int], finished: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert as_preview(Image.new("RGB", drawn), finished).size == shown


def test_a_small_guess_is_enlarged_smoothly() -> None:
    small = Image.new("RGB", (2, 1), "black")
    small.putpixel((1, 0), (255, 255, 255))
    row = as_preview(small, (64, 1)).getchannel("R").tobytes()
    assert len(set(row)) > 10
    assert list(row) == sorted(row)


@pytest.mark.parametrize("format", SUFFIXES)
def test_only_a_whole_file_with_the_mark_is_a_preview(tmp_path: Path, format: Format) -> None:
    image = Image.new("RGB", (8, 8), "red")
    path = tmp_path / f"a{SUFFIXES[format]}"
    assert not is_preview(path)
    path.write_bytes(encode_preview(image, format))
    assert is_preview(path)
    assert plan_preview(str(path), None) == PreviewFile(path, format)
    link = tmp_path / f"link{SUFFIXES[format]}"
    link.symlink_to(path)
    assert is_preview(link)
    path.write_bytes(path.read_bytes()[:40])
    assert not is_preview(path)
    path.write_bytes(encode(image, format))
    assert not is_preview(path)
    path.write_bytes(MARK.encode())
    assert not is_preview(path)


@given(st.binary(max_size=200))
def test_nonsense_is_no_preview(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "nonsense.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert not is_preview(path)


# ---- a thumbnail in the terminal -----------------------------------------------------------------


@given(st.binary(min_size=1, max_size=20_000))
def test_what_kitty_is_sent_is_the_file(data: bytes) -> None:
    text = kitty(data)
    found = SHOWN_IN_KITTY.findall(text)
    assert SHOWN_IN_KITTY.sub("", text) == ""
    assert base64.standard_b64decode("".join(piece for _, piece in found)) == data
    assert all(0 < len(piece) <= 4096 for _, piece in found)
    assert all(len(piece) % 4 == 0 for _, piece in found[:-1])
    keys = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in found]
    assert keys[0] == {"a": "T", "f": "100", "q": "2", "m": str(int(len(found) > 1))}
    assert keys[1:] == [*[{"m": "1"}] * (len(found) - 2), *[{"m": "0"}] * (len(found) > 1)]


@given(st.binary(min_size=1, max_size=20_000))
def test_what_iterm2_is_sent_is_the_file(data: bytes) -> None:
    found = SHOWN_IN_ITERM2.fullmatch(iterm2(data))
    assert found is not None
    assert (int(found[1]), base64.standard_b64decode(found[2])) == (len(data), data)


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, kitty),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, kitty),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, iterm2),
        ({"TERM_PROGRAM": "WezTerm"}, iterm2),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app", "STY": "1.a"}, None),
        ({}, None),
    ],
)
def test_only_a_terminal_that_is_known_to_show_pictures_is_sent_any(
    environ: dict[str, str], protocol: Callable[[bytes], str] | None
) -> None:
    assert inline_protocol(environ, terminal=True) is protocol
    assert inline_protocol(environ, terminal=False) is None


def test_a_thumbnail_is_small_and_a_copy() -> None:
    large = Image.new("RGB", (1024, 512))
    assert thumbnail(large).size == (256, 128)
    assert large.size == (1024, 512)
    assert thumbnail(Image.new("RGB", (8, 8))).size == (8, 8)


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch, command: Callable[[], Any]) -> str:
    """What a command writes to stderr where that is a terminal."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert command().code == 0
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal with an error
        while part := os.read(leader, 10_000):
            shown += part
    os.close(leader)
    return shown.decode()


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("more", [[], ["--no-show"]], ids=["shown", "not shown"])
def test_a_terminal_shows_each_picture_unless_told_not_to(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: list[str]
) -> None:
    for name in ("TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    shown = _on_a_terminal(
        monkeypatch, lambda: mmgen_command("generate", "a fox", "--seed", "1", "-o", "a.png", *more)
    )
    assert "1/1 decoder" in shown
    assert ("\x1b_G" not in shown) == bool(more)
    if not more:
        (tmp_path / "shown.png").write_bytes(
            base64.standard_b64decode("".join(piece for _, piece in SHOWN_IN_KITTY.findall(shown)))
        )
        assert _pixels(tmp_path / "shown.png") == _pixels(tmp_path / "a.png")


@pytest.mark.usefixtures("loads")
def test_nothing_but_a_terminal_is_sent_pictures(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    outcome = mmgen_command("generate", "a fox", "--seed", "1")
    assert "\x1b" not in outcome.out + outcome.err


# ---- all pictures on one sheet -------------------------------------------------------------------


@pytest.mark.usefixtures("loads")
def test_one_sheet_of_all_pictures_that_overwrites_nothing(
    mmgen_command: Callable[..., Any], tmp_path: Path
) -> None:
    args = ["generate", "a fox", "a nan", "a lamp", "-n", "2", "--seed", "5", "--grid", "-o", "out", "--json"]
    for number in (1, 2):
        outcome = mmgen_command(*args)
        assert outcome.code == 1
        assert len(outcome.objects()) == 6
        assert f"all on one sheet: out/grid-000{number}.png\n" in outcome.err
    (width, height), _ = _pixels(tmp_path / "out/grid-0001.png")
    assert width == 2 * 8
    assert height > 2 * 8
    assert (tmp_path / "out/grid-0001.png").read_bytes() == (tmp_path / "out/grid-0002.png").read_bytes()
    metadata = read_metadata(tmp_path / "out/grid-0001.png")
    assert metadata["request"] is None
    assert metadata["label"] is not None


@pytest.mark.usefixtures("loads")
def test_without_a_picture_there_is_no_sheet(mmgen_command: Callable[..., Any], tmp_path: Path) -> None:
    assert mmgen_command("generate", "a nan", "--seed", "5", "--grid", "-o", "out").code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("pictures", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_a_sheet_is_about_as_wide_as_high(tmp_path: Path, pictures: int, columns: int) -> None:
    sheet = Sheet()
    for seed, image in enumerate(to_pil(torch.zeros(pictures, 3, 300, 300))):
        sheet.add(image, "a fox " * 100, seed)
    path = sheet.save(tmp_path)
    assert path == tmp_path / "grid-0001.png"
    assert _pixels(path)[0][0] == columns * 256
    assert all(len(caption) < 140 for caption in sheet.captions)
    assert sheet.captions[-1].endswith(f", seed {pictures - 1}")


# ---- the attention kernel ------------------------------------------------------------------------


@pytest.mark.usefixtures("loads", "kernel_of_before")
def test_the_attention_kernel_is_the_one_asked_for(mmgen_command: Callable[..., Any]) -> None:
    attention.use("sdpa")
    assert mmgen_command("generate", "a fox", "--seed", "1").code == 0
    assert attention.kernel() == "sdpa"
    assert mmgen_command("generate", "a fox", "--seed", "1", "--attention", "sliced").code == 0
    assert attention.kernel() == "sliced"


@pytest.mark.usefixtures("no_model", "kernel_of_before")
def test_an_unknown_attention_kernel_is_answered_with_the_known_ones(
    mmgen_command: Callable[..., Any],
) -> None:
    outcome = mmgen_command("generate", "a fox", "--attention", "magic")
    assert outcome.err == "error: no attention kernel 'magic': choose one of sdpa, xformers, sliced\n"
