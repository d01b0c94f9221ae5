"""Text and image embedding -> a small picture -> a larger one, by the networks of Karlo."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.noise import Noise
from mmgen.pipelines.adapters import Face
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import PLAIN_SUPER_RES_TAKES, super_res_name
from mmgen.pipelines.sampling import diffuse
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.unet_stage import PixelStage, UNetStage, told_texts
from mmgen.pipelines.upscaling import cropped, in_squares, padded
from mmgen.schedulers.prediction import Prediction, PredictionKind
from mmgen.schedulers.samplers import Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import StageSettings


class KarloUNet(Face):
    """A `UNet2DConditionModel` that is told texts and image embeddings by a `UnCLIPTextProjModel`."""

    def __init__(self, network: Any, projection: Any) -> None:
        super().__init__(network)
        self.projection = projection

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the embedding and of the text [B, L, D], which of them it sees [B, L], what it adds to the time."""
        text, pooled, embed = (
            given(getattr(cond, name), name).to(self.dtype) for name in ("text", "pooled", "image_embed")
        )
        drop = given(cond.drop_image, "drop_image")[:, None]
        states, added = self.projection(
            image_embeddings=torch.where(
                drop, self.projection.learned_classifier_free_guidance_embeddings, embed
            ),
            prompt_embeds=pooled,
            text_encoder_hidden_states=text,
            do_classifier_free_guidance=False,
        )
        mask = given(cond.text_mask, "text_mask")
        return states, F.pad(mask, (states.shape[1] - mask.shape[1], 0), value=True), added

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w], as of a `TextUNet`. t: [B], training steps."""
        states, mask, added = told
        out: Tensor = self.network(
            x_t,
            t.clamp(min=0),
            encoder_hidden_states=states,
            attention_mask=mask,
            class_labels=added,
            return_dict=False,
        )[0]
        return out


class KarloDecoderStage(PixelStage):
    """A decoder of pictures that is told a text and the embedding of a picture; guidance takes both away.

    projection: what tells it both. Source: Ramesh et al. 2022 (unCLIP, DALL-E 2), arXiv:2204.06125, section 2.1.
    """

    needs = frozenset({"text", "image_embed"})

    def __init__(
        self,
        network: Any,
        projection: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.projection = projection
        self.networks = (network, projection)

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        text, negative = told_texts(draft)
        embed = given(draft.image_embed, "image_embed")
        kept = torch.zeros(len(embed), dtype=torch.bool, device=embed.device)
        cond, other = (
            Conditioning(
                text=words.text,
                text_mask=words.text_mask,
                pooled=words.pooled,
                image_embed=embed,
                drop_image=drop,
            )
            for words, drop in ((text, kept), (negative, ~kept))
        )
        return KarloUNet(self.network, self.projection), cond, other


class PictureUNet(Face):
    """A `UNet2DModel` that is shown a picture beside what it denoises, larger ones in squares of its own side."""

    def prepare(self, cond: Conditioning) -> Tensor:
        """The picture, [B, 3, H, W]."""
        return given(cond.low_res, "low_res").to(self.dtype)

    def __call__(self, x_t: Tensor, t: Tensor, shown: Tensor) -> Tensor:
        """What it predicts, [B, C, H, W], as of a `TextUNet`. t: [B], training steps."""

        def predict(seen: Tensor) -> Tensor:
            out: Tensor = self.network(seen, t.clamp(min=0), return_dict=False)[0]
            return out

        config = self.network.config
        return in_squares(predict, torch.cat([x_t, shown], dim=1), config.out_channels, config.sample_size)


class KarloSuperResStage(UNetStage):
    """Diffuses the larger picture itself, shown the small one alone; another network takes the step to the clean one.

    last: that network. small: side of the pictures before, by which it is known how often a side is enlarged.
    Source: Lee et al. 2022, https://github.com/kakaobrain/karlo, its 7-step super-resolution.
    """

    needs = frozenset({"image"})
    gives = frozenset({"image"})
    takes = PLAIN_SUPER_RES_TAKES
    instead = "--upscaler"

    def __init__(
        self,
        network: Any,
        last: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        small: int,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.last = last
        self.networks = (network, last)
        self.size: int | None = network.config.sample_size
        self.factor = network.config.sample_size / small
        self.name = super_res_name(network.config.sample_size)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        image = given(draft.image, "image")
        height, width = (round(self.factor * side) for side in image.shape[-2:])
        # as in the training, where antialias chooses another cubic
        large = F.interpolate(
            image.float(), (height, width), mode="bicubic", align_corners=False, antialias=True
        )
        shown = padded(large, self.network.config)
        x, schedule, by = self._begun(noise.draw(shown.shape[1:]).to(image.device), settings)
        first, last = (
            make_denoiser(
                PictureUNet(network),
                Conditioning(low_res=shown),
                None,
                settings,
                stage=self.name,
                schedule=schedule,
                kind=self.kind,
            )
            for network in self.networks
        )

        def denoise(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
            return (last if schedule.sigma(s) == 0 else first)(x_t, t, s)

        run = diffuse(denoise, x, settings, noise, stage=self.name, by=by, schedule=schedule)
        for step in cropped(run, height, width):
            yield step
        return replace(draft, image=step.x.clamp(-1, 1))
