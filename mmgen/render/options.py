"""What a line of a prompt file asks for: names of options, their values, and the errors of both."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from mmgen.errors import UsageError
from mmgen.render.lines import Lines, PromptFileError
from mmgen.types import MAX_SEED, Size, check_prompt
from mmgen.values import (
    MAX_COUNT,
    MAX_SIDE,
    SETTING_NAMES,
    check_setting,
    parse_setting,
    parse_size,
    parse_whole,
)

# by our name: what the option is called among the settings of the stage 'decoder'
_SHORT = {"steps": "steps", "guidance": "guidance_scale", "sampler": "sampler", "threshold": "threshold"}
_OPTIONS = ("prompt", "count", "seed", "size", "width", "height", *_SHORT, "negative")
_THEIRS = {"negative_prompt": "negative", "cfg_scale": "guidance", "sampler_name": "sampler", "n": "count"}


@dataclass(frozen=True)
class Options:
    """What a line asks for beside its prompt; None where it does not say.

    count: pictures. seed: of the first of them. size: (width, height) in pixels. steps, guidance, sampler and threshold
    mean the stage 'decoder'. settings: all others, by stage and name; none of them is given by a short name as well.
    """

    count: int | None = None
    seed: int | None = None
    size: Size | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    threshold: float | str | None = None
    negative: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One prompt of a file. number: of the line it begins on, from 1."""

    number: int
    prompt: str
    options: Options


Item = Line | PromptFileError
"""What was read, or what is wrong with it."""


def each_line(lines: Lines, read_line: Callable[[str], Line | None]) -> Iterator[Item]:
    """Every line by itself, so that one that is wrong is no end; None: nothing is asked for."""
    while True:
        try:
            item = read_line(next(lines))
        except StopIteration:
            return
        except PromptFileError as error:
            yield error
            continue
        if item is not None:
            yield item


def attempt(read_record: Callable[..., Line], *record: Any) -> Item:
    """A record that others follow, whatever is wrong with it."""
    try:
        return read_record(*record)
    except PromptFileError as error:
        return error


Field = tuple[str | int, str, Any]
"""(name or number of its column, name of the option, value): as a file has it."""
Read = Callable[[str, Any], Any]
"""(our name of the option, value as the file has it) -> value."""


def line_of(
    lines: Lines, number: int, fields: Iterable[Field], read_value: Read, word: str = "column"
) -> Line:
    """A line from its options. word: what a place in it is called."""
    given: dict[str, Any] = {}
    for label, name, raw in fields:
        try:
            option = option_named(name)
            if option in given:
                raise UsageError(f"{option} is given twice: keep one")
            given[option] = None if raw is None else read_value(option, raw)
        except UsageError as error:
            raise lines.wrong(str(error), f"{word} {shown(label)}", number) from None
    try:
        return _complete(number, {option: value for option, value in given.items() if value is not None})
    except UsageError as error:
        raise lines.wrong(str(error), line=number) from None


def _complete(number: int, given: dict[str, Any]) -> Line:
    if "prompt" not in given:
        raise UsageError("no prompt: say what to draw")
    if "width" in given or "height" in given:
        if "size" in given or not ("width" in given and "height" in given):
            raise UsageError("give width and height together, or size alone")
        given["size"] = given.pop("width"), given.pop("height")
    last = given.get("seed", 0) + given.get("count", 1) - 1
    if last > MAX_SEED:
        raise UsageError(f"seed {given['seed']} with count {given['count']} goes past {MAX_SEED}")
    settings: dict[str, dict[str, Any]] = {}
    for option in [name for name in given if "." in name]:
        stage, _, setting = option.partition(".")
        settings.setdefault(stage, {})[setting] = given.pop(option)
    for short, setting in _SHORT.items():
        if short in given and setting in settings.get("decoder", {}):
            raise UsageError(f"{short} and decoder.{setting} are the same: keep one")
    return Line(number, given.pop("prompt"), Options(**given, settings=settings))


@lru_cache(maxsize=1024)
def option_named(name: str) -> str:
    """Our name of an option. Raises UsageError, with the nearest name, if there is none."""
    name = _THEIRS.get(name, name)
    if name in _OPTIONS:
        return name
    stage, _, setting = name.partition(".")
    if setting in SETTING_NAMES and re.fullmatch(r"[^=\s]{1,100}", stage):
        return name
    known = [f"{stage}.{one}" for one in SETTING_NAMES] if setting else [*_OPTIONS, *_THEIRS]
    nearest = difflib.get_close_matches(name[:60], known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(_OPTIONS)} and STAGE.NAME"
    raise UsageError(f"no option {shown(name)}; {hint}")


def shown(value: object) -> str:
    """A value for an error, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def from_text(option: str, text: str) -> Any:
    """The value of an option that is written as text. Raises UsageError with the option's name."""
    return (_parse_kept if option != "prompt" and len(text) <= _MAX_KEPT else _parse)(option, text)


def typed(option: str, value: Any) -> Any:
    """The value of an option from JSON or YAML. Raises UsageError with the option's name."""
    short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _MAX_KEPT)
    return (_value_kept if option != "prompt" and short else _value)(option, value)


def _parse(option: str, text: str) -> Any:
    try:
        value = _parser(option)(text)
    except UsageError as error:
        raise UsageError(f"{option} is {shown(text)}: {error}") from None
    return _value(option, value)


def _parser(option: str) -> Callable[[str], Any]:
    if option in ("prompt", "negative"):
        return str
    if option in ("count", "seed", "width", "height"):
        return parse_whole
    if option == "size":
        return parse_size
    return partial(parse_setting, _SHORT.get(option) or option.partition(".")[2])


def _value(option: str, value: Any) -> Any:
    """A value as it travels on. Raises UsageError with the option's name if it cannot be meant."""
    if option == "prompt":
        check_prompt(value)
    elif option == "negative":
        check_prompt(value, what="negative prompt", may_be_empty=True)
    elif option == "count":
        _check_whole(option, value, 1, MAX_COUNT)
    elif option == "seed":
        _check_whole(option, value, 0, MAX_SEED)
    elif option in ("width", "height"):
        _check_whole(option, value, 1, MAX_SIDE)
    elif option == "size":
        return _size(value)
    else:
        return check_setting(_SHORT.get(option) or option.partition(".")[2], value)
    return value


# Most lines of a long file ask for the same. typed: True is not 1 here.
_MAX_KEPT = 200  # characters
_parse_kept = lru_cache(maxsize=4096)(_parse)
_value_kept = lru_cache(maxsize=4096, typed=True)(_value)


def _check_whole(option: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{option} is {shown(value)}: give a whole number")
    if not low <= value <= high:
        raise UsageError(f"{option} is {shown(value)}: it must lie between {low} and {high}")


def _size(value: Any) -> Size:
    """One side, a text, or both sides in a list; a tuple is a size that has been read."""
    if isinstance(value, str):
        try:
            return parse_size(value)
        except UsageError as error:
            raise UsageError(f"size is {shown(value)}: {error}") from None
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2:
        raise UsageError(f"size is {shown(value)}: give two sides in pixels, such as [640, 480]")
    for side in sides:
        _check_whole("size", side, 1, MAX_SIDE)
    return sides[0], sides[1]
