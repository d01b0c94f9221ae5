"""`mmgen inspect`: the settings that pictures carry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mmgen.cli.terminal import note, one_line
from mmgen.errors import UsageError

if TYPE_CHECKING:
    from mmgen.images import Metadata
    from mmgen.types import Request


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
    values = None if request is None else json.loads(request.to_json())
    return json.dumps({"file": file, **metadata, "request": values})


def _as_text(file: str, metadata: Metadata) -> str:
    request = metadata["request"]
    lines = _request_lines(request) if request else (metadata["parameters"] or "").splitlines()
    label = [f"label: {metadata['label'].rpartition('/')[2]}"] if metadata["label"] else []
    return "\n".join([file, *(f"  {one_line(line)}" for line in [*lines, *label])])


def _request_lines(request: Request) -> list[str]:
    lines = [f"prompt: {prompt}" for prompt in request.prompts if prompt]
    if request.negative_prompt:
        lines.append(f"negative prompt: {request.negative_prompt}")
    lines.append(f"seed: {', '.join(map(str, request.seeds))}")
    lines.append(f"size: {request.size[0]}x{request.size[1]}")
    if request.verb != "generate":
        lines.append(f"verb: {request.verb}")
    if request.strength is not None:
        lines.append(f"strength: {request.strength:g}")
    if request.weights:
        lines.append(f"weights: {', '.join(f'{weight:g}' for weight in request.weights)}")
    lines += [f"{name}: sha256 {digest[:10]}" for name, digest in request.inputs.items()]
    if request.model:
        lines.append(f"model: {request.model} {request.model_digest[:10]}".rstrip())
    for stage, settings in request.stages.items():
        lines += [f"{stage}.{name}: {value}" for name, value in settings.to_dict().items()]
    return lines
