"""From the name of a part to a running training: what each part needs, and where it takes it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmgen.errors import ModelError, UsageError
from mmgen.memory import choose_device, place
from mmgen.training.data import open_source
from mmgen.training.text_encoder import TEXT_LAYER
from mmgen.training.trainer import Budget, State, train

PARTS = ("dual-encoder", "prior", "decoder", "super-res")


def start(
    part: str,
    data: str,
    out: Path,
    budget: Budget,
    *,
    resume: bool = False,
    init: Path | None = None,
    text: Path | None = None,
    dual_encoder: Path | None = None,
    decoder: Path | None = None,
    seed: int = 0,
    batch: int | None = None,
    lr: float | None = None,
) -> State:
    """Train one part of the bundled model's shape.

    init: folder of a network to begin with (None: fresh weights). text: folder with text_encoder/ and tokenizer/ (None:
    the bundled model's). dual_encoder: a run's dual-encoder folder; the prior cannot do without. decoder: a run's
    decoder folder, whose pictures super-resolution learns to sharpen; text and dual_encoder are what it is told.
    Raises UsageError if something that the part needs is missing, or for an init to a run that is resumed; ModelError
    if init holds no sound network of the part's shape.
    """
    if part not in PARTS:
        raise UsageError(f"no part {part!r} to train: choose one of {', '.join(PARTS)}")
    if resume and init is not None:
        raise UsageError("a resumed run goes on with its own weights: give either --resume or --init")
    torch.manual_seed(seed)  # fresh weights are drawn from the global generator
    recipe = _recipe(part, data, init, text, dual_encoder, decoder, seed)
    if batch is not None:
        recipe.batch = batch
    if lr is not None:
        recipe.lr = lr
    return train(recipe, out, budget, seed=seed, resume=resume)


def _recipe(
    part: str,
    data: str,
    init: Path | None,
    text: Path | None,
    dual_encoder: Path | None,
    decoder: Path | None,
    seed: int,
) -> Any:
    from mmgen.training import recipes

    if part == "prior" and dual_encoder is None:
        raise UsageError(
            "the prior needs a dual encoder: give --dual-encoder RUN/dual-encoder; "
            "'mmgen train dual-encoder --data storybook --out RUN --minutes 10' makes it"
        )
    if part == "super-res" and decoder is None and (text or dual_encoder):
        raise UsageError("super-resolution reads no text: --text and --dual-encoder go with --decoder")
    source = open_source(data, seed)
    network = _network(part, init)
    if part == "super-res" and decoder is None:
        return recipes.SuperResRecipe(network, source)
    encoder = _text_encoder(text)
    if part == "dual-encoder":
        return recipes.DualEncoderRecipe(network, source, encoder)
    dual = None if dual_encoder is None else _dual_encoder(dual_encoder)
    if decoder is not None:
        from mmgen.training.degrade import Redraw

        return recipes.SuperResRecipe(network, source, Redraw(_decoder(decoder), encoder, dual))
    if part == "decoder":
        if init is None and dual is not None and dual.config.cells == network.config.image_cells:
            # it has learned already what the decoder would have to find out
            network.unfold.load_state_dict(dual.unfold.state_dict())
        return recipes.DecoderRecipe(network, source, encoder, dual)
    assert dual is not None
    return recipes.PriorRecipe(network, source, encoder, dual)


def _network(part: str, init: Path | None) -> Any:
    """In the bundled model's shape, with fresh weights or those of a folder, in float32 and ready to learn."""
    from mmgen.models import presets
    from mmgen.pipelines.loading import read_network

    fresh = {
        "dual-encoder": presets.dual_encoder_storybook,
        "prior": presets.prior_storybook,
        "decoder": presets.decoder_storybook,
        "super-res": presets.super_res_storybook,
    }[part]()
    if init is None:
        return fresh
    network = read_network(init, type(fresh))
    found, needed = (_sizes(one) for one in (network, fresh))
    if found != needed:
        name = next(n for n in needed if found[n] != needed[n])
        raise ModelError(f"{init.name} has {name} {found[name]}, the {part} has {needed[name]}")
    return nn.Module.to(network, dtype=torch.float32).train().requires_grad_(True)


def _sizes(network: Any) -> dict[str, Any]:
    """What a config says of a network's shape; lists as they come back from JSON."""
    return {
        name: list(v) if isinstance(v, tuple) else v for name, v in network.config.items() if name[0] != "_"
    }


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


def _decoder(folder: Path) -> Any:
    from mmgen.models import presets
    from mmgen.pipelines.loading import read_network

    return place(read_network(folder, type(presets.decoder_storybook())), choose_device(), torch.bfloat16)


def _dual_encoder(folder: Path) -> Any:
    from mmgen.models.dual_encoder import DualEncoder

    if not (folder / "config.json").is_file():
        raise UsageError(
            f"no dual encoder in {folder}: give the folder that 'mmgen train dual-encoder' wrote"
        )
    network = DualEncoder.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return place(network, choose_device(), torch.float32)
