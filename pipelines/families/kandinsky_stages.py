"""Kandinsky 2: text -> image embedding, and the one that guidance leads away from -> latents -> the picture."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mmgen.conditioning import Conditioning
from mmgen.models.vision import zero_embed
from mmgen.noise import Noise
from mmgen.pipelines.adapters import EmbedUNet
from mmgen.pipelines.families.clip_prior_stage import ClipPriorStage
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.unet_stage import LatentStage, told_texts
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.schedulers.prediction import Prediction, PredictionKind
from mmgen.schedulers.samplers import Denoise, Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.threshold import Threshold
from mmgen.types import StageSettings


class PairPriorStage(ClipPriorStage):
    """Draws the image embedding of each text, and that of the negative prompt, as `Draft.negative_embed`.

    The negative prompt's is drawn without guidance, from the noise that comes next. Where there is none, it is what
    the encoder makes of a picture of zeros. encoder: a `CLIPVisionModelWithProjection`. limit: as of `ClipPriorStage`.
    Source: Razzhigaev et al. 2023 (Kandinsky), arXiv:2310.03502, and its published pipeline.
    """

    gives = frozenset({"image_embed", "negative_embed"})

    def __init__(
        self,
        network: Any,
        encoder: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        limit: float | None,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, limit=limit)
        self.encoder = encoder
        self.networks: tuple[nn.Module, ...] = (network, encoder)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        text, negative = draft.text, draft.negative
        if text is None or negative is None:
            raise ValueError("the prior needs text, and what guidance leads away from")
        runs = 2 if draft.negative_prompt.strip() else 1
        embed = yield from _part(self.drawn(text, negative, settings, noise), 0, runs)
        if runs == 1:
            away = zero_embed(self.encoder).float().repeat(len(embed), 1)
        else:
            alone = replace(settings, guidance_scale=1.0)  # guidance away from itself leads nowhere
            away = yield from _part(self.drawn(negative, negative, alone, noise), 1, runs)
        return replace(draft, image_embed=embed, negative_embed=away)


def _part(run: Generator[Step, None, Tensor], part: int, parts: int) -> Generator[Step, None, Tensor]:
    """One of several runs of equal length, its steps counted among those of all."""
    while True:
        try:
            step = next(run)
        except StopIteration as done:
            outcome: Tensor = done.value
            return outcome
        yield step._replace(index=part * step.total + step.index, total=parts * step.total)


class EmbedLatentStage(LatentStage):
    """A guided diffusion decoder in the space of a VAE that is told image embeddings alone.

    limit: what is done to every x0, as the network was published.
    """

    needs = frozenset({"image_embed"})

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
        limit: Threshold,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind, colours=colours)
        self.limit = limit

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        if draft.image_embed is None or draft.negative_embed is None:
            raise ValueError("the decoder needs image_embed, and what guidance leads away from")
        told, away = (Conditioning(image_embed=embed) for embed in (draft.image_embed, draft.negative_embed))
        return EmbedUNet(self.network), told, away

    def _limited(self, denoise: Denoise) -> Denoise:
        def limited(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
            found = denoise(x_t, t, s)
            return found._replace(x0=self.limit(found.x0))

        return limited


class EmbedTextLatentStage(EmbedLatentStage):
    """An `EmbedLatentStage` that is told the text, too."""

    needs = frozenset({"text", "image_embed"})

    def _told(self, draft: Draft) -> tuple[Any, Conditioning, Conditioning]:
        network, told, away = super()._told(draft)
        text, negative = told_texts(draft)
        return (
            network,
            replace(told, text=text.text, pooled=text.pooled),
            replace(away, text=negative.text, pooled=negative.pooled),
        )


class MovqStage(VaeStage):
    """Decodes the latents of a `VQModel`, one picture after the other: as they were drawn, without its codebook.

    Source: Zheng et al. 2022 (MoVQ), arXiv:2209.09002.
    """

    def _units(self, latent: Tensor) -> Tensor:
        return latent

    def _pixels(self, latent: Tensor) -> Tensor:
        image: Tensor = self.network.decode(latent, force_not_quantize=True, return_dict=False)[0]
        return image
