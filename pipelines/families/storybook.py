"""Our own family: text -> prior -> decoder -> super-resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmgen.errors import UsageError
from mmgen.pipelines.families.family import Family, Kind, Upscaler, side_of
from mmgen.pipelines.forms import (
    DECODER_TAKES,
    FACTOR,
    PRIOR_TAKES,
    SUPER_RES_TAKES,
    TEXT_TAKES,
    StageForm,
    super_res_name,
)
from mmgen.types import StageSettings

PRIOR = StageSettings(steps=16, sampler="ddpm", guidance_scale=3.0)
DECODER = StageSettings(steps=32, sampler="ddpm", guidance_scale=1.5, threshold=0.995, threshold_cap=1.5)
SUPER_RES = StageSettings(steps=1, sampler="ddim", threshold="clip", noise_level=0.0)

STORYBOOK_SCALES = (FACTOR, FACTOR**2)  # of its super-resolution stages: sides, in that of the decoder
LARGEST = 1024  # side of the pictures that its super-resolution has learned to draw

# What an index may say of its decoder and image embeddings. "prior": it draws no prompt without one, which the prior
# makes. "given": it draws prompts without, and is told those of pictures that are varied or mixed. "none": it saw none.
IMAGE_EMBED = ("prior", "given", "none")

EITHER_UNET: tuple[Kind, ...] = (
    ("mmgen.models.efficient_unet", "EfficientUNet"),
    ("mmgen.models.unet", "UNet"),
)


def _storybook(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior, if prompts need it -> decoder -> one super-resolution network at two scales."""
    from mmgen.pipelines.decoder_stage import DecoderStage
    from mmgen.pipelines.prior_stage import PriorStage
    from mmgen.pipelines.text_stage import TextStage

    embeds = _image_embed(index)
    _check_widths(parts)
    prior = None if embeds == "none" else PriorStage(parts["prior"], parts["dual_encoder"], PRIOR)
    stages: list[Any] = [TextStage(parts["text_encoder"])]
    if embeds == "prior":
        stages.append(prior)
    stages.append(DecoderStage(parts["decoder"], DECODER, uses_image_embed=embeds == "prior", prior=prior))
    return stages + _super_res(parts, index, parts["decoder"].config.sample_size)


def _super_res(parts: Mapping[str, Any], _index: Mapping[str, Any], side: int) -> list[Any]:
    """Picture -> four times as large -> sixteen times as large, unless that is far more than was learned."""
    from mmgen.pipelines.super_res_stage import SuperResStage

    return [SuperResStage(parts["super_res"], SUPER_RES, size=size) for size in _enlarged(side)]


def _storybook_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    side = side_of("decoder", configs)
    forms = [StageForm("text", TEXT_TAKES, StageSettings())]
    if _image_embed(index) == "prior":
        forms.append(StageForm("prior", PRIOR_TAKES, PRIOR))
    forms.append(StageForm("decoder", DECODER_TAKES, DECODER, side))
    return (*forms, *_super_res_forms(index, configs, side))


def _super_res_forms(
    _index: Mapping[str, Any], _configs: Mapping[str, Any], side: int
) -> tuple[StageForm, ...]:
    return tuple(
        StageForm(super_res_name(size), SUPER_RES_TAKES, SUPER_RES, size, FACTOR) for size in _enlarged(side)
    )


def _enlarged(side: int) -> list[int]:
    """Sides of what pictures of this side become: four times it, and again where what was trained is as large."""
    return [side * scale for scale in STORYBOOK_SCALES if scale == FACTOR or side * scale <= LARGEST]


def _image_embed(index: Mapping[str, Any]) -> str:
    embeds = index.get("image_embed")
    if embeds not in IMAGE_EMBED:
        raise ValueError(
            f"image_embed is {embeds!r} in the index: it must be one of {', '.join(IMAGE_EMBED)}"
        )
    return str(embeds)


def no_image_embed(name: str) -> UsageError:
    """What is said where a model is to draw from image embeddings, and its index says that it never saw any."""
    return UsageError(
        f"{name} draws from texts alone: its decoder was not trained on image embeddings, and cannot vary, mix or "
        "interpolate pictures. Give a --model whose image_embed is 'prior' or 'given'"
    )


def _check_widths(parts: Mapping[str, Any]) -> None:
    text, image = parts["text_encoder"].width, parts["dual_encoder"].config.embed_dim
    for part, name, width in (
        ("dual_encoder", "text_dim", text),
        ("prior", "text_dim", text),
        ("prior", "pooled_dim", text),
        ("prior", "embed_dim", image),
        ("decoder", "text_dim", text),
        ("decoder", "pooled_dim", text),
        ("decoder", "image_dim", image),
    ):
        found = getattr(parts[part].config, name)
        if found != width:
            raise ValueError(f"{part} has {name} {found}, but the encoder before it gives {width}")


FAMILY = Family(
    components={
        "text_encoder": (("transformers", "BertModel"),),
        "dual_encoder": (("mmgen.models.dual_encoder", "DualEncoder"),),
        "prior": (("mmgen.models.prior", "DiffusionPrior"),),
        "decoder": EITHER_UNET,
        "super_res": EITHER_UNET,
    },
    join=_storybook,
    forms=_storybook_forms,
    upscaler=Upscaler(components={"super_res": EITHER_UNET}, join=_super_res, forms=_super_res_forms),
)
