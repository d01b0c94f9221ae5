"""The networks: shapes, and what they are told. What all of them promise alike is tested in test_contracts.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmgen.attention import attention
from mmgen.conditioning import Conditioning, concat
from mmgen.models import presets
from mmgen.models.efficient_unet import EfficientUNet
from mmgen.models.unet import UNet
from mmgen.nn.blocks import AttentionBlock
from mmgen.noise import Noise
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.super_res_stage import SuperResStage, enlarge
from mmgen.types import StageSettings
from tests.checkpoints import awake

PERSISTED: dict[str, Callable[[], Any]] = {
    "decoder": presets.decoder_tiny,
    "unet": presets.unet_tiny,
    "super_res": presets.super_res_tiny,
    "dual_encoder": presets.dual_encoder_tiny,
    "prior": presets.prior_tiny,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(count: int = 3, tokens: int = 6) -> Conditioning:
    """Text, pooled text and an image embedding; every text is one token shorter than the one before."""
    lengths = torch.tensor([tokens - i % tokens for i in range(count)])
    return Conditioning(
        text=normal(count, tokens, 32),
        text_mask=torch.arange(tokens)[None] < lengths[:, None],
        pooled=normal(count, 32, seed=1),
        image_embed=torch.nn.functional.normalize(normal(count, 16, seed=2), dim=1),
    )


def told_low_res(count: int = 3, px: int = 32) -> Conditioning:
    return Conditioning(
        low_res=normal(count, 3, px, px).clamp(-1, 1),
        noise_level=torch.linspace(0, 0.4, count),
        source_size=torch.tensor([64.0, 256.0] * count)[:count],
    )


CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...], Callable[[int], Conditioning]]] = {
    "decoder": (presets.decoder_tiny, (3, 16, 16), told),
    "unet": (presets.unet_tiny, (3, 16, 16), told),
    "prior": (presets.prior_tiny, (16,), told),
    "super_res": (presets.super_res_tiny, (3, 32, 32), told_low_res),
}


DECODERS = ("decoder", "unet")


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {name: awake(build) for name, build in PERSISTED.items()}


def ask(network: Any, cond: Conditioning, shape: tuple[int, ...], count: int = 3) -> Tensor:
    with torch.no_grad():
        return network(normal(count, *shape, seed=5), torch.linspace(0.9, 0.2, count), network.prepare(cond))


@pytest.mark.parametrize("name", CASES)
def test_the_answer_has_the_shape_of_the_question(networks: dict[str, Any], name: str) -> None:
    _, shape, cond = CASES[name]
    out = ask(networks[name], cond(3), shape)
    assert out.shape == (3, *shape)
    assert out.dtype == torch.float32
    assert out.std() > 0.01


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("px", [8, 16, 24])
def test_a_decoder_draws_at_other_sizes(networks: dict[str, Any], name: str, px: int) -> None:
    assert ask(networks[name], told(), (3, px, px)).shape == (3, 3, px, px)


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_network_says_nothing(name: str) -> None:
    build, shape, cond = CASES[name]
    assert not ask(build(), cond(3), shape).any()


@pytest.mark.parametrize("name", [*DECODERS, "prior"])
def test_padding_changes_nothing(networks: dict[str, Any], name: str) -> None:
    _, shape, _ = CASES[name]
    cond = told(3)
    assert cond.text is not None
    assert cond.text_mask is not None
    ones = replace(cond, text_mask=torch.ones(3, 6, dtype=torch.bool))
    padded = replace(
        ones,
        text=torch.cat([cond.text, 100 * normal(3, 5, 32, seed=9)], dim=1),
        text_mask=torch.cat([torch.ones(3, 6, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)], dim=1),
    )
    network = networks[name]
    plain = ask(network, ones, shape)
    torch.testing.assert_close(ask(network, padded, shape), plain, atol=1e-5, rtol=0)
    unmasked = replace(padded, text_mask=torch.ones(3, 11, dtype=torch.bool))
    assert not torch.allclose(ask(network, unmasked, shape), plain, atol=1e-3)


@pytest.mark.parametrize("name", [*DECODERS, "prior"])
def test_a_dropped_text_is_the_null_whatever_it_said(networks: dict[str, Any], name: str) -> None:
    _, shape, _ = CASES[name]
    network, cond = networks[name], told(3)
    assert cond.text is not None
    drop = torch.tensor([True, False, True])
    other = replace(
        cond, text=cond.text + 3, pooled=normal(3, 32, seed=8), text_mask=cond.text_mask, drop_text=drop
    )
    first, second = ask(network, replace(cond, drop_text=drop), shape), ask(network, other, shape)
    torch.testing.assert_close(first[::2], second[::2], atol=1e-6, rtol=0)
    assert not torch.allclose(first[1], second[1], atol=1e-3)
    kept = ask(network, cond, shape)
    torch.testing.assert_close(first[1], kept[1], atol=1e-6, rtol=0)
    assert not torch.allclose(first[0], kept[0], atol=1e-3)


def test_a_dropped_null_does_not_depend_on_the_length_of_the_text(networks: dict[str, Any]) -> None:
    drop = torch.ones(3, dtype=torch.bool)
    short, long = (replace(told(3, n), drop_text=drop) for n in (2, 9))
    for name in (*DECODERS, "prior"):
        shape = CASES[name][1]
        a, b = ask(networks[name], short, shape), ask(networks[name], long, shape)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_a_dropped_image_is_the_null(networks: dict[str, Any], name: str) -> None:
    network, cond = networks[name], told(3)
    assert cond.image_embed is not None
    none = ask(network, replace(cond, image_embed=None), (3, 16, 16))
    dropped = ask(network, replace(cond, drop_image=torch.ones(3, dtype=torch.bool)), (3, 16, 16))
    assert torch.equal(dropped, none)
    kept = ask(network, replace(cond, drop_image=torch.zeros(3, dtype=torch.bool)), (3, 16, 16))
    assert torch.equal(kept, ask(network, cond, (3, 16, 16)))
    assert not torch.allclose(kept, none, atol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_the_unfolded_image_embedding_is_heard_at_every_size(networks: dict[str, Any], name: str) -> None:
    network, cond = networks[name], told(3)
    prepared = network.prepare(cond)
    assert prepared.image_map.shape == (3, 32, 4, 4)
    silent = prepared._replace(image_map=None)
    for px in (8, 16):
        x, t = normal(3, 3, px, px), torch.full((3,), 0.9)
        with torch.no_grad():
            assert not torch.allclose(network(x, t, prepared), network(x, t, silent), atol=1e-3)


def test_the_prior_reads_a_text_before_it_sees_any_embedding(networks: dict[str, Any]) -> None:
    prior, cond = networks["prior"], told(3)
    x, t = normal(6, 16), torch.linspace(0.9, 0.2, 6)
    with torch.no_grad():
        twice = prior(x, t, prior.prepare(cond).repeat(2))
        for i in range(6):
            alone = prior(x[i : i + 1], t[i : i + 1], prior.prepare(cond[i // 2 : i // 2 + 1]))
            torch.testing.assert_close(twice[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_prepared_once_is_prepared_at_every_step(networks: dict[str, Any], name: str) -> None:
    _, shape, make = CASES[name]
    network, cond = networks[name], make(3)
    x = normal(3, *shape)
    with torch.no_grad():
        prepared = network.prepare(cond)
        for t in (0.9, 0.5, 0.1):
            at = torch.full((3,), t)
            assert torch.equal(network(x, at, prepared), network(x, at, network.prepare(cond)))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("decoder", "text"),
        ("unet", "text"),
        ("decoder", "text_mask"),
        ("unet", "text_mask"),
        ("decoder", "pooled"),
        ("unet", "pooled"),
        ("prior", "text"),
        ("prior", "text_mask"),
        ("prior", "pooled"),
        ("super_res", "low_res"),
        ("super_res", "noise_level"),
        ("super_res", "source_size"),
    ],
)
def test_what_a_network_is_not_told_it_asks_for(networks: dict[str, Any], name: str, field: str) -> None:
    cond = CASES[name][2](3)
    with pytest.raises(ValueError, match=f"needs {field}, but"):
        networks[name].prepare(replace(cond, **{field: None}))


@pytest.mark.parametrize("name", DECODERS)
def test_every_attention_block_is_given_the_text_that_it_has_prepared(
    networks: dict[str, Any], name: str
) -> None:
    network, cond = networks[name], told(3)
    blocks = [part for part in network.modules() if isinstance(part, AttentionBlock)]
    prepared = network.prepare(cond)
    assert len(prepared.text_kv) == len(blocks) > 0
    heard: dict[AttentionBlock, Tensor] = {}
    hooks = [b.register_forward_pre_hook(lambda block, told: heard.update({block: told[1]})) for b in blocks]
    network(normal(3, 3, 16, 16), torch.full((3,), 0.5), prepared)
    for hook in hooks:
        hook.remove()
    tokens = torch.cat(
        [
            network.text(cond.text, cond.text_mask),
            network.image_tokens(cond.image_embed).unflatten(1, (4, -1)),
        ],
        dim=1,
    )
    for block in blocks:
        for given, own in zip(heard[block], block.text_keys_values(tokens), strict=True):
            assert torch.equal(given, own)


@pytest.mark.parametrize("field", ["noise_level", "source_size", "low_res"])
def test_super_resolution_hears_all_that_it_is_told(networks: dict[str, Any], field: str) -> None:
    cond = told_low_res()
    value = getattr(cond, field)
    other = replace(cond, **{field: 1 - value if field != "source_size" else value * 2})
    before, after = (ask(networks["super_res"], c, (3, 32, 32)) for c in (cond, other))
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("name", [*DECODERS, "prior"])
def test_the_time_the_target_and_the_guidance_are_heard(networks: dict[str, Any], name: str) -> None:
    _, shape, make = CASES[name]
    network, x, cond = networks[name], normal(3, *shape), make(3)
    t = torch.full((3,), 0.5)
    with torch.no_grad():
        prepared = network.prepare(cond)
        plain = network(x, t, prepared)
        weight = network.prepare(replace(cond, guidance=torch.full((3,), 4.0)))
        for other in (
            network(x, t + 0.3, prepared),
            network(x, t, prepared, torch.zeros(3)),
            network(x, t, weight),
        ):
            assert not torch.allclose(other, plain, atol=1e-4)


def test_an_untrained_super_resolution_stage_is_exactly_bicubic() -> None:
    settings = StageSettings(steps=2, sampler="ddim", threshold="clip", noise_level=0.0)
    stage = SuperResStage(presets.super_res_tiny().eval(), settings, size=64)
    image = normal(2, 3, 16, 16).clamp(-1, 1)
    run = stage.run(Draft(("a", "b"), image=image), settings, Noise([1, 2], stage.name))
    with torch.no_grad():
        steps = 0
        while True:
            try:
                next(run)
                steps += 1
            except StopIteration as done:
                drawn = done.value.image
                break
    assert steps == 2
    expected = torch.nn.functional.interpolate(image, scale_factor=4, mode="bicubic", align_corners=False)
    assert torch.equal(enlarge(image), expected)
    assert torch.equal(drawn, expected.clamp(-1, 1))


def test_the_dual_encoder_gives_unit_vectors_of_any_picture(networks: dict[str, Any]) -> None:
    dual, cond = networks["dual_encoder"], told(3)
    with torch.no_grad():
        for px in (16, 32, 64):
            image, text = dual(normal(3, 3, px, px), cond)
            assert image.shape == text.shape == (3, 16)
            torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
            torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(dual.text_embed(cond[1:2]), text[1:2], atol=1e-5, rtol=0)
        smooth = normal(2, 3, 16, 16)
        big = smooth.repeat_interleave(4, 2).repeat_interleave(4, 3)
        torch.testing.assert_close(dual.image_embed(big), dual.image_embed(smooth), atol=1e-5, rtol=0)
        assert not torch.allclose(text[0], text[1], atol=1e-3)


@pytest.mark.parametrize(
    ("build", "least", "most"),
    [
        (presets.decoder_storybook, 12e6, 19e6),
        (presets.prior_storybook, 2e6, 6e6),
        (presets.super_res_storybook, 1e6, 4.3e6),
        (presets.dual_encoder_storybook, 1e6, 4.5e6),
    ],
)
def test_the_bundled_networks_stay_within_their_budget(
    build: Callable[[], Any], least: float, most: float
) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in build().parameters())
    assert least <= count <= most, f"{count:,} parameters"


@pytest.mark.parametrize("network", [EfficientUNet, UNet])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": (16, 32, 48)}, "one entry per resolution"),
        ({"channels": (), "blocks": (), "attention": ()}, "sample_size is 64"),
        ({"channels": (16, 40), "text_dim": 8}, "40 channels cannot be split into heads of 16"),
        ({"sample_size": 63}, "sample_size is 63: it must be a multiple of"),
        ({"sample_size": 0}, "sample_size is 0"),
        ({"residual_scale": 0.0}, "residual_scale is"),
        ({"residual_scale": float("nan")}, "residual_scale is nan"),
    ],
)
def test_a_network_that_cannot_be_is_refused(network: Any, options: dict[str, Any], says: str) -> None:
    two = {"channels": (16, 32), "blocks": (1, 1), "attention": (False, True), "head_dim": 16}
    with pytest.raises(ValueError, match=says):
        network(**{**two, **options})


@pytest.mark.parametrize(
    ("network", "options", "grain"),
    [(EfficientUNet, {"stem": 8}, 16), (UNet, {}, 2)],
    ids=["efficient", "plain"],
)
def test_the_side_of_a_picture_is_counted_in_the_lowest_resolution(
    network: Any, options: dict[str, Any], grain: int
) -> None:
    two = {"channels": (16, 16), "blocks": (1, 1), "attention": (False, False), **options}
    network(sample_size=3 * grain, **two)
    with pytest.raises(ValueError, match=f"must be a multiple of {grain} "):
        network(sample_size=3 * grain + 1, **two)


@pytest.mark.parametrize("network", [EfficientUNet, UNet])
def test_a_network_that_is_told_nothing_says_so(network: Any) -> None:
    two = network(channels=(16, 16), blocks=(1, 1), attention=(False, False), vector_dim=16)
    with pytest.raises(ValueError, match="is told nothing"):
        two.prepare(Conditioning())


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_the_fused_kernel(masked: bool) -> None:
    q, k, v = normal(2, 3, 5, 8), normal(2, 3, 7, 8, seed=1), normal(2, 3, 7, 8, seed=2)
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]]) if masked else None
    with torch.no_grad():
        fused = attention(q, k, v, mask)
    q.requires_grad_()
    plain = attention(q, k, v, mask)
    assert plain.requires_grad
    torch.testing.assert_close(plain.detach(), fused, atol=1e-5, rtol=0)
    if masked:
        assert not torch.allclose(fused[1], attention(q, k, v).detach()[1], atol=1e-3)


def test_conditioning_joins_only_what_has_the_same_fields() -> None:
    cond = told(2)
    both = concat([cond, cond])
    assert both.text is not None
    assert both.text.shape == (4, 6, 32)
    with pytest.raises(ValueError, match="'pooled' is in some of the parts only"):
        concat([cond, replace(cond, pooled=None)])
