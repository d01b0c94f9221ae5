"""Karlo, an unCLIP, as diffusers publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmgen.pipelines.families.family import (
    TOLD_MORE,
    Family,
    Kind,
    Upscaler,
    check_fields,
    limit_of,
    side_of,
)
from mmgen.pipelines.forms import (
    PIXEL_TAKES,
    PLAIN_SUPER_RES_TAKES,
    PRIOR_TAKES,
    TEXT_TAKES,
    StageForm,
    super_res_name,
)
from mmgen.types import StageSettings

PRIOR = StageSettings(steps=25, sampler="ddpm", guidance_scale=4.0)
DECODER = StageSettings(steps=25, sampler="ddpm", guidance_scale=8.0, threshold="clip")
SUPER_RES = StageSettings(steps=7, sampler="ddpm", threshold="clip")


def _karlo(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior -> decoder, both told the text -> super-resolution."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.families.clip_prior_stage import ClipPriorStage, check_prior
    from mmgen.pipelines.families.karlo_stages import KarloDecoderStage
    from mmgen.pipelines.text_stage import TextStage

    encoder, prior, decoder, projection = (
        parts[name] for name in ("text_encoder", "prior", "decoder", "text_proj")
    )
    prior_schedule, prior_kind = noise_of(parts["prior_scheduler"])
    schedule, kind = noise_of(parts["decoder_scheduler"])
    check_prior(prior.config, encoder, prior_kind)
    _check_decoder(decoder.config, projection.config, prior.config.embedding_dim, kind)
    _check_limit("decoder_scheduler", limit_of(parts["decoder_scheduler"]))
    return [
        TextStage(encoder, length=encoder.max_tokens),
        ClipPriorStage(
            prior, PRIOR, schedule=prior_schedule, kind=prior_kind, limit=limit_of(parts["prior_scheduler"])
        ),
        KarloDecoderStage(decoder, projection, DECODER, schedule=schedule, kind=kind),
        *_super_res(parts, index, decoder.config.sample_size),
    ]


def _super_res(parts: Mapping[str, Any], _index: Mapping[str, Any], side: int) -> list[Any]:
    """Picture -> the picture in the side of the networks, one of which takes the last step alone."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.families.karlo_stages import KarloSuperResStage

    first, last = parts["super_res_first"], parts["super_res_last"]
    schedule, kind = noise_of(parts["super_res_scheduler"])
    _check_limit("super_res_scheduler", limit_of(parts["super_res_scheduler"]))
    _check_larger(first.config.sample_size, side)
    needed = {
        "in_channels": 6,
        "out_channels": 6 if kind == "learned-range" else 3,
        "sample_size": first.config.sample_size,
        "class_embed_type": None,
    }
    check_fields("super_res_first", first.config, needed)
    check_fields("super_res_last", last.config, needed)
    return [KarloSuperResStage(first, last, SUPER_RES, schedule=schedule, kind=kind, small=side)]


def _karlo_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    side = side_of("decoder", configs)
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("prior", PRIOR_TAKES, PRIOR),
        StageForm("decoder", PIXEL_TAKES, DECODER, side),
        *_super_res_forms(index, configs, side),
    )


def _super_res_forms(
    _index: Mapping[str, Any], configs: Mapping[str, Any], side: int
) -> tuple[StageForm, ...]:
    size = side_of("super_res_first", configs)
    _check_larger(size, side)
    return (StageForm(super_res_name(size), PLAIN_SUPER_RES_TAKES, SUPER_RES, size, size / side),)


def _check_larger(size: int, side: int) -> None:
    if size <= side:
        raise ValueError(f"super_res_first draws pictures of {size} px, and those before have {side} already")


def _check_limit(name: str, limit: float | None) -> None:
    """Raise ValueError for a scheduler's file that keeps pictures within something else. limit: as of `limit_of`."""
    if limit != 1:
        raise ValueError(
            f"{name} keeps x0 within {limit}, but pictures lie within 1: set clip_sample and its range"
        )


def _check_decoder(decoder: Any, projection: Any, width: int, kind: str) -> None:
    """Raise ValueError for a decoder that draws something else, or is told it in another way.

    decoder, projection: their configurations. width: of an image embedding. kind: of prediction.
    """
    time = decoder.time_embedding_dim or 4 * decoder.block_out_channels[0]
    drawn = {"in_channels": 3, "out_channels": 6 if kind == "learned-range" else 3}
    ways = dict.fromkeys(TOLD_MORE) | {"class_embed_type": "identity", "encoder_hid_dim": None}
    check_fields("decoder", decoder, drawn | ways)
    check_fields(
        "text_proj",
        projection,
        {
            "clip_embeddings_dim": width,
            "cross_attention_dim": decoder.cross_attention_dim,
            "time_embed_dim": time,
        },
    )


OF_SUPER_RES: Mapping[str, tuple[Kind, ...]] = {
    "super_res_first": (("diffusers", "UNet2DModel"),),
    "super_res_last": (("diffusers", "UNet2DModel"),),
}
SCHEDULERS = {
    f"{name}_scheduler": f"{name}_scheduler/scheduler_config.json"
    for name in ("prior", "decoder", "super_res")
}
FAMILY = Family(
    components={
        "text_encoder": (("transformers", "CLIPTextModelWithProjection"),),
        "prior": (("diffusers", "PriorTransformer"),),
        "text_proj": (("diffusers.pipelines.deprecated.unclip.text_proj", "UnCLIPTextProjModel"),),
        "decoder": (("diffusers", "UNet2DConditionModel"),),
        **OF_SUPER_RES,
    },
    join=_karlo,
    forms=_karlo_forms,
    data=SCHEDULERS,
    of_prior=frozenset({"prior", "prior_scheduler"}),
    upscaler=Upscaler(
        components=OF_SUPER_RES,
        join=_super_res,
        forms=_super_res_forms,
        data={"super_res_scheduler": SCHEDULERS["super_res_scheduler"]},
    ),
)
