"""How exact, fast and large every attention kernel is on this machine, as a Markdown table.

    python benchmarks/attention.py

Each row is a process of its own, because the peak of a process never falls. difference: the largest from attention in
float64 on the same inputs. ms: the median of nine runs. peak: what the first run adds to the memory of its inputs.
"plain" is the way of gradients on a CPU, without its backward pass. What cannot run here is listed with the reason.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from mmgen.attention import KERNELS, attention, available, use
from mmgen.memory import DTYPES, peak_bytes, reset_peak, wait_for

SHAPES = {  # batch, heads, queries, keys, width of a head, masked
    "16x16 with text": (2, 6, 256, 336, 64, True),
    "32x32 with text": (2, 4, 1024, 1104, 64, True),
    "64x64 alone": (1, 2, 4096, 4096, 64, False),
    "text alone": (2, 4, 77, 77, 64, True),
    "one head, odd lengths": (1, 1, 333, 777, 64, True),
}
PLAIN = "plain"
REPEATS = 9


def inputs(shape: str, dtype: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v of standard normal numbers, and a mask that leaves the last picture half of its keys."""
    batch, heads, queries, keys, width, masked = SHAPES[shape]
    draw = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(batch, heads, tokens, width, generator=draw).to(device, DTYPES[dtype])
        for tokens in (queries, keys, keys)
    )
    seen = torch.arange(keys)[None] < torch.linspace(keys, keys // 2, batch)[:, None]
    return q, k, v, seen.to(device) if masked else None


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain attention in float64 on the CPU."""
    q, k, v = (x.detach().cpu().double() for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.cpu()[:, None, None, :], float("-inf"))
    return scores.softmax(-1) @ v


def measure(kernel: str, shape: str, dtype: str, device: torch.device) -> tuple[float, float, float]:
    """Largest difference, median milliseconds and added megabytes of one kernel."""
    use("sdpa" if kernel == PLAIN else kernel)
    q, k, v, mask = inputs(shape, dtype, device)
    q.requires_grad_(kernel == PLAIN)
    with torch.set_grad_enabled(kernel == PLAIN):
        attention(*(x[:, :, :1] for x in (q, k, v)))  # loads the kernel, at next to no memory
        wait_for(device)
        reset_peak(device)
        before = peak_bytes(device)
        out = attention(q, k, v, mask).detach()
        wait_for(device)
        added = peak_bytes(device) - before
        taken = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            attention(q, k, v, mask)
            wait_for(device)
            taken.append(time.perf_counter() - started)
    difference = (out.cpu().double() - exact(q, k, v, mask)).abs().max().item()
    return difference, 1e3 * statistics.median(taken), added / 1e6


def why_not(kernel: str, device: str) -> str:
    """Why a kernel cannot run on a device, "" if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if kernel == PLAIN:
        return "" if device == "cpu" else "only gradients on a CPU go this way"
    if kernel == "xformers" and device == "cpu":
        return "xformers computes on CUDA devices"
    return available()[kernel]


def row(*names: str) -> str:
    """One row of the table: kernel, shape, dtype, device, measured in a new process."""
    done = subprocess.run([sys.executable, __file__, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"| {' | '.join(names)} | not run: {reason} | | |"
    difference, milliseconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return f"| {' | '.join(names)} | {difference:.1e} | {milliseconds:.2f} | {megabytes:.1f} |"


def main() -> None:
    """Print the table, or measure the one row that the command line names."""
    if len(sys.argv) > 1:
        kernel, shape, dtype, device = sys.argv[1:]
        print(json.dumps(measure(kernel, shape, dtype, torch.device(device))))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| kernel | shape | dtype | device | difference | ms | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for device, kernel in itertools.product(("cpu", "cuda"), (*KERNELS, PLAIN)):
        if reason := why_not(kernel, device):
            print(f"| {kernel} | all | all | {device} | not run: {reason} | | |")
            continue
        for shape, dtype in itertools.product(SHAPES, DTYPES):
            print(row(kernel, shape, dtype, device), flush=True)


if __name__ == "__main__":
    main()
