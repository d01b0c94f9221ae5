"""What a stage takes of memory beside its weights, by arithmetic on the sizes of its network, before it runs.

Counted are the tensors that are alive at once where there are most: the features of one block, the skips that wait for
the way up, what goes in and comes out, and the pictures of the sampler. `tests/render/test_memory.py` holds the sum
between what is measured and two and a half times that. What a library takes for its own work is not counted.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mmgen.memory import weight_bytes
from mmgen.models.conditioned_unet import IMAGE_TOKENS, ConditionedUNet
from mmgen.models.unet import UNet
from mmgen.pipelines.stage import Stage
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.types import StageSettings

# Tensors that are alive at once, in the size of what a block gives.
RES_BLOCK = 4  # what came in, its sum, a norm, an activation
MERGED = 9  # the same where a skip has doubled what came in
ATTENTION = 9  # what came in, its norm, queries, keys and values, and these again behind norms or the text
LAYER = 20  # of a transformer: the inner features twice, queries, keys and values twice, and the texts that are joined
GATED_LAYER = 24  # the same where the inner features are gated, so twice as many, and a skip is merged
ENCODER_LAYER = 11  # of a frozen text encoder: the inner features twice, what came in and the rest
PICTURES = 10  # of 3 channels in float32, around the network: x_t, x0, low_res and noise, limited, summed and blended
INPUTS = 4  # pictures of 6 channels as the network sees them: joined, as patches, with places, channels last
PRIOR_TOKENS = 4  # beside those of the text: pooled, time, embedding and query
SIDES = 2  # of guidance: with the prompt and without it

MAX_TOKENS = 512  # of a text that is not read yet: the encoders here are made for no more
# Of the room that is there: allocators leave gaps, and kernels have workspaces.
WORKING_SHARE = 0.8


def stage_weights(stage: Stage) -> int:
    """Bytes of all networks of a stage."""
    return sum(map(weight_bytes, stage.networks))


def picture_bytes(stage: Stage, settings: StageSettings, tokens: int) -> int:
    """What one picture takes of memory in a stage, in bytes. tokens: of its text."""
    scale, side = settings.guidance_scale, stage.size or 0
    sides = 1 if scale == 1 or (side and scale is None) else SIDES
    # side of what the network sees at once, in pixels; 0 where it sees no picture
    seen = min(stage.square, side) if isinstance(stage, SuperResStage | VaeStage) else side
    features = max((_features(network, seen, tokens) for network in stage.networks), default=0)
    return max(1, sides * features + PICTURES * 3 * side**2 * 4)


def _features(network: nn.Module, side: int, tokens: int) -> int:
    """Of one row of a batch."""
    config: Any = network.config
    if isinstance(network, ConditionedUNet):
        numbers = _unet(config, side, tokens, merged=isinstance(network, UNet))
    elif hasattr(config, "num_hidden_layers"):  # a text encoder of transformers, whose states are all given
        numbers = tokens * config.hidden_size * (ENCODER_LAYER + config.num_hidden_layers)
    elif hasattr(config, "layers"):  # the prior, which keeps keys and values of every layer
        numbers = (tokens + PRIOR_TOKENS) * config.width * (LAYER + 2 * config.layers)
    elif hasattr(config, "cross_attention_dim"):  # a U-Net of diffusers, whose side is that of its latents
        numbers = _published_unet(config, tokens)
    elif hasattr(config, "latent_channels"):  # a VAE, which enlarges its features before it makes them fewer
        numbers = RES_BLOCK * max(config.block_out_channels[:2]) * side**2
    else:
        numbers = 0
    return int(numbers) * next(network.parameters()).element_size()


def _published_unet(config: Any, tokens: int) -> int:
    """Numbers that are alive at once in a U-Net of diffusers that draws one latent."""
    layers = config.layers_per_block
    waiting, alive = PICTURES * config.in_channels * config.sample_size**2, 0
    for level, channels in enumerate(config.block_out_channels):
        features = channels * (config.sample_size >> level) ** 2
        waiting += (1 + (layers if isinstance(layers, int) else layers[level])) * features
        alive = max(alive, GATED_LAYER * features + 2 * tokens * channels)
    return int(waiting + alive + 2 * tokens * config.cross_attention_dim)


def _unet(config: Any, side: int, tokens: int, *, merged: bool) -> int:
    """Numbers that are alive at once in a U-Net that draws one picture of this side."""
    told = tokens + IMAGE_TOKENS
    finest, lowest = side // getattr(config, "stem", 1), len(config.channels) - 1
    waiting = kept = 0
    alive = [told * config.text_width * LAYER if config.text_dim else 0]
    levels = zip(config.channels, config.blocks, config.attention, strict=True)
    for level, (channels, blocks, attends) in enumerate(levels):
        pixels = (finest >> level) ** 2
        waiting += (blocks + 2 if merged else 1) * channels * pixels
        alive.append((MERGED if merged else RES_BLOCK) * channels * pixels)
        if attends:
            alive.append(channels * (ATTENTION * pixels + 3 * told) + pixels * (pixels + told))
            attending = 2 * blocks + 2 if merged else blocks if level == lowest else 2 * blocks
            kept += attending * 2 * channels * told
    return max(alive) + waiting + kept + INPUTS * 6 * side**2
