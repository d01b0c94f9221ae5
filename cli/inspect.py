"""`mmgen inspect`: the settings that pictures carry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mmgen.cli.terminal import note, one_line
from mmgen.errors import UsageError
from mmgen.values import written

if TYPE_CHECKING:
    from mmgen.images import Metadata


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file on standard output.")
def inspect(files: tuple[str, ...], as_json: bool) -> None:
    """Show the settings stored in picture files.

    Those of other tools are shown as they stand there. Exit code 1 if a file has none, after the others.

    \b
    mmgen inspect mmgen-out/*.png
    """
    from mmgen.images import read_metadata

    failed = False
    for file in files:
        try:
            metadata = read_metadata(file)
            if metadata["request"] is None and metadata["parameters"] is None:
                raise UsageError(f"{file} carries no settings")
        except UsageError as error:
            failed = True
            note(f"error: {error}")
            if as_json:
                click.echo(json.dumps({"file": file, "error": str(error)}))
            continue
        click.echo(_as_json(file, metadata) if as_json else _as_text(file, metadata))
    if failed:
        click.get_current_context().exit(1)


def _as_json(file: str, metadata: Metadata) -> str:
    request = metadata["request"]
    return json.dumps({"file": file, **metadata, "request": None if request is None else request.to_dict()})


def _as_text(file: str, metadata: Metadata) -> str:
    request = metadata["request"]
    lines = (metadata["parameters"] or "").splitlines()
    if request is not None:
        lines = [f"{name}: {written(value)}" for name, value in request.said().items()]
    label = [f"label: {metadata['label'].rpartition('/')[2]}"] if metadata["label"] else []
    return "\n".join([file, *(f"  {one_line(line)}" for line in [*lines, *label])])
