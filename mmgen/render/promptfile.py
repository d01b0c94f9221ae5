"""Prompt files: lines of text, tables, JSON and YAML, read as a stream; what is wrong is said with its line.

Any option of `mmgen generate` that decides a picture may stand beside a prompt, and `STAGE.NAME` for any setting of any
stage. Lines end at LF, CRLF and CR and nowhere else; the text is UTF-8, with or without a byte order mark.

    .txt           a prompt per line; lines that begin with # are left out; a line that begins with -- is options:
                   --prompt "a fox" --steps 20 -n 2 --set decoder.eta=0.5. A prompt without quotes holds no --word
    .csv .tsv      a header with the names of the options, then a row per prompt; an empty cell is not given
    .jsonl .ndjson on each line a text or an object of options, or a request as in OpenAI's batch files: its `model`,
                   `user` and `response_format` are passed by, as they say nothing about the picture here
    .json          one list of such texts and objects
    .yaml .yml     the same in YAML, without tags and aliases; only true, false, null and plain numbers are not text

A1111's names mean ours: negative_prompt, cfg_scale, sampler_name, width with height; so does OpenAI's n.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from mmgen.errors import UsageError
from mmgen.render import records
from mmgen.render.lines import Lines
from mmgen.render.lines import PromptFileError as PromptFileError
from mmgen.render.options import Field, attempt, each_line, from_text, line_of, option_named, shown
from mmgen.render.options import Item as Item
from mmgen.render.options import Line as Line
from mmgen.render.options import Options as Options
from mmgen.types import check_prompt

Kind = Literal["txt", "csv", "tsv", "jsonl", "json", "yaml"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES: Mapping[str, Kind] = {**{f".{kind}": kind for kind in KINDS}, ".ndjson": "jsonl", ".yml": "yaml"}

Expand = Callable[[Line], Iterable[Line]]


def parse(
    source: Path | BinaryIO, kind: Kind | None = None, name: str | None = None, expand: Expand | None = None
) -> Iterator[Item]:
    """Each line of a prompt file, or what is wrong with it; nothing after an error that hides where the next begins.

    source: a file, or an open one such as standard input. kind: None = what the file's name says, txt without a name.
    name: of the file in errors. expand: makes the lines that stand for a line, such as those of its wildcards; its
    UsageErrors become those of the line. Raises UsageError if the file cannot be opened or its kind is unknown.
    """
    shown = name or (str(source) if isinstance(source, Path) else "standard input")
    return _parse(source, kind or _kind_of(source, shown), shown, expand)


def _kind_of(source: Path | BinaryIO, name: str) -> Kind:
    if not isinstance(source, Path):
        return "txt"
    kind = SUFFIXES.get(source.suffix.lower())
    if kind is None:
        raise UsageError(f"{name} is no prompt file by its name: it must end in {', '.join(SUFFIXES)}")
    return kind


def _parse(source: Path | BinaryIO, kind: Kind, name: str, expand: Expand | None) -> Iterator[Item]:
    empty = True
    with _opened(source, name) as stream, Lines(stream, name) as lines:
        try:
            for item in _READERS[kind](lines):
                empty = False
                if expand is None or isinstance(item, PromptFileError):
                    yield item
                    continue
                try:
                    yield from expand(item)
                except UsageError as error:
                    yield lines.wrong(str(error), line=item.number)
        except PromptFileError as error:
            empty = False
            yield error
    if empty:
        yield PromptFileError(name, 1, "no prompt stands here or below: write one")


@contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        yield source
        return
    try:
        stream = source.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the prompt file {name!r} cannot be read: {reason}") from None
    with stream:
        yield stream


_PLAIN = Options()
_SEVERAL_WORDS = ("prompt", "negative", "negative_prompt")  # they may have, without quotes
_OPTION_LINE = re.compile(r"[ \t]*(?:--|-n[ \t=\d])")
_OPTION_AFTER_PROMPT = re.compile(r"(?<=\s)--[A-Za-z][\w.-]*")
_WORD = re.compile(r"""(?:[^ \t"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""")
_QUOTED = re.compile(r""""((?:[^"\\]|\\.)*)"|'([^']*)'|\\(.)""")


def _read_txt(lines: Lines) -> Iterator[Item]:
    return each_line(lines, partial(_txt_line, lines))


def _txt_line(lines: Lines, text: str) -> Line | None:
    begin = text.lstrip()[:1]
    if begin in ("", "#"):
        return None
    if begin == "-" and _OPTION_LINE.match(text):
        return line_of(lines, lines.number, _command(lines, text), from_text)
    if "--" in text and (found := _OPTION_AFTER_PROMPT.search(text)):
        said = f"{shown(found[0])} stands after a prompt: begin the line with --prompt, and put the prompt in quotes"
        raise lines.wrong(said, f"column {found.start() + 1}")
    try:
        check_prompt(text)
    except UsageError as error:
        raise lines.wrong(str(error)) from None
    return Line(lines.number, text, _PLAIN)


def _command(lines: Lines, text: str) -> Iterator[Field]:
    """The options of a line such as --prompt "a fox" --steps 20, by the column that they begin in."""
    words = deque(_words(lines, text))
    while words:
        column, word = words.popleft()
        if not _is_option(word):
            raise lines.wrong(
                f"{shown(word)} belongs to no option: put a value in quotes", f"column {column}"
            )
        name, equals, value = word.partition("=")
        values = [value] if equals else []
        while words and not _is_option(words[0][1]):
            values.append(words.popleft()[1])
        name = name[2:] if name.startswith("--") else name[1:]
        if not values or (len(values) > 1 and name not in _SEVERAL_WORDS):
            raise lines.wrong(f"{shown(word)} takes one value, not {len(values)}", f"column {column}")
        value = " ".join(map(_unquoted, values))
        if name == "set":
            name, equals, value = value.partition("=")
            if not equals or "." not in name:
                raise lines.wrong(
                    "write --set STAGE.NAME=VALUE, such as decoder.steps=25", f"column {column}"
                )
        yield column, name, value


def _words(lines: Lines, text: str) -> Iterator[tuple[int, str]]:
    """(column, word as it is written) of a line, parted as a shell parts it."""
    at = 0
    for found in _WORD.finditer(text):
        _check_gap(lines, text, at, found.start())
        yield found.start() + 1, found[0]
        at = found.end()
    _check_gap(lines, text, at, len(text))


def _check_gap(lines: Lines, text: str, start: int, end: int) -> None:
    """Raise PromptFileError unless what stands between two words is blank: a quote without an end is no word."""
    if unread := text[start:end].lstrip(" \t"):
        raise lines.wrong("a quote or a backslash here has no end", f"column {end - len(unread) + 1}")


def _is_option(word: str) -> bool:
    return word.startswith(("--", "-n=")) or word == "-n"


def _unquoted(word: str) -> str:
    if not any(mark in word for mark in "\"'\\"):
        return word

    def plain(found: re.Match[str]) -> str:
        double, single, escaped = found.groups()
        if double is not None:
            return re.sub(r'\\(["\\])', r"\1", double)
        return str(single if single is not None else escaped)

    return _QUOTED.sub(plain, word)


def _read_table(lines: Lines, delimiter: str) -> Iterator[Item]:
    rows = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    header: list[tuple[str, str]] = []
    while True:
        number = lines.number + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise lines.wrong(f"not a row of a table: {error}", line=number) from None
        if row and not header:
            header = _header(lines, row, number)
        elif row:
            yield attempt(_row, lines, number, header, row)


def _header(lines: Lines, row: list[str], number: int) -> list[tuple[str, str]]:
    """(name of the column, our name of its option) of each column."""
    header: list[tuple[str, str]] = []
    for place, cell in enumerate(row, start=1):
        label = cell.strip()
        try:
            if not label:
                raise UsageError("this column has no name: the first row names the options")
            option = option_named(label)
            if option in (known for _, known in header):
                raise UsageError(f"{option} has two columns: keep one")
        except UsageError as error:
            raise lines.wrong(str(error), f"column {shown(label or place)}", number) from None
        header.append((label, option))
    if "prompt" not in (option for _, option in header):
        raise lines.wrong("no column is called prompt: the first row names the options", line=number)
    return header


def _row(lines: Lines, number: int, header: list[tuple[str, str]], row: list[str]) -> Line:
    if len(row) != len(header):
        said = f"cells in the row: {len(row)}, in the header: {len(header)}"
        raise lines.wrong(f"{said}. A cell that holds the delimiter must stand in quotes", line=number)
    cells = zip(header, row, strict=True)
    return line_of(lines, number, ((name, option, cell) for (name, option), cell in cells if cell), from_text)


_READERS: Mapping[Kind, Callable[[Lines], Iterator[Item]]] = {
    "txt": _read_txt,
    "csv": partial(_read_table, delimiter=","),
    "tsv": partial(_read_table, delimiter="\t"),
    "jsonl": records.read_jsonl,
    "json": records.read_json,
    "yaml": records.read_yaml,
}
