"""`mmgen gallery`: a page of a folder's pictures, for any browser."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mmgen.errors import UsageError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
def gallery(folder: Path) -> None:
    """Make a page of a folder's pictures.

    FOLDER/index.html shows every picture of the folder and of those below it, by name, with its prompt, its settings
    and the command that repeats it; it is filtered by words, model, size and verb. The page stands alone: open it from
    the disk, or publish the folder. Run again, the command makes it anew; another index.html stays as it is.

    \b
    mmgen gallery mmgen-out
    """
    from mmgen.render.gallery import write

    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}")
    click.echo(str(write(folder)))
