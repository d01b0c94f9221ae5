"""Several workers: each picture is drawn once, whoever is lost, and its bytes are those of one process."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgen import memory
from mmgen.errors import MachineError, ModelError
from mmgen.images import encode
from mmgen.pipelines import loading
from mmgen.pipelines.loading import open_model
from mmgen.render.engine import Done, Event
from mmgen.render.jobs import Job
from mmgen.render.pool import Finished, Lost, Message, Opened, Pool, Processes, Setup, work
from mmgen.render.windows import Batch, Budget, Window, shared, windows
from mmgen.types import Request, StageSettings
from tests.checkpoints import write_tiny
from tests.render.whole import render

FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=2)}
MODEL = Opened("none", None, 1, (16,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


def some(count: int) -> list[Job]:
    """Jobs of no model."""
    return [
        Job(seed, seed, Request(("a cat",), (seed,), (16, 16)), f"{seed}.png") for seed in range(1, count + 1)
    ]


def in_batches(jobs: list[Job], size: int) -> list[Batch]:
    return [tuple(jobs[i : i + size]) for i in range(0, len(jobs), size)]


def sharing(cut: Iterable[Batch], total: int, workers: int) -> list[Window]:
    return list(shared(cut, lambda _job: False, MODEL.sizes, total=total, workers=workers))


class Chance:
    """Workers that draw nothing: who says what next is left to chance.

    losses: how often one is lost, of 1. deadly: indices of jobs that no worker survives.
    """

    def __init__(
        self, count: int, chance: random.Random, losses: float = 0.0, deadly: Iterable[int] = ()
    ) -> None:
        self.count, self._chance, self._losses, self._deadly = count, chance, losses, set(deadly)
        self._to_say: dict[int, list[Message]] = {}
        self.given: list[Window | None] = []

    def start(self, worker: int) -> None:
        assert not self._to_say.get(worker)
        self._to_say[worker] = [MODEL]

    def give(self, worker: int, window: Window | None) -> None:
        self.given.append(window)
        if window is None:
            del self._to_say[worker][1:]
            self._to_say[worker].append(Finished())
            return
        assert not self._to_say[worker], "it is drawing"
        assert window[1], "there is nothing to draw"
        for batch in window[0]:
            if self._deadly & {job.index for job in batch}:
                self._to_say[worker].append(Lost("a bad picture"))
                return
            self._to_say[worker] += [Done(job, b"drawn", 1.0, 0) for job in batch if job.key in window[1]]
        self._to_say[worker].append(Finished())

    def hear(self, seconds: float) -> list[tuple[int, Message]]:
        worker = self._chance.choice([one for one, messages in self._to_say.items() if messages])
        message = self._to_say[worker].pop(0)
        if self._chance.random() < self._losses and not isinstance(message, Opened):
            message = Lost("chance")
        if isinstance(message, Lost):
            del self._to_say[worker]
        return [(worker, message)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None: ...


class Tray:
    """Where pictures arrive, by index."""

    def __init__(self) -> None:
        self.done: dict[int, Done] = {}
        self.events: list[Event] = []

    def commit(self, done: Done) -> None:
        assert done.job.index not in self.done, "a picture was committed twice"
        self.done[done.job.index] = done

    @property
    def failed(self) -> dict[int, str]:
        return {index: done.error for index, done in sorted(self.done.items()) if done.image is None}


def drawn(workers: Chance, cut: Iterable[Window], **given: Any) -> Tray:
    tray = Tray()
    with workers:
        pool = Pool(workers)
        assert pool.open() == MODEL
        pool.draw(cut, tray.commit, watch=tray.events.append, **given)
    return tray


# ---- who draws what ------------------------------------------------------------------------------


@given(
    chance=st.randoms(use_true_random=False),
    count=st.integers(0, 40),
    size=st.integers(1, 4),
    workers=st.integers(1, 5),
)
def test_every_picture_is_committed_once_in_whatever_order(
    chance: random.Random, count: int, size: int, workers: int
) -> None:
    jobs = some(count)
    cut = in_batches(jobs, size)
    crew = Chance(workers, chance, losses=0.02)
    tray = drawn(crew, sharing(cut, count, workers))
    assert sorted(tray.done) == [job.index for job in jobs]
    # a micro-batch is never cut, whatever has come back of it
    assert all(batch in cut for window in crew.given if window for batch in window[0])


@given(chance=st.randoms(use_true_random=False), deadly=st.sets(st.integers(1, 20), max_size=3))
def test_a_picture_that_takes_every_worker_with_it_fails_with_its_micro_batch_alone(
    chance: random.Random, deadly: set[int]
) -> None:
    cut = in_batches(some(20), 2)
    tray = drawn(Chance(3, chance, deadly=deadly), sharing(cut, 20, 3))
    assert sorted(tray.done) == list(range(1, 21))
    with_it = {job.index for batch in cut for job in batch if deadly & {one.index for one in batch}}
    assert tray.failed.keys() == with_it
    assert all(
        "3 workers were lost while it was drawn, the last by a bad picture" in e for e in tray.failed.values()
    )
    assert len([event for event in tray.events if event.what == "lost"]) >= 3 * bool(deadly)


@given(chance=st.randoms(use_true_random=False), after=st.integers(0, 12))
def test_a_run_that_is_asked_to_stop_gives_out_nothing_more(chance: random.Random, after: int) -> None:
    crew = Chance(2, chance)
    tray = Tray()
    pool = Pool(crew)
    pool.open()
    cut = sharing(in_batches(some(12), 1), 12, 2)
    pool.draw(cut, tray.commit, stop=lambda: len(tray.done) >= after)
    stopped = crew.given.index(None) if None in crew.given else len(crew.given)
    assert set(crew.given[stopped:]) <= {None}
    assert after <= len(tray.done) <= min(12, after + 2)


def test_a_worker_that_is_slow_to_begin_is_not_waited_for() -> None:
    class OneIsSlow(Chance):
        def start(self, worker: int) -> None:
            if worker == 0:
                super().start(worker)

    tray = drawn(OneIsSlow(2, random.Random(0)), sharing(in_batches(some(5), 1), 5, 2))
    assert len(tray.done) == 5


def test_workers_that_cannot_begin_are_given_up() -> None:
    class Stillborn(Chance):
        def start(self, worker: int) -> None:
            self._to_say[worker] = [Lost("exit code -9")]

    with pytest.raises(MachineError, match=r"before they have read the model \(exit code -9\)"):
        Pool(Stillborn(2, random.Random(0))).open()


def test_what_a_worker_raises_ends_the_run() -> None:
    class Broken(Chance):
        def give(self, worker: int, window: Window | None) -> None:
            self._to_say[worker].append(ModelError("the weights have changed"))

    with pytest.raises(ModelError, match="weights have changed"):
        drawn(Broken(2, random.Random(0)), sharing(in_batches(some(5), 1), 5, 2))


def test_windows_for_several_workers_become_smaller_towards_the_end() -> None:
    cut = in_batches(some(300), 1)
    sizes = [len(window) for window, _ in sharing(cut, 300, 3)]
    assert sum(sizes) == 300
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 30
    assert sizes[-3:] == [1, 1, 1]
    alone = windows(cut, lambda _job: False, MODEL.sizes, Budget())
    assert sharing(cut, 300, 1) == list(alone)


# ---- a worker ------------------------------------------------------------------------------------


class Line:
    """A channel within this process."""

    def __init__(self, *given: Window | None) -> None:
        self.sent: list[Message] = []
        self._given: SimpleQueue[Window | None] = SimpleQueue()
        for window in given:
            self._given.put(window)
        self.send, self.recv = self.sent.append, self._given.get

    def poll(self) -> bool:
        return False


def jobs_of(folder: Path, seeds: Iterable[int], size: int = 16) -> list[Job]:
    model = open_model(folder, device="cpu", dtype="float32")
    return [
        Job(seed, seed, model.request("a red cat", seeds=[seed], size=size, stages=FAST), f"{seed}.png")
        for seed in seeds
    ]


def window_of(jobs: list[Job]) -> Window:
    return in_batches(jobs, 1), frozenset(job.key for job in jobs)


def expected(folder: Path, jobs: list[Job], tmp_path: Path) -> dict[int, bytes]:
    """The files that one process makes."""
    files: dict[int, bytes] = {}

    def commit(done: Done) -> None:
        assert done.image is not None
        assert not isinstance(done.image, bytes)
        files[done.job.index] = encode(done.image, "png", done.job.request)

    render(jobs, open_model(folder, device="cpu", dtype="float32"), commit, folder=tmp_path)
    return files


def test_a_worker_sends_files_and_when_it_is_free(folder: Path, tmp_path: Path) -> None:
    jobs = jobs_of(folder, (1, 2, 3))
    line = Line(window_of(jobs[:2]), window_of(jobs[2:]), None)
    work(Setup(str(folder), "png", "cpu", "float32"), line, tmp_path)
    said = [message for message in line.sent if not isinstance(message, Event)]
    assert isinstance(said[0], Opened)
    assert said[0].name == "tiny"
    assert [type(message) for message in said[1:]] == [Done, Done, Finished, Done, Finished, Finished]
    files = {message.job.index: message.image for message in said if isinstance(message, Done)}
    assert files == expected(folder, jobs, tmp_path)


def test_a_worker_says_what_is_wrong(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Line(None)
    work(Setup("nowhere", "png"), missing, tmp_path)
    assert [type(message) for message in missing.sent] == [ModelError]

    def unforeseen(*_args: object, **_more: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(loading, "locate", unforeseen)
    broken = Line(None)
    work(Setup(str(folder), "png"), broken, tmp_path)
    (error,) = broken.sent
    assert isinstance(error, RuntimeError)
    assert str(error) == "in a worker: KeyError: 'lost'"
    assert "in unforeseen" in error.__notes__[0]


@pytest.mark.parametrize(("dtype", "threads"), [("bfloat16", 2), ("float32", 8)])
def test_sums_that_depend_on_the_number_of_threads_keep_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, threads: int
) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    Setup(str(folder), "png", "cpu", dtype, threads=8, beside=4).open()
    assert told == [threads]


@pytest.mark.parametrize(("asked", "each"), [(None, 250), (1000, 1000)])
def test_workers_share_what_is_free_and_each_may_take_what_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, each: int
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1000)
    setup = Setup(str(folder), "png", "cpu", beside=4, memory=asked)
    found = setup.budget(setup.open()).room
    assert found is not None
    assert found.bytes == each


@pytest.mark.parametrize(
    ("device", "gpus", "devices"),
    [
        (None, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", 2, ["cuda:1", "cuda:1", "cuda:1"]),
        ("cpu", 2, ["cpu", "cpu", "cpu"]),
        (None, 0, [None, None, None]),
    ],
)
def test_processes_take_the_gpus_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, gpus: int, devices: list[str | None]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    workers = Processes(Setup("storybook", "png", device), 3, tmp_path)
    assert [setup.device for setup in workers.setups] == devices
    assert workers.setups[0].beside == devices.count(devices[0])


# ---- processes -----------------------------------------------------------------------------------


def test_processes_draw_the_files_of_one_although_one_of_them_is_killed(folder: Path, tmp_path: Path) -> None:
    jobs = jobs_of(folder, range(1, 11), size=64)
    whole = expected(folder, jobs, tmp_path)
    tray = Tray()

    def commit(done: Done) -> None:
        if not tray.done:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        tray.commit(done)

    with Processes(Setup(str(folder), "png", "cpu", "float32"), 2, tmp_path) as workers:
        pool = Pool(workers)
        opened = pool.open()
        pool.draw(
            shared(in_batches(jobs, 1), lambda _job: False, opened.sizes, total=10, workers=2),
            commit,
            watch=tray.events.append,
        )
    assert {index: done.image for index, done in sorted(tray.done.items())} == whole
    assert [event.note for event in tray.events if event.what == "lost"] == [
        "a worker was lost (exit code -9), another one goes on"
    ]
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []
