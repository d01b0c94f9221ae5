"""From the lines of a prompt file to jobs: one picture each, complete and named, without torch."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import string
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmgen.errors import UsageError
from mmgen.images import SUFFIXES, Format, check_fits, slug
from mmgen.pipelines.catalogue import Facts, fitting_side
from mmgen.render.promptfile import Line, Options, PromptFileError
from mmgen.types import Request, StageSettings

TEMPLATE = "{index:06d}-{slug}-{key8}-{seed}"
FIELDS = (
    "index", "line", "number", "slug", "seed", "key", "key8", "model", "width", "height", "size", "steps", "guidance",
    "sampler", "threshold",
)  # fmt: skip
NAME_BYTES = 200
SLUG_ROOMS = (80, 40, 20, 10, 0)  # bytes of the slug, tried in turn until a name fits
_SPEC = re.compile(r"[<>^]?0?\d{0,2}[ds]?", re.ASCII)
_FORBIDDEN = '<>:"/\\|?*'  # in names on Windows
_DIGITS = "0123456789¹²³"
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{a}{b}" for a in ("com", "lpt") for b in _DIGITS
}

Stages = dict[str, dict[str, Any]]
"""Settings by stage and name."""


@dataclass(frozen=True)
class Job:
    """One picture that is to be drawn.

    index: its place among all jobs of the run, from 1. line: of the prompt file, from 1. request: of this one picture,
    with every setting of every stage and the model's digest. name: of its file, with suffix and without folder.
    key: `key_of` the request, "" = to be computed.
    """

    index: int
    line: int
    request: Request
    name: str
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", key_of(self.request))


def key_of(request: Request) -> str:
    """The sha256, in hexadecimal, of all that decides a picture and of nothing else."""
    return hashlib.sha256(request.to_json().encode()).hexdigest()


def jobs(
    lines: Iterable[Line],
    facts: Facts,
    run: Options,
    *,
    template: str = TEMPLATE,
    format: Format = "png",
    source: str = "the prompt file",
) -> Generator[Job, None, int]:
    """Every picture of a prompt file as a job, and in the end how many were left out because they are asked for twice.

    facts: of the model. run: what holds where a line says nothing; a seed that nobody says is 0, so that the same
    command gives the same pictures again. template: of the names, with FIELDS. source: the file's name, for errors.
    Raises PromptFileError where a value of a line cannot be meant, settings do not fit into `format`, or two pictures
    would have one name, upper and lower case being one; UsageError for what the run itself says.
    """
    check_template(template)
    given = _checked(run, facts)
    index = repeated = 0
    with closing(_Seen()) as seen:
        for line in lines:
            try:
                for number, request in enumerate(_requests(line, facts, run, given), start=1):
                    key = key_of(request)
                    if not seen.is_new_key(key):
                        repeated += 1
                        continue
                    if format != "png":
                        check_fits(format, request)
                    index += 1
                    fields = _fields(request, key, index, line.number, number)
                    name = _name(template, SUFFIXES[format], fields)
                    seen.claim(name, line.number)
                    yield Job(index, line.number, request, name, key)
            except UsageError as error:
                raise PromptFileError(source, line.number, str(error)) from None
    return repeated


def _checked(run: Options, facts: Facts) -> Stages:
    """What the run says about stages. Raises UsageError for what no line could mend."""
    if run.size is not None:
        fitting_side(run.size, facts.sides, facts.name)
    given = _settings(run)
    for values in given.values():
        StageSettings.from_dict(values)
    return given


def _requests(line: Line, facts: Facts, run: Options, given: Stages) -> Iterator[Request]:
    """The request of each picture of a line, its seeds counting up. given: what the run says about stages."""
    said = line.options
    stages = _merged(given, _settings(said))
    first = _first(said.seed, run.seed, 0)
    for seed in range(first, first + _first(said.count, run.count, 1)):
        yield facts.request(
            line.prompt,
            seed,
            size=said.size or run.size,
            negative_prompt=_first(said.negative, run.negative, ""),
            stages=stages,
        )


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next(value for value in values if value is not None)


def _settings(said: Options) -> Stages:
    """Everything that is said about stages. Raises UsageError if something is said twice."""
    stages = {stage: dict(values) for stage, values in said.settings.items()}
    decoder = {
        "steps": said.steps,
        "guidance_scale": said.guidance,
        "sampler": said.sampler,
        "threshold": said.threshold,
    }
    for name, value in decoder.items():
        if value is None:
            continue
        if name in stages.setdefault("decoder", {}):
            raise UsageError(f"decoder.{name} is given twice, once by its short name: keep one")
        stages["decoder"][name] = value
    return stages


def _merged(run: Stages, line: Stages) -> dict[str, StageSettings]:
    """The settings of a line, and of the run where the line says nothing."""
    stages = {stage: {**run.get(stage, {}), **line.get(stage, {})} for stage in {**run, **line}}
    return {stage: StageSettings.from_dict(values) for stage, values in stages.items()}


# ---- names ---------------------------------------------------------------------------------------


def check_template(template: str) -> None:
    """Raise UsageError unless names can be made from `template`: text, and FIELDS in braces as in {index:06d}."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"--name {template!r}: {error}") from None
    for text, name, spec, conversion in parts:
        if bad := [c for c in text if c in _FORBIDDEN or (c != " " and unicodedata.category(c)[0] in "CZ")]:
            raise UsageError(f"--name {template!r}: no file name holds {bad[0]!r} on every system")
        if name is None:
            continue
        if name not in FIELDS:
            raise UsageError(f"--name {template!r}: no field {name!r}, there are {', '.join(FIELDS)}")
        if conversion or not _SPEC.fullmatch(spec or ""):
            raise UsageError(
                f"--name {template!r}: after {name!r} only a width may stand, such as {{index:06d}}"
            )
    sample = Request(("a",), (0,), (1, 1))
    try:
        template.format_map(_fields(sample, key_of(sample), 1, 1, 1))
    except ValueError as error:
        raise UsageError(f"--name {template!r}: {error}") from None


def _fields(request: Request, key: str, index: int, line: int, number: int) -> dict[str, str | int]:
    """What a template may name. number: of the picture among those of its prompt, from 1."""
    (prompt,), (seed,) = request.prompts, request.seeds
    width, height = request.size
    decoder = request.stages.get("decoder", StageSettings())
    return {
        "index": index,
        "line": line,
        "number": number,
        "slug": slug(prompt),
        "seed": seed,
        "key": key,
        "key8": key[:8],
        "model": _model_slug(request.model),
        "width": width,
        "height": height,
        "size": f"{width}x{height}",
        "steps": decoder.steps or 0,
        "guidance": "" if decoder.guidance_scale is None else f"{decoder.guidance_scale:g}",
        "sampler": decoder.sampler or "",
        "threshold": "" if decoder.threshold is None else str(decoder.threshold),
    }


@lru_cache(maxsize=8)  # one model, a million jobs
def _model_slug(name: str) -> str:
    return slug(name)


def _name(template: str, suffix: str, fields: Mapping[str, str | int]) -> str:
    """A name that every file system takes, of at most NAME_BYTES bytes; the slug is cut where it is too long."""
    words = str(fields["slug"]).encode()
    for room in SLUG_ROOMS:
        cut = words[:room].decode("utf-8", "ignore").rstrip("-")
        stem = unicodedata.normalize("NFC", template.format_map({**fields, "slug": cut})).strip(" .")
        stem = stem or str(fields["key8"])
        if stem.partition(".")[0].rstrip().casefold() in _RESERVED:
            stem = f"_{stem}"
        if len(f"{stem}{suffix}".encode()) <= NAME_BYTES:
            return f"{stem}{suffix}"
    raise UsageError(f"--name {template!r} makes names of more than {NAME_BYTES} bytes: shorten it")


class _Seen:
    """The keys and names that there were: a table in memory, where a million of each take 55 MB."""

    def __init__(self) -> None:
        self._table = sqlite3.connect(":memory:", check_same_thread=False)
        self._table.execute("PRAGMA journal_mode=OFF")
        self._table.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._table.execute("CREATE TABLE names (name BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID")

    def close(self) -> None:
        self._table.close()

    def is_new_key(self, key: str) -> bool:
        """Take a key down; whether it had not been there."""
        digest = bytes.fromhex(key)[:16]
        return self._table.execute("INSERT OR IGNORE INTO keys VALUES (?)", [digest]).rowcount == 1

    def claim(self, name: str, line: int) -> None:
        """Take a name down. Raises UsageError, with the line it is of, if it had been there."""
        # some systems compare names without regard to case
        digest = hashlib.sha256(unicodedata.normalize("NFC", name.casefold()).encode()).digest()[:16]
        added = self._table.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", [digest, line]).rowcount
        if not added:
            ((other,),) = self._table.execute("SELECT line FROM names WHERE name = ?", [digest])
            raise UsageError(
                f"its picture is to be named {name}, as one of line {other}: put {{index}} or {{key8}} into --name"
            )
