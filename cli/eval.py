"""`mmgen eval`: what a model's pictures show, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmgen.cli.options import parse_device, stage_settings
from mmgen.cli.terminal import note
from mmgen.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from mmgen.evaluation.storybook import Generate
    from mmgen.pipelines.text_to_image import TextToImage
    from mmgen.types import StageSettings

SEEDS, QUICK_SEEDS = 4, 1  # pictures per prompt
MAX_SEEDS = 64


@click.group(name="eval")
def evaluate() -> None:
    """Measure what a model's pictures show."""


@evaluate.command()
@click.option("--quick", is_flag=True, help="A hundred prompts, to see where the model stands.")
@click.option(
    "--model", default="storybook", show_default=True, metavar="NAME|FOLDER", help="What to measure."
)
@click.option(
    "--out",
    default="mmgen-eval",
    show_default=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for the scores, every verdict and sheets of the pictures.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, MAX_SEEDS),
    help=f"Pictures per prompt; {SEEDS} if not given, {QUICK_SEEDS} with --quick.",
)
@click.option("--device", type=parse_device, metavar="DEVICE", help="Where to run: cpu, cuda, cuda:1 or mps.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="STAGE.NAME=VALUE",
    help="A setting of a stage, to see what it changes; may be repeated.",
)
def storybook(
    quick: bool, model: str, out: Path, seeds: int | None, device: str | None, settings: tuple[str, ...]
) -> None:
    """Judge pictures of the storybook world.

    The frozen prompts are drawn at the model's smallest size, and each picture is judged against what its
    prompt says.

    \b
    mmgen eval storybook --quick
    mmgen eval storybook --quick --set decoder.guidance_scale=3 --out guidance-3
    """  # fmt: skip
    stages = stage_settings(settings)
    from mmgen.images import check_folder
    from mmgen.pipelines.catalogue import sizes

    sizes(model)
    if (out / "summary.json").exists():
        raise UsageError(f"{out} holds an evaluation already: choose another folder with --out")
    check_folder(out)
    note(f"loading {model}")
    import mmgen
    from mmgen.evaluation import storybook as evaluation
    from mmgen.evaluation.prompts import read_prompts

    pipe = mmgen.load(model, device=device)
    entries = evaluation.quick() if quick else read_prompts()
    per_prompt = seeds or (QUICK_SEEDS if quick else SEEDS)
    used = pipe.cascade.up_to(pipe.sizes[0]).resolve(stages)
    facts = {
        "model": pipe.name,
        "model_digest": pipe.digest,
        "size": pipe.sizes[0],
        "stages": {name: values.to_dict() for name, values in used.items()},
    }
    summary = evaluation.evaluate(
        _generate(pipe, used, len(entries) * per_prompt), entries, out, seeds=per_prompt, settings=facts
    )
    click.echo(summary.table())
    note(f"all verdicts and pictures are in {out}")


def _generate(pipe: TextToImage, stages: Mapping[str, StageSettings], total: int) -> Generate:
    """What the evaluation draws with: one picture for each prompt and its seed, with a bar on a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=total, desc="pictures", leave=False, disable=None)

    def generate(prompts: list[str], seeds: list[int]) -> list[Image]:
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            request = pipe.request([prompt], seeds=[seed], size=pipe.sizes[0], stages=stages)
            images.append(pipe.run(request).images[0])
            bar.update()
        return images

    return generate
