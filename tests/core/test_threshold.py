import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen import threshold
from mmgen.errors import NonFiniteError
from mmgen.threshold import dynamic_threshold, static_clip, unchanged

pictures = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(
        st.floats(-20, 20, width=32), min_size=math.prod(shape), max_size=math.prod(shape)
    ).map(lambda values: torch.tensor(values).reshape(shape))
)


def reference(x0: torch.Tensor, percentile: float, cap: float | None) -> np.ndarray:
    """In float64, with a full sort, picture by picture."""
    out = []
    for picture in x0.double().numpy():
        scale = max(1.0, float(np.quantile(np.abs(picture), percentile)))
        scale = scale if cap is None else min(scale, cap)
        out.append(np.clip(picture, -scale, scale) / scale)
    return np.stack(out)


@given(x0=pictures, percentile=st.floats(0.01, 1.0), cap=st.none() | st.floats(1, 10))
@settings(max_examples=300)
def test_equals_the_float64_reference(x0, percentile, cap):
    ours = dynamic_threshold(x0, percentile, cap)
    assert ours.shape == x0.shape
    assert ours.dtype == x0.dtype
    assert float(ours.abs().max()) <= 1
    np.testing.assert_allclose(ours.numpy(), reference(x0, percentile, cap), atol=1e-6, rtol=0)


@pytest.mark.parametrize("percentile", [0.5, 0.95, 0.995, 1.0])
def test_equals_torch_quantile_on_a_real_size(percentile):
    x0 = 2 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # In float64: in float32 torch.quantile rounds the place itself, which of 12,288 values shows in the sixth digit.
    wide = x0.double()
    scale = torch.quantile(wide.abs().flatten(1), percentile, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
    expected = wide.clamp(-scale, scale) / scale
    torch.testing.assert_close(dynamic_threshold(x0, percentile).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("percentile", [0.01, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 10), (1, 3, 64, 64), (2, 3, 256, 256)])
def test_the_percentile_is_a_value_or_lies_between_two_neighbours(shape, percentile):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).abs().flatten(1)
    position = percentile * (values.shape[1] - 1)
    low, high = (values.kthvalue(1 + whole(position), dim=1).values for whole in (math.floor, math.ceil))
    expected = torch.lerp(low, high, position - math.floor(position))
    assert torch.equal(threshold._percentile(values, percentile), expected)


@given(x0=pictures)
@settings(max_examples=50)
def test_pictures_inside_are_unchanged(x0):
    inside = x0 / 20
    for limit in (dynamic_threshold, static_clip, unchanged):
        assert torch.equal(limit(inside), inside)


@given(x0=pictures, percentile=st.floats(0.01, 1.0))
@settings(max_examples=50)
def test_a_picture_does_not_depend_on_its_batch(x0, percentile):
    together = dynamic_threshold(x0, percentile)
    for i in range(len(x0)):
        assert torch.equal(together[i], dynamic_threshold(x0[i : i + 1], percentile)[0])


def test_a_cap_keeps_contrast():
    x0 = torch.tensor([3.0, 1.5, 0.75, -3.0]).reshape(1, 1, 2, 2)
    assert dynamic_threshold(x0, 1.0).flatten().tolist() == [1, 0.5, 0.25, -1]
    assert dynamic_threshold(x0, 1.0, cap=1.5).flatten().tolist() == [1, 1, 0.5, -1]
    assert dynamic_threshold(x0, 1.0, cap=1.0).flatten().tolist() == static_clip(x0).flatten().tolist()


def test_embeddings_are_thresholded_like_pictures():
    x0 = torch.tensor([[4.0, 1.0], [0.5, -0.5]])
    assert dynamic_threshold(x0, 1.0).tolist() == [[1, 0.25], [0.5, -0.5]]


def test_half_precision_comes_back_as_it_came():
    x0 = (3 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).bfloat16()
    ours = dynamic_threshold(x0)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, dynamic_threshold(x0.float()).bfloat16())


@pytest.mark.parametrize("limit", [threshold.make(0.995), threshold.make("clip"), threshold.make("none")])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error(limit, bad):
    x0 = torch.zeros(3, 3, 4, 4)
    x0[1, 2, 3, 0] = bad
    with pytest.raises(NonFiniteError, match="picture 2 of 3"):
        limit(x0)


def test_make_gives_what_the_settings_say():
    x0 = torch.tensor([3.0, 1.5, 0.75, -3.0]).reshape(1, 1, 2, 2)
    assert torch.equal(threshold.make("none")(x0), x0)
    assert torch.equal(threshold.make("clip")(x0), x0.clamp(-1, 1))
    assert torch.equal(threshold.make(0.9, 1.5)(x0), dynamic_threshold(x0, 0.9, 1.5))


@pytest.mark.parametrize(
    ("percentile", "cap"), [(0.0, None), (1.1, None), (-1, None), (math.nan, None), (0.9, 0.5)]
)
def test_impossible_settings_are_refused(percentile, cap):
    for attempt in (
        lambda: threshold.make(percentile, cap),
        lambda: dynamic_threshold(torch.ones(1, 2), percentile, cap),
    ):
        with pytest.raises(ValueError, match=r"percentile is|cap is"):
            attempt()
