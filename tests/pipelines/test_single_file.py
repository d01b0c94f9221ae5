"""Models of one file in the layout of their training, beside the folders that diffusers makes of the same networks."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import mmgen
from mmgen.errors import ModelError, UsageError
from mmgen.pipelines import catalogue, single_file
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.loading import open_model
from mmgen.types import StageSettings
from tests.checkpoints import BETAS, LETTERS
from tests.render.whole import load

PIECES = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
NOISE = {**BETAS, "steps_offset": 1}
KINDS = ("1", "2", "xl")
WIDTH, WIDTH_2, POOLED = 64, 128, 24
SIDE = 8  # of latents: no network of these has one, and that of the published models takes long
Tensors = dict[str, Tensor]


def encoder(kind: Any, **changes: Any) -> Any:
    values = {
        "vocab_size": len(PIECES),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "max_position_embeddings": 24,
        "bos_token_id": len(PIECES) - 2,
        "eos_token_id": len(PIECES) - 1,
        **changes,
    }
    return kind(CLIPTextConfig(**values)).eval()


def tokenizer(pad: str) -> CLIPTokenizer:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24, pad_token=pad)


def unet(**changes: Any) -> UNet2DConditionModel:
    values = {
        "sample_size": SIDE,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        **changes,
    }
    return UNet2DConditionModel(**values)


def vae(scale: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64),
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=scale,
    )


def sd1() -> Any:
    return StableDiffusionPipeline(
        vae=vae(0.18215),
        text_encoder=encoder(CLIPTextModel),
        tokenizer=tokenizer("<|endoftext|>"),
        unet=unet(layers_per_block=2),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2() -> Any:
    """Its encoder has a layer less than the file's."""
    return StableDiffusionPipeline(
        vae=vae(0.18215),
        text_encoder=encoder(CLIPTextModel, hidden_act="gelu", num_hidden_layers=23),
        tokenizer=tokenizer("a"),
        unet=unet(block_out_channels=(64, 128), attention_head_dim=(1, 2), use_linear_projection=True),
        scheduler=DDIMScheduler(
            **NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    second = encoder(
        CLIPTextModelWithProjection,
        hidden_size=WIDTH_2,
        num_attention_heads=2,
        hidden_act="gelu",
        projection_dim=POOLED,
    )
    return StableDiffusionXLPipeline(
        vae=vae(0.13025),
        text_encoder=encoder(CLIPTextModel),
        text_encoder_2=second,
        tokenizer=tokenizer("<|endoftext|>"),
        tokenizer_2=tokenizer("a"),
        unet=unet(
            block_out_channels=(64, 128),
            attention_head_dim=(1, 2),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=WIDTH + WIDTH_2,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=POOLED + 6 * 8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )


# ---- the way back, from the names of today -------------------------------------------------------


def renamed(tensors: Tensors, rules: list[tuple[str, Any]]) -> Tensors:
    """Every name by all rules in turn: a pattern, and what it becomes."""
    found = {}
    for name, value in tensors.items():
        for pattern, becomes in rules:
            name = re.sub(pattern, becomes, name)
        found[name] = value
    return found


def old_unet(network: Any) -> Tensors:
    """Blocks counted through all levels, what halves and doubles the side among them."""
    each = network.config.layers_per_block + 1
    # what doubles the side comes behind an attention, if there is one in the block
    spots = [2 if kind.startswith("Cross") else 1 for kind in network.config.up_block_types]

    def down(spot: str, layer: int | None = None) -> Callable[[re.Match[str]], str]:
        return lambda m: (
            f"input_blocks.{1 + each * int(m[1]) + (int(m[2]) if layer is None else layer)}.{spot}."
        )

    def up(spot: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"output_blocks.{each * int(m[1]) + int(m[2])}.{spot}."

    def doubling(m: re.Match[str]) -> str:
        return f"output_blocks.{each * int(m[1]) + each - 1}.{spots[int(m[1])]}.conv."

    return renamed(
        network.state_dict(),
        [
            (r"^down_blocks\.(\d)\.resnets\.(\d)\.", down("0")),
            (r"^down_blocks\.(\d)\.attentions\.(\d)\.", down("1")),
            (r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.", down("0.op", each - 1)),
            (r"^up_blocks\.(\d)\.resnets\.(\d)\.", up("0")),
            (r"^up_blocks\.(\d)\.attentions\.(\d)\.", up("1")),
            (r"^up_blocks\.(\d)\.upsamplers\.0\.conv\.", doubling),
            (r"^mid_block\.resnets\.(\d)\.", lambda m: f"middle_block.{2 * int(m[1])}."),
            (r"^mid_block\.attentions\.0\.", "middle_block.1."),
            (r"\.norm1\.(\w+)$", r".in_layers.0.\1"),
            (r"\.conv1\.", ".in_layers.2."),
            (r"\.time_emb_proj\.", ".emb_layers.1."),
            (r"\.norm2\.(\w+)$", r".out_layers.0.\1"),
            (r"\.conv2\.", ".out_layers.3."),
            (r"\.conv_shortcut\.", ".skip_connection."),
            # those rules meet the norms of a transformer too
            (r"(transformer_blocks\.\d+)\.in_layers\.0\.", r"\1.norm1."),
            (r"(transformer_blocks\.\d+)\.out_layers\.0\.", r"\1.norm2."),
            (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
            (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
            (r"^conv_in\.", "input_blocks.0.0."),
            (r"^conv_norm_out\.", "out.0."),
            (r"^conv_out\.", "out.2."),
            (r"^", "model.diffusion_model."),
        ],
    )  # fmt: skip


def old_vae(network: Any) -> Tensors:
    """Levels counted from below on the way up too, and an attention of convolutions of one pixel."""
    top = len(network.config.block_out_channels) - 1
    found = renamed(
        network.state_dict(),
        [
            (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
            (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
            (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{top - int(m[1])}.block"),
            (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{top - int(m[1])}.upsample"),
            (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
            (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
            (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
            (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
            (r"conv_norm_out", "norm_out"),
            (r"conv_shortcut", "nin_shortcut"),
            (r"^", "first_stage_model."),
        ],
    )
    point = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight$")
    return {name: value[:, :, None, None] if point.search(name) else value for name, value in found.items()}


def old_clip(network: Any, prefix: str) -> Tensors:
    held = {f"{prefix}transformer.text_model.{name}": value for name, value in network.state_dict().items()}
    positions = torch.arange(24)[None]
    return {**held, f"{prefix}transformer.text_model.embeddings.position_ids": positions}


def old_open_clip(network: Any, prefix: str) -> Tensors:
    """As OpenCLIP has it: query, key and value in one, and a projection that stands on its side."""
    held = renamed(
        network.state_dict(),
        [
            (r"^text_model\.", ""),
            (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
            (r"^embeddings\.token_embedding", "token_embedding"),
            (r"^encoder\.layers", "transformer.resblocks"),
            (r"layer_norm(\d)", r"ln_\1"),
            (r"^final_layer_norm", "ln_final"),
            (r"self_attn", "attn"),
            (r"fc1", "c_fc"),
            (r"fc2", "c_proj"),
        ],
    )
    for name in [name for name in held if "q_proj" in name]:
        three = [held.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        held[name.replace("q_proj.", "in_proj_")] = torch.cat(three)
    if "text_projection.weight" in held:
        held["text_projection"] = held.pop("text_projection.weight").T.contiguous()
    return {f"{prefix}{name}": value for name, value in held.items()} | {
        f"{prefix}logit_scale": torch.ones(())
    }


def old_texts(kind: str, pipeline: Any) -> Tensors:
    if kind == "1":
        return old_clip(pipeline.text_encoder, "cond_stage_model.")
    if kind == "xl":
        first = old_clip(pipeline.text_encoder, "conditioner.embedders.0.")
        return {**first, **old_open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")}
    held = old_open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    # the last layer and the projection, which nobody reads
    last = {
        name.replace("resblocks.22.", "resblocks.23."): torch.ones_like(value)
        for name, value in held.items()
        if ".22." in name
    }
    return {**held, **last, "cond_stage_model.model.text_projection": torch.ones(WIDTH, WIDTH)}


class Model:
    """A folder and a file of the same networks."""

    def __init__(self, kind: str, at: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.pipeline = {"1": sd1, "2": sd2, "xl": sdxl}[kind]()
        self.folder, self.file = at / "folder", at / "model.safetensors"
        self.pipeline.save_pretrained(self.folder)
        self.tensors = {
            **old_unet(self.pipeline.unet),
            **old_vae(self.pipeline.vae),
            **old_texts(kind, self.pipeline),
            "alphas_cumprod": torch.ones(1000),
            "model_ema.decay": torch.ones(()),
        }
        save_file({name: value.contiguous() for name, value in self.tensors.items()}, self.file)
        tokenizer("<|endoftext|>").save_pretrained(at / "tokenizer")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """To be read, never to be changed."""
    made: dict[str, Model] = {}

    def model(kind: str) -> Model:
        if kind not in made:
            made[kind] = Model(kind, tmp_path_factory.mktemp(f"sd-{kind}"))
        return made[kind]

    return model


def read(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Its components."""
    file = single_file.look(path)
    return {name: single_file.read_part(file, name, dtype) for name in FAMILIES[file.family].components}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's latents are as small as its folder's; it does not say how large they are."""
    kinds = tuple(replace(kind, side=SIDE) for kind in single_file.KINDS)
    monkeypatch.setattr(single_file, "KINDS", kinds)


def with_tokenizer(file: Path, model: Model) -> Path:
    """The file, now with the model's tokenizer beside it."""
    shutil.copytree(model.folder / "tokenizer", file.parent / "tokenizer")
    return file


def changed(model: Model, path: Path, changes: dict[str, Tensor | None]) -> Path:
    """Another file, with tensors taken out (None) or put in."""
    tensors = {**model.tensors, **changes}
    kept = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    save_file(kept, path / "changed.safetensors")
    return path / "changed.safetensors"


# ---- the same model ------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_draws_the_picture_of_its_folder(models: Callable[[str], Model], kind: str) -> None:
    model = models(kind)
    ours, theirs = load(model.file), load(model.folder)
    stages = {"decoder": StageSettings(steps=2)}
    asked = [
        pipe.request("a red cat", seeds=[3], negative_prompt="snow", stages=stages) for pipe in (ours, theirs)
    ]
    assert asked[0].stages == asked[1].stages
    one, other = (pipe.run(request).images[0] for pipe, request in zip((ours, theirs), asked, strict=True))
    assert np.asarray(one).std() > 1
    assert one.tobytes() == other.tobytes()
    networks = [network for stage in ours.cascade.stages for network in stage.networks]
    for name, network in zip(FAMILIES[single_file.look(model.file).family].components, networks, strict=True):
        for key, value in getattr(model.pipeline, name).state_dict().items():
            assert torch.equal(network.state_dict()[key], value), f"{name}: {key}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_unet_is_built_as_that_of_the_folder(models: Callable[[str], Model], kind: str) -> None:
    model = models(kind)
    config, same = single_file.look(model.file).configs["unet"], model.pipeline.unet.config
    # the last may be one number for all levels
    for name in config.keys() - {"_class_name", "sample_size", "transformer_layers_per_block"}:
        assert same[name] == config[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_takes_these_files_for_the_same(models: Callable[[str], Model], kind: str) -> None:
    """Its own conversion gives the networks back: the files of these tests are in the layout that it knows."""
    model = models(kind)
    for convert, network in (
        (convert_ldm_unet_checkpoint, model.pipeline.unet),
        (convert_ldm_vae_checkpoint, model.pipeline.vae),
    ):
        found, needed = convert(dict(model.tensors), network.config), network.state_dict()
        assert found.keys() == needed.keys()
        assert all(torch.equal(found[key], needed[key]) for key in needed)


def test_half_precision_does_not_reach_the_vae(models: Callable[[str], Model]) -> None:
    parts = read(models("xl").file, torch.bfloat16)
    assert {name: next(getattr(part, "model", part).parameters()).dtype for name, part in parts.items()} == {
        "text_encoder": torch.bfloat16,
        "text_encoder_2": torch.bfloat16,
        "unet": torch.bfloat16,
        "vae": torch.float32,
    }


# ---- what is known of a file ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "family", "side"), [("1", "stable-diffusion", 128), ("2", "stable-diffusion", 192), ("xl", "sdxl", 256)]
)  # fmt: skip
def test_the_header_says_what_it_is(
    models: Callable[[str], Model], kind: str, family: str, side: int
) -> None:
    model = models(kind)
    told = catalogue.describe(model.file)
    assert (told["name"], told["family"], told["sides"]) == ("model.safetensors", family, [side])
    assert told["stages"] == ["text", "decoder", "vae"]
    assert told["components"]["vae"]["parameters"] == sum(p.numel() for p in model.pipeline.vae.parameters())
    assert told["components"]["unet"] == {
        "class": "UNet2DConditionModel",
        "parameters": sum(p.numel() for p in model.pipeline.unet.parameters()),
        "bytes": 4 * sum(p.numel() for p in model.pipeline.unet.parameters()),
        "dtypes": ["F32"],
    }


def test_it_is_said_without_torch(models: Callable[[str], Model]) -> None:
    code = (
        "import sys; from mmgen.pipelines import catalogue; "
        "print(catalogue.describe(sys.argv[1])['family'], 'torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(models("1").file)], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["stable-diffusion", "False"]


PUBLISHED: dict[str, dict[str, Any]] = {
    "1": {"unet": {"cross_attention_dim": 768}, "text_encoder": {}},
    "2": {
        "unet": {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        "text_encoder": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "hidden_act": "gelu",
        },
    },
    "xl": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text_encoder": {},
        "text_encoder_2": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "hidden_act": "gelu",
            "projection_dim": 1280,
        },
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


def published(kind: str) -> Any:
    """The networks of a published model in their size, without numbers."""
    said = PUBLISHED[kind]
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**{"sample_size": 64, **said["unet"]}),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
        }
        for name in said.keys() - {"unet"}:
            made = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
            parts[name] = made(CLIPTextConfig(**{**CLIP_L, **said[name]}))
    return SimpleNamespace(**parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_models_are_known_by_their_shapes(kind: str, tmp_path: Path) -> None:
    whole = published(kind)
    tensors = {**old_unet(whole.unet), **old_vae(whole.vae), **old_texts(kind, whole)}
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    file = single_file.look(write_header(tmp_path / "whole.safetensors", shapes))
    for name in PUBLISHED[kind].keys() | {"vae"}:
        config, network = file.configs[name], getattr(whole, name)
        for key in config.keys() - {
            "_class_name",
            "scaling_factor",
            "eos_token_id",
            "transformer_layers_per_block",
        }:
            assert getattr(network.config, key) == config[key], f"{name}: {key}"
        needed = {key: list(value.shape) for key, value in network.state_dict().items()}
        pieces = file.pieces[name]
        assert {
            key: single_file._cut_shape(piece, file.header[piece.source]["shape"])
            for key, piece in pieces.items()
        } == needed


def write_header(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A file with these tensors, all zeros; it takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        stop = end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, stop]}
        end = stop
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def test_a_file_may_say_that_it_predicts_v(models: Callable[[str], Model], tmp_path: Path) -> None:
    plain = single_file.look(models("xl").file).configs["scheduler"]
    assert (plain["prediction_type"], plain["timestep_spacing"]) == ("epsilon", "leading")
    empty = torch.zeros(0)
    told = single_file.look(changed(models("xl"), tmp_path, {"v_pred": empty, "ztsnr": empty}))
    scheduler = told.configs["scheduler"]
    assert (scheduler["prediction_type"], scheduler["timestep_spacing"]) == ("v_prediction", "trailing")
    assert scheduler["rescale_betas_zero_snr"] is True


# ---- what is refused -----------------------------------------------------------------------------

QKV = "first_stage_model.encoder.mid.attn_1.q.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("first_stage_model.", "it has no VAE"),
        ("model.diffusion_model.", "it has no U-Net"),
        ("cond_stage_model.", "it has the text encoders of none of Stable Diffusion 1.x"),
        (TOKENS, "it lacks embeddings.token_embedding.weight"),
        (CONV_IN, f"it lacks {CONV_IN}"),
        ("first_stage_model.encoder.down.0.block.0.conv1", "it lacks first_stage_model.encoder.down.0.block.0"),
        ("model.diffusion_model.input_blocks.1.", "its U-Net has a level without blocks"),
    ],
)  # fmt: skip
def test_a_file_without_what_is_needed(
    models: Callable[[str], Model], tmp_path: Path, prefix: str, says: str
) -> None:
    taken = {name: None for name in models("1").tensors if name.startswith(prefix)}
    path = changed(models("1"), tmp_path, dict(taken))
    with pytest.raises(ModelError, match=rf"changed\.safetensors is no model .*: {re.escape(says)}"):
        single_file.look(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {QKV: None},
            "vae: the weights lack 'encoder.mid_block.attentions.0.to_q.weight': they do not fit Stable Diffusion 1.x",
        ),
        (
            {"model.diffusion_model.extra": torch.ones(2)},
            "unet: the weights hold also 'model.diffusion_model.extra'",
        ),
        (
            {QKV: torch.ones(64, 64, 2, 1)},
            f"vae: the weights have another shape for '{QKV}' ([64, 64, 2, 1], not [64, 64])",
        ),
        ({QKV: torch.ones(64, 64, 1, 1, dtype=torch.int8)}, f"vae: the weights hold no fractions in '{QKV}'"),
        ({QKV: torch.full((64, 64, 1, 1), torch.nan)}, f"the weights '{QKV}' hold NaN or infinity"),
        ({QKV: torch.ones(0, 64)}, f"'{QKV}' are empty"),
        (
            {"model.diffusion_model.middle_block.1.proj_in.weight": torch.ones(64)},
            "middle_block.1.proj_in.weight has the shape [64]",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    models: Callable[[str], Model], tmp_path: Path, changes: dict[str, Tensor | None], says: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(says)):
        read(with_tokenizer(changed(models("1"), tmp_path, changes), models("1")))


def test_three_tensors_in_one_must_have_as_many_rows_each(
    models: Callable[[str], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name in models("2").tensors if name.endswith("in_proj_weight"))
    held = models("2").tensors[name]
    path = changed(models("2"), tmp_path, {name: torch.cat([held, held[:2]])})
    monkeypatch.setattr(single_file, "read_tensors", None)  # nothing is read
    with pytest.raises(ModelError, match=f"another shape for '{name}'"):
        read(with_tokenizer(path, models("2")))


TEXT = "cond_stage_model.transformer.text_model."
LAYER = TEXT + "encoder.layers.{}.mlp.fc1.weight"
DEEP = "model.diffusion_model.middle_block.1.transformer_blocks.{}.attn2.to_k.weight"
WIDE = "model.diffusion_model.input_blocks.{}.0.out_layers.3.weight"
DECODER = "first_stage_model.encoder.down.0.block.{}.conv1.weight"
MANY = single_file.MAX_LAYERS + 3


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({LAYER.format(i): [1, 1] for i in range(MANY)}, "more than 1,000 layers such as encoder.layers.0"),
        ({DEEP.format(i): [1, 1] for i in range(MANY)}, "more than 1,000 layers such as model.diffusion"),
        ({DECODER.format(i): [1, 1] for i in range(MANY)}, "more than 1,000 layers such as first_stage"),
        ({WIDE.format(i): [32, 1] for i in range(MANY)}, "more than 1,000 blocks on the way down"),
        ({f"{TEXT}embeddings.position_embedding.weight": [2**20, 1]}, "has the shape [1048576, 1]"),
    ],
)
def test_sizes_that_no_network_has(
    models: Callable[[str], Model], tmp_path: Path, shapes: dict[str, list[int]], says: str
) -> None:
    own = {name: list(value.shape) for name, value in models("1").tensors.items()}
    path = write_header(tmp_path / "vast.safetensors", own | shapes)
    with pytest.raises(ModelError, match=re.escape(says)):
        single_file.look(path)


def test_no_network_is_built_that_the_file_cannot_fill(
    models: Callable[[str], Model], tmp_path: Path
) -> None:
    """Each layer is told by one small tensor, and would have twenty."""
    own = {name: list(value.shape) for name, value in models("1").tensors.items()}
    path = write_header(tmp_path / "vast.safetensors", own | {DEEP.format(i): [64, 64] for i in range(300)})
    file = single_file.look(path)
    with pytest.raises(ModelError, match=r"unet is no UNet2DConditionModel .* far more parameters than"):
        single_file.outline(file, "unet")


def test_a_file_of_zeros(models: Callable[[str], Model], tmp_path: Path) -> None:
    shapes = {name: list(value.shape) for name, value in models("1").tensors.items()}
    path = write_header(tmp_path / "zeros.safetensors", shapes)
    with pytest.raises(ModelError, match=r"zeros\.safetensors is filled with zeros"):
        read(with_tokenizer(path, models("1")))


def test_a_refiner_is_not_drawn_with(models: Callable[[str], Model], tmp_path: Path) -> None:
    taken = {name: None for name in models("xl").tensors if name.startswith("conditioner.embedders.0.")}
    with pytest.raises(ModelError, match="and refiners, draw nothing by themselves"):
        single_file.look(changed(models("xl"), tmp_path, dict(taken)))


def test_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="is no safetensors file"):
        single_file.look(tmp_path / "model.safetensors")


def test_without_a_tokenizer_it_is_said_what_to_do(models: Callable[[str], Model], tmp_path: Path) -> None:
    path = changed(models("1"), tmp_path, {})
    with pytest.raises(ModelError, match=r"holds no tokenizer.*openai/clip-vit-large-patch14"):
        mmgen.load(path)


def test_a_tokenizer_that_lies_elsewhere(models: Callable[[str], Model], tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    file = single_file.look(changed(models("1"), beside, {}))
    shutil.copytree(models("1").folder / "tokenizer", tmp_path / "tokenizer")
    (beside / "tokenizer").symlink_to(tmp_path / "tokenizer")
    _both_refuse(file, "^tokenizer is a link that leads out of the folder")
    (beside / "tokenizer").unlink()
    shutil.move(tmp_path / "tokenizer", beside / "tokenizer")
    (tmp_path / "secret").write_text("{}", "utf-8")
    (beside / "tokenizer" / "special.json").symlink_to(tmp_path / "secret")
    _both_refuse(file, "^tokenizer/special.json is a link that leads out of the folder")


def _both_refuse(file: single_file.SingleFile, says: str) -> None:
    """What counts for the digest, and what is loaded."""
    with pytest.raises(ModelError, match=says):
        file.read_files()
    with pytest.raises(ModelError, match=says):
        single_file.read_part(file, "text_encoder", torch.float32)


def test_pipes_beside_the_tokenizer_are_not_read(models: Callable[[str], Model], tmp_path: Path) -> None:
    path = with_tokenizer(changed(models("1"), tmp_path, {}), models("1"))
    os.mkfifo(path.parent / "tokenizer" / "pipe.json")
    (path.parent / "tokenizer" / "folder.json").mkdir()
    names = single_file.look(path).read_files().keys()
    assert "tokenizer/tokenizer.json" in names
    assert not names & {"tokenizer/pipe.json", "tokenizer/folder.json"}


def test_a_tokenizer_of_another_model(models: Callable[[str], Model], tmp_path: Path) -> None:
    more = [*PIECES[:-2], "ab", *PIECES[-2:]]
    beside = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(more)}, merges=[])
    beside.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match="has 55 tokens, the text encoder only 54"):
        mmgen.load(changed(models("1"), tmp_path, {}))


@pytest.mark.usefixtures("small")
def test_a_file_is_loaded_as_a_folder_is(models: Callable[[str], Model], tmp_path: Path) -> None:
    path = with_tokenizer(changed(models("1"), tmp_path, {}), models("1"))
    fast = {"decoder": StageSettings(steps=1)}
    whole, opened = load(path), open_model(path, "cpu", "float32")
    one, other = (pipe("a red cat", seeds=[3], stages=fast, progress=False) for pipe in (whole, opened))
    assert one[0].tobytes() == other[0].tobytes()
    assert (whole.name, whole.sizes) == (path.name, (2 * SIDE,))
    facts = catalogue.facts(path)
    assert facts.digest == whole.digest == opened.digest == catalogue.describe(path)["digest"]
    assert catalogue.verify(path) == []
    (path.parent / "tokenizer" / "tokenizer_config.json").write_text("{}", "utf-8")
    assert catalogue.facts(path).digest != facts.digest
    with pytest.raises(UsageError, match="no single folder"):
        whole.save_pretrained(tmp_path / "saved")


def test_its_own_name_is_no_part_of_the_digest(models: Callable[[str], Model], tmp_path: Path) -> None:
    path = with_tokenizer(changed(models("1"), tmp_path, {}), models("1"))
    digest = catalogue.facts(path).digest
    assert catalogue.facts(path.rename(tmp_path / "renamed.safetensors")).digest == digest


def test_it_is_read_from_where_it_was_looked_at(
    models: Callable[[str], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(models("1"), tmp_path, {})
    monkeypatch.chdir(tmp_path)
    file = single_file.look(Path("changed.safetensors"))
    monkeypatch.chdir("/")
    single_file.read_part(file, "vae", torch.float32)


def test_ema_weights_are_not_read(models: Callable[[str], Model], tmp_path: Path) -> None:
    """Though they are many, and broken."""
    spoilt = {f"model_ema.{i}": torch.full((3,), torch.nan) for i in range(200)}
    path = changed(models("1"), tmp_path, dict(spoilt))
    unet = single_file.read_part(single_file.look(path), "unet", torch.float32)
    assert len(load_file(path)) > 200
    assert torch.equal(unet.conv_in.weight, models("1").pipeline.unet.conv_in.weight)


def said(file: single_file.SingleFile, part: str) -> tuple[Any, ...]:
    """All that a component is built from."""
    pieces = file.pieces[part]
    shapes = {piece.source: file.header[piece.source]["shape"] for piece in pieces.values()}
    return file.kind, file.configs[part], pieces, shapes


SIDES = st.lists(st.sampled_from([0, 1, 3, 4, 8, 64, 128]), max_size=5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    at=st.integers(0, 10_000),
    shape=st.none() | SIDES,
    name=st.none() | st.text(max_size=8),
)
def test_any_header_is_read_or_refused(
    models: Callable[[str], Model],
    tmp_path: Path,
    kind: str,
    at: int,
    shape: list[int] | None,
    name: str | None,
) -> None:
    """One tensor is of another shape (None: is not there), or is called otherwise."""
    shapes = {key: list(value.shape) for key, value in models(kind).tensors.items()}
    chosen = sorted(shapes)[at % len(shapes)]
    own = shapes.pop(chosen)
    if shape is not None:
        shapes[chosen if name is None else f"{chosen.rpartition('.')[0]}.{name}"] = shape
    elif name is not None:
        shapes[f"{chosen}{name}"] = own
    path = write_header(tmp_path / "any.safetensors", shapes)
    sound = single_file.look(models(kind).file)
    try:
        file = single_file.look(path)
        for part in file.pieces:
            if said(file, part) != said(sound, part):  # what says the same is the same
                single_file.outline(file, part)
    except ModelError as error:
        assert "any.safetensors" in str(error)
