"""The recipes: for each network its data, its loss and what its progress sheet shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, given
from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.prior import DiffusionPrior
from mmgen.models.text import TextEncoder
from mmgen.pipelines.super_res_stage import FACTOR, enlarge
from mmgen.training.data import Batch, Order, Source, StorybookSource
from mmgen.training.layout import TEXT_WEIGHT, WEIGHT, LayoutHead, TextLayoutHead, output_of
from mmgen.training.losses import by_noise_level, contrastive_loss, sample_times, velocity_loss

if TYPE_CHECKING:
    from mmgen.evaluation.judge import Judge

SMALL_UNTIL = 0.33  # of the budget: until here half-size pictures, a quarter of the cost
TEXTS = 1  # captions without a picture for each one with: cheap, and who stands where is learned from them
DROP_BOTH, DROP_IMAGE, DROP_TEXT = 0.1, 0.4, 0.1
MAX_NOISE_LEVEL = 0.4
MAX_LOG_SCALE = 4.6  # a factor of 100, as in CLIP


class DecoderRecipe:
    """Text and image embedding -> picture. Without a dual encoder the image embedding is always null.

    Where the source knows its layouts, the network's lowest features and its words are taught to tell them.
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
        self.head: nn.ModuleDict | None = None
        if sizes := source.layout_sizes:
            self.head = nn.ModuleDict(
                {
                    "features": LayoutHead(network.config.channels[-1], sizes),
                    "words": TextLayoutHead(network.config.text_width, sizes),
                }
            )

    def order(self, index: int, progress: float) -> Order:
        full = self.network.config.sample_size
        texts = 0 if self.head is None else TEXTS * self.batch
        if progress < SMALL_UNTIL:
            return Order(index, 2 * self.batch, full // 2, texts=texts)
        return Order(index, self.batch, full, texts=texts)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0 = drawn.tensor(generator.device)
        words = self.text.encode(drawn.captions)
        cond = self._condition(x0, words, generator)
        # large flat things show through the noise up to 0.95: only above must the text say what stands where
        t = sample_times(order.count, generator, x0.device, mean=2.5, std=2.0)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        at = t[:, None, None, None]
        with output_of(self.network.middle) as lowest:
            x0_pred = self.network((1 - at) * x0 + at * eps, t, self.network.prepare(cond))
        losses = velocity_loss(x0_pred, x0, t)
        figures = by_noise_level(losses.detach(), t)
        if self.head is None:
            return losses.mean(), figures
        assert drawn.layout is not None
        told = torch.from_numpy(drawn.layout).to(x0.device)
        layout, right = self.head["features"](lowest[0], told[: order.count])
        text = self._by_words(words, told)
        figures |= {"layout": layout.mean().item(), "layout_right": right.item(), "layout_text": text.item()}
        return losses.mean() + WEIGHT * layout.mean() + TEXT_WEIGHT * text, figures

    def _by_words(self, words: Conditioning, told: Tensor) -> Tensor:
        """What the adapted words get wrong of what stands where, 0-dim."""
        assert self.head is not None
        assert words.text is not None
        assert words.text_mask is not None
        by_kind = self.head["words"](self.network.text(words.text, words.text_mask), words.text_mask, told)
        return by_kind.sum() / max(1, len(by_kind))  # pictures may show nothing

    def _condition(self, x0: Tensor, words: Conditioning, generator: torch.Generator) -> Conditioning:
        """What the network is told of the pictures; words: theirs, and then those of texts without one."""
        count = len(x0)
        draw = torch.rand(count, generator=generator, device=x0.device)
        both = draw < DROP_BOTH
        text = both | (draw > 1 - DROP_TEXT)
        if self.dual is None:
            image, embed = None, None
            text = both
        else:
            image, embed = both | ((draw >= DROP_BOTH) & (draw < DROP_BOTH + DROP_IMAGE)), self._embed(x0)
        return Conditioning(
            text=given(words.text, "text")[:count], text_mask=given(words.text_mask, "text_mask")[:count],
            pooled=given(words.pooled, "pooled")[:count],
            image_embed=embed, drop_text=text, drop_image=image,
        )  # fmt: skip

    @torch.no_grad()
    def _embed(self, x0: Tensor) -> Tensor:
        assert self.dual is not None
        return self.dual.image_embed(x0)

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        from mmgen.training.sheets import decoder_sheet, quick_score

        decoder_sheet(network, self.text, path)
        if not isinstance(self.source, StorybookSource):
            return {}
        self.judge = self.judge or self.source.judge()
        return quick_score(network, self.text, self.judge)


class SuperResRecipe:
    """Low resolution -> what is missing, on crops, at both scales of the cascade by turns."""

    part = "super-res"
    head = None

    def __init__(
        self, network: ConditionedUNet, source: Source, *, lr: float = 1e-3, batch: int = 24, crop: int = 128
    ) -> None:
        self.network, self.source = network, source
        self.lr, self.batch, self.crop = lr, batch, crop

    def order(self, index: int, progress: float) -> Order:
        return Order(index, self.batch, self.crop, source_size=64 if index % 2 == 0 else 256)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, device, source_size = drawn.tensor(generator.device), generator.device, order.source_size
        assert source_size is not None
        level = torch.rand(order.count, generator=generator, device=device) * MAX_NOISE_LEVEL
        low = torch.nn.functional.avg_pool2d(x0, FACTOR)
        noise = torch.randn(low.shape, generator=generator, device=device)
        at = level[:, None, None, None]
        low_res = enlarge(low + at * noise)
        t = sample_times(order.count, generator, device, mean=0.8, std=1.2)
        residual = (x0 - low_res) / self.network.config.residual_scale
        eps = torch.randn(x0.shape, generator=generator, device=device)
        at = t[:, None, None, None]
        sizes = torch.full((order.count,), float(source_size), device=device)
        cond = Conditioning(low_res=low_res, noise_level=level, source_size=sizes)
        predicted = self.network((1 - at) * residual + at * eps, t, self.network.prepare(cond))
        # on x0, not on v: the residual is small and one step from pure noise is how the network is mostly used
        losses = (predicted.float() - residual).square().flatten(1).mean(1)
        return losses.mean(), by_noise_level(losses.detach(), t)

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        from mmgen.training.sheets import super_res_sheet

        super_res_sheet(network, self.source, path)
        return {}


class DualEncoderRecipe:
    """Pictures and their captions drawn together, others pushed apart."""

    part = "dual-encoder"
    head = None

    def __init__(
        self, network: DualEncoder, source: Source, text: TextEncoder, *, lr: float = 1e-3, batch: int = 128
    ) -> None:
        self.network, self.source, self.text = network, source, text
        self.lr, self.batch = lr, batch

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
        return loss, {"accuracy": accuracy.float().mean().item()}

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        """Nothing to draw: the accuracy in the log says it."""
        return {}


class PriorRecipe:
    """Text -> the image embedding of its picture."""

    part = "prior"
    head = None

    def __init__(
        self,
        network: DiffusionPrior,
        source: Source,
        text: TextEncoder,
        dual: DualEncoder,
        *,
        lr: float = 1e-3,
        batch: int = 128,
    ) -> None:
        self.network, self.source, self.text, self.dual = network, source, text, dual
        self.lr, self.batch = lr, batch

    def order(self, index: int, progress: float) -> Order:
        return Order(index, self.batch, self.dual.config.image_size)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = generator.device
        with torch.no_grad():
            embed = self.dual.image_embed(drawn.tensor(device))
        x0 = embed * embed.shape[1] ** 0.5
        words = self.text.encode(drawn.captions)
        drop = torch.rand(order.count, generator=generator, device=device) < DROP_BOTH
        cond = Conditioning(text=words.text, text_mask=words.text_mask, pooled=words.pooled, drop_text=drop)
        t = sample_times(order.count, generator, device)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        x0_pred = self.network((1 - t[:, None]) * x0 + t[:, None] * eps, t, self.network.prepare(cond))
        losses = velocity_loss(x0_pred, x0, t)
        fit = torch.nn.functional.cosine_similarity(x0_pred.detach().float(), x0, dim=1)
        return losses.mean(), {"cosine": fit.mean().item(), **by_noise_level(losses.detach(), t)}

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        """Nothing to draw: the cosine in the log says it."""
        return {}
