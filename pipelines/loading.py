"""`mmgen.load`: from a name or a folder to a model that draws, complete and checked, or a clear error."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmgen import __version__
from mmgen.errors import ModelError
from mmgen.memory import Residency, choose_device, choose_dtype, place
from mmgen.models.text import TextEncoder
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.catalogue import find, kind_of, read_index
from mmgen.pipelines.checkpoint import INDEX, MANIFEST, check_folder, digest, read_json, write_manifest
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.text_to_image import TextToImage

GPU_BATCH = 16
WEIGHTS = "diffusion_pytorch_model.safetensors"
VOCABULARY = "vocabulary.json"
MAX_CONFIG_NUMBER = 16_384  # of widths, depths and sides: a wrong file must not build a billion layers


def load(
    name_or_folder: str | Path = "storybook", device: str | None = None, dtype: str | None = None
) -> TextToImage:
    """A model that draws, in memory as a whole.

    name_or_folder: a bundled model, or a checkpoint folder. device: cpu, cuda, cuda:N, mps; the best there is if None.
    dtype: float32, float16 or bfloat16; the fastest that serves if None.
    Raises ModelError for a folder that is no sound checkpoint, before weights are read where that is possible;
    UsageError for a device or dtype that is not there. Nothing is fetched and no code of the folder is run.
    """
    return _model(name_or_folder, device, dtype, resident=True)


def open_model(
    name_or_folder: str | Path = "storybook", device: str | None = None, dtype: str | None = None
) -> TextToImage:
    """The model that `load` gives, but its weights are in memory for the turn of their stage only, on a CPU too.

    They are read anew for every turn: a single picture takes longer, and many that go stage by stage need no more
    memory than the largest stage. Every file is checked against the manifest now; one that has changed by the time it
    is read is a ModelError then, as are weights that do not fit their configuration.
    """
    return _model(name_or_folder, device, dtype, resident=False)


def _model(
    name_or_folder: str | Path, device: str | None, dtype: str | None, *, resident: bool
) -> TextToImage:
    on = choose_device(device)
    number = choose_dtype(dtype, on)
    folder = find(name_or_folder)
    files = check_folder(folder)
    index, family = read_index(folder)
    build = read_component if resident else _outline
    parts = {name: build(folder, name, index, number) for name in family.components}
    try:
        stages = family.join(parts, index)
    except ValueError as error:
        raise ModelError(f"checkpoint {folder.name}: {error}") from None
    networks = {_network(part): name for name, part in parts.items()}
    read = {network: _reader(folder, name, index, number) for network, name in networks.items()}
    return TextToImage(
        Cascade(stages, Residency(networks, on, None if resident else read)),
        name=str(index.get("name", folder.name)),
        digest=digest(files),
        device=on,
        words=read_words(folder),
        batch_size=GPU_BATCH if on.type == "cuda" else 1,
        save=lambda out: _copy(folder, files, out),
    )


def _network(part: Any) -> Any:
    """The module of a component."""
    return part.model if isinstance(part, TextEncoder) else part


def _outline(folder: Path, name: str, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A component as `read_component` gives it, its networks on the meta device.

    A text encoder is read for it, because transformers checks it no other way; it is the first that draws, and small.
    """
    module, kind = index[name]
    if module == "transformers":
        return read_component(folder, name, index, dtype)
    network = build_network(folder / name, getattr(importlib.import_module(module), kind))
    return place(network, torch.device("meta"), dtype)


def _reader(
    folder: Path, name: str, index: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[], torch.nn.Module]:
    """How to read the network of a component whose files have just been checked."""
    checked = _stamps(folder / name)

    def read() -> torch.nn.Module:
        if _stamps(folder / name) != checked:
            raise ModelError(
                f"{name} of checkpoint {folder.name} has changed since it was checked: start again"
            )
        network: torch.nn.Module = _network(read_component(folder, name, index, dtype))
        return network

    return read


def _stamps(component: Path) -> dict[str, tuple[int, int, int]]:
    """What tells that a file is another one, without reading it."""
    found = {path.name: path.stat() for path in component.glob("[!.]*")}
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
    if module == "transformers":
        layer = index.get("text_layer", -1)
        encoder = TextEncoder.load(folder / name, folder / "tokenizer", layer=layer, dtype=dtype)
        _check_finite(name, encoder.model.state_dict())
        place(encoder.model, cpu, dtype)
        return encoder
    return place(read_network(folder / name, getattr(importlib.import_module(module), kind)), cpu, dtype)


def read_network(folder: Path, network_class: Any) -> Any:
    """A network from its folder, in the file's dtype. Raises ModelError if config and weights are not sound.

    It is built on the meta device, so that a wrong config allocates nothing, then given the file's tensors.
    """
    network = build_network(folder, network_class)
    tensors = _tensors(folder / WEIGHTS)
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{folder.name}: the weights do not fit config.json: {_line(error)}") from None
    _check_finite(folder.name, tensors)
    return network


def build_network(folder: Path, network_class: Any) -> Any:
    """A network as the config.json of its folder says it, on the meta device. Raises ModelError if it says none."""
    config = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
    try:
        _check_numbers(config)
        with torch.device("meta"):
            return network_class(**config)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise ModelError(
            f"{folder.name}/config.json does not describe a {network_class.__name__}: {error}"
        ) from None


def _check_numbers(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not 0 <= number <= MAX_CONFIG_NUMBER:
                raise ValueError(f"{name} is {value}: numbers from 0 to {MAX_CONFIG_NUMBER:,} can be meant")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} cannot be read: {error}") from None


def _line(error: Exception) -> str:
    """An error's text in one line that is not endless."""
    return " ".join(str(error).split())[:300]


def _check_finite(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name}: the weights {key} hold NaN or infinity; they can draw nothing")


def read_words(folder: Path) -> frozenset[str] | None:
    """All that the model of a checkpoint knows, None if that is not said. Raises ModelError if it cannot be read."""
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    try:
        return frozenset(str(word) for word in json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder.name}/{VOCABULARY} cannot be read: {error}") from None


def _copy(folder: Path, files: Mapping[str, Any], out: Path) -> None:
    """The same checkpoint elsewhere; what is loaded is never changed, so its files are the model."""
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: save into a new folder")
    # with its manifest, so that a copy that went wrong does not pass for sound
    for path in (*files, MANIFEST):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, out / path)
