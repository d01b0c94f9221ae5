"""Overlapping squares: they cover everything, and what they agree on is what comes out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgen.noise import Noise
from mmgen.pipelines import super_res_stage
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.pipelines.tiling import blended, squares


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 64), st.integers(0, 7))
def test_squares_cover_the_area_and_overlap(height: int, width: int, side: int, overlap: int) -> None:
    boxes = squares(height, width, side, overlap)
    seen = torch.zeros(height, width, dtype=torch.int)
    for rows, columns in boxes:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        assert rows.stop - rows.start == min(side, height)
        assert columns.stop - columns.start == min(side, width)
        seen[rows, columns] += 1
    assert seen.min() >= 1
    tops = sorted({rows.start for rows, _ in boxes})
    assert all(0 < b - a <= side - overlap for a, b in pairwise(tops))


def test_a_small_area_is_one_square() -> None:
    assert squares(20, 30, 32, 8) == [(slice(0, 20), slice(0, 30))]


def test_an_overlap_must_fit() -> None:
    with pytest.raises(ValueError, match="an overlap of 16 does not fit squares of 16"):
        squares(40, 40, 16, 16)


def test_squares_that_agree_give_the_whole() -> None:
    whole = torch.rand(2, 3, 50, 70, dtype=torch.float64)
    boxes = squares(50, 70, 24, 8)
    assert len(boxes) > 4
    torch.testing.assert_close(blended(lambda box: whole[(..., *box)], boxes, whole), whole)


def test_squares_that_disagree_fade_into_each_other() -> None:
    like = torch.zeros(1, 1, 16, 40, dtype=torch.float64)
    boxes = squares(16, 40, 24, 8)
    assert [box[1].start for box in boxes] == [0, 16]
    drawn = blended(lambda box: torch.full((1, 1, 16, 24), float(box[1].start > 0)), boxes, like)
    row = drawn[0, 0, 8]
    assert (row[:16] == 0).all()
    assert (row[24:] == 1).all()
    between = row[16:24].diff()
    assert (between > 0).all()
    assert between.max() < 0.2


def test_a_large_picture_is_enlarged_square_by_square(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide picture of any grain: as large as asked for, and alone as in a batch."""
    stage = pipe.cascade.stages[-1]
    image = torch.rand(2, 3, 24, 40) * 2 - 1
    settings = stage.defaults

    def drawn(rows: slice) -> torch.Tensor:
        seeds = [1, 2][rows]
        draft = Draft(("",) * len(seeds), image=image[rows])
        found = finish(stage.run(draft, settings, Noise(seeds, stage.name))).image
        assert found is not None
        return found

    whole = drawn(slice(0, 2))
    assert whole.shape == (2, 3, 96, 160)
    monkeypatch.setattr(super_res_stage, "SQUARE", 64)
    monkeypatch.setattr(super_res_stage, "OVERLAP", 16)
    parts = drawn(slice(0, 2))
    assert parts.shape == whole.shape
    assert not torch.equal(parts, whole)  # the network sees where in its square a pixel lies
    torch.testing.assert_close(drawn(slice(1, 2)), parts[1:], atol=1e-5, rtol=0)
