"""From the lines of a prompt file to jobs: one picture each, complete and named, without torch."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from mmgen.errors import UsageError
from mmgen.images import SUFFIXES, Format, check_fits, slug
from mmgen.pipelines.catalogue import Facts, fitting_side
from mmgen.render.promptfile import Item, Line, Options, PromptFileError
from mmgen.types import MAX_SEED, Request, StageSettings

COUNTED = "{index:06d}-"  # no two names that begin so are one
TEMPLATE = f"{COUNTED}{{slug}}-{{key8}}-{{seed}}"
FIELDS = (
    "index", "line", "number", "slug", "seed", "key", "key8", "model", "width", "height", "size", "steps", "guidance",
    "sampler", "threshold",
)  # fmt: skip
NAME_BYTES = 200
STAGE_BYTES = 20  # of these, for the stage that is added where a picture is stopped
MAX_RECIPES = 256  # that are kept
SLUG_ROOMS = (40, 20, 10, 0)  # bytes that a slug is cut to, tried in turn until a name fits
_SPEC = re.compile(r"[<>^]?0?\d{0,2}[ds]?", re.ASCII)
_FORBIDDEN = '<>:"/\\|?*'  # in names on Windows
_DIGITS = "0123456789¹²³"
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{a}{b}" for a in ("com", "lpt") for b in _DIGITS
}

Stages = dict[str, dict[str, Any]]
"""Settings by stage and name."""
Fields = Mapping[str, str | int]
"""What a template may name."""


@dataclass(frozen=True)
class Job:
    """One picture that is to be drawn.

    index: its place among all jobs of the run, from 1. line: of the prompt file, from 1. request: of this one picture,
    with every setting of every stage and the model's digest. name: of its file, with suffix and without folder.
    key: `key_of` the request, "" = to be computed. goal: the job of the whole picture, where this one is stopped behind
    a stage (`mmgen.render.stopped`). start: the file of such a one, from which this one goes on.
    """

    index: int
    line: int
    request: Request
    name: str
    key: str = ""
    goal: Job | None = None
    start: Path | None = None

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", key_of(self.request))


def key_of(request: Request) -> str:
    """The sha256, in hexadecimal, of all that decides a picture and of nothing else."""
    return hashlib.sha256(request.to_json().encode()).hexdigest()


def jobs(planned: Iterable[Job | PromptFileError]) -> Iterator[Job]:
    """The jobs of a `plan`. Raises the first PromptFileError."""
    for job in planned:
        if isinstance(job, PromptFileError):
            raise job
        yield job


def plan(
    items: Iterable[Item],
    facts: Facts,
    run: Options,
    *,
    template: str = TEMPLATE,
    format: Format = "png",
    source: str = "the prompt file",
    unique: bool = False,
) -> Generator[Job | PromptFileError, None, int]:
    """Every picture as a job, or what is wrong with its line; in the end how many were asked for twice and left out.

    items: of a prompt file, as `promptfile.parse` gives them: checked prompts, and errors, which are passed on.
    facts: of the model. run: what holds where a line says nothing; a seed that nobody says is 0, so that the same
    command gives the same pictures again. template: of the names, with FIELDS. source: the file's name, for errors.
    unique: a run over the same lines has shown that nothing is asked for twice, so that nothing need be remembered.
    A PromptFileError says that a value of a line cannot be meant, settings do not fit into `format`, or two pictures
    would have one name, upper and lower case being one. Raises UsageError for what the run itself says.
    """
    check_template(template)
    recipes = _Recipes(facts, run)
    keys, names = _Seen(), _Seen()
    index = repeated = 0
    for item in items:
        if isinstance(item, PromptFileError):
            yield item
            continue
        try:
            for number, (request, key, shared) in enumerate(recipes.pictures(item), start=1):
                if not unique and keys.first_line(bytes.fromhex(key), item.number) is not None:
                    repeated += 1
                    continue
                if format != "png":
                    check_fits(format, request)
                index += 1
                fields = _fields(shared, request, key, index, item.number, number)
                name = _name(template, SUFFIXES[format], fields)
                if not (unique or template.startswith(COUNTED)):
                    _claim(name, item.number, names)
                yield Job(index, item.number, request, name, key)
        except UsageError as error:
            yield PromptFileError(source, item.number, str(error))
    return repeated


class _Recipes:
    """What lines ask for, each made complete once: most lines of a long file differ by prompt and seed alone."""

    def __init__(self, facts: Facts, run: Options) -> None:
        self._facts, self._run = facts, run
        self._given = _checked(run, facts)
        self._known: dict[Hashable, _Recipe] = {}

    def pictures(self, line: Line) -> Iterator[tuple[Request, str, Fields]]:
        """Of each picture of a line, its seeds counting up: request, key, and what `_Recipe.fields` are."""
        said, run = line.options, self._run
        recipe = self._recipe(said)
        first = _first(said.seed, run.seed, 0)
        for seed in range(first, first + _first(said.count, run.count, 1)):
            if seed > MAX_SEED:
                raise UsageError(f"seed {seed}: give a whole number from 0 to {MAX_SEED}")
            yield *recipe.picture(line.prompt, seed), recipe.fields

    def _recipe(self, said: Options) -> _Recipe:
        settings = tuple((stage, *values.items()) for stage, values in said.settings.items())
        asked = (
            said.size, said.steps, said.guidance, said.sampler, said.threshold, said.negative, settings,
        )  # fmt: skip
        if (known := self._known.get(asked)) is not None:
            return known
        request = self._facts.request(
            "x",
            0,
            size=said.size or self._run.size,
            negative_prompt=_first(said.negative, self._run.negative, ""),
            stages=_merged(self._given, _settings(said)),
        )
        if len(self._known) == MAX_RECIPES:
            self._known.clear()
        return self._known.setdefault(asked, _Recipe(request))


class _Recipe:
    """All that pictures share which differ by prompt and seed alone.

    fields: what a name may say of every one of them. request: of one of them, whose prompt is x and whose seed 0.
    """

    def __init__(self, request: Request) -> None:
        self.fields = _shared_fields(request)
        self._values = dict(vars(request))
        before, own, self._after = request.to_json().partition('"prompts": ["x"], "seeds": [0], ')
        assert own
        self._digest = hashlib.sha256(before.encode())

    def picture(self, prompt: str, seed: int) -> tuple[Request, str]:
        """The request of one picture and what `key_of` it is; prompt and seed have been checked."""
        # to check all the settings anew and write all of them down takes ten times as long
        request = object.__new__(Request)
        vars(request).update(self._values, prompts=(prompt,), seeds=(seed,))
        digest = self._digest.copy()
        digest.update(f'"prompts": [{encode_basestring(prompt)}], "seeds": [{seed}], {self._after}'.encode())
        return request, digest.hexdigest()


def _checked(run: Options, facts: Facts) -> Stages:
    """What the run says about stages. Raises UsageError for what no line could mend."""
    if run.size is not None:
        fitting_side(run.size, facts.sides, facts.name)
    given = _settings(run)
    for values in given.values():
        StageSettings.from_dict(values)
    return given


def _first(of_line: Any, of_run: Any, default: Any) -> Any:
    """The first value that is given."""
    if of_line is not None:
        return of_line
    return default if of_run is None else of_run


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
        template.format_map(_fields(_shared_fields(sample), sample, key_of(sample), 1, 1, 1))
    except ValueError as error:
        raise UsageError(f"--name {template!r}: {error}") from None


def _shared_fields(request: Request) -> Fields:
    """What a template may name and pictures share that differ by prompt and seed alone."""
    width, height = request.size
    decoder = request.stages.get("decoder", StageSettings())
    return {
        "model": slug(request.model),
        "width": width,
        "height": height,
        "size": f"{width}x{height}",
        "steps": decoder.steps or 0,
        "guidance": "" if decoder.guidance_scale is None else f"{decoder.guidance_scale:g}",
        "sampler": decoder.sampler or "",
        "threshold": "" if decoder.threshold is None else str(decoder.threshold),
    }


def _fields(shared: Fields, request: Request, key: str, index: int, line: int, number: int) -> Fields:
    """All that a template may name. number: of the picture among those of its prompt, from 1."""
    (prompt,), (seed,) = request.prompts, request.seeds
    return {
        **shared,
        "index": index,
        "line": line,
        "number": number,
        "slug": slug(prompt),
        "seed": seed,
        "key": key,
        "key8": key[:8],
    }


def _name(template: str, suffix: str, fields: Fields) -> str:
    """A name that every file system takes, of NAME_BYTES bytes with a stage; the slug is cut where it is too long."""
    words, rooms, most = str(fields["slug"]).encode(), iter(SLUG_ROOMS), NAME_BYTES - STAGE_BYTES
    while len((name := f"{_stem(template, fields)}{suffix}").encode()) > most:
        if (room := next(rooms, None)) is None:
            raise UsageError(f"--name {template!r} makes names of more than {most} bytes: shorten it")
        fields = {**fields, "slug": words[:room].decode("utf-8", "ignore").rstrip("-")}
    return name


def _stem(template: str, fields: Fields) -> str:
    stem = unicodedata.normalize("NFC", template.format_map(fields)).strip(" .") or str(fields["key8"])
    return f"_{stem}" if stem.partition(".")[0].rstrip().casefold() in _RESERVED else stem


def _claim(name: str, line: int, names: _Seen) -> None:
    """Take a name down. Raises UsageError, with the line it is of, if it had been there."""
    # some systems compare names without regard to case
    digest = hashlib.sha256(unicodedata.normalize("NFC", name.casefold()).encode()).digest()
    if (other := names.first_line(digest, line)) is not None:
        raise UsageError(
            f"its picture is to be named {name}, as one of line {other}: put {{index}} or {{key8}} into --name"
        )


class _Seen:
    """The digests that there were, and the line of each. A million take about 32 MB, a third of what a set takes."""

    def __init__(self) -> None:
        self._rows: defaultdict[bytes, bytearray] = defaultdict(bytearray)  # by the first two bytes

    def first_line(self, digest: bytes, line: int) -> int | None:
        """The line that has this digest, a sha256; None: there was none, and it is taken down for this one."""
        row, rest = self._rows[digest[:2]], digest[2:14]  # 14 bytes tell any number of lines apart
        if (at := row.find(rest)) >= 0:
            return int.from_bytes(row[at + 12 : at + 16], "big")
        row += rest + line.to_bytes(4, "big")
        return None
