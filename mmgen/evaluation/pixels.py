"""Pictures as numbers, the way the judge looks at them: 64 px, RGB in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PX = 64
Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]
CHROMA = 0.6
_LUMA = np.array((0.299, 0.587, 0.114))
_WEIGHTS = np.stack(
    (3**0.5 * _LUMA, CHROMA * ((0, 0, 1) - _LUMA), CHROMA * ((1, 0, 0) - _LUMA)), axis=1
).astype(np.float32)


def pixels(image: Image.Image) -> Pixels:
    """The picture at 64 px by the mean over areas, [64, 64, 3] in [0, 1]."""
    small = image.convert("RGB")
    if small.size != (PX, PX):
        small = small.resize((PX, PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def weighed(rgb: Pixels) -> Pixels:
    """Luma and two chroma planes, [..., 3], scaled so that greys are as far apart as in RGB and colours a little less.

    The eye, and so JPEG, is coarser for chroma; and a sprite's shape is in its luma. Linear, so it may be applied to
    premultiplied colours. Luma: ITU-R BT.601.
    """
    return np.asarray(rgb @ _WEIGHTS, dtype=np.float32)


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
