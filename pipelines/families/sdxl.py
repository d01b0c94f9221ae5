"""Stable Diffusion XL, as diffusers publishes it, and what refines its latents."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmgen.errors import UsageError
from mmgen.pipelines.families.family import (
    SCHEDULER,
    Family,
    Refiner,
    check_channels,
    check_scale,
    check_told,
    enlargement,
    side_of,
    train_steps,
)
from mmgen.pipelines.forms import (
    LATENT_TAKES,
    NOISED_LATENT_TAKES,
    TEXT_TAKES,
    VAE_TAKES,
    StageForm,
)
from mmgen.types import SAMPLERS, StageSettings

LATENT = StageSettings(steps=30, sampler="dpmpp-2m", guidance_scale=5.0)
REFINED = StageSettings(steps=15, sampler="dpmpp-2m", guidance_scale=5.0, noise_level=0.3)
REFINER_TAKES = NOISED_LATENT_TAKES - {"timesteps"}  # these begin with pure noise
STATES = -2  # of both encoders, whose token states are those that the last layer is given
SIZES = 6  # numbers that say of which size a picture was, and what was cut off
SCORED_SIZES = 5  # where one is a score, instead of height and width of the picture
SPACE = (
    "latent_channels",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
)  # that a VAE's latents are in


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
    _check_told_sizes(unet.config, second.model.config.projection_dim, SIZES)
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
    found = [_below_last(name, parts[name]) for name in ("text_encoder", "text_encoder_2")]
    if found[0].max_tokens != found[1].max_tokens:
        told = " and ".join(f"{one.max_tokens:,}" for one in found)
        raise ValueError(f"text_encoder and text_encoder_2 read {told} tokens: they must read as many")
    return found


def _below_last(name: str, encoder: Any) -> Any:
    """The text encoder, which gives the states that its last layer is given. name: for the error."""
    from mmgen.models.text import TextEncoder

    if encoder.model.config.num_hidden_layers < 1:
        raise ValueError(f"{name} has no layers: the states below its last one are told")
    return TextEncoder(encoder.model, encoder.tokenizer, layer=STATES)


def _zeros(index: Mapping[str, Any]) -> bool:
    """Whether zeros are told where there is no negative prompt; published so where the index does not say."""
    return _said(index, "force_zeros_for_empty_prompt", True)


def _said(index: Mapping[str, Any], name: str, default: bool) -> bool:
    said = index.get(name, default)
    if type(said) is not bool:
        raise ValueError(f"{name} is {said!r} in the index: it must be true or false")
    return said


def _check_told_sizes(unet: Any, pooled: int, count: int) -> None:
    """Raise ValueError for a U-Net that is not told so many sizes beside a pooled vector of this width."""
    if unet.addition_embed_type != "text_time":
        raise ValueError(
            f"unet has addition_embed_type {unet.addition_embed_type!r}: that of this family has 'text_time'"
        )
    width = unet.projection_class_embeddings_input_dim
    if width != pooled + count * (unet.addition_time_embed_dim or 0):
        raise ValueError(
            f"unet has projection_class_embeddings_input_dim {width}, but the pooled text has {pooled}, and each of "
            f"{count} sizes {unet.addition_time_embed_dim}"
        )


def _check_normed(vae: Any) -> None:
    """Raise ValueError for a VAE each of whose channels is scaled otherwise."""
    for name in ("latents_mean", "latents_std"):
        if vae.get(name) is not None:
            raise ValueError(
                f"vae/config.json has {name}: only models with one scaling_factor for all are known"
            )


def _refined(parts: Mapping[str, Any], index: Mapping[str, Any], stages: Sequence[Any]) -> list[Any]:
    """Behind the decoder the prompt anew, for an encoder of its own -> refiner, a U-Net that draws over the latents."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.families.sdxl_stages import RefinerStage
    from mmgen.pipelines.text_stage import TextStage

    *before, decoder, last = stages
    encoder, unet = _below_last("text_encoder_2", parts["text_encoder_2"]), parts["unet"]
    vae = last.network.config
    schedule, kind = noise_of(parts["scheduler"])
    check_channels(unet.config, vae.latent_channels, "VAE", kind)
    _check_space(parts["vae"], vae)
    check_told(unet.config, "cross_attention_dim", encoder.width, {"addition_embed_type": "text_time"})
    scored = _is_scored(index)
    _check_told_sizes(unet.config, encoder.model.config.projection_dim, SCORED_SIZES if scored else SIZES)
    refiner = RefinerStage(
        unet, REFINED, schedule=schedule, kind=kind, colours=decoder.colours, side=last.size, scored=scored
    )
    text = TextStage(
        encoder,
        name="refiner-text",
        length=encoder.max_tokens,
        seen=True,
        zeros=_zeros(index),
        weighted=True,
    )
    return [*before, decoder, text, refiner, last]


def _refined_forms(
    index: Mapping[str, Any], configs: Mapping[str, Any], forms: Sequence[StageForm]
) -> list[StageForm]:
    return [*forms[:-1], *_refiner_forms(index, configs), forms[-1]]


def _refiner_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    _zeros(index)
    _is_scored(index)
    check = partial(check_refined, train_steps(configs["scheduler"]))
    return (
        StageForm("refiner-text", TEXT_TAKES, StageSettings()),
        StageForm("refiner", REFINER_TAKES, REFINED, check=check),
    )


def whole_run(steps: int, level: float) -> int:
    """How many steps a run from pure noise has of which a refiner takes the last, from a noise_level above 0."""
    return max(steps, round(min(steps / level, sys.maxsize)))


def check_refined(trained: int, settings: StageSettings) -> None:
    """Raise UsageError for completed settings of a refiner that cannot be meant. trained: steps of its training."""
    steps, level, sampler = settings.steps, settings.noise_level, settings.sampler
    assert steps is not None
    assert level is not None
    if sampler not in SAMPLERS:
        raise UsageError(
            f"stage 'refiner': {sampler} only runs all the way from noise to picture, and a refiner takes the last "
            f"part: choose one of {', '.join(SAMPLERS)}"
        )
    if level == 0:
        raise UsageError("stage 'refiner': a noise_level of 0 refines nothing, leave the refiner out")
    if (whole := whole_run(steps, level)) > trained:
        raise UsageError(
            f"stage 'refiner': {steps} steps from a noise_level of {level:g} are the last of {whole:,}, and the "
            f"network was trained in {trained:,}: ask for fewer, or for a larger noise_level"
        )


def _is_scored(index: Mapping[str, Any]) -> bool:
    return _said(index, "requires_aesthetics_score", False)


def _check_space(trained: Mapping[str, Any], vae: Any) -> None:
    """Raise ValueError for latents in other units than the refiner was trained on, as the VAE beside it says them."""
    for name in SPACE:
        if name in trained and trained[name] != vae.get(name):
            raise ValueError(
                f"it was trained on latents of {name} {trained[name]!r}, and those of the model have {vae.get(name)!r}"
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
OF_REFINER = {name: FAMILY.components[name] for name in ("text_encoder_2", "unet")}
REFINER_DATA = {**SCHEDULER, "vae": "vae/config.json"}
REFINER = Family(
    components=OF_REFINER,
    join=None,
    forms=_refiner_forms,
    data=REFINER_DATA,
    refiner=Refiner(of="sdxl", components=OF_REFINER, join=_refined, forms=_refined_forms, data=REFINER_DATA),
)
