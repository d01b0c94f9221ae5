"""Published networks behind the face that stages expect, and what else their folders say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmgen import threshold
from mmgen.conditioning import Conditioning, given
from mmgen.errors import ModelError
from mmgen.pipelines.families.family import enlargement, limit_of, percentile_of
from mmgen.schedulers import prediction, schedules
from mmgen.schedulers.prediction import PredictionKind
from mmgen.schedulers.schedules import DiscreteSchedule, Spacing
from mmgen.threshold import Threshold

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
    "UnCLIPScheduler": "linspace",
}


class Face:
    """A published network as a stage meets it: `prepare` makes what it is told, and the call what it predicts."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of what it is told."""
        return next(iter(self.network.parameters())).dtype


class TextUNet(Face):
    """A `UNet2DConditionModel` that is told texts, all of whose positions it sees."""

    def prepare(self, cond: Conditioning) -> Tensor:
        """The token states [B, L, D]."""
        return given(cond.text, "text").to(self.dtype)

    def __call__(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """What it predicts, [B, C, h, w]; C is twice that of x_t where it has learned a variance.

        t: [B], training steps; the finished picture at -1 is as step 0 to it.
        """
        out: Tensor = self.network(x_t, t.clamp(min=0), encoder_hidden_states=text, return_dict=False)[0]
        return out


class SizedUNet(Face):
    """A `UNet2DConditionModel` that is told texts, a pooled vector of each, and what was cut of its pictures.

    side: of the pictures in pixels: they are said to be whole, and of this size from the beginning.
    Source: Podell et al. 2023 (SDXL), arXiv:2307.01952, section 2.2; a score stands in the place of the last size in
    the network that refines, as published.
    """

    def __init__(self, network: Any, *, side: int) -> None:
        super().__init__(network)
        self.side = side

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """The token states [B, L, D], the pooled vectors [B, P], and height and width of the original, top and left of
        the cut, height and width of the picture, or its score instead of these [B, 6 or 5]."""
        text, pooled = (given(getattr(cond, name), name).to(self.dtype) for name in ("text", "pooled"))
        side = float(self.side)
        whole = torch.tensor([side, side, 0.0, 0.0], device=text.device).expand(len(text), -1)
        last = whole[:, :2] if cond.score is None else cond.score[:, None].to(whole)
        return text, pooled, torch.cat([whole, last], dim=1)

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: [B], training steps, as of a `TextUNet`."""
        text, pooled, sizes = told
        out: Tensor = self.network(
            x_t,
            t.clamp(min=0),
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return out


class TextPrior(Face):
    """A `PriorTransformer`: it is told token states, which of them are words, and what CLIP makes of the whole text."""

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """The token states [B, L, D], which of them are words [B, L], and the text embeddings [B, P]."""
        text, pooled = (given(getattr(cond, name), name).to(self.dtype) for name in ("text", "pooled"))
        return text, given(cond.text_mask, "text_mask"), pooled

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, E]. t: [B], training steps, as of a `TextUNet`."""
        text, mask, pooled = told
        out: Tensor = self.network(
            x_t,
            t.clamp(min=0),
            proj_embedding=pooled,
            encoder_hidden_states=text,
            attention_mask=mask,
            return_dict=False,
        )[0]
        return out


class EmbedUNet(Face):
    """A `UNet2DConditionModel` that is told image embeddings, and texts where there are any."""

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The embeddings [B, E], the token states [B, L, D] and the pooled vectors [B, P]."""
        told = (given(cond.image_embed, "image_embed"), cond.text, cond.pooled)
        embed, text, pooled = (None if value is None else value.to(self.dtype) for value in told)
        return given(embed, "image_embed"), text, pooled

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor | None, Tensor | None]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: [B], training steps, as of a `TextUNet`."""
        embed, text, pooled = told
        out: Tensor = self.network(
            x_t,
            t.clamp(min=0),
            encoder_hidden_states=text,
            added_cond_kwargs={"image_embeds": embed, "text_embeds": pooled},
            return_dict=False,
        )[0]
        return out


def noise_of(config: Mapping[str, Any]) -> tuple[DiscreteSchedule, PredictionKind]:
    """The schedule that a network was trained on, and what it predicts, by the scheduler_config.json beside it.

    Which scheduler it is matters only where older files leave something out. Raises ModelError for a missing or unknown
    value, and where the network could say nothing of pure noise.
    """
    config = {"prediction_type": "epsilon", **config}
    name = config.get("_class_name")
    if name == "UnCLIPScheduler":  # it knows no other
        config = {"beta_schedule": "squaredcos_cap_v2", **config}
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


def threshold_of(config: Mapping[str, Any]) -> Threshold:
    """What the steps of a scheduler's file do to x0: by a percentile of each picture, by `limit_of`, or nothing.

    Raises ModelError for values that say none of these.
    """
    if (found := percentile_of(config)) is not None:
        return threshold.make(*found)
    if (limit := limit_of(config)) is None:
        return threshold.unchanged
    return partial(torch.clamp, min=-limit, max=limit)


def colours(vae: Any) -> Tensor | None:
    """[C + 1, 3]: the linear map from latents, and a one, to colours in [-1, 1] that fits a VAE best.

    By least squares, from what it makes of pictures of one colour: the corners of the cube of all colours. None where
    its weights are not in memory. Raises ValueError if it makes no numbers of them.
    """
    return fitted_colours(
        vae,
        lambda shown: scaled(vae.encode(shown).latent_dist.mean.float(), vae.config),
        enlargement(vae.config),
    )


def movq_colours(movq: Any) -> Tensor | None:
    """The map that `colours` gives, of a `VQModel`, whose latents are diffused as they are."""
    return fitted_colours(movq, lambda shown: movq.encode(shown).latents.float(), enlargement(movq.config))


def fitted_colours(vae: Any, encode: Callable[[Tensor], Tensor], scale: int) -> Tensor | None:
    """The map that `colours` gives, by what `encode` makes of pictures. scale: pixels to a side of a latent."""
    if vae.device.type == "meta":
        return None
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    side = PATCH * scale
    shown = corners[:, :, None, None].expand(-1, -1, side, side).to(vae.dtype)
    with torch.no_grad():
        found = encode(shown).mean(dim=(2, 3))
    if not bool(torch.isfinite(found).all()):
        raise ValueError("vae gives NaN or infinity: its weights can draw nothing")
    return torch.linalg.lstsq(torch.cat([found, torch.ones(len(found), 1)], dim=1), corners).solution


def scaled(latent: Tensor, vae: Any) -> Tensor:
    """What a VAE gives, in the units that are diffused. vae: its configuration."""
    return (latent - (vae.shift_factor or 0.0)) * vae.scaling_factor


def unscaled(latent: Tensor, vae: Any) -> Tensor:
    """The way back of `scaled`."""
    return latent / vae.scaling_factor + (vae.get("shift_factor") or 0.0)  # some classes have none
