"""Prompts that stand for many: variants in braces, and wildcards that are lines of files.

    {red|blue} fox            one of them
    {2::red|blue} fox         red twice as often; other weights are 1
    {2$$ and $$a|b|c}         two different ones in any order, joined by " and "; by ", " as {2$$a|b|c}
    {1-2$$a|b|c}              one or two of them
    __animal__, __art/ink__   a line of animal.txt, of art/ink.txt in the wildcard folder, where # begins a comment

All of these may stand inside each other, also in the files. Every character of a variant counts, blanks too. After a
backslash { } | _ and the backslash itself are plain. A prompt without a brace and without two underscores in a row is
left as it is. So it is with negative prompts.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, permutations
from pathlib import Path
from random import Random

from mmgen.errors import UsageError
from mmgen.render.lines import Lines
from mmgen.render.options import Line
from mmgen.types import MAX_PROMPT_CHARS, check_prompt

MAX_WAYS = 1_000_000  # prompts that one line may stand for
MAX_GROWTH = 2 * MAX_PROMPT_CHARS  # characters and choices of the longest prompt that a line may stand for

# a brace, or two underscores, plain ones too; every line is searched for it, and with [{}] that takes thrice as long
_TOUCHED = re.compile(r"\{|\}|_\\?_")
_TOKEN = re.compile(r"\\[{}|_\\]|__|[{}|]")
_ESCAPED = re.compile(r"\\([{}|_\\])")
_NAME = re.compile(r"__([^{}|\\]+?)__")
_PICK = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?\$\$(?:((?:[^{}|$\\]|\\.|\$(?!\$))*)\$\$)?", re.ASCII)
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::", re.ASCII)


def expand(
    line: Line, wildcards: Wildcards, seed: int, combinatorial: bool = False, negative: str = ""
) -> Iterator[Line]:
    """The lines that a line stands for: one that is drawn, or with `combinatorial` all of them in order.

    seed: of the run. What is drawn of a text depends on it, the line's number and the text alone. negative: of the run,
    for lines that say none. Raises UsageError for what cannot be read, is too much, or leaves nothing to draw.
    """
    prompt, options = line.prompt, line.options
    unwanted = negative if options.negative is None else options.negative
    if not (_TOUCHED.search(prompt) or _TOUCHED.search(unwanted)):
        yield line
        return
    try:
        templates = _template(prompt, wildcards), _template(unwanted, wildcards, "negative prompt, ")
        if combinatorial and _ways(templates[0]) * _ways(templates[1]) > MAX_WAYS:
            raise UsageError(f"this stands for more than {MAX_WAYS:,} prompts: take variants out")
        told = f"{seed}\n{line.number}\n{prompt}", f"{seed}\n{line.number}\n{unwanted}\nnegative"
        for wanted, against in _pairs(*templates) if combinatorial else [tuple(map(_one, templates, told))]:
            check_prompt(wanted)
            check_prompt(against, what="negative prompt", may_be_empty=True)
            same = against == unwanted
            yield Line(line.number, wanted, options if same else replace(options, negative=against))
    except RecursionError:
        raise UsageError(
            "there are too many braces and wildcards, or too deep in each other: take some out"
        ) from None


def _template(text: str, wildcards: Wildcards, where: str = "") -> Template:
    """What a text stands for. where: what errors begin with."""
    if not _TOUCHED.search(text):
        return (text,)
    try:
        template = wildcards.template(text)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None
    if _growth(template) > MAX_GROWTH:
        raise UsageError(
            f"{where}this can grow to more than {MAX_GROWTH:,} characters: take variants or wildcards out"
        )
    return template


def _pairs(prompt: Template, negative: Template) -> Iterator[tuple[str, ...]]:
    return ((wanted, unwanted) for wanted in _all(prompt) for unwanted in _all(negative))


def _one(template: Template, told: str) -> str:
    """The text that is drawn; told: all that it depends on."""
    random = Random(int.from_bytes(hashlib.sha256(told.encode()).digest(), "big"))
    return "".join(_drawn(template, random))


@dataclass(frozen=True)
class Choice:
    """`least` to `most` of these options, joined by a separator."""

    options: tuple[Template, ...]
    weights: tuple[float, ...]
    least: int = 1
    most: int = 1
    separator: str = ""

    @cached_property
    def ends(self) -> tuple[float, ...]:
        """The sums of the weights up to each of the options."""
        return tuple(accumulate(self.weights))

    @cached_property
    def growth(self) -> int:
        """Characters and choices in the longest text that this stands for, at most MAX_GROWTH + 1."""
        longest = sorted(map(_growth, self.options), reverse=True)[: self.most]
        return min(1 + sum(longest) + len(self.separator) * (self.most - 1), MAX_GROWTH + 1)

    @cached_property
    def ways(self) -> int:
        """How many texts this stands for, at most MAX_WAYS + 1."""
        return _ways_to_pick([_ways(option) for option in self.options], self.least, self.most)


Template = tuple[str | Choice, ...]
"""What follows each other: text, and choices."""


def _growth(template: Template) -> int:
    return min(sum(len(part) if isinstance(part, str) else part.growth for part in template), MAX_GROWTH + 1)


def _ways(template: Template) -> int:
    total = 1
    for part in template:
        total = min(total * (1 if isinstance(part, str) else part.ways), MAX_WAYS + 1)
    return total


def _ways_to_pick(ways: Sequence[int], least: int, most: int) -> int:
    """How many texts `least` to `most` of several options make in any order, at most MAX_WAYS + 1."""
    picked = [1] + [0] * most  # by how many of the options so far are picked, in their order
    for one in ways:
        for count in range(most, 0, -1):
            picked[count] = min(picked[count] + picked[count - 1] * one, MAX_WAYS + 1)
    total, orders = 0, 1
    for count, sets in enumerate(picked):
        orders = min(orders * max(count, 1), MAX_WAYS + 1)
        total += sets * orders if count >= least else 0
    return min(total, MAX_WAYS + 1)


def _drawn(template: Template, random: Random) -> Iterator[str]:
    """The pieces of one text that a template stands for."""
    for part in template:
        if isinstance(part, str):
            yield part
            continue
        for place, option in enumerate(_picked(part, random)):
            yield part.separator if place else ""
            yield from _drawn(option, random)


def _picked(choice: Choice, random: Random) -> list[Template]:
    """Different options, each drawn by weight from those that are left."""
    # Random.random alone is promised to give the same on every version of Python.
    count = choice.least + int(random.random() * (choice.most - choice.least + 1))
    options, weights, ends = choice.options, choice.weights, choice.ends
    picked: list[Template] = []
    while len(picked) < count:
        at = bisect(ends, random.random() * ends[-1], 0, len(ends) - 1)
        picked.append(options[at])
        if len(picked) < count:
            options = options[:at] + options[at + 1 :]
            weights = weights[:at] + weights[at + 1 :]
            ends = tuple(accumulate(weights))
    return picked


def _all(template: Template) -> Iterator[str]:
    """Every text that a template stands for; its last choice changes fastest."""
    if not template:
        yield ""
        return
    head, rest = template[0], template[1:]
    for first in [head] if isinstance(head, str) else _all_of(head):
        for after in _all(rest):
            yield first + after


def _all_of(choice: Choice) -> Iterator[str]:
    for count in range(choice.least, choice.most + 1):
        for options in permutations(choice.options, count):
            joined: list[str | Choice] = []
            for place, option in enumerate(options):
                joined += [choice.separator if place else "", *option]
            yield from _all(tuple(joined))


class Wildcards:
    """The files of a wildcard folder, each read when a prompt first names it. folder: None = there is none."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._known: dict[str, Choice] = {}
        self._open: list[str] = []  # those that are being read, each named by the one before it

    def template(self, text: str) -> Template:
        """What a text stands for. Raises UsageError if its braces or wildcards cannot be read."""
        return _Parser(text, self).template()

    def choice(self, name: str) -> Choice:
        """One line of a wildcard's file. Raises UsageError if there is none, or it cannot be read."""
        if name not in self._known:
            if name in self._open:
                circle = " -> ".join(f"__{one}__" for one in [*self._open[self._open.index(name) :], name])
                raise UsageError(f"wildcards go in a circle: {circle}")
            path = self._path(name)
            self._open.append(name)
            try:
                self._known[name] = self._read(path)
            finally:
                self._open.pop()
        return self._known[name]

    def _path(self, name: str) -> Path:
        said = f"the wildcard __{name[:60]}__"
        if self.folder is None:
            raise UsageError(f"{said} needs a wildcard folder; plain underscores are \\_\\_")
        parts = name.split("/")
        if any(part in ("", ".", "..") or re.search(r"[\\:\0]", part) for part in parts):
            raise UsageError(f"{said} leads out of {self.folder}: name a file in it")
        path = self.folder.joinpath(*parts[:-1], f"{parts[-1]}.txt")
        if not os.path.isfile(path):  # unlike Path.is_file it has an answer for a name that is too long
            raise UsageError(f"{said} is not in {self.folder}{self._nearest(name)}")
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UsageError(f"{said} is a link out of {self.folder}: put the file into it")
        return path

    def _nearest(self, name: str) -> str:
        if self.folder is None or not self.folder.is_dir():
            return ", which is no folder"
        known = [
            path.relative_to(self.folder).with_suffix("").as_posix() for path in self.folder.rglob("*.txt")
        ]
        nearest = difflib.get_close_matches(name[:60], sorted(known), n=1)
        return f"; did you mean __{nearest[0]}__?" if nearest else ""

    def _read(self, path: Path) -> Choice:
        options: list[Template] = []
        weights: list[float] = []
        try:
            with path.open("rb") as stream, Lines(stream, str(path)) as lines:
                for text in lines:
                    if text.strip() and not text.lstrip().startswith("#"):
                        parser = _Parser(text, self)
                        try:
                            weights.append(parser.weight())
                            options.append(parser.template())
                        except UsageError as error:
                            raise lines.wrong(str(error)) from None
        except OSError as error:
            raise UsageError(f"the wildcard file {path} cannot be read: {error.strerror}") from None
        if not options:
            raise UsageError(f"the wildcard file {path} is empty: write a word on each line")
        return Choice(tuple(options), tuple(weights))


class _Parser:
    """Reads a text from left to right. at: the place in it that is read next."""

    def __init__(self, text: str, wildcards: Wildcards) -> None:
        self.text, self.at = text, 0
        self.wildcards = wildcards

    def template(self, opened: int | None = None) -> Template:
        """Up to the end, or to the | or } that ends an option. opened: where the brace around it stands."""
        parts: list[str | Choice] = []
        while found := _TOKEN.search(self.text, self.at):
            parts.append(self.text[self.at : found.start()])
            self.at = found.start()
            if found[0] in ("|", "}") and opened is not None:
                break
            parts.append(self._part(found[0]))
        else:
            if opened is not None:
                raise self._wrong(
                    "this { is not closed: write } after it, or \\{ for the brace itself", opened
                )
            parts.append(self.text[self.at :])
            self.at = len(self.text)
        return tuple(part for part in parts if part != "")

    def weight(self) -> float:
        """The weight that an option begins with, 1 if there is none."""
        found = _WEIGHT.match(self.text, self.at)
        if not found:
            return 1.0
        if float(found[1]) == 0:
            raise self._wrong("a weight is above 0: leave the variant out instead", self.at)
        self.at = found.end()
        return float(found[1])

    def _part(self, token: str) -> str | Choice:
        if token == "{":
            return self._choice()
        if token == "__":
            return self._wildcard()
        if token == "}":
            raise self._wrong("this } closes nothing: write \\} for the brace itself", self.at)
        self.at += len(token)
        return token[-1]

    def _wildcard(self) -> Choice:
        found = _NAME.match(self.text, self.at)
        if not found:
            raise self._wrong("these underscores begin no __wildcard__: write \\_\\_ for them", self.at)
        self.at = found.end()
        return self.wildcards.choice(found[1])

    def _choice(self) -> Choice:
        opened = self.at
        self.at += 1
        least, most, separator = self._pick()
        options: list[Template] = []
        weights: list[float] = []
        ended = ""
        while ended != "}":
            weights.append(self.weight())
            options.append(self.template(opened))
            ended = self.text[self.at]
            self.at += 1
        if options == [()]:
            raise self._wrong(
                "nothing stands in these braces: write \\{\\} for the braces themselves", opened
            )
        if not least <= most <= len(options) or most == 0:
            numbers = f"{least} to {most} of {len(options)} variants"
            raise self._wrong(f"{numbers} cannot be taken: give numbers that fit", opened)
        return Choice(tuple(options), tuple(weights), least, most, separator)

    def _pick(self) -> tuple[int, int, str]:
        found = _PICK.match(self.text, self.at)
        if not found:
            return 1, 1, ""
        self.at = found.end()
        least, most, separator = found.groups()
        joined = ", " if separator is None else _ESCAPED.sub(r"\1", separator)
        return int(least), int(most or least), joined

    def _wrong(self, text: str, at: int) -> UsageError:
        return UsageError(f"character {at + 1}: {text}")
