"""`mmgen diff`: how the settings of two pictures differ, and whether the pictures do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.terminal import one_line
from mmgen.errors import UsageError
from mmgen.values import written

if TYPE_CHECKING:
    from mmgen.images import Foreign


@click.command()
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Show how the settings of two pictures differ.

    One line for each setting that differs, then whether the pixels are equal. Those of other tools are compared as
    far as mmgen has the same. Exit code 0 whether they differ or not, 2 if it cannot be told.

    \b
    mmgen diff mmgen-out/0001-a-fox-7.png mmgen-out/0002-a-fox-8.png
    """
    differ = _differing(_settings(a), _settings(b))
    pixels = _pixels(a, b)
    if as_json:
        click.echo(json.dumps({"a": str(a), "b": str(b), "settings": differ, "pixels": pixels}))
        return
    for name, (one, other) in differ.items():
        click.echo(one_line(f"{name}: {_shown(one)} -> {_shown(other)}"))
    if not differ:
        click.echo("settings: equal")
    click.echo(f"pixels: {_said(pixels)}")


def _settings(path: Path) -> dict[str, Any]:
    """All that decides a picture, by the names that are shown. Raises UsageError if the file does not say it."""
    from mmgen.images import parse_parameters, read_metadata

    metadata = read_metadata(path)
    if metadata["request"] is not None:
        return metadata["request"].said()
    if metadata["parameters"] is None:
        raise UsageError(f"{path} carries no settings")
    try:
        return _of_foreign(parse_parameters(metadata["parameters"]))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _of_foreign(foreign: Foreign) -> dict[str, Any]:
    return {
        "prompt": foreign.prompt or None,
        "negative prompt": foreign.negative_prompt or None,
        "seed": foreign.seed,
        "size": None if foreign.size is None else "x".join(map(str, foreign.size)),
        "decoder.steps": foreign.steps,
        "decoder.guidance_scale": foreign.guidance_scale,
        "decoder.sampler": foreign.sampler,
        **foreign.others,
    }


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of every setting that differs; None where one picture does not say it."""
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _pixels(a: Path, b: Path) -> dict[str, Any]:
    """sizes: of both. max_difference: of 255, None for pictures of different sizes, which cannot be compared."""
    import numpy as np
    from PIL import ImageChops

    from mmgen.inputs import open_picture

    one, other = open_picture(a), open_picture(b)
    sizes = ["x".join(map(str, image.size)) for image in (one, other)]
    if one.size != other.size:
        return {"equal": False, "sizes": sizes, "max_difference": None}
    most = int(np.asarray(ImageChops.difference(one, other)).max())
    return {"equal": most == 0, "sizes": sizes, "max_difference": most}


def _said(pixels: dict[str, Any]) -> str:
    if pixels["equal"]:
        return "equal"
    if pixels["max_difference"] is None:
        return " -> ".join(pixels["sizes"])
    return f"differ by at most {pixels['max_difference']} of 255"


def _shown(value: object) -> str:
    return "(none)" if value is None else written(value)
