"""mmgen beside diffusers: the same weights, steps and guidance on this machine, as one Markdown table.

    python benchmarks/beside_diffusers.py

Untuned is a pipeline of diffusers as `from_pretrained` gives it: float32, contiguous, one picture at a time. Tuned is
the same loop in mmgen's dtype, channels last, pictures in one batch. Both halves of guidance are one call everywhere.
Our networks make their feature maps channels last themselves, so that only the stock U-Net is contiguous throughout.
Milliseconds are medians of runs that take turns; start-up is whole processes. floor: the arithmetic of mmgen's side at
the rate that dense 3x3 convolutions reach here. Pictures are sampled by Euler, the sampler for flow that both have;
those of one dtype are compared, so that it is seen that the work is the same.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers_loop
import numpy as np
import torch
from cascade import PROMPT, convolution_rate, stage_flop
from side_by_side import CPU, conditions, decoder_and_draft, interleaved
from torch.utils.flop_counter import FlopCounterMode

import mmgen
from mmgen import Request, StageSettings, threshold
from mmgen.conditioning import concat
from mmgen.memory import choose_dtype, place
from mmgen.noise import Noise
from mmgen.pipelines.sources import find
from mmgen.pipelines.stage import finish

HERE = Path(__file__).resolve().parent
STOCK = (32, 64, 96)  # widths at which a stock U-Net has the arithmetic of the bundled decoder
SAME = 0.1  # of 255, on average: pictures of one dtype that differ by rounding alone
THEIR_START = "import sys, diffusers_loop; diffusers_loop.first_step(*sys.argv[1:])"
OUR_START = "import sys, mmgen; next(mmgen.load(sys.argv[1], device='cpu').stream(sys.argv[2], seeds=[1]))"
Seconds = Mapping[str, float]
"""Of "untuned", "tuned" and "mmgen"; "tuned" is missing where there is nothing to tune."""


class Peers(NamedTuple):
    """One checkpoint three times: in a loop of diffusers as it comes, in the same loop tuned, and in mmgen."""

    untuned: diffusers_loop.Parts
    tuned: diffusers_loop.Parts
    pipe: mmgen.TextToImage


def load_peers(folder: Path) -> Peers:
    """All three from their files."""
    return Peers(
        diffusers_loop.load(folder, tuned=False),
        diffusers_loop.load(folder, tuned=True),
        mmgen.load(folder, device="cpu"),
    )


def asked(pipe: mmgen.TextToImage, count: int = 1) -> Request:
    """The model's own request but for the samplers, with seeds from 1 on."""
    euler = StageSettings(sampler="euler")
    return pipe.request(PROMPT, seeds=range(1, 1 + count), stages={"prior": euler, "decoder": euler})


def decoder_step(peers: Peers, repeats: int) -> Seconds:
    """One guided step of the decoder: a whole run of it, divided by its steps."""
    stages = asked(peers.pipe).stages
    settings = stages["decoder"]
    decoder, draft = decoder_and_draft(peers.pipe, PROMPT)

    def theirs(parts: diffusers_loop.Parts) -> partial[Any]:
        told = diffusers_loop.told(parts, [PROMPT], stages["prior"], [1])
        return partial(diffusers_loop.decode, parts, told, settings, [1])

    ways = {
        "untuned": theirs(peers.untuned),
        "tuned": theirs(peers.tuned),
        "mmgen": lambda: finish(decoder.run(draft, settings, Noise([1], "decoder"))),
    }
    assert settings.steps is not None
    return {way: taken / settings.steps for way, taken in interleaved(ways, repeats).items()}


def network_call(peers: Peers, channels: Sequence[int], repeats: int) -> tuple[Seconds, dict[str, int]]:
    """One call with two rows of the stock U-Net and of the decoder's network, and the FLOP of both."""
    stage, draft = decoder_and_draft(peers.pipe, PROMPT)
    ours, text = stage.network, replace(draft.text, image_embed=draft.image_embed.to(stage.network.dtype))
    text = concat([text, text])
    x = Noise([1, 2]).draw((3, ours.config.sample_size, ours.config.sample_size))
    t, prepared = torch.tensor([0.5, 0.5]), ours.prepare(text)
    stock = diffusers_loop.stock_unet(ours.config.sample_size, channels, ours.config.text_dim).eval()
    dtype = ours.dtype
    tuned = place(copy.deepcopy(stock), CPU, dtype)
    ways = {
        "untuned": partial(stock, x, 1000 * t, text.text.float()),
        "tuned": partial(tuned, x.to(dtype, memory_format=torch.channels_last), 1000 * t, text.text),
        "mmgen": partial(ours, x.to(dtype), t, prepared),
    }
    flop = {}
    for way in ("untuned", "mmgen"):
        with FlopCounterMode(display=False) as counter:
            ways[way]()
        flop[way] = counter.get_total_flops()
    return interleaved(ways, repeats), flop


def whole_cascade(peers: Peers, count: int, repeats: int) -> Seconds:
    """From the prompt to `count` pictures in the model's largest size: batched where tuned, else one by one."""
    request = asked(peers.pipe, count)

    def one_by_one() -> None:
        for seed in request.seeds:
            diffusers_loop.draw(peers.untuned, [PROMPT], [seed], request.stages)

    ways = {
        "untuned": one_by_one,
        "tuned": partial(diffusers_loop.draw, peers.tuned, [PROMPT] * count, request.seeds, request.stages),
        "mmgen": partial(peers.pipe, request, progress=False),
    }
    return interleaved(ways, repeats)


def thresholding(side: int, batch: int, repeats: int) -> Seconds:
    """Dynamic thresholding of pictures that need it. Raises AssertionError if both are not the same."""
    settings = StageSettings(threshold=0.995, threshold_cap=1.5)
    x0 = 1.5 * Noise(range(batch)).draw((3, side, side))
    theirs, ours = diffusers_loop.limiter(settings)._threshold_sample, threshold.make(0.995, 1.5)
    torch.testing.assert_close(ours(x0), theirs(x0))
    return interleaved({"untuned": partial(theirs, x0), "mmgen": partial(ours, x0)}, repeats)


def starts(folder: Path) -> dict[str, list[str]]:
    """Commands that load the checkpoint in a new process and end after the first step of its decoder."""
    python = [sys.executable, "-c"]
    return {
        "untuned": [*python, THEIR_START, str(folder), "untuned", PROMPT],
        "tuned": [*python, THEIR_START, str(folder), "tuned", PROMPT],
        "mmgen": [*python, OUR_START, str(folder), PROMPT],
    }


def start_up(folder: Path, repeats: int) -> Seconds:
    """Whole processes, from nothing to the first step."""
    return interleaved(
        {
            way: partial(subprocess.run, command, cwd=HERE, check=True, capture_output=True)
            for way, command in starts(folder).items()
        },
        repeats,
    )


def apart(parts: diffusers_loop.Parts, pipe: mmgen.TextToImage) -> tuple[int, float]:
    """How far the pictures of both loops are apart in levels of 255: the most, and the mean."""
    request = asked(pipe)
    gaps = [
        np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
        for one, other in zip(
            diffusers_loop.draw(parts, [PROMPT], request.seeds, request.stages),
            pipe(request, progress=False),
            strict=True,
        )
    ]
    return max(int(gap.max()) for gap in gaps), float(np.mean(gaps))


def check_work(peers: Peers, exact: mmgen.TextToImage) -> str:
    """How far the pictures of both loops are apart in both dtypes. Raises SystemExit if in float32 they are not one."""
    (most, mean), (most_tuned, mean_tuned) = apart(peers.untuned, exact), apart(peers.tuned, peers.pipe)
    if mean > SAME:
        raise SystemExit(
            f"the float32 pictures differ by {mean:.2f} of 255 on average: it is not the same work"
        )
    return (
        f"Pictures of diffusers and mmgen differ by {mean:.3f} of 255 on average and {most} at most in float32, "
        f"tuned by {mean_tuned:.3f} and {most_tuned}."
    )


def row(what: str, taken: Seconds, floor: float | None = None) -> str:
    """One row of the table: milliseconds, how many times as fast mmgen is, and the floor; "-" where there is none."""
    ways = [taken.get("untuned"), taken.get("tuned"), taken["mmgen"]]
    cells = [f"{1e3 * seconds:.2f}" if seconds else "-" for seconds in ways]
    cells += [f"{seconds / taken['mmgen']:.2f}" if seconds else "-" for seconds in ways[:2]]
    cells.append(f"{1e3 * floor:.2f}" if floor else "-")
    return f"| {' | '.join([what, *cells])} |"


def main() -> None:
    """Print how far the pictures are apart, then the table."""
    folder = find("storybook")
    peers = load_peers(folder)
    same = check_work(peers, mmgen.load(folder, "cpu", "float32"))
    rate, flop = convolution_rate(choose_dtype(None, CPU)), stage_flop(peers.pipe)
    print(f"{conditions()}; dense convolutions reach {rate / 1e9:,.0f} GFLOP/s.")
    print(f"{same}\n")
    print("| ms | diffusers | diffusers, tuned | mmgen | times as fast | as tuned | floor |")
    print("|---|---|---|---|---|---|---|")
    steps = asked(peers.pipe).stages["decoder"].steps or 1
    print(row("decoder step", decoder_step(peers, 5), flop["decoder"] / steps / rate), flush=True)
    taken, calls = network_call(peers, STOCK, 30)
    what = f"network alone, {calls['untuned'] / 1e9:.1f} and {calls['mmgen'] / 1e9:.1f} GFLOP"
    print(row(what, taken, calls["mmgen"] / rate), flush=True)
    for count in (1, 4):
        floor = count * sum(flop.values()) / rate
        print(row(f"whole cascade, {count} at 1024 px", whole_cascade(peers, count, 5), floor), flush=True)
    for side, batch in ((64, 1), (64, 16), (256, 1), (256, 16)):
        print(row(f"thresholding, {batch} at {side} px", thresholding(side, batch, 50)), flush=True)
    print(row("start-up to the first step", start_up(folder, 5)), flush=True)


if __name__ == "__main__":
    main()
