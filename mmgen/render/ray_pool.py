"""Workers that are actors of Ray, on the machines of a cluster or on this one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from math import ceil
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch

from mmgen.errors import MachineError
from mmgen.pipelines.reference import Reference
from mmgen.pipelines.sources import available, find, find_lora, is_single_file
from mmgen.render.pool import Lost, Message, Setup, work
from mmgen.render.windows import Window

STORE_BYTES = 2**28  # for what workers send and this process has not taken
MAX_ERROR_CHARS = 300
CONNECT_SECONDS = 10.0
PLACE_SECONDS = 120.0  # in which a cluster must have room for all workers; one that grows takes its time
# Ray reads them when it is imported: no usage statistics, no advice, and nothing of its own on standard output.
SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
# What reaches a cluster may run anything on it: one that is begun here listens to this machine only.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class RayWorkers:
    """Workers on a cluster: a GPU for each where there are GPUs, several on one if they are more than these.

    setup: of each; its model is a bundled one, or a folder that every machine has. count: None = one for each GPU, or
    for each machine where there are none. address: of a cluster that runs, None = one of this machine alone, which is
    begun here, listens to this machine only, and ends with the context.
    Raises MachineError if there is no such cluster; `start` does if it has no room for so many.
    """

    def __init__(self, setup: Setup, count: int | None, address: str | None) -> None:
        self._ray = _connect(address, count or 1)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = 0 if setup.device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
        self.count = count or gpus or len(nodes)
        self._share = 1 / ceil(self.count / gpus) if gpus else 0
        self._setup = replace(
            setup,
            model=_everywhere(setup.model),
            threads=torch.get_num_threads(),
            beside=ceil(self.count / (gpus or len(nodes))),
        )
        self._actors: dict[int, Any] = {}
        self._said: dict[Any, int] = {}  # what is to come, and from whom
        self._places: Any = None

    def start(self, worker: int) -> None:
        self._places = self._places or self._reserved()
        actor = self._ray.remote(_Actor).options(
            num_cpus=1, num_gpus=self._share, max_concurrency=2, scheduling_strategy=self._places
        )
        self._actors[worker] = actor.remote(self._setup)
        self._listen(worker)

    def _reserved(self) -> Any:
        """Places for all workers, which Ray keeps for them. Raises MachineError if it finds none in PLACE_SECONDS."""
        util, gpu = self._ray.util, {"GPU": self._share} if self._share else {}
        group = util.placement_group([{"CPU": 1, **gpu}] * self.count, strategy="SPREAD")
        until = time.monotonic() + PLACE_SECONDS
        while not group.wait(1):  # no longer at once: a signal is heard in between
            if time.monotonic() > until:
                there, free = self._ray.cluster_resources(), self._ray.available_resources()
                raise MachineError(
                    f"Ray has no room for {self.count} workers, which take 1 CPU and {self._share:g} GPU each: of "
                    f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, {free.get('CPU', 0):g} and "
                    f"{free.get('GPU', 0):g} are free. Ask for fewer --workers, or wait until others are done"
                )
        return util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)

    def give(self, worker: int, window: Window | None) -> None:
        self._actors[worker].give.remote(window)

    def hear(self, seconds: float) -> list[tuple[int, Message]]:
        ready, _ = self._ray.wait(list(self._said), timeout=seconds)
        return [(worker, message) for one in ready for worker, message in self._messages(one)]

    def _messages(self, said: Any) -> list[tuple[int, Message]]:
        worker = self._said.pop(said)
        try:
            messages: list[Message] = self._ray.get(said)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(self._actors.pop(worker))
            return [(worker, Lost(_line(error)))]
        self._listen(worker)
        return [(worker, message) for message in messages]

    def _listen(self, worker: int) -> None:
        self._said[self._actors[worker].take.remote()] = worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()


class _Actor:
    """A worker on whatever machine Ray has chosen, and its line to the one who commits."""

    def __init__(self, setup: Setup) -> None:
        self._given: SimpleQueue[Window | None] = SimpleQueue()
        self._said: SimpleQueue[Message] = SimpleQueue()
        self.send, self.recv = self._said.put, self._given.get
        Thread(target=work, args=(setup, self, Path(tempfile.gettempdir())), daemon=True).start()

    def poll(self) -> bool:
        return not self._given.empty()

    def give(self, window: Window | None) -> None:
        self._given.put(window)

    def take(self) -> list[Message]:
        """What was said since, waiting for it if it was nothing."""
        messages = [self._said.get()]
        while not self._said.empty():
            messages.append(self._said.get())
        return messages


def _check_answers(address: str) -> None:
    """Raise MachineError if nobody listens at an address that has a port: Ray would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MachineError(f"no Ray at --ray-address {address}: {_line(error)}") from None


def _connect(address: str | None, count: int) -> Any:
    """Ray, with a cluster."""
    if address is not None:
        _check_answers(address)
    os.environ.update(SILENT if address else {**SILENT, **LOOPBACK})
    ray = import_module("ray")
    handler = signal.getsignal(signal.SIGTERM)
    given: dict[str, Any] = {"address": address}
    if address is None:
        given = {
            "address": "local",
            "num_cpus": max(count, os.cpu_count() or 1),
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**given, configure_logging=True, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at --ray-address {address}"
        raise MachineError(f"no Ray {where}: {_line(error)}") from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # it has put its own there
    return ray


def _everywhere(model: str) -> str:
    """The model by a name that means the same in another folder."""

    def named(one: str) -> str:
        if one in available():
            return one
        return str(Path(one).absolute() if is_single_file(one) else find(one, alone=True))

    def file(one: str) -> str:
        return str(find_lora(one).absolute())

    return str(Reference.parse(model).map(named, file))


def _line(error: Exception) -> str:
    """The last sentence that has something of its own to say; Ray's advice of how to go on follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].partition(". ")[0][:MAX_ERROR_CHARS]
