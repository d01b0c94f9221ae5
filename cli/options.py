"""Values on the command line: how each is written, and what is said when it cannot be read. Imports no torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mmgen import values
from mmgen.errors import UsageError
from mmgen.types import Size, StageSettings, check_prompt
from mmgen.values import SETTING_NAMES as STAGE_NAMES
from mmgen.values import parse_threshold as parse_threshold

if TYPE_CHECKING:
    from mmgen.images import Format

Option = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What commands that draw new pictures share, as it was given; None where the model decides."""

    out: str
    count: int = 1
    seed: int | None
    size: Size | None
    model: str
    device: str | None
    dtype: str | None
    attention: str | None
    format: Format | None
    settings: tuple[str, ...]
    as_json: bool
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class WithPrompts(Shared):
    """What those share besides that draw prompts: the short options of the stage 'decoder', and what is unwanted."""

    steps: int | None
    guidance: float | None
    sampler: str | None
    threshold: str | None
    negative: str


def parse_size(text: str) -> Size:
    """The value of --size."""
    try:
        return values.parse_size(text)
    except UsageError as error:
        raise UsageError(f"--size {text!r}: {error}") from None


def parse_memory(text: str) -> int:
    """The value of --memory."""
    try:
        return values.parse_bytes(text)
    except UsageError as error:
        raise UsageError(f"--memory {text!r}: {error}") from None


def parse_device(text: str) -> str:
    """The name of a device, as torch writes it."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", text, re.ASCII):
        raise UsageError(f"--device {text!r}: give cpu, cuda, cuda:1 or mps")
    return text


def _go_offline(_context: click.Context, _option: click.Parameter, offline: bool) -> None:
    """As the environment says it, which other processes of the command have too."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


_PARTS = "mmgen.parts"  # of the context: what options give in place of parts of the model, or besides


def _keep(context: click.Context, option: click.Parameter, given: str | tuple[str, ...] | None) -> None:
    assert option.name is not None
    values = (given,) if isinstance(given, str) else given or ()
    context.meta.setdefault(_PARTS, []).extend((option.name, value) for value in values)


def _join(context: click.Context, _option: click.Parameter, model: str) -> str:
    """The model with its parts as one text, which is all that other processes and prompt files need to know."""
    if not (parts := context.meta.get(_PARTS)):
        return model
    from mmgen.pipelines.reference import Reference

    return str(Reference.parse(model).adding(parts))


def _part(name: str, metavar: str, text: str, *, multiple: bool = False) -> Option:
    # eager, so that --model finds them wherever they stand
    return click.option(
        f"--{name}",
        metavar=metavar,
        multiple=multiple,
        is_eager=True,
        expose_value=False,
        callback=_keep,
        help=text,
    )


MODEL = (
    click.option("--model", default="storybook", show_default=True, metavar="NAME|FOLDER|OWNER/NAME", callback=_join,
                 help="A bundled model, a folder of weights, or OWNER/NAME[@REVISION] of the Hugging Face Hub."),
    _part("prior", "MODEL", "The model whose prior is used, where it is published apart or another is wanted."),
    _part("vae", "MODEL", "The VAE, or the model whose VAE, is used instead of the model's own."),
    _part("refiner", "MODEL", "A model that draws over the latents, of Stable Diffusion XL."),
    _part("lora", "FILE|OWNER/NAME[/FILE][:WEIGHT]",
          "Low-rank changes, in a .safetensors file; may be repeated.", multiple=True),
    _part("upscaler", "MODEL", "A model that enlarges the pictures; may be repeated.", multiple=True),
)  # fmt: skip
"""Which model draws, and what takes the place of its parts or is added to it."""

HOW = (
    click.option("--offline", is_flag=True, expose_value=False, callback=_go_offline,
                 help="Fetch nothing: a model of the Hub must be in the cache."),
    click.option("--device", type=parse_device, metavar="DEVICE",
                 help="Where to run: cpu, cuda, cuda:1 or mps."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Numbers to compute with."),
    click.option("--attention", metavar="NAME",
                 help="How attention is computed; 'mmgen doctor' lists what runs here."),
)  # fmt: skip
MACHINE = (*MODEL, *HOW)
"""What every command that draws takes: which model, and how it runs."""


def with_options(*options: Option) -> Option:
    """Give a command every one of these, in their order."""

    def give(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return give


def parse_settings(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """STAGE.NAME=VALUE texts as values by stage and name. Raises UsageError if one cannot be meant."""
    stages: dict[str, dict[str, Any]] = {}
    for text in settings:
        found = re.fullmatch(r"([^.=\s]+)\.([^.=\s]+)=(.+)", text, re.DOTALL)
        if not found:
            raise UsageError(f"--set {text!r}: write STAGE.NAME=VALUE, such as decoder.steps=25")
        stage, name, value = found.groups()
        if name not in STAGE_NAMES:
            raise UsageError(f"--set {text!r}: no setting {name!r}, there are {', '.join(STAGE_NAMES)}")
        if name in stages.setdefault(stage, {}):
            raise UsageError(f"--set {stage}.{name} is given twice: keep one")
        try:
            stages[stage][name] = values.parse_setting(name, value)
        except UsageError as error:
            raise UsageError(f"--set {stage}.{name}={value}: {error}") from None
    return stages


def stage_settings(
    settings: Sequence[str],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    threshold: str | None = None,
) -> dict[str, StageSettings]:
    """Settings by stage from --set and from the short options, which mean the stage 'decoder'."""
    stages = parse_settings(settings)
    decoder = {
        "steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
        "threshold": None if threshold is None else parse_threshold(threshold),
    }
    for name, value in decoder.items():
        if value is None:
            continue
        if name in stages.setdefault("decoder", {}):
            raise UsageError(f"decoder.{name} is given twice, once by --set: keep one")
        stages["decoder"][name] = value
    return {stage: StageSettings.from_dict(given) for stage, given in stages.items()}


def read_prompts(words: Sequence[str]) -> tuple[str, ...]:
    """The prompts of a command line; `-` stands for the lines of standard input, empty ones left out."""
    prompts: list[str] = []
    for word in words:
        prompts += _standard_input() if word == "-" else [word]
    for prompt in prompts:
        check_prompt(prompt)
    return tuple(prompts)


def _standard_input() -> list[str]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: byte {error.start + 1} is wrong") from None
    # str.splitlines would also split at form feeds and U+2028, which may stand inside a prompt
    lines = re.split(r"\r\n|\r|\n", text)
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            check_prompt(line)
        except UsageError as error:
            raise UsageError(f"standard input, line {number}: {error}") from None
        prompts.append(line)
    if not prompts:
        raise UsageError("no prompt on standard input: write one on each line")
    return prompts
