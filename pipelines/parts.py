"""The tensors of a network one by one, each read from its file when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmgen.memory import layout, named_tensors


class Parts(Mapping[str, Tensor]):
    """The tensors of a network by their names, each with memory of its own on the CPU.

    network: on the meta device, in the number format and layout in which it draws. held: the same as files and
    constructors have them. check: is called before one is read, and raises ModelError where its file is another one by
    now. cut: makes of a name and what is held by it the network's tensor.
    """

    def __init__(
        self,
        network: nn.Module,
        held: Mapping[str, Tensor],
        check: Callable[[], None],
        cut: Callable[[str, Tensor], Tensor] = lambda _name, value: value,
    ) -> None:
        self._like = {name: value.to("meta") for name, value in named_tensors(network).items()}
        self._held, self._check, self._cut, self._layout = held, check, cut, layout(network)

    def __getitem__(self, name: str) -> Tensor:
        self._check()
        like, value = self._like[name], self._cut(name, self._held[name])
        last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
        # by the same call as in `place`: the layout of kernels of one pixel is not of one kind, and kernels look at it
        value = value.to(like.dtype, memory_format=self._layout if last else torch.preserve_format)
        return value if value.untyped_storage().resizable() else value.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)


def stored(
    places: Mapping[str, tuple[Path, str]], made: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """Tensors of safetensors files, each read when it is asked for, and gone with what is made of it.

    places: what each is called -> its file, and what that calls it. made: others, which are there.
    """
    from accelerate.utils import OffloadedWeightsLoader

    found: Mapping[str, Tensor] = OffloadedWeightsLoader(
        state_dict=dict(made or {}),
        index={
            name: {"safetensors_file": str(file), "weight_name": key} for name, (file, key) in places.items()
        },
    )
    return found


def computed(network: nn.Module) -> dict[str, Tensor]:
    """What the constructor of a network has computed, and no file holds."""
    names = network.state_dict().keys()
    return {name: value for name, value in network.named_buffers() if name not in names}
