"""Progress sheets: what a network draws by now, for the same prompts every time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmgen.conditioning import Conditioning, concat
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.training.data import Source

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


@torch.no_grad()
def draw(network: Any, text: TextEncoder, prompts: list[str], seeds: list[int], steps: int = 16) -> Tensor:
    """[B, 3, S, S] in [-1, 1], by the guided decoder alone."""
    size, count = network.config.sample_size, len(prompts)
    device = next(network.parameters()).device
    words = text.encode(prompts)
    drop = torch.tensor([False] * count + [True] * count, device=device)
    both = concat([Conditioning(text=words.text, text_mask=words.text_mask, pooled=words.pooled)] * 2)
    cond = Conditioning(text=both.text, text_mask=both.text_mask, pooled=both.pooled, drop_text=drop)
    times = torch.linspace(1, 0, steps + 1)
    with torch.autocast(device.type, torch.bfloat16):
        prepared = network.prepare(cond)
        x = Noise(seeds, "decoder").draw((3, size, size)).to(device)
        for t, s in pairwise(times):
            x0 = network(x.repeat(2, 1, 1, 1), t.expand(2 * count).to(device), prepared).float()
            with_text, without = x0.chunk(2)
            x0 = (without + 3.0 * (with_text - without)).clamp(-1, 1)
            x = x0 + (x - x0) * (s / t).to(device)
    return x


def decoder_sheet(network: Any, text: TextEncoder, path: Path) -> None:
    """The 32 fixed prompts at seed 0, four rows of eight."""
    _save(draw(network, text, list(PROMPTS), [0] * len(PROMPTS)), path, columns=8, scale=2)


@torch.no_grad()
def super_res_sheet(network: Any, source: Source, path: Path) -> None:
    """Crops at both scales: enlarged without the network, by it in two steps, and the truth."""
    from mmgen.training.recipes import enlarge

    rows = []
    device = next(network.parameters()).device
    for source_size in (64, 256):
        truth = source.crops(10**9, 6, 128, source_size).to(device)
        low_res = enlarge(torch.nn.functional.avg_pool2d(truth, 4))
        level = torch.full((6,), 0.05, device=device)
        cond = Conditioning(
            low_res=low_res,
            noise_level=level,
            source_size=torch.full((6,), float(source_size), device=device),
        )
        with torch.autocast(device.type, torch.bfloat16):
            prepared = network.prepare(cond)
            r = Noise(range(6), "super-res").draw((3, 128, 128)).to(device)
            for t, s in ((1.0, 0.5), (0.5, 0.0)):
                r0 = network(r, torch.full((6,), t, device=device), prepared).float()
                r = r0 + (r - r0) * (s / t)
        rows += [low_res, (low_res + network.config.residual_scale * r).clamp(-1, 1), truth]
    _save(torch.cat(rows), path, columns=6, scale=1)


def _save(pixels: Tensor, path: Path, *, columns: int, scale: int) -> None:
    rows = pixels.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    image = Image.fromarray(rows.add(1).mul(127.5).clamp(0, 255).round().byte().cpu().numpy())
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
