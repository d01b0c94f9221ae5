"""The notebook face: from prompts to pictures, as a call or as a stream of steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from mmgen import attention, inputs
from mmgen.errors import UsageError
from mmgen.images import to_pil, to_tensor
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.catalogue import fitting_side
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.editing import Known, known, over
from mmgen.pipelines.notebook import OnStepEnd, drain, following, step_end
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_stage import cut_words
from mmgen.pipelines.unclip import Unclip
from mmgen.pipelines.vocabulary import unknown_words
from mmgen.result import Result
from mmgen.schedulers.samplers import Step
from mmgen.types import (
    AMOUNT,
    DRAWN_SEEDS,
    MAX_WEIGHTS,
    UNCLIP,
    Request,
    StageSettings,
    Verb,
    check_prompt,
)

_HOW: Mapping[str, str] = {
    "generate": "call the model with it",
    "edit": "give it to `edit`, with its picture",
    "upscale": "give its picture, prompt, seed and settings to `upscale`",
    **dict.fromkeys(UNCLIP, "give it to `run`, with its pictures"),
}
Draw = Callable[[list[Image], Clock], Generator[Step, None, Result]]
"""(images, clock) -> steps and the result; images takes the pictures as they are done: no interruption loses them."""


class TextToImage:
    """A loaded model.

    cascade: its stages. name, digest: what is written into pictures. words: all that the model knows, None if that
    cannot be told. batch_size: pictures that run together; one by one a picture has the same bytes in any company.
    file_bytes: of a network, what the files take that it is read from.
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
        file_bytes: Mapping[torch.nn.Module, int] | None = None,
    ) -> None:
        self.cascade, self.name, self.digest, self.device = cascade, name, digest, device
        self.words, self.batch_size, self._save = words, batch_size, save
        self.file_bytes = file_bytes or {}

    def __repr__(self) -> str:
        return f"TextToImage({self.name}: {' -> '.join(self.stage_names)}, on {self.device})"

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What settings may be given for."""
        return self.cascade.names

    @property
    def attention(self) -> str:
        """The kernel that computes attention, in this whole process: sdpa, xformers or sliced."""
        return attention.kernel()

    @attention.setter
    def attention(self, name: str) -> None:
        """Raises UsageError for a kernel that does not exist, or does not run here."""
        attention.use(name)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the square pictures it can draw; none where it only enlarges given ones."""
        return () if "image" in self.cascade.begins else self.cascade.sizes

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
        return self._followed(self._draw_from(request), request, progress, callback_on_step_end)

    def edit(
        self,
        image: Image,
        prompts: str | Sequence[str] | Request,
        *,
        mask: Image | None = None,
        strength: float | None = None,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """Draw over a picture, through all stages.

        image: of any size and mode; its middle square is taken. mask: of the same size, white where the picture is
        drawn anew, black where it stays to the last bit; None: anywhere. strength: the noise to begin with, from 0.01
        (all but the same) to 1 (all forgotten); None: 0.6, with a mask 1. prompts and all else: as in a call.
        Raises UsageError for pictures that do not fit, and for a request that was made over another picture.
        """
        asked = self._asked(
            prompts,
            "edit",
            seeds=seeds,
            count=count,
            size=size,
            negative_prompt=negative_prompt,
            stages=stages,
        )
        request, draw = self._drawn_over(asked, image, mask, strength)
        return self._followed(draw, request, progress, callback_on_step_end)

    def upscale(
        self,
        image: Image,
        *,
        prompt: str = "",
        seed: int | None = None,
        settings: StageSettings | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """A picture of any size and shape, enlarged: four times by most models.

        What is larger than the network has learned to see is drawn in squares that are blended at every step.
        prompt: what it shows, for super-resolution that is told a text. seed: None = one is drawn. settings: of the
        super-resolution stage. Raises UsageError if the model has none, and for a prompt that it is not told.
        """
        given = inputs.picture(image)
        check_prompt(prompt, may_be_empty=True)
        form, cascade = self.cascade.enlarging(max(given.size), prompt, self.name)
        request = Request(
            prompts=(prompt,),
            seeds=_seed(seed),
            size=form.enlarged(given.size),
            stages=cascade.resolve({form.name: settings or StageSettings()}),
            model=self.name,
            model_digest=self.digest,
            verb="upscale",
            inputs={"image": inputs.digest(given)},
        )

        def draw(images: list[Image], clock: Clock) -> Generator[Step, None, Result]:
            draft = Draft(request.prompts, image=to_tensor([given]).to(self.device))
            draft = yield from cascade.run(draft, request.stages, request.seeds, clock)
            assert draft.image is not None
            images += to_pil(draft.image)
            return self._result(request, images, clock)

        return self._followed(draw, request, progress, callback_on_step_end)

    def vary(
        self,
        image: Image,
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        stages: Mapping[str, StageSettings] | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """Other pictures of what a picture shows: drawn from its image embedding.

        image: of any size and mode; its middle square is seen. All else: as in a call.
        Raises UsageError for a model that was not trained on image embeddings.
        """
        request, images = self._of_parts("vary", [image], (), _seeds(seeds, count), size, stages)
        return self._from_embeds(request, images, progress, callback_on_step_end)

    def mix(
        self,
        parts: Sequence[Image | str],
        weights: Sequence[float] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        size: int | tuple[int, int] | None = None,
        stages: Mapping[str, StageSettings] | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """Pictures of what several pictures and texts show together, by the mean of their image embeddings.

        parts: two or more; the prior draws the embeddings of texts. weights: one for each, together 1; None: equal.
        All else, and what is raised: as in `vary`.
        """
        if weights is None:
            weights = [1 / max(1, len(parts))] * len(parts)
        request, images = self._of_parts("mix", parts, weights, _seeds(seeds, count), size, stages)
        return self._from_embeds(request, images, progress, callback_on_step_end)

    def interpolate(
        self,
        a: Image | str,
        b: Image | str,
        *,
        frames: int = 9,
        seed: int | None = None,
        size: int | tuple[int, int] | None = None,
        stages: Mapping[str, StageSettings] | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """Pictures on the way from one picture or text to another, in even steps, both ends included.

        frames: 2 to 1000. Pictures are also turned into the noise that they are drawn from, so that the first and the
        last frame are the given ones as the decoder sees them; texts share the seed's noise. Therefore the decoder
        takes ddim and no guidance where `stages` does not say otherwise. All else, and what is raised: as in `vary`.
        """
        if isinstance(frames, bool) or not isinstance(frames, int) or not 2 <= frames <= MAX_WEIGHTS:
            raise UsageError(f"frames is {frames!r}: give a whole number from 2 to {MAX_WEIGHTS:,}")
        weights = [frame / (frames - 1) for frame in range(frames)]
        request, images = self._of_parts("interpolate", [a, b], weights, _seed(seed), size, stages)
        return self._from_embeds(request, images, progress, callback_on_step_end)

    def diff_text(
        self,
        image: Image,
        before: str,
        after: str,
        *,
        amount: float = AMOUNT,
        seed: int | None = None,
        size: int | tuple[int, int] | None = None,
        stages: Mapping[str, StageSettings] | None = None,
        progress: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Result:
        """A picture changed by what one text says of it and another says instead.

        amount: how far its embedding is turned, from 0 (the same picture) to 1 (the change alone). The noise is the
        picture's own, as in `interpolate`, and the decoder's settings are those; all else: as in `vary`.
        """
        parts: list[Image | str] = [image, before, after]
        request, images = self._of_parts("diff-text", parts, [amount], _seed(seed), size, stages)
        return self._from_embeds(request, images, progress, callback_on_step_end)

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

    def run(self, request: Request, images: Sequence[Image] = ()) -> Result:
        """Draw a request, as `request` made it or a picture's metadata holds it, with nobody looking on.

        images: those that it starts from, in the order of their names. Raises UsageError for others, and for an edited
        or enlarged picture, which has a method of its own.
        """
        if request.verb in UNCLIP:
            request, draw, _ = self._embeds_drawn(request, [inputs.picture(image) for image in images])
            return finish(draw([], Clock(self.device)))
        if request.verb == "generate" and images:
            raise UsageError(
                "the request is of the verb 'generate', which starts from no picture: leave them out"
            )
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
        image: Image | None = None,
        mask: Image | None = None,
        strength: float | None = None,
    ) -> Generator[Step, None, Result]:
        """Draw step by step: the generator's steps are those of every stage, its value is the Result.

        The arguments are those of a call; with an image, those of `edit`. Raises UsageError at once where a value
        cannot be meant.
        """
        verb: Verb = "generate" if image is None else "edit"
        request = self._asked(
            prompts, verb, seeds=seeds, count=count, size=size, negative_prompt=negative_prompt, stages=stages
        )
        if image is not None:
            draw = self._drawn_over(request, image, mask, strength)[1]
        elif mask is not None or strength is not None:
            raise UsageError("a mask or a strength is of a picture that is drawn over: give the image too")
        else:
            draw = self._draw_from(request)
        return draw([], Clock(self.device))

    def _asked(self, asked: str | Sequence[str] | Request, verb: Verb = "generate", **given: Any) -> Request:
        """The complete request, from prompts and what is given for them, or from a request with nothing given."""
        if not isinstance(asked, Request):
            return self.request(asked, **given)
        if asked.verb != verb:
            raise UsageError(f"the request is of the verb {asked.verb!r}: {_HOW[asked.verb]}")
        if extra := [name for name, value in given.items() if value is not None and value != ""]:
            raise UsageError(f"a request says everything itself: leave {extra[0]} out, or give prompts")
        self._check_model(asked)
        return replace(asked, stages=self.cascade.up_to(self._side(asked.size)).resolve(asked.stages))

    def _check_model(self, asked: Request) -> None:
        if asked.model_digest not in ("", self.digest):
            raise UsageError(
                f"the request was made for {asked.model} {asked.model_digest[:12]}, this is {self.name} "
                f"{self.digest[:12]}: the same picture cannot come of it. Clear model_digest to draw it anyway"
            )

    def _of_parts(
        self,
        verb: Verb,
        parts: Sequence[Image | str],
        weights: Sequence[float],
        seeds: tuple[int, ...],
        size: int | tuple[int, int] | None,
        stages: Mapping[str, StageSettings] | None,
    ) -> tuple[Request, list[Image]]:
        """A request for pictures of image embeddings, and the pictures that it starts from."""
        side = self._side(size)
        request, images = inputs.from_parts(
            verb, parts, weights, seeds=seeds, size=(side, side), stages=stages or {}
        )
        return replace(request, model=self.name, model_digest=self.digest), images

    def _embeds_drawn(self, asked: Request, images: Sequence[Image]) -> tuple[Request, Draw, dict[str, int]]:
        """The complete request, how to draw it, and how often what runs before the stages does.

        Raises UsageError for other pictures than it names.
        """
        self._check_model(asked)
        inputs.check_same(images, asked)
        unclip = Unclip(self.cascade.up_to(self._side(asked.size)), self.name)
        request = unclip.complete(asked)

        def draw(done: list[Image], clock: Clock) -> Generator[Step, None, Result]:
            yield from unclip.run(request, images, self.batch_size, done, clock)
            return self._result(request, done, clock)

        return request, draw, unclip.rounds(request)

    def _from_embeds(
        self, asked: Request, images: Sequence[Image], progress: bool | None, on_step_end: OnStepEnd | None
    ) -> Result:
        request, draw, rounds = self._embeds_drawn(asked, images)
        return self._followed(draw, request, progress, on_step_end, rounds)

    def _drawn_over(
        self, asked: Request, image: Image, mask: Image | None, strength: float | None
    ) -> tuple[Request, Draw]:
        """The request of an edit, and how to draw it."""
        given = inputs.picture(image)
        repaint = None if mask is None else inputs.checked_mask(mask, given.size)
        request = over(asked, given, repaint, strength)
        return request, self._draw_from(request, known(given, repaint, request))

    def _followed(
        self,
        draw: Draw,
        request: Request,
        progress: bool | None,
        on_step_end: OnStepEnd | None,
        rounds: Mapping[str, int] | None = None,
    ) -> Result:
        """rounds: how often stages run that do not run once for every batch."""
        images: list[Image] = []
        clock = Clock(self.device)
        batches = len(_batches(request.pictures(), self.batch_size))
        try:
            # closed at once when a view fails: a run that only stands still keeps its networks on the device
            with following(progress, batches, rounds or {}) as views, closing(draw(images, clock)) as run:
                if on_step_end is not None:
                    views.append(step_end(self, on_step_end))
                return drain(run, views)
        except KeyboardInterrupt:
            if not images:
                raise
            return self._result(request, images, clock)

    def _draw_from(self, request: Request, over: Known | None = None) -> Draw:
        """How to draw a complete request, over a known picture if there is one."""
        cascade = self.cascade.up_to(self._side(request.size))

        def draw(images: list[Image], clock: Clock) -> Generator[Step, None, Result]:
            for pictures in _batches(request.pictures(), self.batch_size):
                prompts, seeds = zip(*pictures, strict=True)
                draft = Draft(prompts, request.negative_prompt, known=over)
                draft = yield from cascade.run(draft, request.stages, seeds, clock)
                assert draft.image is not None
                images += to_pil(draft.image)
            return self._result(request, images, clock)

        return draw

    def _result(self, request: Request, images: Sequence[Image], clock: Clock) -> Result:
        ran = {record.stage for record in clock.records}
        cut = cut_words(
            (stage for stage in self.cascade.stages if stage.name in ran),
            [*request.prompts, request.negative_prompt],
        )
        # what enlarges a picture may read texts with an encoder of its own, which knows other words
        unknown = self._unknown(request.prompts) if self.stage_names[0] in ran else {}
        return Result(request, tuple(images), clock.records, unknown, cut)

    def _side(self, size: int | tuple[int, int] | None) -> int:
        if "image" in self.cascade.begins:
            raise UsageError(
                f"{self.name} draws no pictures by itself: give one to `upscale`, or load it as upscaler of a model "
                f"that does, MODEL?upscaler={self.name}"
            )
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


def _seed(seed: int | None) -> tuple[int, ...]:
    """The one seed that is given, or a drawn one."""
    return _seeds(None if seed is None else [seed], None)


def _batches(pictures: Iterable[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    everything = list(pictures)
    return [everything[i : i + size] for i in range(0, len(everything), size)]
