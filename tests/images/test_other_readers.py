"""Pictures as other programs read them: sd-parsers for the settings, exiftool for the structure of the file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from sd_parsers import ParserManager

from mmgen.images import FORMATS, MACHINE_MADE, Format, encode, parameters_text
from mmgen.types import Request, StageSettings

PROMPTS = (
    "a fox",
    'a "red" kite, with: colons',
    "two lines\nof prompt\r\nand more",
    "Steps: 20, Sampler: none, CFG scale: 1",
    "кошка и 🦊 at 日本 \u2028 end",
    "<rdf:li>&amp;]]></rdf:li> {json} \\u0041 '\"",
)
PICTURE = Image.linear_gradient("L").resize((16, 12)).convert("RGB")


def asked(prompt: str) -> Request:
    decoder = StageSettings(steps=20, sampler="ddim", guidance_scale=2.5)
    return Request(
        (prompt,), (2**63 - 1,), (16, 12), "snow, rain", {"decoder": decoder}, "storybook", "ab" * 32
    )


def test_sd_parsers_reads_the_settings(tmp_path: Path) -> None:
    opened = []  # all of them: it knows a picture that it has read by the object's number
    for index, (format, prompt) in enumerate((format, prompt) for format in FORMATS for prompt in PROMPTS):
        path = tmp_path / f"{index}"
        path.write_bytes(encode(PICTURE, format, asked(prompt)))
        opened.append(Image.open(path))
        found = ParserManager().parse(opened[-1])
        assert found is not None
        assert [one.value for one in found.prompts] == [prompt]
        assert [one.value for one in found.negative_prompts] == ["snow, rain"]
        [sampler] = found.samplers
        assert sampler.name == "ddim"
        assert sampler.parameters == {"steps": "20", "cfg_scale": "2.5", "seed": str(2**63 - 1)}
        assert {(model.name, model.hash) for model in found.models} == {("storybook", "ab" * 5)}
    for image in opened:
        image.close()


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("format", FORMATS)
def test_exiftool_finds_nothing_wrong(tmp_path: Path, format: Format) -> None:
    paths = [tmp_path / f"{index}.{format}" for index in range(len(PROMPTS))]
    for path, prompt in zip(paths, PROMPTS, strict=True):
        path.write_bytes(encode(PICTURE, format, asked(prompt)))
    command = ["exiftool", "-json", "-validate", "-warning", "-error", "-a", "-Parameters", "-UserComment"]
    done = subprocess.run(
        [*command, "-DigitalSourceType#", *map(str, paths)], capture_output=True, text=True, check=True
    )
    for found, prompt in zip(json.loads(done.stdout), PROMPTS, strict=True):
        text = found["Parameters" if format == "png" else "UserComment"]
        assert text.split() == parameters_text(asked(prompt)).split()
        assert found["DigitalSourceType"] == MACHINE_MADE
        assert "Error" not in found
        # of JPEG alone: the standard asks for tags about colours and resolution, which say nothing here
        assert found["Validate"] == "OK" or found["Warning"].startswith("Missing required JPEG ")
        assert format == "jpeg" or found["Validate"] == "OK"
