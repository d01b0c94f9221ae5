"""One tiny checkpoint for all tests, and the model loaded from it or from what a module has instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmgen.pipelines.text_to_image import TextToImage
from tests.checkpoints import write_tiny
from tests.render.whole import load


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """To be changed at will."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    """The one that a module's tests are about; many have their own. To be read, never to be changed."""
    return tiny_folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextToImage:
    return load(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """To be changed at will."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))
