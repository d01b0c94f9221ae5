"""Text -> the image embedding of a fitting picture."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.prior import DiffusionPrior
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import PRIOR_TAKES
from mmgen.pipelines.sampling import diffuse, guided_pair
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings

CANDIDATES = 2  # unCLIP draws two and keeps the one that fits the text better (arXiv:2204.06125, section 2.2)


class PriorStage:
    """Draws several embeddings for each text and keeps that with the largest dot product with the text embedding.

    An embedding that the draft has already stays.
    """

    name = "prior"
    needs = frozenset({"text"})
    gives = frozenset({"image_embed"})
    takes = PRIOR_TAKES
    size: int | None = None

    def __init__(self, network: DiffusionPrior, dual: DualEncoder, defaults: StageSettings) -> None:
        self.network, self.dual, self.defaults = network, dual, defaults
        self.networks: tuple[nn.Module, ...] = (network, dual)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.image_embed is not None:
            return draft
        text = draft.text
        if text is None:
            raise ValueError("the prior needs text")
        pooled = given(text.pooled, "pooled")
        cond, null = guided_pair(text, draft.negative)
        denoise = make_denoiser(self.network, cond, null, settings, stage=self.name)
        candidates = []
        for candidate in range(CANDIDATES):
            # embeddings are diffused with entries of unit variance
            x = noise.draw((self.network.config.embed_dim,)).to(pooled.device)
            for step in diffuse(denoise, x, settings, noise, stage=self.name):
                yield step._replace(index=candidate * step.total + step.index, total=CANDIDATES * step.total)
            candidates.append(torch.nn.functional.normalize(step.x, dim=1))
        return replace(draft, image_embed=self._best(torch.stack(candidates), text))

    @torch.no_grad()
    def _best(self, candidates: Tensor, text: Conditioning) -> Tensor:
        """candidates: [N, B, E] -> [B, E]."""
        fit = (candidates * self.dual.text_embed(text)[None]).sum(2)
        return candidates[fit.argmax(0), torch.arange(candidates.shape[1], device=candidates.device)]
