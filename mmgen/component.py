"""The folder of one component as anybody may have written it: JSON and the headers of weights, without torch.

Nothing here runs code of the folder or reads a tensor, and what is read is bounded before it is parsed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

from mmgen.errors import ModelError

MAX_JSON = 10_000_000  # bytes; parsed, they may take forty times as much
# A suffix of these can run code when it is read.
UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".npy", ".npz", ".py"}
STEMS = ("diffusion_pytorch_model", "model")  # of weights, as diffusers and transformers call them
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# Bytes of an element, of the formats that are drawn with. Source: the format's description in safetensors' README.
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
LEADS_OUT = "is a link that leads out of the folder: put the file itself there"
ONLY_SAFETENSORS = "is refused: only safetensors is read, because other formats can run code"
MAX_AXES = 8
MAX_DEPTH = 32  # of lists and objects within each other
# Of a configuration, for code and for files of the author's choice that a library would run or read.
FOREIGN = (
    "auto_map", "configuration_files", "fast_tokenizer_files", "gguf_file", "merges_file", "spm_file", "tokenizer_file",
    "vocab_file",
)  # fmt: skip

Header = dict[str, dict[str, Any]]
"""Tensor name -> {"dtype", "shape", "data_offsets"}, the offsets counted from the end of the header."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError if the file is missing, is something else or names a key twice."""
    values = read_any_json(path)
    if not isinstance(values, dict):
        raise ModelError(f"{_name(path)} must hold a JSON object")
    return values


def read_any_json(path: Path) -> Any:
    """What a JSON file holds. Raises ModelError if it is missing, is no JSON, names a key twice or is too large."""
    if not path.is_file():
        raise ModelError(f"{_name(path)} is missing: the folder is no complete checkpoint")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        return _parse(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{_name(path)} cannot be read: {error}") from None


def refuse_foreign(values: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if a configuration names code to run or files to read. name: of its file, for the error."""
    for key in FOREIGN:
        if values.get(key) is not None:
            raise ModelError(
                f"{name} has {key}, which names code or files of its author's choice: mmgen runs and reads none. "
                "Take it out, or get a version of the model without it"
            )


def shown(value: object) -> str:
    """What a file says, for an error: it may be long, and of characters that move the cursor."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def shown_names(names: Iterable[str]) -> str:
    """The first few of several names from a file, for an error."""
    return ", ".join(map(shown, sorted(names)[:3]))


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a configuration, at any depth, with the name nearest above it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, name)
    elif isinstance(value, int | float):
        yield name, value


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Stop a network that makes more parameters than its weights can fill: layers take memory on any device."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    here, made = get_ident(), 0

    def counted(_module: Any, _name: str, _parameter: Any) -> None:
        nonlocal made
        made += get_ident() == here  # the hook is called for the networks of all threads
        if made > count:
            raise ValueError("it has far more parameters than the weights have tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, links followed.

    A snapshot in the cache of huggingface_hub is made of links to the `blobs` two levels above, which count as inside.
    """
    # not Path.resolve, which raises for a circle of links
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if real.is_relative_to(home):
        return True
    cache = home.parent.parent
    is_snapshot = home.parent.name == "snapshots" and cache.name.startswith("models--")
    return is_snapshot and real.is_relative_to(cache / "blobs")


def check_inside(path: Path) -> None:
    """Raise ModelError for a file of a component that is a link to what does not belong to its checkpoint."""
    component = Path(os.path.realpath(path.parent))  # it may be a whole snapshot, published alone
    if not (stays_inside(path, component.parent) or stays_inside(path, component)):
        raise ModelError(f"{_name(path)} {LEADS_OUT}")


def weight_files(component: Path) -> dict[Path, Header]:
    """The safetensors files that hold a component's tensors, each with its header.

    One file, or the shards of an index; those of a variant such as fp16 where no plain ones are. Headers are checked
    against their files, and the index against the headers. Raises ModelError, which names the file and what is wrong.
    """
    first = component / _first_file(component)
    if first.suffix == ".json":
        return _shards(first)
    check_inside(first)
    return {first: weight_header(first)}


def stamp(path: Path) -> tuple[int, int, int]:
    """What tells that a file is another one, without reading it."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def weight_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file. Raises ModelError if the two are not sound."""
    try:
        if not path.is_file():
            raise ValueError("it is no file")  # a pipe would never end
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise ValueError(
                    f"its header is longer than the file, which has {size:,} bytes: it is cut off"
                )
            if length > MAX_JSON:
                raise ValueError(f"its header takes {length:,} bytes, and at most {MAX_JSON:,} are read")
            header = _parse(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        _check_layout(header, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{_name(path)} is no safetensors file: {error}") from None
    return header


def _check_layout(header: Mapping[str, Any], size: int) -> None:
    """Whether tensors fill the `size` bytes behind a header one by one, without overlap or hole."""
    for name, entry in header.items():
        if not _is_tensor(entry):
            raise ValueError(
                f"its header gives no dtype, shape and offsets for {shown(name)} that are read here"
            )
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end:
            raise ValueError(f"{shown(name)} starts at byte {start}, and the tensor before it ends at {end}")
        needed = math.prod(entry["shape"]) * WIDTHS[entry["dtype"]]
        if stop - start != needed:
            raise ValueError(
                f"{shown(name)} has {stop - start:,} bytes, and its shape {entry['shape']} takes {needed:,}"
            )
        end = stop
    if end != size:
        raise ValueError(f"its tensors take {end:,} bytes, and it has {size:,}: it is cut off or damaged")


def _is_tensor(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and entry["dtype"] in WIDTHS
        and _are_sizes(entry.get("shape"))
        and len(entry["shape"]) <= MAX_AXES
        and _are_sizes(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
    )


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _first_file(component: Path) -> str:
    """The name of the weights, or of the index of their shards."""
    names = sorted(path.name for path in component.iterdir()) if component.is_dir() else []
    for stem in STEMS:
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json"):
            if name in names:
                return name
    variants = {variant: name for name in reversed(names) if (variant := _variant(name))}
    if len(variants) == 1:
        return next(iter(variants.values()))
    folder = component.name
    if variants:
        raise ModelError(
            f"{folder} holds the variants {shown_names(variants)} and no plain weights: leave one of them there"
        )
    if unsafe := [name for name in names if Path(name).suffix.lower() in UNSAFE]:
        raise ModelError(
            f"{folder}/{unsafe[0]} {ONLY_SAFETENSORS}. Convert it, or get the model's safetensors files"
        )
    raise ModelError(f"{folder} has no weights: {STEMS[0]}.safetensors or {STEMS[1]}.safetensors is missing")


def _variant(name: str) -> str | None:
    """fp16 of model.fp16.safetensors and of model.safetensors.index.fp16.json."""
    stems = "|".join(STEMS)
    found = re.fullmatch(rf"(?:{stems})(?:\.([^.]+)\.safetensors|\.safetensors\.index\.([^.]+)\.json)", name)
    return None if found is None or SHARD.search(name) else found[1] or found[2]


def _shards(index: Path) -> dict[Path, Header]:
    """The files that an index names, each with its header. Raises ModelError if they do not agree with it."""
    check_inside(index)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise ModelError(f"{_name(index)} must hold a weight_map, from tensors to files")
    headers = {}
    for name in sorted(set(places.values())):
        if not is_plain(name) or not name.endswith(".safetensors"):
            raise ModelError(
                f"{_name(index)} names {shown(name)}, and a shard is a safetensors file beside it"
            )
        shard = index.parent / name
        if not shard.is_file():
            raise ModelError(f"{_name(shard)} is missing: {index.name} names it, get it again")
        check_inside(shard)
        headers[shard] = weight_header(shard)
    held = {(tensor, shard.name) for shard, header in headers.items() for tensor in header}
    for what, wrong in (("lacks", set(places.items()) - held), ("holds also", held - set(places.items()))):
        for tensor, name in sorted(wrong)[:1]:
            raise ModelError(
                f"{index.parent.name}/{name} {what} {shown(tensor)}: {index.name} says otherwise"
            )
    return headers


def is_plain(name: str) -> bool:
    """Whether a name from a file is that of something beside it that is not hidden."""
    return bool(name) and name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:")


def _parse(data: bytes) -> Any:
    values = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    level = [values]
    for _ in range(MAX_DEPTH):
        level = [
            inner for outer in level for inner in _inside(outer) if inner and isinstance(inner, dict | list)
        ]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return values


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values for one key each reader takes the one it likes."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"it has the key {shown(key)} twice")
        values[key] = value
    return values


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
