"""The blocks of the convolutional networks. Feature maps are [B, C, H, W], channels last in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.attention import attention
from mmgen.nn.embeddings import zero_


def channel_norm(x: Tensor) -> Tensor:
    """Layer norm over the channels of each pixel, without weights. [B, C, H, W] -> same.

    Chosen over group norm: on a CPU it is about four times faster on channels-last bfloat16.
    """
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual, scaled and shifted by a vector (FiLM), silent before training.

    vector_dim 0: told no vector. out_channels: as many as come in if None; else a 1x1 convolution carries x across.
    forward: x [B, C, H, W], vector [B, E] -> [B, out_channels, H, W].
    """

    def __init__(self, channels: int, vector_dim: int, *, out_channels: int | None = None) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        self.film = nn.Linear(vector_dim, 2 * channels) if vector_dim else None
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        zero_(self.conv2)
        self.carry = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        h = channel_norm(x)
        if self.film is not None:
            scale, shift = self.film(vector)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        h = self.conv1(F.silu(h))
        out: Tensor = self.carry(x) + self.conv2(F.silu(channel_norm(h)))
        return out


class AttentionBlock(nn.Module):
    """Self-attention over the pixels whose keys and values are joined by the text's.

    Queries and keys are normalised (Dehghani et al. 2023, arXiv:2302.05442). text_dim 0: no text.
    forward: x [B, C, H, W], text_kv from `text_keys_values`, text_mask [B, L] -> [B, C, H, W].
    """

    def __init__(self, channels: int, text_dim: int, *, head_dim: int = 64) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels cannot be split into heads of {head_dim}")
        self.heads = channels // head_dim
        self.qkv = nn.Linear(channels, 3 * channels)
        self.text_kv = nn.Linear(text_dim, 2 * channels) if text_dim else None
        self.q_norm = nn.LayerNorm(head_dim)
        self.k_norm = nn.LayerNorm(head_dim)
        self.out = nn.Linear(channels, channels)
        zero_(self.out)

    def text_keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text, [B, heads, L, d] each: the same at every step, so computed once."""
        assert self.text_kv is not None
        k, v = (self._split(part) for part in self.text_kv(text).chunk(2, dim=-1))
        return self.k_norm(k), v

    def forward(
        self, x: Tensor, text_kv: tuple[Tensor, Tensor] | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        batch, _, height, width = x.shape
        pixels = channel_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (self._split(part) for part in self.qkv(pixels).chunk(3, dim=-1))
        q, k, mask = self.q_norm(q), self.k_norm(k), None
        if text_kv is not None:
            k, v = torch.cat([k, text_kv[0]], dim=2), torch.cat([v, text_kv[1]], dim=2)
            if text_mask is not None:
                mask = torch.cat([text_mask.new_ones(batch, height * width), text_mask], dim=1)
        mixed = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed).transpose(1, 2).unflatten(2, (height, width))
        return x + out

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Blocks(nn.ModuleList):
    """Residual and attention blocks in turn; each attention block takes the next of text_kv.

    forward: x [B, C, H, W], vector [B, E] -> as the last block gives.
    """

    def forward(
        self, x: Tensor, vector: Tensor, text_kv: Iterator[tuple[Tensor, Tensor]], text_mask: Tensor | None
    ) -> Tensor:
        for block in self:
            attends = isinstance(block, AttentionBlock)
            x = block(x, next(text_kv, None), text_mask) if attends else block(x, vector)
        return x


class Unfold(nn.Module):
    """An image embedding as a small map: [B, embed_dim], unit norm -> [B, FEATURES, cells, cells]."""

    FEATURES = 64

    def __init__(self, embed_dim: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.linear = nn.Linear(embed_dim, self.FEATURES * cells**2)

    def forward(self, embed: Tensor) -> Tensor:
        scaled = embed * embed.shape[1] ** 0.5
        return channel_norm(self.linear(scaled).unflatten(1, (self.FEATURES, self.cells, self.cells)))


def downsample(in_channels: int, out_channels: int) -> nn.Module:
    """Halve the side: each 2x2 square becomes channels, then a 1x1 convolution."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, out_channels, 1))


def upsample(in_channels: int, out_channels: int) -> nn.Module:
    """Double the side: a 1x1 convolution, then channels become 2x2 squares."""
    return nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 1), nn.PixelShuffle(2))
