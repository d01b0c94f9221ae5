"""Models of transformers from folders of anybody: they get a configuration and tensors, and nothing else of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmgen.component import Header, numbers, read_json, refuse_foreign, shown, shown_names, weight_files
from mmgen.errors import ModelError, told
from mmgen.tensors import Held, check_fit

MAX_LAYERS = 1000
MAX_WIDTH = 2**24
# In published files, and not needed: the other half, heads of the pre-training, and indices that are computed.
SPARE_TENSORS = (
    "pooler.", "cls.", "position_ids", "vision_model.", "visual_projection.", "logit_scale", "decoder.", "lm_head."
)  # fmt: skip

OLD_ROPE = ("rope_theta", "rope_scaling")  # what files older than transformers 5 call rope_parameters


def read_config(folder: Path, types: Collection[str]) -> dict[str, Any]:
    """The config.json of a folder. types: which model_type it may say.

    Raises ModelError for another one, for code or files that it names, and for numbers that cannot be meant.
    """
    name = f"{folder.name}/config.json"
    config = read_json(folder / "config.json")
    refuse_foreign(config, name)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in types:
        raise ModelError(f"{name} is of type {shown(kind)}: mmgen knows {', '.join(types)}")
    for key, value in numbers(config):
        most = MAX_LAYERS if "layers" in key else MAX_WIDTH
        if isinstance(value, int) and value > most and "position" not in key:
            raise ModelError(f"{name}: {key} is {shown(value)}, and at most {most:,} can be meant")
    return config


def _built(
    name: str,
    headers: Collection[Header],
    values: Mapping[str, Any],
    model_class: Any,
    options: Mapping[str, Any],
) -> Any:
    """A model on the meta device. Raises ModelError where its headers say other shapes, or far fewer parameters."""
    held = {key: Held.by(key, entry) for header in headers for key, entry in header.items()}
    with _told(name):
        config = _known(values, model_class.config_class)
        with torch.device("meta"):
            model = model_class(config, **options)
    _check_outline(name, model, held)
    return model


def read_model(
    folder: Path,
    values: Mapping[str, Any],
    model_class: Any,
    *,
    dtype: torch.dtype,
    options: Mapping[str, Any] | None = None,
    spare: Collection[str] = SPARE_TENSORS,
    outlined: bool = False,
) -> Any:
    """A model with its weights; nothing is fetched.

    values: as `read_config` gives them. options: of its constructor. spare: parts of the names of tensors that may be
    left over. outlined: on the meta device instead, and no tensor is read.
    Raises ModelError if the weights cannot be read, and for tensors too few, too many, or of other shapes than the
    configuration says.
    """
    files = weight_files(folder)
    config = _built(folder.name, files.values(), values, model_class, options or {}).config
    with _told(folder.name):
        # not the folder, of which transformers would read more than has been looked at
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict={name: value for file in files for name, value in load_file(file).items()},
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            device_map={"": "meta"} if outlined else None,
            **(options or {}),
        )
    _check_loaded(folder.name, info, spare)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bar and its load reports."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What transformers cannot read of a folder as a ModelError, and nothing else of what it says."""
    with quiet():
        try:
            yield
        # transformers has no error of its own, and a wrong folder raises anything from KeyError to SafetensorError
        except Exception as error:  # noqa: BLE001
            raise ModelError(f"{name} cannot be read: {told(error)}") from None


def _known(values: Mapping[str, Any], config_class: Any) -> Any:
    """The configuration of a model, from what its class, and those of its parts, have by themselves.

    Others would be taken too, and some of them name kernels to be fetched and run, or files to be read.
    """
    values = values.get(config_class.base_config_key, values)
    plain = config_class()
    known = plain.to_dict()
    if "rope_parameters" in known:
        known |= dict.fromkeys(OLD_ROPE)
    parts = {name: _known(values, part) for name, part in plain.sub_configs.items()}
    return config_class(**{name: value for name, value in values.items() if name in known} | parts)


def _check_outline(name: str, model: Any, held: Mapping[str, Held]) -> None:
    """Raise ModelError, before a tensor is read, where the weights are not those of a model on the meta device.

    Names that differ are told apart by transformers, which knows old ones.
    """
    named = {key: value for key, value in model.state_dict().items() if key in held}
    check_fit(name, {key: held[key] for key in named}, named)
    needed = sum(p.numel() for p in model.parameters())
    there = sum(math.prod(one.shape) for one in held.values())
    # twice, for what is missing is named later, and tied parameters may be counted twice
    if needed > 2 * there:
        raise ModelError(f"{name}/config.json is of {needed:,} parameters, and the weights hold {there:,}")


def _check_loaded(name: str, info: Mapping[str, Any], spare: Collection[str]) -> None:
    """transformers draws missing tensors at random and says so in a log line: here it is an error."""
    left = [key for key in info["unexpected_keys"] if not any(part in key for part in spare)]
    wrong = {
        "lack": info["missing_keys"],
        "have the wrong shape for": info["mismatched_keys"],
        "hold also": left,
    }
    for what, keys in wrong.items():
        if keys:
            names = shown_names(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            raise ModelError(f"{name}: the weights {what} {names}: they do not fit config.json")
