"""A folder of captioned pictures as a source of batches."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.errors import UsageError
from mmgen.training.data import DrawnAhead, FolderSource, Order, open_source
from tests.training.conftest import write_pictures


@pytest.mark.parametrize("captions", ["txt", "jsonl"])
def test_captions_beside_the_pictures_or_in_one_file(tmp_path: Path, captions: str) -> None:
    source = FolderSource(write_pictures(tmp_path / "p", captions), 0)
    assert [caption for _, caption in source.items][:2] == ["red above green", "red above blue"]
    batch = source.draw(Order(0, 4, 8))
    assert batch.pixels.shape == (4, 3, 8, 8)
    assert batch.pixels.dtype == np.uint8
    tensor = batch.tensor(torch.device("cpu"))
    assert torch.allclose((tensor + 1) * 127.5, torch.from_numpy(batch.pixels).float(), atol=1e-4)
    for pixels, caption in zip(tensor, batch.captions, strict=True):
        channel = ["red", "green", "blue"].index(caption.split()[0])
        assert int(pixels[:, 0].mean(1).argmax()) == channel


def test_the_same_index_gives_the_same_batch(pictures: Path) -> None:
    one, two = FolderSource(pictures, 0), FolderSource(pictures, 0)
    assert np.array_equal(one.draw(Order(5, 8, 8)).pixels, two.draw(Order(5, 8, 8)).pixels)
    assert one.draw(Order(5, 8, 8)).captions == two.draw(Order(5, 8, 8)).captions
    assert one.draw(Order(5, 8, 8)).captions != one.draw(Order(6, 8, 8)).captions
    assert one.draw(Order(5, 8, 8)).captions != FolderSource(pictures, 1).draw(Order(5, 8, 8)).captions
    crops = one.draw(Order(1, 3, 16, 8))
    assert crops.pixels.shape == (3, 3, 16, 16)
    assert np.array_equal(crops.pixels, two.draw(Order(1, 3, 16, 8)).pixels)


def test_processes_draw_the_same_ahead(pictures: Path) -> None:
    source = FolderSource(pictures, 0)
    orders = [Order(i, 3, 8, None if i % 2 else 4) for i in range(6)]
    ahead = DrawnAhead(source, 2)
    try:
        for i, order in enumerate(orders):
            batch, drawn = ahead.take(orders[i : i + 1 + ahead.depth]), source.draw(order)
            assert np.array_equal(batch.pixels, drawn.pixels)
            assert batch.captions == drawn.captions
        for worker in ahead._pool._processes:  # Ctrl-C reaches every process of a terminal
            os.kill(worker, signal.SIGINT)
        assert np.array_equal(ahead.take([Order(8, 3, 8)]).pixels, source.draw(Order(8, 3, 8)).pixels)
        (pictures / "0.png").write_bytes(b"")
        with pytest.raises(UsageError, match=r"0\.png cannot be read as a picture"):
            ahead.take([Order(9, 64, 8)])
    finally:
        ahead.close()


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
        FolderSource(folder, 0).draw(Order(0, 1, 8))


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", count=1)
    with Image.open(folder / "0.png") as picture:
        exif = picture.getexif()
        exif[0x0112] = 3  # upside down
        picture.save(folder / "0.png", exif=exif)
    pixels = FolderSource(folder, 0).draw(Order(0, 1, 8)).pixels[0]
    assert pixels[1, 0, 0] > pixels[0, 0, 0]  # green, which lies below red in the file
    assert pixels[0, -1, 0] > pixels[1, -1, 0]


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", count=1)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 8, 4))
    clear.save(folder / "0.png")
    (picture,) = FolderSource(folder, 0).draw(Order(0, 1, 8)).pixels
    assert picture[:, 0, 0].tolist() == [0, 0, 255]
    assert picture[:, 7, 0].tolist() == [255, 255, 255]
