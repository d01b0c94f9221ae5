"""A real TextToImage with one tiny stage, so that commands run from end to end in no time."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmgen
from mmgen.cli.main import main
from mmgen.noise import Noise
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class NoiseStage:
    """Draws its noise. A prompt with "nan" in it gives NaN, one with "stop" an interruption."""

    name = "decoder"
    needs = frozenset({"prompts"})
    gives = frozenset({"image"})
    takes = frozenset({"steps", "sampler", "eta", "guidance_scale", "threshold"})
    defaults = StageSettings(steps=3, sampler="ddim", guidance_scale=3.0, threshold=0.995)
    size = 8
    networks = ()

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if "stop" in draft.prompts[0]:
            raise KeyboardInterrupt
        image = noise.draw((3, 8, 8)).clamp(-1, 1)
        if "nan" in draft.prompts[0]:
            image[0, 0, 0, 0] = torch.nan
        assert settings.steps is not None
        for index in range(1, settings.steps + 1):
            yield Step(self.name, index, settings.steps, 1 - index / settings.steps, image, image)
        return replace(draft, image=image)


def tiny_model() -> TextToImage:
    return TextToImage(
        Cascade([NoiseStage()]),
        name="tiny",
        digest="0123456789abcdef",
        device=torch.device("cpu"),
        words=frozenset({"lamp", "fox", "nan", "stop"}),
    )


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Outcome]


@pytest.fixture
def mmgen_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run one command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(args)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Sequence[tuple[Any, ...]]:
    """`mmgen.load` gives the tiny model; the list holds what it was asked for."""
    asked: list[tuple[Any, ...]] = []

    def load(name: str, device: str | None = None, dtype: str | None = None) -> TextToImage:
        asked.append((name, device, dtype))
        return tiny_model()

    monkeypatch.setitem(mmgen.__dict__, "load", load)
    return asked
