"""How long a prompt file of a million lines takes to be checked and listed, and how much memory that takes.

    python benchmarks/dry_run.py

The floor is what no checker can leave out: the file is read twice, to check it and to list it, and each line's record
is hashed with SHA-256 both times, measured in the same run. Growth of memory is what the process takes beyond its most
after a file of one line; of it, the keys by which repeated lines are known take about 32 bytes each.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from mmgen.cli.main import main as command
from mmgen.pipelines.catalogue import facts

LINES = 1_000_000
MOST_SECONDS, MOST_MB = 30, 50


def write(path: Path, lines: int) -> Path:
    """A prompt file whose lines differ."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"two cats and a red balloon on the beach at sunset {i}\n" for i in range(lines))
    return path


def dry_run(path: Path) -> tuple[float, int]:
    """Seconds of this process, and the most bytes it has had until now."""
    started = time.process_time()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        code = command(["batch", str(path), "--dry-run"])
    if code:
        raise SystemExit(f"mmgen batch ended with {code}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.process_time() - started, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def floor(path: Path) -> tuple[float, float]:
    """Seconds to read the file, and to hash as many bytes of records, each twice."""
    record = (
        facts("storybook")
        .request("two cats and a red balloon on the beach at sunset 000000", 0)
        .to_json()
        .encode()
    )
    started = time.process_time()
    lines = 0
    for _ in range(2):
        with path.open("rb") as file:
            lines += sum(1 for _ in file)
    read = time.process_time() - started
    for _ in range(lines):
        hashlib.sha256(record).digest()
    return read, time.process_time() - started - read


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "prompts.txt", LINES)
        _, before = dry_run(write(Path(folder) / "one.txt", 1))
        seconds, after = dry_run(path)
        read, hashed = floor(path)
    print(f"{LINES:,} lines{'':<10}{'s':>8}{'us a line':>12}")
    for name, taken in (("dry run", seconds), ("reading", read), ("hashing", hashed)):
        print(f"{name:<21}{taken:>8.1f}{1e6 * taken / LINES:>12.1f}")
    grown = (after - before) / 1e6
    print(f"memory grew by {grown:.0f} MB, {1e6 * grown / LINES:.0f} bytes a line")
    print(f"targets: {MOST_SECONDS} s, {MOST_MB} MB")


if __name__ == "__main__":
    main()
