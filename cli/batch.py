"""`mmgen batch`: a file of prompts in, a folder of pictures out; run again, it goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from mmgen.cli.generate import COUNT, DECODER, SIZE, say_unknown
from mmgen.cli.options import MACHINE, parse_settings, parse_threshold, with_options
from mmgen.cli.progress import Progress, of_job, pictures
from mmgen.cli.terminal import Terminated, note, one_line
from mmgen.errors import UsageError
from mmgen.render.promptfile import KINDS, Options, PromptFileError, check, read
from mmgen.types import MAX_SEED, Size, check_prompt

if TYPE_CHECKING:
    from mmgen.images import Format
    from mmgen.pipelines.catalogue import Facts
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.render.engine import Done
    from mmgen.render.folder import Folder
    from mmgen.render.jobs import Job
    from mmgen.render.promptfile import Kind


@dataclass(frozen=True)
class Given:
    """The command line as it was given; None where the file or the model decides."""

    file: str | None
    out: str
    count: int
    seed: int | None
    size: Size | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    threshold: str | None
    negative: str
    settings: tuple[str, ...]
    model: str
    device: str | None
    dtype: str | None
    attention: str | None
    kind: Kind | None
    wildcards: Path | None
    combinatorial: bool
    name: str | None
    format: Format | None
    dry_run: bool
    force: bool
    retry_failed: bool
    overwrite: bool
    max_minutes: float | None
    rebuild_manifest: bool
    as_json: bool

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


OPTIONS = (
    click.argument("file", required=False, metavar="FILE"),
    click.option("-o", "--out", default="mmgen-out", show_default=True, metavar="FOLDER",
                 help="Where the pictures go, and manifest.jsonl, which lists them."),
    COUNT,
    click.option("--seed", type=click.IntRange(0, MAX_SEED), help="First seed of every line; 0 if not given."),
    SIZE,
    *DECODER,
    click.option("--set", "settings", multiple=True, metavar="STAGE.NAME=VALUE",
                 help="Any setting of any stage; may be repeated."),
    *MACHINE,
    click.option("--kind", type=click.Choice(KINDS), help="Kind of prompt file; what its name says, txt for -."),
    click.option("--wildcards", type=click.Path(path_type=Path), metavar="FOLDER",
                 help="Where __animal__ finds animal.txt."),
    click.option("--combinatorial", is_flag=True,
                 help="Every prompt that variants and wildcards stand for, not one that is drawn."),
    click.option("--name", metavar="TEMPLATE",
                 help="File names; {index:06d}-{slug}-{key8}-{seed} if not given. A wrong field lists all."),
    click.option("--format", type=click.Choice(["png", "jpeg", "webp"]), help="Kind of files; png if not given."),
    click.option("--dry-run", is_flag=True, help="Check everything and list the pictures; draw nothing."),
    click.option("--retry-failed", is_flag=True, help="Draw those again that failed in a run before."),
    click.option("--force", is_flag=True, help="Draw those again that are there, in their places."),
    click.option("--overwrite", is_flag=True, help="Replace other files that have a picture's name."),
    click.option("--max-minutes", type=click.FloatRange(0, min_open=True), metavar="N",
                 help="Begin no further batch after so long."),
    click.option("--rebuild-manifest", is_flag=True, help="Make manifest.jsonl anew from the pictures in --out."),
    click.option("--json", "as_json", is_flag=True, help="What happens as JSON, a line each, on standard output."),
)  # fmt: skip


@click.command()
@with_options(*OPTIONS)
def batch(**given: Any) -> None:
    """Draw the prompts of a file.

    FILE ends in .txt, .csv, .tsv, .jsonl, .json or .yaml; - is standard input. Run again, the same command goes on
    where it was: pictures that are there are found by their settings, under any name. Interrupted once, it ends the
    batch in flight; twice, at once. The seeds of every line count up from 0 where nobody says otherwise. A line may say
    more than its prompt, and {red|blue} and __animal__ stand for one of several.

    \b
    mmgen batch prompts.txt -o out
    mmgen batch prompts.csv --dry-run
    mmgen batch prompts.yaml --wildcards words --combinatorial -o out
    """
    _run(Given(**given))


def _run(given: Given) -> None:
    if given.rebuild_manifest:
        _rebuild(given)
        return
    if given.file is None:
        raise UsageError("no prompt file was given: name one, or - for standard input")
    with ExitStack() as open_files:
        source = _Source(given.file, given.kind, open_files)
        plan = _plan(given, source)
        checked = plan.checked()
        if checked.repeated:
            note(f"asked for more than once, and drawn once: {pictures(checked.repeated)}")
        if given.dry_run:
            _list(plan, checked.total, given.as_json)
            return
        _draw(given, plan, checked)


def _rebuild(given: Given) -> None:
    from mmgen.render import manifest

    if given.file is not None:
        raise UsageError("--rebuild-manifest reads the pictures in --out: leave the prompt file out")
    if given.dry_run:
        raise UsageError("--rebuild-manifest writes manifest.jsonl, and --dry-run writes nothing: keep one")
    if not os.path.isdir(given.out):
        raise UsageError(f"--out {given.out}: there is no such folder")
    note(f"{given.out}/{manifest.NAME}: {pictures(manifest.rebuild(Path(given.out)))}")


class _Source:
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
    copy = open_files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the others
    shutil.copyfileobj(stream, copy)
    return copy


@dataclass(frozen=True)
class _Checked:
    """What is known of a prompt file that has been checked.

    total: pictures. repeated: those left out as they are asked for twice. samplers: that any of them are drawn by.
    """

    total: int
    repeated: int
    samplers: frozenset[str]


@dataclass(frozen=True)
class _Plan:
    """From the prompt file to jobs, as often as they are asked for."""

    source: _Source
    expand: Callable[..., Any]
    facts: Facts
    options: Options
    template: str
    format: Format

    def jobs(self) -> Generator[Job, None, int]:
        from mmgen.render.jobs import jobs

        source = self.source
        lines = read(source.open(), source.kind, source.name, self.expand)
        return jobs(
            lines, self.facts, self.options, template=self.template, format=self.format, source=source.name
        )

    def checked(self) -> _Checked:
        """Read the file to its end.

        Raises UsageError if anything is wrong with the file, after it has said what else cannot be read in it. Of what
        the model does not draw or take, only the first is said.
        """
        total, samplers, jobs = 0, set[str](), self.jobs()
        try:
            while True:
                stages = next(jobs).request.stages.values()
                samplers.update(settings.sampler for settings in stages if settings.sampler)
                total += 1
        except StopIteration as done:
            return _Checked(total, done.value, frozenset(samplers))
        except PromptFileError as first:
            source = self.source
            found = check(source.open(), source.kind, source.name, self.expand)
            # the first may be one that only the model's own sizes and stages show
            said = {str(error): error for error in [first, *found]}
            errors = sorted(said.values(), key=lambda error: error.line)
            for error in errors[:-1]:
                note(f"error: {error}")
            raise errors[-1] from None


def _plan(given: Given, source: _Source) -> _Plan:
    from mmgen.pipelines.catalogue import facts
    from mmgen.render.jobs import TEMPLATE
    from mmgen.render.wildcards import Wildcards, expand

    if given.sampler is not None:
        from mmgen.types import check_sampler

        check_sampler(given.sampler)
    if not given.model.strip():
        raise UsageError("--model is empty: give a name or a folder")
    if given.wildcards is not None and not given.wildcards.is_dir():
        raise UsageError(f"--wildcards {given.wildcards}: there is no such folder")
    if not given.out.strip() or "\0" in given.out:
        raise UsageError(f"--out {given.out!r}: give a folder")
    expanded = partial(
        expand,
        wildcards=Wildcards(given.wildcards),
        seed=given.seed or 0,
        combinatorial=given.combinatorial,
    )
    model, options = facts(given.model), given.options()
    names = [form.name for form in model.forms]
    if unknown := sorted(set(options.settings) - set(names)):
        raise UsageError(f"--set {unknown[0]}: no such stage, {model.name} has {', '.join(names)}")
    return _Plan(
        source=source,
        expand=expanded,
        facts=model,
        options=options,
        template=TEMPLATE if given.name is None else given.name,
        format=given.format or "png",
    )


def _list(plan: _Plan, total: int, as_json: bool) -> None:
    """Every picture that would be drawn."""
    for job in plan.jobs():
        request = job.request
        if as_json:
            click.echo(json.dumps({"event": "job", **of_job(job), "request": json.loads(request.to_json())}))
        else:
            prompt = one_line(request.prompts[0])
            click.echo(f"{job.name}\tline {job.line}\tseed {request.seeds[0]}\t{prompt}")
    note(f"{pictures(total)} of {plan.facts.name}; nothing was drawn")


def _draw(given: Given, plan: _Plan, checked: _Checked) -> None:
    from mmgen.render.folder import Folder

    folder = Folder(Path(given.out), plan.format, overwrite=given.overwrite)
    note(f"loading {given.model}")
    from mmgen.pipelines.loading import open_model
    from mmgen.render.engine import render
    from mmgen.schedulers import sampler

    for name in checked.samplers:
        sampler(name)  # whether diffusers has a scheduler of that name, only diffusers can say

    if given.attention is not None:
        from mmgen.attention import use

        use(given.attention)
    model = open_model(given.model, device=given.device, dtype=given.dtype)
    end = None if given.max_minutes is None else time.monotonic() + 60 * given.max_minutes
    with _asked_to_stop() as asked, Progress(checked.total, given.as_json) as progress:
        run = _Run(given, folder, model, progress)

        def stop() -> bool:
            return bool(asked) or (end is not None and time.monotonic() > end)

        render(
            plan.jobs(),
            model,
            run.commit,
            folder=folder.path,
            done=run.done,
            stop=stop,
            watch=progress.event,
        )
    run.say_end()
    if asked:
        raise asked[0]
    if progress.failed or progress.left:
        click.get_current_context().exit(1)


class _Run:
    """What the engine asks and gives: whether a picture is there, and one that is drawn."""

    def __init__(self, given: Given, folder: Folder, model: TextToImage, progress: Progress) -> None:
        self._given, self._folder, self._model, self._progress = given, folder, model, progress
        self._said: set[tuple[str, str]] = set()

    def done(self, job: Job) -> bool:
        if self._given.force:
            return False
        if self._folder.find(job) is not None:
            self._progress.found += 1
            return True
        if (error := self._folder.obstacle(job)) is not None:
            self._progress.failure(job, error, {})
            return True
        failed = not self._given.retry_failed and self._folder.failure(job) is not None
        self._progress.failed_before += failed
        return failed

    def commit(self, done: Done) -> None:
        job, error = done.job, done.error
        took = {"seconds": round(done.seconds, 3), "peak_bytes": done.peak_bytes}
        if done.image is None:
            self._folder.fail(job, error, seconds=done.seconds, peak_bytes=done.peak_bytes)
            self._progress.failure(job, error, took)
            return
        over = self._folder.find(job) if self._given.force else None
        try:
            path = self._folder.commit(
                job, done.image, seconds=done.seconds, peak_bytes=done.peak_bytes, over=over
            )
        except UsageError as wrong:  # somebody else took the name meanwhile
            self._progress.failure(job, str(wrong), took)
            return
        self._say_unknown(job)
        self._progress.picture(job, path, took)

    def _say_unknown(self, job: Job) -> None:
        from mmgen.pipelines.vocabulary import unknown_words

        if self._model.words is not None:
            say_unknown(
                self._model.name, unknown_words(job.request.prompts[0], self._model.words), self._said
            )

    def say_end(self) -> None:
        progress = self._progress
        parts = [f"{pictures(progress.drawn)} drawn"]
        parts += [f"{progress.found} were there"] if progress.found else []
        parts += [f"{progress.failed} failed"] if progress.failed else []
        parts += [f"{progress.left} left: run the command again"] if progress.left else []
        note(", ".join(parts))
        if progress.failed_before:
            note(f"{progress.failed_before} failed in a run before: --retry-failed draws them again")


@contextmanager
def _asked_to_stop() -> Iterator[list[BaseException]]:
    """A list that the first SIGINT or SIGTERM fills, with what the run ends with; the second one is as always."""
    asked: list[BaseException] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated())
        for one, handler in before.items():
            signal.signal(one, handler)
        note("ending after the batch in flight; once more ends at once")

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
