"""Frozen text encoders through transformers: CLIP, T5 and BERT types, from any folder in its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError

MAX_LAYERS = 1000
MAX_WIDTH = 2**24
# In published files, and not needed: the other half, heads of the pre-training, and indices that are computed.
SPARE_TENSORS = (
    "pooler.", "cls.", "position_ids", "vision_model.", "visual_projection.", "logit_scale", "decoder.", "lm_head."
)  # fmt: skip


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
        """Read an encoder from disk; nothing is fetched.

        Raises ModelError if the folder is of no known family, cannot be read, or has tensors too few or too many.
        """
        import transformers

        config = _config(model_folder)
        family = FAMILIES[config["model_type"]]
        model_class = getattr(transformers, family.class_name)
        with _quiet():
            try:
                model, info = model_class.from_pretrained(
                    model_folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=dtype,
                    output_loading_info=True,
                    **family.options,
                )
            # transformers has no error of its own, and a wrong folder raises anything from KeyError to SafetensorError
            except Exception as error:  # noqa: BLE001
                if names := _misshapen(model_folder, model_class, family.options):
                    raise ModelError(
                        f"{model_folder.name}: the weights have another shape than config.json says: {', '.join(names)}"
                    ) from None
                raise ModelError(f"{model_folder.name} cannot be read: {_line(error)}") from None
            tokenizer = _tokenizer(tokenizer_folder or model_folder)
        _check_loaded(model_folder.name, info)
        if len(tokenizer) > model.config.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, {model_folder.name} only {model.config.vocab_size}"
            )
        depth = model.config.num_hidden_layers
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise ModelError(f"text_layer is {layer!r}: {model_folder.name} has layers 0 to {depth}")
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
        # CLIP's own output is normalised once more; its last hidden state as listed is not
        last = self.layer in (-1, len(output.hidden_states) - 1)
        states = output.last_hidden_state if last else output.hidden_states[self.layer]
        return Conditioning(text=states, text_mask=mask, pooled=pooled)


def _config(folder: Path) -> dict[str, Any]:
    name = f"{folder.name}/config.json"
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{name} must hold a JSON object")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(f"{name} is of type {kind!r}: mmgen knows {', '.join(FAMILIES)}")
    for key, value in config.items():
        most = MAX_LAYERS if "layers" in key else MAX_WIDTH
        if isinstance(value, int) and value > most and "position" not in key:
            raise ModelError(f"{name}: {key} is {value}, and at most {most:,} can be meant")
    return config


def _tokenizer(folder: Path) -> Any:
    import transformers

    # without this check the tokenizer's class would start with an empty vocabulary
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    ):
        raise ModelError(f"{folder.name} holds no tokenizer: it needs tokenizer.json or a vocabulary")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - as above; the tokenizers library raises bare Exception
        raise ModelError(f"{folder.name} cannot be read as a tokenizer: {_line(error)}") from None


def _misshapen(folder: Path, model_class: Any, options: Mapping[str, Any]) -> list[str]:
    """The first few tensors whose shape is not the config's: transformers names them on the screen alone."""
    try:
        with torch.device("meta"):
            expected = model_class(model_class.config_class.from_pretrained(folder), **options).state_dict()
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name in expected}  # noqa: SIM118
    except Exception:  # noqa: BLE001 - the caller has an error to raise already
        return []
    return [name for name, shape in sorted(shapes.items()) if list(expected[name].shape) != shape][:3]


def _check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """transformers draws missing tensors at random and says so in a log line: here it is an error."""
    spare = [key for key in info["unexpected_keys"] if not any(part in key for part in SPARE_TENSORS)]
    wrong = {
        "lack": info["missing_keys"],
        "have the wrong shape for": info["mismatched_keys"],
        "hold also": spare,
    }
    for what, keys in wrong.items():
        if keys:
            names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            raise ModelError(
                f"{name}: the weights {what} {', '.join(names[:3])}: they do not fit config.json"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its progress bar and its load reports."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
