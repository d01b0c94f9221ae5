"""A model, and what takes the place of its parts or is added to it, as one text.

MODEL?prior=MODEL&vae=MODEL&refiner=MODEL&lora=FILE:WEIGHT&upscaler=MODEL: each MODEL is a name, a folder or owner/name
of the Hub, and FILE a file or owner/name[/FILE] there; lora and upscaler may be repeated, and hold in their order.
Characters of their own meaning are written as in a URL (%26 for &). Source of the syntax: RFC 3986, 3.4.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from mmgen.errors import UsageError

ONCE, OFTEN = ("prior", "vae", "refiner"), ("lora", "upscaler")
MAX_LORA_WEIGHT = 10.0


@dataclass(frozen=True)
class Lora:
    """Low-rank changes, and how strongly they are made: 1 as trained, 0 not at all, less than 0 away.

    file: where they are, or owner/name[@revision][/FILE] of the Hugging Face Hub.
    """

    file: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """FILE or FILE:WEIGHT. Raises UsageError for a weight that cannot be meant."""
        file, colon, weight = text.rpartition(":")
        if not colon or weight.endswith(".safetensors"):
            return cls(text)
        try:
            found = float(weight)
        except ValueError:
            raise UsageError(f"lora {text!r}: {weight!r} is no weight; write FILE.safetensors:0.8") from None
        if math.isnan(found) or abs(found) > MAX_LORA_WEIGHT:
            raise UsageError(
                f"lora {text!r}: weights from -{MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g} can be meant"
            )
        return cls(file, found)

    def __str__(self) -> str:
        return f"{self.file}:{self.weight!r}"


@dataclass(frozen=True)
class Reference:
    """The parts of such a text."""

    model: str
    prior: str | None = None
    vae: str | None = None
    refiner: str | None = None
    loras: tuple[Lora, ...] = ()
    upscalers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The parts of a text. A folder of that very name is itself. Raises UsageError for a part that is not known."""
        model, mark, rest = text.partition("?")
        if not mark or os.path.lexists(text):  # unlike Path.exists it has an answer for a name that cannot be
            return cls(text)
        try:
            pairs = parse_qsl(rest, keep_blank_values=True, strict_parsing=True, errors="strict")
        except ValueError:
            pairs = None
        if not pairs:
            raise UsageError(f"{text!r} is no model: after ? write PART=MODEL, joined by &")
        return cls(unquote(model)).adding(pairs)

    def adding(self, parts: list[tuple[str, str]]) -> Reference:
        """With more parts, as (name, value). Raises UsageError for one that is not known or cannot be repeated."""
        whole = self
        for name, value in parts:
            if name not in (*ONCE, *OFTEN):
                raise UsageError(
                    f"a model has no part {name!r} to be given: there are {', '.join((*ONCE, *OFTEN))}"
                )
            if not value.strip():
                raise UsageError(f"the {name} of a model is empty: give a name, a folder or a file")
            if name == "lora":
                whole = replace(whole, loras=(*whole.loras, Lora.parse(value)))
            elif name == "upscaler":
                whole = replace(whole, upscalers=(*whole.upscalers, value))
            elif getattr(whole, name) is not None:
                raise UsageError(f"{name} is given twice: keep one")
            else:
                given: dict[str, Any] = {name: value}
                whole = replace(whole, **given)
        return whole

    @property
    def models(self) -> list[str]:
        """All of them: LoRAs are files."""
        once = (self.model, self.prior, self.vae, self.refiner)
        return [*(text for text in once if text is not None), *self.upscalers]

    def map(self, model: Callable[[str], str], file: Callable[[str], str]) -> Reference:
        """With every model and every LoRA's file called otherwise."""
        return Reference(
            model(self.model),
            prior=None if self.prior is None else model(self.prior),
            vae=None if self.vae is None else model(self.vae),
            refiner=None if self.refiner is None else model(self.refiner),
            loras=tuple(Lora(file(lora.file), lora.weight) for lora in self.loras),
            upscalers=tuple(model(upscaler) for upscaler in self.upscalers),
        )

    def __str__(self) -> str:
        given = [(name, getattr(self, name)) for name in ONCE]
        given += [("lora", str(lora)) for lora in self.loras]
        given += [("upscaler", upscaler) for upscaler in self.upscalers]
        rest = "&".join(f"{name}={quote(value, safe='/:@,')}" for name, value in given if value is not None)
        return f"{quote(self.model, safe='/:@,')}?{rest}" if rest else self.model
