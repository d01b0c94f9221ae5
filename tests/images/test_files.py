"""Files are written whole or not at all, over nothing, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmgen.errors import MachineError, MmgenError, UsageError
from mmgen.images import check_folder, make_folder, write_new

DATA = os.urandom(100_000)


def _raise(code: int) -> object:
    def fail(*_args: object, **_names: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert write_new(path, DATA) == path
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a.png"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_new(tmp_path / "a", DATA)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, data[:1000]))
    write_new(tmp_path / "a", DATA)
    assert (tmp_path / "a").read_bytes() == DATA


def test_an_existing_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a\.png exists already"):
        write_new(path, DATA)
    assert path.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_dangling_link_counts_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists already"):
        write_new(tmp_path / "a", DATA)
    assert not (tmp_path / "nowhere").exists()


def test_the_next_free_name_is_taken_if_asked_for(tmp_path: Path) -> None:
    names = [tmp_path / name for name in "abc"]
    for name in names[:2]:
        name.write_bytes(b"mine")
    assert write_new(names[0], DATA, alternatives=names[1:]) == names[2]
    assert names[2].read_bytes() == DATA
    assert {name.read_bytes() for name in names[:2]} == {b"mine"}


def test_overwriting_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    assert write_new(tmp_path / "a", DATA, overwrite=True) == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a"]


def test_many_writers_never_share_a_name(tmp_path: Path) -> None:
    names = [tmp_path / f"{i:04d}" for i in range(32)]
    payloads = [bytes([i]) * 1000 for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda data: write_new(names[0], data, alternatives=names[1:]), payloads))
    assert sorted(taken) == names
    assert [path.read_bytes() for path in taken] == payloads


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_nothing_is_overwritten_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "link", _raise(code))
    assert write_new(tmp_path / "a", DATA) == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == DATA
    with pytest.raises(UsageError, match="exists already"):
        write_new(tmp_path / "a", b"other")
    assert write_new(tmp_path / "a", b"other", alternatives=[tmp_path / "b"]) == tmp_path / "b"
    assert (tmp_path / "a").read_bytes() == DATA
    monkeypatch.setattr(os, "replace", _raise(errno.EIO))
    with pytest.raises(MachineError):
        write_new(tmp_path / "c", DATA)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, _raise(errno.ENOSPC))
    with pytest.raises(MachineError, match="the disk is full") as caught:
        write_new(tmp_path / "a", DATA)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@contextmanager
def small_files_only() -> Iterator[None]:
    """The system itself refuses to write more than 4096 bytes into a file.

    Not a fixture: the test runner must be able to write its own log before it is taken down.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_the_system_refuses_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"mine")
    with small_files_only(), pytest.raises(MachineError, match="File too large"):
        write_new(tmp_path / "old", DATA, overwrite=True)
    assert (tmp_path / "old").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EDQUOT, "your share of the disk"),
    ],
)
def test_a_refused_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr(os, "open", _raise(code))
    with pytest.raises(MachineError, match=words):
        write_new(tmp_path / "a", DATA)
    with pytest.raises(MachineError, match=words):
        check_folder(tmp_path)


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, words in (
        (tmp_path / "none" / "a", "the folder does not exist"),
        (tmp_path / "file" / "a", "there is a file where a folder is needed"),
        (tmp_path / ("x" * 256), "the name is too long"),
    ):
        with pytest.raises(MachineError, match=words):
            write_new(path, DATA)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_tried_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "newer")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 256)):
        with pytest.raises(MmgenError):
            check_folder(bad)
        with pytest.raises(MachineError):
            make_folder(bad)
    assert os.listdir(tmp_path) == ["file"]
    make_folder(tmp_path / "new" / "newer")
    make_folder(tmp_path / "new" / "newer")
    assert (tmp_path / "new" / "newer").is_dir()


def test_a_crash_before_the_data_is_safe_leaves_no_final_name(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from mmgen.images import write_new\n"
        "os.fsync = lambda file: os._exit(9)\n"
        f"write_new(Path({str(tmp_path)!r}) / 'a.png', bytes(100000))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def interrupt(_file: int) -> None:
        raise stop

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(stop):
        write_new(tmp_path / "a", DATA)
    assert os.listdir(tmp_path) == []
