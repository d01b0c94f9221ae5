"""manifest.jsonl: what became of each picture of a folder, one line each.

An index and no more: the pictures, with the settings in them, are the record. Where the file is missing, cut off or
edited, everything is found as well, only later. The last line of a key counts; lines that mean nothing here stay.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from mmgen.errors import UsageError
from mmgen.images import FORMATS, SUFFIXES, Format, machine_error, read_error, read_metadata, write_new
from mmgen.render import stopped
from mmgen.render.jobs import key_of

NAME = "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one picture.

    key: of its job. file: its name in the folder, sha256 and bytes: of the file; "" and 0 if it failed. seconds: what
    it took, peak_bytes: the most that was in use, 0 = not measured. error: why it failed. line, index: of its job, 0 =
    not known.
    """

    key: str
    state: Literal["done", "failed"]
    file: str = ""
    sha256: str = ""
    bytes: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    error: str = ""
    line: int = 0
    index: int = 0


def read(folder: Path) -> dict[str, Entry]:
    """The last entry of every key; none if there is no manifest. Raises MachineError if it cannot be read."""
    try:
        with (folder / NAME).open("rb") as file:
            return {entry.key: entry for entry in map(_parse, file) if entry is not None}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise read_error(error, folder / NAME) from error


def append(folder: Path, entry: Entry) -> None:
    """Add a line that lasts, whatever a crash has left. Raises MachineError where disk or folder is in the way."""
    try:
        # one write at the end of the file: lines of several processes do not mix
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(folder / NAME, flags, 0o666)
        try:
            line = (b"\n" if _is_torn(descriptor) else b"") + _line(entry)
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise machine_error(error, folder / NAME) from error


def rebuild(folder: Path) -> int:
    """Remake the manifest from the whole pictures of a folder; how many there are.

    What they took is kept where a file is as the old manifest says. Raises MachineError where disk or folder is in the
    way, and then the old one stays.
    """
    old = read(folder)
    entries = []
    for name in pictures(folder, FORMATS):
        key = key_in(folder / name)
        if key is None or not is_whole(folder / name):
            continue
        entry, before = entry_of(folder / name, key), old.get(key)
        if before is not None and before.sha256 == entry.sha256:
            entry = replace(before, state="done", file=name, bytes=entry.bytes, error="")
        entries.append(entry)
    write_new(folder / NAME, b"".join(map(_line, entries)), overwrite=True)
    return len(entries)


# ---- what the pictures themselves say ------------------------------------------------------------


def pictures(folder: Path, formats: tuple[Format, ...]) -> list[str]:
    """Names of the files that may be pictures of these formats, sorted."""
    try:
        return sorted(name for name in os.listdir(folder) if name.lower().endswith(suffixes(formats)))
    except OSError as error:
        raise read_error(error, folder) from error


def suffixes(formats: tuple[Format, ...]) -> tuple[str, ...]:
    """What the names of pictures of these formats end in."""
    return tuple(SUFFIXES[format] for format in formats) + ((".jpeg",) if "jpeg" in formats else ())


def key_in(path: Path) -> str | None:
    """The key of the job whose picture a file holds, by what is in it; None if it holds none that can be read."""
    try:
        request, further = read_metadata(path)["request"], stopped.read(path)
    except UsageError:
        return None
    if request is None:
        return None
    return key_of(request) if further is None else stopped.key_behind(request, further.goal)


def is_whole(path: Path) -> bool:
    """Whether a picture file decodes to its end."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.verify()  # of PNG, every checksum
        with Image.open(path, formats=FORMATS) as image:
            image.load()
    except Exception:  # noqa: BLE001 - the parsers raise a dozen types on damaged files
        return False
    return True


def entry_of(path: Path, key: str) -> Entry:
    """A picture that is there, as an entry. Raises MachineError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise read_error(error, path) from error
    return Entry(key, "done", path.name, hashlib.sha256(data).hexdigest(), len(data))


# ---- lines ---------------------------------------------------------------------------------------


def _line(entry: Entry) -> bytes:
    # an error may name a file in half characters, which JSON can say escaped alone
    return (json.dumps(asdict(entry), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _parse(line: bytes) -> Entry | None:
    """The entry of a line; None if it is none, such as one that a crash has cut off."""
    try:
        values = json.loads(line)
        entry = Entry(**{name: values[name] for name in _KINDS if name in values})
    except (ValueError, TypeError, RecursionError):
        return None
    sound = all(type(getattr(entry, name)) in kinds for name, kinds in _KINDS.items())
    # a name and not a way: nothing outside of the folder is looked at
    plain = os.path.basename(str(entry.file)) == entry.file
    return entry if sound and plain and entry.state in ("done", "failed") else None


_KINDS: dict[str, tuple[type, ...]] = {
    field.name: {"int": (int,), "float": (int, float)}.get(str(field.type), (str,)) for field in fields(Entry)
}


def _is_torn(descriptor: int) -> bool:
    """Whether a file ends inside a line."""
    if not os.fstat(descriptor).st_size:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"
