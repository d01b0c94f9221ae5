"""What every U-Net here is told, and how: the part that `UNet` and `EfficientUNet` have in common.

Time, image embedding and the pooled text are added into one vector; text tokens and four tokens made of the image
embedding are keys and values of every attention block. An image embedding that was taught to tell what stands where can
also be unfolded into a map, which is added to the lowest features. Source: Ramesh et al. 2022 (unCLIP, DALL-E 2),
arXiv:2204.06125, section 2.1; the map is ours; the null that guidance needs: Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given, with_null_text
from mmgen.nn.blocks import AttentionBlock, Blocks, Unfold
from mmgen.nn.embeddings import ScalarEmbedding, zero_
from mmgen.nn.transformer import KeysValues, TextAdapter

IMAGE_TOKENS = 4


class Prepared(NamedTuple):
    """What does not change from step to step: computed once per prompt.

    vector: [B, E]. text_kv: for each attention block its text keys and values. text_mask: [B, L].
    image_map: [B, C, c, c]. low_res: [B, 3, H, W].
    """

    vector: Tensor
    text_kv: list[KeysValues]
    text_mask: Tensor | None
    image_map: Tensor | None
    low_res: Tensor | None


class ConditionedUNet(ModelMixin, ConfigMixin):
    """x_t -> x0, told time, text, image embedding and a low-resolution picture, as configured.

    A subclass registers these sizes as its config, makes `down`, `middle` and `up`, and runs them in `_trunk`:
    sample_size: side of the pictures in pixels. channels, blocks, attention: one entry per resolution, the finest
    first. head_dim: channels per head. vector_dim: width of the vector. text_dim, pooled_dim, image_dim: widths of the
    conditioning, 0 = not told. image_cells: side of the map that the image embedding is unfolded into, 0 = none.
    text_width, text_layers: the trainable adapter on the frozen text. low_res: told an up-sampled picture.
    residual_scale: x0 is measured in this unit; a residual's deviation, so that what is diffused is near unit variance.

    stem: pixels per side of what the finest resolution sees as one. Raises ValueError if the sizes cannot be.
    """

    down: nn.ModuleList
    middle: Blocks
    up: nn.ModuleList

    def __init__(self, stem: int) -> None:
        super().__init__()
        config = self.config
        if not len(config.channels) == len(config.blocks) == len(config.attention):
            raise ValueError("channels, blocks and attention need one entry per resolution each")
        grain = stem * 2 ** (len(config.channels) - 1)
        if not config.channels or config.sample_size < 1 or config.sample_size % grain:
            raise ValueError(
                f"sample_size is {config.sample_size}: it must be a multiple of {grain} for these channels and stem"
            )
        if not config.residual_scale > 0:
            raise ValueError(f"residual_scale is {config.residual_scale}: it must be above 0")
        width = config.vector_dim
        self.time = ScalarEmbedding(width)
        self.target_time = ScalarEmbedding(width, zero_init=True)
        self.guidance = ScalarEmbedding(width, zero_init=True)
        self._add_text(width)
        self._add_image(width)
        if config.low_res:
            self.noise_level = ScalarEmbedding(width, zero_init=True)
            self.source_size = ScalarEmbedding(width, zero_init=True)

    @property
    def _token_width(self) -> int:
        """Width of the tokens that attention sees; 0: there are none."""
        return int(self.config.text_width) if self.config.text_dim else 0

    def _add_text(self, vector_dim: int) -> None:
        config = self.config
        if config.text_dim:
            self.text = TextAdapter(config.text_dim, config.text_width, config.text_layers)
            self.null_text = nn.Parameter(torch.randn(config.text_dim) * 0.1)
            self.text_vector = nn.Linear(config.text_width, vector_dim)
        if config.pooled_dim:
            self.pooled = nn.Linear(config.pooled_dim, vector_dim)

    def _add_image(self, vector_dim: int) -> None:
        image_dim = self.config.image_dim
        if image_dim:
            self.image = nn.Linear(image_dim, vector_dim)
            self.null_image = nn.Parameter(torch.randn(image_dim) * image_dim**-0.5)
            if self._token_width:
                self.image_tokens = nn.Linear(image_dim, IMAGE_TOKENS * self._token_width)
            if self.config.image_cells:
                self.unfold = Unfold(image_dim, self.config.image_cells)
                self.image_map = zero_(nn.Conv2d(Unfold.FEATURES, self.config.channels[-1], 1))

    def prepare(self, cond: Conditioning) -> Prepared:
        """Everything about the conditioning that is the same at every step. Raises ValueError if a part is missing."""
        config = self.config
        vector, tokens, mask, image_map = 0.0, None, None, None
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
            if config.image_cells:
                image_map = self.image_map(self.unfold(embed))
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
        low_res = given(cond.low_res, "low_res") if config.low_res else None
        return Prepared(vector, kv, mask, image_map, low_res)

    def _adapt_text(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        text, mask = with_null_text(cond, self.null_text)
        return self.text(text, mask), mask

    def _image_embed(self, cond: Conditioning) -> Tensor:
        """[B, E]: the image embedding, or the null where there is none or it is dropped."""
        embed, null = cond.image_embed, self.null_image
        if embed is None:
            told = given(cond.pooled if cond.text is None else cond.text, "text, pooled or image_embed")
            return null.expand(len(told), -1)
        if cond.drop_image is None:
            return embed
        return torch.where(cond.drop_image[:, None], null.to(embed.dtype), embed)

    def _attention_blocks(self) -> list[AttentionBlock]:
        """In the order in which `_trunk` comes by them."""
        levels = [*self.down, self.middle, *reversed(self.up)]
        return [part for level in levels for part in level.modules() if isinstance(part, AttentionBlock)]

    def forward(
        self, x_t: Tensor, t: Tensor, prepared: Prepared, target_time: Tensor | None = None
    ) -> Tensor:
        """x_t: [B, 3, H, W], t: [B] in [0, 1]; target_time: [B], for few-step flow maps. Returns x0, [B, 3, H, W]."""
        vector = prepared.vector + self.time(t)
        if target_time is not None:
            vector = vector + self.target_time(target_time)
        vector = nn.functional.silu(vector)
        picture = x_t if prepared.low_res is None else torch.cat([x_t, prepared.low_res.to(x_t.dtype)], dim=1)
        return self._trunk(picture, vector, prepared)

    def _lowest(self, x: Tensor, vector: Tensor, kv: Iterator[KeysValues], prepared: Prepared) -> Tensor:
        """The lowest features through the middle, with what the image embedding says of them."""
        if (told := prepared.image_map) is not None:
            x = x + nn.functional.interpolate(told, x.shape[-2:], mode="area")
        out: Tensor = self.middle(x, vector, kv, prepared.text_mask)
        return out

    def _trunk(self, picture: Tensor, vector: Tensor, prepared: Prepared) -> Tensor:
        """picture: [B, 3, H, W], or 6 channels where the network sees low_res; vector: [B, E]. Returns x0."""
        raise NotImplementedError
