"""Whole runs in this process: jobs are cut as the command cuts them, then drawn; and what they show of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

import mmgen
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.engine import Done, draw
from mmgen.render.jobs import Job
from mmgen.render.windows import BUDGET, Budget, batches, windows
from mmgen.types import StageSettings


def load(folder: Path) -> TextToImage:
    """The model of a folder, where and as pictures are compared."""
    return mmgen.load(folder, device="cpu", dtype="float32")


def drawn(
    pipe: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    stages: Mapping[str, StageSettings] = MappingProxyType({}),
) -> Draft:
    """What a whole run leaves, all in one batch. stages: their settings."""
    run = pipe.cascade.run(
        Draft(tuple(prompts), negative), pipe.cascade.resolve(stages), seeds, Clock(torch.device("cpu"))
    )
    return finish(run)


def image_of(draft: Draft) -> Tensor:
    """Pictures in [-1, 1]."""
    assert draft.image is not None
    return draft.image


def check_sampler(pipe: TextToImage, sampler: str, stages: Iterable[str], most: int = 3) -> None:
    """A sampler in these stages draws a picture in 1, 2, ... `most` steps, and the same one again."""

    def picture(steps: int) -> Image:
        settings = StageSettings(sampler=sampler, steps=steps)
        asked = dict.fromkeys(stages, settings)
        return pipe("a red cat", seeds=[3], negative_prompt="snow", stages=asked, progress=False).images[0]

    pictures = [picture(steps) for steps in range(1, most + 1)]
    for one in pictures:
        assert one.size == (pipe.sizes[-1], pipe.sizes[-1])
        assert np.asarray(one).std() > 1
    assert pictures[-1].tobytes() == picture(most).tobytes()


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


def three_jobs(
    pipe: TextToImage, stages: Mapping[str, StageSettings], last: Mapping[str, StageSettings] | None = None
) -> list[Job]:
    """Three prompts with a seed each, the second with a negative prompt. last: settings of the third."""
    asked = [
        ("a red cat on the beach", "", stages),
        ("two dogs", "snow", stages),
        ("a boat", "", last or stages),
    ]
    return [
        Job(i, i, pipe.request(prompt, seeds=[i], negative_prompt=negative, stages=given), f"{i}.png")
        for i, (prompt, negative, given) in enumerate(asked, 1)
    ]


def one_by_one(jobs: Iterable[Job], pipe: TextToImage) -> dict[int, bytes]:
    """The pictures of jobs, each drawn for itself."""
    return {job.index: pipe.run(job.request).images[0].tobytes() for job in jobs}


def together(jobs: Iterable[Job], model: TextToImage, folder: Path, **more: Any) -> dict[int, bytes]:
    """The pictures of one run. more: as `render` takes it."""
    done: dict[int, bytes] = {}
    render(jobs, model, lambda one: done.update({one.job.index: one.image.tobytes()}), folder=folder, **more)  # type: ignore[union-attr]
    return done


def in_parts(jobs: Sequence[Job], model: TextToImage, folder: Path) -> dict[int, bytes]:
    """The pictures of a run that is stopped again and again, each time a little later, and goes on."""
    done: dict[int, bytes] = {}
    rounds = 0
    while len(done) < len(jobs):
        rounds += 1
        left = iter([False] * rounds)
        done |= together(
            jobs,
            model,
            folder,
            done=lambda job, there=done: job.index in there,
            stop=lambda left=left: next(left, True),
            budget=Budget(batches=1),
        )
    assert rounds > 1
    return done


def is_read_per_turn(model: TextToImage) -> bool:
    """Whether none of its networks is in memory now."""
    networks = [network for stage in model.cascade.stages for network in stage.networks]
    return all(parameter.is_meta for network in networks for parameter in network.parameters())
