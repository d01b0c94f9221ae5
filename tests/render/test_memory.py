"""What stages are estimated to take of memory is what they take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmgen
from mmgen import attention
from mmgen.conditioning import Conditioning
from mmgen.errors import UsageError
from mmgen.memory import Room, place
from mmgen.models import presets
from mmgen.noise import Noise
from mmgen.pipelines.adapters import noise_of
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.editing import Known
from mmgen.pipelines.families.stable_diffusion import LATENT
from mmgen.pipelines.families.storybook import DECODER, PRIOR, SUPER_RES
from mmgen.pipelines.prior_stage import PriorStage
from mmgen.pipelines.stage import Draft, Stage, finish
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.unet_stage import LatentStage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.render.estimate import SCORE, Counted, Work, alike, cost, fit, picture_bytes, stage_weights
from mmgen.types import StageSettings
from mmgen.values import parse_bytes
from tests.checkpoints import BETAS, awake, write_tiny

NEAR = 0.05  # of what is measured
CPU = torch.device("cpu")


class Live(TorchDispatchMode):
    """most: the largest number of bytes in tensors that were made under it and alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see(args, new=False)
        self._see(kwargs, new=False)
        out = func(*args, **(kwargs or {}))
        self._see(out, new=True)
        return out

    def _see(self, values: Any, *, new: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._known:
                continue
            size = storage.nbytes() if new else 0
            gone = self._gone(storage._cdata, size)
            self._known[storage._cdata] = weakref.ref(storage, gone)
            self._now += size
            self.most = max(self.most, self._now)

    def _gone(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            del self._known[key]
            self._now -= size

        return forget


def measured(stage: Stage, draft: Draft, **settings: Any) -> tuple[int, int]:
    """(bytes that the stage took for a draft, bytes that it is estimated to take)."""
    given = replace(stage.defaults, **settings)
    live = Live()
    with torch.inference_mode(), live:
        finish(stage.run(draft, given, Noise(range(len(draft.prompts)), stage.name)))
    estimate = picture_bytes(stage, draft, given)
    assert estimate is not None
    return live.most, len(draft.prompts) * estimate


def assert_near(taken: tuple[int, int]) -> None:
    most, estimate = taken
    assert abs(estimate / most - 1) <= NEAR, f"{most:,} bytes were taken, {estimate:,} estimated"


def told(tokens: int, width: int, count: int = 1) -> Conditioning:
    g = torch.Generator().manual_seed(0)
    text = torch.randn(count, tokens, width, generator=g)
    return Conditioning(text=text, text_mask=torch.ones(count, tokens).bool(), pooled=text.mean(1))


def unit(width: int, count: int = 1) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width), dim=1)


def built(build: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    return place(awake(build), CPU, dtype)


DECODERS = {
    "tiny": (presets.decoder_tiny, 32, 16),
    "tiny-unet": (presets.unet_tiny, 32, 16),
    "storybook": (presets.decoder_storybook, presets.STORYBOOK_TEXT, presets.STORYBOOK_IMAGE),
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    # as Stable Diffusion's, a tenth as wide, on a quarter of the pixels
    "narrow": {"sample_size": 32, "block_out_channels": (32, 64, 128, 128)},
}


@pytest.mark.parametrize("tokens", [8, 77])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_takes_what_is_estimated(name: str, tokens: int) -> None:
    build, text, embed = DECODERS[name]
    stage = DecoderStage(built(build), DECODER, uses_image_embed=True)
    draft = Draft(("a cat",), text=told(tokens, text), image_embed=unit(embed))
    assert_near(measured(stage, draft, steps=2))
    assert_near(measured(stage, draft, steps=2, guidance_scale=1.0))


def test_what_is_drawn_over_counts() -> None:
    stage = DecoderStage(built(presets.decoder_tiny), DECODER, uses_image_embed=True)
    plain = Draft(("a cat",), text=told(8, 32), image_embed=unit(16))
    given = Known(torch.zeros(1, 3, 256, 256), torch.ones(1, 1, 256, 256))
    needed = [picture_bytes(stage, draft, stage.defaults) for draft in (plain, replace(plain, known=given))]
    assert None not in needed
    assert needed[1] - needed[0] >= 4 * (3 + 1) * 256**2  # type: ignore[operator]
    assert not given.image.is_meta


def test_a_batch_takes_as_much_as_its_pictures() -> None:
    stage = DecoderStage(built(presets.decoder_tiny), DECODER, uses_image_embed=True)
    draft = Draft(("a cat",) * 4, text=told(8, 32, 4), image_embed=unit(16, 4))
    assert_near(measured(stage, draft, steps=2))


@pytest.mark.parametrize("tokens", [8, 77])
@pytest.mark.parametrize("build", [presets.prior_tiny, presets.prior_storybook])
def test_a_prior_takes_what_is_estimated(build: Callable[[], Any], tokens: int) -> None:
    network = built(build)
    dual = built(
        presets.dual_encoder_tiny if network.config.embed_dim == 16 else presets.dual_encoder_storybook
    )
    stage = PriorStage(network, dual, PRIOR)
    assert_near(measured(stage, Draft(("a cat",), text=told(tokens, network.config.text_dim)), steps=2))


@pytest.mark.parametrize(
    ("build", "size", "square"),
    [
        (presets.super_res_tiny, 64, None),
        (presets.super_res_tiny, 256, None),
        (presets.super_res_storybook, 256, None),
        (presets.super_res_storybook, 512, None),
        (presets.super_res_storybook, 512, 256),
        (presets.super_res_storybook, 512, 128),
    ],
)
def test_super_resolution_takes_what_is_estimated(
    build: Callable[[], Any], size: int, square: int | None
) -> None:
    stage = SuperResStage(built(build, torch.bfloat16), SUPER_RES, size=size, square=square)
    image = torch.rand(1, 3, size // 4, size // 4)
    assert_near(measured(stage, Draft(("a cat",), image=image)))


def test_a_text_encoder_takes_what_is_estimated(tmp_path: Path) -> None:
    stage: Any = mmgen.load(write_tiny(tmp_path / "tiny"), device="cpu", dtype="float32").cascade.stages[0]
    assert_near(measured(stage, Draft((" ".join(["cat"] * 100),), "snow")))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_unet_takes_what_is_estimated(name: str) -> None:
    network = built(
        lambda: UNet2DConditionModel(cross_attention_dim=32, norm_num_groups=4, **PUBLISHED[name])
    )
    schedule, kind = noise_of({**BETAS, "_class_name": "PNDMScheduler"})
    stage = LatentStage(network, LATENT, schedule=schedule, kind=kind, colours=None)
    draft = Draft(("a cat",), text=told(77, 32), negative=told(77, 32))
    assert_near(measured(stage, draft, steps=2))
    assert_near(measured(stage, draft, steps=2, guidance_scale=1.0))


@pytest.mark.parametrize(("channels", "side"), [((8, 16), 16), ((16, 32, 64, 64), 128)])
def test_a_vae_takes_what_is_estimated(channels: tuple[int, ...], side: int) -> None:
    levels = len(channels)
    vae = AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    inner = side // 2 ** (levels - 1)
    draft = Draft(("a cat",), latent=torch.randn(1, 4, inner, inner))
    assert_near(measured(VaeStage(place(vae, CPU, torch.float32), size=side), draft))


# ---- what is counted -----------------------------------------------------------------------------


def counted(run: Callable[[Tensor], object], *shape: int) -> Counted:
    """What a function of a float32 tensor of this shape takes on the meta device."""
    x, found = torch.empty(shape, device="meta"), Counted()
    with torch.inference_mode(), found:
        run(x)
    return found


def test_tensors_count_while_they_live() -> None:
    def run(x: Tensor) -> Tensor:
        y = x + 1  # 40 bytes
        z = torch.cat([y, y])  # 80
        del y
        return z[:5] * 2  # 20, beside z: a part of it is no memory of its own

    assert counted(run, 10).most == 120


def test_what_is_made_in_place_counts_once() -> None:
    assert counted(lambda x: (x + 1).mul_(2).relu_(), 10).most == 40


def test_work_is_arithmetic_and_what_is_read_and_written() -> None:
    linear = torch.nn.Linear(8, 16, device="meta")
    view = Work("other", 0, 0)  # of the weights, the other way round
    read, written = 4 * (3 * 8 + 8 * 16 + 16), 4 * 3 * 16
    product = Work("product", 2 * 3 * 8 * 16, read + written, shared=read)
    assert counted(linear, 3, 8).work == {view: 1, product: 1}
    layer = torch.nn.Conv2d(4, 6, 3, padding=1, device="meta")
    read, written = 4 * (2 * 4 * 25 + 6 * 4 * 9 + 6), 4 * 2 * 6 * 25
    convolution = Work("convolution", 2 * (4 * 9) * 6 * (2 * 25), read + written, shared=read)
    assert counted(layer, 2, 4, 5, 5).work == {convolution: 1}
    assert counted(lambda x: x + x, 8).work == {Work("other", 0, 4 * 3 * 8, shared=4 * 2 * 8): 1}
    assert counted(lambda x: x[:4].reshape(2, 2), 8).work == {view: 2}


def test_what_is_made_meanwhile_is_of_each_picture() -> None:
    def run(x: Tensor) -> None:
        (x + x).relu_()

    once = Work("other", 0, 4 * 2 * 8)  # in place: read and written
    assert counted(run, 8).work == {Work("other", 0, 4 * 3 * 8, shared=4 * 2 * 8): 1, once: 1}


def test_what_is_looked_up_is_not_read_as_a_whole() -> None:
    table = torch.nn.Embedding(1000, 8, device="meta")
    found = counted(lambda x: table(x.long()), 3)
    assert Work("other", 0, 2 * 4 * 3 * 8) in found.work


def test_attention_makes_no_scores() -> None:
    attend = torch.nn.functional.scaled_dot_product_attention
    found = counted(lambda x: attend(x, x, x), 1, 2, 1000, 8)
    assert found.most == 4 * 2 * 1000 * 8
    (once,) = found.work
    flop = 2 * 1000 * 1000 * (2 * (8 + 8) + SCORE)
    assert once == Work("attention", flop, 4 * 4 * 2 * 1000 * 8, 3 * 4 * 2 * 1000 * 8)
    seen = torch.ones(1, 1, 1, 1000, dtype=torch.bool, device="meta").expand(-1, -1, 1000, -1)
    masked = counted(lambda x: attend(x, x, x, attn_mask=seen), 1, 2, 1000, 8)
    assert masked.most == found.most + 4 * 1000 * 1000  # as numbers, for every query


def test_kernels_without_code_for_shapes_take_what_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def most() -> int:
        return counted(lambda x: attention.attention(x, x, x), 1, 2, 100, 8).most

    torchs = most()
    monkeypatch.setattr(attention._choice, "name", "xformers")
    assert most() == torchs


def test_a_number_of_a_tensor_without_numbers_is_taken_for_true() -> None:
    asked: list[bool] = []
    counted(lambda x: asked.append(bool(torch.isfinite(x).all())), 4)
    assert asked == [True]


def test_steps_cost_what_they_repeat() -> None:
    stage = DecoderStage(built(presets.decoder_tiny), DECODER, uses_image_embed=True)
    draft = Draft(("a cat",), text=told(8, 32), image_embed=unit(16))
    flop = [
        sum(count * one.flop for one, count in found.work.items())
        for steps in (1, 2, 3, 30)
        if (found := cost(stage, draft, at(stage, steps)))
    ]
    each = flop[1] - flop[0]
    assert flop == [flop[0], flop[0] + each, flop[0] + 2 * each, flop[0] + 29 * each]
    network = stage.network
    assert not any(value.is_meta for value in (*network.parameters(), *network.buffers()))


def at(stage: Any, steps: int) -> StageSettings:
    """Its settings with so many steps, by a sampler that asks twice in a step that ends in noise."""
    settings: StageSettings = replace(stage.defaults, steps=steps, sampler="heun")
    return settings


def test_a_scheduler_of_diffusers_is_estimated_by_one_of_ours() -> None:
    stage = DecoderStage(built(presets.decoder_tiny), DECODER, uses_image_embed=True)
    draft = Draft(("a cat",), text=told(8, 32), image_embed=unit(16))
    ours = picture_bytes(stage, draft, replace(stage.defaults, sampler="dpmpp-2m"))
    assert picture_bytes(stage, draft, replace(stage.defaults, sampler="UniPCMultistepScheduler")) == ours


def test_a_stage_that_needs_numbers_is_not_known() -> None:
    stage = DecoderStage(built(presets.decoder_tiny), DECODER, uses_image_embed=True)
    stage.network.register_forward_pre_hook(lambda _module, args: args[0].numpy())
    draft = Draft(("a cat",), text=told(8, 32), image_embed=unit(16))
    assert picture_bytes(stage, draft, stage.defaults) is None
    assert cost(stage, draft, stage.defaults) is None
    assert fit(stage, lambda _stage: None, Room(1), 0).most is None


def test_drafts_are_alike_up_to_a_grain() -> None:
    def of(tokens: int) -> Draft:
        return Draft(("a cat",), text=told(tokens, 32))

    assert alike(of(5)) == alike(of(32))
    assert alike(of(32)) != alike(of(33))
    assert alike(Draft(("a cat",))) != alike(Draft(("a cat" * 20,)))


def test_room_is_shared_out_among_pictures() -> None:
    stage = SuperResStage(built(presets.super_res_tiny), SUPER_RES, size=512)
    weights = stage_weights(stage)

    def each(one: Stage) -> int:
        assert isinstance(one, SuperResStage)
        return 10 * one.square

    def most(room: int, *, asked: bool = False) -> tuple[int | None, bool, int]:
        found = fit(stage, each, Room(weights + 50 + room, asked=asked), weights + 50)
        assert isinstance(found.stage, SuperResStage)
        return found.most, found.tight, found.stage.square

    assert most(2 * 12_801 + 1) == (2, False, 1024)
    assert most(10_000) == (1, True, 1024)
    assert most(10_000, asked=True) == (3, False, 256)
    assert most(100, asked=True) == (1, True, 128)
    # the squares that take least, where smaller ones take more
    many = fit(stage, lambda one: abs(each(one) - 2_560) + 1_000, Room(weights + 10, asked=True), weights)
    assert isinstance(many.stage, SuperResStage)
    assert (many.stage.square, many.each) == (256, 1_000)


# ---- amounts of memory ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("512MB", 512 * 10**6), ("2GiB", 2**31), ("1.5 kb", 1500), ("0.5TiB", 2**39)],
)
def test_memory_has_a_unit(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["8", "8G", "GB", "-1GB", "8 G B", "1e3MB", "0GB", "٨GB", "8GB\n", "nan MB", ""]
)
def test_other_amounts_of_memory_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give"):
        parse_bytes(text)
