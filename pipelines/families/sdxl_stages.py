"""Finished latents -> the same with finer details, by the network that refines those of Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.families.sdxl import REFINER_TAKES, check_refined, whole_run
from mmgen.pipelines.sampling import diffuse, resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.unet_stage import SizedLatentStage
from mmgen.schedulers.prediction import PredictionKind
from mmgen.schedulers.samplers import Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import StageSettings

# How well pictures are said to please: the one that is asked for, and what guidance leads away from. As published.
SCORE, OTHER_SCORE = 6.0, 2.5


class RefinerStage(SizedLatentStage):
    """A `SizedLatentStage` that begins with finished latents, made noisy at `noise_level`.

    steps: that it takes, the last of all that a run from pure noise would have. scored: whether the network is told
    how well the picture is to please.
    Source: Podell et al. 2023 (SDXL), arXiv:2307.01952, section 2.5, and Meng et al. 2021 (SDEdit), arXiv:2108.01073.
    """

    name = "refiner"
    needs = frozenset({"text", "latent"})
    takes = REFINER_TAKES

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
        side: int,
        scored: bool,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, colours=colours, side=side)
        self.scored = scored

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        latent = given(draft.latent, "latent")
        steps = resolved(settings.steps, "steps", self.name)
        whole = whole_run(steps, resolved(settings.noise_level, "noise_level", self.name))
        begin = self.schedule.times(whole)[-steps - 1]
        denoise = make_denoiser(
            *self._told(draft), settings, stage=self.name, schedule=self.schedule, kind=self.kind
        )
        yield from diffuse(
            denoise,
            noise.draw(latent.shape[1:], like=latent),
            replace(settings, steps=whole),
            noise,
            stage=self.name,
            begin=(latent, float(begin)),
            schedule=self.schedule,
        )

    def check(self, settings: StageSettings) -> None:
        """Raise UsageError for settings that cannot be meant."""
        check_refined(len(self.schedule.betas), settings)

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        network, text, negative = super()._told(draft)
        return network, self._scored(text, SCORE), self._scored(negative, OTHER_SCORE)

    def _scored(self, told: Conditioning, score: float) -> Conditioning:
        pooled = given(told.pooled, "pooled")
        return replace(told, score=pooled.new_full((len(pooled),), score)) if self.scored else told
