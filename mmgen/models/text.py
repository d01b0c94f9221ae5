"""Frozen text encoders through transformers: CLIP, T5 and BERT types, from any folder in its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError


class _Family(NamedTuple):
    class_name: str  # in transformers
    pool: Callable[[Tensor, Tensor, Any], Tensor]
    options: dict[str, Any]


def _mean_pool(states: Tensor, mask: Tensor, _output: Any) -> Tensor:
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def _own_pool(_states: Tensor, _mask: Tensor, output: Any) -> Tensor:
    pooled: Tensor = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
    return pooled


FAMILIES = {
    "bert": _Family("BertModel", _mean_pool, {"add_pooling_layer": False}),
    "clip_text_model": _Family("CLIPTextModel", _own_pool, {}),
    "clip": _Family("CLIPTextModelWithProjection", _own_pool, {}),
    "t5": _Family("T5EncoderModel", _mean_pool, {}),
}


class TextEncoder:
    """Token states, mask and pooled vector of a text, from a frozen transformers model.

    layer: which hidden state the tokens are read from, counted as transformers does (0 are the word embeddings, -1 the
    last layer). The pooled vector always comes from the last. max_tokens: longer texts are cut there.
    """

    def __init__(self, model: Any, tokenizer: Any, *, layer: int = -1, max_tokens: int | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layer = layer
        config = model.config
        self.max_tokens = max_tokens or getattr(config, "max_position_embeddings", None) or 512
        self._pool = FAMILIES[config.model_type].pool

    @classmethod
    def load(
        cls, model_folder: Path, tokenizer_folder: Path | None = None, *, layer: int = -1, dtype: torch.dtype
    ) -> TextEncoder:
        """Read an encoder from disk; nothing is fetched. Raises ModelError if the folder is of no known family."""
        import transformers

        try:
            config = json.loads((model_folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{model_folder.name}/config.json cannot be read: {error}") from None
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise ModelError(f"text encoder of type {kind!r}: mmgen knows {', '.join(FAMILIES)}")
        model_class = getattr(transformers, FAMILIES[kind].class_name)
        model = model_class.from_pretrained(
            model_folder, local_files_only=True, use_safetensors=True, dtype=dtype, **FAMILIES[kind].options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_folder or model_folder, local_files_only=True, trust_remote_code=False
        )
        return cls(model, tokenizer, layer=layer)

    @property
    def width(self) -> int:
        """D, of a token state."""
        config = self.model.config
        return int(config.d_model if config.model_type == "t5" else config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """text [B, L, D], text_mask [B, L] and pooled [B, P], in the model's dtype; L is that of the longest text.

        A text's states do not depend on its neighbours: padding is masked and comes last.
        """
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        output = self.model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        )
        mask = tokens["attention_mask"].bool()
        pooled = self._pool(output.last_hidden_state, mask, output)
        return Conditioning(text=output.hidden_states[self.layer], text_mask=mask, pooled=pooled)
