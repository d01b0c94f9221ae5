"""Attention kernels: the only file that names one.

`use` chooses a kernel for the whole process; without a choice it is torch's own, "sdpa".
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgen.errors import UsageError

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

SCORES_AT_ONCE = 2**22  # that the sliced kernel holds: 16 MB in float32
_ALIGNMENT = 8  # numbers; rows of a mask must begin at multiples of 16 bytes, in half precision too


@dataclass
class _Choice:
    """The kernel that this process computes with."""

    name: str = "sdpa"


_choice = _Choice()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, by the kernel in use.

    q: [B, H, N, d]; k, v: [B, H, M, d]; mask: [B, M] bool, True where a key may be seen. Returns [B, H, N, d].
    Raises UsageError if the kernel in use has no code for this device or dtype.
    """
    return KERNELS[_choice.name](q, k, v, mask)


def use(name: str) -> None:
    """Compute with this kernel from now on, in every network of this package and everywhere in this process.

    Raises UsageError if the name is unknown, or if the kernel does not run here.
    """
    if name not in KERNELS:
        raise UsageError(f"no attention kernel {name!r}: choose one of {', '.join(KERNELS)}")
    if reason := _reason(name):
        raise UsageError(f"the attention kernel {name!r} is not available here: {reason}")
    _choice.name = name


def kernel() -> str:
    """The name of the kernel in use."""
    return _choice.name


def available() -> dict[str, str]:
    """Every kernel by name: "" if it runs here, else the reason why it does not."""
    return {name: _reason(name) for name in KERNELS}


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # On a CPU the fused kernel's backward pass is three to seven times slower than plain matrix products.
    if q.device.type == "cpu" and torch.is_grad_enabled():
        return _plain(q, k, v, mask)
    visible = None if mask is None else mask[:, None, None, :].expand(-1, 1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _sliced(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """A slice of the queries at a time, so that few scores exist at once.

    Exact: the weights of one query depend on no other. Source: after Rabe and Staats 2021, arXiv:2112.05682.
    """
    queries = max(1, SCORES_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    return torch.cat([_plain(some, k, v, mask) for some in q.split(queries, dim=2)], dim=2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Source: Lefaudeux et al. 2022 (xFormers), memory_efficient_attention; heads stand behind tokens there."""
    if q.is_meta:  # an estimate: it has no code for shapes alone, and takes what torch's own kernel takes
        return _sdpa(q, k, v, mask)
    bias = None if mask is None else _bias(mask, q)
    tokens_first = (x.transpose(1, 2) for x in (q, k, v))
    try:
        out: Tensor = _xformers_ops().memory_efficient_attention(*tokens_first, attn_bias=bias)
    except NotImplementedError:
        raise UsageError(
            f"xformers has no code for {str(q.dtype).removeprefix('torch.')} on {q.device.type}: choose another "
            f"attention kernel ({', '.join(name for name in KERNELS if name != 'xformers')}), device or dtype"
        ) from None
    return out.transpose(1, 2)


def _bias(mask: Tensor, q: Tensor) -> Tensor:
    """A mask as what is added to the scores: [B, H, N, M], 0 or minus infinity, with aligned rows."""
    keys = mask.shape[1]
    rows = q.new_zeros(len(mask), 1, 1, -(-keys // _ALIGNMENT) * _ALIGNMENT)
    seen = rows[..., :keys].masked_fill_(~mask[:, None, None, :], float("-inf"))
    return seen.expand(-1, q.shape[1], q.shape[2], -1)


KERNELS: Mapping[str, Kernel] = {"sdpa": _sdpa, "xformers": _xformers, "sliced": _sliced}


def _reason(name: str) -> str:
    return _why_not_xformers() if name == "xformers" else ""


def _why_not_xformers() -> str:
    """Tried on the device itself, because a build that can be imported may still lack the kernels."""
    if importlib.util.find_spec("xformers") is None:
        return "it is not installed"
    if not torch.cuda.is_available():
        return "it computes on CUDA devices, and torch sees none"
    try:
        _xformers_ops()
        q = torch.zeros(1, 1, 1, 64, dtype=torch.float16, device="cuda")
        _xformers(q, q, q, torch.ones(1, 1, dtype=torch.bool, device="cuda"))
    except Exception as error:  # noqa: BLE001 - a build for another torch fails in ways of its own
        return textwrap.shorten(
            f"beside torch {torch.__version__} it fails: {error}", 300, placeholder=" ..."
        )
    return ""


@functools.cache
def _xformers_ops() -> Any:
    """Its operators, imported without what it logs. Raises ImportError if its compiled extension does not load."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ops = importlib.import_module("xformers.ops")
    finally:
        logging.disable(disabled)
    # where it does not load, it logs the reason and goes on without its kernels
    failure = getattr(sys.modules.get("xformers._cpp_lib"), "_cpp_library_load_exception", None)
    if failure is not None:
        raise ImportError(str(failure))
    return ops
