"""Stable unCLIP, as diffusers publishes it: a Stable Diffusion told image embeddings, with a prior or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmgen.pipelines.families.family import (
    SCHEDULER,
    Family,
    check_channels,
    check_fields,
    check_scale,
    check_told,
    enlargement,
    limit_of,
    side_of,
)
from mmgen.pipelines.forms import NOISED_LATENT_TAKES, PRIOR_TAKES, TEXT_TAKES, VAE_TAKES, StageForm
from mmgen.types import StageSettings

PRIOR = StageSettings(steps=25, sampler="ddpm", guidance_scale=4.0)
DECODER = StageSettings(steps=20, sampler="dpmpp-2m", guidance_scale=10.0, noise_level=0.0)
TOLD = {"class_embed_type": "projection"}  # image embeddings, and how noisy they are


def _stable_unclip(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior; the text once more -> decoder, a U-Net that draws latents -> VAE."""
    from mmgen.pipelines.adapters import colours, noise_of
    from mmgen.pipelines.families.clip_prior_stage import ClipPriorStage, check_prior
    from mmgen.pipelines.families.stable_unclip_stages import NoisedEmbedStage, PriorTextStage
    from mmgen.pipelines.text_stage import TextStage
    from mmgen.pipelines.upscaling import Corruption
    from mmgen.pipelines.vae_stage import VaeStage

    of_prior, encoder, prior = parts["prior_text_encoder"], parts["text_encoder"], parts["prior"]
    unet, vae, normalizer = parts["unet"], parts["vae"], parts["image_normalizer"]
    prior_schedule, prior_kind = noise_of(parts["prior_scheduler"])
    schedule, kind = noise_of(parts["scheduler"])
    check_prior(prior.config, of_prior, prior_kind)
    check_scale(vae.config)
    check_channels(unet.config, vae.config.latent_channels, "VAE", kind)
    check_told(unet.config, "cross_attention_dim", encoder.width, TOLD)
    width = prior.config.embedding_dim
    check_fields("unet", unet.config, {**TOLD, "projection_class_embeddings_input_dim": 2 * width})
    check_fields("image_normalizer", normalizer.config, {"embedding_dim": width})
    return [
        PriorTextStage(of_prior, name="prior-text", length=of_prior.max_tokens),
        ClipPriorStage(
            prior, PRIOR, schedule=prior_schedule, kind=prior_kind, limit=limit_of(parts["prior_scheduler"])
        ),
        TextStage(encoder, length=encoder.max_tokens, seen=True),
        NoisedEmbedStage(
            unet,
            normalizer,
            DECODER,
            schedule=schedule,
            kind=kind,
            colours=colours(vae),
            corruption=Corruption(noise_of(parts["image_noising_scheduler"])[0]),
        ),
        VaeStage(vae, size=unet.config.sample_size * enlargement(vae.config)),
    ]


def _stable_unclip_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    size = side_of("unet", configs) * enlargement(configs["vae"])
    return (
        StageForm("prior-text", TEXT_TAKES, StageSettings()),
        StageForm("prior", PRIOR_TAKES, PRIOR),
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", NOISED_LATENT_TAKES, DECODER),
        StageForm("vae", VAE_TAKES, StageSettings(), size),
    )


FAMILY = Family(
    components={
        "prior_text_encoder": (("transformers", "CLIPTextModelWithProjection"),),
        "prior": (("diffusers", "PriorTransformer"),),
        "image_normalizer": (
            (
                "diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer",
                "StableUnCLIPImageNormalizer",
            ),
        ),
        "text_encoder": (("transformers", "CLIPTextModel"),),
        "unet": (("diffusers", "UNet2DConditionModel"),),
        "vae": (("diffusers", "AutoencoderKL"),),
    },
    join=_stable_unclip,
    forms=_stable_unclip_forms,
    data={
        **SCHEDULER,
        "prior_scheduler": "prior_scheduler/scheduler_config.json",
        "image_noising_scheduler": "image_noising_scheduler/scheduler_config.json",
    },
    of_prior=frozenset({"prior_text_encoder", "prior", "prior_scheduler"}),
)
