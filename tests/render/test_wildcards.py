"""Variants and wildcards: each rule of the syntax, the same choice for the same seed, all of them in order."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgen.errors import UsageError
from mmgen.render.options import Line, Options
from mmgen.render.wildcards import Wildcards, expand

PLAIN = Wildcards()


def every(text: str, wildcards: Wildcards = PLAIN) -> list[str]:
    return [line.prompt for line in expand(Line(1, text, Options()), wildcards, 0, combinatorial=True)]


def one(text: str, wildcards: Wildcards = PLAIN, seed: int = 0, number: int = 1) -> str:
    [line] = expand(Line(number, text, Options()), wildcards, seed)
    return line.prompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "animal": "# animals\nfox\n\n{big|small} dog\r\n3::cat\n",
        "art/ink": "ink of __animal__",
        "one": "__two__",
        "two": "a\n__one__",
        "open": "fine\n{x",
        "empty": "# nothing\n",
    }.items():
        path = tmp_path / "words" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "outside.txt").write_text("secret")
    return tmp_path / "words"


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("{red|blue} fox", ["red fox", "blue fox"]),
        ("{2::red|0.5::blue} fox", ["red fox", "blue fox"]),
        ("a {very |}big fox", ["a very big fox", "a big fox"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a{1|2}|b}", ["a1", "a2", "b"]),
        ("{2$$ and $$a|b|c}", ["a and b", "a and c", "b and a", "b and c", "c and a", "c and b"]),
        ("{2$$a|{b|c}}", ["a, b", "a, c", "b, a", "c, a"]),
        ("{1-2$$+$$a|b}", ["a", "b", "a+b", "b+a"]),
        ("x{0-1$$a|b}", ["x", "xa", "xb"]),
        (r"{2$$\|$$a|b}", ["a|b", "b|a"]),
        (r"\{a\|b\} {c\|d|e\}} \_\_f\_\_ \\{g}", ["{a|b} c|d __f__ \\g", "{a|b} e} __f__ \\g"]),
        (r"\__a\__ \d {b}", [r"__a__ \d b"]),
        ("a | b, snake_case 2::c 2$$d", ["a | b, snake_case 2::c 2$$d"]),
        (r"¯\_(a)_/¯ \| \\", [r"¯\_(a)_/¯ \| \\"]),
    ],
)
def test_every_prompt_in_order(text: str, prompts: list[str]) -> None:
    assert every(text) == prompts
    assert {one(text, seed=seed) for seed in range(300)} == set(prompts)


def test_wildcards_are_lines_of_files(folder: Path) -> None:
    wildcards = Wildcards(folder)
    animals = ["fox", "big dog", "small dog", "cat"]
    assert every("a __animal__", wildcards) == [f"a {animal}" for animal in animals]
    assert every("{__art/ink__|b}", wildcards) == [*(f"ink of {animal}" for animal in animals), "b"]
    drawn = Counter(one("__animal__", wildcards, number=number) for number in range(1000))
    assert set(drawn) == set(animals)
    assert drawn["cat"] > drawn["fox"] + drawn["big dog"]


def test_a_draw_depends_on_seed_line_and_prompt_alone() -> None:
    text = "{a|b|c|d}{a|b|c|d}{1-3$$e|f|g}"
    first = [one(text, seed=seed, number=number) for seed in range(4) for number in range(1, 9)]
    assert first == [one(text, Wildcards(), seed, number) for seed in range(4) for number in range(1, 9)]
    assert len(set(first)) > 10
    assert [one(text, seed=seed) for seed in range(3)] == ["cce, f, g", "aae, f, g", "bag, e"]


def test_options_stay_with_every_prompt() -> None:
    line = Line(7, "{a|b}", Options(seed=3, negative="c"))
    assert list(expand(line, PLAIN, 0, combinatorial=True)) == [
        Line(7, "a", line.options),
        Line(7, "b", line.options),
    ]


def test_a_negative_prompt_stands_for_many_too(folder: Path) -> None:
    def drawn(
        prompt: str, negative: str | None, *, run: str = "", every: bool = False
    ) -> list[tuple[str, str | None]]:
        line = Line(7, prompt, Options(seed=3, negative=negative))
        found = list(expand(line, Wildcards(folder), 5, every, run))
        assert all(replace(line.options, negative=None) == Options(seed=3) for line in found)
        return [(line.prompt, line.options.negative) for line in found]

    assert drawn("{a|b}", "no {c|d}", every=True) == [
        ("a", "no c"), ("a", "no d"), ("b", "no c"), ("b", "no d"),
    ]  # fmt: skip
    assert drawn("a", "{c|}", every=True) == [("a", "c"), ("a", "")]
    # the run's is for lines that say none, and what is written plainly stays
    assert drawn("a", None, run="{c|d}", every=True) == [("a", "c"), ("a", "d")]
    assert drawn("{a}", "b", run="{c|d}", every=True) == [("a", "b")]
    assert drawn("a", None, run="c") == [("a", None)]
    # one that is drawn, alike in every run, and each text for itself
    text = "{" + "|".join("abcdefgh") + "}"
    numbers = [next(iter(expand(Line(n, text, Options(negative=text)), PLAIN, 5))) for n in range(50)]
    assert numbers == [next(iter(expand(Line(n, text, Options(negative=text)), PLAIN, 5))) for n in range(50)]
    assert sum(line.prompt == line.options.negative for line in numbers) < 25
    assert [line.prompt for line in numbers] == [one(text, seed=5, number=n) for n in range(50)]
    for wrong, says in (
        ("{c", "negative prompt, character 1: this { is not closed"),
        ("__animl__", "__animal__?"),
    ):
        with pytest.raises(UsageError, match=re.escape(says)):
            drawn("a", wrong)
    with pytest.raises(UsageError, match="more than 1,000,000 prompts"):
        drawn("{a|b|c|d|e|f|g|h|i|j}" * 4, "{a|b|c|d|e|f|g|h|i|j}" * 4, every=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a {b", "character 3: this { is not closed"),
        ("a {b|{c}", "character 3: this { is not closed"),
        ("a} b", "character 2: this } closes nothing"),
        ("a {}", "character 3: nothing stands in these braces"),
        ("a __b", "character 3: these underscores begin no __wildcard__"),
        ("{3$$a|b}", "character 1: 3 to 3 of 2 variants cannot be taken"),
        ("{2-1$$a|b}", "character 1: 2 to 1 of 2 variants cannot be taken"),
        ("{0$$a|b}", "character 1: 0 to 0 of 2 variants cannot be taken"),
        ("{a|0::b}", "character 4: a weight is above 0"),
        ("{|}", "the prompt is empty"),
        ("{" * 5000, "too deep"),
        ("{x" + "y" * 9000 + "}" + "{x" + "y" * 9000 + "|}" + "{x" + "y" * 9000 + "}", "more than 20,000 characters"),
        ("__animl__", "the wildcard __animl__ is not in words; did you mean __animal__?"),
        ("__" + "x" * 5000 + "__", "is not in words"),
        ("__../outside__", "leads out of words"),
        ("__/etc/passwd__", "leads out of words"),
        (r"__a\b__", "begin no __wildcard__"),
        ("__c:a__", "leads out of words"),
        ("__link__", "is a link out of words"),
        ("__two__", "wildcards go in a circle: __two__ -> __one__ -> __two__"),
        ("__open__", "open.txt, line 2: character 1: this { is not closed"),
        ("__empty__", "empty.txt is empty"),
        ("__latin__", "latin.txt, line 2, column 2: byte 0xe9 is not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(
    folder: Path, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "latin.txt").write_bytes(b"a\nb\xe9")
    (folder / "link.txt").symlink_to(folder.parent / "outside.txt")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UsageError) as raised:
        one(text, Wildcards(Path("words")))
    assert says in str(raised.value)


def test_a_wildcard_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="__animal__ needs a wildcard folder"):
        one("__animal__")
    with pytest.raises(UsageError, match="which is no folder"):
        one("__animal__", Wildcards(tmp_path / "none"))


def test_too_many_prompts_are_refused_before_any_is_made() -> None:
    assert len(every("{a|b|c|d|e|f|g|h|i|j}" * 3)) == 1000
    for text in ("{a|b|c|d|e|f|g|h|i|j}" * 7, "{9$$a|b|c|d|e|f|g|h|i|j|k}"):
        with pytest.raises(UsageError, match="more than 1,000,000 prompts"):
            every(text)
        assert one(text)


def test_wildcards_that_double_each_other_are_refused(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"w{number}.txt").write_text(f"__w{number + 1}__ __w{number + 1}__")
    (tmp_path / "w60.txt").write_text("x")
    assert len(one("__w55__", Wildcards(tmp_path)).split()) == 32
    with pytest.raises(UsageError, match="more than 20,000 characters"):
        one("__w0__", Wildcards(tmp_path))


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(ANY.map(lambda text: f"a{text}"))
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join(f"\\{c}" if c in "{}|_\\" else c for c in text)
    assert every(f"{{b}}{escaped}") == [f"b{text}"]
    assert every(f"{{{escaped}|{escaped}}}") == [text, text]


@given(st.text("{}|_\\$:-123ab ", max_size=30), st.integers(0, 5))
def test_a_draw_is_one_of_all(text: str, seed: int) -> None:
    try:
        prompts = every(f"a{text}")
    except UsageError:
        return
    assert one(f"a{text}", seed=seed) in prompts
