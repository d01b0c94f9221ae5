"""Published networks behind the face that stages expect, and what else their folders say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmgen.conditioning import Conditioning, given
from mmgen.errors import ModelError
from mmgen.pipelines.families.family import enlargement
from mmgen.schedulers import prediction, schedules
from mmgen.schedulers.prediction import PredictionKind
from mmgen.schedulers.schedules import DiscreteSchedule, Spacing

PATCH = 8  # side, in latents, of the pictures of one colour by which `colours` learns
# How the schedulers of diffusers 0.42 visit the training steps where a file, older than the setting, does not say.
SPACINGS: Mapping[str, Spacing] = {
    "DDIMScheduler": "leading",
    "DDPMScheduler": "leading",
    "LCMScheduler": "leading",
    "PNDMScheduler": "leading",
    "TCDScheduler": "leading",
    "DEISMultistepScheduler": "linspace",
    "DPMSolverMultistepScheduler": "linspace",
    "EulerAncestralDiscreteScheduler": "linspace",
    "EulerDiscreteScheduler": "linspace",
    "HeunDiscreteScheduler": "linspace",
    "KDPM2AncestralDiscreteScheduler": "linspace",
    "KDPM2DiscreteScheduler": "linspace",
    "LMSDiscreteScheduler": "linspace",
    "UniPCMultistepScheduler": "linspace",
}


class TextUNet:
    """A `UNet2DConditionModel` that is told texts, all of whose positions it sees."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of what it is told."""
        return next(iter(self.network.parameters())).dtype

    def prepare(self, cond: Conditioning) -> Tensor:
        """The token states [B, L, D]."""
        return given(cond.text, "text").to(self.dtype)

    def __call__(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """What it predicts, [B, C, h, w]; C is twice that of x_t where it has learned a variance.

        t: [B], training steps; the finished picture at -1 is as step 0 to it.
        """
        out: Tensor = self.network(x_t, t.clamp(min=0), encoder_hidden_states=text, return_dict=False)[0]
        return out


def noise_of(config: Mapping[str, Any]) -> tuple[DiscreteSchedule, PredictionKind]:
    """The schedule that a network was trained on, and what it predicts, by the scheduler_config.json beside it.

    Which scheduler it is matters only where older files leave something out. Raises ModelError for a missing or unknown
    value, and where the network could say nothing of pure noise.
    """
    config = {"prediction_type": "epsilon", **config}
    name = config.get("_class_name")
    if isinstance(name, str) and name in SPACINGS:
        config = {"timestep_spacing": SPACINGS[name], **config}
    schedule, kind = schedules.from_diffusers_config(config), prediction.from_diffusers_config(config)
    if not isinstance(schedule, DiscreteSchedule):
        raise ModelError(f"scheduler config is of class {name!r}, which has no betas: this family needs them")
    if kind in ("eps", "learned-range") and schedule.alpha_bar[-1] == 0:
        raise ModelError(
            f"scheduler config says that the network predicts {kind}, with rescale_betas_zero_snr "
            f"{config.get('rescale_betas_zero_snr')!r}: these do not fit together"
        )
    return schedule, kind


def colours(vae: Any) -> Tensor | None:
    """[C + 1, 3]: the linear map from latents, and a one, to colours in [-1, 1] that fits a VAE best.

    By least squares, from what it makes of pictures of one colour: the corners of the cube of all colours. None where
    its weights are not in memory. Raises ValueError if it makes no numbers of them.
    """
    if vae.device.type == "meta":
        return None
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    side = PATCH * enlargement(vae.config)
    shown = corners[:, :, None, None].expand(-1, -1, side, side).to(vae.dtype)
    with torch.no_grad():
        found = scaled(vae.encode(shown).latent_dist.mean.float(), vae.config).mean(dim=(2, 3))
    if not bool(torch.isfinite(found).all()):
        raise ValueError("vae gives NaN or infinity: its weights can draw nothing")
    return torch.linalg.lstsq(torch.cat([found, torch.ones(len(found), 1)], dim=1), corners).solution


def scaled(latent: Tensor, vae: Any) -> Tensor:
    """What a VAE gives, in the units that are diffused. vae: its configuration."""
    return (latent - (vae.shift_factor or 0.0)) * vae.scaling_factor


def unscaled(latent: Tensor, vae: Any) -> Tensor:
    """The way back of `scaled`."""
    return latent / vae.scaling_factor + (vae.shift_factor or 0.0)
