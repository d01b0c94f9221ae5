"""The plain U-Net where it differs from the efficient one; what both share is tested in test_networks.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmgen
from mmgen.conditioning import Conditioning
from mmgen.models import presets
from mmgen.models.conditioned_unet import ConditionedUNet
from mmgen.models.unet import UNet
from mmgen.nn.blocks import AttentionBlock, ResBlock
from mmgen.noise import Noise
from mmgen.pipelines.catalogue import describe
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.super_res_stage import SuperResStage, enlarge
from mmgen.types import StageSettings
from tests.checkpoints import awake, write_tiny


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(count: int = 2, tokens: int = 5) -> Conditioning:
    return Conditioning(
        text=normal(count, tokens, 32),
        text_mask=torch.ones(count, tokens, dtype=torch.bool),
        pooled=normal(count, 32, seed=1),
        image_embed=nn.functional.normalize(normal(count, 16, seed=2), dim=1),
    )


def three_resolutions() -> UNet:
    """Depths that differ, so that a skip or a text in the wrong place does not fit."""
    return UNet(
        sample_size=16, channels=(16, 32, 48), blocks=(1, 2, 1), attention=(False, True, True), head_dim=16,
        vector_dim=32, text_dim=32, pooled_dim=32, text_width=32, text_layers=1, image_dim=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def deep() -> UNet:
    network: UNet = awake(three_resolutions)
    return network


def draw(network: ConditionedUNet, cond: Conditioning, px: int = 16) -> Tensor:
    with torch.no_grad():
        return network(normal(2, 3, px, px, seed=5), torch.tensor([0.9, 0.3]), network.prepare(cond))


def parts(network: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [part for part in network.modules() if isinstance(part, kind)]


def test_every_skip_is_used_and_nothing_is_left(deep: UNet) -> None:
    assert draw(deep, told()).shape == (2, 3, 16, 16)
    assert [len(level) for level in deep.down] == [1, 2, 1]
    assert [len(level) for level in deep.up] == [2, 3, 2]  # ADM: one more on the way up
    assert [block[0].film.out_features for block in deep.up[1]] == 3 * [2 * 64]  # the map and its skip


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_first_map_of_each_resolution_comes_last_on_the_way_up(deep: UNet, level: int) -> None:
    first, seen = (deep.conv_in if level == 0 else deep.shrink[level - 1]), {}
    last = deep.up[level][-1][0]
    hooks = [
        first.register_forward_hook(lambda _module, _inputs, out: seen.update(first=out)),
        last.register_forward_pre_hook(lambda _module, inputs: seen.update(last=inputs[0])),
    ]
    draw(deep, told())
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["last"].chunk(2, dim=1)[1], seen["first"])


def test_residuals_are_silent_at_first() -> None:
    network = presets.unet_tiny()
    vector, x = normal(2, 32), normal(2, 16, 8, 8)
    assert torch.equal(network.down[0][0][0](x, vector), x)
    wide = ResBlock(16, 32, out_channels=8)
    torch.testing.assert_close(wide(x, vector), wide.carry(x))
    (attention,) = [part for part in network.middle if isinstance(part, AttentionBlock)]
    x = normal(2, 32, 4, 4)
    text = attention.text_keys_values(normal(2, 5, 32))
    assert torch.equal(attention(x, text), x)
    assert not draw(network, told()).any()


def test_attention_is_where_it_was_asked_for(deep: UNet) -> None:
    assert [len(parts(level, AttentionBlock)) for level in deep.down] == [0, 2, 1]
    assert len(parts(deep.middle, AttentionBlock)) == 1
    assert [len(parts(level, AttentionBlock)) for level in deep.up] == [0, 3, 2]


def test_a_text_reaches_the_pixels_through_attention_alone(deep: UNet) -> None:
    cond = told()
    assert cond.text is not None
    other = replace(cond, text=normal(2, 5, 32, seed=7))
    prepared, changed = deep.prepare(cond), deep.prepare(other)
    x, t = normal(2, 3, 16, 16), torch.full((2,), 0.5)
    plain = deep(x, t, prepared)
    for i in range(len(prepared.text_kv)):
        kv = [*prepared.text_kv]
        kv[i] = changed.text_kv[i]
        assert not torch.allclose(deep(x, t, prepared._replace(text_kv=kv)), plain, atol=1e-5), i


def test_a_pixel_knows_where_it_stands(deep: UNet) -> None:
    """In the first map already, and away from the border, where padding tells."""
    seen: list[Tensor] = []
    hook = deep.conv_in.register_forward_hook(lambda _module, _inputs, out: seen.append(out[..., 1:-1, 1:-1]))
    deep(torch.full((2, 3, 16, 16), 0.5), torch.full((2,), 0.5), deep.prepare(told()))
    hook.remove()
    for axis in (2, 3):
        assert (seen[0].diff(dim=axis).abs().amax(1) > 1e-3).all()


def test_the_null_is_what_a_dropped_row_sees(deep: UNet) -> None:
    cond, all_rows = told(), torch.ones(2, dtype=torch.bool)
    dropped = replace(cond, drop_text=all_rows, drop_image=all_rows)
    null = Conditioning(
        text=deep.null_text.expand(2, 1, -1),
        text_mask=torch.ones(2, 1, dtype=torch.bool),
        pooled=torch.zeros(2, 32),
        image_embed=deep.null_image.expand(2, -1),
    )
    torch.testing.assert_close(draw(deep, dropped), draw(deep, null), atol=1e-5, rtol=0)
    assert not torch.allclose(draw(deep, dropped), draw(deep, cond), atol=1e-3)


def test_two_pictures_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    network, cond = presets.unet_tiny(), told()
    ramp = torch.linspace(-1, 1, 16)
    x0 = torch.stack([ramp.expand(3, 16, 16), -ramp[:, None].expand(3, 16, 16)])
    eps, at = normal(2, 3, 16, 16), torch.tensor([0.9, 0.9])
    x_t = (1 - at)[:, None, None, None] * x0 + at[:, None, None, None] * eps
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = (network(x_t, at, network.prepare(cond)) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], losses[::10]
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert all(name.startswith(("target_time", "guidance", "null_")) for name in silent), silent


def test_it_enlarges_too() -> None:
    def build() -> UNet:
        return UNet(
            sample_size=16, channels=(16, 16), blocks=(1, 1), attention=(False, False), vector_dim=16,
            low_res=True, residual_scale=0.25,
        )  # fmt: skip

    low = normal(1, 3, 8, 8).clamp(-1, 1)

    def enlarged(network: UNet) -> Tensor:
        settings = StageSettings(steps=1, sampler="ddim", threshold="clip", noise_level=0.0)
        stage = SuperResStage(network, settings, size=32)
        run = stage.run(Draft(("a",), image=low), settings, Noise([1], stage.name))
        with torch.no_grad():
            next(run)
            with pytest.raises(StopIteration) as done:
                next(run)
        image: Tensor = done.value.value.image
        return image

    plain = enlarge(low).clamp(-1, 1)
    assert torch.equal(enlarged(build().eval()), plain)
    assert not torch.allclose(enlarged(awake(build)), plain, atol=1e-2)


def test_a_checkpoint_with_it_draws(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "plain", decoder=presets.unet_tiny)
    assert describe(folder)["components"]["decoder"]["class"] == "UNet"
    pipe = mmgen.load(folder, device="cpu", dtype="float32")
    (stage,) = [stage for stage in pipe.cascade.stages if stage.name == "decoder"]
    assert type(stage.network) is UNet  # type: ignore[attr-defined]
    fast = {"prior": StageSettings(steps=1), "decoder": StageSettings(steps=2)}
    one, other = pipe(["a red cat", "a dog"], seeds=[1], size=64, stages=fast)
    assert one.size == (64, 64)
    assert one.tobytes() != other.tobytes()
    pipe.save_pretrained(tmp_path / "saved")
    again = mmgen.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert again("a red cat", seeds=[1], size=64, stages=fast)[0].tobytes() == one.tobytes()
