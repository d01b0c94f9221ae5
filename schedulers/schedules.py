"""Noise schedules: how much picture and how much noise there is at a time. x_t = alpha(t) x0 + sigma(t) eps.

Times are float64 on the CPU and fall from noise to data. Their unit is the schedule's own: [0, 1] for flow and cosine,
sigma itself for Karras, the training step for the discrete ones (-1 is the finished picture, so that step 0 still has
one interval to go). `flow_time` gives one unit that all of them share.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from mmgen.errors import ModelError, UsageError

Spacing = Literal["leading", "linspace", "trailing"]
PRESET_TRAIN_STEPS = 1000  # of the networks that presets of training steps were made for
MAX_TRAIN_STEPS = 100_000  # a hundred times what anyone trains with: a table that always fits


class NoiseSchedule(Protocol):
    """alpha, sigma: any shape of times -> the same shape, float64. times(steps): [steps + 1] float64, falling."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def times(self, steps: int) -> Tensor: ...


def flow_time(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma), in [0, 1]: the time at which plain flow is equally noisy, for any schedule."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


@dataclass(frozen=True)
class FlowSchedule:
    """alpha = 1 - t, sigma = t. t in [0, 1].

    shift: multiplies sigma / alpha at every one of `times`, to spend more steps on noise: t' = s t / (1 + (s - 1) t).
    Source: Liu et al. 2022, arXiv:2209.03003; the shift is Esser et al. 2024, arXiv:2403.03206, equation 23.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("shift", self.shift)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def times(self, steps: int) -> Tensor:
        t = _uniform(steps)
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class CosineSchedule:
    """log-SNR = -2 log tan(pi t / 2) - 2 log(shift), with alpha^2 + sigma^2 = 1. t in [0, 1].

    shift: pixels / 64 keeps the noise that a picture of 64 px would see. 1 is the plain cosine.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672; the shift is Hoogeboom et al. 2023, arXiv:2301.11093, section 3.1.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("shift", self.shift)

    def alpha(self, t: Tensor) -> Tensor:
        signal, noise = self._ratio(t)
        return signal / torch.hypot(signal, noise)

    def sigma(self, t: Tensor) -> Tensor:
        signal, noise = self._ratio(t)
        return noise / torch.hypot(signal, noise)

    def _ratio(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # cos(pi t / 2) as a sine, so that it is 0 at t = 1 and not 6e-17.
        quarter = math.pi / 2
        return torch.sin(quarter * (1 - t.double())), self.shift * torch.sin(quarter * t.double())

    def times(self, steps: int) -> Tensor:
        return _uniform(steps)


@dataclass(frozen=True)
class KarrasSchedule:
    """alpha = 1, sigma = t, times even in sigma^(1 / rho), then 0.

    sigma_min, sigma_max: in units of a picture in [-1, 1].
    Source: Karras et al. 2022 (EDM), arXiv:2206.00364, equation 5 and table 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_positive("sigma_min", self.sigma_min)
        _check_positive("rho", self.rho)
        if not self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma_max is {self.sigma_max}: it must exceed sigma_min, {self.sigma_min}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def times(self, steps: int) -> Tensor:
        _check_steps(steps)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigmas = torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho
        sigmas[0] = self.sigma_max
        return torch.cat([sigmas, sigmas.new_zeros(1)])


@dataclass(frozen=True)
class DiscreteSchedule:
    """alpha^2 = prod (1 - beta) over the training steps, alpha^2 + sigma^2 = 1. t in [-1, len(betas) - 1].

    betas: one per training step, in (0, 1]. spacing: which training steps are visited. offset: added to the "leading"
    ones. final_alpha_one: whether t = -1 is the clean picture (diffusers: set_alpha_to_one); if not it equals t = 0.
    Between training steps alpha^2 is interpolated linearly. Raises ValueError for a t or a beta outside its range.
    Source: Ho et al. 2020, arXiv:2006.11239; the spacings are table 2 of Lin et al. 2023, arXiv:2305.08891.
    """

    betas: tuple[float, ...] = field(repr=False)
    spacing: Spacing
    offset: int = 0
    final_alpha_one: bool = True

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta <= 1 for beta in self.betas):
            raise ValueError("betas must be numbers in (0, 1], at least one of them")
        if self.spacing not in get_args(Spacing):
            raise ValueError(f"no spacing {self.spacing!r}: choose one of {', '.join(get_args(Spacing))}")

    @cached_property
    def alpha_bar(self) -> Tensor:
        """[len(betas) + 1] float64: alpha^2 at t = -1, 0, 1, ..."""
        products = torch.cumprod(1 - torch.tensor(self.betas, dtype=torch.float64), 0)
        return torch.cat([torch.ones_like(products[:1]) if self.final_alpha_one else products[:1], products])

    def alpha(self, t: Tensor) -> Tensor:
        return self._interpolate(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._interpolate(t)).sqrt()

    def _interpolate(self, t: Tensor) -> Tensor:
        last = len(self.betas) - 1
        if bool(((t < -1) | (t > last)).any()):
            raise ValueError(f"a time of this schedule lies between -1 and {last}, got {t.tolist()}")
        position = t.double() + 1
        below = position.floor().clamp(max=last)
        table, index = self.alpha_bar.to(t.device), below.long()
        return torch.lerp(table[index], table[index + 1], position - below)

    def times(self, steps: int) -> Tensor:
        """As diffusers spaces them, but a single step begins at the last training step, where there is only noise.

        Raises UsageError for more steps than the schedule has.
        """
        _check_steps(steps)
        count = len(self.betas)
        index = torch.arange(steps, dtype=torch.float64)
        if steps == 1:
            visited = torch.tensor([count - 1], dtype=torch.float64)
        elif self.spacing == "leading":
            visited = (index * (count // steps) + self.offset).flip(0)
        elif self.spacing == "linspace":
            visited = (index * (count - 1) / (steps - 1)).round().flip(0)
        else:
            visited = (count - index * count / steps).round() - 1
        if steps > count or visited[0] > count - 1:
            raise UsageError(
                f"{steps} steps are too many: this model was trained with {count}. Ask for fewer steps"
            )
        return torch.cat([visited, visited.new_tensor([-1])])


def preset_times(name: str, schedule: NoiseSchedule) -> Tensor:
    """[steps + 1] float64, falling: the training steps of a preset, one of `types.PRESETS`, then the finished picture.

    Raises UsageError for a schedule that is not of 1000 training steps. Source: DeepFloyd IF; diffusers has its lists.
    """
    if not isinstance(schedule, DiscreteSchedule) or len(schedule.betas) != PRESET_TRAIN_STEPS:
        raise UsageError(
            f"timesteps {name} are some of {PRESET_TRAIN_STEPS}, and this network was trained otherwise: give steps"
        )
    # diffusers, which takes seconds to import
    lists = importlib.import_module("diffusers.pipelines.deepfloyd_if.timesteps")
    return torch.tensor([*getattr(lists, f"{name}_timesteps"), -1], dtype=torch.float64)


def linear_betas(count: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """Even in beta. Source: Ho et al. 2020, arXiv:2006.11239, section 4 (and the defaults)."""
    _check_positive("start", start)
    _check_positive("end", end)
    return tuple(torch.linspace(start, end, count, dtype=torch.float64).tolist())


def scaled_linear_betas(count: int = 1000, start: float = 0.00085, end: float = 0.012) -> tuple[float, ...]:
    """Even in the square root of beta. Source: Rombach et al. 2022, arXiv:2112.10752, as published with its weights."""
    _check_positive("start", start)
    _check_positive("end", end)
    return tuple(beta**2 for beta in linear_betas(count, start**0.5, end**0.5))


def cosine_betas(count: int = 1000, cap: float = 0.999) -> tuple[float, ...]:
    """`squaredcos_cap_v2`. Source: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17: s = 0.008, betas capped."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return tuple(min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), cap) for i in range(count))


def zero_terminal_snr(betas: tuple[float, ...]) -> tuple[float, ...]:
    """The same betas stretched until the last step is pure noise.

    Source: Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    if not betas:
        raise ValueError("betas must be numbers in (0, 1], at least one of them")
    root = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = root.square() / torch.cat([torch.ones_like(root[:1]), root[:-1].square()])
    return tuple((1 - kept).tolist())


_BETAS: Mapping[str, Callable[[], tuple[float, ...]]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": cosine_betas,
}
_SHIFTED: Mapping[str, Callable[[float], NoiseSchedule]] = {"flow": FlowSchedule, "cosine": CosineSchedule}
SCHEDULES: tuple[str, ...] = (*_SHIFTED, "karras", *_BETAS)


def schedule(name: str, shift: float = 1.0) -> NoiseSchedule:
    """The schedule of that name with its paper's constants; the discrete ones have 1000 steps, spaced "trailing".

    shift: resolution shift of "flow" and "cosine". Raises UsageError for an unknown name, or a shift elsewhere.
    """
    if name in _SHIFTED:
        return _SHIFTED[name](shift)
    if name not in SCHEDULES:
        raise UsageError(f"no noise schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    if shift != 1:
        raise UsageError(
            f"noise schedule {name!r} has no shift, got {shift:g}: only flow and cosine have one"
        )
    return KarrasSchedule() if name == "karras" else DiscreteSchedule(_BETAS[name](), "trailing")


# Settings of diffusers schedulers that bend the noise levels in ways not written here.
_BENDING = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
)


def from_diffusers_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler_config.json describes.

    What its classes default differently (betas, spacing, shift) must be in the config: nothing is guessed.
    Raises ModelError for a missing or unknown value, and for a setting that is not supported.
    """
    for name in _BENDING:
        if config.get(name):
            raise ModelError(
                f"scheduler config has {name}={config[name]!r}, which is not supported: set it to false"
            )
    try:
        if str(config.get("_class_name", "")).startswith("FlowMatch"):
            return FlowSchedule(float(_given(config, "shift")))
        return DiscreteSchedule(
            betas=_read_betas(config),
            spacing=_given(config, "timestep_spacing"),
            offset=int(config.get("steps_offset", 0)),
            final_alpha_one=bool(config.get("set_alpha_to_one", True))
            and config.get("final_sigmas_type") != "sigma_min",
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"scheduler config is not usable: {error}") from None


def _read_betas(config: Mapping[str, Any]) -> tuple[float, ...]:
    if config.get("trained_betas") is not None:
        betas = tuple(float(beta) for beta in config["trained_betas"])
    else:
        name, count = _given(config, "beta_schedule"), int(_given(config, "num_train_timesteps"))
        if not 1 <= count <= MAX_TRAIN_STEPS:
            raise ModelError(
                f"scheduler config has num_train_timesteps {count}: 1 to {MAX_TRAIN_STEPS} are supported"
            )
        if name == "squaredcos_cap_v2":
            betas = cosine_betas(count)
        elif name in ("linear", "scaled_linear"):
            make = linear_betas if name == "linear" else scaled_linear_betas
            betas = make(count, float(_given(config, "beta_start")), float(_given(config, "beta_end")))
        else:
            raise ModelError(
                f"scheduler config has beta_schedule {name!r}: choose one of {', '.join(_BETAS)}"
            )
    return zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def _given(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ModelError(
            f"scheduler config has no {name!r}, and diffusers' classes differ in its default: write it in"
        )
    return config[name]


def _uniform(steps: int) -> Tensor:
    _check_steps(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least one is needed")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}: it must be a positive number")
