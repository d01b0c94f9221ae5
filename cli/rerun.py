"""`mmgen rerun`: pictures again from the settings that they carry, or with some of them changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.cli.generate import DECODER, FILE, OUT, cut_of, print_picture, say_cut, say_unknown, seeds_from
from mmgen.cli.options import HOW, parse_size, stage_settings, with_options
from mmgen.cli.terminal import StageBars, note
from mmgen.errors import NonFiniteError, UsageError
from mmgen.types import MAX_SEED, Request, Size, StageSettings, check_prompt, check_sampler

if TYPE_CHECKING:
    from mmgen.cli.output import Output
    from mmgen.images import Foreign, Format
    from mmgen.pipelines.catalogue import Facts
    from mmgen.pipelines.text_to_image import TextToImage

MODEL = "storybook"  # draws what other tools drew
_TAG = re.compile(
    r"<(?:lora|lyco|hypernet):[^<>]*>"
)  # in prompts of A1111: networks that are added to the model
_WEIGHT = re.compile(r"\([^()]*:[\d.]+\)")
# all but --model, --negative and --format, which here fall back on what the picture says
*HOW_DRAWN, _ = DECODER
_, *REST = FILE
OPTIONS = (
    click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."),
    OUT,
    click.option("--prompt", metavar="TEXT", help="Another prompt."),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Another seed, the same for every picture."),
    click.option("--size", type=parse_size, metavar="N|WxH", help="Another size in pixels, one side or both."),
    *HOW_DRAWN,
    click.option("--negative", metavar="TEXT", help="What should not be in the picture."),
    click.option("--model", metavar="NAME|FOLDER|OWNER/NAME",
                 help="Draw with this model; without it, with the one that drew the picture and no other."),
    *HOW,
    click.option("--format", type=click.Choice(["png", "jpeg", "webp"]),
                 help="Kind of file; the picture's own, or what --out says."),
    *REST,
)  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """What the command line says instead of the pictures; None: nothing."""

    prompt: str | None
    seed: int | None
    size: Size | None
    negative: str | None
    stages: Mapping[str, StageSettings]


@dataclass(frozen=True)
class Recipe:
    """What a picture says of how it was drawn. model, digest: "" of another tool's picture."""

    prompt: str
    negative: str
    seed: int | None
    size: Size | None
    stages: Mapping[str, StageSettings] = field(default_factory=dict)
    model: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Job:
    """A picture that is drawn again. model: name or folder. format: of the new file."""

    path: Path
    model: str
    request: Request
    format: Format


@click.command()
@with_options(*OPTIONS)
def rerun(images: tuple[Path, ...], **given: Any) -> None:
    """Draw each IMAGE again from the settings that it carries.

    With no other option that is the same file, byte for byte, on the same machine; an option replaces its setting
    alone. Pictures of AUTOMATIC1111's web UI, stable-diffusion.cpp and InvokeAI are drawn as far as their settings go,
    and what is left out is said.

    \b
    mmgen rerun mmgen-out/0001-a-fox-7.png
    mmgen rerun drafts/*.png --size 1024 -o finished
    mmgen rerun a.png --seed 8 --set decoder.steps=50
    """
    changes = _changes(given)
    jobs, output = _check(images, changes, given)
    failed, number, said = 0, 0, set[tuple[str, str]]()
    for model, group in groupby(jobs, key=lambda job: job.model):
        note(f"loading {model}")
        import mmgen

        pipe = mmgen.load(model, device=given["device"], dtype=given["dtype"])
        for job in group:
            number += 1
            failed += not _repeat(pipe, job, output, f"{number}/{len(jobs)}", given["as_json"], said)
    if failed:
        note(f"{failed} of {len(jobs)} pictures failed; the others are there")
        click.get_current_context().exit(1)


# ---- before a model is loaded --------------------------------------------------------------------


def _changes(given: Mapping[str, Any]) -> Changes:
    if given["prompt"] is not None:
        check_prompt(given["prompt"])
    if given["negative"] is not None:
        check_prompt(given["negative"], what="negative prompt", may_be_empty=True)
    if given["model"] is not None and not given["model"].strip():
        raise UsageError("--model is empty: give a name or a folder")
    short = {name: given[name] for name in ("steps", "guidance", "sampler", "threshold")}
    stages = stage_settings(given["settings"], **short)
    return Changes(given["prompt"], given["seed"], given["size"], given["negative"], stages)


def _check(images: Sequence[Path], changes: Changes, given: Mapping[str, Any]) -> tuple[list[Job], Output]:
    """Every picture as a job, and where the new ones go. Raises UsageError before anything is drawn."""
    from mmgen.cli.output import plan
    from mmgen.images import check_fits
    from mmgen.pipelines import catalogue

    output = plan(given["out"], given["format"], len(images), given["overwrite"])
    format = output.format if output.file or given["format"] else None
    facts = cache(catalogue.facts)
    jobs = [_job(path, given["model"], changes, format, facts) for path in images]
    for job in jobs:
        check_fits(job.format, job.request)
    if given["attention"] is not None:
        from mmgen.attention import use

        use(given["attention"])
    return jobs, output


def _job(
    path: Path, asked: str | None, changes: Changes, format: Format | None, facts: Callable[[str], Facts]
) -> Job:
    from mmgen.images import parse_parameters, read_metadata

    metadata = read_metadata(path)
    try:
        if metadata["request"] is not None:
            recipe = _recorded(metadata["request"])
            model = _model(recipe, asked, facts, path)
        elif metadata["parameters"] is not None:
            model = asked or MODEL
            recipe = _foreign(parse_parameters(metadata["parameters"]), changes.size, facts(model), path)
        else:
            raise UsageError("it carries no settings")
        request = _request(recipe, changes, facts(model), path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Job(path, model, request, format or _format(path))


def _recorded(request: Request) -> Recipe:
    """Raises UsageError for a picture that was not drawn from a prompt alone."""
    if request.verb != "generate":
        pictures = f" from its {' and '.join(request.inputs)}" if request.inputs else ""
        raise UsageError(
            f"it was made by 'mmgen {request.verb}'{pictures}: repeat it with that command; 'mmgen inspect' shows how"
        )
    if len(request.prompts) != 1 or len(request.seeds) != 1:
        raise UsageError(
            f"its record is of {len(request.prompts) * len(request.seeds)} pictures, and which of them this is "
            "nobody can tell: give the prompt to 'mmgen generate'"
        )
    return Recipe(
        request.prompts[0],
        request.negative_prompt,
        request.seeds[0],
        request.size,
        request.stages,
        request.model,
        request.model_digest,
    )


def _model(recipe: Recipe, asked: str | None, facts: Callable[[str], Facts], path: Path) -> str:
    """The model that draws. Raises UsageError if it is not the one of the picture, and nobody asked for it."""
    from mmgen.pipelines.sources import is_here

    theirs = f"{recipe.model or 'a model without a name'} {recipe.digest[:12]}".strip()
    if asked is None and not is_here(recipe.model):
        raise UsageError(
            f"it was drawn by {theirs}, which does not come with mmgen: give its folder, or owner/name of the "
            "Hugging Face Hub, with --model, and what is joined to it as in --model 'FOLDER?upscaler=FOLDER'"
        )
    here = facts(asked or recipe.model)
    if here.digest != recipe.digest:
        ours = f"{here.name} {here.digest[:12]}"
        if asked is None:
            raise UsageError(
                f"it was drawn by {theirs}, and this is {ours}: the same picture cannot come of it. Give the folder "
                f"of the other with --model, or --model {recipe.model} to draw with this one"
            )
        note(f"{path.name}: drawn by {theirs}, now by {ours}: the picture will be another one")
    return asked or recipe.model


def _foreign(foreign: Foreign, size: Size | None, facts: Facts, path: Path) -> Recipe:
    """What can be taken over from another tool's picture, after what cannot is said.

    size: the one that is asked for instead of the picture's own.
    """
    others = dict(foreign.others)
    tool = others.pop("Version", "another tool")
    tags = _TAG.findall(foreign.prompt)
    left = [f"{name} {value[:60]}" for name, value in others.items()] + tags
    known = foreign.size
    if known is not None and size is None and known not in [(form.size, form.size) for form in facts.forms]:
        left.append(f"Size {known[0]}x{known[1]}, which {facts.name} does not draw")
        known = None
    names = ("seed", "size", "steps", "guidance_scale", "sampler")
    missing = [name for name in names if getattr(foreign, name) is None]
    lists = {"not taken over": left, "missing": missing}
    said = [f"{what}: {', '.join(listed)}" for what, listed in lists.items() if listed]
    if found := _WEIGHT.search(foreign.prompt):
        said.append(f"weights such as {found[0]} are words to all but Stable Diffusion")
    note(
        f"{path.name}: drawn by {tool}, now by {facts.name}; {'; '.join(said) or 'all settings are taken over'}"
    )
    decoder = StageSettings(
        steps=foreign.steps, guidance_scale=foreign.guidance_scale, sampler=foreign.sampler
    )
    prompt = _TAG.sub("", foreign.prompt).strip()
    return Recipe(prompt, foreign.negative_prompt, foreign.seed, known, {"decoder": decoder})


def _request(recipe: Recipe, changes: Changes, facts: Facts, path: Path) -> Request:
    """The complete request, with every change in it and the model's own defaults where nobody says anything."""
    from mmgen.pipelines.catalogue import fitting_side
    from mmgen.pipelines.forms import up_to

    size = changes.size or recipe.size
    side = facts.sides[-1] if size is None else fitting_side(size, facts.sides, facts.name)
    takes = {form.name: form.takes for form in up_to(facts.forms, side)}
    stages, left = _merged(recipe.stages, changes.stages, takes)
    if left:
        note(f"{path.name}: {facts.name} at {side} px does not use {', '.join(left)}")
    seed = recipe.seed if changes.seed is None else changes.seed
    return facts.request(
        recipe.prompt if changes.prompt is None else changes.prompt,
        seeds_from(None, 1)[0] if seed is None else seed,
        size=(side, side),
        negative_prompt=recipe.negative if changes.negative is None else changes.negative,
        stages=stages,
    )


def _merged(
    recorded: Mapping[str, StageSettings],
    changed: Mapping[str, StageSettings],
    takes: Mapping[str, frozenset[str]],
) -> tuple[dict[str, StageSettings], list[str]]:
    """The settings of every stage, and the recorded ones that are left out, as a stage or a new sampler ignores them.

    takes: by stage that runs. Changes are never left out: the request refuses those that cannot be meant.
    """
    stages, left = dict(changed), [stage for stage in recorded if stage not in takes]
    for stage in (stage for stage in recorded if stage in takes):
        change = changed.get(stage, StageSettings())
        values = recorded[stage].to_dict()
        idle = [
            name
            for name in values
            if name not in takes[stage] or _refuses(change.sampler, name, values[name])
        ]
        left += [f"{stage}.{name}" for name in idle if getattr(change, name) is None]
        kept = {name: value for name, value in values.items() if name not in idle}
        stages[stage] = change.with_defaults(StageSettings.from_dict(kept))
    return stages, sorted(left)


def _refuses(sampler: str | None, name: str, value: Any) -> bool:
    """Whether a sampler that is new to a setting cannot go with it."""
    if sampler is None or name not in ("eta", "resample", "timesteps"):
        return False
    try:
        check_sampler(sampler, **{name: value})
    except UsageError:
        return True
    return False


def _format(path: Path) -> Format:
    from mmgen.images import format_of

    with path.open("rb") as file:
        format = format_of(file.read(12))
    assert format is not None, "settings are read from these formats alone"
    return format


# ---- drawing -------------------------------------------------------------------------------------


def _repeat(
    pipe: TextToImage, job: Job, output: Output, title: str, as_json: bool, said: set[tuple[str, str]]
) -> bool:
    """Draw and write one picture; whether it could be drawn. said: unknown words that have been named."""
    from mmgen.pipelines.notebook import drain

    started = time.monotonic()
    source = {"source": str(job.path)}
    try:
        with StageBars(title) as bars:
            result = drain(pipe.stream(job.request), [bars.show])
    except NonFiniteError as error:
        note(f"error: {job.path.name}: {error}")
        print_picture(job.request, None, as_json, {**source, "error": str(error)})
        return False
    unknown = result.unknown_words.get(job.request.prompts[0], {})
    say_unknown(pipe.name, unknown, said)
    say_cut(pipe.name, result.cut_words, said)
    path = replace(output, format=job.format).save(result.images[0], result.request)
    seconds = round(time.monotonic() - started, 3)
    words = {"unknown_words": dict(unknown), "cut_words": cut_of(result.cut_words)}
    print_picture(result.request, path, as_json, {**source, "seconds": seconds, **words})
    return True
