"""A run as a person follows it: a bar for each stage and, in Jupyter, the pictures as they come out of the noise.

A run is a generator, and whoever drains it owns all this: no stage knows of bars, previews or callbacks.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmgen.errors import UsageError
from mmgen.result import Result
from mmgen.schedulers.samplers import Step
from mmgen.thumbnails import figures

if TYPE_CHECKING:
    from mmgen.pipelines.text_to_image import TextToImage

View = Callable[[Step], None]
OnStepEnd = Callable[["TextToImage", int, float, dict[str, Any]], Mapping[str, Any] | None]
PREVIEW_EVERY = 4  # steps: often enough to watch, and seldom enough to cost nothing beside them
COLUMNS = 80  # of a bar of text in a page, which does not say how wide it is


def drain(run: Generator[Step, None, Result], views: Iterable[View]) -> Result:
    """Run a stream of steps to its end, each seen by every view; its result."""
    while True:
        try:
            step = next(run)
        except StopIteration as done:
            result: Result = done.value
            return result
        for view in views:
            view(step)


@contextlib.contextmanager
def following(progress: bool | None, batches: int, rounds: Mapping[str, int]) -> Iterator[list[View]]:
    """What shows a run to a person: bars, in Jupyter previews too. Put away at the end, however that comes.

    progress: whether to show anything, None = where a person follows. batches: how often every stage runs, but those
    that rounds names.
    """
    with contextlib.ExitStack() as shown:
        views: list[View] = []
        if is_followed() if progress is None else progress:
            views.append(shown.enter_context(bars(batches, rounds)))
            if in_jupyter():
                views.append(shown.enter_context(previews()))
        yield views


def is_followed() -> bool:
    """Whether a person follows this session: in Jupyter, or at a terminal."""
    # a program without a window for its text has no stderr on Windows
    return in_jupyter() or (sys.stderr is not None and sys.stderr.isatty())


def in_jupyter() -> bool:
    """Whether this is a Jupyter kernel; IPython is there already then, so it is never imported to find out."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextlib.contextmanager
def bars(batches: int, rounds: Mapping[str, int]) -> Iterator[View]:
    """One bar for each stage, over all pictures; batches, rounds: as `following` takes them."""
    shown: dict[str, Any] = {}
    seen = time.time()  # as tqdm reads it

    def count_for(stage: str) -> None:
        """Count the time since the last step for this stage alone: the clocks of the others stand."""
        nonlocal seen
        for name, bar in shown.items():
            if name != stage:
                bar.last_print_t = seen  # where its clock stopped
                bar.unpause()
        seen = time.time()

    def show(step: Step) -> None:
        count_for(step.stage)
        if step.stage not in shown:
            shown[step.stage] = _bar(step.stage, rounds.get(step.stage, batches) * step.total)
        bar = shown[step.stage]
        bar.update()
        if step.index == step.total:
            bar.refresh()  # or it would stand short of there, for it draws itself only now and then

    try:
        yield show
    finally:
        count_for("")
        # together at the end, in order: one that ends alone moves the cursor under the others
        for bar in shown.values():
            bar.close()


def _bar(stage: str, total: int) -> Any:
    """A bar of tqdm: of widgets where a page has them, otherwise of text."""
    from tqdm.asyncio import tqdm_asyncio
    from tqdm.auto import tqdm

    if in_jupyter() and tqdm is tqdm_asyncio:
        # a page cannot go back to a line above: all share one, as wide for each; and it shows stderr as an error
        return tqdm(total=total, desc=stage, position=0, ncols=COLUMNS, file=sys.stdout)
    return tqdm(total=total, desc=stage)


@contextlib.contextmanager
def previews() -> Iterator[View]:
    """The latest guess at the pictures in one place of a Jupyter page, every few steps; gone at the end."""
    page = importlib.import_module("IPython.display")
    place = page.display(page.HTML(""), display_id=True)

    def show(step: Step) -> None:
        if step.index % PREVIEW_EVERY == 0 or step.index == step.total:
            images = step.preview()
            caption = f"{step.stage} {step.index}/{step.total}"
            if images:
                place.update(page.HTML(figures(images, [caption] * len(images))))

    try:
        yield show
    finally:
        place.update(page.HTML(""))


def step_end(pipe: TextToImage, callback: OnStepEnd) -> View:
    """A view that calls `callback` as diffusers does: (pipe, step_index, timestep, callback_kwargs) -> dict.

    step_index: from 0 in each stage. timestep: the time that x has reached, 1 is noise and 0 the picture.
    callback_kwargs: "stage", its name, and "x0", [B, ...] float32: the latest guess at the finished pictures, in
    [-1, 1], or in the prior at the embedding. Nothing need be returned. Raises UsageError if a value comes back
    changed, because steps can only be watched.
    """

    def view(step: Step) -> None:
        given = {"stage": step.stage, "x0": step.x0}
        returned = callback(pipe, step.index - 1, step.t, dict(given))
        for name, value in (returned or {}).items():
            if value is not given.get(name):
                raise UsageError(
                    f"callback_on_step_end returned another {name!r}: steps can be watched, not changed. "
                    "Return callback_kwargs as it came, or nothing"
                )

    return view
