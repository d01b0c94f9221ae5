"""What a network is told, as named tensor fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Everything a network may be conditioned on; None where it is told nothing.

    text: [B, L, D] token states. text_mask: [B, L] bool, True where there is a token. pooled: [B, P].
    image_embed: [B, E], of unit norm, or as CLIP gives it; or a map [B, E, h, w].
    low_res: [B, 3, H, W] in [-1, 1], of the target size.
    noise_level: [B] in [0, 1]. source_size: [B], side in pixels of the picture that low_res was enlarged from.
    guidance: [B], the weight a distilled network is told (None: not distilled).
    score: [B], how well the picture is said to please, 1 to 10.
    drop_text, drop_image: [B] bool, True where the network sees its learned null instead (guidance, training).
    """

    text: Tensor | None = None
    text_mask: Tensor | None = None
    pooled: Tensor | None = None
    image_embed: Tensor | None = None
    low_res: Tensor | None = None
    noise_level: Tensor | None = None
    source_size: Tensor | None = None
    guidance: Tensor | None = None
    score: Tensor | None = None
    drop_text: Tensor | None = None
    drop_image: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same fields with `change` applied to each tensor that is there."""
        given = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return Conditioning(**{name: None if value is None else change(value) for name, value in given})

    def __getitem__(self, rows: slice) -> Conditioning:
        return self.map(lambda value: value[rows])


def concat(parts: list[Conditioning]) -> Conditioning:
    """One batch from several; every part must have the same fields. Raises ValueError otherwise."""
    fields: dict[str, Tensor | None] = {}
    for f in dataclasses.fields(Conditioning):
        values = [getattr(part, f.name) for part in parts]
        if any(v is None for v in values) and not all(v is None for v in values):
            raise ValueError(f"conditioning field {f.name!r} is in some of the parts only")
        fields[f.name] = None if values[0] is None else torch.cat(values)
    return Conditioning(**fields)


def given(value: Tensor | None, name: str) -> Tensor:
    """`value`, or ValueError if the conditioning does not have it."""
    if value is None:
        raise ValueError(f"the network needs {name}, but the conditioning does not have it")
    return value


def with_null_text(cond: Conditioning, null: Tensor) -> tuple[Tensor, Tensor]:
    """Text states [B, L, D] and mask [B, L], with `null` [D] as the only token of the rows in `drop_text`."""
    text, mask = given(cond.text, "text"), given(cond.text_mask, "text_mask")
    if cond.drop_text is None:
        return text, mask
    first = torch.zeros_like(mask)
    first[:, 0] = True
    text = torch.where(cond.drop_text[:, None, None], null.to(text.dtype), text)
    return text, torch.where(cond.drop_text[:, None], first, mask)
