"""What a family is, and what the families of diffusers check alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmgen.errors import ModelError
from mmgen.pipelines.forms import StageForm

MAX_LEVELS = 8  # of a VAE, each of half the side
# What a VAE may call the widths of its levels.
LEVELS = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
# What a U-Net of diffusers may be told besides time and text, or in another way: fields of its configuration.
TOLD_MORE = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
CLIPPING = ("DDIMScheduler", "DDPMScheduler", "UnCLIPScheduler")  # clip where their files do not say
SCHEDULER: Mapping[str, str] = {"scheduler": "scheduler/scheduler_config.json"}

Kind = tuple[str, str]
"""(module, class), as model_index.json has it."""
Join = Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]
"""(components and data, index) -> stages."""


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
class Refiner:
    """What a family draws over the latents of another, before its VAE; its fields are as those of `Family`.

    of: the name of that other one. join, forms: are told its whole chain too, and return it with what refines in it.
    """

    of: str
    components: Mapping[str, tuple[Kind, ...]]
    join: Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[Any]], list[Any]]
    forms: Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[StageForm]], list[StageForm]]
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """components: name -> what it may be. join: components, data and index -> stages.

    None: it draws no pictures by itself, but is an upscaler, a refiner or a prior of other models.
    forms: index, the components' config.json and data -> what those stages will be. Both raise ValueError where the
    parts do not fit each other. data: name -> a JSON file of the folder that is no component, and that both are given.
    of_prior: the components and data that lie in a folder of their own, which is published beside this one.
    upscaler, refiner: what it offers above and within other models; None: nothing.
    enlarges: where join is None, as that: what enlarges given pictures; None: nothing. may_lack: the components without
    which a folder does not, and is an upscaler of other models alone.
    """

    components: Mapping[str, tuple[Kind, ...]]
    join: Join | None
    forms: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[StageForm, ...]]
    data: Mapping[str, str] = field(default_factory=dict)
    of_prior: frozenset[str] = frozenset()
    upscaler: Upscaler | None = None
    refiner: Refiner | None = None
    enlarges: Join | None = None
    may_lack: frozenset[str] = frozenset()


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
    said = next((one for one in LEVELS if one in vae), LEVELS[0])
    channels = vae.get(said)
    if not isinstance(channels, list | tuple) or not 1 <= len(channels) <= MAX_LEVELS:
        raise ValueError(f"{name}/config.json: {said} is {channels!r}, and must be 1 to {MAX_LEVELS} numbers")
    return int(2 ** (len(channels) - 1))


def check_scale(vae: Mapping[str, Any]) -> None:
    """Raise ValueError for a VAE that does not say in numbers how its latents become what is diffused."""
    scale, shift = vae.get("scaling_factor"), vae.get("shift_factor")
    if type(scale) not in (int, float) or scale == 0:
        raise ValueError(f"vae/config.json: scaling_factor is {scale!r}, and must be a number other than 0")
    if shift is not None and type(shift) not in (int, float):
        raise ValueError(f"vae/config.json: shift_factor is {shift!r}, and must be a number or null")


def train_steps(scheduler: Mapping[str, Any]) -> int:
    """How many steps a network was trained in, by the file of its scheduler. Raises ValueError if it does not say."""
    betas = scheduler.get("trained_betas")
    count = len(betas) if isinstance(betas, list) else scheduler.get("num_train_timesteps")
    if type(count) is not int or count < 1:
        raise ValueError(f"scheduler config has num_train_timesteps {count!r}: it must be a number of steps")
    return count


def limit_of(config: Mapping[str, Any]) -> float | None:
    """How large the entries of x0 may become in the steps of a scheduler's file; None: it does not say how large.

    Raises ModelError for a value that is none.
    """
    if not config.get("clip_sample", config.get("_class_name") in CLIPPING):
        return None
    limit = config.get("clip_sample_range", 1.0)
    if type(limit) not in (int, float) or not 0 < limit < math.inf:
        raise ModelError(f"scheduler config has clip_sample_range {limit!r}: it must be a positive number")
    return float(limit)


def percentile_of(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """The percentile of x0, and the cap of its scale, in the steps of a scheduler's file; None: it says `limit_of`.

    Raises ModelError for values that are none in the settings of a stage.
    """
    if not config.get("thresholding"):
        return None
    share, cap = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
    for name, value, fits in (
        ("dynamic_thresholding_ratio", share, type(share) is float and 0 < share < 1),
        ("sample_max_value", cap, type(cap) in (int, float) and 1 <= cap <= 100),
    ):
        if not fits:
            raise ModelError(f"scheduler config has {name} {value!r}, which is no threshold")
    return share, float(cap)


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


def check_fields(
    part: str, config: Any, needed: Mapping[str, Any], why: str = "beside the other parts it must be"
) -> None:
    """Raise ValueError for a configuration that says something else in these fields. part, why: for the error."""
    for name, value in needed.items():
        said = config.get(name)
        if (list(said) if isinstance(said, tuple) else said) != value:
            raise ValueError(f"{part} has {name} {said!r}, but {why} {value!r}")


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
