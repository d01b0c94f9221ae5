"""Whether the decoder gains by torch.compile, as a table and a verdict.

    python benchmarks/compiled.py

One guided call of the network, compiled in a process of its own with an empty cache. It comes in if it has paid for
its compilation within a hundred pictures. Milliseconds are medians of calls that take turns. Where it cannot be
compiled, as without a C++ compiler, the reason is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from cascade import PROMPT
from side_by_side import conditions, decoder_and_draft, interleaved
from torch import Tensor

import mmgen
from mmgen.conditioning import concat
from mmgen.noise import Noise

WORTH_IT = 100  # pictures


@torch.no_grad()
def beside_eager(
    pipe: mmgen.TextToImage, compiled: Callable[[Any], Callable[..., Tensor]], repeats: int
) -> dict[str, float]:
    """Seconds of the "first" compiled call, and of an "eager" and a "compiled" one after it; the largest "difference".

    compiled: makes of a network what is called in its place. "steps": calls for one picture.
    """
    stage, draft = decoder_and_draft(pipe, PROMPT)
    network, size = stage.network, stage.network.config.sample_size
    assert draft.text is not None
    x = Noise([1, 2]).draw((3, size, size)).to(network.dtype)
    call = (x, torch.tensor([0.5, 0.5]), network.prepare(concat([draft.text, draft.text])))
    fast = compiled(network)
    started = time.perf_counter()
    out = fast(*call)
    first = time.perf_counter() - started
    taken = interleaved({"eager": partial(network, *call), "compiled": partial(fast, *call)}, repeats)
    difference = float((out - network(*call)).abs().max())
    return {"first": first, "difference": difference, "steps": stage.defaults.steps, **taken}


def in_new_process(name_or_folder: str) -> dict[str, float] | str:
    """What `beside_eager` measures of a model, or why it cannot."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler}"
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, name_or_folder],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def pays_after(taken: Mapping[str, float]) -> float:
    """Pictures until compiling has paid for itself; infinity if it never does."""
    saved = taken["steps"] * (taken["eager"] - taken["compiled"])
    return taken["first"] / saved if saved > 0 else float("inf")


def main() -> None:
    """Print the table and the verdict, or measure the model that the command line names."""
    if len(sys.argv) > 1:
        pipe = mmgen.load(sys.argv[1], device="cpu")
        print(json.dumps(beside_eager(pipe, torch.compile, 30)))
        return
    print(f"{conditions()}\n")
    taken = in_new_process("storybook")
    if isinstance(taken, str):
        print(f"torch.compile: not run: {taken}")
        return
    eager, compiled = taken["eager"], taken["compiled"]
    print("| call of the decoder | first, s | ms | times as fast | difference |\n|---|---|---|---|---|")
    print(f"| eager | - | {1e3 * eager:.2f} | 1.00 | - |")
    print(
        f"| compiled | {taken['first']:.1f} | {1e3 * compiled:.2f} | {eager / compiled:.2f} "
        f"| {taken['difference']:.1e} |"
    )
    count = pays_after(taken)
    print(f"\nCompiling pays for itself after {count:,.0f} pictures.")
    print(f"Verdict: torch.compile {'comes in' if count <= WORTH_IT else 'stays out'}.")


if __name__ == "__main__":
    main()
