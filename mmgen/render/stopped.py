"""Pictures that were stopped behind a stage, and what each holds so that it can be gone on with. Imports no torch.

Such a picture is a PNG file like any other, with the request that draws it again. A chunk of its own holds besides the
job of the whole picture, and what the next stage begins with to the last bit, which 8 bits a colour do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.errors import UsageError
from mmgen.images import SUFFIXES, Format, check_fits, read_metadata
from mmgen.inputs import open_picture
from mmgen.pipelines.catalogue import Facts
from mmgen.pipelines.forms import StageForm, up_to
from mmgen.render.jobs import Job
from mmgen.types import Request

GROUP = "super-res"  # stands for whichever of these stages comes next
# Ancillary, private, and to be left out by whoever changes the pixels. Source: PNG third edition, section 5.4.
CHUNK = b"mmDR"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BEGIN = 33  # bytes of the signature and of IHDR, which must come first


@dataclass(frozen=True)
class Stopped:
    """What a picture holds to go on from it.

    goal: the job of the whole picture. image: [1, 3, H, W], float32 in [-1, 1], laid out in memory as it was drawn.
    """

    goal: Job
    image: NDArray[np.float32]


# ---- jobs that are to be stopped -----------------------------------------------------------------


def check_stop(stage: str, facts: Facts) -> None:
    """Raise UsageError unless a run can be stopped after a stage of this model."""
    if stage not in (names := _stops(facts)):
        raise UsageError(
            f"--stop-after {stage}: {facts.name} stops after {' or '.join(names) or 'no stage'}, where there is "
            "a picture to look at and a stage to come"
        )


def _stops(facts: Facts) -> list[str]:
    return [form.name for form in facts.forms[:-1] if form.size is not None]


def stopped(job: Job, stage: str, forms: Sequence[StageForm]) -> Job:
    """A job as far as a stage, which `check_stop` lets pass; one that ends there or before stays as it is."""
    (side,) = [form.size for form in forms if form.name == stage]
    assert side is not None
    if job.request.size[0] <= side:
        return job
    request = _shortened(job.request, side, forms)
    name = f"{Path(job.name).stem}.{stage}{SUFFIXES['png']}"
    return replace(job, request=request, name=name, key=key_behind(request, job), goal=job)


def _shortened(request: Request, side: int, forms: Sequence[StageForm]) -> Request:
    """The request of what there is when pictures have this side."""
    names = [form.name for form in up_to(forms, side)]
    stages = {name: settings for name, settings in request.stages.items() if name in names}
    return replace(request, size=(side, side), stages=stages)


def key_behind(request: Request, goal: Job) -> str:
    """The key of a picture that was stopped: of what draws it, and of what it is to become."""
    return hashlib.sha256(f"{request.to_json()}\n{goal.key}".encode()).hexdigest()


# ---- files ---------------------------------------------------------------------------------------


def packed(goal: Job, image: NDArray[np.float32]) -> bytes:
    """What a picture that was stopped holds, for `with_draft`. image: [1, 3, H, W]."""
    # a convolution may sum up in another order where channels do not come last
    order = sorted(range(image.ndim), key=lambda axis: image.strides[axis], reverse=True)
    laid_out = image.transpose(order).astype("<f4", copy=False)
    head = {
        "index": goal.index,
        "line": goal.line,
        "name": goal.name,
        "request": goal.request.to_json(),
        "order": order,
        "shape": laid_out.shape,
    }
    return json.dumps(head).encode() + b"\n" + laid_out.tobytes()


def with_draft(data: bytes, draft: bytes) -> bytes:
    """A PNG file with what `packed` gives in a chunk of its own."""
    checksum = zlib.crc32(CHUNK + draft)
    chunk = struct.pack(">I4s", len(draft), CHUNK) + draft + struct.pack(">I", checksum)
    return data[:_BEGIN] + chunk + data[_BEGIN:]


def read(path: Path) -> Stopped | None:
    """What a picture file holds to go on from it; None if nothing. Raises UsageError if that is damaged."""
    draft = _chunk(path)
    if draft is None:
        return None
    try:
        head, _, pixels = draft.partition(b"\n")
        values = json.loads(head)
        order, shape = values["order"], values["shape"]
        # not a view of the file's bytes, which torch may not write into
        laid_out = np.frombuffer(pixels, "<f4").reshape(shape).astype(np.float32)
        image = laid_out.transpose([order.index(axis) for axis in range(len(order))])
        goal = _goal(values)
        if image.ndim != 4 or image.shape[:2] != (1, 3) or not np.isfinite(image).all():
            raise ValueError("no picture")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
        raise UsageError(f"{path}: what it holds to go on from it is damaged") from None
    return Stopped(goal, image)


def _chunk(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN + 8)
            if not begin.startswith(_SIGNATURE) or begin[_BEGIN + 4 :] != CHUNK:
                return None
            length = int.from_bytes(begin[_BEGIN : _BEGIN + 4], "big")
            draft = file.read(min(length, os.fstat(file.fileno()).st_size))
            checksum = int.from_bytes(file.read(4), "big")
    except OSError:  # who reads the picture says why
        return None
    if zlib.crc32(CHUNK + draft) != checksum:
        raise UsageError(f"{path}: what it holds to go on from it is damaged")
    return draft


def _goal(values: dict[str, Any]) -> Job:
    """The job of the whole picture. Raises UsageError or ValueError for what no run has written."""
    index, line, name = values["index"], values["line"], values["name"]
    request = Request.from_json(values["request"])
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name and name.isprintable()
    if not plain or Path(name).suffix not in SUFFIXES.values():
        raise ValueError("the name leads elsewhere")
    if type(index) is not int or type(line) is not int or len(request.prompts) * len(request.seeds) != 1:
        raise ValueError("not one picture")
    return Job(index, line, request, name)


# ---- going on ------------------------------------------------------------------------------------


def going_on(
    paths: Sequence[Path], stage: str, facts: Facts, format: Format, stop: str | None = None
) -> list[Job]:
    """The jobs of the whole pictures of which these files are what there is so far; one that comes twice is one job.

    stage: the one that goes on, or GROUP. format: of the new files. stop: the stage after which they stop again, which
    `check_stop` lets pass. Raises UsageError for files that hold nothing to go on from, were drawn by another model
    than that of `facts`, go on with another stage or behind `stop`, or were changed.
    """
    names = [form.name for form in facts.forms]
    nexts = [_next(facts.forms, names.index(name)) for name in _stops(facts)]
    if not any(_is_meant(stage, name) for name in nexts):
        raise UsageError(
            f"--from-stage {stage}: {facts.name} goes on with {' or '.join(nexts) or 'no stage'}; {GROUP} is whichever "
            "comes next"
        )
    jobs: dict[str, Job] = {}
    begins: dict[str, Path] = {}
    for path in paths:
        job, begin = _going_on(path, facts, format)
        if not _is_meant(stage, begin):
            raise UsageError(f"{path} goes on with {begin}, not with {stage}: leave it out")
        if stop is not None and names.index(stop) < names.index(begin):
            raise UsageError(f"--stop-after {stop}: {path} is behind it, and goes on with {begin}")
        begins.setdefault(begin, path)
        jobs.setdefault(job.key, job)
    if len(begins) > 1:
        said = " and ".join(f"{path} with {begin}" for begin, path in begins.items())
        raise UsageError(f"{said}: give them to one run each")
    _check_names(list(jobs.values()))
    return [job if stop is None else stopped(job, stop, facts.forms) for job in jobs.values()]


def _is_meant(stage: str, begin: str) -> bool:
    return stage == begin or (stage == GROUP and begin.startswith(f"{GROUP}-"))


def _going_on(path: Path, facts: Facts, format: Format) -> tuple[Job, str]:
    """The job of a whole picture, and the stage that it begins with."""
    request, found = read_metadata(path)["request"], read(path)
    if found is None or request is None:
        raise UsageError(
            f"{path} holds nothing to go on from: give pictures that 'mmgen batch --stop-after' has drawn, and any "
            "others to 'mmgen upscale'"
        )
    goal = found.goal
    if goal.request.model_digest != facts.digest:
        raise UsageError(
            f"{path} was begun by {goal.request.model} {goal.request.model_digest[:12]}, and --model is {facts.name} "
            f"{facts.digest[:12]}: give that model"
        )
    side = request.size[0]
    sides = [form.size for form in facts.forms]
    if side not in sides[:-1] or request != _shortened(goal.request, side, facts.forms):
        raise UsageError(f"{path}: what it holds to go on from it is of another picture")
    pixels = ((found.image[0].clip(-1, 1) + 1) * np.float32(127.5)).round().transpose(1, 2, 0)
    if not np.array_equal(pixels, np.asarray(open_picture(path))):
        raise UsageError(f"{path} was changed since it was drawn: give it to 'mmgen upscale'")
    check_fits(format, goal.request)
    name = f"{Path(goal.name).stem}{SUFFIXES[format]}"
    return replace(goal, name=name, start=path), _next(facts.forms, sides.index(side))


def _next(forms: Sequence[StageForm], index: int) -> str:
    """The stage that goes on with the pictures of another one: the first that takes settings."""
    return next((form.name for form in forms[index + 1 :] if form.takes), forms[index + 1].name)


def _check_names(jobs: Sequence[Job]) -> None:
    names: dict[str, Job] = {}
    for job in jobs:
        other = names.setdefault(job.name.casefold(), job)
        if other is not job:
            raise UsageError(
                f"{other.start} and {job.start} are both to become {job.name}: give one at a time"
            )
