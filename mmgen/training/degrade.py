"""What super-resolution must make good: pictures blurred, or drawn again by a decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.editing import Known
from mmgen.pipelines.families.storybook import DECODER
from mmgen.pipelines.stage import Draft, finish
from mmgen.types import StageSettings

STEPS = 8  # of which a redrawing takes the last ones, from its strength on
# Flow times from which pictures are drawn again: above, things change that nobody can tell back, and all gets smooth.
LEAST, MOST = 0.1, 0.5


class Redraw:
    """A decoder draws pictures again from a noisy state of them, told their captions and their own embeddings.

    What stands where stays, and fine shapes become what the decoder makes of them. Source: SDEdit, arXiv:2108.01073.
    size: side of its pictures.
    """

    def __init__(self, decoder: ConditionedUNet, text: TextEncoder, dual: DualEncoder | None) -> None:
        self.text, self.dual = text, dual
        self.stage = DecoderStage(decoder, DECODER, uses_image_embed=dual is not None)
        self.size: int = decoder.config.sample_size

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        """images: [B, 3, size, size] in [-1, 1]; the same shape comes back, float32. One strength for all, drawn."""
        strength, seed = torch.rand(
            2, generator=generator, device=generator.device, dtype=torch.float64
        ).tolist()
        draft = Draft(
            tuple(captions),
            text=self.text.encode(captions),
            image_embed=None if self.dual is None else self.dual.image_embed(images),
            known=Known(images, strength=LEAST + (MOST - LEAST) * strength),
        )
        settings = StageSettings(steps=STEPS, guidance_scale=1.0).with_defaults(DECODER)
        noise = Noise([int(seed * 2**40) + i for i in range(len(images))], self.stage.name)
        drawn = finish(self.stage.run(draft, settings, noise)).image
        assert drawn is not None
        return drawn.float()


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian over [B, C, H, W]. sigma: in pixels; nothing is done at 0 and below."""
    if sigma <= 0:
        return images
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (at / sigma).square())
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, weights, groups=images.shape[1])
    return F.conv2d(across, weights.mT, groups=images.shape[1])
