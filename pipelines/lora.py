"""LoRA: low-rank changes from a file of anybody, added to the weights of networks that were just read.

Source: Hu et al. 2021, arXiv:2106.09685: W + weight * alpha / rank * B A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmgen.component import ONLY_SAFETENSORS, shown, shown_names, weight_header
from mmgen.errors import ModelError, UsageError, told

# What kohya's trainer calls the components of a model; a layer's dots are underscores there.
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
# What they are called in files of diffusers and peft.
COMPONENTS = ("unet", "transformer", "prior", "text_encoder", "text_encoder_2", "text_encoder_3")
DOWN, UP, KOHYA_DOWN, KOHYA_UP = "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight"
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps what a file was trained with, in the header
ADAPTER = "mmgen"  # peft wants a name
MAX_BYTES = 8_000_000_000  # of a file, which is read as a whole: those of SDXL with a rank of 256 have 2 GB

T = TypeVar("T")


@dataclass(frozen=True)
class LoraFile:
    """What a file changes. name: of the file, for errors.

    tensors: by component, as the file calls them after the component's name. settings: of their training, "unet.r" and
    the like. kohya: whether their names are those of kohya's trainer.
    """

    name: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    settings: Mapping[str, Any]
    kohya: bool


class _Change(NamedTuple):
    down: Tensor  # [r, in, ...]
    up: Tensor  # [out, r, ...], with alpha / r


def read(path: Path) -> LoraFile:
    """What a .safetensors file of kohya's trainer, of diffusers or of peft changes.

    Raises ModelError for another file, for one that is damaged or has more than MAX_BYTES, whose tensors are no LoRA or
    hold NaN or infinity, and for one of zeros; UsageError where peft is not installed.
    """
    if find_spec("peft") is None:
        raise UsageError("LoRA files need peft, which is not installed: pip install 'mmgen[lora]'")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path.name} {ONLY_SAFETENSORS}")
    header = weight_header(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ModelError(f"{path.name} has {size:,} bytes: of a LoRA at most {MAX_BYTES:,} are read")
    kohya = any(key.startswith(tuple(KOHYA)) for key in header)
    # a whole model, say, is refused before it is read
    _by_component(path.name, {key: key for key in header if not (kohya and key.endswith(".alpha"))}, kohya)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            settings = json.loads((file.metadata() or {}).get(SETTINGS) or "{}")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{path.name} cannot be read: {told(error)}") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path.name}: its {SETTINGS} is no JSON object")
    _check_numbers(path.name, tensors)
    if kohya:
        tensors = _scaled_by_alpha(path.name, tensors)
    return LoraFile(path.name, _by_component(path.name, tensors, kohya), settings, kohya)


def check(lora: LoraFile, networks: Mapping[str, nn.Module]) -> None:
    """Raise ModelError unless all that a file changes is in a model. networks: by component; the meta device serves."""
    if strange := lora.tensors.keys() - networks.keys():
        raise ModelError(
            f"{lora.name} changes {', '.join(sorted(strange))}, and the model has no such component: it was made for "
            "another kind of model"
        )
    for component in lora.tensors:
        _changes(lora, component, networks[component])


def fuse(network: nn.Module, lora: LoraFile, component: str, weight: float = 1.0) -> None:
    """Add what a file changes in a component to the weights of its network, on the CPU; they stay what they are.

    weight: of the whole change; 0 leaves the network as it was, and below 0 it goes the other way. What was fused
    before stays. Raises ModelError for tensors that fit no layer, and where the sum is NaN or infinity.
    """
    changes = _changes(lora, component, network)
    # one adapter per rank: patterns of ranks are matched by peft against every layer, which takes minutes
    for rank in sorted({len(change.down) for change in changes.values()}):
        _merge(network, {path: c for path, c in changes.items() if len(c.down) == rank}, weight, lora.name)


def _merge(network: nn.Module, changes: Mapping[str, _Change], weight: float, name: str) -> None:
    from diffusers.utils import recurse_remove_peft_layers
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    rank = len(next(iter(changes.values())).down)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, changes)))
    tensors = {f"{path}.{DOWN}": change.down for path, change in changes.items()}
    tensors |= {f"{path}.{UP}": change.up for path, change in changes.items()}
    # on the meta device, so that no random numbers are drawn for what is replaced at once
    inject_adapter_in_model(config, network, ADAPTER, low_cpu_mem_usage=True, state_dict=tensors)
    try:
        set_peft_model_state_dict(network, tensors, ADAPTER, low_cpu_mem_usage=True)
        for layer in network.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.scale_layer(weight)
                layer.merge(safe_merge=True)
    except ValueError:  # of a sum that is not finite
        raise ModelError(f"{name} with weight {weight:g} gives NaN or infinity: give a smaller one") from None
    finally:
        recurse_remove_peft_layers(network)
        del network.peft_config


def _changes(lora: LoraFile, component: str, network: nn.Module) -> dict[str, _Change]:
    """What a file changes in a network, by the path of the layer. Raises ModelError unless every tensor fits one."""
    named = _named(lora, component, network)
    layers = {
        path: layer.weight
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    paths = sorted(
        {path for key in named for end in (DOWN, UP) if (path := key.removesuffix(f".{end}")) in layers}
    )
    if strange := named.keys() - {f"{path}.{end}" for path in paths for end in (DOWN, UP)}:
        raise ModelError(
            f"{lora.name} holds {shown_names(strange)}, and {component} has no such layer: it was made for another "
            "kind of model"
        )
    found = {}
    for path in paths:
        down, up = named.get(f"{path}.{DOWN}"), named.get(f"{path}.{UP}")
        if down is None or up is None:
            raise ModelError(
                f"{lora.name} holds one of the two tensors for {path} of {component}: get it again"
            )
        _check_shapes(f"{lora.name}: {component}.{path}", down, up, layers[path])
        found[path] = _Change(down.float(), up.float() * _scale(lora, component, path, len(down)))
    return found


def _named(lora: LoraFile, component: str, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a component, by PATH.lora_A.weight and PATH.lora_B.weight."""
    tensors = lora.tensors.get(component, {})
    if not tensors:
        return {}
    convert = _text_encoder_of_kohya if component.startswith("text_encoder") else _unet_of_kohya
    try:
        named = convert(tensors, network) if lora.kohya else _named_by_diffusers(tensors, component, network)
    # diffusers splits names without looking, and has no error of its own
    except (ValueError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{lora.name}: the names for {component} are of no known kind: {told(error)}"
        ) from None
    if len(named) != len(tensors):
        raise ModelError(f"{lora.name} names a layer of {component} in two ways: get another version of it")
    return named


def _named_by_diffusers(
    tensors: Mapping[str, Tensor], component: str, network: nn.Module
) -> dict[str, Tensor]:
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    if not all(key.endswith((DOWN, UP)) for key in tensors):
        of_text = component.startswith("text_encoder")
        tensors = (convert_state_dict_to_peft if of_text else convert_unet_state_dict_to_peft)(dict(tensors))
    # older versions of transformers had one floor more in a CLIP without projection
    floor = "" if hasattr(network, "text_model") else "text_model."
    return {key.removeprefix(floor): value for key, value in tensors.items()}


def _unet_of_kohya(tensors: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Of Stable Diffusion XL they are called as in the model that was published first, which diffusers can turn."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    whole = {f"lora_unet_{key}": value for key, value in tensors.items()}
    found, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(whole, unet_config=network.config)
    return {key.removeprefix("unet."): value for key, value in convert_unet_state_dict_to_peft(found).items()}


def _text_encoder_of_kohya(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    floor = "" if hasattr(network, "text_model") else "text_model_"
    paths = {path.replace(".", "_"): path for path, _ in network.named_modules()}
    ends = {KOHYA_DOWN: DOWN, KOHYA_UP: UP}
    found = {}
    for key, value in tensors.items():
        layer, _, end = key.partition(".")
        found[f"{paths.get(layer.removeprefix(floor), layer)}.{ends.get(end, end)}"] = value
    return found


def _scale(lora: LoraFile, component: str, path: str, rank: int) -> float:
    """What its training multiplied the change of a layer by: of kohya's files, the tensors have it already."""
    own = f"{component}."
    settings = {k.removeprefix(own): v for k, v in lora.settings.items() if k.startswith(own)}
    if lora.kohya or not settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    try:
        # peft takes any regular expression, and some of these never end
        if strange := [key for key in patterns if not re.fullmatch(r"[\w.]+", key)]:
            raise ValueError(f"its alpha_pattern has {shown(strange[0])}, which is no name of a layer")
        end = next((key for key in patterns if f".{path}".endswith(f".{key}")), None)
        alpha = patterns.get(end, settings["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ModelError(f"{lora.name}: its {SETTINGS} gives no lora_alpha: {told(error)}") from None
    if not math.isfinite(scale):
        raise ModelError(f"{lora.name}: its {SETTINGS} gives the lora_alpha {shown(alpha)}")
    return float(scale)


def _scaled_by_alpha(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of kohya's trainer without those that hold an alpha, which the upper ones have taken in."""
    alphas = {key.removesuffix(".alpha"): value for key, value in tensors.items() if key.endswith(".alpha")}
    found = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    for layer, alpha in alphas.items():
        down, up = f"{layer}.{KOHYA_DOWN}", f"{layer}.{KOHYA_UP}"
        if alpha.numel() != 1 or down not in found or up not in found or not len(found[down]):
            raise ModelError(f"{name}: {shown(f'{layer}.alpha')} is no number for two tensors: get it again")
        found[up] = found[up].float() * (alpha.item() / len(found[down]))
    return found


def _by_component(name: str, tensors: Mapping[str, T], kohya: bool) -> dict[str, dict[str, T]]:
    """What a file holds, or only its names, by component and by what follows that. Raises ModelError for what is no
    LoRA."""
    prefixes = KOHYA if kohya else {f"{component}.": component for component in COMPONENTS}
    ends = (KOHYA_DOWN, KOHYA_UP) if kohya else (DOWN, UP, "down.weight", "up.weight")
    found: dict[str, dict[str, T]] = {}
    for key, value in tensors.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is None or not key.endswith(ends):
            raise ModelError(
                f"{name} holds {shown(key)}, which is of no LoRA that mmgen can add: these have a lower and an upper "
                "tensor for each layer (no LoHa, LoKr or DoRA)"
            )
        part = found.setdefault(prefixes[prefix], {})
        if part.setdefault(key.removeprefix(prefix), value) is not value:
            raise ModelError(f"{name} holds {shown(key)} under two names: get another version of it")
    return found


def _check_numbers(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not value.is_floating_point() and not key.endswith(".alpha"):
            raise ModelError(f"{name}: {shown(key)} is of {value.dtype}, and must be of fractions")
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name}: the weights {shown(key)} hold NaN or infinity; they can draw nothing")
    if not any(bool(value.any()) for value in tensors.values()):
        raise ModelError(f"{name} is filled with zeros: its download was cut off, get it again")


def _check_shapes(what: str, down: Tensor, up: Tensor, layer: Tensor) -> None:
    """Raise ModelError unless the product of two tensors has the shape of a layer's weight."""
    rank = len(down) if down.ndim else 0
    wanted = (rank, *layer.shape[1:]), (layer.shape[0], rank, *(1,) * (layer.ndim - 2))
    if rank < 1 or (down.shape, up.shape) != wanted:
        raise ModelError(
            f"{what} is changed by tensors of {tuple(down.shape)} and {tuple(up.shape)}, and its weights are "
            f"{tuple(layer.shape)}: the file was made for another model"
        )
