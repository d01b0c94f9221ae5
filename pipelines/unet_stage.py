"""Text -> a picture or latents, by a published U-Net."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmgen.conditioning import Conditioning
from mmgen.noise import Noise
from mmgen.pipelines.adapters import SizedUNet, TextUNet
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import LATENT_TAKES, PIXEL_TAKES
from mmgen.pipelines.sampling import diffuse, resolved
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.prediction import PredictionKind
from mmgen.schedulers.samplers import Denoise, Sampler, Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import SAMPLERS, StageSettings


class UNetStage:
    """What the decoders that are published U-Nets share: a guided run of one.

    schedule, kind: what the network was trained on, and what it predicts.
    """

    name = "decoder"
    needs = frozenset({"text"})

    def __init__(
        self, network: Any, defaults: StageSettings, *, schedule: DiscreteSchedule, kind: PredictionKind
    ) -> None:
        self.network, self.defaults, self.schedule, self.kind = network, defaults, schedule, kind
        self.networks: tuple[nn.Module, ...] = (network,)

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        config = self.network.config
        x = noise.draw((config.in_channels, config.sample_size, config.sample_size))
        x, schedule, by = self._begun(x.to(self.network.device), settings)
        denoise = make_denoiser(
            *self._told(draft),
            settings,
            stage=self.name,
            schedule=schedule,
            kind=self.kind,
        )
        yield from diffuse(
            self._limited(denoise), x, settings, noise, stage=self.name, by=by, schedule=schedule
        )

    def _limited(self, denoise: Denoise) -> Denoise:
        """With what else is done to every x0, besides what the settings say."""
        return denoise

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        """The network behind its face, what it is told, and what guidance leads away from."""
        text, negative = told_texts(draft)
        return TextUNet(self.network), Conditioning(text=text.text), Conditioning(text=negative.text)

    def _begun(self, x: Tensor, settings: StageSettings) -> tuple[Tensor, DiscreteSchedule, Sampler | None]:
        """What a run begins with, its schedule, and its sampler where that has levels of its own on these betas.

        Our samplers take noise of variance 1 for the first level, as latents with their noise have it; those of
        diffusers scale it themselves, and run from the last training step to the clean picture.
        """
        name = resolved(settings.sampler, "sampler", self.name)
        if name in SAMPLERS:
            return x, self.schedule, None
        from mmgen.schedulers.interop import foreign_sampler  # imports diffusers, which takes seconds

        whole = replace(self.schedule, spacing="trailing", final_alpha_one=True)
        return whole.sigma(whole.times(1)[0]) * x, whole, foreign_sampler(name, whole.betas)


class PixelStage(UNetStage):
    """A guided diffusion decoder of pictures themselves. Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487."""

    gives = frozenset({"image"})
    takes = PIXEL_TAKES
    instead = "--model"

    def __init__(
        self, network: Any, defaults: StageSettings, *, schedule: DiscreteSchedule, kind: PredictionKind
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.size: int | None = network.config.sample_size

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        for step in self._steps(draft, settings, noise):
            yield step
        return replace(draft, image=step.x.clamp(-1, 1))


class LatentStage(UNetStage):
    """A guided diffusion decoder in the space of a VAE. Source: Rombach et al. 2022, arXiv:2112.10752.

    colours: from latents to what is seen of them meanwhile, as `adapters.colours` gives it; None: nothing is.
    """

    gives = frozenset({"latent"})
    takes = LATENT_TAKES
    instead = "--model"
    size: int | None = None

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.colours = colours

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        for step in self._steps(draft, settings, noise):
            yield step._replace(x0=seen_of(step.x0, self.colours))
        return replace(draft, latent=step.x)


class SizedLatentStage(LatentStage):
    """A `LatentStage` whose network is told a pooled vector of its text too, and sizes in pixels.

    side: of the pictures in pixels. Source: Podell et al. 2023 (SDXL), arXiv:2307.01952, section 2.2.
    """

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
        side: int,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, colours=colours)
        self.side = side

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        return SizedUNet(self.network, side=self.side), *told_texts(draft)


def seen_of(latent: Tensor, colours: Tensor | None) -> Tensor:
    """[B, 3, h, w] in [-1, 1], or the latents themselves where no colours are known. colours: of a `LatentStage`."""
    if colours is None:
        return latent
    weights, shift = colours.to(latent).split([latent.shape[1], 1])
    return (torch.einsum("bchw,cd->bdhw", latent, weights) + shift[0, :, None, None]).clamp(-1, 1)


def told_texts(draft: Draft) -> tuple[Conditioning, Conditioning]:
    """Of the prompts, and of what guidance leads away from."""
    if draft.text is None or draft.negative is None:
        raise ValueError("the stage needs text, and what guidance leads away from")
    return draft.text, draft.negative
