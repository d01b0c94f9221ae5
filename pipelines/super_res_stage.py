"""A picture -> the same picture four times as large."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen import threshold
from mmgen.conditioning import Conditioning
from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import FACTOR as FACTOR
from mmgen.pipelines.forms import SUPER_RES_TAKES, super_res_name
from mmgen.pipelines.sampling import diffuse, resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.tiling import blended, squares
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings

SQUARE, OVERLAP = 1024, 64  # px; larger pictures are drawn in squares of this side
MIN_SQUARE = 128  # px; below it, half of a square would be overlap


class SuperResStage:
    """Diffuses what the enlarged picture lacks: x0 = enlarge(low_res) + residual_scale * what is diffused.

    The input is corrupted a little at `noise_level`, which the network is told: noise conditioning augmentation, Ho et
    al. 2021, arXiv:2106.15282. size: side of the pictures it gives; the network may serve several stages. square: side
    of the squares in which larger pictures are drawn, None: SQUARE.
    """

    needs = frozenset({"image"})
    gives = frozenset({"image"})
    takes = SUPER_RES_TAKES
    factor = FACTOR

    def __init__(
        self, network: ConditionedUNet, defaults: StageSettings, *, size: int, square: int | None = None
    ) -> None:
        self.network, self.defaults, self._square = network, defaults, square
        self.networks: tuple[nn.Module, ...] = (network,)
        self.size: int | None = size
        self.name = super_res_name(size)

    def smaller(self) -> SuperResStage | None:
        """The same stage in less memory: in squares of half the side; None: they would be too small."""
        assert self.size is not None
        square = min(self.square, self.size) // 2
        if square < MIN_SQUARE:
            return None
        return SuperResStage(self.network, self.defaults, size=self.size, square=square)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.image is None:
            raise ValueError("super-resolution needs an image")
        height, width = draft.image.shape[-2:]
        # a multiple of what the network sees as one, once it is enlarged
        low = F.pad(draft.image, (0, -width % self._grain, 0, -height % self._grain), mode="replicate")
        level = resolved(settings.noise_level, "noise_level", self.name)
        limit = threshold.make(resolved(settings.threshold, "threshold", self.name))
        scale = self.network.config.residual_scale
        low_res = self._corrupt(low, level, noise)
        residual = self._residual(low_res, level, max(height, width))
        known = None if draft.known is None else draft.known.at(low_res.shape[-1])

        def denoise(r_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
            x0 = limit(low_res + scale * residual(r_t, t, s))
            if known is not None:
                x0 = known.keep(x0)
            return Prediction((x0 - low_res) / scale, None)

        r = noise.draw(low_res.shape[1:]).to(low_res.device)
        begin = None
        if known is not None and draft.known is not None:
            # only its detail: what else it shows is not what the smaller stage has drawn
            detail = known.image - enlarge(draft.known.at(low.shape[-1]).image)
            begin = ((known.keep(low_res + detail.to(r)) - low_res) / scale, known.strength)
        shown = (..., slice(FACTOR * height), slice(FACTOR * width))
        for step in diffuse(denoise, r, settings, noise, stage=self.name, begin=begin):
            yield step._replace(x0=(low_res + scale * step.x0)[shown])
        return replace(draft, image=(low_res + scale * step.x)[shown].clamp(-1, 1))

    @property
    def square(self) -> int:
        """Of the squares in which it draws, in pixels."""
        return SQUARE if self._square is None else self._square

    @property
    def _grain(self) -> int:
        """Pixels of a small picture that the network sees as one, at its lowest resolution."""
        config = self.network.config
        return max(1, getattr(config, "stem", 1) * 2 ** (len(config.channels) - 1) // FACTOR)

    def _residual(self, low_res: Tensor, level: float, source_size: int) -> Callable[..., Tensor]:
        """(r_t, t, s) -> what the network says the picture lacks, [B, 3, H, W], square by square where it is large."""
        height, width = low_res.shape[-2:]
        boxes = squares(height, width, self.square, OVERLAP)
        parts = [
            make_denoiser(
                self.network, self._conditioning(low_res[(..., *box)], level, source_size), None, StageSettings(),
                stage=self.name,
            )
            for box in boxes
        ]  # fmt: skip

        def residual(r_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
            drawn = iter(parts)
            return blended(lambda box: next(drawn)(r_t[(..., *box)], t, s).x0, boxes, r_t)

        return residual

    @staticmethod
    def _corrupt(image: Tensor, level: float, noise: Noise) -> Tensor:
        corrupted = image + level * noise.draw(image.shape[1:]).to(image.device)
        return enlarge(corrupted)

    def _conditioning(self, low_res: Tensor, level: float, source_size: int) -> Conditioning:
        count, device = len(low_res), self.network.device
        source_size = min(max(source_size, 64), 256)  # it was trained on these two
        return Conditioning(
            low_res=low_res.to(self.network.dtype),
            noise_level=torch.full((count,), level, device=device),
            source_size=torch.full((count,), float(source_size), device=device),
        )


def enlarge(low: Tensor) -> Tensor:
    """Bicubic: [B, 3, H, W] -> [B, 3, 4H, 4W], float32."""
    return F.interpolate(low.float(), scale_factor=FACTOR, mode="bicubic", align_corners=False)
