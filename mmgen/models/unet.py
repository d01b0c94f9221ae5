"""The U-Net of GLIDE, DALL-E 2 and Imagen's base: convolutions from the first pixel on, and a skip from every block.

It is told what `EfficientUNet` is told, predicts x0, and stands where that stands. It costs more: its finest resolution
is the picture's own. Source: Dhariwal & Nichol 2021 (ADM), arXiv:2105.05233, section 3; text beside the pixels in
attention: Nichol et al. 2021 (GLIDE), arXiv:2112.10741. Ours normalises the channels of each pixel instead of groups,
tells convolutions where they are, and changes widths where it changes resolution.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  # diffusers looks for them here, by these names
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mmgen.models.conditioned_unet import ConditionedUNet, Prepared
from mmgen.nn.blocks import AttentionBlock, Blocks, ResBlock, channel_norm, downsample, upsample
from mmgen.nn.embeddings import with_coordinates, zero_


class UNet(ConditionedUNet):
    """x_t -> x0, told time, text, image embedding and a low-resolution picture, as configured.

    channels: one width per resolution, which ADM writes as a width and multipliers. blocks: on the way down; on the way
    up there is one more, for there are as many skips: one of each block, one of each resolution's first map. The
    middle, at the lowest resolution, attends if that does. The other sizes are those of `ConditionedUNet`.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913, PLR0917  # a table of sizes; diffusers wants its config flat
        self,
        sample_size: int = 64,
        channels: tuple[int, ...] = (64, 128, 192),
        blocks: tuple[int, ...] = (2, 2, 2),
        attention: tuple[bool, ...] = (False, True, True),
        head_dim: int = 32,
        vector_dim: int = 256,
        text_dim: int = 0,
        pooled_dim: int = 0,
        text_width: int = 128,
        text_layers: int = 2,
        image_dim: int = 0,
        image_cells: int = 0,
        low_res: bool = False,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__(stem=1)
        self.conv_in = nn.Conv2d((6 if low_res else 3) + 2, channels[0], 3, padding=1)
        levels, lowest = range(len(channels)), len(channels) - 1
        self.down = nn.ModuleList(
            nn.ModuleList(self._block(i, channels[i]) for _ in range(blocks[i])) for i in levels
        )
        self.shrink = nn.ModuleList(downsample(channels[i], channels[i + 1]) for i in range(lowest))
        self.middle = Blocks([*self._block(lowest, channels[lowest]), ResBlock(channels[lowest], vector_dim)])
        self.grow = nn.ModuleList(upsample(channels[i + 1], channels[i]) for i in range(lowest))
        self.up = nn.ModuleList(
            nn.ModuleList(self._block(i, 2 * channels[i]) for _ in range(blocks[i] + 1)) for i in levels
        )
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        zero_(self.conv_out)

    def _block(self, i: int, in_channels: int) -> Blocks:
        """A residual block of resolution i, and attention where that has it."""
        config = self.config
        channels = config.channels[i]
        parts: list[nn.Module] = [ResBlock(in_channels, config.vector_dim, out_channels=channels)]
        if config.attention[i]:
            parts.append(AttentionBlock(channels, self._token_width, head_dim=config.head_dim))
        return Blocks(parts)

    def _trunk(self, picture: Tensor, vector: Tensor, prepared: Prepared) -> Tensor:
        kv, mask = iter(prepared.text_kv), prepared.text_mask
        x = self.conv_in(with_coordinates(picture).to(memory_format=torch.channels_last))
        skips = [x]
        for i, level in enumerate(self.down):
            if i:
                x = self.shrink[i - 1](x)
                skips.append(x)
            for block in level.children():
                x = block(x, vector, kv, mask)
                skips.append(x)
        x = self._lowest(x, vector, kv, prepared)
        for i, level in reversed(list(enumerate(self.up))):
            for block in level.children():
                x = block(torch.cat([x, skips.pop()], dim=1), vector, kv, mask)
            if i:
                x = self.grow[i - 1](x)
        out: Tensor = self.conv_out(nn.functional.silu(channel_norm(x)))
        return out
