"""The bundled model, as a person meets it: in a process of its own, where nothing but our own lines may be said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmgen
from mmgen.images import read_metadata

ROOT = Path(__file__).resolve().parents[2]


def _mmgen(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from mmgen.cli.main import run; run()"
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("drawn")
    args = ["a red balloon and a chandelier", "--size", "64", "--seed", "1", "--json"]
    return folder, _mmgen("generate", *args, cwd=folder)


def test_nothing_but_our_own_lines_is_said(drawn: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = drawn
    assert done.returncode == 0, done.stderr
    loading, *stages, unknown = done.stderr.splitlines()
    assert loading == "loading storybook"
    assert stages
    assert all(re.fullmatch(r"1/1 [a-z0-9-]+: \d+\.\d s", line) for line in stages)
    assert unknown.startswith("storybook has no 'chandelier'; nearest: '")


def test_a_picture_repeats_itself(drawn: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = drawn
    file = folder / json.loads(done.stdout)["file"]
    request = read_metadata(file)["request"]
    assert request is not None
    again = mmgen.load("storybook").run(request)
    assert again.request == request
    from PIL import Image

    with Image.open(file) as image:
        assert image.tobytes() == again[0].tobytes()


def test_the_bundled_model_is_whole(tmp_path: Path) -> None:
    done = _mmgen("models", "verify", "storybook", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "parameters" in _mmgen("models", "info", "storybook", cwd=tmp_path).stdout
