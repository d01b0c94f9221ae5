"""Batches depend on (seed, index) alone."""

import numpy as np
import pytest

from mmgen.storybook import data
from mmgen.storybook.render import render
from mmgen.training.data import Order, StorybookSource


def test_equal_arguments_equal_bytes(bank):
    scenes = data.scenes(3, 9, 6)
    assert scenes == data.scenes(3, 9, 6)
    pixels = data.draw(scenes, 32, bank)
    assert pixels.shape == (6, 3, 32, 32)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, data.draw(scenes, 32, bank))
    for drawn, scene in zip(pixels, scenes, strict=True):
        np.testing.assert_array_equal(drawn.transpose(1, 2, 0), render(scene, 32, bank))


def test_a_source_says_what_its_pictures_show(bank, monkeypatch):
    monkeypatch.setenv("MMGEN_SPRITES", str(bank.icons_path))
    source = StorybookSource(3)
    source.bank = bank
    drawn, scenes = source.draw(Order(9, 4, 32)), data.scenes(3, 9, 4)
    np.testing.assert_array_equal(drawn.pixels, data.draw(scenes, 32, bank))
    assert drawn.captions == [scene.caption for scene in scenes]
    np.testing.assert_array_equal(drawn.layout, data.layouts(scenes))


def test_a_layout_says_what_stands_where():
    scenes = data.scenes(5, 0, 40)
    layouts = data.layouts(scenes)
    assert layouts.shape == (40, 2, 32, 32)
    assert (layouts.reshape(40, 2, -1).max(axis=(0, 2)) < data.LAYOUT_SIZES).all()
    told = {}
    for scene, layout in zip(scenes, layouts, strict=True):
        covered = np.zeros((32, 32), bool)
        for item in scene.items:
            box = (slice(item.top, item.top + item.size), slice(item.left, item.left + item.size))
            covered[box] = True
            kind, colour = (int(v) for v in layout[:, item.top + item.size // 2, item.left + item.size // 2])
            assert told.setdefault((0, kind), item.sprite) == item.sprite
            assert told.setdefault((1, colour), item.colour) == item.colour
            assert (layout[0][box] == kind).all()
        assert (layout[:, ~covered] == 0).all()
        assert (layout[:, covered] > 0).all()
    assert len(told) > 20


def test_other_seeds_and_indices_are_other_pictures():
    first = [s.caption for s in data.scenes(3, 9, 20)]
    for seed, index in ((3, 10), (4, 9), (9, 3)):
        assert first != [s.caption for s in data.scenes(seed, index, 20)]


def test_a_batch_begins_like_a_longer_one():
    assert data.scenes(2, 2, 5) == data.scenes(2, 2, 9)[:5]


@pytest.mark.parametrize(("px", "side"), [(256, 128), (512, 64), (64, 64)])
def test_crops_are_parts_of_pictures_at_whole_small_pixels(bank, px, side, monkeypatch):
    windows = []
    drawn = data.render_window

    def remembered(scene, px, window, bank):
        windows.append((scene, window))
        return drawn(scene, px, window, bank)

    monkeypatch.setattr(data, "render_window", remembered)
    crops = data.crops(1, 0, 4, side, bank, px)
    assert crops.shape == (4, 3, side, side)
    for crop, (scene, (left, top, width)) in zip(crops, windows, strict=True):
        assert width == side
        assert left % 4 == top % 4 == 0
        whole = render(scene, px, bank)[top : top + side, left : left + side]
        assert np.abs(crop.transpose(1, 2, 0).astype(int) - whole).max() <= 1
    np.testing.assert_array_equal(crops, data.crops(1, 0, 4, side, bank, px))


@pytest.mark.parametrize(("side", "px"), [(512, 256), (0, 64), (30, 64)])
def test_crops_that_cannot_be_are_refused(bank, side, px):
    with pytest.raises(ValueError, match="do not fit"):
        data.crops(0, 0, 1, side, bank, px)
