"""A model no single folder, named in one text."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmgen
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.checkpoint import write_manifest
from mmgen.pipelines.diffusers_pipeline import MmgenPipeline
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.reference import Lora, Reference
from mmgen.types import StageSettings
from tests.checkpoints import write_stable_diffusion, write_tiny
from tests.pipelines.test_upscalers import write_if_super_res

FAST = {"decoder": StageSettings(steps=2)}
PROMPT = "a red cat on the beach"
names = st.text("abcXYZ09 ?&=%+#/.-_é:", min_size=1, max_size=12).filter(str.strip)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """To be read, never to be changed: a Stable Diffusion, one with another VAE, and a storybook; that VAE and a U-Net
    by themselves."""
    base = tmp_path_factory.mktemp("models")
    found = {
        "sd": write_stable_diffusion(base / "sd"),
        "storybook": write_tiny(base / "storybook & more"),
        "other": Path(shutil.copytree(base / "sd", base / "other")),
    }
    shutil.rmtree(found["other"] / "vae")
    torch.manual_seed(9)
    vae = mmgen.load(found["sd"], device="cpu").cascade.stages[2].networks[0]
    for parameter in vae.parameters():
        parameter.data = parameter.data + 0.05 * torch.randn(parameter.shape)
    vae.save_pretrained(found["other"] / "vae")
    found["vae"] = Path(shutil.copytree(found["other"] / "vae", base / "vae"))
    found["deep"] = Path(shutil.copytree(found["vae"], base / "deep"))
    config = json.loads((found["deep"] / "config.json").read_text())
    config["block_out_channels"] = [*config["block_out_channels"], 8]
    (found["deep"] / "config.json").write_text(json.dumps(config))
    found["network"] = Path(shutil.copytree(found["sd"] / "unet", base / "network"))
    found["nothing"] = base / "nothing"
    found["nothing"].mkdir()
    return found


@given(st.builds(
    Reference, names, prior=st.none() | names, vae=st.none() | names,
    refiner=st.none() | names,
    loras=st.lists(st.builds(Lora, names, st.floats(-10, 10)), max_size=3).map(tuple),
    upscalers=st.lists(names, max_size=3).map(tuple),
))  # fmt: skip
def test_a_text_says_all_of_a_reference(reference: Reference) -> None:
    alone = reference == Reference(reference.model)  # a name as it is, which may be that of a folder
    assert alone or Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sd?", "write PART=MODEL"),
        ("sd?vae", "write PART=MODEL"),
        ("sd?colour=red", "no part 'colour' to be given: there are prior, vae, refiner, lora, upscaler"),
        ("sd?vae=a&vae=b", "vae is given twice"),
        ("sd?upscaler=", "the upscaler of a model is empty"),
        ("sd?lora=a.safetensors:much", "'much' is no weight"),
        ("sd?lora=a.safetensors:nan", "weights from -10 to 10"),
        ("sd?lora=a.safetensors:11", "weights from -10 to 10"),
        ("storybook?prior=storybook", "leave --prior out"),
        ("storybook?vae=storybook", "have no VAE"),
        ("sd?refiner=sd", "are not refined: leave --refiner out"),
    ],
)
def test_what_cannot_be_meant(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.chdir(folders["sd"].parent)
    with pytest.raises(UsageError, match=says):
        facts(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sd?upscaler=sd", "sd is no upscaler: models of family stable-diffusion offer none"),
        (
            "sd?vae=nothing",
            "nothing holds no VAE: give a folder with its config.json and weights, or that of a",
        ),
        ("sd?vae=network", r"network/config\.json is of class 'UNet2DConditionModel', not diffusers"),
        ("sd?vae=other/tokenizer", "tokenizer holds no VAE"),
        ("sd?vae=deep", r"deep: this VAE enlarges \d+ times, and that of sd \d+ times"),
        ("sd?vae=storybook %26 more", "component 'vae' is None"),
        ("sd?lora=nothing.safetensors", r"nothing\.safetensors cannot be read"),
        ("vae", "vae is no checkpoint: it has no model_index"),
    ],
)
def test_what_lies_in_a_folder_and_does_not_serve(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.chdir(folders["sd"].parent)
    with pytest.raises(ModelError, match=says):
        facts(text)


def test_the_words_of_a_command_and_what_lies_in_a_folder_have_exit_codes_of_their_own(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", PROMPT, "--model", str(folders["sd"])]
    assert main([*command, "--prior", str(folders["sd"])]) == 2
    assert main([*command, "--upscaler", str(folders["sd"])]) == 3
    assert main([*command, "--vae", str(folders["nothing"])]) == 3
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_name_may_be_longer_than_a_file_system_knows() -> None:
    text = str(Reference("sd", loras=(Lora("a" * 200 + ".safetensors"),) * 40))
    assert len(Reference.parse(text).loras) == 40


def test_verify_looks_at_every_part(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folders["other"], tmp_path / "broken"))
    (weights,) = (broken / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    (problem,) = verify(f"{folders['sd']}?vae={broken}")
    assert "is no safetensors file" in problem
    (tmp_path / "x.safetensors").write_bytes(b"none")
    (problem,) = verify(f"{folders['sd']}?lora={tmp_path / 'x.safetensors'}")
    assert "x.safetensors is no safetensors file" in problem
    assert verify(f"{folders['sd']}?vae={folders['other']}") == []


def test_a_pipeline_of_diffusers_is_of_one_folder(folders: dict[str, Path]) -> None:
    text = str(Reference(str(folders["storybook"]), upscalers=(str(folders["storybook"]),)))
    with pytest.raises(UsageError, match="is no single folder"):
        MmgenPipeline.from_pretrained(text)


def test_a_folder_of_that_very_name_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a?b").mkdir()
    assert Reference.parse(str(tmp_path / "a?b")) == Reference(str(tmp_path / "a?b"))
    assert Reference.parse("no such folder") == Reference("no such folder")


def test_another_vae_makes_the_picture_of_the_same_latents(folders: dict[str, Path]) -> None:
    text = f"{folders['sd']}?vae={folders['other']}"
    joined = mmgen.load(text, device="cpu", dtype="float32")
    plain = mmgen.load(folders["sd"], device="cpu", dtype="float32")
    other = mmgen.load(folders["other"], device="cpu", dtype="float32")
    drawn = [pipe(PROMPT, seeds=[3], stages=FAST)[0].tobytes() for pipe in (joined, plain, other)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len({joined.digest, plain.digest, other.digest}) == 3
    assert joined.name == "sd?vae=other"
    assert joined.digest == facts(text).digest == open_model(text).digest
    assert describe(text)["components"].keys() == describe(folders["sd"])["components"].keys()


def test_a_vae_is_published_alone(folders: dict[str, Path]) -> None:
    text = f"{folders['sd']}?vae={folders['vae']}"
    joined = mmgen.load(text, device="cpu", dtype="float32")
    other = mmgen.load(f"{folders['sd']}?vae={folders['other']}", device="cpu", dtype="float32")
    turned = open_model(text, device="cpu", dtype="float32")
    drawn = [pipe(PROMPT, seeds=[3], stages=FAST)[0].tobytes() for pipe in (joined, other, turned)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert joined.name == "sd?vae=vae"
    assert joined.digest == facts(text).digest == turned.digest != other.digest
    assert describe(text)["components"] == describe(f"{folders['sd']}?vae={folders['other']}")["components"]
    assert verify(text) == []


def test_what_is_wrong_with_a_vae_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folders["vae"], tmp_path / "broken"))
    text = f"{folders['sd']}?vae={broken}"
    (broken / "README.md").write_text("nothing that is read", "utf-8")
    (broken / "other.safetensors").write_bytes(b"none")
    assert facts(text).digest == facts(f"{folders['sd']}?vae={folders['vae']}").digest
    (weights,) = broken.glob("diffusion_pytorch_model.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    (problem,) = verify(text)
    assert "is no safetensors file" in problem
    pickle = weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"broken/diffusion_pytorch_model\.bin is refused"):
        facts(text)
    pickle.unlink()
    with pytest.raises(ModelError, match="broken has no weights"):
        facts(text)
    (tmp_path / "elsewhere.safetensors").write_bytes(data)
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match="is a link that leads out of the folder"):
        mmgen.load(text, device="cpu")
    weights.unlink()
    (broken / f"{weights.name}.index.json").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match=r"index\.json is a link that leads out of the folder"):
        facts(text)


def test_the_manifest_of_a_vae_alone_is_looked_at(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folders["vae"], tmp_path / "broken"))
    write_manifest(broken)
    text = f"{folders['sd']}?vae={broken}"
    assert verify(text) == []
    (weights,) = broken.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (problem,) = verify(text)
    assert f"{weights.name} is damaged" in problem
    with pytest.raises(ModelError, match="is damaged"):
        mmgen.load(text, device="cpu")


@pytest.mark.parametrize("part", ["vae", "upscaler"])
def test_a_part_in_a_single_file_is_not_asked_of_the_hub(
    folders: dict[str, Path], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vaes").mkdir()
    (tmp_path / "vaes" / "good.safetensors").write_bytes(b"none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"vaes/good\.safetensors is a single file, and of these only whole models"
    ):
        facts(f"{folders['sd']}?{part}=vaes/good.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among files")
@pytest.mark.parametrize("path", ["scheduler/scheduler_config.json", "unet/config.json"])
def test_a_pipe_in_what_is_joined_is_not_waited_for(
    folders: dict[str, Path], path: str, tmp_path: Path
) -> None:
    enlarger = write_if_super_res(tmp_path / "enlarger")
    (enlarger / path).unlink()
    os.mkfifo(enlarger / path)
    with pytest.raises(ModelError, match=Path(path).name):
        mmgen.load(f"{folders['sd']}?upscaler={enlarger}", device="cpu")


def test_of_what_is_joined_only_what_is_read_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders["other"], tmp_path / "other"))
    text = f"{folders['sd']}?vae={other}"
    digest = facts(text).digest
    for weights in other.glob("[tu]*/*.safetensors"):
        weights.unlink()
    assert facts(text).digest == mmgen.load(text, device="cpu").digest == digest
    enlarger = write_if_super_res(tmp_path / "enlarger", text=True)
    text = f"{folders['sd']}?upscaler={enlarger}"
    digest = facts(text).digest
    (enlarger / "text_encoder" / "model.safetensors").write_bytes(b"none")
    assert facts(text).digest == digest
    (enlarger / "scheduler" / "other.json").write_text("{}", "utf-8")
    assert facts(text).digest == digest
    (enlarger / "unet" / "config.json").write_text((enlarger / "unet" / "config.json").read_text() + "\n")
    assert facts(text).digest != digest


def test_a_vae_of_another_width_does_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    wide = write_stable_diffusion(tmp_path / "wide", latent_channels=8)
    with pytest.raises(ModelError, match="in_channels 4, but the VAE has 8"):
        mmgen.load(f"{folders['sd']}?vae={wide}", device="cpu")


def test_an_upscaler_stands_above_another_model(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["sd"].parent)
    command = [
        "generate",
        PROMPT,
        "--seed",
        "3",
        "--device",
        "cpu",
        "--set",
        "decoder.steps=2",
        "--no-show",
        "--model",
        "sd",
    ]
    above = ["--upscaler", "storybook & more"]
    assert main([*command, *above, "--size", "64", "-o", str(tmp_path / "large.png")]) == 0
    assert main([*command, *above, "--size", "16", "-o", str(tmp_path / "small.png")]) == 0
    assert main([*command, "-o", str(tmp_path / "plain.png")]) == 0
    large, small, plain = (
        mmgen.images.Image.open(tmp_path / f"{name}.png") for name in ("large", "small", "plain")
    )
    assert (large.size, small.size) == ((64, 64), (16, 16))
    assert small.tobytes() == plain.tobytes()
    assert large.resize((16, 16), mmgen.images.Image.Resampling.BOX).tobytes() != bytes(3 * 256)
    request = read_metadata(tmp_path / "large.png")["request"]
    assert request is not None
    assert request.model == "sd?upscaler=tiny"
    assert request.model_digest == facts("sd?upscaler=storybook %26 more").digest


def test_an_upscaler_twice_enlarges_twice(folders: dict[str, Path]) -> None:
    text = str(Reference(str(folders["sd"]), upscalers=(str(folders["storybook"]),) * 2))
    assert facts(text).sides == (
        16,
        64,
        256,
        1024,
    )  # twice for each: it was trained for pictures of this side
    shown = describe(text)["components"]
    assert list(shown)[-2:] == ["upscaler-1.super_res", "upscaler-2.super_res"]
    pipe = open_model(text, device="cpu")
    assert pipe(PROMPT, seeds=[3], size=256, stages=FAST)[0].size == (256, 256)
    with pytest.raises(UsageError, match="no single folder"):
        pipe.save_pretrained(folders["sd"].parent / "saved")


def test_rerun_of_a_joined_model_wants_it_again(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(Reference(str(folders["sd"]), upscalers=(str(folders["storybook"]),)))
    picture = tmp_path / "one.png"
    fast = ["--device", "cpu", "--no-show", "--size", "64", "--set", "decoder.steps=2", "--model", model]
    assert main(["generate", PROMPT, "--seed", "3", *fast, "-o", str(picture)]) == 0
    assert main(["rerun", str(picture), "-o", str(tmp_path / "again.png")]) == 2
    assert "drawn by sd?upscaler=tiny" in capsys.readouterr().err
    assert (
        main(["rerun", str(picture), "--model", model, "--device", "cpu", "-o", str(tmp_path / "again.png")])
        == 0
    )
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()
    assert json.loads(json.dumps(describe(model)))["sides"] == [16, 64, 256]
