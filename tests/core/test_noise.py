import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.noise import Noise
from mmgen.types import MAX_SEED

seeds = st.integers(0, MAX_SEED)
PROMISED = [[-0.15648268, 0.18843971, 0.55020159], [-1.41262555, 1.19965899, -3.30486441]]


@given(batch=st.lists(seeds, min_size=1, max_size=5), stage=st.text(max_size=10), draws=st.integers(1, 3))
@settings(max_examples=50)
def test_a_seeds_noise_is_the_same_alone_and_in_any_batch(batch, stage, draws):
    together = Noise(batch, stage)
    alone = [Noise((seed,), stage) for seed in batch]
    assert len(together) == len(batch)
    for _ in range(draws):
        drawn = together.draw((3, 5))
        assert drawn.shape == (len(batch), 3, 5)
        assert drawn.dtype == torch.float32
        for row, one in zip(drawn, alone, strict=True):
            assert torch.equal(row, one.draw((3, 5))[0])


@given(seed=seeds, other=seeds, stage=st.text(max_size=10), another=st.text(max_size=10))
@settings(max_examples=50)
def test_another_stage_or_seed_is_other_noise(seed, other, stage, another):
    first = Noise((seed,), stage).draw((16,))
    assert torch.equal(first, Noise((other,), another).draw((16,))) == ((seed, stage) == (other, another))


def test_a_seed_beside_a_stage_that_begins_with_a_digit_is_not_another_seed():
    assert not torch.equal(Noise((1,), "1/x").draw((4,)), Noise((11,), "/x").draw((4,)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_from_the_same_numbers(dtype):
    like = torch.empty(0, dtype=dtype)
    assert torch.equal(Noise((4,)).draw((9,), like=like), Noise((4,)).draw((9,)).to(dtype))


def test_it_is_standard_normal():
    drawn = Noise(range(4), "x").draw((50_000,))
    assert float(drawn.mean().abs()) < 0.01
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float(torch.corrcoef(drawn).fill_diagonal_(0).abs().max()) < 0.02


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Noise((1, 2)).draw((5,))
    assert torch.equal(torch.rand(4), expected)


def test_the_numbers_are_a_promise():
    """These go into published pictures: a change here changes every one of them."""
    drawn = Noise((0, 42), "decoder").draw((3,))
    torch.testing.assert_close(drawn, torch.tensor(PROMISED))
