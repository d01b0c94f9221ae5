"""`mmgen rerun`: the same file again, one setting changed, and what other tools' pictures say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import mmgen
from mmgen.errors import UsageError
from mmgen.images import encode, parameters_text, parse_parameters, read_metadata
from mmgen.pipelines import catalogue, sources
from mmgen.pipelines.forms import StageForm
from mmgen.types import Request, StageSettings
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command, NoiseStage

A1111 = (
    "a red cat, (big:1.3) <lora:fur:0.8>\nin the snow\nNegative prompt: rain,\nfog\n"
    'Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 2.5, Seed: 42, Size: 16x16, Model: v1-5, '
    'Lora hashes: "fur: 1a2b, coat: 3c", Version: v1.10.1'
)  # fmt: skip
SD_CPP = (
    "a red cat\nSteps: 3, CFG scale: 7.000000, Skip layers: [7, 8, 9, ], Guidance: 3.500000, Eta: 0.000000, Seed: 5, "
    "Size: 512x512, Model: sd.gguf, RNG: cuda, Sampler: euler_a karras, Version: stable-diffusion.cpp"
)
INVOKEAI = json.dumps({
    "app_version": "5.0.0", "positive_prompt": "a red cat", "negative_prompt": None, "width": 16, "height": 16,
    "seed": 6, "cfg_scale": 4.5, "steps": 3, "scheduler": "euler", "model": {"name": "sdxl"}, "loras": [],
})  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: tiny, and given, which has no prior."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny(folder / "tiny")
    write_tiny(folder / "given", image_embed="given")
    return folder


@pytest.fixture
def bundled(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model comes with mmgen, under the name that pictures know it by."""
    monkeypatch.setattr(sources, "bundled", lambda: models)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mmgen.__dict__, "load", lambda *_args, **_names: pytest.fail("a model was loaded"))


def _request(path: str | Path) -> Request:
    request = read_metadata(path)["request"]
    assert request is not None
    return request


def _write(path: Path, key: str, text: str) -> None:
    chunks = PngInfo()
    chunks.add_text(key, text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)


@pytest.mark.usefixtures("bundled")
def test_a_picture_is_repeated_byte_for_byte(mmgen_command: Command, tmp_path: Path) -> None:
    for format in ("png", "webp"):
        first = mmgen_command(
            "generate", "a red cat", "--model", "tiny", "--size", "16", "--seed", "7", "--steps", "2",
            "--sampler", "ddim", "--set", "decoder.eta=0.5", "--negative", "rain", "--threshold", "clip",
            "--format", format,
        )  # fmt: skip
        assert first.code == 0, first.err
    files = sorted((tmp_path / "mmgen-out").iterdir())
    done = mmgen_command("rerun", *map(str, files), "-o", "again", "--json")
    assert done.code == 0, done.err
    assert done.err.count("loading tiny") == 1
    again = [Path(picture["file"]) for picture in done.objects()]
    assert [path.name for path in again] == ["0001-a-red-cat-7.png", "0002-a-red-cat-7.webp"]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]
    assert [picture["source"] for picture in done.objects()] == list(map(str, files))


@pytest.mark.usefixtures("bundled")
def test_an_option_replaces_its_setting_alone(mmgen_command: Command) -> None:
    common = ["a red cat", "--model", "tiny", "--seed", "7", "--steps", "2", "--negative", "rain"]
    drawn = mmgen_command(
        "generate", *common, "--size", "64", "--guidance", "2", "--set", "prior.steps=2", "-o", "a.png"
    )
    assert drawn.code == 0, drawn.err
    before = _request("a.png")
    done = mmgen_command(
        "rerun", "a.png", "--seed", "8", "--set", "decoder.steps=1", "--negative", "", "-o", "b.png"
    )
    assert done.code == 0, done.err
    stages = {**before.stages, "decoder": replace(before.stages["decoder"], steps=1)}
    assert _request("b.png") == replace(before, seeds=(8,), stages=stages, negative_prompt="")
    assert "does not use" not in done.err

    smaller = mmgen_command("rerun", "a.png", "--size", "16", "--prompt", "a dog", "-o", "c.png")
    assert smaller.code == 0, smaller.err
    assert "a.png: tiny at 16 px does not use super-res-64\n" in smaller.err
    stages = {name: settings for name, settings in before.stages.items() if name != "super-res-64"}
    assert _request("c.png") == replace(before, prompts=("a dog",), size=(16, 16), stages=stages)


def _drawn_by(model: Path, path: str, **changes: Any) -> Request:
    """A file that says it was drawn by this model, which saves drawing it."""
    request = replace(catalogue.facts(model).request("a red cat", 7, size=(16, 16)), **changes)
    Path(path).write_bytes(encode(Image.new("RGB", (16, 16)), "png", request))
    return request


@pytest.mark.usefixtures("no_model")
def test_no_other_model_draws_unasked(
    mmgen_command: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = _drawn_by(models / "tiny", "a.png").model_digest
    unknown = mmgen_command("rerun", "a.png")
    assert (unknown.code, unknown.out) == (2, "")
    assert (
        f"a.png: it was drawn by tiny {digest[:12]}, which does not come with mmgen: give its" in unknown.err
    )

    monkeypatch.setattr(sources, "bundled", lambda: models)
    _drawn_by(models / "tiny", "b.png", model_digest="ab" * 32)
    other = mmgen_command("rerun", "a.png", "b.png")
    assert (other.code, other.out) == (2, "")
    assert f"b.png: it was drawn by tiny abababababab, and this is tiny {digest[:12]}" in other.err
    assert "--model tiny to draw with this one" in other.err
    assert not Path("mmgen-out").exists()


def test_another_model_draws_when_it_is_asked_for(mmgen_command: Command, models: Path) -> None:
    before = _drawn_by(models / "tiny", "a.png", stages={
        "prior": StageSettings(steps=2),
        "decoder": StageSettings(steps=2, sampler="ddim", eta=0.5, guidance_scale=2.0),
    })  # fmt: skip
    model = str(models / "given")
    done = mmgen_command("rerun", "a.png", "--model", model, "--sampler", "euler", "-o", "b.png")
    assert done.code == 0, done.err
    here = catalogue.facts(model)
    assert f"drawn by tiny {before.model_digest[:12]}, now by tiny {here.digest[:12]}" in done.err
    assert "a.png: tiny at 16 px does not use decoder.eta, prior\n" in done.err
    after = _request("b.png")
    assert (after.model_digest, after.seeds, set(after.stages)) == (here.digest, (7,), {"decoder"})
    decoder = after.stages["decoder"]
    assert (decoder.steps, decoder.sampler, decoder.eta, decoder.guidance_scale) == (2, "euler", None, 2.0)


@pytest.mark.parametrize(
    ("key", "text", "expected", "says"),
    [
        (
            "parameters", A1111,
            ("a red cat, (big:1.3) \nin the snow", "rain,\nfog", 42, (16, 16), 4, 2.5, "dpmpp-2m"),
            ["drawn by v1.10.1", "not taken over: Schedule type Karras, Model v1-5, Lora hashes fur: 1a2b, coat: 3c, "
             "<lora:fur:0.8>;", "weights such as (big:1.3) are words to all but Stable Diffusion"],
        ),
        (
            "parameters", SD_CPP, ("a red cat", "", 5, (256, 256), 3, 7.0, "ddpm"),
            ["drawn by stable-diffusion.cpp", "Skip layers [7, 8, 9, ]", "Sampler euler_a karras", "missing: sampler",
             "Size 512x512, which tiny does not draw"],
        ),
        (
            "invokeai_metadata", INVOKEAI, ("a red cat", "", 6, (16, 16), 3, 4.5, "euler"),
            ["drawn by 5.0.0", 'not taken over: Model {"name": "sdxl"}\n'],
        ),
    ],
    ids=["A1111", "stable-diffusion.cpp", "InvokeAI"],
)  # fmt: skip
@pytest.mark.usefixtures("loads")
def test_what_other_tools_say_is_taken_over_or_named(
    mmgen_command: Command,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    text: str,
    expected: tuple[Any, ...],
    says: list[str],
) -> None:
    from mmgen.cli import rerun

    asked: list[Request] = []
    monkeypatch.setattr(rerun, "_repeat", lambda _pipe, job, *_: asked.append(job.request) or True)
    _write(Path("theirs.png"), key, text)
    done = mmgen_command("rerun", "theirs.png", "--model", str(models / "tiny"))
    assert done.code == 0, done.err
    (request,) = asked
    decoder = request.stages["decoder"]
    settings = (decoder.steps, decoder.guidance_scale, decoder.sampler)
    assert (*request.prompts, request.negative_prompt, *request.seeds, request.size, *settings) == expected
    for words in says:
        assert words in done.err


@pytest.mark.usefixtures("loads")
def test_a_seed_that_is_missing_is_drawn_and_said(
    mmgen_command: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmgen.cli.rerun._repeat", lambda *_: True)
    _write(Path("a.png"), "parameters", "a cat\nSteps: 4, CFG scale: 2, Seed: -1, Clip skip: 2")
    done = mmgen_command("rerun", "a.png", "--model", str(models / "tiny"))
    assert done.code == 0, done.err
    assert (
        "drawn by another tool, now by tiny; not taken over: Seed -1, Clip skip 2; missing: seed, size, sam"
        in done.err
    )
    assert " (drawn; --seed " in done.err


@pytest.mark.usefixtures("loads")
def test_a_picture_that_fails_does_not_stop_the_others(
    mmgen_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = StageForm("decoder", NoiseStage.takes, NoiseStage.defaults, NoiseStage.size)
    facts = catalogue.Facts("tiny", "0123456789abcdef", (form,))
    monkeypatch.setattr(catalogue, "facts", lambda _model: facts)
    for name, prompt in (("a.png", "nan fox"), ("b.png", "a lynx")):
        Path(name).write_bytes(encode(Image.new("RGB", (8, 8)), "png", facts.request(prompt, 3)))
    done = mmgen_command("rerun", "a.png", "b.png", "--model", "tiny", "--json")
    assert done.code == 1
    assert "error: a.png: " in done.err
    assert "tiny has no 'lynx'" in done.err
    assert "1 of 2 pictures failed; the others are there" in done.err
    failed, drawn = done.objects()
    assert (failed["file"], "error" in failed, drawn["file"]) == (None, True, "mmgen-out/0001-a-lynx-3.png")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.png"], "there is no file none.png"),
        (["bare.png"], "bare.png: it carries no settings"),
        (["bad.png"], "bad.png is not a PNG, JPEG or WebP picture"),
        (["comfy.png"], "comfy.png: its settings are those of a tool that mmgen does not read"),
        (["wordless.png"], "wordless.png: the prompt is empty"),
        (
            ["large.png"],
            "large.png: it was made by 'mmgen upscale' from its image: repeat it with that command",
        ),
        (["mixed.png"], "mixed.png: it was made by 'mmgen mix': repeat it with that command"),
        (["many.png"], "many.png: its record is of 2 pictures"),
        (["a.png", "--size", "100"], "a.png: tiny cannot draw 100x100"),
        (
            ["a.png", "--size", "16", "--set", "super-res-64.steps=2"],
            "a.png: settings for stage 'super-res-64'",
        ),
        (["a.png", "--set", "decoder.steps=2", "--steps", "3"], "decoder.steps is given twice"),
        (["a.png", "--set", "decoder.eta=0.5", "--sampler", "euler"], "sampler 'euler' has no eta"),
        (["a.png", "--threshold", "1"], "threshold is 1.0"),
        (["a.png", "--guidance", "nan"], "guidance_scale is nan"),
        (["a.png", "--prompt", ""], "the prompt is empty"),
        (["a.png", "--negative", "!!!"], "no letter or digit"),
        (["a.png", "--model", " "], "--model is empty"),
        (["a.png", "a.png", "-o", "b.png"], "b.png is one file for 2 pictures"),
        (["a.png", "-o", "a.png"], "a.png exists already"),
        ([], "Missing argument"),
    ],
)
@pytest.mark.usefixtures("no_model", "bundled")
def test_what_cannot_be_repeated_is_refused_before_a_model_is_loaded(
    mmgen_command: Command, models: Path, args: list[str], words: str
) -> None:
    whole = _drawn_by(models / "tiny", "a.png")
    enlarged = Request(("",), (1,), (64, 64), verb="upscale", inputs={"image": "ab" * 32})
    mixed = Request(("a cat", "a dog"), (1,), (16, 16), verb="mix", weights=(0.5, 0.5))
    picture = Image.new("RGB", (16, 16))
    for name, request in (("large.png", enlarged), ("mixed.png", mixed)):
        Path(name).write_bytes(encode(picture, "png", request))
    _write(Path("many.png"), "mmgen", replace(whole, seeds=(1, 2)).to_json())
    _write(Path("comfy.png"), "parameters", '{"3": {"class_type": "KSampler"}}')
    _write(Path("wordless.png"), "parameters", "\nSteps: 4, CFG scale: 2, Seed: 1, Size: 16x16")
    picture.save("bare.png")
    Path("bad.png").write_text("no picture")
    extra = ["--model", "tiny"] if args == ["wordless.png"] else []
    done = mmgen_command("rerun", *(args or []), *extra)
    assert done.code == 2, done.err
    assert words in done.err
    assert not Path("mmgen-out").exists()


# ---- the text of other tools ---------------------------------------------------------------------


@given(
    prompt=st.text().filter(lambda text: any(c.isalnum() for c in text)),
    seed=st.integers(0, 2**63 - 1),
    model=st.text(max_size=20),
)
def test_our_own_text_is_read_as_it_was_written(prompt: str, seed: int, model: str) -> None:
    decoder = StageSettings(steps=5, sampler="heun", guidance_scale=2.5)
    try:
        request = Request((prompt,), (seed,), (64, 32), "rain", {"decoder": decoder}, model)
    except UsageError:
        return
    text = parameters_text(request)
    read = parse_parameters(text)
    assert (read.seed, read.size, read.steps, read.guidance_scale, read.sampler) == (
        seed,
        (64, 32),
        5,
        2.5,
        "heun",
    )
    if not any(mark in prompt for mark in ("Negative prompt:", "\r")):
        assert (read.prompt, read.negative_prompt) == (prompt.strip(), "rain")


@given(st.one_of(st.text(), st.text().map(lambda tail: f"a cat\nSteps: 4, Seed: 1, Size: 8x8{tail}")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_parameters(text)
    except UsageError as error:
        assert "a tool that mmgen does not read" in str(error)
