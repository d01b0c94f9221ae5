"""Which models there are, and what is known of one before its weights are read. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmgen.component import read_json, shown, weight_files
from mmgen.errors import ModelError, UsageError
from mmgen.pipelines import hub
from mmgen.pipelines.checkpoint import INDEX, check_link, digest, entries, part_names, problems
from mmgen.pipelines.families import FAMILIES, PUBLISHED
from mmgen.pipelines.families.family import Family, Kind
from mmgen.pipelines.forms import StageForm, resolve, sides, up_to
from mmgen.types import Request, Size, StageSettings


def available() -> list[str]:
    """Names of the models that come with mmgen."""
    return sorted(p.parent.name for p in _bundled().glob(f"*/{INDEX}"))


def find(name_or_folder: str | Path, *, fetch: bool = True, whole: bool = True) -> Path:
    """The folder of a bundled model's name, the folder itself, or that of a model of the Hugging Face Hub in its cache.

    The Hub is asked only for owner/name[@revision] that is neither a folder nor in the cache, if `fetch` is on. With
    `whole` off, one of which parts are missing or cut off counts as in the cache.
    Raises ModelError if there is no such model, MachineError if it cannot be fetched.
    """
    text = str(name_or_folder)
    if text in available():
        return _bundled() / text
    if os.path.isdir(name_or_folder):  # unlike Path.is_dir it has an answer for a name that cannot be
        return Path(name_or_folder).absolute()  # "." has no name of its own
    if (model := hub.parse(text)) is None:
        raise ModelError(
            f"no model {text!r}: give a folder, or one of {', '.join(available()) or 'none'}, or owner/name of the "
            "Hugging Face Hub"
        )
    if (cached := hub.cached_folder(model, whole=whole)) is not None:
        return cached
    if not fetch:
        raise hub.absent(model)
    return hub.pull(model, check_family)


def check_family(folder: Path) -> None:
    """Raise ModelError if the index of a folder is of no family that is known; nothing else need be in the folder."""
    _family_name(folder, read_json(folder / INDEX))


def name_of(folder: Path, index: Mapping[str, Any]) -> str:
    """What a picture says of the model of a folder: owner/name@COMMIT if it came from the Hugging Face Hub."""
    return hub.recorded_name(folder) or str(index.get("name", folder.name))


def read_index(folder: Path) -> tuple[dict[str, Any], Family]:
    """The index of a checkpoint and its family. The index names both it and every component as `FAMILIES` does.

    Raises ModelError if the family is unknown, a component is missing or of a class that the family does not take, or
    one of the files leads out of the folder.
    """
    check_link(folder / INDEX, folder)
    index = read_json(folder / INDEX)
    index["family"] = _family_name(folder, index)
    family = FAMILIES[index["family"]]
    for path in (*(f"{part}/config.json" for part in family.components), *family.data.values()):
        check_link((folder / path).parent, folder)
        check_link(folder / path, folder)
    for part, kinds in family.components.items():
        said: Any = index.get(part)
        named = next((kind for kind in kinds if _is_said(kind, said)), None)
        if named is None:
            raise ModelError(
                f"{folder.name}/{INDEX}: component {part!r} is {shown(said)}, not {_names(kinds)}"
            )
        if (kind := kind_of(folder / part, kinds)) != named:
            raise ModelError(
                f"{folder.name}/{INDEX} says that {part} is {_names([said])}, not {_names([kind])}"
            )
        index[part] = list(kind)
    for path in family.data.values():
        # what no index names is neither hashed nor looked at for links
        if (part := Path(path).parent.name) not in part_names(index):
            raise ModelError(
                f"{folder.name}/{INDEX} does not name {part!r}: the model cannot draw without it"
            )
    return index, family


def _family_name(folder: Path, index: Mapping[str, Any]) -> str:
    """What a folder of ours says itself, and a published one by its class."""
    said = index.get("family")
    if "family" not in index and (published := index.get("_class_name")) is not None:
        if not isinstance(published, str) or published not in PUBLISHED:
            raise ModelError(
                f"{folder.name}/{INDEX} is of class {shown(published)}: mmgen knows {', '.join(PUBLISHED)}"
            )
        said = PUBLISHED[published]
    if not isinstance(said, str) or said not in FAMILIES:
        raise ModelError(
            f"{folder.name}/{INDEX} is of family {shown(str(said))}: mmgen knows {', '.join(FAMILIES)}"
        )
    return said


def _is_said(kind: Kind, said: Any) -> bool:
    """Whether an index names this class; its module may be written by its full path."""
    if not isinstance(said, list) or len(said) != 2 or not all(isinstance(part, str) for part in said):
        return False
    module, name = said
    return name == kind[1] and f"{module}.".startswith(f"{kind[0]}.")


def kind_of(component: Path, kinds: Sequence[Kind]) -> Kind:
    """Which of several classes a component's own configuration names. Raises ModelError if it is none of them.

    component: its folder inside the checkpoint. kinds: what it may be, not empty.
    """
    folder, part = component.parent.name, component.name
    if not (component / "config.json").is_file():
        raise ModelError(f"checkpoint {folder} has no {part}/config.json: the folder is incomplete")
    if kinds[0][0] == "transformers":  # it has its own way to say so
        return kinds[0]
    named = read_json(component / "config.json").get("_class_name")
    for kind in kinds:
        if kind[1] == named:
            return kind
    raise ModelError(f"{part}/config.json is of class {shown(named)}, not {_names(kinds)}")


def sizes(name_or_folder: str | Path) -> tuple[int, ...]:
    """Sides in pixels of the square pictures a model can draw, smallest first. Raises ModelError if it is none."""
    folder = find(name_or_folder)
    return sides(forms_of(folder, *read_index(folder)))


def forms_of(folder: Path, index: Mapping[str, Any], family: Family) -> tuple[StageForm, ...]:
    """What the stages of a checkpoint are. Raises ModelError where its configurations do not fit each other."""
    try:
        return family.forms(
            index, {part: read_json(folder / part / "config.json") for part in family.components}
        )
    except ValueError as error:
        raise ModelError(f"checkpoint {folder.name}: {error}") from None


@dataclass(frozen=True)
class Facts:
    """What a request needs to know of a model: its name, the digest of its files, its stages."""

    name: str
    digest: str
    forms: tuple[StageForm, ...]

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides in pixels of the square pictures it can draw, smallest first."""
        return sides(self.forms)

    def request(
        self,
        prompt: str,
        seed: int,
        *,
        size: Size | None = None,
        negative_prompt: str = "",
        stages: Mapping[str, StageSettings] | None = None,
    ) -> Request:
        """The complete request of one picture, as the loaded model would make it.

        size: width and height in pixels, the model's largest if None. stages: settings by stage name.
        Raises UsageError where a value cannot be meant. A scheduler of diffusers may still turn out not to exist.
        """
        side = self.sides[-1] if size is None else fitting_side(size, self.sides, self.name)
        return Request(
            prompts=(prompt,),
            seeds=(seed,),
            size=(side, side),
            negative_prompt=negative_prompt,
            stages=_resolved(self, side, tuple((stages or {}).items())),
            model=self.name,
            model_digest=self.digest,
        )


@lru_cache(maxsize=64)
def _resolved(
    facts: Facts, side: int, given: tuple[tuple[str, StageSettings], ...]
) -> dict[str, StageSettings]:
    """Every setting of every stage that runs. Kept, because most lines of a prompt file say the same."""
    names = [form.name for form in facts.forms]
    if unknown := sorted({name for name, _ in given} - set(names)):
        raise UsageError(f"no stage {unknown[0]!r}: {facts.name} has {', '.join(names)}")
    return resolve(up_to(facts.forms, side), dict(given))


def facts(name_or_folder: str | Path) -> Facts:
    """What a request needs to know of a model, from the heads of its files. Raises ModelError if it is none."""
    folder = find(name_or_folder)
    index, family = read_index(folder)
    forms = forms_of(folder, index, family)
    return Facts(name_of(folder, index), digest(entries(folder)), forms)


def fitting_side(size: Size, sides: Sequence[int], name: str) -> int:
    """The side of a square picture of `size`, if it is one of `sides`. Raises UsageError otherwise.

    size: width and height in pixels. name: of the model, for the error.
    """
    width, height = size
    if width != height or width not in sides:
        raise UsageError(
            f"{name} cannot draw {width}x{height}: choose {' or '.join(f'{s}x{s}' for s in sides)}"
        )
    return width


def describe(name_or_folder: str | Path) -> dict[str, Any]:
    """Name, family, digest, stages, sides, and class, parameters, bytes and dtypes of each component.

    Headers alone are read, and nothing is fetched.
    """
    folder = find(name_or_folder, fetch=False)
    index, family = read_index(folder)
    forms = forms_of(folder, index, family)
    return {
        "name": name_of(folder, index),
        "family": index["family"],
        "digest": digest(entries(folder)),
        "stages": [form.name for form in forms],
        "sides": list(sides(forms)),
        "components": {name: _describe_component(folder, name, index) for name in family.components},
    }


def listed() -> list[dict[str, Any]]:
    """Name and bytes of the bundled models, then of those in the cache of the Hugging Face Hub."""
    ours = [
        {"name": name, "bytes": sum(entry["bytes"] for entry in entries(_bundled() / name).values())}
        for name in available()
    ]
    return ours + [{"name": one.name, "bytes": one.bytes} for one in hub.cached()]


def verify(name_or_folder: str | Path) -> list[str]:
    """What is wrong with a model's files; empty: nothing. Nothing is fetched.

    Raises ModelError if it is no checkpoint at all.
    """
    folder = find(name_or_folder, fetch=False, whole=False)
    found = [*hub.damaged(folder), *problems(folder)]
    return found or _incomplete(folder)


def _incomplete(folder: Path) -> list[str]:
    """The first thing that a folder of sound files lacks of its family; empty: nothing."""
    try:
        index, family = read_index(folder)
        forms_of(folder, index, family)
        for name in family.components:
            _describe_component(folder, name, index)
        for path in family.data.values():
            read_json(folder / path)
    except ModelError as error:
        return [str(error)]
    return []


def _bundled() -> Path:
    import mmgen

    return Path(mmgen.__file__).resolve().parent / "weights"


def _names(kinds: Sequence[Sequence[str]]) -> str:
    return " or ".join(".".join(kind) for kind in kinds)


def _describe_component(folder: Path, name: str, index: Mapping[str, Any]) -> dict[str, Any]:
    files = weight_files(folder / name)
    tensors = [entry for header in files.values() for entry in header.values()]
    return {
        "class": index[name][1],
        "parameters": sum(math.prod(entry["shape"]) for entry in tensors),
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": sorted({entry["dtype"] for entry in tensors}),
    }
