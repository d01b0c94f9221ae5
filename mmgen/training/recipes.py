"""The recipes: for each network its data, its loss and what its progress sheet shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmgen.conditioning import Conditioning
from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.prior import DiffusionPrior
from mmgen.models.text import TextEncoder
from mmgen.nn.blocks import Unfold
from mmgen.pipelines.super_res_stage import FACTOR, enlarge
from mmgen.training.data import Batch, Order, Source, StorybookSource
from mmgen.training.degrade import Redraw, blur
from mmgen.training.layout import (
    EMBED_WEIGHT,
    LESSON_CELLS,
    PRIOR_WEIGHT,
    WEIGHT,
    LayoutHead,
    MapHead,
    output_of,
)  # fmt: skip
from mmgen.training.losses import (
    by_noise_level,
    charbonnier,
    contrast_weight,
    contrastive_loss,
    sample_times,
    velocity_loss,
)  # fmt: skip

if TYPE_CHECKING:
    from mmgen.evaluation.judge import Judge

SMALL_UNTIL = 0.33  # of the budget: until here half-size pictures, a quarter of the cost
DROP_BOTH, DROP_IMAGE, DROP_TEXT = 0.1, 0.05, 0.1
# At most, as a share of the embedding's own length: a prior's embeddings are never quite those of pictures.
EMBED_NOISE = 0.3
LEVELS = 4  # of noise for each text that the prior reads
# More makes it smooth out whatever differs little from the ground.
MAX_NOISE_LEVEL = 0.15
# Pixels of the small picture; Gaussian, as unCLIP's first upsampler learns it, arXiv:2204.06125, 2.2.
MAX_BLUR = 1.0
REDRAWN = 0.75  # of the whole pictures that super-resolution learns from
SMALL_WEIGHT = 2.0  # of the error that is left when a picture is averaged down again
MAX_LOG_SCALE = 4.6  # a factor of 100, as in CLIP


class DecoderRecipe:
    """Text and image embedding -> picture. Without a dual encoder the image embedding is always null.

    Where the source knows its layouts, the network's lowest features are taught to tell them.
    batch: pictures at full size; at half size there are twice as many.
    """

    part = "decoder"

    def __init__(
        self,
        network: ConditionedUNet,
        source: Source,
        text: TextEncoder,
        dual: DualEncoder | None = None,
        *,
        lr: float = 1e-3,
        batch: int = 64,
    ) -> None:
        self.network, self.source, self.text, self.dual = network, source, text, dual
        self.lr, self.batch = lr, batch
        self.judge: Judge | None = None
        sizes = source.layout_sizes
        self.head = LayoutHead(network.config.channels[-1], sizes) if sizes else None

    def order(self, index: int, progress: float) -> Order:
        full = self.network.config.sample_size
        if progress < SMALL_UNTIL:
            return Order(index, 2 * self.batch, full // 2)
        return Order(index, self.batch, full)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0 = drawn.tensor(generator.device)
        words = self.text.encode(drawn.captions)
        cond = self._condition(x0, words, generator)
        t = sample_times(order.count, generator, x0.device, mean=0.8, std=1.3)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        at = t[:, None, None, None]
        with output_of(self.network.middle) as lowest:
            x0_pred = self.network((1 - at) * x0 + at * eps, t, self.network.prepare(cond))
        if self.head is None:
            losses = velocity_loss(x0_pred, x0, t)
            return losses.mean(), by_noise_level(losses.detach(), t)
        assert drawn.layout is not None
        truth = torch.from_numpy(drawn.layout).to(x0.device)
        losses = velocity_loss(x0_pred, x0, t, contrast_weight(x0, truth))
        figures = by_noise_level(losses.detach(), t)
        layout, right = self.head(lowest[0], truth)
        figures |= {"layout": layout.mean().item(), "layout_right": right.item()}
        return losses.mean() + WEIGHT * layout.mean(), figures

    def _condition(self, x0: Tensor, words: Conditioning, generator: torch.Generator) -> Conditioning:
        """What the network is told of the pictures, some of it dropped. words: of their captions."""
        draw = torch.rand(len(x0), generator=generator, device=x0.device)
        text = image = draw < DROP_BOTH
        embed = None
        if self.dual is not None:
            embed = self._embed(x0, generator)
            text = text | (draw > 1 - DROP_TEXT)
            image = draw < DROP_BOTH + DROP_IMAGE
        return Conditioning(
            text=words.text, text_mask=words.text_mask, pooled=words.pooled,
            image_embed=embed, drop_text=text, drop_image=image,
        )  # fmt: skip

    @torch.no_grad()
    def _embed(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        assert self.dual is not None
        embed = self.dual.image_embed(x0)
        level = EMBED_NOISE * torch.rand(len(x0), 1, generator=generator, device=x0.device)
        noise = torch.randn(embed.shape, generator=generator, device=x0.device) * embed.shape[1] ** -0.5
        return torch.nn.functional.normalize(embed + level * noise, dim=1)

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        from mmgen.training.sheets import decoder_sheet, quick_score

        decoder_sheet(network, self.text, path)
        if not isinstance(self.source, StorybookSource):
            return {}
        self.judge = self.judge or self.source.judge()
        return quick_score(network, self.text, self.judge)


class SuperResRecipe:
    """Low resolution -> what is missing, at both scales of the cascade by turns.

    The larger scale on crops. The smaller scale, with a model at hand, on whole pictures of as many pixels in all, most
    of them drawn again by its decoder: what comes out of a decoder is softer than any small picture of the source.
    """

    part = "super-res"
    head = None

    def __init__(
        self,
        network: ConditionedUNet,
        source: Source,
        redraw: Redraw | None = None,
        *,
        lr: float = 1e-3,
        batch: int = 24,
        crop: int = 128,
    ) -> None:
        self.network, self.source, self.redraw = network, source, redraw
        self.lr, self.batch, self.crop = lr, batch, crop

    def order(self, index: int, progress: float) -> Order:
        if index % 3 == 2:
            return Order(index, self.batch, self.crop, source_size=256)
        if self.redraw is None:
            return Order(index, self.batch, self.crop, source_size=64)
        size = FACTOR * self.redraw.size
        return Order(index, max(1, self.batch * self.crop**2 // size**2), size)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, device = drawn.tensor(generator.device), generator.device
        source_size = order.px // FACTOR if order.source_size is None else order.source_size
        low = shrink(x0)
        if self.redraw is not None and order.source_size is None:
            again = torch.rand(order.count, generator=generator, device=device) < REDRAWN
            low = torch.where(again[:, None, None, None], self.redraw(low, drawn.captions, generator), low)
        else:
            # half of the batches as they are
            low = blur(low, MAX_BLUR * float(torch.rand((), generator=generator, device=device) * 2 - 1))
        level = torch.rand(order.count, generator=generator, device=device) * MAX_NOISE_LEVEL
        noise = torch.randn(low.shape, generator=generator, device=device)
        low_res = enlarge(low + level[:, None, None, None] * noise)
        t = sample_times(order.count, generator, device, mean=2.0, std=1.2)
        residual = (x0 - low_res) / self.network.config.residual_scale
        eps = torch.randn(x0.shape, generator=generator, device=device)
        at = t[:, None, None, None]
        sizes = torch.full((order.count,), float(source_size), device=device)
        cond = Conditioning(low_res=low_res, noise_level=level, source_size=sizes)
        predicted = self.network((1 - at) * residual + at * eps, t, self.network.prepare(cond))
        # on x0, not on v: the residual is small and one step from pure noise is how the network is mostly used
        wrong = predicted.float() - residual
        weight = torch.ones_like(x0[:, :1])
        if drawn.layout is not None:
            weight = contrast_weight(x0, torch.from_numpy(drawn.layout).to(device)).sqrt()
        losses = (charbonnier(wrong) * weight).flatten(1).mean(1)
        # and on the small picture: what is wrong there is seen more than an edge that is not quite sharp
        small = (charbonnier(shrink(wrong)) * shrink(weight)).flatten(1).mean(1)
        losses = losses + SMALL_WEIGHT * small
        figures = by_noise_level(losses.detach(), t)
        return losses.mean(), figures | {
            f"loss_{source_size}": losses.mean().item(),
            "small": small.mean().item(),
        }

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        from mmgen.training.sheets import super_res_sheet

        super_res_sheet(network, self.source, path)
        return {}


def shrink(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H / 4, W / 4], means."""
    return torch.nn.functional.avg_pool2d(images, FACTOR)


class DualEncoderRecipe:
    """Pictures and their captions drawn together, others pushed apart.

    Besides, the image embedding must tell by itself what stands where, so that a decoder can follow it.
    """

    part = "dual-encoder"

    def __init__(
        self, network: DualEncoder, source: Source, text: TextEncoder, *, lr: float = 2e-3, batch: int = 128
    ) -> None:
        self.network, self.source, self.text = network, source, text
        self.lr, self.batch = lr, batch
        self.head = MapHead(Unfold.FEATURES, source.layout_sizes) if network.config.cells else None

    def order(self, index: int, progress: float) -> Order:
        return Order(index, self.batch, self.network.config.image_size)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pixels, device = drawn.tensor(generator.device), generator.device
        # pictures from a network are never quite clean: the tower must not mind a little noise
        noise = torch.randn(pixels.shape, generator=generator, device=device)
        strength = 0.1 * torch.rand(order.count, 1, 1, 1, generator=generator, device=device)
        image, text = self.network(pixels + strength * noise, self.text.encode(drawn.captions))
        accuracy = (image @ text.T).argmax(1) == torch.arange(order.count, device=image.device)
        loss = contrastive_loss(image, text, self.network.log_scale.clamp(max=MAX_LOG_SCALE))
        figures = {"contrastive": loss.item(), "accuracy": accuracy.float().mean().item()}
        if self.head is None:
            return loss, figures
        layout = None if drawn.layout is None else torch.from_numpy(drawn.layout).to(device)
        told, of_map = self.head(self.network.unfold(image), pixels, layout)
        return loss + EMBED_WEIGHT * told.mean(), figures | of_map

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        """Nothing to draw: the accuracy in the log says it."""
        return {}


class PriorRecipe:
    """Text -> the image embedding of its picture, at several noise levels for each text.

    Besides, what the trunk predicts must tell at once what will stand where.
    """

    part = "prior"

    def __init__(
        self,
        network: DiffusionPrior,
        source: Source,
        text: TextEncoder,
        dual: DualEncoder,
        *,
        lr: float = 2e-3,
        batch: int = 64,
    ) -> None:
        self.network, self.source, self.text, self.dual = network, source, text, dual
        self.lr, self.batch = lr, batch
        self.head = nn.ModuleDict(
            {
                "unfold": Unfold(network.config.width, LESSON_CELLS),
                "read": MapHead(Unfold.FEATURES, source.layout_sizes),
            }
        )

    def order(self, index: int, progress: float) -> Order:
        return Order(index, self.batch, self.dual.config.image_size)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = generator.device
        pixels = drawn.tensor(device)
        with torch.no_grad():
            embed = self.dual.image_embed(pixels)
        words = self.text.encode(drawn.captions)
        drop = torch.rand(order.count, generator=generator, device=device) < DROP_BOTH
        cond = Conditioning(text=words.text, text_mask=words.text_mask, pooled=words.pooled, drop_text=drop)
        x0 = (embed * embed.shape[1] ** 0.5).repeat_interleave(LEVELS, 0)
        t = sample_times(len(x0), generator, device, mean=1.0, std=1.4)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        prepared = self.network.prepare(cond).repeat(LEVELS)
        with output_of(self.network.norm) as state:
            x0_pred = self.network((1 - t[:, None]) * x0 + t[:, None] * eps, t, prepared)
        losses = velocity_loss(x0_pred, x0, t)
        fit = torch.nn.functional.cosine_similarity(x0_pred.detach().float(), x0, dim=1)
        figures = {"cosine": fit.mean().item(), **by_noise_level(losses.detach(), t)}
        layout = None
        if drawn.layout is not None:
            layout = torch.from_numpy(drawn.layout).to(device).repeat_interleave(LEVELS, 0)
        cells = self.head["unfold"](torch.nn.functional.normalize(state[0], dim=1))
        told, of_map = self.head["read"](cells, pixels.repeat_interleave(LEVELS, 0), layout)
        return losses.mean() + PRIOR_WEIGHT * told.mean(), figures | of_map

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        """Nothing to draw: the cosine in the log says it."""
        return {}
