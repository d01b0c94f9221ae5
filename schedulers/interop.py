"""diffusers, both ways: any of its schedulers as a sampler of ours, and our samplers as one scheduler of its own.

A scheduler of diffusers brings its own noise levels. Our networks say x0 on a schedule of their own, so at every call
the sample is scaled to the time at which that schedule is equally noisy, and x0 becomes what the scheduler expects of
a network. Importing this module imports diffusers; `mmgen.schedulers` names it lazily.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mmgen import threshold
from mmgen.errors import ModelError, UsageError
from mmgen.noise import Noise
from mmgen.schedulers import prediction, schedules, steps
from mmgen.schedulers.prediction import Prediction, add_noise, eps_from_x0, to_x0
from mmgen.schedulers.samplers import SAMPLERS, Denoise, Sampler, Step
from mmgen.schedulers.schedules import DiscreteSchedule, NoiseSchedule, flow_time
from mmgen.schedulers.steps import Level, level

# Why a scheduler cannot be a sampler, where its signatures do not say so.
_UNFIT: Mapping[str, str] = {
    "BlockRefinementScheduler": "it fills in words, not pictures",
    "DiscreteDDIMScheduler": "it fills in words, not pictures",
    "EntropyBoundScheduler": "it fills in words, not pictures",
    "DDIMInverseScheduler": "it runs from pictures to noise",
    "DPMSolverMultistepInverseScheduler": "it runs from pictures to noise",
    "CosineDPMSolverMultistepScheduler": "its noise is a Brownian tree, not drawn picture by picture",
    "DPMSolverSDEScheduler": "its noise is a Brownian tree, not drawn picture by picture",
    "CMStochasticIterativeScheduler": "it needs a consistency network, with a scale of its own",
    "ConsistencyDecoderScheduler": "it needs a consistency network, with a scale of its own",
    "SCMScheduler": "it needs a consistency network, with a scale of its own",
    "PiflowScheduler": "it needs a network that says many x0 at once",
    "HeliosScheduler": "it changes the resolution on its way",
    "HeliosDMDScheduler": "it changes the resolution on its way",
    "DDPMWuerstchenScheduler": "it does not say how noisy its samples are",
    "IPNDMScheduler": "its first step, from pure noise, leaves out what the network says",
    "MiniMaxH3Scheduler": "its times run the other way",
    "UnCLIPScheduler": "it must be told the next time at every step",
}
# Set wherever a class has the setting: x0 is limited by `denoise` alone, a run goes from pure noise to a clean picture,
# the Runge-Kutta start of PNDM takes nine more evaluations, and the single-step solver sets the last with a warning.
_SETTINGS: Mapping[str, Any] = {
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "skip_prk_steps": True,
    "lower_order_final": True,
}
# Flow is the path our networks are trained on: far better in few steps than betas, whose last step is a wide one.
_ON_FLOW: Mapping[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# How much less noisy than its schedule can be a run may begin, in flow time: "leading" times do not begin at the end.
_NEARLY_NOISE = 0.05


@cache
def foreign_samplers() -> tuple[str, ...]:
    """The names that `foreign_sampler` knows: the schedulers that are in diffusers and can draw a picture, sorted."""
    import diffusers.schedulers as theirs

    names = (name for name in sorted(dir(theirs)) if name.endswith("Scheduler"))
    return tuple(name for name in names if _is_scheduler(kind := getattr(theirs, name)) and not _unfit(kind))


def foreign_sampler(name: str, betas: Sequence[float] | None = None) -> Sampler:
    """The scheduler class of diffusers of that name as a sampler.

    betas: of the network's own schedule, where it has them; None: the flow path, where the scheduler can run there.
    Only the number of steps is taken from `times`; a scheduler that evaluates twice a step yields twice.
    Raises UsageError for an unknown name, and for a scheduler that cannot be run so.
    """
    import diffusers.schedulers as theirs

    kind: Any = getattr(theirs, name, None) if name.endswith("Scheduler") else None
    if needed := getattr(kind, "_backends", None):
        libraries = " and ".join(library for library in needed if library != "torch")
        raise UsageError(f"sampler {name!r} needs {libraries}, which is not installed: install it")
    if not _is_scheduler(kind):
        near = difflib.get_close_matches(name, foreign_samplers(), n=5, cutoff=0)
        raise UsageError(f"diffusers has no scheduler {name!r}: the nearest are {', '.join(near)}")
    if reason := _unfit(kind):
        raise UsageError(f"{name} cannot be a sampler: {reason}")
    return adapted(kind(**_settings(kind, betas)))


def adapted(scheduler: Any) -> Sampler:
    """A scheduler of diffusers, with the settings it has, as a sampler; the scheduler itself is left as it is.

    Noise is drawn from each picture's own generator. Raises UsageError where `foreign_sampler` does, for a scheduler
    whose network learns the variance, and while running for times that do not go from noise to picture.
    """
    if reason := _unfit(type(scheduler)):
        raise UsageError(f"{type(scheduler).__name__} cannot be a sampler: {reason}")
    if _kind(scheduler) == "learned-range":
        raise UsageError(f"{type(scheduler).__name__} with a learned variance cannot be a sampler: fix it")

    def run(
        denoise: Denoise, x: Tensor, times: Tensor, schedule: NoiseSchedule, noise: Noise
    ) -> Iterator[Step]:
        theirs = _begun(scheduler, times, schedule, x.device)
        levels = _levels(theirs)
        at = [_time(schedule, now) for now in levels]
        into = [_scale(level(schedule, t)) / _scale(now) for t, now in zip(at, levels, strict=True)]
        drawn = {"generator": noise.generators} if "generator" in _parameters(theirs.step) else {}
        # Half precision loses more in the sum of many steps than any network costs.
        x = x if x.dtype == torch.float64 else x.float()
        sample = x / schedule.sigma(times[0]) * getattr(theirs, "init_noise_sigma", 1.0)
        for i, timestep in enumerate(theirs.timesteps):
            x0 = denoise(into[i] * sample, at[i], at[i + 1]).x0.to(x.dtype)
            output = _output(theirs, x0, sample, levels[i])
            sample = _step(theirs, output, timestep, sample, drawn).to(x.dtype)
            yield Step("", i + 1, len(at) - 1, float(at[i + 1]), into[i + 1] * sample, x0)

    return run


def _is_scheduler(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, SchedulerMixin)


def _unfit(kind: Any) -> str | None:
    """Why a scheduler class cannot be a sampler; None if it can."""
    if kind.__name__ in _UNFIT:
        return _UNFIT[kind.__name__]
    if needed := _required(kind.__init__):
        return f"it cannot be made without {', '.join(needed)}"
    if not hasattr(kind, "step"):
        return "it has no step"
    needed = _required(kind.step)
    if needed != ["model_output", "timestep", "sample"]:
        return f"its step needs {', '.join(needed)}"
    return None


def _settings(kind: Callable[..., Any], betas: Sequence[float] | None) -> dict[str, Any]:
    takes = _parameters(kind)
    path: Mapping[str, Any] = {} if betas is None else {"trained_betas": list(betas)}
    # Those that do not say how they end, end a flow at noise.
    if betas is None and {"use_flow_sigmas", "final_sigmas_type"} <= takes.keys():
        path = _ON_FLOW
    return {name: value for name, value in {**_SETTINGS, **path}.items() if name in takes}


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _required(function: Callable[..., Any]) -> list[str]:
    """The parameters that have no default, without self."""
    named = (p for p in _parameters(function).values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return [p.name for p in named if p.default is p.empty and p.name != "self"]


def _begun(scheduler: Any, times: Tensor, schedule: NoiseSchedule, device: torch.device) -> Any:
    """A copy of the scheduler, at the start of a run of len(times) - 1 steps."""
    noisiest = flow_time(schedule, schedule.times(1)[0])
    name = type(scheduler).__name__
    if schedule.sigma(times[-1]) > 0 or flow_time(schedule, times[0]) < noisiest - _NEARLY_NOISE:
        raise UsageError(
            f"{name} only runs all the way from noise to picture, and {float(times[0]):g} to {float(times[-1]):g} "
            f"is a part: choose one of {', '.join(SAMPLERS)}"
        )
    begun = copy.deepcopy(scheduler)
    try:
        begun.set_timesteps(len(times) - 1, device=device)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{name} does not run in {len(times) - 1} steps: {reason}") from None
    if not hasattr(begun, "sigmas"):
        # Rounding makes "trailing" times of 61 steps, and of one number in sixteen, end on a step too many, at -1.
        begun.timesteps = begun.timesteps[begun.timesteps >= 0]
    if hasattr(begun, "set_begin_index"):
        begun.set_begin_index(0)
    return begun


def _levels(scheduler: Any) -> list[Level]:
    """How noisy the scheduler's sample is before each of its calls, and after the last."""
    count = len(scheduler.timesteps)
    if not hasattr(scheduler, "sigmas"):
        alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu()]
        return [Level(a.sqrt(), (1 - a).sqrt()) for a in (*alpha_bar, torch.ones_like(alpha_bar[0]))]
    sigmas = scheduler.sigmas[: count + 1].double().cpu().clone()
    if hasattr(scheduler, "sigmas_interpol"):
        # Every other call is made half-way; the ancestral one of the two numbers that from where the step began.
        first = 0 if hasattr(scheduler, "sigmas_down") else 1
        sigmas[1:count:2] = scheduler.sigmas_interpol[first : count - 1 + first : 2].double().cpu()
    if _kind(scheduler) == "flow":
        return [Level(1 - s, s) for s in sigmas]
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) > 1:
        return [Level(torch.ones_like(s), s) for s in sigmas]
    return [Level(1 / (s * s + 1).sqrt(), s / (s * s + 1).sqrt()) for s in sigmas]


def _kind(scheduler: Any) -> str:
    """What the scheduler expects of a network; flow matching has no setting for it. Raises ModelError if unknown."""
    if "prediction_type" not in scheduler.config:
        return "flow"
    return prediction.from_diffusers_config(scheduler.config)


def _scale(now: Level) -> Tensor:
    """Two samples that are equally noisy are as large as these."""
    return now.alpha + now.sigma


def _time(schedule: NoiseSchedule, now: Level) -> Tensor:
    """When `schedule` is as noisy as `now`, by bisection: 0-dim float64; its first or last time beyond its ends."""
    wanted = now.sigma / _scale(now)
    high, low = schedule.times(1)
    if flow_time(schedule, high) <= wanted:
        return high
    if flow_time(schedule, low) >= wanted:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if flow_time(schedule, middle) < wanted else (low, middle)
    return high


def _output(scheduler: Any, x0: Tensor, sample: Tensor, now: Level) -> Tensor:
    """What a network beside the scheduler would have to say for it to find x0. `prediction.to_x0` the other way."""
    if hasattr(scheduler, "precondition_outputs"):
        # Linear in the output: Karras et al. 2022 (EDM), arXiv:2206.00364, equation 7.
        nothing = torch.zeros_like(now.sigma)
        scale = scheduler.precondition_outputs(nothing, nothing + 1, now.sigma)
        return (x0 - scheduler.precondition_outputs(sample, nothing, now.sigma)) / scale
    kind = _kind(scheduler)
    if kind == "x0":
        return x0
    eps = eps_from_x0(x0, sample, *now)
    if kind == "v":
        return (now.alpha * eps - now.sigma * x0) / torch.hypot(now.alpha, now.sigma)
    return eps - x0 if kind == "flow" else eps


def _step(
    scheduler: Any, output: Tensor, timestep: Tensor, sample: Tensor, drawn: Mapping[str, Any]
) -> Tensor:
    if hasattr(scheduler, "scale_model_input"):
        # Some count these calls, and warn of a step without one; what it gives is scaled for another network.
        scheduler.scale_model_input(sample, timestep)
    after: Tensor = scheduler.step(output, timestep, sample, **drawn, return_dict=False)[0]
    return after


@dataclass
class MmgenSchedulerOutput(BaseOutput):
    """prev_sample: the sample of the next step. pred_original_sample: x0 as the network said it, limited."""

    prev_sample: Tensor
    pred_original_sample: Tensor


# Settings of other schedulers that `from_config` keeps, and what they mean here.
_VARIANCES: Mapping[str | None, Callable[[Level, Level], Tensor]] = {
    None: steps.small_variance,
    "fixed_small": steps.small_variance,
    "fixed_small_log": steps.small_variance,
    "fixed_large": steps.large_variance,
}
_PURE_NOISE = Level(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


class MmgenScheduler(SchedulerMixin, ConfigMixin):
    """One of our samplers, for pipelines of diffusers. The other settings are those of its own schedulers.

    sampler: one of `samplers.SAMPLERS`; "heun" takes two calls of `step` for every step but the last. thresholding:
    each picture by its own percentile, dynamic_thresholding_ratio, and at most by sample_max_value; it goes before
    clip_sample. What `from_config` finds in another scheduler's settings is kept to: set_alpha_to_one,
    final_sigmas_type, rescale_betas_zero_snr, variance_type.
    Raises UsageError for an unknown sampler, ModelError for settings that are not supported.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012  # as in diffusers
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(  # noqa: PLR0913, PLR0917  # diffusers wants its config flat, with its own names
        self,
        sampler: str = "dpmpp-2m",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        clip_sample: bool = False,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UsageError(f"no sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        self.order = 2 if sampler == "heun" else 1
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0, dtype=torch.int64)
        self._schedule = self._read()

    def __len__(self) -> int:
        return len(self._schedule.betas)

    def _read(self) -> DiscreteSchedule:
        """The schedule of the settings as they are now: `from_config` adds some when the scheduler is made."""
        if "shift" in self.config:
            raise ModelError("these are the settings of a flow-matching scheduler, which has no betas")
        if self.config.get("variance_type") not in (*_VARIANCES, "learned_range"):
            raise ModelError(
                f"scheduler config has variance_type {self.config['variance_type']!r}: not supported"
            )
        if self.config.clip_sample and self.config.get("clip_sample_range", 1.0) != 1:
            raise ModelError("scheduler config has a clip_sample_range other than 1: not supported")
        self._kind = prediction.from_diffusers_config(self.config)
        ratio, cap = self.config.dynamic_thresholding_ratio, self.config.sample_max_value
        clipped = threshold.make("clip" if self.config.clip_sample else "none")
        self._limit = threshold.make(ratio, cap) if self.config.thresholding else clipped
        schedule = schedules.from_diffusers_config(self.config)
        assert isinstance(schedule, DiscreteSchedule)
        return schedule

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of that many steps, or of these: training steps, each less than the one before.

        Raises UsageError unless exactly one of the two is given, and for steps that the schedule has not.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise UsageError("give either num_inference_steps or timesteps, and not both")
        self._schedule = self._read()
        if timesteps is None:
            assert num_inference_steps is not None
            self._times = self._schedule.times(num_inference_steps)
        else:
            self._times = torch.tensor([*timesteps, -1], dtype=torch.float64)
            if not bool((self._times.diff() < 0).all()) or not 0 <= self._times[0] < len(self):
                raise UsageError(
                    f"timesteps are {list(timesteps)}: give falling numbers from {len(self) - 1} to 0, one at least"
                )
        visited = self._times[:-1].long()
        if self.order == 2:
            # The second look of a step is where the next one begins.
            visited = torch.cat([visited[:1], visited[1:].repeat_interleave(2)])
        self.num_inference_steps = len(self._times) - 1
        self.timesteps = visited.to(device)
        self._visited = visited.tolist()
        self._index: int | None = None
        self._last: tuple[Level, Tensor, Tensor] | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: ours have the size that networks expect."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps, at one training step for each picture. original_samples, noise: [B, ...]."""
        t = timesteps.cpu().double()
        schedule = self._read()
        return add_noise(original_samples, noise, schedule.alpha(t), schedule.sigma(t))

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> MmgenSchedulerOutput | tuple[Tensor, Tensor]:
        """The sample of the next step, in the dtype of `sample`, and the x0 that the network sees.

        model_output: as prediction_type says, of `sample`. eta: noise of "ddim", 0 to 1. generator: of the noise, one
        or one for each picture; None is torch's own. Raises UsageError before `set_timesteps`, for a timestep that is
        not the next one, and for an eta that the sampler would ignore; NonFiniteError for NaN or infinity.
        """
        if eta and self.config.sampler != "ddim":
            raise UsageError(
                f"sampler {self.config.sampler!r} has no eta, got {eta:g}: leave it out, or choose ddim"
            )
        index = self._position(int(timestep))
        interval, second = divmod(index, self.order)
        now, then = (level(self._schedule, t) for t in self._times[interval : interval + 2])
        # Half precision loses more in the sum of many steps than any network costs.
        x = sample if sample.dtype == torch.float64 else sample.float()
        said = to_x0(model_output.to(x.dtype), x, *(then if second else now), self._kind)
        said = said._replace(x0=self._limit(said.x0))
        if second:
            after = self._corrected(x, said.x0, now, then)
        elif then.sigma > 0 and (self.config.sampler == "ddpm" or eta):
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            after = self._noisy(x, said, noise, now, then, eta)
        else:
            after = self._quiet(x, said.x0, now, then)
        self._index, self._last = index + 1, (now, x, said.x0)
        done = MmgenSchedulerOutput(after.to(sample.dtype), said.x0.to(sample.dtype))
        return done if return_dict else (done.prev_sample, done.pred_original_sample)

    def _position(self, timestep: int) -> int:
        """Which call of this run comes now. A run may begin on its way: the first call says where."""
        if self.num_inference_steps is None:
            raise UsageError("no timesteps are set: call set_timesteps before step")
        if self._index is None:
            if timestep not in self._visited:
                raise UsageError(f"timestep {timestep} is not in this run: take those of scheduler.timesteps")
            # The second of two equal ones begins a step, the first ends one.
            return len(self._visited) - 1 - self._visited[::-1].index(timestep)
        if self._visited[self._index : self._index + 1] != [timestep]:
            follows = (
                f"timestep {self._visited[self._index]}" if self._index < len(self._visited) else "nothing"
            )
            raise UsageError(
                f"step was called for timestep {timestep}, but {follows} comes next: set_timesteps begins anew"
            )
        return self._index

    def _quiet(self, x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
        if self.config.sampler != "dpmpp-2m":
            return steps.euler(x, x0, now, then)
        before, _, x0_before = self._last or (_PURE_NOISE, x, x0)
        return steps.dpmpp_2m(x, x0, x0_before, before, now, then)

    def _corrected(self, x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
        assert self._last is not None
        _, x_t, x0_t = self._last
        return steps.heun(x_t, x0_t, x, x0, now, then)

    def _noisy(
        self, x: Tensor, said: Prediction, noise: Tensor, now: Level, then: Level, eta: float
    ) -> Tensor:
        if self.config.sampler == "ddim":
            return steps.ddim(x, said.x0, noise, now, then, eta=eta)
        if said.variance is None:
            variance = _VARIANCES[self.config.get("variance_type")](now, then)
        else:
            variance = steps.learned_variance(said.variance, now, then)
        return steps.ddpm(x, said.x0, noise, now, then, variance=variance)
