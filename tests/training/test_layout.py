"""The lesson of layouts: what it asks, and that it reaches the network but not what is kept of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmgen.models import presets
from mmgen.models.text import TextEncoder
from mmgen.training import trainer
from mmgen.training.data import Batch, Order
from mmgen.training.layout import LayoutHead, MapHead, output_of
from mmgen.training.recipes import DecoderRecipe, DualEncoderRecipe, PriorRecipe
from mmgen.training.trainer import Budget, train


class Told:
    """Pictures that are red on one side and green on the other, and say where."""

    layout_sizes = (3, 2)

    def draw(self, order: Order) -> Batch:
        rng = np.random.default_rng(order.index)
        pixels = np.zeros((order.count, 3, order.px, order.px), np.uint8)
        layout = np.zeros((order.count, 2, 32, 32), np.uint8)
        captions = []
        for i in range(order.count):
            left = int(rng.integers(2))
            half = order.px // 2
            pixels[i, left, :, :half], pixels[i, 1 - left, :, half:] = 255, 255
            layout[i, 0, :, :16], layout[i, 0, :, 16:] = 1 + left, 2 - left
            layout[i, 1, :, :16] = 1
            captions.append(("red", "green")[left])
        return Batch(pixels, captions, layout)


def head(scores: torch.Tensor, sizes: tuple[int, ...]) -> LayoutHead:
    """One that says the same everywhere."""
    made = LayoutHead(4, sizes)
    with torch.no_grad():
        made.read.weight.zero_()
        made.read.bias.copy_(scores)
    return made


def test_every_property_of_every_cell_is_asked() -> None:
    made = head(torch.tensor([0.0, math.log(3), 0.0, 0.0, 0.0]), (3, 2))
    layout = torch.zeros(1, 2, 32, 32, dtype=torch.uint8)
    layout[:, 0, :16, :16], layout[:, 1, :16, :16] = 1, 1
    loss, right = made(torch.randn(1, 4, 4, 4), layout)
    # one cell in four holds something: its kind has the probability 3/5, the others' "nothing" 1/5
    expected = -(0.25 * math.log(3 / 5) + 0.75 * math.log(1 / 5)) + math.log(2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert right == 0  # of two equal scores the first is taken: no colour
    assert head(torch.tensor([0.0, 1, 0, 0, 1]), (3, 2))(torch.randn(1, 4, 4, 4), layout)[1] == 1


def test_a_cell_is_what_lies_in_its_middle() -> None:
    made = LayoutHead(2, (3,))
    with torch.no_grad():
        made.read.weight.copy_(9 * torch.tensor([[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]])[..., None, None])
        made.read.bias.zero_()
    layout = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    layout[..., 11:] = 2  # the middles of four cells lie at 4, 12, 20 and 28
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0, :, :1], features[:, 1, :, 1:] = 1, 1
    loss, right = made(features, layout)
    assert right == 1
    assert loss < 1e-3


def test_nothing_in_the_pictures_is_nothing_to_be_right_about() -> None:
    made = LayoutHead(4, (3, 2))
    loss, right = made(torch.randn(2, 4, 4, 4), torch.zeros(2, 2, 32, 32, dtype=torch.uint8))
    assert loss.shape == (2,)
    assert math.isnan(right)


def test_outputs_are_kept_inside_the_block_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    with output_of(layer) as kept:
        inside = layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert len(kept) == 1
    assert kept[0] is inside


@pytest.mark.parametrize("preset", [presets.decoder_tiny, presets.unet_tiny])
def test_the_lesson_is_learned_and_left_behind(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: type
) -> None:
    monkeypatch.setattr(trainer, "WARMUP_STEPS", 2)
    torch.manual_seed(0)
    network = preset()
    names = set(network.state_dict())
    recipe = DecoderRecipe(network, Told(), encoder, batch=8, lr=5e-3)
    monkeypatch.setattr(recipe, "sheet", lambda _network, _path: {})
    order = recipe.order(0, 0.9)

    def asked() -> dict[str, float]:
        with torch.no_grad():
            return recipe.loss(order, recipe.source.draw(order), torch.Generator().manual_seed(1))[1]

    before = asked()
    state = train(recipe, tmp_path / "run", Budget(steps=90), say=lambda _line: None)
    after = asked()
    assert after["layout"] < 0.7 * before["layout"]
    assert after["layout_right"] > 0.9
    again = type(network).from_pretrained(tmp_path / "run" / "decoder")
    assert set(again.state_dict()) == names
    resumed = train(recipe, tmp_path / "run", Budget(steps=91), resume=True, say=lambda _line: None)
    assert resumed.step == state.step + 1


def test_a_map_must_tell_the_colours_and_the_things_of_every_cell() -> None:
    made, pixels = MapHead(4, (3, 2)), torch.zeros(1, 3, 16, 16)
    pixels[:, 0, :8], pixels[:, 0, 8:] = 0.5, -0.5
    layout = torch.zeros(1, 2, 32, 32, dtype=torch.uint8)
    cells = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        made.colours.weight.zero_()
        made.colours.bias.zero_()
    without, figures = made(cells, pixels, None)
    assert without.item() == pytest.approx(0.25 / 3)
    assert figures == {"colours": pytest.approx(0.25 / 3)}
    both, figures = made(cells, pixels, layout)
    assert both.item() == pytest.approx(0.25 / 3 + figures["layout"])
    assert made.layout is not None
    wrong, _ = made.layout(cells, layout)
    assert figures["layout"] == pytest.approx(wrong.item())


def test_the_image_embedding_and_the_prior_learn_what_stands_where(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "WARMUP_STEPS", 2)
    torch.manual_seed(0)
    dual = presets.dual_encoder_tiny()
    recipe = DualEncoderRecipe(dual, Told(), encoder, batch=8, lr=5e-3)
    before = lesson(recipe)
    train(recipe, tmp_path / "dual", Budget(steps=30), say=lambda _line: None)
    assert lesson(recipe) < 0.5 * before
    prior = PriorRecipe(
        presets.prior_tiny(), Told(), encoder, dual.eval().requires_grad_(False), batch=8, lr=5e-3
    )
    before = lesson(prior)
    train(prior, tmp_path / "prior", Budget(steps=30), say=lambda _line: None)
    assert lesson(prior) < 0.5 * before


def lesson(recipe: DualEncoderRecipe | PriorRecipe) -> float:
    """How wrong the map is of a batch that training does not draw."""
    with torch.no_grad():
        order = Order(10**6, 8, 16)
        return recipe.loss(order, recipe.source.draw(order), torch.Generator().manual_seed(0))[1]["layout"]
