"""Latents -> the picture, by the VAE that they belong to."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmgen import threshold
from mmgen.errors import NonFiniteError
from mmgen.noise import Noise
from mmgen.pipelines.adapters import unscaled
from mmgen.pipelines.families.family import enlargement
from mmgen.pipelines.forms import VAE_TAKES
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.super_res_stage import MIN_SQUARE, OVERLAP, SQUARE
from mmgen.pipelines.tiling import Box, blended, squares
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class VaeStage:
    """Decodes latents, one picture after the other. size: side of the pictures. square: of the squares in which larger
    ones are decoded, in pixels, None: SQUARE."""

    name = "vae"
    needs = frozenset({"latent"})
    gives = frozenset({"image"})
    takes = VAE_TAKES
    defaults = StageSettings()

    def __init__(self, network: Any, *, size: int, square: int | None = None) -> None:
        self.network, self._square = network, square
        self.networks: tuple[nn.Module, ...] = (network,)
        self.size: int | None = size

    @property
    def square(self) -> int:
        """Of the squares in which it decodes, in pixels."""
        return SQUARE if self._square is None else self._square

    def smaller(self) -> VaeStage | None:
        """The same stage in less memory: in squares of half the side; None: they would be too small."""
        assert self.size is not None
        square = min(self.square, self.size) // 2
        return None if square < MIN_SQUARE else type(self)(self.network, size=self.size, square=square)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.latent is None:
            raise ValueError("a VAE needs latents")
        latent = self._units(draft.latent).to(self.network.dtype)
        try:
            image = threshold.static_clip(torch.cat([self._decoded(one) for one in latent.split(1)]))
        except NonFiniteError as error:
            raise NonFiniteError(f"stage {self.name!r}: {error}") from None
        yield Step(self.name, 1, 1, 0.0, image, image)
        return replace(draft, image=image)

    @torch.no_grad()
    def _decoded(self, latent: Tensor) -> Tensor:
        """[1, C, h, w] -> [1, 3, H, W], float32, square by square where it is large."""
        scale = self._scale()
        height, width = latent.shape[-2:]
        boxes = squares(height, width, self.square // scale, OVERLAP // scale)
        seen = iter(boxes)

        def draw(_box: Box) -> Tensor:
            return self._pixels(latent[(..., *next(seen))]).float()

        pixels = [(_times(rows, scale), _times(columns, scale)) for rows, columns in boxes]
        like = latent.new_empty((1, 3, scale * height, scale * width), dtype=torch.float32)
        return blended(draw, pixels, like)

    def _scale(self) -> int:
        """Pixels per side of what a latent stands for."""
        return enlargement(self.network.config)

    def _units(self, latent: Tensor) -> Tensor:
        """What was diffused, in the units that the network decodes."""
        return unscaled(latent, self.network.config)

    def _pixels(self, latent: Tensor) -> Tensor:
        """[1, C, h, w] -> [1, 3, H, W]."""
        image: Tensor = self.network.decode(latent, return_dict=False)[0]
        return image


def _times(part: slice, scale: int) -> slice:
    return slice(scale * part.start, scale * part.stop)
