"""`pipe.edit` and `pipe.upscale` on a tiny model: what they keep, what they say of themselves, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen.errors import UsageError
from mmgen.images import read_metadata, resize
from mmgen.inputs import digest
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.types import Request, StageSettings

QUICK = {"decoder": StageSettings(steps=3)}


def noisy(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def left_half(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


@pytest.mark.parametrize("size", [16, 64])
def test_what_the_mask_keeps_is_kept_to_the_last_bit(pipe: TextToImage, size: int) -> None:
    image = noisy(64, 64)
    result = pipe.edit(
        image, "a red cat", mask=left_half(64, 64), seeds=[1, 2], size=size, stages=QUICK, progress=False
    )
    before = np.asarray(resize(image, (size, size))).astype(int)
    for drawn in result:
        after = np.asarray(drawn).astype(int)
        # the small picture that the larger one is made from is a mean, so sharp masks stay sharp
        np.testing.assert_array_equal(after[:, size // 2 + 1 :], before[:, size // 2 + 1 :])
        assert np.abs(after - before)[:, : size // 2].mean() > 5


def test_an_edit_says_what_it_started_from(pipe: TextToImage, tmp_path: Path) -> None:
    image, mask = noisy(16, 16), left_half(16, 16)
    result = pipe.edit(
        image, "a cat", mask=mask, strength=0.5, seeds=[7], size=16, stages=QUICK, progress=False
    )
    request = result.request
    assert (request.verb, request.strength) == ("edit", 0.5)
    assert request.inputs == {"image": digest(image), "mask": digest(mask)}
    (path,) = result.save(tmp_path)
    found = read_metadata(path)["request"]
    assert found == request
    again = pipe.edit(image, found, mask=mask, progress=False)
    assert again[0].tobytes() == result[0].tobytes()
    with pytest.raises(UsageError, match="made with another image: give the same again"):
        pipe.edit(noisy(17, 16).resize((16, 16)), found, mask=mask)
    with pytest.raises(UsageError, match="made with another mask"):
        pipe.edit(image, found)
    with pytest.raises(UsageError, match="leave strength out"):
        pipe.edit(image, found, mask=mask, strength=0.5)
    for other in (pipe, pipe.run, pipe.stream):
        with pytest.raises(UsageError, match="of the verb 'edit': give it to `edit`"):
            other(found)
    with pytest.raises(UsageError, match="of the verb 'generate'"):
        pipe.edit(image, pipe.request("a cat", seeds=[1], size=16))


def test_the_strength_has_its_defaults(pipe: TextToImage) -> None:
    def strength(**given: Image.Image) -> float | None:
        result = pipe.edit(noisy(16, 16), "a cat", seeds=[1], size=16, stages=QUICK, progress=False, **given)
        return result.request.strength

    assert strength() == 0.6
    assert strength(mask=left_half(16, 16)) == 1.0
    for wrong in (0, 1.2, -1.0):
        with pytest.raises(UsageError, match="strength is"):
            pipe.edit(noisy(16, 16), "a cat", strength=wrong, seeds=[1], size=16)


def test_less_strength_takes_fewer_steps(pipe: TextToImage) -> None:
    def steps(strength: float) -> int:
        result = pipe.edit(
            noisy(16, 16), "a cat", strength=strength, seeds=[1], size=16, progress=False,
            stages={"decoder": StageSettings(steps=10)},
        )  # fmt: skip
        return {record.stage: record.steps for record in result.records}["decoder"]

    assert [steps(s) for s in (0.3, 0.6, 1.0)] == [3, 6, 10]


@pytest.mark.parametrize(("width", "height"), [(16, 16), (37, 22), (5, 60)])
def test_any_picture_is_enlarged_four_times(pipe: TextToImage, width: int, height: int) -> None:
    image = noisy(width, height)
    result = pipe.upscale(image, seed=3, progress=False)
    assert result[0].size == (4 * width, 4 * height)
    assert result.request.inputs == {"image": digest(image)}
    assert (result.request.verb, result.request.prompts) == ("upscale", ("",))
    assert pipe.upscale(image, seed=3, progress=False)[0].tobytes() == result[0].tobytes()
    assert Request.from_json(result.request.to_json()) == result.request


def test_an_enlarged_picture_is_saved_without_a_prompt(pipe: TextToImage, tmp_path: Path) -> None:
    (path,) = pipe.upscale(noisy(8, 8), seed=3, progress=False).save(tmp_path)
    assert path.name == "0001-3.png"


def test_settings_of_the_enlargement(pipe: TextToImage) -> None:
    result = pipe.upscale(noisy(8, 8), seed=3, settings=StageSettings(steps=4), progress=False)
    assert [record.steps for record in result.records] == [4]
    with pytest.raises(UsageError, match="does not take guidance_scale"):
        pipe.upscale(noisy(8, 8), settings=StageSettings(guidance_scale=2.0))
