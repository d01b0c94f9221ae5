"""Text -> a picture or latents, by a published U-Net, and latents -> the picture, by the VAE that they belong to."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmgen import threshold
from mmgen.conditioning import Conditioning
from mmgen.errors import NonFiniteError, UsageError
from mmgen.noise import Noise
from mmgen.pipelines.adapters import TextUNet, unscaled
from mmgen.pipelines.denoiser import make_denoiser
from mmgen.pipelines.families import DECODER_TAKES, LATENT_TAKES, VAE_TAKES, enlargement
from mmgen.pipelines.sampling import diffuse, resolved
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.super_res_stage import MIN_SQUARE, OVERLAP, SQUARE
from mmgen.pipelines.tiling import Box, blended, squares
from mmgen.schedulers.prediction import PredictionKind
from mmgen.schedulers.samplers import Sampler, Step
from mmgen.schedulers.schedules import DiscreteSchedule
from mmgen.types import SAMPLERS, StageSettings


class UNetStage:
    """What the decoders that are published U-Nets share: a guided run of one.

    schedule, kind: what the network was trained on, and what it predicts.
    """

    name = "decoder"
    needs = frozenset({"text"})

    def __init__(
        self, network: Any, defaults: StageSettings, *, schedule: DiscreteSchedule, kind: PredictionKind
    ) -> None:
        self.network, self.defaults, self.schedule, self.kind = network, defaults, schedule, kind
        self.networks: tuple[nn.Module, ...] = (network,)

    def _steps(self, draft: Draft, settings: StageSettings, noise: Noise) -> Iterator[Step]:
        if draft.text is None or draft.negative is None:
            raise ValueError("the decoder needs text, and what guidance leads away from")
        if draft.known is not None:
            raise UsageError(
                f"stage {self.name!r} of this model cannot begin with a picture: choose another --model"
            )
        config = self.network.config
        x = noise.draw((config.in_channels, config.sample_size, config.sample_size))
        x, schedule, by = self._begun(x.to(self.network.device), settings)
        denoise = make_denoiser(
            TextUNet(self.network),
            Conditioning(text=draft.text.text),
            Conditioning(text=draft.negative.text),
            settings,
            stage=self.name,
            schedule=schedule,
            kind=self.kind,
        )
        yield from diffuse(denoise, x, settings, noise, stage=self.name, by=by, schedule=schedule)

    def _begun(self, x: Tensor, settings: StageSettings) -> tuple[Tensor, DiscreteSchedule, Sampler | None]:
        """What a run begins with, its schedule, and its sampler where that has levels of its own on these betas.

        Our samplers take noise of variance 1 for the first level, as latents with their noise have it; those of
        diffusers scale it themselves, and run from the last training step to the clean picture.
        """
        name = resolved(settings.sampler, "sampler", self.name)
        if name in SAMPLERS:
            return x, self.schedule, None
        from mmgen.schedulers.interop import foreign_sampler  # imports diffusers, which takes seconds

        whole = replace(self.schedule, spacing="trailing", final_alpha_one=True)
        return whole.sigma(whole.times(1)[0]) * x, whole, foreign_sampler(name, whole.betas)


class PixelStage(UNetStage):
    """A guided diffusion decoder of pictures themselves. Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487."""

    gives = frozenset({"image"})
    takes = DECODER_TAKES

    def __init__(
        self, network: Any, defaults: StageSettings, *, schedule: DiscreteSchedule, kind: PredictionKind
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.size: int | None = network.config.sample_size

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        for step in self._steps(draft, settings, noise):
            yield step
        return replace(draft, image=step.x.clamp(-1, 1))


class LatentStage(UNetStage):
    """A guided diffusion decoder in the space of a VAE. Source: Rombach et al. 2022, arXiv:2112.10752.

    colours: from latents to what is seen of them meanwhile, as `adapters.colours` gives it; None: nothing is.
    """

    gives = frozenset({"latent"})
    takes = LATENT_TAKES
    size: int | None = None

    def __init__(
        self,
        network: Any,
        defaults: StageSettings,
        *,
        schedule: DiscreteSchedule,
        kind: PredictionKind,
        colours: Tensor | None,
    ) -> None:
        super().__init__(network, defaults, schedule=schedule, kind=kind)
        self.colours = colours

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        for step in self._steps(draft, settings, noise):
            yield step._replace(x0=self._seen(step.x0))
        return replace(draft, latent=step.x)

    def _seen(self, latent: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1], or the latents themselves where no colours are known."""
        if self.colours is None:
            return latent
        weights, shift = self.colours.to(latent).split([latent.shape[1], 1])
        return (torch.einsum("bchw,cd->bdhw", latent, weights) + shift[0, :, None, None]).clamp(-1, 1)


class VaeStage:
    """Decodes latents, one picture after the other. size: side of the pictures. square: of the squares in which larger
    ones are decoded, in pixels, None: SQUARE."""

    name = "vae"
    needs = frozenset({"latent"})
    gives = frozenset({"image"})
    takes = VAE_TAKES
    defaults = StageSettings()

    def __init__(self, network: Any, *, size: int, square: int | None = None) -> None:
        self.network, self._square = network, square
        self.networks: tuple[nn.Module, ...] = (network,)
        self.size: int | None = size

    @property
    def square(self) -> int:
        """Of the squares in which it decodes, in pixels."""
        return SQUARE if self._square is None else self._square

    def smaller(self) -> VaeStage | None:
        """The same stage in less memory: in squares of half the side; None: they would be too small."""
        assert self.size is not None
        square = min(self.square, self.size) // 2
        return None if square < MIN_SQUARE else VaeStage(self.network, size=self.size, square=square)

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        if draft.latent is None:
            raise ValueError("a VAE needs latents")
        latent = unscaled(draft.latent, self.network.config).to(self.network.dtype)
        try:
            image = threshold.static_clip(torch.cat([self._decoded(one) for one in latent.split(1)]))
        except NonFiniteError as error:
            raise NonFiniteError(f"stage {self.name!r}: {error}") from None
        yield Step(self.name, 1, 1, 0.0, image, image)
        return replace(draft, image=image)

    @torch.no_grad()
    def _decoded(self, latent: Tensor) -> Tensor:
        """[1, C, h, w] -> [1, 3, H, W], float32, square by square where it is large."""
        scale = enlargement(self.network.config)
        height, width = latent.shape[-2:]
        boxes = squares(height, width, self.square // scale, OVERLAP // scale)
        seen = iter(boxes)

        def draw(_box: Box) -> Tensor:
            image: Tensor = self.network.decode(latent[(..., *next(seen))], return_dict=False)[0]
            return image.float()

        pixels = [(_times(rows, scale), _times(columns, scale)) for rows, columns in boxes]
        like = latent.new_empty((1, 3, scale * height, scale * width), dtype=torch.float32)
        return blended(draw, pixels, like)


def _times(part: slice, scale: int) -> slice:
    return slice(scale * part.start, scale * part.stop)
