"""Sheets of what the verbs make of gallery pictures, one for each.

Seeds 1 to 3, or seed 1 for a way and a diff; every picture that was drawn, nothing picked. The captions say what the
commands take besides the file.
"""

from pathlib import Path
from typing import Any

from PIL import Image

import mmgen
from mmgen.images import grid
from mmgen.inputs import extended, open_picture
from mmgen.pipelines.text_to_image import TextToImage
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
VARIED = ("0004-", "0009-", "0012-")
MIXED: tuple[tuple[str, str], ...] = (("0002-", "0010-"), ("0004-", "a boat on the ocean at sunset"))
WAYS: tuple[tuple[str, str], ...] = (
    ("0002-", "0004-"),
    ("a red car on the street", "a green house in the desert at night"),
)
FRAMES = 6
DIFFS = (("0002-", "a blue car", "a red car"), ("0020-", "a house at night", "a house by day"))
AMOUNTS = (0.0, 0.25, 0.5)


def given(number: str) -> Image.Image:
    """A picture of the gallery by the beginning of its file name."""
    (path,) = (HERE / "256").glob(f"{number}*.webp")
    return open_picture(path)


def right_half() -> Image.Image:
    """A mask: the right half is drawn anew."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    return mask


def row(
    shown: list[Image.Image], caption: str, result: Result, second: str = "mask"
) -> tuple[list[Image.Image], list[str]]:
    """What was given, then what was drawn of it, with captions. second: what a second picture is."""
    drawn = [f"seed {seed}" for seed in result.request.seeds]
    names = ["given", second][: len(shown)]
    return [*shown, *result], [*names[:-1], f"{names[-1]}; {caption}", *drawn]


def save(rows: list[tuple[list[Image.Image], list[str]]], name: str) -> None:
    """All rows as one sheet."""
    pictures = [picture.convert("RGB") for pictures, _ in rows for picture in pictures]
    captions = [caption for _, captions in rows for caption in captions]
    grid(pictures, len(rows[0][0]), captions).save(HERE / f"{name}.webp", quality=90)


def shown(part: str) -> Image.Image | str:
    """A picture of the gallery, or the text itself."""
    return given(part) if part.endswith("-") else part


def save_unclip(pipe: TextToImage, how: dict[str, Any]) -> None:
    """What is drawn from image embeddings."""
    save([row([given(number)], "varied", pipe.vary(given(number), **how)) for number in VARIED], "vary")

    rows = []
    for parts in MIXED:
        pictures = [part if isinstance(part, Image.Image) else blank() for part in map(shown, parts)]
        said = next((part for part in parts if not part.endswith("-")), "both alike")
        second = "given" if said == "both alike" else "the text"
        rows.append(row(pictures, said, pipe.mix([shown(part) for part in parts], **how), second))
    save(rows, "mix")

    how = {"seed": 1, "size": SIDE, "progress": False}
    rows = []
    for a, b in WAYS:
        result = pipe.interpolate(shown(a), shown(b), frames=FRAMES, **how)
        ends = ["picture" if end.endswith("-") else end for end in (a, b)]
        rows.append(([*result], [ends[0], *[f"{i}/{FRAMES - 1}" for i in range(1, FRAMES - 1)], ends[1]]))
    save(rows, "interpolate")

    rows = []
    for number, before, after in DIFFS:
        drawn = [pipe.diff_text(given(number), before, after, amount=amount, **how)[0] for amount in AMOUNTS]
        names = [f"amount {amount}" for amount in AMOUNTS]
        rows.append(([given(number), *drawn], [f"given; {before} to {after}", *names]))
    save(rows, "diff-text")


def blank() -> Image.Image:
    """In the place of a text."""
    return Image.new("RGB", (SIDE, SIDE), "white")


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

    save_unclip(pipe, how)

    rows = []
    for number in UPSCALED:
        crop = given(number).crop((96, 96, 160, 160))
        shown = crop.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        rows.append(row([shown], "64 px, enlarged four times", pipe.upscale(crop, seed=1, progress=False)))
    save(rows, "upscale")


if __name__ == "__main__":
    main()
