"""Drafts between two stages: in memory up to a budget, beyond it as safetensors on disk."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmgen.conditioning import Conditioning
from mmgen.errors import MachineError
from mmgen.pipelines.stage import Draft
from mmgen.temporary import remove_stale, temporary_name

NESTED = ("text", "negative")
PLAIN = ("image_embed", "negative_embed", "start", "latent", "image")

Kept = int
"""What a draft is taken back by."""


class Drafts:
    """Keeps drafts on the CPU, bit by bit as they were given, and gives each back once.

    most: bytes in memory; what comes in beyond it is written into a hidden folder inside `folder`, which must exist.
    The hidden one is made when it is needed and removed at the end; those of dead processes are removed at the
    beginning. A context. Raises MachineError where the disk cannot be written or read.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._parent, self._most = folder, most
        self._here: dict[Kept, Draft] = {}
        self._bare: dict[Kept, Draft] = {}  # of those on disk: what is no tensor
        self._folder: Path | None = None
        self._count = self._held = 0

    def keep(self, draft: Draft) -> Kept:
        """Put a draft away, which must not be drawn over a picture."""
        assert draft.known is None
        self._count += 1
        kept = self._count
        if self._held + size_of(draft) > self._most:
            self._write(kept, draft)
        else:
            self._here[kept] = map_tensors(draft, lambda _, value: value.cpu())
            self._held += size_of(draft)
        return kept

    def take(self, kept: Kept) -> Draft:
        """Give a draft back, on the CPU and for the only time."""
        if kept not in self._here:
            return self._read(kept)
        draft = self._here.pop(kept)
        self._held -= size_of(draft)
        return draft

    def spill(self) -> bool:
        """Write the tensors that are in memory to disk; whether there were any."""
        large = [kept for kept, draft in self._here.items() if size_of(draft)]
        for kept in large:
            self._write(kept, self._here[kept])
            self._held -= size_of(self._here.pop(kept))
        return bool(large)

    def _write(self, kept: Kept, draft: Draft) -> None:
        tensors: dict[str, Tensor] = {}
        orders: dict[str, str] = {}

        def lay_out(name: str, value: Tensor) -> Tensor:
            # the file knows rows alone, and a convolution may sum up in another order where channels do not come last
            order = sorted(range(value.ndim), key=value.stride, reverse=True)
            tensors[name] = value.cpu().permute(order).clone(memory_format=torch.contiguous_format)
            orders[name] = " ".join(map(str, order))
            return value

        map_tensors(draft, lay_out)
        try:
            if self._folder is None:
                self._folder = self._parent / temporary_name()
                self._folder.mkdir()
            save_file(tensors, self._folder / f"{kept}.safetensors", metadata=orders)
        except (OSError, SafetensorError) as error:
            raise MachineError(
                f"unfinished pictures that memory has no room for cannot be put into {self._parent}: {error}"
            ) from None
        self._bare[kept] = map_tensors(draft, lambda _, value: value.new_empty(0))

    def _read(self, kept: Kept) -> Draft:
        assert self._folder is not None
        path = self._folder / f"{kept}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                orders = file.metadata()

                def read(name: str, _: Tensor) -> Tensor:
                    order = list(map(int, orders[name].split()))
                    value: Tensor = file.get_tensor(
                        name
                    ).clone()  # out of the file, and where tensors usually begin
                    return value.permute([order.index(i) for i in range(len(order))])

                draft = map_tensors(self._bare.pop(kept), read)
            path.unlink()
        except (OSError, SafetensorError) as error:
            raise MachineError(
                f"an unfinished picture that was put into {self._parent} cannot be read again: {error}"
            ) from None
        return draft

    def __enter__(self) -> Drafts:
        remove_stale(self._parent)
        return self

    def __exit__(self, *_error: object) -> None:
        self._here.clear()
        self._bare.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def map_tensors(draft: Draft, change: Callable[[str, Tensor], Tensor]) -> Draft:
    """The draft with every tensor of its texts, NESTED, and of PLAIN changed; change is told its name too."""
    changed: dict[str, Any] = {}
    for name in NESTED:
        told: Conditioning | None = getattr(draft, name)
        if told is not None:
            given = {f.name: getattr(told, f.name) for f in dataclasses.fields(told)}
            changed[name] = Conditioning(
                **{key: change(f"{name}.{key}", value) for key, value in given.items() if value is not None}
            )
    for name in PLAIN:
        if (value := getattr(draft, name)) is not None:
            changed[name] = change(name, value)
    return dataclasses.replace(draft, **changed)


def size_of(draft: Draft) -> int:
    """Bytes of its tensors."""
    sizes: list[int] = []

    def count(_: str, value: Tensor) -> Tensor:
        sizes.append(value.nbytes)
        return value

    map_tensors(draft, count)
    return sum(sizes)


def rows_of(draft: Draft, rows: slice) -> Draft:
    """Some of the pictures of a draft."""
    some = map_tensors(draft, lambda _, value: value[rows])
    return dataclasses.replace(some, prompts=draft.prompts[rows])
