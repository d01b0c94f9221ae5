"""Where the parts of a model lie, before its weights are read: one folder, or several. Imports no torch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmgen.component import read_json, shown, weight_files
from mmgen.errors import ModelError, UsageError
from mmgen.pipelines import hub, single_file
from mmgen.pipelines.checkpoint import (
    INDEX,
    check_folder,
    check_link,
    digest,
    entries,
    no_checkpoint,
    part_names,
)
from mmgen.pipelines.families import FAMILIES, PUBLISHED
from mmgen.pipelines.families.family import Family, Join, Kind, Upscaler
from mmgen.pipelines.forms import StageForm, sides
from mmgen.pipelines.reference import Lora, Reference
from mmgen.pipelines.single_file import SingleFile

# Classes that indices name by the folder of a pipeline, or by diffusers as a whole, and the module they are in now.
_UNCLIP = "diffusers.pipelines.deprecated.unclip.text_proj"
_NORMALIZER = "diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer"
MOVED: Mapping[Kind, str] = {
    ("kandinsky", "MultilingualCLIP"): "transformers",  # in whose manner it is written and read
    ("unclip", "UnCLIPTextProjModel"): _UNCLIP,
    ("diffusers", "UnCLIPTextProjModel"): _UNCLIP,
    ("stable_diffusion", "StableUnCLIPImageNormalizer"): _NORMALIZER,
    ("diffusers", "StableUnCLIPImageNormalizer"): _NORMALIZER,
}


@dataclass(frozen=True)
class Source:
    """A folder, or a single file, that parts of a model are read from.

    index: what its model_index.json says of them. components: what the model calls each -> what the folder calls it.
    data: name -> path in the folder. file: what its header says, if it is one.
    """

    folder: Path
    index: Mapping[str, Any]
    components: Mapping[str, str]
    data: Mapping[str, str]
    file: SingleFile | None = None

    @property
    def name(self) -> str:
        """What a picture says of it."""
        return name_of(self.folder, self.index)

    def configs(self) -> dict[str, Any]:
        """What forms are told: config.json of the components, and the data, by their names in the model."""
        if self.file is not None:
            return dict(self.file.configs)
        files = {name: f"{part}/config.json" for name, part in self.components.items()}
        return {name: read_json(self.folder / path) for name, path in files.items()} | self.told()

    def told(self) -> dict[str, Any]:
        """What a join is told besides the components: the data."""
        if self.file is not None:
            return {name: self.file.configs[name] for name in self.data}
        return {name: read_json(self.folder / path) for name, path in self.data.items()}

    def describe(self, part: str) -> dict[str, Any]:
        """Class, parameters, bytes and dtypes of a component, from headers."""
        kind = str(self.index[part][1])
        if self.file is not None:
            return single_file.describe(self.file, part, kind)
        files = weight_files(self.folder / part)
        tensors = [entry for header in files.values() for entry in header.values()]
        return {
            "class": kind,
            "parameters": sum(math.prod(entry["shape"]) for entry in tensors),
            "bytes": sum(file.stat().st_size for file in files),
            "dtypes": sorted({entry["dtype"] for entry in tensors}),
        }


@dataclass(frozen=True)
class Checkpoint:
    """All folders and files that a model is read from. others: by what they are given as, such as "prior".

    upscalers: in their order, each with what its family offers. checked: the files of folders that have been checked.
    """

    base: Source
    family: Family
    others: Mapping[str, Source]
    upscalers: tuple[tuple[Source, Upscaler], ...]
    loras: tuple[Lora, ...]
    checked: Mapping[Path, Mapping[str, Any]]

    def components(self) -> Iterator[tuple[str, Source, str]]:
        """What each part is called in the model, its folder, and what it is called there; those of upscalers last."""
        for source in (self.base, *self.others.values()):
            yield from ((name, source, part) for name, part in source.components.items())
        for number, (source, _) in enumerate(self.upscalers, start=1):
            yield from (
                (f"upscaler-{number}.{name}", source, part) for name, part in source.components.items()
            )

    @property
    def name(self) -> str:
        """What a picture says of it: as a reference, without the paths of this machine."""
        return str(
            Reference(
                self.base.name,
                **{given: source.name for given, source in self.others.items()},
                loras=tuple(Lora(Path(lora.file).name, lora.weight) for lora in self.loras),
                upscalers=tuple(source.name for source, _ in self.upscalers),
            )
        )

    @property
    def is_joined(self) -> bool:
        """Whether it is more than one folder."""
        return bool(self.others or self.upscalers or self.loras)

    def digest(self) -> str:
        """One sha256 for all that decides the pictures."""
        base = self._digest(self.base)
        if not self.is_joined:
            return base
        lines = [base, *(f"{given} {self._digest(source)}" for given, source in self.others.items())]
        lines += [f"lora {_sha256(Path(lora.file))} {lora.weight!r}" for lora in self.loras]
        lines += [f"upscaler {self._digest(source)}" for source, _ in self.upscalers]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _digest(self, source: Source) -> str:
        if source.file is not None:
            return digest(
                {path: {"sha256": _sha256(file)} for path, file in source.file.read_files().items()}
            )
        return digest(self.checked.get(source.folder) or entries(source.folder))

    def forms(self) -> tuple[StageForm, ...]:
        """What its stages are. Raises ModelError where configurations do not fit, and for what draws nothing."""
        self._join()
        return self.described_forms()

    def described_forms(self) -> tuple[StageForm, ...]:
        """The same, also of an upscaler or a prior by itself."""
        configs = self.base.configs()
        for source in self.others.values():
            configs |= source.configs()
        with _of(self.base.folder):
            forms = list(self.family.forms(self.base.index, configs))
        for source, upscaler in self.upscalers:
            with _of(source.folder):
                forms += upscaler.forms(source.index, source.configs(), sides(forms)[-1])
        return tuple(forms)

    def stages(self, parts: Mapping[str, Any]) -> list[Any]:
        """The stages of all parts, as `components` calls them. Raises ModelError where these do not fit each other."""
        given = dict(parts)
        for source in (self.base, *self.others.values()):
            given |= source.told()
        with _of(self.base.folder):
            stages = self._join()(given, self.base.index)
        for number, (source, upscaler) in enumerate(self.upscalers, start=1):
            own = {name: parts[f"upscaler-{number}.{name}"] for name in source.components}
            own |= source.told()
            with _of(source.folder):
                stages += upscaler.join(own, source.index, _side(stages))
        return stages

    def _join(self) -> Join:
        """How the parts become stages. Raises ModelError for what draws nothing by itself."""
        if self.family.join is None:
            given = "give it as --upscaler of a model that does"
            if self.family.upscaler is None:
                given = "give the folder of its decoder as --model, and this one as --prior"
            raise ModelError(f"checkpoint {self.base.folder.name}: it draws no pictures by itself: {given}")
        return self.family.join


def _side(stages: Sequence[Any]) -> int:
    """Of the pictures that a chain ends with."""
    return int(next(stage.size for stage in reversed(stages) if stage.size is not None))


@contextmanager
def _of(folder: Path) -> Iterator[None]:
    """A ValueError is one of this checkpoint."""
    try:
        yield
    except ValueError as error:
        raise ModelError(f"checkpoint {folder.name}: {error}") from None


def available() -> list[str]:
    """Names of the models that come with mmgen."""
    return sorted(p.parent.name for p in bundled().glob(f"*/{INDEX}"))


def is_single_file(text: str) -> bool:
    """Whether a model is asked for by the file that holds all of it."""
    return text.endswith(".safetensors") and not os.path.isdir(text)


def is_here(reference: str) -> bool:
    """Whether all folders that a recorded name means come with mmgen or are in the Hub's cache, LoRA's files aside.

    The name of a folder alone says nothing of where it is. Raises UsageError for what no reference can be.
    """
    asked = Reference.parse(reference)
    given = [asked.model, *(text for text in (asked.prior, asked.vae) if text is not None), *asked.upscalers]
    return not asked.loras and all(
        text in available()
        or ((model := hub.parse(text)) is not None and hub.cached_folder(model) is not None)
        for text in given
    )


def find(name_or_folder: str | Path, *, fetch: bool = True, whole: bool = True) -> Path:
    """The folder of a bundled model's name, the folder itself, or that of a model of the Hugging Face Hub in its cache.

    The Hub is asked only for owner/name[@revision] that is neither a folder nor in the cache, if `fetch` is on. With
    `whole` off, one of which parts are missing or cut off counts as in the cache.
    Raises ModelError if there is no such model, MachineError if it cannot be fetched.
    """
    text = str(name_or_folder)
    if text in available():
        return bundled() / text
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


def locate(reference: str | Path, *, fetch: bool = True, check: bool = False) -> Checkpoint:
    """The folders of a model or of a reference, each of a known family and with all parts that it is to give.

    check: every file of theirs is checked first. Raises ModelError or UsageError where one is not as it should be,
    MachineError if it cannot be fetched.
    """
    asked = Reference.parse(str(reference))
    checked: dict[Path, Mapping[str, Any]] = {}

    def found(text: str) -> Path:
        folder = find(text, fetch=fetch)
        if check and folder not in checked:
            checked[folder] = check_folder(folder)
        return folder

    if is_single_file(asked.model):
        base = Path(asked.model).absolute()
        file = single_file.look(base)
        index = {"family": file.family}
    else:
        base, file = found(asked.model), None
        index = _index(base)
    family = FAMILIES[index["family"]]
    others: dict[str, Source] = {}
    if asked.prior is not None:
        others["prior"] = _prior(found(asked.prior), index, family)
    if asked.vae is not None:
        others["vae"] = _vae(found(asked.vae), index, family)
    upscalers = [_upscaler(found(text)) for text in asked.upscalers]
    return Checkpoint(
        _rest(base, index, family, others, file), family, others, tuple(upscalers), asked.loras, checked
    )


def _rest(
    base: Path,
    index: Mapping[str, Any],
    family: Family,
    others: Mapping[str, Source],
    file: SingleFile | None,
) -> Source:
    """What a model's own folder or file is to give: all that no other does."""
    elsewhere = {name for source in others.values() for name in (*source.components, *source.data)}
    own = {name: kinds for name, kinds in family.components.items() if name not in elsewhere}
    if lacking := sorted(name for name in family.of_prior & set(own) if name not in index):
        raise UsageError(
            f"{base.name} has no {lacking[0]!r}: it draws from what a prior makes, and is published apart from it. "
            "Give the prior's folder too, with --prior"
        )
    data = {name: path for name, path in family.data.items() if name not in elsewhere}
    if file is not None:
        kinds = {name: list(kinds[0]) for name, kinds in own.items()}
        return Source(base, {**index, **kinds}, {name: name for name in own}, data, file)
    return _source(base, index, own, data)


def _upscaler(folder: Path) -> tuple[Source, Upscaler]:
    index = _index(folder)
    upscaler = FAMILIES[index["family"]].upscaler
    if upscaler is None:
        raise UsageError(f"{folder.name} is no upscaler: models of family {index['family']} offer none")
    return _source(folder, index, upscaler.components, upscaler.data), upscaler


def _index(folder: Path) -> dict[str, Any]:
    """The index of a folder, with the name of its family in it."""
    if not (folder / INDEX).is_file():
        raise no_checkpoint(folder)
    check_link(folder / INDEX, folder)
    index = read_json(folder / INDEX)
    index["family"] = _family_name(folder, index)
    return index


def _prior(folder: Path, base: Mapping[str, Any], family: Family) -> Source:
    """The parts of a family that lie in a prior's folder."""
    if not family.of_prior:
        raise UsageError(f"models of family {base['family']} draw without another's prior: leave --prior out")
    index = read_json(folder / INDEX)
    # a model that reads texts twice calls the encoder of its prior so, and there it is the only one
    called = {
        name: name if name in index else name.removeprefix("prior_")
        for name in family.components
        if name in family.of_prior
    }
    components = {part: family.components[name] for name, part in called.items()}
    # what the model calls the scheduler of its prior is the only one there
    data = {
        name: path if (folder / path).is_file() else f"scheduler/{Path(path).name}"
        for name, path in family.data.items()
        if name in family.of_prior
    }
    return replace(_source(folder, index, components, data), components=called)


def _vae(folder: Path, base: Mapping[str, Any], family: Family) -> Source:
    """Another VAE than that of the model, from a folder that has one."""
    if "vae" not in family.components:
        raise UsageError(f"models of family {base['family']} have no VAE: leave --vae out")
    return _source(folder, read_json(folder / INDEX), {"vae": family.components["vae"]}, {})


def _source(
    folder: Path,
    index: Mapping[str, Any],
    components: Mapping[str, Sequence[Kind]],
    data: Mapping[str, str],
) -> Source:
    """A folder that is to give these parts, its index completed by what each is.

    Raises ModelError if one is missing, of a class that is not taken, or leads out of the folder.
    """
    whole = dict(index)
    for path in (INDEX, *(f"{part}/config.json" for part in components), *data.values()):
        check_link((folder / path).parent, folder)
        check_link(folder / path, folder)
    for part, kinds in components.items():
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
        whole[part] = list(kind)
    for path in data.values():
        # what no index names is neither hashed nor looked at for links
        if (part := Path(path).parent.name) not in part_names(index):
            raise ModelError(
                f"{folder.name}/{INDEX} does not name {part!r}: the model cannot draw without it"
            )
    return Source(folder, whole, {name: name for name in components}, data)


def name_of(folder: Path, index: Mapping[str, Any]) -> str:
    """What a picture says of the model of a folder: owner/name@COMMIT if it came from the Hugging Face Hub."""
    return hub.recorded_name(folder) or str(index.get("name", folder.name))


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
    """Whether an index names this class; its module may be written by its full path, or as it was called once."""
    if not isinstance(said, list) or len(said) != 2 or not all(isinstance(part, str) for part in said):
        return False
    module, name = said
    return name == kind[1] and f"{MOVED.get((module, name), module)}.".startswith(f"{kind[0]}.")


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


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def bundled() -> Path:
    """The folder of the models that come with mmgen."""
    import mmgen

    return Path(mmgen.__file__).resolve().parent / "weights"


def _names(kinds: Sequence[Sequence[str]]) -> str:
    return " or ".join(".".join(kind) for kind in kinds)
