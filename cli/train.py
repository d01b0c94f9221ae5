"""`mmgen train`: one command per part of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmgen.cli.terminal import note
from mmgen.errors import UsageError

PARTS = {
    "dual-encoder": "Train what puts pictures and captions into one space.",
    "prior": "Train what imagines a picture's embedding from a caption.",
    "decoder": "Train what draws the small picture.",
    "super-res": "Train what enlarges a picture four times.",
}
NEEDS_DUAL_ENCODER = ("prior", "decoder", "super-res")


@click.group()
def train() -> None:
    """Train one part of a model.

    The pictures are drawn scenes, or a folder of pictures with captions. A run goes on exactly where it was
    stopped, with --resume.

    \b
    mmgen train decoder --data storybook --out runs/decoder --minutes 30
    """


COMMON = (
    click.option("--data", default="storybook", show_default=True, metavar="storybook|FOLDER",
                 help="Scenes drawn for ever, or pictures with captions."),
    click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="RUN",
                 help="Folder of the run: checkpoint, log, sheets and the network."),
    click.option("--minutes", required=True, type=float,
                 help="How long to train in all, the time before --resume included."),
    click.option("--resume", is_flag=True, help="Go on with the run in RUN."),
    click.option("--init", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
                 help="Begin with this network's weights; with fresh ones if not given."),
    click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True,
                 help="Decides the first weights and the data."),
    click.option("--batch", type=click.IntRange(1, 65_536), help="Pictures per step; the part's own if not given."),
    click.option("--lr", type=float, help="Peak learning rate; the part's own if not given."),
)  # fmt: skip
TEXT = click.option(
    "--text",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with text_encoder/ and tokenizer/; the bundled model's if not given.",
)
DUAL_ENCODER = click.option(
    "--dual-encoder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The dual-encoder folder of a run.",
)
DECODER = click.option(
    "--decoder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The decoder folder of a run, or of a model: learn to sharpen what it draws, told --text and --dual-encoder.",
)


def _run(part: str) -> Callable[..., None]:
    def command(data: str, out: Path, minutes: float, lr: float | None, **more: Any) -> None:
        _check(data, out, minutes, lr)
        from mmgen.training.start import start
        from mmgen.training.trainer import Budget

        state = start(part, data, out, Budget(minutes=minutes), lr=lr, **more)
        note(f"{part}: {state.step:,} steps on {state.pictures:,} pictures; the network is in {out / part}")

    return command


def _check(data: str, out: Path, minutes: float, lr: float | None) -> None:
    """What can be wrong before torch is imported."""
    for name, value in (("--minutes", minutes), ("--lr", lr)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value:g}: give a finite number above 0")
    if data != "storybook" and not Path(data).is_dir():
        raise UsageError(
            f"--data {data!r} is no folder: give storybook, or a folder of pictures with captions"
        )
    from mmgen.images import check_folder

    check_folder(out)


def _command(part: str, help: str) -> click.Command:
    function = _run(part)
    more = [TEXT] + [DUAL_ENCODER] * (part in NEEDS_DUAL_ENCODER) + [DECODER] * (part == "super-res")
    for option in reversed((*COMMON, *more)):
        function = option(function)
    return click.command(name=part, help=help)(function)


for _part, _help in PARTS.items():
    train.add_command(_command(_part, _help))
