"""Efficient U-Net: the decoder at 64 px and the super-resolution network, in one class.

Parameters sit at low resolutions, skip connections are scaled by 1/sqrt(2), the picture enters as pixel-unshuffled
patches. It predicts x0. Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, appendix B.1.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  # diffusers looks for them here, by these names
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mmgen.models.conditioned_unet import ConditionedUNet, Prepared
from mmgen.nn.blocks import AttentionBlock, Blocks, ResBlock, channel_norm, downsample, upsample
from mmgen.nn.embeddings import with_coordinates, zero_

SKIP_SCALE = 0.5**0.5


class EfficientUNet(ConditionedUNet):
    """x_t -> x0, told time, text, image embedding and a low-resolution picture, as configured.

    stem: side of the patches that become channels. blocks: on the way down and up alike, once in the lowest.
    The other sizes are those of `ConditionedUNet`.
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
        image_cells: int = 0,
        low_res: bool = False,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__(stem)
        pictures = 2 if low_res else 1
        patch = 3 * stem**2
        self.patches_in = nn.Conv2d(pictures * patch + 2, channels[0], 3, padding=1)
        lowest = len(channels) - 1
        self.down = nn.ModuleList(self._level(i) for i in range(lowest))
        self.shrink = nn.ModuleList(downsample(channels[i], channels[i + 1]) for i in range(lowest))
        self.middle = self._level(lowest)
        self.grow = nn.ModuleList(upsample(channels[i + 1], channels[i]) for i in range(lowest))
        self.up = nn.ModuleList(self._level(i) for i in range(lowest))
        self.patches_out = nn.Conv2d(channels[0], patch, 3, padding=1)
        zero_(self.patches_out)

    def _level(self, i: int) -> Blocks:
        config = self.config
        parts: list[nn.Module] = []
        for _ in range(config.blocks[i]):
            parts.append(ResBlock(config.channels[i], config.vector_dim))
            if config.attention[i]:
                parts.append(AttentionBlock(config.channels[i], self._token_width, head_dim=config.head_dim))
        return Blocks(parts)

    def _trunk(self, picture: Tensor, vector: Tensor, prepared: Prepared) -> Tensor:
        kv, mask = iter(prepared.text_kv), prepared.text_mask
        patches = nn.functional.pixel_unshuffle(picture, self.config.stem)
        x = self.patches_in(with_coordinates(patches).to(memory_format=torch.channels_last))
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            x = level(x, vector, kv, mask)
            skips.append(x)
            x = shrink(x)
        x = self._lowest(x, vector, kv, prepared)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = level((grow(x) + skips.pop()) * SKIP_SCALE, vector, kv, mask)
        x = self.patches_out(nn.functional.silu(channel_norm(x)))
        return nn.functional.pixel_shuffle(x, self.config.stem)
