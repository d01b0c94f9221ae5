"""`mmgen batch`: a file of prompts in, a folder of pictures out; run again, it goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import COUNT, DECODER, SIZE, cut_of, say_cut, say_unknown
from mmgen.cli.options import MACHINE, parse_memory, with_options
from mmgen.cli.planned import Checked, Given, Source, pictures_checked, plan_of_file
from mmgen.cli.progress import Progress, of_job, pictures
from mmgen.cli.terminal import Terminated, note, one_line
from mmgen.cli.workers import WORKERS, Drawing, check_workers, drawing
from mmgen.errors import UsageError
from mmgen.render.promptfile import KINDS
from mmgen.types import MAX_SEED

if TYPE_CHECKING:
    from mmgen.render.engine import Done
    from mmgen.render.folder import Folder
    from mmgen.render.jobs import Job
    from mmgen.render.pool import Opened

LISTED = 100  # lines that are written at once


OPTIONS = (
    click.argument("files", nargs=-1, metavar="FILE..."),
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
    *WORKERS,
    click.option("--memory", type=parse_memory, metavar="SIZE",
                 help="What the run, or each worker, may take of its device, such as 8GB; what is free if not given."),
    click.option("--stop-after", metavar="STAGE",
                 help="Keep the pictures of this stage, such as decoder, to look at and to go on with."),
    click.option("--from-stage", metavar="STAGE",
                 help="Go on with this stage, such as super-res, from pictures of --stop-after: the FILEs."),
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

    After --stop-after decoder the pictures are small and soon there; --from-stage super-res goes on with those that you
    pick, and they become what they would have become.

    \b
    mmgen batch prompts.txt -o out
    mmgen batch prompts.csv --dry-run
    mmgen batch prompts.yaml --wildcards words --combinatorial -o out
    mmgen batch prompts.txt --stop-after decoder -o out
    mmgen batch --from-stage super-res out/000007*.decoder.png -o out
    """
    _run(Given(**given))


def _run(given: Given) -> None:
    if given.rebuild_manifest:
        _rebuild(given)
        return
    check_workers(given)
    if given.from_stage is not None:
        run_checked(given, pictures_checked(given, given.from_stage))
        return
    if not given.files:
        raise UsageError("no prompt file was given: name one, or - for standard input")
    if len(given.files) > 1:
        raise UsageError(
            f"{len(given.files)} files are given: draw one prompt file at a time; pictures go on with --from-stage"
        )
    with ExitStack() as open_files:
        run_checked(given, plan_of_file(given, Source(given.files[0], given.kind, open_files)).checked())


def run_checked(given: Given, checked: Checked) -> None:
    """Draw or list what has been checked. Raises click's Exit(1) if a picture failed."""
    if checked.repeated:
        note(f"asked for more than once, and drawn once: {pictures(checked.repeated)}")
    if given.dry_run:
        _list(checked, given.as_json)
        return
    _draw(given, checked)


def _rebuild(given: Given) -> None:
    from mmgen.render import manifest

    if given.files:
        raise UsageError("--rebuild-manifest reads the pictures in --out: leave the prompt file out")
    if given.dry_run:
        raise UsageError("--rebuild-manifest writes manifest.jsonl, and --dry-run writes nothing: keep one")
    if not os.path.isdir(given.out):
        raise UsageError(f"--out {given.out}: there is no such folder")
    note(f"{given.out}/{manifest.NAME}: {pictures(manifest.rebuild(Path(given.out)))}")


def _list(checked: Checked, as_json: bool) -> None:
    """Every picture that would be drawn."""
    jobs = checked.jobs()
    while some := list(islice(jobs, LISTED)):
        click.echo("\n".join(_listed(job, as_json) for job in some))
    note(f"{pictures(checked.total)} of {checked.facts.name}; nothing was drawn")


def _listed(job: Job, as_json: bool) -> str:
    request = job.request
    if as_json:
        return json.dumps({"event": "job", **of_job(job), "request": request.to_dict()})
    return f"{job.name}\tline {job.line}\tseed {request.seeds[0]}\t{one_line(request.prompts[0])}"


def _draw(given: Given, checked: Checked) -> None:
    from mmgen.render.folder import Folder

    folder = Folder(Path(given.out), checked.format, overwrite=given.overwrite)
    note(f"loading {given.model}")
    from mmgen.schedulers import sampler

    for name in checked.samplers:
        sampler(name)  # whether diffusers has a scheduler of that name, only diffusers can say

    with drawing(given, folder, checked.largest) as opened:
        run, asked = _drawn(given, checked, folder, opened)
    run.say_end()
    if asked:
        raise asked[0]
    if run.progress.failed or run.progress.left:
        click.get_current_context().exit(1)


def _drawn(
    given: Given, checked: Checked, folder: Folder, opened: Drawing
) -> tuple[_Run, list[BaseException]]:
    """What became of the run, and what it was asked to end with."""
    from mmgen.render.windows import batches, shared

    def jobs() -> Iterator[Job]:
        return checked.jobs() if given.shard is None else given.shard.of(checked.jobs())

    total = checked.total
    if given.shard is not None:
        total = len(range(total)[given.shard.places])
        note(f"shard {given.shard.index} of {given.shard.count}: {pictures(total)}")
    end = None if given.max_minutes is None else time.monotonic() + 60 * given.max_minutes
    with _asked_to_stop() as asked, Progress(total, given.as_json) as progress:
        run = _Run(given, folder, opened.model, progress)

        def stop() -> bool:
            return bool(asked) or (end is not None and time.monotonic() > end)

        cut = batches(jobs(), opened.model.batch_size)
        given_out = shared(cut, run.done, opened.model.sizes, total=total, workers=opened.workers)
        opened.draw(given_out, run.commit, stop=stop, watch=progress.event)
    return run, asked


class _Run:
    """What the engine asks and gives: whether a picture is there, and one that is drawn."""

    def __init__(self, given: Given, folder: Folder, model: Opened, progress: Progress) -> None:
        self._given, self._folder, self._model, self.progress = given, folder, model, progress
        self._said: set[tuple[str, str]] = set()

    def done(self, job: Job) -> bool:
        if self._given.force:
            return False
        if self._folder.find(job) is not None:
            self.progress.found += 1
            return True
        if (error := self._folder.obstacle(job)) is not None:
            self.progress.failure(job, error, {})
            return True
        failed = not self._given.retry_failed and self._folder.failure(job) is not None
        self.progress.failed_before += failed
        return failed

    def commit(self, done: Done) -> None:
        job, error = done.job, done.error
        took = {"seconds": round(done.seconds, 3), "peak_bytes": done.peak_bytes}
        if done.image is None:
            self._folder.fail(job, error, seconds=done.seconds, peak_bytes=done.peak_bytes)
            self.progress.failure(job, error, took)
            return
        over = self._folder.find(job) if self._given.force else None
        try:
            path = self._folder.commit(
                job,
                done.image,
                seconds=done.seconds,
                peak_bytes=done.peak_bytes,
                over=over,
                draft=done.draft,
            )
        except UsageError as wrong:  # somebody else took the name meanwhile
            self.progress.failure(job, str(wrong), took)
            return
        self._say_unknown(job)
        say_cut(self._model.name, done.cut_words, self._said)
        cut = {"cut_words": cut_of(done.cut_words)} if done.cut_words else {}
        self.progress.picture(job, path, took | cut)

    def _say_unknown(self, job: Job) -> None:
        from mmgen.pipelines.vocabulary import unknown_words

        if self._model.words is not None:
            say_unknown(
                self._model.name, unknown_words(job.request.prompts[0], self._model.words), self._said
            )

    def say_end(self) -> None:
        progress = self.progress
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
