"""Tiny checkpoints with random weights, in the layout of the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from mmgen.models import presets
from mmgen.pipelines.loading import write_checkpoint

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "a", "an", "and", "at", "the", "on", "in", "to", "left", "right", "of", "above", "below", "two", "three",
    "red", "blue", "green", "yellow", "purple", "cat", "dog", "car", "tree", "house", "moon", "star", "sun",
    "boat", "beach", "snow", "street", "grass", "night", "big", "small",
]  # fmt: skip


def word_pieces() -> tuple[str, ...]:
    """The vocabulary: special tokens, letters at the beginning and inside of words, then words."""
    return (*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *[w for w in WORDS if len(w) > 1])


def write_bert(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """`folder`/text_encoder and `folder`/tokenizer: a random BERT of width 32 with two layers."""
    pieces = word_pieces()
    values = {
        "vocab_size": len(pieces),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**values), add_pooling_layer=False)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=0.3
                )  # 0.02, the published one, says nearly the same of every word
    model.save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    BertTokenizer(vocab=str(tokenizer / "vocab.txt"), do_lower_case=True).save_pretrained(tokenizer)
    return folder


def write_clip(folder: Path, kind: str = "CLIPTextModel") -> Path:
    """`folder`/text_encoder and `folder`/tokenizer: a random CLIP of width 32 for 40 tokens.

    There are no merges: words are spelled in letters.
    """
    pieces = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=24, bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "CLIPTextModel":
            model: Any = CLIPTextModel(config)
        else:
            vision = CLIPVisionConfig(
                hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8,
                patch_size=4,
            )  # fmt: skip
            model = CLIPModel(
                CLIPConfig(text_config=config.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
            )
    model.save_pretrained(folder / "text_encoder")
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[],
        model_max_length=config.max_position_embeddings,
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def write_t5(folder: Path) -> Path:
    """`folder`/text_encoder and `folder`/tokenizer: the encoder of a random T5 of width 32."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, *(f"▁{word}" for word in WORDS)]
    config = T5Config(
        vocab_size=len(pieces), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    T5Tokenizer(vocab=scores, extra_ids=0).save_pretrained(folder / "tokenizer")
    return folder


def awake(build: Callable[[], Any], seed: int = 0) -> Any:
    """The network with its zero layers randomised, so that it says something of all that it is told."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build().eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
    return network


def write_tiny(folder: Path, image_embed: str = "prior", **changes: Callable[[], Any]) -> Path:
    """A whole storybook checkpoint at 16, 64 and 256 px. changes: other networks for its components."""
    write_bert(folder)
    parts = {
        "dual_encoder": presets.dual_encoder_tiny,
        "prior": presets.prior_tiny,
        "decoder": presets.decoder_tiny,
        "super_res": presets.super_res_tiny,
        **changes,
    }
    for seed, (name, build) in enumerate(parts.items()):
        awake(build, seed).save_pretrained(folder / name)
    options = {"text_layer": 1, "image_embed": image_embed}
    (folder / "README.md").write_text("# A tiny model for tests\n", "utf-8")
    write_checkpoint(folder, name="tiny", family="storybook", options=options, words=frozenset(WORDS))
    return folder


BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def write_stable_diffusion(folder: Path, **vae: Any) -> Path:
    """A folder as diffusers publishes Stable Diffusion: pictures of 16 px from latents of 8.

    vae: changes of its config. As in the first of them, the scheduler's file says neither spacing nor prediction.
    """
    write_clip(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        decoder = AutoencoderKL(
            **{
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "latent_channels": 4,
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                **vae,
            }
        )
    unet.save_pretrained(folder / "unet")
    decoder.save_pretrained(folder / "vae")
    write_scheduler(folder, PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1))
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    old = {k: v for k, v in settings.items() if k not in ("timestep_spacing", "prediction_type")}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(old), "utf-8")
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, **changes}), "utf-8")


def write_scheduler(folder: Path, scheduler: Any) -> None:
    """Put a scheduler of diffusers into a folder of `write_stable_diffusion`, and write its index."""
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")


def write_deepfloyd(folder: Path, **unet: Any) -> Path:
    """A folder as diffusers publishes stage I of DeepFloyd IF: pictures of 16 px. unet: changes of its config.

    As there, the scheduler's file says no spacing.
    """
    write_t5(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DConditionModel(
            **{
                "sample_size": 16,
                "in_channels": 3,
                "out_channels": 6,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "attention_head_dim": 8,
                "cross_attention_dim": 64,
                "cross_attention_norm": "group_norm",
                "encoder_hid_dim": 32,
                "addition_embed_type": "text",
                "addition_embed_type_num_heads": 2,
                "resnet_time_scale_shift": "scale_shift",
                "act_fn": "gelu",
                "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                **unet,
            }
        )
    network.save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    settings = {k: v for k, v in scheduler.config.items() if k != "timestep_spacing"}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**settings, "_class_name": "DDPMScheduler"}), "utf-8"
    )
    index = {
        "_class_name": "IFPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "watermarker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder
