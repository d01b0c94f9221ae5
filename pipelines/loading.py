"""`mmgen.load`: from a name or a folder to a model that draws, complete and checked, or a clear error."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmgen import __version__
from mmgen.component import (
    Header,
    at_most,
    numbers,
    read_any_json,
    read_json,
    refuse_foreign,
    shown_names,
    weight_files,
)
from mmgen.errors import ModelError, UsageError, told
from mmgen.memory import Residency, choose_device, choose_dtype, place
from mmgen.models.multilingual import read_multilingual
from mmgen.models.text import TextEncoder
from mmgen.models.vision import outline_vision, read_vision
from mmgen.pipelines import lora
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.checkpoint import (
    INDEX,
    MANIFEST,
    VOCABULARY,
    manifest_text,
    write_manifest,
)
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.single_file import outline, read_part
from mmgen.pipelines.sources import Checkpoint, Source, kind_of, locate
from mmgen.pipelines.text_to_image import TextToImage

GPU_BATCH = 16
IMAGE_ENCODER = "CLIPVisionModelWithProjection"  # of transformers
MULTILINGUAL = "MultilingualCLIP"  # of diffusers, in the manner of transformers
MAX_CONFIG_NUMBER = 16_384  # of widths, depths and sides: a wrong file must not build a billion layers
MAX_COMPUTED = 2**28  # bytes, of what a constructor computes besides weights: a mask of 77 tokens has 26 kB
# What older versions of diffusers called the projections of an attention, in files that are still published.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Change = tuple[lora.LoraFile, float]
"""A LoRA and its weight."""


def load(
    name_or_folder: str | Path = "storybook", device: str | None = None, dtype: str | None = None
) -> TextToImage:
    """A model that draws, in memory as a whole.

    name_or_folder: a bundled model, a checkpoint folder, or owner/name[@revision] of the Hugging Face Hub, which is
    fetched, after its size is said, if it is not in the cache. device: cpu, cuda, cuda:N, mps; the best if None.
    dtype: float32, float16 or bfloat16; the fastest that serves if None.
    Raises ModelError for a folder that is no sound checkpoint, before weights are read where that is possible;
    MachineError if it cannot be fetched; UsageError for a device or dtype that is not there. For a folder nothing is
    fetched, and no code of a model is run.
    """
    return _model(name_or_folder, device, dtype, resident=True)


def open_model(
    name_or_folder: str | Path = "storybook", device: str | None = None, dtype: str | None = None
) -> TextToImage:
    """The model that `load` gives, but its weights are in memory for the turn of their stage only, on a CPU too.

    They are read anew for every turn: a single picture takes longer, and many that go stage by stage need no more
    memory than the largest stage. Every file is checked against the manifest now, and the headers of weights against
    their configuration; one that has changed by the time it is read is a ModelError then, as are NaN and infinity.
    """
    return _model(name_or_folder, device, dtype, resident=False)


def _model(
    name_or_folder: str | Path, device: str | None, dtype: str | None, *, resident: bool
) -> TextToImage:
    on = choose_device(device)
    number = choose_dtype(dtype, on)
    checkpoint = locate(name_or_folder, check=True)
    checkpoint.forms()  # so that what joins the parts finds sizes that are numbers
    changes = [(lora.read(Path(one.file)), one.weight) for one in checkpoint.loras]
    build = _read if resident else _outline
    parts: dict[str, Any] = {}
    read = {}
    for name, source, part in checkpoint.components():
        parts[name] = build(source, part, number)
        read[name] = _reader(source, part, number, _of(name, changes))
    networks = {name: _network(part) for name, part in parts.items()}
    for file, _ in changes:
        lora.check(file, networks)
    for name, network in networks.items():
        if network.device.type != "meta":
            _changed(network, _of(name, changes), name)
    files = {name: source.describe(part)["bytes"] for name, source, part in checkpoint.components()}
    residency = Residency(
        {network: name for name, network in networks.items()},
        on,
        None if resident else {networks[name]: read[name] for name in networks},
    )
    return TextToImage(
        Cascade(checkpoint.stages(parts), residency),
        name=checkpoint.name,
        digest=checkpoint.digest(),
        device=on,
        words=read_words(checkpoint.base.folder),
        batch_size=GPU_BATCH if on.type == "cuda" else 1,
        save=lambda out: _copy(checkpoint, out),
        file_bytes={network: files[name] for name, network in networks.items()},
    )


def _of(name: str, changes: Sequence[Change]) -> list[Change]:
    """Those that change this component."""
    return [(file, weight) for file, weight in changes if name in file.tensors]


def _changed(network: torch.nn.Module, changes: Sequence[Change], name: str) -> torch.nn.Module:
    for file, weight in changes:
        lora.fuse(network, file, name, weight)
    return network


def _network(part: Any) -> Any:
    """The module of a component."""
    return part.model if isinstance(part, TextEncoder) else part


def _read(source: Source, name: str, dtype: torch.dtype) -> Any:
    """A component of a folder or of a file."""
    if source.file is not None:
        return read_part(source.file, name, dtype)
    return read_component(source.folder, name, source.index, dtype)


def _outline(source: Source, name: str, dtype: torch.dtype) -> Any:
    """A component as `read_component` gives it, its networks on the meta device.

    A text encoder is read for it, because transformers checks it no other way; it is the first that draws, and small.
    """
    module, kind = source.index[name]
    meta = torch.device("meta")
    if module == "transformers" and kind != IMAGE_ENCODER:
        return _read(source, name, dtype)
    if source.file is not None:
        network = outline(source.file, name)
    elif kind == IMAGE_ENCODER:
        return place(outline_vision(source.folder / name), meta, dtype)
    else:
        network = build_network(source.folder / name, getattr(importlib.import_module(module), kind))
    return place(network, meta, _fitting(network, dtype))


def _reader(
    source: Source, name: str, dtype: torch.dtype, changes: Sequence[Change]
) -> Callable[[], torch.nn.Module]:
    """How to read the network of a component whose files have just been checked."""
    checked = _stamps(source, name)

    def read() -> torch.nn.Module:
        if _stamps(source, name) != checked:
            raise ModelError(
                f"{name} of checkpoint {source.folder.name} has changed since it was checked: start again"
            )
        return _changed(_network(_read(source, name, dtype)), changes, name)

    return read


def _stamps(source: Source, name: str) -> dict[str, tuple[int, int, int]]:
    """What tells that a file is another one, without reading it."""
    paths = [source.file.path] if source.file else list((source.folder / name).glob("[!.]*"))
    found = {path.name: path.stat() for path in paths if path.is_file()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def write_checkpoint(
    folder: Path, *, name: str, family: str, options: Mapping[str, Any], words: frozenset[str]
) -> None:
    """Complete a folder that holds a family's components: index, vocabulary, manifest.

    options: what the family's join reads from the index. Raises ModelError if a component is missing or of a class
    that the family does not take.
    """
    index = {
        "_class_name": "TextToImage",
        "_mmgen_version": __version__,
        "name": name,
        "family": family,
        **options,
    }
    kinds = FAMILIES[family].components
    index |= {part: list(kind_of(folder / part, kinds[part])) for part in kinds}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    (folder / VOCABULARY).write_text(json.dumps(sorted(words), indent=0) + "\n", "utf-8")
    write_manifest(folder)


def read_component(folder: Path, name: str, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """One component of a checkpoint as its index names it, on the CPU and ready to draw.

    Raises ModelError if it is not sound.
    """
    module, kind = index[name]
    cpu = torch.device("cpu")
    if kind == IMAGE_ENCODER:
        network = read_vision(folder / name, dtype)
        _check_tensors(name, network.state_dict())
        return place(network, cpu, dtype)
    if kind == MULTILINGUAL:
        multilingual = read_multilingual(folder / name, folder / "tokenizer", dtype)
        _check_tensors(name, multilingual.model.state_dict())
        return multilingual
    if module == "transformers":
        layer = index.get("text_layer", -1)
        encoder = TextEncoder.load(
            folder / name,
            folder / name.replace("text_encoder", "tokenizer"),
            layer=layer,
            dtype=dtype,
            projected=kind == "CLIPTextModelWithProjection",
        )
        if (found := type(encoder.model).__name__) != kind:
            raise ModelError(f"{INDEX} says that {name} is {kind}, but its config.json describes a {found}")
        _check_tensors(name, encoder.model.state_dict())
        return encoder  # not cast again: transformers keeps what overflows in half precision in float32
    network = read_network(folder / name, getattr(importlib.import_module(module), kind))
    return place(network, cpu, _fitting(network, dtype))


def _fitting(network: Any, dtype: torch.dtype) -> torch.dtype:
    """float32 for a network whose configuration says that it overflows in less."""
    return torch.float32 if network.config.get("force_upcast") else dtype


def read_network(folder: Path, network_class: Any) -> Any:
    """A network from its folder, in the file's dtype. Raises ModelError if config and weights are not sound.

    It is built on the meta device, so that a wrong config allocates nothing, then given the file's tensors.
    """
    network = build_network(folder, network_class)
    names = network.state_dict().keys()
    held: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        tensors = _tensors(file)
        _check_tensors(f"{folder.name}/{file.name}", tensors)
        held |= {_current_name(key, names): value for key, value in tensors.items()}
    try:
        network.load_state_dict(held, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{folder.name}: the weights do not fit config.json: {told(error)}") from None
    _compute_buffers(folder.name, network, network_class)
    return network


def _compute_buffers(name: str, network: Any, network_class: Any) -> None:
    """Give a network that was built on the meta device what its constructor computes and no file holds."""
    computed = [buffer for buffer in network.buffers() if buffer.is_meta]
    if not computed:
        return
    if (most := sum(buffer.nbytes for buffer in computed)) > MAX_COMPUTED:
        raise ModelError(
            f"{name}/config.json describes a network with tables of {most:,} bytes beside its weights"
        )
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        made = network_class.from_config(network.config)
    for own, other in zip(network.modules(), made.modules(), strict=True):
        for key, buffer in own._buffers.items():
            if buffer is not None and buffer.is_meta:
                own._buffers[key] = other._buffers[key]


def build_network(folder: Path, network_class: Any) -> Any:
    """A network as the config.json of its folder says it, on the meta device.

    Raises ModelError if it says none, or if the headers of the weights have other tensors than that network.
    """
    values = read_json(folder / "config.json")
    refuse_foreign(values, f"{folder.name}/config.json")
    config = {k: v for k, v in values.items() if not k.startswith("_")}
    headers = weight_files(folder).values()
    try:
        _check_numbers(config)
        # twice, because a constructor may replace what it has made
        with torch.device("meta"), at_most(2 * sum(map(len, headers))):
            network = network_class(**config)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise ModelError(
            f"{folder.name}/config.json does not describe a {network_class.__name__}: {told(error)}"
        ) from None
    _check_fit(folder.name, network, headers)
    return network


def _check_numbers(config: Mapping[str, Any]) -> None:
    for name, number in numbers(config):
        if not abs(number) <= MAX_CONFIG_NUMBER:  # NaN is none of both
            most = f"{MAX_CONFIG_NUMBER:,}"
            raise ValueError(f"{name} is {number}: numbers from -{most} to {most} can be meant")


def _check_fit(name: str, network: torch.nn.Module, headers: Collection[Header]) -> None:
    """Raise ModelError, before a tensor is read, for tensors that are missing, unknown or of another shape."""
    needed = {key: list(value.shape) for key, value in network.state_dict().items()}
    held = {_current_name(key, needed): entry["shape"] for header in headers for key, entry in header.items()}
    wrong = {
        "lack": needed.keys() - held.keys(),
        "hold also": held.keys() - needed.keys(),
        "have another shape for": {key for key in needed if held.get(key) != needed[key]},
    }
    for what, keys in wrong.items():
        if keys:
            raise ModelError(f"{name}: the weights {what} {shown_names(keys)}: they do not fit config.json")


def _current_name(key: str, names: Collection[str]) -> str:
    """What a network calls a tensor of its file, which may be older than the names of today."""
    path, _, leaf = key.rpartition(".")
    path, _, layer = path.rpartition(".")
    current = f"{path}.{OLD_NAMES.get(layer, layer)}.{leaf}"
    return current if key not in names and current in names else key


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} cannot be read: {error}") from None


def _check_tensors(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError for weights with NaN or infinity, and for a file that holds nothing but zeros.

    name: of the file or component, for the error.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name}: the weights {key} hold NaN or infinity; they can draw nothing")
    if not any(bool(value.any()) for value in tensors.values()):
        raise ModelError(f"{name} is filled with zeros: its download was cut off, get it again")


def read_words(folder: Path) -> frozenset[str] | None:
    """All that the model of a checkpoint knows, None if that is not said. Raises ModelError if it cannot be read."""
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    try:
        return frozenset(str(word) for word in read_any_json(path))
    except TypeError as error:
        raise ModelError(f"{folder.name}/{VOCABULARY} cannot be read: {error}") from None


def _copy(checkpoint: Checkpoint, out: Path) -> None:
    """The same checkpoint elsewhere; what is loaded is never changed, so its files are the model."""
    if checkpoint.is_joined or checkpoint.base.file:
        raise UsageError(f"{checkpoint.name} is no single folder: copy what it was loaded from")
    folder = checkpoint.base.folder
    files = checkpoint.checked[folder]
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: save into a new folder")
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, out / path)
    # of what was loaded, so that a copy that went wrong does not pass for sound
    (out / MANIFEST).write_text(manifest_text(files), "utf-8")
