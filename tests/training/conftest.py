"""Six tiny pictures with captions, and a tiny text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmgen.models.text import TextEncoder
from tests.checkpoints import write_bert

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 220)}


def write_pictures(folder: Path, captions: str = "txt", count: int = 6) -> Path:
    """One colour above another; captions: 'txt' or 'jsonl'."""
    folder.mkdir()
    pairs = [(top, low) for top in COLOURS for low in COLOURS if top != low][:count]
    lines = []
    for i, (top, low) in enumerate(pairs):
        picture = Image.new("RGB", (24, 20), COLOURS[low])
        picture.paste(COLOURS[top], (0, 0, 24, 10))
        picture.save(folder / f"{i}.png")
        caption = f"{top} above {low}"
        if captions == "txt":
            (folder / f"{i}.txt").write_text(caption + "\n", "utf-8")
        lines.append(f'{{"file_name": "{i}.png", "text": "{caption}"}}\n')
    if captions == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(lines), "utf-8")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def encoder(text_folder: Path) -> TextEncoder:
    return TextEncoder.load(
        text_folder / "text_encoder", text_folder / "tokenizer", layer=1, dtype=torch.float32
    )
