"""Names of temporary files that tell whose they are, so that those of dead processes can be removed.

A name holds where its process runs (name and installation of the machine, process namespace), the boot, the process and
when that began: no clock and no lock is asked. Where the system does not say these things, only age tells, by the
file's own date.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from functools import lru_cache
from pathlib import Path

DAY = 24 * 3600  # seconds after which a file is stale whose owner cannot be asked
_NAME = re.compile(r"\.mmgen-([0-9a-f]{8}-[0-9a-f]{8})-(\d{1,9})-(\d{1,20})-[0-9a-f]{16}\.tmp", re.ASCII)


def temporary_name() -> str:
    """A hidden name that no other file has, with this process as its owner."""
    place, start = _place(), _start(os.getpid())
    owner = f"{'-'.join(place)}-{os.getpid()}-{start}-" if place and start else ""
    return f".mmgen-{owner}{secrets.token_hex(8)}.tmp"


def remove_stale(folder: Path) -> None:
    """Remove what dead processes have left in a folder, files and folders; what a living one may need stays."""
    for path in folder.glob(".mmgen-*.tmp"):
        with contextlib.suppress(OSError):
            if not _is_stale(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_stale(path: Path) -> bool:
    found, here = _NAME.fullmatch(path.name), _place()
    if found and here and found[1].startswith(here[0]):
        same_boot = found[1].endswith(here[1])
        return not (same_boot and _lives(int(found[2]), found[3]))
    # either way round: a clock that was set back makes a file of the future
    return abs(time.time() - path.lstat().st_mtime) > DAY


def _lives(pid: int, start: str) -> bool:
    """Whether the process that began at `start` still runs."""
    found = _start(pid)
    if found is None:
        return False
    return found in ("", start)


@lru_cache(maxsize=1)
def _place() -> tuple[str, str] | None:
    """Machine with process namespace, and boot, 8 digits each; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return _digits(f"{platform.node()} {_installation()} {space}"), _digits(boot)


def _installation() -> str:
    """What tells machines of one name apart that share a folder, "" where there is none. Source: machine-id(5)."""
    try:
        return Path("/etc/machine-id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _start(pid: int) -> str | None:
    """When a process began, in ticks since the boot: None if there is none, "" if that is kept from us.

    Source: proc_pid_stat(5), fields 3 (state) and 22 (starttime).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return "" if _answers(pid) else None
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> bool:
    """Whether there is a process of that number, also where its entry in /proc is hidden from other users."""
    if not Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
