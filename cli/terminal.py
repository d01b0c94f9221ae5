"""What a person reads: notes on stderr, and how far the stages are, as bars on a terminal or lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mmgen.schedulers.samplers import Step


MAX_LINE_CHARS = 1000


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that nothing but `main` takes it for an ordinary failure."""


def note(text: str) -> None:
    """A line for a person: on stderr, so that stdout holds only what a program may read."""
    click.echo(one_line(text), err=True)


def one_line(text: str) -> str:
    """Text for a terminal: one line of bounded length without control characters."""
    text = " ".join(text.split())[:MAX_LINE_CHARS]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) < MAX_LINE_CHARS else f"{text} ..."


class StageBars:
    """Shows the steps of one picture. title: which picture it is, such as "2/4"."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.terminal = sys.stderr.isatty()
        self.stage = ""
        self.started = self.latest = time.monotonic()  # of the stage, and the end of its latest step
        self.bar: Any = None

    def __enter__(self) -> StageBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(finished=kind is None)

    def show(self, step: Step) -> None:
        if step.stage != self.stage:
            self._end(finished=True)
            self._begin(step)
        self.latest = time.monotonic()
        if self.bar is not None:
            self.bar.update()

    def _begin(self, step: Step) -> None:
        self.stage, self.started = step.stage, self.latest
        if self.terminal:
            from tqdm import tqdm

            self.bar = tqdm(total=step.total, desc=f"{self.title} {step.stage}", leave=False, file=sys.stderr)

    def _end(self, finished: bool) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        elif self.stage and finished:
            note(f"{self.title} {self.stage}: {self.latest - self.started:.1f} s")
        self.stage = ""
