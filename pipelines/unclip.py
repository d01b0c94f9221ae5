"""Drawing from image embeddings: variations, mixtures, interpolations and text diffs.

The text is left out: the decoder is told an embedding alone. A picture that is to come back is also turned into the
noise that it is drawn from. Source: Ramesh et al. 2022 (unCLIP, DALL-E 2), arXiv:2204.06125, section 3.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from mmgen.errors import UsageError
from mmgen.images import resize, to_pil, to_tensor
from mmgen.noise import Noise
from mmgen.pipelines.cascade import Cascade, complete
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.decoder_stage import INVERSION, DecoderStage
from mmgen.pipelines.families.storybook import no_image_embed
from mmgen.pipelines.stage import Draft, Stage, finish
from mmgen.schedulers.samplers import Step
from mmgen.types import Request, StageSettings

# Where nobody says: what brings a picture back from its noise.
THERE_AND_BACK = StageSettings(sampler="ddim", guidance_scale=1.0)
THERE_AND_BACK_VERBS = ("interpolate", "diff-text")


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """From a to b along the arc between their directions, its length changing evenly: from unit vectors, a unit vector.

    a, b: [B, ...], a vector in each row. fraction: 0 is a and 1 is b, to the last bit.
    Raises ValueError for different shapes, and for opposite directions or none, between which there is no one way.
    Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """
    if a.shape != b.shape:
        raise ValueError(f"no way from vectors {list(a.shape)} to {list(b.shape)}: give two of one width")
    if fraction in (0, 1):
        return b if fraction else a
    # float64, on the CPU because not every device has it
    u, v = (x.detach().cpu().double().flatten(1) for x in (a, b))
    long_u, long_v = (x.norm(dim=1, keepdim=True) for x in (u, v))
    u, v = u / long_u, v / long_v
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    if not bool((angle < torch.pi - 1e-6).all()):
        raise ValueError("no one way between vectors that are opposite or have no length")
    left = 1 - fraction
    # sin(f angle) / sin(angle), which for one direction twice is f and not 0 / 0
    share_u, share_v = (f * torch.sinc(f * angle / torch.pi) for f in (left, fraction))
    direction = (share_u * u + share_v * v) / torch.sinc(angle / torch.pi)
    return (direction * (left * long_u + fraction * long_v)).reshape(a.shape).to(a)


def mixed(embeds: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One embedding out of several, by `slerp` from each to the next, so that it stays on the sphere.

    embeds: each [B, E]. weights: one for each, not negative; one that is alone above 0 gives its embedding to the last
    bit. Raises ValueError if none is above 0.
    """
    point, total = None, 0.0
    for embed, weight in zip(embeds, weights, strict=True):
        if weight > 0:
            total += weight
            point = embed if point is None else slerp(point, embed, weight / total)
    if point is None:
        raise ValueError(f"weights {list(weights)}: at least one must be above 0")
    return point


def text_diff(image_embed: Tensor, before: Tensor, after: Tensor, amount: float) -> Tensor:
    """A picture's embedding turned towards what one text says and the other does not: unchanged where they are equal.

    image_embed: [B, E], unit norm. before, after: [B, E], the texts' embeddings. amount: 0 is the picture, 1 the change
    alone. Source: arXiv:2204.06125, section 3.3.
    """
    change = after - before
    length = change.norm(dim=1, keepdim=True)
    aim = torch.where(length > 0, change / length.clamp(min=1e-12), image_embed)
    return torch.where(length > 0, slerp(image_embed, aim, amount), image_embed)


class Part(NamedTuple):
    """What a picture or a text is for the decoder.

    embed: [1, E], unit norm. start: [1, 3, H, W], the noise that it is drawn from; None: the seed's own.
    """

    embed: Tensor
    start: Tensor | None = None


class Unclip:
    """A cascade that draws from image embeddings. name: the model's. Raises UsageError if it was not trained to."""

    def __init__(self, cascade: Cascade, name: str) -> None:
        decoder = next((stage for stage in cascade.stages if isinstance(stage, DecoderStage)), None)
        if decoder is None or decoder.prior is None:
            raise no_image_embed(name)
        self.cascade, self.decoder, self.prior = cascade, decoder, decoder.prior
        self.text = next(stage for stage in cascade.stages if "text" in stage.gives)

    def complete(self, request: Request) -> Request:
        """The request with every setting of every stage that runs; of the prior, only where a text needs it.

        Raises UsageError for a setting that a stage or its sampler ignores, and for a stage that does not run.
        """
        asked = dict(request.stages)
        of_prior = asked.pop(self.prior.name, None)
        if request.verb in THERE_AND_BACK_VERBS:
            of_decoder = asked.get(self.decoder.name, StageSettings())
            asked[self.decoder.name] = of_decoder.with_defaults(THERE_AND_BACK)
        stages = self.cascade.resolve(asked)
        stages.pop(self.prior.name, None)
        if request.verb != "diff-text" and any(request.prompts):
            stages[self.prior.name] = complete(self.prior, of_prior or StageSettings())
        elif of_prior is not None:
            raise UsageError(
                f"settings for stage {self.prior.name!r}, which does not run: it is for texts that are mixed"
            )
        return replace(request, stages=stages)

    def run(
        self, request: Request, pictures: Sequence[Image], batch_size: int, done: list[Image], clock: Clock
    ) -> Generator[Step, None, None]:
        """Draw a complete request. The steps are those of every stage and of inversions, see `rounds`.

        pictures: those that the request starts from, in RGB and in their order. done: takes what is drawn.
        """
        with self.cascade.residency:
            parts = yield from self._parts(request, pictures, clock)
            change = self._change(request, clock) if request.verb == "diff-text" else None
        singles = list(request.singles())
        for i in range(0, len(singles), batch_size):
            batch = singles[i : i + batch_size]
            aims = [_aim(single, parts[single.seeds[0]], change) for single in batch]
            starts = [aim.start for aim in aims if aim.start is not None]
            draft = Draft(
                ("",) * len(batch),
                image_embed=torch.cat([aim.embed for aim in aims]),
                start=torch.cat(starts) if starts else None,
            )
            seeds = [single.seeds[0] for single in batch]
            draft = yield from self.cascade.run(draft, request.stages, seeds, clock)
            assert draft.image is not None
            done += to_pil(draft.image)

    def rounds(self, request: Request) -> dict[str, int]:
        """How often the prior and an inversion run, each a round of steps for one text or one picture."""
        texts = 0 if request.verb == "diff-text" else sum(map(bool, request.prompts))
        comes_back = len(request.inputs) if request.verb in THERE_AND_BACK_VERBS else 0
        return {self.prior.name: texts * len(request.seeds), INVERSION: comes_back}

    def _parts(
        self, request: Request, pictures: Sequence[Image], clock: Clock
    ) -> Generator[Step, None, Mapping[int, list[Part]]]:
        """By seed, the pictures and texts that a picture is made of, in order."""
        seen = []
        for picture in pictures:
            seen.append((yield from self._picture(picture, request, clock)))
        if request.verb == "diff-text":
            return dict.fromkeys(request.seeds, seen)
        parts: dict[int, list[Part]] = {}
        for seed in request.seeds:
            shown, parts[seed] = iter(seen), []
            for text in request.prompts:
                part = (yield from self._text(text, seed, request, clock)) if text else next(shown)
                parts[seed].append(part)
        return parts

    def _picture(self, picture: Image, request: Request, clock: Clock) -> Generator[Step, None, Part]:
        """Its middle square as an embedding and, where it is to come back, as noise."""
        side, dual = self.decoder.network.config.sample_size, self.prior.dual
        pixels = to_tensor([resize(picture, (side, side))])
        self.cascade.residency.hold([dual])
        with torch.inference_mode():
            embed = dual.image_embed(pixels.to(dual.device, dual.dtype))
        if request.verb not in THERE_AND_BACK_VERBS:
            return Part(embed)
        draft = replace(self._encoded("", clock), image=pixels, image_embed=embed)
        run = self.decoder.invert(draft, request.stages[self.decoder.name])
        inverted = yield from self._turn(INVERSION, self.decoder, run, clock)
        return Part(embed, inverted.start)

    def _text(self, text: str, seed: int, request: Request, clock: Clock) -> Generator[Step, None, Part]:
        """The embedding that the prior draws for it; beside a picture that comes back, with the seed's noise."""
        draft, noise = self._encoded(text, clock), Noise((seed,), self.prior.name)
        run = self.prior.run(draft, request.stages[self.prior.name], noise)
        embed = (yield from self._turn(self.prior.name, self.prior, run, clock)).image_embed
        assert embed is not None
        if request.verb != "interpolate" or all(request.prompts):
            return Part(embed)
        side = self.decoder.network.config.sample_size
        start = Noise((seed,), self.decoder.name).draw((3, side, side))
        return Part(embed, start.to(embed.device))

    def _change(self, request: Request, clock: Clock) -> tuple[Tensor, Tensor]:
        """Both texts of a diff as the dual encoder sees them, each [1, E]."""
        drafts = [self._encoded(text, clock).text for text in request.prompts]
        self.cascade.residency.hold([self.prior.dual])
        with torch.inference_mode():
            before, after = (self.prior.dual.text_embed(cond) for cond in drafts if cond is not None)
        return before, after

    def _encoded(self, text: str, clock: Clock) -> Draft:
        run = self.text.run(Draft((text,)), StageSettings(), Noise((0,), self.text.name))
        return finish(self._turn(self.text.name, self.text, run, clock))

    def _turn(
        self, name: str, stage: Stage, run: Generator[Step, None, Draft], clock: Clock
    ) -> Generator[Step, None, Draft]:
        """What a stage makes in its turn. name: of its record."""
        return clock.watch(name, self.cascade.residency.turn(stage.networks, run))


def _aim(single: Request, parts: Sequence[Part], change: tuple[Tensor, Tensor] | None) -> Part:
    """What the one picture of a request is drawn from. change: of a text diff, the two texts' embeddings."""
    if change is not None:
        (seen,) = parts
        return Part(text_diff(seen.embed, *change, single.weights[0]), seen.start)
    if single.verb != "interpolate":
        return Part(mixed([part.embed for part in parts], single.weights or (1.0,)))
    (weight,), (a, b) = single.weights, parts
    embed = slerp(a.embed, b.embed, weight)
    if a.start is None or b.start is None:
        return Part(embed)
    return Part(embed, slerp(a.start, b.start, weight))
