"""Text and image embedding -> the small picture."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch

from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.sampling import diffuse, guided_pair
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Step
from mmgen.types import StageSettings


class DecoderStage:
    """A guided diffusion decoder in pixel space."""

    name = "decoder"
    gives = frozenset({"image"})
    takes = frozenset({
        "steps", "sampler", "eta", "guidance_scale", "guidance_interval", "guidance_rescale", "guidance_parallel",
        "guidance_limit", "threshold", "threshold_cap",
    })  # fmt: skip

    def __init__(self, network: ConditionedUNet, defaults: StageSettings, *, uses_image_embed: bool) -> None:
        self.network, self.defaults = network, defaults
        self.uses_image_embed = uses_image_embed
        self.needs = frozenset({"text", "image_embed"} if uses_image_embed else {"text"})
        self.size: int | None = network.config.sample_size

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.text is None:
            raise ValueError("the decoder needs text")
        cond, null = guided_pair(draft.text, draft.negative)
        if self.uses_image_embed and draft.image_embed is not None:
            kept = cond.drop_text
            assert kept is not None
            embed = draft.image_embed.to(self.network.dtype)
            cond = replace(cond, image_embed=embed, drop_image=kept)
            null = replace(null, image_embed=embed, drop_image=torch.ones_like(kept))
        denoise = make_denoiser(self.network, cond, null, settings, stage=self.name)
        size = self.network.config.sample_size
        x = noise.draw((3, size, size)).to(self.network.device)
        begin = None
        if draft.known is not None:
            known = draft.known.at(size)
            denoise, begin = known.keeping(denoise), (known.image.to(x), known.strength)
        for step in diffuse(denoise, x, settings, noise, stage=self.name, begin=begin):
            yield step
        return replace(draft, image=step.x.clamp(-1, 1))
