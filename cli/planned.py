"""What a batch is to draw: from the lines of a prompt file, or from pictures that were stopped, to jobs."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import click
from click.core import ParameterSource

from mmgen.cli.options import WithPrompts, parse_settings, parse_threshold
from mmgen.cli.terminal import note
from mmgen.errors import MachineError, UsageError
from mmgen.render.promptfile import Item, Options, PromptFileError, parse
from mmgen.types import check_prompt

if TYPE_CHECKING:
    from mmgen.cli.workers import Shard
    from mmgen.images import Format
    from mmgen.pipelines.catalogue import Facts
    from mmgen.render.jobs import Job
    from mmgen.render.promptfile import Kind

MAX_ERRORS = 20  # of a prompt file, that are said at once


@dataclass(frozen=True, kw_only=True)
class Given(WithPrompts):
    """The command line as it was given; None where the file or the model decides."""

    files: tuple[str, ...] = ()
    kind: Kind | None = None
    wildcards: Path | None = None
    combinatorial: bool = False
    name: str | None = None
    dry_run: bool
    force: bool = False
    retry_failed: bool
    max_minutes: float | None = None
    rebuild_manifest: bool = False
    workers: int | None = None
    shard: Shard | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    memory: int | None = None
    stop_after: str | None = None
    from_stage: str | None = None

    def options(self) -> Options:
        """What holds for every line that does not say otherwise."""
        check_prompt(self.negative, what="negative prompt", may_be_empty=True)
        return Options(
            count=self.count,
            seed=self.seed,
            size=self.size,
            steps=self.steps,
            guidance=self.guidance,
            sampler=self.sampler,
            threshold=None if self.threshold is None else parse_threshold(self.threshold),
            negative=self.negative,
            settings=parse_settings(self.settings),
        )


class Source:
    """A prompt file that is read twice; what comes through a pipe is kept for that in a temporary file."""

    def __init__(self, file: str, kind: Kind | None, open_files: ExitStack) -> None:
        self.kind = kind
        self.name = "standard input" if file == "-" else file
        self._path = Path(file)
        self._copy: BinaryIO | None = None
        if file == "-":
            self._copy = _copied(sys.stdin.buffer, open_files)
        elif self._path.is_fifo():
            with self._path.open("rb") as pipe:
                self._copy = _copied(pipe, open_files)
        self._stamp = self._stamped()

    def open(self) -> Path | BinaryIO:
        """What a reader of prompt files takes. Raises UsageError if the file is not what it was."""
        if self._copy is not None:
            self._copy.seek(0)
            return self._copy
        if self._stamped() != self._stamp:
            raise UsageError(f"{self.name} has changed since it was checked: run the command again")
        return self._path

    def _stamped(self) -> tuple[int, int, int] | None:
        if self._copy is not None:
            return None
        try:
            stat = self._path.stat()
        except (OSError, ValueError):
            return None  # who reads it says why
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _copied(stream: BinaryIO, open_files: ExitStack) -> BinaryIO:
    try:
        copy = open_files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the others
        shutil.copyfileobj(stream, copy)
    except OSError as error:
        raise MachineError(
            f"what came through the pipe cannot be kept in {tempfile.gettempdir()}: {error.strerror}"
        ) from error
    return copy


@dataclass(frozen=True)
class Checked:
    """What a run is to draw, all of it checked.

    total: pictures. repeated: those left out as they are asked for twice. samplers: that any of them are drawn by.
    jobs: begins to make the jobs, as often as it is called. facts: of the model. format: of the files. largest: of
    the pictures that begin with their text.
    """

    total: int
    repeated: int
    samplers: frozenset[str]
    jobs: Callable[[], Iterator[Job]]
    facts: Facts
    format: Format
    largest: Job | None = None


@dataclass(frozen=True)
class Plan:
    """From lines to jobs, as often as they are asked for.

    name: of what they stand in, for errors. items: reads them all, and what is wrong with them.
    """

    name: str
    items: Callable[[], Iterator[Item]]
    facts: Facts
    options: Options
    template: str
    format: Format
    stop_after: str | None

    def jobs(self, *, unique: bool = False) -> Iterator[Job]:
        """The first thing that is wrong is raised. unique: `checked` has shown that nothing is asked for twice."""
        from mmgen.render.jobs import jobs

        return map(self._stopped, jobs(self._planned(unique)))

    def _stopped(self, job: Job) -> Job:
        """As far as it is to be drawn."""
        if self.stop_after is None:
            return job
        from mmgen.render.stopped import stopped

        return stopped(job, self.stop_after, self.facts.forms)

    def checked(self) -> Checked:
        """Read everything to its end. Raises UsageError if anything is wrong, after it has said what else is."""
        total, samplers, errors = 0, set[str](), list[PromptFileError]()
        planned, latest, largest = self._planned(unique=False), None, None
        try:
            while len(errors) < MAX_ERRORS:
                job = next(planned)
                if isinstance(job, PromptFileError):
                    errors.append(job)
                    continue
                total += 1
                if largest is None or job.request.size > largest.request.size:
                    largest = job
                if job.request.stages is not latest:
                    latest = job.request.stages
                    samplers.update(one.sampler for one in latest.values() if one.sampler)
        except StopIteration as done:
            if not errors:
                jobs = partial(self.jobs, unique=not done.value)
                largest = None if largest is None else self._stopped(largest)
                return Checked(total, done.value, frozenset(samplers), jobs, self.facts, self.format, largest)
        for error in errors[:-1]:
            note(f"error: {error}")
        raise errors[-1]

    def _planned(self, unique: bool) -> Generator[Job | PromptFileError, None, int]:
        from mmgen.render.jobs import plan

        return plan(
            self.items(),
            self.facts,
            self.options,
            template=self.template,
            format=self.format,
            source=self.name,
            unique=unique,
        )


def pictures_checked(given: Given, stage: str) -> Checked:
    """Pictures that were stopped, as jobs that go on. Raises UsageError where they cannot."""
    from mmgen.pipelines.catalogue import facts
    from mmgen.render.stopped import check_stop, going_on

    context = click.get_current_context()
    for name, option in _OWN.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--from-stage goes on as each picture says itself: leave {option} out")
    if not given.files:
        raise UsageError("--from-stage goes on with pictures: name those of --stop-after that you picked")
    _check_places(given)
    model, format = facts(given.model), given.format or "png"
    if given.stop_after is not None:
        check_stop(given.stop_after, model)
    jobs = going_on([Path(file) for file in given.files], stage, model, format, given.stop_after)
    samplers = {one.sampler for job in jobs for one in job.request.stages.values() if one.sampler}
    repeated = len(given.files) - len(jobs)
    return Checked(len(jobs), repeated, frozenset(samplers), jobs.__iter__, model, format)


# what pictures say of themselves: our name of it, and the option
_OWN = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "count", "seed", "size", "steps", "guidance", "sampler", "threshold", "negative", "kind", "wildcards",
        "combinatorial", "name",
    )
} | {"settings": "--set"}  # fmt: skip


def _check_places(given: Given) -> None:
    """Raise UsageError where names of the model, the folder or the format cannot be meant."""
    if not given.model.strip():
        raise UsageError("--model is empty: give a name or a folder")
    if not given.out.strip() or "\0" in given.out:
        raise UsageError(f"--out {given.out!r}: give a folder")
    if given.stop_after is not None and given.format not in (None, "png"):
        raise UsageError(
            f"--format {given.format}: pictures of --stop-after are png, which alone holds what comes next"
        )


def plan_of_file(given: Given, source: Source) -> Plan:
    from mmgen.render.wildcards import Wildcards, expand

    if given.wildcards is not None and not given.wildcards.is_dir():
        raise UsageError(f"--wildcards {given.wildcards}: there is no such folder")
    expanded = partial(
        expand,
        wildcards=Wildcards(given.wildcards),
        seed=given.seed or 0,
        combinatorial=given.combinatorial,
        negative=given.negative,
    )
    return plan_of(given, source.name, lambda: parse(source.open(), source.kind, source.name, expanded))


def plan_of(given: Given, name: str, items: Callable[[], Iterator[Item]]) -> Plan:
    """A plan for lines. Raises UsageError where the command line alone cannot be meant, ModelError for no model."""
    from mmgen.pipelines.catalogue import facts
    from mmgen.render.jobs import TEMPLATE
    from mmgen.render.stopped import check_stop

    if given.sampler is not None:
        from mmgen.types import check_sampler

        check_sampler(given.sampler)
    _check_places(given)
    model, options = facts(given.model), given.options()
    names = [form.name for form in model.forms]
    if unknown := sorted(set(options.settings) - set(names)):
        raise UsageError(f"--set {unknown[0]}: no such stage, {model.name} has {', '.join(names)}")
    if given.stop_after is not None:
        check_stop(given.stop_after, model)
    return Plan(
        name=name,
        items=items,
        facts=model,
        options=options,
        template=TEMPLATE if given.name is None else given.name,
        format=given.format or "png",
        stop_after=given.stop_after,
    )
