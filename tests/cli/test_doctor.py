"""`mmgen doctor`: one line for each check, whatever is broken."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from packaging.specifiers import SpecifierSet

from mmgen.cli import doctor
from mmgen.cli.doctor import CHECKS, Finding, Torch
from mmgen.errors import ModelError
from mmgen.pipelines import catalogue, sources

ROOT = Path(__file__).resolve().parents[2]
SOUND = Torch(
    version="2.13.0",
    build="CPU",
    devices=["cpu Processor, 2 cores, AVX2"],
    bfloat16=True,
    threads=2,
    kernels={"sdpa": "", "xformers": "it is not installed", "sliced": ""},
)
GPU = replace(SOUND, build="CUDA 12.8", devices=["cuda:0 Card with 24.0 GB", *SOUND.devices])


@pytest.fixture
def torch_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Torch], None]:
    return lambda facts: monkeypatch.setattr(doctor, "torch_facts", lambda: facts)


@pytest.fixture
def broken_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of that name stands before the real one for the process that is asked; to be written."""
    folder = tmp_path / "first"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    doctor.torch_facts.cache_clear()
    yield folder / "torch.py"
    doctor.torch_facts.cache_clear()


def _install(folder: Path, name: str, version: str, *needs: str) -> None:
    """What an installer leaves of a package, for importlib.metadata to find."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs), ""]))


def test_this_machine_is_told_without_loading_torch() -> None:
    code = (
        "import sys; from mmgen.cli.main import main; code = main(['doctor', '--json'])\n"
        "sys.exit('loaded torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    checks = json.loads(done.stdout)["checks"]
    assert [check["name"] for check in checks] == list(CHECKS)
    assert all(set(check) == {"name", "state", "found", "advice"} for check in checks)
    states = {check["name"]: check["state"] for check in checks}
    assert done.returncode == (3 if "PROBLEM" in states.values() else 0), done.stderr
    assert states["torch"] == states["attention"] == states["disk"] == states["weights"] == "OK"
    told = {check["name"]: check["found"] for check in checks}
    assert told["torch"].startswith(metadata.version("torch"))
    assert told["attention"].startswith("sdpa, ")
    assert re.search(r"cpu .+, \d+ cores, ", told["devices"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ImportError('libtorch is gone')", "cannot be imported: ImportError: libtorch is gone"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "cannot be imported: importing it ends the process with signal 9",
        ),
        ("import sys; sys.exit(7)", "cannot be imported: no reason given"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_one_problem(
    mmgen_command: Callable[..., Any], broken_torch: Path, source: str, says: str
) -> None:
    broken_torch.write_text(source)
    outcome = mmgen_command("doctor", "--json")
    assert outcome.code == 3
    (told,) = outcome.objects()
    checks = {check["name"]: check for check in told["checks"]}
    assert list(checks) == list(CHECKS)
    assert (checks["torch"]["state"], checks["torch"]["found"]) == ("PROBLEM", says)
    for name in ("devices", "bfloat16", "attention", "threads"):
        assert (checks[name]["state"], checks[name]["advice"]) == ("NOTE", "see the line of torch")
    assert checks["weights"]["state"] == checks["disk"]["state"] == "OK"


def test_a_line_for_each_check(
    mmgen_command: Callable[..., Any], torch_says: Callable[[Torch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_says(GPU)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor, "COMPANIONS", ())
    outcome = mmgen_command("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    for line, name in zip(outcome.out.splitlines(), CHECKS, strict=True):
        assert re.match(rf"(OK|NOTE) +{name} +\S", line)
    assert "cuda:0 Card with 24.0 GB; cpu Processor" in outcome.out


def test_what_fails_is_a_line_and_the_others_follow(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Finding:
        raise RuntimeError("two\nlines \x1b[31m")

    def refused() -> Finding:
        raise ModelError("storybook has no manifest: get it again")

    fine = Finding("OK", "fine")
    monkeypatch.setattr(doctor, "CHECKS", {"one": broken, "two": refused, "three": lambda: fine})
    outcome = mmgen_command("doctor")
    assert (outcome.code, outcome.err) == (3, "")
    assert outcome.out.splitlines() == [
        rf"PROBLEM  one        RuntimeError: two lines \x1b[31m: {doctor.AGAIN}",
        "PROBLEM  two        storybook has no manifest: get it again",
        "OK       three      fine",
    ]


def test_the_pythons_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    allowed = SpecifierSet(project["requires-python"])
    for minor in range(8, 20):
        finding = doctor._python((3, minor, 1))
        assert (finding.state == "OK") == allowed.contains(f"3.{minor}.1")
        assert bool(finding.advice) == (finding.state != "OK")


@pytest.mark.parametrize(
    ("facts", "state", "advice"),
    [
        (SOUND, "OK", ""),
        (GPU, "OK", ""),
        (replace(SOUND, build="CUDA 12.8"), "NOTE",
         "torch is built for CUDA 12.8 and sees no such device; its driver may be missing or too old"),
        (replace(SOUND, build="CUDA 12.8", complaint="The driver is 1.0"), "NOTE",
         "torch is built for CUDA 12.8 and sees no such device; The driver is 1.0"),
    ],
    ids=["cpu build", "gpu", "no driver", "old driver"],
)  # fmt: skip
def test_devices(torch_says: Callable[[Torch], None], facts: Torch, state: str, advice: str) -> None:
    torch_says(facts)
    finding = CHECKS["devices"]()
    assert (finding.state, finding.advice) == (state, advice)
    assert finding.found == "; ".join(facts.devices)


def test_numbers_and_kernels(torch_says: Callable[[Torch], None]) -> None:
    torch_says(SOUND)
    assert CHECKS["bfloat16"]().state == "OK"
    assert CHECKS["attention"]() == Finding("OK", "sdpa, sliced; not xformers: it is not installed")
    torch_says(replace(SOUND, bfloat16=False, kernels={"sdpa": "", "xformers": ""}))
    assert CHECKS["bfloat16"]().state == "NOTE"
    assert CHECKS["attention"]().found == "sdpa, xformers"


@pytest.mark.parametrize(("said", "threads", "state"), [("1", 1, "NOTE"), ("4", 4, "OK"), (None, 1, "OK")])
def test_threads_that_are_held_back_are_noted(
    torch_says: Callable[[Torch], None],
    monkeypatch: pytest.MonkeyPatch,
    said: str | None,
    threads: int,
    state: str,
) -> None:
    torch_says(replace(SOUND, threads=threads))
    monkeypatch.setattr(doctor, "_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    finding = CHECKS["threads"]()
    assert finding.state == state
    assert finding.found == f"{threads} on 4 cores, OMP_NUM_THREADS is {said or 'not set'}"


def test_little_room_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHECKS["disk"]().state == "OK"
    little = type("Little", (), {"available": 500_000_000, "free": 50_000_000})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: little)
    assert CHECKS["memory"]() == Finding(
        "NOTE", "0.5 GB free", "close other programs, or choose a smaller --size"
    )
    assert CHECKS["disk"]().state == "NOTE"


def test_a_folder_that_takes_no_picture_is_a_problem(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor, "CHECKS", {"disk": CHECKS["disk"]})
    monkeypatch.setattr(os, "open", refuse)
    outcome = mmgen_command("doctor")
    monkeypatch.undo()
    assert outcome.code == 3
    assert re.fullmatch(r"PROBLEM  disk +cannot write into .*: permission denied: choose .*\n", outcome.out)
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "verify", lambda _name: ["decoder/x is missing: get it again"])
    finding = CHECKS["weights"]()
    assert finding.state == "PROBLEM"
    assert finding.found == "storybook: decoder/x is missing: get it again"
    monkeypatch.setattr(sources, "available", list)
    assert CHECKS["weights"]() == Finding("PROBLEM", "no model came with mmgen", doctor.AGAIN)


def test_packages_are_what_the_installation_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [
        "click>=8",
        "click<99; python_version < '3'",
        "nowhere>=1",
        "pytest>=8; extra == 'test'",
        "Pillow>99",
    ]
    _install(tmp_path, "mmgen", "9.0", *needs)
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = CHECKS["packages"]()
    assert finding.state == "PROBLEM"
    versions = {name: metadata.version(name) for name in ("click", "Pillow")}
    assert finding.found == f"click {versions['click']}, nowhere missing, Pillow {versions['Pillow']}"
    assert finding.advice == 'pip install "nowhere>=1" "Pillow>99"'


def test_a_source_tree_without_installation_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert CHECKS["packages"]().state == "NOTE"


@pytest.mark.parametrize(("wants", "state"), [("torch==1.0", "PROBLEM"), ("torch>=1.0", "OK")])
def test_a_companion_for_another_torch_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wants: str, state: str
) -> None:
    monkeypatch.setattr(doctor, "COMPANIONS", ("xformers", "nowhere"))
    assert doctor._version("nowhere") is None
    _install(tmp_path, "xformers", "0.0.1", "numpy", wants)
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = CHECKS["companions"]()
    assert (finding.state, finding.found) == (state, "xformers 0.0.1")
    torch = metadata.version("torch")
    wrong = f"xformers wants torch==1.0, and torch is {torch}; pip uninstall xformers"
    assert finding.advice == (wrong if state == "PROBLEM" else "")


def test_without_companions_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "COMPANIONS", ("nowhere",))
    assert CHECKS["companions"]() == Finding("OK", "no nowhere")


@pytest.mark.parametrize(
    ("said", "found"), [("1", "HF_HUB_OFFLINE is 1"), (None, "HF_HUB_OFFLINE is not set")]
)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, said: str | None, found: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if said is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", said)
    assert CHECKS["hub"]().found.startswith(found)
