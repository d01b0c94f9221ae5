"""`mmgen models`: which models there are, what they are made of, and whether they are whole."""

from __future__ import annotations

import json
from typing import Any

import click

from mmgen.errors import ModelError


@click.group()
def models() -> None:
    """List, describe and verify models."""


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="A JSON list on standard output.")
def list_models(as_json: bool) -> None:
    """List the bundled models.

    \b
    mmgen models list
    """
    from mmgen.pipelines.catalogue import available

    names = available()
    click.echo(json.dumps(names) if as_json else "\n".join(names))


@models.command()
@click.argument("name", metavar="NAME|FOLDER")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def info(name: str, as_json: bool) -> None:
    """Show the parts of a model.

    They are read from configurations and the headers of files; no weights are read.

    \b
    mmgen models info storybook
    """
    from mmgen.pipelines.catalogue import describe

    values = describe(name)
    click.echo(json.dumps(values) if as_json else "\n".join(_table(values)))


@models.command()
@click.argument("name", metavar="NAME|FOLDER")
def verify(name: str) -> None:
    """Check every file of a model against its manifest.

    Exit code 3 if something is wrong.

    \b
    mmgen models verify storybook
    """
    from mmgen.pipelines.catalogue import verify as find_problems

    problems = find_problems(name)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise ModelError(f"{name}: {len(problems)} of its files are not as they should be")
    click.echo(f"{name}: every file is as it should be")


def _table(values: dict[str, Any]) -> list[str]:
    """What is known of the model as `name: value`, then a line per part."""
    lines = [f"{name}: {value}" for name, value in values.items() if name != "components"]
    for part, facts in values["components"].items():
        size = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['bytes'] / 1e6:.1f} MB"
        lines.append(f"{part:16} {facts['class']:24} {size:>32}  {', '.join(facts['dtypes'])}")
    return lines
