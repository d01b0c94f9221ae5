"""From trained parts and a published text encoder to a checkpoint that draws."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer

import mmgen
from mmgen.errors import ModelError, UsageError
from mmgen.models import presets
from mmgen.models.text import TextEncoder
from mmgen.training import text_encoder
from mmgen.training.bundle import bundle
from mmgen.training.trainer import save_network
from tests.checkpoints import word_pieces, write_bert


def parts(folder: Path) -> dict[str, Path]:
    made = {
        "dual_encoder": presets.dual_encoder_tiny,
        "prior": presets.prior_tiny,
        "decoder": presets.decoder_tiny,
        "super_res": presets.super_res_tiny,
    }
    for name, build in made.items():
        save_network(build(), folder / name)
    return {name: folder / name for name in made}


def test_parts_become_a_model_that_draws_and_replace_the_one_before(tmp_path: Path) -> None:
    text = write_bert(tmp_path / "text", num_hidden_layers=3)
    networks, out = parts(tmp_path), tmp_path / "model"
    bundle(out, text, networks, image_embed="prior")
    (out / "of the one before").touch()
    bundle(out, text, networks, image_embed="none")
    pipe = mmgen.load(out)
    assert [stage.name for stage in pipe.cascade.stages] == [
        "text",
        "decoder",
        "super-res-64",
        "super-res-256",
    ]
    assert pipe("a red car", seeds=[1], size=64)[0].size == (64, 64)
    assert not list(tmp_path.glob("model-*"))


def test_a_part_that_is_missing_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    networks, out = parts(tmp_path), tmp_path / "model"
    out.mkdir()
    (out / "kept").touch()
    del networks["prior"]
    with pytest.raises(UsageError, match="no prior to bundle"):
        bundle(out, tmp_path / "text", networks, image_embed="prior")
    assert (out / "kept").exists()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder in the layout of the published one, known by its hash."""
    written = write_bert(tmp_path / "written", num_hidden_layers=text_encoder.TEXT_LAYER + 1)
    folder = written / "text_encoder"
    (written / "tokenizer" / "vocab.txt").replace(folder / "vocab.txt")
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(text_encoder, "PUBLISHED_SHA256", sha256)
    return folder


def test_pruned_words_have_the_states_that_they_had(published: Path, tmp_path: Path) -> None:
    rows = len(word_pieces()) - 1
    text_encoder.prune(published, tmp_path / "small", rows)
    BertTokenizer(vocab=str(published / "vocab.txt")).save_pretrained(tmp_path / "whole")
    small = TextEncoder.load(
        tmp_path / "small" / "text_encoder", tmp_path / "small" / "tokenizer", dtype=torch.float32
    )
    whole = TextEncoder.load(
        published, tmp_path / "whole", layer=text_encoder.TEXT_LAYER, dtype=torch.float32
    )
    assert small.model.config.vocab_size == rows
    assert small.model.config.num_hidden_layers == text_encoder.TEXT_LAYER
    known = ["a red cat and two blue dogs", "on the left of a car"]
    assert torch.allclose(small.encode(known).text, whole.encode(known).text, atol=0.01)


def test_words_of_captions_are_kept_then_the_most_frequent_without_numbers() -> None:
    known = [
        "[PAD]",
        "[unused0]",
        "1990",
        "governor",
        "senate",
        "##ing",
        "ö",
        "x",
        "##y",
        "7",
        "treaty",
        "mushroom",
        "##room",
    ]
    kept = {n: [known[i] for i in text_encoder.kept_rows(known, n)] for n in (5, 7, 9, 99)}
    assert kept[5] == ["[PAD]", "x", "##y", "7", "mushroom"]
    assert kept[7] == ["[PAD]", "governor", "senate", "x", "##y", "7", "mushroom"]
    assert kept[9] == ["[PAD]", "governor", "senate", "##ing", "x", "##y", "7", "treaty", "mushroom"]
    assert kept[99] == [word for word in known if word not in ("[unused0]", "1990", "\u00f6")]


def test_another_encoder_is_refused(published: Path, tmp_path: Path) -> None:
    (published / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"model\.safetensors has sha256 .*, expected"):
        text_encoder.prune(published, tmp_path / "small")
    assert not (tmp_path / "small").exists()
