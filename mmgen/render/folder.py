"""An output folder: which pictures of a run are in it, and how a new one comes into it, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from mmgen.errors import UsageError
from mmgen.images import Format, check_folder, encode, make_folder, write_new
from mmgen.render import manifest
from mmgen.render.jobs import Job
from mmgen.render.manifest import Entry, entry_of, is_whole, key_in, pictures, suffixes
from mmgen.render.stopped import with_draft
from mmgen.temporary import remove_stale


class Folder:
    """Where the pictures of a run go; several processes may share one.

    path: made if it is not there, and rid of what dead processes have left. format: of the pictures; others are not
    looked at. overwrite: replace what has a picture's name.
    Raises MachineError if nothing can be written there.
    """

    def __init__(self, path: Path, format: Format = "png", *, overwrite: bool = False) -> None:
        make_folder(path)
        check_folder(path)
        remove_stale(path)
        self.path, self.format, self.overwrite = path, format, overwrite
        self._entries = manifest.read(path)

    def find(self, job: Job) -> Path | None:
        """The whole picture of a job, under any name; None if there is none.

        Only what the file itself says counts. The manifest says where to look, and spares the decoding of a file that
        has its sha256 still.
        """
        for name in self._candidates(job):
            if self._is_picture(self.path / name, job):
                return self.path / name
        return None

    def obstacle(self, job: Job) -> str | None:
        """What is in the way of a picture that `find` has not found: its name is taken. None: nothing."""
        path = self.path / job.name
        if self.overwrite or not os.path.lexists(path) or _is_cut_off(path, job):
            return None
        return (
            f"{path} exists already and is another picture: choose another folder or --name, or replace it with "
            "--overwrite"
        )

    def commit(
        self,
        job: Job,
        image: Image.Image | bytes,
        *,
        seconds: float = 0.0,
        peak_bytes: int = 0,
        over: Path | None = None,
        draft: bytes = b"",
    ) -> Path:
        """Write the picture of a job under its name, then its line into the manifest. Returns the path.

        image: or the bytes of its file, as `encode` gives them for this format and the job's request.
        draft: what it holds to go on from it, as `mmgen.render.stopped.packed` gives it; PNG alone takes any.
        over: the file of this very picture, as `find` gives it, which is written again instead.
        A picture of the same key that is there already stays: another process was faster. One that was cut off is
        replaced. Raises UsageError if the name is taken by anything else and is not to be overwritten, and if the
        settings do not fit into the format; MachineError where disk, folder or permission is in the way.
        """
        path = over or self.path / job.name
        data = image if isinstance(image, bytes) else encode(image, self.format, job.request)
        if draft:
            data = with_draft(data, draft)
        try:
            write_new(path, data, overwrite=self.overwrite or over is not None)
        except UsageError:
            if self._is_picture(path, job):
                return path
            if problem := self.obstacle(job):
                raise UsageError(problem) from None
            write_new(path, data, overwrite=True)
        sha256 = hashlib.sha256(data).hexdigest()
        entry = Entry(job.key, "done", path.name, sha256, len(data), seconds, peak_bytes)
        self._note(replace(entry, line=job.line, index=job.index))
        return path

    def fail(self, job: Job, error: str, *, seconds: float = 0.0, peak_bytes: int = 0) -> None:
        """Write into the manifest that a picture failed, and why. Raises MachineError as `commit` does."""
        entry = Entry(job.key, "failed", seconds=seconds, peak_bytes=peak_bytes, error=error)
        self._note(replace(entry, line=job.line, index=job.index))

    def failure(self, job: Job) -> str | None:
        """Why the picture of a job failed when it was last drawn; None if it did not, as far as the manifest knows."""
        entry = self._entries.get(job.key)
        return entry.error if entry is not None and entry.state == "failed" else None

    def _note(self, entry: Entry) -> None:
        manifest.append(self.path, entry)
        self._entries[entry.key] = entry

    def _candidates(self, job: Job) -> Iterator[str]:
        """Names that the picture of a job may have, the likely ones first."""
        entry = self._entries.get(job.key)
        if entry is not None and entry.file.lower().endswith(suffixes((self.format,))):
            yield entry.file
        yield job.name
        yield from self._names.get(job.key, ())

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """The names of all pictures by their keys, as they were when this was first asked for."""
        names: dict[str, list[str]] = {}
        for name in pictures(self.path, (self.format,)):
            if key := key_in(self.path / name):
                names.setdefault(key, []).append(name)
        return names

    def _is_picture(self, path: Path, job: Job) -> bool:
        """Whether a file is the picture of a job, and whole."""
        if key_in(path) != job.key:
            return False
        said = self._entries.get(job.key)
        return (said is not None and entry_of(path, job.key).sha256 == said.sha256) or is_whole(path)


def _is_cut_off(path: Path, job: Job) -> bool:
    """Whether a file is what a crash left of this very picture: a reserved name, or a part of the file."""
    try:
        return path.stat().st_size == 0 or (key_in(path) == job.key and not is_whole(path))
    except OSError:
        return False
