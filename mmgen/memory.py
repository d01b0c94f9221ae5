"""Devices, number formats and sizes: the only file that moves a module between devices."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mmgen.errors import UsageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Of what is free on a device, for weights that stay there. The rest is for what stages compute, which grows with the
# pictures and not with the weights: rather too much, for moving weights costs seconds and running out costs the run.
WEIGHTS_SHARE = 0.5
# Of the same, for the weights of a stage that are alone there for its turn: streaming them takes far longer.
TURN_SHARE = 0.75
# What is streamed, and nearly all bytes of every network: others have weights that are used past their own call.
LAYERS = (nn.Linear, nn.Conv2d)
# How the allocators of a CPU and of MPS say that there is no more, in torch 2.7 to 2.13.
OUT_OF_MEMORY = ("can't allocate memory", "MPS backend out of memory")
# Bytes from which a tensor gets memory of its own, which goes with it. By itself glibc raises this up to 32 MB, and the
# gaps between smaller tensors may take more than the tensors. Source: mallopt(3), M_MMAP_THRESHOLD.
LARGE = 2**20
M_MMAP_THRESHOLD = -3

Out = TypeVar("Out")
Outcome = TypeVar("Outcome")
Place = Literal["resident", "turn", "streamed"]
"""Where weights are: on the device always, for their stage's turn, or each layer's while it computes."""
Tensors = list[tuple[dict[str, Any], dict[str, Any]]]
"""The dictionaries of a network that hold its tensors, and what is in each."""


def choose_device(name: str | None = None) -> torch.device:
    """The device asked for, or the best there is: CUDA, MPS, CPU. Raises UsageError if it is not there."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"no device {name!r}: choose cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    there = {"cpu": True, "cuda": count > (device.index or 0), "mps": torch.backends.mps.is_available()}
    if not there[device.type]:
        raise UsageError(f"this machine has no {name}: leave --device out, or choose cpu")
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number format asked for, or the fastest that is exact enough: bfloat16 where the processor has it."""
    if name is not None:
        if name not in DTYPES:
            raise UsageError(f"no dtype {name!r}: choose one of {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # builds without oneDNN, as on Apple's processors, have no such operator to ask
    if (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return torch.bfloat16
    return torch.float32


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move and cast for inference, convolutions channels last."""
    module = module.eval().requires_grad_(False)
    # not Module.to(dtype) of diffusers' mixin, which prints; one pass does all three
    nn.Module.to(module, device=device, dtype=dtype, memory_format=layout(module))  # type: ignore[call-overload]
    for part in module.modules() if device.type == "cpu" else ():
        for value in (*part._parameters.values(), *part._buffers.values()):
            # a part of the mapped file, which would stay in memory as a whole beside what was made of its other parts
            if value is not None and not value.untyped_storage().resizable():
                value.data = value.data.clone()
    return module


def layout(module: nn.Module) -> torch.memory_format:
    """Of the convolutions of a network that is placed: channels last, or those of videos as their files have them."""
    # these have five sides, and torch has no such order for both kinds
    videos = any(value.ndim > 4 for value in module.parameters())
    return torch.preserve_format if videos else torch.channels_last


def free_bytes(device: torch.device) -> int:
    """What tensors may still take on a device, with what this process has reserved there and not used.

    Of a CPU: what other programs and a container's limit leave; 0 where the system is not Linux and does not say.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    told = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", told.read_text("ascii")) if told.exists() else None
    return int(min(1024 * int(found[1]), granted())) if found else 0


def granted(group: Path = Path("/sys/fs/cgroup")) -> float:
    """What the control group of this process has left, such as a container's; infinite where nothing limits it.

    What its files take of memory without need counts as left. Source: Linux, admin-guide/cgroup-v2, "Memory".
    """
    try:
        limit, used = ((group / f"memory.{name}").read_text("ascii").strip() for name in ("max", "current"))
        unneeded = re.search(
            r"^inactive_file (\d+)$", (group / "memory.stat").read_text("ascii"), re.MULTILINE
        )
    except OSError:
        return math.inf
    if limit == "max" or unneeded is None:
        return math.inf
    return max(0, int(limit) - int(used) + int(unneeded[1]))


@dataclass(frozen=True)
class Room:
    """What a run may use of its device's memory: weights, unfinished pictures, and what stages compute.

    bytes: all together. asked: by a person, who is kept to it; else it is what was free when the run began, and no
    picture may depend on it.
    """

    bytes: int
    asked: bool = False


def room(device: torch.device, asked: int | None = None) -> Room | None:
    """The bytes that a person asks for, else what is free; None where nobody says."""
    if asked is not None:
        return Room(asked, asked=True)
    free = free_bytes(device)
    return Room(free) if free else None


def keep_little() -> None:
    """Let this process give memory back at once: pictures of 1024 px take a fifth longer on a CPU."""
    _glibc("mallopt", M_MMAP_THRESHOLD, LARGE)


def stays(weights: int, device: torch.device, memory: int | None = None) -> bool:
    """Whether networks of so many bytes stay on a device together, as `Residency` says. memory: as there."""
    return weights <= WEIGHTS_SHARE * _limit(device, memory)


def _limit(device: torch.device, memory: int | None) -> float:
    """Bytes that a run may take of a device: what is asked for, else what is free; of a CPU as many as it needs."""
    if memory is not None:
        return memory
    return math.inf if device.type == "cpu" else free_bytes(device)


@dataclass(frozen=True)
class Files:
    """How a network is read that is read anew for every turn.

    bytes: of the files. whole: with all its tensors, on the CPU. parts: its tensors by their names, each read when it
    is asked for and then as `whole` has it; None: they are in no file as they are drawn with.
    """

    bytes: int
    whole: Callable[[], nn.Module]
    parts: Callable[[], Mapping[str, Tensor]] | None = None


class Residency:
    """Keeps the networks of a model on the device if they fit there together, else only those whose turn it is.

    networks: all of them, frozen and on the CPU. They fit if their parameters and buffers take at most WEIGHTS_SHARE of
    `free_bytes` now. Nothing else is counted: activations, attention and a library's workspace depend on the batch, the
    pictures' side and the kernels, and are not known before a run. Networks of a stage that take more than TURN_SHARE
    for their turn are streamed: of each layer, the weights are there while it computes (`stream`). Where the device is
    the CPU, nothing is ever moved.
    read: how each is read from its files; then no network stays, on a CPU either: what they hold now is dropped, and
    they are read anew for every turn. Of a CPU, files count that are read into it, and what has no `Files.parts` is
    not streamed. memory: bytes that a person allows; None: what is free, and of a CPU all.
    A context, at whose end the networks of a turn are moved out, however it comes.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        device: torch.device,
        read: Mapping[nn.Module, Files] | None = None,
        memory: int | None = None,
    ) -> None:
        self._device, self._read, everything = device, read, list(networks)
        self._limit = _limit(device, memory)
        # of networks that are moved in for a turn: their parameters on the CPU, none if they are read again
        self._homes: dict[nn.Module, list[Tensor]] = {}
        self._streamed: dict[nn.Module, Tensors] = {}  # of those that are streamed: what they held before
        self.fits = read is None
        if read is not None:
            for network in everything:
                nn.Module.to(network, "meta")
        elif device.type != "cpu":
            self.fits = sum(map(weight_bytes, everything)) <= WEIGHTS_SHARE * self._limit
            for network in everything if self.fits else ():
                nn.Module.to(network, device)

    def place(self, networks: Sequence[nn.Module], memory: int | None = None) -> Place:
        """Where the weights of these networks are while their stage runs. memory: as if a person had allowed that."""
        if self.fits:
            return "resident"
        return "streamed" if self._to_stream(networks, memory) else "turn"

    def held(self, networks: Sequence[nn.Module], memory: int | None = None) -> int:
        """Bytes of their weights that are on the device at once, at most, while their stage runs. memory: as above."""
        streamed = self._to_stream(networks, memory)
        return sum(streamed_bytes(one) if one in streamed else weight_bytes(one) for one in networks)

    def _to_stream(self, networks: Sequence[nn.Module], memory: int | None = None) -> set[nn.Module]:
        """Those of a stage's networks that are streamed."""
        limit = self._limit if memory is None else memory
        needed = sum(map(weight_bytes, networks))
        if self._read is not None and self._device.type == "cpu":
            needed += max((self._read[network].bytes for network in networks), default=0)
        if self.fits or needed <= TURN_SHARE * limit:
            return set()
        return {network for network in networks if self._can_stream(network)}

    def _can_stream(self, network: nn.Module) -> bool:
        if self._read is None or self._device.type != "cpu":
            return True  # from the memory of the CPU
        return self._read[network].parts is not None

    def turn(
        self, networks: Sequence[nn.Module], run: Generator[Out, None, Outcome]
    ) -> Generator[Out, None, Outcome]:
        """Pass the values of a generator on, with its networks on the device whenever it works."""
        while True:
            self.hold(networks)  # each time: another run of the same model may have had its turn in between
            try:
                value = next(run)
            except StopIteration as done:
                outcome: Outcome = done.value
                return outcome
            yield value

    @torch.inference_mode(False)  # what is made in that mode could never be changed outside
    def hold(self, networks: Sequence[nn.Module]) -> None:
        """Move all others out, then these in; one that is there stays."""
        if self.fits or set(networks) == self._homes.keys() | self._streamed.keys():
            return
        streamed = self._to_stream(networks)
        for network in [there for there in self._homes if there not in networks or there in streamed]:
            self._leave(network)
            del self._homes[network]  # last, so that an interruption here loses nothing
            _glibc("malloc_trim", 0)  # or what it held would stay with this process
        for network in [there for there in self._streamed if there not in streamed]:
            _unhook([network])
            _put_back(self._streamed[network])
            del self._streamed[network]
        for network in networks:
            if network in streamed and network not in self._streamed:
                self._streamed[network] = _tensors([network])
                stream(network, self._device, self._weights(network))
            elif network not in streamed and network not in self._homes:
                self._enter(network)

    def _leave(self, network: nn.Module) -> None:
        if self._read is not None:
            nn.Module.to(network, "meta")
            return
        # nothing is copied back, because frozen weights are the same as those that were kept
        for parameter, home in zip(network.parameters(), self._homes[network], strict=True):
            parameter.data = home
        nn.Module.to(network, "cpu")  # its buffers

    def _enter(self, network: nn.Module) -> None:
        if self._read is None:
            self._homes[network] = [parameter.data for parameter in network.parameters()]
        else:
            self._homes[network] = []
            _take_over(network, self._read[network].whole())
        nn.Module.to(network, self._device)

    def _weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """What a network is streamed from: its files, or the memory of the CPU."""
        if self._read is not None:
            files = self._read[network]
            if self._device.type == "cpu":
                assert files.parts is not None
                return files.parts()
            _take_over(network, files.whole())
        return named_tensors(network)

    def __enter__(self) -> Residency:
        return self

    def __exit__(self, *_error: object) -> None:
        self.hold(())


def _take_over(network: nn.Module, other: nn.Module) -> None:
    """Give a network the tensors of another one of the same build. Not by state_dict: some buffers are in none."""
    for own, theirs in zip(network.modules(), other.modules(), strict=True):
        own._parameters.update(theirs._parameters)
        own._buffers.update(theirs._buffers)


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a network, each by every name that it has."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def stream(network: nn.Module, device: torch.device, weights: Mapping[str, Tensor]) -> None:
    """Have the weights of every layer on a device while it computes, and all else of a network for good.

    weights: all its tensors by their names; asked for a layer's each time. By the hooks of accelerate, which stand in
    the layers until somebody takes them out.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from accelerate.utils import PrefixedDataset, set_module_tensor_to_device

    layers, there = _layers(network), dict[Tensor, Any]()
    for name, module in network.named_modules():
        before = f"{name}." if name else ""
        if module in layers:
            own = PrefixedDataset(weights, before)
            add_hook_to_module(module, AlignDevicesHook(str(device), offload=True, weights_map=own))
            continue
        for held in (module._parameters, module._buffers):
            for key, value in [(key, value) for key, value in held.items() if value is not None]:
                if value in there:  # one tensor by two names
                    held[key] = there[value]
                    continue
                set_module_tensor_to_device(module, key, str(device), value=weights[before + key])
                there[value] = held[key]


def _layers(network: nn.Module) -> set[nn.Module]:
    """Those whose weights are streamed: not with a tensor that another part has too, nor with the first parameter, by
    which libraries tell a network's device."""
    found = {module for module in network.modules() if type(module) in LAYERS}
    stay = {
        value for module in network.modules() if module not in found for value in module._parameters.values()
    }
    stay.add(next(network.parameters(), None))
    return {layer for layer in found if stay.isdisjoint(layer.parameters())}


def streamed_bytes(network: nn.Module) -> int:
    """What a network that is streamed takes on a device at most: the largest layer as it is read and as it computes."""
    layers = _layers(network)
    moving = {value for layer in layers for value in layer.parameters()}
    most = max((sum(value.nbytes for value in layer.parameters()) for layer in layers), default=0)
    return weight_bytes(network) - sum(value.nbytes for value in moving) + 2 * most


def _unhook(networks: Iterable[nn.Module]) -> list[tuple[nn.Module, Any]]:
    """Take the hooks of accelerate out of networks, also those that an interruption left half-way. Returns where each
    was."""
    # the first that accelerate puts into a layer, and the last that it takes out
    hooked = [
        module for network in networks for module in network.modules() if hasattr(module, "_old_forward")
    ]
    found = [(module, module._hf_hook) for module in hooked if hasattr(module, "_hf_hook")]
    if hooked:
        from accelerate.hooks import remove_hook_from_module

        for module in hooked:
            remove_hook_from_module(module)
    return found


def _hook(hooked: list[tuple[nn.Module, Any]]) -> None:
    """The way back of `_unhook`."""
    if hooked:
        from accelerate.hooks import add_hook_to_module

        for module, hook in hooked:
            add_hook_to_module(module, hook)


def _tensors(networks: Iterable[nn.Module]) -> Tensors:
    return [
        (held, dict(held))
        for network in networks
        for module in network.modules()
        for held in (module._parameters, module._buffers)
    ]


def _put_back(tensors: Tensors) -> None:
    for held, before in tensors:
        held.clear()
        held.update(before)


@contextmanager
def on_meta(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks whose tensors have a shape and no numbers while the context lasts; where these were, they stay."""
    hooked = _unhook(networks)
    kept = _tensors(networks)
    try:
        for held, real in kept:
            held.update({name: None if value is None else value.to("meta") for name, value in real.items()})
        yield
    finally:
        _put_back(kept)
        _hook(hooked)


def _glibc(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator, where that is the C library."""
    call = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if call is not None:
        call(*numbers)


def weight_bytes(network: nn.Module) -> int:
    """What a network takes on a device, wherever it is now."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of this machine: torch has no one error for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def release_unused(device: torch.device) -> None:
    """Give back what is held and not used: garbage in circles, and what torch keeps of a device for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Begin `peak_bytes` anew where that is possible: on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Until all that was begun on a device is done; a CPU is never behind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory used so far, 0 where it cannot be told.

    On CUDA by tensors since `reset_peak`, on Linux by this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else 0
