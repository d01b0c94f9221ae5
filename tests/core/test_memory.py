"""The number format where nobody asks for one, and what memory a run took."""

import math
from pathlib import Path

import pytest
import torch

from mmgen import memory
from mmgen.memory import choose_dtype, peak_bytes, reset_peak, wait_for


def test_a_torch_without_onednn_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    assert choose_dtype(None, torch.device("cpu")) is torch.float32


def test_a_cpu_is_never_behind_and_its_peak_stays() -> None:
    device = torch.device("cpu")
    before = peak_bytes(device)
    reset_peak(device)
    wait_for(device)
    assert peak_bytes(device) >= before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_peak_of_a_run_is_its_own() -> None:
    device = torch.device("cuda")
    torch.empty(64_000_000, dtype=torch.uint8, device=device)
    assert peak_bytes(device) >= 64_000_000
    reset_peak(device)
    wait_for(device)
    assert peak_bytes(device) < 64_000_000


def test_a_container_leaves_what_it_was_given(tmp_path: Path) -> None:
    def group(limit: str, current: int, unneeded: int) -> float:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{current}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {unneeded}\nfile 9\n")
        return memory.granted(tmp_path)

    assert memory.granted(tmp_path / "none") == math.inf
    assert group("max", 100, 50) == math.inf
    assert group("1000", 400, 150) == 750
    assert group("1000", 1200, 100) == 0
