"""What a family is, and what the families of diffusers check alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmgen.pipelines.forms import StageForm

MAX_LEVELS = 8  # of a VAE, each of half the side
# What a U-Net of diffusers may be told besides time and text, or in another way: fields of its configuration.
TOLD_MORE = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
SCHEDULER: Mapping[str, str] = {"scheduler": "scheduler/scheduler_config.json"}

Kind = tuple[str, str]
"""(module, class), as model_index.json has it."""


@dataclass(frozen=True)
class Upscaler:
    """What a family offers above the pictures of another; its fields are as those of `Family`.

    join, forms: are told the side of the pictures before, in pixels, too.
    """

    components: Mapping[str, tuple[Kind, ...]]
    join: Callable[[Mapping[str, Any], Mapping[str, Any], int], list[Any]]
    forms: Callable[[Mapping[str, Any], Mapping[str, Any], int], tuple[StageForm, ...]]
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """components: name -> what it may be. join: components, data and index -> stages.

    forms: index, the components' config.json and data -> what those stages will be. Both raise ValueError where the
    parts do not fit each other. data: name -> a JSON file of the folder that is no component, and that both are given.
    of_prior: the components and data that lie in a folder of their own, which is published beside this one.
    upscaler: what it offers above other models; None: nothing.
    """

    components: Mapping[str, tuple[Kind, ...]]
    join: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]
    forms: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[StageForm, ...]]
    data: Mapping[str, str] = field(default_factory=dict)
    of_prior: frozenset[str] = frozenset()
    upscaler: Upscaler | None = None


def draws_nothing(_parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """The join of a family that is an upscaler alone. Raises ValueError."""
    raise ValueError("it draws no pictures by itself: give it as --upscaler of a model that does")


def side_of(name: str, configs: Mapping[str, Any]) -> int:
    """Of the pictures that a network draws, or of their latents."""
    side = configs[name].get("sample_size")
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"{name}/config.json: sample_size is {side!r}, and must be a number of pixels")
    return side


def enlargement(vae: Mapping[str, Any], name: str = "vae") -> int:
    """Pixels per side of what a latent stands for, from the VAE's configuration. name: its folder's, for the error.

    Raises ValueError if it does not say.
    """
    channels = vae.get("block_out_channels", vae.get("encoder_block_out_channels"))
    if not isinstance(channels, list | tuple) or not 1 <= len(channels) <= MAX_LEVELS:
        raise ValueError(
            f"{name}/config.json: block_out_channels is {channels!r}, and must be 1 to {MAX_LEVELS} numbers"
        )
    return int(2 ** (len(channels) - 1))


def check_scale(vae: Mapping[str, Any]) -> None:
    """Raise ValueError for a VAE that does not say in numbers how its latents become what is diffused."""
    scale, shift = vae.get("scaling_factor"), vae.get("shift_factor")
    if type(scale) not in (int, float) or scale == 0:
        raise ValueError(f"vae/config.json: scaling_factor is {scale!r}, and must be a number other than 0")
    if shift is not None and type(shift) not in (int, float):
        raise ValueError(f"vae/config.json: shift_factor is {shift!r}, and must be a number or null")


def check_channels(unet: Any, channels: int, of: str, kind: str, shown: int = 0) -> None:
    """Raise ValueError for a U-Net that draws something else.

    channels, of: how many, and what has so many. kind: of prediction, as the scheduler's file says it. shown: channels
    of a picture that it is shown besides.
    """
    if unet.in_channels != channels + shown:
        beside = f", and what it enlarges {shown}" if shown else ""
        raise ValueError(f"unet has in_channels {unet.in_channels}, but the {of} has {channels}{beside}")
    said = 2 * channels if kind == "learned-range" else channels
    if unet.out_channels != said:
        raise ValueError(
            f"unet has out_channels {unet.out_channels}, but one that predicts {kind} has {said}"
        )


def check_told(unet: Any, name: str, width: int, ways: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for a U-Net that is told more than time and text.

    name: where it says how wide a text is. ways: those of `TOLD_MORE` that take a text alone.
    """
    if unet[name] != width:
        raise ValueError(f"unet has {name} {unet[name]}, but the text encoder has {width}")
    for field_name in TOLD_MORE:
        if unet.get(field_name) not in (None, (ways or {}).get(field_name)):
            raise ValueError(
                f"unet has {field_name} {unet[field_name]!r}: it must be told more than time and text"
            )
