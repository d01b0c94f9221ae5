import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.errors import ModelError
from mmgen.schedulers.prediction import add_noise, eps_from_x0, from_diffusers_config, match, to_x0
from mmgen.schedulers.schedules import SCHEDULES, schedule

f64 = torch.float64


def truth(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, 3, 4, 4, generator=generator, dtype=f64) for _ in range(2))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow", "learned-range"])
@given(place=st.floats(0.02, 0.98))
@settings(max_examples=20)
def test_every_output_gives_the_picture_back(name, kind, place):
    x0, eps = truth()
    times = schedule(name).times(20)
    t = times[0] + place * (times[-1] - times[0])
    alpha, sigma = schedule(name).alpha(t), schedule(name).sigma(t)
    x_t = add_noise(x0, eps, alpha, sigma)
    output = {
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "x0": x0,
        "flow": eps - x0,
        "learned-range": torch.cat([eps, x0 * 0.1], dim=1),
    }[kind]
    prediction = to_x0(output, x_t, alpha, sigma, kind)
    torch.testing.assert_close(prediction.x0, x0, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(eps_from_x0(x0, x_t, alpha, sigma), eps, atol=1e-7, rtol=1e-7)
    assert (prediction.variance is None) == (kind != "learned-range")
    if prediction.variance is not None:
        assert torch.equal(prediction.variance, x0 * 0.1)


@pytest.mark.parametrize("kind", ["v", "x0", "flow"])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0)])
def test_both_ends_hold(kind, alpha, sigma):
    x0, eps = truth()
    alpha, sigma = torch.tensor(alpha, dtype=f64), torch.tensor(sigma, dtype=f64)
    output = {"v": alpha * eps - sigma * x0, "x0": x0, "flow": eps - x0}[kind]
    x_t = add_noise(x0, eps, alpha, sigma)
    torch.testing.assert_close(to_x0(output, x_t, alpha, sigma, kind).x0, x0)


@pytest.mark.parametrize("kind", ["eps", "learned-range"])
@pytest.mark.parametrize("alpha", [torch.tensor(0.0), torch.tensor([0.5, 0.0])])
def test_eps_says_nothing_at_pure_noise(kind, alpha):
    x0, eps = truth()
    with pytest.raises(ValueError, match="no x0 where alpha is 0"):
        to_x0(
            torch.cat([eps, eps], 1)[:, : 3 if kind == "eps" else 6], x0, alpha, torch.ones_like(alpha), kind
        )


def test_no_noise_is_left_in_data():
    x0, _ = truth()
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert torch.equal(eps_from_x0(x0, x0, one, zero), torch.zeros_like(x0))
    mixed = eps_from_x0(x0, x0 + 1, torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.5]))
    assert torch.equal(mixed[0], torch.zeros_like(x0[0]))
    torch.testing.assert_close(mixed[1], torch.full_like(x0[1], 2.0))


@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow", "learned-range"])
def test_one_time_per_picture_is_the_same_as_each_alone(kind):
    x0, eps = (value.float() for value in truth())
    alpha, sigma = torch.tensor([0.3, 0.9], dtype=f64), torch.tensor([0.7, 0.2], dtype=f64)
    output = torch.cat([eps, eps], 1) if kind == "learned-range" else eps
    together = to_x0(output, x0, alpha, sigma, kind).x0
    assert together.dtype == torch.float32
    for i in range(2):
        alone = to_x0(output[i : i + 1], x0[i : i + 1], alpha[i], sigma[i], kind).x0
        torch.testing.assert_close(together[i : i + 1], alone)


def test_coefficients_of_another_shape_are_refused():
    # Of 4 x 4 pixels, [4] would broadcast along the width.
    with pytest.raises(ValueError, match="one number per picture"):
        match(torch.ones(4), truth()[0])


def test_an_unknown_kind_is_refused():
    x0, eps = truth()
    with pytest.raises(ValueError, match="no kind of prediction 'noise'"):
        to_x0(eps, x0, torch.tensor(0.5), torch.tensor(0.5), "noise")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": "epsilon", "variance_type": "fixed_small"}, "eps"),
        ({"prediction_type": "epsilon", "variance_type": "learned_range"}, "learned-range"),
        ({"prediction_type": "v_prediction", "variance_type": None}, "v"),
        ({"prediction_type": "sample"}, "x0"),
        ({"prediction_type": "flow_prediction"}, "flow"),
    ],
)
def test_the_kind_is_read_from_a_config(config, kind):
    assert from_diffusers_config(config) == kind


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "noise"},
        {"prediction_type": ["epsilon"]},
        {"prediction_type": "epsilon", "variance_type": "learned"},
        {"prediction_type": "sample", "variance_type": "learned_range"},
    ],
)
def test_an_unclear_config_is_refused(config):
    with pytest.raises(ModelError):
        from_diffusers_config(config)
