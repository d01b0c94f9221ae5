"""Prompt files: what is printed is read again, and what is wrong is said with its file, line and place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmgen.errors import UsageError
from mmgen.render.lines import MAX_LINE_CHARS
from mmgen.render.promptfile import KINDS, Item, Kind, Line, Options, PromptFileError, parse
from mmgen.types import MAX_SEED, SAMPLERS

THREE = {"decoder": {"eta": 0.5, "guidance_interval": (0.2, 0.8)}, "super-res-256": {"steps": 3}}


def items(kind: Kind, text: str | bytes) -> list[Item]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(parse(io.BytesIO(data), kind, f"prompts.{kind}"))


def lines(kind: Kind, text: str | bytes) -> list[Line]:
    found = items(kind, text)
    assert not [item for item in found if isinstance(item, PromptFileError)]
    return [item for item in found if isinstance(item, Line)]


def errors(kind: Kind, text: str | bytes) -> list[str]:
    return [str(item) for item in items(kind, text) if isinstance(item, PromptFileError)]


def given_by(line: Line) -> dict[str, Any]:
    """The options of a line by the names that a table has."""
    short = {f.name: getattr(line.options, f.name) for f in fields(Options) if f.name != "settings"}
    settings = {
        f"{stage}.{name}": value
        for stage, names in line.options.settings.items()
        for name, value in names.items()
    }
    return {"prompt": line.prompt, **{k: v for k, v in short.items() if v is not None}, **settings}


def as_text(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if name == "size" else ",".join(map(str, value))
    return str(value)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def print_txt(asked: list[Line]) -> bytes:
    rows = []
    for line in asked:
        if line.options == Options() and not re.search("[-#]", line.prompt):
            rows.append(line.prompt)
            continue
        words = []
        for name, value in given_by(line).items():
            text = as_text(name, value)
            words += ["--set", quoted(f"{name}={text}")] if "." in name else [f"--{name}", quoted(text)]
        rows.append(" ".join(words))
    return "\r\n".join(rows).encode("utf-8-sig")


def print_table(asked: list[Line], delimiter: str) -> bytes:
    names = list(dict.fromkeys(name for line in asked for name in given_by(line)))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    for line in asked:
        values = given_by(line)
        writer.writerow(as_text(name, values[name]) if name in values else "" for name in names)
    return text.getvalue().encode()


PRINTERS: dict[Kind, Callable[[list[Line]], bytes]] = {
    "txt": print_txt,
    "csv": lambda asked: print_table(asked, ","),
    "tsv": lambda asked: print_table(asked, "\t"),
    "jsonl": lambda asked: "\r".join(json.dumps(given_by(line), ensure_ascii=False) for line in asked).encode(),
    "json": lambda asked: json.dumps([given_by(line) for line in asked]).encode(),
    "yaml": lambda asked: yaml.safe_dump(
        [{k: list(v) if isinstance(v, tuple) else v for k, v in given_by(line).items()} for line in asked]
    ).encode(),
}  # fmt: skip

WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=30
).filter(lambda text: any(c.isalnum() for c in text))
ASKED = st.lists(
    st.builds(
        Line,
        number=st.just(0),
        prompt=WORDS,
        options=st.just(Options())
        | st.builds(
            Options,
            count=st.none() | st.integers(1, 10_000),
            seed=st.none() | st.integers(0, MAX_SEED - 10_000),
            size=st.none() | st.tuples(st.integers(1, 16_383), st.integers(1, 16_383)),
            steps=st.none() | st.integers(1, 1000),
            guidance=st.none() | st.floats(0, 100),
            sampler=st.none() | st.sampled_from(SAMPLERS),
            threshold=st.none() | st.sampled_from(["clip", "none"]) | st.floats(0.01, 0.99),
            negative=st.none() | WORDS,
            settings=st.sampled_from([{}, {"prior": {"steps": 3}}, THREE]),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("kind", KINDS)
@given(asked=ASKED)
def test_what_is_printed_is_read(kind: Kind, asked: list[Line]) -> None:
    read = lines(kind, PRINTERS[kind](asked))
    assert [(line.prompt, line.options) for line in read] == [(line.prompt, line.options) for line in asked]
    assert [line.number for line in read] == sorted({line.number for line in read}) or kind == "json"


SIGNS = st.text("[]{}\",:\\-#=\n\r\t abc015.&*!|>%@`'?~éx", max_size=60).map(str.encode)


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.binary(max_size=200) | SIGNS | SIGNS.map(b'--prompt "a" '.__add__) | SIGNS.map(b"- {a: [".__add__)
)
def test_every_error_is_ours_and_has_a_line(kind: Kind, data: bytes) -> None:
    found = items(kind, data)
    assert found
    for item in found:
        if isinstance(item, PromptFileError):
            assert 1 <= item.line <= len(re.split(b"\r\n|\r|\n", data))
            assert str(item).startswith(f"prompts.{kind}, line {item.line}")


def test_a_line_is_a_prompt_or_options() -> None:
    text = (
        "\ufeffa fox, {red|blue}\r\n"
        "# a note\r\r\n"
        '--prompt "a \\"red\\" fox" --steps 20 --negative_prompt a bad one --cfg_scale 7 --seed 3 '
        "--sampler_name ddim --width 512 --height 256 -n 4\n"
        "--prompt=a\\ dog --set super-res-256.steps=3 --decoder.eta '0.5'\n"
        "a - b\u2028c\x0bd\x85e"
    )
    theirs = Options(4, 3, (512, 256), 20, 7.0, "ddim", None, "a bad one")
    assert lines("txt", text) == [
        Line(1, "a fox, {red|blue}", Options()),
        Line(4, 'a "red" fox', theirs),
        Line(5, "a dog", Options(settings={"super-res-256": {"steps": 3}, "decoder": {"eta": 0.5}})),
        Line(6, "a - b\u2028c\x0bd\x85e", Options()),
    ]


def test_a_table_has_options_for_columns_and_cells_of_several_lines() -> None:
    text = 'prompt,n,decoder.eta\n"a fox,\r\nred",20,0.5\n\na "small" dog,,\n'
    assert lines("csv", text) == [
        Line(2, "a fox,\nred", Options(count=20, settings={"decoder": {"eta": 0.5}})),
        Line(5, 'a "small" dog', Options()),
    ]


def test_records_of_json_have_their_lines() -> None:
    text = '[\n "a fox",\r\n {"prompt": "a dog",\n  "size": 64}, {"prompt": "a cat", "size": [64, 32], "n": null}\n]\n'
    expected = [
        Line(2, "a fox", Options()),
        Line(3, "a dog", Options(size=(64, 64))),
        Line(4, "a cat", Options(size=(64, 32))),
    ]
    assert lines("json", text) == expected
    assert lines("json", re.sub("[\r\n]", "", text)) == [
        Line(1, line.prompt, line.options) for line in expected
    ]


def test_a_place_in_a_long_list_of_json_is_exact() -> None:
    text = json.dumps([f"a fox of number {n}" for n in range(20_000)])
    [error] = errors("json", f"\n\n{text[:-1]}, 'b']")
    assert error.startswith(
        f"prompts.json, line 3, column {len(text) + 2}: this is not a list in JSON: Expecting"
    )
    [error] = errors("json", text.replace(", ", ",\n") + "]")
    assert error.startswith("prompts.json, line 20000, column 25: this is not a list in JSON: after the list")


@pytest.mark.parametrize("in_c", [True, False])
def test_yaml_keeps_text_that_looks_like_something_else(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    text = (
        "# prompts\n- yes\n- 2024-01-01 fox\n- '2024'\n- prompt: |\n    a fox\n    at sea\n  guidance: 1.5\n  seed:\n"
        "- {prompt: 012, decoder.guidance_interval: [0.2, 0.8]}\n- 1e3\n"
    )
    assert lines("yaml", text) == [
        Line(2, "yes", Options()),
        Line(3, "2024-01-01 fox", Options()),
        Line(4, "2024", Options()),
        Line(5, "a fox\nat sea\n", Options(guidance=1.5)),
        Line(10, "012", Options(settings={"decoder": {"guidance_interval": (0.2, 0.8)}})),
        Line(11, "1e3", Options()),
    ]
    assert errors("yaml", "- a\n- b: c: d\n") == [
        "prompts.yaml, line 2, column 7: this is not YAML: mapping values are not allowed "
        + ("in this context" if in_c else "here")
    ]


def test_openai_batch_files_are_read() -> None:
    body = {
        "model": "some-model",
        "prompt": "a dog",
        "n": 2,
        "size": "1024x1024",
        "response_format": "b64_json",
    }
    request = {"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": body}
    assert lines("jsonl", f'"a fox"\n{json.dumps(request)}\n') == [
        Line(1, "a fox", Options()),
        Line(2, "a dog", Options(count=2, size=(1024, 1024))),
    ]
    for change, says in (
        ({"method": "GET"}, "key 'method': method is 'GET': give 'POST'"),
        ({"url": "/v1/chat/completions"}, "key 'url': url is '/v1/chat/completions': only"),
        ({"body": "a dog"}, "key 'body': body is 'a dog': give an object"),
        ({"custom_id": 1}, "key 'custom_id': custom_id is 1: give text"),
        ({"priority": 1}, "key 'priority': a request has custom_id, method, url, body"),
        ({"body": {"prompt": "a dog", "quality": "high"}}, "key 'quality': no option 'quality'"),
    ):
        [error] = errors("jsonl", json.dumps(request | change))
        assert error.startswith(f"prompts.jsonl, line 1, {says}")
    assert "given twice" in errors("jsonl", '{"custom_id": "1", "body": {}, "body": {}}')[0]


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("txt", "a fox\n--prompt a --stpes 3", "line 2, column 12: no option 'stpes'; did you mean 'steps'?"),
        ("txt", "--prompt a --decoder.stpes 3", "line 1, column 12: no option 'decoder.stpes'; did you mean 'decoder"),
        ("txt", "--prompt a --set steps=3", "line 1, column 12: write --set STAGE.NAME=VALUE"),
        ("txt", "--prompt a --seed", "line 1, column 12: '--seed' takes one value, not 0"),
        ("txt", "--prompt a --seed 1 2", "line 1, column 12: '--seed' takes one value, not 2"),
        ("txt", '--prompt "a" "b', "line 1, column 14: a quote or a backslash here has no end"),
        ("txt", "--prompt a --steps 3 --decoder.steps 4", "line 1: steps and decoder.steps are the same: keep one"),
        ("txt", "--prompt a --n 3 -n 4", "line 1, column 18: count is given twice: keep one"),
        ("txt", "--prompt a --width 3", "line 1: give width and height together"),
        ("txt", "--prompt a --seed 9223372036854775807 -n 2", "line 1: seed 9223372036854775807 with count 2"),
        ("txt", "--prompt a --sampler_name Eulr", "line 1, column 12: no sampler 'Eulr': choose one of"),
        ("txt", "--steps 20", "line 1: no prompt: say what to draw"),
        ("txt", " --steps 20 a", "line 1, column 2: '--steps' takes one value, not 2"),
        ("txt", "-n 2 a fox", "line 1, column 1: '-n' takes one value, not 3"),
        ("txt", "a fox --ar 16:9", "line 1, column 7: '--ar' stands after a prompt: begin the line with --prompt"),
        ("txt", "a\n!!!", "line 2: the prompt '!!!' has no letter or digit"),
        ("txt", b"a\rfo\xe9x", "line 2, column 3: byte 0xe9 is not UTF-8"),
        ("txt", "a\nb\0", "line 2, column 2: a NUL byte"),
        ("txt", "a fox\n".encode("utf-16"), "line 1: this file is in UTF-16 or UTF-32: save it as UTF-8"),
        ("txt", "a\n" + "b" * (MAX_LINE_CHARS + 1), "line 2: more than 131,072 characters"),
        ("txt", "a\n" + "b" * MAX_LINE_CHARS + "\r\n", "line 2: the prompt has 131,072 characters"),
        ("txt", "# nothing\n\n", "line 1: no prompt stands here or below"),
        ("csv", "prompt,stpes\na,3", "line 1, column 'stpes': no option 'stpes'; did you mean 'steps'?"),
        ("csv", "prompt,\na,3", "line 1, column 2: this column has no name"),
        ("csv", "prompt,n,count\na,3,3", "line 1, column 'count': count has two columns"),
        ("csv", "steps\n3", "line 1: no column is called prompt"),
        ("csv", "prompt,steps\na,3\na, red,4", "line 3: cells in the row: 3, in the header: 2"),
        ("csv", 'prompt\n"a\nb"\n"c', "line 4: not a row of a table"),
        ("csv", "prompt,decoder.eta\na,2", "line 2, column 'decoder.eta': eta is 2.0: it must lie between 0 and 1"),
        ("csv", "prompt,steps\n,2", "line 2: no prompt"),
        ("tsv", "prompt\tsize\na\tbig", "line 2, column 'size': size is 'big': give one side or both in pixels"),
        ("jsonl", '\n{"prompt": "a", "prompt": "b"}', "line 2, key 'prompt': prompt is given twice"),
        ("jsonl", '{"prompt": "a", "steps": "3"}', "line 1, key 'steps': steps is '3': give a whole number"),
        ("jsonl", '{"prompt": "a", "steps": true}', "line 1, key 'steps': steps is True: give a whole number"),
        ("jsonl", '{"prompt": "a", "size": [1, true]}', "line 1, key 'size': size is True: give a whole number"),
        ("jsonl", '{"prompt": "a", "seed": {"a": 1}}', "line 1, key 'seed': seed is an object: give a whole number"),
        ("jsonl", '{"prompt": "a", "guidance": NaN}', "line 1: this is not JSON: NaN is no number of JSON"),
        ("jsonl", '{"prompt": "a", "guidance": 1e999}', "line 1, key 'guidance': guidance_scale is inf"),
        ("jsonl", '{"prompt": "\\ud800 a"}', "line 1, key 'prompt': the prompt holds half a character"),
        ("jsonl", '"a"\n{"prompt" 3}', "line 2, column 11: this is not JSON"),
        ("jsonl", "[" * 100_000, "line 1: a number has thousands of digits, or lists stand in lists too deep"),
        ("jsonl", "9" * 5000, "line 1: a number has thousands of digits"),
        ("jsonl", "[1]", "line 1: [1] is no prompt: give text or an object"),
        ("json", '{"prompt": "a"}', "line 1, column 1: this is not a list in JSON: begin the list with ["),
        ("json", '["a",\n "b"\n "c"]', "line 3, column 2: this is not a list in JSON: a , must stand"),
        ("json", '["a",\n {"prompt": "b",\n  "steps": }]', "line 3, column 12: this is not a list in JSON: Expecting"),
        ("json", '["a"', "line 1, column 5: this is not a list in JSON: a , must stand"),
        ("json", '["a"]\n]', "line 2, column 1: this is not a list in JSON: after the list"),
        ("json", '["a",\n"' + "b" * (MAX_LINE_CHARS + 1) + '"]', "line 2, column 1: this is not a list in JSON: "),
        ("json", b'["a",\n"\xe9"]', "line 2, column 2: byte 0xe9 is not UTF-8"),
        ("yaml", "- a\n- prompt: b\n  stpes: 3", "line 2, key 'stpes': no option 'stpes'; did you mean 'steps'?"),
        ("yaml", "a: b", "line 1: give a list: begin each prompt with '- '"),
        ("yaml", "- &a b\n- *a", "line 2: the alias *a is not read: write out what it means"),
        ("yaml", "- a\n- !!python/name:os.system b", "line 2: the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("yaml", "- prompt: {a: b}", "line 1: a value is text, a number or a list of such"),
        ("yaml", "- a\n---\n- b", "line 2: one list is all that may stand in the file"),
        ("yaml", "- a\n- 'b\n", "this is not YAML: found unexpected end of stream while scanning a quoted scalar, "),
        ("yaml", "- a\n- b\x07", "line 2, column 4: '\\x07' may not stand in YAML"),
        ("yaml", "- 3", "line 1: 3 is no prompt: give text or an object"),
        ("yaml", "- {1: b}", "line 1: 1 is no name of an option"),
        ("yaml", "- '" + f"{'a' * 1000}\n" * 600, ": a prompt that begins far above has no end up to here"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(kind: Kind, text: str | bytes, says: str) -> None:
    [error] = errors(kind, text)
    assert error.startswith(f"prompts.{kind}, line ")
    assert says in error
    assert error.isprintable()
    assert len(error) < 300


def test_a_line_that_is_wrong_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "prompts.TXT"
    path.write_text("a fox\n" + "--prompt a --seed x\n" * 30 + "a dog\n")
    first, *wrong, last = parse(path)
    assert (first, last) == (Line(1, "a fox", Options()), Line(32, "a dog", Options()))
    assert [str(error) for error in wrong] == [
        f"{path}, line {number}, column 12: seed is 'x': give a whole number" for number in range(2, 32)
    ]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name, says in (
        ("none.csv", "No such file"),
        ("folder.txt", "Is a directory"),
        ("a.docx", "must end in .txt"),
    ):
        with pytest.raises(UsageError, match=says):
            next(parse(tmp_path / name))


def test_standard_input_is_text_unless_another_kind_is_said_and_stays_open() -> None:
    source = io.BytesIO(b'"a fox"\n')
    assert list(parse(source)) == [Line(1, '"a fox"', Options())]
    assert source.seek(0) == 0
    assert list(parse(source, "jsonl")) == [Line(1, "a fox", Options())]
    source.seek(0)
    [wrong] = parse(source, "json")
    assert str(wrong).startswith("standard input, line 1, column 1: this is not")


@pytest.mark.parametrize("kind", KINDS)
def test_lines_are_read_as_they_are_asked_for(kind: Kind) -> None:
    asked = [Line(0, f"a fox of number {n}", Options(seed=n)) for n in range(20_000)]
    source = io.BytesIO(PRINTERS[kind](asked))
    reader = parse(source, kind)
    first = next(reader)
    assert isinstance(first, Line)
    assert first.prompt == "a fox of number 0"
    assert source.tell() < len(source.getvalue()) / 2
    assert sum(1 for _ in reader) == len(asked) - 1


def test_what_expands_a_line_is_told_with_its_place() -> None:
    def expand(line: Line) -> list[Line]:
        if "dog" in line.prompt:
            raise UsageError("no dogs")
        return [line, line]

    found = list(parse(io.BytesIO(b"a fox\na dog\n"), "txt", "prompts.txt", expand))
    assert found[:2] == [Line(1, "a fox", Options())] * 2
    assert str(found[2]) == "prompts.txt, line 2: no dogs"
    assert len(found) == 3
