"""Where training pictures come from: the storybook world, or a folder of captioned pictures."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mmgen import inputs
from mmgen.errors import UsageError
from mmgen.pipelines.forms import FACTOR

if TYPE_CHECKING:
    from mmgen.evaluation.judge import Judge

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Order:
    """What to draw: the number of the batch in its run, how many pictures, and their side in pixels.

    source_size: None for whole pictures; else for crops of pictures with a side of FACTOR * source_size pixels.
    """

    index: int
    count: int
    px: int
    source_size: int | None = None


class Batch(NamedTuple):
    """pixels: [B, 3, px, px], uint8. captions: one for each, none for crops.

    layout: [B, P, G, G], uint8: what stands in each cell of a grid, in P properties; None where nobody knows.
    """

    pixels: NDArray[np.uint8]
    captions: list[str]
    layout: NDArray[np.uint8] | None = None

    def tensor(self, device: torch.device) -> Tensor:
        """The pixels in [-1, 1], float32."""
        return torch.from_numpy(self.pixels).to(device).float().div_(127.5).sub_(1)


class Source(Protocol):
    """Equal orders to equal sources give equal batches, so that a resumed run continues exactly.

    layout_sizes: how many values each property of a layout has; empty: whole pictures come without one.
    """

    layout_sizes: tuple[int, ...]

    def draw(self, order: Order) -> Batch: ...


class DrawnAhead:
    """Another source's batches, drawn by worker processes before they are needed, so that a GPU need not wait.

    workers: how many processes; 0: each batch is drawn when it is asked for.
    """

    def __init__(self, source: Source, workers: int) -> None:
        self._source = source
        self._pool = None
        if workers:
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _keep, (source,))
        self.depth = 2 * workers
        self._coming: dict[Order, Future[Batch]] = {}

    def take(self, orders: Sequence[Order]) -> Batch:
        """The batch of the first order; the others, which will be asked for next, are begun."""
        if self._pool is None:
            return self._source.draw(orders[0])
        begun = self._coming
        self._coming = {o: begun.get(o) or self._pool.submit(_draw, o) for o in orders}
        for unwanted in begun.keys() - self._coming.keys():
            begun[unwanted].cancel()
        return self._coming.pop(orders[0]).result()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_kept: list[Source] = []  # in a worker process: what it draws from


def _keep(source: Source) -> None:
    # Ctrl-C reaches every process; the trainer still needs the batch that it waits for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _kept.append(source)


def _draw(order: Order) -> Batch:
    return _kept[0].draw(order)


class StorybookSource:
    """Fresh storybook scenes for ever; nothing held out is among them."""

    def __init__(self, seed: int) -> None:
        from mmgen.storybook.data import LAYOUT_SIZES
        from mmgen.storybook.sprites import SpriteBank

        self.seed = seed
        self.layout_sizes: tuple[int, ...] = LAYOUT_SIZES
        self.bank = SpriteBank()

    def __reduce__(self) -> tuple[Any, ...]:
        # another process draws its own sprites rather than being sent them
        return StorybookSource, (self.seed,)

    def draw(self, order: Order) -> Batch:
        from mmgen.storybook.data import crops, draw, layouts, scenes

        if order.source_size is None:
            made = scenes(self.seed, order.index, order.count)
            pixels = draw(made, order.px, self.bank)
            return Batch(pixels, [scene.caption for scene in made], layouts(made))
        return Batch(
            crops(self.seed, order.index, order.count, order.px, self.bank, FACTOR * order.source_size), []
        )

    def judge(self) -> Judge:
        """What tells how many pictures of this world are right."""
        from mmgen.evaluation.judge import Judge

        return Judge(self.bank)


class FolderSource:
    """Pictures with captions: a `.txt` beside each, or one `metadata.jsonl` with `file_name` and `text`.

    Pictures are turned as their Exif says and cropped to their middle square.
    Raises UsageError if a picture has no caption or there is none.
    """

    layout_sizes: tuple[int, ...] = ()

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.items = _captioned(folder)
        if not self.items:
            raise UsageError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")

    def draw(self, order: Order) -> Batch:
        rng = np.random.default_rng((self.seed, order.index))
        chosen = [self.items[i] for i in rng.integers(len(self.items), size=order.count)]
        if order.source_size is None:
            return Batch(
                np.stack([_square(path, order.px) for path, _ in chosen]), [words for _, words in chosen]
            )
        out = []
        for path, _ in chosen:
            picture = _square(path, FACTOR * order.source_size)
            top, left = rng.integers(0, order.source_size - order.px // FACTOR + 1, size=2) * FACTOR
            out.append(picture[:, top : top + order.px, left : left + order.px])
        return Batch(np.stack(out), [])


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
            picture = inputs.picture(ImageOps.exif_transpose(opened), path.name)
    # Pillow also raises SyntaxError and ValueError for broken files, and its own error for pictures that are too large
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path.name} cannot be read as a picture: {error}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    scaled = picture.resize((px, px), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return np.asarray(scaled).transpose(2, 0, 1)
