"""Stable Diffusion XL, as diffusers publishes it."""

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

LATENT = StageSettings(steps=30, sampler="dpmpp-2m", guidance_scale=5.0)
STATES = -2  # of both encoders, whose token states are those that the last layer is given
SIZES = 6  # numbers that say of which size a picture was, and what was cut off


def _sdxl(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text, read by two encoders -> decoder, a U-Net that draws latents -> VAE."""
    from mmgen.pipelines.adapters import colours, noise_of
    from mmgen.pipelines.text_stage import TextStage
    from mmgen.pipelines.unet_stage import SizedLatentStage
    from mmgen.pipelines.vae_stage import VaeStage

    first, second = _encoders(parts)
    unet, vae = parts["unet"], parts["vae"]
    schedule, kind = noise_of(parts["scheduler"])
    check_scale(vae.config)
    _check_normed(vae.config)
    check_channels(unet.config, vae.config.latent_channels, "VAE", kind)
    check_told(
        unet.config, "cross_attention_dim", first.width + second.width, {"addition_embed_type": "text_time"}
    )
    _check_told_sizes(unet.config, second.model.config.projection_dim)
    size = unet.config.sample_size * enlargement(vae.config)
    return [
        TextStage(
            first, length=first.max_tokens, seen=True, beside=second, zeros=_zeros(index), weighted=True
        ),
        SizedLatentStage(unet, LATENT, schedule=schedule, kind=kind, colours=colours(vae), side=size),
        VaeStage(vae, size=size),
    ]


def _sdxl_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    _zeros(index)
    size = side_of("unet", configs) * enlargement(configs["vae"])
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", LATENT_TAKES, LATENT),
        StageForm("vae", VAE_TAKES, StageSettings(), size),
    )


def _encoders(parts: Mapping[str, Any]) -> list[Any]:
    """Both text encoders, which give the states that the U-Net was trained on."""
    from mmgen.models.text import TextEncoder

    found = [parts[name] for name in ("text_encoder", "text_encoder_2")]
    if found[0].max_tokens != found[1].max_tokens:
        told = " and ".join(f"{one.max_tokens:,}" for one in found)
        raise ValueError(f"text_encoder and text_encoder_2 read {told} tokens: they must read as many")
    for name, one in zip(("text_encoder", "text_encoder_2"), found, strict=True):
        if one.model.config.num_hidden_layers < 1:
            raise ValueError(f"{name} has no layers: the states below its last one are told")
    return [TextEncoder(one.model, one.tokenizer, layer=STATES) for one in found]


def _zeros(index: Mapping[str, Any]) -> bool:
    """Whether zeros are told where there is no negative prompt; published so where the index does not say."""
    said = index.get("force_zeros_for_empty_prompt", True)
    if type(said) is not bool:
        raise ValueError(f"force_zeros_for_empty_prompt is {said!r} in the index: it must be true or false")
    return said


def _check_told_sizes(unet: Any, pooled: int) -> None:
    """Raise ValueError for a U-Net that is not told sizes beside a pooled vector of this width."""
    if unet.addition_embed_type != "text_time":
        raise ValueError(
            f"unet has addition_embed_type {unet.addition_embed_type!r}: that of this family has 'text_time'"
        )
    width = unet.projection_class_embeddings_input_dim
    if width != pooled + SIZES * (unet.addition_time_embed_dim or 0):
        raise ValueError(
            f"unet has projection_class_embeddings_input_dim {width}, but the pooled text has {pooled}, and each of "
            f"{SIZES} sizes {unet.addition_time_embed_dim}"
        )


def _check_normed(vae: Any) -> None:
    """Raise ValueError for a VAE each of whose channels is scaled otherwise."""
    for name in ("latents_mean", "latents_std"):
        if vae.get(name) is not None:
            raise ValueError(
                f"vae/config.json has {name}: only models with one scaling_factor for all are known"
            )


FAMILY = Family(
    components={
        "text_encoder": (("transformers", "CLIPTextModel"),),
        "text_encoder_2": (("transformers", "CLIPTextModelWithProjection"),),
        "unet": (("diffusers", "UNet2DConditionModel"),),
        "vae": (("diffusers", "AutoencoderKL"),),
    },
    join=_sdxl,
    forms=_sdxl_forms,
    data=SCHEDULER,
)
