"""A storybook cascade as a pipeline of diffusers drives one, to be measured beside mmgen: it prints nothing.

Its weights come by `from_pretrained`, its steps from FlowMatchEulerDiscreteScheduler, its thresholding from
DDPMScheduler; the text is read anew in every call, as the networks of diffusers do. What only our networks ask for:
they say x0, which becomes the velocity that the scheduler expects, and super-resolution diffuses what the enlarged
picture lacks.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor, nn

from mmgen.conditioning import Conditioning, concat
from mmgen.memory import choose_dtype
from mmgen.models.prior import DiffusionPrior
from mmgen.models.text import TextEncoder
from mmgen.noise import Noise
from mmgen.pipelines.families.storybook import DECODER, PRIOR
from mmgen.pipelines.prior_stage import CANDIDATES
from mmgen.pipelines.sampling import guided_pair
from mmgen.pipelines.super_res_stage import enlarge
from mmgen.types import StageSettings

Parts = Mapping[str, Any]
"""The components of a checkpoint by their names in model_index.json."""


def load(folder: Path, *, tuned: bool) -> Parts:
    """The components of a folder. Untuned: float32, contiguous, as they come. Tuned: mmgen's dtype, channels last."""
    dtype = choose_dtype(None, torch.device("cpu")) if tuned else torch.float32
    memory_format = torch.channels_last if tuned else torch.contiguous_format
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    parts = {}
    for name, entry in index.items():
        if name == "text_encoder":
            text, tokenizer = folder / name, folder / "tokenizer"
            parts[name] = TextEncoder.load(text, tokenizer, layer=index["text_layer"], dtype=dtype)
        elif isinstance(entry, list):
            module, kind = entry
            part = getattr(importlib.import_module(module), kind).from_pretrained(
                folder / name, torch_dtype=dtype
            )
            parts[name] = nn.Module.to(part.eval(), memory_format=memory_format)
    return parts


def stock_unet(size: int, channels: Sequence[int], text_dim: int) -> UNet2DConditionModel:
    """What diffusers has for decoders in pixel space, in the layout of Karlo and IF, with random weights."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 2,
        cross_attention_dim=text_dim,
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    ).requires_grad_(False)


def scheduler_of(steps: int) -> FlowMatchEulerDiscreteScheduler:
    """Down the flow path in even steps from pure noise."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    return scheduler


def limiter(settings: StageSettings) -> DDPMScheduler:
    """Dynamic thresholding is a method of this scheduler; those of flow matching have none."""
    return DDPMScheduler(
        thresholding=True,
        dynamic_thresholding_ratio=settings.threshold,
        sample_max_value=settings.threshold_cap,
    )


def text_tokens(network: Any, cond: Conditioning) -> Tensor:
    """[B, L, D]: what the attention blocks of one of our networks make their keys and values of."""
    seen: list[Tensor] = []
    first = network._attention_blocks()[0].text_kv
    watch = first.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    network.prepare(cond)
    watch.remove()
    return seen[0]


def reading(network: Any, cond: Conditioning) -> Callable[[], Any]:
    """What a network is told, from a function that reads the text anew at every call."""
    if isinstance(network, DiffusionPrior):
        return partial(network.prepare, cond)
    prepared, tokens = network.prepare(cond), text_tokens(network, cond)
    return lambda: prepared._replace(
        text_kv=[block.text_keys_values(tokens) for block in network._attention_blocks()]
    )


@torch.no_grad()
def guided(
    network: Any, cond: Conditioning, null: Conditioning, settings: StageSettings, x: Tensor
) -> Iterator[Tensor]:
    """The guided loop of a prior or a decoder, both halves in one call: x after every step."""
    read = reading(network, concat([null, cond]))
    scheduler, limit = scheduler_of(settings.steps or 1), limiter(settings)
    for sigma, t in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        rows = torch.cat([x, x]).to(network.dtype)
        without, asked = network(rows, sigma.expand(len(rows)), read()).float().chunk(2)
        x0 = without + settings.guidance_scale * (asked - without)
        if settings.threshold is not None:
            x0 = limit._threshold_sample(x0)
        x = scheduler.step((x - x0) / sigma, t, x, return_dict=False)[0]
        yield x


@torch.no_grad()
def embed(parts: Parts, text: Conditioning, settings: StageSettings, seeds: Sequence[int]) -> Tensor:
    """The prior's image embeddings, [B, E]: of several for each text, that which its own embedding fits best."""
    network, noise = parts["prior"], Noise(seeds, "prior")
    cond, null = guided_pair(text, None)
    drawn = []
    for _ in range(CANDIDATES):
        for x in guided(network, cond, null, settings, noise.draw((network.config.embed_dim,))):
            last = x
        drawn.append(torch.nn.functional.normalize(last, dim=1))
    candidates = torch.stack(drawn)
    fit = (candidates * parts["dual_encoder"].text_embed(text)[None]).sum(2)
    return candidates[fit.argmax(0), torch.arange(len(seeds))]


def told(parts: Parts, prompts: Sequence[str], prior: StageSettings, seeds: Sequence[int]) -> Conditioning:
    """What the decoder is told of prompts: their text and the image embeddings that the prior draws."""
    text = parts["text_encoder"].encode(prompts)
    drawn = embed(parts, text, prior, seeds)
    return replace(text, image_embed=drawn.to(parts["decoder"].dtype))


def steps_of(
    parts: Parts, cond: Conditioning, settings: StageSettings, seeds: Sequence[int]
) -> Iterator[Tensor]:
    """x after every step of the decoder."""
    network, shown = parts["decoder"], torch.zeros(len(seeds), dtype=torch.bool)
    text, null = (
        replace(side, image_embed=cond.image_embed, drop_image=drop)
        for side, drop in zip(guided_pair(cond, None), (shown, ~shown), strict=True)
    )
    size = network.config.sample_size
    return guided(network, text, null, settings, Noise(seeds, "decoder").draw((3, size, size)))


def decode(parts: Parts, cond: Conditioning, settings: StageSettings, seeds: Sequence[int]) -> Tensor:
    """The decoder's pictures, [B, 3, H, W] in [-1, 1]. cond: what it is told."""
    for x in steps_of(parts, cond, settings, seeds):
        image = x
    return image.clamp(-1, 1)


@torch.no_grad()
def enlarged(network: Any, image: Tensor, settings: StageSettings, noise: Noise) -> Tensor:
    """The pictures four times as large, as in `mmgen.pipelines.super_res_stage`, which says what is diffused."""
    level, scale = settings.noise_level or 0.0, network.config.residual_scale
    low_res = enlarge(image + level * noise.draw(image.shape[1:]))
    r = noise.draw(low_res.shape[1:])
    prepared = network.prepare(
        Conditioning(
            low_res=low_res.to(network.dtype),
            noise_level=torch.full((len(image),), level),
            source_size=torch.full((len(image),), float(min(max(image.shape[-1], 64), 256))),
        )
    )
    scheduler = scheduler_of(settings.steps or 1)
    for sigma, t in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        out = network(r.to(network.dtype), sigma.expand(len(r)), prepared).float()
        x0 = (low_res + scale * out).clamp(-1, 1)
        r = scheduler.step((r - (x0 - low_res) / scale) / sigma, t, r, return_dict=False)[0]
    return (low_res + scale * r).clamp(-1, 1)


def draw(
    parts: Parts, prompts: Sequence[str], seeds: Sequence[int], stages: Mapping[str, StageSettings]
) -> list[Image]:
    """The whole cascade: one picture for each prompt, with the seed beside it, all in one batch."""
    image = decode(parts, told(parts, prompts, stages["prior"], seeds), stages["decoder"], seeds)
    for name in [name for name in stages if name.startswith("super-res")]:
        image = enlarged(parts["super_res"], image, stages[name], Noise(seeds, name))
    pictures: list[Image] = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(image / 2 + 0.5))
    return pictures


def first_step(folder: str, way: str, prompt: str) -> Tensor:
    """From nothing to x after the first step of the decoder. way: untuned or tuned."""
    parts = load(Path(folder), tuned=way == "tuned")
    prior, decoder = (replace(default, sampler="euler") for default in (PRIOR, DECODER))
    return next(steps_of(parts, told(parts, [prompt], prior, [1]), decoder, [1]))
