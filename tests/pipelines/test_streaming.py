"""Networks that have no room even for their turn are streamed layer by layer, and draw the same bytes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mmgen.cli.plan import _table
from mmgen.errors import ModelError
from mmgen.memory import (
    LAYERS,
    TURN_SHARE,
    Residency,
    Room,
    named_tensors,
    streamed_bytes,
    weight_bytes,
)
from mmgen.models.text import TextEncoder
from mmgen.pipelines import single_file
from mmgen.pipelines.families.whole import WHOLE
from mmgen.pipelines.loading import OLD_NAMES, build_network, folder_parts, open_model, stored_names
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.engine import Event
from mmgen.render.planning import plan_batch
from mmgen.render.windows import Budget
from mmgen.types import StageSettings
from tests.checkpoints import write_clip, write_deepfloyd, write_stable_diffusion, write_t5
from tests.pipelines.test_kandinsky import write_kandinsky_2_1
from tests.pipelines.test_lora import random_changes, write_kohya
from tests.pipelines.test_single_file import SIDE, Model
from tests.pipelines.test_stable_cascade import both, write_stable_cascade
from tests.pipelines.test_stable_unclip import write_stable_unclip
from tests.pipelines.test_whole import qwen_image, sana, write
from tests.render.whole import load, three_jobs, together

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
CPU = torch.device("cpu")
PROMPT = "a red cat on the beach"
LITTLE = 1000  # bytes: no network of these has room for its turn
LARGE = {
    "sample_size": 8, "block_out_channels": (192, 384), "layers_per_block": 1, "attention_head_dim": 64,
    "cross_attention_dim": 32, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
MEASURE = """
import hashlib, json, sys
from pathlib import Path
import torch
from mmgen.memory import keep_little, peak_bytes
from mmgen.pipelines.loading import open_model
from mmgen.types import StageSettings

def drawn(folder, memory):
    model = open_model(folder, "cpu", "float32", memory)
    request = model.request("a red cat", seeds=[1], stages={"decoder": StageSettings(steps=2)})
    return hashlib.sha256(model.run(request).images[0].tobytes()).hexdigest()

small, large, memory = sys.argv[1], sys.argv[2], int(sys.argv[3])
keep_little()
drawn(small, 1000)  # so that libraries have begun all that they begin once
found = []
for asked in (memory, None):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes(torch.device("cpu"))
    sha = drawn(large, asked)
    found.append([peak_bytes(torch.device("cpu")) - before, sha])
print(json.dumps(found))
"""


def write_file(folder: Path) -> str:
    """A Stable Diffusion XL in one file."""
    folder.mkdir()
    return str(Model("xl", folder).file)


WRITERS: dict[str, Callable[[Path], str | Path]] = {
    "sd": write_stable_diffusion,
    "if": write_deepfloyd,  # a T5, one tensor of which has two names
    "kandinsky 2.1": lambda folder: "{}?prior={}".format(*write_kandinsky_2_1(folder)),
    "stable unclip": write_stable_unclip,
    "stable cascade": lambda folder: both(write_stable_cascade(folder)),
    "sana": lambda folder: write(folder, sana),  # runs by diffusers' call, in a thread; a Gemma
    "qwen-image": lambda folder: write(folder, qwen_image),  # a VAE of videos
    "one file": write_file,  # whose tensors are cut and turned
}
# Stages whose files have other names for tensors, which only transformers knows.
RENAMED = {"qwen-image": {"text"}}


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Sides that no file says."""
    qwen, kinds = WHOLE["QwenImagePipeline"], single_file.KINDS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WHOLE, "QwenImagePipeline", replace(qwen, latent_side=8))
        patch.setattr(single_file, "KINDS", tuple(replace(one, side=SIDE) for one in kinds))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Models by the names of WRITERS, to be read, never to be changed."""
    root = tmp_path_factory.mktemp("models")
    return cache(lambda kind: str(WRITERS[kind](root / kind)))


@pytest.fixture(scope="module")
def folder(models: Callable[[str], str]) -> Path:
    return Path(models("sd"))


@pytest.fixture(scope="module")
def drawn(pipe: TextToImage) -> bytes:
    """The picture of that folder, whose weights are in memory as a whole."""
    return picture(pipe)


def streamed(folder: str | Path, memory: int = LITTLE) -> TextToImage:
    return open_model(folder, "cpu", "float32", memory)


def fast(model: TextToImage) -> dict[str, StageSettings]:
    """Two steps of every stage that takes steps."""
    return {stage.name: StageSettings(steps=2) for stage in model.cascade.stages if "steps" in stage.takes}


def picture(model: TextToImage, seed: int = 1) -> bytes:
    request = model.request(PROMPT, seeds=[seed], stages=fast(model))
    found: bytes = model.run(request).images[0].tobytes()
    return found


def networks(model: TextToImage) -> list[nn.Module]:
    return [network for stage in model.cascade.stages for network in stage.networks]


def hooked(model: TextToImage) -> list[nn.Module]:
    parts = [part for network in networks(model) for part in network.modules()]
    return [part for part in parts if hasattr(part, "_hf_hook")]


def assert_nothing_left(model: TextToImage) -> None:
    assert hooked(model) == []
    assert all(value.is_meta for network in networks(model) for value in named_tensors(network).values())


def files(model: TextToImage) -> Any:
    """How each network is read."""
    return model.cascade.residency._read


# ---- the same pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_streamed_draws_the_same_bytes(kind: str, models: Callable[[str], str]) -> None:
    model = streamed(models(kind))
    place, stages = model.cascade.residency.place, model.cascade.stages
    turn = RENAMED.get(kind, set())
    assert {stage.name for stage in stages if place(stage.networks) == "turn"} == turn
    assert {stage.name for stage in stages if place(stage.networks) == "streamed"} == {
        stage.name for stage in stages
    } - turn
    assert_nothing_left(model)
    assert picture(model) == picture(load(Path(models(kind))))
    assert_nothing_left(model)


@pytest.mark.parametrize(("kind", "dtype"), [("sd", "float32"), *((kind, "bfloat16") for kind in WRITERS)])
def test_tensors_one_by_one_are_those_of_the_whole(
    kind: str, dtype: str, models: Callable[[str], str]
) -> None:
    found = [read for read in files(open_model(models(kind), "cpu", dtype)).values() if read.parts]
    assert len(found) > 1
    for read in found:
        whole, parts = named_tensors(read.whole()), read.parts()
        assert parts.keys() == whole.keys()
        for name, value in whole.items():
            one = parts[name]
            assert (one.dtype, one.stride()) == (value.dtype, value.stride()), name
            assert torch.equal(one, value), name
            assert one.untyped_storage().resizable(), name  # no part of the file, which would stay in memory


def test_a_batch_is_streamed_and_its_pictures_are_estimated(folder: Path, tmp_path: Path) -> None:
    whole = load(folder)
    jobs = three_jobs(whole, fast(whole))
    model = streamed(folder)
    model.batch_size = 2
    budget, events = Budget(room=Room(10**9, asked=True)), list[Event]()
    drawn = together(jobs, model, tmp_path, batch_size=2, budget=budget, watch=events.append)
    assert drawn == together(jobs, whole, tmp_path, batch_size=2)
    assert not any(event.what == "tight" for event in events)
    assert_nothing_left(model)


class Watch(TorchFunctionMode):
    """Counts the layers of networks whose weights are there while one of them computes; fails in one.

    fail: in which, counted from 1.
    """

    def __init__(self, model: TextToImage, fail: int | None = None) -> None:
        super().__init__()
        parts = [part for network in networks(model) for part in network.modules()]
        self.layers = [part for part in parts if type(part) in LAYERS]
        self.calls = self.most = 0
        self.fail = fail

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.linear, functional.conv2d):
            self.calls += 1
            self.most = max(self.most, sum(not layer.weight.is_meta for layer in self.layers))
            if self.calls == self.fail:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def test_one_layer_is_there_beside_the_first(folder: Path) -> None:
    model = streamed(folder)
    with Watch(model) as watch:
        picture(model)
    assert watch.most == 2
    assert watch.calls > 50


@pytest.mark.parametrize("fail", [3, 60])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(folder: Path, drawn: bytes, fail: int) -> None:
    model = streamed(folder)
    with pytest.raises(KeyboardInterrupt), Watch(model, fail=fail) as watch:
        picture(model)
    assert watch.calls == fail
    assert_nothing_left(model)
    assert picture(model) == drawn


def test_a_stream_that_is_left_leaves_nothing(folder: Path) -> None:
    model = streamed(folder)
    run = model.stream(PROMPT, seeds=[1], stages=fast(model))
    next(run)
    assert hooked(model)
    run.close()
    assert_nothing_left(model)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_much_less_memory_is_taken_than_the_weights(folder: Path, tmp_path: Path) -> None:
    large = write_stable_diffusion(tmp_path / "large")
    unet = UNet2DConditionModel(**LARGE)
    unet.save_pretrained(large / "unet")
    weights = weight_bytes(unet)
    assert weights > 100e6
    del unet
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(large), str(10**8)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (peak, sha), (peak_of_turn, sha_of_turn) = json.loads(said.stdout)
    assert sha == sha_of_turn
    assert peak < 0.5 * weights < weights < peak_of_turn, (peak, weights, peak_of_turn)


# ---- from the memory of the CPU, as on a GPU -----------------------------------------------------


class Tied(nn.Module):
    """One weight under two names, of which a layer has one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.words, self.out = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.more = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
        self.out.weight = self.words.weight
        self.same = self.words
        self.register_buffer("scale", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.more(self.first(self.same(x)) * self.scale))
        return out


def test_from_memory_the_same_is_drawn_and_every_tensor_comes_back(
    folder: Path, drawn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: LITTLE)
    model = load(folder)
    residency = Residency(networks(model), torch.device("cuda"))
    residency._device = CPU  # nothing has been moved, and layers are streamed to where they can compute
    model.cascade.residency = residency
    before = [named_tensors(network) for network in networks(model)]
    with Watch(model) as watch:
        assert picture(model) == drawn
    assert hooked(model) == []
    for held, network in zip(before, networks(model), strict=True):
        after = named_tensors(network)
        assert after.keys() == held.keys()
        assert all(after[name] is value for name, value in held.items())
    assert watch.calls > 50


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Residency]:
    """A network, and what streams it from memory."""
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: 0)
    network = Tied().requires_grad_(False).eval()
    residency = Residency([network], torch.device("cuda"))
    residency._device = CPU
    return network, residency


def test_one_tensor_of_two_names_is_there_once(tied: tuple[Any, Residency]) -> None:
    network, residency = tied
    x = torch.tensor([1, 3])
    alone = network(x)
    with residency:
        residency.hold([network])
        assert network.out.weight is network.words.weight
        assert not network.words.weight.is_meta
        assert not network.first.weight.is_meta  # by which libraries tell the device
        assert network.more[0].weight.is_meta
        assert torch.equal(network(x), alone)
    assert network.out.weight is network.words.weight
    assert torch.equal(network(x), alone)
    # all but the two layers, and the larger of them twice
    assert streamed_bytes(network) == 4 * (12 + 12 + 3 + 6 + 2 * 12)


def test_a_hook_that_was_taken_out_half_way_goes(tied: tuple[Any, Residency]) -> None:
    network, residency = tied
    x = torch.tensor([1, 3])
    alone = network(x)
    residency.hold([network])
    del network.more[0]._hf_hook  # where an interruption may end what accelerate does
    residency.hold(())
    assert torch.equal(network(x), alone)
    residency.hold([network])
    assert torch.equal(network(x), alone)
    residency.hold(())


# ---- where weights are ---------------------------------------------------------------------------


def test_what_fits_for_its_turn_is_not_streamed(folder: Path) -> None:
    model = streamed(folder, 10**9)
    (decoder,) = [stage for stage in model.cascade.stages if stage.name == "decoder"]
    (unet,) = decoder.networks
    needed = weight_bytes(unet) + files(model)[unet].bytes
    enough = math.ceil(needed / TURN_SHARE)
    assert model.cascade.residency.place([unet]) == "turn"
    for memory, place in ((enough, "turn"), (enough - 2, "streamed")):
        residency = streamed(folder, memory).cascade.residency
        (again,) = [network for network in residency._read or () if type(network) is type(unet)]
        assert residency.place([again]) == model.cascade.residency.place([unet], memory) == place
        assert residency.held([again]) == (weight_bytes(unet) if place == "turn" else streamed_bytes(unet))


def test_without_memory_nothing_is_streamed_on_a_cpu(folder: Path) -> None:
    model = open_model(folder, "cpu", "float32")
    assert {model.cascade.residency.place(stage.networks) for stage in model.cascade.stages} == {"turn"}
    whole = load(folder).cascade
    assert {whole.residency.place(stage.networks) for stage in whole.stages} == {"resident"}


def test_what_a_lora_changes_is_there_for_its_turn(folder: Path, drawn: bytes, tmp_path: Path) -> None:
    paths = {
        "unet": (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            "down_blocks.0.resnets.0.conv1",
        )
    }
    file = write_kohya(tmp_path, random_changes(folder, paths, seed=1))
    reference = f"{folder}?lora={file}:0.7"
    model = streamed(reference)
    places = {stage.name: model.cascade.residency.place(stage.networks) for stage in model.cascade.stages}
    assert places == {"text": "streamed", "decoder": "turn", "vae": "streamed"}
    changed = picture(model)
    assert changed == picture(load(Path(reference)))
    assert changed != drawn


def test_a_plan_says_what_is_streamed(folder: Path) -> None:
    model = open_model(folder, "cpu", "float32")
    request = model.request(PROMPT, seeds=[1], stages=fast(model))
    little, turn = (
        plan_batch(model, request, Budget(room=Room(LITTLE, asked=asked)), 1) for asked in (True, False)
    )
    assert {stage.place for stage in little.stages} == {"streamed"}
    assert {stage.place for stage in turn.stages} == {"turn"}
    assert little.peak < turn.peak
    assert little.weights == turn.weights
    held = streamed(folder).cascade
    assert [held.residency.held(stage.networks) for stage in held.stages] == [
        stage.weights for stage in little.stages
    ]
    assert all("streamed layer by layer" in line for line in _table(little)[1:4])


# ---- what is read is what was checked ------------------------------------------------------------


def test_a_file_that_changes_meanwhile_is_an_error(copy: Path) -> None:
    model = streamed(copy)
    run = model.stream(PROMPT, seeds=[1], stages=fast(model))
    next(run)
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match=r"unet .* has changed"):
        next(run)
    assert_nothing_left(model)


@pytest.mark.parametrize(("value", "said"), [(torch.nan, "NaN"), (0.0, "zeros")])
def test_numbers_that_can_draw_nothing_are_refused(copy: Path, value: float, said: str) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for tensor in [tensors["conv_out.bias"]] if math.isnan(value) else tensors.values():
        tensor.fill_(value)
    save_file(tensors, path)
    model = streamed(copy)
    with pytest.raises(ModelError, match=said):
        picture(model)
    assert_nothing_left(model)


# ---- what tensors are called in files ------------------------------------------------------------


def test_older_names_are_found(copy: Path) -> None:
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    older = {f".{new}.": f".{old}." for old, new in OLD_NAMES.items()}
    renamed = dict[str, torch.Tensor]()
    for name, value in whole.items():
        for new, old in older.items():
            name = name.replace(new, old)
        renamed[name] = value
    assert renamed.keys() != whole.keys()
    save_file(renamed, path)
    parts = folder_parts(copy / "vae", build_network(copy / "vae", AutoencoderKL), lambda: None)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_encoders_are_found_by_what_ends_their_names(tmp_path: Path) -> None:
    write_clip(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    encoder = TextEncoder.load(path.parent, tmp_path / "tokenizer", dtype=torch.float32)
    names = stored_names(path.parent, encoder.model)
    assert names is not None
    assert all(torch.equal(tensors[names[name]], value) for name, value in encoder.model.state_dict().items())
    # the same ends, of another encoder
    others = {key.replace("text_model.", "vision_model."): value.clone() for key, value in tensors.items()}
    save_file({**tensors, **others}, path, {"format": "pt"})
    again = TextEncoder.load(path.parent, tmp_path / "tokenizer", dtype=torch.float32, outlined=True)
    assert stored_names(path.parent, again.model) is None


def test_an_outline_is_what_is_read_without_a_number(tmp_path: Path) -> None:
    write_t5(tmp_path)
    whole, outline = (
        TextEncoder.load(
            tmp_path / "text_encoder", tmp_path / "tokenizer", dtype=torch.float16, outlined=one
        ).model
        for one in (False, True)
    )
    kinds = [
        {name: (value.dtype, value.shape) for name, value in named_tensors(model).items()}
        for model in (whole, outline)
    ]
    assert kinds[0] == kinds[1]
    assert all(value.is_meta for value in named_tensors(outline).values())
