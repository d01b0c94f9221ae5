"""The losses: what they weigh, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

from mmgen.training.losses import (
    CONTRAST,
    CONTRAST_FLOOR,
    MOST,
    ROUND,
    charbonnier,
    contrast_weight,
    velocity_loss,
)


def scene(contrast: float) -> tuple[Tensor, Tensor]:
    """A chequered square of this contrast on a plain ground, [1, 3, 32, 32], and its layout, [1, 1, 32, 32]."""
    x0 = torch.zeros(1, 3, 32, 32)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    x0[..., 10:22, 10:22] = contrast * (1.0 - 2.0 * ((rows + columns) % 2))
    layout = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    layout[..., 10:22, 10:22] = 3
    return x0, layout


def test_where_nothing_stands_every_pixel_counts_once() -> None:
    x0, layout = scene(0.5)
    weight = contrast_weight(x0, layout)
    assert weight.shape == (1, 1, 32, 32)
    assert torch.equal(weight[layout == 0], torch.ones(32 * 32 - 144))


def test_a_thing_weighs_what_the_inverse_of_its_contrast_says() -> None:
    for contrast in (0.9, 0.3, 0.1):
        x0, layout = scene(contrast)
        inside = contrast_weight(x0, layout)[..., 16, 16]
        # a window of 7 x 7 inside the chequers has the mean contrast / 49
        expected = CONTRAST / (contrast**2 * (1 - 49**-2) + CONTRAST_FLOOR)
        torch.testing.assert_close(inside, torch.full((1, 1), min(MOST, expected)), rtol=1e-4, atol=0)


def test_a_thing_that_cannot_be_seen_has_a_bounded_weight() -> None:
    x0, layout = scene(0.0)
    assert contrast_weight(x0, layout).max() == MOST


def test_the_loss_is_the_weighted_error_of_v() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, predicted = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    weight = torch.rand(2, 1, 8, 8, generator=generator)
    t = torch.tensor([0.5, 0.1])
    expected = torch.stack([
        (weight[i] * (predicted[i] - x0[i]).square()).mean() / scale**2 for i, scale in enumerate((0.5, 0.2))
    ])  # fmt: skip
    torch.testing.assert_close(velocity_loss(predicted, x0, t, weight), expected)
    torch.testing.assert_close(
        velocity_loss(predicted, x0, t, torch.ones_like(weight)), velocity_loss(predicted, x0, t)
    )


def test_an_error_counts_by_its_size_and_a_tiny_one_by_its_square() -> None:
    large = torch.tensor([-2.0, 0.5])
    torch.testing.assert_close(charbonnier(large), large.abs(), rtol=1e-3, atol=0)
    tiny = torch.tensor([1e-3, -2e-3])
    torch.testing.assert_close(charbonnier(tiny) - ROUND, tiny.square() / (2 * ROUND), rtol=2e-2, atol=1e-8)
