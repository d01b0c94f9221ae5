"""Stage by stage, in whatever windows and batches, with whatever goes wrong: the pictures of single runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mmgen
from mmgen.conditioning import Conditioning
from mmgen.errors import MachineError, ModelError
from mmgen.memory import Room, room
from mmgen.noise import Noise
from mmgen.pipelines import loading, super_res_stage
from mmgen.pipelines.checkpoint import write_manifest
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render import windows as cutting
from mmgen.render.drafts import Drafts, map_tensors, rows_of, size_of
from mmgen.render.engine import Done, Event, budget_of
from mmgen.render.estimate import WORKING_SHARE, cost, in_smaller_squares, stage_weights
from mmgen.render.jobs import Job
from mmgen.render.windows import Budget, batches, windows
from mmgen.types import StageSettings
from tests.checkpoints import write_tiny
from tests.render.whole import render

WEIGHTS = "diffusion_pytorch_model.safetensors"

FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=2)}
SLOWER = {"prior": StageSettings(steps=3), "decoder": StageSettings(steps=2, guidance_scale=4.0)}
PROMPT = "a red cat on the beach"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextToImage:
    """The whole model in memory, for single runs."""
    return mmgen.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def model(folder: Path) -> TextToImage:
    """Its weights come in for their stage and go."""
    return open_model(folder, device="cpu", dtype="float32")


def job(pipe: TextToImage, seed: int, prompt: str = PROMPT, size: int = 16, **given: Any) -> Job:
    request = pipe.request(prompt, seeds=[seed], size=size, **{"stages": FAST, **given})
    return Job(seed, seed, request, f"{seed}.png")


def mixed(pipe: TextToImage) -> list[Job]:
    """Several sizes, settings and negative prompts, none beside its like."""
    return [
        job(pipe, 1, size=64),
        job(pipe, 2, "two dogs", size=16),
        job(pipe, 3, "a boat", size=256, stages=SLOWER),
        job(pipe, 4, size=64, negative_prompt="snow"),
        job(pipe, 5, "two dogs and a very big house", size=64),
        job(pipe, 6, size=16, stages=SLOWER),
    ]


class Tray:
    """Where pictures and failures arrive, by seed, and what was seen meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[int, Done] = {}
        self.events: list[Event] = []

    def draw(self, jobs: Iterable[Job], model: TextToImage, **given: Any) -> Tray:
        render(jobs, model, self.commit, folder=self.path, watch=self.events.append, **given)
        assert list(self.path.iterdir()) == []
        return self

    def commit(self, done: Done) -> None:
        assert done.job.index not in self.done, "a picture was committed twice"
        self.done[done.job.index] = done

    @property
    def bytes(self) -> dict[int, bytes]:
        return {seed: d.image.tobytes() for seed, d in sorted(self.done.items()) if d.image is not None}

    @property
    def errors(self) -> dict[int, str]:
        return {seed: done.error for seed, done in self.done.items() if done.image is None}

    @property
    def notes(self) -> list[tuple[str, str]]:
        return [(event.stage, event.note) for event in self.events if event.what == "less"]


@pytest.fixture
def tray(tmp_path: Path) -> Tray:
    return Tray(tmp_path)


def single(pipe: TextToImage, jobs: Sequence[Job]) -> dict[int, bytes]:
    return {job.index: pipe.run(job.request).images[0].tobytes() for job in jobs}


def near(one: dict[int, bytes], other: dict[int, bytes]) -> bool:
    """Within 2/255: kernels may sum up in another order for another number of pictures."""
    pairs = [[np.frombuffer(side[seed], np.uint8).astype(int) for side in (one, other)] for seed in other]
    return one.keys() == other.keys() and all(np.abs(a - b).max() <= 2 for a, b in pairs)


def network(model: TextToImage, name: str) -> nn.Module:
    stage: Any = next(stage for stage in model.cascade.stages if stage.name == name)
    return stage.networks[0]


def resident(model: TextToImage) -> set[nn.Module]:
    """The networks whose weights are in memory."""
    networks = {one for stage in model.cascade.stages for one in stage.networks}
    return {one for one in networks if not all(p.is_meta for p in one.parameters())}


# ---- order, weights and bytes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget", [Budget(), Budget(memory=0), Budget(batches=2), Budget(memory=2000, drafts=600_000)]
)
def test_pictures_have_the_bytes_of_single_runs(
    pipe: TextToImage, model: TextToImage, tray: Tray, budget: Budget
) -> None:
    jobs = mixed(pipe)
    assert tray.draw(iter(jobs), model, budget=budget).bytes == single(pipe, jobs)
    assert all(done.seconds > 0 and done.error == "" for done in tray.done.values())


def test_a_model_that_stays_in_memory_draws_the_same(pipe: TextToImage, tray: Tray) -> None:
    jobs = mixed(pipe)[:3]
    assert tray.draw(jobs, pipe).bytes == single(pipe, jobs)


def test_a_stage_runs_over_a_window_before_the_next_one(
    pipe: TextToImage, model: TextToImage, tray: Tray, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = loading.read_component

    def recorded(path: Path, name: str, *rest: Any) -> Any:
        reads.append(name)
        return read(path, name, *rest)

    monkeypatch.setattr(loading, "read_component", recorded)
    jobs = [job(pipe, seed, size=64 if seed != 2 else 16) for seed in range(1, 6)]
    tray.draw(jobs, model, budget=Budget(batches=3))
    through = [event.stage for event in tray.events if event.what == "batch"]
    windows = [
        [*["text"] * n, *["prior"] * n, *["decoder"] * n, *["super-res-64"] * s] for n, s in ((3, 2), (2, 2))
    ]
    assert through == windows[0] + windows[1]
    # the small picture does not wait for the others
    assert list(tray.done) == [2, 1, 3, 4, 5]
    assert reads == 2 * ["text_encoder", "prior", "dual_encoder", "decoder", "super_res"]


def test_the_weights_of_one_stage_are_in_memory(pipe: TextToImage, model: TextToImage, tray: Tray) -> None:
    stages = {stage.name: stage for stage in model.cascade.stages}
    assert resident(model) == set()

    def look(event: Event) -> None:
        assert resident(model) == set(stages[event.stage].networks)
        tray.events.append(event)

    render(mixed(pipe), model, tray.commit, folder=tray.path, watch=look)
    assert {event.stage for event in tray.events} == set(stages)
    assert resident(model) == set()


def test_an_opened_model_draws_a_single_picture_and_lets_go(pipe: TextToImage, model: TextToImage) -> None:
    request = job(pipe, 7, size=64, negative_prompt="snow").request
    assert model.run(request).images[0].tobytes() == pipe.run(request).images[0].tobytes()
    assert resident(model) == set()


def test_what_is_done_is_not_drawn_and_reads_nothing(
    pipe: TextToImage, model: TextToImage, tray: Tray, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = mixed(pipe)
    monkeypatch.setattr(model.cascade.residency, "_read", {})
    tray.draw(jobs, model, done=lambda _job: True)
    assert tray.done == {}
    assert tray.events == []


def test_jobs_that_are_done_leave_batches_as_they_are(
    pipe: TextToImage, model: TextToImage, tray: Tray
) -> None:
    jobs = [job(pipe, seed, prompt) for seed, prompt in enumerate(("a cat", "two very big dogs", "snow"), 1)]
    calls = fail_when(model, "decoder", lambda _x: False, RuntimeError())
    tray.draw(jobs, model, batch_size=3)
    again = Tray(tray.path).draw(jobs, model, batch_size=3, done=lambda job: job.index != 2)
    assert again.bytes == {2: tray.bytes[2]}
    assert calls == [6, 6, 6, 6]  # guidance runs both halves in one call
    assert near(tray.bytes, single(pipe, jobs))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_run_that_was_stopped_anywhere_ends_with_the_same(
    pipe: TextToImage, model: TextToImage, tray: Tray, batch_size: int
) -> None:
    jobs = [job(pipe, seed, size=64 if seed == 2 else 16) for seed in range(1, 5)]
    budget = Budget(batches=2)
    whole = tray.draw(jobs, model, batch_size=batch_size, budget=budget).bytes
    count = len([event for event in tray.events if event.what == "batch"])
    kept = []
    for asked in range(count):
        part, left = Tray(tray.path), iter([False] * asked)
        part.draw(jobs, model, stop=lambda left=left: next(left, True), batch_size=batch_size, budget=budget)
        kept.append(len(part.done))
        part.draw(jobs, model, done=lambda j, p=part: j.index in p.done, batch_size=batch_size, budget=budget)
        assert part.bytes == whole
    assert kept == sorted(kept)
    assert {0, len(jobs) - 1} <= set(kept) if batch_size == 1 else kept[0] == 0 < kept[-1]


def test_what_commit_raises_ends_the_run(pipe: TextToImage, model: TextToImage, tmp_path: Path) -> None:
    def full(_done: Done) -> None:
        raise MachineError("the disk is full")

    with pytest.raises(MachineError, match="disk is full"):
        render(mixed(pipe), model, full, folder=tmp_path, budget=Budget(memory=0))
    assert list(tmp_path.iterdir()) == []
    assert resident(model) == set()


# ---- micro-batches and windows -------------------------------------------------------------------


def test_batches_are_cut_by_place_alone(pipe: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [job(pipe, seed, f"{seed} cats") for seed in range(1, 8)]
    other = [job(pipe, seed, stages=SLOWER) for seed in (8, 9)]
    jobs = [*small[:2], other[0], *small[2:6], other[1], small[6]]
    cut = [[job.index for job in batch] for batch in batches(jobs, 3)]
    assert cut == [[1, 2, 3], [8, 9], [4, 5, 6], [7]]
    monkeypatch.setattr(cutting, "BLOCK", 4)
    assert [[job.index for job in batch] for batch in batches(iter(jobs), 3)] == [
        [1, 2, 3], [8], [4, 5, 6], [9], [7]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"size": 64}, {"negative_prompt": "snow"}, {"stages": SLOWER}],
    ids=["size", "negative", "settings"],
)
def test_only_jobs_that_are_drawn_alike_run_together(pipe: TextToImage, changes: dict[str, Any]) -> None:
    assert len(list(batches([job(pipe, 1), job(pipe, 2, **changes)], 2))) == 2
    assert len(list(batches([job(pipe, 1, **changes), job(pipe, 2, "a dog", **changes)], 2))) == 1


def test_a_window_is_what_the_budget_holds_and_at_least_one_batch(pipe: TextToImage) -> None:
    jobs = [job(pipe, seed, size=256) for seed in range(1, 8)]
    cut = list(batches(jobs, 2))

    def sizes(budget: Budget, done: Callable[[Job], bool] = lambda _job: False) -> list[int]:
        return [sum(map(len, window)) for window, _ in windows(cut, done, pipe.sizes, budget)]

    assert sizes(Budget()) == [7]
    assert sizes(Budget(batches=2)) == [4, 3]
    assert sizes(Budget(drafts=4 * cutting.TEXT_BYTES)) == [4, 3]
    assert sizes(Budget(drafts=0)) == [2, 2, 2, 1]
    assert sizes(Budget(batches=2), lambda job: job.index in (1, 2, 3)) == [4, 1]


# ---- drafts --------------------------------------------------------------------------------------


def drafted() -> Draft:
    g = torch.Generator().manual_seed(1)
    told = Conditioning(
        text=torch.randn(2, 5, 8, generator=g).bfloat16(),
        text_mask=torch.rand(2, 5, generator=g) > 0.5,
        pooled=torch.randn(2, 8, generator=g),
    )
    image = torch.randn(2, 3, 4, 6, generator=g).to(memory_format=torch.channels_last)
    embed, latent = torch.randn(2, 4, generator=g), torch.randn(2, 4, 2, 3, generator=g)
    return Draft(("a", "b"), "c", told, told[0:2], image_embed=embed, latent=latent, image=image)


def tensors(draft: Draft) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    map_tensors(draft, lambda name, value: found.setdefault(name, value))
    return found


@pytest.mark.parametrize("most", [0, 10**6])
def test_a_draft_comes_back_bit_by_bit(tmp_path: Path, most: int) -> None:
    with torch.inference_mode():
        draft = drafted()
    before = {name: value.clone() for name, value in tensors(draft).items()}
    with Drafts(tmp_path, most) as drafts:
        kept, one = drafts.keep(draft), drafts.keep(rows_of(draft, slice(1, 2)))
        assert len(list(tmp_path.iterdir())) == (most == 0)
        back = drafts.take(kept)
        assert (back.prompts, back.negative_prompt) == (("a", "b"), "c")
        assert tensors(back).keys() == before.keys()
        for name, value in tensors(back).items():
            assert value.dtype == before[name].dtype
            assert value.stride() == before[name].stride()
            assert torch.equal(value, before[name])
        assert torch.equal(tensors(drafts.take(one))["image"], before["image"][1:])
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_beyond_the_budget_goes_to_disk(tmp_path: Path) -> None:
    draft = drafted()
    with Drafts(tmp_path, 2 * size_of(draft)) as drafts:
        kept = [drafts.keep(draft) for _ in range(3)]
        assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
        drafts.take(kept[0])
        drafts.keep(draft)
        assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
        assert drafts.spill()
        assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
        assert not drafts.spill()
        assert all(torch.equal(drafts.take(k).image, draft.image) for k in kept[1:])


def test_drafts_of_a_dead_process_are_removed_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    code = "from mmgen.temporary import temporary_name; print(temporary_name())"
    name = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    if re.fullmatch(r"\.mmgen-[0-9a-f]{16}\.tmp", name):
        pytest.skip("this system does not say which processes live")
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.safetensors").write_bytes(b"")
    with Drafts(tmp_path, 0) as living:
        assert list(tmp_path.iterdir()) == []
        kept = living.keep(drafted())
        with Drafts(tmp_path, 0):
            pass
        living.take(kept)


def test_a_disk_that_cannot_be_written_or_read_is_a_machine_error(tmp_path: Path) -> None:
    with Drafts(tmp_path / "gone", 0) as drafts, pytest.raises(MachineError, match="cannot be put"):
        drafts.keep(drafted())
    with Drafts(tmp_path, 0) as drafts:
        kept = drafts.keep(drafted())
        shutil.rmtree(next(tmp_path.iterdir()))
        with pytest.raises(MachineError, match="cannot be read again"):
            drafts.take(kept)


# ---- what goes wrong -----------------------------------------------------------------------------


def fail_when(model: TextToImage, name: str, full: Callable[[Tensor], bool], error: Exception) -> list[int]:
    """The network of a stage raises whenever `full` says so of its x_t. Returns the rows of each call, as they come."""
    calls: list[int] = []

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].is_meta:  # an estimate
            return
        calls.append(len(args[0]))
        if full(args[0]):
            raise error

    network(model, name).register_forward_pre_hook(hook)
    return calls


def test_out_of_memory_twice_halves_the_batch_and_remembers(
    pipe: TextToImage, model: TextToImage, tray: Tray
) -> None:
    jobs = [job(pipe, seed, "a cat" if seed % 2 else "two big dogs") for seed in range(1, 7)]
    # guidance runs both halves in one call
    error = torch.OutOfMemoryError("CUDA out of memory")
    calls = fail_when(model, "decoder", lambda x: len(x) > 2, error)
    tray.draw(jobs, model, batch_size=4)
    assert tray.notes == [("decoder", "2 at a time"), ("decoder", "1 at a time")]
    assert calls == [8, 4] + 12 * [2]
    assert near(tray.bytes, single(pipe, jobs))


def test_one_picture_alone_is_tried_again_with_all_others_on_disk(
    pipe: TextToImage, model: TextToImage, tray: Tray
) -> None:
    jobs = [job(pipe, seed) for seed in (1, 2, 3)]
    left = iter([True])
    calls = fail_when(model, "decoder", lambda _x: next(left, False), MemoryError())
    assert tray.draw(jobs, model).bytes == single(pipe, jobs)
    assert tray.notes == [("decoder", "unfinished pictures go to disk")]
    assert len(calls) == 7


def test_super_resolution_goes_on_in_smaller_squares(
    pipe: TextToImage, model: TextToImage, tray: Tray, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(pipe, seed, size=256) for seed in (1, 2)]
    error = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"
    )
    fail_when(model, "super-res-256", lambda x: x.shape[-1] > 128, error)
    tray.draw(jobs, model)
    assert tray.notes == [
        ("super-res-256", "unfinished pictures go to disk"),
        ("super-res-256", "in smaller squares"),
    ]
    monkeypatch.setattr(super_res_stage, "SQUARE", 128)
    assert tray.bytes == single(pipe, jobs)


def test_a_picture_without_memory_fails_alone(pipe: TextToImage, model: TextToImage, tray: Tray) -> None:
    jobs = [job(pipe, seed, size=64) for seed in (1, 2, 3)]
    noise = Noise([2], "decoder").draw((3, 16, 16))[0]
    fail_when(model, "decoder", lambda x: torch.equal(x[0], noise), MemoryError())
    tray.draw(jobs, model)
    assert tray.bytes == {k: v for k, v in single(pipe, jobs).items() if k != 2}
    assert list(tray.errors) == [2]
    assert "stage 'decoder' ran out of memory" in tray.errors[2]
    assert "\n" not in tray.errors[2]


def test_a_picture_of_nan_fails_alone(pipe: TextToImage, model: TextToImage, tray: Tray) -> None:
    jobs = [job(pipe, seed, size=64) for seed in (1, 2, 3)]
    noise = Noise([2], "decoder").draw((3, 16, 16))[0]

    def spoil(_module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        broken = torch.tensor([torch.equal(row, noise) for row in args[0]])
        return torch.where(broken[:, None, None, None], torch.nan, out)

    network(model, "decoder").register_forward_hook(spoil)
    tray.draw(jobs, model, batch_size=3)
    assert near(tray.bytes, {k: v for k, v in single(pipe, jobs).items() if k != 2})
    assert list(tray.errors) == [2]
    assert "NaN" in tray.errors[2]
    assert tray.notes == []


def test_an_error_that_nobody_foresaw_is_not_a_failed_picture(
    pipe: TextToImage, model: TextToImage, tray: Tray
) -> None:
    fail_when(model, "decoder", lambda _x: True, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        tray.draw([job(pipe, 1)], model)
    assert resident(model) == set()


def test_weights_without_room_are_tried_twice(
    pipe: TextToImage, model: TextToImage, tray: Tray, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, read, left = [job(pipe, 1)], loading.read_component, [MemoryError()]

    def full(path: Path, name: str, *rest: Any) -> Any:
        if name == "decoder" and left:
            raise left.pop()
        return read(path, name, *rest)

    monkeypatch.setattr(loading, "read_component", full)
    assert tray.draw(jobs, model).bytes == single(pipe, jobs)
    left += [MemoryError(), MemoryError()]
    with pytest.raises(MachineError, match="no memory for the weights of stage 'decoder'"):
        Tray(tray.path).draw(jobs, model)


def test_jobs_of_another_model_are_refused(pipe: TextToImage, model: TextToImage, tray: Tray) -> None:
    asked = job(pipe, 1)
    other = replace(asked, request=replace(asked.request, model_digest="0" * 64))
    with pytest.raises(ModelError, match="line 1 is for tiny 000000000000"):
        tray.draw([other], model)


@pytest.fixture
def changeable(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "changeable"))


def test_weights_that_changed_since_they_were_checked_are_refused(
    pipe: TextToImage, changeable: Path
) -> None:
    opened = open_model(changeable, device="cpu", dtype="float32")
    weights = changeable / "decoder" / WEIGHTS
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="decoder of checkpoint changeable has changed"):
        opened.run(job(pipe, 1).request)
    shutil.rmtree(changeable)
    with pytest.raises(ModelError, match="text_encoder of checkpoint changeable has changed"):
        opened.run(job(pipe, 1).request)


def test_an_opened_model_is_checked_before_anything_is_drawn(changeable: Path) -> None:
    weights = changeable / "super_res" / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\1")
    with pytest.raises(ModelError, match="damaged"):
        open_model(changeable, device="cpu")


def test_weights_of_nan_are_refused_when_their_stage_begins(changeable: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = changeable / "decoder" / WEIGHTS
    weights = {name: value.clone() for name, value in load_file(path).items()}
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, path)
    write_manifest(changeable)
    opened = open_model(changeable, device="cpu", dtype="float32")
    asked = opened.request(PROMPT, seeds=[1], size=16, stages=FAST)
    with pytest.raises(ModelError, match="NaN or infinity"):
        opened.run(asked)
    assert resident(opened) == set()


# ---- memory that is known beforehand -------------------------------------------------------------


def room_for(model: TextToImage, name: str, pictures: float, *, smaller: bool = False) -> int:
    """Bytes that a stage needs for so many pictures of PROMPT at once, by its estimate."""
    draft = Draft((PROMPT,))
    for stage in model.cascade.stages:
        settings = FAST.get(stage.name, stage.defaults).with_defaults(stage.defaults)
        runs = in_smaller_squares(stage) if smaller and stage.name == name else stage
        assert runs is not None
        found = cost(runs, draft, settings)
        assert found is not None
        if stage.name == name:
            break
        draft = found.draft
    return round(pictures * found.bytes / WORKING_SHARE) + stage_weights(stage)


def test_a_stage_takes_as_many_pictures_at_once_as_there_is_room_for(
    pipe: TextToImage, model: TextToImage, tray: Tray
) -> None:
    jobs = [job(pipe, seed) for seed in range(1, 6)]
    calls = fail_when(model, "decoder", lambda _x: False, RuntimeError())
    room = Room(room_for(model, "decoder", 2.5))
    tray.draw(jobs, model, batch_size=4, budget=Budget(memory=0, room=room))
    assert calls == [4, 4, 4, 4, 2, 2]  # guidance runs both halves in one call
    assert tray.notes == []
    assert near(tray.bytes, single(pipe, jobs))


def tight(tray: Tray) -> dict[str, str]:
    return {event.stage: event.note for event in tray.events if event.what == "tight"}


def test_who_asks_for_less_memory_gets_squares_and_is_told(
    pipe: TextToImage, model: TextToImage, tray: Tray, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(pipe, seed, size=256) for seed in (1, 2)]
    room = Room(room_for(model, "super-res-256", 1.1, smaller=True), asked=True)
    tray.draw(jobs, model, budget=Budget(memory=0, room=room))
    assert list(tight(tray)) == ["super-res-256"]
    assert "in squares of 128 px" in tight(tray)["super-res-256"]
    assert "all the same" not in tight(tray)["super-res-256"]
    monkeypatch.setattr(super_res_stage, "SQUARE", 128)
    assert tray.bytes == single(pipe, jobs)


def test_what_happens_to_be_free_changes_no_picture(
    pipe: TextToImage, model: TextToImage, tray: Tray
) -> None:
    jobs = [job(pipe, seed, size=256) for seed in (1, 2)]
    tray.draw(jobs, model, budget=Budget(room=Room(1000)))
    assert tray.bytes == single(pipe, jobs)
    assert list(tight(tray)) == [stage.name for stage in model.cascade.stages]
    assert all("room for 0 MB; it is tried all the same" in note for note in tight(tray).values())


def test_drafts_take_a_share_of_what_a_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert budget_of(Room(8_000_000), cpu).memory == 1_000_000
    assert budget_of(Room(10**12), cpu) == Budget(room=Room(10**12))
    assert budget_of(None, cpu) == Budget()
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda device: 8_000_000 if device == cpu else 10**12)
    assert budget_of(room(cuda), cuda) == Budget(memory=1_000_000, room=Room(10**12))
    assert room(cpu, 5) == Room(5, asked=True)
    monkeypatch.setattr("mmgen.memory.free_bytes", lambda _device: 0)
    assert room(cpu) is None
