"""`mmgen diff`: what is said of pictures that differ, and of pictures that do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmgen.images import encode
from mmgen.types import Request, StageSettings
from tests.cli.conftest import Command

REQUEST = Request(
    ("a fox",), (1,), (8, 8), "rain", {"decoder": StageSettings(steps=32, sampler="ddpm")}, "tiny", "ab" * 32
)
PICTURE = Image.new("RGB", (8, 8), (10, 20, 30))


def _write(name: str, request: Request, picture: Image.Image = PICTURE) -> None:
    Path(name).write_bytes(encode(picture, "png", request))


def _write_foreign(name: str, text: str, picture: Image.Image = PICTURE) -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    picture.save(name, pnginfo=chunks)


def test_each_setting_that_differs_has_a_line(mmgen_command: Command) -> None:
    stages = {"decoder": StageSettings(steps=16, sampler="ddpm"), "prior": StageSettings(steps=2)}
    brighter = Image.new("RGB", (8, 8), (10, 57, 30))
    _write("a.png", REQUEST)
    _write("b.png", replace(REQUEST, seeds=(2,), negative_prompt="", stages=stages), brighter)
    done = mmgen_command("diff", "a.png", "b.png")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "negative prompt: rain -> (none)", "seed: 1 -> 2", "decoder.steps: 32 -> 16", "prior.steps: (none) -> 2",
        "pixels: differ by at most 37 of 255",
    ]  # fmt: skip
    assert mmgen_command("diff", "--json", "a.png", "b.png").objects() == [{
        "a": "a.png", "b": "b.png",
        "settings": {
            "negative prompt": ["rain", None], "seed": [1, 2], "decoder.steps": [32, 16], "prior.steps": [None, 2],
        },
        "pixels": {"equal": False, "sizes": ["8x8", "8x8"], "max_difference": 37},
    }]  # fmt: skip


def test_what_is_equal_is_said_too(mmgen_command: Command) -> None:
    _write("a.png", REQUEST)
    Path("b.webp").write_bytes(encode(PICTURE, "webp", REQUEST))
    Path("c.png").write_bytes(encode(PICTURE, "png", REQUEST))
    assert mmgen_command("diff", "a.png", "c.png").out == "settings: equal\npixels: equal\n"
    lossy = mmgen_command("diff", "a.png", "b.webp", "--json").objects()[0]
    assert lossy["settings"] == {}
    assert 0 <= lossy["pixels"]["max_difference"] < 16


def test_pictures_that_start_from_others_and_of_other_sizes(mmgen_command: Command) -> None:
    _write("a.png", REQUEST)
    edited = replace(REQUEST, verb="edit", strength=0.5, inputs={"image": "cd" * 32}, size=(4, 4))
    _write("b.png", edited, Image.new("RGB", (4, 4)))
    lines = mmgen_command("diff", "a.png", "b.png").out.splitlines()
    assert lines == [
        "size: 8x8 -> 4x4", "verb: generate -> edit", "strength: (none) -> 0.5", f"image sha256: (none) -> {'cd' * 32}",
        "pixels: 8x8 -> 4x4",
    ]  # fmt: skip


def test_another_tool_is_compared_as_far_as_it_goes(mmgen_command: Command) -> None:
    _write("a.png", replace(REQUEST, model="", model_digest="", negative_prompt=""))
    _write_foreign(
        "b.png", "a fox\nSteps: 32, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8, Clip skip: 2"
    )
    lines = mmgen_command("diff", "a.png", "b.png").out.splitlines()
    assert lines == [
        "verb: generate -> (none)", "decoder.sampler: ddpm -> (none)", "decoder.guidance_scale: (none) -> 7.0",
        "Sampler: (none) -> Euler a", "Clip skip: (none) -> 2", "pixels: equal",
    ]  # fmt: skip


def test_hostile_text_stays_on_its_line(mmgen_command: Command) -> None:
    _write("a.png", REQUEST)
    _write("b.png", replace(REQUEST, prompts=("a\nfox \x1b[31m",)))
    assert mmgen_command("diff", "a.png", "b.png").out == "prompt: a fox -> a fox \\x1b[31m\npixels: equal\n"
    assert json.loads(mmgen_command("diff", "a.png", "b.png", "--json").out)["settings"] == {
        "prompt": ["a fox", "a\nfox \x1b[31m"]
    }


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("none.png", "there is no file none.png"),
        ("bad.png", "bad.png is not a PNG, JPEG or WebP picture"),
        ("bare.png", "bare.png carries no settings"),
        ("comfy.png", "comfy.png: its settings are those of a tool that mmgen does not read"),
        ("cut.png", "cut.png cannot be read as a picture"),
    ],
)
def test_what_cannot_be_told_is_an_error(mmgen_command: Command, other: str, words: str) -> None:
    _write("a.png", REQUEST, Image.effect_noise((64, 64), 99).convert("RGB"))
    Path("bad.png").write_text("no picture")
    PICTURE.save("bare.png")
    _write_foreign("comfy.png", '{"3": {"class_type": "KSampler"}}')
    whole = Path("a.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) - 2000])
    for args in (["a.png", other], [other, "a.png"]):
        done = mmgen_command("diff", *args)
        assert (done.code, done.out) == (2, "")
        assert words in done.err
        assert done.err.count("\n") == 1
