"""Every attention kernel says what plain attention in float64 says, and a kernel that cannot run says why."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmgen import attention as attention_module
from mmgen.attention import KERNELS, attention, available, kernel, use
from mmgen.errors import UsageError

SHAPES = {  # batch, heads, queries, keys, width of a head, masked
    "self": (2, 4, 64, 64, 32, False),
    "cross": (2, 4, 64, 20, 32, False),
    "masked": (2, 4, 64, 84, 32, True),
    "one head": (1, 1, 16, 16, 64, False),
    "one key": (2, 2, 9, 1, 16, False),
    "odd lengths": (3, 2, 37, 53, 24, True),
}
# Half precision rounds scores: one of up to 4 is off by 2^-7 in bfloat16 (8 bits), by 2^-10 in float16 (11 bits), and
# its weight by that fraction. Weights and values, which are of size up to 4, are rounded in the same way after that.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}
PLAIN = "plain"  # the way of gradients on a CPU, which nobody chooses by name

# Stands where the real package cannot: the same layout, the same demands on a mask, plain arithmetic.
XFORMERS_OPS = """
import logging, warnings
logging.getLogger("xformers").warning("loud")
warnings.warn("loud")
from . import _cpp_lib

def memory_efficient_attention(query, key, value, attn_bias=None):
    if query.dtype.itemsize == 8:
        raise NotImplementedError("No operator found\\n  for these inputs")
    assert query.dtype == key.dtype == value.dtype
    scores = (query.transpose(1, 2) @ key.permute(0, 2, 3, 1)) * query.shape[-1] ** -0.5
    if attn_bias is not None:
        assert attn_bias.shape == scores.shape and attn_bias.dtype == query.dtype
        assert attn_bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
        scores = scores + attn_bias
    return (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
"""


@pytest.fixture(autouse=True)
def choice_of_before() -> Iterator[None]:
    before = kernel()
    yield
    use(before)


@pytest.fixture
def xformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of that name; the file that says how its extension loaded."""
    package = tmp_path / "xformers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ops.py").write_text(XFORMERS_OPS)
    (package / "_cpp_lib.py").write_text("_cpp_library_load_exception = None")
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget_xformers()
    yield package / "_cpp_lib.py"
    _forget_xformers()


def _forget_xformers() -> None:
    attention_module._xformers_ops.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "xformers"]:
        del sys.modules[name]


def _inputs(shape: str, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    batch, heads, queries, keys, width, masked = SHAPES[shape]
    draw = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(batch, heads, tokens, width, generator=draw).to(device, dtype)
        for tokens in (queries, keys, keys)
    )
    seen = torch.arange(keys)[None] < torch.linspace(keys, 1, batch)[:, None]
    return q, k, v, seen.to(device) if masked else None


def _exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention in float64, written out."""
    q, k, v = (x.detach().cpu().double() for x in (q, k, v))
    weights = torch.exp(torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5)
    if mask is not None:
        weights = weights * mask.cpu()[:, None, None, :]
    return torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdim=True), v)


def _why_not(name: str, dtype: torch.dtype, device: str) -> str:
    """Why a kernel cannot be tried on a device, "" if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if name == PLAIN:
        return "" if device == "cpu" else "only gradients on a CPU go this way"
    if name == "xformers" and device == "cpu":
        return "xformers computes on CUDA devices"
    try:
        torch.ones(2, 2, dtype=dtype, device=device) @ torch.ones(2, 2, dtype=dtype, device=device)
    except RuntimeError:
        return f"this {device} does not compute in {dtype}"
    return available()[name]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*KERNELS, PLAIN])
def test_every_kernel_is_plain_attention(name: str, shape: str, dtype: torch.dtype, device: str) -> None:
    if reason := _why_not(name, dtype, device):
        pytest.skip(f"not run: {reason}")
    use("sdpa" if name == PLAIN else name)
    q, k, v, mask = _inputs(shape, dtype, device)
    with torch.set_grad_enabled(name == PLAIN):
        out = attention(q.requires_grad_(name == PLAIN), k, v, mask)
    assert (out.shape, out.dtype) == (q.shape, dtype)
    assert out.requires_grad == (name == PLAIN)
    torch.testing.assert_close(
        out.detach().cpu().double(), _exact(q, k, v, mask), atol=TOLERANCE[dtype], rtol=0
    )


@pytest.mark.parametrize("name", KERNELS)
def test_a_masked_key_is_not_seen(name: str) -> None:
    if reason := _why_not(name, torch.float32, "cpu"):
        pytest.skip(f"not run: {reason}")
    use(name)
    q, k, v, mask = _inputs("masked", torch.float32, "cpu")
    assert mask is not None
    other = torch.where(mask[:, None, :, None], v, 100 * v)
    assert torch.equal(attention(q, k, v, mask), attention(q, k, other, mask))
    assert not torch.allclose(attention(q, k, v), attention(q, k, other), atol=1)


def test_slices_hold_few_scores_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = _inputs("odd lengths", torch.float32, "cpu")
    sizes: list[int] = []
    plain = attention_module._plain

    def counting(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        sizes.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return plain(q, k, v, mask)

    monkeypatch.setattr(attention_module, "_plain", counting)
    use("sliced")
    whole = attention(q, k, v, mask)
    for limit, slices in ((1, 37), (10 * 3 * 2 * 53, 4)):
        sizes.clear()
        monkeypatch.setattr(attention_module, "SCORES_AT_ONCE", limit)
        torch.testing.assert_close(attention(q, k, v, mask), whole, atol=1e-6, rtol=0)
        assert len(sizes) == slices
        assert max(sizes) <= max(limit, 3 * 2 * 53)


def test_slices_have_the_gradients_of_the_whole() -> None:
    grads = []
    for name in ("sdpa", "sliced"):
        use(name)
        q, k, v, mask = _inputs("odd lengths", torch.float32, "cpu")
        attention(q, k.requires_grad_(), v, mask).square().sum().backward()
        assert k.grad is not None
        grads.append(k.grad)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=0)


def test_without_a_choice_it_is_torchs_own() -> None:
    assert attention_module._Choice().name == "sdpa"
    assert available()["sdpa"] == available()["sliced"] == ""
    assert list(available()) == list(KERNELS)


def test_an_unknown_kernel_is_answered_with_the_known_ones_and_changes_nothing() -> None:
    use("sliced")
    with pytest.raises(UsageError, match="no attention kernel 'flash': choose one of sdpa, xformers, sliced"):
        use("flash")
    assert kernel() == "sliced"


@pytest.mark.skipif(torch.cuda.is_available(), reason="not run: it would be told of the device")
def test_a_kernel_that_cannot_run_says_why_in_one_line(xformers: Path) -> None:
    assert xformers.exists()
    assert available()["xformers"] == "it computes on CUDA devices, and torch sees none"
    with pytest.raises(UsageError, match="'xformers' is not available here: it computes on CUDA devices"):
        use("xformers")
    assert kernel() != "xformers"


def test_a_build_for_another_torch_is_quiet_and_says_what_it_wants(
    xformers: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    xformers.write_text(
        "_cpp_library_load_exception = OSError('built for:\\n  PyTorch 1.0 (you have another)')"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError) as caught:
        use("xformers")
    said = str(caught.value)
    assert said.endswith(
        f"beside torch {torch.__version__} it fails: built for: PyTorch 1.0 (you have another)"
    )
    assert "\n" not in said
    assert caplog.records == []
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("shape", SHAPES)
def test_what_xformers_is_given_is_in_its_layout(shape: str) -> None:
    q, k, v, mask = _inputs(shape, torch.float32, "cpu")
    out = KERNELS["xformers"](q, k, v, mask)
    torch.testing.assert_close(out.double(), _exact(q, k, v, mask), atol=1e-3, rtol=0)


@pytest.mark.usefixtures("xformers")
def test_what_xformers_has_no_code_for_is_said_in_one_line() -> None:
    q = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    with pytest.raises(
        UsageError, match=r"^xformers has no code for float64 on cpu: choose .*\(sdpa, sliced\)"
    ):
        KERNELS["xformers"](q, q, q, None)
