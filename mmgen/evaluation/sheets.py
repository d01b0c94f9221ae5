"""Contact sheets: many pictures on one page, each with a small text under it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 128
LETTERS = 24
LINE = 11


def sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int, path: Path | str) -> Path:
    """Write the pictures as one PNG, `columns` wide, each CELL px with its caption under it. Returns the path.

    Small pictures are enlarged with hard pixels. Raises ValueError without pictures or with another number of captions.
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"{len(images)} pictures and {len(captions)} captions: give one caption for each picture"
        )
    texts = [textwrap.wrap(caption, LETTERS) for caption in captions]
    height = CELL + 4 + LINE * max(len(lines) for lines in texts)
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (min(columns, len(images)) * (CELL + 4), rows * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=9)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        x, y = i % columns * (CELL + 4), i // columns * height
        page.paste(_cell(image), (x, y))
        for j, line in enumerate(lines):
            draw.text((x, y + CELL + 1 + j * LINE), line, fill="black", font=font)
    target = Path(path)
    page.save(target)
    return target


def _cell(image: Image.Image) -> Image.Image:
    how = Image.Resampling.NEAREST if image.width <= CELL else Image.Resampling.BOX
    return image.convert("RGB").resize((CELL, CELL), how)
