"""Prompts -> token states, masks and pooled vectors, by a frozen encoder."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from torch import nn

from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.families import TEXT_TAKES
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class TextStage:
    """Encodes every prompt, and the negative prompt if there is one, to the same length.

    padded: for networks that see every position up to the encoder's last and have no learned null: without a negative
    prompt they are told "" instead.
    """

    name = "text"
    needs = frozenset({"prompts"})
    gives = frozenset({"text"})
    takes = TEXT_TAKES
    defaults = StageSettings()
    size = None

    def __init__(self, encoder: TextEncoder, *, padded: bool = False) -> None:
        self.encoder, self.padded = encoder, padded
        self.networks: tuple[nn.Module, ...] = (encoder.model,)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        yield from ()
        if not draft.negative_prompt.strip() and not self.padded:
            return replace(draft, text=self.encoder.encode(draft.prompts))
        # one call, so that both have the same length and guidance can stack them
        count = len(draft.prompts)
        both = self.encoder.encode([*draft.prompts, *[draft.negative_prompt] * count], padded=self.padded)
        return replace(draft, text=both[:count], negative=both[count:])
