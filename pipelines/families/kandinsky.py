"""Kandinsky 2.1 and 2.2, as diffusers publishes them: a folder of the decoder, and one of the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmgen.pipelines.families.family import (
    SCHEDULER,
    Family,
    Kind,
    check_channels,
    check_fields,
    enlargement,
    limit_of,
    side_of,
)
from mmgen.pipelines.forms import LATENT_TAKES, PRIOR_TAKES, TEXT_TAKES, VAE_TAKES, StageForm
from mmgen.types import StageSettings

PRIOR = StageSettings(steps=25, sampler="ddpm", guidance_scale=4.0)
LATENT = StageSettings(steps=50, sampler="ddpm", guidance_scale=4.0)
LATENT_2_1 = StageSettings(steps=100, sampler="ddim", guidance_scale=4.0)
# How the decoders are told image embeddings alone, or texts too: fields of their configurations.
TOLD = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "class_embed_type": None}
TOLD_TEXT = {
    "addition_embed_type": "text_image",
    "encoder_hid_dim_type": "text_image_proj",
    "class_embed_type": None,
}


def _kandinsky(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior -> decoder, a U-Net that draws latents -> MoVQ."""
    from mmgen.pipelines.families.kandinsky_stages import EmbedLatentStage
    from mmgen.pipelines.text_stage import TextStage

    encoder, unet, width = parts["text_encoder"], parts["unet"], parts["prior"].config.embedding_dim
    check_fields("unet", unet.config, {**TOLD, "encoder_hid_dim": width})
    prior = _prior_stage(parts, encoder)
    decoder, movq = _decoder_stages(parts, EmbedLatentStage, LATENT)
    return [TextStage(encoder, length=encoder.max_tokens), prior, decoder, movq]


def _kandinsky_2_1(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text, as CLIP reads it -> prior; the same text, as another encoder reads it -> decoder -> MoVQ."""
    from mmgen.pipelines.families.kandinsky_stages import EmbedTextLatentStage
    from mmgen.pipelines.text_stage import TextStage

    first, encoder, unet = parts["prior_text_encoder"], parts["text_encoder"], parts["unet"]
    width = parts["prior"].config.embedding_dim
    widths = {"encoder_hid_dim": encoder.width, "cross_attention_dim": width}
    check_fields("unet", unet.config, {**TOLD_TEXT, **widths})
    check_fields("text_encoder", encoder.model.config.to_dict(), {"numDims": width})
    prior = _prior_stage(parts, first)
    decoder, movq = _decoder_stages(parts, EmbedTextLatentStage, LATENT_2_1)
    return [
        TextStage(first, name="prior-text", length=first.max_tokens),
        prior,
        TextStage(encoder, length=encoder.max_tokens),
        decoder,
        movq,
    ]


def _prior_stage(parts: Mapping[str, Any], encoder: Any) -> Any:
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.families.clip_prior_stage import check_prior
    from mmgen.pipelines.families.kandinsky_stages import PairPriorStage

    prior, image_encoder, scheduler = parts["prior"], parts["image_encoder"], parts["prior_scheduler"]
    schedule, kind = noise_of(scheduler)
    check_prior(prior.config, encoder, kind)
    width, drawn = image_encoder.config.projection_dim, prior.config.embedding_dim
    if width != drawn:
        raise ValueError(
            f"image_encoder has projection_dim {width}, but the prior draws embeddings of {drawn}"
        )
    return PairPriorStage(
        prior, image_encoder, PRIOR, schedule=schedule, kind=kind, limit=limit_of(scheduler)
    )


def _decoder_stages(
    parts: Mapping[str, Any], stage: Callable[..., Any], defaults: StageSettings
) -> tuple[Any, Any]:
    """The stage of the U-Net, and that of the MoVQ."""
    from mmgen.pipelines.adapters import movq_colours, noise_of, threshold_of
    from mmgen.pipelines.families.kandinsky_stages import MovqStage

    unet, movq, scheduler = parts["unet"], parts["movq"], parts["scheduler"]
    schedule, kind = noise_of(scheduler)
    if kind == "eps" and "variance_type" not in scheduler:
        kind = "learned-range"  # the file is of a sampler that has no use for it
    check_channels(unet.config, movq.config.latent_channels, "MoVQ", kind)
    _check_movq(movq.config)
    decoder = stage(
        unet,
        defaults,
        schedule=schedule,
        kind=kind,
        colours=movq_colours(movq),
        limit=threshold_of(scheduler),
    )
    return decoder, MovqStage(movq, size=unet.config.sample_size * enlargement(movq.config))


def _kandinsky_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    return _forms(configs, LATENT)


def _kandinsky_2_1_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    text, prior, decoder, movq = _forms(configs, LATENT_2_1)
    return StageForm("prior-text", TEXT_TAKES, StageSettings()), prior, text, decoder, movq


def _forms(configs: Mapping[str, Any], decoder: StageSettings) -> tuple[StageForm, ...]:
    """Of what both have. decoder: its defaults."""
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("prior", PRIOR_TAKES, PRIOR),
        StageForm("decoder", LATENT_TAKES, decoder),
        StageForm(
            "vae", VAE_TAKES, StageSettings(), side_of("unet", configs) * enlargement(configs["movq"], "movq")
        ),
    )


def _check_movq(movq: Any) -> None:
    """Raise ValueError for a VQModel whose latents are not diffused as they are."""
    channels = movq.latent_channels
    if movq.vq_embed_dim not in (None, channels):
        raise ValueError(
            f"movq has vq_embed_dim {movq.vq_embed_dim}, but its latents have {channels} channels"
        )
    if movq.lookup_from_codebook:
        raise ValueError("movq has lookup_from_codebook: it decodes numbers of a codebook, and not latents")


def _no_forms(_index: Mapping[str, Any], _configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    """Of a prior, which is no part of a chain before its decoder is known."""
    return ()


PRIOR_TEXT: tuple[Kind, ...] = (("transformers", "CLIPTextModelWithProjection"),)
OF_PRIOR: Mapping[str, tuple[Kind, ...]] = {
    "prior": (("diffusers", "PriorTransformer"),),
    "image_encoder": (("transformers", "CLIPVisionModelWithProjection"),),
}
OF_DECODER: Mapping[str, tuple[Kind, ...]] = {
    "unet": (("diffusers", "UNet2DConditionModel"),),
    "movq": (("diffusers", "VQModel"),),
}
DATA = {**SCHEDULER, "prior_scheduler": "scheduler/scheduler_config.json"}
FAMILY = Family(
    components={"text_encoder": PRIOR_TEXT, **OF_PRIOR, **OF_DECODER},
    join=_kandinsky,
    forms=_kandinsky_forms,
    data=DATA,
    of_prior=frozenset({"text_encoder", *OF_PRIOR, "prior_scheduler"}),
)
FAMILY_2_1 = Family(
    components={
        "prior_text_encoder": PRIOR_TEXT,
        **OF_PRIOR,
        "text_encoder": (("transformers", "MultilingualCLIP"),),
        **OF_DECODER,
    },
    join=_kandinsky_2_1,
    forms=_kandinsky_2_1_forms,
    data=DATA,
    of_prior=frozenset({"prior_text_encoder", *OF_PRIOR, "prior_scheduler"}),
)
PRIOR_FAMILY = Family(
    components={"text_encoder": PRIOR_TEXT, **OF_PRIOR}, join=None, forms=_no_forms, data=SCHEDULER
)
