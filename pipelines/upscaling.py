"""A picture and what it shows -> the same picture larger, by published U-Nets that are shown it at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from mmgen.pipelines.super_res_stage import SQUARE
from mmgen.pipelines.tiling import Box, blended, squares
from mmgen.pipelines.unet_stage import LatentStage, PixelStage, UNetStage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.schedulers.prediction import PredictionKind, add_noise
from mmgen.schedulers.samplers import Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import StageSettings


def in_squares(predict: Callable[[Tensor], Tensor], x: Tensor, channels: int, side: int) -> Tensor:
    """What a network predicts of x [B, C, h, w], square by square where that is larger: [B, channels, h, w], float32.

    Guidance and thresholds come after it, and so are of the whole picture. side: of the squares, which overlap by a
    quarter.
    """
    height, width = x.shape[-2:]
    boxes = squares(height, width, side, side // 4)
    like = x.new_empty((len(x), channels, height, width), dtype=torch.float32)

    def draw(box: Box) -> Tensor:
        return predict(x[(..., *box)]).float()  # what is blended is not rounded again

    return blended(draw, boxes, like)


def padded(shown: Tensor, unet: Any) -> Tensor:
    """A picture [B, 3, h, w], its edge going on to sides that a U-Net can halve as often as it does.

    unet: its configuration.
    """
    grain = 2 ** (len(unet.block_out_channels) - 1)
    height, width = shown.shape[-2:]
    return F.pad(shown, (0, -width % grain, 0, -height % grain), mode="replicate")


def cropped(steps: Iterator[Step], height: int, width: int) -> Iterator[Step]:
    """The steps of a padded picture without what was added."""
    for step in steps:
        yield step._replace(x=step.x[..., :height, :width], x0=step.x0[..., :height, :width])


class ShownUNet(Face):
    """A `UNet2DConditionModel` that is shown a picture beside what it denoises, and told how noisy that was made.

    step: the training step of the noise in that picture. square: side of the squares in which it sees larger ones.
    """

    def __init__(self, network: Any, step: int, *, square: int) -> None:
        super().__init__(network)
        self.step, self.square = step, square

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """The token states [B, L, D], and the picture [B, 3, h, w]."""
        return given(cond.text, "text").to(self.dtype), given(cond.low_res, "low_res").to(self.dtype)

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: [B], training steps, as of a `TextUNet`."""
        text, shown = told
        level = torch.full((len(x_t),), self.step, device=x_t.device)

        def predict(seen: Tensor) -> Tensor:
            out: Tensor = self.network(
                seen, t.clamp(min=0), encoder_hidden_states=text, class_labels=level, return_dict=False
            )[0]
            return out

        return in_squares(
            predict, torch.cat([x_t, shown], dim=1), self.network.config.out_channels, self.square
        )


@dataclass(frozen=True)
class Corruption:
    """The noise in the pictures that a network was shown in its training: Ho et al. 2021, arXiv:2106.15282.

    schedule: of that noise.
    """

    schedule: DiscreteSchedule

    def step(self, level: float) -> int:
        """The training step that a noise_level stands for: that part of them all, 0.25 of 1000 is step 250.

        The last one also stands for 1.
        """
        count = len(self.schedule.betas)
        return min(round(level * count), count - 1)

    def noised(self, picture: Tensor, step: int, noise: Noise) -> Tensor:
        """[B, 3, h, w], as it was at that step of the training."""
        t = torch.tensor(step, dtype=torch.float64)
        eps = noise.draw(picture.shape[1:], like=picture)
        return add_noise(picture, eps, self.schedule.alpha(t), self.schedule.sigma(t))


class ShownStage(UNetStage):
    """What the stages that enlarge pictures share: a guided run of a U-Net that is shown one.

    square: side of the squares in which the network sees what is larger, in its own pixels or latents.
    """

    needs = frozenset({"text", "image"})
    instead = "--upscaler"
    corruption: Corruption
    square: int

    def _enlarged(
        self, shown: Tensor, channels: int, draft: Draft, settings: StageSettings, noise: Noise
    ) -> Iterator[Step]:
        """shown: [B, 3, h, w]; x is [B, channels, h, w].

        Raises UsageError for texts of another encoder than the network knows.
        """
        if draft.text is None:
            raise ValueError(f"stage {self.name!r} needs text")
        self.check_text(given(draft.text.text, "text").shape[-1])
        if draft.negative is None:
            raise ValueError(f"stage {self.name!r} needs what guidance leads away from")
        (height, width), shown = shown.shape[-2:], padded(shown, self.network.config)
        x = noise.draw((channels, *shown.shape[-2:])).to(self.network.device)
        step = self.corruption.step(resolved(settings.noise_level, "noise_level", self.name))
        noised = self.corruption.noised(shown, step, noise)
        x, schedule, by = self._begun(x, settings)
        denoise = make_denoiser(
            ShownUNet(self.network, step, square=self.square),
            Conditioning(text=draft.text.text, low_res=noised),
            Conditioning(text=draft.negative.text, low_res=noised),
            settings,
            stage=self.name,
            schedule=schedule,
            kind=self.kind,
        )
        run = diffuse(denoise, x, settings, noise, stage=self.name, by=by, schedule=schedule)
        yield from cropped(run, height, width)

    def check_text(self, width: int) -> None:
        """Raise UsageError for texts of another width than the network is told."""
        config = self.network.config
        own = config.encoder_hid_dim or config.cross_attention_dim
        if width != own:
            raise UsageError(
                f"stage {self.name!r} is told texts of width {own}, and those of this model have {width}: "
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
        self.square = network.config.sample_size  # in its training it saw no other side
        self.name = super_res_name(network.config.sample_size)

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        image = given(draft.image, "image")
        sides = [self.factor * side for side in image.shape[-2:]]
        shown = F.interpolate(image.float(), sides, mode="bilinear", align_corners=True)
        return self._enlarged(shown, image.shape[1], draft, settings, noise)


class LatentSuperResStage(ShownStage, LatentStage):
    """Diffuses the larger picture in the space of a VAE, whose latents have the side of the picture that is enlarged.

    larger: side of what the VAE makes of them, by which the stage is called. factor: pixels of that in one latent.
    check: as of a `StageForm`.
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
        factor: int,
        check: Callable[[StageSettings], None],
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, colours=colours)
        self.corruption, self.factor, self.name = corruption, factor, super_res_name(larger)
        self.check = check
        self.square = SQUARE // factor

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        image, channels = given(draft.image, "image"), self.network.config.out_channels
        return self._enlarged(image.float(), channels, draft, settings, noise)


class UpscalerVaeStage(VaeStage):
    """Decodes the latents of larger pictures, and is called by their side."""

    def __init__(self, network: Any, *, size: int, square: int | None = None) -> None:
        super().__init__(network, size=size, square=square)
        self.name = f"vae-{size}"
