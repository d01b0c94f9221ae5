"""Stable Cascade, as diffusers publishes it: a folder of the decoder, and one of the prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmgen.errors import ModelError
from mmgen.pipelines.families.family import SCHEDULER, Family, Kind, check_fields
from mmgen.pipelines.forms import LATENT_TAKES, TEXT_TAKES, VAE_TAKES, StageForm
from mmgen.types import StageSettings

PRIOR = StageSettings(steps=20, sampler="ddpm", guidance_scale=4.0)
DECODER = StageSettings(steps=10, sampler="ddpm", guidance_scale=1.0)
TAKES = LATENT_TAKES - {"timesteps"}  # its time is no training step
SIDE = 1024  # of the pictures as they are published, in pixels
# Of an index: pixels to a side of what the prior draws, and sides of that to one of the decoder's latents.
MULTIPLE, SCALE = ("resolution_multiple", 42.67), ("latent_dim_scale", 10.67)
MOST = 1024  # of both: more leaves nothing of a picture, or makes one that nobody has memory for
MAX_LEVELS = 8  # of the VQ, each of half the side
CLASS = "DDPMWuerstchenScheduler"


def _stable_cascade(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior, which draws a small map -> decoder, which draws latents, told that map -> VQ."""
    from mmgen.models.text import TextEncoder
    from mmgen.pipelines.families.stable_cascade_stages import (
        CascadeDecoderStage,
        CascadePriorStage,
        PaellaStage,
        WuerstchenSchedule,
        paella_colours,
    )
    from mmgen.pipelines.text_stage import TextStage

    read, prior, decoder, vqgan = (parts[name] for name in ("text_encoder", "prior", "decoder", "vqgan"))
    # the states that the last norm of the encoder is given
    encoder = TextEncoder(read.model, read.tokenizer, normed=False)
    _check_told(
        prior.config, decoder.config, vqgan.config.latent_channels, encoder.width, encoder.pooled_width
    )
    small, side = sides_of(parts["prior_index"], index)
    return [
        TextStage(encoder, length=encoder.max_tokens),
        CascadePriorStage(
            prior, PRIOR, schedule=WuerstchenSchedule(*cosine_of(parts["prior_scheduler"])), side=small
        ),
        CascadeDecoderStage(
            decoder,
            DECODER,
            schedule=WuerstchenSchedule(*cosine_of(parts["scheduler"])),
            side=side,
            colours=paella_colours(vqgan),
        ),
        PaellaStage(vqgan, size=side * pixels_of(vqgan.config)),
    ]


def _stable_cascade_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    for name in ("prior_scheduler", "scheduler"):
        cosine_of(configs[name])
    small, side = sides_of(configs["prior_index"], index)
    for name, cut in (("prior", small), ("decoder", side)):
        _check_patch(name, configs[name], cut)
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("prior", TAKES, PRIOR),
        StageForm("decoder", TAKES, DECODER),
        StageForm("vae", VAE_TAKES, StageSettings(), side * pixels_of(configs["vqgan"])),
    )


def cosine_of(config: Mapping[str, Any]) -> tuple[float, float]:
    """The two numbers by which a scheduler's file bends and begins its cosine.

    Raises ModelError for a file of another class, and for values that are none.
    """
    if (kind := config.get("_class_name")) != CLASS:
        raise ModelError(f"scheduler config is of class {kind!r}: models of this family have a {CLASS}")
    scaler, offset = config.get("scaler", 1.0), config.get("s", 0.008)
    for name, value in (("scaler", scaler), ("s", offset)):
        if type(value) not in (int, float) or not 0 < value < 100:
            raise ModelError(f"scheduler config has {name} {value!r}: it must be a number above 0, below 100")
    return float(scaler), float(offset)


def sides_of(prior: Mapping[str, Any], decoder: Mapping[str, Any]) -> tuple[int, int]:
    """Of what the prior draws, and of the decoder's latents, from both indices. Raises ValueError if these say none."""
    small = math.ceil(SIDE / _times(prior, *MULTIPLE))
    return small, int(small * _times(decoder, *SCALE))


def _times(index: Mapping[str, Any], name: str, published: float) -> float:
    value = index.get(name, published)
    if type(value) not in (int, float) or not 1 <= value <= MOST:
        raise ValueError(f"{name} is {value!r} in the index: it must be a number from 1 to {MOST:,}")
    return float(value)


def pixels_of(vqgan: Mapping[str, Any]) -> int:
    """Pixels per side of what a latent stands for, from the VQ's configuration. Raises ValueError if it says none."""
    levels: Any = vqgan.get("levels")
    factor: Any = vqgan.get("up_down_scale_factor")
    for name, value in (("levels", levels), ("up_down_scale_factor", factor)):
        if type(value) is not int or not 1 <= value <= MAX_LEVELS:
            raise ValueError(f"vqgan/config.json: {name} is {value!r}, and must be 1 to {MAX_LEVELS}")
    scale, channels = vqgan.get("scale_factor"), vqgan.get("out_channels")
    if type(scale) not in (int, float) or scale == 0:
        raise ValueError(f"vqgan/config.json: scale_factor is {scale!r}, and must be a number other than 0")
    if channels != 3:
        raise ValueError(f"vqgan has out_channels {channels!r}, but pictures have 3")
    return int(factor * 2 ** (levels - 1))


def _check_patch(name: str, network: Mapping[str, Any], side: int) -> None:
    """Raise ValueError for a network that cannot cut its latents into patches."""
    patch = network.get("patch_size")
    if type(patch) is not int or patch < 1 or side % patch:
        raise ValueError(f"{name}/config.json: patch_size is {patch!r}, but latents have a side of {side}")


def _check_told(prior: Any, decoder: Any, channels: int, width: int, pooled: int) -> None:
    """Raise ValueError for networks that draw or are told something else; prior, decoder: their configurations.

    channels: of the VQ's latents. width, pooled: of token states and pooled vectors.
    """
    drawn = prior.in_channels
    texts = {"clip_text_pooled_in_channels": pooled}
    told = {"clip_text_in_channels": width, "effnet_in_channels": None}
    check_fields("prior", prior, {"out_channels": drawn, **texts, **told})
    told = {"in_channels": channels, "out_channels": channels, "effnet_in_channels": drawn}
    check_fields("decoder", decoder, {**texts, **told})
    if prior.clip_image_in_channels is None:
        raise ValueError("prior has no clip_image_in_channels: it is told texts only beside pictures")
    for name, config in (("prior", prior), ("decoder", decoder)):
        if (shown := config.pixel_mapper_in_channels) not in (None, 3):
            raise ValueError(f"{name} has pixel_mapper_in_channels {shown!r}: a picture has 3")


def _no_forms(_index: Mapping[str, Any], _configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    """Of a prior, which is no part of a chain before its decoder is known."""
    return ()


# The decoder's folder has the same text encoder once more, which is not read.
OF_PRIOR: Mapping[str, tuple[Kind, ...]] = {
    "text_encoder": (("transformers", "CLIPTextModelWithProjection"),),
    "prior": (("diffusers", "StableCascadeUNet"),),
}
FAMILY = Family(
    components={
        **OF_PRIOR,
        "decoder": (("diffusers", "StableCascadeUNet"),),
        "vqgan": (("diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model", "PaellaVQModel"),),
    },
    join=_stable_cascade,
    forms=_stable_cascade_forms,
    data={
        **SCHEDULER,
        "prior_scheduler": "scheduler/scheduler_config.json",
        "prior_index": "model_index.json",
    },
    of_prior=frozenset({*OF_PRIOR, "prior_scheduler", "prior_index"}),
)
PRIOR_FAMILY = Family(components=OF_PRIOR, join=None, forms=_no_forms, data=SCHEDULER)
