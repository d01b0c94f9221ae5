"""The notebook face: from prompts to pictures, as a call or as a stream of steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL.Image import Image

from mmgen.errors import UsageError
from mmgen.images import to_pil
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.catalogue import fitting_side
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.vocabulary import unknown_words
from mmgen.schedulers.samplers import Step
from mmgen.types import DRAWN_SEEDS, Request, Result, StageSettings


class TextToImage:
    """A loaded model.

    cascade: its stages. name, digest: what is written into pictures. words: all that the model knows, None if that
    cannot be told. batch_size: pictures that run together; one by one a picture has the same bytes in any company.
    """

    def __init__(
        self,
        cascade: Cascade,
        *,
        name: str,
        digest: str,
        device: torch.device,
        words: frozenset[str] | None = None,
        batch_size: int = 1,
        save: Callable[[Path], None] | None = None,
    ) -> None:
        self.cascade, self.name, self.digest, self.device = cascade, name, digest, device
        self.words, self.batch_size, self._save = words, batch_size, save

    def __repr__(self) -> str:
        return f"TextToImage({self.name}: {' -> '.join(self.stage_names)}, on {self.device})"

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What settings may be given for."""
        return self.cascade.names

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the square pictures it can draw."""
        return self.cascade.sizes

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
    ) -> Result:
        """Draw every prompt with every seed.

        seeds: one picture each. count: that many pictures per prompt, seeds counted up from a drawn one; not both.
        size: side in pixels, the model's largest if None. stages: settings by stage name.
        Raises UsageError where a value cannot be meant, NonFiniteError if a network fails.
        """
        if seeds is not None and count is not None:
            raise UsageError("give seeds or count, not both")
        if seeds is None:
            if count is not None and count < 1:
                raise UsageError(f"count is {count}: draw at least one picture")
            first = secrets.randbelow(DRAWN_SEEDS)
            seeds = range(first, first + (1 if count is None else count))
        chosen = [prompts] if isinstance(prompts, str) else prompts
        return self.run(
            self.request(chosen, seeds=seeds, size=size, negative_prompt=negative_prompt, stages=stages)
        )

    def request(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
    ) -> Request:
        """All that is needed to repeat the pictures: every setting of every stage that runs, defaults included."""
        side = self._side(size)
        given = dict(stages or {})
        if unknown := sorted(set(given) - set(self.stage_names)):
            raise UsageError(f"no stage {unknown[0]!r}: {self.name} has {', '.join(self.stage_names)}")
        return Request(
            prompts=tuple(prompts),
            seeds=tuple(seeds),
            size=(side, side),
            negative_prompt=negative_prompt,
            stages=self.cascade.up_to(side).resolve(given),
            model=self.name,
            model_digest=self.digest,
        )

    def run(self, request: Request) -> Result:
        """Draw a request, as `request` made it or as a picture's metadata holds it."""
        return finish(self.stream(request))

    def stream(self, request: Request) -> Generator[Step, None, Result]:
        """Draw a request step by step; the generator's value is the Result. Raises UsageError if it does not fit."""
        if request.model_digest not in ("", self.digest):
            raise UsageError(
                f"the request was made for {request.model} {request.model_digest[:12]}, this is {self.name} "
                f"{self.digest[:12]}: the same picture cannot come of it. Clear model_digest to draw it anyway"
            )
        cascade = self.cascade.up_to(self._side(request.size))
        request = replace(request, stages=cascade.resolve(request.stages))
        images: list[Image] = []
        clock = Clock(self.device)
        for pictures in _batches(request.pictures(), self.batch_size):
            prompts, seeds = zip(*pictures, strict=True)
            draft = Draft(prompts, request.negative_prompt)
            draft = yield from cascade.run(draft, request.stages, seeds, clock)
            assert draft.image is not None
            images += to_pil(draft.image)
        return Result(request, tuple(images), clock.records, self._unknown(request.prompts))

    def _side(self, size: int | tuple[int, int] | None) -> int:
        if size is None:
            return self.sizes[-1]
        return fitting_side((size, size) if isinstance(size, int) else size, self.sizes, self.name)

    def _unknown(self, prompts: Iterable[str]) -> dict[str, dict[str, str]]:
        if self.words is None:
            return {}
        found = {prompt: unknown_words(prompt, self.words) for prompt in prompts}
        return {prompt: words for prompt, words in found.items() if words}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as an ordinary checkpoint folder, with the sha256 of every file."""
        if self._save is None:
            raise UsageError(f"{self.name} was not loaded from parts that can be saved")
        self._save(Path(folder))


def _batches(pictures: Iterable[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    everything = list(pictures)
    return [everything[i : i + size] for i in range(0, len(everything), size)]
