"""Make the bundled model's frozen text encoder: a published one without the words and layers it never uses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from mmgen.errors import ModelError
from mmgen.storybook.vocabulary import words as captions

# all-MiniLM-L6-v2, Apache-2.0
PUBLISHED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ROWS = 17_000
PIECES = 12_000  # inner pieces of words are kept up to this row of the published vocabulary
TEXT_LAYER = 3  # a linear probe reads a noun's own colour at 1.00 there, at 0.97 in the last of six layers


def prune(source: Path, out: Path, rows: int = ROWS) -> None:
    """Write `out`/text_encoder and `out`/tokenizer: the lower layers of `source`, in float16, with `rows` words.

    source: the published folder with model.safetensors and vocab.txt.
    Raises ModelError if its weights are not the published file.
    """
    from transformers import BertModel, BertTokenizer

    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    if digest != PUBLISHED_SHA256:
        raise ModelError(f"{source.name}/model.safetensors has sha256 {digest}, expected {PUBLISHED_SHA256}")
    words = (source / "vocab.txt").read_text("utf-8").split("\n")
    kept = kept_rows(words, rows)
    model: Any = BertModel.from_pretrained(source, add_pooling_layer=False, local_files_only=True)
    embeddings = model.embeddings.word_embeddings.weight.data[torch.tensor(kept)]
    model.resize_token_embeddings(len(kept))
    model.embeddings.word_embeddings.weight.data.copy_(embeddings)
    model.encoder.layer = model.encoder.layer[:TEXT_LAYER]
    model.config.num_hidden_layers = len(model.encoder.layer)
    model.to(torch.float16).save_pretrained(out / "text_encoder")
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    vocabulary = out / "tokenizer" / "vocab.txt"
    vocabulary.write_text("\n".join(words[i] for i in kept) + "\n", "utf-8")
    BertTokenizer(vocab=str(vocabulary), do_lower_case=True).save_pretrained(out / "tokenizer")


def kept_rows(words: list[str], rows: int) -> list[int]:
    """Indices to keep, in order: special tokens, every single character, the words of training captions, then the
    most frequent ASCII words and pieces of words without numbers.

    The published vocabulary is ordered by frequency. Single characters stay so that any ASCII word can be spelled.
    """
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    ours = captions(held_out=False)
    chosen = {i for i, w in enumerate(words) if w in special or w in ours or _single(w)}
    for i, word in enumerate(words):
        if len(chosen) >= rows:
            break
        if word.isascii() and word.removeprefix("##").isalpha() and (i < PIECES or word[0] != "#"):
            chosen.add(i)
    return sorted(chosen)


def _single(word: str) -> bool:
    return word.isascii() and len(word.removeprefix("##")) == 1
