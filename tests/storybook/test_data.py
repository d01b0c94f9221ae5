"""Batches depend on (seed, index) alone."""

import numpy as np
import pytest

from mmgen.storybook import data


def test_equal_arguments_equal_bytes(bank):
    pixels, captions = data.batch(3, 9, 6, 32, bank)
    again, said = data.batch(3, 9, 6, 32, bank)
    assert pixels.shape == (6, 3, 32, 32)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, again)
    assert captions == said
    assert captions == [s.caption for s in data.scenes(3, 9, 6)]


def test_other_seeds_and_indices_are_other_pictures():
    first = [s.caption for s in data.scenes(3, 9, 20)]
    for seed, index in ((3, 10), (4, 9), (9, 3)):
        assert first != [s.caption for s in data.scenes(seed, index, 20)]


def test_a_batch_begins_like_a_longer_one():
    assert data.scenes(2, 2, 5) == data.scenes(2, 2, 9)[:5]


@pytest.mark.parametrize(("px", "n", "factor"), [(256, 32, 4), (256, 16, 2), (512, 64, 4), (64, 16, 4)])
def test_crops_are_aligned(bank, px, n, factor):
    hi, lo = data.crop_pair(1, 0, 4, n, bank, px=px, factor=factor)
    assert hi.shape == (4, 3, factor * n, factor * n)
    assert lo.shape == (4, 3, n, n)
    mean = hi.reshape(4, 3, n, factor, n, factor).mean(axis=(3, 5))
    assert np.abs(mean - lo).max() <= 0.5 + 1e-3
    again, _ = data.crop_pair(1, 0, 4, n, bank, px=px, factor=factor)
    np.testing.assert_array_equal(hi, again)


def test_crops_larger_than_the_picture_are_refused(bank):
    with pytest.raises(ValueError, match="do not fit"):
        data.crop_pair(0, 0, 1, 128, bank, px=256)
