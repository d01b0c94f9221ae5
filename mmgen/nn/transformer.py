"""Transformer layers, pre-norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.attention import attention

KeysValues = tuple[Tensor, Tensor]


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward part.

    forward: x [B, L, D]; mask [B, M + L] bool, True where a token may be seen; before: keys and values of M other
    tokens that these see too, [B, heads, M, d] each. Returns x, and its own keys and values for others to see.
    """

    def __init__(self, dim: int, *, heads: int = 4, expansion: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} cannot be split into {heads} heads")
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, expansion * dim)
        self.outer = nn.Linear(expansion * dim, dim)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, before: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        q, k, v = (self._split(part) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        own = k, v
        if before is not None:
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        x = x + self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.outer(F.gelu(self.inner(self.norm2(x)), approximate="tanh")), own

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TextAdapter(nn.Module):
    """Trainable layers on frozen text states.

    forward: text [B, L, text_dim], mask [B, L] -> [B, L, dim].
    """

    def __init__(self, text_dim: int, dim: int, layers: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_dim, dim)
        self.layers = nn.ModuleList(TransformerLayer(dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        x = self.project(text)
        for layer in self.layers:
            x, _ = layer(x, mask)
        out: Tensor = self.norm(x)
        return out
