"""A real Ray of this machine, with two workers: the files of one process, whoever is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmgen.cli.main import main
from mmgen.errors import MachineError
from mmgen.render.folder import Folder
from tests.checkpoints import write_tiny

# not importorskip: what Ray is to do is in the environment before it is imported
if find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

# of Ray itself, when it ends
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

PROMPTS = '--prompt "a red cat" -n 5\n--prompt "two dogs" -n 3 --steps 3\n'


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "prompts.txt").write_text(PROMPTS, "utf-8")
    tiny = write_tiny(folder / "tiny")
    return ["batch", str(folder / "prompts.txt"), "--model", str(tiny), "--size", "64", "--steps", "2"]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def actors() -> list[int]:
    """The processes of this machine in which workers are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::_Actor"):
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system does not list its processes")
def test_a_cluster_makes_the_files_of_one_process_although_a_worker_is_killed(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, "-o", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    commit, killed = Folder.commit, list[int]()
    monkeypatch.setenv(
        "HOME", str(tmp_path)
    )  # where Ray puts the token by which its own processes know each other

    def kill(folder, *given, **named):  # type: ignore[no-untyped-def]
        if not killed:
            import ray

            assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)
        return commit(folder, *given, **named)

    monkeypatch.setattr(Folder, "commit", kill)
    before = signal.getsignal(signal.SIGTERM)
    code = main([*args, "-o", str(tmp_path / "many"), "--engine", "ray", "--workers", "2"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert (
        "a worker was lost (The actor is dead because its worker process has died), another one" in said.err
    )
    assert pictures(tmp_path / "many") == pictures(tmp_path / "one")
    assert sorted(Path(line).name for line in said.out.splitlines()) == sorted(pictures(tmp_path / "one"))
    assert signal.getsignal(signal.SIGTERM) is before
    assert actors() == []


SMALL = """
import os, sys
from mmgen.cli.main import main
from mmgen.render import ray_pool
connect = ray_pool._connect
ray_pool._connect = lambda address, count: connect(address, 1)
ray_pool.PLACE_SECONDS = 0.0
os.cpu_count = lambda: 1
sys.exit(main(sys.argv[1:]))
"""


def test_workers_that_a_cluster_has_no_room_for_are_said(args: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL, *args, "-o", str(tmp_path), "--engine", "ray", "--workers", "2",
         "--device", "cpu"],
        env={**os.environ, "HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
        text=True,
    )  # fmt: skip
    words = r"error: Ray has no room for 2 workers, which take 1 CPU and 0 GPU each: of 1 CPUs and \d+ GPUs, 1 and"
    assert (done.returncode, done.stdout) == (MachineError.exit_code, ""), done.stderr
    assert re.search(f"{words}.* are free\\. Ask for fewer --workers", done.stderr)
    assert pictures(tmp_path) == {}


def test_a_cluster_that_is_not_there_is_said() -> None:
    from mmgen.render.pool import Setup
    from mmgen.render.ray_pool import RayWorkers

    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        for address in ("none", f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:123456789"):
            with pytest.raises(MachineError, match=f"no Ray at --ray-address {address}: "):
                RayWorkers(Setup("storybook", "png"), 1, address)
