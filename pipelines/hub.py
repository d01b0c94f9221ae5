"""Models of the Hugging Face Hub: from `owner/name[@revision]` to a folder of the Hub's cache. Imports no torch.

What is in the cache is used as it is, without asking the Hub; `pull` asks. Of a repository only what a stage reads is
fetched, and its index last. Other programs share the cache, and may have fetched an index alone: a snapshot is whole
if the parts that its index names are there too. A component that is published without a model has a configuration in
the place of the index; of low-rank changes one file is fetched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mmgen.component import STEMS, is_plain, read_json, weight_files
from mmgen.errors import MachineError, MmgenError, ModelError, UsageError, told
from mmgen.pipelines.checkpoint import CARD, CONFIG, INDEX, MANIFEST, TEXTS, VOCABULARY, part_names

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy

SITE = "https://huggingface.co"
SECONDS = 30.0  # in which the Hub must answer
NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([A-Za-z0-9_][\w./-]*))?", re.ASCII)
# owner/name, a revision without a slash, and a file of it
FILE = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?:@[A-Za-z0-9_][\w.-]*)?)(?:/([^/\\].*\.safetensors))?",
    re.ASCII,
)
COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_REVISION = "main"
MAX_SHOWN = 10  # of files, in one error
# of weights that are read before any variant
PLAIN = {f"{stem}.safetensors{end}" for stem in STEMS for end in ("", ".index.json")}
PLAIN_OR_SHARD = re.compile(rf"(?:{'|'.join(STEMS)})(?:-\d{{5}}-of-\d{{5}})?\.safetensors(?:\.index\.json)?")
# fp16 of model.fp16.safetensors, of its shards and of their index
VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})(?:\.([^.-]+)(?:-\d{{5}}-of-\d{{5}})?\.safetensors|\.safetensors\.index\.([^.]+)\.json)"
)


@dataclass(frozen=True)
class HubModel:
    """A model as it is asked for. id: owner/name. revision: a branch, tag or commit; None: the newest."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


@dataclass(frozen=True)
class Cached:
    """A whole model in the cache. name: owner/name@COMMIT. bytes: on the disk, shared with other commits or not."""

    name: str
    bytes: int


def parse(text: str) -> HubModel | None:
    """owner/name or owner/name@revision; None for what is neither."""
    found = NAME.fullmatch(text)
    if found is None or ".." in text:
        return None
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(found[1])
    except HFValidationError:
        return None
    return HubModel(*found.groups())


def parse_file(text: str) -> tuple[HubModel, str | None] | None:
    """owner/name[@revision]/FILE.safetensors, or all but the file; None for what is neither."""
    found = FILE.fullmatch(text)
    if found is None or found[1].endswith(".safetensors"):
        return None
    model = parse(found[1])
    return None if model is None or ".." in text else (model, found[2])


def recorded_name(folder: Path) -> str | None:
    """owner/name@COMMIT for a snapshot in the cache, None for any other folder."""
    kind, _, repository = folder.parent.parent.name.partition("--")
    if kind != "models" or folder.parent.name != "snapshots" or not COMMIT.fullmatch(folder.name):
        return None
    return f"{repository.replace('--', '/', 1)}@{folder.name}"


def snapshot_of(file: Path) -> Path | None:
    """The snapshot in the cache that a file is of; None for any other file."""
    return next((folder for folder in file.parents if recorded_name(folder) is not None), None)


def cached_folder(model: HubModel, *, whole: bool = True, alone: bool = False) -> Path | None:
    """Where a model lies in the cache, None if it is not there, or not as a whole where that is asked. Asks nobody.

    alone: a component without a model serves too.
    """
    for head in (INDEX, CONFIG) if alone else (INDEX,):
        found = _cached_file(model, head)
        if found is not None and (not whole or _is_whole(found.parent, head)):
            return found.parent
    return None


def cached_file(model: HubModel, name: str | None) -> Path | None:
    """Where a file lies in the cache, None if it is not there. Asks nobody.

    name: None: the only .safetensors file there; it is not there where the Hub is known to have more. Raises UsageError
    where several are.
    """
    if name is not None:
        return _cached_file(model, name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                model.id, revision=model.revision, local_files_only=True, allow_patterns="*.safetensors"
            )
        )
    except LocalEntryNotFoundError:
        return None
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
    return there[_only(model, there)] if there else None


def _only(model: HubModel, names: Collection[str]) -> str:
    """The one .safetensors file of several names. Raises UsageError where several are, ModelError for none."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if not found:
        raise ModelError(f"{model} has no .safetensors file, and only these are read")
    if len(found) > 1:
        more = f" and {len(found) - MAX_SHOWN:,} more" if len(found) > MAX_SHOWN else ""
        raise UsageError(
            f"{model} has several files: write {model}/FILE with one of {', '.join(found[:MAX_SHOWN])}{more}"
        )
    return found[0]


def _is_whole(folder: Path, head: str = INDEX) -> bool:
    """Whether a snapshot has its index and the parts that this names, each that is a network with its weights.

    head: CONFIG for a component without a model, which is that network.
    """
    try:
        if head == CONFIG:
            return bool(weight_files(folder))
        parts = [folder / name for name in part_names(read_json(folder / INDEX))]
        for part in parts:
            if (part / "config.json").is_file() and not part.name.startswith("tokenizer"):
                weight_files(part)
    except ModelError:
        return False
    return all(part.is_dir() for part in parts)


def absent(model: HubModel, file: str | None = "") -> ModelError:
    """What is said where a model is not in the cache and may not be fetched.

    file: of which that is asked; None: the only one that there would be.
    """
    from huggingface_hub import constants

    why = ", and --offline or HF_HUB_OFFLINE forbids to fetch it" if is_offline() else ""
    if file != "":
        named = f"{model}/{file or 'FILE.safetensors'}"
        return ModelError(
            f"{named} is not in the cache {constants.HF_HUB_CACHE}{why}: 'mmgen models pull {named}' gets it from the "
            "Hub"
        )
    return ModelError(
        f"{model} is not, or not as a whole, in the cache {constants.HF_HUB_CACHE}{why}: "
        f"'mmgen models pull {model}' gets it from the Hub"
    )


def is_offline() -> bool:
    """Whether nothing may be fetched, as HF_HUB_OFFLINE said when huggingface_hub was imported, or says now."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1"


def pull(model: HubModel, check: Callable[[Path], object], *, alone: bool = False) -> Path:
    """The folder in the cache of what the Hub has for a model, after what is missing of it has been fetched.

    check: is given a folder that holds the index alone, and raises if such a model could not be used. How many files
    and bytes are fetched is said on stderr before they are. alone: as in `cached_folder`.
    Raises ModelError if the Hub has no such model, or does not give it; MachineError for the network and the disk.
    """
    if is_offline():
        raise absent(model)
    from huggingface_hub import hf_hub_download

    with _explained(model), TemporaryDirectory() as temporary:
        commit, sizes = _listed(model)
        head = CONFIG if alone and INDEX not in sizes and CONFIG in sizes else INDEX
        if head not in sizes:
            raise ModelError(
                f"{model.id} has no {INDEX} on the Hub: it is no model in the layout of diffusers"
            )
        folder = Path(temporary) / model.id.partition("/")[2]
        hf_hub_download(model.id, head, revision=commit.revision, local_dir=folder)
        check(folder)
        wanted = _wanted(sizes, read_json(folder / INDEX)) if head == INDEX else _wanted_alone(sizes)
        if missing := [name for name in wanted if _cached_file(commit, name) is None]:
            _fetch(commit, missing, sum(sizes[name] for name in missing), last=head)
        found = Path(hf_hub_download(model.id, head, revision=commit.revision)).parent
        _keep_revision(model, found)
    return found


def pull_file(model: HubModel, name: str | None) -> Path:
    """Where a file of the Hub lies in the cache, after it has been fetched if it was missing; its size is said before.

    name: None: the only .safetensors file that there is. Raises ModelError if there is no such file, UsageError where
    several are, and what `pull` does.
    """
    if is_offline():
        raise absent(model, name)
    with _explained(model):
        commit, sizes = _listed(model)
        wanted = name or _only(model, sizes)
        if wanted not in sizes:
            raise ModelError(f"{model} has no file {wanted!r} on the Hub: {SITE}/{model.id} lists them")
        if _cached_file(commit, wanted) is None:
            _fetch(commit, [wanted], sizes[wanted])
        found = _cached_file(commit, wanted)
        assert found is not None
        folder = snapshot_of(found)
        assert folder is not None
        _keep_revision(model, folder)
    return found


def _listed(model: HubModel) -> tuple[HubModel, dict[str, int]]:
    """The commit that the Hub has for a model, and its files with their bytes."""
    from huggingface_hub import HfApi

    revision = model.revision or DEFAULT_REVISION
    info = HfApi().model_info(model.id, revision=revision, files_metadata=True, timeout=SECONDS)
    return HubModel(model.id, info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _wanted_alone(names: Collection[str]) -> list[str]:
    """What is read of a component without a model, in plain weights where there are any."""
    weights = sorted(name for name in names if PLAIN_OR_SHARD.fullmatch(name))
    return [CONFIG, *(weights or sorted(name for name in names if _is_variant(name)))]


def _wanted(names: Collection[str], index: Mapping[str, Any]) -> list[str]:
    """What is read of a repository: texts and safetensors of the components that its index names.

    Of a component that has plain weights, variants such as fp16 are left where they are.
    """
    wanted = [name for name in (INDEX, MANIFEST, VOCABULARY, CARD) if name in names]
    for part in part_names(index):
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{part}/")]
        files = [name for name in inside if is_plain(name) and Path(name).suffix in {*TEXTS, ".safetensors"}]
        plain = not PLAIN.isdisjoint(files)
        wanted += [f"{part}/{name}" for name in sorted(files) if not (plain and _is_variant(name))]
    return wanted


def _is_variant(name: str) -> bool:
    return VARIANT.fullmatch(name) is not None


def _fetch(commit: HubModel, missing: Collection[str], size: int, *, last: str = "") -> None:
    """Say what is fetched, and fetch all of it but what is to come last."""
    from huggingface_hub import constants, snapshot_download
    from tqdm import tqdm

    files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
    tqdm.write(f"fetching {commit}: {files}, {size / 1e6:,.1f} MB", file=sys.stderr)
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(cache).free) < size:
        raise MachineError(
            f"{commit.id} takes {size / 1e6:,.1f} MB, and {cache} has {free / 1e6:,.1f} MB left: free some space, or "
            "set HF_HOME to a folder elsewhere"
        )
    rest = [name for name in missing if name != last]
    if not rest:
        return
    snapshot_download(
        commit.id,
        revision=commit.revision,
        allow_patterns=[escape(name) for name in rest],
        tqdm_class=tqdm if sys.stderr.isatty() else None,
    )
    # cut off from the network, it returns what there is
    if lacking := [name for name in rest if _cached_file(commit, name) is None]:
        raise MachineError(f"{commit.id} was not fetched as a whole, {lacking[0]} is missing: try again")


def _cached_file(model: HubModel, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.id, name, revision=model.revision or DEFAULT_REVISION)
    return Path(found) if isinstance(found, str) else None


def _keep_revision(model: HubModel, folder: Path) -> None:
    """Let a revision mean this snapshot from now on, as huggingface_hub's cache has it."""
    revision = model.revision or DEFAULT_REVISION
    if revision == folder.name:
        return
    ref = folder.parent.parent / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_name(f"{ref.name}.{os.getpid()}")
    new.write_text(folder.name, "utf-8")
    new.replace(ref)


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Errors of huggingface_hub as ours, in one line."""
    from huggingface_hub import errors, get_token

    state = "a token is set" if get_token() else "no token is set (HF_TOKEN, or 'hf auth login')"
    try:
        yield
    except MmgenError:
        raise
    except errors.GatedRepoError:
        raise ModelError(
            f"{model.id} is gated: accept its licence at {SITE}/{model.id}, with an account whose token is set here; "
            f"now {state}"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"{model.id} has no revision {model.revision!r}: {SITE}/{model.id} lists them"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"no model {model.id!r}: there is no such folder, and the Hub has none of that name, or a private one "
            f"({state})"
        ) from None
    except errors.HfHubHTTPError as error:
        raise MachineError(f"the Hub did not give {model.id}: {told(error)}") from None
    except (OSError, RuntimeError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise _machine(model, error) from None


def _machine(model: HubModel, error: Exception) -> MachineError:
    """What stands in the way of a download that is not the Hub's answer."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"the disk is full, and {model.id} not fetched as a whole: free some space, or set HF_HOME to a folder "
            "elsewhere; what is there is kept"
        )
    if isinstance(error, PermissionError):
        return MachineError(
            f"{error.filename} cannot be written: {error.strerror}; HF_HOME sets another cache"
        )
    return MachineError(
        f"{model.id} is no folder, it is not in the cache as a whole, and the Hub cannot be reached: {told(error)}"
    )


def cached() -> list[Cached]:
    """Every whole model in the layout of diffusers that the cache holds, by name."""
    return sorted(
        (
            Cached(f"{repository.repo_id}@{revision.commit_hash}", revision.size_on_disk)
            for repository in _repositories()
            for revision in repository.revisions
            if _is_whole(revision.snapshot_path)
        ),
        key=lambda one: one.name,
    )


def removal(model: HubModel) -> tuple[list[str], DeleteCacheStrategy]:
    """The commits of a model in the cache, and what removes them. Raises ModelError if there are none.

    A revision that is not given means all of them.
    """
    from huggingface_hub import scan_cache_dir

    commits = sorted(
        revision.commit_hash
        for repository in _repositories()
        if repository.repo_id == model.id
        for revision in repository.revisions
        if model.revision is None or model.revision in (revision.commit_hash, *revision.refs)
    )
    if not commits:
        raise ModelError(f"{model} is not in the cache: 'mmgen models list' says what is")
    return commits, scan_cache_dir().delete_revisions(*commits)


def _repositories() -> list[Any]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [repository for repository in found if repository.repo_type == "model"]


def damaged(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a snapshot: the cache calls each by the checksum that the Hub gave for it.

    Nothing for any other folder.
    """
    name = recorded_name(folder)
    for path in sorted(folder.rglob("*")) if name is not None else ():
        if not path.is_symlink():
            continue
        blob = Path(os.path.realpath(path))
        if not blob.is_file() or _checksum(blob) != blob.name:
            yield (
                f"{path.relative_to(folder).as_posix()} is damaged: it is not what the Hub gave; "
                f"'mmgen models remove {name}', then pull it again"
            )


def _checksum(blob: Path) -> str:
    """The sha256 of a large file, and of a small one what git calls it. A name that is neither is taken at its word."""
    if len(blob.name) == 64:
        with blob.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if len(blob.name) == 40:
        content = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
    return blob.name
