"""Drawing over a picture: what stays is there to the last bit, at every stage and step, whatever the sampler."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmgen.noise import Noise
from mmgen.pipelines.editing import Known
from mmgen.pipelines.sampling import diffuse
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.super_res_stage import enlarge
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import Step
from mmgen.types import SAMPLERS, StageSettings

SIDE = 16


def picture(size: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def half(size: int) -> Tensor:
    """The right half is repainted."""
    mask = torch.zeros(2, 1, size, size)
    mask[..., size // 2 :] = 1
    return mask


def steps_of(pipe: TextToImage, draft: Draft, name: str, **given: Any) -> tuple[list[Step], Draft]:
    stage = next(s for s in pipe.cascade.stages if s.name == name)
    run: Generator[Step, None, Draft] = stage.run(
        draft, StageSettings(**given).with_defaults(stage.defaults), Noise([1, 2], name)
    )
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as done:
            return steps, done.value


@pytest.fixture(scope="module")
def told(pipe: TextToImage) -> Draft:
    draft = Draft(("a red cat", "two dogs on the beach at night"))
    for stage in pipe.cascade.stages[:2]:
        draft = finish(stage.run(draft, stage.defaults, Noise([1, 2], stage.name)))
    return draft


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_stays_is_as_noisy_as_the_rest(sampler: Any) -> None:
    """A wrong network is asked at times t with x_t = (1 - t) x0 + t eps where the picture is known."""
    known, mask = picture(4), half(4)
    keep = Known(known, mask, 1.0)
    asked: list[tuple[float, Tensor]] = []

    def wrong(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        asked.append((float(t), x_t))
        return Prediction(torch.full_like(x_t, 0.3), None)

    eps = Noise([1, 2]).draw((3, 4, 4))
    settings = StageSettings(steps=6, sampler=sampler, eta=0.0 if sampler == "ddim" else None)
    *_, last = diffuse(
        keep.keeping(wrong), eps, settings, Noise([3, 4]), stage="s", begin=(known, keep.strength)
    )
    torch.testing.assert_close(last.x[..., :2], known[..., :2])
    torch.testing.assert_close(last.x[..., 2:], torch.full_like(last.x[..., 2:], 0.3))
    if sampler == "ddpm":  # it draws new noise; its amount is right all the same
        spread = [((x - (1 - t) * known) / t)[..., :2].std() for t, x in asked]
        assert all(0.5 < float(s) < 1.6 for s in spread)
        return
    for t, x_t in asked:
        expected = (1 - t) * known + t * eps
        torch.testing.assert_close(x_t[..., :2], expected[..., :2], atol=1e-5, rtol=1e-5)


def test_steps_taken_again_fit_what_is_drawn_to_what_stays() -> None:
    """Two pixels that go together, exactly known: beside a known 1 the other one's mean is their correlation."""
    correlation = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    keep = Known(torch.ones(1, 1, 1, 2), torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2))

    def exact(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        alpha, sigma = 1 - float(t), float(t)
        gain = alpha * correlation @ torch.linalg.inv(alpha**2 * correlation + sigma**2 * torch.eye(2))
        return Prediction(x_t @ gain, None)

    def mean(resample: int) -> float:
        seeds = range(200)
        settings = StageSettings(steps=12, sampler="ddpm", resample=resample)
        begin = Noise(seeds).draw((1, 1, 2))
        *_, last = diffuse(keep.keeping(exact), begin, settings, Noise(seeds, "more"), stage="s")
        assert torch.equal(last.x[..., 0], torch.ones(200, 1, 1))
        return float(last.x[..., 1].mean())

    once, often = mean(1), mean(10)
    assert once < 0.75
    assert once + 0.1 < often < 1.0


def test_a_run_begins_at_its_strength() -> None:
    known, times = picture(4), []
    eps = Noise([1, 2]).draw((3, 4, 4))

    def network(x_t: Tensor, t: Tensor, _s: Tensor) -> Prediction:
        times.append(float(t))
        torch.testing.assert_close(x_t, ((1 - t) * known + t * eps).float())
        return Prediction(x_t, None)

    def run(strength: float) -> list[float]:
        times.clear()
        settings = StageSettings(steps=10, sampler="euler")
        first = next(diffuse(network, eps, settings, Noise([3, 4]), stage="s", begin=(known, strength)))
        assert first.index == 1
        assert first.total == round(-(-strength * 1e9 // 1e8))  # steps of 0.1, rounded up
        return times

    assert run(1.0) == [1.0]
    assert run(0.35) == [pytest.approx(0.35)]
    assert run(0.05) == [pytest.approx(0.05)]


def test_the_whole_strength_without_a_mask_is_plain_drawing(pipe: TextToImage, told: Draft) -> None:
    plain, free = (
        steps_of(pipe, replace(told, known=known), "decoder")[1].image for known in (None, Known(picture(64)))
    )
    assert plain is not None
    assert free is not None
    torch.testing.assert_close(plain, free)


def test_every_stage_keeps_what_stays(pipe: TextToImage, told: Draft) -> None:
    small, large = SIDE, 4 * SIDE
    known = Known(picture(large), half(large))
    draft = replace(told, known=known)
    drawn = []
    for name, size in (("decoder", small), (f"super-res-{large}", large)):
        steps, draft = steps_of(pipe, draft, name)
        at = known.at(size)
        assert draft.image is not None
        for step in steps:
            torch.testing.assert_close(
                step.x0[..., : size // 2], at.image[..., : size // 2], atol=1e-5, rtol=0
            )
        torch.testing.assert_close(
            draft.image[..., : size // 2], at.image[..., : size // 2], atol=1e-5, rtol=0
        )
        drawn.append((draft.image - at.image)[..., size // 2 :].abs().mean())
    assert all(float(d) > 0.05 for d in drawn)


def test_an_enlargement_begins_with_the_detail_of_the_picture(pipe: TextToImage, told: Draft) -> None:
    """Not with what else it shows: the smaller stage may have drawn something new."""
    name = f"super-res-{4 * SIDE}"
    stage = next(s for s in pipe.cascade.stages if s.name == name)
    low, given = picture(SIDE, 1), picture(4 * SIDE)
    seen: list[Tensor] = []
    hook = stage.network.register_forward_pre_hook(lambda _network, args: seen.append(args[0]))
    steps_of(pipe, replace(told, image=low, known=Known(given, None, 0.5)), name, noise_level=0.0)
    hook.remove()
    noise = Noise([1, 2], name)
    noise.draw((3, SIDE, SIDE))  # the corruption, here of level 0
    detail = (given - enlarge(torch.nn.functional.avg_pool2d(given, 4))) / stage.network.config.residual_scale
    torch.testing.assert_close(seen[0], 0.5 * detail + 0.5 * noise.draw((3, 4 * SIDE, 4 * SIDE)))


def test_a_mask_of_nothing_gives_the_picture_back(pipe: TextToImage, told: Draft) -> None:
    known = Known(picture(SIDE), torch.zeros(2, 1, SIDE, SIDE), 0.5)
    _, draft = steps_of(pipe, replace(told, known=known), "decoder")
    assert draft.image is not None
    torch.testing.assert_close(draft.image, known.image)


def test_other_sizes_are_averaged_or_enlarged() -> None:
    fine = Known(picture(8), half(8))
    assert torch.equal(fine.at(8).image, fine.image)
    coarse = fine.at(4)
    torch.testing.assert_close(coarse.image, torch.nn.functional.avg_pool2d(fine.image, 2))
    assert coarse.repaint is not None
    torch.testing.assert_close(coarse.repaint, half(4))
    assert fine.at(32).image.shape == (2, 3, 32, 32)
    assert fine.at(32).image.abs().max() <= 1
