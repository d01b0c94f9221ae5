"""Which components and stages make which family of models: data, and one function per family that joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmgen.types import StageSettings

PRIOR = StageSettings(steps=8, sampler="ddim", guidance_scale=1.5, threshold="none")
DECODER = StageSettings(steps=16, sampler="ddim", guidance_scale=3.0, threshold=0.995, threshold_cap=1.5)
SUPER_RES = StageSettings(steps=2, sampler="ddim", threshold="clip", noise_level=0.05)


@dataclass(frozen=True)
class Family:
    """components: name -> (module, class) as model_index.json has them. join: components and index -> stages.

    optional: components a folder may lack.
    """

    components: Mapping[str, tuple[str, str]]
    join: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]
    optional: frozenset[str] = frozenset()


def _storybook(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior -> decoder -> one super-resolution network at two scales."""
    from mmgen.pipelines.decoder_stage import DecoderStage
    from mmgen.pipelines.prior_stage import PriorStage
    from mmgen.pipelines.super_res_stage import FACTOR, SuperResStage
    from mmgen.pipelines.text_stage import TextStage

    embeds = bool(index["decoder_sees_image_embed"])
    stages: list[Any] = [TextStage(parts["text_encoder"])]
    if embeds:
        stages.append(PriorStage(parts["prior"], parts["dual_encoder"], PRIOR))
    stages.append(DecoderStage(parts["decoder"], DECODER, uses_image_embed=embeds))
    size = parts["decoder"].config.sample_size
    for side in (FACTOR * size, FACTOR**2 * size):
        stages.append(SuperResStage(parts["super_res"], SUPER_RES, size=side))
    return stages


FAMILIES: Mapping[str, Family] = {
    "storybook": Family(
        components={
            "text_encoder": ("transformers", "BertModel"),
            "dual_encoder": ("mmgen.models.dual_encoder", "DualEncoder"),
            "prior": ("mmgen.models.prior", "DiffusionPrior"),
            "decoder": ("mmgen.models.efficient_unet", "EfficientUNet"),
            "super_res": ("mmgen.models.efficient_unet", "EfficientUNet"),
        },
        join=_storybook,
    )
}
