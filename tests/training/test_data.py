"""A folder of captioned pictures as a source of batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmgen.errors import UsageError
from mmgen.training.data import FolderSource, open_source
from tests.training.conftest import write_pictures


@pytest.mark.parametrize("captions", ["txt", "jsonl"])
def test_captions_beside_the_pictures_or_in_one_file(tmp_path: Path, captions: str) -> None:
    source = FolderSource(write_pictures(tmp_path / "p", captions), 0)
    assert [caption for _, caption in source.items][:2] == ["red above green", "red above blue"]
    batch = source.batch(0, 4, 8)
    assert batch.pixels.shape == (4, 3, 8, 8)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.abs().max() <= 1
    for pixels, caption in zip(batch.pixels, batch.captions, strict=True):
        channel = ["red", "green", "blue"].index(caption.split()[0])
        assert int(pixels[:, 0].mean(1).argmax()) == channel


def test_the_same_index_gives_the_same_batch(pictures: Path) -> None:
    one, two = FolderSource(pictures, 0), FolderSource(pictures, 0)
    assert torch.equal(one.batch(5, 8, 8).pixels, two.batch(5, 8, 8).pixels)
    assert one.batch(5, 8, 8).captions == two.batch(5, 8, 8).captions
    assert one.batch(5, 8, 8).captions != one.batch(6, 8, 8).captions
    assert one.batch(5, 8, 8).captions != FolderSource(pictures, 1).batch(5, 8, 8).captions
    crops = one.crops(1, 3, 16, 8)
    assert crops.shape == (3, 3, 16, 16)
    assert torch.equal(crops, two.crops(1, 3, 16, 8))


def test_a_picture_without_a_caption(pictures: Path) -> None:
    (pictures / "3.txt").unlink()
    with pytest.raises(
        UsageError, match=r"3\.png has no caption: put it into 3\.txt or into metadata\.jsonl"
    ):
        FolderSource(pictures, 0)
    (pictures / "3.txt").write_text(" \n", "utf-8")
    with pytest.raises(UsageError, match=r"3\.png has no caption"):
        FolderSource(pictures, 0)


def test_a_caption_that_is_no_text(pictures: Path) -> None:
    (pictures / "3.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"3\.txt cannot be read as text"):
        FolderSource(pictures, 0)


@pytest.mark.parametrize("line", ["{", "[]", '{"file_name": "a.png"}', "7"])
def test_a_line_of_metadata_that_is_wrong(tmp_path: Path, line: str) -> None:
    folder = write_pictures(tmp_path / "p", "jsonl")
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=r"metadata\.jsonl, line 7: expected an object"):
        FolderSource(folder, 0)


def test_folders_with_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no pictures \(\.jpeg, \.jpg, \.png, \.webp\)"):
        FolderSource(tmp_path, 0)
    with pytest.raises(UsageError, match="give 'storybook' or a folder of captioned pictures"):
        open_source(str(tmp_path / "nowhere"), 0)


@pytest.mark.parametrize("damage", ["nonsense", "truncated", "empty"])
def test_a_picture_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    folder = write_pictures(tmp_path / "p", count=1)
    path = folder / "0.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    data = path.read_bytes()
    path.write_bytes(
        {"nonsense": b"not a picture", "truncated": data[: len(data) // 2], "empty": b""}[damage]
    )
    with pytest.raises(UsageError, match=r"0\.png cannot be read as a picture"):
        FolderSource(folder, 0).batch(0, 1, 8)
