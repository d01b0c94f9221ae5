"""Drawing over a given picture: where each stage begins, and what of the picture stays.

What stays is put into every x0 that a network predicts. Each sampler then noises it to the next time with the noise
that it believes to be there: the known region is exactly as noisy as the rest at every step, whatever the sampler.
Strength: Meng et al. 2021 (SDEdit), arXiv:2108.01073; a known region: Lugmayr et al. 2022 (RePaint), arXiv:2201.09865.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import ImageOps
from PIL.Image import Image, Resampling
from torch import Tensor

from mmgen.errors import UsageError
from mmgen.images import resize, to_tensor
from mmgen.inputs import digest
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import Denoise
from mmgen.types import STRENGTH, Request


@dataclass(frozen=True)
class Known:
    """A given picture.

    image: [B, 3, H, W] in [-1, 1]. repaint: [B, 1, H, W] in [0, 1], 1 where it is drawn anew, None: everywhere.
    strength: the flow time from which each stage begins, in (0, 1]; 1 forgets what is repainted.
    """

    image: Tensor
    repaint: Tensor | None = None
    strength: float = 1.0

    def at(self, size: int) -> Known:
        """The same with pictures of this side, averaged over areas or enlarged."""
        repaint = None if self.repaint is None else _resized(self.repaint, size).clamp(0, 1)
        return Known(_resized(self.image, size).clamp(-1, 1), repaint, self.strength)

    def keep(self, x0: Tensor) -> Tensor:
        """x0 [B, 3, H, W], with the picture where nothing is repainted."""
        return x0 if self.repaint is None else torch.lerp(self.image.to(x0), x0, self.repaint.to(x0))

    def keeping(self, denoise: Denoise) -> Denoise:
        """A denoiser of pictures that knows what stays."""
        if self.repaint is None:
            return denoise

        def denoise_around(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
            found = denoise(x_t, t, s)
            return found._replace(x0=self.keep(found.x0))

        return denoise_around


def over(request: Request, image: Image, mask: Image | None, strength: float | None) -> Request:
    """The request, to be drawn over a picture; one that says so already must have been made over the same.

    strength: None = STRENGTH, with a mask 1. Raises UsageError for another picture or mask than the request's.
    """
    given = {"image": digest(image)} | ({} if mask is None else {"mask": digest(mask)})
    if request.verb != "edit":
        if strength is None:
            strength = STRENGTH if mask is None else 1.0
        return replace(request, verb="edit", inputs=given, strength=strength)
    if strength is not None:
        raise UsageError("a request says everything itself: leave strength out, or give prompts")
    names = sorted(given.keys() | request.inputs.keys())
    if changed := [name for name in names if given.get(name) != request.inputs.get(name)]:
        raise UsageError(f"the request was made with another {' and '.join(changed)}: give the same again")
    return request


def known(image: Image, mask: Image | None, request: Request) -> Known:
    """What an edit starts from, at the request's size; pictures of another shape are cut to its middle."""
    assert request.strength is not None
    shown = to_tensor([resize(image, request.size)])
    repaint = None
    if mask is not None:
        # by areas: a sharper filter rings, and would touch what stays
        scaled = ImageOps.fit(mask, request.size, method=Resampling.BOX)
        repaint = (to_tensor([scaled])[:, :1] + 1) / 2
    return Known(shown, repaint, request.strength)


def _resized(image: Tensor, size: int) -> Tensor:
    side = image.shape[-1]
    if side == size:
        return image
    if side > size:
        return F.interpolate(image, (size, size), mode="area")
    return F.interpolate(image, (size, size), mode="bicubic", align_corners=False)
