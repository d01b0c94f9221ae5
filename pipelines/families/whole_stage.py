"""Pipelines of diffusers as stages: one that only reads texts, and one that only draws from what was read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmgen.conditioning import Conditioning
from mmgen.errors import UsageError, told
from mmgen.models.pretrained import quiet
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.families.whole import WHOLE
from mmgen.pipelines.forms import TEXT_TAKES
from mmgen.pipelines.sampling import resolved
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings

Value = TypeVar("Value")
Outcome = TypeVar("Outcome")
# What a draft holds of a text, and what the calls of diffusers call it; before that of a negative prompt: "negative_".
NAMES = {"text": "prompt_embeds", "text_mask": "prompt_attention_mask", "pooled": "pooled_prompt_embeds"}


class WholeTextStage:
    """Reads every prompt, and the negative one where the pipeline is told any, as `encode_prompt` of its class does.

    pipeline: its name in `WHOLE`. encoders: by the names of its components.
    """

    name = "text"
    needs = frozenset({"prompts"})
    gives = frozenset({"text"})
    takes = TEXT_TAKES
    defaults = StageSettings()
    size = None

    def __init__(self, pipeline: str, encoders: Mapping[str, TextEncoder]) -> None:
        self._pipeline, self._encoders = pipeline, encoders
        self.networks: tuple[nn.Module, ...] = tuple(one.model for one in encoders.values())

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        yield from ()
        whole = WHOLE[self._pipeline]
        if draft.negative_prompt.strip() and not whole.takes_negative:
            raise UsageError(
                f"models of family {whole.family} are told no negative prompt: leave it out, or choose another --model"
            )
        read = dict(zip(whole.told, self._encoded(draft), strict=False))  # behind them, where tokens stand
        negative = _conditioning(read, "negative_") if whole.takes_negative else None
        return replace(draft, text=_conditioning(read), negative=negative)

    def cut_words(self, text: str) -> tuple[str, ...]:
        """The words at the end of a text that no encoder reads."""
        whole = WHOLE[self._pipeline]
        read = text.lower().strip() if whole.lower else text
        return self._encoders[whole.reader].cut_words(read, length=whole.length)

    @torch.no_grad()
    def _encoded(self, draft: Draft) -> tuple[Any, ...]:
        whole, texts = WHOLE[self._pipeline], list(draft.prompts)
        parts = {name: one.model for name, one in self._encoders.items()}
        tokenizers = {
            name.replace("text_encoder", "tokenizer"): one.tokenizer for name, one in self._encoders.items()
        }
        pipe = _built(self._pipeline, {**parts, **tokenizers})
        # other texts for further encoders: none
        given: dict[str, Any] = {
            name: None for name in ("prompt_2", "prompt_3") if name in _names(pipe.encode_prompt)
        }
        if whole.takes_negative:
            given["negative_prompt"] = [draft.negative_prompt] * len(texts)
        if whole.instructed:
            given["complex_human_instruction"] = _names(type(pipe).__call__)[
                "complex_human_instruction"
            ].default
        with _quiet():  # what is cut off, `cut_words` says
            found: tuple[Any, ...] = pipe.encode_prompt(
                prompt=texts, device=self.networks[0].device, max_sequence_length=whole.length, **given
            )
        return found


class WholeStage:
    """Latents from texts that were read, by the call of a pipeline's class, with its own loop, guidance and scheduler.

    pipeline: its name in `WHOLE`. scheduler: its file. side, channels: of the latents.
    """

    name = "decoder"
    needs = frozenset({"text"})
    gives = frozenset({"latent"})
    size: int | None = None

    def __init__(
        self, pipeline: str, transformer: Any, scheduler: Mapping[str, Any], *, side: int, channels: int
    ) -> None:
        self._pipeline, self._transformer, self._scheduler = pipeline, transformer, scheduler
        self._side, self._channels = side, channels
        self.defaults = WHOLE[pipeline].settings(transformer.config)
        self.takes = frozenset(self.defaults.to_dict())
        self.networks: tuple[nn.Module, ...] = (transformer,)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.known is not None:
            raise UsageError(
                f"stage {self.name!r} of this model cannot begin with a picture: choose another --model"
            )
        draw = partial(self._drawn, draft, settings, noise)
        if self._transformer.device.type == "meta":  # who counts bytes there sees its own thread alone
            return replace(draft, latent=draw(lambda _step: None))
        latent = yield from handed(draw)
        return replace(draft, latent=latent)

    def _drawn(
        self, draft: Draft, settings: StageSettings, noise: Noise, hand: Callable[[Step], None]
    ) -> Tensor:
        """[B, C, h, w], float32. hand: is given every step; their t counts evenly, whatever the scheduler's does."""
        whole, steps = WHOLE[self._pipeline], resolved(settings.steps, "steps", self.name)
        x = noise.draw((self._channels, self._side, self._side))
        x = packed(x) if whole.packed else x
        given: dict[str, Any] = {**_told(draft, whole.told), **whole.call}
        if "guidance_scale" in self.takes:
            given["guidance_scale"] = resolved(settings.guidance_scale, "guidance_scale", self.name)

        def seen(index: int, latents: Tensor) -> None:
            now = self._latent(latents)
            hand(Step(self.name, index, steps, 1 - index / steps, now, now))

        # of this run alone: pipeline and scheduler remember where they are
        scheduler = _begun(read_scheduler(self._scheduler))
        pipe = _built(self._pipeline, {"transformer": self._transformer, "scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(
            # one of them takes latents in the dtype that they have
            latents=x.to(device=self._transformer.device, dtype=self._transformer.dtype),
            generator=list(noise.generators),
            num_inference_steps=steps,
            negative_prompt=None,
            output_type="latent",
            **_watched(pipe, seen),
            **given,
        ).images
        return self._latent(drawn)

    def _latent(self, drawn: Tensor) -> Tensor:
        """As a VAE takes them."""
        return (unpacked(drawn, self._side) if WHOLE[self._pipeline].packed else drawn).float()


def check_scheduler(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a file of which its class makes no scheduler that can take a step."""
    x = torch.zeros(1, 4, 2, 2)
    try:
        scheduler = read_scheduler(values)
        shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(2, **shift)
        scheduler.step(x, scheduler.timesteps[0], x, generator=torch.Generator())
    # a wrong value raises whatever the class stumbles over
    except Exception as error:  # noqa: BLE001
        raise ValueError(
            f"scheduler/scheduler_config.json does not describe a {values['_class_name']}: {told(error)}"
        ) from None


def read_scheduler(values: Mapping[str, Any]) -> Any:
    """The scheduler that a file describes; its class has been looked at."""
    import diffusers

    kind = getattr(diffusers, str(values["_class_name"]))
    known = _names(kind.__init__)
    return kind(**{name: value for name, value in values.items() if name in known})


def _begun(scheduler: Any) -> Any:
    """The same scheduler, which knows that a run begins with its first step: else it asks numbers of the device."""
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)  # its arguments are looked at
    def begin(*args: Any, **given: Any) -> None:
        set_timesteps(*args, **given)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = begin
    return scheduler


def packed(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 * w/2, 4 C], squares of 2x2 as one token each."""
    squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, h/2, 2, w/2, 2]
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, side: int) -> Tensor:
    """The way back of `packed`. side: h and w."""
    half = side // 2
    squares = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (half, half))  # [B, h/2, w/2, C, 2, 2]
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def handed(call: Callable[[Callable[[Value], None]], Outcome]) -> Generator[Value, None, Outcome]:
    """What a function hands to the callback it is given, one by one as it is asked for; then what it returns.

    It runs in a thread of its own, only while the generator is asked. One that is left alone ends with its next value.
    """
    told_of: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    go_on: SimpleQueue[bool] = SimpleQueue()
    inference, threads = torch.is_inference_mode_enabled(), torch.get_num_threads()

    def hand(value: Value) -> None:
        told_of.put(("value", value))
        if not go_on.get():
            raise _LeftAloneError

    def work() -> None:
        torch.set_num_threads(threads)  # both are of a thread, and this one is new
        try:
            with torch.inference_mode(inference):
                told_of.put(("outcome", call(hand)))
        except BaseException as error:  # noqa: BLE001 - it is raised again where somebody asks
            told_of.put(("error", error))

    thread = Thread(target=work, name="mmgen-whole", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = told_of.get()
            if kind == "error":
                raise value
            if kind == "outcome":
                return value
            yield value
            go_on.put(True)
    finally:
        go_on.put(False)
        thread.join()


class _LeftAloneError(BaseException):
    """Ends a function of which nobody asks for more; not an Exception, so that nothing catches it on the way."""


def _watched(pipe: Any, seen: Callable[[int, Tensor], None]) -> dict[str, Any]:
    """Arguments of a pipeline's call that make it tell of every step, counted from 1, in its own way."""
    if "callback_on_step_end" not in _names(type(pipe).__call__):
        return {"callback": lambda index, _t, latents: seen(index + 1, latents)}

    def ended(_pipe: Any, index: int, _t: Any, values: Mapping[str, Tensor]) -> dict[str, Any]:
        seen(index + 1, values["latents"])
        return {}

    return {"callback_on_step_end": ended}


def _built(pipeline: str, parts: Mapping[str, Any]) -> Any:
    """A pipeline of diffusers that has these parts, and None for the others that it cannot do without."""
    import diffusers

    kind = getattr(diffusers, pipeline)
    with _quiet():
        return kind(**{
            name: parts.get(name)
            for name, one in _names(kind.__init__).items()
            if name != "self" and (name in parts or one.default is inspect.Parameter.empty)
        })  # fmt: skip


def _names(function: Any) -> Mapping[str, inspect.Parameter]:
    """What it takes, also where it is wrapped."""
    return inspect.signature(function).parameters


def _conditioning(read: Mapping[str, Tensor], before: str = "") -> Conditioning:
    """What `encode_prompt` gave of a text. before: its names."""
    mask = read.get(before + NAMES["text_mask"])
    return Conditioning(
        text=read[before + NAMES["text"]],
        text_mask=None if mask is None else mask.bool(),
        pooled=read.get(before + NAMES["pooled"]),
    )


def _told(draft: Draft, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The way back of `_conditioning`: arguments of a call."""
    texts = {"": draft.text, "negative_": draft.negative}
    found = {
        before + name: getattr(text, ours)
        for before, text in texts.items()
        if text is not None
        for ours, name in NAMES.items()
    }
    return {name: found[name] for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers and transformers without their warnings of what is cut off, which they log."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
