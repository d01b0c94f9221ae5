"""Stable Diffusion 1.x and 2.x, as diffusers publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmgen.pipelines.families.family import (
    SCHEDULER,
    Family,
    check_channels,
    check_scale,
    check_told,
    enlargement,
    side_of,
)
from mmgen.pipelines.forms import LATENT_TAKES, TEXT_TAKES, VAE_TAKES, StageForm
from mmgen.types import StageSettings

LATENT = StageSettings(steps=25, sampler="dpmpp-2m", guidance_scale=7.5)


def _stable_diffusion(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, a U-Net that draws latents -> VAE."""
    from mmgen.pipelines.adapters import colours, noise_of
    from mmgen.pipelines.text_stage import TextStage
    from mmgen.pipelines.unet_stage import LatentStage
    from mmgen.pipelines.vae_stage import VaeStage

    encoder, unet, vae = parts["text_encoder"], parts["unet"], parts["vae"]
    schedule, kind = noise_of(parts["scheduler"])
    check_scale(vae.config)
    check_channels(unet.config, vae.config.latent_channels, "VAE", kind)
    check_told(unet.config, "cross_attention_dim", encoder.width)
    return [
        TextStage(encoder, length=encoder.max_tokens, seen=True, weighted=True),
        LatentStage(unet, LATENT, schedule=schedule, kind=kind, colours=colours(vae)),
        VaeStage(vae, size=unet.config.sample_size * enlargement(vae.config)),
    ]


def _stable_diffusion_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    size = side_of("unet", configs) * enlargement(configs["vae"])
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", LATENT_TAKES, LATENT),
        StageForm("vae", VAE_TAKES, StageSettings(), size),
    )


FAMILY = Family(
    components={
        "text_encoder": (("transformers", "CLIPTextModel"),),
        "unet": (("diffusers", "UNet2DConditionModel"),),
        "vae": (("diffusers", "AutoencoderKL"),),
    },
    join=_stable_diffusion,
    forms=_stable_diffusion_forms,
    data=SCHEDULER,
)
