"""What a person meets in a notebook: results that show and save themselves, bars, previews, callbacks, interruption."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mmgen.errors import UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.notebook import COLUMNS, PREVIEW_EVERY, bars, in_jupyter
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.result import CAPTION_CHARS, Result
from mmgen.schedulers.samplers import Step
from mmgen.thumbnails import SIDE, figures
from mmgen.types import StageSettings

FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=5)}
PROMPT = "a red cat on the beach"
MARKUP = "<b onclick=\"x()\">a cat</b> & 'a dog'"


class Easel:
    """Gives a picture's noise for a picture, after two steps; somebody interrupts it at the seed `stop_at`."""

    name = "decoder"
    needs = frozenset({"prompts"})
    gives = frozenset({"image"})
    takes = frozenset({"steps"})
    defaults = StageSettings(steps=2)
    size = 8
    networks = ()

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at = stop_at

    def run(self, draft: Draft, settings: StageSettings, noise: Noise) -> Generator[Step, None, Draft]:
        image = noise.draw((3, 8, 8)).clamp(-1, 1)
        yield Step(self.name, 1, 2, 0.5, image, image)
        if self.stop_at in noise.seeds:
            raise KeyboardInterrupt
        yield Step(self.name, 2, 2, 0.0, image, image)
        return replace(draft, image=image)


def easel(stop_at: int | None = None) -> TextToImage:
    return TextToImage(Cascade([Easel(stop_at)]), name="easel", digest="", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def result() -> Result:
    return easel()(["a fox", MARKUP], seeds=[1, 2])


def same(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


# ---- the result ----------------------------------------------------------------------------------


def test_a_result_is_a_sequence_in_every_way(result: Result) -> None:
    assert isinstance(result, Sequence)
    assert len(result) == 4
    assert result[1:3] == (result[1], result[2])
    assert result[-1] is result[3]
    assert list(reversed(result)) == [result[3], result[2], result[1], result[0]]
    assert result.index(result[1]) == 1
    assert result.count(result[1]) == 2  # the easel draws by seed alone
    assert result[0] in result
    with pytest.raises(IndexError):
        result[4]


class _Page(HTMLParser):
    """What a browser makes of HTML: its tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def pictures_of(page: _Page) -> list[Image.Image]:
    sources = [str(image["src"]).removeprefix("data:image/webp;base64,") for image in page.images]
    return [Image.open(io.BytesIO(base64.b64decode(source, validate=True))) for source in sources]


def test_jupyter_shows_every_picture_with_prompt_and_seed(result: Result) -> None:
    page = _Page(result._repr_html_())
    captions = ["a fox, seed 1", "a fox, seed 2", f"{MARKUP}, seed 1", f"{MARKUP}, seed 2"]
    assert page.tags == ["div", *["figure", "img", "figcaption"] * 4]  # no tag of the prompt's own
    assert page.texts == captions
    assert [image["alt"] for image in page.images] == captions
    assert [(shown.format, shown.size) for shown in pictures_of(page)] == [("WEBP", (8, 8))] * 4


def test_a_large_picture_is_shown_small_and_stays_large() -> None:
    image = Image.new("RGB", (1024, 512), "red")
    (shown,) = pictures_of(_Page(figures([image], ["red"])))
    assert shown.size == (SIDE, SIDE // 2)
    assert image.size == (1024, 512)


def test_a_long_prompt_does_not_bury_its_picture() -> None:
    (caption,) = _Page(easel()("cat " * 2000, seeds=[1])._repr_html_()).texts
    assert len(caption) < CAPTION_CHARS + 20
    assert caption.endswith("..., seed 1")


def test_the_grid_has_a_cell_and_a_caption_for_each(result: Result) -> None:
    two, four = result.grid(columns=2), result.grid()
    assert (two.width, four.width) == (16, 32)
    assert two.height == 2 * four.height
    assert four.height > 8  # the captions stand below
    assert four.crop((0, 0, 8, 8)).tobytes() == result[0].tobytes()


def test_saved_pictures_hold_their_own_settings_and_replace_nothing(result: Result, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = result.save(folder)
    assert [path.name for path in paths] == [
        "0001-a-fox-1.png", "0002-a-fox-2.png",
        "0003-b-onclick-x-a-cat-b-a-dog-1.png", "0004-b-onclick-x-a-cat-b-a-dog-2.png",
    ]  # fmt: skip
    singles = [result.request.single(*picture) for picture in result.request.pictures()]
    assert [read_metadata(path)["request"] for path in paths] == singles
    assert same([Image.open(path) for path in paths], result)
    more = result.save(str(folder), "webp")
    assert [path.name[:5] for path in more] == ["0005-", "0006-", "0007-", "0008-"]
    assert [read_metadata(path)["request"] for path in more] == singles
    assert sorted(folder.iterdir()) == [*paths, *more]


def test_what_cannot_be_saved_is_refused_before_anything_is_written(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format 'gif': choose one of png, jpeg, webp"):
        result.save(tmp_path / "out", "gif")  # type: ignore[arg-type]
    long = easel()(["a fox", "a" + "🦊" * 9_990], seeds=[1], negative_prompt="a" + "🦊" * 9_990)
    with pytest.raises(UsageError, match="JPEG"):
        long.save(tmp_path / "out", "jpeg")
    assert list(tmp_path.iterdir()) == []


# ---- interruption --------------------------------------------------------------------------------


def test_an_interrupted_run_returns_the_pictures_that_are_done(tmp_path: Path) -> None:
    whole = easel()("a fox", seeds=[1, 2, 3, 4])
    part = easel(stop_at=3)("a fox", seeds=[1, 2, 3, 4])
    assert same(part, whole[:2])
    assert part.request == whole.request
    assert (whole.complete, part.complete) == (True, False)
    assert re.fullmatch(r"Result\(2 of 4 pictures, 8x8, \d+\.\d s\)", repr(part))
    assert repr(easel()("a fox", seeds=[1])).startswith("Result(1 picture, 8x8, ")
    assert [record.steps for record in part.records] == [5]
    assert [path.name for path in part.save(tmp_path)] == ["0001-a-fox-1.png", "0002-a-fox-2.png"]
    assert part.grid().width == 16


def test_an_interruption_between_the_steps_does_the_same() -> None:
    def stop(_pipe: TextToImage, _index: int, _t: float, _kwargs: dict[str, Any]) -> None:
        seen.append(_index)
        if len(seen) == 3:
            raise KeyboardInterrupt

    seen: list[int] = []
    assert len(easel()("a fox", seeds=[1, 2], callback_on_step_end=stop)) == 1
    assert seen == [0, 1, 0]


def test_an_interruption_with_nothing_done_goes_on_upwards() -> None:
    with pytest.raises(KeyboardInterrupt):
        easel(stop_at=1)("a fox", seeds=[1, 2])


@pytest.mark.parametrize("face", ["run", "stream"])
def test_a_program_that_draws_hears_of_every_interruption(face: str) -> None:
    stopped = easel(stop_at=2)
    request = stopped.request("a fox", seeds=[1, 2])
    with pytest.raises(KeyboardInterrupt):
        stopped.run(request) if face == "run" else list(stopped.stream(request))


# ---- streams, requests, callbacks ----------------------------------------------------------------


def test_a_stream_takes_what_a_call_takes(pipe: TextToImage) -> None:
    called = pipe(PROMPT, seeds=[3], size=16, negative_prompt="a dog", stages=FAST)
    streamed = finish(pipe.stream(PROMPT, seeds=[3], size=16, negative_prompt="a dog", stages=FAST))
    assert same(called, streamed)
    assert called.request == streamed.request
    assert len(finish(pipe.stream(PROMPT, count=2, size=16, stages=FAST))) == 2


def test_a_step_shows_the_pictures_as_they_are_by_now(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[1], size=64, stages=FAST))
    sizes = {step.stage: [image.size for image in step.preview()] for step in steps}
    assert sizes == {"prior": [], "decoder": [(16, 16)], "super-res-64": [(64, 64)]}


def test_a_call_draws_a_request_too() -> None:
    drawn = easel()("a fox", seeds=[1, 2])
    assert same(drawn, easel()(drawn.request))


def test_what_cannot_be_streamed_is_refused_before_the_first_step(pipe: TextToImage) -> None:
    request = pipe.request(PROMPT, seeds=[1], size=16)
    with pytest.raises(UsageError, match="a request says everything itself: leave seeds out"):
        pipe.stream(request, seeds=[2])
    with pytest.raises(UsageError, match="cannot draw 17x17"):
        pipe.stream(PROMPT, size=17)
    with pytest.raises(UsageError, match=r"seeds is 7: give a list, such as \[7\]"):
        pipe(PROMPT, seeds=7)  # type: ignore[arg-type]


def test_a_callback_sees_every_step_as_in_diffusers(pipe: TextToImage) -> None:
    def see(given: TextToImage, index: int, t: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert given is pipe
        seen.append((kwargs["stage"], index, t, tuple(kwargs["x0"].shape)))
        return kwargs

    seen: list[tuple[str, int, float, tuple[int, ...]]] = []
    drawn = pipe(PROMPT, seeds=[1], size=64, stages=FAST, callback_on_step_end=see)
    assert same(drawn, pipe(PROMPT, seeds=[1], size=64, stages=FAST))
    assert [step[:2] for step in seen] == [
        *(("prior", i) for i in range(4)), *(("decoder", i) for i in range(5)),
        ("super-res-64", 0),
    ]  # fmt: skip
    times = [t for stage, _, t, _ in seen if stage == "decoder"]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert {stage: shape for stage, _, _, shape in seen if stage != "prior"} == {
        "decoder": (1, 3, 16, 16),
        "super-res-64": (1, 3, 64, 64),
    }


@pytest.mark.parametrize("returned", [None, {}, {"stage": "decoder"}])
def test_a_callback_may_return_nothing_or_what_it_was_given(returned: Mapping[str, Any] | None) -> None:
    assert len(easel()("a fox", seeds=[1], callback_on_step_end=lambda *_: returned)) == 1


@pytest.mark.parametrize("name", ["x0", "latents"])
def test_a_callback_that_would_change_a_step_is_refused(name: str) -> None:
    def change(_pipe: TextToImage, _index: int, _t: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs[name] = torch.zeros(1)
        return kwargs

    with pytest.raises(UsageError, match=f"returned another '{name}': steps can be watched, not changed"):
        easel()("a fox", seeds=[1], callback_on_step_end=change)


# ---- bars and previews ---------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Display:
    """IPython.display, as far as previews use it: the texts that stood in each place, one after another."""

    def __init__(self) -> None:
        self.places: list[list[str]] = []

    def HTML(self, text: str) -> str:
        return text

    def display(self, text: str, display_id: bool) -> SimpleNamespace:
        assert display_id
        self.places.append([text])
        return SimpleNamespace(update=self.places[-1].append)


@pytest.fixture
def jupyter(monkeypatch: pytest.MonkeyPatch) -> _Display:
    """A Jupyter kernel, as far as it is looked at."""
    display = _Display()
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return display


def last_of(bar: str, text: str) -> str:
    """What a bar says at last, such as "4/4"."""
    found: list[str] = re.findall(rf"{bar}: +\d+%\|.*?\| (\d+/\d+) ", text)
    return found[-1]


def test_nobody_follows_so_nothing_is_shown(
    pipe: TextToImage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(PROMPT, seeds=[1], size=16, stages=FAST)
    monkeypatch.setattr(sys, "stderr", None)
    pipe(PROMPT, seeds=[1], size=16, stages=FAST)
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    pipe(PROMPT, seeds=[1], size=16, stages=FAST, progress=False)
    assert terminal.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_for_each_stage_over_all_pictures(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    pipe(PROMPT, seeds=[1, 2], size=64, stages=FAST)
    shown = terminal.getvalue()
    assert [last_of(stage, shown) for stage in ("prior", "decoder", "super-res-64")] == [
        "8/8",
        "10/10",
        "2/2",
    ]
    assert "text" not in shown  # it has no steps
    assert shown.endswith("\n")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that bars read; it stands until a test changes it."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("mmgen.pipelines.notebook.time.time", lambda: now[0])
    return now


def steps_of(stage: str, total: int) -> list[Step]:
    x = torch.zeros(1)
    return [Step(stage, index, total, 0.0, x, x) for index in range(1, total + 1)]


@pytest.mark.usefixtures("now")
def test_a_bar_says_where_its_stage_stands_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    with bars(batches=3, rounds={}) as show:
        for done in ("2/6", "4/6"):
            for step in steps_of("prior", 2):
                show(step)
            assert last_of("prior", terminal.getvalue()) == done


def test_a_bar_counts_the_time_of_its_own_stage(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    with bars(batches=2, rounds={}) as show:
        for stage, seconds in [("prior", 1), ("decoder", 10)] * 2:
            for step in steps_of(stage, 2):
                now[0] += seconds
                show(step)
        now[0] += 100
    ended = re.findall(r"(\w+): 100%[^\r]* 4/4 \[(\d\d:\d\d)<", terminal.getvalue())
    # without a stage's first step of all, which is when its bar appears
    assert ended[-2:] == [("prior", "00:03"), ("decoder", "00:30")]


def test_what_runs_before_the_frames_has_bars_of_its_own(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    steps = {"prior": StageSettings(steps=4), "decoder": StageSettings(steps=3)}
    shown = Image.new("RGB", (16, 16), "grey")
    pipe.interpolate(shown, "a dog", frames=3, seed=1, size=16, stages=steps)
    written = terminal.getvalue()
    # the last step back to noise is left out, the prior draws twice for the one text, the decoder every frame
    assert [last_of(stage, written) for stage in ("inversion", "prior", "decoder")] == ["2/2", "8/8", "9/9"]


def test_progress_can_be_asked_for_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    easel()("a fox", seeds=[1], progress=True)
    assert last_of("decoder", capsys.readouterr().err) == "2/2"


def test_bars_are_put_away_when_a_run_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    assert len(easel(stop_at=2)("a fox", seeds=[1, 2])) == 1
    assert last_of("decoder", terminal.getvalue()) == "3/4"
    assert terminal.getvalue().endswith("\n")


def test_jupyter_shows_previews_in_one_place_that_is_empty_at_the_end(
    pipe: TextToImage, jupyter: _Display, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PREVIEW_EVERY == 4
    pipe(PROMPT, seeds=[1], size=64, stages=FAST)
    ((first, *shown, last),) = jupyter.places
    assert first == last == ""
    assert [_Page(text).texts for text in shown] == [["decoder 4/5"], ["decoder 5/5"], ["super-res-64 1/1"]]
    assert pictures_of(_Page(shown[-1]))[0].size == (64, 64)
    assert last_of("decoder", capsys.readouterr().out) == "5/5"


@pytest.mark.usefixtures("jupyter")
def test_a_page_without_widgets_has_one_line_until_the_end(
    capsys: pytest.CaptureFixture[str], now: list[float]
) -> None:
    with bars(batches=2, rounds={}) as show:
        for stage in ("prior", "decoder") * 2:
            for step in steps_of(stage, 3):
                now[0] += 1
                show(step)
        running = capsys.readouterr().out
    ended, errors = capsys.readouterr()
    drawn = running.strip("\r").split("\r")
    assert {len(line) for line in drawn} == {COLUMNS}  # nothing is left of a longer one
    assert "\n" not in running
    assert "\x1b" not in running + ended
    assert re.findall(r"(\w+): 100%[^\r]* (6/6) [^\r]*\n", ended) == [("prior", "6/6"), ("decoder", "6/6")]
    assert errors == ""


def test_jupyter_shows_nothing_where_progress_is_not_wanted(jupyter: _Display) -> None:
    easel()("a fox", seeds=[1], progress=False)
    assert jupyter.places == []


def test_an_ipython_terminal_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_jupyter()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    assert not in_jupyter()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_jupyter()
