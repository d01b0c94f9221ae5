"""The Stage protocol, and the Draft that travels from stage to stage."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from mmgen.conditioning import Conditioning
from mmgen.noise import Noise
from mmgen.pipelines.editing import Known
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Draft:
    """What is known of a batch of pictures so far. A stage returns a changed copy; None: not known yet.

    text, negative: token states, mask and pooled vector of the prompts and of the negative prompt, if there is one.
    image_embed: [B, E], in its model's own units: of unit norm, or as CLIP gives it; or a map [B, E, h, w].
    negative_embed: the same, what guidance leads a decoder away from that is told nothing else.
    start: [B, 3, H, W], the noise that the decoder begins with, None: from the seeds.
    latent: [B, C, h, w], float32, of about unit variance: what a VAE makes a picture of.
    image: [B, 3, H, W] in [-1, 1], float32. known: the picture that is drawn over.
    """

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    text: Conditioning | None = None
    negative: Conditioning | None = None
    image_embed: Tensor | None = None
    negative_embed: Tensor | None = None
    start: Tensor | None = None
    latent: Tensor | None = None
    image: Tensor | None = None
    known: Known | None = None


class Stage(Protocol):
    """One link of the chain.

    needs, gives: fields of the Draft. takes: the settings it uses, fields of StageSettings. defaults: what they are
    when nobody says. size: side in pixels of the pictures it gives, None if it gives none. networks: what must be on
    the device while it runs. run is given every setting, defaults included (`Cascade.resolve`), yields a Step after
    every step and returns the new Draft.
    """

    name: str
    needs: frozenset[str]
    gives: frozenset[str]
    takes: frozenset[str]
    defaults: StageSettings
    size: int | None
    networks: tuple[nn.Module, ...]

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]: ...


@runtime_checkable
class Enlarger(Protocol):
    """A stage that enlarges pictures. factor: the sides of what it makes, in those of what it is given."""

    factor: float


@runtime_checkable
class Checker(Protocol):
    """A stage whose network cannot follow all settings that it takes. check: as of a `StageForm`."""

    def check(self, settings: StageSettings) -> None: ...


@runtime_checkable
class FromNoise(Protocol):
    """A stage that cannot draw over a given picture. instead: the option that chooses another."""

    instead: str


@runtime_checkable
class Told(Protocol):
    """A stage that is told the texts of another's encoder."""

    def check_text(self, width: int) -> None:
        """Raise UsageError for token states of a width that its network does not take."""


def finish(run: Generator[Step, None, Outcome]) -> Outcome:
    """Run a stream of steps to its end, for what it returns there."""
    while True:
        try:
            next(run)
        except StopIteration as done:
            outcome: Outcome = done.value
            return outcome
