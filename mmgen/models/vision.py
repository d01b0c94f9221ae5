"""The frozen image encoder of CLIP through transformers, from any folder in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgen.models.pretrained import read_config, read_model

TYPES = ("clip_vision_model",)
SPARE_TENSORS = ("position_ids",)  # computed; older files hold them


def read_vision(folder: Path, dtype: torch.dtype, *, outlined: bool = False) -> Any:
    """The `CLIPVisionModelWithProjection` of a folder, frozen; nothing is fetched.

    outlined: on the meta device, and no tensor is read.
    Raises ModelError if the folder is of another type, cannot be read, or has tensors too few or too many.
    """
    from transformers import CLIPVisionModelWithProjection

    model = read_model(
        folder,
        read_config(folder, TYPES),
        CLIPVisionModelWithProjection,
        dtype=dtype,
        spare=SPARE_TENSORS,
        outlined=outlined,
    )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def zero_embed(encoder: Any) -> Tensor:
    """[1, E], what the encoder makes of a picture of zeros, which is a grey one: an embedding that says nothing."""
    config = encoder.config
    side = config.image_size
    shown = torch.zeros(1, config.num_channels, side, side, device=encoder.device, dtype=encoder.dtype)
    embed: Tensor = encoder(shown).image_embeds
    return embed
