"""Devices, number formats and sizes: the only file that moves a module between devices."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from mmgen.errors import UsageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None = None) -> torch.device:
    """The device asked for, or the best there is: CUDA, MPS, CPU. Raises UsageError if it is not there."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"no device {name!r}: choose cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    there = {"cpu": True, "cuda": count > (device.index or 0), "mps": torch.backends.mps.is_available()}
    if not there[device.type]:
        raise UsageError(f"this machine has no {name}: leave --device out, or choose cpu")
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number format asked for, or the fastest that is exact enough: bfloat16 where the processor has it."""
    if name is not None:
        if name not in DTYPES:
            raise UsageError(f"no dtype {name!r}: choose one of {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # builds without oneDNN, as on Apple's processors, have no such operator to ask
    if (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return torch.bfloat16
    return torch.float32


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move and cast for inference, convolutions channels last."""
    module = module.eval().requires_grad_(False)
    # not Module.to(dtype) of diffusers' mixin, which prints; one pass does all three
    return nn.Module.to(module, device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def reset_peak(device: torch.device) -> None:
    """Begin `peak_bytes` anew where that is possible: on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Until all that was begun on a device is done; a CPU is never behind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory used so far, 0 where it cannot be told.

    On CUDA by tensors since `reset_peak`, on Linux by this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else 0
