"""`mmgen models`: which models there are, what they are made of, and whether they are whole."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from mmgen.errors import ModelError, UsageError

if TYPE_CHECKING:
    from mmgen.pipelines.hub import HubModel


@click.group()
def models() -> None:
    """List, describe, verify, fetch and remove models."""


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="A JSON list on standard output.")
def list_models(as_json: bool) -> None:
    """List the bundled models and those in the Hub's cache.

    \b
    mmgen models list
    """
    from mmgen.pipelines.catalogue import listed

    found = listed()
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max((len(one["name"]) for one in found), default=0)
    for one in found:
        click.echo(f"{one['name']:{width}}  {one['bytes'] / 1e6:>12,.1f} MB")


@models.command()
@click.argument("name", metavar="NAME|FOLDER|OWNER/NAME")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def info(name: str, as_json: bool) -> None:
    """Show the parts of a model.

    They are read from configurations and the headers of files; no weights are read, and nothing is fetched.

    \b
    mmgen models info storybook
    mmgen models info "FOLDER?prior=FOLDER"
    """
    from mmgen.pipelines.catalogue import describe

    values = describe(name)
    click.echo(json.dumps(values) if as_json else "\n".join(_table(values)))


@models.command()
@click.argument("name", metavar="NAME|FOLDER|OWNER/NAME")
def verify(name: str) -> None:
    """Check every file of a model against its manifest.

    Where others have published it without one, what is read of it is checked to be whole.
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


@models.command()
@click.argument("name", metavar="OWNER/NAME[@REVISION][/FILE]")
def pull(name: str) -> None:
    """Fetch a model of the Hub, or what has changed of it.

    It goes into the cache that other programs of the Hugging Face Hub share. Configurations, tokenizers and
    safetensors are fetched, no pickles and no code; with FILE only that one, such as a LoRA's. How much that is, is
    said first.

    \b
    mmgen models pull stable-diffusion-v1-5/stable-diffusion-v1-5
    mmgen models pull latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors
    """
    from mmgen.pipelines import hub
    from mmgen.pipelines.sources import check_known, lora_name

    file = None if os.path.lexists(name) else hub.parse_file(name)
    if file is not None and file[1] is not None:
        click.echo(lora_name(hub.pull_file(*file)))
    else:
        click.echo(hub.recorded_name(hub.pull(_of_hub(name), check_known, alone=True)))


@models.command()
@click.argument("name", metavar="OWNER/NAME[@REVISION]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Remove a model of the Hub from its cache.

    Without @REVISION all of its revisions go; other programs of the Hugging Face Hub share that cache.

    \b
    mmgen models remove stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    from mmgen.pipelines import hub

    model = _of_hub(name)
    commits, strategy = hub.removal(model)
    names = [f"{model.id}@{commit}" for commit in commits]
    question = f"remove {', '.join(names)}, {strategy.expected_freed_size / 1e6:,.1f} MB?"
    if not yes and not _agreed(question):
        raise UsageError("nothing was removed: answer y, or give --yes")
    strategy.execute()
    for one in names:
        click.echo(one)


def _of_hub(name: str) -> HubModel:
    """Raises UsageError for a model that lies elsewhere than in the cache, and for what cannot be a name."""
    from mmgen.pipelines import hub
    from mmgen.pipelines.sources import available

    if name in available():
        raise UsageError(
            f"{name} comes with mmgen: only models of the Hugging Face Hub are pulled and removed"
        )
    if os.path.isdir(name):
        raise UsageError(f"{name} is a folder, which is used as it is: mmgen neither changes nor removes it")
    if (model := hub.parse(name)) is None:
        raise UsageError(
            f"{name!r} is no model of the Hugging Face Hub: write owner/name or owner/name@revision"
        )
    return model


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # nobody is there to answer
        return False


def _table(values: dict[str, Any]) -> list[str]:
    """What is known of the model as `name: value`, then a line per part."""
    lines = [f"{name}: {_text(value)}" for name, value in values.items() if not isinstance(value, dict)]
    for stage, settings in values["settings"].items():
        said = (name if value is None else f"{name}={value}" for name, value in settings.items())
        lines.append(f"--set {stage}.…: {', '.join(said)}")
    width = max(map(len, values["components"]))
    for part, facts in values["components"].items():
        size = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['bytes'] / 1e6:.1f} MB"
        lines.append(f"{part:{width}} {facts['class']:29} {size:>32}  {', '.join(facts['dtypes'])}")
    return lines


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
