"""Prompts -> token states, masks and pooled vectors, by a frozen encoder."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from mmgen.conditioning import Conditioning, given
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.forms import TEXT_TAKES
from mmgen.pipelines.prompt_weights import plain, weighed
from mmgen.pipelines.stage import Draft, Stage
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class TextStage:
    """Encodes every prompt, and the negative prompt if there is one, to the same length.

    length: of every text in tokens, for networks that see all of its positions and have no learned null: without a
    negative prompt they are told "" instead. seen: the encoder takes padding for text. lower: texts are told in small
    letters, as the captions of the training were. beside: a second encoder, whose states stand behind those of the
    first in every token, and whose pooled vector is told alone. zeros: without a negative prompt zeros are told.
    weighted: texts may have weights, as `mmgen.pipelines.prompt_weights` reads them; the encoders are CLIPs.
    """

    needs = frozenset({"prompts"})
    gives = frozenset({"text"})
    takes = TEXT_TAKES
    defaults = StageSettings()
    size = None

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        name: str = "text",
        length: int | None = None,
        seen: bool = False,
        lower: bool = False,
        beside: TextEncoder | None = None,
        zeros: bool = False,
        weighted: bool = False,
    ) -> None:
        self.name = name
        self.encoder, self.length, self.seen, self.lower = encoder, length, seen, lower
        self.beside, self.zeros, self.weighted = beside, zeros, weighted
        self.networks: tuple[nn.Module, ...] = tuple(
            one.model for one in (encoder, beside) if one is not None
        )

    @property
    def width(self) -> int:
        """Of the states of a token."""
        return self.encoder.width + (0 if self.beside is None else self.beside.width)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        yield from ()
        if not draft.negative_prompt.strip() and (self.zeros or self.length is None):
            text = self._encoded(draft.prompts)
            return replace(draft, text=text, negative=_zeros(text) if self.zeros else None)
        # one call, so that both have the same length and guidance can stack them
        count = len(draft.prompts)
        both = self._encoded([*draft.prompts, *[draft.negative_prompt] * count])
        return replace(draft, text=both[:count], negative=both[count:])

    def cut_words(self, text: str) -> tuple[str, ...]:
        """The words at the end of a text that an encoder does not read."""
        (told,) = self._told([text])
        encoders = [one for one in (self.encoder, self.beside) if one is not None]
        return max((one.cut_words(told, length=self.length) for one in encoders), key=len)

    def _told(self, texts: Sequence[str]) -> Sequence[str]:
        """What the encoders are given."""
        if self.lower:
            return [text.lower().strip() for text in texts]
        return [plain(text) for text in texts] if self.weighted else texts

    def _read(self, encoder: TextEncoder, texts: Sequence[str]) -> Conditioning:
        read = encoder.encode(self._told(texts), length=self.length, seen=self.seen)
        return (
            replace(read, text=weighed(encoder, texts, given(read.text, "text"))) if self.weighted else read
        )

    def _encoded(self, texts: Sequence[str]) -> Conditioning:
        told = self._read(self.encoder, texts)
        if self.beside is None:
            return told
        more = self._read(self.beside, texts)
        states = torch.cat([given(told.text, "text"), given(more.text, "text")], dim=-1)
        return replace(told, text=states, pooled=more.pooled)


def _zeros(text: Conditioning) -> Conditioning:
    """What a network is told of a text that says nothing, where it has learned zeros for it."""
    return replace(text.map(torch.zeros_like), text_mask=text.text_mask)


@runtime_checkable
class Reader(Protocol):
    """A stage that reads texts."""

    def cut_words(self, text: str) -> tuple[str, ...]: ...


def cut_words(stages: Iterable[Stage], texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By text, the words at its end that one of these stages does not read; texts that fit are left out."""
    readers = [stage for stage in stages if isinstance(stage, Reader)]
    found = {text: max((reader.cut_words(text) for reader in readers), key=len, default=()) for text in texts}
    return {text: words for text, words in found.items() if words}
