"""Schedulers of diffusers as samplers: every one that is in the list, and those that must not be."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers.schedulers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from mmgen import schedulers
from mmgen.conditioning import Conditioning
from mmgen.errors import ModelError, UsageError
from mmgen.models.presets import decoder_tiny
from mmgen.noise import Noise
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.stage import Draft, finish
from mmgen.schedulers.interop import adapted, foreign_sampler, foreign_samplers
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import Denoise, Sampler, Step, sampler
from mmgen.schedulers.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    KarrasSchedule,
    NoiseSchedule,
    linear_betas,
)
from mmgen.types import StageSettings
from tests.checkpoints import awake

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar"),
]
MEAN, STD = 0.3, 0.5
# Their networks are distilled: they put fresh noise on x0, which is right only where x0 is a picture at every step.
DISTILLED = {"FlowMatchLCMScheduler", "LCMScheduler", "TCDScheduler"}
every_name = pytest.mark.parametrize("name", foreign_samplers())
made = cache(foreign_sampler)  # some take a second to make


def gaussian(schedule: NoiseSchedule) -> Denoise:
    """Pictures of a Gaussian in every pixel, known exactly: what it says does not depend on the schedule."""

    def denoise(x_t: Tensor, t: Tensor, s: Tensor) -> Prediction:
        assert t.shape == s.shape == ()
        assert t.dtype == s.dtype == torch.float64
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return Prediction(MEAN + gain * (x_t - alpha * MEAN))

    return denoise


def run(
    by: Sampler, steps: int, x: Tensor, noise: Noise, schedule: NoiseSchedule | None = None
) -> list[Step]:
    """From x, standard normal."""
    schedule = schedule or FlowSchedule()
    times = schedule.times(steps)
    return list(by(gaussian(schedule), x * schedule.sigma(times[0]), times, schedule, noise))


@cache
def is_noisy(name: str) -> bool:
    x = Noise((1,)).draw((6,))
    one, other = (run(made(name), 3, x, Noise((seed,)))[-1].x for seed in (1, 2))
    return not torch.equal(one, other)


def test_the_list_is_what_diffusers_has_without_those_that_cannot() -> None:
    names = foreign_samplers()
    assert {"DDIMScheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"} < set(names)
    assert {"KDPM2DiscreteScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler"} < set(names)
    assert list(names) == sorted(names)
    assert schedulers.foreign_samplers() is names
    assert {name for name in names if is_noisy(name)} >= {"DDPMScheduler", "SASolverScheduler"}


@every_name
@pytest.mark.parametrize("shape", [(3, 4, 4), (6,)])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite_and_count_to_their_total(name: str, shape: tuple[int, ...], steps: int) -> None:
    noise = Noise((3, 5), name)
    x = noise.draw(shape)
    before, shared = x.clone(), torch.random.get_rng_state()
    done = run(made(name), steps, x, noise)
    assert len(done) in (steps, steps + 1, 2 * steps - 1)
    assert [(step.index, step.total, step.stage) for step in done] == [
        (i + 1, len(done), "") for i in range(len(done))
    ]
    assert all(bool(torch.isfinite(step.x).all() and torch.isfinite(step.x0).all()) for step in done)
    assert all(step.x.dtype == step.x0.dtype == torch.float32 for step in done)
    assert all(step.x.shape == step.x0.shape == x.shape for step in done)
    assert 0 <= done[-1].t < 0.01
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), shared)


@every_name
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    def drawn(*seeds: int) -> list[Step]:
        noise = Noise(seeds, name)
        return run(made(name), 4, noise.draw((3, 4, 4)), noise)

    together = drawn(3, 5, 8)
    for row, seed in enumerate((3, 5, 8)):
        for a, b in zip(together, drawn(seed), strict=True):
            torch.testing.assert_close(a.x[row], b.x[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(a.x0[row], b.x0[0], atol=1e-6, rtol=1e-5)


@every_name
def test_many_steps_solve_the_gaussian(name: str) -> None:
    """The flow from noise x leads to MEAN + STD x; those that draw noise can only keep to the law."""
    if name in DISTILLED:
        done = run(made(name), 50, Noise((7,)).draw((5_000,)), Noise((7,), name))[-1]
        assert float(done.x.mean()) == pytest.approx(MEAN, abs=0.03)
    elif is_noisy(name):
        done = run(made(name), 200, Noise((7,)).draw((5_000,)), Noise((7,), name))[-1]
        assert float(done.x.mean()) == pytest.approx(MEAN, abs=0.02)
        assert float(done.x.std()) == pytest.approx(STD, abs=0.03)
    else:
        x = torch.linspace(-2, 2, 9).reshape(1, 9)
        done = run(made(name), 100, x, Noise((7,)))[-1]
        assert float((done.x - (MEAN + STD * x)).abs().max()) < 0.08


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_second_order_on_the_flow_is_as_good_as_ours(name: str) -> None:
    x = torch.linspace(-2, 2, 9).reshape(1, 9)
    ours = run(sampler("heun"), 40, x, Noise((7,)))[-1].x
    assert float((run(made(name), 40, x, Noise((7,)))[-1].x - ours).abs().max()) < 0.015


@pytest.mark.parametrize(
    ("name", "own"),
    [("DDPMScheduler", "ddpm"), ("DDIMScheduler", "euler"), ("EulerDiscreteScheduler", "euler")],
)
def test_the_same_equation_says_the_same_pictures(name: str, own: str) -> None:
    """Theirs, driven by a network on the flow path, beside ours on their betas, with the same noise."""
    x = Noise((3, 5), "start").draw((3, 4, 4))
    betas = DiscreteSchedule(linear_betas(), "trailing")
    theirs = run(made(name), 10, x, Noise((3, 5)))
    ours = run(sampler(own), 10, x, Noise((3, 5)), betas)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a.x0, b.x0, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs[-1].x, ours[-1].x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "EDMEulerScheduler"])
@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(),
        CosineSchedule(3.0),
        KarrasSchedule(sigma_max=300.0),
        DiscreteSchedule(linear_betas(), "trailing"),
    ],
    ids=["cosine", "cosine shifted", "karras", "linear"],
)
def test_the_networks_own_schedule_does_not_matter(name: str, schedule: NoiseSchedule) -> None:
    x = Noise((3,)).draw((3, 4, 4))
    own, flow = (run(made(name), 6, x, Noise((3,)), one) for one in (schedule, FlowSchedule()))
    for a, b in zip(own, flow, strict=True):
        torch.testing.assert_close(a.x0, b.x0, atol=5e-4, rtol=0)


def test_every_step_is_on_the_networks_own_schedule() -> None:
    """A network that always says the same picture: x is then that picture and the noise it began with."""
    schedule, picture = FlowSchedule(), torch.full((1, 3, 4, 4), 0.25)
    eps = Noise((3,)).draw((3, 4, 4))
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
        seen: list[float] = []

        def denoise(_x: Tensor, t: Tensor, _s: Tensor, seen: list[float] = seen) -> Prediction:
            seen.append(float(t))
            return Prediction(picture)

        for step in made(name)(denoise, eps, schedule.times(5), schedule, Noise((3,))):
            # What is missing of the picture at the start, where there is not only noise, stays missing.
            torch.testing.assert_close(step.x, (1 - step.t) * picture + step.t * eps, atol=0.01, rtol=0)
        assert seen == sorted(seen, reverse=True)
        assert seen[0] > 0.99


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_what_the_scheduler_expects_of_a_network_does_not_matter(kind: Any, prediction: str) -> None:
    given = {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear"}
    if kind is DDIMScheduler:
        given["clip_sample"] = False
    x = Noise((3,)).draw((3, 4, 4))
    eps, other = (
        run(adapted(kind(**given, prediction_type=name)), 8, x, Noise((3,)))
        for name in ("epsilon", prediction)
    )
    for a, b in zip(eps, other, strict=True):
        torch.testing.assert_close(a.x, b.x, atol=1e-4, rtol=0)


def test_a_scheduler_with_its_own_settings_is_left_as_it_was() -> None:
    theirs = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", timestep_spacing="trailing")
    before = theirs.timesteps.clone()
    by, x = adapted(theirs), Noise((3,)).draw((3, 4, 4))
    first, again, other = (run(by, 4, x, Noise((seed,)))[-1].x for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(theirs.timesteps, before)
    assert theirs.num_inference_steps is None


def test_trailing_times_of_61_steps_are_61() -> None:
    x = torch.linspace(-2, 2, 9).reshape(1, 9)
    done = run(made("DDIMScheduler"), 61, x, Noise((3,)))
    assert len(done) == 61
    assert float((done[-1].x - (MEAN + STD * x)).abs().max()) < 0.1


def test_by_hand_with_betas() -> None:
    """A network on the flow path in diffusers' own loop, with the change of variables written out."""

    def network(x_t: Tensor, t: float) -> Tensor:
        return 0.5 * torch.sin(2 * x_t) + 0.1 * t

    theirs = DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing", clip_sample=False)
    schedule, noise = FlowSchedule(), Noise((3, 5)).draw((3, 4, 4))

    def denoise(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        return Prediction(network(x_t, float(t)))

    ours = list(adapted(theirs)(denoise, noise, schedule.times(5), schedule, Noise((3, 5))))
    theirs.set_timesteps(5)
    y = noise
    for step, t in zip(ours, theirs.timesteps, strict=True):
        alpha, sigma = theirs.alphas_cumprod[t] ** 0.5, (1 - theirs.alphas_cumprod[t]) ** 0.5
        x0 = network(y / (alpha + sigma), float(sigma / (alpha + sigma)))
        y = theirs.step((y - alpha * x0) / sigma, t, y).prev_sample
        torch.testing.assert_close(step.x0, x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[-1].x, y, atol=1e-5, rtol=0)


def test_a_stage_is_driven_as_by_hand() -> None:
    network = awake(decoder_tiny)
    drawn = Noise((8, 9), "conditioning")
    text = Conditioning(
        text=drawn.draw((5, 32)), text_mask=torch.ones(2, 5, dtype=torch.bool), pooled=drawn.draw((32,))
    )
    embed = torch.nn.functional.normalize(drawn.draw((16,)), dim=1)
    stage = DecoderStage(network, StageSettings(), uses_image_embed=True)
    settings = StageSettings(
        steps=4, sampler="DPMSolverMultistepScheduler", guidance_scale=1.0, threshold="none"
    )
    draft = Draft(("a", "b"), text=text, image_embed=embed)
    image = finish(stage.run(draft, settings, Noise((3, 5)))).image

    kept = torch.zeros(2, dtype=torch.bool)
    cond = Conditioning(
        text=text.text,
        text_mask=text.text_mask,
        pooled=text.pooled,
        drop_text=kept,
        image_embed=embed,
        drop_image=kept,
    )
    theirs = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    theirs.set_timesteps(4)
    x = Noise((3, 5)).draw((3, 16, 16))
    with torch.no_grad():
        prepared = network.prepare(cond)
        for sigma, t in zip(theirs.sigmas, theirs.timesteps, strict=False):
            x0 = network(x, sigma.expand(2), prepared)
            x = theirs.step((x - x0) / sigma, t, x).prev_sample
    assert image is not None
    torch.testing.assert_close(image, x.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("VQDiffusionScheduler", "made without num_vec_classes"),
        ("RePaintScheduler", "its step needs .* mask"),
        ("ScoreSdeVeScheduler", "it has no step"),
        ("DDIMInverseScheduler", "from pictures to noise"),
        ("EntropyBoundScheduler", "words, not pictures"),
        ("UnCLIPScheduler", "told the next time"),
    ],
)
def test_those_that_cannot_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be a sampler: .*{reason}"):
        foreign_sampler(name)
    assert name not in foreign_samplers()


@pytest.mark.parametrize(
    "name", ["UniPCMultistep", "UniPCMultiStepScheduler", "SchedulerMixin", "", "Scheduler"]
)
def test_an_unknown_name_is_told_its_neighbours(name: str) -> None:
    with pytest.raises(UsageError, match=r"has no scheduler .*nearest are .*Scheduler, ") as refused:
        foreign_sampler(name)
    assert not name.startswith("UniPC") or "UniPCMultistepScheduler" in str(refused.value)


def test_one_that_lacks_a_library_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = type("AbsentScheduler", (), {"_backends": ["torch", "scipy"]})
    monkeypatch.setattr(diffusers.schedulers, "AbsentScheduler", absent, raising=False)
    with pytest.raises(UsageError, match="'AbsentScheduler' needs scipy, which is not installed"):
        foreign_sampler("AbsentScheduler")


def test_a_network_that_is_not_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="learned variance"):
        adapted(DDPMScheduler(variance_type="learned_range"))
    with pytest.raises(ModelError, match="prediction_type 'original_sample'"):
        adapted(EulerDiscreteScheduler(prediction_type="original_sample"))
    with pytest.raises(UsageError, match="from pictures to noise"):
        adapted(diffusers.schedulers.DDIMInverseScheduler())


@pytest.mark.parametrize("times", [[0.6, 0.3, 0.0], [1.0, 0.5, 0.1]])
def test_a_part_of_a_run_is_refused(times: list[float]) -> None:
    schedule, x = FlowSchedule(), torch.ones(1, 6)
    with pytest.raises(UsageError, match="is a part: choose one of ddpm, ddim"):
        next(
            made("DDIMScheduler")(
                gaussian(schedule), x, torch.tensor(times, dtype=torch.float64), schedule, Noise((1,))
            )
        )


def test_a_number_of_steps_that_it_refuses_is_named() -> None:
    with pytest.raises(UsageError, match="LCMScheduler does not run in 60 steps: "):
        run(made("LCMScheduler"), 60, torch.ones(1, 6), Noise((1,)))
