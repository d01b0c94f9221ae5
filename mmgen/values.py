"""Values as people write them, on a command line and in prompt files. Imports no torch.

What a UsageError of these functions says is what to give instead; who reads a text puts its name and the text before.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from mmgen.errors import UsageError
from mmgen.types import PRESETS, Size, StageSettings

MAX_SIDE = 16_383  # pixels; WebP holds no more, and no model comes near
MAX_COUNT = 10_000  # pictures of one prompt
SETTING_NAMES = tuple(field.name for field in dataclasses.fields(StageSettings))


def parse_size(text: str) -> Size:
    """N or WxH, in pixels."""
    found = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text, re.ASCII)
    if not found:
        raise UsageError("give one side or both in pixels, such as 512 or 640x480")
    width, height = int(found[1]), int(found[2] or found[1])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError(f"a side has 1 to {MAX_SIDE} pixels")
    return width, height


def parse_whole(text: str) -> int:
    """A whole number of at most 19 digits, as many as the largest seed has."""
    if not re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII):
        raise UsageError("give a whole number")
    return int(text)


_UNITS = {f"{prefix}{unit}B".lower(): base**power
          for unit, base in (("", 1000), ("i", 1024)) for power, prefix in enumerate("KMGT", 1)}  # fmt: skip


def parse_bytes(text: str) -> int:
    """An amount of memory with its unit: 1 GB is 10^9 bytes, 1 GiB is 2^30."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([KMGT]i?B)", text, re.ASCII | re.IGNORECASE)
    if not found:
        raise UsageError("give a number with its unit, such as 8GB, 512MB or 2GiB")
    number = round(float(found[1]) * _UNITS[found[2].lower()])
    if not number:
        raise UsageError("give more than nothing")
    return number


def parse_threshold(text: str) -> float | str:
    """A percentile as a number; any other text as it is, which StageSettings judges."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_setting(name: str, text: str) -> Any:
    """The value of a stage's setting, one of SETTING_NAMES; whether it is in range, `check_setting` says."""
    return _PARSERS.get(name, _number)(text)


def check_setting(name: str, value: object) -> Any:
    """A setting's value as StageSettings keeps it. Raises UsageError, with its name, if it cannot be meant."""
    return getattr(StageSettings.from_dict({name: value}), name)


def written(value: object) -> str:
    """A value for a person: of a list its parts, without empty ones."""
    return ", ".join(str(part) for part in value if part != "") if isinstance(value, list) else str(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError("give a number") from None


def _steps(text: str) -> int:
    if text in PRESETS:
        raise UsageError(f"give a whole number; a preset is given as timesteps={text}")
    return parse_whole(text)


def _times(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError("give two times, such as 0.2,0.8") from None


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "steps": _steps,
    "resample": parse_whole,
    "sampler": str,
    "timesteps": str,
    "guidance_interval": _times,
    "threshold": parse_threshold,
}
