"""From a folder to a model: sound and complete, or one clear error before anything is drawn."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmgen
from mmgen import component
from mmgen.errors import ModelError
from mmgen.memory import peak_bytes
from mmgen.pipelines.catalogue import describe, sizes, verify
from mmgen.pipelines.checkpoint import part_names, write_manifest
from mmgen.pipelines.loading import read_component, write_checkpoint
from mmgen.pipelines.text_to_image import TextToImage

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder: Path) -> TextToImage:
    return mmgen.load(folder, device="cpu", dtype="float32")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def refused(folder: Path, says: str) -> str:
    with pytest.raises(ModelError, match=says) as caught:
        load(folder)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sizes_are_known_before_loading(tiny_copy: Path, pipe: TextToImage) -> None:
    assert sizes(tiny_copy) == pipe.sizes
    for wrong in (0, -16, "16", None, 1.5):
        edit(tiny_copy / "decoder" / "config.json", lambda v, side=wrong: v.update(sample_size=side))
        with pytest.raises(ModelError, match=r"sample_size is .*, and must be a number of pixels"):
            sizes(tiny_copy)


def test_describe_and_verify_read_no_weights(tiny_folder: Path, pipe: TextToImage) -> None:
    told = describe(tiny_folder)
    assert (told["name"], told["family"], told["digest"]) == ("tiny", "storybook", pipe.digest)
    assert list(told["components"]) == ["text_encoder", "dual_encoder", "prior", "decoder", "super_res"]
    decoder = next(s for s in pipe.cascade.stages if s.name == "decoder").network  # type: ignore[attr-defined]
    assert told["components"]["decoder"]["parameters"] == sum(p.numel() for p in decoder.parameters())
    assert told["components"]["decoder"]["dtypes"] == ["F32"]
    assert verify(tiny_folder) == []


def test_the_digest_ignores_the_card_and_nothing_else(tiny_copy: Path, pipe: TextToImage) -> None:
    (tiny_copy / "README.md").write_text("# Another card\n", "utf-8")
    write_manifest(tiny_copy)
    assert load(tiny_copy).digest == pipe.digest
    edit(tiny_copy / "model_index.json", lambda v: v.update(text_layer=2))
    write_manifest(tiny_copy)
    assert load(tiny_copy).digest != pipe.digest


def test_the_text_layer_is_read_from_the_index(tiny_copy: Path, pipe: TextToImage) -> None:
    edit(tiny_copy / "model_index.json", lambda v: v.update(text_layer=2))
    write_manifest(tiny_copy)
    one, two = (p.cascade.stages[0].encoder.encode(["a cat"]).text for p in (pipe, load(tiny_copy)))  # type: ignore[attr-defined]
    assert not torch.allclose(one, two, atol=1e-2)


def test_save_pretrained_refuses_a_folder_with_something_in_it(pipe: TextToImage, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(ModelError, match="is not empty"):
        pipe.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_loading_changes_nothing_in_the_folder_and_leaves_its_files_free(tiny_copy: Path) -> None:
    def listing() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in tiny_copy.rglob("*")}

    before = listing()
    model = load(tiny_copy)
    assert listing() == before
    shutil.rmtree(tiny_copy)
    assert len(model("a cat", seeds=[1], size=16)) == 1


def test_the_header_of_a_component_is_read_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, header = list[Path](), component.weight_header
    monkeypatch.setattr(component, "weight_header", lambda path: (read.append(path), header(path))[1])
    index = json.loads((tiny_folder / "model_index.json").read_text("utf-8"))
    for name in ("text_encoder", "decoder"):
        read_component(tiny_folder, name, index, torch.float32)
    assert [path.parent.name for path in read] == ["text_encoder", "decoder"]


def test_loading_prints_nothing(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny_folder)
    assert capfd.readouterr() == ("", "")


# Damage: found by the manifest.


def test_a_truncated_file(tiny_copy: Path) -> None:
    path = tiny_copy / "decoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut off" in refused(tiny_copy, f"decoder/{WEIGHTS} has .* bytes, not")
    assert len(verify(tiny_copy)) == 1


def test_a_flipped_bit(tiny_copy: Path) -> None:
    path = tiny_copy / "super_res" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)
    refused(tiny_copy, f"super_res/{WEIGHTS} is damaged")


def test_a_body_of_zeros(tiny_copy: Path) -> None:
    path = tiny_copy / "prior" / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-2000] + bytes(2000))
    refused(tiny_copy, f"prior/{WEIGHTS} is damaged")


@pytest.mark.parametrize(
    "name", [f"decoder/{WEIGHTS}", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"]
)
def test_a_missing_file(tiny_copy: Path, name: str) -> None:
    (tiny_copy / name).unlink()
    refused(tiny_copy, f"{name} is missing")


def test_every_damaged_file_is_listed(tiny_copy: Path) -> None:
    (tiny_copy / "decoder" / WEIGHTS).unlink()
    (tiny_copy / "vocabulary.json").write_text("[]", "utf-8")
    assert [line.split()[0] for line in verify(tiny_copy)] == [f"decoder/{WEIGHTS}", "vocabulary.json"]


def test_files_that_the_manifest_does_not_list_are_named(tiny_copy: Path) -> None:
    for name in ("decoder/diffusion_pytorch_model-2.safetensors", "notes.txt", "tokenizer/added_tokens.json"):
        (tiny_copy / name).write_text("{}", "utf-8")
        assert f"{name} is not in manifest.json: remove it" in refused(tiny_copy, "checkpoint copy: ")
    (tiny_copy / "vocabulary.json").unlink()
    assert [line.split()[0] for line in verify(tiny_copy)] == [
        "vocabulary.json",
        "decoder/diffusion_pytorch_model-2.safetensors",
        "notes.txt",
        "tokenizer/added_tokens.json",
    ]
    refused(
        tiny_copy,
        r"vocabulary\.json is missing.*notes\.txt.* \(and 1 more: 'mmgen models verify' lists them\)",
    )


def test_hidden_files_are_let_be_and_not_listed(tiny_copy: Path, pipe: TextToImage) -> None:
    for name in (".gitattributes", "decoder/.DS_Store", ".cache/huggingface/download.lock"):
        (tiny_copy / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny_copy / name).write_text("x", "utf-8")
    assert verify(tiny_copy) == []
    assert load(tiny_copy).digest == pipe.digest
    before = (tiny_copy / "manifest.json").read_bytes()
    write_manifest(tiny_copy)
    assert (tiny_copy / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("target", ["file", "folder", "nowhere", "upwards"])
def test_a_link_out_of_the_folder_is_refused(tiny_copy: Path, tmp_path: Path, target: str) -> None:
    weights = tiny_copy / "decoder" / WEIGHTS
    away = tmp_path / "away"
    match target:
        case "file":  # the very bytes that the manifest lists
            shutil.move(weights, away)
            weights.symlink_to(away)
        case "folder":
            shutil.move(weights.parent, away)
            weights.parent.symlink_to(away)
        case "nowhere":
            (tiny_copy / ".hidden").symlink_to(away)
        case "upwards":
            (tiny_copy / "up").symlink_to("..")
    refused(tiny_copy, "is a link that leads out of the folder")
    assert len(verify(tiny_copy)) == 1


def test_a_link_that_stays_in_the_folder_is_a_file_like_others(tiny_copy: Path, pipe: TextToImage) -> None:
    weights = tiny_copy / "decoder" / WEIGHTS
    weights.rename(tiny_copy / ".weights")
    weights.symlink_to("../.weights")
    assert load(tiny_copy).digest == pipe.digest
    (tiny_copy / "circle").symlink_to("circle")
    (tiny_copy / "again").symlink_to("vocabulary.json")
    assert verify(tiny_copy) == ["again is not in manifest.json: remove it"]


def test_a_checkpoint_may_be_reached_by_a_link(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_folder)
    assert load(tmp_path / "link").sizes == sizes(tmp_path / "link") == (16, 64, 256)


# Damage that a fresh manifest hides.


@pytest.mark.parametrize(
    "name", [f"decoder/{WEIGHTS}", "text_encoder/model.safetensors", "text_encoder/config.json"]
)
def test_a_file_missing_from_the_manifest_too(tiny_copy: Path, name: str) -> None:
    (tiny_copy / name).unlink()
    write_manifest(tiny_copy)
    refused(tiny_copy, name.split("/")[0])


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
def test_a_truncated_file_with_its_own_sum(tiny_copy: Path, part: str) -> None:
    (path,) = (tiny_copy / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    write_manifest(tiny_copy)
    refused(tiny_copy, f"{part}.*")


@pytest.mark.parametrize("part", ["decoder", "prior", "dual_encoder", "super_res", "text_encoder"])
def test_weights_that_are_not_finite(tiny_copy: Path, part: str) -> None:
    (path,) = (tiny_copy / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(tiny_copy)
    assert part in refused(tiny_copy, "NaN or infinity")


@pytest.mark.parametrize("part", ["decoder", "prior", "dual_encoder", "super_res", "text_encoder"])
@pytest.mark.parametrize("change", ["one more", "one less"])
def test_tensors_that_the_network_does_not_have(tiny_copy: Path, part: str, change: str) -> None:
    (path,) = (tiny_copy / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    if change == "one less":
        tensors.pop(name)
    else:
        tensors["stranger.weight"] = torch.zeros(2)
    save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(tiny_copy)
    says = refused(tiny_copy, part)
    assert ("stranger.weight" if change == "one more" else name) in says


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("decoder", "channels", [16, 48]),
        ("decoder", "blocks", [1, 2]),
        ("decoder", "attention", [False, False]),
        ("decoder", "text_dim", 48),
        ("decoder", "stem", 4),
        ("decoder", "low_res", True),
        ("prior", "layers", 2),
        ("prior", "heads", 3),
        ("dual_encoder", "embed_dim", 8),
        ("super_res", "vector_dim", 8),
        ("text_encoder", "hidden_size", 64),
        ("text_encoder", "num_hidden_layers", 1),
        ("text_encoder", "num_hidden_layers", 3),
        ("text_encoder", "vocab_size", 50),
        ("text_encoder", "model_type", "gpt2"),
        ("decoder", "sample_size", 17),
        ("decoder", "sample_size", 0),
        ("super_res", "residual_scale", 0.0),
        ("decoder", "head_dim", 0),
        ("decoder", "channels", []),
        ("decoder", "channels", "wide"),
        ("decoder", "surprise", 1),
        ("decoder", "_class_name", "UNet"),
        ("decoder", "_class_name", "UNet2DModel"),
        ("decoder", "_class_name", None),
        ("prior", "_class_name", "UNet"),
    ],
)
def test_a_config_that_does_not_fit(tiny_copy: Path, part: str, field: str, value: object) -> None:
    edit(tiny_copy / part / "config.json", lambda v: v.update({field: value}))
    write_manifest(tiny_copy)
    refused(tiny_copy, part)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("decoder", "channels", [2**20, 2**21]),
        ("decoder", "channels", [10**30, 10**30]),
        ("decoder", "blocks", [10**9, 10**9]),
        ("decoder", "sample_size", 2**40),
        ("decoder", "text_layers", 10**9),
        ("prior", "width", 2**30),
        ("prior", "layers", 10**9),
        ("dual_encoder", "image_size", 2**30),
        ("text_encoder", "hidden_size", 2**24),
        ("text_encoder", "num_hidden_layers", 10**9),
        ("text_encoder", "vocab_size", 2**40),
    ],
)
def test_absurd_sizes_allocate_nothing(tiny_copy: Path, part: str, field: str, value: object) -> None:
    edit(tiny_copy / part / "config.json", lambda v: v.update({field: value}))
    write_manifest(tiny_copy)
    before = peak_bytes(torch.device("cpu"))
    refused(tiny_copy, part)
    assert peak_bytes(torch.device("cpu")) - before < 200_000_000


def test_parts_that_do_not_fit_each_other(tiny_copy: Path) -> None:
    from mmgen.models.prior import DiffusionPrior
    from tests.checkpoints import awake

    shutil.rmtree(tiny_copy / "prior")
    wide = awake(
        lambda: DiffusionPrior(embed_dim=24, text_dim=32, pooled_dim=32, width=32, layers=1, heads=2)
    )
    wide.save_pretrained(tiny_copy / "prior")
    write_manifest(tiny_copy)
    refused(tiny_copy, "prior.*24.*16")


# What is no checkpoint, or none that may be read.


@pytest.mark.parametrize("name", ["decoder/extra.bin", "weights.PT", "tokenizer/run.py", "a/b/c.pkl"])
def test_formats_that_can_run_code_are_refused(tiny_copy: Path, name: str) -> None:
    path = tiny_copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"weights": 1}))
    write_manifest(tiny_copy)
    refused(tiny_copy, f"{name} is refused: only safetensors is read")


def test_a_pickle_that_calls_itself_safetensors(tiny_copy: Path) -> None:
    (tiny_copy / "decoder" / WEIGHTS).write_bytes(pickle.dumps({"weights": 1}) * 10)
    write_manifest(tiny_copy)
    refused(tiny_copy, f"decoder/{WEIGHTS} is no safetensors file")
    with pytest.raises(ModelError, match=f"decoder/{WEIGHTS} is no safetensors file"):
        describe(tiny_copy)


@pytest.mark.parametrize(
    "header",
    [
        [], "text", 3, None, {"weight": 1}, {"weight": {}}, {"weight": {"dtype": "F32"}}, {"weight": {"shape": [1]}},
        {"weight": {"dtype": 1, "shape": [1]}}, {"weight": {"dtype": "F32", "shape": 1}},
        {"weight": {"dtype": "F32", "shape": ["1"]}}, {"weight": {"dtype": "F32", "shape": [-1]}},
        {"weight": {"dtype": "F32", "shape": [1.5]}}, {"weight": {"dtype": "F32", "shape": [True]}},
    ],
)  # fmt: skip
def test_a_header_that_describes_no_tensors(tiny_copy: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tiny_copy / "decoder" / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    write_manifest(tiny_copy)
    with pytest.raises(ModelError, match=f"decoder/{WEIGHTS} is no safetensors file: its header"):
        describe(tiny_copy)


def test_this_folder_has_a_name_in_errors(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(tiny_copy / "model_index.json", lambda v: v.update(family="novel"))
    monkeypatch.chdir(tiny_copy)
    with pytest.raises(ModelError, match=r"^copy/model_index\.json is of family 'novel'"):
        describe(".")
    edit(tiny_copy / "model_index.json", lambda v: (v.update(family="storybook"), v.pop("name")))
    assert describe(".")["name"] == "copy"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"a": "b"}}',
        '{"files": {"vocabulary.json": {"sha256": 1}}}',
        '{"files": {"vocabulary.json": {"sha256": "", "bytes": "many"}}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_none(tiny_copy: Path, text: str) -> None:
    (tiny_copy / "manifest.json").write_text(text, "utf-8")
    refused(tiny_copy, r"manifest\.json")


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/hostname", "decoder/../../secret.txt"])
def test_a_manifest_that_leaves_the_folder(tiny_copy: Path, path: str) -> None:
    edit(tiny_copy / "manifest.json", lambda v: v["files"].update({path: {"sha256": "0", "bytes": 0}}))
    refused(tiny_copy, "which leaves the folder")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("family", "imagen", "of family 'imagen': mmgen knows storybook"),
        ("family", None, "of family"),
        ("family", ["storybook"], "of family"),
        ("decoder", ["os", "system"], "component 'decoder' is"),
        ("decoder", None, "component 'decoder' is None"),
        ("decoder", ["mmgen.models.prior", "DiffusionPrior"], "component 'decoder' is"),
        (
            "decoder",
            ["mmgen.models.unet", "UNet"],
            r"says that decoder is mmgen\.models\.unet\.UNet, not mmgen",
        ),
        ("text_encoder", ["transformers", "GPT2Model"], "component 'text_encoder'"),
        ("text_layer", "first", "text_layer"),
        ("text_layer", 7, "text_layer"),
        ("image_embed", "yes", "image_embed is 'yes' in the index: it must be one of prior, given, none"),
        ("image_embed", None, "image_embed is None"),
        ("image_embed", ["prior"], "image_embed is"),
    ],
)
def test_an_index_that_is_wrong(tiny_copy: Path, field: str, value: object, says: str) -> None:
    edit(tiny_copy / "model_index.json", lambda v: v.update({field: value}))
    write_manifest(tiny_copy)
    refused(tiny_copy, says)


@pytest.mark.parametrize("name", ["vocabulary.json", "decoder/config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("text", ["", "7", "nonsense"])
def test_json_that_is_none(tiny_copy: Path, name: str, text: str) -> None:
    (tiny_copy / name).write_text(text, "utf-8")
    write_manifest(tiny_copy)
    refused(tiny_copy, name)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path, r"is no checkpoint: it has no model_index\.json")
    with pytest.raises(ModelError, match="no model 'nothing': give a folder"):
        mmgen.load("nothing")


def test_a_class_that_nobody_knows_is_answered_with_the_known_ones(tiny_copy: Path) -> None:
    edit(tiny_copy / "decoder" / "config.json", lambda v: v.update(_class_name="UNet2DModel"))
    write_manifest(tiny_copy)
    says = refused(tiny_copy, r"decoder/config\.json is of class 'UNet2DModel', not ")
    assert says.endswith("mmgen.models.efficient_unet.EfficientUNet or mmgen.models.unet.UNet")
    with pytest.raises(ModelError, match="'UNet2DModel'"):
        write_checkpoint(tiny_copy, name="x", family="storybook", options={}, words=frozenset())


def test_a_component_without_its_folder(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "prior")
    write_manifest(tiny_copy)
    refused(tiny_copy, r"has no prior/config\.json")
    with pytest.raises(ModelError, match=r"has no prior/config\.json"):
        write_checkpoint(tiny_copy, name="x", family="storybook", options={}, words=frozenset())


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", ""])
def test_a_tokenizer_that_is_not_there(tiny_copy: Path, name: str) -> None:
    if name:
        for path in (tiny_copy / "tokenizer").iterdir():
            if path.name != name:
                continue
            path.write_text("{", "utf-8")
    else:
        shutil.rmtree(tiny_copy / "tokenizer")
    write_manifest(tiny_copy)
    if name != "vocab.txt":  # tokenizer.json goes before it
        refused(tiny_copy, "tokenizer")


def test_an_image_encoder_is_read_beside_a_prior_alone() -> None:
    encoder, network = ["transformers", "CLIPVisionModelWithProjection"], ["diffusers", "PriorTransformer"]
    assert "image_encoder" in part_names({"prior": network, "image_encoder": encoder})
    assert "image_encoder" not in part_names({"unet": network, "image_encoder": encoder})
    assert "image_encoder" not in part_names({"prior": network, "image_encoder": [None, None]})
