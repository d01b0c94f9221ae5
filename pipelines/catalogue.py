"""What is known of a model before its weights are read. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmgen.component import weight_header
from mmgen.errors import ModelError, UsageError
from mmgen.pipelines import hub, sources
from mmgen.pipelines.checkpoint import CONFIG, entries, problems
from mmgen.pipelines.forms import StageForm, resolve, sides, up_to
from mmgen.pipelines.reference import Reference
from mmgen.pipelines.sources import available, find, find_lora, is_alone, is_single_file, locate
from mmgen.types import Request, Size, StageSettings


def sizes(name_or_folder: str | Path) -> tuple[int, ...]:
    """Sides in pixels of the square pictures a model can draw, smallest first. Raises ModelError if it is none."""
    return sides(locate(name_or_folder).forms())


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
    checkpoint = locate(name_or_folder)
    forms = checkpoint.forms()  # before all files are read for their digest
    return Facts(checkpoint.name, checkpoint.digest(), forms)


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
    """Name, family, digest, stages, settings, sides, and class, parameters, bytes and dtypes of each component.

    Headers alone are read, and nothing is fetched.
    """
    checkpoint = locate(name_or_folder, fetch=False)
    forms = checkpoint.described_forms()
    return {
        "name": checkpoint.name,
        "family": checkpoint.base.index["family"],
        "digest": checkpoint.digest(),
        "stages": [form.name for form in forms],
        "settings": {form.name: settings for form in forms if (settings := _settings(form))},
        "sides": list(sides(forms)),
        "components": {name: source.describe(part) for name, source, part in checkpoint.components()},
    }


def _settings(form: StageForm) -> dict[str, Any]:
    """What a stage takes, each with its default, None where there is none."""
    named = form.defaults.to_dict()
    return {field.name: named.get(field.name) for field in fields(StageSettings) if field.name in form.takes}


def listed() -> list[dict[str, Any]]:
    """Name and bytes of the bundled models, then of those in the cache of the Hugging Face Hub."""
    ours = [
        {"name": name, "bytes": sum(entry["bytes"] for entry in entries(sources.bundled() / name).values())}
        for name in available()
    ]
    return ours + [{"name": one.name, "bytes": one.bytes} for one in hub.cached()]


def verify(name_or_folder: str | Path) -> list[str]:
    """What is wrong with a model's files; empty: nothing. Nothing is fetched.

    Raises ModelError if it is no checkpoint at all.
    """
    asked = Reference.parse(str(name_or_folder))
    folders = [
        find(text, fetch=False, whole=False, alone=True) for text in asked.models if not is_single_file(text)
    ]
    snapshots = [hub.snapshot_of(find_lora(lora.file, fetch=False)) for lora in asked.loras]
    found = [one for folder in (*folders, *filter(None, snapshots)) for one in hub.damaged(folder)]
    found += [one for folder in folders for one in problems(folder, (CONFIG,) if is_alone(folder) else None)]
    return found or _incomplete(name_or_folder)


def _incomplete(name_or_folder: str | Path) -> list[str]:
    """The first thing that folders of sound files lack of their family; empty: nothing."""
    try:
        checkpoint = locate(name_or_folder, fetch=False)
        checkpoint.described_forms()
        for _, source, part in checkpoint.components():
            source.describe(part)
        for lora in checkpoint.loras:
            weight_header(Path(lora.file))
    except ModelError as error:
        return [str(error)]
    return []
