"""Presets: which widths and depths make a network. Each is a function; the figures beside it are measured."""

from __future__ import annotations

from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.efficient_unet import EfficientUNet
from mmgen.models.prior import DiffusionPrior
from mmgen.models.unet import UNet

STORYBOOK_TEXT = 384  # all-MiniLM-L6-v2's width
STORYBOOK_IMAGE = 256


def decoder_tiny() -> EfficientUNet:
    """For tests: 16 px, text of width 32, image embeddings of width 16."""
    return EfficientUNet(
        sample_size=16,
        stem=2,
        channels=(16, 32),
        blocks=(1, 1),
        attention=(False, True),
        vector_dim=32,
        text_dim=32,
        pooled_dim=32,
        text_width=32,
        text_layers=1,
        image_dim=16,
        image_cells=4,
    )


def decoder_storybook() -> EfficientUNet:
    """The bundled decoder at 64 px: 17 M parameters, 3.2 GFLOP per evaluation."""
    return EfficientUNet(
        sample_size=64,
        stem=4,
        channels=(192, 288),
        blocks=(3, 4),
        attention=(False, True),
        head_dim=32,
        vector_dim=384,
        text_dim=STORYBOOK_TEXT,
        pooled_dim=STORYBOOK_TEXT,
        text_width=256,
        text_layers=2,
        image_dim=STORYBOOK_IMAGE,
        image_cells=8,
    )


def unet_tiny() -> UNet:
    """For tests: told what `decoder_tiny` is told, and stands in its place."""
    return UNet(
        sample_size=16,
        channels=(16, 32),
        blocks=(1, 1),
        attention=(False, True),
        head_dim=16,
        vector_dim=32,
        text_dim=32,
        pooled_dim=32,
        text_width=32,
        text_layers=1,
        image_dim=16,
        image_cells=4,
    )


def super_res_tiny() -> EfficientUNet:
    """For tests: a few thousand parameters, works at any multiple of 8 px."""
    return EfficientUNet(
        sample_size=64,
        stem=4,
        channels=(16, 16),
        blocks=(1, 1),
        attention=(False, False),
        vector_dim=16,
        low_res=True,
        residual_scale=0.25,
    )


def super_res_storybook() -> EfficientUNet:
    """The bundled super-resolution network, used from 64 to 256 px and from 256 to 1024 px: 4 M parameters."""
    return EfficientUNet(
        sample_size=256,
        stem=4,
        channels=(64, 128, 160),
        blocks=(4, 3, 2),
        attention=(False, False, False),
        vector_dim=128,
        low_res=True,
        residual_scale=0.25,
    )


def dual_encoder_tiny() -> DualEncoder:
    """For tests: text of width 32, embeddings of width 16."""
    return DualEncoder(
        image_size=16,
        stem=2,
        channels=(16, 16),
        blocks=(1, 1),
        text_dim=32,
        text_width=32,
        embed_dim=16,
        cells=4,
    )


def dual_encoder_storybook() -> DualEncoder:
    """The bundled dual encoder."""
    return DualEncoder(text_dim=STORYBOOK_TEXT, embed_dim=STORYBOOK_IMAGE, cells=8)


def prior_tiny() -> DiffusionPrior:
    """For tests: text and pooled of width 32, embeddings of width 16."""
    return DiffusionPrior(embed_dim=16, text_dim=32, pooled_dim=32, width=32, layers=1, heads=2)


def prior_storybook() -> DiffusionPrior:
    """The bundled prior."""
    return DiffusionPrior(
        embed_dim=STORYBOOK_IMAGE, text_dim=STORYBOOK_TEXT, pooled_dim=STORYBOOK_TEXT, layers=6
    )
