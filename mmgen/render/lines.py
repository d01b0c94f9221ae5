"""The lines of a text file that a person wrote, and what is wrong with one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import TextIOWrapper
from typing import BinaryIO

from mmgen.errors import UsageError

# A line, or a record of JSON or YAML: room for a prompt and a negative prompt of the most characters, each of them
# written as six (\u00e9), and for their options. The csv module holds its cells to as many.
MAX_LINE_CHARS = 131_072


class PromptFileError(UsageError):
    """What is wrong with one line. name: of the file; line: from 1; where: in it, such as "column 7", if known."""

    def __init__(self, name: str, line: int, text: str, where: str = "") -> None:
        super().__init__(f"{name}, line {line}{', ' if where else ''}{where}: {text}")
        self.line = line


class Lines:
    """The lines of a file of UTF-8 text, without their ends. number: of the latest one, from 1.

    `next` raises PromptFileError for a line that is no text, holds NUL or has more than MAX_LINE_CHARS; the one after
    it can be read. Closing leaves the file open.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        # Bytes that are no UTF-8 become surrogates, which no UTF-8 text has, so that a line can be named for them.
        self.text = TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        self.name = name
        self.number = 0
        self.whole = True  # whether the latest piece was the end of its line

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.text.detach()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.piece()
        line = piece.rstrip("\r\n")
        if len(line) > MAX_LINE_CHARS:
            while not self.whole:
                rest = self.text.readline(MAX_LINE_CHARS)
                self.whole = not rest or rest[-1] in "\r\n"
            raise self.wrong(f"more than {MAX_LINE_CHARS:,} characters: make it shorter")
        return line

    def piece(self) -> str:
        """The next line with its end; of one that is too long, the next part. Raises StopIteration after the last."""
        piece = self.text.readline(MAX_LINE_CHARS + 2)
        if not piece:
            raise StopIteration
        self.number += self.whole
        self.whole = piece[-1] in "\r\n"
        if not piece.isascii() or "\0" in piece:
            self._check(piece)
        return piece

    def wrong(self, text: str, where: str = "", line: int | None = None) -> PromptFileError:
        """An error of the latest line, or of another."""
        return PromptFileError(self.name, self.number if line is None else line, text, where)

    def _check(self, piece: str) -> None:
        if self.number == 1 and piece.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            self.text.read()  # all its lines would be wrong
            raise self.wrong("this file is in UTF-16 or UTF-32: save it as UTF-8")
        if found := re.search("[\0\udc80-\udcff]", piece):
            where = f"column {found.start() + 1}"
            if found[0] == "\0":
                raise self.wrong("a NUL byte: take it out, or save the file as UTF-8", where)
            raise self.wrong(
                f"byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8: save the file as UTF-8", where
            )
