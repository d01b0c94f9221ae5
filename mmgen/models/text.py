"""Frozen text encoders through transformers: CLIP, T5, BERT, Gemma and Qwen types, from any folder in its layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmgen.component import UNSAFE, check_inside, read_json, refuse_foreign, shown
from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError, told
from mmgen.models.pretrained import quiet, read_config, read_model

MAX_VOCABULARY = 50_000_000  # bytes, of each file of a tokenizer
WEIGHTS = {".safetensors", ".onnx", ".ot", *UNSAFE}  # may lie beside a tokenizer, which reads none of them
# Of tokenizers, whose files transformers reads; others it reads by other libraries, or by programs.
TOKENIZERS = (
    "BertTokenizer", "CLIPTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "T5Tokenizer", "XLMRobertaTokenizer",
    "PreTrainedTokenizer", "TokenizersBackend",
)  # fmt: skip

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


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
    "gemma2": _Family("Gemma2Model", _mean_pool, {}),
    "qwen3": _Family("Qwen3Model", _mean_pool, {}),
    "qwen3_vl_text": _Family("Qwen3VLTextModel", _mean_pool, {}),
    "qwen2_5_vl": _Family("Qwen2_5_VLForConditionalGeneration", _mean_pool, {}),
}


class TextEncoder:
    """Token states, mask and pooled vector of a text, from a frozen transformers model.

    layer: which hidden state the tokens are read from, counted as transformers does (0 are the word embeddings, -1 the
    last layer). The pooled vector always comes from the last. max_tokens: longer texts are cut there.
    normed: whether the states of a CLIP's last layer are those behind the norm that it ends with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        layer: int = -1,
        max_tokens: int | None = None,
        normed: bool = True,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layer, self.normed = layer, normed
        config = _text_config(model)
        self.max_tokens = max_tokens or getattr(config, "max_position_embeddings", None) or 512
        self._pool = FAMILIES[model.config.model_type].pool

    @classmethod
    def load(
        cls,
        model_folder: Path,
        tokenizer_folder: Path | None = None,
        *,
        layer: int = -1,
        dtype: torch.dtype,
        projected: bool = False,
        outlined: bool = False,
    ) -> TextEncoder:
        """Read an encoder from disk; nothing is fetched.

        projected: of a CLIP, with the projection that makes its pooled vector one of text and pictures alike.
        outlined: its model on the meta device, and no tensor is read.
        Raises ModelError if the folder is of no known family, cannot be read, or has tensors too few or too many.
        """
        import transformers

        values = read_config(model_folder, FAMILIES)
        family = FAMILIES["clip" if projected else values["model_type"]]
        model = read_model(
            model_folder,
            values,
            getattr(transformers, family.class_name),
            dtype=dtype,
            options=family.options,
            outlined=outlined,
        )
        with quiet():
            tokenizer = read_tokenizer(tokenizer_folder or model_folder)
        config = _text_config(model)
        if len(tokenizer) > config.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, {model_folder.name} only {config.vocab_size}"
            )
        depth = config.num_hidden_layers
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise ModelError(f"text_layer is {shown(layer)}: {model_folder.name} has layers 0 to {depth}")
        return cls(model, tokenizer, layer=layer)

    @property
    def width(self) -> int:
        """D, of a token state."""
        config = _text_config(self.model)
        return int(config.d_model if config.model_type == "t5" else config.hidden_size)

    @property
    def pooled_width(self) -> int:
        """P, of a pooled vector."""
        is_projected = hasattr(self.model, "text_projection")
        return int(self.model.config.projection_dim) if is_projected else self.width

    def cut_words(self, text: str, *, length: int | None = None) -> tuple[str, ...]:
        """The words of a text that `encode` does not read to their end, in their order. length: as there."""
        rows = self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_tokens if length is None else length,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]
        # of what does not fit; tokens that stand for no character of the text begin and end it
        starts = (start for row in rows[1:] for start, stop in row if stop > start)
        first = next(starts, len(text))
        return tuple(word.group() for word in _WORD.finditer(text) if word.end() > first)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, length: int | None = None, seen: bool = False) -> Conditioning:
        """text [B, L, D], text_mask [B, L] and pooled [B, P], in the model's dtype; L is that of the longest text.

        A text's states do not depend on its neighbours: padding is masked and comes last. length: L itself, to which
        every text is padded or cut. seen: padding counts as text; networks that were trained on such states are told
        them.
        """
        tokens = self.tokenizer(
            list(texts),
            padding=True if length is None else "max_length",
            truncation=True,
            max_length=self.max_tokens if length is None else length,
            return_tensors="pt",
        ).to(self.model.device)
        attended = torch.ones_like(tokens["attention_mask"]) if seen else tokens["attention_mask"]
        # of one that sees pictures, too, only what reads: it would also rate all tokens that may come next
        reads = self.model if _text_config(self.model) is self.model.config else self.model.get_decoder()
        output = reads(input_ids=tokens["input_ids"], attention_mask=attended, output_hidden_states=True)
        mask = attended.bool()
        pooled = self._pool(output.last_hidden_state, mask, output)
        # CLIP's own output is normalised once more; its last hidden state as listed is not
        last = self.normed and self.layer in (-1, len(output.hidden_states) - 1)
        states = output.last_hidden_state if last else output.hidden_states[self.layer]
        return Conditioning(text=states, text_mask=mask, pooled=pooled)


def _text_config(model: Any) -> Any:
    """What a configuration says of the part that reads texts; most have no other."""
    return getattr(model.config, "text_config", model.config)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Raises ModelError if it has none, or one that names code to run or files to read."""
    import transformers

    # without this check the tokenizer's class would start with an empty vocabulary
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    ):
        raise ModelError(f"{folder.name} holds no tokenizer: it needs tokenizer.json or a vocabulary")
    _check_tokenizer(folder)
    # without them transformers asks for tiktoken, which could not read it
    readers = (transformers.utils.is_sentencepiece_available, transformers.utils.is_protobuf_available)
    alone = (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file()
    if alone and not all(there() for there in readers):
        raise ModelError(
            f"{folder.name} has its vocabulary in spiece.model alone: install sentencepiece and protobuf, "
            "which read it"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - as above; the tokenizers library raises bare Exception
        raise ModelError(f"{folder.name} cannot be read as a tokenizer: {told(error)}") from None


def _check_tokenizer(folder: Path) -> None:
    """Raise ModelError for files that are too large, lie elsewhere, or name code to run or files to read."""
    # transformers reads every template, hidden or not
    for path in sorted([*folder.rglob("[!.]*"), *folder.glob("additional_chat_templates/.*")]):
        check_inside(path)
        size = path.stat().st_size if path.is_file() else 0
        if size > MAX_VOCABULARY and path.suffix not in WEIGHTS:
            raise ModelError(
                f"{folder.name}/{path.name} has {size:,} bytes: at most {MAX_VOCABULARY:,} are read"
            )
    for name in ("config.json", "tokenizer_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        refuse_foreign(values, f"{folder.name}/{name}")
        kind = values.get("tokenizer_class")
        if kind is not None and str(kind).removesuffix("Fast") not in TOKENIZERS:
            raise ModelError(f"{folder.name}/{name} is of {shown(kind)}: mmgen knows {', '.join(TOKENIZERS)}")
        model = values.get("model_type") if name == "config.json" else None
        if model is not None and model not in list(FAMILIES):  # transformers chooses a class by it
            raise ModelError(
                f"{folder.name}/{name} is of type {shown(model)}: mmgen knows {', '.join(FAMILIES)}"
            )
