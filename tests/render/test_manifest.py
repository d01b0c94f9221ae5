"""The index of a folder: lines that last, that a crash does not mix, and that can be made again."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmgen.errors import MachineError
from mmgen.images import encode
from mmgen.render import manifest
from mmgen.render.jobs import key_of
from mmgen.render.manifest import NAME, Entry
from mmgen.types import Request, StageSettings

DONE = Entry("a" * 64, "done", "1-ein-fuchs-für-猫.png", "b" * 64, 1234, 1.5, 99, line=3, index=2)
FAILED = Entry("c" * 64, "failed", error="NaN\nin picture\u2028 \udc80 'x'", seconds=0.25, line=4, index=3)


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) == {}
    for entry in (DONE, FAILED):
        manifest.append(tmp_path, entry)
    assert manifest.read(tmp_path) == {DONE.key: DONE, FAILED.key: FAILED}
    lines = (tmp_path / NAME).read_bytes().split(b"\n")
    assert len(lines) == 3
    assert "für-猫".encode() in lines[0]


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    mended = replace(DONE, key=FAILED.key)
    for entry in (DONE, FAILED, mended):
        manifest.append(tmp_path, entry)
    assert manifest.read(tmp_path) == {DONE.key: DONE, FAILED.key: mended}


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    manifest.append(tmp_path, DONE)
    whole = (tmp_path / NAME).read_bytes()
    for length in range(len(whole)):
        (tmp_path / NAME).write_bytes(whole + whole[:length])
        assert manifest.read(tmp_path) == {DONE.key: DONE}
        manifest.append(tmp_path, FAILED)
        assert manifest.read(tmp_path) == {DONE.key: DONE, FAILED.key: FAILED}


@settings(max_examples=200)
@given(data=st.lists(st.one_of(st.binary(max_size=40), st.just(b"\n"), st.just(b'{"key": 1}'))))
def test_lines_that_mean_nothing_here_stay(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    odd = b"".join(data)
    (folder / NAME).write_bytes(odd)
    assert manifest.read(folder) == {}
    manifest.append(folder, DONE)
    assert manifest.read(folder) == {DONE.key: DONE}
    assert (folder / NAME).read_bytes().startswith(odd)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../other.png"}, {"file": "/etc/passwd"}, {"file": 3}, {"state": "perhaps"}, {"bytes": "9"},
        {"line": True}, {"sha256": None}, {"key": ["a"]}, {"seconds": "long"},
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_meant_is_none(tmp_path: Path, changes: dict[str, object]) -> None:
    manifest.append(tmp_path, DONE)
    values = json.loads((tmp_path / NAME).read_text("utf-8"))
    (tmp_path / NAME).write_text(json.dumps({**values, "of_tomorrow": 1}), "utf-8")
    assert manifest.read(tmp_path) == {DONE.key: DONE}
    (tmp_path / NAME).write_text(json.dumps({**values, **changes}), "utf-8")
    assert manifest.read(tmp_path) == {}


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MachineError, match="the disk is full"):
        manifest.append(tmp_path, DONE)


def test_a_disk_that_takes_half_a_line_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(MachineError, match="the disk is full"):
        manifest.append(tmp_path, DONE)
    monkeypatch.undo()
    manifest.append(tmp_path, FAILED)
    assert manifest.read(tmp_path) == {FAILED.key: FAILED}


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    for use in (manifest.read, manifest.rebuild):
        with pytest.raises(
            MachineError, match=r"cannot read .*manifest\.jsonl: there is a folder where a file is"
        ):
            use(tmp_path)
    with pytest.raises(MachineError, match="cannot write into"):
        manifest.append(tmp_path, DONE)
    with pytest.raises(MachineError, match=r"cannot read .*none: it does not exist"):
        manifest.rebuild(tmp_path / "none")


def test_it_is_made_again_from_the_pictures(tmp_path: Path) -> None:
    requests = [
        Request(("a fox",), (seed,), (8, 8), "", {"decoder": StageSettings(steps=2)}) for seed in range(4)
    ]
    keys = [key_of(request) for request in requests]
    for name, format, request in zip(
        ("a.png", "b.JPEG", "c.webp", "cut.png"), ("png", "jpeg", "webp", "png"), requests, strict=True
    ):
        (tmp_path / name).write_bytes(encode(Image.new("RGB", (8, 8)), format, request))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-30])
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    (tmp_path / "notes.txt").write_text("a fox")
    assert manifest.rebuild(tmp_path) == 3
    made = manifest.read(tmp_path)
    assert {entry.key: entry.file for entry in made.values()} == dict(
        zip(keys, ("a.png", "b.JPEG", "c.webp"), strict=False)
    )
    for entry in made.values():
        assert manifest.entry_of(tmp_path / entry.file, entry.key) == entry
    # what a picture took is kept while its file is the same
    known, changed = (
        replace(made[keys[0]], seconds=2.5, line=7),
        replace(made[keys[1]], sha256="d" * 64, line=8),
    )
    for entry in (known, changed, FAILED):
        manifest.append(tmp_path, entry)
    os.rename(tmp_path / "a.png", tmp_path / "other.png")
    assert manifest.rebuild(tmp_path) == 3
    assert manifest.read(tmp_path) == {**made, keys[0]: replace(known, file="other.png")}


def test_where_it_cannot_be_made_again_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest.append(tmp_path, DONE)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="the disk is full"):
        manifest.rebuild(tmp_path)
    assert manifest.read(tmp_path) == {DONE.key: DONE}
    assert os.listdir(tmp_path) == [NAME]
