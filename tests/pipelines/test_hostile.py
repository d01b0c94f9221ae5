"""Folders as strangers could write them: each is refused by its reason, before it can cost memory or run code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmgen
from mmgen import component
from mmgen.component import MAX_JSON, weight_files, weight_header
from mmgen.errors import ModelError
from mmgen.memory import peak_bytes
from mmgen.models.text import TextEncoder
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.loading import open_model, read_network
from mmgen.pipelines.text_to_image import TextToImage
from tests.pipelines.test_loading import edit

WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("text_encoder", "dual_encoder", "prior", "decoder", "super_res")
CPU = torch.device("cpu")
MEMORY = 500_000_000  # bytes, of any refusal


@pytest.fixture
def stranger(tiny_copy: Path) -> Path:
    """A folder without manifest, as others publish them."""
    (tiny_copy / "manifest.json").unlink()
    return tiny_copy


def load(folder: Path) -> TextToImage:
    return mmgen.load(folder, device="cpu", dtype="float32")


def refused(says: str, act: Callable[..., object], *given: object) -> str:
    """What a refusal says, which is one line, is not endless and has not cost much."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")  # the peak begins anew. Source: Linux, proc_pid_clear_refs(5)
    before = peak_bytes(CPU)
    with pytest.raises(ModelError, match=says) as caught:
        act(*given)
    assert peak_bytes(CPU) - before < MEMORY
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def weights(folder: Path, part: str) -> Path:
    (path,) = (folder / part).glob("*.safetensors")
    return path


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """A header and what follows it."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def write(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def change(path: Path, act: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    act(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def shards(component: Path) -> Path:
    """Two files and their index instead of one file; the index."""
    (path,) = component.glob("*.safetensors")
    tensors = load_file(path)
    names = sorted(tensors)
    places = {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        shard = component / f"{path.stem}-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, shard, metadata={"format": "pt"})
        places |= dict.fromkeys(some, shard.name)
    path.unlink()
    index = component / f"{path.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    return index


# What is sound.


def test_without_a_manifest_it_is_the_same_model(stranger: Path, pipe: TextToImage, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in stranger.rglob("*")}
    model = load(stranger)
    assert model.digest == pipe.digest == facts(stranger).digest == describe(stranger)["digest"]
    assert verify(stranger) == []
    ours, theirs = (m("a cat", seeds=[1], size=16)[0] for m in (model, pipe))
    assert ours.tobytes() == theirs.tobytes()
    assert {path: path.stat().st_mtime_ns for path in stranger.rglob("*")} == before
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "manifest.json").is_file()
    assert load(tmp_path / "saved").digest == pipe.digest


def test_weights_in_several_files_are_one_network(stranger: Path, pipe: TextToImage) -> None:
    for part in PARTS:
        shards(stranger / part)
    model = load(stranger)
    assert model.digest != pipe.digest
    ours, theirs = (m("a cat", seeds=[1], size=16)[0] for m in (model, pipe))
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
def test_a_variant_serves_where_no_plain_weights_are(stranger: Path, part: str) -> None:
    plain = weights(stranger, part)
    half = plain.with_name(f"{plain.stem}.fp16.safetensors")
    shutil.copy(plain, half)
    assert list(weight_files(stranger / part)) == [plain]
    plain.unlink()
    load(stranger)
    half.rename(plain)
    index = shards(stranger / part)
    index.rename(index.with_name(f"{plain.name}.index.fp16.json"))
    assert len(weight_files(stranger / part)) == 2
    for shard in (stranger / part).glob("*-of-*"):
        shard.rename(shard.with_name(shard.name.replace(plain.stem, f"{plain.stem}.fp16")))
    refused(r"00001-of-00002\.safetensors is missing", load, stranger)


def test_of_several_variants_none_is_chosen(stranger: Path) -> None:
    plain = weights(stranger, "decoder")
    for variant in ("fp16", "non_ema"):
        shutil.copy(plain, plain.with_name(f"{plain.stem}.{variant}.safetensors"))
    plain.unlink()
    refused("decoder holds the variants 'fp16', 'non_ema' and no plain weights", load, stranger)


def test_names_of_an_older_version_are_known(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=[32], norm_num_groups=8).save_pretrained(tmp_path / "vae")
    path = weights(tmp_path, "vae")
    tensors = load_file(path)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def renamed(name: str) -> str:
        for new, was in old.items():
            name = name.replace(new, was)
        return name

    save_file({renamed(name): value for name, value in tensors.items()}, path, metadata={"format": "pt"})
    assert load_file(path).keys() != tensors.keys()
    state = read_network(tmp_path / "vae", AutoencoderKL).state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
    name = next(name for name in tensors if ".to_q." in name)
    save_file({**tensors, renamed(name): 2 * tensors[name]}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="vae: the weights hold a tensor under two names"):
        read_network(tmp_path / "vae", AutoencoderKL)


# Files that are cut off, changed or empty.


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
@pytest.mark.parametrize(
    ("left", "says"),
    [
        (-100, "its tensors take .* bytes, and it has .*: it is cut off"),
        (100, "header is longer"),
        (3, "longer"),
        (0, ""),
    ],
)
def test_a_truncated_file(stranger: Path, part: str, left: int, says: str) -> None:
    path = weights(stranger, part)
    path.write_bytes(path.read_bytes()[:left])
    refused(f"{part}/{path.name} is no safetensors file: .*{says}", load, stranger)
    (problem,) = verify(stranger)
    assert path.name in problem


def test_a_flipped_bit_is_seen_by_the_manifest(tiny_copy: Path) -> None:
    path = weights(tiny_copy, "decoder")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(f"decoder/{WEIGHTS} is damaged", load, tiny_copy)


def test_a_flipped_bit_without_manifest_is_seen_in_the_digest_alone(
    stranger: Path, pipe: TextToImage
) -> None:
    """safetensors has no checksum: a number that is still one is drawn with."""
    path = weights(stranger, "decoder")
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    assert load(stranger).digest != pipe.digest


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (b'"F32"', b'"F33"', "gives no dtype"),
        (b'"shape":[', b'"shapd":[', "gives no dtype"),
        (b"weight", b"weighs", "the weights lack"),
        (b'"data_offsets":[0,', b'"data_offsets":[2,', "starts at byte 2"),
        (b"}", b"]", "no safetensors file"),
    ],
)
def test_a_flipped_bit_in_a_header(stranger: Path, was: bytes, now: bytes, says: str) -> None:
    path = weights(stranger, "decoder")
    path.write_bytes(path.read_bytes().replace(was, now, 1))
    refused(f"decoder.*{says}", load, stranger)


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(stranger: Path, part: str, value: float) -> None:
    path = weights(stranger, part)
    name = max(load_file(path))
    change(path, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    refused(f"{part}.*: the weights '{name}' hold NaN or infinity", load, stranger)


@pytest.mark.parametrize("part", PARTS)
def test_a_body_of_zeros(stranger: Path, part: str) -> None:
    path = weights(stranger, part)
    header, body = header_of(path)
    write(path, header, bytes(len(body)))
    refused(f"{part}.* is filled with zeros", load, stranger)


def test_a_file_of_zeros(stranger: Path) -> None:
    path = weights(stranger, "prior")
    path.write_bytes(bytes(path.stat().st_size))
    refused(f"prior/{WEIGHTS} is no safetensors file", load, stranger)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among files")
@pytest.mark.parametrize("name", [f"decoder/{WEIGHTS}", "decoder/config.json", "model_index.json"])
def test_a_pipe_is_not_waited_for(stranger: Path, name: str) -> None:
    (stranger / name).unlink()
    os.mkfifo(stranger / name)
    refused("no safetensors file: it is no file|no decoder/config.json|no model_index.json", load, stranger)


# Headers that lie.


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (100_000_000, "header takes 100,000,000 bytes, and at most 10,000,000 are read"),
        (200_000_000, "header is longer"),
        (2**64 - 1, "header is longer"),
    ],
)
def test_a_header_without_end(stranger: Path, length: int, says: str) -> None:
    path = weights(stranger, "decoder")
    path.write_bytes(length.to_bytes(8, "little") + b"{")
    os.truncate(path, 150_000_000)
    refused(f"decoder/{WEIGHTS} is no safetensors file: its {says}", load, stranger)


def test_the_longest_header_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of it, for a fifth of the memory: it takes seconds."""
    longest = MAX_JSON // 5
    monkeypatch.setattr(component, "MAX_JSON", longest)
    monkeypatch.setattr(sys.modules[__name__], "MEMORY", MEMORY // 5)
    text = b'{"weight":[' + b"[]," * ((longest - 20) // 3) + b"[]]}"
    assert len(text) <= longest
    refused(
        "gives no dtype, shape and offsets for 'weight'",
        weight_header,
        write(tmp_path / "one.safetensors", text),
    )


def tensor(shape: object, start: object, stop: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


SOUND = {"a": tensor([2], 0, 8), "b": tensor([1, 1], 8, 12), "c": tensor([0, 5], 8, 8)}


@pytest.mark.parametrize(
    ("name", "entry", "says"),
    [
        ("a", tensor([10**12], 0, 8), r"'a' has 8 bytes, and its shape \[1000000000000\] takes 4,000,000,000,000"),
        ("a", tensor([10**6, 10**6, 10**6], 0, 4 * 10**18), "'c' starts at byte 8, .* ends at 4000000000000000000"),
        ("b", tensor([10**12], 8, 8 + 4 * 10**12), "take 4,000,000,000,008 bytes, and it has 12"),
        ("b", tensor([1], 4, 8), "'b' starts at byte 4, and the tensor before it ends at"),
        ("b", tensor([2], 0, 8), "'.' starts at byte 0, and the tensor before it ends at 8"),
        ("b", tensor([0], 8, 8), "take 8 bytes, and it has 12"),
        ("b", tensor([1], 12, 16), "'b' starts at byte 12, and the tensor before it ends at 8"),
        ("a", tensor([1], 0, 4), "'.' starts at byte 8, and the tensor before it ends at 4"),
        ("b", tensor([1], 12, 8), "'b' starts at byte 12"),
        ("b", tensor([2], 8, 12), r"'b' has 4 bytes, and its shape \[2\] takes 8"),
        ("b", tensor([1], 8, 12, "F16"), "'b' has 4 bytes"),
        ("b", tensor([1], 8, 12, "F31"), "gives no dtype, shape and offsets for 'b'"),
        ("b", tensor([1], 8, 12, ["F32"]), "for 'b'"),
        ("b", tensor([1] * 9, 8, 12), "for 'b'"),
        ("b", tensor([-1], 8, 12), "for 'b'"),
        ("b", tensor([1.0], 8, 12), "for 'b'"),
        ("b", tensor([2**63], 8, 12), "for 'b'"),
        ("b", tensor([1], -8, 12), "for 'b'"),
        ("b", tensor([1], 8, 12.0), "for 'b'"),
        ("b", {"dtype": "F32", "shape": [1]}, "for 'b'"),
        ("b", {"dtype": "F32", "shape": [1], "data_offsets": [8, 12, 12]}, "for 'b'"),
        ("x" * 10_000, 1, "for 'xxx"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_describe_its_file(
    tmp_path: Path, name: str, entry: object, says: str
) -> None:
    path = write(tmp_path / "one.safetensors", SOUND, bytes(12))
    assert weight_header(path) == SOUND
    refused(
        f"one.safetensors is no safetensors file: .*({says})",
        weight_header,
        write(path, {**SOUND, name: entry}, bytes(12)),
    )


def test_a_shape_without_end_in_a_model(stranger: Path) -> None:
    path = weights(stranger, "text_encoder")
    header, body = header_of(path)
    header[max(header)]["shape"] = [10**12]
    write(path, header, body)
    refused(
        "text_encoder/model.safetensors is no safetensors file: .* takes 4,000,000,000,000", load, stranger
    )


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, object], bytes]:
    """Headers of which most are nearly right."""
    header, end = {}, 0
    for name in draw(
        st.lists(st.text(max_size=3).filter(lambda n: n != "__metadata__"), max_size=4, unique=True)
    ):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype, width = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)]))
        size = width * torch.Size(shape).numel() + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1]))
        start = end + draw(st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        end = start + size
    return header, bytes(max(0, end + draw(st.sampled_from([0, 0, 0, -1, 1]))))


@given(files())
def test_a_header_that_passes_is_one_for_the_library_too(
    tmp_path_factory: pytest.TempPathFactory, file: Any
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "drawn.safetensors", *file)
    try:
        header = weight_header(path)
    except ModelError:
        return
    with safe_open(path, framework="pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    assert {name: entry["shape"] for name, entry in header.items()} == shapes


# Shards.


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
def test_a_missing_shard(stranger: Path, part: str) -> None:
    index = shards(stranger / part)
    (lost,) = (stranger / part).glob("*-00002-of-00002.safetensors")
    lost.unlink()
    refused(f"{part}/{lost.name} is missing: {index.name} names it", load, stranger)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "../decoder/x.safetensors", "a/x.safetensors", "..\\x.safetensors",
     "C:x.safetensors", ".x.safetensors", "..", "", "x.bin", "x\0.safetensors",
     "x\n.safetensors"],
)  # fmt: skip
def test_a_shard_that_is_not_beside_its_index(stranger: Path, name: str) -> None:
    index = shards(stranger / "decoder")
    edit(index, lambda v: v["weight_map"].update({next(iter(v["weight_map"])): name}))
    assert repr(name) in refused(f"decoder/{index.name} names .*, and a shard is", load, stranger)


@pytest.mark.parametrize("places", [None, [], {}, {"a": 1}, "all"])
def test_an_index_of_nothing(stranger: Path, places: object) -> None:
    index = shards(stranger / "decoder")
    edit(index, lambda v: v.update(weight_map=places))
    refused(f"decoder/{index.name} must hold a weight_map", load, stranger)


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
@pytest.mark.parametrize("wrong", ["in none", "in another", "not in the index"])
def test_an_index_that_does_not_fit_its_shards(stranger: Path, part: str, wrong: str) -> None:
    index = shards(stranger / part)
    places: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
    first, other = sorted(set(places.values()))
    name = min(places)
    match wrong:
        case "in none":
            edit(index, lambda v: v["weight_map"].update(stranger=first))
            says = f"{part}/{first} lacks 'stranger'"
        case "in another":
            edit(index, lambda v: v["weight_map"].update({name: other}))
            says = f"{part}/{other} lacks '{name}'"
        case _:
            edit(index, lambda v: v["weight_map"].pop(name))
            says = f"{part}/{first} holds also '{name}'"
    refused(says, load, stranger)


# Links.


@pytest.mark.parametrize(
    "path", [f"decoder/{WEIGHTS}", "decoder", "decoder/config.json", "text_encoder/model.safetensors", "tokenizer",
             "tokenizer/vocab.txt", "model_index.json"],
)  # fmt: skip
def test_a_link_out_of_the_folder(stranger: Path, tmp_path: Path, path: str) -> None:
    shutil.move(stranger / path, tmp_path / "away")
    (stranger / path).symlink_to(tmp_path / "away")
    refused(f"{path} is a link that leads out of the folder", load, stranger)


def test_a_shard_that_is_a_link_out_of_the_folder(stranger: Path, tmp_path: Path) -> None:
    shards(stranger / "decoder")
    shard = min((stranger / "decoder").glob("*-of-*"))
    shutil.move(shard, tmp_path / "away")
    shard.symlink_to(tmp_path / "away")
    refused(f"decoder/{shard.name} is a link that leads out of the folder", load, stranger)


def test_a_snapshot_in_the_cache_is_made_of_links(stranger: Path, tmp_path: Path, pipe: TextToImage) -> None:
    snapshot = tmp_path / "models--some--one" / "snapshots" / "0123abc"
    blobs = snapshot.parent.parent / "blobs"
    shutil.copytree(stranger, snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    assert load(snapshot).digest == pipe.digest
    weights = snapshot / "decoder" / WEIGHTS
    target = blobs.parent / "refs"
    shutil.move(os.path.realpath(weights), target)
    weights.unlink()
    weights.symlink_to(target)
    refused(f"decoder/{WEIGHTS} is a link that leads out of the folder", load, snapshot)
    snapshot.parent.rename(snapshot.parent.with_name("other"))
    refused(
        "is a link that leads out of the folder", load, snapshot.parent.with_name("other") / snapshot.name
    )


def test_links_that_stay_in_the_folder(stranger: Path, pipe: TextToImage) -> None:
    weights = stranger / "decoder" / WEIGHTS
    weights.rename(stranger / "weights")
    weights.symlink_to("../weights")
    (stranger / "tokenizer" / "gone").symlink_to("nothing")
    (stranger / "tokenizer" / "circle").symlink_to("circle")
    (stranger / "decoder" / "gone").symlink_to("nothing")
    assert load(stranger).digest == open_model(stranger, "cpu", "float32").digest == pipe.digest


def test_a_manifest_that_is_a_link_to_nowhere_is_not_none(stranger: Path) -> None:
    (stranger / "manifest.json").symlink_to(stranger / "nowhere")
    refused("manifest.json is missing", load, stranger)


# Code.


class Canary:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "sung"))).close()  # noqa: S301
    assert (tmp_path / "sung").exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("decoder", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
        ("prior", "prior.ckpt"),
    ],
)
def test_pickles_alone_are_refused_by_name(stranger: Path, tmp_path: Path, part: str, name: str) -> None:
    weights(stranger, part).unlink()
    (stranger / part / name).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    refused(f"{part}/{name} is refused: only safetensors is read", load, stranger)
    assert not (tmp_path / "sung").exists()


def test_a_pickle_beside_safetensors_is_never_opened(
    stranger: Path, tmp_path: Path, pipe: TextToImage
) -> None:
    for name in ("decoder/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "weights.ckpt"):
        (stranger / name).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
        (stranger / name).chmod(0)
    for name in ("decoder/unet.py", "text_encoder/modeling.py", "tokenizer/tokenization.py", "pipeline.py"):
        (stranger / name).write_text(f"open({str(tmp_path / 'sung')!r}, 'w')\n", "utf-8")
    assert load(stranger).digest == pipe.digest
    assert not (tmp_path / "sung").exists()


def test_what_draws_nothing_is_not_looked_at(stranger: Path, tmp_path: Path) -> None:
    edit(
        stranger / "model_index.json",
        lambda v: v.update(safety_checker=["x", "Y"], feature_extractor=[None, None]),
    )
    digest = load(stranger).digest
    (stranger / "safety_checker").mkdir()
    (stranger / "safety_checker" / "config.json").write_text("{", "utf-8")
    (stranger / "safety_checker" / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    assert load(stranger).digest == digest
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
def test_a_pickle_that_calls_itself_safetensors(stranger: Path, tmp_path: Path, part: str) -> None:
    path = weights(stranger, part)
    path.write_bytes(pickle.dumps(Canary(tmp_path / "sung")) * 10)
    refused(f"{part}/{path.name} is no safetensors file", load, stranger)
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("model_index.json", {"decoder": ["os", "system"]}, r"component 'decoder' is \['os', 'system'\]"),
        ("model_index.json", {"text_encoder": ["os", "system"]}, r"component 'text_encoder' is \['os', 'system'\]"),
        ("model_index.json", {"family": ["os", "system"]}, "is of family"),
        ("decoder/config.json", {"_class_name": ["os", "system"]}, r"decoder/config.json is of class \['os'"),
        ("decoder/config.json", {"_class_name": "os.system"}, "is of class 'os.system'"),
        ("text_encoder/config.json", {"model_type": ["os", "system"]}, r"is of type \['os', 'system'\]"),
        ("decoder/config.json", {"auto_map": {"AutoModel": "unet.Evil"}}, "decoder/config.json has auto_map"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "m.E"}}, "text_encoder/config.json has auto_map"),
        ("tokenizer/tokenizer_config.json", {"auto_map": ["t.E", None]}, "tokenizer_config.json has auto_map"),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "tokenizer_config.json has vocab_file"),
        ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer./../a.json"]}, "has fast_tokenizer"),
        ("tokenizer/config.json", {"configuration_files": ["config./../../a.json"]}, "has configuration_files"),
        ("tokenizer/config.json", {"auto_map": {"AutoConfig": "c.E"}}, "tokenizer/config.json has auto_map"),
        ("tokenizer/config.json", {"model_type": "rag"}, "tokenizer/config.json is of type 'rag': mmgen knows bert"),
        ("tokenizer/config.json", {"model_type": ["os", "system"]}, r"is of type \['os', 'system'\]"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": ["os", "system"]}, r"is of \['os', 'system'\]"),
        ("model_index.json", {"decoder": ["x" * 10**6, "y"]}, "component 'decoder' is"),
        ("model_index.json", {"family": "\x1b[2J" * 1000}, "is of family"),
        ("decoder/config.json", {"_class_name": ["x" * 10**6]}, "is of class"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}, "is of 'RagTokenizer': mmgen knows"),
    ],
)  # fmt: skip
def test_names_of_code_are_refused(stranger: Path, file: str, values: dict[str, object], says: str) -> None:
    path = stranger / file
    path.write_text(path.read_text("utf-8") if path.is_file() else "{}", "utf-8")
    edit(path, lambda v: v.update(values))
    refused(says, load, stranger)


def test_what_transformers_would_fetch_or_read_besides_is_passed_by(
    stranger: Path, pipe: TextToImage
) -> None:
    component = stranger / "text_encoder"
    kernel = {"attn_implementation": "some/kernel", "_attn_implementation": "some/kernel"}
    weights = {"transformers_weights": "other.safetensors", "quantization_config": {"quant_method": "awq"}}
    edit(component / "config.json", lambda v: v.update(**kernel, **weights))
    (component / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}', "utf-8")
    ours, theirs = (m.cascade.stages[0].encoder for m in (load(stranger), pipe))  # type: ignore[attr-defined]
    assert torch.equal(ours.encode(["a cat"]).text, theirs.encode(["a cat"]).text)
    assert not {*kernel, *weights} & ours.model.config.to_dict().keys()


# JSON.


CONFIGS = ("model_index.json", "decoder/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json",
           "vocabulary.json")  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "it has the key 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "it has the key 'b' twice"),
        ("[" * 100_000, "cannot be read"),
        ('{"a":' * 100_000, "cannot be read"),
        ("[" * 40 + "]" * 40, "it is nested more than 32 deep"),
        ("{" + " " * MAX_JSON + "}", "has more than 10,000,000 bytes"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ("\ufeff{}".encode("utf-16").decode("latin-1"), "cannot be read"),
    ],
)
def test_json_of_which_readers_make_what_they_like(stranger: Path, name: str, text: str, says: str) -> None:
    (stranger / name).write_text(text, "utf-8")
    refused(f"{Path(name).name} .*{says}", load, stranger)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', "it has the key 'a' twice"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"shape":[0],"data_offsets":[0,4]}}',
            "it has the key 'shape' twice",
        ),
        (b'{"a":' * 100_000, ""),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "it is nested more than 32 deep"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.encode("utf-16"), ""),
        (b"\xff\xfe", ""),
    ],
)
def test_a_header_of_which_readers_make_what_they_like(tmp_path: Path, header: bytes, says: str) -> None:
    path = write(tmp_path / "one.safetensors", header, bytes(4))
    refused(f"one.safetensors is no safetensors file: .*{says}", weight_header, path)


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("prior", {"layers": 16_000}, "far more parameters than the weights have tensors"),
        ("decoder", {"blocks": [16_000, 16_000]}, "far more parameters"),
        ("decoder", {"channels": [2**20, 2**20]}, "channels is 1048576: numbers from -16,384 to 16,384"),
        ("decoder", {"channels": [[[2**20]]]}, "channels is 1048576"),
        ("decoder", {"text_dim": float("nan")}, "text_dim is nan"),
        ("prior", {"width": -16}, "does not describe a DiffusionPrior"),
        ("prior", {"layers": -1}, "the weights hold also"),
        ("prior", {"width": 16_384}, "have another shape for"),
        ("text_encoder", {"num_hidden_layers": 200}, "parameters, and the weights hold"),
        ("text_encoder", {"num_hidden_layers": 1001}, "at most 1,000 can be meant"),
        ("text_encoder", {"vocab_size": 2**24}, "have another shape for"),
        ("text_encoder", {"max_position_embeddings": 2**40}, "have another shape for"),
    ],
)
def test_a_config_that_asks_for_more_than_the_weights_hold(
    stranger: Path, part: str, values: dict[str, object], says: str
) -> None:
    edit(stranger / part / "config.json", lambda v: v.update(values))
    refused(f"{part}.*{says}", load, stranger)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/a.jinja",
     "additional_chat_templates/.a.jinja", "merges"],
)  # fmt: skip
def test_a_tokenizer_without_end(stranger: Path, name: str) -> None:
    path = stranger / "tokenizer" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 50_000_001)
    refused(f"tokenizer/{path.name} has 50,000,001 bytes: at most 50,000,000", load, stranger)


def test_an_encoder_by_itself_is_checked_alike(stranger: Path) -> None:
    path = weights(stranger, "text_encoder")
    path.write_bytes(path.read_bytes()[:-1])
    refused(
        "is cut off",
        lambda: TextEncoder.load(stranger / "text_encoder", stranger / "tokenizer", dtype=torch.float32),
    )


# The promise of SECURITY.md.

WATCHED = """
import json, os, socket, sys
import mmgen.pipelines.loading  # what libraries do when they are imported, no folder decides
from mmgen.errors import ModelError

*folders, other = sys.argv[1:]
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
actions = ["system", "exec", "fork", "forkpty", "posix_spawn", "spawn", "mkdir", "remove", "rename"]
seen, outcomes = [], []

def watch(event, args):
    if event in ("exec", "compile"):
        name = str(args[0].co_filename if event == "exec" else args[1])
        wrong = any(folder in name for folder in folders)
    elif event == "open":
        wrong = args[0] != os.devnull and bool((args[2] or 0) & writing)
    else:
        room, _, action = event.partition(".")
        wrong = room in ("socket", "subprocess", "pickle") or (room == "os" and action in actions)
    if wrong:
        seen.append([event, str(args)[:300]])

sys.addaudithook(watch)
for folder in folders:
    try:
        mmgen.load(folder, device="cpu", dtype="float32")
        outcomes.append("loaded")
    except ModelError as error:
        outcomes.append(str(error))
print(json.dumps([outcomes, list(seen)]))
exec(compile("0", folders[0] + "/unet.py", "exec"))
open(other, "w").close()
socket.socket().close()
print(json.dumps([event for event, _ in seen]))
"""


def test_loading_runs_nothing_writes_nothing_and_connects_nowhere(stranger: Path, tmp_path: Path) -> None:
    """By the audit events of a new interpreter, of a folder that is loaded and of one that is refused."""
    for name in ("decoder/unet.py", "text_encoder/modeling.py", "tokenizer/tokenization.py"):
        (stranger / name).write_text("raise SystemExit", "utf-8")
    for name in ("decoder/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"):
        (stranger / name).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    bad = shutil.copytree(stranger, tmp_path / "bad")
    edit(bad / "text_encoder" / "config.json", lambda v: v.update(auto_map={"AutoModel": "modeling.Evil"}))
    command = [sys.executable, "-B", "-c", WATCHED, str(stranger), str(bad), str(tmp_path / "other")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    (outcomes, seen), can_see = map(json.loads, run.stdout.splitlines())
    assert outcomes[0] == "loaded"
    assert "has auto_map" in outcomes[1]
    assert seen == []
    assert can_see == ["compile", "exec", "open", "socket.__new__"]
