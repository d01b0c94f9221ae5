"""`mmgen.load`: from a name or a folder to a model that draws, complete and checked, or a clear error."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmgen import __version__
from mmgen.errors import ModelError
from mmgen.memory import choose_device, choose_dtype, place
from mmgen.models.text import TextEncoder
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.checkpoint import (
    INDEX,
    check_folder,
    digest,
    problems,
    read_json,
    read_manifest,
    weight_header,
    write_manifest,
)
from mmgen.pipelines.families import FAMILIES, Family
from mmgen.pipelines.text_to_image import TextToImage

GPU_BATCH = 16
WEIGHTS = "diffusion_pytorch_model.safetensors"
VOCABULARY = "vocabulary.json"
MAX_CONFIG_NUMBER = 16_384  # of widths, depths and sides: a wrong file must not build a billion layers


def load(
    name_or_folder: str | Path = "storybook", device: str | None = None, dtype: str | None = None
) -> TextToImage:
    """A model that draws.

    name_or_folder: a bundled model, or a checkpoint folder. device: cpu, cuda, cuda:N, mps; the best there is if None.
    dtype: float32, float16 or bfloat16; the fastest that serves if None.
    Raises ModelError for a folder that is no sound checkpoint, before weights are read where that is possible;
    UsageError for a device or dtype that is not there. Nothing is fetched and no code of the folder is run.
    """
    on = choose_device(device)
    number = choose_dtype(dtype, on)
    folder = find(name_or_folder)
    files = check_folder(folder)
    index = read_json(folder / INDEX)
    family = _family(index, folder)
    parts = {name: _component(folder, name, index, on, number) for name in family.components}
    try:
        stages = family.join(parts, index)
    except ValueError as error:
        raise ModelError(f"checkpoint {folder.name}: {error}") from None
    return TextToImage(
        Cascade(stages),
        name=str(index.get("name", folder.name)),
        digest=digest(files),
        device=on,
        words=_words(folder),
        batch_size=GPU_BATCH if on.type == "cuda" else 1,
        save=lambda out: _copy(folder, files, out),
    )


def available() -> list[str]:
    """Names of the models that come with mmgen."""
    return sorted(p.parent.name for p in _bundled().glob(f"*/{INDEX}"))


def find(name_or_folder: str | Path) -> Path:
    """The folder of a bundled model's name, or the folder itself. Raises ModelError if it is neither."""
    bundled = _bundled() / str(name_or_folder)
    if str(name_or_folder) in available():
        return bundled
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    raise ModelError(
        f"no model {str(name_or_folder)!r}: give a folder, or one of {', '.join(available()) or 'none'}"
    )


def describe(name_or_folder: str | Path) -> dict[str, Any]:
    """Name, family, digest and, for each component, class, parameters, bytes and dtypes: headers alone are read."""
    folder = find(name_or_folder)
    index = read_json(folder / INDEX)
    family = _family(index, folder)
    return {
        "name": index.get("name", folder.name),
        "family": index["family"],
        "digest": digest(read_manifest(folder)),
        "components": {name: _describe_component(folder, name, index) for name in family.components},
    }


def verify(name_or_folder: str | Path) -> list[str]:
    """What is wrong with a model's files; empty: nothing."""
    return problems(find(name_or_folder))


def write_checkpoint(
    folder: Path, *, name: str, family: str, options: Mapping[str, Any], words: frozenset[str]
) -> None:
    """Complete a folder that holds a family's components: index, vocabulary, manifest.

    options: what the family's join reads from the index.
    """
    index = {
        "_class_name": "TextToImage",
        "_mmgen_version": __version__,
        "name": name,
        "family": family,
        **options,
    }
    index |= {part: list(where) for part, where in FAMILIES[family].components.items()}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    (folder / VOCABULARY).write_text(json.dumps(sorted(words), indent=0) + "\n", "utf-8")
    _family(index, folder)
    write_manifest(folder)


def _bundled() -> Path:
    import mmgen

    return Path(mmgen.__file__).resolve().parent / "weights"


def _family(index: Mapping[str, Any], folder: Path) -> Family:
    name = str(index.get("family"))
    if name not in FAMILIES:
        raise ModelError(f"{folder.name}/{INDEX} is of family {name!r}: mmgen knows {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for part, (module, kind) in family.components.items():
        if index.get(part) != [module, kind]:
            raise ModelError(
                f"{folder.name}/{INDEX}: component {part!r} is {index.get(part)}, not {module}.{kind}"
            )
        if not (folder / part / "config.json").is_file():
            raise ModelError(f"checkpoint {folder.name} has no {part}/config.json: the folder is incomplete")
    return family


def _component(
    folder: Path, name: str, index: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    module, kind = index[name]
    if module == "transformers":
        layer = index.get("text_layer", -1)
        encoder = TextEncoder.load(folder / name, folder / "tokenizer", layer=layer, dtype=dtype)
        _check_finite(name, encoder.model.state_dict())
        place(encoder.model, device, dtype)
        return encoder
    return place(_network(folder / name, getattr(importlib.import_module(module), kind)), device, dtype)


def _network(folder: Path, network_class: Any) -> Any:
    """Built on the meta device, so that a wrong config allocates nothing, then given the file's tensors."""
    config = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
    try:
        _check_numbers(config)
        with torch.device("meta"):
            network = network_class(**config)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise ModelError(
            f"{folder.name}/config.json does not describe a {network_class.__name__}: {error}"
        ) from None
    tensors = _tensors(folder / WEIGHTS)
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{folder.name}: the weights do not fit config.json: {_line(error)}") from None
    _check_finite(folder.name, tensors)
    return network


def _check_numbers(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not 0 <= number <= MAX_CONFIG_NUMBER:
                raise ValueError(f"{name} is {value}, and no number may be above {MAX_CONFIG_NUMBER:,}")


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


def _words(folder: Path) -> frozenset[str] | None:
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    try:
        return frozenset(str(word) for word in json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder.name}/{VOCABULARY} cannot be read: {error}") from None


def _describe_component(folder: Path, name: str, index: Mapping[str, Any]) -> dict[str, Any]:
    files = sorted((folder / name).glob("*.safetensors"))
    if not files:
        raise ModelError(f"checkpoint {folder.name} has no weights in {name}/")
    tensors = [entry for file in files for entry in weight_header(file).values()]
    return {
        "class": index[name][1],
        "parameters": sum(math.prod(entry["shape"]) for entry in tensors),
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": sorted({entry["dtype"] for entry in tensors}),
    }


def _copy(folder: Path, files: Mapping[str, Any], out: Path) -> None:
    """The same checkpoint elsewhere; what is loaded is never changed, so its files are the model."""
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: save into a new folder")
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, out / path)
    write_manifest(out)
