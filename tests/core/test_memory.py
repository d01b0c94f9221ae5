"""The number format where nobody asks for one."""

import pytest
import torch

from mmgen.memory import choose_dtype


def test_a_torch_without_onednn_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    assert choose_dtype(None, torch.device("cpu")) is torch.float32
