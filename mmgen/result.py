"""What came of a request: its pictures, as a sequence that shows and saves itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import overload

from PIL.Image import Image

from mmgen.errors import UsageError
from mmgen.images import FORMATS, Format, check_fits, grid, write_picture
from mmgen.thumbnails import figures
from mmgen.types import Request, StageRecord

CAPTION_CHARS = 120  # of a prompt: more would bury the picture that stands above it


@dataclass(frozen=True)
class Result(Sequence[Image]):
    """The pictures of a request, in its order, with what they took. A sequence of PIL images; a slice is a tuple.

    request: what was asked for. If the drawing was interrupted, the pictures are the first of it: see `complete`.
    unknown_words: by prompt, the words the model does not know, each with the nearest that it does.
    cut_words: by prompt, the negative one too, the words at its end that did not fit the model's text encoder.
    """

    request: Request
    images: tuple[Image, ...]
    records: tuple[StageRecord, ...] = ()
    unknown_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cut_words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every picture that was asked for is there."""
        return len(self.images) >= self._asked

    @property
    def _asked(self) -> int:
        return sum(1 for _ in self.request.pictures())

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image | tuple[Image, ...]:
        return self.images[index]

    def __repr__(self) -> str:
        width, height = self.request.size
        total = len(self) if self.complete else self._asked
        count = f"{total}" if self.complete else f"{len(self)} of {total}"
        seconds = sum(r.seconds for r in self.records)
        return f"Result({count} picture{'s' * (total != 1)}, {width}x{height}, {seconds:.1f} s)"

    def _repr_html_(self) -> str:
        """What Jupyter shows: thumbnails, each with its prompt and seed."""
        return figures(self.images, self._captions())

    def grid(self, columns: int = 4) -> Image:
        """All in one picture, row by row, each with its prompt and seed. Raises UsageError if there are none."""
        return grid(self.images, columns, self._captions())

    def save(self, folder: str | os.PathLike[str], format: Format = "png") -> list[Path]:
        """Write every picture with its own settings into `folder`, made if it is not there. Returns the new names.

        format: png, jpeg or webp. No file is replaced: the names are NUMBER-PROMPT-SEED, counted on from the highest.
        Raises UsageError, before anything is written, for another format and for settings that do not fit into it;
        MachineError where disk, folder or permission is in the way.
        """
        if format not in FORMATS:
            raise UsageError(f"no format {format!r}: choose one of {', '.join(FORMATS)}")
        singles = list(islice(self.request.singles(), len(self.images)))
        for single in singles:
            check_fits(format, single)
        return [
            write_picture(image, single, Path(folder), format)
            for image, single in zip(self.images, singles, strict=True)
        ]

    def _pictures(self) -> Iterator[tuple[str, int]]:
        """(prompt, seed) of every picture that is there."""
        return islice(self.request.pictures(), len(self.images))

    def _captions(self) -> list[str]:
        named = ((short(prompt), f"seed {seed}") for prompt, seed in self._pictures())
        return [", ".join(filter(None, words)) for words in named]


def short(prompt: str) -> str:
    """A prompt as a caption."""
    return prompt if len(prompt) <= CAPTION_CHARS else f"{prompt[:CAPTION_CHARS]}..."
