"""Pictures that a person gives: read as they look, or refused by name before a model is loaded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmgen.errors import UsageError
from mmgen.types import Request, Size, StageSettings, Verb, picture_names

# Those that Pillow decodes by itself: no format that starts another program.
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 64_000_000


def open_picture(path: Path) -> Image.Image:
    """The picture in RGB, turned as its Exif says, on white where it is transparent.

    Raises UsageError for what is no single picture of at most 64 million pixels.
    """
    return picture(_opened(path), path.name)


def open_mask(path: Path, size: Size) -> Image.Image:
    """A mask in greys, white where the picture of this size is drawn anew. Raises UsageError as `checked_mask` does."""
    return checked_mask(_opened(path), size, path.name)


def picture(image: Image.Image, name: str = "the picture") -> Image.Image:
    """Any picture in RGB. Raises UsageError for one with floating-point values, whose white nobody can tell."""
    if not isinstance(image, Image.Image):  # a path, say
        raise UsageError(
            f"{name} is {type(image).__name__}, and must be a picture of Pillow: give Image.open(path)"
        )
    if image.mode == "F":
        raise UsageError(f"{name} holds floating-point values: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; plain conversion would cut them off at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def checked_mask(mask: Image.Image, size: Size, name: str = "the mask") -> Image.Image:
    """A mask in greys, white where a picture of `size` is drawn anew.

    Raises UsageError if it has another size, or nothing in it is white, or everything is.
    """
    grey = picture(mask, name).convert("L")
    if grey.size != size:
        raise UsageError(
            f"{name} is {_said(grey.size)} and the picture {_said(size)}: give a mask of the same size"
        )
    darkest, brightest = grey.getextrema()
    if brightest == 0:
        raise UsageError(f"{name} is all black: nothing would be drawn. White is what is drawn anew")
    if darkest == 255:
        raise UsageError(
            f"{name} is all white: nothing would be kept. Leave it out, or make black what stays"
        )
    return grey


def digest(image: Image.Image) -> str:
    """sha256 of a picture's size, mode and pixels, whatever file it came from."""
    head = f"{image.mode} {image.width}x{image.height} "
    return hashlib.sha256(head.encode() + image.tobytes()).hexdigest()


def from_parts(
    verb: Verb,
    parts: Sequence[Image.Image | str],
    weights: Sequence[float],
    *,
    seeds: tuple[int, ...],
    size: Size,
    stages: Mapping[str, StageSettings],
) -> tuple[Request, list[Image.Image]]:
    """A request that starts from pictures and texts, and the pictures in RGB, in the order of their names.

    parts: of diff-text the picture and both texts. Raises UsageError for what is neither, and as a request does.
    """
    for part in parts:
        if not isinstance(part, Image.Image | str) or part == "":
            raise UsageError(f"a part is {part!r}: give a picture, or a text that says what to draw")
    pictures = [picture(part) for part in parts if isinstance(part, Image.Image)]
    places = [part if isinstance(part, str) else "" for part in parts]
    request = Request(
        prompts=tuple(filter(None, places) if verb == "diff-text" else places),
        seeds=seeds,
        size=size,
        stages=stages,
        verb=verb,
        inputs=digests(pictures),
        weights=tuple(weights),
    )
    return request, pictures


def digests(pictures: Sequence[Image.Image]) -> dict[str, str]:
    """The digest of each by its name in a request: image, image-2, ..."""
    return {name: digest(one) for name, one in zip(picture_names(len(pictures)), pictures, strict=True)}


def check_same(pictures: Sequence[Image.Image], request: Request) -> None:
    """Raise UsageError unless these are the pictures that a request starts from, in the order of their names."""
    if len(pictures) != len(request.inputs):
        raise UsageError(
            f"{request.verb} starts from {len(request.inputs)} pictures here, not {len(pictures)}"
        )
    found = digests(pictures)
    if changed := [name for name in found if found[name] != request.inputs.get(name)]:
        raise UsageError(f"the request was made with another {' and '.join(changed)}: give the same again")


def extended(
    image: Image.Image, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
) -> tuple[Image.Image, Image.Image]:
    """A larger canvas around a picture, in pixels, and the mask of what is new; the picture's edge runs on over it.

    Raises UsageError if a side is below 0 or nothing is added.
    """
    sides = (left, top, right, bottom)
    if min(sides) < 0 or not any(sides):
        raise UsageError(f"outpainting by {sides} pixels: add some on at least one side, and on none below 0")
    pixels = np.pad(np.asarray(picture(image)), ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = Image.new("L", (pixels.shape[1], pixels.shape[0]), "white")
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return Image.fromarray(pixels), mask


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # about damaged or very large files: what follows says all there is to say
            warnings.simplefilter("ignore")
            with Image.open(path, formats=READABLE) as image:
                _check(image, path.name)
                return ImageOps.exif_transpose(image)
    except UsageError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no picture {path}") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path.name} is no picture that can be read ({', '.join(READABLE)})") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{path.name} is too large: at most {MAX_PIXELS:,} pixels are read") from None
    # the decoders raise a dozen types on damaged files, SyntaxError and struct.error among them
    except Exception as error:  # noqa: BLE001
        raise UsageError(f"{path.name} cannot be read as a picture: {error}") from None


def _check(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UsageError(f"{name} is {_said(image.size)}: at most {MAX_PIXELS:,} pixels are read")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # whose other frames are views of the same moment
        raise UsageError(f"{name} holds {frames} pictures one after another: save the one that is meant")


def _said(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
