"""Which components and stages make which family of models: data, and one function per family that joins them.

What a stage takes, and how its settings are completed, is known here without torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmgen.pipelines.families import deepfloyd, stable_diffusion, storybook
from mmgen.pipelines.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "storybook": storybook.FAMILY,
    "stable-diffusion": stable_diffusion.FAMILY,
    "if": deepfloyd.FAMILY,
}
PUBLISHED: Mapping[str, str] = {"StableDiffusionPipeline": "stable-diffusion", "IFPipeline": "if"}
"""The class that the index of a folder of diffusers names -> its family."""
