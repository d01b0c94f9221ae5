"""Pipelines of diffusers that run as they are: one reads texts, one draws latents by its own loop and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmgen.pipelines.families.family import SCHEDULER, Family, check_fields, check_scale, enlargement, side_of
from mmgen.pipelines.forms import TEXT_TAKES, VAE_TAKES, StageForm
from mmgen.types import StageSettings

# Of a scheduler's file: what it makes tables of, and what pipelines compute the shift of its levels from.
MOST = {"num_train_timesteps": 16_384, "solver_order": 3}
SHIFTS = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
MAX_SAID = 8192  # of what an index says of pictures: pixels of a side
COLOURS = 3
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
SOLVERS = ("DPMSolverMultistepScheduler", *FLOW_SCHEDULERS)


@dataclass(frozen=True)
class Chat:
    """The conversation that a text is put into for an encoder that was trained on them; its states are told alone.

    layer: which of its hidden states, counted as transformers does. template: with {} where the text stands, None: that
    which the pipeline itself has. dropped: tokens at its beginning that are not told. padded: every text has all tokens
    that are read. mended: what went wrong with characters, on the text's way through other programs, is set right.
    """

    layer: int
    template: str | None = None
    dropped: int = 0
    padded: bool = False
    mended: bool = False


@dataclass(frozen=True)
class Variant:
    """Folders of the same class that are published with other settings, and what tells them from the others.

    part: the component, or the scheduler, whose file says `value` under `name`; where it says nothing, that is false.
    """

    part: str
    name: str
    value: Any
    defaults: StageSettings


@dataclass(frozen=True)
class Whole:
    """How a pipeline class of diffusers is loaded, told its texts, and called.

    family: its name in mmgen. encoders: its text encoders -> their classes in transformers. transformer, vae: classes
    in diffusers; without a VAE it draws pictures as they are, and its index says how large. schedulers: those that its
    folder may come with. told: what its call is told of texts, in the order in which its `encode_prompt` gives it.
    reader, length: the encoder that reads the most of a text, and how many tokens. widths, pooled: fields of the
    transformer's configuration -> the encoders whose states, or pooled vectors side by side, it is told. fixed: fields
    of it -> what they must be for this call. defaults: as it is published; the decoder takes these settings. variant:
    those of some folders, None: all are alike. scale: what its call calls guidance_scale. off: up to where that is no
    guidance. latent_side: None: the transformer's `sample_size`. packed: four latents side by side are one token.
    framed: its VAE is one of videos, and a picture the only frame. lower: texts are read in small letters.
    instructed: before a text stands what its call tells by default. chat: it has no use for `encode_prompt`, but reads
    texts so. listed: it is told a list, of each text's own tokens.
    call: what is given to the call besides.
    """

    family: str
    encoders: Mapping[str, str]
    transformer: str
    vae: str | None
    schedulers: tuple[str, ...]
    told: tuple[str, ...]
    reader: str
    length: int
    widths: Mapping[str, str]
    defaults: StageSettings
    pooled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    variant: Variant | None = None
    scale: str = "guidance_scale"
    off: float = 1.0
    latent_side: int | None = None
    packed: bool = False
    framed: bool = False
    lower: bool = False
    instructed: bool = False
    chat: Chat | None = None
    listed: bool = False
    call: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, configs: Mapping[str, Mapping[str, Any]]) -> StageSettings:
        """The defaults of its decoder, which takes these settings alone. configs: of its parts, by their names."""
        variant = self.variant
        if variant is not None and (configs[variant.part].get(variant.name) or False) == variant.value:
            return variant.defaults
        return self.defaults

    @property
    def takes_negative(self) -> bool:
        """Whether it is told a negative prompt."""
        return "negative_prompt_embeds" in self.told


_MASKED = (
    "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
)  # fmt: skip
WHOLE: Mapping[str, Whole] = {
    "StableDiffusion3Pipeline": Whole(
        family="sd3",
        encoders={
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
        transformer="SD3Transformer2DModel",
        vae="AutoencoderKL",
        schedulers=FLOW_SCHEDULERS,
        told=(
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ),
        reader="text_encoder_3",
        length=256,
        widths={"joint_attention_dim": "text_encoder_3"},
        pooled={"pooled_projection_dim": ("text_encoder", "text_encoder_2")},
        defaults=StageSettings(steps=28, guidance_scale=7.0),
    ),
    "PixArtSigmaPipeline": Whole(
        family="pixart-sigma",
        encoders={"text_encoder": "T5EncoderModel"},
        transformer="PixArtTransformer2DModel",
        vae="AutoencoderKL",
        schedulers=SOLVERS,
        told=_MASKED,
        reader="text_encoder",
        length=300,
        widths={"caption_channels": "text_encoder"},
        defaults=StageSettings(steps=20, guidance_scale=4.5),
        lower=True,
        call={"use_resolution_binning": False},
    ),
    "SanaPipeline": Whole(
        family="sana",
        encoders={"text_encoder": "Gemma2Model"},
        transformer="SanaTransformer2DModel",
        vae="AutoencoderDC",
        schedulers=SOLVERS,
        told=_MASKED,
        reader="text_encoder",
        length=300,
        widths={"caption_channels": "text_encoder"},
        defaults=StageSettings(steps=20, guidance_scale=4.5),
        lower=True,
        instructed=True,
        call={"use_resolution_binning": False},
    ),
    "FluxPipeline": Whole(
        family="flux",
        encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
        transformer="FluxTransformer2DModel",
        vae="AutoencoderKL",
        schedulers=FLOW_SCHEDULERS,
        told=("prompt_embeds", "pooled_prompt_embeds"),
        reader="text_encoder_2",
        length=512,
        widths={"joint_attention_dim": "text_encoder_2"},
        pooled={"pooled_projection_dim": ("text_encoder",)},
        defaults=StageSettings(steps=28, guidance_scale=3.5),
        variant=Variant("transformer", "guidance_embeds", False, StageSettings(steps=4)),
        off=0.0,
        latent_side=128,
        packed=True,
    ),
    "ZImagePipeline": Whole(
        family="z-image",
        encoders={"text_encoder": "Qwen3Model"},
        transformer="ZImageTransformer2DModel",
        vae="AutoencoderKL",
        schedulers=FLOW_SCHEDULERS,
        told=("prompt_embeds", "negative_prompt_embeds"),
        reader="text_encoder",
        length=512,
        widths={"cap_feat_dim": "text_encoder"},
        fixed={"all_patch_size": [2], "all_f_patch_size": [1]},
        defaults=StageSettings(steps=50, guidance_scale=4.0),
        # Z-Image-Turbo is built as Z-Image is, and known by the shift of its noise levels alone
        variant=Variant("scheduler", "shift", 3.0, StageSettings(steps=9, guidance_scale=0.0)),
        off=0.0,
        latent_side=128,
        # that of Qwen3; the one in the folder is a program
        chat=Chat(layer=-2, template="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
        listed=True,
        call={"cfg_truncation": None},  # which by default cuts nothing off, and asks numbers of the device
    ),
    "QwenImagePipeline": Whole(
        family="qwen-image",
        encoders={"text_encoder": "Qwen2_5_VLForConditionalGeneration"},
        transformer="QwenImageTransformer2DModel",
        vae="AutoencoderKLQwenImage",
        schedulers=FLOW_SCHEDULERS,
        told=("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask"),
        reader="text_encoder",
        length=512,
        widths={"joint_attention_dim": "text_encoder"},
        fixed={
            "patch_size": 2,
            "guidance_embeds": False,
            "use_additional_t_cond": False,
            "use_layer3d_rope": False,
        },
        defaults=StageSettings(steps=50, guidance_scale=4.0),
        scale="true_cfg_scale",
        latent_side=128,
        packed=True,
        framed=True,
        chat=Chat(layer=-1, dropped=34),
    ),
    "PRXPixelPipeline": Whole(
        family="prx-pixel",
        encoders={"text_encoder": "Qwen3VLTextModel"},
        transformer="PRXTransformer2DModel",
        vae=None,
        schedulers=FLOW_SCHEDULERS,
        told=_MASKED,
        reader="text_encoder",
        length=256,
        widths={"context_in_dim": "text_encoder"},
        defaults=StageSettings(steps=28, guidance_scale=5.0),
        chat=Chat(layer=-1, template="{}", padded=True, mended=True),
        call={"use_resolution_binning": False},
    ),
}
"""The class that the index of a folder names -> how it is run."""


def _join(pipeline: str, parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, the pipeline's own loop over latents -> VAE; or text -> decoder of pictures."""
    from mmgen.pipelines.families.whole_stage import ChatTextStage, WholeTextStage, check_scheduler

    whole, transformer = WHOLE[pipeline], parts["transformer"]
    encoders = {name: parts[name] for name in whole.encoders}
    check_fields("transformer", transformer.config, whole.fixed, f"models of family {whole.family} have")
    _check_axes(transformer.config)
    _check_widths(whole, transformer.config, encoders)
    check_scheduler(parts["scheduler"])
    text_stage = WholeTextStage if whole.chat is None else ChatTextStage
    draw = _of_pixels if whole.vae is None else _of_latents
    return [text_stage(pipeline, encoders), *draw(pipeline, parts, index)]


def _of_latents(pipeline: str, parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    from mmgen.pipelines.families.whole_stage import FrameVaeStage, WholeStage, compute_tables
    from mmgen.pipelines.vae_stage import VaeStage

    whole, transformer, vae = WHOLE[pipeline], parts["transformer"], parts["vae"]
    configs = {"transformer": transformer.config, "scheduler": parts["scheduler"]}
    channels = _channels(whole, vae.config)
    _check_channels(transformer.config, channels * (4 if whole.packed else 1), "latents of this VAE")
    compute_tables(transformer)
    side, defaults = _latent_side(whole, configs), whole.settings(configs)
    _check_side(transformer.config, side, "sample_size")
    vae_stage = FrameVaeStage if whole.framed else VaeStage
    return [
        WholeStage(pipeline, transformer, parts["scheduler"], defaults, side=side, channels=channels),
        vae_stage(vae, size=side * enlargement(vae.config)),
    ]


def _of_pixels(pipeline: str, parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    from mmgen.pipelines.families.whole_stage import WholePixelStage

    whole, transformer = WHOLE[pipeline], parts["transformer"]
    _check_channels(transformer.config, COLOURS, "pictures")
    side = _pixel_side(whole, index)
    _check_side(transformer.config, side, "default_sample_size")
    return [
        WholePixelStage(
            pipeline,
            transformer,
            parts["scheduler"],
            whole.defaults,
            side=side,
            noise_scale=_said(index, "noise_scale", 2.0, (int, float)),
        )
    ]


def _forms(pipeline: str, index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    whole = WHOLE[pipeline]
    _check_scheduler(whole, configs["scheduler"])
    text, defaults = StageForm("text", TEXT_TAKES, StageSettings()), whole.settings(configs)
    takes = frozenset(defaults.to_dict())
    if whole.vae is None:
        return text, StageForm("decoder", takes, defaults, _pixel_side(whole, index))
    size = _latent_side(whole, configs) * enlargement(configs["vae"])
    return text, StageForm("decoder", takes, defaults), StageForm("vae", VAE_TAKES, StageSettings(), size)


def _pixel_side(whole: Whole, index: Mapping[str, Any]) -> int:
    """Of the pictures. Raises ValueError for an index that says none, or reads texts to another length."""
    if (length := _said(index, "prompt_max_tokens", whole.length, (int,))) != whole.length:
        raise ValueError(
            f"prompt_max_tokens is {length} in the index: models of this family read {whole.length}"
        )
    return int(_said(index, "default_sample_size", 1024, (int,)))


def _said(index: Mapping[str, Any], name: str, default: float, kinds: tuple[type, ...]) -> Any:
    """A number that an index says of a pipeline. Raises ValueError where it is none that can be meant."""
    value = index.get(name, default)
    if type(value) not in kinds or not 0 < value <= MAX_SAID:
        raise ValueError(f"{name} is {value!r} in the index, and must be a number up to {MAX_SAID:,}")
    return value


def _latent_side(whole: Whole, configs: Mapping[str, Any]) -> int:
    return side_of("transformer", configs) if whole.latent_side is None else whole.latent_side


def _check_scheduler(whole: Whole, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a scheduler of another class, with wild numbers, or with noise of its own."""
    name = "scheduler/scheduler_config.json"
    if (kind := values.get("_class_name")) not in whole.schedulers:
        raise ValueError(f"{name} is of class {kind!r}: mmgen runs {' or '.join(whole.schedulers)} here")
    for key, most in MOST.items():
        value = values.get(key, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name}: {key} is {value!r}, and must be a whole number from 1 to {most:,}")
    for key in SHIFTS:
        if type(value := values.get(key, 1)) not in (int, float):
            raise ValueError(f"{name}: {key} is {value!r}, and must be a number")
    if values.get("stochastic_sampling"):
        raise ValueError(f"{name}: stochastic_sampling adds noise that no seed decides")


def _channels(whole: Whole, vae: Any) -> int:
    """Of what the VAE decodes. Raises ValueError where it does not say in numbers how that becomes what is diffused."""
    if not whole.framed:
        check_scale(vae)
        return int(vae.latent_channels)
    for name in ("latents_mean", "latents_std"):
        values = vae[name]
        numbers = isinstance(values, list | tuple) and all(type(one) in (int, float) for one in values)
        if not numbers or len(values) != vae.z_dim:
            raise ValueError(f"vae/config.json: {name} must be {vae.z_dim} numbers, one for each channel")
    if 0 in vae.latents_std:
        raise ValueError("vae/config.json: latents_std holds 0, and must be numbers other than 0")
    return int(vae.z_dim)


def _check_axes(transformer: Any) -> None:
    """Raise ValueError for one whose heads are not turned by what a place is told as: of what, row and column."""
    axes = list(transformer.get("axes_dims_rope", ()))
    if axes and (
        len(axes) != 3 or any(one % 2 for one in axes) or sum(axes) != transformer.attention_head_dim
    ):
        raise ValueError(
            f"transformer has axes_dims_rope {axes}, which must be 3 even numbers, "
            f"{transformer.attention_head_dim} together, its attention_head_dim"
        )


def _check_side(transformer: Any, side: int, said: str) -> None:
    """Raise ValueError for a side that it cannot cut into patches. said: what says it, for the error."""
    patch, most = transformer.get("patch_size", 1), transformer.get("pos_embed_max_size")
    if side % patch:
        raise ValueError(f"{said} is {side}, which patches of {patch} do not fill")
    if most is not None and side // patch > most:
        raise ValueError(
            f"{said} is {side}, and pos_embed_max_size {most}: it knows no more patches of {patch}"
        )


def _check_channels(transformer: Any, channels: int, of: str) -> None:
    """Raise ValueError for a transformer that draws something else. of: what has so many."""
    if transformer.in_channels != channels:
        raise ValueError(f"transformer has in_channels {transformer.in_channels}, but {of} need {channels}")


def _check_widths(whole: Whole, transformer: Any, encoders: Mapping[str, Any]) -> None:
    """Raise ValueError for a transformer that is told texts of another width than the encoders give."""
    given = {name: encoders[encoder].width for name, encoder in whole.widths.items()}
    given |= {name: sum(encoders[one].pooled_width for one in ones) for name, ones in whole.pooled.items()}
    for name, width in given.items():
        if transformer[name] != width:
            raise ValueError(
                f"transformer has {name} {transformer[name]}, but the text encoders give {width}"
            )


def _family(pipeline: str, whole: Whole) -> Family:
    texts = {name: (("transformers", kind),) for name, kind in whole.encoders.items()}
    classes = {"transformer": whole.transformer, "vae": whole.vae}
    drawn = {name: (("diffusers", kind),) for name, kind in classes.items() if kind is not None}
    return Family(
        components={**texts, **drawn},
        join=partial(_join, pipeline),
        forms=partial(_forms, pipeline),
        data=SCHEDULER,
    )


FAMILIES: Mapping[str, Family] = {whole.family: _family(name, whole) for name, whole in WHOLE.items()}
PUBLISHED: Mapping[str, str] = {name: whole.family for name, whole in WHOLE.items()}
