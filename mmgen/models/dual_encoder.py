"""The dual encoder: pictures and texts as unit vectors whose dot product says how well they fit.

Trained contrastively against frozen text states: locked-text tuning (Zhai et al. 2022, arXiv:2111.07991, lock the image
side instead). Source of the idea: Radford et al. 2021 (CLIP), arXiv:2103.00020.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given
from mmgen.nn.blocks import ResBlock, Unfold, channel_norm, downsample
from mmgen.nn.transformer import TextAdapter


class DualEncoder(ModelMixin, ConfigMixin):
    """An image tower of residual convolutions and a text tower over frozen token states.

    image_size: side to which pictures are scaled. stem: side of the patches that become channels.
    channels, blocks: one entry per resolution, the finest first. embed_dim: width of both embeddings.
    cells: side of the map that `unfold` makes of an image embedding, 0: none.
    """

    @register_to_config
    def __init__(  # noqa: PLR0917  # diffusers wants its config flat
        self,
        image_size: int = 64,
        stem: int = 4,
        channels: tuple[int, ...] = (64, 128, 160),
        blocks: tuple[int, ...] = (2, 3, 2),
        text_dim: int = 384,
        text_width: int = 192,
        text_layers: int = 1,
        embed_dim: int = 256,
        cells: int = 0,
    ) -> None:
        super().__init__()
        self.patches_in = nn.Conv2d(3 * stem**2, channels[0], 3, padding=1)
        parts: list[nn.Module] = []
        for i, (width, depth) in enumerate(zip(channels, blocks, strict=True)):
            if i:
                parts.append(downsample(channels[i - 1], width))
            parts.extend(ResBlock(width, 0) for _ in range(depth))
        self.tower = nn.Sequential(*parts)
        side = image_size // stem // 2 ** (len(channels) - 1)
        self.image_out = nn.Linear(side**2 * channels[-1], embed_dim)
        if cells:
            self.unfold = Unfold(embed_dim, cells)
        self.text = TextAdapter(text_dim, text_width, text_layers)
        self.text_out = nn.Linear(text_width, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def image_embed(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1], any size -> [B, embed_dim], unit norm."""
        size = self.config.image_size
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="area")
        patches = F.pixel_unshuffle(pixels, self.config.stem).to(memory_format=torch.channels_last)
        cells = F.silu(channel_norm(self.tower(self.patches_in(patches))))
        return F.normalize(self.image_out(cells.flatten(1)).float(), dim=1)

    def text_embed(self, cond: Conditioning) -> Tensor:
        """Token states [B, L, D] and mask -> [B, embed_dim], unit norm."""
        mask = given(cond.text_mask, "text_mask")
        tokens = self.text(given(cond.text, "text"), mask)
        weight = mask[..., None].to(tokens.dtype)
        return F.normalize(self.text_out((tokens * weight).sum(1) / weight.sum(1)).float(), dim=1)

    def forward(self, pixels: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """(image_embed, text_embed) of a batch of pairs."""
        return self.image_embed(pixels), self.text_embed(cond)
