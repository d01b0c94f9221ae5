"""Several workers draw one run: whoever is free takes the next window, and this process alone commits.

Rules alone cut micro-batches, so who draws one changes no picture. Workers send the bytes of files and what happens;
they write nothing that lasts. What a lost worker had not sent is drawn by another one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from PIL.Image import Image

from mmgen import attention
from mmgen.errors import MachineError, MmgenError
from mmgen.images import Format, encode
from mmgen.memory import choose_device, choose_dtype, keep_little, room
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.engine import Done, Event, budget_of, draw
from mmgen.render.windows import Batch, Budget, Window
from mmgen.temporary import remove_stale

ASK_SECONDS = 0.2  # between two times that the run is asked whether to stop, when no worker says anything
MOST_LOSSES = 3  # workers that may be lost over the same pictures
MOST_STARTS = 3  # workers that may be lost one after the other before they have opened the model


@dataclass(frozen=True)
class Setup:
    """How a worker draws: what `open_model` and `attention.use` are told, and the format of the files.

    threads: that one process computes with here. beside: workers that share a device. memory: bytes that each may
    take of it, None: what is free, in equal parts.
    """

    model: str
    format: Format
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    threads: int | None = None
    beside: int = 1
    memory: int | None = None

    def open(self) -> TextToImage:
        """The model, its weights read for their turn only. Raises what `open_model` does."""
        if self.threads is not None:
            torch.set_num_threads(self._threads(self.threads))
        if self.attention is not None:
            attention.use(self.attention)
        if self.memory is not None:
            keep_little()
        return open_model(self.model, device=self.device, dtype=self.dtype, memory=self.memory)

    def budget(self, model: TextToImage) -> Budget:
        """What this worker may take."""
        found = room(model.device, self.memory)
        # what is asked decides about squares, which make other pictures: it is the same however many draw
        if found is not None and not found.asked:
            found = replace(found, bytes=found.bytes // self.beside)
        return budget_of(found, model.device)

    def _threads(self, whole: int) -> int:
        number = choose_dtype(self.dtype, choose_device(self.device))
        # sums in float32 depend on the number of threads in their last bits: there it stays that of one process
        return max(1, whole // self.beside) if number == torch.bfloat16 else whole


@dataclass(frozen=True)
class Opened:
    """What the run needs to know of the model that a worker has opened: see `TextToImage`."""

    name: str
    words: frozenset[str] | None
    batch_size: int
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, model: TextToImage) -> Opened:
        return cls(model.name, model.words, model.batch_size, model.sizes)


@dataclass(frozen=True)
class Finished:
    """A window is through, or left as it was when the worker was asked to stop."""


@dataclass(frozen=True)
class Lost:
    """A worker is no more; how: in a few words."""

    how: str


Message = Opened | Done | Event | Finished | Lost | Exception


# ---- a worker ------------------------------------------------------------------------------------


class Channel(Protocol):
    """A worker's line to the process that commits. `recv` raises EOFError when there is none any more."""

    def send(self, message: Message, /) -> None: ...

    def recv(self) -> Window | None: ...

    def poll(self) -> bool: ...


def work(setup: Setup, channel: Channel, folder: Path) -> None:
    """Open the model, then draw the windows that come; anything that comes meanwhile ends it after the micro-batch.

    folder: where drafts may be put for a while. What goes wrong is sent, too.
    """
    try:
        model = setup.open()
        channel.send(Opened.of(model))

        def commit(done: Done) -> None:
            if isinstance(done.image, Image):
                done = replace(done, image=encode(done.image, setup.format, done.job.request))
            channel.send(done)

        draw(
            _windows(channel),
            commit,
            model=model,
            folder=folder,
            stop=channel.poll,
            watch=channel.send,
            budget=setup.budget(model),
        )
        channel.send(Finished())
    except MmgenError as error:
        channel.send(error)
    except Exception as error:  # noqa: BLE001 - whoever reads the other end decides
        told = RuntimeError(f"in a worker: {type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
        channel.send(told)


def _windows(channel: Channel) -> Iterator[Window]:
    while (window := channel.recv()) is not None:
        yield window
        channel.send(Finished())


# ---- many workers --------------------------------------------------------------------------------


class Workers(Protocol):
    """Where workers are, each known by its number; a context, at whose end none is left.

    give: a window to one that is free, or None to one that draws, which then stops after the micro-batch in flight.
    hear: what some of them say, in their order, at least one unless the time is up.
    """

    count: int

    def start(self, worker: int) -> None: ...

    def give(self, worker: int, window: Window | None) -> None: ...

    def hear(self, seconds: float) -> list[tuple[int, Message]]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class _Task:
    """Micro-batches that one worker draws; missing: keys that have not come back. losses: workers it was lost with."""

    batches: Sequence[Batch]
    missing: set[str]
    losses: int = 0

    def rest(self) -> list[Batch]:
        """The micro-batches that are to be drawn again, as a whole: so their pictures stay the same."""
        return [batch for batch in self.batches if any(job.key in self.missing for job in batch)]


class Pool:
    """Gives windows to workers as they are free, and commits what they draw."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._opened: Opened | None = None
        self._starting: set[int] = set()
        self._free: deque[int] = deque()
        self._busy: dict[int, _Task] = {}
        self._again: deque[_Task] = deque()
        self._lost_starts = 0
        self._stopping = False

    def open(self) -> Opened:
        """Begin all workers; what the first to be ready says. Raises what `open_model` does, or MachineError."""
        for worker in range(self._workers.count):
            self._start(worker)
        while self._opened is None:
            self._hear(lambda _done: None, lambda _event: None)
        return self._opened

    def draw(
        self,
        cut: Iterable[Window],
        commit: Callable[[Done], None],
        *,
        stop: Callable[[], bool] = lambda: False,
        watch: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        """Draw windows as `engine.draw` does, after `open`, each picture committed once, in whatever order.

        A window that was lost with two workers is drawn by micro-batches, and a micro-batch that takes a third one with
        it fails. Raises what a worker raised, and MachineError if no worker can begin any more.
        """
        tasks = (_Task(batches, set(missing)) for batches, missing in cut)
        while True:
            if not self._stopping and stop():
                self._stop()
            nothing_left = self._stopping or self._give_out(tasks)
            if nothing_left and not self._busy:
                return
            self._hear(commit, watch)

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._busy:
            self._workers.give(worker, None)

    def _give_out(self, tasks: Iterator[_Task]) -> bool:
        """Something to do for everybody who is free; whether there was too little."""
        while self._free:
            task = self._again.popleft() if self._again else next(tasks, None)
            if task is None:
                return True
            worker = self._free.popleft()
            self._busy[worker] = task
            self._workers.give(worker, (task.batches, frozenset(task.missing)))
        return False

    def _hear(self, commit: Callable[[Done], None], watch: Callable[[Event], None]) -> None:
        for worker, message in self._workers.hear(ASK_SECONDS):
            match message:
                case Opened():
                    self._opened = self._opened or message
                    self._starting.discard(worker)
                    self._free.append(worker)
                    self._lost_starts = 0
                case Done():
                    self._busy[worker].missing.remove(message.job.key)
                    commit(message)
                case Event():
                    watch(message)
                case Finished():
                    if self._busy.pop(worker, None):
                        self._free.append(worker)
                case Lost():
                    self._lose(worker, message.how, commit, watch)
                case Exception():
                    raise message

    def _lose(
        self, worker: int, how: str, commit: Callable[[Done], None], watch: Callable[[Event], None]
    ) -> None:
        task = self._busy.pop(worker, None)
        if worker in self._free:
            self._free.remove(worker)
        if self._stopping:
            return
        if worker in self._starting:
            self._lost_starts += 1
            if self._lost_starts == MOST_STARTS:
                raise MachineError(
                    f"workers end before they have read the model ({how}): ask for fewer --workers"
                )
        watch(Event("lost", note=f"a worker was lost ({how}), another one goes on"))
        if task is not None and task.missing:
            self._put_back(replace(task, batches=task.rest(), losses=task.losses + 1), how, commit)
        self._start(worker)

    def _put_back(self, task: _Task, how: str, commit: Callable[[Done], None]) -> None:
        if task.losses < MOST_LOSSES - 1:
            self._again.append(task)
        elif task.losses < MOST_LOSSES:
            self._again.extend(
                replace(task, batches=[one], missing=_keys(one) & task.missing) for one in task.batches
            )
        else:
            error = f"{task.losses} workers were lost while it was drawn, the last by {how}"
            for job in (job for batch in task.batches for job in batch if job.key in task.missing):
                commit(Done(job, None, 0.0, 0, error))

    def _start(self, worker: int) -> None:
        self._starting.add(worker)
        self._workers.start(worker)


def _keys(batch: Batch) -> set[str]:
    return {job.key for job in batch}


# ---- processes -----------------------------------------------------------------------------------


class Processes:
    """Workers that are processes of this machine.

    setup: of each, but that all GPUs are taken in turn where it names none. folder: where they may put drafts; it must
    exist. They end with this process, however it ends.
    """

    def __init__(self, setup: Setup, count: int, folder: Path) -> None:
        gpus = torch.cuda.device_count() if setup.device in (None, "cuda") else 0
        devices = [f"cuda:{worker % gpus}" if gpus else setup.device for worker in range(count)]
        alike = replace(setup, threads=torch.get_num_threads(), beside=ceil(count / (gpus or 1)))
        self.setups = [replace(alike, device=device) for device in devices]
        self.count, self._folder = count, folder
        self._running: dict[int, tuple[BaseProcess, Connection[Any, Any]]] = {}

    def start(self, worker: int) -> None:
        context = multiprocessing.get_context("spawn")  # what CUDA has begun cannot be forked
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_process, args=(self.setups[worker], theirs, self._folder), daemon=True
        )
        with _signals_held():
            process.start()
        theirs.close()
        self._running[worker] = process, ours

    def give(self, worker: int, window: Window | None) -> None:
        with suppress(OSError):  # it is lost, and `hear` says so
            self._running[worker][1].send(window)

    def hear(self, seconds: float) -> list[tuple[int, Message]]:
        workers: dict[Any, int] = {line: worker for worker, (_, line) in self._running.items()}
        return [(workers[one], self._message(workers[one])) for one in wait(list(workers), seconds)]

    def _message(self, worker: int) -> Message:
        process, connection = self._running[worker]
        try:
            message: Message = connection.recv()
        except (EOFError, OSError):
            self._end(worker)
            return Lost(f"exit code {process.exitcode}")
        return message

    def _end(self, worker: int) -> None:
        process, connection = self._running.pop(worker)
        process.kill()
        process.join()
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in list(self._running):
            self._end(worker)
        remove_stale(self._folder)  # their drafts


@contextmanager
def _signals_held() -> Iterator[None]:
    """What begins meanwhile does not hear the signals that end a run: the one who began it tells it when to end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _process(setup: Setup, channel: Channel, folder: Path) -> None:
    """All that a process of a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        work(setup, channel, folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # in the middle of whatever it does: nobody is left to take it
