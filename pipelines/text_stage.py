"""Prompts -> token states, masks and pooled vectors, by a frozen encoder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from torch import nn

from mmgen.conditioning import Conditioning
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.forms import TEXT_TAKES
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class TextStage:
    """Encodes every prompt, and the negative prompt if there is one, to the same length.

    length: of every text in tokens, for networks that see all of its positions and have no learned null: without a
    negative prompt they are told "" instead. seen: the encoder takes padding for text. lower: texts are told in small
    letters, as the captions of the training were.
    """

    name = "text"
    needs = frozenset({"prompts"})
    gives = frozenset({"text"})
    takes = TEXT_TAKES
    defaults = StageSettings()
    size = None

    def __init__(
        self, encoder: TextEncoder, *, length: int | None = None, seen: bool = False, lower: bool = False
    ) -> None:
        self.encoder, self.length, self.seen, self.lower = encoder, length, seen, lower
        self.networks: tuple[nn.Module, ...] = (encoder.model,)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        yield from ()
        if not draft.negative_prompt.strip() and self.length is None:
            return replace(draft, text=self._encoded(draft.prompts))
        # one call, so that both have the same length and guidance can stack them
        count = len(draft.prompts)
        both = self._encoded([*draft.prompts, *[draft.negative_prompt] * count])
        return replace(draft, text=both[:count], negative=both[count:])

    def _encoded(self, texts: Sequence[str]) -> Conditioning:
        if self.lower:
            texts = [text.lower().strip() for text in texts]
        return self.encoder.encode(texts, length=self.length, seen=self.seen)
