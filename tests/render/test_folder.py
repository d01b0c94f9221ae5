"""A folder of pictures loses nothing: not to a disk with errors, a second process, or a person who tidies up.

What a whole run makes of crashes, full disks and the like, tests/faults shows.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmgen import temporary
from mmgen.errors import MachineError, UsageError
from mmgen.images import FORMATS, SUFFIXES, Format, encode, read_metadata
from mmgen.render import folder as folder_module
from mmgen.render import manifest
from mmgen.render.folder import Folder
from mmgen.render.jobs import Job
from mmgen.temporary import remove_stale, temporary_name
from mmgen.types import Request, StageSettings

ROOT = Path(__file__).resolve().parents[2]
CALLS = ("open", "write", "fsync", "close", "link", "unlink", "replace", "lseek", "read")
"""Of os: all that a commit does to the disk."""


def job(number: int, prompt: str = "a fox", format: Format = "png") -> Job:
    request = Request((prompt,), (number,), (16, 16), "", {"decoder": StageSettings(steps=2)}, model="tiny")
    return Job(number, number, request, f"{number:06d}{SUFFIXES[format]}")


def picture(job: Job) -> Image.Image:
    return Image.linear_gradient("L").resize((16, 16)).rotate(7 * job.index).convert("RGB")


def finish(path: Path, jobs: list[Job], format: Format = "png") -> list[Path]:
    """What a run does: whatever is not there is committed."""
    folder = Folder(path, format)
    return [folder.find(one) or folder.commit(one, picture(one)) for one in jobs]


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the manifest, which holds times."""
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != manifest.NAME}


# ---- what is there -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_is_found_under_any_name(tmp_path: Path, format: Format) -> None:
    one, other = job(1, "a fox 猫\n--steps", format), job(2, "a dog", format)
    folder = Folder(tmp_path / "new" / "out", format)
    assert folder.find(one) is None
    path = folder.commit(one, picture(one), seconds=1.5, peak_bytes=7)
    assert path == folder.path / one.name
    assert path.read_bytes() == encode(picture(one), format, one.request)
    assert (folder.find(one), folder.find(other)) == (path, None)
    assert manifest.read(folder.path) == {
        one.key: manifest.Entry(
            one.key, "done", path.name, manifest.entry_of(path, "").sha256, path.stat().st_size, 1.5, 7, "", 1, 1
        )
    }  # fmt: skip
    moved = path.rename(path.with_name(f"mine{path.suffix.upper()}"))
    later = Folder(folder.path, format)
    assert (later.find(one), later.find(other)) == (moved, None)
    moved.unlink()
    assert Folder(folder.path, format).find(one) is None


def test_a_picture_of_another_format_does_not_count(tmp_path: Path) -> None:
    one = job(1)
    Folder(tmp_path).commit(one, picture(one))
    webp = job(1, format="webp")
    assert webp.key == one.key
    assert Folder(tmp_path, "webp").find(webp) is None
    assert Folder(tmp_path, "webp").commit(webp, picture(webp)).name == "000001.webp"
    assert Folder(tmp_path).find(one) == tmp_path / one.name


def _without(_text: str) -> str | None:
    return None


def _cut(text: str) -> str:
    return text[: len(text) // 2 - 20]


def _nonsense(text: str) -> str:
    return "{\n\0" + text.replace("done", "dine")


def _wrong_files(text: str) -> str:
    """Each key with the next one's file, sha256 and all."""
    entries = [json.loads(line) for line in text.splitlines()]
    keys = [entry["key"] for entry in entries]
    return "".join(
        json.dumps({**entry, "key": key}) + "\n"
        for entry, key in zip(entries, keys[1:] + keys[:1], strict=True)
    )


def _of_what_is_not_there(text: str) -> str:
    entry = json.loads(text.splitlines()[0])
    return json.dumps({**entry, "key": job(9).key}) + "\n" + json.dumps({**entry, "file": "none.png"})


@pytest.mark.parametrize("edit", [_without, _cut, _nonsense, _wrong_files, _of_what_is_not_there, str])
def test_the_manifest_changes_nothing_but_speed(tmp_path: Path, edit: Callable[[str], str | None]) -> None:
    jobs = [job(number) for number in range(1, 5)]
    paths = finish(tmp_path, jobs)
    paths[2] = paths[2].rename(tmp_path / "moved.png")
    text = edit((tmp_path / manifest.NAME).read_text("utf-8"))
    (tmp_path / manifest.NAME).unlink()
    if text is not None:
        (tmp_path / manifest.NAME).write_text(text, "utf-8")
    before = contents(tmp_path)
    assert [Folder(tmp_path).find(one) for one in [*jobs, job(9)]] == [*paths, None]
    assert finish(tmp_path, jobs) == paths
    assert contents(tmp_path) == before


def test_the_manifest_spares_the_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(number) for number in range(1, 4)]
    paths = finish(tmp_path, jobs)
    decoded: list[Path] = []

    def is_whole(path: Path) -> bool:
        decoded.append(path)
        return manifest.is_whole(path)

    monkeypatch.setattr(folder_module, "is_whole", is_whole)
    assert [Folder(tmp_path).find(one) for one in jobs] == paths
    assert decoded == []
    (tmp_path / manifest.NAME).unlink()
    assert [Folder(tmp_path).find(one) for one in jobs] == paths
    assert decoded == paths


def test_a_picture_that_somebody_edited_stays(tmp_path: Path) -> None:
    one = job(1)
    (path,) = finish(tmp_path, [one])
    edited = encode(Image.new("RGB", (16, 16), "red"), "png", one.request)
    path.write_bytes(edited)
    assert finish(tmp_path, [one]) == [path]
    assert path.read_bytes() == edited


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_that_is_cut_off_is_made_again(tmp_path: Path, format: Format) -> None:
    one = job(1, format=format)
    (path,) = finish(tmp_path, [one], format)
    whole = path.read_bytes()
    lengths = {0, *range(1, len(whole), 16)} if format == "png" else {0}
    for length in lengths:
        path.write_bytes(whole[:length])
        folder = Folder(tmp_path, format)
        assert folder.find(one) is None
        if length and manifest.key_in(path) is None:
            with pytest.raises(UsageError, match="is another picture"):  # for all that it says
                folder.commit(one, picture(one))
        else:
            folder.commit(one, picture(one))
            assert path.read_bytes() == whole
    assert os.listdir(tmp_path).count(path.name) == 1


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    one = job(1)
    (path,) = finish(tmp_path, [one])
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"IDAT") + 20] ^= 1
    path.write_bytes(damaged)
    assert Folder(tmp_path).find(one) is None
    assert finish(tmp_path, [one]) == [path]
    assert path.read_bytes() == encode(picture(one), "png", one.request)


def test_a_name_that_is_taken_is_an_error_of_its_job_alone(tmp_path: Path) -> None:
    jobs = [job(number) for number in (1, 2)]
    theirs = encode(picture(jobs[0]), "png", job(7).request)
    for mine in (b"mine", theirs):
        (tmp_path / jobs[0].name).write_bytes(mine)
        folder = Folder(tmp_path)
        with pytest.raises(UsageError, match=r"000001\.png exists already and is another picture"):
            folder.commit(jobs[0], picture(jobs[0]))
        assert (tmp_path / jobs[0].name).read_bytes() == mine
    folder.commit(jobs[1], picture(jobs[1]))
    replacing = Folder(tmp_path, overwrite=True)
    replacing.commit(jobs[0], picture(jobs[0]))
    assert read_metadata(tmp_path / jobs[0].name)["request"] == jobs[0].request
    assert sorted(contents(tmp_path)) == [one.name for one in jobs]


def test_failures_are_known_until_the_picture_is_there(tmp_path: Path) -> None:
    one = job(1)
    folder = Folder(tmp_path)
    assert folder.failure(one) is None
    folder.fail(one, "it held NaN", seconds=2.0)
    for again in (folder, Folder(tmp_path)):
        assert again.failure(one) == "it held NaN"
        assert again.find(one) is None
    folder.commit(one, picture(one))
    assert Folder(tmp_path).failure(one) is None


# ---- crashes -------------------------------------------------------------------------------------


def _child(function: str, path: Path) -> subprocess.Popen[str]:
    """A process of its own that calls a function of this file."""
    code = f"from pathlib import Path; from tests.render.test_folder import {function} as f; f(Path({str(path)!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_at_any_step_is_one_line_and_the_next_run_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    jobs = [job(1), job(2)]
    finish(tmp_path / "whole", jobs)
    real, step = getattr(os, name), 0
    failed = True
    while failed:
        step += 1
        calls = itertools.count(1)
        path = tmp_path / f"{step}"
        folder = Folder(path)

        def call(*args: object, calls: Iterator[int] = calls, step: int = step) -> object:
            if next(calls) == step:
                if name == "close":
                    real(*args)
                raise OSError(code, os.strerror(code))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            try:
                folder.commit(jobs[0], picture(jobs[0]))
            except MachineError as error:
                assert "\n" not in str(error)
        failed = next(calls) > step
        finish(path, jobs)
        left = contents(path)
        if name == "unlink":  # what could not be removed stays as long as its process lives
            left = {file: data for file, data in left.items() if not file.endswith(".tmp")}
        assert left == contents(tmp_path / "whole")


def commit_all(path: Path) -> None:
    """Twenty pictures, at the word of whoever started this process."""
    jobs = [job(number) for number in range(1, 21)]
    Folder(path)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    input()
    finish(path, jobs)


@pytest.mark.parametrize("writers", [2, 4])
def test_several_processes_end_with_each_picture_once(tmp_path: Path, writers: int) -> None:
    finish(tmp_path / "whole", [job(number) for number in range(1, 21)])
    shared = tmp_path / "shared"
    children = [_child("commit_all", shared) for _ in range(writers)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert contents(shared) == contents(tmp_path / "whole")
    assert {entry.file for entry in manifest.read(shared).values()} == set(contents(shared))


# ---- temporaries ---------------------------------------------------------------------------------


def leave(path: Path) -> None:
    """A temporary file and a temporary folder, and their process alive until it is told."""
    (path / temporary_name()).write_bytes(b"half")
    (path / temporary_name()).mkdir()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    input()


def test_what_the_dead_have_left_goes_and_what_the_living_need_stays(tmp_path: Path) -> None:
    mine = tmp_path / temporary_name()
    mine.write_bytes(b"half")
    with _child("leave", tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        Folder(tmp_path)
        assert len(os.listdir(tmp_path)) == 3
        child.kill()
        while Path(f"/proc/{child.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        # not yet waited for: a process that is dead and still has its number
        Folder(tmp_path)
        assert os.listdir(tmp_path) == [mine.name]
    assert mine.read_bytes() == b"half"


def _renamed(name: str, **changes: str) -> str:
    machine, boot, pid, start, token = name.removeprefix(".mmgen-").removesuffix(".tmp").split("-")
    values = {"machine": machine, "boot": boot, "pid": pid, "start": start, "token": token, **changes}
    return f".mmgen-{'-'.join(values.values())}.tmp"


def test_a_number_that_is_used_again_and_a_reboot_are_noticed(tmp_path: Path) -> None:
    for changes in ({"start": "1"}, {"boot": "0" * 8}, {"pid": "999999999"}):
        (tmp_path / _renamed(temporary_name(), **changes)).write_bytes(b"half")
    assert len(os.listdir(tmp_path)) == 3
    remove_stale(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_machine_of_the_same_name_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / _renamed(temporary_name(), boot="0" * 8)).write_bytes(b"half")
    temporary._place.cache_clear()
    monkeypatch.setattr(temporary, "_installation", lambda: "another")
    try:
        remove_stale(tmp_path)
        assert len(os.listdir(tmp_path)) == 1
    finally:
        temporary._place.cache_clear()


def test_where_nobody_can_be_asked_a_day_must_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = _renamed(temporary_name(), machine="0" * 8)
    monkeypatch.setattr(temporary, "_place", lambda: None)
    plain = temporary_name()
    assert len(plain) < len(other)
    for name in (other, plain, ".mmgen-of-yesterday.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"")
    remove_stale(tmp_path)
    assert len(os.listdir(tmp_path)) == 4
    now = time.time()
    os.utime(tmp_path / other, (now, now - 2 * temporary.DAY))
    os.utime(tmp_path / plain, (now, now + 2 * temporary.DAY))  # the clock was set back
    remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mmgen-of-yesterday.tmp", "mine.tmp"]


# ---- disks and folders ---------------------------------------------------------------------------


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(MachineError, match="there is a file where a folder is needed"):
        Folder(tmp_path / "out")
