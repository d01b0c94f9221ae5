"""`mmgen doctor`: what this machine can do, and what is wrong with it. Reads nothing from the network."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mmgen.cli.terminal import one_line
from mmgen.errors import MachineError, MmgenError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["OK", "NOTE", "PROBLEM"]

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest
ENOUGH_MEMORY = 1_000_000_000  # bytes; the bundled model takes 0.8 GB for a picture of 1024 px
ENOUGH_DISK = 100_000_000  # bytes; some fifty pictures of 1024 px
COMPANIONS = ("xformers", "torchvision", "torchaudio")  # each is built for one torch
AGAIN = "install mmgen again, best into a new environment"


@dataclass(frozen=True)
class Finding:
    """What a check found. advice: what to do, "" if there is nothing to do."""

    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Torch:
    """What torch says of itself and of this machine.

    error: why it cannot be imported, "" if it can; else nothing more is known. build: CPU, or what it was built for.
    devices: a line for each. bfloat16: whether the CPU is fast in it. threads: on the CPU. kernels: as
    `mmgen.attention.available` says. complaint: of a driver, "" if there was none.
    """

    error: str = ""
    version: str = ""
    build: str = ""
    devices: Sequence[str] = ()
    bfloat16: bool = False
    threads: int = 0
    kernels: Mapping[str, str] = field(default_factory=dict)
    complaint: str = ""


UNTOLD = Finding("NOTE", "not known, as torch cannot be imported", "see the line of torch")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do and what is wrong with it.

    A line for each check: OK, NOTE or PROBLEM, what was found, and what to do. Nothing is read from the
    network. Exit code 3 if there is a PROBLEM.

    \b
    mmgen doctor
    mmgen doctor --json
    """
    findings: dict[str, Finding] = {}
    for name, finding in examine():
        findings[name] = finding
        if not as_json:
            click.echo(_line(name, finding))
    if as_json:
        click.echo(json.dumps({"checks": [{"name": name, **asdict(f)} for name, f in findings.items()]}))
    if any(finding.state == "PROBLEM" for finding in findings.values()):
        click.get_current_context().exit(MachineError.exit_code)


def examine() -> Iterator[tuple[str, Finding]]:
    """Each check's name and what it found, one after the other."""
    for name, check in CHECKS.items():
        try:
            yield name, check()
        except MmgenError as error:
            yield name, Finding("PROBLEM", one_line(str(error)))
        except Exception as error:  # noqa: BLE001 - what is broken fails in any way, and the other checks still count
            yield name, Finding("PROBLEM", one_line(f"{type(error).__name__}: {error}"), AGAIN)


def _line(name: str, finding: Finding) -> str:
    advice = f": {finding.advice}" if finding.advice else ""
    return f"{finding.state:<8} {name:<10} {one_line(finding.found + advice)}"


# ---- what torch says -----------------------------------------------------------------------------


TORCH_SECONDS = 300


@functools.cache
def torch_facts() -> Torch:
    """What torch says, asked in a process of its own: importing a broken build may end the process."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from mmgen.cli.doctor import print_facts; print_facts()"],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TORCH_SECONDS,
        )
    except subprocess.TimeoutExpired:  # a driver that hangs
        return Torch(error=f"importing it takes more than {TORCH_SECONDS} s")
    if done.returncode == 0:
        return Torch(**json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return Torch(error=f"importing it ends the process with signal {-done.returncode}")
    return Torch(error=one_line((done.stderr.strip().splitlines() or ["no reason given"])[-1]))


def print_facts() -> None:
    """What torch says in this process, as a line of JSON on standard output."""
    import warnings

    import torch

    from mmgen.attention import available
    from mmgen.memory import choose_dtype

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        devices = [*_accelerators(), _processor()]
    facts = Torch(
        version=str(torch.__version__),
        build=_build(),
        devices=devices,
        bfloat16=choose_dtype(None, torch.device("cpu")) is torch.bfloat16,
        threads=torch.get_num_threads(),
        kernels=available(),
        complaint=one_line(str(said[0].message)) if said else "",
    )
    click.echo(json.dumps(asdict(facts)))


def _build() -> str:
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"


def _accelerators() -> Iterator[str]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield f"cuda:{index} {about.name} with {_gigabytes(about.total_memory)}"
    if torch.backends.mps.is_available():
        yield f"mps with {_gigabytes(torch.mps.recommended_max_memory())}"


def _processor() -> str:
    import torch

    return f"cpu {_processor_name()}, {_cores()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # only Linux has the file
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- the checks ----------------------------------------------------------------------------------


def _python(version: Sequence[int] = sys.version_info[:3]) -> Finding:
    (oldest, newest), found = PYTHONS, ".".join(map(str, version))
    if oldest <= tuple(version[:2]) <= newest:
        return Finding("OK", found)
    allowed = " to ".join(".".join(map(str, python)) for python in PYTHONS)
    return Finding("PROBLEM", found, f"mmgen runs on Python {allowed}")


def _torch() -> Finding:
    facts = torch_facts()
    if facts.error:
        return Finding("PROBLEM", f"cannot be imported: {facts.error}", AGAIN)
    return Finding("OK", f"{facts.version}, built for {facts.build}")


def _devices() -> Finding:
    facts = torch_facts()
    if facts.error:
        return UNTOLD
    found = "; ".join(facts.devices)
    if facts.build == "CPU" or len(facts.devices) > 1:
        return Finding("OK", found)
    reason = facts.complaint or "its driver may be missing or too old"
    return Finding("NOTE", found, f"torch is built for {facts.build} and sees no such device; {reason}")


def _bfloat16() -> Finding:
    facts = torch_facts()
    if facts.error:
        return UNTOLD
    if facts.bfloat16:
        return Finding("OK", "the CPU computes in bfloat16")
    return Finding("NOTE", "the CPU computes in float32", "pictures take longer on it; nothing is wrong")


def _attention() -> Finding:
    facts = torch_facts()
    if facts.error:
        return UNTOLD
    here = ", ".join(name for name, reason in facts.kernels.items() if not reason)
    missing = [f"not {name}: {reason}" for name, reason in facts.kernels.items() if reason]
    return Finding("OK", "; ".join([here, *missing]))


def _memory() -> Finding:
    import psutil  # type: ignore[import-untyped]  # it comes with accelerate

    free = psutil.virtual_memory().available
    if free >= ENOUGH_MEMORY:
        return Finding("OK", f"{_gigabytes(free)} free")
    return Finding("NOTE", f"{_gigabytes(free)} free", "close other programs, or choose a smaller --size")


def _disk() -> Finding:
    from PIL import Image

    from mmgen.images import FORMATS, check_folder, encode

    check_folder(Path.cwd())
    for format in FORMATS:
        encode(Image.new("RGB", (8, 8)), format)
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{_gigabytes(free)} free, and this folder takes {', '.join(FORMATS)}"
    return Finding("OK", found) if free >= ENOUGH_DISK else Finding("NOTE", found, "free some space")


def _weights() -> Finding:
    from mmgen.pipelines.catalogue import verify
    from mmgen.pipelines.sources import available

    names = available()
    if not names:
        return Finding("PROBLEM", "no model came with mmgen", AGAIN)
    damaged = [f"{name}: {problem}" for name in names for problem in verify(name)]
    if damaged:
        return Finding("PROBLEM", "; ".join(damaged[:3]), f"{AGAIN}; 'mmgen models verify' lists every file")
    return Finding("OK", f"{', '.join(names)}: every file is as its manifest says")


def _packages() -> Finding:
    try:
        needed = _needs("mmgen")
    except metadata.PackageNotFoundError:
        return Finding("NOTE", "mmgen runs without being installed", "'pip install .' says what it needs")
    found = ", ".join(f"{need.name} {_version(need.name) or 'missing'}" for need in needed)
    if wrong := [need for need in needed if not _met(need)]:
        return Finding("PROBLEM", found, "pip install " + " ".join(f'"{need}"' for need in wrong))
    return Finding("OK", found)


def _companions() -> Finding:
    """diffusers and transformers import these wherever they are, and may fail on one that is for another torch."""
    here = [name for name in COMPANIONS if _version(name)]
    needs = {name: need for name in here for need in _needs(name) if need.name == "torch"}
    clashes = [name for name, need in needs.items() if not _met(need)]
    found = ", ".join(f"{name} {_version(name)}" for name in here) or f"no {', '.join(COMPANIONS)}"
    if not clashes:
        return Finding("OK", found)
    wants = " and ".join(f"{name} wants {needs[name]}" for name in clashes)
    advice = f"{wants}, and torch is {_version('torch')}; pip uninstall {' '.join(clashes)}"
    return Finding("PROBLEM", found, advice)


def _threads() -> Finding:
    facts = torch_facts()
    if facts.error:
        return UNTOLD
    said = os.environ.get("OMP_NUM_THREADS")
    found = f"{facts.threads} on {_cores()} cores, OMP_NUM_THREADS is {said or 'not set'}"
    if said and facts.threads < _cores():
        return Finding("NOTE", found, "if that is not meant, unset it, and pictures come sooner")
    return Finding("OK", found)


def _hub() -> Finding:
    said = os.environ.get("HF_HUB_OFFLINE")
    return Finding("OK", f"HF_HUB_OFFLINE is {said or 'not set'}; bundled models and folders need no network")


CHECKS: Mapping[str, Callable[[], Finding]] = {
    "python": _python,
    "torch": _torch,
    "devices": _devices,
    "bfloat16": _bfloat16,
    "attention": _attention,
    "memory": _memory,
    "disk": _disk,
    "weights": _weights,
    "packages": _packages,
    "companions": _companions,
    "threads": _threads,
    "hub": _hub,
}


# ---- packages ------------------------------------------------------------------------------------


def _needs(package: str) -> list[Requirement]:
    """What a package needs here, extras aside. Raises PackageNotFoundError if it is not installed."""
    from packaging.requirements import Requirement

    needs = [Requirement(text) for text in metadata.requires(package) or []]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _met(need: Requirement) -> bool:
    version = _version(need.name)
    return version is not None and need.specifier.contains(version, prereleases=True)


def _version(package: str) -> str | None:
    """The installed version, None if the package is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gigabytes(size: Any) -> str:
    return f"{size / 1e9:.1f} GB"
