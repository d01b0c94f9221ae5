"""`mmgen plan`: what it says is what the engine does, and what does not fit is an error that says what would."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmgen
from mmgen.cli.plan import PROMPT
from mmgen.memory import Residency, Room, stays, weight_bytes
from mmgen.noise import Noise
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.sources import locate
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.engine import Event, budget_of
from mmgen.render.estimate import WORKING_SHARE, Kind, Work
from mmgen.render.jobs import Job
from mmgen.render.planning import KEPT, TENSORS_SHARE, plan_batch, plan_one, room_for
from mmgen.render.speed import Speed, speed_of
from mmgen.render.windows import Budget
from mmgen.types import StageSettings
from tests.checkpoints import write_deepfloyd, write_stable_diffusion, write_tiny
from tests.cli.conftest import Command
from tests.render.whole import render

CPU = torch.device("cpu")
FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=2)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def model(tiny: str) -> TextToImage:
    """As a batch opens it, but eight pictures at a time as on a GPU."""
    opened = open_model(tiny, device="cpu", dtype="float32")
    opened.batch_size = 8
    return opened


def request(model: TextToImage, seed: int = 0, size: int = 256) -> Any:
    return model.request(PROMPT, seeds=[seed], size=size, stages=FAST)


# ---- the plan is what happens --------------------------------------------------------------------


def drawn(model: TextToImage, budget: Budget, folder: Path, pictures: int) -> list[Event]:
    """What was said while so many pictures were drawn."""
    events: list[Event] = []
    jobs = [Job(i, i, request(model, i), f"{i}.png") for i in range(1, pictures + 1)]
    render(jobs, model, lambda _done: None, folder=folder, budget=budget, watch=events.append)
    return events


def count_rows(model: TextToImage) -> dict[str, int]:
    """By stage: the most pictures that are drawn at once from now on."""
    rows: dict[str, int] = {}

    def watch(stage: Any) -> None:
        run = stage.run

        def watched(draft: Draft, settings: StageSettings, noise: Noise) -> Any:
            if not any(value.is_meta for network in stage.networks for value in network.parameters()):
                rows[stage.name] = max(rows.get(stage.name, 0), len(draft.prompts))
            return run(draft, settings, noise)

        stage.run = watched

    for stage in model.cascade.stages:
        watch(stage)
    return rows


def test_a_batch_draws_as_many_at_once_as_planned(model: TextToImage, tmp_path: Path) -> None:
    whole = plan_batch(model, request(model), Budget(), 8)
    assert {stage.batch for stage in whole.stages} == {8}
    decoder = next(stage for stage in whole.stages if stage.name == "decoder")
    budget = budget_of(Room(room_for(decoder, 3, CPU)), CPU)
    found = plan_batch(model, request(model), budget, 8)
    planned = {stage.name: stage.batch for stage in found.stages}
    assert planned["decoder"] == 3
    assert planned["super-res-256"] < 3
    rows = count_rows(model)
    drawn(model, budget, tmp_path, 8)
    assert rows == planned


def test_who_asks_for_less_is_planned_the_squares_that_are_drawn(model: TextToImage, tmp_path: Path) -> None:
    whole = plan_batch(model, request(model), Budget(), 1)
    budget = budget_of(Room(room_for(whole.stages[-1], 1, CPU) - 200_000, asked=True), CPU)
    found = plan_batch(model, request(model), budget, 1)
    assert [stage.square for stage in found.stages] == [None, None, None, None, 128]
    assert found.stages[-1].each < whole.stages[-1].each  # type: ignore[operator]
    (tight,) = [event for event in drawn(model, budget, tmp_path, 1) if event.what == "tight"]
    assert tight.stage == "super-res-256"
    assert "in squares of 128 px" in tight.note


def test_a_room_is_tight_below_what_it_is_for(model: TextToImage, tmp_path: Path) -> None:
    whole = plan_batch(model, request(model), Budget(), 1)
    needed = max(room_for(stage, 1, CPU) for stage in whole.stages)

    def tight(room: int) -> bool:
        return any(event.what == "tight" for event in drawn(model, budget_of(Room(room), CPU), tmp_path, 1))

    assert not tight(needed + 10)
    assert tight(needed - 1000)


def test_what_fits_fits_also_while_weights_are_read(model: TextToImage) -> None:
    whole = plan_batch(model, request(model), Budget(), 1)
    assert whole.least == max(whole.peak, *(room_for(stage, 1, CPU) for stage in whole.stages))
    assert replace(whole, room=whole.least).fits
    assert not replace(whole, room=whole.least - 1).fits
    large = replace(whole.stages[0], reading=10**9)
    assert replace(whole, stages=(large, *whole.stages[1:])).peak == KEPT + large.weights + 10**9


@pytest.mark.parametrize("free", [0, 10**12])
def test_weights_stay_where_planned(model: TextToImage, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: free)
    meta = torch.device("meta")  # as a device other than the CPU
    assert Residency([torch.nn.Linear(2, 2)], meta).fits is stays(24, meta) is bool(free)
    assert plan_one(model, request(model), Budget()).resident


# ---- the arithmetic of a plan --------------------------------------------------------------------


def test_files_are_in_memory_in_their_own_dtype(tiny: str) -> None:
    half = open_model(tiny, device="cpu", dtype="bfloat16")
    stages = {stage.name: stage for stage in plan_one(half, request(half), Budget()).stages}
    files = {name: source.describe(part)["bytes"] for name, source, part in locate(tiny).components()}
    assert stages["decoder"].reading == files["decoder"] > 1.9 * stages["decoder"].weights
    assert stages["super-res-256"].reading == files["super_res"]
    held = [
        weight_bytes(network) for network in half.cascade.stages[1].networks
    ]  # the prior, then the dual encoder
    assert stages["prior"].reading == max(held[0] + files["prior"], sum(held) + files["dual_encoder"]) - sum(
        held
    )


def test_weights_are_together_or_stage_by_stage(model: TextToImage) -> None:
    one, many = plan_one(model, request(model), Budget()), plan_batch(model, request(model), Budget(), 3)
    weights = {stage.name: stage.weights for stage in one.stages}
    assert weights["super-res-64"] == weights["super-res-256"]  # one network, which counts once
    assert one.weights == sum(weights.values()) - weights["super-res-256"]
    working = max(int((stage.each or 0) / WORKING_SHARE) for stage in one.stages)
    assert one.least == max(one.peak, one.weights + working)

    def most(pictures: int, weights: Sequence[int]) -> int:
        beside = [max(int(pictures * (s.each or 0) / TENSORS_SHARE), s.reading) for s in one.stages]
        return KEPT + max(held + more for held, more in zip(weights, beside, strict=True))

    assert one.peak == most(1, 5 * [one.weights])
    assert many.peak == most(3, [stage.weights for stage in many.stages])
    assert one.seconds is not None
    assert many.seconds is not None
    assert one.seconds < many.seconds < 3 * one.seconds  # together, whose operations begin once
    assert one.fits
    assert not replace(one, room=one.least - 1).fits


def test_a_stage_that_cannot_be_told_leaves_the_rest_open(model: TextToImage) -> None:
    decoder: Any = next(stage for stage in model.cascade.stages if stage.name == "decoder")
    decoder.network.register_forward_pre_hook(lambda _module, args: args[0].numpy())
    found = plan_batch(model, request(model), Budget(room=Room(10**6)), 2)
    assert [stage.each is None for stage in found.stages] == [False, False, True, True, True]
    assert found.seconds is None


def test_the_speeds_of_this_machine_are_numbers() -> None:
    speed = speed_of(CPU, torch.float32)
    kinds: list[Kind] = ["convolution", "product", "attention"]
    assert all(1e6 < speed.rates[kind] < 1e16 for kind in kinds)
    assert 1e6 < speed.memory < 1e14
    assert 0 < speed.begin < 1


def test_an_operation_takes_as_long_as_its_arithmetic_and_its_memory() -> None:
    speed = Speed(
        {"convolution": 10.0, "product": 20.0, "attention": 5.0, "other": math.inf}, memory=4, begin=0.5
    )
    work = {Work("convolution", 100, 8): 2, Work("product", 20, 8, shared=4): 1, Work("other", 0, 4): 3}
    assert speed.seconds(work) == 2 * (10 + 2 + 0.5) + (1 + 2 + 0.5) + 3 * (1 + 0.5)
    assert speed.seconds(work, pictures=4) == 2 * (40 + 8 + 0.5) + (4 + 5 + 0.5) + 3 * (4 + 0.5)


@pytest.mark.parametrize("write", [write_stable_diffusion, write_deepfloyd])
def test_published_models_are_planned(write: Any, tmp_path: Path) -> None:
    opened = open_model(write(tmp_path / "model"), device="cpu", dtype="float32")
    found = plan_one(opened, opened.request(PROMPT, seeds=[0]), Budget())
    assert all(stage.each for stage in found.stages)
    assert found.seconds


# ---- the command ---------------------------------------------------------------------------------


def test_a_plan_is_a_table(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("plan", "--model", tiny, "--device", "cpu", "--dtype", "float32")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:2] == ["stage", "weights"]
    assert [line.split()[0] for line in lines[1:6]] == [
        "text", "prior", "decoder", "super-res-64", "super-res-256"
    ]  # fmt: skip
    assert all("on cpu" in line and "turn" not in line for line in lines[1:6])
    assert lines[6].startswith("mmgen generate, at most at once: ")
    assert lines[7].startswith("1 to draw: about ")


def test_a_plan_is_an_object(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("plan", "--model", tiny, "--prompts", "200", "--size", "64", "--json",
                         "--set", "decoder.steps=7", "--device", "cpu")  # fmt: skip
    assert done.code == 0, done.err
    (found,) = done.objects()
    assert (found["command"], found["pictures"]) == ("batch", 200)
    assert found["size"] == 64
    assert found["fits"]
    assert not found["resident"]
    assert [stage["name"] for stage in found["stages"]] == ["text", "prior", "decoder", "super-res-64"]
    assert found["stages"][2]["steps"] == 7
    assert found["peak"] > max(stage["weights"] + stage["each"] for stage in found["stages"])
    assert any("fewer --set" in way for way in found["faster"])


def test_its_turn_only(mmgen_command: Command, tiny: str) -> None:
    done = mmgen_command("plan", "--model", tiny, "--prompts", "2", "--device", "cpu", "--memory", "8GB")
    assert done.code == 0
    assert done.out.count("on cpu, its turn only") == 5
    assert "of 8,000.0 MB" in done.out


def test_who_asks_for_memory_is_planned_what_fits_by_both_commands(mmgen_command: Command, tiny: str) -> None:
    args = ("plan", "--model", tiny, "--device", "cpu", "--dtype", "float32", "--size", "16", "--json")
    (whole,) = mmgen_command(*args).objects()
    (batch,) = mmgen_command(*args, "--prompts", "1").objects()
    assert (whole["command"], whole["resident"]) == ("generate", True)
    assert batch["least"] < whole["least"]
    (same,) = mmgen_command(*args, "--memory", written(whole["least"])).objects()
    assert (same["resident"], same["peak"]) == (True, whole["peak"])
    between = written((batch["least"] + whole["least"]) // 2)
    (less,) = mmgen_command(*args, "--memory", between).objects()
    assert (less["command"], less["pictures"], less["resident"]) == ("generate", 1, False)
    assert any(way.endswith("of cpu, in which all weights stay there") for way in less["faster"])
    (asked,) = mmgen_command(*args, "--memory", between, "--prompts", "1").objects()
    assert asked["command"] == "batch"
    assert [less[name] for name in ("least", "peak", "stages")] == [
        batch["least"],
        batch["peak"],
        asked["stages"],
    ]


def written(bytes: int) -> str:
    """As --memory takes it, at least so many."""
    return f"{(bytes + 99) / 1e6:.4f}MB"


def test_what_does_not_fit_is_said_with_what_would(
    mmgen_command: Command, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("plan", "--model", tiny, "--device", "cpu", "--dtype", "float32", "--json", "--size", "16")
    (whole,) = mmgen_command(*args).objects()
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: whole["least"] - 1)
    done = mmgen_command(*args)
    assert done.code == 3
    assert not json.loads(done.out)["fits"]
    assert f"needs {whole['least'] / 1e6:,.1f} MB at least" in done.err
    less = mmgen_command(*args, "--memory", "1kB")
    assert less.code == 3
    assert "free memory, or choose a smaller model" in less.err


def test_smaller_pictures_are_offered(
    mmgen_command: Command, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (
        "plan",
        "--model",
        tiny,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--set",
        "super-res-256.noise_level=0.1",
    )
    (least,) = {found["least"] for found in mmgen_command(*args, "--json").objects()}
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: least - 100_000)
    done = mmgen_command(*args)
    assert done.code == 3
    assert "draw 64 px, which needs" in done.err
    assert "or choose --dtype bfloat16, which needs about half" in done.err


def test_less_memory_is_offered_to_who_does_not_ask(
    mmgen_command: Command, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmgen.render.planning.KEPT", 0)
    args = ("plan", "--model", tiny, "--device", "cpu", "--dtype", "float32")
    (found,) = mmgen_command(*args, "--json").objects()
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: found["least"] - 200_000)
    done = mmgen_command(*args)
    assert done.code == 3
    assert "give --memory" in done.err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--size", "17"), 2, "cannot draw 17x17"),
        (("--memory", "8"), 2, "--memory '8'"),
        (("--prompts", "0"), 2, "--prompts"),
        (("--set", "decodr.steps=3"), 2, "no stage 'decodr'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    mmgen_command: Command, tiny: str, args: tuple[str, ...], code: int, says: str
) -> None:
    done = mmgen_command("plan", "--model", tiny, "--device", "cpu", *args)
    assert done.code == code
    assert says in done.err


def test_a_plan_leaves_the_model_as_it_was(tiny: str) -> None:
    whole = mmgen.load(tiny, device="cpu", dtype="float32")
    held = [
        value for stage in whole.cascade.stages for n in stage.networks for value in n.state_dict().values()
    ]
    assert plan_one(whole, request(whole), Budget()).stages
    now = [
        value for stage in whole.cascade.stages for n in stage.networks for value in n.state_dict().values()
    ]
    assert [value.data_ptr() for value in now] == [value.data_ptr() for value in held]
    assert not any(value.is_meta for value in now)
