"""How long one 1024-px picture takes on this machine, and what its arithmetic alone would take.

    python benchmarks/cascade.py

The floor of a stage is its floating-point operations divided by what dense 3x3 convolutions reach here, measured in the
same run. Seconds are the median of five warm pictures; cold starts are whole processes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

import mmgen
from mmgen.memory import choose_dtype
from mmgen.noise import Noise
from mmgen.pipelines.stage import Draft, finish

PROMPT = "two cats and a red balloon on the beach at sunset"
REPEATS = 5


def seconds_of(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median of `repeats` runs after one that is not counted."""
    action()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


@torch.inference_mode()
def convolution_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a 3x3 convolution, 192 channels at 16x16, batch 16."""
    layer = torch.nn.Conv2d(192, 192, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(16, 192, 16, 16).to(dtype).to(memory_format=torch.channels_last)
    return 2 * 9 * 192**2 * 256 * 16 / seconds_of(lambda: layer(x), 50)


def process_seconds(*command: str) -> float:
    """A whole process, the best of three."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mmgen.cli.main", *command], check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


def stage_flop(pipe: mmgen.TextToImage) -> dict[str, float]:
    """FLOP of each stage for one picture."""
    counts: dict[str, float] = {}
    draft = Draft((PROMPT,))
    for stage in pipe.cascade.stages:
        with FlopCounterMode(display=False) as counter:
            draft = finish(stage.run(draft, stage.defaults, Noise([1], stage.name)))
        counts[stage.name] = counter.get_total_flops()
    return counts


def main() -> None:
    """Print the table."""
    rate = convolution_rate(choose_dtype(None, torch.device("cpu")))
    print(f"{torch.get_num_threads()} threads; dense convolutions reach {rate / 1e9:,.0f} GFLOP/s")
    print(f"mmgen --help      {process_seconds('--help'):6.2f} s")
    with tempfile.TemporaryDirectory() as out:
        print(f"cold, 1024 px     {process_seconds('generate', PROMPT, '--out', out):6.2f} s")
    pipe = mmgen.load("storybook", device="cpu")
    flop = stage_flop(pipe)
    runs = [pipe(PROMPT, seeds=[1], progress=False) for _ in range(REPEATS)]
    print(f"warm, 1024 px     {seconds_of(lambda: pipe(PROMPT, seeds=[1], progress=False)):6.2f} s")
    print(f"{'stage':<16}{'steps':>6}{'GFLOP':>9}{'floor s':>9}{'taken s':>9}")
    for i, record in enumerate(runs[0].records):
        taken = statistics.median(run.records[i].seconds for run in runs)
        amount = flop[record.stage]
        print(f"{record.stage:<16}{record.steps:>6}{amount / 1e9:>9.1f}{amount / rate:>9.3f}{taken:>9.3f}")
    print(f"peak memory of this process: {runs[-1].records[-1].peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
