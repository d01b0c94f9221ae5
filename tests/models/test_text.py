"""Frozen text encoders from folders that are made here: BERT, CLIP and T5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmgen.errors import ModelError
from mmgen.models.text import TextEncoder
from tests.checkpoints import word_pieces, write_bert, write_clip, write_t5

TEXTS = ["a cat", "two red dogs on the beach at night"]


FOLDERS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "bert": (write_bert, 32),
    "clip_text_model": (write_clip, 32),
    "clip": (lambda folder: write_clip(folder, "CLIPModel"), 24),
    "t5": (write_t5, 32),
}


def load(folder: Path, **options: int) -> TextEncoder:
    return TextEncoder.load(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32, **options)


@pytest.mark.parametrize("kind", FOLDERS)
def test_an_encoder_gives_states_mask_and_pooled(kind: str, tmp_path: Path) -> None:
    write, pooled = FOLDERS[kind]
    encoder = load(write(tmp_path))
    words = encoder.encode(TEXTS)
    assert words.text is not None
    assert words.text_mask is not None
    assert words.pooled is not None
    length = int(words.text_mask.sum(1).max())
    assert words.text.shape == (2, length, encoder.width)
    assert words.text_mask.shape == (2, length)
    assert words.text_mask.dtype == torch.bool
    assert words.pooled.shape == (2, pooled)
    assert words.text_mask[1].all()
    assert not words.text_mask[0].all()
    assert not words.text.requires_grad
    assert not torch.allclose(words.pooled[0], words.pooled[1], atol=1e-4)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_text_does_not_depend_on_its_neighbours(kind: str, tmp_path: Path) -> None:
    encoder = load(FOLDERS[kind][0](tmp_path))
    alone, together = encoder.encode(TEXTS[:1]), encoder.encode(TEXTS)
    assert alone.text is not None
    assert together.text is not None
    assert alone.pooled is not None
    assert together.pooled is not None
    count = alone.text.shape[1]
    torch.testing.assert_close(together.text[:1, :count], alone.text, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.pooled[:1], alone.pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_text_that_is_too_long_is_cut(kind: str, tmp_path: Path) -> None:
    encoder = load(FOLDERS[kind][0](tmp_path))
    words = encoder.encode(["a cat and a dog " * 200])
    assert words.text is not None
    assert words.text.shape[1] == encoder.max_tokens


@pytest.mark.parametrize(
    ("kind", "length", "cut"),
    [
        ("bert", 7, ()),
        ("bert", 4, ("on", "the", "beach")),  # two tokens are [CLS] and [SEP]
        ("t5", 15, ()),
        ("t5", 9, ("beach",)),
        ("t5", 6, ("cat", "on", "the", "beach")),  # four of five letters and marks of "cat" are read
        ("clip", 11, ("beach",)),  # of letters: "the" ends with the ninth
        ("clip", 10, ("the", "beach")),
        ("clip", 15, ("beach",)),
        ("clip", 16, ()),
    ],
)
def test_words_that_do_not_fit_are_named(
    kind: str, length: int, cut: tuple[str, ...], tmp_path: Path
) -> None:
    encoder = load(FOLDERS[kind][0](tmp_path))
    assert encoder.cut_words("a cat on the beach", length=length) == cut
    assert encoder.cut_words("", length=length) == ()


def test_words_past_what_the_model_reads_are_named(tmp_path: Path) -> None:
    encoder = load(write_bert(tmp_path))
    fits = "a red cat " * 20 + "an"
    assert encoder.cut_words(fits) == ()
    assert encoder.cut_words(f"{fits} 猫! jet-black,  CAT's.") == ("jet-black", "CAT's")


def test_the_layer_decides_the_states_and_not_the_pooled_vector(tmp_path: Path) -> None:
    write_bert(tmp_path)
    first, last, end = (load(tmp_path, layer=layer).encode(TEXTS) for layer in (1, 2, -1))
    assert first.text is not None
    assert last.text is not None
    assert end.text is not None
    assert first.pooled is not None
    assert last.pooled is not None
    assert not torch.allclose(first.text, last.text, atol=1e-2)
    assert torch.equal(last.text, end.text)
    assert torch.equal(first.pooled, last.pooled)


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_last_layer_is_the_output_of_the_model(kind: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind][0](tmp_path)
    end, numbered = load(folder), load(folder, layer=2)
    tokens = end.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = end.model(**tokens).last_hidden_state
    for encoder in (end, numbered):
        text = encoder.encode(TEXTS).text
        assert text is not None
        torch.testing.assert_close(text, output)


def test_padding_may_count_as_text(tmp_path: Path) -> None:
    encoder = load(write_clip(tmp_path))
    length = encoder.max_tokens
    words, alone = (encoder.encode(one, length=length, seen=True) for one in (TEXTS, TEXTS[:1]))
    assert words.text is not None
    assert words.text_mask is not None
    assert words.text.shape == (2, length, encoder.width)
    assert words.text_mask.all()
    tokens = encoder.tokenizer(TEXTS, padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(words.text, encoder.model(tokens["input_ids"]).last_hidden_state)
    torch.testing.assert_close(words.text[:1], alone.text, atol=1e-5, rtol=0)


def test_texts_may_have_a_length_that_is_given(tmp_path: Path) -> None:
    encoder = load(write_t5(tmp_path))
    short, long = (encoder.encode(TEXTS, length=length) for length in (3, 40))
    tokens = encoder.tokenizer(TEXTS, padding="max_length", max_length=40, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(long.text, encoder.model(**tokens).last_hidden_state)
    assert torch.equal(long.text_mask, tokens["attention_mask"].bool())  # type: ignore[arg-type]
    assert short.text_mask.shape == (2, 3)  # type: ignore[union-attr]


def test_words_of_the_vocabulary_are_one_token_each(tmp_path: Path) -> None:
    encoder = load(write_bert(tmp_path))
    assert encoder.encode(["red cat"]).text_mask.sum() == 4  # type: ignore[union-attr]  # with [CLS] and [SEP]
    assert len(encoder.tokenizer) == len(word_pieces())


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_bert(tmp_path)
    bars, level = (getattr(transformers.logging, n)() for n in ("is_progress_bar_enabled", "get_verbosity"))
    capfd.readouterr()
    load(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.is_progress_bar_enabled() == bars
    assert transformers.logging.get_verbosity() == level


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path, metadata={"format": "pt"})


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (QUERY, None, f"lack '{QUERY}'"),
        (QUERY, torch.zeros(32, 16), rf"have another shape for '{QUERY}' \(\[32, 16\], not \[32, 32\]\)"),
        (QUERY, torch.ones(32, 32, dtype=torch.int64), f"hold no fractions in '{QUERY}'"),
        ("encoder.layer.7.output.dense.bias", torch.zeros(32), r"hold also 'encoder\.layer\.7"),
    ],
)
def test_weights_that_do_not_fit_are_never_drawn_at_random(
    tmp_path: Path, name: str, value: torch.Tensor | None, says: str
) -> None:
    write_bert(tmp_path)
    change(tmp_path, name, value)
    with pytest.raises(ModelError, match=says):
        load(tmp_path)


@pytest.mark.parametrize("name", ["pooler.dense.weight", "cls.predictions.bias", "embeddings.position_ids"])
def test_heads_of_the_pre_training_are_let_be(tmp_path: Path, name: str) -> None:
    write_bert(tmp_path)
    before = load(tmp_path).encode(TEXTS).pooled
    change(tmp_path, name, torch.zeros(32))
    assert torch.equal(load(tmp_path).encode(TEXTS).pooled, before)  # type: ignore[arg-type]


def test_folders_that_are_no_encoder(tmp_path: Path) -> None:
    write_bert(tmp_path)
    with pytest.raises(ModelError, match=r"nowhere/config\.json is missing"):
        TextEncoder.load(tmp_path / "nowhere", dtype=torch.float32)
    with pytest.raises(ModelError, match="text_layer is 3: text_encoder has layers 0 to 2"):
        load(tmp_path, layer=3)
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps({"model_type": "gpt2"}), "utf-8")
    with pytest.raises(ModelError, match="is of type 'gpt2': mmgen knows bert, clip_text_model, clip, t5"):
        load(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    write_bert(tmp_path / "small", vocab_size=50)
    with pytest.raises(ModelError, match=r"the tokenizer has .* tokens, text_encoder only 50"):
        load(tmp_path / "small")


def test_what_reads_a_vocabulary_of_sentencepiece_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_t5(tmp_path)
    (folder / "tokenizer" / "spiece.model").write_bytes(b"")
    monkeypatch.setattr("transformers.utils.is_sentencepiece_available", lambda: False)
    load(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"in spiece\.model alone: install sentencepiece and protobuf"):
        load(folder)


def test_an_empty_tokenizer_folder(tmp_path: Path) -> None:
    write_bert(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ModelError, match="tokenizer holds no tokenizer"):
        load(tmp_path)
