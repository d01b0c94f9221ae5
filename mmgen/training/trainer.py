"""One trainer for every network: batches, one loss, an average of the weights, a checkpoint that continues exactly."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmgen.errors import ModelError, UsageError
from mmgen.training.data import Batch, DrawnAhead, Order, Source
from mmgen.training.ema import Ema
from mmgen.training.muon import optimizers

WARMUP_STEPS = 300
DECAY_FROM = 0.7  # of the budget: from here the learning rate falls to zero
SAVE_SECONDS = 120.0


class Recipe(Protocol):
    """What is trained and how: everything about one network that the loop does not know.

    part: the network's name. network: what is trained, averaged and kept. head: what learns beside it, for the loss
    alone. source: where its pictures come from. lr: peak learning rate. batch: pictures per step.
    """

    part: str
    lr: float
    batch: int
    source: Source

    @property
    def network(self) -> nn.Module: ...

    @property
    def head(self) -> nn.Module | None: ...

    def order(self, index: int, progress: float) -> Order:
        """The batch of a step. progress: how much of the budget is spent, in [0, 1)."""
        ...

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of what was drawn, and named figures for the log."""
        ...

    def sheet(self, network: Any, path: Path) -> dict[str, float]:
        """Draw what the averaged network can do by now; returns figures for the log, if it can be measured."""
        ...


@dataclass
class State:
    """Where a run stands. seconds: trained so far, before every resumption too."""

    part: str
    seed: int
    step: int = 0
    seconds: float = 0.0
    pictures: int = 0


@dataclass(frozen=True)
class Budget:
    """How long to train in all, resumed runs included: minutes of wall clock, or a number of steps for tests."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UsageError("give either minutes or steps to train for")
        amount = self.minutes if self.steps is None else self.steps
        if amount is None or not math.isfinite(amount) or amount <= 0:
            raise UsageError(f"a budget of {amount} cannot be spent: give more than 0")

    def progress(self, state: State) -> float:
        """The spent part, 1 or more when it is all gone."""
        if self.steps is not None:
            return state.step / self.steps
        assert self.minutes is not None
        return state.seconds / (60 * self.minutes)

    def lr_factor(self, state: State) -> float:
        """Linear warm-up, constant, linear decay to zero."""
        decay = min(1.0, (1 - self.progress(state)) / (1 - DECAY_FROM))
        return max(0.0, min(decay, (state.step + 1) / WARMUP_STEPS))


def train(
    recipe: Recipe,
    out: Path,
    budget: Budget,
    *,
    seed: int = 0,
    resume: bool = False,
    sheet_minutes: float = 10.0,
    say: Callable[[str], None] = print,
) -> State:
    """Train until the budget is spent; the averaged network is then in `out`/`recipe.part`.

    Ctrl-C ends the run after its present step; it and data that cannot be read lose nothing. Raises UsageError if `out`
    holds a run and resume is not asked for, or the other way round; NonFiniteError never: a step whose gradient is not
    finite is skipped and logged, 20 in a row end the run with ModelError.
    """
    run = _Run(recipe, out, seed, resume)
    started = spoken = saved = drawn = time.monotonic()
    before = run.state.seconds
    try:
        with _asked_to_stop() as stop:
            while not stop.is_set() and (progress := budget.progress(run.state)) < 1:
                run.step(progress, budget.lr_factor(run.state))
                now = time.monotonic()
                run.state.seconds = before + now - started
                if now - spoken > 15:
                    say(run.report(budget))
                    spoken = now
                if now - drawn > 60 * sheet_minutes:
                    run.sheet()
                    drawn = now
                if now - saved > SAVE_SECONDS:
                    run.save()
                    saved = now
    except UsageError:  # of the data: the weights are as the last step left them
        run.save()
        raise
    finally:
        run.ahead.close()
    run.save()
    if stop.is_set():
        raise KeyboardInterrupt
    run.sheet()
    say(run.report(budget))
    return run.state


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never torn; pressed again, it interrupts as always."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    def __init__(self, recipe: Recipe, out: Path, seed: int, resume: bool) -> None:
        from accelerate import Accelerator

        self.recipe, self.out = recipe, out
        _recover(out)
        if (out / "checkpoint").is_dir() != resume:
            raise UsageError(
                f"{out.name} holds no run to resume"
                if resume
                else f"{out.name} holds a run: continue it with --resume"
            )
        self.accelerator = Accelerator(mixed_precision="bf16")
        if self.accelerator.num_processes > 1:
            raise UsageError(
                "training runs in one process: start it without a launcher, or give it one process"
            )
        out.mkdir(parents=True, exist_ok=True)
        self.device = self.accelerator.device
        self.trained = nn.ModuleDict({"network": recipe.network})
        if recipe.head is not None:
            self.trained["head"] = recipe.head
        self.trained.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = optimizers(self.trained, recipe.lr)
        self.ema = Ema(recipe.network)
        self.state = State(recipe.part, seed)
        if resume:
            self._load()
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in self.optimizers]
        self.ahead = DrawnAhead(recipe.source, workers(self.device))
        self.figures: dict[str, list[float]] = {}
        self.skipped = 0
        self.spoken = (time.monotonic(), self.state.pictures)

    def step(self, progress: float, lr_factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr * lr_factor
        # derived from the step, so that a resumed run draws what an uninterrupted one would have drawn
        generator = torch.Generator(self.device).manual_seed(self.state.seed * 1_000_003 + self.state.step)
        steps = range(self.state.step, self.state.step + 1 + self.ahead.depth)
        orders = [self.recipe.order(index, progress) for index in steps]
        drawn = self.ahead.take(orders)
        with self.accelerator.autocast():
            loss, figures = self.recipe.loss(orders[0], drawn, generator)
        self.accelerator.backward(loss)
        norm = float(self.accelerator.clip_grad_norm_(self.trained.parameters(), 1.0))
        finite = math.isfinite(norm)
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
            self.ema.update(self.recipe.network)
            self.skipped = 0
        elif (skipped := self.skipped + 1) >= 20:
            raise ModelError(
                f"{skipped} steps in a row gave a gradient that is not finite: lower the learning rate"
            )
        else:
            self.skipped = skipped
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.state.step += 1
        self.state.pictures += orders[0].count
        self.note({"skipped": float(not finite)})
        if finite:
            self.note({"loss": loss.item(), "grad_norm": norm, **figures})

    def note(self, figures: dict[str, float]) -> None:
        """Keep figures for the next report."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def sheet(self) -> None:
        """Draw what the averaged network can do by now, and keep what that measured."""
        self.note(self.recipe.sheet(self.ema.module, self.out / f"sheet-{self.state.step:07d}.png"))

    def report(self, budget: Budget) -> str:
        """One line for a person, the same as JSON in log.jsonl; the figures are means since the last report."""
        now, (since, pictures) = time.monotonic(), self.spoken
        rate = (self.state.pictures - pictures) / max(now - since, 1e-9)
        means = {name: sum(v) / len(v) for name, v in self.figures.items() if v}
        self.spoken, self.figures = (now, self.state.pictures), {}
        entry = {
            **asdict(self.state),
            "pictures_per_second": rate,
            "lr_factor": budget.lr_factor(self.state),
            **means,
        }
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        shown = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        spent = f"{100 * budget.progress(self.state):.0f}%"
        return f"{self.state.part} {spent} step {self.state.step} {self.state.pictures:,} pictures {rate:.0f}/s {shown}"

    def save(self) -> None:
        """Write the checkpoint beside the old one and put it in its place; then the averaged network by itself."""
        new, old, final = (self.out / name for name in ("checkpoint-new", "checkpoint-old", "checkpoint"))
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        new.mkdir()
        save_file(_flat(self.trained.state_dict()), new / "trained.safetensors")
        save_file(_flat(self.ema.module.state_dict()), new / "ema.safetensors")
        save_file(_optimizer_tensors(self.optimizers), new / "optimizer.safetensors")
        entry = {**asdict(self.state), "ema_updates": self.ema.updates}
        (new / "state.json").write_text(json.dumps(entry), "utf-8")
        if final.exists():
            os.replace(final, old)
        os.replace(new, final)
        shutil.rmtree(old, ignore_errors=True)
        written = self.out / f"{self.state.part}-new"
        save_network(self.ema.module, written)
        shutil.rmtree(self.out / self.state.part, ignore_errors=True)
        os.replace(written, self.out / self.state.part)

    def _load(self) -> None:
        folder = self.out / "checkpoint"
        entry = json.loads((folder / "state.json").read_text("utf-8"))
        self.ema.updates = entry.pop("ema_updates")
        if entry["part"] != self.state.part:
            raise UsageError(f"{self.out.name} trains the {entry['part']}, not the {self.state.part}")
        if entry["seed"] != self.state.seed:  # the source draws from it too
            raise UsageError(
                f"{self.out.name} was begun with seed {entry['seed']}: give --seed {entry['seed']}"
            )
        self.state = State(**entry)
        weights = load_file(folder / "trained.safetensors")
        if weights.keys() != self.trained.state_dict().keys():
            raise UsageError(
                f"{self.out.name} learned from another kind of data: give the --data it was begun with"
            )
        self.trained.load_state_dict(weights)
        self.ema.module.load_state_dict(load_file(folder / "ema.safetensors"))
        _load_optimizers(self.optimizers, load_file(folder / "optimizer.safetensors"))


def workers(device: torch.device) -> int:
    """How many processes draw pictures: beside a GPU all cores but one, at most 16; else none."""
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(16, max(1, cores - 1))


def _recover(out: Path) -> None:
    """Finish what a run that was killed between the two renames of `save` had begun."""
    if (out / "checkpoint").exists():
        return
    # state.json is written last; before the very first checkpoint it may be cut off
    new, old = out / "checkpoint-new", out / "checkpoint-old"
    if old.is_dir() or _is_json(new / "state.json"):
        os.replace(new if _is_json(new / "state.json") else old, out / "checkpoint")


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text("utf-8")), dict)
    except (OSError, ValueError):
        return False


def save_network(network: Any, folder: Path) -> None:
    """The network alone, in bfloat16, as `from_pretrained` reads it."""
    # not the mixin's own `to`, which prints a line at every call
    nn.Module.to(copy.deepcopy(network), "cpu", torch.bfloat16).save_pretrained(folder)


def _flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors wants plain contiguous memory; channels-last weights are laid out anew by load_state_dict
    plain = torch.contiguous_format
    return {name: value.detach().cpu().contiguous(memory_format=plain) for name, value in state.items()}


def _optimizer_tensors(optimizers: list[Any]) -> dict[str, Tensor]:
    tensors = {}
    for which, optimizer in enumerate(optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            tensors.update({f"{which}.{index}.{name}": value for name, value in slots.items()})
    return _flat(tensors)


def _load_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    for key, value in tensors.items():
        which, index, name = key.split(".", 2)
        like = parameters[int(which)][int(index)]
        if value.shape == like.shape:
            value = torch.empty_like(like).copy_(value)
        states[int(which)].setdefault(int(index), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
