"""What diffusers and every stage here expect of a network that is saved and loaded, asked of every such class."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmgen.conditioning import Conditioning
from mmgen.models.conditioned_unet import ConditionedUNet
from tests.checkpoints import awake
from tests.models.test_networks import CASES, PERSISTED, normal, told

SHAPES = {name: shape for name, (_, shape, _) in CASES.items()} | {"dual_encoder": (3, 16, 16)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = "diffusion_pytorch_model.safetensors"
every_network = pytest.mark.parametrize("name", PERSISTED)
every_denoiser = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """To be asked, never to be changed."""
    return {name: awake(build) for name, build in PERSISTED.items()}


def cast(cond: Conditioning, dtype: torch.dtype) -> Conditioning:
    return cond.map(lambda value: value.to(dtype) if value.is_floating_point() else value)


def conditioning(name: str, count: int = 3) -> Conditioning:
    return told(count) if name == "dual_encoder" else CASES[name][2](count)


def says(name: str, network: Any, rows: slice = slice(3), dtype: torch.dtype = torch.float32) -> Tensor:
    """What a network answers to those of three questions, as one tensor [B, ...]."""
    x = normal(3, *SHAPES[name], seed=5)[rows].to(dtype)
    cond = cast(conditioning(name)[rows], dtype)
    if name == "dual_encoder":
        return torch.cat(network(x, cond), dim=1)
    answer: Tensor = network(x, torch.tensor([0.9, 0.5, 0.1])[rows], network.prepare(cond))
    return answer


def same(one: Any, other: Any) -> bool:
    """Whether two networks have the same numbers by the same names, bit by bit and in one dtype."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[key].dtype and torch.equal(value, theirs[key]) for key, value in ours.items()
    )


# ---- files -----------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_bit_by_bit(name: str, dtype: str, tmp_path: Path) -> None:
    # not `.to` of diffusers' mixin, which prints
    network = torch.nn.Module.to(awake(PERSISTED[name]), DTYPES[dtype])
    network.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    again = type(network).from_pretrained(tmp_path, dtype=DTYPES[dtype], local_files_only=True)
    assert same(network, again)
    assert not again.training
    assert torch.equal(says(name, network, dtype=DTYPES[dtype]), says(name, again, dtype=DTYPES[dtype]))


@every_network
@pytest.mark.parametrize("frugal", [True, False])
def test_loading_with_and_without_the_meta_device_is_one(
    networks: dict[str, Any], name: str, frugal: bool, tmp_path: Path
) -> None:
    networks[name].save_pretrained(tmp_path)
    again = type(networks[name]).from_pretrained(tmp_path, low_cpu_mem_usage=frugal, local_files_only=True)
    assert same(networks[name], again)


@every_network
def test_a_configuration_makes_the_network_again(networks: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Its values are flat JSON: a dataclass would not be saved, and of a tuple comes a list."""
    network = networks[name]
    network.save_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert saved["_class_name"] == type(network).__name__
    own = {key: value for key, value in saved.items() if not key.startswith("_")}
    assert own == {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in network.config.items()
        if not key.startswith("_")
    }
    for value in own.values():
        parts = value if isinstance(value, list) else [value]
        assert all(isinstance(part, bool | int | float | str) for part in parts)
    again = type(network).from_config(type(network).load_config(tmp_path))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(says(name, again.eval()), says(name, network))


@every_network
def test_parameters_are_counted(networks: dict[str, Any], name: str) -> None:
    network = networks[name]
    count = sum(value.numel() for value in network.state_dict().values())
    assert network.num_parameters() == count > 1000
    assert network.num_parameters(only_trainable=True) == 0
    assert PERSISTED[name]().num_parameters(only_trainable=True) == count


# ---- answers ---------------------------------------------------------------------------------------


@every_network
@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(networks: dict[str, Any], name: str) -> None:
    together = says(name, networks[name])
    for i in range(3):
        row = slice(i, i + 1)
        torch.testing.assert_close(says(name, networks[name], row), together[row], atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@every_network
@torch.no_grad()
def test_the_same_question_has_the_same_answer(name: str) -> None:
    """In training too: no network here drops anything or counts what it has seen."""
    network = awake(PERSISTED[name])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first = says(name, network)
    assert torch.equal(says(name, network), first)
    assert torch.equal(says(name, network.train()), first)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@every_network
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_in_half_precision_it_says_nearly_the_same(
    networks: dict[str, Any], name: str, dtype: torch.dtype
) -> None:
    half = torch.nn.Module.to(awake(PERSISTED[name]), dtype)
    answer = says(name, half, dtype=dtype)
    assert answer.dtype == (torch.float32 if name == "dual_encoder" else dtype)
    assert answer.isfinite().all()
    whole = says(name, networks[name])
    error = (answer.float() - whole).square().mean().sqrt() / whole.square().mean().sqrt()
    assert float(error) < (0.01 if dtype == torch.float16 else 0.05)


@every_denoiser
@pytest.mark.parametrize("scale", [0.0, 100.0])
@torch.no_grad()
def test_extreme_inputs_stay_finite_in_half_precision(name: str, scale: float) -> None:
    half = torch.nn.Module.to(awake(PERSISTED[name]), torch.float16)
    prepared = half.prepare(cast(conditioning(name), torch.float16))
    for t in (0.0, 1.0):
        x = (scale * normal(3, *SHAPES[name])).half()
        assert half(x, torch.full((3,), t), prepared).isfinite().all()


# ---- gradients -------------------------------------------------------------------------------------


def training_answers(name: str, network: Any) -> Iterator[Tensor]:
    """With all that a network can be told, each of its nulls in some of the rows."""
    if name == "dual_encoder":
        yield says(name, network) * network.log_scale
        yield network.unfold(normal(3, 16, seed=5))
        return
    cond, some = conditioning(name), torch.tensor([True, False, False])
    if cond.text is not None:
        cond = replace(cond, drop_text=some, guidance=torch.full((3,), 4.0))
    if cond.image_embed is not None and isinstance(network, ConditionedUNet):
        cond = replace(cond, drop_image=some.flip(0))
    if cond.text is None:
        cond = replace(cond, guidance=torch.full((3,), 4.0))
    x, t = normal(3, *SHAPES[name], seed=5), torch.tensor([0.9, 0.5, 0.1])
    yield network(x, t, network.prepare(cond), torch.zeros(3))


@every_network
def test_training_reaches_every_parameter(name: str) -> None:
    network = awake(PERSISTED[name]).train().requires_grad_(True)
    for answer in training_answers(name, network):
        (answer * normal(*answer.shape, seed=9)).sum().backward()
    unreached = {
        key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()
    }
    # what is added to every key alike changes no weight of attention
    assert {key for key in unreached if not key.endswith("k_norm.bias")} == set()


@every_denoiser
def test_a_fresh_network_learns_from_its_last_layer_on(name: str) -> None:
    """Every other gradient is zero at first: the layer through which it must come is."""
    network = PERSISTED[name]().train()
    for answer in training_answers(name, network):
        (answer * normal(*answer.shape, seed=9)).sum().backward()
    reached = {
        key for key, value in network.named_parameters() if value.grad is not None and value.grad.any()
    }
    last = {"decoder": "patches_out", "super_res": "patches_out", "unet": "conv_out", "prior": "out"}[name]
    assert reached == {f"{last}.weight", f"{last}.bias"}


@every_denoiser
def test_gradients_go_through_what_is_prepared(networks: dict[str, Any], name: str) -> None:
    """To all that it is told in numbers, but to the picture's size and the prior's own target."""
    cond = conditioning(name).map(
        lambda value: value.clone().requires_grad_() if value.is_floating_point() else value
    )
    x = normal(3, *SHAPES[name], seed=5).requires_grad_()
    network = networks[name]
    network(x, torch.tensor([0.9, 0.5, 0.1]), network.prepare(cond)).square().sum().backward()
    told_in_numbers = {"text", "pooled", "image_embed", "low_res", "noise_level", "source_size"}
    heard = {
        field.name
        for field in fields(cond)
        if (value := getattr(cond, field.name)) is not None and value.requires_grad and value.grad is not None
    }
    given = {name for name in told_in_numbers if getattr(cond, name) is not None}
    assert heard == given - ({"image_embed"} if name == "prior" else set())
    assert all(getattr(cond, field).grad.any() for field in heard)
    assert x.grad is not None
    assert x.grad.any()


# ---- what cannot be --------------------------------------------------------------------------------


@every_denoiser
@pytest.mark.parametrize("wrong", ["channels", "rows", "time"])
def test_a_question_of_the_wrong_shape_is_refused(networks: dict[str, Any], name: str, wrong: str) -> None:
    network, (channels, *sides) = networks[name], SHAPES[name]
    prepared = network.prepare(conditioning(name))
    x, t = normal(3, channels, *sides), torch.full((3,), 0.5)
    if wrong == "channels":
        x = normal(3, channels + 1, *sides)
    elif wrong == "rows":
        x = normal(2, channels, *sides)
    else:
        t = torch.full((2,), 0.5)
    with pytest.raises(RuntimeError, match=r"\d"):
        network(x, t, prepared)


@pytest.mark.parametrize("name", ["decoder", "unet", "prior", "dual_encoder"])
@pytest.mark.parametrize("field", ["text", "pooled", "image_embed"])
def test_conditioning_of_the_wrong_width_is_refused(networks: dict[str, Any], name: str, field: str) -> None:
    heard = {"prior": ("text", "pooled"), "dual_encoder": ("text",)}.get(
        name, ("text", "pooled", "image_embed")
    )
    value = getattr(told(), field)
    cond = replace(told(), **{field: torch.cat([value, value], dim=-1)})
    ask = networks[name].text_embed if name == "dual_encoder" else networks[name].prepare
    if field not in heard:
        ask(cond)
        return
    with pytest.raises(RuntimeError, match=f"{2 * value.shape[-1]}"):
        ask(cond)


@pytest.mark.parametrize("field", ["text", "text_mask"])
def test_the_dual_encoder_asks_for_what_it_is_not_told(networks: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"needs {field}, but"):
        networks["dual_encoder"].text_embed(replace(told(), **{field: None}))
