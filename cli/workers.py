"""Who draws a run of many pictures: this process, several, or a cluster; the whole of it or a share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import click

from mmgen.errors import UsageError

if TYPE_CHECKING:
    from mmgen.cli.planned import Given
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.render.engine import Done, Event
    from mmgen.render.folder import Folder
    from mmgen.render.jobs import Job
    from mmgen.render.pool import Opened, Setup, Workers
    from mmgen.render.windows import Window

MAX_WORKERS = 1024


@dataclass(frozen=True)
class Shard:
    """Every `count`th picture of a run, beginning with the one at place `index`, from 1."""

    index: int
    count: int

    @property
    def places(self) -> slice:
        """Of its pictures, from 0."""
        return slice(self.index - 1, None, self.count)

    def of(self, jobs: Iterable[Job]) -> Iterator[Job]:
        return islice(jobs, self.index - 1, None, self.count)


def parse_shard(text: str) -> Shard:
    """The value of --shard."""
    if text == "auto":
        return shard_in(os.environ)
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if not found:
        raise UsageError(f"--shard {text!r}: write I/N, such as 2/8 for the second of eight, or auto")
    index, count = map(int, found.groups())
    if not 1 <= index <= count:
        raise UsageError(f"--shard {text!r}: of I/N, I goes from 1 to N")
    return Shard(index, count)


def shard_in(environment: Mapping[str, str]) -> Shard:
    """The shard that the variables of torchrun or SLURM mean: a task's, in an array the place of its job besides.

    Raises UsageError if there are none, or none that can be meant.
    """
    read = partial(_number, environment)
    at, count = 0, 1
    if found := [name for name in ("SLURM_ARRAY_TASK_ID", "RANK", "SLURM_PROCID") if name in environment]:
        if found[0] == "SLURM_ARRAY_TASK_ID":
            at, count = _place_in_array(read)
            found = found[1:]
        if found:  # torchrun may run as a task of SLURM, and counts for itself
            # SLURM says how many tasks there are only where somebody asked for several
            several = found[0] == "RANK" or "SLURM_NTASKS" in environment
            tasks = read("WORLD_SIZE" if found[0] == "RANK" else "SLURM_NTASKS") if several else 1
            at, count = at * tasks + read(found[0]), count * tasks
    else:
        raise UsageError("--shard auto: neither torchrun nor SLURM has set its variables, write I/N instead")
    if not 0 <= at < count:
        raise UsageError(f"--shard auto: the variables mean number {at + 1} of {count}, write I/N instead")
    return Shard(at + 1, count)


def _place_in_array(read: Callable[[str], int]) -> tuple[int, int]:
    """(place of a job in its array, from 0; jobs of the array)."""
    first, last, step, count = (read(f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "STEP", "COUNT"))
    place, beside = divmod(read("SLURM_ARRAY_TASK_ID") - first, max(1, step))
    if beside or count * max(1, step) != last - first + max(1, step):
        raise UsageError("--shard auto: the numbers of the array have gaps, write I/N instead")
    return place, count


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UsageError(f"--shard auto: the variable {name} is {text!r}, and must be a whole number")
    return int(text)


WORKERS = (
    click.option("--workers", type=click.IntRange(1, MAX_WORKERS), metavar="N",
                 help="Processes that draw, on the GPUs in turn; with Ray, actors. "
                 "The pictures are those of one process."),
    click.option("--shard", type=parse_shard, metavar="I/N|auto",
                 help="Draw this share of the pictures; auto: the one that torchrun or SLURM says. "
                 "All shards may write into one folder."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Where to draw. ray: on a cluster; the model must be there on every machine, the folder not."),
    click.option("--ray-address", metavar="ADDRESS",
                 help="A cluster of Ray that runs; one on this machine is begun if not given."),
)  # fmt: skip
"""What `mmgen batch` takes about who draws."""


def check_workers(given: Given) -> None:
    """Raise UsageError where these options cannot be meant."""
    if given.ray_address is not None and given.engine != "ray":
        raise UsageError("--ray-address is for --engine ray: give both, or neither")
    if given.shard is not None and given.dry_run:
        raise UsageError("--dry-run lists the whole file: leave --shard out")
    if given.engine == "ray" and given.from_stage is not None:
        raise UsageError("--from-stage reads pictures of this machine: leave --engine ray out")
    if given.engine == "ray" and find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray, which is not installed: pip install 'mmgen[ray]'")


class Draw(Protocol):
    """As `engine.draw`, by whomever."""

    def __call__(
        self,
        cut: Iterable[Window],
        commit: Callable[[Done], None],
        *,
        stop: Callable[[], bool],
        watch: Callable[[Event], None],
    ) -> None: ...


@dataclass(frozen=True)
class Drawing:
    """What is known of the model that is open, how windows are drawn with it, and by how many."""

    model: Opened
    draw: Draw
    workers: int


@contextmanager
def drawing(given: Given, folder: Folder, largest: Job | None) -> Iterator[Drawing]:
    """The model, opened by whoever is to draw; they end with the context.

    Raises what `open_model` does, and MachineError where the largest picture does not fit into the memory asked for.
    """
    from mmgen.render.engine import draw
    from mmgen.render.pool import Opened, Pool, Setup

    setup = Setup(given.model, folder.format, given.device, given.dtype, given.attention, memory=given.memory)
    if given.engine == "local" and given.workers in (None, 1):
        model = _fitting(setup, largest)
        alone = partial(draw, model=model, folder=folder.path, budget=setup.budget(model))
        yield Drawing(Opened.of(model), alone, 1)
        return
    if given.engine == "local" and given.memory is not None:
        _fitting(setup, largest)
    with _workers(given, setup, folder) as workers:
        pool = Pool(workers)
        yield Drawing(pool.open(), pool.draw, workers.count)


def _fitting(setup: Setup, largest: Job | None) -> TextToImage:
    """The model, with which the largest picture fits into the memory asked for; else MachineError says what would."""
    from mmgen.cli.plan import fitting

    model = setup.open()
    if setup.memory is not None and largest is not None:
        fitting(model, largest.request, setup.budget(model), prompts=1)
    return model


def _workers(given: Given, setup: Setup, folder: Folder) -> Workers:
    if given.engine == "ray":
        from mmgen.render.ray_pool import RayWorkers

        return RayWorkers(setup, given.workers, given.ray_address)
    from mmgen.render.pool import Processes

    return Processes(setup, given.workers or 1, folder.path)
