"""Frozen text encoders through transformers: CLIP, T5 and BERT types, from any folder in its layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmgen.component import (
    UNSAFE,
    check_inside,
    numbers,
    read_json,
    refuse_foreign,
    shown,
    shown_names,
    weight_files,
)
from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError, told

MAX_LAYERS = 1000
MAX_WIDTH = 2**24
MAX_VOCABULARY = 50_000_000  # bytes, of each file of a tokenizer
WEIGHTS = {".safetensors", ".onnx", ".ot", *UNSAFE}  # may lie beside a tokenizer, which reads none of them
# Of tokenizers, whose files transformers reads; others it reads by other libraries, or by programs.
TOKENIZERS = ("BertTokenizer", "CLIPTokenizer", "T5Tokenizer", "PreTrainedTokenizer", "TokenizersBackend")
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
        cls,
        model_folder: Path,
        tokenizer_folder: Path | None = None,
        *,
        layer: int = -1,
        dtype: torch.dtype,
        projected: bool = False,
    ) -> TextEncoder:
        """Read an encoder from disk; nothing is fetched.

        projected: of a CLIP, with the projection that makes its pooled vector one of text and pictures alike.
        Raises ModelError if the folder is of no known family, cannot be read, or has tensors too few or too many.
        """
        import transformers

        values = _config(model_folder)
        family = FAMILIES["clip" if projected else values["model_type"]]
        model_class = getattr(transformers, family.class_name)
        headers = weight_files(model_folder)
        held = {name: entry["shape"] for header in headers.values() for name, entry in header.items()}
        with _quiet():
            try:
                config = _known(values, model_class.config_class)
                with torch.device("meta"):
                    _check_shapes(model_folder.name, model_class(config, **family.options), held)
                # not the folder, of which transformers would read more than has been looked at
                model, info = model_class.from_pretrained(
                    None,
                    config=config,
                    state_dict={name: value for file in headers for name, value in load_file(file).items()},
                    dtype=dtype,
                    local_files_only=True,
                    output_loading_info=True,
                    **family.options,
                )
            except ModelError:
                raise
            # transformers has no error of its own, and a wrong folder raises anything from KeyError to SafetensorError
            except Exception as error:  # noqa: BLE001
                raise ModelError(f"{model_folder.name} cannot be read: {told(error)}") from None
            tokenizer = _tokenizer(tokenizer_folder or model_folder)
        _check_loaded(model_folder.name, info)
        if len(tokenizer) > model.config.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, {model_folder.name} only {model.config.vocab_size}"
            )
        depth = model.config.num_hidden_layers
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise ModelError(f"text_layer is {shown(layer)}: {model_folder.name} has layers 0 to {depth}")
        return cls(model, tokenizer, layer=layer)

    @property
    def width(self) -> int:
        """D, of a token state."""
        config = self.model.config
        return int(config.d_model if config.model_type == "t5" else config.hidden_size)

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
        output = self.model(input_ids=tokens["input_ids"], attention_mask=attended, output_hidden_states=True)
        mask = attended.bool()
        pooled = self._pool(output.last_hidden_state, mask, output)
        # CLIP's own output is normalised once more; its last hidden state as listed is not
        last = self.layer in (-1, len(output.hidden_states) - 1)
        states = output.last_hidden_state if last else output.hidden_states[self.layer]
        return Conditioning(text=states, text_mask=mask, pooled=pooled)


def _config(folder: Path) -> dict[str, Any]:
    name = f"{folder.name}/config.json"
    config = read_json(folder / "config.json")
    refuse_foreign(config, name)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(f"{name} is of type {shown(kind)}: mmgen knows {', '.join(FAMILIES)}")
    for key, value in numbers(config):
        most = MAX_LAYERS if "layers" in key else MAX_WIDTH
        if isinstance(value, int) and value > most and "position" not in key:
            raise ModelError(f"{name}: {key} is {shown(value)}, and at most {most:,} can be meant")
    return config


def _known(values: Mapping[str, Any], config_class: Any) -> Any:
    """The configuration of a model, from what its class has by itself.

    Others would be taken too, and some of them name kernels to be fetched and run, or files to be read.
    """
    values = values.get(config_class.base_config_key, values)
    known = config_class().to_dict()
    return config_class(**{name: value for name, value in values.items() if name in known})


def _check_shapes(name: str, model: Any, held: Mapping[str, list[int]]) -> None:
    """Raise ModelError, before a tensor is read, where the weights are not those of a model on the meta device.

    held: the shapes of their tensors. Names that differ are told apart by transformers, which knows old ones.
    """
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    if wrong := [key for key in shapes if key in held and held[key] != shapes[key]]:
        raise ModelError(
            f"{name}: the weights have another shape than config.json says: {shown_names(wrong)}"
        )
    needed, there = sum(p.numel() for p in model.parameters()), sum(map(math.prod, held.values()))
    # twice, for what is missing is named later, and tied parameters may be counted twice
    if needed > 2 * there:
        raise ModelError(f"{name}/config.json is of {needed:,} parameters, and the weights hold {there:,}")


def _tokenizer(folder: Path) -> Any:
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
            names = shown_names(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            raise ModelError(f"{name}: the weights {what} {names}: they do not fit config.json")


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
