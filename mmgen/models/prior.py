"""The diffusion prior: from a text to the image embedding that a fitting picture would have.

Source: Ramesh et al. 2022 (unCLIP, DALL-E 2), arXiv:2204.06125, section 2.2: a transformer over text tokens, the pooled
text, the time and the noised embedding, which predicts the embedding itself. As there, no token of the text sees the
noised embedding; so the text is read once per prompt. Within the text ours attends in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given, with_null_text
from mmgen.nn.embeddings import ScalarEmbedding, zero_
from mmgen.nn.transformer import KeysValues, TransformerLayer


class PreparedPrior(NamedTuple):
    """What the embedding sees of the text, the pooled text last: in each layer keys and values [B, heads, L + 1, d].

    mask: [B, L + 1].
    """

    text_kv: list[KeysValues]
    mask: Tensor

    def repeat(self, times: int) -> PreparedPrior:
        """Every text so many times, one copy after the other."""
        kv = [(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in self.text_kv]
        return PreparedPrior(kv, self.mask.repeat_interleave(times, 0))


class DiffusionPrior(ModelMixin, ConfigMixin):
    """x_t [B, embed_dim] -> x0. Embeddings are diffused times sqrt(embed_dim): their entries have unit variance.

    text_dim, pooled_dim: widths of the frozen encoder's outputs; pooled may be the dual encoder's text embedding.
    """

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 256,
        text_dim: int = 384,
        pooled_dim: int = 384,
        width: int = 256,
        layers: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.text_in = nn.Linear(text_dim, width)
        self.pooled_in = nn.Linear(pooled_dim, width)
        self.null_text = nn.Parameter(torch.randn(text_dim) * 0.1)
        self.x_in = nn.Linear(embed_dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.time = ScalarEmbedding(width)
        self.target_time = ScalarEmbedding(width, zero_init=True)
        self.guidance = ScalarEmbedding(width, zero_init=True)
        self.trunk = nn.ModuleList(TransformerLayer(width, heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, embed_dim)
        zero_(self.out)

    def prepare(self, cond: Conditioning) -> PreparedPrior:
        """What does not change from step to step. Raises ValueError if text or pooled is missing."""
        text, mask = with_null_text(cond, self.null_text)
        pooled = given(cond.pooled, "pooled")
        if cond.drop_text is not None:
            pooled = pooled * ~cond.drop_text[:, None]
        told = self.pooled_in(pooled)
        if cond.guidance is not None:
            told = told + self.guidance(cond.guidance / 20)
        x = torch.cat([self.text_in(text), told[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        text_kv = []
        for layer in self.trunk:
            x, kv = layer(x, mask)
            text_kv.append(kv)
        return PreparedPrior(text_kv, mask)

    def forward(
        self, x_t: Tensor, t: Tensor, prepared: PreparedPrior, target_time: Tensor | None = None
    ) -> Tensor:
        """x_t: [B, embed_dim], t: [B] in [0, 1]. Returns x0, [B, embed_dim]."""
        time = self.time(t)
        if target_time is not None:
            time = time + self.target_time(target_time)
        x = torch.stack([time, self.x_in(x_t), self.query.to(time.dtype).expand_as(time)], dim=1)
        mask = torch.cat([prepared.mask, prepared.mask.new_ones(len(x), 3)], dim=1)
        for layer, text_kv in zip(self.trunk, prepared.text_kv, strict=True):
            x, _ = layer(x, mask, text_kv)
        out: Tensor = self.out(self.norm(x[:, -1]))
        return out
