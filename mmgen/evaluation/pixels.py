"""Pictures as numbers, the way the judge looks at them: 64 px, RGB in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PX = 64
Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]


def pixels(image: Image.Image) -> Pixels:
    """The picture at 64 px by the mean over areas, [64, 64, 3] in [0, 1]."""
    small = image.convert("RGB")
    if small.size != (PX, PX):
        small = small.resize((PX, PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def halved(picture: Pixels) -> Pixels:
    """Mean over 2x2 pixels. picture: [H, W, C], both even."""
    height, width, channels = picture.shape
    return picture.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3), dtype=np.float32)


def blobs(mask: Mask) -> list[Mask]:
    """The connected parts of a mask (neighbours share an edge), each as a mask of the same shape."""
    left, found = mask.copy(), []
    while left.any():
        part = np.zeros_like(mask)
        row, column = np.argwhere(left)[0]
        part[row, column] = True
        while True:
            grown = _grown(part) & left
            if (grown == part).all():
                break
            part = grown
        left &= ~part
        found.append(part)
    return found


def _grown(mask: Mask) -> Mask:
    """The mask and its four neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
