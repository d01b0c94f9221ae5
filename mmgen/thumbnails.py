"""Small copies of pictures, and a notebook page of them: inside the page itself, each with its caption."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from PIL import Image

from mmgen.images import encode

SIDE = 256  # pixels; more would fill a notebook's file, which holds every output


def figures(images: Sequence[Image.Image], captions: Sequence[str]) -> str:
    """Thumbnails in rows, each at most SIDE px and with its caption below it. Every text is escaped.

    Raises ValueError unless there is one caption for each.
    """
    shown = "".join(_figure(image, caption) for image, caption in zip(images, captions, strict=True))
    return f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{shown}</div>'


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy in RGB, at most SIDE px wide and high."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small


def _figure(image: Image.Image, caption: str) -> str:
    small = thumbnail(image)
    data = base64.b64encode(encode(small, "webp")).decode()
    text = html.escape(caption)
    # one size for all, so that a picture that grows from stage to stage stays in its place
    box = f"width: {SIDE}px; height: {SIDE}px; object-fit: contain"
    return (
        f'<figure style="margin: 0; width: {SIDE}px">'
        f'<img style="{box}" alt="{text}" src="data:image/webp;base64,{data}">'
        f'<figcaption style="overflow-wrap: anywhere">{text}</figcaption></figure>'
    )
