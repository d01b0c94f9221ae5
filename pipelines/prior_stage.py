"""Text -> the image embedding of a fitting picture."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.prior import DiffusionPrior
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step, sampler
from mmgen.schedulers.schedules import FlowSchedule
from mmgen.types import StageSettings

CANDIDATES = 2  # unCLIP draws two and keeps the one that fits the text better (arXiv:2204.06125, section 2.2)


class PriorStage:
    """Draws several embeddings for each text and keeps that with the largest dot product with the text embedding."""

    name = "prior"
    needs = frozenset({"text"})
    gives = frozenset({"image_embed"})
    size = None

    def __init__(self, network: DiffusionPrior, dual: DualEncoder, defaults: StageSettings) -> None:
        self.network, self.dual, self.defaults = network, dual, defaults

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        settings = settings.with_defaults(self.defaults)
        text = draft.text
        if text is None:
            raise ValueError("the prior needs text")
        pooled = given(text.pooled, "pooled")
        cond, null = guided_pair(text, draft.negative)
        denoise = make_denoiser(self.network, cond, null, settings, stage=self.name)
        schedule = FlowSchedule()
        times = schedule.times(settings.steps or 1)
        candidates = []
        for candidate in range(CANDIDATES):
            # embeddings are diffused with entries of unit variance
            x = noise.draw((self.network.config.embed_dim,)).to(pooled.device)
            step = None
            for step in sampler(settings.sampler or "ddim", eta=settings.eta)(
                denoise, x, times, schedule, noise
            ):
                yield step._replace(
                    stage=self.name, index=candidate * step.total + step.index, total=CANDIDATES * step.total
                )
            assert step is not None
            candidates.append(torch.nn.functional.normalize(step.x, dim=1))
        return replace(draft, image_embed=self._best(torch.stack(candidates), text))

    @torch.no_grad()
    def _best(self, candidates: Tensor, text: Conditioning) -> Tensor:
        """candidates: [N, B, E] -> [B, E]."""
        fit = (candidates * self.dual.text_embed(text)[None]).sum(2)
        return candidates[fit.argmax(0), torch.arange(candidates.shape[1], device=candidates.device)]


def guided_pair(text: Conditioning, negative: Conditioning | None) -> tuple[Conditioning, Conditioning]:
    """What is asked for, and what guidance leads away from: the negative prompt, or the learned null."""
    kept = torch.zeros(
        len(given(text.text, "text")), dtype=torch.bool, device=given(text.text, "text").device
    )
    cond = Conditioning(text=text.text, text_mask=text.text_mask, pooled=text.pooled, drop_text=kept)
    other, drop = (text, ~kept) if negative is None else (negative, kept)
    return cond, Conditioning(text=other.text, text_mask=other.text_mask, pooled=other.pooled, drop_text=drop)
