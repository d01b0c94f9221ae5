import contextlib
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.errors import ModelError, UsageError
from mmgen.schedulers import schedules
from mmgen.schedulers.schedules import (
    SCHEDULES,
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    KarrasSchedule,
    flow_time,
    from_diffusers_config,
    schedule,
)

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
STABLE_DIFFUSION = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "trained_betas": None,
}


@every_schedule
@given(steps=st.integers(1, 1000))
@settings(max_examples=30)
def test_times_fall_from_noise_to_data(name, steps):
    made = schedule(name)
    times = made.times(steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert bool((times.diff() < 0).all())
    alpha, sigma = made.alpha(times), made.sigma(times)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert bool((sigma.diff() < 0).all())
    assert bool((alpha.diff() >= 0).all())
    assert (float(alpha[-1]), float(sigma[-1])) == (1, 0)
    assert float(flow_time(made, times[0])) > 0.9


@every_schedule
def test_levels_take_any_shape_and_precision(name):
    made = schedule(name)
    t = made.times(6)[:-1].reshape(2, 3).float()
    for level in (made.alpha, made.sigma):
        assert level(t).dtype == torch.float64
        assert level(t).shape == t.shape
        assert level(t[0, 0]).shape == ()
        assert torch.equal(level(t).flatten(), torch.stack([level(one) for one in t.flatten()]))


@every_schedule
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(name, steps):
    with pytest.raises(ValueError, match=f"steps is {steps}"):
        schedule(name).times(steps)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"flow", "karras"}))
def test_variance_preserving_ones_preserve_it(name):
    t = schedule(name).times(50)
    square = schedule(name).alpha(t) ** 2 + schedule(name).sigma(t) ** 2
    torch.testing.assert_close(square, torch.ones_like(t), atol=1e-12, rtol=0)


@given(shift=st.floats(0.1, 16), t=st.floats(0.01, 0.99))
def test_a_shift_multiplies_sigma_over_alpha(shift, t):
    time = torch.tensor(t, dtype=torch.float64)
    cosine, plain = CosineSchedule(shift), CosineSchedule()
    expected = shift * plain.sigma(time) / plain.alpha(time)
    torch.testing.assert_close(cosine.sigma(time) / cosine.alpha(time), expected)
    steps = FlowSchedule(shift).times(8)[1:-1]
    even = FlowSchedule().times(8)[1:-1]
    torch.testing.assert_close(steps / (1 - steps), shift * even / (1 - even))


def test_the_cosine_shift_is_the_papers():
    """Log-SNR at 256 px: 2 log(64 / 256) below that at 64 px (arXiv:2301.11093, section 3.1)."""
    t = torch.tensor(0.3, dtype=torch.float64)
    made = CosineSchedule(256 / 64)
    log_snr = 2 * float((made.alpha(t) / made.sigma(t)).log())
    assert log_snr == pytest.approx(-2 * math.log(math.tan(math.pi * 0.3 / 2)) + 2 * math.log(64 / 256))


def test_pure_noise_is_exact():
    end = torch.tensor(1.0)
    for made in (FlowSchedule(), CosineSchedule(3.0)):
        assert (float(made.alpha(end)), float(made.sigma(end))) == (0, 1)


def test_flow_time_is_the_time_of_flow():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(flow_time(FlowSchedule(), t), t)
    assert float(flow_time(KarrasSchedule(), torch.tensor(1.0))) == 0.5


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_single_step_begins_at_noise(name):
    for spacing in ("leading", "linspace", "trailing"):
        made = dataclasses.replace(schedule(name), spacing=spacing)
        assert made.times(1).tolist() == [999, -1]


def test_between_training_steps_the_level_lies_between():
    made = schedule("linear")
    low, mid, high = made.sigma(torch.tensor([4.0, 4.25, 5.0], dtype=torch.float64))
    assert low < mid < high


def test_too_many_steps_are_refused():
    for made in (schedule("linear"), from_diffusers_config(STABLE_DIFFUSION)):
        with pytest.raises(UsageError, match="this model was trained with 1000"):
            made.times(1001)
    with pytest.raises(UsageError):
        from_diffusers_config(STABLE_DIFFUSION).times(1000)


@pytest.mark.parametrize("t", [-1.5, 1000.0])
def test_a_time_outside_is_refused(t):
    with pytest.raises(ValueError, match="between -1 and 999"):
        schedule("linear").alpha(torch.tensor(t))


def test_unknown_names_and_shifts_are_refused():
    with pytest.raises(UsageError, match="no noise schedule 'cosin': choose one of flow, cosine, karras"):
        schedule("cosin")
    with pytest.raises(UsageError, match="'karras' has no shift, got 2"):
        schedule("karras", shift=2.0)
    assert schedule("flow", shift=2.0) == FlowSchedule(2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlowSchedule(0.0),
        lambda: FlowSchedule(math.nan),
        lambda: CosineSchedule(-1.0),
        lambda: KarrasSchedule(sigma_min=1.0, sigma_max=0.5),
        lambda: KarrasSchedule(rho=0.0),
        lambda: DiscreteSchedule((), "leading"),
        lambda: DiscreteSchedule((0.1, 1.5), "leading"),
        lambda: DiscreteSchedule((0.1,), "middle"),
    ],
)
def test_impossible_constants_are_refused(make):
    with pytest.raises(ValueError, match=r"must|no spacing"):
        make()


def test_a_config_is_read_whole():
    made = from_diffusers_config(STABLE_DIFFUSION)
    assert made == DiscreteSchedule(
        schedules.scaled_linear_betas(), "leading", offset=1, final_alpha_one=False
    )
    assert float(made.sigma(torch.tensor(-1.0))) == float(made.sigma(torch.tensor(0.0))) > 0
    trained = from_diffusers_config({**STABLE_DIFFUSION, "trained_betas": [0.1, 0.2]})
    assert trained.betas == (0.1, 0.2)
    assert from_diffusers_config(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3}
    ) == FlowSchedule(3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({"beta_schedule": None}, "no 'beta_schedule'"),
        ({"timestep_spacing": None}, "no 'timestep_spacing'"),
        ({"timestep_spacing": "even"}, "no spacing 'even'"),
        ({"beta_start": None}, "no 'beta_start'"),
        ({"beta_end": "high"}, "high"),
        ({"beta_end": 7}, "betas must be"),
        ({"num_train_timesteps": None}, "no 'num_train_timesteps'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps 1000000000000"),
        ({"trained_betas": [], "rescale_betas_zero_snr": True}, "betas must be"),
        ({"trained_betas": [10**400]}, "not usable"),
        ({"trained_betas": 5}, "not usable"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "no 'shift'"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "use_dynamic_shifting",
        ),
    ],
)
def test_a_config_that_leaves_something_open_is_refused(change, message):
    with pytest.raises(ModelError, match=message):
        from_diffusers_config({**STABLE_DIFFUSION, **change})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*STABLE_DIFFUSION, "shift", "rescale_betas_zero_snr"]), json_values))
@settings(max_examples=200)
def test_nonsense_in_a_config_is_a_model_error(change):
    with contextlib.suppress(ModelError):
        from_diffusers_config({**STABLE_DIFFUSION, **change})
