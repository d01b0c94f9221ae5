"""The notebook face over a whole tiny model."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmgen
from mmgen.errors import NonFiniteError, UsageError
from mmgen.noise import Noise
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.families.storybook import DECODER
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.result import Result
from mmgen.schedulers.samplers import Step
from mmgen.types import SAMPLERS, Request, StageSettings

FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=3)}
PROMPT = "a red cat on the beach"


def pixels(result: Result) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in result]


def same(one: Result, other: Result) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def test_sizes_and_stages(pipe: TextToImage) -> None:
    assert pipe.sizes == (16, 64, 256)
    assert pipe.stage_names == ("text", "prior", "decoder", "super-res-64", "super-res-256")
    assert repr(pipe).startswith("TextToImage(tiny: text -> prior -> decoder")


@pytest.mark.parametrize("size", [16, 64, 256, (64, 64), None])
def test_pictures_have_the_size_asked_for(pipe: TextToImage, size: int | tuple[int, int] | None) -> None:
    side = 256 if size is None else size if isinstance(size, int) else size[0]
    result = pipe(PROMPT, seeds=[1], size=size, stages=FAST)
    assert [image.size for image in result] == [(side, side)]
    assert result.request.size == (side, side)


def test_prompt_and_seed_decide_the_picture(pipe: TextToImage) -> None:
    result = pipe([PROMPT, "a blue house at night"], seeds=[1, 2], size=16, stages=FAST)
    drawn = {image.tobytes() for image in result}
    assert len(result) == 4
    assert len(drawn) == 4
    assert all(np.ptp(p) > 20 for p in pixels(result))  # pictures, not one colour


def test_same_seed_in_any_company_gives_the_same_bytes(pipe: TextToImage) -> None:
    alone = pipe(PROMPT, seeds=[7], size=64, stages=FAST)
    company = pipe(["three dogs and a moon on the grass", PROMPT], seeds=[3, 7], size=64, stages=FAST)
    assert company[3].tobytes() == alone[0].tobytes()
    assert same(alone, pipe(PROMPT, seeds=[7], size=64, stages=FAST))


def test_a_batch_of_four_stays_within_two_levels(tiny_folder: Path, pipe: TextToImage) -> None:
    wide = mmgen.load(tiny_folder, device="cpu", dtype="float32")
    wide.batch_size = 4
    prompts = [PROMPT, "cat", "three small dogs and a big moon above the green grass at night"]
    one_by_one = pipe(prompts, seeds=[7, 8], size=64, stages=FAST)
    together = wide(prompts, seeds=[7, 8], size=64, stages=FAST)
    for a, b in zip(pixels(one_by_one), pixels(together), strict=True):
        assert np.abs(a - b).max() <= 2


def test_a_request_repeats_its_pictures(pipe: TextToImage) -> None:
    first = pipe(PROMPT, seeds=[5, 6], size=64, negative_prompt="a dog", stages=FAST)
    again = pipe.run(Request.from_json(first.request.to_json()))
    assert same(first, again)
    assert again.request == first.request


def test_a_request_holds_every_setting_that_ran(pipe: TextToImage) -> None:
    request = pipe.request([PROMPT], seeds=[1], size=64, stages=FAST)
    assert set(request.stages) == {"prior", "decoder", "super-res-64"}
    assert request.stages["decoder"].steps == 3
    assert request.stages["decoder"].guidance_scale == DECODER.guidance_scale
    assert (request.model, request.model_digest) == ("tiny", pipe.digest)


def test_a_picture_of_a_batch_comes_again_from_its_own_record(pipe: TextToImage) -> None:
    result = pipe([PROMPT, "a tree"], seeds=[5, 6], size=16, stages=FAST)
    again = pipe.run(result.request.single("a tree", 6))
    assert again[0].tobytes() == result[3].tobytes()


def test_guidance_changes_the_picture(pipe: TextToImage) -> None:
    def drawn(**settings: float) -> Result:
        return pipe(PROMPT, seeds=[1], size=16, stages={"decoder": StageSettings(steps=3, **settings)})

    strong, off = drawn(guidance_scale=6), drawn(guidance_scale=1)
    assert not same(strong, off)
    assert not same(drawn(guidance_scale=0), off)


def test_negative_prompt_changes_the_picture_and_is_not_the_null(pipe: TextToImage) -> None:
    stages = {"decoder": StageSettings(steps=3, guidance_scale=4)}
    plain, dog, house = (
        pipe(PROMPT, seeds=[1], size=16, negative_prompt=text, stages=stages)
        for text in ("", "a dog", "a blue house")
    )
    assert not same(plain, dog)
    assert not same(dog, house)


def test_a_negative_prompt_of_spaces_is_none(pipe: TextToImage) -> None:
    blank = pipe(PROMPT, seeds=[1], size=16, negative_prompt="  ", stages=FAST)
    assert same(blank, pipe(PROMPT, seeds=[1], size=16, stages=FAST))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_sampler_runs_in_every_stage(pipe: TextToImage, sampler: str, steps: int) -> None:
    every = StageSettings(steps=steps, sampler=sampler)  # type: ignore[arg-type]
    result = pipe(
        PROMPT, seeds=[1], size=64, stages={"prior": every, "decoder": every, "super-res-64": every}
    )
    assert np.ptp(pixels(result)[0]) > 20
    taken = {record.stage: record.steps for record in result.records}
    assert taken == {"text": 0, "prior": 2 * steps, "decoder": steps, "super-res-64": steps}


def test_eta_makes_ddim_draw_more_noise(pipe: TextToImage) -> None:
    still, moving = (
        pipe(PROMPT, seeds=[1], size=16, stages={"decoder": StageSettings(steps=3, sampler="ddim", eta=eta)})
        for eta in (0.0, 1.0)
    )
    assert not same(still, moving)


def test_stream_yields_the_steps_of_each_stage_in_order(pipe: TextToImage) -> None:
    request = pipe.request([PROMPT], seeds=[1], size=64, stages=FAST)
    steps = list(pipe.stream(request))
    assert list(dict.fromkeys(step.stage for step in steps)) == ["prior", "decoder", "super-res-64"]
    for stage in ("prior", "decoder", "super-res-64"):
        own = [step for step in steps if step.stage == stage]
        assert [step.index for step in own] == list(range(1, own[0].total + 1))
    assert steps[-1].x0.shape == (1, 3, 64, 64)
    assert [s.x0.shape[-1] for s in steps if s.stage == "decoder"] == [16, 16, 16]


def test_stream_can_be_stopped_and_leaves_no_mode_behind(pipe: TextToImage) -> None:
    steps = pipe.stream(pipe.request([PROMPT], seeds=[1], size=16, stages=FAST))
    next(steps)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    steps.close()
    assert not torch.is_inference_mode_enabled()


def test_two_streams_can_run_by_turns(pipe: TextToImage) -> None:
    request = pipe.request([PROMPT], seeds=[1], size=16, stages=FAST)
    one, two = pipe.stream(request), pipe.stream(request)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.x, b.x)
    assert not torch.is_inference_mode_enabled()


def test_count_draws_seeds_that_count_up(pipe: TextToImage) -> None:
    result = pipe(PROMPT, count=3, size=16, stages=FAST)
    first = result.request.seeds[0]
    assert result.request.seeds == (first, first + 1, first + 2)
    assert len(pipe(PROMPT, size=16, stages=FAST)) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": [1], "count": 2}, "seeds or count, not both"),
        ({"count": 0}, "count is 0"),
        ({"seeds": []}, "no seed"),
        ({"seeds": [-1]}, "seed -1"),
        ({"seeds": [1.5]}, r"seed 1\.5"),
        ({"size": 100}, "cannot draw 100x100: choose 16x16 or 64x64 or 256x256"),
        ({"size": (64, 16)}, "cannot draw 64x16"),
        ({"stages": {"decodr": StageSettings()}}, "no stage 'decodr': tiny has text, prior, decoder"),
    ],
)
def test_what_cannot_be_meant_is_refused(pipe: TextToImage, options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        pipe(PROMPT, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("stage", "settings", "says"),
    [
        ("decoder", {"eta": 0.5, "sampler": "heun"}, "stage 'decoder': sampler 'heun' has no eta, got 0.5"),
        ("decoder", {"eta": 0.0, "sampler": "ddpm"}, "stage 'decoder': sampler 'ddpm' has no eta, got 0"),
        ("super-res-64", {"guidance_scale": 2.0}, "stage 'super-res-64' does not take guidance_scale"),
        ("prior", {"noise_level": 0.1}, "stage 'prior' does not take noise_level"),
    ],
)
def test_settings_that_would_be_ignored_are_refused_before_drawing(
    pipe: TextToImage, stage: str, settings: dict[str, Any], says: str
) -> None:
    stages = {stage: StageSettings(**settings)}
    with pytest.raises(UsageError, match=says):
        pipe.request([PROMPT], seeds=[1], size=64, stages=stages)
    text = Request((PROMPT,), (1,), (64, 64), stages=stages).to_json()
    with pytest.raises(UsageError, match=says):
        next(pipe.stream(Request.from_json(text)))


def test_a_request_that_leaves_settings_open_is_completed(pipe: TextToImage) -> None:
    complete = pipe.request([PROMPT], seeds=[1], size=16)
    drawn = pipe.run(Request((PROMPT,), (1,), (16, 16)))
    assert drawn.request.stages == complete.stages
    assert same(drawn, pipe.run(complete))


class _Slow:
    """A stage that works before, between and after two steps. now: its clock, which nothing else turns but a reader."""

    needs = frozenset({"prompts"})
    gives = frozenset({"image"})
    takes: frozenset[str] = frozenset()
    defaults = StageSettings()
    networks = ()

    def __init__(self, name: str, now: list[float], size: int | None = None) -> None:
        self.name, self.now, self.size = name, now, size

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        image = torch.zeros(len(draft.prompts), 3, 8, 8)
        for index in (1, 2):
            self.now[0] += 1
            assert torch.is_inference_mode_enabled()
            yield Step(self.name, index, 2, 0.0, image, image)
        self.now[0] += 10
        return dataclasses.replace(draft, image=image)


def test_every_stage_has_a_record_of_its_own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("mmgen.pipelines.clock.time.perf_counter", lambda: now[0])
    slow = TextToImage(
        Cascade([_Slow("first", now), _Slow("second", now, 8)]),
        name="slow",
        digest="",
        device=torch.device("cpu"),
    )

    def read() -> Generator[Step, None, None]:
        results.append((yield from slow.stream(slow.request(["one", "two"], seeds=[1]))))

    results: list[Result] = []
    for _ in read():
        now[0] += 100  # the reader's own time
    records = results[0].records
    assert [(r.stage, r.seconds, r.steps) for r in records] == [("first", 24.0, 4), ("second", 24.0, 4)]


def test_a_stage_without_steps_has_a_record_too(pipe: TextToImage) -> None:
    records = pipe(PROMPT, seeds=[1, 2], size=64, stages=FAST).records
    assert [(r.stage, r.steps) for r in records] == [
        ("text", 0), ("prior", 8), ("decoder", 6), ("super-res-64", 2),
    ]  # fmt: skip
    assert all(r.seconds > 0 for r in records)


@pytest.mark.parametrize("prompts", ["", "  ", [], ["cat", ""], "?!"])
def test_prompts_that_say_nothing_are_refused(pipe: TextToImage, prompts: str | list[str]) -> None:
    with pytest.raises(UsageError, match="prompt"):
        pipe(prompts, seeds=[1], size=16)


def test_a_request_of_another_model_is_refused(pipe: TextToImage) -> None:
    request = pipe.request([PROMPT], seeds=[1], size=16, stages=FAST)
    other = dataclasses.replace(request, model_digest="0" * 64)
    with pytest.raises(UsageError, match="Clear model_digest to draw it anyway"):
        pipe.run(other)
    assert same(pipe.run(dataclasses.replace(request, model_digest="")), pipe.run(request))


def test_settings_for_a_stage_that_does_not_run_are_refused(pipe: TextToImage) -> None:
    request = pipe.request([PROMPT], seeds=[1], size=16, stages=FAST)
    stages = {**request.stages, "super-res-64": StageSettings(steps=1)}
    with pytest.raises(UsageError, match="'super-res-64', but at 16 px only text, prior, decoder run"):
        pipe.run(dataclasses.replace(request, stages=stages))


def test_unknown_words_are_told_by_prompt(pipe: TextToImage) -> None:
    result = pipe(["a red cat", "a red catt on a zebra"], seeds=[1], size=16, stages=FAST)
    assert set(result.unknown_words) == {"a red catt on a zebra"}
    told = result.unknown_words["a red catt on a zebra"]
    assert told["catt"] == "cat"
    assert set(told) == {"catt", "zebra"}


@pytest.mark.parametrize("part", ["prior", "decoder", "super-res-64"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_fails_gives_an_error_and_no_picture(
    tiny_folder: Path, part: str, value: float
) -> None:
    broken = mmgen.load(tiny_folder, device="cpu", dtype="float32")
    (stage,) = (s for s in broken.cascade.stages if s.name == part)
    network = stage.network  # type: ignore[attr-defined]
    last = network.out if part == "prior" else network.patches_out
    last.bias.fill_(value)
    with pytest.raises(NonFiniteError, match=f"stage '{part}'"):
        broken(PROMPT, seeds=[1], size=64, stages=FAST)


def test_save_pretrained_then_load_is_the_same_model(pipe: TextToImage, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    again = mmgen.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.digest == pipe.digest
    assert again.name == pipe.name
    assert same(pipe(PROMPT, seeds=[1], size=64, stages=FAST), again(PROMPT, seeds=[1], size=64, stages=FAST))
