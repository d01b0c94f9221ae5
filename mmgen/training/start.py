"""From the name of a part to a running training: what each part needs, and where it takes it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmgen.errors import UsageError
from mmgen.memory import choose_device, place
from mmgen.training.data import open_source
from mmgen.training.trainer import Budget, State, train

PARTS = ("dual-encoder", "prior", "decoder", "super-res")
TEXT_LAYER = 3  # a linear probe reads a noun's own colour at 1.00 there, at 0.97 in the last layer


def start(
    part: str,
    data: str,
    out: Path,
    budget: Budget,
    *,
    resume: bool = False,
    text: Path | None = None,
    dual_encoder: Path | None = None,
    seed: int = 0,
    batch: int | None = None,
    lr: float | None = None,
) -> State:
    """Train one part of the bundled model's shape.

    text: folder with text_encoder/ and tokenizer/ (None: the bundled model's). dual_encoder: a run's dual-encoder
    folder; the prior cannot do without. Raises UsageError if something that the part needs is missing.
    """
    if part not in PARTS:
        raise UsageError(f"no part {part!r} to train: choose one of {', '.join(PARTS)}")
    torch.manual_seed(seed)  # fresh weights are drawn from the global generator
    recipe = _recipe(part, data, text, dual_encoder, seed)
    if batch is not None:
        recipe.batch = batch
    if lr is not None:
        recipe.lr = lr
    return train(recipe, out, budget, seed=seed, resume=resume)


def _recipe(part: str, data: str, text: Path | None, dual_encoder: Path | None, seed: int) -> Any:
    from mmgen.models import presets
    from mmgen.training import recipes

    if part == "prior" and dual_encoder is None:
        raise UsageError(
            "the prior needs a dual encoder: give --dual-encoder RUN/dual-encoder; "
            "'mmgen train dual-encoder --data storybook --out RUN --minutes 10' makes it"
        )
    source = open_source(data, seed)
    if part == "super-res":
        return recipes.SuperResRecipe(presets.super_res_storybook(), source)
    encoder = _text_encoder(text)
    if part == "dual-encoder":
        return recipes.DualEncoderRecipe(presets.dual_encoder_storybook(), source, encoder)
    dual = None if dual_encoder is None else _dual_encoder(dual_encoder)
    if part == "decoder":
        return recipes.DecoderRecipe(presets.decoder_storybook(), source, encoder, dual)
    assert dual is not None
    return recipes.PriorRecipe(presets.prior_storybook(), source, encoder, dual)


def _text_encoder(folder: Path | None) -> Any:
    from mmgen.models.text import TextEncoder

    folder = folder or Path(__file__).parent.parent / "weights" / "storybook"
    if not (folder / "text_encoder" / "config.json").is_file():
        raise UsageError(
            f"no text encoder in {folder.name}: give --text FOLDER with text_encoder/ and tokenizer/"
        )
    encoder = TextEncoder.load(
        folder / "text_encoder", folder / "tokenizer", layer=TEXT_LAYER, dtype=torch.bfloat16
    )
    place(encoder.model, choose_device(), torch.bfloat16)
    return encoder


def _dual_encoder(folder: Path) -> Any:
    from mmgen.models.dual_encoder import DualEncoder

    if not (folder / "config.json").is_file():
        raise UsageError(
            f"no dual encoder in {folder}: give the folder that 'mmgen train dual-encoder' wrote"
        )
    network = DualEncoder.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return place(network, choose_device(), torch.float32)
