"""Which components and stages make which family of models: data, and one function per family that joins them.

What a stage takes, and how its settings are completed, is known here without torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmgen.pipelines.families import (
    deepfloyd,
    kandinsky,
    karlo,
    sdxl,
    stable_cascade,
    stable_diffusion,
    stable_unclip,
    storybook,
    whole,
    x4_upscaler,
)
from mmgen.pipelines.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "storybook": storybook.FAMILY,
    "stable-diffusion": stable_diffusion.FAMILY,
    "sdxl": sdxl.FAMILY,
    "sdxl-refiner": sdxl.REFINER,
    "if": deepfloyd.FAMILY,
    "if-super-res": deepfloyd.SUPER_RES,
    "x4-upscaler": x4_upscaler.FAMILY,
    "kandinsky-2.1": kandinsky.FAMILY_2_1,
    "kandinsky-2.2": kandinsky.FAMILY,
    "kandinsky-prior": kandinsky.PRIOR_FAMILY,
    "karlo": karlo.FAMILY,
    "stable-unclip": stable_unclip.FAMILY,
    "stable-cascade": stable_cascade.FAMILY,
    "stable-cascade-prior": stable_cascade.PRIOR_FAMILY,
    **whole.FAMILIES,
}
PUBLISHED: Mapping[str, str] = {
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl-refiner",
    "IFPipeline": "if",
    "IFSuperResolutionPipeline": "if-super-res",
    "StableDiffusionUpscalePipeline": "x4-upscaler",
    "KandinskyPipeline": "kandinsky-2.1",
    "KandinskyPriorPipeline": "kandinsky-prior",
    "KandinskyV22Pipeline": "kandinsky-2.2",
    "KandinskyV22PriorPipeline": "kandinsky-prior",
    "UnCLIPPipeline": "karlo",
    "StableCascadeDecoderPipeline": "stable-cascade",
    "StableCascadePriorPipeline": "stable-cascade-prior",
    "StableUnCLIPPipeline": "stable-unclip",
    "StableUnCLIPImg2ImgPipeline": "stable-unclip",  # the same decoder, without a prior
    **whole.PUBLISHED,
}
"""The class that the index of a folder of diffusers names -> its family."""
