"""What each stage takes: wall clock, steps, and memory."""

from __future__ import annotations

import time
from collections.abc import Generator

import torch

from mmgen.memory import peak_bytes, reset_peak, wait_for
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step
from mmgen.types import StageRecord


class Clock:
    """One StageRecord for each stage, in the order in which they began, summed over batches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._records: dict[str, StageRecord] = {}
        reset_peak(device)

    @property
    def records(self) -> tuple[StageRecord, ...]:
        """Of the stages that have ended or taken a step."""
        return tuple(self._records.values())

    def watch(self, stage: str, run: Generator[Step, None, Draft]) -> Generator[Step, None, Draft]:
        """Pass a stage's steps on, in inference mode; time spent by whoever receives them is not counted."""
        while True:
            started = time.perf_counter()
            try:
                # around one step and not around `yield`: the mode would stay on in whoever receives the step
                with torch.inference_mode():
                    step = next(run)
            except StopIteration as done:
                wait_for(self._device)  # or the next stage would wait for what this one began
                self._add(stage, time.perf_counter() - started, steps=0)
                draft: Draft = done.value
                return draft
            self._add(stage, time.perf_counter() - started, steps=1)
            yield step

    def _add(self, stage: str, seconds: float, steps: int) -> None:
        old = self._records.get(stage, StageRecord(stage, 0.0, 0))
        peak = max(old.peak_bytes, peak_bytes(self._device))
        self._records[stage] = StageRecord(stage, old.seconds + seconds, old.steps + steps, peak)
