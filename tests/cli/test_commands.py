"""What holds for every command: help, exit codes, errors in one line, and commands that are thin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import mmgen
from mmgen.cli import main as main_module
from mmgen.cli.main import cli
from mmgen.cli.terminal import one_line
from mmgen.errors import ModelError
from mmgen.images import encode
from mmgen.types import Request, StageSettings

ROOT = Path(__file__).resolve().parents[2]
MMGEN = [sys.executable, "-m", "mmgen.cli.main"]


def _walk(command: click.Command, path: str = "mmgen") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _walk(child, f"{path} {name}")


COMMANDS = dict(_walk(cli))
LEAVES = [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_has_help(path: str, mmgen_command: Callable[..., Any]) -> None:
    command = COMMANDS[path]
    shown = mmgen_command(*path.split()[1:], "--help")
    assert shown.code == 0
    assert shown.err == ""
    assert command.help
    assert "..." not in command.get_short_help_str(limit=60)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.name} has no help"
            assert parameter.help.endswith("."), f"{path} {parameter.name}"
            assert all(name in shown.out for name in parameter.opts)


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_has_an_example(path: str) -> None:
    parent = COMMANDS[path.rpartition(" ")[0]]
    examples = re.findall(r"^ *(mmgen .*)$", f"{COMMANDS[path].help}\n{parent.help}", re.MULTILINE)
    assert any(example.startswith(path.rpartition(" ")[0]) for example in examples)


@pytest.mark.parametrize("path", LEAVES)
def test_readme_names_every_command(path: str) -> None:
    parent, _, name = path.rpartition(" ")
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert any(parent in line and re.search(rf"\b{name}\b", line) for line in lines)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from mmgen.cli.main import main; code = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["generate", "a fox", "--guidance", "nan"], 2, "error: guidance_scale is nan"),
        (
            ["generate", "a fox", "--model", "storybok"],
            3,
            "error: no model 'storybok': give a folder, or one of",
        ),
        (
            ["generate", "a fox", "--model", "tests"],
            3,
            "error: tests is no checkpoint: it has no model_index.json",
        ),
        (
            ["generate", "a fox", "--size", "100"],
            2,
            "error: storybook cannot draw 100x100: choose 64x64 or 256",
        ),
        (["generate", "a fox", "--size", "64x256"], 2, "error: storybook cannot draw 64x256: choose 64x64"),
        (["eval", "storybook", "--model", "storybok"], 3, "error: no model 'storybok'"),
        (["models", "info", "storybok"], 3, "error: no model 'storybok'"),
        (["models", "list"], 0, ""),
        (["models", "info", "storybook"], 0, ""),
        (["models", "verify", "storybook"], 0, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_torch_loads_none(args: list[str], code: int, says: str) -> None:
    source = (
        "import sys; from mmgen.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit('loaded torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == (1 if code else 0)


def test_version(mmgen_command: Callable[..., Any]) -> None:
    assert mmgen_command("--version").out == f"mmgen {mmgen.__version__}\n"


@pytest.mark.parametrize("args", [[], ["models"], ["train"], ["eval"]])
def test_without_a_command_there_is_help(mmgen_command: Callable[..., Any], args: list[str]) -> None:
    outcome = mmgen_command(*args)
    assert outcome.code == 2
    assert outcome.err.startswith("Usage: mmgen")


@pytest.mark.parametrize(
    "args",
    [
        ["unknown"],
        ["--unknown"],
        ["models", "unknown"],
        ["models", "info"],
        ["inspect"],
        ["train", "decoder"],
        ["train", "decoder", "--out", "run", "--minutes", "nan"],
        ["train", "decoder", "--out", "run", "--minutes", "0"],
        ["train", "decoder", "--out", "run", "--minutes", "1", "--lr", "-1"],
        ["train", "decoder", "--out", "run", "--minutes", "1", "--data", "nowhere"],
        ["train", "prior", "--out", "run", "--minutes", "1", "--dual-encoder", "nowhere"],
        ["train", "super-res", "--out", "run", "--minutes", "1", "--text", "."],
        ["eval", "unknown"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line(
    mmgen_command: Callable[..., Any], tmp_path: Path, args: list[str]
) -> None:
    outcome = mmgen_command(*args)
    assert outcome.code == 2
    assert re.fullmatch(r"error: .*\n", outcome.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ModelError("two\nlines \x1b[31m"), 3, r"two lines \x1b[31m"),
        (MemoryError(), 3, "out of memory: choose a smaller --size, or another --device"),
        (ValueError("odd"), 1, "ValueError: odd (MMGEN_DEBUG=1 shows where)"),
        (EOFError(), 1, "EOFError:  (MMGEN_DEBUG=1 shows where)"),
        (click.Abort(), 130, "interrupted: what was finished stays"),
    ],
)
def test_every_error_is_one_line_and_debug_shows_where(
    mmgen_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    text: str,
) -> None:
    def fail(*_args: Any, **_names: Any) -> None:
        raise error

    monkeypatch.setitem(mmgen.__dict__, "load", fail)
    for debug in (False, True):
        outcome = mmgen_command(*(["--debug"] * debug), "generate", "a fox", "--seed", "1")
        assert outcome.code == code
        assert outcome.err.splitlines()[0] == "loading storybook"
        assert outcome.err.splitlines()[-1] == "error: " + " ".join(text.split())
        assert ("Traceback" in outcome.err) == debug
        assert (outcome.err.count("\n") == 2) != debug
    monkeypatch.setenv("MMGEN_DEBUG", "1")
    assert "Traceback" in mmgen_command("generate", "a fox", "--seed", "1").err


def test_a_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*MMGEN, "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (main_module.BROKEN_PIPE, b"")


def test_a_terminal_that_knows_few_letters_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MMGEN, "inspect", str(tmp_path / "кошка.png")],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(b"\\u043a\\u043e\\u0448\\u043a\\u0430.png\n")


def test_lines_for_a_terminal_are_bounded() -> None:
    assert one_line("a\n b\x07") == "a b\\x07"
    assert len(one_line("x" * 10**6)) < 1010


def test_inspect_shows_every_file_and_says_which_has_nothing(
    mmgen_command: Callable[..., Any], tmp_path: Path
) -> None:
    from PIL import Image

    picture = Image.new("RGB", (4, 4))
    request = Request(
        ("a\nfox \x1b[31m",), (7,), (4, 4), "rain", {"decoder": StageSettings(steps=3)}, "tiny", "ab" * 9
    )
    (tmp_path / "ours.webp").write_bytes(encode(picture, "webp", request))
    picture.save(tmp_path / "bare.png")
    theirs = "a dog\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", theirs)
    picture.save(tmp_path / "theirs.png", pnginfo=chunks)
    files = ["bare.png", "ours.webp", "none.png", "theirs.png"]
    outcome = mmgen_command("inspect", *files)
    assert outcome.code == 1
    assert outcome.err == "error: bare.png carries no settings\nerror: there is no file none.png\n"
    assert outcome.out.splitlines() == [
        "ours.webp", "  prompt: a fox \\x1b[31m", "  negative prompt: rain", "  seed: 7", "  size: 4x4",
        "  verb: generate", "  model: tiny", f"  model digest: {'ab' * 9}", "  decoder.steps: 3",
        "  label: trainedAlgorithmicMedia",
        "theirs.png", "  a dog", "  Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1",
    ]  # fmt: skip
    values = mmgen_command("inspect", "--json", *files).objects()
    assert [value["file"] for value in values] == files
    assert ["error" in value for value in values] == [True, False, True, False]
    assert Request.from_json(json.dumps(values[1]["request"])) == request
    assert values[3]["parameters"] == theirs
    assert mmgen_command("inspect", "ours.webp", "theirs.png").code == 0


def test_models_are_listed_described_and_verified(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmgen.pipelines import catalogue

    parts = {
        "decoder": {
            "class": "EfficientUNet",
            "parameters": 12_300_000,
            "bytes": 24_700_000,
            "dtypes": ["BF16"],
        }
    }
    names = [{"name": "one", "bytes": 24_700_000}, {"name": "second", "bytes": 1_234_500_000}]
    monkeypatch.setattr(catalogue, "listed", lambda: names)
    settings = {"decoder": {"steps": 32, "eta": None}}
    described = {"name": "one", "settings": settings, "components": parts}
    monkeypatch.setattr(catalogue, "describe", lambda _name: described)
    monkeypatch.setattr(catalogue, "verify", lambda name: ["decoder/x is missing"] if name == "two" else [])
    assert mmgen_command("models", "list").out.splitlines() == [
        "one             24.7 MB", "second       1,234.5 MB",
    ]  # fmt: skip
    assert mmgen_command("models", "list", "--json").objects() == [names]
    assert mmgen_command("models", "info", "one").out.split() == [
        "name:", "one", "--set", "decoder.…:", "steps=32,", "eta",
        "decoder", "EfficientUNet", "12.3", "M", "parameters,", "24.7", "MB", "BF16",
    ]  # fmt: skip
    assert mmgen_command("models", "info", "one", "--json").objects() == [described]
    assert mmgen_command("models", "verify", "one").out == "one: every file is as it should be\n"
    broken = mmgen_command("models", "verify", "two")
    assert (broken.code, broken.out) == (3, "decoder/x is missing\n")
    assert broken.err.count("\n") == 1


def test_a_model_that_is_not_there_is_named(mmgen_command: Callable[..., Any]) -> None:
    for command in ("info", "verify"):
        outcome = mmgen_command("models", command, "nowhere")
        assert outcome.code == 3
        assert re.fullmatch(r"error: .*'nowhere'.*\n", outcome.err)


def test_train_passes_on_what_was_given(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mmgen.training import start as start_module
    from mmgen.training.trainer import Budget, State

    calls: list[Any] = []

    def start(part: str, data: str, out: Path, budget: Budget, **more: Any) -> State:
        calls.append((part, data, out, budget, more))
        return State(part, 0)

    monkeypatch.setattr(start_module, "start", start)
    (tmp_path / "dual").mkdir()
    run = ["--out", "run", "--minutes", "2", "--resume", "--seed", "5", "--batch", "8", "--lr", "0.01"]
    assert mmgen_command("train", "prior", *run, "--dual-encoder", "dual").code == 0
    assert mmgen_command("train", "super-res", *run, "--data", str(tmp_path), "--decoder", "dual").code == 0
    common = {"resume": True, "init": None, "seed": 5, "batch": 8, "lr": 0.01}
    prior = {**common, "text": None, "dual_encoder": Path("dual")}
    assert calls == [
        ("prior", "storybook", Path("run"), Budget(minutes=2), prior),
        (
            "super-res",
            str(tmp_path),
            Path("run"),
            Budget(minutes=2),
            {**prior, "dual_encoder": None, "decoder": Path("dual")},
        ),
    ]


def test_eval_draws_every_prompt_with_its_seed(
    mmgen_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, loads: list[Any], tmp_path: Path
) -> None:
    from mmgen.evaluation import storybook
    from mmgen.evaluation.scores import Row, Summary, summarise

    calls: list[Any] = []

    def evaluate(generate: storybook.Generate, entries: list[Any], out: Path, **more: Any) -> Summary:
        images = generate(["a fox", "a lamp"], [1, 2])
        calls.append((len(entries), out, more, [image.size for image in images]))
        return summarise([Row("a", "single_object", "L0", True, True)], folds=10)

    monkeypatch.setattr(storybook, "evaluate", evaluate)
    outcome = mmgen_command("eval", "storybook", "--quick", "--model", "storybook", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "overall" in outcome.out
    assert loads == [("storybook", "cpu", None)]
    facts = {"model": "tiny", "model_digest": "0123456789abcdef", "size": 8}
    [(count, out, more, sizes)] = calls
    defaults = more["settings"].pop("stages")
    assert (count, out, more, sizes) == (
        100, Path("mmgen-eval"), {"seeds": 1, "settings": facts}, [(8, 8), (8, 8)]
    )  # fmt: skip
    mmgen_command("eval", "storybook", "--out", "full", "--set", "decoder.steps=3")
    assert calls[1][0] > 1000
    assert calls[1][2]["seeds"] == 4
    assert calls[1][2]["settings"]["stages"] == {"decoder": {**defaults["decoder"], "steps": 3}}
    assert mmgen_command("eval", "storybook", "--out", "wrong", "--set", "decoder.step=3").code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "summary.json").write_text("{}")
    assert mmgen_command("eval", "storybook", "--out", "full").code == 2


def test_train_has_a_command_for_every_part() -> None:
    from mmgen.cli.train import PARTS
    from mmgen.training import start

    assert tuple(PARTS) == start.PARTS
