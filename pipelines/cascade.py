"""The chain of stages, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch

from mmgen.errors import UsageError
from mmgen.memory import Residency
from mmgen.noise import Noise
from mmgen.pipelines import forms
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.forms import StageForm
from mmgen.pipelines.stage import Checker, Draft, Enlarger, FromNoise, Stage, Told
from mmgen.pipelines.text_stage import TextStage
from mmgen.schedulers.samplers import Step, sampler
from mmgen.types import SAMPLERS, StageSettings

FROM_PROMPTS = frozenset({"prompts"})
FROM_A_PICTURE = frozenset({"prompts", "image"})


class Cascade:
    """Ordered stages. Raises UsageError when a stage needs what no stage before it gives, or is told other texts.

    residency: of their networks; None: they stay where they are. begins: the fields of the Draft that are there at the
    beginning.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        residency: Residency | None = None,
        *,
        begins: frozenset[str] = FROM_PROMPTS,
    ) -> None:
        self.stages, self.begins = tuple(stages), begins
        self.residency = Residency((), torch.device("cpu")) if residency is None else residency
        known = set(begins)
        for stage in self.stages:
            if missing := sorted(stage.needs - known):
                raise UsageError(
                    f"stage {stage.name!r} needs {' and '.join(missing)}, but the stages before it give only "
                    f"{', '.join(sorted(known))}. Put a stage that gives {missing[0]} before it"
                )
            known |= stage.gives
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise UsageError(f"two stages have one name: {', '.join(names)}")
        _check_texts(self.stages)

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names, in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the pictures the chain can end with, smallest first."""
        return tuple(stage.size for stage in self.stages if stage.size is not None)

    def up_to(self, size: int) -> Cascade:
        """The chain that ends with pictures of this side. Raises UsageError if none does."""
        kept = forms.up_to([_form(stage) for stage in self.stages], size)
        return Cascade(self.stages[: len(kept)], self.residency, begins=self.begins)

    def enlarging(self, side: int, prompt: str, model: str) -> tuple[StageForm, Cascade]:
        """The stage that enlarges a given picture, and the chain from that picture to the larger one.

        side: the picture's longer one. Raises UsageError as `forms.enlarging` does. model: for the error.
        """
        form = forms.enlarging([_form(stage) for stage in self.stages], side, prompt, model)
        at = self.names.index(form.name)
        stage, before, after = self.stages[at], self.stages[:at], self.stages[at + 1 :]
        texts = [one for one in before if "text" in one.gives][-1:] if "text" in stage.needs else []
        # out of the space of a VAE
        decoders = [] if "image" in stage.gives else [one for one in after if "image" in one.gives][:1]
        return form, Cascade([*texts, stage, *decoders], self.residency, begins=FROM_A_PICTURE)

    def resolve(self, given: Mapping[str, StageSettings]) -> dict[str, StageSettings]:
        """Every setting of every stage, by its default where it is not given; a stage without settings is left out.

        Raises UsageError for a stage that is not in the chain, and for a setting that a stage or its sampler ignores.
        """
        stages = forms.resolve([_form(stage) for stage in self.stages], given)
        for name, settings in stages.items():
            _check_foreign(name, settings)
        return stages

    def run(
        self, draft: Draft, stages: Mapping[str, StageSettings], seeds: Sequence[int], clock: Clock
    ) -> Generator[Step, None, Draft]:
        """Every stage in turn, each with its own noise and watched by the clock. Yields every step of every stage.

        stages: as `resolve` gives them. Networks that do not fit on the device together are there for their turn only.
        Raises UsageError at the first step for a picture that is drawn over, where a stage cannot begin with one.
        """
        if draft.known is not None:
            _check_over(self.stages)
        with self.residency:
            for stage in self.stages:
                settings = stages.get(stage.name, StageSettings())
                run = stage.run(draft, settings, Noise(seeds, stage.name))
                draft = yield from clock.watch(stage.name, self.residency.turn(stage.networks, run))
        return draft


def complete(stage: Stage, settings: StageSettings) -> StageSettings:
    """Every setting of one stage, by its default where it is not given.

    Raises UsageError for a setting that the stage or its sampler ignores.
    """
    settings = forms.complete(_form(stage), settings)
    _check_foreign(stage.name, settings)
    return settings


def _check_texts(stages: Sequence[Stage]) -> None:
    """Raise UsageError for a stage that is told texts of another encoder than its network knows."""
    before: Stage | None = None
    for stage in stages:
        if isinstance(stage, Told) and isinstance(before, TextStage):
            stage.check_text(before.width)
        if "text" in stage.gives:
            before = stage


def _check_over(stages: Sequence[Stage]) -> None:
    for stage in stages:
        if isinstance(stage, FromNoise):
            raise UsageError(
                f"stage {stage.name!r} of this model cannot begin with a picture: choose another {stage.instead}"
            )


def _form(stage: Stage) -> StageForm:
    factor = stage.factor if isinstance(stage, Enlarger) else None
    check = stage.check if isinstance(stage, Checker) else None
    return StageForm(stage.name, stage.takes, stage.defaults, stage.size, factor, check)


def _check_foreign(stage: str, settings: StageSettings) -> None:
    """Raise UsageError for a scheduler that diffusers does not have: the one thing that only it can say."""
    if settings.sampler is not None and settings.sampler not in SAMPLERS:
        try:
            sampler(settings.sampler)
        except UsageError as error:
            raise UsageError(f"stage {stage!r}: {error}") from None
