"""A whole run in this process: jobs are cut as the command cuts them, then drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.engine import Done, draw
from mmgen.render.jobs import Job
from mmgen.render.windows import BUDGET, Budget, batches, windows


def render(
    jobs: Iterable[Job],
    model: TextToImage,
    commit: Callable[[Done], None],
    *,
    folder: Path,
    done: Callable[[Job], bool] = lambda _job: False,
    batch_size: int | None = None,
    budget: Budget = BUDGET,
    **more: Any,
) -> None:
    """Draw all jobs that are not done. more: as `draw` takes it."""
    cut = batches(jobs, batch_size or model.batch_size)
    draw(windows(cut, done, model.sizes, budget), commit, model=model, folder=folder, budget=budget, **more)
