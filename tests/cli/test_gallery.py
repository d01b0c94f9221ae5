"""`mmgen gallery`: what it writes and says, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmgen.images import encode
from mmgen.types import Request
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]


def test_a_folder_gets_its_page_without_torch(tmp_path: Path) -> None:
    request = Request(("a fox",), (7,), (8, 8))
    (tmp_path / "a.png").write_bytes(encode(Image.new("RGB", (8, 8)), "png", request))
    code = (
        "import sys; from mmgen.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    words = [sys.executable, "-c", code, "gallery", str(tmp_path)]
    for _ in range(2):  # a second time over its own page
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'index.html'}\n", "")
    text = (tmp_path / "index.html").read_text("utf-8")
    assert "a fox" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("nowhere", "there is no folder nowhere"),
        ("file.txt", "there is no folder file.txt"),
        ("empty", "the folder empty holds no pictures"),
        ("taken", "taken/index.html is no gallery of mmgen and stays as it is"),
    ],
)
def test_what_is_refused(mmgen_command: Command, folder: str, words: str) -> None:
    Path("file.txt").write_text("x")
    Path("empty").mkdir()
    Path("taken").mkdir()
    Path("taken/index.html").write_text("<html>mine</html>")
    Image.new("RGB", (8, 8)).save("taken/a.png")
    before = sorted(map(str, Path.cwd().rglob("*")))
    done = mmgen_command("gallery", folder)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert sorted(map(str, Path.cwd().rglob("*"))) == before
    assert Path("taken/index.html").read_text() == "<html>mine</html>"
