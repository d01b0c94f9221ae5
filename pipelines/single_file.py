"""Stable Diffusion 1.x, 2.x and XL as one safetensors file, in the layout of their training. `look` imports no torch.

Names and shapes in the file's header say how its networks are built. What they cannot say (heads, sides, scales, noise)
is that of the published models. The tokenizer's vocabulary is in no such file: it lies in a folder beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmgen.component import Header, at_most, shown_names, weight_header
from mmgen.errors import ModelError, told
from mmgen.pipelines.checkpoint import TEXTS, check_link
from mmgen.pipelines.families import FAMILIES
from mmgen.pipelines.forms import StageForm
from mmgen.tensors import Held, check_fit, check_numbers, read_tensors

if TYPE_CHECKING:
    import torch

    from mmgen.pipelines.parts import Parts

UNET, VAE = "model.diffusion_model.", "first_stage_model."
HEAD = 64  # width of a head, of all these networks but the first U-Net
OPEN_LAYERS = 23  # of the encoder of 2.x, whose last layer was left out in the training
TOKENIZER = "tokenizer"  # the folder beside the file
MAX_LAYERS, MAX_SIDE = 1000, 2**17  # of the largest, a vocabulary has 49,408 tokens
Shapes = Mapping[str, list[int]]


class Piece(NamedTuple):
    """Where a network's tensor is in the file.

    third: of the rows, where query, key and value are one tensor. turned: with rows and columns exchanged. flat: a
    convolution of one pixel, which is a matrix now.
    """

    source: str
    third: int | None = None
    turned: bool = False
    flat: bool = False


@dataclass(frozen=True)
class _Text:
    """A text encoder. opened: by OpenCLIP, which names its tensors otherwise. layers: that are told, None: all."""

    prefix: str
    opened: bool
    projected: bool = False
    layers: int | None = None


@dataclass(frozen=True)
class _Kind:
    """What no file says of a published model. side: of its latents. scale: of its VAE. heads: of its U-Net at every
    width, None: as many as are HEAD wide."""

    name: str
    family: str
    texts: Mapping[str, _Text]
    side: int
    scale: float
    scheduler: str
    prediction: str = "epsilon"
    heads: int | None = None


# Source: the configurations that are published beside the models' folders.
KINDS = (
    _Kind(
        name="Stable Diffusion 1.x",
        family="stable-diffusion",
        texts={"text_encoder": _Text("cond_stage_model.transformer.", opened=False)},
        side=64,
        scale=0.18215,
        scheduler="PNDMScheduler",
        heads=8,
    ),
    _Kind(
        name="Stable Diffusion 2.x",
        family="stable-diffusion",
        texts={"text_encoder": _Text("cond_stage_model.model.", opened=True, layers=OPEN_LAYERS)},
        side=96,
        scale=0.18215,
        scheduler="DDIMScheduler",
        prediction="v_prediction",
    ),
    _Kind(
        name="Stable Diffusion XL",
        family="sdxl",
        texts={
            "text_encoder": _Text("conditioner.embedders.0.transformer.", opened=False),
            "text_encoder_2": _Text("conditioner.embedders.1.model.", opened=True, projected=True),
        },
        side=128,
        scale=0.13025,
        scheduler="EulerDiscreteScheduler",
    ),
)


@dataclass(frozen=True)
class SingleFile:
    """What the header of a file says.

    configs: of every component, and of the scheduler, as the files of a folder say it. pieces: component -> tensor of
    its network -> where that is. forms: of its stages.
    """

    path: Path
    kind: _Kind
    header: Header
    forms: tuple[StageForm, ...]
    configs: Mapping[str, dict[str, Any]]
    pieces: Mapping[str, Mapping[str, Piece]]

    @property
    def family(self) -> str:
        """Its name among `FAMILIES`."""
        return self.kind.family

    def read_files(self) -> dict[str, Path]:
        """What is read of it: the file, by a name that does not change with its own, and the tokenizer beside it.

        Raises ModelError for a tokenizer that lies elsewhere.
        """
        beside = _tokenizer_files(self.path.parent)
        return {"model.safetensors": self.path, **{f"{TOKENIZER}/{path.name}": path for path in beside}}


def look(path: Path) -> SingleFile:
    """What a file is, from its header. 2.x is taken for the models of 768 px, which predict v.

    Raises ModelError for a file that is no sound safetensors file, is no such model, or lacks one of its networks.
    """
    path = path.absolute()  # for what reads it later, in whatever folder
    header = weight_header(path)
    shapes = {name: entry["shape"] for name, entry in header.items()}
    try:
        kind = _kind(shapes)
        used = {name: shape for name, shape in shapes.items() if name.startswith(_prefixes(kind))}
        if empty := [name for name, shape in used.items() if 0 in shape]:
            raise ValueError(f"{shown_names(empty)} are empty")
        pieces = {name: _text_pieces(used, text) for name, text in kind.texts.items()}
        configs = {name: _text_config(used, pieces[name], text) for name, text in kind.texts.items()}
        configs["unet"], configs["vae"] = _unet_config(used, kind), _vae_config(used, kind)
        if kind.family == "sdxl":
            configs["unet"] |= _size_config(used, configs["text_encoder_2"]["projection_dim"])
        pieces["unet"] = _unet_pieces(used, configs["unet"]["layers_per_block"])
        pieces["vae"] = _vae_pieces(used, len(configs["vae"]["block_out_channels"]))
        configs["scheduler"] = _scheduler(shapes, kind)
        forms = FAMILIES[kind.family].forms({}, configs)
    except ValueError as error:
        raise ModelError(f"{path.name} is no model that can be drawn with: {error}") from None
    return SingleFile(path, kind, header, forms, configs, pieces)


def describe(file: SingleFile, name: str, kind: str) -> dict[str, Any]:
    """Class, parameters, bytes and dtypes of a component, from the header. kind: its class."""
    entries = [file.header[source] for source in {piece.source for piece in file.pieces[name].values()}]
    return {
        "class": kind,
        "parameters": sum(math.prod(entry["shape"]) for entry in entries),
        "bytes": sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries),
        "dtypes": sorted({entry["dtype"] for entry in entries}),
    }


def read_part(file: SingleFile, name: str, dtype: torch.dtype, *, outlined: bool = False) -> Any:
    """One component on the CPU: a network, or a TextEncoder. What overflows in less is float32.

    outlined: on the meta device, and no tensor is read. Raises ModelError for a file, or a tokenizer beside it, that is
    not sound.
    """
    import torch

    from mmgen.memory import place
    from mmgen.models.text import TextEncoder

    network = outline(file, name)
    try:
        if not outlined:
            network.load_state_dict(_tensors(file, name), strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{file.path.name}: {name} cannot be read: {told(error)}") from None
    number = torch.float32 if file.configs[name].get("force_upcast") else dtype
    network = place(network, torch.device("meta" if outlined else "cpu"), number)
    text = file.kind.texts.get(name)
    return network if text is None else TextEncoder(network, _tokenizer(file, text, network))


def file_parts(file: SingleFile, name: str, network: Any, check: Callable[[], None]) -> Parts:
    """The tensors of a component's network one by one. network, check: as `Parts` takes them.

    Raises ModelError for numbers that can draw nothing.
    """
    from mmgen.pipelines.parts import Parts, computed, stored

    pieces = file.pieces[name]
    places = {key: (file.path, piece.source) for key, piece in pieces.items()}
    check_numbers(file.path.name, stored(places))

    def cut(key: str, value: torch.Tensor) -> torch.Tensor:
        return _cut(pieces[key], value) if key in pieces else value

    return Parts(network, stored(places, computed(outline(file, name))), check, cut)


# ---- what a file is ------------------------------------------------------------------------------


def _kind(shapes: Shapes) -> _Kind:
    """Which of the published models has these names. Raises ValueError, which says what is missing."""
    lacking = {
        prefix: what
        for prefix, what in ((UNET, "U-Net"), (VAE, "VAE"))
        if not any(name.startswith(prefix) for name in shapes)
    }
    if lacking:
        raise ValueError(
            f"it has no {' and no '.join(lacking.values())} (no names that begin with {shown_names(lacking)}). A whole "
            f"{', '.join(kind.name for kind in KINDS)} is needed, in the layout of its training"
        )
    for kind in KINDS:
        if all(any(name.startswith(text.prefix) for name in shapes) for text in kind.texts.values()):
            return kind
    raise ValueError(
        f"it has the text encoders of none of {', '.join(kind.name for kind in KINDS)}. Files without text encoders, "
        "and refiners, draw nothing by themselves"
    )


def _prefixes(kind: _Kind) -> tuple[str, ...]:
    return (UNET, VAE, *(text.prefix for text in kind.texts.values()))


def _shape(shapes: Shapes, name: str, axes: int = 2) -> list[int]:
    """Of a tensor that must be there. Raises ValueError if it is not, has fewer axes, or sides that cannot be meant."""
    shape = shapes.get(name)
    if shape is None or len(shape) < axes or max(shape) > MAX_SIDE:
        raise ValueError(f"it lacks {name}" if shape is None else f"{name} has the shape {shape}")
    return shape


def _many(shapes: Shapes, name: str) -> int:
    """How many tensors there are of a name that holds a number: 0, 1, ... Raises ValueError for too many layers."""
    many = sum(1 for _ in takewhile(lambda number: name.format(number) in shapes, range(MAX_LAYERS + 1)))
    if many > MAX_LAYERS:
        raise ValueError(f"it has more than {MAX_LAYERS:,} layers such as {name.format(0)}")
    return many


def _scheduler(shapes: Shapes, kind: _Kind) -> dict[str, Any]:
    """Of the training; two tensors without numbers are the way in which files of XL say that it was another."""
    zero_snr = "ztsnr" in shapes
    return {
        "_class_name": kind.scheduler,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if "v_pred" in shapes else kind.prediction,
        "rescale_betas_zero_snr": zero_snr,
        "set_alpha_to_one": kind.family == "sdxl",
        # noise alone is the last step, which "leading" leaves out
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "steps_offset": 1,
    }


# ---- the U-Net -----------------------------------------------------------------------------------

UNET_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _unet_config(shapes: Shapes, kind: _Kind) -> dict[str, Any]:
    levels = _levels(shapes)
    layers, (widths, depths) = len(levels[0]), zip(*(level[0] for level in levels), strict=True)
    if any(len(level) != layers or len(set(level)) > 1 for level in levels):
        raise ValueError("the levels of its U-Net are not alike")
    if kind.heads is None and any(width % HEAD for width in widths):
        raise ValueError(f"its U-Net has the widths {widths}: heads of {HEAD} do not fit in there")
    first, last = _shape(shapes, f"{UNET}input_blocks.0.0.weight"), _shape(shapes, f"{UNET}out.2.weight")
    middle = f"{UNET}middle_block.1."
    deepest = _many(shapes, middle + "transformer_blocks.{}.attn2.to_k.weight")
    blocks = ["CrossAttn" if depth else "" for depth in depths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": kind.side,
        "in_channels": first[1],
        "out_channels": last[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": tuple(f"{block}DownBlock2D" for block in blocks),
        "up_block_types": tuple(f"{block}UpBlock2D" for block in reversed(blocks)),
        # the middle has as many as the last level, or would have if that had any
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), depths[-1] or deepest),
        "cross_attention_dim": _shape(shapes, f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        # what it calls by this name is how many there are
        "attention_head_dim": kind.heads or tuple(width // HEAD for width in widths),
        "use_linear_projection": len(_shape(shapes, f"{middle}proj_in.weight")) == 2,
    }


def _levels(shapes: Shapes) -> list[list[tuple[int, int]]]:
    """Width, and transformer layers, of each block on the way down, level by level."""
    levels: list[list[tuple[int, int]]] = [[]]
    for number in count(1):
        block = f"{UNET}input_blocks.{number}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
        elif f"{block}0.out_layers.3.weight" in shapes:
            width = _shape(shapes, f"{block}0.out_layers.3.weight")[0]
            depth = _many(shapes, block + "1.transformer_blocks.{}.attn2.to_k.weight")
            levels[-1].append((width, depth))
        else:
            break
        if number > MAX_LAYERS:
            raise ValueError(f"its U-Net has more than {MAX_LAYERS:,} blocks on the way down")
    if not all(levels):
        raise ValueError("its U-Net has a level without blocks")
    return levels


def _size_config(shapes: Shapes, pooled: int) -> dict[str, Any]:
    """Of what a U-Net of XL is told: a pooled vector, and six sizes. pooled: width of the vector."""
    width = _shape(shapes, f"{UNET}label_emb.0.0.weight")[1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // 6,
        "projection_class_embeddings_input_dim": width,
    }


def _unet_pieces(shapes: Shapes, layers: int) -> dict[str, Piece]:
    names = [name for name in shapes if name.startswith(UNET)]
    return {_unet_name(name.removeprefix(UNET), layers): Piece(name) for name in names}


def _unet_name(name: str, layers: int) -> str:
    """What a tensor is called today; one that is not known keeps its name. layers: resnets of a level."""
    path, _, leaf = name.rpartition(".")
    if path in UNET_NAMES:
        return f"{UNET_NAMES[path]}.{leaf}"
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", path):
        place, inner = int(found[1]), found[2]
        if place == 1:
            return f"mid_block.attentions.0.{inner}.{leaf}"
        return f"mid_block.resnets.{place // 2}.{RESNET_NAMES.get(inner, inner)}.{leaf}"
    if found := re.fullmatch(r"(in|out)put_blocks\.(\d{1,6})\.(\d)\.(.+)", path):
        way, inner = {"in": "down", "out": "up"}[found[1]], found[4]
        level, layer = divmod(int(found[2]) - (way == "down"), layers + 1)
        if inner in ("op", "conv"):
            return f"{way}_blocks.{level}.{way}samplers.0.conv.{leaf}"
        if found[3] == "0":
            return f"{way}_blocks.{level}.resnets.{layer}.{RESNET_NAMES.get(inner, inner)}.{leaf}"
        return f"{way}_blocks.{level}.attentions.{layer}.{inner}.{leaf}"
    return name


# ---- the VAE -------------------------------------------------------------------------------------

VAE_NAMES = {
    "norm_out": "conv_norm_out",
    "nin_shortcut": "conv_shortcut",
    "upsample": "upsamplers.0",
    "downsample": "downsamplers.0",
    "block": "resnets",
    "down": "down_blocks",
    "up": "up_blocks",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def _vae_config(shapes: Shapes, kind: _Kind) -> dict[str, Any]:
    block = f"{VAE}encoder.down.{{}}.block.{{}}.conv1.weight"
    levels = _many(shapes, block.format("{}", 0))
    if not levels:
        raise ValueError(f"it lacks {block.format(0, 0)}")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": tuple(_shape(shapes, block.format(level, 0))[0] for level in range(levels)),
        "layers_per_block": _many(shapes, block.format(0, "{}")),
        "latent_channels": _shape(shapes, f"{VAE}decoder.conv_in.weight")[1],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": kind.scale,
        "force_upcast": True,
    }


def _vae_pieces(shapes: Shapes, levels: int) -> dict[str, Piece]:
    names = [name for name in shapes if name.startswith(VAE) and not name.startswith(f"{VAE}loss.")]
    return {
        _vae_name(name.removeprefix(VAE), levels): Piece(
            name, flat=re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
        )
        for name in names
    }


def _vae_name(name: str, levels: int) -> str:
    """What a tensor is called today; one that is not known keeps its name. levels: that were counted from below upwards
    too."""
    name = re.sub(r"\.up\.(\d{1,6})\.", lambda found: f".up.{levels - 1 - int(found[1])}.", name)
    name = re.sub(
        r"\.mid\.block_([12])\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}.", name
    ).replace(".mid.attn_1.", ".mid_block.attentions.0.")
    return ".".join(VAE_NAMES.get(word, word) for word in name.split("."))


# ---- text encoders -------------------------------------------------------------------------------

OPEN_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "transformer": "encoder",
    "resblocks": "layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "ln_final": "final_layer_norm",
    "attn": "self_attn",
    "c_fc": "fc1",
    "c_proj": "fc2",
}
SPARE = ("embeddings.position_ids", "logit_scale", "attn_mask")  # in files, and in no network


def _text_pieces(shapes: Shapes, text: _Text) -> dict[str, Piece]:
    """By the names of a CLIPTextModel, whose projection is beside its inner model where it has one."""
    pieces: dict[str, Piece] = {}
    inner = "text_model." if text.projected else ""
    for name in shapes:
        if not name.startswith(text.prefix) or name.endswith(SPARE) or _is_left_out(name, text):
            continue
        own = name.removeprefix(text.prefix)
        if not text.opened:
            pieces[inner + own.removeprefix("text_model.")] = Piece(name)
        elif own == "text_projection":
            if text.projected:
                pieces["text_projection.weight"] = Piece(name, turned=True)
        else:
            pieces |= {inner + key: piece for key, piece in _opened(own, name).items()}
    return pieces


def _is_left_out(name: str, text: _Text) -> bool:
    found = re.match(r"transformer\.resblocks\.(\d{1,6})\.", name.removeprefix(text.prefix))
    return found is not None and text.layers is not None and int(found[1]) >= text.layers


def _opened(own: str, name: str) -> dict[str, Piece]:
    """What a tensor of OpenCLIP is called in CLIP; query, key and value are one there. name: in the file."""
    key = ".".join(OPEN_NAMES.get(word, word) for word in own.split("."))
    if found := re.fullmatch(r"(.+)\.in_proj_(weight|bias)", key):
        return {f"{found[1]}.{part}_proj.{found[2]}": Piece(name, third=i) for i, part in enumerate("qkv")}
    return {key: Piece(name)}


def _text_config(shapes: Shapes, pieces: Mapping[str, Piece], text: _Text) -> dict[str, Any]:
    found = {name: _cut_shape(piece, shapes[piece.source]) for name, piece in pieces.items()}
    inner = "text_model." if text.projected else ""
    words = _shape(found, f"{inner}embeddings.token_embedding.weight")
    layer = inner + "encoder.layers.{}.mlp.fc1.weight"
    if words[1] % HEAD:
        raise ValueError(f"a text encoder has the width {words[1]}: heads of {HEAD} do not fit in there")
    projection = {"projection_dim": _shape(found, "text_projection.weight")[0]} if text.projected else {}
    return {
        **projection,
        "vocab_size": words[0],
        "hidden_size": words[1],
        "num_attention_heads": words[1] // HEAD,
        "num_hidden_layers": _many(found, layer),
        "intermediate_size": _shape(found, layer.format(0))[0],
        "max_position_embeddings": _shape(found, f"{inner}embeddings.position_embedding.weight")[0],
        "hidden_act": "gelu" if text.opened else "quick_gelu",
        # as published: with this number the end of a text is the token with the highest one
        "eos_token_id": 2,
    }


def _tokenizer_files(folder: Path) -> list[Path]:
    """Those of the tokenizer in a folder. Raises ModelError if it, or one of them, leads out of the folder."""
    check_link(folder / TOKENIZER, folder)
    files = sorted(path for path in (folder / TOKENIZER).glob("[!.]*") if path.suffix in TEXTS)
    for path in files:
        check_link(path, folder)
    return [path for path in files if path.is_file()]  # a pipe would never end


def _tokenizer(file: SingleFile, text: _Text, network: Any) -> Any:
    """For one of the encoders, whose vocabularies are the same, and which pad otherwise."""
    from mmgen.models.pretrained import quiet
    from mmgen.models.text import read_tokenizer

    folder = file.path.parent / TOKENIZER
    if not folder.is_dir():
        raise ModelError(
            f"{file.path.name} holds no tokenizer, and {folder.name}/ is not there: put the folder 'tokenizer' of a "
            "published Stable Diffusion beside the file (vocab.json, merges.txt and tokenizer_config.json, as in "
            "openai/clip-vit-large-patch14)"
        )
    _tokenizer_files(folder.parent)
    with quiet():
        tokenizer = read_tokenizer(folder)
        if len(tokenizer) > network.config.vocab_size:
            raise ModelError(
                f"{folder.name} has {len(tokenizer)} tokens, the text encoder only {network.config.vocab_size}"
            )
        pad = tokenizer.convert_ids_to_tokens(0) if text.opened else tokenizer.eos_token
        # not by its attribute, which leaves the token one of words in texts: those of folders take it out
        tokenizer.add_special_tokens({"pad_token": pad})
    return tokenizer


# ---- tensors -------------------------------------------------------------------------------------


def _cut_shape(piece: Piece, shape: list[int]) -> list[int]:
    """Of a piece, from that of its tensor in the file."""
    if piece.third is not None:
        return [shape[0] // 3, *shape[1:]] if shape and shape[0] % 3 == 0 else shape
    if piece.flat and all(side == 1 for side in shape[2:]):
        return shape[:2]
    return shape[::-1] if piece.turned else shape


def _cut(piece: Piece, tensor: torch.Tensor) -> torch.Tensor:
    """A piece of its tensor in the file, with memory of its own where it is smaller."""
    if piece.third is not None:
        return tensor.chunk(3)[piece.third].clone()
    if piece.flat:
        return tensor.flatten(1)
    return tensor.T.contiguous() if piece.turned else tensor


def outline(file: SingleFile, name: str) -> Any:
    """A network without its weights. Raises ModelError if the file has others than it needs, before one is read."""
    import importlib

    from accelerate import init_empty_weights

    from mmgen.models.pretrained import quiet

    module, kind = FAMILIES[file.family].components[name][0]
    network_class = getattr(importlib.import_module(module), kind)
    config = {key: value for key, value in file.configs[name].items() if not key.startswith("_")}
    try:
        # what constructors compute is computed: no file holds it
        # twice, because a constructor may replace what it has made
        with quiet(), init_empty_weights(include_buffers=False), at_most(2 * len(file.pieces[name])):
            text = name in file.kind.texts
            network = network_class(network_class.config_class(**config)) if text else network_class(**config)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise ModelError(f"{file.path.name}: {name} is no {kind} that can be built: {told(error)}") from None
    held = {key: _held(file, piece) for key, piece in file.pieces[name].items()}
    check_fit(f"{file.path.name}, {name}", held, network.state_dict(), to=file.kind.name)
    return network


def _held(file: SingleFile, piece: Piece) -> Held:
    entry = file.header[piece.source]
    return Held.by(piece.source, {**entry, "shape": _cut_shape(piece, entry["shape"])})


def _tensors(file: SingleFile, name: str) -> dict[str, torch.Tensor]:
    """What the network of a component is given. Raises ModelError for numbers that can draw nothing."""
    pieces = file.pieces[name]
    tensors = read_tensors(file.path, file.path.name, [piece.source for piece in pieces.values()])
    return {key: _cut(piece, tensors[piece.source]) for key, piece in pieces.items()}
