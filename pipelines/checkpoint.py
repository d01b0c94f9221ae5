"""A checkpoint on disk: an ordinary folder whose every file is named, with its sha256, in manifest.json.

A folder that others have published has no manifest: what would be read of it is then found and hashed on the spot.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmgen.component import (
    LEADS_OUT,
    ONLY_SAFETENSORS,
    UNSAFE,
    is_plain,
    read_json,
    stays_inside,
    weight_files,
)
from mmgen.errors import ModelError

MANIFEST = "manifest.json"
INDEX = "model_index.json"
CONFIG = "config.json"  # of a component, and of one that is published alone
CARD = "README.md"
VOCABULARY = "vocabulary.json"
TEXTS = {".json", ".txt", ".model"}  # of configurations and tokenizers
# Of published folders, what draws nothing here.
PASSED_BY = {"safety_checker", "feature_extractor", "image_encoder", "watermarker"}
SHOWN = 3  # of several problems, in one error


def write_manifest(folder: Path) -> None:
    """Write the sha256 and size of every file below `folder`, hidden ones aside."""
    files = {path: _entry(folder / path) for path in _files(folder) if path != MANIFEST}
    (folder / MANIFEST).write_text(manifest_text(files), "utf-8")


def manifest_text(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a manifest. files: path -> {"sha256", "bytes"}."""
    return json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"


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


def entries(folder: Path, only: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """The files that a model is read from: path -> {"sha256", "bytes"}.

    What the manifest says of them, unchecked; where there is none, they are all read for it, as they are now.
    only: components and files below the folder, where no more is read; None: all that the index names.
    Raises ModelError if the manifest is malformed, or the files without one are not sound.
    """
    if has_manifest(folder):
        return read_manifest(folder)
    return {path.relative_to(folder).as_posix(): _entry(path) for path in _read_files(folder, only)}


def digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 for all that decides the pictures; the model card is not part of it."""
    lines = [f"{path} {entry['sha256']}" for path, entry in sorted(files.items()) if path != CARD]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def problems(folder: Path, only: Collection[str] | None = None) -> list[str]:
    """What is wrong with the files of a checkpoint, and what to do; empty: nothing.

    Every file is to be in the manifest and as it says; hidden ones, which nothing here reads, may be there besides.
    Without a manifest only what is read is looked at: where it lies, and the headers of weights. only: as in `entries`.
    Raises ModelError if the folder is no checkpoint.
    """
    if only is None and not (folder / INDEX).is_file():
        raise no_checkpoint(folder)
    if not has_manifest(folder):
        try:
            _read_files(folder, only)
        except ModelError as error:
            return [str(error)]
        return []
    if refused := list(_refused(folder)):
        return refused
    files = read_manifest(folder)
    unlisted = [path for path in _files(folder) if path not in files and path != MANIFEST]
    return [*_damage(folder, files), *(f"{path} is not in {MANIFEST}: remove it" for path in unlisted)]


def no_checkpoint(folder: Path) -> ModelError:
    """What is said of a folder without an index."""
    return ModelError(f"{folder.name} is no checkpoint: it has no {INDEX}")


def check_folder(folder: Path, only: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """`entries` of a sound checkpoint. Raises ModelError, which names what is wrong, if it is not sound."""
    if found := problems(folder, only):
        more = len(found) - SHOWN
        rest = f" (and {more} more: 'mmgen models verify' lists them)" if more > 0 else ""
        raise ModelError(f"checkpoint {folder.name}: {'; '.join(found[:SHOWN])}{rest}")
    return entries(folder, only)


def has_manifest(folder: Path) -> bool:
    """Whether a folder says itself what its files are."""
    return os.path.lexists(folder / MANIFEST)  # a link to nowhere is one that cannot be read


def _read_files(folder: Path, only: Collection[str] | None) -> list[Path]:
    """What is read of a folder without manifest. Raises ModelError if it leads elsewhere or weights are not sound."""
    files = [folder / name for name in (INDEX, VOCABULARY) if (folder / name).is_file()]
    for part in _parts(folder) if only is None else [folder / name for name in only]:
        check_link(part, folder)
        if part.is_dir():
            files += _part_files(part)
        elif part.is_file():  # a pipe would never end
            files.append(part)
    for path in files:
        check_link(path, folder)
    return files


def _part_files(part: Path) -> list[Path]:
    files = sorted(path for path in part.glob("[!.]*") if path.suffix in TEXTS and path.is_file())
    if (part / CONFIG).is_file() and not part.name.startswith("tokenizer"):
        files += weight_files(part)
    return files


def check_link(path: Path, folder: Path) -> None:
    """Raise ModelError for what is below a checkpoint's folder and leads out of it."""
    if not stays_inside(path, folder):
        raise ModelError(f"{path.relative_to(folder).as_posix()} {LEADS_OUT}")


def _parts(folder: Path) -> list[Path]:
    """The folders that are there of those that the index names. Raises ModelError for an index that lies elsewhere."""
    check_link(folder / INDEX, folder)
    return [folder / name for name in part_names(read_json(folder / INDEX)) if (folder / name).is_dir()]


def part_names(index: Mapping[str, Any]) -> list[str]:
    """The components that an index names, and the tokenizer, which our own index does not name."""
    named = {name for name, kind in index.items() if isinstance(kind, list) and all(kind)}
    # beside a prior it tells what a picture of nothing is
    passed_by = PASSED_BY - {"image_encoder"} if "prior" in named else PASSED_BY
    return sorted(name for name in (named | {"tokenizer"}) - passed_by if is_plain(name))


def _files(folder: Path) -> list[str]:
    """Paths of all files below a folder, sorted; not those that are hidden or lie in hidden folders."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))


def _refused(folder: Path) -> Iterator[str]:
    """What must not lie in a checkpoint, listed or not."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in UNSAFE:
            yield (f"{name} {ONLY_SAFETENSORS}. Remove it, or convert it")
        elif path.is_symlink() and not stays_inside(path, folder):
            yield f"{name} {LEADS_OUT}"


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, entry in sorted(files.items()):
        file = folder / path
        if not file.is_file():
            yield f"{path} is missing: get it again"
        elif (size := file.stat().st_size) != entry["bytes"]:
            yield f"{path} has {size:,} bytes, not {entry['bytes']:,}: it is cut off or changed, get it again"
        elif _sha256(file) != entry["sha256"]:
            yield f"{path} is damaged: its sha256 is not the manifest's, get it again"


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
