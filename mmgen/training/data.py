"""Where training pictures come from: the storybook world, or a folder of captioned pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmgen.errors import UsageError

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


class Batch(NamedTuple):
    """pixels: [B, 3, px, px] in [-1, 1], float32. captions: one per picture."""

    pixels: Tensor
    captions: list[str]


class Source(Protocol):
    """The same (seed, index, count, px) gives the same batch, so that a resumed run continues exactly."""

    def batch(self, index: int, count: int, px: int) -> Batch: ...

    def crops(self, index: int, count: int, px: int, source_size: int) -> Tensor:
        """[count, 3, px, px] in [-1, 1]: crops of pictures drawn with a side of 4 * source_size pixels."""
        ...


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1]."""
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1)


class StorybookSource:
    """Fresh storybook scenes for ever; nothing held out is among them."""

    def __init__(self, seed: int) -> None:
        from mmgen.storybook.sprites import SpriteBank

        self.seed = seed
        self.bank = SpriteBank()

    def batch(self, index: int, count: int, px: int) -> Batch:
        from mmgen.storybook.data import batch

        pixels, captions = batch(self.seed, index, count, px, self.bank)
        return Batch(to_tensor(pixels), captions)

    def crops(self, index: int, count: int, px: int, source_size: int) -> Tensor:
        from mmgen.storybook.data import crop_pair

        high, _ = crop_pair(self.seed, index, count, px // 4, self.bank, px=4 * source_size)
        return to_tensor(high)


class FolderSource:
    """Pictures with captions: a `.txt` beside each, or one `metadata.jsonl` with `file_name` and `text`.

    Pictures are cropped to their middle square. Raises UsageError if a picture has no caption or there is none.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.items = _captioned(folder)
        if not self.items:
            raise UsageError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")

    def batch(self, index: int, count: int, px: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        chosen = [self.items[i] for i in rng.integers(len(self.items), size=count)]
        pixels = np.stack([_square(path, px) for path, _ in chosen])
        return Batch(to_tensor(pixels), [caption for _, caption in chosen])

    def crops(self, index: int, count: int, px: int, source_size: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        side, out = 4 * source_size, []
        for i in rng.integers(len(self.items), size=count):
            picture = _square(self.items[i][0], side)
            top, left = rng.integers(0, (side - px) // 4 + 1, size=2) * 4
            out.append(picture[:, top : top + px, left : left + px])
        return to_tensor(np.stack(out))


def open_source(data: str, seed: int) -> Source:
    """'storybook', or a folder. Raises UsageError for anything else."""
    if data == "storybook":
        return StorybookSource(seed)
    if not Path(data).is_dir():
        raise UsageError(f"--data {data!r}: give 'storybook' or a folder of captioned pictures")
    return FolderSource(Path(data), seed)


def _captioned(folder: Path) -> list[tuple[Path, str]]:
    listed = _metadata(folder / "metadata.jsonl")
    items = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES):
        text = path.with_suffix(".txt")
        caption = listed.get(path.relative_to(folder).as_posix())
        if caption is None and text.is_file():
            caption = _read(text).strip()
        if not caption:
            raise UsageError(f"{path.name} has no caption: put it into {text.name} or into metadata.jsonl")
        items.append((path, caption))
    return items


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
                captions[str(entry["file_name"])] = str(entry["text"])
            except (ValueError, KeyError, TypeError):
                raise UsageError(
                    f"{path.name}, line {number}: expected an object with file_name and text"
                ) from None
    return captions


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} cannot be read as text: {error}") from None


def _square(path: Path, px: int) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    # Pillow also raises SyntaxError and ValueError for broken files, and its own error for pictures that are too large
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path.name} cannot be read as a picture: {error}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    scaled = picture.resize((px, px), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return np.asarray(scaled).transpose(2, 0, 1)
