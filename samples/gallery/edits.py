"""Sheets of what `edit` and `upscale` make of gallery pictures: edit, inpaint, outpaint and upscale.webp.

Seeds 1 to 3, every picture that was drawn, nothing picked. The captions say what the commands take besides the file.
"""

from pathlib import Path

from PIL import Image

import mmgen
from mmgen.images import grid
from mmgen.inputs import extended, open_picture
from mmgen.result import Result

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
SIDE = 256
EDITS = (("0020-", "a house in the snow by day", 0.7), ("0002-", "a red car on the street at night", 0.6))
INPAINTED = (
    ("0012-", "a red boat and a balloon on the sea at sunset"),
    ("0016-", "a cat and a chair in a room"),
)
OUTPAINTED = (("0014-", "a turtle on the beach by day"), ("0004-", "a penguin in the snow at night"))
UPSCALED = ("0010-", "0031-")


def given(number: str) -> Image.Image:
    """A picture of the gallery by the beginning of its file name."""
    (path,) = (HERE / "256").glob(f"{number}*.webp")
    return open_picture(path)


def right_half() -> Image.Image:
    """A mask: the right half is drawn anew."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    return mask


def row(shown: list[Image.Image], caption: str, result: Result) -> tuple[list[Image.Image], list[str]]:
    """What was given, then what was drawn of it, with captions."""
    drawn = [f"seed {seed}" for seed in result.request.seeds]
    names = ["given", *["mask"] * (len(shown) - 1)]
    return [*shown, *result], [*names[:-1], f"{names[-1]}; {caption}", *drawn]


def save(rows: list[tuple[list[Image.Image], list[str]]], name: str) -> None:
    """All rows as one sheet."""
    pictures = [picture.convert("RGB") for pictures, _ in rows for picture in pictures]
    captions = [caption for _, captions in rows for caption in captions]
    grid(pictures, len(rows[0][0]), captions).save(HERE / f"{name}.webp", quality=90)


def main() -> None:
    pipe = mmgen.load("storybook")
    how = {"seeds": SEEDS, "size": SIDE, "progress": False}
    rows = []
    for number, prompt, strength in EDITS:
        image = given(number)
        result = pipe.edit(image, prompt, strength=strength, **how)
        rows.append(row([image], f"{prompt}, strength {strength}", result))
    save(rows, "edit")

    rows, mask = [], right_half()
    for number, prompt in INPAINTED:
        image = given(number)
        rows.append(row([image, mask], prompt, pipe.edit(image, prompt, mask=mask, **how)))
    save(rows, "inpaint")

    rows = []
    for number, prompt in OUTPAINTED:
        canvas, mask = extended(given(number).resize((SIDE // 2, SIDE // 2)), *[SIDE // 4] * 4)
        rows.append(row([canvas, mask], prompt, pipe.edit(canvas, prompt, mask=mask, **how)))
    save(rows, "outpaint")

    rows = []
    for number in UPSCALED:
        crop = given(number).crop((96, 96, 160, 160))
        shown = crop.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        rows.append(row([shown], "64 px, enlarged four times", pipe.upscale(crop, seed=1, progress=False)))
    save(rows, "upscale")


if __name__ == "__main__":
    main()
