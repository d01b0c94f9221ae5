"""The page of a folder: what it says, that nothing in a picture can be more than text, and that a browser agrees."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mmgen.errors import UsageError
from mmgen.images import encode
from mmgen.render.gallery import MAX_CHARS, NAME, Shown, _quoted, files, page, shown, write
from mmgen.types import Request, StageSettings

BREAK = 'document.title="broken"'
HOSTILE = (
    f"<script>{BREAK}</script> fox",
    f"\"><img src=x onerror='{BREAK}'>",
    f"' onmouseover='{BREAK}' autofocus onfocus={BREAK} x='",
    f"</p></style></script></title></article></main><script>{BREAK}</script>",
    f"javascript:{BREAK}",
    f"${{{BREAK}}} `{BREAK}` {{{{{BREAK}}}}}",
    f"<!--><svg onload={BREAK}> --> ]]> <![CDATA[ <!doctype x>",
    "&lt;b&gt; &amp &#60;script&#62; &quot",
    "\u202eevil\u2066 \u200fabc\u2069 fox",
    "\x01\x1b[31m\x07\x08\x7f\x85\x9b fox\ttab\nline",
    "\\'\"back\\slash\\u003cscript\\u003e fox",
    "__proto__ constructor toString fox",
    "fox " * 2500,
    f"{'<' * 300} fox {'W' * 5000}",
)
NAMES = (
    "a.png", "-o.png", "two words & more.png", "%41%2f?#.png", "javascript:alert(1).png", "кошка 狐.png",
    "it's.png", "\\'$(touch x)`touch x`!.png", "\"><img src=x onerror=alert(1)>.png",
    "new\nline\x1b[201~.png", "\u202egnp.exe.png", "below/of it's/b.png", "below/-o.png", "half\udcff.png",
)  # fmt: skip
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "form", "input", "select", "option", "output",
    "p", "main", "article", "a", "img", "div", "h2", "dl", "dt", "dd", "details", "summary", "code", "button", "script",
}  # fmt: skip


class Page(HTMLParser):
    """A page as its elements: (tag, attributes, all text inside)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "input", "img"):
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element[2].append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return ["".join(text) for name, given, text in self.elements
                if name == tag and attributes.items() <= given.items()]  # fmt: skip

    def values(self, tag: str, name: str) -> list[str | None]:
        return [given.get(name) for found, given, _ in self.elements if found == tag]


def picture(path: Path, request: Request | None = None, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(Image.new("RGB", (8, 6), colour), "png", request))


def visible(text: str) -> str:
    """As the page says it: control characters by their numbers."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda c: c[0].encode("unicode_escape").decode(), text)


def hostile_request(text: str, seed: int) -> Request:
    short = text[:500]
    stages = {short: StageSettings(sampler="ddim"), "decoder": StageSettings(steps=3)}
    return Request((text,), (seed,), (8, 6), text, stages, short, short)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A picture for each hostile text, with it in every field, ours and another tool's."""
    folder = tmp_path / "out <b>&'"
    for seed, text in enumerate(HOSTILE):
        picture(folder / f"{seed:02d}.png", hostile_request(text, seed))
        chunks = PngImagePlugin.PngInfo()
        values = {"positive_prompt": text, "negative_prompt": text, "model": text[:500], text[:500]: text}
        chunks.add_itxt("invokeai_metadata", json.dumps(values))
        Image.new("RGB", (4, 4)).save(folder / f"{seed:02d}-theirs.png", pnginfo=chunks)
    return folder


def assert_harmless(dom: Page, count: int) -> None:
    """Nothing but the page's own elements, as many of each as there are pictures, and no address but the pictures'."""
    tags = [tag for tag, _, _ in dom.elements]
    assert set(tags) <= TAGS
    assert [tags.count(tag) for tag in ("script", "style", "title", "form", "main")] == [1] * 5
    assert [tags.count(tag) for tag in ("article", "a", "img", "h2")] == [count] * 4
    known = {
        "href", "src", "alt", "loading", "decoding", "class", "dir", "type", "name", "value", "aria-label",
        "placeholder", "autocomplete", "lang", "content", "charset", "http-equiv", "hidden",
        "data-model", "data-size", "data-verb",
    }  # fmt: skip
    assert {name for _, given, _ in dom.elements for name in given} <= known
    assert all(re.fullmatch(r"[\w.%/~-]+\.png", str(address)) for address in dom.values("img", "src"))


def test_what_a_picture_says_is_on_the_page(tmp_path: Path) -> None:
    request = Request(
        ("a fox\n& a dog",), (7,), (8, 6), "rain", {"decoder": StageSettings(steps=3)}, "tiny", "ab" * 32
    )
    picture(tmp_path / "one.png", request)
    picture(tmp_path / "two.png")
    (tmp_path / "three.png").write_text("no picture")
    edited = Request(("a house",), (1,), (8, 6), verb="edit", inputs={"image": "0" * 64}, strength=0.5)
    picture(tmp_path / "sub" / "four.png", edited)
    assert write(tmp_path) == tmp_path / NAME
    text = (tmp_path / NAME).read_text("utf-8")
    dom = Page(text)
    assert dom.texts("h1") == ["4 pictures"]
    assert dom.texts("h2") == ["one.png", "sub/four.png", "three.png", "two.png"]
    assert dom.values("img", "src") == ["one.png", "sub/four.png", "three.png", "two.png"]
    assert dom.texts("p", **{"class": "prompt"}) == ["a fox\n& a dog", "a house"]
    assert dom.texts("code") == ["mmgen rerun one.png"]  # an edit needs its picture, the others say nothing
    assert dom.texts("dt")[:7] == [
        "seed",
        "size",
        "model",
        "verb",
        "negative prompt",
        "model digest",
        "decoder.steps",
    ]
    assert dom.texts("dd")[:7] == ["7", "8x6", "tiny", "generate", "rain", "ab" * 32, "3"]
    assert "its settings cannot be read" in dom.texts("div", **{"class": "said"})[2]
    assert "it carries no settings" in dom.texts("div", **{"class": "said"})[3]
    assert dom.values("article", "data-size") == ["8x6", "8x6", "", "8x6"]
    assert dom.values("article", "data-verb") == ["generate", "edit", "", ""]


def test_pictures_of_other_tools_say_what_they_know(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    theirs = "a dog\nNegative prompt: rain\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Model: dreamy, Odd: x"
    chunks.add_text("parameters", theirs)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
    read = shown(tmp_path, "a.png")
    assert (read.prompt, read.seed, read.size, read.model, read.verb) == ("a dog", "1", "4x4", "dreamy", "")
    assert read.repeats
    assert read.settings == {
        "negative prompt": "rain", "steps": "20", "guidance_scale": "7.0", "sampler": "euler", "Odd": "x"
    }  # fmt: skip
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("parameters", "of nobody " * 10_000)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
    read = shown(tmp_path, "a.png")
    assert read.settings["parameters"].startswith("of nobody")
    assert not read.repeats
    assert len("".join(page(1, [read]))) < MAX_CHARS + 10_000


def test_hidden_files_links_to_folders_and_what_is_no_file_are_left_out(tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    for name in ("b.png", "a.jpg", "sub/c.WEBP", "sub/d.jpeg", ".hidden.png", ".hidden/e.png", "notes.txt"):
        picture(folder / name)
    picture(other / "f.png")
    (folder / "linked").symlink_to(other)
    (folder / "circle").symlink_to(folder)
    (folder / "folder.png").mkdir()
    (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    assert files(folder) == ["a.jpg", "b.png", "sub/c.WEBP", "sub/d.jpeg"]


def test_hostile_texts_are_text(hostile: Path) -> None:
    dom = Page(write(hostile).read_text("utf-8"))
    assert_harmless(dom, 2 * len(HOSTILE))
    expected = [visible(text) for text in HOSTILE for _ in (0, 1)]
    assert dom.texts("p", **{"class": "prompt"}) == expected
    said = dom.texts("div", **{"class": "said"})
    assert all(text.count(visible(HOSTILE[at // 2][:500])) >= 3 for at, text in enumerate(said))


def test_hostile_names_are_text_addresses_and_arguments(tmp_path: Path) -> None:
    for name in NAMES:
        picture(tmp_path / name, Request(("a fox",), (0,), (8, 6)))
    names = sorted(NAMES)
    assert files(tmp_path) == names
    dom = Page(write(tmp_path).read_text("utf-8"))
    assert_harmless(dom, len(names))
    for of in (dom.values("img", "src"), dom.values("a", "href")):
        assert [unquote_to_bytes(str(address)) for address in of] == [os.fsencode(name) for name in names]
    assert all(text.isprintable() for text in dom.texts("h2") + dom.texts("code"))
    assert dom.texts("code") == [f"mmgen rerun {_quoted(name)}" for name in names]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed")
@pytest.mark.parametrize("name", [*NAMES, "'", "\\", "\\\\'\x07", "\x011", "a\u2028b"])
def test_a_command_names_the_file_to_a_shell(name: str) -> None:
    code = "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])"
    words = ["bash", "-c", f'"$0" -c "$1" {_quoted(name)}', sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    given = os.fsencode(f"./{name}" if name.startswith("-") else name)
    assert done.stdout == f"{[given]}\n"
    assert _quoted(name).isprintable()


@given(st.text(), st.text(), st.text(max_size=50), st.dictionaries(st.text(), st.text(), max_size=3))
def test_no_text_makes_an_element(prompt: str, name: str, model: str, settings: dict[str, str]) -> None:
    one = Shown(f"{name}.png".replace("\0", ""), prompt, model=model, settings=settings, repeats=True)
    dom, empty = (Page("".join(page(1, [each]))) for each in (one, Shown("a.png", "x", repeats=True)))
    extra = ("dl", "dt", "dd", "p", "details", "summary")
    tags = [[tag for tag, _, _ in each.elements if tag not in extra] for each in (dom, empty)]
    assert tags[0] == tags[1]
    assert dom.texts("dt")[-1:] == [] or set(dom.texts("dt")) <= {
        visible(key) for key in [*settings, "model"]
    }


def test_the_policy_allows_the_page_alone() -> None:
    dom = Page("".join(page(0, [])))
    [policy] = [given["content"] for _, given, _ in dom.elements if "http-equiv" in given]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "'self' file:"
    for name in ("base-uri", "form-action"):
        assert rules.pop(name) == "'none'"
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        [text] = dom.texts(tag)
        assert (
            rules.pop(name) == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        )
    assert rules == {}


def test_only_a_gallery_is_replaced(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / NAME
    path.write_text("<!doctype html>\nmine")
    with pytest.raises(UsageError, match="is no gallery of mmgen and stays as it is"):
        write(tmp_path)
    assert path.read_text() == "<!doctype html>\nmine"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="stays as it is"):
        write(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="stays as it is"):
        write(tmp_path)
    path.rmdir()
    before = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == before
    picture(tmp_path / "b.png")
    assert write(tmp_path).read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", NAME]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match="holds no pictures"):
        write(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_the_page_is_made_piece_by_piece() -> None:
    def pictures() -> Iterator[Shown]:
        for number in range(2000):
            yield Shown(f"{number}.png", "fox " * 250, settings={"a": "b" * 1000})

    tracemalloc.start()
    try:
        length = sum(map(len, page(2000, pictures())))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length > 4_000_000
    assert peak < 400_000


# ---- in a browser --------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def browse(path: Path, profile: Path, *more: str, address: str = "") -> str:
    """The page as headless Chromium has it once its script has run."""
    assert CHROMIUM is not None
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--disable-gpu"]
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", *alone, f"--user-data-dir={profile}",
         "--virtual-time-budget=10000", *(more or ["--dump-dom"]), f"{path.as_uri()}{address}"],
        capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.decode("utf-8")


@in_chromium
def test_chromium_shows_hostile_texts_as_text(hostile: Path, tmp_path: Path) -> None:
    for name in NAMES[:-1]:  # the last one is no UTF-8
        picture(hostile / name, Request(("a fox",), (0,), (8, 6)))
    dom = Page(browse(write(hostile), tmp_path / "profile"))
    assert dom.texts("title") == ["mmgen gallery"]
    assert_harmless(dom, 2 * len(HOSTILE) + len(NAMES) - 1)
    prompts = [text for text in dom.texts("p", **{"class": "prompt"}) if text != "a fox"]
    assert prompts == [visible(text) for text in HOSTILE for _ in (0, 1)]
    assert dom.texts("output") == [f"{2 * len(HOSTILE) + len(NAMES) - 1} shown"]  # the script has run
    models = {text for text in dom.values("option", "value") if text}
    assert {visible(text[:500]) for text in HOSTILE} <= models


@in_chromium
def test_the_policy_stops_what_would_get_through(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = write(tmp_path)
    text = path.read_text("utf-8")
    injected = f"<script>{BREAK}</script><img src=x onerror='{BREAK}'><p style='color: red'></p></main>"
    path.write_text(text.replace("</main>", injected), "utf-8")
    assert Page(browse(path, tmp_path / "profile")).texts("title") == ["mmgen gallery"]
    without = re.sub(r"<meta http-equiv[^>]*>", "", text)
    path.write_text(without.replace("</main>", injected), "utf-8")
    assert "<title>broken</title>" in browse(path, tmp_path / "profile")  # so that this test can fail


@in_chromium
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["0.png", "1.png", "2.png", "3.png"]),
        ({"q": "FOX"}, ["0.png", "1.png"]),
        ({"q": "  fox snow "}, ["1.png"]),
        ({"q": "rain"}, ["2.png"]),
        ({"q": "fox", "model": "a & b"}, ["0.png"]),
        ({"size": "8x6", "verb": "edit"}, ["3.png"]),
        ({"q": "<script>"}, []),
    ],
    ids=str,
)
def test_chromium_filters(tmp_path: Path, asked: dict[str, str], expected: list[str]) -> None:
    picture(tmp_path / "0.png", Request(("a fox",), (0,), (8, 6), model="a & b"))
    picture(tmp_path / "1.png", Request(("a fox in the snow",), (1,), (8, 6), model="tiny"))
    picture(tmp_path / "2.png", Request(("a house",), (2,), (8, 6), "rain", model="tiny"))
    edited = Request(("a house",), (1,), (8, 6), verb="edit", inputs={"image": "0" * 64}, strength=0.5)
    picture(tmp_path / "3.png", edited)
    dom = Page(browse(write(tmp_path), tmp_path / "profile", address=f"#{urlencode(asked)}"))
    hidden = ["hidden" in given for tag, given, _ in dom.elements if tag == "article"]
    names = dom.texts("h2")
    assert [name for name, out in zip(names, hidden, strict=True) if not out] == expected
    assert dom.texts("output") == [f"{len(expected)} shown"]


@in_chromium
def test_chromium_shows_the_pictures_themselves(tmp_path: Path) -> None:
    picture(tmp_path / "a #1%.png", colour="#ff00ff")
    shot = tmp_path / "shot.png"
    browse(write(tmp_path), tmp_path / "profile", f"--screenshot={shot}", "--window-size=600,600")
    with Image.open(shot) as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert colours.get((255, 0, 255), 0) > 10_000
