"""Progress sheets: what a network draws by now, for the same prompts every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmgen.evaluation.judge import Judge
from mmgen.evaluation.storybook import evaluate, quick
from mmgen.images import grid, to_pil
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.families.storybook import DECODER, SUPER_RES
from mmgen.pipelines.stage import Draft, Stage, finish
from mmgen.pipelines.super_res_stage import FACTOR, SuperResStage, enlarge
from mmgen.training.data import Order, Source

PROMPTS = (
    "a red car on the street", "a cat on the grass", "a penguin in the snow", "a blue butterfly above a house",
    "two cats and a red balloon on the beach at sunset", "a green car to the left of a tree", "a yellow umbrella",
    "a rocket in a starry night", "a snowman in the snow at night", "a purple fish in the ocean",
    "an orange rabbit to the right of a blue mushroom", "two dogs on the street", "a house in the mountains",
    "a pink elephant in the desert", "a white bird above a red boat on the ocean", "a guitar in a room",
    "a black cat below a yellow balloon", "a turtle on the beach", "two red birds at sunset", "a tree at night",
    "a boat on the ocean at sunset", "a small green turtle and a big red apple", "a brown dog and a blue cat",
    "an elephant on a plain yellow background", "a purple car in the desert at night", "two yellow flowers",
    "a dog to the left of a cat", "a cat to the left of a dog", "a red cat and a blue dog", "a blue cat and a red dog",
    "a penguin above a car", "a butterfly on a plain blue background",
)  # fmt: skip


def decoder_sheet(network: Any, text: TextEncoder, path: Path) -> None:
    """The 32 fixed prompts at seed 0, four rows of eight, by the decoder alone."""
    stage = DecoderStage(network, DECODER, uses_image_embed=False)
    draft = Draft(PROMPTS, text=text.encode(PROMPTS))
    _save(_draw(stage, draft, network, [0] * len(PROMPTS)), path, columns=8, scale=2)


def quick_score(network: Any, text: TextEncoder, judge: Judge) -> dict[str, float]:
    """How many of the hundred quick prompts the decoder alone draws right, by the strict and by the lax rule."""

    def generate(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        stage = DecoderStage(network, DECODER, uses_image_embed=False)
        pixels = _draw(stage, Draft(tuple(prompts), text=text.encode(prompts)), network, seeds)
        return to_pil(pixels)

    overall = evaluate(generate, quick(), batch=32, judge=judge).overall
    return {rule: score.mean for rule, score in overall.items()}


def super_res_sheet(network: Any, source: Source, path: Path) -> None:
    """Six pictures: enlarged without the network, by it, and the truth."""
    size = network.config.sample_size
    truth = source.draw(Order(10**9, 6, size)).tensor(next(network.parameters()).device)
    low = torch.nn.functional.avg_pool2d(truth, FACTOR)
    drawn = _draw(SuperResStage(network, SUPER_RES, size=size), Draft(("",) * 6, image=low), network, [0] * 6)
    _save(torch.cat([enlarge(low), drawn, truth]), path, columns=6, scale=1)


@torch.no_grad()
def _draw(stage: Stage, draft: Draft, network: Any, seeds: list[int]) -> Tensor:
    """[B, 3, H, W] in [-1, 1]."""
    run = stage.run(draft, stage.defaults, Noise(seeds, stage.name))
    with torch.autocast(next(network.parameters()).device.type, torch.bfloat16):
        image = finish(run).image
    assert image is not None
    return image


def _save(pixels: Tensor, path: Path, *, columns: int, scale: int) -> None:
    image = grid(to_pil(pixels), columns)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
