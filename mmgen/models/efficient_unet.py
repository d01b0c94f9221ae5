"""Efficient U-Net: the decoder at 64 px and the super-resolution network, in one class.

Parameters sit at low resolutions, skip connections are scaled by 1/sqrt(2), the picture enters as pixel-unshuffled
patches. It predicts x0. Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, appendix B.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given, with_null_text
from mmgen.nn.blocks import AttentionBlock, ResBlock, channel_norm, downsample, upsample
from mmgen.nn.embeddings import ScalarEmbedding, coordinates, zero_
from mmgen.nn.transformer import TextAdapter

SKIP_SCALE = 0.5**0.5
IMAGE_TOKENS = 4


class Prepared(NamedTuple):
    """What does not change from step to step: computed once per prompt.

    vector: [B, E]. text_kv: for each attention block its text keys and values. text_mask: [B, L].
    low_res: [B, 3, H, W].
    """

    vector: Tensor
    text_kv: list[tuple[Tensor, Tensor]]
    text_mask: Tensor | None
    low_res: Tensor | None


class EfficientUNet(ModelMixin, ConfigMixin):
    """x_t -> x0, told time, text, image embedding and a low-resolution picture, as configured.

    sample_size: side of the pictures in pixels. stem: side of the patches that become channels.
    channels, blocks, attention: one entry per resolution, the finest first; blocks on the way down and up alike,
    once in the lowest. text_dim, pooled_dim, image_dim: widths of the conditioning, 0 = not told.
    text_width, text_layers: the trainable adapter on the frozen text. low_res: told an up-sampled picture.
    residual_scale: x0 is measured in this unit; a residual's deviation, so that what is diffused is near unit variance.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913, PLR0917  # a table of sizes; diffusers wants its config flat
        self,
        sample_size: int = 64,
        stem: int = 4,
        channels: tuple[int, ...] = (64, 128),
        blocks: tuple[int, ...] = (1, 1),
        attention: tuple[bool, ...] = (False, True),
        head_dim: int = 16,
        vector_dim: int = 128,
        text_dim: int = 0,
        pooled_dim: int = 0,
        text_width: int = 128,
        text_layers: int = 2,
        image_dim: int = 0,
        low_res: bool = False,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not len(channels) == len(blocks) == len(attention):
            raise ValueError("channels, blocks and attention need one entry per resolution each")
        grain = stem * 2 ** (len(channels) - 1)
        if not channels or sample_size < 1 or sample_size % grain:
            raise ValueError(
                f"sample_size is {sample_size}: it must be a multiple of {grain} for these channels and stem"
            )
        if not residual_scale > 0:
            raise ValueError(f"residual_scale is {residual_scale}: it must be above 0")
        self.time = ScalarEmbedding(vector_dim)
        self.target_time = ScalarEmbedding(vector_dim, zero_init=True)
        self.guidance = ScalarEmbedding(vector_dim, zero_init=True)
        self._add_text(vector_dim, text_dim, pooled_dim, text_width, text_layers)
        self._add_image(vector_dim, image_dim, text_width if text_dim else 0)
        if low_res:
            self.noise_level = ScalarEmbedding(vector_dim, zero_init=True)
            self.source_size = ScalarEmbedding(vector_dim, zero_init=True)
        self._add_trunk(channels, blocks, attention, vector_dim, text_width if text_dim else 0)

    def _add_text(self, vector_dim: int, text_dim: int, pooled_dim: int, width: int, layers: int) -> None:
        if text_dim:
            self.text = TextAdapter(text_dim, width, layers)
            self.null_text = nn.Parameter(torch.randn(text_dim) * 0.1)
            self.text_vector = nn.Linear(width, vector_dim)
        if pooled_dim:
            self.pooled = nn.Linear(pooled_dim, vector_dim)

    def _add_image(self, vector_dim: int, image_dim: int, text_width: int) -> None:
        if image_dim:
            self.image = nn.Linear(image_dim, vector_dim)
            self.null_image = nn.Parameter(torch.randn(image_dim) * image_dim**-0.5)
            if text_width:
                self.image_tokens = nn.Linear(image_dim, IMAGE_TOKENS * text_width)

    def _add_trunk(
        self,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        attention: tuple[bool, ...],
        vector_dim: int,
        text_width: int,
    ) -> None:
        def level(i: int) -> nn.ModuleList:
            parts: list[nn.Module] = []
            for _ in range(blocks[i]):
                parts.append(ResBlock(channels[i], vector_dim))
                if attention[i]:
                    parts.append(AttentionBlock(channels[i], text_width, head_dim=self.config.head_dim))
            return nn.ModuleList(parts)

        pictures = 2 if self.config.low_res else 1
        patch = 3 * self.config.stem**2
        self.patches_in = nn.Conv2d(pictures * patch + 2, channels[0], 3, padding=1)
        lowest = len(channels) - 1
        self.down = nn.ModuleList(level(i) for i in range(lowest))
        self.shrink = nn.ModuleList(downsample(channels[i], channels[i + 1]) for i in range(lowest))
        self.middle = level(lowest)
        self.grow = nn.ModuleList(upsample(channels[i + 1], channels[i]) for i in range(lowest))
        self.up = nn.ModuleList(level(i) for i in range(lowest))
        self.patches_out = nn.Conv2d(channels[0], patch, 3, padding=1)
        zero_(self.patches_out)

    def prepare(self, cond: Conditioning) -> Prepared:
        """Everything about the conditioning that is the same at every step. Raises ValueError if a part is missing."""
        config = self.config
        vector, tokens, mask = 0.0, None, None
        if config.text_dim:
            tokens, mask = self._adapt_text(cond)
            weight = mask[..., None].to(tokens.dtype)
            vector = vector + self.text_vector((tokens * weight).sum(1) / weight.sum(1))
        if config.pooled_dim:
            pooled = given(cond.pooled, "pooled")
            dropped = cond.drop_text
            vector = vector + self.pooled(pooled if dropped is None else pooled * ~dropped[:, None])
        if config.image_dim:
            embed = self._image_embed(cond)
            vector = vector + self.image(embed)
            if tokens is not None and mask is not None:
                extra = self.image_tokens(embed).unflatten(1, (IMAGE_TOKENS, -1))
                tokens = torch.cat([tokens, extra], dim=1)
                mask = torch.cat([mask, mask.new_ones(len(mask), IMAGE_TOKENS)], dim=1)
        if config.low_res:
            vector = vector + self.noise_level(given(cond.noise_level, "noise_level"))
            # 64 and 256 px as 0 and 0.5: well apart in the embedding, and room above
            vector = vector + self.source_size(torch.log2(given(cond.source_size, "source_size") / 64) / 4)
        if cond.guidance is not None:
            vector = vector + self.guidance(cond.guidance / 20)
        kv = [] if tokens is None else [b.text_keys_values(tokens) for b in self._attention_blocks()]
        if not isinstance(vector, Tensor):
            raise ValueError(
                "this network is told nothing: configure text_dim, pooled_dim, image_dim or low_res"
            )
        return Prepared(vector, kv, mask, given(cond.low_res, "low_res") if config.low_res else None)

    def _adapt_text(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        text, mask = with_null_text(cond, self.null_text)
        return self.text(text, mask), mask

    def _image_embed(self, cond: Conditioning) -> Tensor:
        rows = given(cond.pooled if cond.text is None else cond.text, "text or pooled").shape[0]
        null = self.null_image.expand(rows, -1)
        if cond.image_embed is None:
            return null
        if cond.drop_image is None:
            return cond.image_embed
        return torch.where(cond.drop_image[:, None], null.to(cond.image_embed.dtype), cond.image_embed)

    def _attention_blocks(self) -> list[AttentionBlock]:
        levels = [*self.down, self.middle, *reversed(self.up)]
        return [part for level in levels for part in level if isinstance(part, AttentionBlock)]

    def forward(
        self, x_t: Tensor, t: Tensor, prepared: Prepared, target_time: Tensor | None = None
    ) -> Tensor:
        """x_t: [B, 3, H, W], t: [B] in [0, 1]; target_time: [B], for few-step flow maps. Returns x0, [B, 3, H, W]."""
        vector = prepared.vector + self.time(t)
        if target_time is not None:
            vector = vector + self.target_time(target_time)
        vector = nn.functional.silu(vector)
        picture = x_t if prepared.low_res is None else torch.cat([x_t, prepared.low_res.to(x_t.dtype)], dim=1)
        patches = nn.functional.pixel_unshuffle(picture, self.config.stem)
        kv = iter(prepared.text_kv)
        x = self.patches_in(
            torch.cat([patches, coordinates(patches)], dim=1).to(memory_format=torch.channels_last)
        )
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            x = _run(level, x, vector, kv, prepared.text_mask)
            skips.append(x)
            x = shrink(x)
        x = _run(self.middle, x, vector, kv, prepared.text_mask)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = _run(level, (grow(x) + skips.pop()) * SKIP_SCALE, vector, kv, prepared.text_mask)
        x = self.patches_out(nn.functional.silu(channel_norm(x)))
        return nn.functional.pixel_shuffle(x, self.config.stem)


def _run(
    level: nn.Module, x: Tensor, vector: Tensor, kv: Iterator[tuple[Tensor, Tensor]], mask: Tensor | None
) -> Tensor:
    for part in level.children():
        x = part(x, next(kv, None), mask) if isinstance(part, AttentionBlock) else part(x, vector)
    return x
