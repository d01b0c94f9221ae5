import dataclasses

import pytest
import torch

from mmgen.conditioning import Conditioning, concat


def full(count: int = 2) -> Conditioning:
    return Conditioning(
        text=torch.randn(count, 5, 8, generator=torch.Generator().manual_seed(count)),
        text_mask=torch.ones(count, 5, dtype=torch.bool),
        pooled=torch.ones(count, 8),
        drop_text=torch.zeros(count, dtype=torch.bool),
    )


def test_map_leaves_out_what_is_not_there():
    seen = []
    out = full().map(lambda value: seen.append(value) or value * 1)
    assert len(seen) == 4
    assert {f.name for f in dataclasses.fields(out) if getattr(out, f.name) is not None} == {
        "text",
        "text_mask",
        "pooled",
        "drop_text",
    }


def test_rows_and_concat_are_each_others_inverse():
    whole = concat([full(2), full(3)])
    for part, expected in ((whole[:2], full(2)), (whole[2:], full(3))):
        assert torch.equal(part.text, expected.text)
        assert torch.equal(part.text_mask, expected.text_mask)
    assert whole.low_res is None


def test_parts_with_other_fields_do_not_fit():
    with pytest.raises(ValueError, match="'pooled' is in some of the parts only"):
        concat([full(), dataclasses.replace(full(), pooled=None)])
