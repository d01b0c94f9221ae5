"""Text -> image embedding -> latents, by the networks of Stable unCLIP, whose prior and decoder read texts each in its
own way."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.nn.embeddings import sinusoidal
from mmgen.noise import Noise
from mmgen.pipelines.adapters import Face
from mmgen.pipelines.forms import NOISED_LATENT_TAKES
from mmgen.pipelines.sampling import resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.text_stage import TextStage
from mmgen.pipelines.unet_stage import LatentStage, told_texts
from mmgen.pipelines.upscaling import Corruption
from mmgen.schedulers.prediction import PredictionKind
from mmgen.schedulers.samplers import Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import StageSettings


class PriorTextStage(TextStage):
    """Encodes every prompt for the prior, and "" for what leads it away: a negative prompt is the decoder's."""

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        told = yield from super().run(replace(draft, negative_prompt=""), settings, noise)
        return replace(told, negative_prompt=draft.negative_prompt)


class LabelledUNet(Face):
    """A `UNet2DConditionModel` that is told texts, all of whose positions it sees, and image embeddings as labels."""

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """The token states [B, L, D], and the labels [B, 2E]."""
        text, labels = (given(getattr(cond, name), name).to(self.dtype) for name in ("text", "image_embed"))
        return text, labels

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: [B], training steps, as of a `TextUNet`."""
        text, labels = told
        out: Tensor = self.network(
            x_t, t.clamp(min=0), encoder_hidden_states=text, class_labels=labels, return_dict=False
        )[0]
        return out


class NoisedEmbedStage(LatentStage):
    """A `LatentStage` that is told an image embedding too, made noisy at `noise_level`, and how noisy it is.

    normalizer: a `StableUnCLIPImageNormalizer`, in whose units the noise is. corruption: what noise it is.
    Guidance leads away from an embedding of zeros.
    Source: Stable unCLIP, https://huggingface.co/stabilityai/stable-diffusion-2-1-unclip, and Ho et al. 2021,
    arXiv:2106.15282.
    """

    needs = frozenset({"text", "image_embed"})
    takes = NOISED_LATENT_TAKES

    def __init__(
        self,
        network: Any,
        normalizer: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
        corruption: Corruption,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, colours=colours)
        self.normalizer, self.corruption = normalizer, corruption
        self.networks = (network, normalizer)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        embed = given(draft.image_embed, "image_embed")
        labels = self._labels(embed, settings, noise)
        done = yield from super().run(replace(draft, image_embed=labels), settings, noise)
        return replace(done, image_embed=embed)

    @torch.no_grad()
    def _labels(self, embed: Tensor, settings: StageSettings, noise: Noise) -> Tensor:
        """[B, 2E]: the noised embedding, and the training step of its noise as sinusoids."""
        step = self.corruption.step(resolved(settings.noise_level, "noise_level", self.name))
        mean, std = self.normalizer.mean.float(), self.normalizer.std.float()
        noised = self.corruption.noised((embed - mean) / std, step, noise) * std + mean
        steps = torch.full((len(embed),), step / 1000, device=embed.device)
        return torch.cat([noised, sinusoidal(steps, embed.shape[1])], dim=1)

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        text, negative = told_texts(draft)
        labels = given(draft.image_embed, "image_embed")
        return (
            LabelledUNet(self.network),
            Conditioning(text=text.text, image_embed=labels),
            Conditioning(text=negative.text, image_embed=torch.zeros_like(labels)),
        )
