"""Text and image embedding -> the small picture."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import nn

from mmgen.conditioning import Conditioning
from mmgen.errors import UsageError
from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.noise import Noise
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.forms import DECODER_TAKES
from mmgen.pipelines.prior_stage import PriorStage
from mmgen.pipelines.sampling import diffuse, guided_pair, resolved
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.samplers import Sampler, Step, invert
from mmgen.schedulers.schedules import FlowSchedule
from mmgen.types import StageSettings

INVERSION = "inversion"  # the name that its steps and its record carry


class DecoderStage:
    """A guided diffusion decoder in pixel space. A prompt that is "" says nothing: the network sees its null.

    uses_image_embed: whether it cannot draw without an image embedding. prior: what makes those that it is given
    besides; None: there are none. by: its sampler, where that has no name; settings then choose none.
    """

    name = "decoder"
    gives = frozenset({"image"})
    takes = DECODER_TAKES

    def __init__(
        self,
        network: ConditionedUNet,
        defaults: StageSettings,
        *,
        uses_image_embed: bool,
        prior: PriorStage | None = None,
        by: Sampler | None = None,
    ) -> None:
        self.network, self.defaults, self.prior, self._by = network, defaults, prior, by
        self.networks: tuple[nn.Module, ...] = (network,)
        if by is not None:
            self.takes = self.takes - {"sampler", "eta", "resample"}
            self.defaults = replace(defaults, sampler=None, eta=None, resample=None)
        self.uses_image_embed = uses_image_embed
        self.needs = frozenset({"text", "image_embed"} if uses_image_embed else {"text"})
        self.size: int | None = network.config.sample_size

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        cond, null = self._told(draft)
        denoise = make_denoiser(self.network, cond, null, settings, stage=self.name)
        size = self.network.config.sample_size
        x = noise.draw((3, size, size)) if draft.start is None else draft.start
        x = x.to(self.network.device)
        begin = None
        if draft.known is not None:
            known = draft.known.at(size)
            denoise, begin = known.keeping(denoise), (known.image.to(x), known.strength)
        for step in diffuse(denoise, x, settings, noise, stage=self.name, begin=begin, by=self._by):
            yield step
        return replace(draft, image=step.x.clamp(-1, 1))

    def invert(self, draft: Draft, settings: StageSettings) -> Generator[Step, None, Draft]:
        """The noise from which the sampler ddim, in as many steps and without guidance, draws `image`: as `start`.

        The last step, which ends on what the network makes of its input, is given the picture without any noise: what
        the network takes for noise in it does not come back. Raises UsageError for less than 2 steps.
        """
        steps = resolved(settings.steps, "steps", self.name)
        if steps < 2:
            raise UsageError(f"stage {self.name!r}: no picture comes back in {steps} step, take 2 or more")
        if draft.image is None:
            raise ValueError("an inversion needs an image")
        denoise = make_denoiser(self.network, self._told(draft)[0], None, settings, stage=self.name)
        schedule = FlowSchedule()
        times = schedule.times(steps)[:-1]
        x = (schedule.alpha(times[-1]) * draft.image).to(self.network.device)
        for step in invert(denoise, x, times, schedule):
            yield step._replace(stage=INVERSION)
        return replace(draft, start=step.x)

    def _told(self, draft: Draft) -> tuple[Conditioning, Conditioning]:
        """What the network is told, and what guidance leads away from."""
        if draft.text is None:
            raise ValueError("the decoder needs text")
        cond, null = guided_pair(draft.text, draft.negative)
        assert cond.drop_text is not None
        silent = torch.tensor([not prompt.strip() for prompt in draft.prompts], device=cond.drop_text.device)
        cond = replace(cond, drop_text=silent)
        if draft.image_embed is None or not (self.uses_image_embed or self.prior):
            return cond, null
        width = draft.image_embed.shape[-1]
        if width != self.network.config.image_dim:
            raise UsageError(
                f"stage {self.name!r} is told image embeddings of width {self.network.config.image_dim}, not {width}"
            )
        embed, dropped = draft.image_embed.to(self.network.dtype), torch.ones_like(silent)
        cond = replace(cond, image_embed=embed, drop_image=~dropped)
        return cond, replace(null, image_embed=embed, drop_image=dropped)
