"""`mmgen batch` with several workers, and in shards: the files of one process, whatever is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmgen.cli import workers
from mmgen.cli.main import main
from mmgen.cli.workers import Shard, parse_shard, shard_in
from mmgen.errors import UsageError
from mmgen.render.folder import Folder
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command

PROMPTS = '--prompt "a red cat" -n 5\n--prompt "two dogs" -n 2 --steps 3\na house at night\n'
PICTURES = 8
SIZE = ("--size", "64", "--steps", "2")
PATIENCE = 120  # seconds, after which a process that should end counts as one that does not


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def args(tiny: str, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "prompts.txt").write_text(PROMPTS, "utf-8")
    return ("batch", str(tmp_path / "prompts.txt"), "--model", tiny, *SIZE, "-o", str(tmp_path / "out"))


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "prompts.txt").write_text(PROMPTS, "utf-8")
    run = ["batch", str(folder / "prompts.txt"), "--model", tiny, *SIZE, "-o", str(folder / "out")]
    assert main(run) == 0
    made = pictures(folder / "out")
    assert len(made) == PICTURES
    return made


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def assert_whole(folder: Path, expected: dict[str, bytes]) -> None:
    assert pictures(folder) == expected
    assert sorted(os.listdir(folder)) == sorted([*expected, "manifest.jsonl"])
    assert len((folder / "manifest.jsonl").read_text("utf-8").splitlines()) == len(expected)


# ---- shards --------------------------------------------------------------------------------------


def test_shards_make_the_files_of_one_run_in_one_folder(
    mmgen_command: Command, args: tuple[str, ...], whole: dict[str, bytes]
) -> None:
    drawn = []
    for shard in ("2/3", "1/3", "3/3"):
        done = mmgen_command(*args, "--shard", shard)
        assert done.code == 0, done.err
        drawn.append(len(done.out.splitlines()))
        assert f"shard {shard[0]} of 3: {drawn[-1]} pictures" in done.err
        assert f"{drawn[-1]} pictures drawn\n" in done.err
    assert sorted(drawn) == [2, 3, 3]
    assert_whole(Path("out"), whole)
    again = mmgen_command(*args, "--shard", "1/3", "--json")
    assert (again.code, again.objects()) == (0, [])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "2", "a/b", "1/2/3", "-1/2", "", "1 /2"])
def test_a_shard_that_is_none_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)


ARRAY = {
    "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "18", "SLURM_ARRAY_TASK_STEP": "4",
    "SLURM_ARRAY_TASK_COUNT": "3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, Shard(1, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Shard(4, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Shard(2, 2)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "10"}, Shard(1, 3)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "18"}, Shard(3, 3)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "14", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Shard(4, 6)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "14", "SLURM_PROCID": "0"}, Shard(2, 3)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "14", "RANK": "0", "WORLD_SIZE": "2"}, Shard(3, 6)),
    ],
)
def test_the_shard_is_read_from_torchrun_and_slurm(variables: dict[str, str], shard: Shard) -> None:
    assert shard_in(variables) == shard


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "neither torchrun nor SLURM"),
        ({"WORLD_SIZE": "2"}, "neither torchrun nor SLURM"),
        ({"RANK": "0"}, "WORLD_SIZE is ''"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "number 3 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "number 1 of 0"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "11"}, "have gaps"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "10", "SLURM_ARRAY_TASK_MAX": "22"}, "have gaps"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is ''"),
    ],
)
def test_variables_that_mean_no_shard_are_said(variables: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        shard_in(variables)


def test_a_shard_is_read_from_the_environment_only_where_it_is_asked_for(
    mmgen_command: Command, args: tuple[str, ...], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = mmgen_command(*args, "--shard", "auto")
    assert "shard 2 of 2: 4 pictures" in done.err
    assert mmgen_command(*args).code == 0
    assert_whole(Path("out"), whole)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--ray-address", "auto"), "--ray-address is for --engine ray"),
        (("--dry-run", "--shard", "1/2"), "leave --shard out"),
        (("--shard", "3/2"), "I goes from 1 to N"),
        (("--workers", "0"), "--workers"),
        (("--engine", "ray"), "pip install 'mmgen[ray]'"),
        (("--engine", "ray", "--from-stage", "super-res"), "reads pictures of this machine"),
    ],
)
def test_what_cannot_be_meant_is_said(
    mmgen_command: Command,
    args: tuple[str, ...],
    more: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "find_spec", lambda _name: None)
    done = mmgen_command(*args, *more)
    assert done.code == 2
    assert says in done.err
    assert not Path("out").exists()


# ---- processes -----------------------------------------------------------------------------------


def test_two_workers_make_the_files_of_one(
    mmgen_command: Command, args: tuple[str, ...], whole: dict[str, bytes]
) -> None:
    done = mmgen_command(*args, "--workers", "2", "--json")
    assert done.code == 0, done.err
    assert_whole(Path("out"), whole)
    events = done.objects()
    assert sorted(Path(event["file"]).name for event in events if event["event"] == "picture") == sorted(
        whole
    )
    assert {event["stage"] for event in events if event["event"] == "stage"} == {
        "text", "prior", "decoder", "super-res-64",
    }  # fmt: skip
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_all_workers(
    mmgen_command: Command,
    args: tuple[str, ...],
    whole: dict[str, bytes],
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit, asked = Folder.commit, [0]

    def interrupted(folder, *given, **named):  # type: ignore[no-untyped-def]
        path = commit(folder, *given, **named)
        while asked[0] < times:
            asked[0] += 1
            os.kill(os.getpid(), signal.SIGINT)
        return path

    monkeypatch.setattr(Folder, "commit", interrupted)
    done = mmgen_command(*args, "--workers", "2")
    assert done.code == 130
    assert "ending after the batch in flight" in done.err
    assert multiprocessing.active_children() == []
    made = pictures(Path("out"))
    assert made.items() <= whole.items()
    assert 1 <= len(made) <= 4  # two windows of two had begun
    assert not list(Path("out").glob(".mmgen-*"))
    assert mmgen_command(*args).code == 0
    assert_whole(Path("out"), whole)


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="this system does not list the children of a process"
)
def test_workers_end_with_a_parent_that_is_killed(
    mmgen_command: Command, args: tuple[str, ...], whole: dict[str, bytes]
) -> None:
    command = [sys.executable, "-m", "mmgen.cli.main", *args, "--workers", "2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "picture":
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        assert len(children) >= 2
        process.kill()
    until = time.monotonic() + PATIENCE
    while left := [pid for pid in children if runs(pid)]:
        assert time.monotonic() < until, f"{left} are still there"
        time.sleep(0.05)
    assert pictures(Path("out")).items() <= whole.items()
    assert mmgen_command(*args).code == 0
    assert_whole(Path("out"), whole)


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
