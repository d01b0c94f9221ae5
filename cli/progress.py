"""How far a run of many pictures is: a bar on a terminal, now and then a line elsewhere, or every event as JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.terminal import note

if TYPE_CHECKING:
    from mmgen.render.engine import Event
    from mmgen.render.jobs import Job

REPORT_SECONDS = 10.0  # between two lines where no terminal shows a bar


@dataclass
class Progress:
    """What became of the pictures of a run, and how it is shown.

    total: all of them. found: there before. failed_before: in a run before, and not tried again.
    """

    total: int
    as_json: bool
    drawn: int = 0
    found: int = 0
    failed_now: int = 0
    failed_before: int = 0
    stage: str = ""
    bar: Any = None
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)

    @property
    def failed(self) -> int:
        return self.failed_now + self.failed_before

    @property
    def left(self) -> int:
        return self.total - self.drawn - self.found - self.failed

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.total, file=sys.stderr, leave=False, bar_format="{l_bar}{bar}{postfix}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def picture(self, job: Job, path: Path, took: dict[str, Any]) -> None:
        self.drawn += 1
        self._tell(json.dumps({"event": "picture", "file": str(path), **of_job(job), **took}), str(path))

    def failure(self, job: Job, error: str, took: dict[str, Any]) -> None:
        self.failed_now += 1
        self._tell(json.dumps({"event": "failed", "error": error, **of_job(job), **took}), "")
        self._above(f"error: line {job.line}, seed {job.request.seeds[0]}: {error}")

    def event(self, event: Event) -> None:
        if event.what == "lost":
            self._above(event.note)
        else:
            self.stage = event.stage if event.total == 0 else f"{event.stage} {event.done}/{event.total}"
        if event.what == "less":
            self._above(f"out of memory in stage {event.stage}: {event.note}")
        if event.what == "tight":
            self._above(f"memory is short in stage {event.stage}: {event.note}")
        if self.as_json:
            values = {"done": event.done, "total": event.total, "note": event.note}
            click.echo(json.dumps({"event": event.what, "stage": event.stage, **values}))
        self._show()

    def _show(self) -> None:
        if self.bar is not None:
            self.bar.n = self.total - self.left
            self.bar.set_postfix_str(self._text())
        elif time.monotonic() - self.spoken > REPORT_SECONDS:
            self.spoken = time.monotonic()
            note(self._text())

    def _text(self) -> str:
        text = f"{self.total - self.left}/{self.total} pictures, {self.stage}"
        if not self.drawn:
            return text
        per_minute = 60 * self.drawn / (time.monotonic() - self.started)
        left = max(1, round(self.left / per_minute))
        return f"{text}, {per_minute:.1f} a minute, {left:,} min left"

    def _tell(self, as_json: str, plain: str) -> None:
        if self.as_json:
            click.echo(as_json)
        elif plain:
            if self.bar is not None:
                self.bar.clear()
            click.echo(plain)

    def _above(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        note(text)


def of_job(job: Job) -> dict[str, Any]:
    """What an event says of its job."""
    return {"index": job.index, "line": job.line, "name": job.name, "key": job.key}


def pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"
