"""LoRA: low-rank changes from a file of anybody, added to the weights of networks that were just read.

Source: Hu et al. 2021, arXiv:2106.09685: W + weight * alpha / rank * B A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmgen.component import ONLY_SAFETENSORS, Header, shown, shown_names, stamp, weight_header
from mmgen.errors import ModelError, UsageError, told
from mmgen.tensors import FRACTIONS, Held, check_fit, read_tensors

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
MAX_BYTES = 8_000_000_000  # of a file: those of SDXL with a rank of 256 have 2 GB


@dataclass(frozen=True)
class LoraFile:
    """What a file changes, as its header says it.

    parts: component -> what the file calls a tensor after the component's name -> its whole name. header: without what
    is beside the tensors. settings: of their training, "unet.r" and the like. kohya: whether their names are those of
    kohya's trainer. stamp: of the file that was looked at.
    """

    path: Path
    header: Header
    parts: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]
    kohya: bool
    stamp: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Of the file, for errors."""
        return self.path.name


class _Change(NamedTuple):
    down: Tensor  # [r, in, ...]
    up: Tensor  # [out, r, ...], with alpha / r


def look(path: Path) -> LoraFile:
    """What a .safetensors file of kohya's trainer, of diffusers or of peft changes; no tensor is read.

    Raises ModelError for another file, for one that is damaged or has more than MAX_BYTES, and for one whose tensors
    are no LoRA; UsageError where peft is not installed.
    """
    if find_spec("peft") is None:
        raise UsageError("LoRA files need peft, which is not installed: pip install 'mmgen[lora]'")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ModelError(
            f"the LoRA {path.name} {what}: give a .safetensors file, or owner/name of the Hugging Face Hub"
        )
    if path.suffix != ".safetensors":
        raise ModelError(f"{path.name} {ONLY_SAFETENSORS}")
    header = weight_header(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ModelError(f"{path.name} has {size:,} bytes: of a LoRA at most {MAX_BYTES:,} are read")
    kohya = any(key.startswith(tuple(KOHYA)) for key in header)
    parts = _by_component(path.name, header, kohya)
    empty = [key for key, entry in header.items() if 0 in entry["shape"]]
    if empty or not header:
        raise ModelError(f"{path.name} has nothing in {shown_names(empty) or 'it'}: get it again")
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {}).get(SETTINGS) or "{}")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{path.name} cannot be read: {told(error)}") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path.name}: its {SETTINGS} is no JSON object")
    return LoraFile(path.absolute(), header, parts, settings, kohya, stamp(path))


def check(lora: LoraFile, networks: Mapping[str, nn.Module]) -> None:
    """Raise ModelError unless all that a file changes is in a model and has its shapes, and for numbers that are none.

    It is read only after its header was compared. networks: by component; the meta device serves.
    """
    if strange := lora.parts.keys() - networks.keys():
        raise ModelError(
            f"{lora.name} changes {', '.join(sorted(strange))}, and the model has no such component: it was made for "
            "another kind of model"
        )
    for component in lora.parts:
        _check_part(lora, component, networks[component])
    for component in lora.parts:
        _read(lora, component)


def _check_part(lora: LoraFile, component: str, network: nn.Module) -> None:
    outlines = {}
    for own, key in lora.parts[component].items():
        entry = lora.header[key]
        dtype = torch.float32 if entry["dtype"] in FRACTIONS else torch.int64
        outlines[own] = torch.empty(entry["shape"], dtype=dtype, device="meta")
    _changes(lora, component, network, outlines)


def fuse(network: nn.Module, lora: LoraFile, component: str, weight: float = 1.0) -> None:
    """Add what a file changes in a component to the weights of its network, on the CPU; they stay what they are.

    component: one of `lora.parts`. weight: of the whole change; 0 leaves the network as it was, and below 0 it goes the
    other way. What was fused before stays. Raises ModelError where `check` does, where the sum is NaN or infinity, and
    for a file that has changed since `look`.
    """
    _check_part(lora, component, network)
    changes = _changes(lora, component, network, _read(lora, component))
    # one adapter per rank: patterns of ranks are matched by peft against every layer, which takes minutes
    for rank in sorted({len(change.down) for change in changes.values()}):
        _merge(network, {path: c for path, c in changes.items() if len(c.down) == rank}, weight, lora.name)


def _read(lora: LoraFile, component: str) -> dict[str, Tensor]:
    """What it holds for a component, as `_changes` takes it."""
    names = lora.parts[component]
    if stamp(lora.path) != lora.stamp:
        raise ModelError(f"{lora.name} has changed since it was checked: start again")
    tensors = read_tensors(lora.path, lora.name, names.values())
    return {own: tensors[key] for own, key in names.items()}


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


def _changes(
    lora: LoraFile, component: str, network: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, _Change]:
    """What a file changes in a network, by the path of the layer. Raises ModelError unless every tensor fits one.

    tensors: as the file calls them after the component's name; on the meta device they are compared all the same.
    """
    named = _named(lora, component, network, tensors)
    layers = {
        path: layer.weight
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    paths = sorted({key.removesuffix(f".{end}") for key in named for end in (DOWN, UP)} & layers.keys())
    needed: dict[str, Tensor] = {}
    for path in paths:
        needed |= _pair(path, layers[path], named.get(f"{path}.{DOWN}"))
    held = {key: Held(key, list(one.shape), one.is_floating_point()) for key, one in named.items()}
    check_fit(f"{lora.name}, {component}", held, needed, to="this model: the file was made for another kind")
    found = {}
    for path in paths:
        down, up = named[f"{path}.{DOWN}"], named[f"{path}.{UP}"]
        found[path] = _Change(down.float(), up.float() * _scale(lora, component, path, len(down)))
    return found


def _pair(path: str, weight: Tensor, down: Tensor | None) -> dict[str, Tensor]:
    """Two tensors whose product has the shape of a layer's weight, on the meta device. down: what is there of them."""
    rank = max(1, len(down)) if down is not None and down.ndim else 1
    shapes = {DOWN: (rank, *weight.shape[1:]), UP: (len(weight), rank, *(1,) * (weight.ndim - 2))}
    return {f"{path}.{end}": torch.empty(shape, device="meta") for end, shape in shapes.items()}


def _named(
    lora: LoraFile, component: str, network: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a component, by PATH.lora_A.weight and PATH.lora_B.weight."""
    if lora.kohya:
        tensors = _scaled_by_alpha(lora.name, tensors)
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
        down, up = found.get(f"{layer}.{KOHYA_DOWN}"), found.get(f"{layer}.{KOHYA_UP}")
        if alpha.numel() != 1 or down is None or up is None or not down.ndim or not len(down):
            raise ModelError(f"{name}: {shown(f'{layer}.alpha')} is no number for two tensors: get it again")
        if not alpha.is_meta:
            found[f"{layer}.{KOHYA_UP}"] = up.float() * (alpha.item() / len(down))
    return found


def _by_component(name: str, keys: Iterable[str], kohya: bool) -> dict[str, dict[str, str]]:
    """The names in a file by component and by what follows that. Raises ModelError for what is no LoRA."""
    prefixes = KOHYA if kohya else {f"{component}.": component for component in COMPONENTS}
    ends = (KOHYA_DOWN, KOHYA_UP, ".alpha") if kohya else (DOWN, UP, "down.weight", "up.weight")
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is None or not key.endswith(ends):
            raise ModelError(
                f"{name} holds {shown(key)}, which is of no LoRA that mmgen can add: these have a lower and an upper "
                "tensor for each layer (no LoHa, LoKr or DoRA)"
            )
        part = found.setdefault(prefixes[prefix], {})
        if part.setdefault(key.removeprefix(prefix), key) != key:
            raise ModelError(f"{name} holds {shown(key)} under two names: get another version of it")
    return found
