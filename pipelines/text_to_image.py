"""The notebook face: from prompts to pictures, as a call or as a stream of steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from mmgen.errors import UsageError
from mmgen.images import to_pil
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.catalogue import fitting_side
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.notebook import OnStepEnd, drain, following, step_end
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
        prompts: str | Sequence[str] | Request,
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """Draw every prompt with every seed, while a person looks on.

        prompts: a request may stand here too, which says the rest itself. seeds, count, size, negative_prompt, stages:
        as `request` takes them.
        progress: bars, in Jupyter previews too; None = where a person follows, at a terminal or in Jupyter.
        callback_on_step_end: called after every step, see `mmgen.pipelines.notebook.step_end`.
        KeyboardInterrupt ends the drawing: the pictures that are done are returned, and the result is not `complete`;
        if there are none it is raised. Raises UsageError where a value cannot be meant, NonFiniteError if a network
        fails.
        """
        request = self._asked(
            prompts, seeds=seeds, count=count, size=size, negative_prompt=negative_prompt, stages=stages
        )
        return self._followed(request, progress, callback_on_step_end)

    def request(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
    ) -> Request:
        """All that is needed to repeat the pictures: every setting of every stage that runs, defaults included.

        seeds: one picture each. count: that many pictures per prompt, seeds counted up from a drawn one; not both.
        size: side in pixels, the model's largest if None. stages: settings by stage name.
        Raises UsageError where a value cannot be meant.
        """
        side = self._side(size)
        given = dict(stages or {})
        if unknown := sorted(set(given) - set(self.stage_names)):
            raise UsageError(f"no stage {unknown[0]!r}: {self.name} has {', '.join(self.stage_names)}")
        return Request(
            prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts),
            seeds=_seeds(seeds, count),
            size=(side, side),
            negative_prompt=negative_prompt,
            stages=self.cascade.up_to(side).resolve(given),
            model=self.name,
            model_digest=self.digest,
        )

    def run(self, request: Request) -> Result:
        """Draw a request, as `request` made it or as a picture's metadata holds it, with nobody looking on."""
        return finish(self.stream(request))

    def stream(
        self,
        prompts: str | Sequence[str] | Request,
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
    ) -> Generator[Step, None, Result]:
        """Draw step by step: the generator's steps are those of every stage, its value is the Result.

        The arguments are those of a call. Raises UsageError at once where a value cannot be meant.
        """
        request = self._asked(
            prompts, seeds=seeds, count=count, size=size, negative_prompt=negative_prompt, stages=stages
        )
        return self._draw(request, [], Clock(self.device))

    def _asked(self, asked: str | Sequence[str] | Request, **given: Any) -> Request:
        """The complete request, from prompts and what is given for them, or from a request with nothing given."""
        if not isinstance(asked, Request):
            return self.request(asked, **given)
        if extra := [name for name, value in given.items() if value is not None and value != ""]:
            raise UsageError(f"a request says everything itself: leave {extra[0]} out, or give prompts")
        if asked.model_digest not in ("", self.digest):
            raise UsageError(
                f"the request was made for {asked.model} {asked.model_digest[:12]}, this is {self.name} "
                f"{self.digest[:12]}: the same picture cannot come of it. Clear model_digest to draw it anyway"
            )
        return replace(asked, stages=self.cascade.up_to(self._side(asked.size)).resolve(asked.stages))

    def _followed(self, request: Request, progress: bool | None, on_step_end: OnStepEnd | None) -> Result:
        images: list[Image] = []
        clock = Clock(self.device)
        batches = len(_batches(request.pictures(), self.batch_size))
        try:
            with following(progress, batches) as views:
                if on_step_end is not None:
                    views.append(step_end(self, on_step_end))
                return drain(self._draw(request, images, clock), views)
        except KeyboardInterrupt:
            if not images:
                raise
            return self._result(request, images, clock)

    def _draw(self, request: Request, images: list[Image], clock: Clock) -> Generator[Step, None, Result]:
        """Draw a complete request. images: takes the pictures as they are done, so that no interruption loses them."""
        cascade = self.cascade.up_to(self._side(request.size))
        for pictures in _batches(request.pictures(), self.batch_size):
            prompts, seeds = zip(*pictures, strict=True)
            draft = Draft(prompts, request.negative_prompt)
            draft = yield from cascade.run(draft, request.stages, seeds, clock)
            assert draft.image is not None
            images += to_pil(draft.image)
        return self._result(request, images, clock)

    def _result(self, request: Request, images: Sequence[Image], clock: Clock) -> Result:
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


def _seeds(seeds: Sequence[int] | None, count: int | None) -> tuple[int, ...]:
    """The seeds that are given, or `count` that count up from a drawn one."""
    if seeds is not None and count is not None:
        raise UsageError("give seeds or count, not both")
    if isinstance(seeds, int):
        raise UsageError(f"seeds is {seeds}: give a list, such as [{seeds}]")
    if seeds is not None:
        return tuple(seeds)
    if count is not None and count < 1:
        raise UsageError(f"count is {count}: draw at least one picture")
    first = secrets.randbelow(DRAWN_SEEDS)
    return tuple(range(first, first + (1 if count is None else count)))


def _batches(pictures: Iterable[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    everything = list(pictures)
    return [everything[i : i + size] for i in range(0, len(everything), size)]
