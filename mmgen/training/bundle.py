"""Join trained parts into a checkpoint folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from mmgen.errors import UsageError
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.loading import write_checkpoint
from mmgen.storybook.vocabulary import words
from mmgen.training.text_encoder import TEXT_LAYER


def bundle(
    out: Path,
    text: Path,
    networks: Mapping[str, Path],
    *,
    image_embed: str,
    card: Path | None = None,
) -> None:
    """Write the storybook checkpoint to `out`, replacing what is there.

    text: folder with text_encoder/ and tokenizer/. networks: component name -> the folder a training run wrote.
    image_embed: what the decoder knows of them, one of `families.IMAGE_EMBED`. card: the model card.
    Raises UsageError if a component is missing.
    """
    needed = set(FAMILIES["storybook"].components) - {"text_encoder"}
    if missing := sorted(needed - set(networks)):
        raise UsageError(f"no {missing[0]} to bundle: give the folder that 'mmgen train' wrote")
    fresh = out.with_name(out.name + "-new")
    shutil.rmtree(fresh, ignore_errors=True)
    for name, folder in {
        **networks,
        "text_encoder": text / "text_encoder",
        "tokenizer": text / "tokenizer",
    }.items():
        shutil.copytree(folder, fresh / name)
    if card is not None:
        shutil.copyfile(card, fresh / "README.md")
    options = {"text_layer": TEXT_LAYER, "image_embed": image_embed}
    write_checkpoint(fresh, name="storybook", family="storybook", options=options, words=words())
    before = out.with_name(out.name + "-old")
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        out.rename(before)
    fresh.rename(out)
    shutil.rmtree(before, ignore_errors=True)
