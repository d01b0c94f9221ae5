"""Which components and stages make which family of models: data, and one function per family that joins them.

What a stage takes, and how its settings are completed, is known here without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mmgen.errors import UsageError
from mmgen.types import StageSettings, check_sampler

PRIOR = StageSettings(steps=16, sampler="ddpm", guidance_scale=3.0)
DECODER = StageSettings(steps=32, sampler="ddpm", guidance_scale=1.5, threshold=0.995, threshold_cap=1.5)
SUPER_RES = StageSettings(steps=1, sampler="ddim", threshold="clip", noise_level=0.0)
LATENT = StageSettings(steps=25, sampler="dpmpp-2m", guidance_scale=7.5)
IF = StageSettings(steps=50, sampler="ddpm", guidance_scale=7.0, threshold=0.95, threshold_cap=1.5)

# the settings that each stage uses
TEXT_TAKES: frozenset[str] = frozenset()
PRIOR_TAKES = frozenset({"steps", "sampler", "guidance_scale"})
DECODER_TAKES = frozenset({
    "steps", "sampler", "eta", "guidance_scale", "guidance_interval", "guidance_rescale", "guidance_parallel",
    "guidance_limit", "threshold", "threshold_cap", "resample",
})  # fmt: skip
SUPER_RES_TAKES = frozenset({"steps", "sampler", "noise_level", "threshold"})
LATENT_TAKES = DECODER_TAKES - {"threshold", "threshold_cap"}  # latents are no pictures in [-1, 1]
VAE_TAKES: frozenset[str] = frozenset()

FACTOR = 4  # of a super-resolution stage: its picture's side in that of the picture before
STORYBOOK_SCALES = (FACTOR, FACTOR**2)  # of its super-resolution stages: sides, in that of the decoder

# What an index may say of its decoder and image embeddings. "prior": it draws no prompt without one, which the prior
# makes. "given": it draws prompts without, and is told those of pictures that are varied or mixed. "none": it saw none.
IMAGE_EMBED = ("prior", "given", "none")

MAX_LEVELS = 8  # of a VAE, each of half the side
IF_TOKENS = 77  # of every text, in the training of DeepFloyd IF; its encoder can read more
# What a U-Net of diffusers may be told besides time and text, or in another way: fields of its configuration.
TOLD_MORE = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")

Kind = tuple[str, str]
"""(module, class), as model_index.json has it."""
EITHER_UNET: tuple[Kind, ...] = (
    ("mmgen.models.efficient_unet", "EfficientUNet"),
    ("mmgen.models.unet", "UNet"),
)


@dataclass(frozen=True)
class StageForm:
    """What is known of a stage without its networks. As in `mmgen.pipelines.stage.Stage`."""

    name: str
    takes: frozenset[str]
    defaults: StageSettings
    size: int | None = None


@dataclass(frozen=True)
class Family:
    """components: name -> what it may be. join: components, data and index -> stages.

    forms: index and the components' config.json -> what those stages will be. Both raise ValueError where the parts do
    not fit each other. data: name -> a JSON file of the folder that is no component, and that join is given as well.
    """

    components: Mapping[str, tuple[Kind, ...]]
    join: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]
    forms: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[StageForm, ...]]
    data: Mapping[str, str] = field(default_factory=dict)


def up_to(forms: Sequence[StageForm], size: int) -> tuple[StageForm, ...]:
    """The chain that ends with pictures of this side. Raises UsageError if none does."""
    for i, form in enumerate(forms):
        if form.size == size:
            return tuple(forms[: i + 1])
    raise UsageError(f"no stage gives pictures of {size} px: choose {' or '.join(map(str, sides(forms)))}")


def resolve(forms: Sequence[StageForm], given: Mapping[str, StageSettings]) -> dict[str, StageSettings]:
    """Every setting of every stage of a chain, by its default where it is not given; stages without settings left out.

    Raises UsageError for a stage that is not in the chain, and for a setting that a stage or its sampler ignores.
    """
    names = [form.name for form in forms]
    if idle := sorted(set(given) - set(names)):
        raise UsageError(
            f"settings for stage {idle[0]!r}, but at {sides(forms)[-1]} px only {', '.join(names)} run"
        )
    stages = {form.name: complete(form, given.get(form.name, StageSettings())) for form in forms}
    return {name: settings for name, settings in stages.items() if settings.to_dict()}


def complete(form: StageForm, settings: StageSettings) -> StageSettings:
    """Every setting of one stage, by its default where it is not given.

    Raises UsageError for a setting that the stage or its sampler ignores.
    """
    if ignored := [name for name in settings.to_dict() if name not in form.takes]:
        taken = [field.name for field in fields(StageSettings) if field.name in form.takes]
        raise UsageError(
            f"stage {form.name!r} does not take {ignored[0]}: it takes {', '.join(taken) or 'no settings'}"
        )
    settings = settings.with_defaults(form.defaults)
    if settings.sampler is not None:
        try:
            check_sampler(settings.sampler, eta=settings.eta, resample=settings.resample)
        except UsageError as error:
            raise UsageError(f"stage {form.name!r}: {error}") from None
    return settings


def sides(forms: Sequence[StageForm]) -> tuple[int, ...]:
    """Sides in pixels of the pictures that a chain can end with, smallest first."""
    return tuple(form.size for form in forms if form.size is not None)


def _storybook(parts: Mapping[str, Any], index: Mapping[str, Any]) -> list[Any]:
    """Text -> prior, if prompts need it -> decoder -> one super-resolution network at two scales."""
    from mmgen.pipelines.decoder_stage import DecoderStage
    from mmgen.pipelines.prior_stage import PriorStage
    from mmgen.pipelines.super_res_stage import SuperResStage
    from mmgen.pipelines.text_stage import TextStage

    embeds = _image_embed(index)
    _check_widths(parts)
    prior = None if embeds == "none" else PriorStage(parts["prior"], parts["dual_encoder"], PRIOR)
    stages: list[Any] = [TextStage(parts["text_encoder"])]
    if embeds == "prior":
        stages.append(prior)
    stages.append(DecoderStage(parts["decoder"], DECODER, uses_image_embed=embeds == "prior", prior=prior))
    size = parts["decoder"].config.sample_size
    for scale in STORYBOOK_SCALES:
        stages.append(SuperResStage(parts["super_res"], SUPER_RES, size=scale * size))
    return stages


def _storybook_forms(index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    side = _side("decoder", configs)
    forms = [StageForm("text", TEXT_TAKES, StageSettings())]
    if _image_embed(index) == "prior":
        forms.append(StageForm("prior", PRIOR_TAKES, PRIOR))
    forms.append(StageForm("decoder", DECODER_TAKES, DECODER, side))
    for scale in STORYBOOK_SCALES:
        size = scale * side
        forms.append(StageForm(super_res_name(size), SUPER_RES_TAKES, SUPER_RES, size))
    return tuple(forms)


def _side(name: str, configs: Mapping[str, Any]) -> int:
    """Of the pictures that a network draws, or of their latents."""
    side = configs[name].get("sample_size")
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"{name}/config.json: sample_size is {side!r}, and must be a number of pixels")
    return side


def super_res_name(size: int) -> str:
    """The name of the super-resolution stage that gives pictures of this side, in pixels."""
    return f"super-res-{size}"


def _image_embed(index: Mapping[str, Any]) -> str:
    embeds = index.get("image_embed")
    if embeds not in IMAGE_EMBED:
        raise ValueError(
            f"image_embed is {embeds!r} in the index: it must be one of {', '.join(IMAGE_EMBED)}"
        )
    return str(embeds)


def no_image_embed(name: str) -> UsageError:
    """What is said where a model is to draw from image embeddings, and its index says that it never saw any."""
    return UsageError(
        f"{name} draws from texts alone: its decoder was not trained on image embeddings, and cannot vary, mix or "
        "interpolate pictures. Give a --model whose image_embed is 'prior' or 'given'"
    )


def _check_widths(parts: Mapping[str, Any]) -> None:
    text, image = parts["text_encoder"].width, parts["dual_encoder"].config.embed_dim
    for part, name, width in (
        ("dual_encoder", "text_dim", text),
        ("prior", "text_dim", text),
        ("prior", "pooled_dim", text),
        ("prior", "embed_dim", image),
        ("decoder", "text_dim", text),
        ("decoder", "pooled_dim", text),
        ("decoder", "image_dim", image),
    ):
        found = getattr(parts[part].config, name)
        if found != width:
            raise ValueError(f"{part} has {name} {found}, but the encoder before it gives {width}")


def _stable_diffusion(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, a U-Net that draws latents -> VAE."""
    from mmgen.pipelines.adapters import colours, noise_of
    from mmgen.pipelines.latent_stage import LatentStage, VaeStage
    from mmgen.pipelines.text_stage import TextStage

    encoder, unet, vae = parts["text_encoder"], parts["unet"], parts["vae"]
    schedule, kind = noise_of(parts["scheduler"])
    _check_scale(vae.config)
    _check_channels(unet.config, vae.config.latent_channels, "VAE", kind)
    _check_told(unet.config, "cross_attention_dim", encoder.width)
    return [
        TextStage(encoder, length=encoder.max_tokens, seen=True),
        LatentStage(unet, LATENT, schedule=schedule, kind=kind, colours=colours(vae)),
        VaeStage(vae, size=unet.config.sample_size * enlargement(vae.config)),
    ]


def _stable_diffusion_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    size = _side("unet", configs) * enlargement(configs["vae"])
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", LATENT_TAKES, LATENT),
        StageForm("vae", VAE_TAKES, StageSettings(), size),
    )


def enlargement(vae: Mapping[str, Any]) -> int:
    """Pixels per side of what a latent stands for, from the VAE's configuration. Raises ValueError if it has none."""
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list | tuple) or not 1 <= len(channels) <= MAX_LEVELS:
        raise ValueError(
            f"vae/config.json: block_out_channels is {channels!r}, and must be 1 to {MAX_LEVELS} numbers"
        )
    return int(2 ** (len(channels) - 1))


def _check_scale(vae: Mapping[str, Any]) -> None:
    """Raise ValueError for a VAE that does not say in numbers how its latents become what is diffused."""
    scale, shift = vae.get("scaling_factor"), vae.get("shift_factor")
    if type(scale) not in (int, float) or scale == 0:
        raise ValueError(f"vae/config.json: scaling_factor is {scale!r}, and must be a number other than 0")
    if shift is not None and type(shift) not in (int, float):
        raise ValueError(f"vae/config.json: shift_factor is {shift!r}, and must be a number or null")


def _if(parts: Mapping[str, Any], _index: Mapping[str, Any]) -> list[Any]:
    """Text -> decoder, a U-Net that draws small pictures."""
    from mmgen.pipelines.adapters import noise_of
    from mmgen.pipelines.latent_stage import PixelStage
    from mmgen.pipelines.text_stage import TextStage

    encoder, unet = parts["text_encoder"], parts["unet"]
    schedule, kind = noise_of(parts["scheduler"])
    _check_channels(unet.config, 3, "picture", kind)
    _check_told(
        unet.config,
        "encoder_hid_dim",
        encoder.width,
        {"addition_embed_type": "text", "encoder_hid_dim_type": "text_proj"},
    )
    return [
        TextStage(encoder, length=IF_TOKENS, lower=True),
        PixelStage(unet, IF, schedule=schedule, kind=kind),
    ]


def _if_forms(_index: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[StageForm, ...]:
    return (
        StageForm("text", TEXT_TAKES, StageSettings()),
        StageForm("decoder", DECODER_TAKES, IF, _side("unet", configs)),
    )


def _check_channels(unet: Any, channels: int, of: str, kind: str) -> None:
    """Raise ValueError for a U-Net that draws something else.

    channels, of: how many, and what has so many. kind: of prediction, as the scheduler's file says it.
    """
    if unet.in_channels != channels:
        raise ValueError(f"unet has in_channels {unet.in_channels}, but the {of} has {channels}")
    said = 2 * channels if kind == "learned-range" else channels
    if unet.out_channels != said:
        raise ValueError(
            f"unet has out_channels {unet.out_channels}, but one that predicts {kind} has {said}"
        )


def _check_told(unet: Any, name: str, width: int, ways: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for a U-Net that is told more than time and text.

    name: where it says how wide a text is. ways: those of `TOLD_MORE` that take a text alone.
    """
    if unet[name] != width:
        raise ValueError(f"unet has {name} {unet[name]}, but the text encoder has {width}")
    for field_name in TOLD_MORE:
        if unet.get(field_name) not in (None, (ways or {}).get(field_name)):
            raise ValueError(
                f"unet has {field_name} {unet[field_name]!r}: it must be told more than time and text"
            )


SCHEDULER: Mapping[str, str] = {"scheduler": "scheduler/scheduler_config.json"}
FAMILIES: Mapping[str, Family] = {
    "storybook": Family(
        components={
            "text_encoder": (("transformers", "BertModel"),),
            "dual_encoder": (("mmgen.models.dual_encoder", "DualEncoder"),),
            "prior": (("mmgen.models.prior", "DiffusionPrior"),),
            "decoder": EITHER_UNET,
            "super_res": EITHER_UNET,
        },
        join=_storybook,
        forms=_storybook_forms,
    ),
    "stable-diffusion": Family(
        components={
            "text_encoder": (("transformers", "CLIPTextModel"),),
            "unet": (("diffusers", "UNet2DConditionModel"),),
            "vae": (("diffusers", "AutoencoderKL"),),
        },
        join=_stable_diffusion,
        forms=_stable_diffusion_forms,
        data=SCHEDULER,
    ),
    "if": Family(
        components={
            "text_encoder": (("transformers", "T5EncoderModel"),),
            "unet": (("diffusers", "UNet2DConditionModel"),),
        },
        join=_if,
        forms=_if_forms,
        data=SCHEDULER,
    ),
}
PUBLISHED: Mapping[str, str] = {"StableDiffusionPipeline": "stable-diffusion", "IFPipeline": "if"}
"""The class that the index of a folder of diffusers names -> its family."""
