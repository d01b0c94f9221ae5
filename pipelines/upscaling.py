"""A picture and what it shows -> the same picture larger, by published U-Nets that are shown it at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.errors import UsageError
from mmgen.noise import Noise
from mmgen.pipelines.adapters import Face
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import NOISED_LATENT_TAKES, NOISED_PIXEL_TAKES, super_res_name
from mmgen.pipelines.sampling import diffuse, resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.unet_stage import LatentStage, PixelStage, UNetStage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.schedulers.prediction import PredictionKind, add_noise
from mmgen.schedulers.samplers import Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import StageSettings


class ShownUNet(Face):
    """A `UNet2DConditionModel` that is shown a picture beside what it denoises, and told how noisy that was made.

    step: the training step of the noise in that picture.
    """

    def __init__(self, network: Any, step: int) -> None:
        super().__init__(network)
        self.step = step

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """The token states [B, L, D], and the picture [B, 3, h, w]."""
        return given(cond.text, "text").to(self.dtype), given(cond.low_res, "low_res").to(self.dtype)

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: [B], training steps, as of a `TextUNet`."""
        text, shown = told
        out: Tensor = self.network(
            torch.cat([x_t, shown], dim=1),
            t.clamp(min=0),
            encoder_hidden_states=text,
            class_labels=torch.full((len(x_t),), self.step, device=x_t.device),
            return_dict=False,
        )[0]
        return out


@dataclass(frozen=True)
class Corruption:
    """The noise in the pictures that a network was shown in its training: Ho et al. 2021, arXiv:2106.15282.

    schedule: of that noise. most: the largest training step of it that the network saw; None: all.
    """

    schedule: DiscreteSchedule
    most: int | None = None

    def step(self, level: float, stage: str) -> int:
        """The training step that a noise_level stands for: that part of them all, 0.25 of 1000 is step 250.

        The last one also stands for 1. Raises UsageError for one that the network never saw. stage: for the error.
        """
        count = len(self.schedule.betas)
        step = min(round(level * count), count - 1)
        if self.most is not None and step > self.most:
            raise UsageError(
                f"stage {stage!r} takes a noise_level of at most {self.most / count:g}, as its network was trained: "
                f"{level:g} is more"
            )
        return step

    def noised(self, picture: Tensor, step: int, noise: Noise) -> Tensor:
        """[B, 3, h, w], as it was at that step of the training."""
        t = torch.tensor(step, dtype=torch.float64)
        eps = noise.draw(picture.shape[1:], like=picture)
        return add_noise(picture, eps, self.schedule.alpha(t), self.schedule.sigma(t))


class ShownStage(UNetStage):
    """What the stages that enlarge pictures share: a guided run of a U-Net that is shown one."""

    needs = frozenset({"text", "image"})
    corruption: Corruption

    def _enlarged(
        self, shown: Tensor, channels: int, draft: Draft, settings: StageSettings, noise: Noise
    ) -> Iterator[Step]:
        """shown: [B, 3, h, w]; x is [B, channels, h, w].

        Raises UsageError for a picture that is drawn over, and for texts of another encoder than the network knows.
        """
        if draft.known is not None:
            raise UsageError(f"stage {self.name!r} cannot begin with a picture: choose another --upscaler")
        if draft.text is None:
            raise ValueError(f"stage {self.name!r} needs text")
        self._check_text(given(draft.text.text, "text"))
        if draft.negative is None:
            raise ValueError(f"stage {self.name!r} needs what guidance leads away from")
        x = noise.draw((channels, *shown.shape[-2:])).to(self.network.device)
        step = self.corruption.step(resolved(settings.noise_level, "noise_level", self.name), self.name)
        noised = self.corruption.noised(shown, step, noise)
        x, schedule, by = self._begun(x, settings)
        denoise = make_denoiser(
            ShownUNet(self.network, step),
            Conditioning(text=draft.text.text, low_res=noised),
            Conditioning(text=draft.negative.text, low_res=noised),
            settings,
            stage=self.name,
            schedule=schedule,
            kind=self.kind,
        )
        yield from diffuse(denoise, x, settings, noise, stage=self.name, by=by, schedule=schedule)

    def _check_text(self, text: Tensor) -> None:
        config = self.network.config
        width = config.encoder_hid_dim or config.cross_attention_dim
        if text.shape[-1] != width:
            raise UsageError(
                f"stage {self.name!r} is told texts of width {width}, and those of this model have {text.shape[-1]}: "
                "give it as --upscaler of a model with the text encoder that it was trained with"
            )


class PixelSuperResStage(ShownStage, PixelStage):
    """Diffuses the larger picture itself, told the text of the stage before.

    factor: sides of its pictures, in those of the pictures before.
    Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, section 2.4; the bilinear enlargement is DeepFloyd IF's.
    """

    takes = NOISED_PIXEL_TAKES

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        corruption: Corruption,
        factor: int,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.corruption, self.factor = corruption, factor
        self.name = super_res_name(network.config.sample_size)

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        image = given(draft.image, "image")
        sides = [self.factor * side for side in image.shape[-2:]]
        shown = F.interpolate(image.float(), sides, mode="bilinear", align_corners=True)
        return self._enlarged(shown, image.shape[1], draft, settings, noise)


class LatentSuperResStage(ShownStage, LatentStage):
    """Diffuses the larger picture in the space of a VAE, whose latents have the side of the picture that is enlarged.

    larger: side of what the VAE makes of them, by which the stage is called.
    Source: Rombach et al. 2022, arXiv:2112.10752, section 4.4, and the upscaler published since.
    """

    takes = NOISED_LATENT_TAKES

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
        corruption: Corruption,
        larger: int,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, colours=colours)
        self.corruption, self.name = corruption, super_res_name(larger)

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        image, channels = given(draft.image, "image"), self.network.config.out_channels
        return self._enlarged(image.float(), channels, draft, settings, noise)


class UpscalerVaeStage(VaeStage):
    """Decodes the latents of larger pictures, and is called by their side."""

    def __init__(self, network: Any, *, size: int, square: int | None = None) -> None:
        super().__init__(network, size=size, square=square)
        self.name = f"vae-{size}"
