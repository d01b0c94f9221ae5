import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.errors import UsageError
from mmgen.result import Result
from mmgen.types import MAX_SEED, MAX_STEPS, SAMPLERS, Request, StageRecord, StageSettings

unit = st.floats(0, 1)
stage_settings = st.builds(
    StageSettings,
    steps=st.none() | st.integers(1, MAX_STEPS),
    sampler=st.none() | st.sampled_from(SAMPLERS),
    eta=st.none() | unit | st.integers(0, 1),
    guidance_scale=st.none() | st.floats(0, 100) | st.integers(0, 100),
    guidance_interval=st.none() | st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
    guidance_rescale=st.none() | unit,
    guidance_parallel=st.none() | unit,
    guidance_limit=st.none() | st.floats(0.01, 2),
    threshold=st.none() | st.floats(0.01, 0.999) | st.sampled_from(["clip", "none"]),
    threshold_cap=st.none() | st.floats(1, 100),
    noise_level=st.none() | unit,
)
prompts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).map(
    "a".__add__
)
requests = st.builds(
    Request,
    prompts=st.lists(prompts, min_size=1, max_size=3).map(tuple),
    seeds=st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=3).map(tuple),
    size=st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)),
    negative_prompt=st.just("") | prompts,
    stages=st.dictionaries(st.text(max_size=8), stage_settings, max_size=3),
    model=st.text(max_size=5),
)
DIGEST = "0" * 64
MIX = Request(("", "a cat"), (1, 2), (8, 8), verb="mix", inputs={"image": DIGEST}, weights=(0.25, 0.75))
WAY = Request(("a cat", "a dog"), (1, 2), (8, 8), verb="interpolate", weights=(0, 0.5, 1))
DIFF = Request(
    ("a cat", "a red cat"), (1,), (8, 8), verb="diff-text", inputs={"image": DIGEST}, weights=(0.4,)
)
nonsense = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1e308, math.nan, math.inf])
    | st.floats()
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
A_REQUEST = Request(prompts=("a cat",), seeds=(1,), size=(64, 64))
FIELDS = [f.name for f in dataclasses.fields(Request)]
SETTINGS = [f.name for f in dataclasses.fields(StageSettings)]


@given(requests)
@settings(max_examples=200)
def test_a_request_survives_json(request):
    text = request.to_json()
    again = Request.from_json(text)
    assert again == request
    assert again.to_json() == text
    assert "\n" not in text
    text.encode()


@given(stage_settings)
def test_settings_survive_json(given_settings):
    assert StageSettings.from_dict(json.loads(json.dumps(given_settings.to_dict()))) == given_settings


def test_equal_settings_are_equal_text():
    whole = Request(
        ("a",), (1,), (8, 8), stages={"x": StageSettings(eta=0, guidance_scale=2, noise_level=-0.0)}
    )
    broken = Request(
        ("a",), (1,), (8, 8), stages={"x": StageSettings(eta=0.0, guidance_scale=2.0, noise_level=0)}
    )
    assert whole == broken
    assert whole.to_json() == broken.to_json()


@given(requests)
@settings(max_examples=20)
def test_a_request_can_go_to_another_process(request):
    assert pickle.loads(pickle.dumps(request)) == copy.deepcopy(request) == request  # noqa: S301  # our own bytes


@given(text=st.text(max_size=30) | nonsense.map(lambda value: json.dumps(value)))
@settings(max_examples=300)
def test_nonsense_text_is_a_usage_error(text):
    with pytest.raises(UsageError):
        Request.from_json(text)


@given(change=st.dictionaries(st.sampled_from([*FIELDS, "colour"]), nonsense, min_size=1, max_size=3))
@settings(max_examples=500)
def test_nonsense_in_a_field_is_a_usage_error_or_a_request(change):
    values = json.loads(A_REQUEST.to_json()) | change
    try:
        request = Request.from_json(json.dumps(values))
    except UsageError:
        return
    assert Request.from_json(request.to_json()) == request
    request.to_json().encode()


@given(change=st.dictionaries(st.sampled_from([*SETTINGS, "colour"]), nonsense, min_size=1, max_size=3))
@settings(max_examples=500)
def test_nonsense_in_a_setting_is_a_usage_error_or_a_setting(change):
    try:
        made = StageSettings.from_dict(change)
    except UsageError:
        return
    assert StageSettings.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        '"a"',
        "{",
        "{}",
        '{"prompts": ["a"]}',
        "[" * 100_000,
        '{"prompts": 1' + "0" * 5000 + "}",
    ],
    ids=lambda text: text[:12],
)
def test_text_that_is_not_a_request(text):
    with pytest.raises(UsageError, match="not a request"):
        Request.from_json(text)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"steps": MAX_STEPS + 1},
        {"steps": 2.0},
        {"steps": True},
        {"steps": "8"},
        {"steps": 10**400},
        {"sampler": "Euler"},
        {"sampler": ["euler"]},
        {"eta": -0.1},
        {"eta": 1.1},
        {"eta": math.nan},
        {"eta": True},
        {"guidance_scale": -1},
        {"guidance_scale": math.inf},
        {"guidance_scale": 10**400},
        {"guidance_scale": "3"},
        {"guidance_interval": 0.5},
        {"guidance_interval": (0.5,)},
        {"guidance_interval": (0.5, 0.2)},
        {"guidance_interval": (0.5, 0.5)},
        {"guidance_interval": (0.5, 1.5)},
        {"guidance_interval": {0.1: 1, 0.2: 2}},
        {"guidance_interval": "ab"},
        {"guidance_rescale": 1.5},
        {"guidance_parallel": -0.1},
        {"guidance_limit": 0},
        {"threshold": 0},
        {"threshold": 1},
        {"threshold": "static"},
        {"threshold": [0.9]},
        {"threshold_cap": 0.5},
        {"noise_level": 2},
        {"timesteps": "fast"},
        {"timesteps": ["fast27"]},
        {"timesteps": "fast27", "steps": 26},
    ],
    ids=str,
)
def test_a_bad_setting_is_a_usage_error_that_names_it(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        StageSettings(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"prompts": ()},
        {"prompts": ("",)},
        {"prompts": ("  ",)},
        {"prompts": ("?!",)},
        {"prompts": (3,)},
        {"prompts": "a cat"},
        {"prompts": ["a cat"]},
        {"prompts": ("a\0cat",)},
        {"prompts": ("a\ud800cat",)},
        {"prompts": ("a" * 10_001,)},
        {"seeds": ()},
        {"seeds": (-1,)},
        {"seeds": (MAX_SEED + 1,)},
        {"seeds": (1.0,)},
        {"seeds": (True,)},
        {"seeds": 3},
        {"size": 64},
        {"size": (64,)},
        {"size": (64, 0)},
        {"size": (64, 64.0)},
        {"size": (64, True)},
        {"negative_prompt": None},
        {"negative_prompt": "\ud800a"},
        {"stages": {"decoder": {"steps": 4}}},
        {"stages": {1: StageSettings()}},
        {"model": 5},
        {"model_digest": None},
    ],
    ids=lambda values: repr(values)[:40],
)
def test_a_bad_request_is_a_usage_error(values):
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(A_REQUEST, **values)
    assert "\n" not in str(caught.value)


def test_defaults_fill_only_what_is_not_given():
    asked = StageSettings(steps=4, eta=0.0)
    defaults = StageSettings(steps=9, eta=0.5, sampler="heun")
    assert asked.with_defaults(defaults) == StageSettings(steps=4, eta=0.0, sampler="heun")


def test_pictures_are_prompt_major_and_each_has_its_own_request():
    request = Request(("a", "b"), (1, 2), (8, 8))
    assert list(request.pictures()) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert request.single("b", 1) == Request(("b",), (1,), (8, 8))


def test_parts_make_a_picture_together():
    assert list(MIX.pictures()) == [("a cat", 1), ("a cat", 2)]
    assert [single.seeds for single in MIX.singles()] == [(1,), (2,)]
    assert [(single.seeds, single.weights) for single in WAY.singles()] == [
        ((seed,), (weight,)) for seed in (1, 2) for weight in (0.0, 0.5, 1.0)
    ]
    assert next(iter(WAY.pictures())) == ("a cat -> a dog", 1)
    assert list(DIFF.pictures()) == [("a cat -> a red cat", 1)]
    for request in (MIX, WAY, DIFF):
        assert Request.from_json(request.to_json()) == request
        assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301  # our own bytes
        assert all(list(single.singles()) == [single] for single in request.singles())


def test_a_request_of_one_prompt_each_is_told_apart_by_prompt_and_seed():
    request = Request(("a", "b"), (1, 2), (8, 8))
    assert list(request.singles()) == [request.single(*picture) for picture in request.pictures()]


@pytest.mark.parametrize(
    ("request_", "values", "says"),
    [
        (MIX, {"weights": (0.5, 0.6)}, "the weights 0.5, 0.6 sum to 1.1: they must sum to 1"),
        (MIX, {"weights": (1.0,)}, "1 weights for 2 parts"),
        (MIX, {"weights": ()}, "was given 0 weights"),
        (MIX, {"weights": [0.25, 0.75]}, "'weights' is .*: give a tuple"),
        (MIX, {"weights": ("a", "b")}, "a weight is 'a': give a number"),
        (MIX, {"weights": (math.nan, 1.0)}, "a weight is nan"),
        (MIX, {"prompts": ("a cat",), "inputs": {}, "weights": (1.0,)}, "and 1 is given: give two or more"),
        (MIX, {"prompts": ("", "")}, "mix starts from image and image-2, not from image"),
        (MIX, {"prompts": ("a cat", " ")}, "mix starts from no picture, not from image"),
        (
            MIX,
            {
                "prompts": (" ", ""),
            },
            "the prompt is empty",
        ),
        (MIX, {"negative_prompt": "a dog"}, "mix takes no negative prompt: leave it out"),
        (WAY, {"prompts": ("a", "b", "c")}, "from one picture or text to another: give two, not 3"),
        (WAY, {"weights": (0.5, 1.5)}, "a weight is 1.5"),
        (WAY, {"weights": (0.5,) * 1001}, "was given 1001 weights"),
        (DIFF, {"prompts": ("a cat",)}, "diff-text goes from one text to another: give two, not 1"),
        (DIFF, {"prompts": ("a cat", "")}, "the prompt is empty"),
        (DIFF, {"inputs": {}}, "diff-text starts from image, not from none"),
        (DIFF, {"verb": "vary", "weights": ()}, "vary takes no prompt"),
        (DIFF, {"verb": "edit", "strength": 0.5}, "weights 0.4 are given: edit takes none"),
    ],
)
def test_parts_and_weights_that_cannot_be_meant(request_, values, says):
    with pytest.raises(UsageError, match=says):
        dataclasses.replace(request_, **values)


def test_a_request_cannot_be_changed():
    stages = {"decoder": StageSettings(steps=4)}
    request = dataclasses.replace(A_REQUEST, stages=stages)
    stages["decoder"] = StageSettings(steps=9)
    assert request.stages["decoder"].steps == 4
    with pytest.raises(TypeError):
        request.stages["prior"] = StageSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.seeds = (2,)


def test_a_result_is_a_sequence_of_pictures():
    result = Result(
        A_REQUEST, ("one", "two"), (StageRecord("decoder", 1.25, 8), StageRecord("prior", 0.5, 8))
    )
    assert list(result) == ["one", "two"] == [result[0], result[1]]
    assert len(result) == 2
    assert repr(result) == "Result(2 pictures, 64x64, 1.8 s)"


def test_the_values_import_no_torch():
    check = "import sys, mmgen.types, mmgen.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=120).returncode == 0
