"""The frozen text encoder of Kandinsky 2.1: XLM-RoBERTa, with a projection to what CLIP makes of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError
from mmgen.models.pretrained import quiet, read_config, read_model
from mmgen.models.text import TextEncoder, read_tokenizer

TYPES = ("M-CLIP",)
TOKENS = 77  # of every text, in the training of Kandinsky 2.1; the encoder can read more


class MultilingualEncoder(TextEncoder):
    """A `TextEncoder` around diffusers' `MultilingualCLIP`, whose pooled vector is as wide as an image embedding.

    Source: Carlsson et al. 2022 (Cross-lingual and Multilingual CLIP), LREC, section 3.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.layer, self.max_tokens = tokenizer, -1, TOKENS

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, length: int | None = None, seen: bool = False) -> Conditioning:
        """As `TextEncoder.encode`."""
        tokens = self.tokenizer(
            list(texts),
            padding=True if length is None else "max_length",
            truncation=True,
            max_length=self.max_tokens if length is None else length,
            return_tensors="pt",
        ).to(self.model.device)
        attended = torch.ones_like(tokens["attention_mask"]) if seen else tokens["attention_mask"]
        pooled, states = self.model(input_ids=tokens["input_ids"], attention_mask=attended)
        return Conditioning(text=states, text_mask=attended.bool(), pooled=pooled)


def read_multilingual(
    model_folder: Path, tokenizer_folder: Path, dtype: torch.dtype, *, outlined: bool = False
) -> MultilingualEncoder:
    """Read an encoder from disk; nothing is fetched. outlined: on the meta device, and no tensor is read.

    Raises ModelError if a folder is of another type, cannot be read, or has tensors too few or too many.
    """
    from diffusers.pipelines.kandinsky.text_encoder import MultilingualCLIP

    values = read_config(model_folder, TYPES)
    model = read_model(model_folder, values, MultilingualCLIP, dtype=dtype, outlined=outlined)
    with quiet():
        tokenizer = read_tokenizer(tokenizer_folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, {model_folder.name} only {model.config.vocab_size}"
        )
    return MultilingualEncoder(model, tokenizer)
