"""What benchmarks of one way beside another share: the decoder's input, times taken in turn, the conditions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import diffusers
import torch

import mmgen
from mmgen.memory import choose_dtype
from mmgen.noise import Noise
from mmgen.pipelines.stage import Draft, finish

Way = TypeVar("Way", bound=Hashable)
CPU = torch.device("cpu")


def decoder_and_draft(pipe: mmgen.TextToImage, prompt: str) -> tuple[Any, Draft]:
    """The decoder's stage, and the prompt with all that the stages before it make of it."""
    draft = Draft((prompt,))
    *before, decoder = pipe.cascade.stages[: 1 + pipe.stage_names.index("decoder")]
    for stage in before:
        draft = finish(stage.run(draft, stage.defaults, Noise([1], stage.name)))
    return decoder, draft


def interleaved(ways: Mapping[Way, Callable[[], object]], repeats: int) -> dict[Way, float]:
    """Median seconds of each way, after one round that is not counted.

    They take turns, so that what slows the machine slows all of them.
    """
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(1 + repeats):
        for way, action in ways.items():
            started = time.perf_counter()
            action()
            taken[way].append(time.perf_counter() - started)
    return {way: statistics.median(seconds[1:]) for way, seconds in taken.items()}


def conditions() -> str:
    """What the figures depend on beside the code, in one line."""
    has_bf16, has_amx = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    return (
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'yes' if has_bf16 else 'no'}, "
        f"AMX {'yes' if has_amx else 'no'}, mmgen in {str(choose_dtype(None, CPU)).removeprefix('torch.')}"
    )
