"""The x4 upscaler of Stable Diffusion, as diffusers publishes it: it enlarges the pictures of any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmgen.errors import UsageError
from mmgen.pipelines.families.family import (
    SCHEDULER,
    Family,
    Upscaler,
    check_channels,
    check_scale,
    check_told,
    enlargement,
    side_of,
    train_steps,
)
from mmgen.pipelines.forms import NOISED_LATENT_TAKES, TEXT_TAKES, VAE_TAKES, StageForm, super_res_name
from mmgen.types import StageSettings

X4 = StageSettings(steps=75, sampler="ddim", guidance_scale=9.0, noise_level=0.02)
MOST_NOISE = 350  # training step of the noise in what it was shown, at most, where an index does not say
COMPONENTS = {
    "text_encoder": (("transformers", "CLIPTextModel"),),
    "unet": (("diffusers", "UNet2DConditionModel"),),
    "vae": (("diffusers", "AutoencoderKL"),),
}
DATA = {**SCHEDULER, "low_res_scheduler": "low_res_scheduler/scheduler_config.json"}


def _x4(parts: Mapping[str, Any], index: Mapping[str, Any], side: int) -> list[Any]:
    """Picture -> the prompt anew, for an encoder of its own -> larger latents -> VAE."""
    from mmgen.pipelines.adapters import colours, noise_of
    from mmgen.pipelines.text_stage import TextStage
    from mmgen.pipelines.upscaling import Corruption, LatentSuperResStage, UpscalerVaeStage

    encoder, unet, vae = parts["text_encoder"], parts["unet"], parts["vae"]
    schedule, kind = noise_of(parts["scheduler"])
    noising = noise_of(parts["low_res_scheduler"])[0]
    check_scale(vae.config)
    check_channels(unet.config, vae.config.latent_channels, "VAE", kind, shown=3)
    check_told(unet.config, "cross_attention_dim", encoder.width)
    if unet.config.num_class_embeds != len(noising.betas):
        raise ValueError(
            f"unet has num_class_embeds {unet.config.num_class_embeds}, but the noise that it is told has "
            f"{len(noising.betas)} steps"
        )
    factor = enlargement(vae.config)
    size = side * factor
    return [
        TextStage(encoder, name=f"text-{size}", length=encoder.max_tokens, seen=True),
        LatentSuperResStage(
            unet,
            X4,
            schedule=schedule,
            kind=kind,
            colours=colours(vae),
            corruption=Corruption(noising),
            check=_check(index, parts, size),
            larger=size,
            factor=factor,
        ),
        UpscalerVaeStage(vae, size=size),
    ]


def _x4_forms(index: Mapping[str, Any], configs: Mapping[str, Any], side: int) -> tuple[StageForm, ...]:
    factor = enlargement(configs["vae"])
    size = side * factor
    return (
        StageForm(f"text-{size}", TEXT_TAKES, StageSettings()),
        StageForm(
            super_res_name(size), NOISED_LATENT_TAKES, X4, factor=factor, check=_check(index, configs, size)
        ),
        StageForm(f"vae-{size}", VAE_TAKES, StageSettings(), size),
    )


def _check(index: Mapping[str, Any], data: Mapping[str, Any], size: int) -> Callable[[StageSettings], None]:
    """What its settings are checked by."""
    most = index.get("max_noise_level", MOST_NOISE)
    if type(most) is not int or most < 0:
        raise ValueError(f"max_noise_level is {most!r} in the index: it must be a training step")
    count = train_steps(data["low_res_scheduler"])
    return partial(check_noise, super_res_name(size), min(most, count) / count)


def check_noise(stage: str, most: float, settings: StageSettings) -> None:
    """Raise UsageError for more noise in the picture that is shown than the network saw in its training.

    most: the largest noise_level that it saw. stage: for the error.
    """
    if (level := settings.noise_level) is not None and level > most:
        raise UsageError(
            f"stage {stage!r} takes a noise_level of at most {most:g}, as its network was trained: {level:g} is more"
        )


def _alone(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """What it is above pictures as those of its training, which have the side of its latents."""
    return _x4(parts, index, parts["unet"].config.sample_size)


def _alone_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    return _x4_forms(index, configs, side_of("unet", configs))


FAMILY = Family(
    components=COMPONENTS,
    join=None,
    forms=_alone_forms,
    enlarges=_alone,
    data=DATA,
    upscaler=Upscaler(components=COMPONENTS, join=_x4, forms=_x4_forms, data=DATA),
)
