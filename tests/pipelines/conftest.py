"""One tiny checkpoint for all tests, and the model loaded from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mmgen
from mmgen.pipelines.text_to_image import TextToImage
from tests.checkpoints import write_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """To be changed at will."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def pipe(tiny_folder: Path) -> TextToImage:
    return mmgen.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """Of the folder that a module of tests has for itself: to be changed at will."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))
