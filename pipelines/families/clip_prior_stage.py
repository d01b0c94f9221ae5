"""Text -> the CLIP embedding of a fitting picture, by a published prior."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmgen.conditioning import Conditioning
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.adapters import TextPrior
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import PRIOR_TAKES
from mmgen.pipelines.sampling import diffuse
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.unet_stage import UNetStage, told_texts
from mmgen.schedulers.prediction import Prediction, PredictionKind
from mmgen.schedulers.samplers import Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import StageSettings

ADDED = (
    4  # tokens beside those of the text: its embedding, the time, what is diffused, and the one that is read
)


class ClipPriorStage(UNetStage):
    """Draws the image embedding of each text with a `PriorTransformer`, guided away from `Draft.negative`.

    It gives `Draft.image_embed` as CLIP has it, not of unit norm: what is diffused, scaled and shifted by the network's
    own clip_std and clip_mean. An embedding that the draft has already stays.
    limit: on the size of every entry that is diffused, None: there is none.
    Source: Ramesh et al. 2022 (unCLIP, DALL-E 2), arXiv:2204.06125, section 2.2.
    """

    name = "prior"
    gives = frozenset({"image_embed"})
    takes = PRIOR_TAKES
    size: int | None = None

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        limit: float | None,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.limit = limit

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.image_embed is not None:
            return draft
        embed = yield from self.drawn(*told_texts(draft), settings, noise)
        return replace(draft, image_embed=embed)

    def drawn(
        self, text: Conditioning, negative: Conditioning, settings: StageSettings, noise: Noise
    ) -> Generator[Step, None, Tensor]:
        """[B, E], float32: the embeddings for `text`, guided away from `negative`; both with pooled vectors."""
        x = noise.draw((self.network.config.embedding_dim,)).to(self.network.device)
        x, schedule, by = self._begun(x, settings)
        guided = make_denoiser(
            TextPrior(self.network),
            _told(text),
            _told(negative),
            settings,
            stage=self.name,
            schedule=schedule,
            kind=self.kind,
        )

        def denoise(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
            found = guided(x_t, t, s)
            return found if self.limit is None else found._replace(x0=found.x0.clamp(-self.limit, self.limit))

        for step in diffuse(denoise, x, settings, noise, stage=self.name, by=by, schedule=schedule):
            yield step
        embed: Tensor = step.x * self.network.clip_std.float() + self.network.clip_mean.float()
        return embed


def _told(text: Conditioning) -> Conditioning:
    return Conditioning(text=text.text, text_mask=text.text_mask, pooled=text.pooled)


def check_prior(config: Any, encoder: TextEncoder, kind: PredictionKind) -> None:
    """Raise ValueError for a prior that reads other texts than this encoder gives, or draws something else.

    config: the prior's. kind: of prediction, as the scheduler's file says it.
    """
    width = config.embedding_dim
    for name, found, wanted in (
        ("embedding_dim", width, encoder.width),
        ("embedding_proj_dim", config.embedding_proj_dim or width, encoder.model.config.projection_dim),
        ("num_embeddings", config.num_embeddings, encoder.max_tokens),
    ):
        if found != wanted:
            raise ValueError(f"prior has {name} {found}, but the text encoder before it has {wanted}")
    for name, found, only in (
        ("clip_embed_dim", config.clip_embed_dim or width, width),
        ("additional_embeddings", config.additional_embeddings, ADDED),
        ("added_emb_type", config.added_emb_type, "prd"),
        ("encoder_hid_proj_type", config.encoder_hid_proj_type, "linear"),
    ):
        if found != only:
            raise ValueError(f"prior has {name} {found!r}: a prior that draws from texts has {only!r}")
    if kind == "learned-range":
        raise ValueError("prior_scheduler says that the prior has learned a variance, which none has")
