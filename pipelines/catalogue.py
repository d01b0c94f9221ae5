"""Which models there are, and what is known of one before its weights are read. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmgen.errors import ModelError, UsageError
from mmgen.pipelines.checkpoint import INDEX, digest, problems, read_json, read_manifest, weight_header
from mmgen.pipelines.families import FAMILIES, Family, Kind, StageForm, resolve, sides, up_to
from mmgen.types import Request, Size, StageSettings


def available() -> list[str]:
    """Names of the models that come with mmgen."""
    return sorted(p.parent.name for p in _bundled().glob(f"*/{INDEX}"))


def find(name_or_folder: str | Path) -> Path:
    """The folder of a bundled model's name, or the folder itself. Raises ModelError if it is neither."""
    if str(name_or_folder) in available():
        return _bundled() / str(name_or_folder)
    if os.path.isdir(name_or_folder):  # unlike Path.is_dir it has an answer for a name that cannot be
        return Path(name_or_folder).absolute()  # "." has no name of its own
    raise ModelError(
        f"no model {str(name_or_folder)!r}: give a folder, or one of {', '.join(available()) or 'none'}"
    )


def read_index(folder: Path) -> tuple[dict[str, Any], Family]:
    """The index of a checkpoint and its family.

    Raises ModelError if the family is unknown, or a component is missing or of a class that the family does not take.
    """
    index = read_json(folder / INDEX)
    name = str(index.get("family"))
    if name not in FAMILIES:
        raise ModelError(f"{folder.name}/{INDEX} is of family {name!r}: mmgen knows {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for part, kinds in family.components.items():
        said: Any = index.get(part)
        if said not in map(list, kinds):
            raise ModelError(f"{folder.name}/{INDEX}: component {part!r} is {said}, not {_names(kinds)}")
        if (kind := kind_of(folder / part, kinds)) != tuple(said):
            raise ModelError(
                f"{folder.name}/{INDEX} says that {part} is {_names([said])}, not {_names([kind])}"
            )
    return index, family


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
    raise ModelError(f"{part}/config.json is of class {named!r}, not {_names(kinds)}")


def sizes(name_or_folder: str | Path) -> tuple[int, ...]:
    """Sides in pixels of the square pictures a model can draw, smallest first. Raises ModelError if it is none."""
    folder = find(name_or_folder)
    return sides(_forms(folder, *read_index(folder)))


def _forms(folder: Path, index: Mapping[str, Any], family: Family) -> tuple[StageForm, ...]:
    try:
        return family.forms(index, _side(folder))
    except ValueError as error:
        raise ModelError(f"checkpoint {folder.name}: {error}") from None


def _side(folder: Path) -> int:
    """Of the pictures that the decoder gives, in pixels."""
    side = read_json(folder / "decoder" / "config.json").get("sample_size")
    if not isinstance(side, int) or side < 1:
        raise ModelError(f"decoder/config.json: sample_size is {side!r}, and must be a number of pixels")
    return side


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
    forms = _forms(folder, index, family)
    return Facts(str(index.get("name", folder.name)), digest(read_manifest(folder)), forms)


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
    """Name, family, digest and, for each component, class, parameters, bytes and dtypes: headers alone are read."""
    folder = find(name_or_folder)
    index, family = read_index(folder)
    return {
        "name": index.get("name", folder.name),
        "family": index["family"],
        "digest": digest(read_manifest(folder)),
        "components": {name: _describe_component(folder, name, index) for name in family.components},
    }


def verify(name_or_folder: str | Path) -> list[str]:
    """What is wrong with a model's files; empty: nothing. Raises ModelError if it is no checkpoint at all."""
    return problems(find(name_or_folder))


def _bundled() -> Path:
    import mmgen

    return Path(mmgen.__file__).resolve().parent / "weights"


def _names(kinds: Sequence[Sequence[str]]) -> str:
    return " or ".join(".".join(kind) for kind in kinds)


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
