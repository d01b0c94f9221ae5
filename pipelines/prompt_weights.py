r"""Weights in prompts: (a word:1.2), (a word)++, word-- and the like, as people write them for CLIP's encoders.

Each + is 1.1 times as much, each - 0.9 times. They are not nested, and one sign alone, (brackets) without a number and
numbers above 5 are text, as in (16:9); a backslash makes text of ( ) + and -. What a weight does to the token states is
what the library compel does: more leads away from those of the empty prompt, less towards them, and towards those of
the prompt without the words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from mmgen.errors import UsageError
from mmgen.models.text import TextEncoder

MORE, LESS = 1.1, 0.9
MOST = 5.0
_TEXT = r"(?:\\.|[^()\\])"
_SYNTAX = re.compile(
    r"\\(?P<plain>[()+-])"
    rf"|\((?P<given>{_TEXT}+?):\s*(?P<number>\d+(?:\.\d*)?|\.\d+)\)"
    rf"|\((?P<signed>{_TEXT}+)\)(?P<signs>\+{{2,}}|-{{2,}})"
    r"|(?<!\S)(?P<word>[^\s()\\+-]+(?:[+-][^\s()\\+-]+)*)(?P<own>\+{2,}|-{2,})(?![^\s,.;:!?)])"
)
_ESCAPED = re.compile(r"\\([()+-])")


class Piece(NamedTuple):
    """Words of a prompt, and how much they weigh: 1 as they are, 0 as if they were not there."""

    text: str
    weight: float = 1.0


def pieces(prompt: str) -> tuple[Piece, ...]:
    """A prompt in pieces of one weight each, without the signs that say it; neighbours differ in weight."""
    found: list[Piece] = []
    end = 0
    for match in _SYNTAX.finditer(prompt):
        piece = _piece(match)
        _add(found, Piece(prompt[end : match.start()]))
        _add(found, Piece(match[0]) if piece is None else piece)
        end = match.end()
    _add(found, Piece(prompt[end:]))
    return tuple(found)


def plain(prompt: str) -> str:
    """What a prompt says without its weights."""
    return "".join(piece.text for piece in pieces(prompt))


def weighed(encoder: TextEncoder, prompts: Sequence[str], states: Tensor) -> Tensor:
    """Token states [B, L, D] as the weights of their prompts have it; those of prompts without weights are as before.

    encoder: a CLIP, which has read all L tokens of the prompts' plain texts. Raises UsageError if a prompt has weights
    and compel is not installed, and for states of a layer that compel does not read.
    """
    rows = [
        _row(encoder, found, len(before)) if any(piece.weight != 1 for piece in found) else before
        for found, before in zip(map(pieces, prompts), states, strict=True)
    ]
    return torch.stack(rows)


@torch.no_grad()
def _row(encoder: TextEncoder, found: Sequence[Piece], length: int) -> Tensor:
    if find_spec("compel") is None:
        heavy = next(piece for piece in found if piece.weight != 1)
        raise UsageError(
            f"the prompt gives {heavy.text!r} the weight {heavy.weight:g}, and weights need compel, which is not "
            "installed: pip install 'mmgen[weights]', or write a backslash before the signs that are text"
        )
    from compel import EmbeddingsProvider, ReturnedEmbeddingsType

    kinds = {
        -1: ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED,
        -2: ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
    }
    if encoder.layer not in kinds:
        raise UsageError(
            f"this model reads layer {encoder.layer} of its text encoder: weights are for the last two"
        )
    provider = EmbeddingsProvider(
        encoder.tokenizer,
        encoder.model,
        dtype_for_device_getter=lambda _device: encoder.model.dtype,
        returned_embeddings_type=kinds[encoder.layer],
        model_max_length=length,
    )
    texts, weights = zip(*((piece.text, piece.weight) for piece in found if piece.text.strip()), strict=True)
    row: Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [list(texts)], [list(weights)], device=encoder.model.device
    )[0]
    return row


def _piece(match: re.Match[str]) -> Piece | None:
    """What a match stands for; None where it is text after all."""
    if match["plain"] is not None:
        return Piece(match["plain"])
    if match["number"] is not None:
        text, weight = match["given"], float(match["number"])
    else:
        text, signs = match["signed"] or match["word"], match["signs"] or match["own"]
        weight = (MORE if signs[0] == "+" else LESS) ** len(signs)
    if weight > MOST or not text.strip():
        return None
    return Piece(_ESCAPED.sub(r"\1", text), weight)


def _add(found: list[Piece], piece: Piece) -> None:
    """Put a piece behind the others, or into the last one if it weighs as much."""
    if found and found[-1].weight == piece.weight:
        found[-1] = Piece(found[-1].text + piece.text, piece.weight)
    elif piece.text:
        found.append(piece)
