"""Tiny checkpoints with random weights, in the layout of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from mmgen.models import presets
from mmgen.pipelines.loading import write_checkpoint

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "a", "an", "and", "at", "the", "on", "in", "to", "left", "right", "of", "above", "below", "two", "three",
    "red", "blue", "green", "yellow", "purple", "cat", "dog", "car", "tree", "house", "moon", "star", "sun",
    "boat", "beach", "snow", "street", "grass", "night", "big", "small",
]  # fmt: skip


def word_pieces() -> tuple[str, ...]:
    """The vocabulary: special tokens, letters at the beginning and inside of words, then words."""
    return (*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *[w for w in WORDS if len(w) > 1])


def write_bert(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """`folder`/text_encoder and `folder`/tokenizer: a random BERT of width 32 with two layers."""
    pieces = word_pieces()
    values = {
        "vocab_size": len(pieces),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**values), add_pooling_layer=False)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=0.3
                )  # 0.02, the published one, says nearly the same of every word
    model.save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    BertTokenizer(vocab=str(tokenizer / "vocab.txt"), do_lower_case=True).save_pretrained(tokenizer)
    return folder


def awake(build: Callable[[], Any], seed: int = 0) -> Any:
    """The network with its zero layers randomised, so that it says something of all that it is told."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build().eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
    return network


def write_tiny(folder: Path, image_embed: str = "prior", **changes: Callable[[], Any]) -> Path:
    """A whole storybook checkpoint at 16, 64 and 256 px. changes: other networks for its components."""
    write_bert(folder)
    parts = {
        "dual_encoder": presets.dual_encoder_tiny,
        "prior": presets.prior_tiny,
        "decoder": presets.decoder_tiny,
        "super_res": presets.super_res_tiny,
        **changes,
    }
    for seed, (name, build) in enumerate(parts.items()):
        awake(build, seed).save_pretrained(folder / name)
    options = {"text_layer": 1, "image_embed": image_embed}
    (folder / "README.md").write_text("# A tiny model for tests\n", "utf-8")
    write_checkpoint(folder, name="tiny", family="storybook", options=options, words=frozenset(WORDS))
    return folder
