"""Tensors in files of anybody: compared with a network by their headers, then read and looked through.

Torch is imported when the first one is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from mmgen.component import shown
from mmgen.errors import ModelError, told

if TYPE_CHECKING:
    from torch import Tensor

FRACTIONS = ("F16", "BF16", "F32", "F64")  # what headers call the number formats of weights


class Held(NamedTuple):
    """What a header says of a tensor. name: in its file. fractions: whether it holds such, and not whole numbers."""

    name: str
    shape: list[int]
    fractions: bool

    @classmethod
    def by(cls, name: str, entry: Mapping[str, Any]) -> Held:
        """entry: of a `Header`."""
        return cls(name, entry["shape"], entry["dtype"] in FRACTIONS)


def check_fit(
    what: str, held: Mapping[str, Held], needed: Mapping[str, Tensor], to: str = "config.json"
) -> None:
    """Raise ModelError, before a tensor is read, for those that are missing, unknown, or of another shape or kind.

    what: the file or component, for the error. held: by the names of the network. needed: its state, on any device.
    to: what says how it is built, for the error.
    """
    both = [(held[key], needed[key]) for key in sorted(held.keys() & needed.keys())]
    wrong = {
        "lack": [shown(key) for key in sorted(needed.keys() - held.keys())],
        "hold also": sorted(shown(held[key].name) for key in held.keys() - needed.keys()),
        "have another shape for": [
            f"{shown(one.name)} ({one.shape}, not {list(value.shape)})"
            for one, value in both
            if one.shape != list(value.shape)
        ],
        "hold no fractions in": [
            shown(one.name) for one, value in both if value.is_floating_point() and not one.fractions
        ],
    }
    for how, names in wrong.items():
        if names:
            raise ModelError(f"{what}: the weights {how} {', '.join(names[:3])}: they do not fit {to}")


def read_tensors(path: Path, what: str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose header has been checked, all of them if `names` is None.

    what: the file, for the error. Raises ModelError if it cannot be read, and where `check_numbers` does.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{what} cannot be read: {told(error)}") from None
    check_numbers(what, found)
    return found


def check_numbers(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError for weights with NaN or infinity, and where all are zeros. what: of which, for the error."""
    import torch

    zeros = True
    for name, value in tensors.items():
        if not value.numel():
            continue
        if not value.is_floating_point():
            value = value.long()  # not all whole numbers of headers have extremes in torch
        extremes = torch.stack(value.aminmax())  # one pass without a copy, and NaN wherever there is one
        if value.is_floating_point() and not bool(extremes.isfinite().all()):
            raise ModelError(f"{what}: the weights {shown(name)} hold NaN or infinity; they can draw nothing")
        zeros = zeros and not bool(extremes.any())
    if zeros:
        raise ModelError(f"{what} is filled with zeros: its download was cut off, get it again")
