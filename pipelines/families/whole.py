"""Pipelines of diffusers that run as they are: one reads texts, one draws latents by its own loop and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmgen.pipelines.families.family import SCHEDULER, Family, check_scale, enlargement, side_of
from mmgen.pipelines.forms import TEXT_TAKES, VAE_TAKES, StageForm
from mmgen.types import StageSettings

# Of a scheduler's file: what it makes tables of, and what pipelines compute the shift of its levels from.
MOST = {"num_train_timesteps": 16_384, "solver_order": 3}
SHIFTS = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
SOLVERS = ("DPMSolverMultistepScheduler", *FLOW_SCHEDULERS)


@dataclass(frozen=True)
class Whole:
    """How a pipeline class of diffusers is loaded, told its texts, and called.

    family: its name in mmgen. encoders: its text encoders -> their classes in transformers. transformer, vae: classes
    in diffusers. schedulers: those that its folder may come with. told: what its `encode_prompt` gives, in order, as
    its call takes it. reader, length: the encoder that reads the most of a text, and how many tokens. widths, pooled:
    fields of the transformer's configuration -> the encoders whose states, or pooled vectors side by side, it is told.
    defaults: as it is published; the decoder takes these settings. unguided: the same of a transformer whose
    configuration has no `guidance_embeds`, None: of all alike. latent_side: None: the transformer's `sample_size`.
    packed: four latents side by side are one token. lower: texts are read in small letters. instructed: before a text
    stands what its call tells by default. call: what is given to the call besides.
    """

    family: str
    encoders: Mapping[str, str]
    transformer: str
    vae: str
    schedulers: tuple[str, ...]
    told: tuple[str, ...]
    reader: str
    length: int
    widths: Mapping[str, str]
    defaults: StageSettings
    pooled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unguided: StageSettings | None = None
    latent_side: int | None = None
    packed: bool = False
    lower: bool = False
    instructed: bool = False
    call: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, transformer: Mapping[str, Any]) -> StageSettings:
        """The defaults of its decoder, which takes these settings alone. transformer: its configuration."""
        if self.unguided is not None and not transformer.get("guidance_embeds"):
            return self.unguided
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
        unguided=StageSettings(steps=4),
        latent_side=128,
        packed=True,
    ),
}
"""The class that the index of a folder names -> how it is run."""


def _join(pipeline: str, parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, the pipeline's own loop over latents -> VAE."""
    from mmgen.pipelines.families.whole_stage import WholeStage, WholeTextStage, check_scheduler
    from mmgen.pipelines.vae_stage import VaeStage

    whole, transformer, vae = WHOLE[pipeline], parts["transformer"], parts["vae"]
    encoders = {name: parts[name] for name in whole.encoders}
    check_scale(vae.config)
    _check_channels(whole, transformer.config, vae.config.latent_channels)
    _check_widths(whole, transformer.config, encoders)
    check_scheduler(parts["scheduler"])
    side = _latent_side(whole, {"transformer": transformer.config})
    return [
        WholeTextStage(pipeline, encoders),
        WholeStage(pipeline, transformer, parts["scheduler"], side=side, channels=vae.config.latent_channels),
        VaeStage(vae, size=side * enlargement(vae.config)),
    ]


def _forms(pipeline: str, _index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    whole = WHOLE[pipeline]
    _check_scheduler(whole, configs["scheduler"])
    defaults = whole.settings(configs["transformer"])
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", frozenset(defaults.to_dict()), defaults),
        StageForm(
            "vae", VAE_TAKES, StageSettings(), _latent_side(whole, configs) * enlargement(configs["vae"])
        ),
    )


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


def _check_channels(whole: Whole, transformer: Any, channels: int) -> None:
    """Raise ValueError for a transformer that draws other latents than the VAE decodes."""
    drawn = channels * (4 if whole.packed else 1)
    if transformer.in_channels != drawn:
        raise ValueError(
            f"transformer has in_channels {transformer.in_channels}, but latents of this VAE need {drawn}"
        )


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
    drawn = {"transformer": (("diffusers", whole.transformer),), "vae": (("diffusers", whole.vae),)}
    return Family(
        components={**texts, **drawn},
        join=partial(_join, pipeline),
        forms=partial(_forms, pipeline),
        data=SCHEDULER,
    )


FAMILIES: Mapping[str, Family] = {whole.family: _family(name, whole) for name, whole in WHOLE.items()}
PUBLISHED: Mapping[str, str] = {name: whole.family for name, whole in WHOLE.items()}
