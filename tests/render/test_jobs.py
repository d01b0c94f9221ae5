"""Jobs: complete requests without torch, keys that say all and nothing else, names that every system takes."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.errors import ModelError, UsageError
from mmgen.images import FORMATS, SUFFIXES, Format
from mmgen.pipelines.catalogue import Facts, facts
from mmgen.pipelines.families.storybook import DECODER, PRIOR
from mmgen.pipelines.forms import DECODER_TAKES, PRIOR_TAKES, StageForm
from mmgen.render import jobs as jobs_module
from mmgen.render.jobs import (
    FIELDS,
    NAME_BYTES,
    STAGE_BYTES,
    TEMPLATE,
    Job,
    _Seen,
    check_template,
    jobs,
    key_of,
    plan,
)
from mmgen.render.promptfile import Line, Options, PromptFileError, parse
from mmgen.types import MAX_SEED, Request, Size, StageSettings

if TYPE_CHECKING:
    from mmgen.pipelines.text_to_image import TextToImage

ROOT = Path(__file__).resolve().parents[2]
KEYS = "644803e89f3ea00594a0bb9f4c7d6aa16907b6232aa11a7d534d87566ac59c1a"
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 7, "steps": 8, "guidance": 2, "size": (16, 16)},
    {
        "sampler": "ddim",
        "settings": {"decoder": {"eta": 0.5, "guidance_interval": (0.1, 0.9)}, "prior": {"steps": 3}},
    },
    {"seed": MAX_SEED - 1, "threshold": "clip"},
    {"settings": {"decoder": {"guidance_scale": -0.0}}, "threshold": 0.9},
)
TINY = Facts(
    "tiny",
    "d" * 64,
    (
        StageForm("text", frozenset(), StageSettings()),
        StageForm("prior", PRIOR_TAKES, PRIOR),
        StageForm("decoder", DECODER_TAKES, DECODER, 16),
    ),
)


def line(number: int = 1, prompt: str = "a fox", **options: Any) -> Line:
    return Line(number, prompt, Options(**options))


def made(lines: Iterable[Line], run: Options | None = None, **more: Any) -> list[Job]:
    return list(jobs(plan(lines, TINY, run or Options(), **more)))


# ---- requests ------------------------------------------------------------------------------------


def test_a_line_is_complete() -> None:
    (job,) = made([line(7)])
    request = Request(
        ("a fox",),
        (0,),
        (16, 16),
        "",
        {"prior": PRIOR, "decoder": DECODER},
        model="tiny",
        model_digest="d" * 64,
    )
    assert job == Job(1, 7, request, f"000001-a-fox-{key_of(request)[:8]}-0.png")
    assert job.key == key_of(request)


def test_a_line_goes_before_the_run() -> None:
    run = Options(
        count=2, seed=5, size=(16, 16), steps=9, guidance=2.0, sampler="ddim", negative="snow",
        settings={"decoder": {"eta": 0.5, "threshold_cap": 2.0}, "prior": {"steps": 3}},
    )  # fmt: skip
    silent, loud = (
        line(1),
        line(
            2, "a dog", count=1, seed=0, steps=4, threshold="clip", negative="",
            settings={"decoder": {"eta": 0.0}, "prior": {"guidance_scale": 1.0}},
        ),
    )  # fmt: skip
    first, second, third = (job.request for job in made([silent, loud], run))
    assert (first.seeds, second.seeds, third.seeds) == ((5,), (6,), (0,))
    assert (first.negative_prompt, third.negative_prompt) == ("snow", "")
    of_run = {"steps": 9, "guidance_scale": 2.0, "sampler": "ddim", "threshold_cap": 2.0}
    assert first.stages["decoder"] == StageSettings(**of_run, eta=0.5, threshold=DECODER.threshold)
    assert third.stages["decoder"] == StageSettings(**{**of_run, "steps": 4}, eta=0.0, threshold="clip")
    assert first.stages["prior"] == replace(PRIOR, steps=3)
    assert third.stages["prior"] == replace(PRIOR, steps=3, guidance_scale=1.0)


def test_indices_count_and_lines_are_kept() -> None:
    lines = [line(2, count=2), line(9, "a dog", seed=3)]
    assert [(job.index, job.line, job.request.seeds) for job in made(lines)] == [
        (1, 2, (0,)), (2, 2, (1,)), (3, 9, (3,)),
    ]  # fmt: skip


def test_what_is_asked_for_twice_is_drawn_once() -> None:
    lines = [line(1, count=3), line(2), line(3, seed=2, count=2), line(4, steps=32)]
    repeated: list[int] = []

    def planned() -> Iterator[Job | PromptFileError]:
        repeated.append((yield from plan(lines, TINY, Options())))

    drawn = list(jobs(planned()))
    assert repeated == [3]
    assert [(job.index, job.line, job.request.seeds) for job in drawn] == [
        (1, 1, (0,)), (2, 1, (1,)), (3, 1, (2,)), (4, 3, (3,)),
    ]  # fmt: skip


def test_a_key_says_what_decides_the_picture_and_nothing_else() -> None:
    (one,) = made([line(1)])
    (elsewhere,) = made([line(80, steps=32)], Options(seed=0), template="x{index}", format="webp")
    assert elsewhere.key == one.key
    assert elsewhere.name == "x1.webp"
    others = (
        {"prompt": "a Fox"}, {"seed": 1}, {"steps": 31}, {"guidance": 1.6}, {"sampler": "ddim"}, {"negative": "x"},
        {"threshold": "clip"}, {"settings": {"prior": {"steps": 2}}},
    )  # fmt: skip
    keys = {made([line(1, **other)])[0].key for other in others}
    keys |= {key_of(replace(one.request, model_digest="e" * 64)), one.key}
    assert len(keys) == len(others) + 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (16, 64)}, "tiny cannot draw 16x64: choose 16x16"),
        ({"steps": 0}, "steps is 0: it must lie between 1 and 1000"),
        ({"settings": {"upscaler": {"steps": 2}}}, "no stage 'upscaler': tiny has text, prior, decoder"),
        ({"settings": {"prior": {"eta": 0.5}}}, "stage 'prior' does not take eta: it takes steps, sampler"),
        ({"sampler": "euler", "settings": {"decoder": {"eta": 0.5}}}, "stage 'decoder': sampler 'euler' has no eta"),
        ({"steps": 3, "settings": {"decoder": {"steps": 4}}}, "decoder.steps is given twice"),
        ({"seed": MAX_SEED, "count": 2}, f"seed {MAX_SEED + 1}: give a whole number from 0 to"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_with_its_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PromptFileError, match=f"^fox.csv, line 8: {words}") as caught:
        made([line(2, "a dog"), line(8, **options)], source="fox.csv")
    assert caught.value.line == 8
    if "stage" in words or "seed" in words:
        return  # another line may mend that
    with pytest.raises(UsageError, match=f"^{words}"):
        made([line(8)], Options(**options))


def test_settings_that_do_not_fit_into_the_format_are_said_with_their_line() -> None:
    long = line(3, "猫" * 10_000, negative="a" + "🦊" * 9_999)
    for format in ("png", "webp"):
        assert len(made([long], format=format)) == 1
    with pytest.raises(PromptFileError, match=r"line 3: the settings take .* bytes and a JPEG file holds"):
        made([long], format="jpeg")


def test_keys_are_what_they_were() -> None:
    """A folder of an earlier mmgen stays known; the digest is of the keys that version 0.1.0 gave these lines."""
    lines = [
        line(number, prompt, count=2, negative=negative, **options)
        for number, prompt in enumerate(
            ["a fox", '"quoted" \\ back', "猫 é\u0301 🦊", "a\tb\x7f</x>&", "x" * 500]
        )
        for negative in (None, "snow", 'no "prompts": ["x"], "seeds": [0], ')
        for options in KINDS
    ]
    prior = StageSettings(steps=16, sampler="ddpm", guidance_scale=3.0)
    decoder = StageSettings(steps=32, sampler="ddpm", guidance_scale=1.5, threshold=0.995, threshold_cap=1.5)
    text = StageForm("text", frozenset(), StageSettings())
    forms = (text, StageForm("prior", PRIOR_TAKES, prior), StageForm("decoder", DECODER_TAKES, decoder, 16))
    found = list(jobs(plan(lines, replace(TINY, forms=forms), Options())))
    made_keys = [job.key for job in found]
    assert made_keys == [key_of(job.request) for job in found]
    assert len(made_keys) == 2 * len(lines)
    assert hashlib.sha256("".join(made_keys).encode()).hexdigest() == KEYS


def test_what_a_line_asks_for_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_RECIPES", 3)
    lines = [line(number, steps=1 + number % 7, seed=number) for number in range(50)]
    for job in made(lines):
        alone = TINY.request("a fox", job.line, stages={"decoder": StageSettings(steps=1 + job.line % 7)})
        assert (job.request, job.key) == (alone, key_of(alone))
        assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301 - our own


def test_all_that_is_wrong_is_told_line_by_line() -> None:
    lines = [
        line(1, size=(16, 64)),
        line(2),
        PromptFileError("a.txt", 3, "no text"),
        line(4, steps=0),
        line(5, count=2),
    ]
    found = list(plan(lines, TINY, Options(), source="a.txt"))
    assert [one.line for one in found] == [1, 2, 3, 4, 5, 5][: len(found)]
    assert [str(one)[:14] for one in found if isinstance(one, PromptFileError)] == [
        "a.txt, line 1:", "a.txt, line 3:", "a.txt, line 4:",
    ]  # fmt: skip


def test_a_long_file_takes_no_memory_but_for_its_keys(tmp_path: Path) -> None:
    count = 100_000
    with (tmp_path / "long.txt").open("w") as file:
        file.writelines(f"a fox number {number}\n" for number in range(count))
    run = jobs(plan(parse(tmp_path / "long.txt"), TINY, Options()))
    for _ in islice(run, 1000):
        pass
    tracemalloc.start()
    try:
        assert sum(1 for _ in run) == count - 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # each has at most a place of 16 bytes, in one of 65,536 rows
    assert peak < 2**20 + 2**16 * 180 + 20 * count


def test_digests_are_known_again_with_the_line_of_the_first() -> None:
    seen = _Seen()
    digests = [bytes([0, number % 2]) + hashlib.sha256(b"%d" % number).digest() for number in range(5000)]
    assert [seen.first_line(digest, line) for line, digest in enumerate(digests, 2**31)] == [None] * 5000
    assert [seen.first_line(digest, 1) for digest in digests] == list(range(2**31, 2**31 + 5000))


# ---- names ---------------------------------------------------------------------------------------

FORBIDDEN = set('<>:"/\\|?*')
prompts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300).filter(
    lambda text: any(c.isalnum() for c in text)
)
parts = st.one_of(
    st.sampled_from([f"{{{name}}}" for name in FIELDS]),
    st.sampled_from(
        ["{index:06d}", "{slug:>99}", "{seed:040d}", ".", " ", "-", "con", "COM1.", "é", "e\u0301", "{{"]
    ),
)


@settings(max_examples=400)
@given(prompt=prompts, pieces=st.lists(parts, max_size=6), format=st.sampled_from(FORMATS))
def test_every_system_takes_a_name(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, pieces: list[str], format: Format
) -> None:
    template = "".join(pieces)
    try:
        (job,) = made([line(1, prompt, seed=MAX_SEED)], template=template, format=format)
    except PromptFileError as error:
        assert f"names of more than {NAME_BYTES - STAGE_BYTES} bytes" in str(error)
        assert sum(piece in ("{key}", "{slug:>99}", "{seed:040d}") for piece in pieces) >= 2
        return
    name = job.name
    assert name.endswith(SUFFIXES[format])
    assert len(name.encode()) <= NAME_BYTES - STAGE_BYTES
    assert not FORBIDDEN & set(name)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name)
    assert unicodedata.is_normalized("NFC", name)
    assert name[0] not in ". "
    assert name.split(".")[0].rstrip().lower() not in ("", "con", "nul", "com1")
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(b"")
    path.unlink()


@pytest.mark.parametrize(
    ("prompt", "template", "name"),
    [
        ("Con", "{slug}", "_con.png"),
        ("a fox", " ..{slug}. ", "a-fox.png"),
        ("a fox", "{model}-{size}-{width:04d}x{height}", "tiny-16x16-0016x16.png"),
        ("a fox", "{steps}-{guidance}-{sampler}-{threshold}-{number}-{line}", "32-1.5-ddpm-0.995-1-1.png"),
        ("a fox", "{{{seed}}}", "{0}.png"),
        ("猫" * 90, "{slug}{slug}{slug}{seed}", "猫" * 39 + "0.png"),
        ("a" * 90, "x" * 150 + "{slug}", "x" * 150 + "a" * 20 + ".png"),
    ],
)
def test_names_are_made_of_fields(prompt: str, template: str, name: str) -> None:
    assert [job.name for job in made([line(1, prompt)], template=template)] == [name]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{nmae}", "no field 'nmae', there are index, line, number, slug"),
        ("{}", "no field ''"),
        ("{index.real}", "no field 'index.real'"),
        ("{index", "expected '}'"),
        ("{slug!r}", "after 'slug' only a width may stand"),
        ("{index:{seed}}", "after 'index' only a width may stand"),
        ("{index:999999999}", "after 'index' only a width may stand"),
        ("{slug:06d}", "Unknown format code 'd'"),
        ("out/{slug}", "no file name holds '/'"),
        ("..\\{slug}", r"no file name holds '\\\\'"),
        ("a\u202e{slug}", "no file name holds"),
        ("a\n{slug}", r"no file name holds '\\n'"),
    ],
)
def test_a_template_that_makes_no_names_is_refused(template: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"^--name .*{words}"):
        check_template(template)
    with pytest.raises(UsageError, match=r"^--name"):
        made([line()], template=template)


@given(
    asked=st.lists(st.tuples(prompts, st.integers(0, 3)), min_size=2, max_size=8),
    template=st.sampled_from(
        [TEMPLATE, "{index:06d}-{slug}", "{slug}-{key8}", "{index}{seed}", "{slug}", "x{line}"]
    ),
)
def test_names_are_one_each_or_an_error(asked: list[tuple[str, int]], template: str) -> None:
    lines = [line(number, prompt, seed=seed) for number, (prompt, seed) in enumerate(asked, 1)]
    found = list(plan(lines, TINY, Options(), template=template))
    names = [job.name.casefold() for job in found if isinstance(job, Job)]
    assert len(set(names)) == len(names)
    assert all(os.path.basename(name) == name not in ("", ".", "..") for name in names)
    assert all("as one of line" in str(error) for error in found if isinstance(error, PromptFileError))
    if template.startswith("{index:06d}-"):
        assert len(names) == len(set(asked))


def test_names_that_are_too_long_are_said() -> None:
    with pytest.raises(
        PromptFileError, match=f"makes names of more than {NAME_BYTES - STAGE_BYTES} bytes: shorten it"
    ):
        made([line()], template="é" * 99)


def test_two_pictures_never_share_a_name() -> None:
    lines = [line(1, "a fox"), line(2, "a dog"), line(5, "A  FOX!")]
    assert len(made(lines)) == 3
    with pytest.raises(
        PromptFileError, match=r"line 5: its picture is to be named a-fox\.png, as one of line 1"
    ):
        made(lines, template="{slug}")
    samplers = [line(1, sampler="EulerScheduler"), line(2, sampler="EULERScheduler")]
    with pytest.raises(PromptFileError, match="as one of line 1"):  # on some systems it is one name
        made(samplers, template="{sampler}")
    assert [job.name for job in made([line(1), line(2)], template="{slug}")] == ["a-fox.png"]  # one picture


def test_the_default_name_has_room_for_all() -> None:
    (job,) = made([line(1, "猫" * 10_000, seed=MAX_SEED)], template=TEMPLATE)
    assert job.name == f"000001-{'猫' * 26}-{job.key[:8]}-{MAX_SEED}.png"


# ---- beside the loaded model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints import write_tiny  # imports torch

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> TextToImage:
    import mmgen

    return mmgen.load(tiny, device="cpu", dtype="float32")


ASKED: tuple[tuple[Size | None, dict[str, StageSettings]], ...] = (
    (None, {}),
    ((16, 16), {}),
    ((64, 64), {"decoder": StageSettings(steps=3, sampler="ddim", eta=0.25, threshold="clip")}),
    ((256, 256), {"text": StageSettings(), "super-res-256": StageSettings(noise_level=0.1)}),
    (None, {"prior": StageSettings(sampler="heun"), "decoder": StageSettings(resample=4, guidance_interval=(0, 1))}),
    ((16, 16), {"decoder": StageSettings(sampler="EulerDiscreteScheduler", guidance_scale=1)}),
)  # fmt: skip


@pytest.mark.parametrize("embeds", ["prior", "given", "none"])
def test_a_request_without_torch_is_that_of_the_loaded_model(tiny: Path, tmp_path: Path, embeds: str) -> None:
    import mmgen
    from mmgen.pipelines.checkpoint import write_manifest

    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    index = folder / "model_index.json"
    index.write_text(index.read_text("utf-8").replace('"image_embed": "prior"', f'"image_embed": "{embeds}"'))
    write_manifest(folder)
    known, pipe = facts(folder), mmgen.load(folder, device="cpu", dtype="float32")
    chain = pipe.cascade.stages
    assert known.forms == tuple(
        StageForm(one.name, one.takes, one.defaults, one.size, getattr(one, "factor", None)) for one in chain
    )
    assert known.sides == pipe.sizes
    for size, stages in ASKED:
        if "prior" in stages and embeds != "prior":
            continue
        of_model = pipe.request("a cat", seeds=[5], size=size, negative_prompt="snow", stages=stages)
        ours = known.request("a cat", 5, size=size, negative_prompt="snow", stages=stages)
        assert ours.to_json() == of_model.to_json()


@pytest.mark.parametrize(
    ("size", "stages"),
    [
        ((32, 32), {}),
        ((16, 64), {}),
        (None, {"decodr": StageSettings(steps=2)}),
        ((16, 16), {"super-res-64": StageSettings(steps=2)}),
        (None, {"prior": StageSettings(noise_level=0.5)}),
        (None, {"decoder": StageSettings(eta=0.5)}),
        (None, {"decoder": StageSettings(sampler="dpmpp-2m", resample=2)}),
    ],
)
def test_what_the_loaded_model_refuses_is_refused_in_the_same_words(
    tiny: Path, pipe: TextToImage, size: Size | None, stages: dict[str, StageSettings]
) -> None:
    with pytest.raises(UsageError) as expected:
        pipe.request("a cat", seeds=[5], size=size, stages=stages)
    with pytest.raises(UsageError) as caught:
        facts(tiny).request("a cat", 5, size=size, stages=stages)
    assert str(caught.value) == str(expected.value)


def test_an_index_that_cannot_be_meant_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    index = folder / "model_index.json"
    index.write_text(index.read_text("utf-8").replace('"image_embed": "prior"', '"image_embed": "perhaps"'))
    with pytest.raises(ModelError, match="checkpoint copy: image_embed is 'perhaps' in the index"):
        facts(folder)


def test_jobs_need_no_torch() -> None:
    code = """
import sys
from mmgen.pipelines.catalogue import facts
from mmgen.render.folder import Folder
from mmgen.render.jobs import jobs, plan
from mmgen.render.promptfile import Line, Options
(job,) = jobs(plan([Line(1, "a fox", Options(size=(64, 64)))], facts("storybook"), Options()))
sys.stdout.write(job.name)
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("000001-a-fox-")
