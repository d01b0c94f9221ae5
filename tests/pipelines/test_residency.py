"""Networks that fit stay on the device; others are there for their stage's turn only, however a run ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmgen
from mmgen.errors import NonFiniteError
from mmgen.memory import TURN_SHARE, WEIGHTS_SHARE, Residency, free_bytes, weight_bytes
from mmgen.pipelines.stage import finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.types import StageSettings

PROMPT = "a red cat on the beach"
FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=2)}
CUDA = torch.device("cuda")  # that of a fake: nothing asks whether it is there
TURNS = [["text_encoder"], ["prior", "dual_encoder"], ["decoder"], ["super_res"]]


class FakeDevice:
    """Records every move. Weights that are on it are tensors on the CPU like others, so that all of it can compute.

    free: bytes. full: a network that it has no room for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 0
        self.full: nn.Module | None = None
        self.there: set[nn.Module] = set()
        self.moves: list[tuple[nn.Module, bool]] = []
        self._weights: dict[nn.Module, list[torch.Tensor]] = {}
        original = nn.Module.to

        def to(module: nn.Module, *args: Any, **given: Any) -> nn.Module:
            if given or len(args) != 1 or not isinstance(args[0], str | torch.device):
                return original(module, *args, **given)
            return self._moved(module, torch.device(args[0]).type == "cuda")

        monkeypatch.setattr(nn.Module, "to", to)
        monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: self.free)

    def _moved(self, module: nn.Module, inward: bool) -> nn.Module:
        self.moves.append((module, inward))
        for one in module.modules():
            one._buffers.update({name: buffer.clone() for name, buffer in one._buffers.items()})
        if not inward:
            self.there.discard(module)
            return module
        self.there.add(module)
        weights = self._weights.get(module) or [p.data.clone() for p in module.parameters()]
        for i, (parameter, weight) in enumerate(zip(module.parameters(), weights, strict=True)):
            if module is self.full and i == 1:
                raise torch.OutOfMemoryError("there is no room")
            parameter.data = weight
        return module

    def spoil_elsewhere(self, networks: Sequence[nn.Module]) -> None:
        """From now on these networks draw on this device alone: elsewhere their weights are NaN."""
        for network in networks:
            self._weights[network] = [parameter.data.clone() for parameter in network.parameters()]
            for parameter in network.parameters():
                parameter.data.fill_(torch.nan)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return FakeDevice(monkeypatch)


@pytest.fixture
def load(
    pipe: TextToImage, tiny_folder: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TextToImage]:
    """free bytes -> the tiny model on the fake device, to be called once the device is there.

    Without them just enough are free for every stage's turn.
    """

    def loaded(free: float | None = None) -> TextToImage:
        device.free = int(for_turns(pipe) if free is None else free)
        monkeypatch.setattr("mmgen.pipelines.loading.choose_device", lambda _name: CUDA)
        placed = mmgen.load(tiny_folder, dtype="float32")
        # the clock and given pictures are where the numbers are
        placed.device, placed.batch_size = torch.device("cpu"), 1
        if not placed.cascade.residency.fits:
            device.spoil_elsewhere(list(parts(placed).values()))
        return placed

    return loaded


def parts(pipe: TextToImage) -> dict[str, nn.Module]:
    """Every network of a model by its component's name."""
    stages: Any = {stage.name: stage for stage in pipe.cascade.stages}
    return {
        "text_encoder": stages["text"].encoder.model,
        "prior": stages["prior"].network,
        "dual_encoder": stages["prior"].dual,
        "decoder": stages["decoder"].network,
        "super_res": stages["super-res-64"].network,
    }


def moves(pipe: TextToImage, device: FakeDevice) -> list[tuple[str, bool]]:
    """(component, whether it was moved in), in order, since the last time."""
    names = {network: name for name, network in parts(pipe).items()}
    done = [(names[network], inward) for network, inward in device.moves]
    device.moves.clear()
    return done


def in_and_out(turns: Sequence[Sequence[str]]) -> list[tuple[str, bool]]:
    return [(name, inward) for turn in turns for inward in (True, False) for name in turn]


def places(pipe: TextToImage) -> list[int]:
    """Where every weight lies."""
    return [p.data_ptr() for network in parts(pipe).values() for p in network.parameters()]


def same(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> bool:
    """But for the last bits: on a CPU, weights that lie elsewhere in memory may be summed up in another order."""
    pairs = [[np.asarray(image, int) for image in pair] for pair in zip(one, other, strict=True)]
    return len(pairs) > 0 and all(np.abs(a - b).max() <= 2 for a, b in pairs)


def draw(pipe: TextToImage, size: int = 64, **given: Any) -> Any:
    return pipe(PROMPT, seeds=[1], size=size, stages=FAST, **given)


def needed(pipe: TextToImage) -> float:
    """Free bytes with which all networks just fit."""
    tensors = [t for part in parts(pipe).values() for t in (*part.parameters(), *part.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors) / WEIGHTS_SHARE


def for_turns(pipe: TextToImage) -> float:
    """Free bytes with which the networks of every stage just fit for its turn."""
    return math.ceil(
        max(sum(map(weight_bytes, stage.networks)) for stage in pipe.cascade.stages) / TURN_SHARE
    )


def test_networks_that_fit_are_moved_once(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded = load(needed(pipe))
    assert loaded.cascade.residency.fits
    assert sorted(moves(loaded, device)) == sorted((name, True) for name in parts(loaded))
    assert same(draw(loaded), draw(pipe))
    assert moves(loaded, device) == []
    assert device.there == set(parts(loaded).values())


def test_one_byte_less_and_nothing_stays(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded = load(needed(pipe) - 1)
    assert not loaded.cascade.residency.fits
    assert moves(loaded, device) == []


def test_each_stage_has_the_device_for_itself(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded, seen = load(), []
    homes, stages = places(loaded), {stage.name: stage for stage in loaded.cascade.stages}

    def look(_pipe: Any, _index: int, _t: float, given: dict[str, Any]) -> None:
        seen.append(given["stage"])
        assert device.there == set(stages[given["stage"]].networks)

    drawn = draw(loaded, 256, callback_on_step_end=look)
    # the super-resolution network stays for its second stage
    assert {"super-res-64", "super-res-256"} <= set(seen)
    assert moves(loaded, device) == in_and_out(TURNS)
    assert same(drawn, draw(pipe, 256))
    assert places(loaded) == homes


def test_enlarging_moves_one_network(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded, (image,) = load(), draw(pipe, 16)
    enlarged = loaded.upscale(image, seed=3)
    assert moves(loaded, device) == in_and_out([["super_res"]])
    assert same(enlarged, pipe.upscale(image, seed=3))


def test_two_runs_may_take_turns(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded = load()
    first, second = (loaded.stream(PROMPT, seeds=[seed], size=64, stages=FAST) for seed in (1, 2))
    for _ in range(5):  # through the prior into the decoder, while the other has not begun
        next(first)
    next(second)
    drawn = [finish(first), finish(second)]  # type: ignore[arg-type]
    assert device.there == set()
    for seed, one in zip((1, 2), drawn, strict=True):
        assert same(one, pipe(PROMPT, seeds=[seed], size=64, stages=FAST))


def fail_in_a_view(pipe: TextToImage) -> None:
    def fail(_pipe: Any, _index: int, _t: float, given: dict[str, Any]) -> None:
        if given["stage"] == "decoder":
            raise RuntimeError("the view fails")

    draw(pipe, callback_on_step_end=fail)


def interrupt(pipe: TextToImage) -> None:
    def stop(_pipe: Any, _index: int, _t: float, given: dict[str, Any]) -> None:
        if given["stage"] == "super-res-64":
            raise KeyboardInterrupt

    draw(pipe, callback_on_step_end=stop)


def fail_in_a_network(pipe: TextToImage) -> None:
    decoder: Any = parts(pipe)["decoder"]
    decoder.register_forward_hook(lambda _module, _args, out: out * torch.nan)
    draw(pipe)


def fail_in_an_enlargement(pipe: TextToImage) -> None:
    parts(pipe)["super_res"].register_forward_hook(lambda _module, _args, out: out * torch.nan)
    pipe.upscale(Image.new("RGB", (16, 16)), seed=1)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (fail_in_a_view, RuntimeError),
        (interrupt, KeyboardInterrupt),
        (fail_in_a_network, NonFiniteError),
        (fail_in_an_enlargement, NonFiniteError),
    ],
)
def test_a_run_that_ends_early_leaves_nothing_there(
    load: Callable[..., TextToImage],
    device: FakeDevice,
    act: Callable[[TextToImage], None],
    error: type[BaseException],
) -> None:
    loaded = load()
    homes = places(loaded)
    with pytest.raises(error) as caught:  # while its traceback is kept, as at a prompt
        act(loaded)
    assert moves(loaded, device)
    assert device.there == set(), caught
    assert places(loaded) == homes


def test_a_stream_that_is_left_leaves_nothing_there(
    load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded = load()
    run = loaded.stream(PROMPT, seeds=[1], size=16, stages=FAST)
    next(run)
    assert device.there
    run.close()
    assert device.there == set()


def test_a_device_that_is_full_is_left_and_can_be_tried_again(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice
) -> None:
    loaded = load()
    homes, device.full = places(loaded), parts(loaded)["decoder"]
    with pytest.raises(torch.OutOfMemoryError):
        draw(loaded)
    assert device.there == set()
    assert places(loaded) == homes
    device.full = None
    assert same(draw(loaded), draw(pipe))


def test_on_a_cpu_nothing_is_moved_and_no_memory_asked_for(
    tiny_folder: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(_device: torch.device) -> int:
        raise AssertionError("a CPU has no other memory")

    monkeypatch.setattr("mmgen.memory.free_bytes", asked)
    draw(mmgen.load(tiny_folder, device="cpu", dtype="float32"), 16)
    assert device.moves == []


VERBS: dict[str, Callable[[TextToImage, Image.Image], Any]] = {
    "vary": lambda pipe, image: pipe.vary(image, seeds=[1], size=16),
    "mix": lambda pipe, image: pipe.mix([image, PROMPT], seeds=[1], size=16),
    "interpolate": lambda pipe, image: pipe.interpolate(image, PROMPT, frames=2, seed=1, size=16),
    "diff-text": lambda pipe, image: pipe.diff_text(image, "a cat", "a dog", seed=1, size=16),
}


@pytest.mark.parametrize("verb", VERBS)
def test_pictures_of_image_embeddings_are_the_same(
    pipe: TextToImage, load: Callable[..., TextToImage], device: FakeDevice, verb: str
) -> None:
    loaded, (image,) = load(), draw(pipe, 16)
    assert same(VERBS[verb](loaded, image), VERBS[verb](pipe, image))
    assert moves(loaded, device)
    assert device.there == set()


class Tied(nn.Module):
    """One weight under two names, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("scale", torch.ones(5), persistent=False)


def test_what_is_shared_counts_once_and_stays_shared(device: FakeDevice) -> None:
    network = Tied().requires_grad_(False)
    device.free = int(4 * (3 * 4 + 5) / WEIGHTS_SHARE)
    assert Residency([network], CUDA).fits
    device.free -= 1  # which is enough for its turn
    residency, home = Residency([network], CUDA), network.out.weight.data_ptr()
    assert not residency.fits
    with torch.inference_mode(), residency:
        residency.hold([network])
        assert network.out.weight.data_ptr() != home
    assert network.out.weight is network.words.weight
    assert network.out.weight.data_ptr() == home
    assert not network.scale.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_real_device_it_draws_the_same_and_leaves_nothing_there(
    pipe: TextToImage, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = draw(mmgen.load(tiny_folder, device="cuda", dtype="float32"), 256)
    free = free_bytes(CUDA)
    block = torch.empty(64_000_000, dtype=torch.uint8, device=CUDA)
    assert free_bytes(CUDA) <= free - 64_000_000
    del block
    for free in (for_turns(pipe), 0):  # and with none, streamed
        monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device, free=free: int(free))
        moved = mmgen.load(tiny_folder, device="cuda", dtype="float32")
        assert moved.cascade.residency.place(moved.cascade.stages[-1].networks) == (
            "turn" if free else "streamed"
        )
        assert same(draw(moved, 256), resident)
        tensors = [t for part in parts(moved).values() for t in (*part.parameters(), *part.buffers())]
        assert all(t.device.type == "cpu" for t in tensors)
