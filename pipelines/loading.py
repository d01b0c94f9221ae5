"""`mmgen.load`: from a name or a folder to a model that draws, complete and checked, or a clear error."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from mmgen import __version__
from mmgen.component import (
    Header,
    at_most,
    numbers,
    read_any_json,
    read_json,
    refuse_foreign,
    stamp,
    weight_files,
)
from mmgen.errors import ModelError, UsageError, told
from mmgen.memory import Files, Residency, choose_device, choose_dtype, place
from mmgen.models.multilingual import read_multilingual
from mmgen.models.pretrained import quiet
from mmgen.models.text import TextEncoder
from mmgen.models.vision import read_vision
from mmgen.pipelines import lora
from mmgen.pipelines.cascade import FROM_A_PICTURE, FROM_PROMPTS, Cascade
from mmgen.pipelines.checkpoint import (
    INDEX,
    MANIFEST,
    VOCABULARY,
    manifest_text,
    write_manifest,
)
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.parts import Parts, computed, stored
from mmgen.pipelines.single_file import file_parts, read_part
from mmgen.pipelines.sources import Checkpoint, Source, kind_of, locate
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.tensors import Held, check_fit, check_numbers, read_tensors

GPU_BATCH = 16
IMAGE_ENCODER = "CLIPVisionModelWithProjection"  # of transformers
MULTILINGUAL = "MultilingualCLIP"  # of diffusers, in the manner of transformers
MAX_CONFIG_NUMBER = 16_384  # of widths, depths and sides: a wrong file must not build a billion layers
MAX_COMPUTED = 2**28  # bytes, of what a constructor computes besides weights: a mask of 77 tokens has 26 kB
# What configurations that are still published say, and nothing has ever used.
OLD_FIELDS = {"QwenImageTransformer2DModel": ("pooled_projection_dim",)}
# What older versions of diffusers called the projections of an attention, in files that are still published.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Change = tuple[lora.LoraFile, float]
"""A LoRA and its weight."""


def load(
    name_or_folder: str | Path = "storybook", device: str | None = None, dtype: str | None = None
) -> TextToImage:
    """A model that draws, in memory as a whole.

    name_or_folder: a bundled model, a checkpoint folder, or owner/name[@revision] of the Hugging Face Hub, which is
    fetched, after its size is said, if it is not in the cache. device: cpu, cuda, cuda:N, mps; the best if None.
    dtype: float32, float16 or bfloat16; the fastest that serves if None.
    Raises ModelError for a folder that is no sound checkpoint, before weights are read where that is possible;
    MachineError if it cannot be fetched; UsageError for a device or dtype that is not there. For a folder nothing is
    fetched, and no code of a model is run.
    """
    return _model(name_or_folder, device, dtype, resident=True)


def open_model(
    name_or_folder: str | Path = "storybook",
    device: str | None = None,
    dtype: str | None = None,
    memory: int | None = None,
) -> TextToImage:
    """The model that `load` gives, but its weights are in memory for the turn of their stage only, on a CPU too.

    They are read anew for every turn: a single picture takes longer, and many that go stage by stage need no more
    memory than the largest stage. On a CPU, stages for which `memory` (bytes) is not enough, as `Residency` says, are
    streamed from their files, layer by layer and at every step again; not networks that a LoRA changes.
    Every file is checked against the manifest now, and the headers of weights against their configuration; one that
    has changed by the time it is read is a ModelError then, as are NaN and infinity.
    """
    return _model(name_or_folder, device, dtype, memory, resident=False)


def _model(
    name_or_folder: str | Path,
    device: str | None,
    dtype: str | None,
    memory: int | None = None,
    *,
    resident: bool,
) -> TextToImage:
    on = choose_device(device)
    number = choose_dtype(dtype, on)
    checkpoint = locate(name_or_folder, check=True)
    checkpoint.loaded_forms()  # so that what joins the parts finds sizes that are numbers
    changes = [(lora.look(Path(one.file)), one.weight) for one in checkpoint.loras]
    if changes:  # before the weights that they change are read
        outlines = {
            name: _network(_outline(source, part, number)) for name, source, part in checkpoint.components()
        }
        for file, _ in changes:
            lora.check(file, outlines)
    build = _read if resident else _outline
    parts: dict[str, Any] = {}
    read: dict[str, Files] = {}
    for name, source, part in checkpoint.components():
        parts[name] = build(source, part, number)
        if not resident:
            read[name] = _files(source, part, number, _of(name, changes), _network(parts[name]))
    networks = {name: _network(part) for name, part in parts.items()}
    for name, network in networks.items():
        if resident:
            _changed(network, _of(name, changes), name)
    residency = Residency(
        {network: name for name, network in networks.items()},
        on,
        None if resident else {networks[name]: files for name, files in read.items()},
        memory,
    )
    return TextToImage(
        Cascade(
            checkpoint.stages(parts), residency, begins=FROM_PROMPTS if checkpoint.draws else FROM_A_PICTURE
        ),
        name=checkpoint.name,
        digest=checkpoint.digest(),
        device=on,
        words=read_words(checkpoint.base.folder),
        batch_size=GPU_BATCH if on.type == "cuda" else 1,
        save=lambda out: _copy(checkpoint, out),
        file_bytes={networks[name]: files.bytes for name, files in read.items()},
    )


def _of(name: str, changes: Sequence[Change]) -> list[Change]:
    """Those that change this component."""
    return [(file, weight) for file, weight in changes if name in file.parts]


def _changed(network: torch.nn.Module, changes: Sequence[Change], name: str) -> torch.nn.Module:
    for file, weight in changes:
        lora.fuse(network, file, name, weight)
    return network


def _network(part: Any) -> Any:
    """The module of a component."""
    return part.model if isinstance(part, TextEncoder) else part


def _read(source: Source, name: str, dtype: torch.dtype) -> Any:
    """A component of a folder or of a file."""
    if source.file is not None:
        return read_part(source.file, name, dtype)
    return read_component(source.folder, name, source.index, dtype)


def _outline(source: Source, name: str, dtype: torch.dtype) -> Any:
    """What `_read` gives, with the network on the meta device: no tensor is read."""
    if source.file is not None:
        return read_part(source.file, name, dtype, outlined=True)
    return _component(source.folder, name, source.index, dtype, outlined=True)


def _files(
    source: Source, name: str, dtype: torch.dtype, changes: Sequence[Change], network: torch.nn.Module
) -> Files:
    """How to read the network of a component whose files have just been checked. network: its outline."""
    checked = _stamps(source, name)

    def check() -> None:
        if _stamps(source, name) != checked:
            raise ModelError(
                f"{name} of checkpoint {source.folder.name} has changed since it was checked: start again"
            )

    def whole() -> torch.nn.Module:
        check()
        return _changed(_network(_read(source, name, dtype)), changes, name)

    def parts() -> Parts:
        check()
        if source.file is not None:
            return file_parts(source.file, name, network, check)
        return folder_parts(source.folder / name, network, check)

    there = source.file is not None or isinstance(network, ModelMixin)
    there = there or stored_names(source.folder / name, network) is not None
    return Files(source.describe(name)["bytes"], whole, parts if there and not changes else None)


def folder_parts(folder: Path, network: torch.nn.Module, check: Callable[[], None]) -> Parts:
    """The tensors of a network one by one. network, check: as `Parts` takes them; it is one with `stored_names`.

    Raises ModelError for numbers that can draw nothing.
    """
    names, places = stored_names(folder, network), dict[str, tuple[Path, str]]()
    assert names is not None
    for file, header in weight_files(folder).items():
        own = {name: (file, key) for name, key in names.items() if key in header}
        if own:  # a shard may hold spare tensors alone
            check_numbers(f"{folder.name}/{file.name}", stored(own))
        places |= own
    return Parts(network, stored(places, _computed(folder, network)), check)


def stored_names(folder: Path, network: torch.nn.Module) -> dict[str, str] | None:
    """What files call each tensor that a network has in them; None where that cannot be told for one.

    Of transformers, older files may put words before a name, and what is one tensor may have two names.
    """
    keys = [key for header in weight_files(folder).values() for key in header]
    if isinstance(network, ModelMixin):
        own = network.state_dict().keys()
        return {_current_name(key, own): key for key in keys}
    found, of_tensor = dict[str, str](), dict[torch.Tensor, str]()
    for name, value in network.state_dict(keep_vars=True).items():
        fitting = [key for key in keys if key == name] or [key for key in keys if key.endswith("." + name)]
        if len(fitting) == 1:
            found[name] = of_tensor[value] = fitting[0]
    for name, value in network.state_dict(keep_vars=True).items():
        if value not in of_tensor:
            return None
        found[name] = of_tensor[value]
    return found


def _computed(folder: Path, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that no file holds, as the constructor of a network gives them."""
    if isinstance(network, ModelMixin):
        built = build_network(folder, type(network))
        _compute_buffers(folder.name, built, type(network))
        return computed(built)
    from accelerate import init_empty_weights

    with quiet(), init_empty_weights(include_buffers=False):
        return computed(type(network)(network.config))


def _stamps(source: Source, name: str) -> dict[str, tuple[int, int, int]]:
    """What tells that a file is another one, without reading it."""
    paths = [source.file.path] if source.file else list((source.folder / name).glob("[!.]*"))
    return {path.name: stamp(path) for path in paths if path.is_file()}


def write_checkpoint(
    folder: Path, *, name: str, family: str, options: Mapping[str, Any], words: frozenset[str]
) -> None:
    """Complete a folder that holds a family's components: index, vocabulary, manifest.

    options: what the family's join reads from the index. Raises ModelError if a component is missing or of a class
    that the family does not take.
    """
    index = {
        "_class_name": "TextToImage",
        "_mmgen_version": __version__,
        "name": name,
        "family": family,
        **options,
    }
    kinds = FAMILIES[family].components
    index |= {part: list(kind_of(folder / part, kinds[part])) for part in kinds}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    (folder / VOCABULARY).write_text(json.dumps(sorted(words), indent=0) + "\n", "utf-8")
    write_manifest(folder)


def read_component(folder: Path, name: str, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """One component of a checkpoint as its index names it, on the CPU and ready to draw.

    Raises ModelError if it is not sound.
    """
    part = _component(folder, name, index, dtype)
    if index[name][0] == "transformers":
        check_numbers(name, _network(part).state_dict())
    return part


def _component(
    folder: Path, name: str, index: Mapping[str, Any], dtype: torch.dtype, *, outlined: bool = False
) -> Any:
    """One component of a checkpoint, on the CPU, or on the meta device and without having read a tensor."""
    module, kind = index[name]
    device = torch.device("meta" if outlined else "cpu")
    if kind == IMAGE_ENCODER:
        return place(read_vision(folder / name, dtype, outlined=outlined), device, dtype)
    if kind == MULTILINGUAL:
        return read_multilingual(folder / name, folder / "tokenizer", dtype, outlined=outlined)
    if module == "transformers":
        encoder = TextEncoder.load(
            folder / name,
            folder / name.replace("text_encoder", "tokenizer"),
            layer=index.get("text_layer", -1),
            dtype=dtype,
            projected=kind == "CLIPTextModelWithProjection",
            outlined=outlined,
        )
        if (found := type(encoder.model).__name__) != kind:
            raise ModelError(f"{INDEX} says that {name} is {kind}, but its config.json describes a {found}")
        return encoder  # not cast again: transformers keeps what overflows in half precision in float32
    read = build_network if outlined else read_network
    network = read(folder / name, getattr(importlib.import_module(module), kind))
    return place(network, device, _fitting(network, dtype))


def _fitting(network: Any, dtype: torch.dtype) -> torch.dtype:
    """float32 for a network whose configuration says that it overflows in less."""
    return torch.float32 if network.config.get("force_upcast") else dtype


def read_network(folder: Path, network_class: Any) -> Any:
    """A network from its folder, in the file's dtype. Raises ModelError if config and weights are not sound.

    It is built on the meta device, so that a wrong config allocates nothing, then given the file's tensors.
    """
    files = weight_files(folder)
    network = _built(folder, network_class, files.values())
    names = network.state_dict().keys()
    held: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = read_tensors(file, f"{folder.name}/{file.name}")
        held |= {_current_name(key, names): value for key, value in tensors.items()}
    try:
        network.load_state_dict(held, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{folder.name}: the weights do not fit config.json: {told(error)}") from None
    _compute_buffers(folder.name, network, network_class)
    return network


def _compute_buffers(name: str, network: Any, network_class: Any) -> None:
    """Give a network that was built on the meta device what its constructor computes and no file holds."""
    computed = [buffer for buffer in network.buffers() if buffer.is_meta]
    if not computed:
        return
    if (most := sum(buffer.nbytes for buffer in computed)) > MAX_COMPUTED:
        raise ModelError(
            f"{name}/config.json describes a network with tables of {most:,} bytes beside its weights"
        )
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        made = network_class.from_config(network.config)
    for own, other in zip(network.modules(), made.modules(), strict=True):
        for key, buffer in own._buffers.items():
            if buffer is not None and buffer.is_meta:
                own._buffers[key] = other._buffers[key]


def build_network(folder: Path, network_class: Any) -> Any:
    """A network as the config.json of its folder says it, on the meta device.

    Raises ModelError if it says none, or if the headers of the weights have other tensors than that network.
    """
    return _built(folder, network_class, weight_files(folder).values())


def _built(folder: Path, network_class: Any, headers: Collection[Header]) -> Any:
    values = read_json(folder / "config.json")
    refuse_foreign(values, f"{folder.name}/config.json")
    old = OLD_FIELDS.get(network_class.__name__, ())
    config = {k: v for k, v in values.items() if not k.startswith("_") and k not in old}
    try:
        _check_numbers(config)
        # twice, because a constructor may replace what it has made
        with torch.device("meta"), at_most(2 * sum(map(len, headers))):
            network = network_class(**config)
    # some constructors say by assert what they cannot be
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise ModelError(
            f"{folder.name}/config.json does not describe a {network_class.__name__}: {told(error)}"
        ) from None
    needed = network.state_dict()
    held = {
        _current_name(key, needed): Held.by(key, entry) for header in headers for key, entry in header.items()
    }
    check_fit(folder.name, held, needed)
    if len(held) < sum(map(len, headers)):  # which of them would be read depends on how
        raise ModelError(
            f"{folder.name}: the weights hold a tensor under two names: get another version of it"
        )
    return network


def _check_numbers(config: Mapping[str, Any]) -> None:
    for name, number in numbers(config):
        if not abs(number) <= MAX_CONFIG_NUMBER:  # NaN is none of both
            most = f"{MAX_CONFIG_NUMBER:,}"
            raise ValueError(f"{name} is {number}: numbers from -{most} to {most} can be meant")


def _current_name(key: str, names: Collection[str]) -> str:
    """What a network calls a tensor of its file, which may be older than the names of today."""
    path, _, leaf = key.rpartition(".")
    path, _, layer = path.rpartition(".")
    current = f"{path}.{OLD_NAMES.get(layer, layer)}.{leaf}"
    return current if key not in names and current in names else key


def read_words(folder: Path) -> frozenset[str] | None:
    """All that the model of a checkpoint knows, None if that is not said. Raises ModelError if it cannot be read."""
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    try:
        return frozenset(str(word) for word in read_any_json(path))
    except TypeError as error:
        raise ModelError(f"{folder.name}/{VOCABULARY} cannot be read: {error}") from None


def _copy(checkpoint: Checkpoint, out: Path) -> None:
    """The same checkpoint elsewhere; what is loaded is never changed, so its files are the model."""
    if checkpoint.is_joined or checkpoint.base.file:
        raise UsageError(f"{checkpoint.name} is no single folder: copy what it was loaded from")
    folder = checkpoint.base.folder
    files = checkpoint.base.files()
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: save into a new folder")
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, out / path)
    # of what was loaded, so that a copy that went wrong does not pass for sound
    (out / MANIFEST).write_text(manifest_text(files), "utf-8")
