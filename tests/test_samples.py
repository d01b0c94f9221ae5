"""The samples run as they stand, with the bundled model; the notebook stays small and names nobody's folders."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmgen.result import Result

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SCRIPTS = sorted(SAMPLES.glob("*.py"))
NOTEBOOK = SAMPLES / "quickstart.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
MAX_BYTES = 2**20
MAX_LINES = 25
ABSOLUTE = re.compile(r"(?<![\w.:/<])(?:/[\w.-]+){2,}|\b[A-Za-z]:\\\w")


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell as Jupyter does: its value is that of its last line, None if that is no expression."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)  # noqa: S102 - the project's own notebook
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)  # noqa: S307 - as above


def texts_of(outputs: list[dict[str, Any]]) -> str:
    """All that outputs say in words, without the pictures in them."""
    parts: list[str] = []
    for output in outputs:
        data = output.get("data", {})
        parts += output.get("text", [])
        parts += [line for kind, lines in data.items() if kind.startswith("text/") for line in lines]
    return re.sub(r"data:image/[^\"]*", "", "".join(parts))


def pictures_in(folder: Path) -> list[Path]:
    """Every file of a folder, each read to its end as a picture."""
    paths = sorted(folder.iterdir())
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return paths


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a sample is run, empty at first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_runs(
    script: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(script.read_text("utf-8").splitlines()) < MAX_LINES
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    written = [path.relative_to(workplace).as_posix() for path in pictures_in(workplace / "mmgen-out")]
    named = re.findall(r"mmgen-out/\S+", said)
    assert named
    assert set(named) <= set(written)
    assert ("True" in said) == (script.name == "again.py")
    assert "False" not in said


def test_every_cell_of_the_notebook_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    values = {
        cell["id"]: run_cell("".join(cell["source"]), namespace)
        for cell in CELLS
        if cell["cell_type"] == "code"
    }
    assert isinstance(values["one"], Result)
    assert [image.size for image in values["one"]] == [(256, 256)]
    assert len({image.tobytes() for image in values["four"]}) == 4
    assert all(isinstance(values[name], Image.Image) for name in ("grid", "settings", "stream"))
    assert values["again"] is True
    assert len(pictures_in(workplace / "mmgen-out")) == 4
    said = capsys.readouterr().out + "".join(map(repr, values.values()))
    assert not ABSOLUTE.search(said)


def test_the_notebook_is_well_formed() -> None:
    book = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert {cell["cell_type"] for cell in CELLS} == {"code", "markdown"}


def test_what_the_notebook_shows_is_small_and_without_paths_and_errors() -> None:
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    for cell in CELLS:
        outputs = cell.get("outputs", [])
        assert all(output["output_type"] != "error" for output in outputs), cell["id"]
        assert not ABSOLUTE.search(texts_of(outputs)), cell["id"]


@pytest.mark.parametrize("text", ["saved as /home/me/a.png", "PosixPath('/tmp/a')", "C:\\Users\\me"])
def test_an_absolute_path_is_seen(text: str) -> None:
    outputs = [{"output_type": "stream", "text": [text]}, {"data": {"text/html": [f"<i>{text}</i>"]}}]
    assert len(ABSOLUTE.findall(texts_of(outputs))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "mmgen-out/0001-a-fox-1.png",
        "4/4 [00:01<00:00, 3.2it/s]",
        "</figcaption></figure>",
        "see https://x.org/a/b",
    ],
)
def test_other_slashes_are_no_paths(text: str) -> None:
    assert not ABSOLUTE.search(texts_of([{"output_type": "stream", "text": [text]}]))
