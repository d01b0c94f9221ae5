"""`mmgen eval`: what a model's pictures show, measured."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(name="eval")
def evaluate() -> None:
    """Measure what a model's pictures show."""


@evaluate.command()
@click.option("--quick", is_flag=True, help="A few prompts of each kind, to see that all works.")
@click.option(
    "--model", default="storybook", show_default=True, metavar="NAME|FOLDER", help="The model to measure."
)
@click.option("--out", default="mmgen-eval", show_default=True,
              type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Folder for the table, and every picture with its verdict.")  # fmt: skip
def storybook(quick: bool, model: str, out: Path) -> None:
    """Draw the frozen storybook prompts and judge each picture against what its prompt says.

    \b
    mmgen eval storybook --quick
    """
    from mmgen.images import check_folder

    check_folder(out)
    from mmgen.evaluation.storybook import evaluate as measure

    measure(model=model, out=out, quick=quick)
