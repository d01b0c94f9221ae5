"""Stable Cascade: text -> a small map of latents -> larger latents, told that map -> the picture."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given
from mmgen.errors import UsageError
from mmgen.noise import Noise
from mmgen.pipelines.adapters import Face, fitted_colours
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.families.stable_cascade import TAKES, pixels_of
from mmgen.pipelines.sampling import diffuse, resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.unet_stage import seen_of, told_texts
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import Denoise, Sampler, Step
from mmgen.schedulers.steps import Level, ddpm, level
from mmgen.types import SAMPLERS, StageSettings

FLOOR = 1e-4  # alpha^2 of the noisiest level: below it there would be nothing to divide by
TRAIN_STEPS = 1000  # of the schedulers of diffusers, which know none but even ones


@dataclass(frozen=True)
class WuerstchenSchedule:
    """alpha^2 = cos^2(a) / cos^2(b), at least FLOOR, with a from b at t = 0 to pi / 2 at 1. t in [0, 1].

    offset: b is pi / 2 times offset / (1 + offset). scaler: above 1 it hastens to the noise, below to the picture.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17, as Pernias et al. 2023 (Wuerstchen),
    arXiv:2306.00637, run it.
    """

    scaler: float = 1.0
    offset: float = 0.008

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha^2, so that it is 0 at t = 0 and not a rounding error
        first, angle = self._first, self._angle(t)
        noise = torch.sin(angle - first) * torch.sin(angle + first) / math.cos(first) ** 2
        return noise.clamp(0, 1 - FLOOR).sqrt()

    def times(self, steps: int) -> Tensor:
        if steps < 1:
            raise ValueError(f"steps is {steps}: at least one is needed")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def betas(self) -> list[float]:
        """Of TRAIN_STEPS steps to the noisiest level, even in t."""
        noisiest = math.acos(math.sqrt(FLOOR) * math.cos(self._first)) / (math.pi / 2)
        last = noisiest * (1 + self.offset) - self.offset
        last = 1 - (1 - last) ** (1 / self.scaler) if self.scaler > 1 else last ** (1 / self.scaler)
        kept = self._alpha_bar(last * self.times(TRAIN_STEPS).flip(0))
        return list((1 - kept[1:] / kept[:-1]).tolist())

    @property
    def _first(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    def _angle(self, t: Tensor) -> Tensor:
        t = t.double()
        bent = 1 - (1 - t) ** self.scaler if self.scaler > 1 else t**self.scaler
        return math.pi / 2 * (bent + self.offset) / (1 + self.offset)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        return (torch.cos(self._angle(t)) / math.cos(self._first)).square().clamp(FLOOR, 1)


class PriorUNet(Face):
    """A `StableCascadeUNet` that is told texts, and zeros for the picture that it could be told, too."""

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """The token states [B, L, D], the pooled vectors [B, 1, P], and zeros [B, 1, E]."""
        text, pooled = (given(getattr(cond, name), name).to(self.dtype) for name in ("text", "pooled"))
        return text, pooled[:, None], text.new_zeros(len(text), 1, self.network.config.clip_image_in_channels)

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: [B], of a `WuerstchenSchedule`."""
        text, pooled, image = told
        out: Tensor = self.network(
            x_t,
            t.to(self.dtype),
            clip_text_pooled=pooled,
            clip_text=text,
            clip_img=image,
            return_dict=False,
        )[0]
        return out


class MapUNet(Face):
    """A `StableCascadeUNet` that is told the pooled vector of a text, and a map of latents."""

    def prepare(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """The pooled vectors [B, 1, P], and the map [B, E, h, w]."""
        pooled, shown = (
            given(getattr(cond, name), name).to(self.dtype) for name in ("pooled", "image_embed")
        )
        return pooled[:, None], shown

    def __call__(self, x_t: Tensor, t: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """What it predicts, [B, C, h, w]. t: as of a `PriorUNet`."""
        pooled, shown = told
        out: Tensor = self.network(
            x_t, t.to(self.dtype), clip_text_pooled=pooled, effnet=shown, return_dict=False
        )[0]
        return out


class CascadeStage:
    """What both networks share: a guided run from noise. side: of what they draw.

    Source: Pernias et al. 2023 (Wuerstchen), arXiv:2306.00637.
    """

    name: str
    takes = TAKES
    size: int | None = None

    def __init__(
        self, network: Any, defaults: StageSettings, *, schedule: WuerstchenSchedule, side: int
    ) -> None:
        self.network, self.defaults, self.schedule, self.side = network, defaults, schedule, side
        self.networks: tuple[nn.Module, ...] = (network,)

    def _steps(
        self,
        face: Face,
        told: tuple[Conditioning, Conditioning],
        draft: Draft,
        settings: StageSettings,
        noise: Noise,
    ) -> Iterator[Step]:
        """told: what is asked for, and what guidance leads away from."""
        if draft.known is not None:
            raise UsageError(
                f"stage {self.name!r} of this model cannot begin with a picture: choose another --model"
            )
        x = noise.draw((self.network.config.in_channels, self.side, self.side)).to(self.network.device)
        denoise = make_denoiser(face, *told, settings, stage=self.name, schedule=self.schedule, kind="eps")
        name = resolved(settings.sampler, "sampler", self.name)
        by: Sampler | None = None
        if name not in SAMPLERS:
            from mmgen.schedulers.interop import foreign_sampler  # imports diffusers, which takes seconds

            by = foreign_sampler(name, self.schedule.betas())
        elif name == "ddpm":
            denoise = nearly_clean(denoise, self.schedule)
        yield from diffuse(denoise, x, settings, noise, stage=self.name, by=by, schedule=self.schedule)


def nearly_clean(denoise: Denoise, schedule: WuerstchenSchedule) -> Denoise:
    """As the published loop ends: its last step leads to what x would be, on average, a little before the picture."""
    end = Level(*torch.tensor([1 - FLOOR, FLOOR], dtype=torch.float64).sqrt())

    def ended(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
        found = denoise(x_t, t, s)
        if s > 0:
            return found
        none = torch.zeros((), dtype=torch.float64)
        return found._replace(x0=ddpm(x_t, found.x0, x_t, level(schedule, t), end, variance=none))

    return ended


class CascadePriorStage(CascadeStage):
    """Draws `Draft.image_embed`, a map [B, E, h, w] that says what is where, from texts."""

    name = "prior"
    needs = frozenset({"text"})
    gives = frozenset({"image_embed"})

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        for step in self._steps(PriorUNet(self.network), told_texts(draft), draft, settings, noise):
            yield step
        return replace(draft, image_embed=step.x)


class CascadeDecoderStage(CascadeStage):
    """Draws the latents of a picture, told such a map and the pooled text; guidance leads away from a map of zeros.

    colours: as of a `LatentStage`.
    """

    name = "decoder"
    needs = frozenset({"text", "image_embed"})
    gives = frozenset({"latent"})

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: WuerstchenSchedule,
        side: int,
        colours: Tensor | None,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, side=side)
        self.colours = colours

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        text, negative = told_texts(draft)
        shown = given(draft.image_embed, "image_embed")
        told = Conditioning(pooled=text.pooled, image_embed=shown)
        away = Conditioning(pooled=negative.pooled, image_embed=torch.zeros_like(shown))
        for step in self._steps(MapUNet(self.network), (told, away), draft, settings, noise):
            yield step._replace(x0=seen_of(step.x0, self.colours))
        return replace(draft, latent=step.x)


class PaellaStage(VaeStage):
    """Decodes the latents of a `PaellaVQModel`, one picture after the other: as they were drawn, without its codebook.

    Source: Rampas et al. 2022 (Paella), arXiv:2211.07292.
    """

    def _scale(self) -> int:
        return pixels_of(self.network.config)

    def _units(self, latent: Tensor) -> Tensor:
        return latent * self.network.config.scale_factor

    def _pixels(self, latent: Tensor) -> Tensor:
        image: Tensor = self.network.decode(latent, return_dict=False)[0]
        return 2 * image - 1


def paella_colours(vqgan: Any) -> Tensor | None:
    """The map that `adapters.colours` gives, of a `PaellaVQModel`."""
    scale = vqgan.config.scale_factor

    def encode(shown: Tensor) -> Tensor:
        latent: Tensor = vqgan.encode((shown + 1) / 2).latents.float() / scale
        return latent

    return fitted_colours(vqgan, encode, pixels_of(vqgan.config))
