"""Prompts in JSON and YAML, item by item, so that a list of any length is read as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from mmgen.errors import UsageError
from mmgen.render.lines import MAX_LINE_CHARS, Lines, PromptFileError
from mmgen.render.options import Item, Line, attempt, each_line, line_of, shown, typed


@dataclass(frozen=True)
class _Object:
    """Names and values in their order; a name that stands twice is there twice."""

    pairs: list[tuple[str, Any]]

    def __repr__(self) -> str:
        return "an object"


_BATCH_NAMES = ("custom_id", "method", "url", "body")
_PASSED_BY = ("model", "user", "response_format")


def _record(lines: Lines, number: int, value: Any) -> Line:
    """A line from what stands for it in JSON or YAML: a prompt, or an object of options."""
    if isinstance(value, str):
        value = _Object([("prompt", value)])
    if not isinstance(value, _Object):
        raise lines.wrong(f"{shown(value)} is no prompt: give text or an object", line=number)
    pairs = value.pairs
    names = [name for name, _ in pairs]
    if "custom_id" in names and "body" in names:
        pairs = _batch_body(lines, number, pairs)
    return line_of(lines, number, ((name, name, one) for name, one in pairs), typed, "key")


def _batch_body(lines: Lines, number: int, pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The options in a request as in OpenAI's batch files."""
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _BATCH_NAMES or name in seen:
            text = "given twice" if name in seen else f"a request has {', '.join(_BATCH_NAMES)}"
            raise lines.wrong(text, f"key {shown(name)}", number)
        seen[name] = value
    for name, meant, fits in (
        ("custom_id", "give text", isinstance(seen["custom_id"], str)),
        ("method", "give 'POST'", seen.get("method", "POST") == "POST"),
        ("url", "only /v1/images/generations is known", _draws(seen.get("url", "/images/generations"))),
        ("body", "give an object", isinstance(seen["body"], _Object)),
    ):
        if not fits:
            raise lines.wrong(f"{name} is {shown(seen[name])}: {meant}", f"key {name!r}", number)
    return [(name, value) for name, value in seen["body"].pairs if name not in _PASSED_BY]


def _draws(url: object) -> bool:
    return isinstance(url, str) and url.endswith("/images/generations")


def _no_constant(text: str) -> None:
    raise UsageError(f"{text} is no number of JSON: give another")


_TOO_MUCH = "a number has thousands of digits, or lists stand in lists too deep"
_JSON_BLANKS = re.compile(r"[ \t\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_constant=_no_constant)


def read_jsonl(lines: Lines) -> Iterator[Item]:
    return each_line(lines, partial(_jsonl_line, lines))


def _jsonl_line(lines: Lines, text: str) -> Line | None:
    if not text.strip():
        return None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise lines.wrong(f"this is not JSON: {error.msg}", f"column {error.colno}") from None
    except UsageError as error:
        raise lines.wrong(f"this is not JSON: {error}") from None
    except (ValueError, RecursionError):
        raise lines.wrong(_TOO_MUCH) from None
    return _record(lines, lines.number, value)


def read_json(lines: Lines) -> Iterator[Item]:
    text = _JsonText(lines)
    text.take("[", "begin the list with [")
    if text.peek() != "]":
        yield attempt(_record, lines, *text.value())
        while text.peek() != "]":
            text.take(",", "a , must stand between two prompts, and ] after the last")
            yield attempt(_record, lines, *text.value())
    text.take("]", "end the list with ]")
    text.take("", "after the list nothing may stand")


class _JsonText:
    """A window on a JSON text, so that a list of any length is read item by item.

    line: the number of the line at which the text is read. broken: what is wrong with the line that ends the window.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines, self.line = lines, 1
        self.text, self.at = "", 0
        self.before = 0  # characters of the first line in the window that stood before it
        self.ended = False
        self.broken: PromptFileError | None = None

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self._fill()
            found = _JSON_BLANKS.match(self.text, self.at)
            self._go(found.end() if found else self.at)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]

    def take(self, character: str, otherwise: str) -> None:
        """Pass by a character, "" is the end; `otherwise`: what is said if another stands there."""
        if self.peek() != character or (self.broken and not character):
            raise self._wrong(otherwise, self.at)
        self._go(self.at + len(character))

    def value(self) -> tuple[int, Any]:
        """(its line, the next value)."""
        self.peek()
        line = self.line
        try:
            value, end = _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            raise self._wrong(error.msg, error.pos) from None
        except UsageError as error:
            raise self._wrong(str(error), self.at) from None
        except (ValueError, RecursionError):
            raise self._wrong(_TOO_MUCH, self.at) from None
        if end - self.at > MAX_LINE_CHARS:
            raise self._wrong(f"a prompt with its options has at most {MAX_LINE_CHARS:,} characters", self.at)
        self._go(end)
        return line, value

    def _go(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _fill(self) -> None:
        """Make the window longer than the longest record."""
        if self.ended or len(self.text) - self.at > MAX_LINE_CHARS:
            return
        self.before = self._column(self.at) - 1
        parts = [self.text[self.at :]]
        size = len(parts[0])
        try:
            while size <= 2 * MAX_LINE_CHARS:
                piece = self.lines.piece()
                parts.append(piece.rstrip("\r\n") + "\n" if self.lines.whole else piece)
                size += len(piece)
        except StopIteration:
            self.ended = True
        except PromptFileError as error:
            self.ended, self.broken = True, error
        self.text, self.at = "".join(parts), 0

    def _column(self, at: int) -> int:
        start = self.text.rfind("\n", 0, at) + 1
        return at - start + 1 + (0 if start else self.before)

    def _wrong(self, text: str, at: int) -> PromptFileError:
        if self.broken is not None:
            return self.broken
        line = self.line + self.text.count("\n", self.at, at)
        return self.lines.wrong(f"this is not a list in JSON: {text}", f"column {self._column(at)}", line)


_NOT_IN_YAML = re.compile("[^\t\n -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_YAML_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
# A part of what YAML 1.1 takes for numbers, so that no text is taken for one that its writers leave without quotes.
_YAML_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_YAML_FLOAT = re.compile(r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")


def read_yaml(lines: Lines) -> Iterator[Item]:
    text = _YamlText(lines)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)  # the one in C is not on every machine
    try:
        yield from _yaml_records(lines, text, iter(loader.get_event, None))
    except yaml.MarkedYAMLError as error:
        mark, began = error.problem_mark, error.context_mark
        since = f" {error.context}, which began on line {began.line + 1}" if began else ""
        said = f"this is not YAML: {error.problem}{since}"
        raise text.broken or lines.wrong(said, f"column {mark.column + 1}", _number(lines, mark)) from None
    finally:
        loader.dispose()
    if text.broken is not None:
        raise text.broken


class _YamlText:
    """Lines as a text that a parser reads ahead. What is wrong with one ends the text, and is said after the rest.

    taken: how many characters the records before this one had.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.given = self.taken = 0
        self.broken: PromptFileError | None = None

    def read(self, size: int) -> str:
        parts: list[str] = []
        length = 0
        while length < size and self.broken is None:
            try:
                line = f"{next(self.lines)}\n"
                self._check(line)
            except StopIteration:
                break
            except PromptFileError as error:
                self.broken = error
                break
            parts.append(line)
            length += len(line)
        self.given += length
        return "".join(parts)

    def _check(self, line: str) -> None:
        if found := _NOT_IN_YAML.search(line):
            where = f"column {found.start() + 1}"
            raise self.lines.wrong(f"{found[0]!r} may not stand in YAML: take it out", where)
        if self.given - self.taken > 4 * MAX_LINE_CHARS:  # a record, and what is read ahead
            raise self.lines.wrong("a prompt that begins far above has no end up to here: is a quote closed?")


def _number(lines: Lines, mark: yaml.Mark) -> int:
    """The line of a place. YAML's lines end at U+0085, U+2028 and U+2029 too, and one follows the last."""
    return int(min(mark.line + 1, lines.number))


def _yaml_records(lines: Lines, text: _YamlText, events: Iterator[yaml.Event]) -> Iterator[Item]:
    next(events)  # the stream begins
    if isinstance(next(events), yaml.StreamEndEvent):
        return
    start = next(events)
    if not isinstance(start, yaml.SequenceStartEvent):
        raise lines.wrong("give a list: begin each prompt with '- '", line=_number(lines, start.start_mark))
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        number = _number(lines, event.start_mark)
        text.taken = event.start_mark.index
        yield attempt(_record, lines, number, _yaml_record(lines, event, events))
    next(events)  # the document ends
    if not isinstance(event := next(events), yaml.StreamEndEvent):
        raise lines.wrong("one list is all that may stand in the file", line=_number(lines, event.start_mark))


def _yaml_record(lines: Lines, event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    if not isinstance(event, yaml.MappingStartEvent):
        return _yaml_value(lines, event, events)
    _check_plain(lines, event)
    pairs = []
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        name = _yaml_value(lines, event, events)
        if not isinstance(name, str):
            raise lines.wrong(f"{shown(name)} is no name of an option", line=_number(lines, event.start_mark))
        pairs.append((name, _yaml_value(lines, next(events), events)))
    return _Object(pairs)


def _yaml_value(lines: Lines, event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    """Text, a number, true, false, null, or a list of such: all that an option may have."""
    if not isinstance(event, yaml.SequenceStartEvent):
        return _yaml_scalar(lines, event)
    _check_plain(lines, event)
    values = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        values.append(_yaml_scalar(lines, event))
    return values


def _yaml_scalar(lines: Lines, event: yaml.Event) -> Any:
    _check_plain(lines, event)
    if not isinstance(event, yaml.ScalarEvent):
        raise lines.wrong(
            "a value is text, a number or a list of such", line=_number(lines, event.start_mark)
        )
    return _yaml_plain(event.value) if event.implicit[0] else event.value


def _check_plain(lines: Lines, event: yaml.Event) -> None:
    number = _number(lines, event.start_mark)
    if isinstance(event, yaml.AliasEvent):
        raise lines.wrong(f"the alias *{event.anchor[:60]} is not read: write out what it means", line=number)
    if event.tag is not None:
        raise lines.wrong(f"the tag {shown(event.tag)} is not read: leave it out", line=number)


def _yaml_plain(text: str) -> Any:
    if text in _YAML_WORDS:
        return _YAML_WORDS[text]
    if _YAML_WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _YAML_FLOAT.fullmatch(text) else text
