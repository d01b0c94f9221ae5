"""A checkpoint on disk: an ordinary folder whose every file is named, with its sha256, in manifest.json."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmgen.errors import ModelError

MANIFEST = "manifest.json"
INDEX = "model_index.json"
CARD = "README.md"
UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".npy", ".npz", ".py"}
SHOWN = 3  # of several problems, in one error


def write_manifest(folder: Path) -> None:
    """Write the sha256 and size of every file below `folder`, hidden ones aside."""
    files = {path: _entry(folder / path) for path in _files(folder) if path != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", "utf-8")


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """path -> {"sha256", "bytes"}. Raises ModelError if there is none, it is malformed, or a path leaves the folder."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        raise ModelError(
            f"{folder.name}/{MANIFEST} is no manifest: it must hold 'files' with sha256 and bytes each"
        )
    for path in files:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(f"{folder.name}/{MANIFEST} names {path!r}, which leaves the folder")
    return files


def digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 for all that decides the pictures; the model card is not part of it."""
    lines = [f"{path} {entry['sha256']}" for path, entry in sorted(files.items()) if path != CARD]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def problems(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, and what to do; empty: nothing.

    Every file is to be in the manifest and as it says; hidden ones, which nothing here reads, may be there besides.
    Raises ModelError if the folder is no checkpoint, or has no manifest.
    """
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} is no checkpoint: it has no {INDEX}")
    if refused := list(_refused(folder)):
        return refused
    files = read_manifest(folder)
    unlisted = [path for path in _files(folder) if path not in files and path != MANIFEST]
    return [*_damage(folder, files), *(f"{path} is not in {MANIFEST}: remove it" for path in unlisted)]


def check_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a sound checkpoint. Raises ModelError, which names what is wrong, if it is not sound."""
    if found := problems(folder):
        more = len(found) - SHOWN
        rest = f" (and {more} more: 'mmgen models verify' lists them)" if more > 0 else ""
        raise ModelError(f"checkpoint {folder.name}: {'; '.join(found[:SHOWN])}{rest}")
    return read_manifest(folder)


def _files(folder: Path) -> list[str]:
    """Paths of all files below a folder, sorted; not those that are hidden or lie in hidden folders."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))


def _refused(folder: Path) -> Iterator[str]:
    """What must not lie in a checkpoint, listed or not."""
    home = os.path.realpath(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in UNSAFE:
            yield (
                f"{name} is refused: only safetensors is read, because other formats can run code. "
                "Remove it, or convert it"
            )
        # not Path.resolve, which raises for a circle of links
        elif path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            yield f"{name} is a link that leads out of the folder: put the file itself there"


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, entry in sorted(files.items()):
        file = folder / path
        if not file.is_file():
            yield f"{path} is missing: get it again"
        elif (size := file.stat().st_size) != entry["bytes"]:
            yield f"{path} has {size:,} bytes, not {entry['bytes']:,}: it is cut off or changed, get it again"
        elif _sha256(file) != entry["sha256"]:
            yield f"{path} is damaged: its sha256 is not the manifest's, get it again"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError if the file is missing or is something else."""
    name = f"{path.parent.name}/{path.name}"
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{name} is missing: the folder is no complete checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{name} must hold a JSON object")
    return values


def weight_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {"dtype", "shape", ...}, from the head of a safetensors file. Raises ModelError if it has none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(path.stat().st_size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not _is_tensor(entry):
                raise ValueError(f"its header gives no dtype and shape for {name!r}")
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} is no safetensors file: {error}") from None
    return header


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes"), int)
    )


def _is_tensor(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("shape"), list)
        and all(type(side) is int and side >= 0 for side in entry["shape"])
    )


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
