"""A checkpoint on disk: an ordinary folder whose every file is named, with its sha256, in manifest.json."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgen.errors import ModelError

MANIFEST = "manifest.json"
INDEX = "model_index.json"
CARD = "README.md"
UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".npy", ".npz", ".py"}


def write_manifest(folder: Path) -> None:
    """Write the sha256 and size of every file below `folder`."""
    files = {p.relative_to(folder).as_posix(): _entry(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(MANIFEST, None)
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
    """What is wrong with the files of a checkpoint; empty: nothing. Raises ModelError if there is no manifest."""
    files = read_manifest(folder)
    found = []
    for path, entry in sorted(files.items()):
        file = folder / path
        if not file.is_file():
            found.append(f"{path} is missing")
        elif file.stat().st_size != entry["bytes"]:
            found.append(
                f"{path} has {file.stat().st_size:,} bytes, not {entry['bytes']:,}: it is cut off or changed"
            )
        elif _sha256(file) != entry["sha256"]:
            found.append(f"{path} is damaged: its sha256 is not the manifest's")
    return found


def check_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a sound checkpoint. Raises ModelError, naming the file: unsafe, missing or damaged."""
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} is no checkpoint: it has no {INDEX}")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in UNSAFE:
            raise ModelError(
                f"{folder.name}/{path.relative_to(folder).as_posix()} is refused: only safetensors is read, "
                "because other formats can run code. Remove it, or convert it"
            )
    if found := problems(folder):
        raise ModelError(f"checkpoint {folder.name}: {found[0]}. Get the folder again from where it came")
    return read_manifest(folder)


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
        header.pop("__metadata__", None)
    except (OSError, ValueError, struct.error, AttributeError, RecursionError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} is no safetensors file: {error}") from None
    return dict(header)


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes"), int)
    )


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
