"""Whatever goes wrong while `mmgen batch` runs: a second run ends with the pictures of one that nothing happened to.

`make faults` kills 200 times instead of 20, and crashes also where a disk has no hard links. Of the same kind,
elsewhere: an error of the disk at every step of a commit and a number of a process that is used again
(tests/render/test_folder.py), a batch that is halved and super-resolution in squares where memory runs out
(tests/render/test_engine.py).
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from mmgen.cli import main as command
from mmgen.cli.main import main
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.prior_stage import PriorStage
from mmgen.pipelines.stage import Draft
from mmgen.render import manifest
from mmgen.render.folder import Folder
from mmgen.render.manifest import is_whole
from mmgen.schedulers.samplers import Step
from mmgen.temporary import temporary_name
from tests.checkpoints import write_tiny

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MMGEN_KILLS", "20"))
PROMPTS = 'a {red|blue} cat\n# not this\n--prompt "two dogs" -n 2 --steps 3\na house at night\n'
PICTURES = 4
MANY = '--prompt "a cat" -n 30 --size 16\n'
CRASHED = 9
SLOW = pytest.mark.skipif(KILLS < 200, reason="only make faults has the time")
CALLS = ("open", "write", "fsync", "close", "link", "unlink", "replace", "lseek", "read")
"""Of os: all that a commit does to the disk."""

Pictures = dict[str, bytes]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Batch:
    """The same command again and again; out: its folder, whole: what an uninterrupted run makes of it."""

    model: str
    prompts: Path
    out: Path
    whole: Pictures
    capsys: pytest.CaptureFixture[str]

    @property
    def args(self) -> list[str]:
        return arguments(self.model, self.prompts, self.out)

    def run(self, *more: str) -> Outcome:
        self.capsys.readouterr()
        code = main([*self.args, *more])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def assert_part(self, *, reserved: bool = False) -> int:
        """What is there is as it must be; how many pictures. reserved: a name may stand there without one."""
        found = {name: data for name, data in pictures(self.out).items() if data or not reserved}
        assert found.items() <= self.whole.items()
        return len(found)

    def assert_finished(self, *more: str) -> None:
        """Another run, after which all is there and nothing else."""
        done = self.run(*more)
        assert done.code == 0, done.err
        assert pictures(self.out) == self.whole
        assert sorted(os.listdir(self.out)) == sorted([*self.whole, manifest.NAME])


def arguments(model: str, prompts: Path, out: Path) -> list[str]:
    return ["batch", str(prompts), "--model", model, "--size", "64", "--steps", "2", "-o", str(out)]


def pictures(folder: Path) -> Pictures:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


def undisturbed(tiny: str, folder: Path, prompts: str) -> Pictures:
    (folder / "prompts.txt").write_text(prompts, "utf-8")
    assert main(arguments(tiny, folder / "prompts.txt", folder / "out")) == 0
    assert all(is_whole(path) for path in (folder / "out").glob("*.png"))
    return pictures(folder / "out")


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    made = undisturbed(tiny, tmp_path_factory.mktemp("whole"), PROMPTS)
    assert len(made) == PICTURES
    return made


@pytest.fixture
def batch(tiny: str, whole: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Batch:
    (tmp_path / "prompts.txt").write_text(PROMPTS, "utf-8")
    return Batch(tiny, tmp_path / "prompts.txt", tmp_path / "out", whole, capsys)


def process(target: Callable[..., None], *args: object) -> BaseProcess:
    """A process of its own, forked where torch is imported already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.checkpoints", "mmgen.cli.batch", "mmgen.render.engine"])
    started = context.Process(target=target, args=args)
    started.start()
    return started


def ended(started: BaseProcess) -> int | None:
    started.join()
    return started.exitcode


def run_main(args: list[str]) -> None:
    sys.exit(main(args))


# ---- processes that end --------------------------------------------------------------------------


def run_and_crash(args: list[str], last: int, links: bool) -> None:
    """A run that dies before its `last` call of os since the first picture came in. links: the disk knows hard ones."""
    calls = itertools.count(1)
    commit = Folder.commit

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            if next(calls) == last:
                os._exit(CRASHED)
            return real(*given, **named)

        return call

    def first(*given: Any, **named: Any) -> Path:
        Folder.commit = commit  # type: ignore[method-assign]
        if not links:
            os.link = no_link
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        made = commit(*given, **named)
        os._exit(0)
        return made

    Folder.commit = first  # type: ignore[method-assign]
    main(args)


def no_link(*_given: object, **_named: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, pytest.param(False, marks=SLOW)])
def test_a_crash_at_every_step_of_a_commit(batch: Batch, tmp_path: Path, links: bool) -> None:
    (tmp_path / "many").mkdir()
    whole = undisturbed(batch.model, tmp_path / "many", MANY)
    batch.prompts.write_text(MANY, "utf-8")
    batch = replace(batch, whole=whole)
    steps = left = 0
    # one folder for all of them: each run finds what those before it have left
    while ended(process(run_and_crash, batch.args, steps + 1, links)) == CRASHED:
        steps += 1
        left += any(path.suffix == ".tmp" for path in batch.out.iterdir())
        batch.assert_part(reserved=not links)
    assert steps > 12
    assert left > 3
    assert 0 < batch.assert_part() < len(whole)
    batch.assert_finished()


def test_a_kill_at_any_moment(batch: Batch) -> None:
    chance = random.Random(0)
    assert (
        ended(process(run_main, ["--version"])) == 0
    )  # or the server's own start would take the time of most kills
    started = time.monotonic()
    assert ended(process(run_main, batch.args)) == 0
    needed = time.monotonic() - started
    shutil.rmtree(batch.out)
    found = [0]
    for kill in range(KILLS):
        run = process(run_main, batch.args)
        if kill % 2:  # most of a run is its start: every other one is killed when it has drawn something
            while run.is_alive() and len([*batch.out.glob("*.png")]) <= found[-1] % PICTURES:
                time.sleep(0.001)
            time.sleep(0.02 * chance.random() * needed)
        else:
            time.sleep(chance.random() * needed)
        run.kill()
        run.join()
        found.append(batch.assert_part())
        if found[-1] == PICTURES:
            for path in batch.out.glob("*.png"):
                path.unlink()
    assert len(set(found)) > 1, "every kill came at the same place"
    batch.assert_finished()


@pytest.mark.parametrize("writers", [2, 4])
def test_several_processes_on_one_folder(batch: Batch, writers: int) -> None:
    running = [process(run_main, batch.args) for _ in range(writers)]
    assert [ended(one) for one in running] == [0] * writers
    assert batch.assert_part() == PICTURES
    batch.assert_finished()


def leave(folder: Path) -> None:
    """What a process that is killed may leave behind."""
    (folder / temporary_name()).write_bytes(b"half")
    drafts = folder / temporary_name()
    drafts.mkdir()
    (drafts / "1.safetensors").write_bytes(b"half")
    os._exit(CRASHED)


def test_what_a_dead_process_has_left(batch: Batch) -> None:
    batch.out.mkdir()
    assert ended(process(leave, batch.out)) == CRASHED
    assert len(os.listdir(batch.out)) == 2
    batch.assert_finished()


# ---- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal(
    batch: Batch, number: signal.Signals, code: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one ends the run after the batch in flight, the second at once."""
    run, calls, finished = PriorStage.run, [0], [0]

    def interrupted(stage: PriorStage, *args: Any) -> Generator[Step, None, Draft]:
        calls[0] += 1
        for _ in range(times if calls[0] == 2 else 0):
            signal.raise_signal(number)  # by os.kill another thread may take two as one
        draft = yield from run(stage, *args)
        finished[0] += 1
        return draft

    monkeypatch.setattr(PriorStage, "run", interrupted)
    # as the installed command begins; a shell's background jobs, such as these tests may be, ignore SIGINT
    handlers = {signal.SIGTERM: command._terminate, signal.SIGINT: signal.default_int_handler}
    before = {one: signal.signal(one, handler) for one, handler in handlers.items()}
    try:
        done = batch.run()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert done.code == code
    assert "ending after the batch in flight" in done.err
    assert (calls[0], finished[0]) == (2, 3 - times)
    assert batch.assert_part() == 0
    monkeypatch.undo()
    batch.assert_finished()


# ---- memory and numbers --------------------------------------------------------------------------


def disturb(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Step], Step], *, step: int, times: int
) -> list[int]:
    """Change that step of the decoder while it draws the house, so many times; how often it was, is in the list."""
    run, count = DecoderStage.run, [0]

    def disturbed(stage: DecoderStage, draft: Draft, *args: Any) -> Generator[Step, None, Draft]:
        with closing(run(stage, draft, *args)) as steps:
            while True:
                try:
                    one = next(steps)
                except StopIteration as done:
                    drawn: Draft = done.value
                    return drawn
                if "house" in draft.prompts[0] and one.index == step and count[0] < times:
                    count[0] += 1
                    one = change(one)
                yield one

    monkeypatch.setattr(DecoderStage, "run", disturbed)
    return count


def run_out(_step: Step) -> Step:
    raise MemoryError("out of memory")


def spoil(step: Step) -> Step:
    step.x.fill_(torch.nan)
    step.x0.fill_(torch.nan)
    return step


@pytest.mark.parametrize(
    ("change", "step", "times", "says"),
    [(run_out, 2, 2, "ran out of memory"), (spoil, 1, 1, "NaN"), (spoil, 2, 1, "NaN")],
)
def test_a_picture_that_fails_fails_alone(
    batch: Batch,
    change: Callable[[Step], Step],
    step: int,
    times: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = disturb(monkeypatch, change, step=step, times=times)
    done = batch.run()
    assert (done.code, count[0]) == (1, times)
    assert says in done.err
    assert batch.assert_part() == PICTURES - 1
    again = batch.run()
    assert (again.code, again.out) == (1, "")
    assert "--retry-failed draws them again" in again.err
    assert batch.assert_part() == PICTURES - 1
    batch.assert_finished("--retry-failed")


# ---- disks and folders ---------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Mount a file system in memory at `out`, or change its options."""
    out, mounted = tmp_path / "out", []

    def command(options: str) -> None:
        if not mounted:
            out.mkdir()
        where = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *where, str(out)], check=False, capture_output=True)
        if done.returncode and not mounted:
            pytest.skip("no file system can be mounted here")
        assert done.returncode == 0, done.stderr
        mounted.append(options)

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    yield command
    if mounted:
        subprocess.run(["umount", str(out)], check=True)


def test_a_disk_that_runs_full(batch: Batch, mount: Callable[[str], None]) -> None:
    room = 2 * max(map(len, batch.whole.values())) // 1024 + 16
    mount(f"size={room}k")
    done = batch.run()
    assert done.code == 3
    assert "the disk is full" in done.err
    assert 0 < batch.assert_part() < PICTURES
    assert not list(batch.out.glob("*.tmp"))
    mount("size=1m")
    batch.assert_finished()


def test_a_disk_that_may_only_be_read(batch: Batch, mount: Callable[[str], None]) -> None:
    mount("size=1m")
    mount("ro")
    done = batch.run()
    assert (done.code, done.out) == (3, "")
    assert "the file system is read-only" in done.err
    mount("rw")
    batch.assert_finished()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_only_be_read(batch: Batch) -> None:
    batch.out.mkdir(mode=0o500)
    done = batch.run()
    assert (done.code, done.out) == (3, "")
    assert "permission denied" in done.err
    batch.out.chmod(0o700)
    batch.assert_finished()


def test_a_folder_that_is_deleted_while_it_is_filled(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Folder.commit

    def committed(*args: Any, **named: Any) -> Path:
        path = commit(*args, **named)
        shutil.rmtree(batch.out)
        return path

    monkeypatch.setattr(Folder, "commit", committed)
    done = batch.run()
    assert done.code == 3
    assert "the folder does not exist" in done.err
    assert not batch.out.exists()
    monkeypatch.undo()
    batch.assert_finished()


def test_a_clock_that_was_set_back(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch.run().code == 0
    sorted(batch.out.glob("*.png"))[1].unlink()
    for path in batch.out.iterdir():
        os.utime(path, (2**32, 2**32))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9)
        done = batch.run()
    assert (done.code, len(done.out.splitlines())) == (0, 1)
    batch.assert_finished()


def test_a_prompt_file_that_is_edited_between_two_runs(batch: Batch, tmp_path: Path) -> None:
    fixed = PROMPTS.replace("{red|blue}", "red")  # what is drawn of variants depends on the line
    batch.prompts.write_text(fixed, "utf-8")
    assert batch.run().code == 0
    before = pictures(batch.out)
    batch.prompts.write_text('a new boat\na house at night\n--prompt "two dogs" -n 3 --steps 3\n', "utf-8")
    assert len(batch.run().out.splitlines()) == 2
    after = pictures(batch.out)
    assert before.items() <= after.items()
    assert len(after) == PICTURES + 2
    edited = replace(batch, out=tmp_path / "edited")
    assert edited.run().code == 0
    assert set(pictures(edited.out).values()) <= set(after.values())
    again = batch.run()
    assert (again.code, again.out) == (0, "")
    assert sorted(os.listdir(batch.out)) == sorted([*after, manifest.NAME])


# ---- standard output -----------------------------------------------------------------------------


def test_a_reader_that_leaves(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As | head -1 does."""
    ours, theirs = os.pipe()
    with monkeypatch.context() as patch, open(theirs, "w", encoding="utf-8") as stream:
        patch.setattr(sys, "stdout", stream)
        os.close(ours)
        assert main(batch.args) == 141
    assert 0 < batch.assert_part() < PICTURES
    batch.assert_finished()


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@needs_full
def test_standard_output_on_a_full_disk(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, FULL.open("w", encoding="utf-8") as stream:
        patch.setattr(sys, "stdout", stream)
        assert main(batch.args) == 3
    assert "standard output cannot be written: the disk is full" in batch.capsys.readouterr().err
    assert 0 < batch.assert_part() < PICTURES
    batch.assert_finished()


@needs_full
def test_a_list_on_a_full_disk_is_one_line_of_error(batch: Batch) -> None:
    code = "from mmgen.cli.main import run; run()"
    with FULL.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-c", code, *batch.args, "--dry-run"],
            cwd=ROOT, stdout=stream, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


@needs_full
@pytest.mark.parametrize("out", [FULL, FULL / "out"])
def test_a_device_in_the_folders_place(batch: Batch, out: Path) -> None:
    done = replace(batch, out=out).run()
    assert (done.code, done.out) == (3, "")
    assert "there is a file where a folder is needed" in done.err
