"""What super-resolution must make good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmgen.models import presets
from mmgen.models.text import TextEncoder
from mmgen.training import degrade
from mmgen.training.degrade import Redraw, blur


@pytest.fixture
def redraw(encoder: TextEncoder) -> Redraw:
    torch.manual_seed(0)
    return Redraw(presets.decoder_tiny().eval(), encoder, presets.dual_encoder_tiny().eval())


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_pictures_are_drawn_again_from_a_noisy_state_of_themselves(
    redraw: Redraw, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    run = redraw.stage.run

    def watched(draft, settings, noise):  # type: ignore[no-untyped-def]
        asked.append((draft.known.strength, draft.known.image, settings.guidance_scale))
        return run(draft, settings, noise)

    monkeypatch.setattr(redraw.stage, "run", watched)
    given, generator = images(), torch.Generator().manual_seed(2)
    drawn = [redraw(given, ["a cat", "a dog"], generator) for _ in range(8)]
    for one, (strength, image, guidance) in zip(drawn, asked, strict=True):
        assert one.shape == given.shape
        assert one.dtype == torch.float32
        assert one.abs().max() <= 1
        assert not one.requires_grad
        assert degrade.LEAST <= strength <= degrade.MOST
        assert torch.equal(image, given)
        assert guidance == 1
    assert len({strength for strength, _, _ in asked}) == 8
    again = redraw(given, ["a cat", "a dog"], torch.Generator().manual_seed(2))
    assert torch.equal(again, drawn[0])


def test_a_decoder_may_be_told_text_alone(encoder: TextEncoder) -> None:
    redraw = Redraw(presets.decoder_tiny().eval(), encoder, None)
    drawn = redraw(images(), ["a cat", "a dog"], torch.Generator().manual_seed(2))
    assert drawn.isfinite().all()


def test_a_blur_spreads_what_there_is() -> None:
    point = torch.zeros(1, 2, 15, 15)
    point[0, 0, 7, 7] = 1
    spread = blur(point, 0.8)
    assert spread.shape == point.shape
    assert not spread[0, 1].any()
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    at = torch.arange(15.0) - 7
    variance = (spread[0, 0].sum(0) * at.square()).sum()
    torch.testing.assert_close(variance, torch.tensor(0.64), rtol=0.02, atol=0)
    torch.testing.assert_close(spread[0, 0], spread[0, 0].mT)


@pytest.mark.parametrize("sigma", [0.0, -0.5])
def test_no_blur_changes_nothing(sigma: float) -> None:
    assert torch.equal(blur(images(), sigma), images())


def test_a_plain_picture_stays_as_it_is() -> None:
    torch.testing.assert_close(blur(torch.full((1, 3, 8, 8), 0.3), 1.0), torch.full((1, 3, 8, 8), 0.3))
