"""Models of transformers from folders of anybody: they get a configuration and tensors, and nothing else of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmgen.component import numbers, read_json, refuse_foreign, shown, shown_names, weight_files
from mmgen.errors import ModelError, told

MAX_LAYERS = 1000
MAX_WIDTH = 2**24
# In published files, and not needed: the other half, heads of the pre-training, and indices that are computed.
SPARE_TENSORS = (
    "pooler.", "cls.", "position_ids", "vision_model.", "visual_projection.", "logit_scale", "decoder.", "lm_head."
)  # fmt: skip


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


def outline(
    folder: Path, values: Mapping[str, Any], model_class: Any, options: Mapping[str, Any] | None = None
) -> Any:
    """A model on the meta device. values: as `read_config` gives them. options: of its constructor.

    Raises ModelError where the headers of its weights say other shapes, or far fewer parameters.
    """
    headers = weight_files(folder)
    held = {name: entry["shape"] for header in headers.values() for name, entry in header.items()}
    with _told(folder.name):
        config = _known(values, model_class.config_class)
        with torch.device("meta"):
            model = model_class(config, **(options or {}))
    _check_shapes(folder.name, model, held)
    return model


def read_model(
    folder: Path,
    values: Mapping[str, Any],
    model_class: Any,
    *,
    dtype: torch.dtype,
    options: Mapping[str, Any] | None = None,
    spare: Collection[str] = SPARE_TENSORS,
) -> Any:
    """The model of `outline` with its weights; nothing is fetched.

    spare: parts of the names of tensors that may be left over.
    Raises ModelError where `outline` does, if the weights cannot be read, and for tensors too few or too many.
    """
    config, files = outline(folder, values, model_class, options).config, weight_files(folder)
    with _told(folder.name):
        # not the folder, of which transformers would read more than has been looked at
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict={name: value for file in files for name, value in load_file(file).items()},
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
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
    """The configuration of a model, from what its class has by itself.

    Others would be taken too, and some of them name kernels to be fetched and run, or files to be read.
    """
    values = values.get(config_class.base_config_key, values)
    known = config_class().to_dict()
    return config_class(**{name: value for name, value in values.items() if name in known})


def _check_shapes(name: str, model: Any, held: Mapping[str, list[int]]) -> None:
    """Raise ModelError, before a tensor is read, where the weights are not those of a model on the meta device.

    held: the shapes of their tensors. Names that differ are told apart by transformers, which knows old ones.
    """
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    if wrong := [key for key in shapes if key in held and held[key] != shapes[key]]:
        raise ModelError(
            f"{name}: the weights have another shape than config.json says: {shown_names(wrong)}"
        )
    needed, there = sum(p.numel() for p in model.parameters()), sum(map(math.prod, held.values()))
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
