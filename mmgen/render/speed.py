"""How fast a machine is, measured in a moment, and how long a stage takes on it.

An operation takes as long as its arithmetic and what it reads and writes, and a while to begin. The longer of the first
two is what it takes at least (Williams et al. 2009, Roofline, doi:10.1145/1498765.1498785); kernels of a CPU were
measured to take nearly both (benchmarks/plan.md).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from mmgen.attention import attention as attend
from mmgen.memory import on_meta, wait_for
from mmgen.render.estimate import SCORE, Counted, Kind, Work

SECONDS = 0.1  # for which each of them is measured


@dataclass(frozen=True)
class Speed:
    """Of a machine with numbers of one format.

    rates: floating-point operations in a second, by the kind of arithmetic. memory: bytes that are read and written in
    a second. begin: seconds that an operation takes besides.
    """

    rates: Mapping[Kind, float]
    memory: float
    begin: float

    def seconds(self, work: Mapping[Work, int], pictures: int = 1) -> float:
        """Of these operations, each over so many pictures at once."""
        return sum(
            count
            * (
                pictures * (one.flop / self.rates[one.kind] + (one.bytes - one.shared) / self.memory)
                + one.shared / self.memory
                + self.begin
            )
            for one, count in work.items()
        )


@cache
def speed_of(device: torch.device, dtype: torch.dtype) -> Speed:
    """By a convolution, a product and an attention as large as those of small pictures, a sum, and tiny layers."""
    layer = nn.Conv2d(192, 192, 3, padding=1, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    picture = torch.ones(2, 192, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    rows, weights = (torch.ones(count, 512, device=device, dtype=dtype) for count in (128, 512))
    tokens = torch.ones(2, 8, 256, 32, device=device, dtype=dtype)
    many = torch.ones(2**22, device=device, dtype=dtype)
    small = torch.ones(1, 8, 4, 4, device=device, dtype=dtype)
    tiny = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2), nn.LayerNorm(16), nn.GELU())
    tiny = tiny.to(device, dtype)
    with torch.inference_mode():
        rates: dict[Kind, float] = {
            "convolution": 2 * 9 * 192**2 * 2 * 16**2 / _seconds(lambda: layer(picture), device),
            "product": 2 * 128 * 512**2 / _seconds(lambda: rows @ weights, device),
            "attention": 2
            * 8
            * 256**2
            * (4 * 32 + SCORE)
            / _seconds(lambda: attend(tokens, tokens, tokens), device),
            "other": math.inf,
        }
        memory = 2 * many.nbytes / _seconds(lambda: many + 1, device)
        return Speed(rates, memory, _seconds(lambda: tiny(small), device) / _operations(tiny, small))


def _operations(network: nn.Module, given: Tensor) -> int:
    """How many operations `Counted` sees in a network."""
    counted = Counted()
    with on_meta([network]), counted:
        network(given.to("meta"))
    return counted.work.total()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The middle one of several runs."""
    taken = list[float]()
    run()
    until = time.perf_counter() + SECONDS
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
