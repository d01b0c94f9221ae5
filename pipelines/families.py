"""Which components and stages make which family of models: data, and one function per family that joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmgen.types import StageSettings

PRIOR = StageSettings(steps=8, sampler="ddim", guidance_scale=1.5)
DECODER = StageSettings(steps=32, sampler="ddpm", guidance_scale=2.0, threshold=0.995, threshold_cap=1.5)
SUPER_RES = StageSettings(steps=2, sampler="ddim", threshold="clip", noise_level=0.05)


FACTOR = 4  # of a super-resolution stage: its picture's side in that of the picture before
STORYBOOK_SCALES = (1, FACTOR, FACTOR**2)

Kind = tuple[str, str]
"""(module, class), as model_index.json has it."""
EITHER_UNET: tuple[Kind, ...] = (
    ("mmgen.models.efficient_unet", "EfficientUNet"),
    ("mmgen.models.unet", "UNet"),
)


@dataclass(frozen=True)
class Family:
    """components: name -> what it may be. join: components and index -> stages.

    It raises ValueError if they do not fit each other. scales: sides of the pictures it draws, in those of its decoder.
    """

    components: Mapping[str, tuple[Kind, ...]]
    join: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]
    scales: tuple[int, ...]


def _storybook(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior -> decoder -> one super-resolution network at two scales."""
    from mmgen.pipelines.decoder_stage import DecoderStage
    from mmgen.pipelines.prior_stage import PriorStage
    from mmgen.pipelines.super_res_stage import SuperResStage
    from mmgen.pipelines.text_stage import TextStage

    embeds = index.get("decoder_sees_image_embed")
    if not isinstance(embeds, bool):
        raise ValueError(f"decoder_sees_image_embed is {embeds!r} in the index: it must be true or false")
    _check_widths(parts)
    stages: list[Any] = [TextStage(parts["text_encoder"])]
    if embeds:
        stages.append(PriorStage(parts["prior"], parts["dual_encoder"], PRIOR))
    stages.append(DecoderStage(parts["decoder"], DECODER, uses_image_embed=embeds))
    size = parts["decoder"].config.sample_size
    for scale in STORYBOOK_SCALES[1:]:
        stages.append(SuperResStage(parts["super_res"], SUPER_RES, size=scale * size))
    return stages


def _check_widths(parts: Mapping[str, Any]) -> None:
    text, image = parts["text_encoder"].width, parts["dual_encoder"].config.embed_dim
    for part, name, width in (
        ("dual_encoder", "text_dim", text),
        ("prior", "text_dim", text),
        ("prior", "pooled_dim", text),
        ("prior", "embed_dim", image),
        ("decoder", "text_dim", text),
        ("decoder", "pooled_dim", text),
        ("decoder", "image_dim", image),
    ):
        found = getattr(parts[part].config, name)
        if found != width:
            raise ValueError(f"{part} has {name} {found}, but the encoder before it gives {width}")


FAMILIES: Mapping[str, Family] = {
    "storybook": Family(
        components={
            "text_encoder": (("transformers", "BertModel"),),
            "dual_encoder": (("mmgen.models.dual_encoder", "DualEncoder"),),
            "prior": (("mmgen.models.prior", "DiffusionPrior"),),
            "decoder": EITHER_UNET,
            "super_res": EITHER_UNET,
        },
        join=_storybook,
        scales=STORYBOOK_SCALES,
    )
}
