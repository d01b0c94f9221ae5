"""Whether the decoder gains by keeping its deep features from step to step, as a table and a verdict.

    python benchmarks/kept_features.py

The lowest resolution of the U-Net is computed at every second or third step only. What that buys must be better than
what fewer steps buy in the same time, so both stand in the table. difference: the mean over pictures, in levels of 255,
from the pictures of four times as many steps. Milliseconds are medians of runs that take turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from cascade import PROMPT
from side_by_side import conditions, decoder_and_draft, interleaved
from torch import Tensor, nn

import mmgen
from mmgen.nn.blocks import AttentionBlock
from mmgen.noise import Noise
from mmgen.pipelines.stage import Draft, finish

PERIODS = (2, 3)
PROMPTS = (PROMPT, "a blue fish", "a snail in the snow at night", "a green car to the left of a yellow house")
FINE = 4


class Kept(nn.Module):
    """A level of a U-Net that is computed at every `period`-th call and handed out again in between.

    Source: Ma et al. 2023 (DeepCache), arXiv:2312.00858, section 3.2.
    """

    def __init__(self, level: nn.Module, period: int) -> None:
        super().__init__()
        self.level, self.period, self.calls = level, period, 0
        self.attends = sum(isinstance(part, AttentionBlock) for part in level.modules())

    def forward(self, x: Tensor, vector: Tensor, text_kv: Iterator[Any], text_mask: Tensor | None) -> Tensor:
        if self.calls % self.period == 0:
            self.kept: Tensor = self.level(x, vector, text_kv, text_mask)
        else:
            for _ in range(self.attends):  # the levels above take what follows
                next(text_kv, None)
        self.calls += 1
        return self.kept


@contextmanager
def keeping(network: Any, period: int) -> Iterator[None]:
    """The network with its lowest resolution computed at every `period`-th call, counted from now."""
    level = network.middle
    network.middle = Kept(level, period)
    try:
        yield
    finally:
        network.middle = level


class Way(NamedTuple):
    """A run of the decoder. period: the lowest resolution is computed at every `period`-th step."""

    steps: int
    period: int = 1


class Outcome(NamedTuple):
    """Seconds of one picture, and how far pictures are from those of many more steps, in levels of 255."""

    seconds: float
    difference: float


def decode(stage: Any, draft: Draft, way: Way, seed: int = 1) -> Tensor:
    """The decoder's picture, [1, 3, H, W]. By Euler, which nears one picture the more steps it takes."""
    settings = replace(stage.defaults, steps=way.steps, sampler="euler")
    with keeping(stage.network, way.period):
        image = finish(stage.run(draft, settings, Noise([seed], stage.name))).image
    assert image is not None
    return image


def measure(pipe: mmgen.TextToImage, repeats: int) -> dict[Way, Outcome]:
    """The decoder's own steps, each period, and the fewer steps that take as long as each period."""
    stage, *drafts = decoder_and_draft(pipe, PROMPTS[0])
    drafts += [decoder_and_draft(pipe, prompt)[1] for prompt in PROMPTS[1:]]
    whole = Way(stage.defaults.steps)

    def timed(ways: list[Way]) -> dict[Way, float]:
        return interleaved({way: partial(decode, stage, drafts[0], way) for way in ways}, repeats)

    taken = timed([whole, *(whole._replace(period=period) for period in PERIODS)])
    fewer = {max(1, round(whole.steps * seconds / taken[whole])) for seconds in taken.values()}
    # all once more in one round of turns: between two rounds a machine may change its speed
    taken = timed([*taken, *(Way(steps) for steps in sorted(fewer - {whole.steps}, reverse=True))])

    def pictures(way: Way) -> Tensor:
        return torch.cat([decode(stage, draft, way, seed) for seed, draft in enumerate(drafts, 1)])

    fine = pictures(Way(FINE * whole.steps))
    return {
        way: Outcome(seconds, 127.5 * float((pictures(way) - fine).abs().mean()))
        for way, seconds in taken.items()
    }


def gains(outcomes: Mapping[Way, Outcome]) -> list[Way]:
    """The ways with kept features that are faster than all steps, and nearer than any fewer steps as fast as they."""
    plain = [outcome for way, outcome in outcomes.items() if way.period == 1]
    slowest = max(outcome.seconds for outcome in plain)
    return [
        way
        for way, (seconds, difference) in outcomes.items()
        if way.period > 1
        and seconds < slowest
        # as fast: rounded to whole steps, so to a twentieth
        and all(difference < other.difference for other in plain if other.seconds <= 1.05 * seconds)
    ]


def main() -> None:
    """Print the table and the verdict."""
    print(f"{conditions()}\n")
    outcomes = measure(mmgen.load("storybook", device="cpu"), 5)
    print("| steps | lowest resolution | ms | times as fast | difference |\n|---|---|---|---|---|")
    slowest = max(outcome.seconds for way, outcome in outcomes.items() if way.period == 1)
    for way, (seconds, difference) in outcomes.items():
        every = "every step" if way.period == 1 else f"1 step in {way.period}"
        print(f"| {way.steps} | {every} | {1e3 * seconds:.1f} | {slowest / seconds:.2f} | {difference:.2f} |")
    print(f"\nVerdict: keeping features {'comes in' if gains(outcomes) else 'stays out'}.")


if __name__ == "__main__":
    main()
