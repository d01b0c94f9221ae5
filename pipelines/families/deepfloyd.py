"""DeepFloyd IF, as diffusers publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmgen.pipelines.families.family import SCHEDULER, Family, check_channels, check_told, side_of
from mmgen.pipelines.forms import DECODER_TAKES, TEXT_TAKES, StageForm
from mmgen.types import StageSettings

IF = StageSettings(steps=50, sampler="ddpm", guidance_scale=7.0, threshold=0.95, threshold_cap=1.5)
IF_TOKENS = 77  # of every text, in the training of DeepFloyd IF; its encoder can read more


def _if(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, a U-Net that draws small pictures."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.text_stage import TextStage
    from mmgen.pipelines.unet_stage import PixelStage

    encoder, unet = parts["text_encoder"], parts["unet"]
    schedule, kind = noise_of(parts["scheduler"])
    check_channels(unet.config, 3, "picture", kind)
    check_told(
        unet.config,
        "encoder_hid_dim",
        encoder.width,
        {"addition_embed_type": "text", "encoder_hid_dim_type": "text_proj"},
    )
    return [
        TextStage(encoder, length=IF_TOKENS, lower=True),
        PixelStage(unet, IF, schedule=schedule, kind=kind),
    ]


def _if_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", DECODER_TAKES, IF, side_of("unet", configs)),
    )


FAMILY = Family(
    components={
        "text_encoder": (("transformers", "T5EncoderModel"),),
        "unet": (("diffusers", "UNet2DConditionModel"),),
    },
    join=_if,
    forms=_if_forms,
    data=SCHEDULER,
)
