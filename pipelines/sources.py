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
    CONFIG,
    INDEX,
    check_folder,
    check_link,
    digest,
    entries,
    has_manifest,
    no_checkpoint,
    part_names,
)
from mmgen.pipelines.families import FAMILIES, PUBLISHED
from mmgen.pipelines.families.family import Family, Join, Kind, Refiner, Upscaler, enlargement
from mmgen.pipelines.forms import StageForm, sides
from mmgen.pipelines.reference import Lora, Reference
from mmgen.pipelines.single_file import SingleFile

# Classes that indices name by the folder of a pipeline, or by diffusers as a whole, and the module they are in now.
_UNCLIP = "diffusers.pipelines.deprecated.unclip.text_proj"
_NORMALIZER = "diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer"
_PAELLA = "diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model"
MOVED: Mapping[Kind, str] = {
    ("kandinsky", "MultilingualCLIP"): "transformers",  # in whose manner it is written and read
    ("unclip", "UnCLIPTextProjModel"): _UNCLIP,
    ("diffusers", "UnCLIPTextProjModel"): _UNCLIP,
    ("stable_diffusion", "StableUnCLIPImageNormalizer"): _NORMALIZER,
    ("diffusers", "StableUnCLIPImageNormalizer"): _NORMALIZER,
    ("wuerstchen", "PaellaVQModel"): _PAELLA,
    ("diffusers", "PaellaVQModel"): _PAELLA,
}


@dataclass(frozen=True)
class Source:
    """A folder, or a single file, that parts of a model are read from.

    index: what its model_index.json says of them. components: what the model calls each -> what the folder calls it.
    data: name -> path in the folder. file: what its header says, if it is one.
    only: components and files of the folder, where no more of it is read; None: all. checked: its files, if they have
    been.
    """

    folder: Path
    index: Mapping[str, Any]
    components: Mapping[str, str]
    data: Mapping[str, str]
    file: SingleFile | None = None
    only: tuple[str, ...] | None = None
    checked: Mapping[str, Any] | None = None

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

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """path -> sha256 of all that decides what is drawn."""
        if self.file is not None:
            return {path: {"sha256": _sha256(file)} for path, file in self.file.read_files().items()}
        return self.checked or entries(self.folder, self.only)

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

    refiner, upscalers: in their order, each with what its family offers. loras: with the files that they are read from.
    """

    base: Source
    family: Family
    others: Mapping[str, Source]
    refiner: tuple[Source, Refiner] | None
    upscalers: tuple[tuple[Source, Upscaler], ...]
    loras: tuple[Lora, ...]

    def components(self) -> Iterator[tuple[str, Source, str]]:
        """What each part is called in the model, its folder, and what it is called there; what is added comes last."""
        for source in (self.base, *self.others.values()):
            yield from ((name, source, part) for name, part in source.components.items())
        for added, source in self._added():
            yield from ((f"{added}.{name}", source, part) for name, part in source.components.items())

    def _added(self) -> Iterator[tuple[str, Source]]:
        """What is called by its own name before those of its parts."""
        if self.refiner is not None:
            yield "refiner", self.refiner[0]
        yield from (
            (f"upscaler-{number}", source) for number, (source, _) in enumerate(self.upscalers, start=1)
        )

    @property
    def name(self) -> str:
        """What a picture says of it: as a reference, without the paths of this machine."""
        return str(
            Reference(
                self.base.name,
                **{given: source.name for given, source in self.others.items()},
                refiner=None if self.refiner is None else self.refiner[0].name,
                loras=tuple(Lora(lora_name(Path(lora.file)), lora.weight) for lora in self.loras),
                upscalers=tuple(source.name for source, _ in self.upscalers),
            )
        )

    @property
    def is_joined(self) -> bool:
        """Whether it is more than one folder."""
        return bool(self.others or self.refiner or self.upscalers or self.loras)

    def digest(self) -> str:
        """One sha256 for all that decides the pictures."""
        base = digest(self.base.files())
        if not self.is_joined:
            return base
        lines = [base, *(f"{given} {digest(source.files())}" for given, source in self.others.items())]
        if self.refiner is not None:
            lines.append(f"refiner {digest(self.refiner[0].files())}")
        lines += [f"lora {_sha256(Path(lora.file))} {lora.weight!r}" for lora in self.loras]
        lines += [f"upscaler {digest(source.files())}" for source, _ in self.upscalers]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def draws(self) -> bool:
        """Whether it draws pictures by itself."""
        return self.family.join is not None

    def forms(self) -> tuple[StageForm, ...]:
        """What its stages are. Raises ModelError where configurations do not fit, and for what draws nothing."""
        if not self.draws:
            raise self._draws_nothing()
        return self.described_forms()

    def loaded_forms(self) -> tuple[StageForm, ...]:
        """The same, also of what only enlarges given pictures."""
        self._join()
        return self.described_forms()

    def described_forms(self) -> tuple[StageForm, ...]:
        """The same, also of an upscaler or a prior by itself."""
        configs = self.base.configs()
        for source in self.others.values():
            configs |= source.configs()
        with _of(self.base.folder):
            forms = list(self.family.forms(self.base.index, configs))
        if self.refiner is not None:
            source, refiner = self.refiner
            with _of(source.folder):
                forms = refiner.forms(source.index, source.configs(), forms)
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
        own = {
            added: {name: parts[f"{added}.{name}"] for name in source.components} | source.told()
            for added, source in self._added()
        }
        if self.refiner is not None:
            source, refiner = self.refiner
            with _of(source.folder):
                stages = refiner.join(own["refiner"], source.index, stages)
        for number, (source, upscaler) in enumerate(self.upscalers, start=1):
            with _of(source.folder):
                stages += upscaler.join(own[f"upscaler-{number}"], source.index, _side(stages))
        return stages

    def _join(self) -> Join:
        """How the parts become stages. Raises ModelError for what draws and enlarges nothing by itself."""
        if lacking := sorted(self.family.may_lack - set(self.base.components)):
            raise ModelError(
                f"checkpoint {self.base.folder.name}: it has no {lacking[0]}, without which it enlarges pictures only "
                "as --upscaler of a model that has one"
            )
        if (join := self.family.join or self.family.enlarges) is None:
            raise self._draws_nothing()
        return join

    def _draws_nothing(self) -> ModelError:
        given = "give it as --upscaler of a model that does, or a picture to 'mmgen upscale'"
        if self.family.refiner is not None:
            given = f"give it as --refiner of a model of family {self.family.refiner.of}"
        elif self.family.upscaler is None:
            given = "give the folder of its decoder as --model, and this one as --prior"
        return ModelError(f"checkpoint {self.base.folder.name}: it draws no pictures by itself: {given}")


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
    """Whether all that a recorded name means comes with mmgen or is in the Hub's cache.

    The name of a folder or a file alone says nothing of where it is. Raises UsageError for what no reference can be.
    """
    asked = Reference.parse(reference)
    found = [
        text in available()
        or ((model := hub.parse(text)) is not None and hub.cached_folder(model, alone=True) is not None)
        for text in asked.models
    ]
    files = [hub.parse_file(lora.file) for lora in asked.loras]
    return all(found) and all(file is not None and hub.cached_file(*file) is not None for file in files)


def find(name_or_folder: str | Path, *, fetch: bool = True, whole: bool = True, alone: bool = False) -> Path:
    """The folder of a bundled model's name, the folder itself, or that of a model of the Hugging Face Hub in its cache.

    The Hub is asked only for owner/name[@revision] that is neither a folder nor in the cache, if `fetch` is on. With
    `whole` off, one of which parts are missing or cut off counts as in the cache. alone: a VAE that is published
    without a model serves too.
    Raises ModelError if there is no such model, MachineError if it cannot be fetched.
    """
    text = str(name_or_folder)
    if text in available():
        return bundled() / text
    if os.path.isdir(name_or_folder):  # unlike Path.is_dir it has an answer for a name that cannot be
        return Path(name_or_folder).absolute()  # "." has no name of its own
    if is_single_file(text):  # its name may be like owner/name
        raise ModelError(
            f"{text} is a single file, and of these only whole models are read: give a folder here, or owner/name of "
            "the Hugging Face Hub"
        )
    if (model := hub.parse(text)) is None:
        raise ModelError(
            f"no model {text!r}: give a folder, or one of {', '.join(available()) or 'none'}, or owner/name of the "
            "Hugging Face Hub"
        )
    if (cached := hub.cached_folder(model, whole=whole, alone=alone)) is not None:
        return cached
    if not fetch:
        raise hub.absent(model)
    return hub.pull(model, check_known, alone=alone)


def find_lora(text: str, *, fetch: bool = True) -> Path:
    """A file of low-rank changes: itself, or of owner/name[@revision][/FILE] of the Hugging Face Hub in its cache.

    The Hub is asked only for what is neither a file nor in the cache, if `fetch` is on. Without FILE it is the only
    .safetensors file there. Raises UsageError where several are, ModelError if there is none, and MachineError if it
    cannot be fetched.
    """
    asked = None if os.path.lexists(text) else hub.parse_file(text)
    if asked is None or os.path.isdir(asked[0].id):
        return Path(text)
    path = hub.cached_file(*asked)
    if path is None:
        if not fetch:
            raise hub.absent(*asked)
        path = hub.pull_file(*asked)
    folder = hub.snapshot_of(path)
    assert folder is not None
    check_link(path, folder)
    return path


def lora_name(file: Path) -> str:
    """What a picture says of the file of a LoRA."""
    folder = hub.snapshot_of(file)
    return (
        file.name if folder is None else f"{hub.recorded_name(folder)}/{file.relative_to(folder).as_posix()}"
    )


def check_known(folder: Path) -> None:
    """Raise ModelError if a folder is of no family that is known, by its index alone; nothing else need be there.

    Without an index it is a VAE by itself.
    """
    if (folder / INDEX).is_file():
        _family_name(folder, read_json(folder / INDEX))
    else:
        vaes = {kind for family in FAMILIES.values() for kind in family.components.get("vae", ())}
        kind_of(folder, sorted(vaes))


def locate(reference: str | Path, *, fetch: bool = True, check: bool = False) -> Checkpoint:
    """The folders of a model or of a reference, each of a known family and with all parts that it is to give.

    check: every file of theirs is checked first. Raises ModelError or UsageError where one is not as it should be,
    MachineError if it cannot be fetched.
    """
    asked = Reference.parse(str(reference))
    files = _Files(check)
    if is_single_file(asked.model):
        base = Path(asked.model).absolute()
        file = single_file.look(base)
        index = {"family": file.family}
    else:
        base, file = find(asked.model, fetch=fetch), None
        files.check(base)
        index = _index(base)
    family = FAMILIES[index["family"]]
    others: dict[str, Source] = {}
    if asked.prior is not None:
        others["prior"] = files.checked(_prior(find(asked.prior, fetch=fetch), index, family))
    if asked.vae is not None:
        others["vae"] = files.checked(_vae(find(asked.vae, fetch=fetch, alone=True), index, family))
        _check_enlargement(others["vae"], base, file)
    refiner = None
    if asked.refiner is not None:
        source, how = _refiner(asked.refiner, index, fetch=fetch)
        refiner = files.checked(source), how
    offered = [_upscaler(find(text, fetch=fetch)) for text in asked.upscalers]
    return Checkpoint(
        files.checked(_rest(base, index, family, others, file)),
        family,
        others,
        refiner,
        tuple((files.checked(source), upscaler) for source, upscaler in offered),
        tuple(Lora(str(find_lora(lora.file, fetch=fetch)), lora.weight) for lora in asked.loras),
    )


class _Files:
    """What has been found of the files of folders, each of which is checked once. wanted: whether they are."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._found: dict[tuple[Path, tuple[str, ...] | None], Mapping[str, Any]] = {}

    def check(self, folder: Path, only: tuple[str, ...] | None = None) -> Mapping[str, Any] | None:
        if not self._wanted:
            return None
        if (folder, only) not in self._found:
            self._found[folder, only] = check_folder(folder, only)
        return self._found[folder, only]

    def checked(self, source: Source) -> Source:
        return source if source.file else replace(source, checked=self.check(source.folder, source.only))


def _rest(
    base: Path,
    index: Mapping[str, Any],
    family: Family,
    others: Mapping[str, Source],
    file: SingleFile | None,
) -> Source:
    """What a model's own folder or file is to give: all that no other does."""
    elsewhere = {name for source in others.values() for name in (*source.components, *source.data)}
    elsewhere |= {name for name in family.may_lack if index.get(name) in (None, [None, None])}
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
        raise ModelError(f"{folder.name} is no upscaler: models of family {index['family']} offer none")
    return _in_part(_source(folder, index, upscaler.components, upscaler.data)), upscaler


def _refiner(text: str, base: Mapping[str, Any], *, fetch: bool) -> tuple[Source, Refiner]:
    if base["family"] not in {family.refiner.of for family in FAMILIES.values() if family.refiner}:
        raise UsageError(f"models of family {base['family']} are not refined: leave --refiner out")
    folder = find(text, fetch=fetch)
    index = _index(folder)
    refiner = FAMILIES[index["family"]].refiner
    if refiner is None or refiner.of != base["family"]:
        raise ModelError(_no_such(folder, index, "refiner"))
    return _in_part(_source(folder, index, refiner.components, refiner.data)), refiner


def _index(folder: Path) -> dict[str, Any]:
    """The index of a folder, with the name of its family in it."""
    index = _read_index(folder)
    index["family"] = _family_name(folder, index)
    return index


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise no_checkpoint(folder)
    check_link(folder / INDEX, folder)
    return read_json(folder / INDEX)


def _no_such(folder: Path, index: Mapping[str, Any], part: str) -> str:
    """What is said of a folder that is given for a part which it does not have."""
    said = index.get("_class_name")
    kind = said if isinstance(said, str) and said in PUBLISHED else shown(index.get("family", said))
    return f"{folder.name} holds no {part} of this kind (it is a {kind})"


def _in_part(source: Source) -> Source:
    """The same, where no more of its folder is read; one with a manifest is checked as a whole."""
    if has_manifest(source.folder):
        return source
    parts = source.components.values()
    tokenizers = (part.replace("text_encoder", "tokenizer") for part in parts)
    there = (path for path in {*parts, *tokenizers, *source.data.values()} if (source.folder / path).exists())
    return replace(source, only=tuple(sorted(there)))


def _prior(folder: Path, base: Mapping[str, Any], family: Family) -> Source:
    """The parts of a family that lie in a prior's folder."""
    if not family.of_prior:
        raise UsageError(f"models of family {base['family']} draw without another's prior: leave --prior out")
    index = _read_index(folder)
    # a model that reads texts twice calls the encoder of its prior so, and there it is the only one
    called = {
        name: name if name in index else name.removeprefix("prior_")
        for name in family.components
        if name in family.of_prior
    }
    components = {part: family.components[name] for name, part in called.items()}
    for part, kinds in components.items():
        if not any(_is_said(kind, index.get(part)) for kind in kinds):
            raise ModelError(
                f"{_no_such(folder, index, 'prior')}: component {part!r} is {shown(index.get(part))}, not "
                f"{_names(kinds)}"
            )
    # what the model calls the scheduler of its prior is the only one there
    data = {
        name: path if (folder / path).is_file() else f"scheduler/{Path(path).name}"
        for name, path in family.data.items()
        if name in family.of_prior
    }
    return replace(_in_part(_source(folder, index, components, data)), components=called)


def _vae(folder: Path, base: Mapping[str, Any], family: Family) -> Source:
    """Another VAE than that of the model, from a folder that is one or has one."""
    if (kinds := family.components.get("vae")) is None:
        raise UsageError(f"models of family {base['family']} have no VAE: leave --vae out")
    if is_alone(folder):
        return _alone(folder, "vae", kinds)
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder.name} holds no VAE: give a folder with its {CONFIG} and weights, or that of a whole model"
        )
    return _in_part(_source(folder, _read_index(folder), {"vae": kinds}, {}))


def _check_enlargement(vae: Source, base: Path, file: SingleFile | None) -> None:
    """Raise ModelError for a VAE that makes pictures of another size than the model's own, where it has one."""
    own = base / "vae" / CONFIG
    if file is None and not own.is_file():
        return
    with _of(base):
        wanted = enlargement(file.configs["vae"] if file else read_json(own))
    with _of(vae.folder):
        if (found := enlargement(vae.configs()["vae"])) != wanted:
            raise ValueError(f"this VAE enlarges {found} times, and that of {base.name} {wanted} times")


def is_alone(folder: Path) -> bool:
    """Whether a folder may be a component that is published without a model."""
    return (folder / CONFIG).is_file() and not (folder / INDEX).is_file()


def _alone(folder: Path, name: str, kinds: Sequence[Kind]) -> Source:
    """A folder that is itself a component. Raises ModelError if it is not whole, or of no class that is taken."""
    for path in (folder / CONFIG, *sorted(folder.glob("*.safetensors*"))):
        check_link(path, folder)
    kind, files = kind_of(folder, kinds), weight_files(folder)
    only = (CONFIG, *(file.name for file in files))
    return Source(folder, {"name": folder.name, ".": list(kind)}, {name: "."}, {}, only=only)


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
        if path != INDEX and (part := Path(path).parent.name) not in part_names(index):
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
