"""Pipelines of diffusers as stages: one that only reads texts, and one that only draws from what was read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from html import unescape
from importlib import import_module
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmgen import threshold
from mmgen.conditioning import Conditioning, given
from mmgen.errors import NonFiniteError, UsageError, told
from mmgen.models.pretrained import quiet
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.families.whole import WHOLE, Whole
from mmgen.pipelines.forms import TEXT_TAKES
from mmgen.pipelines.sampling import resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings

Value = TypeVar("Value")
Outcome = TypeVar("Outcome")
# What the calls of diffusers are told of a text, and what a draft calls it; before a negative prompt's: "negative_".
NAMES = {
    "prompt_embeds": "text",
    "prompt_attention_mask": "text_mask",
    "prompt_embeds_mask": "text_mask",
    "pooled_prompt_embeds": "pooled",
}


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
        text, negative = self._read(draft)
        return replace(draft, text=text, negative=negative)

    def cut_words(self, text: str) -> tuple[str, ...]:
        """The words at the end of a text that no encoder reads."""
        whole = WHOLE[self._pipeline]
        read = text.lower().strip() if whole.lower else text
        return self._encoders[whole.reader].cut_words(read, length=whole.length)

    def _read(self, draft: Draft) -> tuple[Conditioning, Conditioning | None]:
        """What is told of the prompts, and of the negative one as often."""
        whole = WHOLE[self._pipeline]
        read = dict(zip(whole.told, self._encoded(draft), strict=False))  # behind them, where tokens stand
        return _conditioning(read), _conditioning(read, "negative_") if whole.takes_negative else None

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


class ChatTextStage(WholeTextStage):
    """Reads every text, put into the conversation that its pipeline in `WHOLE` has for it, by its one encoder.

    As `encode_prompt` of that class does, but for padding, which its encoder passes by: it comes last.
    """

    def __init__(self, pipeline: str, encoders: Mapping[str, TextEncoder]) -> None:
        super().__init__(pipeline, encoders)
        whole = WHOLE[pipeline]
        assert whole.chat is not None
        (encoder,) = encoders.values()
        encoder.tokenizer.padding_side = "right"
        self._chat, self._length = whole.chat, whole.chat.dropped + whole.length
        self._reader = TextEncoder(
            encoder.model, encoder.tokenizer, layer=whole.chat.layer, max_tokens=self._length
        )
        self._template = whole.chat.template or str(_built(pipeline, {}).prompt_template_encode)

    def cut_words(self, text: str) -> tuple[str, ...]:
        """The words at the end of a text that are not told."""
        before, _, _ = self._template.partition("{}")
        return self._reader.cut_words(before + self._mended(text), length=self._length)

    def _read(self, draft: Draft) -> tuple[Conditioning, Conditioning | None]:
        count = len(draft.prompts)
        texts = [*draft.prompts, *[draft.negative_prompt] * count]
        read = self._reader.encode(
            [self._template.format(self._mended(text)) for text in texts],
            length=self._length if self._chat.padded else None,
        )
        told = Conditioning(
            text=given(read.text, "text")[:, self._chat.dropped :],
            text_mask=given(read.text_mask, "text_mask")[:, self._chat.dropped :],
        )
        return told[:count], told[count:]

    def _mended(self, text: str) -> str:
        return mended(text) if self._chat.mended else text


class WholeStage:
    """Latents from texts that were read, by the call of a pipeline's class, with its own loop, guidance and scheduler.

    pipeline: its name in `WHOLE`. scheduler: its file. defaults: it takes these settings. side, channels: of the
    latents.
    """

    name = "decoder"
    needs = frozenset({"text"})
    gives = frozenset({"latent"})
    size: int | None = None
    noise_scale = 1.0  # of what it begins with

    def __init__(
        self,
        pipeline: str,
        transformer: Any,
        scheduler: Mapping[str, Any],
        defaults: StageSettings,
        *,
        side: int,
        channels: int,
    ) -> None:
        self._pipeline, self._transformer, self._scheduler = pipeline, transformer, scheduler
        self._side, self._channels = side, channels
        self.defaults, self.takes = defaults, frozenset(defaults.to_dict())
        self.networks: tuple[nn.Module, ...] = (transformer,)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.known is not None:
            raise UsageError(
                f"stage {self.name!r} of this model cannot begin with a picture: choose another --model"
            )
        draw = partial(self._drawn, draft, settings, noise)
        if self._transformer.device.type == "meta":  # who counts bytes there sees its own thread alone
            try:
                return replace(draft, latent=draw(lambda _step: None))
            finally:
                _forget_tables(self._transformer)
        latent = yield from handed(draw)
        return replace(draft, latent=latent)

    def _drawn(
        self, draft: Draft, settings: StageSettings, noise: Noise, hand: Callable[[Step], None]
    ) -> Tensor:
        """[B, C, h, w], float32. hand: is given every step; their t counts evenly, whatever the scheduler's does."""
        whole, steps = WHOLE[self._pipeline], resolved(settings.steps, "steps", self.name)
        x = self.noise_scale * noise.draw((self._channels, self._side, self._side))
        x = packed(x) if whole.packed else x
        told_of: dict[str, Any] = {**_told(draft, whole), **whole.call}
        if "guidance_scale" in self.takes:
            scale = resolved(settings.guidance_scale, "guidance_scale", self.name)
            told_of[whole.scale] = max(
                scale, whole.off
            )  # less would be none, too, and some calls take no less
            if scale <= whole.off:  # some calls warn of a negative prompt that they have no use for
                told_of = {name: value for name, value in told_of.items() if not name.startswith("negative_")}

        def seen(index: int, latents: Tensor) -> None:
            now = self._latent(latents)
            hand(Step(self.name, index, steps, 1 - index / steps, now, now))

        # the level behind which all others are to end is, of a single step, also the first, and cannot be moved
        alone = {"shift_terminal": None} if steps == 1 else {}
        # of this run alone: pipeline and scheduler remember where they are
        scheduler = _begun(read_scheduler({**self._scheduler, **alone}))
        pipe = _built(self._pipeline, {"transformer": self._transformer, "scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(
            # one of them takes latents in the dtype that they have
            latents=x.to(device=self._transformer.device, dtype=self._transformer.dtype),
            generator=list(noise.generators),
            num_inference_steps=steps,
            height=self._side * pipe.vae_scale_factor,
            width=self._side * pipe.vae_scale_factor,
            negative_prompt=None,
            output_type="latent",
            **_watched(pipe, seen),
            **told_of,
        ).images
        return self._latent(drawn)

    def _latent(self, drawn: Tensor) -> Tensor:
        """As a VAE takes them."""
        return (unpacked(drawn, self._side) if WHOLE[self._pipeline].packed else drawn).float()


class WholePixelStage(WholeStage):
    """Pictures from texts that were read, by a pipeline that has no VAE. noise_scale: of what it begins with."""

    gives = frozenset({"image"})

    def __init__(
        self,
        pipeline: str,
        transformer: Any,
        scheduler: Mapping[str, Any],
        defaults: StageSettings,
        *,
        side: int,
        noise_scale: float,
    ) -> None:
        super().__init__(pipeline, transformer, scheduler, defaults, side=side, channels=3)
        self.size, self.noise_scale = side, noise_scale
        transformer.register_forward_pre_hook(_tell_time_of_all, with_kwargs=True)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        drawn = yield from super().run(draft, settings, noise)
        try:
            return replace(draft, image=threshold.static_clip(given(drawn.latent, "latent")))
        except NonFiniteError as error:
            raise NonFiniteError(f"stage {self.name!r}: {error}") from None


class FrameVaeStage(VaeStage):
    """Decodes latents of a VAE of videos, one picture after the other, each as the only frame of one."""

    def _units(self, latent: Tensor) -> Tensor:
        config = self.network.config
        mean, std = (
            torch.tensor(config[name], device=latent.device)[:, None, None]
            for name in ("latents_mean", "latents_std")
        )
        return latent * std + mean

    def _pixels(self, latent: Tensor) -> Tensor:
        frames: Tensor = self.network.decode(latent[:, :, None], return_dict=False)[0]
        return frames[:, :, 0]


def _tell_time_of_all(_module: nn.Module, args: Any, told_of: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """For guidance over several pictures, of which diffusers 0.42 tells a PRX two times alone: all are the same."""
    times = told_of["timestep"][:1].expand(len(told_of["hidden_states"]))
    return args, {**told_of, "timestep": times}


def mended(text: str) -> str:
    """A text without the marks that other programs left in it, such as `&amp;`, by the rules of ftfy and of HTML.

    Raises UsageError for one that ftfy would have to look at where that is not installed; plain ones it leaves alone.
    """
    one_line = text.replace("\n", " ").replace("\t", " ")  # of which it leaves both
    if not (one_line.isascii() and one_line.isprintable()):
        try:
            text = import_module("ftfy").fix_text(text)
        except ImportError:
            raise UsageError(
                f"{text!r}: this model reads characters beyond plain ASCII through ftfy. Install it (pip install "
                "ftfy), or write the text without them"
            ) from None
    return unescape(unescape(text)).strip()


def compute_tables(transformer: Any) -> None:
    """Compute the angles of one that was built on the meta device and keeps them as plain attributes."""
    rope: Any = getattr(transformer, "pos_embed", None)
    if isinstance(getattr(rope, "pos_freqs", None), Tensor):
        transformer.pos_embed = type(rope)(rope.theta, rope.axes_dim, rope.scale_rope)


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
    found = {ours: read[before + name] for name, ours in NAMES.items() if before + name in read}
    mask = found.pop("text_mask", None)
    return Conditioning(**found, text_mask=None if mask is None else mask.bool())


def _told(draft: Draft, whole: Whole) -> dict[str, Any]:
    """The way back of `_conditioning`: arguments of a call."""
    texts = {"": draft.text, "negative_": draft.negative}
    if whole.listed:
        return {f"{before}prompt_embeds": _rows(text) for before, text in texts.items() if text is not None}
    found = {
        before + name: getattr(text, ours)
        for before, text in texts.items()
        if text is not None
        for name, ours in NAMES.items()
    }
    return {name: found[name] for name in whole.told}


def _rows(text: Conditioning) -> list[Tensor]:
    """The states of each text, without padding; where no numbers tell which is padding, all."""
    states, mask = given(text.text, "text"), given(text.text_mask, "text_mask")
    if states.is_meta:
        return list(states)
    return [row[real] for row, real in zip(states, mask, strict=True)]


def _forget_tables(transformer: Any) -> None:
    """Angles that one keeps of a run: where that was on the meta device, the next one needs numbers."""
    if hasattr(transformer, "rope_embedder"):
        transformer.rope_embedder.freqs_cis = None


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
