"""DeepFloyd IF, as diffusers publishes it: small pictures, and what enlarges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmgen.pipelines.families.family import (
    SCHEDULER,
    Family,
    Kind,
    Upscaler,
    check_channels,
    check_told,
    limit_of,
    percentile_of,
    side_of,
)
from mmgen.pipelines.forms import (
    FACTOR,
    NOISED_PIXEL_TAKES,
    PIXEL_TAKES,
    TEXT_TAKES,
    StageForm,
    super_res_name,
)
from mmgen.types import StageSettings

IF = StageSettings(steps=50, sampler="ddpm", guidance_scale=7.0)
IF_SUPER_RES = StageSettings(steps=50, sampler="ddpm", guidance_scale=4.0, noise_level=0.25)
IF_TOKENS = 77  # of every text, in the training of DeepFloyd IF; its encoder can read more
IF_TOLD = {"addition_embed_type": "text", "encoder_hid_dim_type": "text_proj"}
NOISING = {"image_noising_scheduler": "image_noising_scheduler/scheduler_config.json"}
ENCODER: tuple[Kind, ...] = (("transformers", "T5EncoderModel"),)
UNET: tuple[Kind, ...] = (("diffusers", "UNet2DConditionModel"),)


def _if(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, a U-Net that draws small pictures."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.unet_stage import PixelStage

    encoder, unet = parts["text_encoder"], parts["unet"]
    schedule, kind = noise_of(parts["scheduler"])
    check_channels(unet.config, 3, "picture", kind)
    check_told(unet.config, "encoder_hid_dim", encoder.width, IF_TOLD)
    return [
        _text(encoder),
        PixelStage(unet, _limited(IF, parts["scheduler"]), schedule=schedule, kind=kind),
    ]


def _text(encoder: Any) -> Any:
    from mmgen.pipelines.text_stage import TextStage

    return TextStage(encoder, length=IF_TOKENS, lower=True)


def _if_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    defaults = _limited(IF, configs["scheduler"])
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", PIXEL_TAKES, defaults, side_of("unet", configs)),
    )


def _super_res(parts: Mapping[str, Any], _index: Mapping[str, Any], side: int) -> list[Any]:
    """Picture, and the text that it was drawn from -> the picture in the side of the U-Net."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.upscaling import Corruption, PixelSuperResStage

    unet = parts["unet"]
    schedule, kind = noise_of(parts["scheduler"])
    check_channels(unet.config, 3, "picture", kind, shown=3)
    width, embedded = unet.config.encoder_hid_dim, unet.config.class_embed_type
    check_told(unet.config, "encoder_hid_dim", width, {**IF_TOLD, "class_embed_type": "timestep"})
    if embedded is None or width is None:
        raise ValueError(
            f"unet has class_embed_type {embedded!r} and encoder_hid_dim {width!r}: one that enlarges is told a noise "
            "level as 'timestep', and a text"
        )
    return [
        PixelSuperResStage(
            unet,
            _limited(IF_SUPER_RES, parts["scheduler"]),
            schedule=schedule,
            kind=kind,
            corruption=Corruption(noise_of(parts["image_noising_scheduler"])[0]),
            factor=_factor(unet.config.sample_size, side),
        )
    ]


def _super_res_forms(
    _index: Mapping[str, Any], configs: Mapping[str, Any], side: int
) -> tuple[StageForm, ...]:
    size = side_of("unet", configs)
    defaults = _limited(IF_SUPER_RES, configs["scheduler"])
    return (StageForm(super_res_name(size), NOISED_PIXEL_TAKES, defaults, size, _factor(size, side)),)


def _factor(size: int, side: int) -> int:
    """Sides of its pictures, in those of the pictures before."""
    if size <= side or size % side:
        raise ValueError(
            f"unet draws pictures of {size} px, and those before have {side}: these must go into it a whole number of "
            "times, twice at least"
        )
    return size // side


def _limited(defaults: StageSettings, scheduler: Mapping[str, Any]) -> StageSettings:
    """The settings with the threshold that a scheduler's file says, and where it says none, with that of its class."""
    if (found := percentile_of(scheduler)) is not None:
        share, cap = found
        if cap == 1:  # a scale that is never larger clips
            return replace(defaults, threshold="clip")
        return replace(defaults, threshold=share, threshold_cap=cap)
    if (limit := limit_of(scheduler)) not in (None, 1):
        raise ValueError(f"scheduler config has clip_sample_range {limit}: pictures lie within 1")
    return replace(defaults, threshold="none" if limit is None else "clip")


def _alone(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Picture, and a text -> the picture four times as large, as in the training."""
    encoder, unet = parts["text_encoder"], parts["unet"]
    check_told(unet.config, "encoder_hid_dim", encoder.width, {**IF_TOLD, "class_embed_type": "timestep"})
    return [_text(encoder), *_super_res(parts, index, _smaller(unet.config.sample_size))]


def _alone_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    """The same; without a text encoder, what it is above the pictures of another model."""
    text = [StageForm("text", TEXT_TAKES, StageSettings())] if "text_encoder" in configs else []
    return (*text, *_super_res_forms(index, configs, _smaller(side_of("unet", configs))))


def _smaller(size: int) -> int:
    """Side of the pictures that it was trained to enlarge."""
    return max(1, size // FACTOR)


FAMILY = Family(
    components={"text_encoder": ENCODER, "unet": UNET},
    join=_if,
    forms=_if_forms,
    data=SCHEDULER,
)
SUPER_RES = Family(
    components={"text_encoder": ENCODER, "unet": UNET},
    join=None,
    forms=_alone_forms,
    data={**SCHEDULER, **NOISING},
    enlarges=_alone,
    may_lack=frozenset({"text_encoder"}),
    upscaler=Upscaler(
        components={"unet": UNET},
        join=_super_res,
        forms=_super_res_forms,
        data={**SCHEDULER, **NOISING},
    ),
)
