"""The values that travel: what is asked for, and what came of it. Frozen, with a JSON round trip, without torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from mmgen.errors import UsageError

SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpmpp-2m")
# whose steps stand alone: the others look back at earlier ones, and cannot take one again
ONE_STEP = ("ddpm", "ddim", "euler", "heun")
# by name: presets of training steps, and how many steps each takes. Source: DeepFloyd IF, as published.
PRESETS: Mapping[str, int] = {
    "fast27": 27, "smart27": 27, "smart50": 50, "smart100": 100, "smart185": 185,
    "super27": 27, "super40": 40, "super100": 100,
}  # fmt: skip
Verb = Literal["generate", "edit", "upscale", "vary", "mix", "interpolate", "diff-text"]
VERBS: tuple[str, ...] = get_args(Verb)
UNCLIP: tuple[Verb, ...] = ("vary", "mix", "interpolate", "diff-text")  # they draw from image embeddings
# by verb: the pictures that it must start from, and all that it can; of the others the prompts say it
_INPUTS: Mapping[str, tuple[set[str], set[str]]] = {
    "generate": (set(), set()),
    "edit": ({"image"}, {"image", "mask"}),
    "upscale": ({"image"}, {"image"}),
    "vary": ({"image"}, {"image"}),
    "diff-text": ({"image"}, {"image"}),
}
MIN_STRENGTH = 0.01
STRENGTH = 0.6  # of an edit without a mask, where nobody says
AMOUNT = (
    0.35  # of a text diff, where nobody says: unCLIP goes up to 0.25 to 0.5 (arXiv:2204.06125, section 3.3)
)
MAX_WEIGHTS = 1000  # and as many frames
SUM_TOLERANCE = 1e-6  # of weights: thirds do not sum to 1 exactly
Size = tuple[int, int]
MAX_SEED = 2**63 - 1
DRAWN_SEEDS = 2**32  # a seed that is drawn for a person is one of so many: short enough to type again
MAX_STEPS = 1000
MAX_RESAMPLE = 100
MAX_PROMPT_CHARS = 10_000


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {value!r}: give a number")
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}: it must lie between {low:g} and {high:g}")
    # 1 and 1.0, 0 and -0.0 are equal settings, so they must be equal text.
    return float(value) + 0.0


@dataclass(frozen=True)
class StageSettings:
    """How one stage runs. None means "not given": the model's own default, resolved in `with_defaults` alone.

    steps: intervals, 1 to 1000. sampler: one of SAMPLERS, or a scheduler class of diffusers. eta: 0 is deterministic, 1
    ancestral (ddim only). guidance_scale: 1 is off. guidance_interval: times in [0, 1] between which guidance acts.
    guidance_rescale: 0 to 1.
    guidance_parallel: how much of the part along the picture guidance keeps, 0 to 1. guidance_limit: the largest root
    mean square of what its two sides differ by, 1e-6 to 2.
    threshold: a percentile in (0, 1) for dynamic thresholding, "clip" or "none". threshold_cap: at least 1.
    noise_level: corruption of the low-resolution input, 0 to 1 (super-resolution only); to published networks it is
    the part of the training steps of that noise, and to one that refines, of the noise that its steps begin with.
    resample: how often each step is taken, 1 to 100, noised again in between; more fits a repainted part better.
    timesteps: one of PRESETS instead of even steps, for networks that were trained in 1000; it says `steps` as well.
    Raises UsageError for anything else.
    """

    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float | None = None
    guidance_parallel: float | None = None
    guidance_limit: float | None = None
    threshold: float | Literal["clip", "none"] | None = None
    threshold_cap: float | None = None
    noise_level: float | None = None
    resample: int | None = None
    timesteps: str | None = None

    def __post_init__(self) -> None:
        if self.timesteps is not None:
            self._take_preset(self.timesteps)
        for name, most in (("steps", MAX_STEPS), ("resample", MAX_RESAMPLE)):
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise UsageError(f"{name} is {value!r}: give a whole number")
                _number(name, value, 1, most)
        if self.sampler is not None and not _may_be_sampler(self.sampler):
            known = ", ".join(SAMPLERS)
            raise UsageError(
                f"no sampler {self.sampler!r}: choose one of {known}, or a scheduler class of diffusers"
            )
        for name, low, high in _RANGES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        if self.guidance_interval is not None:
            self._check_interval(self.guidance_interval)
        if self.threshold is not None:
            self._check_threshold(self.threshold)

    def _take_preset(self, name: object) -> None:
        if not isinstance(name, str) or name not in PRESETS:
            raise UsageError(f"no timesteps {name!r}: choose one of {', '.join(PRESETS)}")
        if self.steps not in (None, PRESETS[name]):
            raise UsageError(f"timesteps {name} are {PRESETS[name]} steps, not {self.steps}: leave steps out")
        object.__setattr__(self, "steps", PRESETS[name])

    def _check_interval(self, interval: Sequence[float]) -> None:
        if not isinstance(interval, list | tuple) or len(interval) != 2:
            raise UsageError(f"guidance_interval is {interval!r}: give two times, such as 0.2,0.8")
        low, high = (_number("guidance_interval", t, 0, 1) for t in interval)
        if low >= high:
            raise UsageError(f"guidance_interval is {low:g},{high:g}: the first time must be the smaller one")
        object.__setattr__(self, "guidance_interval", (low, high))

    @staticmethod
    def _check_threshold(threshold: object) -> None:
        if isinstance(threshold, str):
            if threshold not in ("clip", "none"):
                raise UsageError(
                    f"threshold is {threshold!r}: give a percentile such as 0.995, 'clip' or 'none'"
                )
        elif not 0 < _number("threshold", threshold, 0, 1) < 1:
            raise UsageError(f"threshold is {threshold}: a percentile lies between 0 and 1, both excluded")

    def with_defaults(self, defaults: StageSettings) -> StageSettings:
        """These settings, with every None taken from `defaults`; steps that are given stand for timesteps too."""
        values = {
            f.name: _first(getattr(self, f.name), getattr(defaults, f.name)) for f in dataclasses.fields(self)
        }
        if self.steps is not None:
            values["timesteps"] = self.timesteps
        return StageSettings(**values)

    def to_dict(self) -> dict[str, Any]:
        """Only what is given, as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageSettings:
        """The inverse of `to_dict`. Raises UsageError for a name that does not exist."""
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise UsageError(f"no stage setting {name!r}: choose one of {', '.join(names)}")
        return cls(**values)


_RANGES = (
    ("eta", 0, 1),
    ("guidance_scale", 0, 100),
    ("guidance_rescale", 0, 1),
    ("guidance_parallel", 0, 1),
    ("guidance_limit", 1e-6, 2),
    ("threshold_cap", 1, 100),
    ("noise_level", 0, 1),
)


def _may_be_sampler(name: object) -> bool:
    """One of ours, or what may be a scheduler of diffusers: whether it is one, only diffusers can say."""
    return name in SAMPLERS or (isinstance(name, str) and name.isidentifier() and name.endswith("Scheduler"))


def check_sampler(
    name: str, *, eta: float | None = None, resample: int | None = None, timesteps: str | None = None
) -> None:
    """Raise UsageError for an unknown sampler, for an eta or timesteps that it would ignore, and for steps that it
    cannot repeat.

    A name that ends in Scheduler passes: whether diffusers has it, `mmgen.schedulers.sampler` says.
    """
    if resample is not None and resample > 1 and name not in ONE_STEP:
        raise UsageError(
            f"sampler {name!r} cannot take a step again: for resample choose one of {', '.join(ONE_STEP)}"
        )
    if name not in SAMPLERS and not name.endswith("Scheduler"):
        known = ", ".join(SAMPLERS)
        raise UsageError(f"no sampler {name!r}: choose one of {known}, or a scheduler class of diffusers")
    if eta is not None and name != "ddim":
        raise UsageError(f"sampler {name!r} has no eta, got {eta:g}: leave it out, or choose ddim")
    if timesteps is not None and name not in SAMPLERS:
        raise UsageError(
            f"sampler {name!r} has steps of its own: leave timesteps {timesteps} out, or choose one of "
            f"{', '.join(SAMPLERS)}"
        )


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


@dataclass(frozen=True)
class Request:
    """All that is needed to repeat the pictures; it is written into them.

    The pictures are prompts x seeds, prompt-major. size: (width, height) in pixels. stages: settings by stage name.
    model: name of the model asked for, with its digest once it is known ("" before loading). verb: what is done.
    inputs: the pictures it starts from, "image" and "mask", as sha256 of their pixels (`mmgen.inputs.digest`).
    strength: how far an edited picture may move away, in (0, 1]. An upscaled or varied picture needs no prompt: "".

    mix and interpolate: the prompts are the parts of each picture, "" where one of the inputs "image", "image-2", ...
    stands, in order. diff-text: they are the text before and the one after. weights, in [0, 1]: mix: of each part,
    together 1; interpolate: of the second part, one picture for each; diff-text: of what the texts differ by, one
    picture for each. Raises UsageError where a value cannot be meant.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: Size
    negative_prompt: str = ""
    stages: Mapping[str, StageSettings] = field(default_factory=dict)
    model: str = ""
    model_digest: str = ""
    verb: Verb = "generate"
    inputs: Mapping[str, str] = field(default_factory=dict)
    strength: float | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        object.__setattr__(self, "stages", MappingProxyType(dict(self.stages)))
        self._check_start()
        self._check_parts()
        if not self.prompts:
            raise UsageError("no prompt was given: say what to draw")
        for prompt in self.prompts:
            check_prompt(prompt, may_be_empty=self.verb == "upscale" or (self._has_parts and prompt == ""))
        check_prompt(self.negative_prompt, what="negative prompt", may_be_empty=True)
        self._check_weights()
        if not self.seeds:
            raise UsageError("no seed was given: give at least one")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
                raise UsageError(f"seed {seed!r}: give a whole number from 0 to {MAX_SEED}")
        if len(self.size) != 2 or any(
            isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in self.size
        ):
            raise UsageError(f"size {self.size!r}: give width and height in pixels, such as 1024x1024")

    def _check_kinds(self) -> None:
        for name in ("prompts", "seeds", "size", "weights"):
            if not isinstance(getattr(self, name), tuple):
                raise UsageError(f"request field {name!r} is {getattr(self, name)!r}: give a tuple")
        for name in ("model", "model_digest"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"request field {name!r} is {getattr(self, name)!r}: give text")
        for name, settings in self.stages.items():
            if not isinstance(name, str) or not isinstance(settings, StageSettings):
                raise UsageError(f"stage {name!r} is {settings!r}: give StageSettings by name")

    def _check_start(self) -> None:
        """What the pictures start from fits what is done."""
        if self.verb not in VERBS:
            raise UsageError(f"no verb {self.verb!r}: choose one of {', '.join(VERBS)}")
        if not isinstance(self.inputs, Mapping):
            raise UsageError(f"request field 'inputs' is {self.inputs!r}: give sha256 by name")
        seen = set(picture_names(self.prompts.count("")))
        needed, most = _INPUTS.get(self.verb, (seen, seen))
        names = set(self.inputs)
        if not needed <= names <= most:
            perhaps = "".join(f", perhaps a {name}" for name in sorted(most - needed))
            raise UsageError(
                f"{self.verb} starts from {' and '.join(sorted(needed)) or 'no picture'}{perhaps}, not from "
                f"{' and '.join(sorted(map(str, names))) or 'none'}"
            )
        for name, value in self.inputs.items():
            if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
                raise UsageError(f"the {name} is {value!r}: give the sha256 of its pixels")
        object.__setattr__(self, "inputs", MappingProxyType(dict(sorted(self.inputs.items()))))
        if (self.strength is None) != (self.verb != "edit"):
            raise UsageError(f"strength is {self.strength}: an edit needs it, and nothing else takes it")
        if self.strength is not None:
            object.__setattr__(self, "strength", _number("strength", self.strength, MIN_STRENGTH, 1))

    @property
    def _has_parts(self) -> bool:
        """Whether a prompt may be "", in the place of a picture."""
        return self.verb in ("vary", "mix", "interpolate")

    def _check_parts(self) -> None:
        """The prompts are as many as this verb takes."""
        count = len(self.prompts)
        if self.verb == "vary" and self.prompts != ("",):
            raise UsageError("vary takes no prompt: what a picture is to show besides, mix is told")
        if self.verb == "mix" and not 2 <= count <= MAX_WEIGHTS:
            raise UsageError(f"mix puts pictures and texts together, and {count} is given: give two or more")
        if self.verb == "interpolate" and count != 2:
            raise UsageError(f"interpolate goes from one picture or text to another: give two, not {count}")
        if self.verb == "diff-text" and count != 2:
            raise UsageError(f"diff-text goes from one text to another: give two, not {count}")
        if self.verb in UNCLIP and self.negative_prompt:
            raise UsageError(f"{self.verb} takes no negative prompt: leave it out")

    def _check_weights(self) -> None:
        name = "the amount" if self.verb == "diff-text" else "a weight"
        weights = tuple(_number(name, weight, 0, 1) for weight in self.weights)
        object.__setattr__(self, "weights", weights)
        said = ", ".join(f"{weight:g}" for weight in weights)
        if self.verb not in ("mix", "interpolate", "diff-text"):
            if weights:
                raise UsageError(f"weights {said} are given: {self.verb} takes none")
        elif not 1 <= len(weights) <= MAX_WEIGHTS:
            raise UsageError(f"{self.verb} was given {len(weights)} weights: give 1 to {MAX_WEIGHTS:,}")
        elif self.verb == "mix":
            if len(weights) != len(self.prompts):
                raise UsageError(f"{len(weights)} weights for {len(self.prompts)} parts: give one for each")
            if abs(sum(weights) - 1) > SUM_TOLERANCE:
                raise UsageError(f"the weights {said} sum to {sum(weights):g}: they must sum to 1")

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType cannot be pickled, and requests go to other processes.
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return Request, tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)

    def pictures(self) -> Iterator[tuple[str, int]]:
        """(prompt, seed) of every picture, prompt-major; where prompts make a picture together, they are joined."""
        if self.verb in ("generate", "edit", "upscale", "vary"):
            return ((prompt, seed) for prompt in self.prompts for seed in self.seeds)
        joined = (" + " if self.verb == "mix" else " -> ").join(filter(None, self.prompts))
        return ((joined, single.seeds[0]) for single in self.singles())

    def single(self, prompt: str, seed: int) -> Request:
        """The request that makes just this picture, of a verb that draws each prompt by itself."""
        return dataclasses.replace(self, prompts=(prompt,), seeds=(seed,))

    def singles(self) -> Iterator[Request]:
        """The request of each picture, in the order of `pictures`: the record that is written into it."""
        if self.verb == "mix":
            return (dataclasses.replace(self, seeds=(seed,)) for seed in self.seeds)
        if self.verb in ("interpolate", "diff-text"):
            return (
                dataclasses.replace(self, seeds=(seed,), weights=(weight,))
                for seed in self.seeds
                for weight in self.weights
            )
        return (self.single(prompt, seed) for prompt, seed in self.pictures())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        stages = {name: settings.to_dict() for name, settings in sorted(self.stages.items())}
        return {**values, "stages": stages, "inputs": dict(self.inputs)}

    def to_json(self) -> str:
        """One line of JSON, keys sorted, so that equal requests are equal text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True)

    def said(self) -> dict[str, Any]:
        """What is given, by the names that people are shown, in plain JSON values."""
        values = self.to_dict()
        prompts, seeds = values["prompts"], values["seeds"]
        said = {
            "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "negative prompt": self.negative_prompt,
            "seed": seeds[0] if len(seeds) == 1 else seeds,
            "size": "x".join(map(str, self.size)),
            "verb": self.verb,
            "strength": self.strength,
            "weights": values["weights"],
            **{f"{name} sha256": digest for name, digest in self.inputs.items()},
            "model": self.model,
            "model digest": self.model_digest,
        }
        for stage, settings in values["stages"].items():
            said |= {f"{stage}.{name}": value for name, value in settings.items()}
        return {name: value for name, value in said.items() if value not in (None, "", [])}

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The inverse of `to_json`. Raises UsageError if the text is not a request."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"this is not a request in JSON: {error}") from None
        if not isinstance(values, dict):
            raise UsageError(f"this is not a request: expected a JSON object, got {type(values).__name__}")
        names = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise UsageError(f"no request field {unknown[0]!r}: the fields are {', '.join(sorted(names))}")
        try:
            stages = {k: StageSettings.from_dict(v) for k, v in values.pop("stages", {}).items()}
            values.setdefault("weights", [])
            for name in ("prompts", "seeds", "size", "weights"):
                if not isinstance(values[name], list):
                    raise UsageError(f"request field {name!r} must be a list, got {values[name]!r}")
                values[name] = tuple(values[name])
            return cls(stages=stages, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"this is not a request: {error}") from None


def picture_names(count: int) -> list[str]:
    """What so many given pictures are called, in order: image, image-2, ..."""
    return ["image", *(f"image-{number}" for number in range(2, count + 1))][:count]


def check_prompt(prompt: str, what: str = "prompt", may_be_empty: bool = False) -> None:
    """Raise UsageError unless `prompt` is text with at least one letter or digit and a sensible length."""
    if not isinstance(prompt, str):
        raise UsageError(f"the {what} is {prompt!r}: give text")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise UsageError(f"the {what} has {len(prompt):,} characters: at most {MAX_PROMPT_CHARS:,} are read")
    if "\0" in prompt:
        raise UsageError(f"the {what} holds a NUL character: take it out")
    if not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise UsageError(
            f"the {what} holds half a character (a lone surrogate): it is not text that can be saved"
        )
    if may_be_empty and not prompt.strip():
        return
    if not prompt.strip():
        raise UsageError(f"the {what} is empty: say what to draw")
    if not any(c.isalnum() for c in prompt):
        raise UsageError(f"the {what} {prompt[:40]!r} has no letter or digit: say in words what to draw")


@dataclass(frozen=True)
class StageRecord:
    """What one stage took: seconds of wall clock, steps, and the most bytes in use by its end (0: not measured)."""

    stage: str
    seconds: float
    steps: int
    peak_bytes: int = 0
