"""What is known of stages without their networks: names, settings, sizes. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from mmgen.errors import UsageError
from mmgen.types import Size, StageSettings, check_sampler

# the settings that each stage uses
TEXT_TAKES: frozenset[str] = frozenset()
PRIOR_TAKES = frozenset({"steps", "sampler", "guidance_scale"})
DECODER_TAKES = frozenset({
    "steps", "sampler", "eta", "guidance_scale", "guidance_interval", "guidance_rescale", "guidance_parallel",
    "guidance_limit", "threshold", "threshold_cap", "resample",
})  # fmt: skip
SUPER_RES_TAKES = frozenset({"steps", "sampler", "noise_level", "threshold"})
PLAIN_SUPER_RES_TAKES = SUPER_RES_TAKES - {"noise_level"}  # of networks that are shown the picture as it is
PIXEL_TAKES = DECODER_TAKES | {"timesteps"}  # of published networks, which were trained in steps
LATENT_TAKES = PIXEL_TAKES - {"threshold", "threshold_cap"}  # latents are no pictures in [-1, 1]
NOISED_PIXEL_TAKES = PIXEL_TAKES | {"noise_level"}
NOISED_LATENT_TAKES = LATENT_TAKES | {"noise_level"}
VAE_TAKES: frozenset[str] = frozenset()

FACTOR = 4  # of a super-resolution stage: its picture's side in that of the picture before


@dataclass(frozen=True)
class StageForm:
    """What is known of a stage without its networks. As in `mmgen.pipelines.stage.Stage`.

    factor: of one that enlarges pictures, the sides of what it makes in those of what it is given. check: raises
    UsageError for completed settings that the stage takes, and that its network cannot follow.
    """

    name: str
    takes: frozenset[str]
    defaults: StageSettings
    size: int | None = None
    factor: float | None = None
    check: Callable[[StageSettings], None] | None = None

    @property
    def told(self) -> bool:
        """Whether it is told a text: guidance is between two of them."""
        return "guidance_scale" in self.takes

    def enlarged(self, size: Size) -> Size:
        """What a stage that enlarges makes of a picture: width and height in pixels."""
        assert self.factor is not None
        return round(self.factor * size[0]), round(self.factor * size[1])


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


def enlarging(forms: Sequence[StageForm], side: int, prompt: str, model: str) -> StageForm:
    """The stage that enlarges a given picture: the first one that is trained for as much, or else the last.

    side: the picture's longer one. Raises UsageError if there is none, and for a prompt that it is not told. model:
    for the error.
    """
    found = [(form, sides(forms[i:])[0]) for i, form in enumerate(forms) if form.factor is not None]
    if not found:
        raise UsageError(f"{model} has no super-resolution stage: it cannot enlarge pictures")
    fitting = (form for form, size in found if size >= max(form.enlarged((side, side))))
    form = next(fitting, found[-1][0])
    if prompt.strip() and not form.told:
        raise UsageError(f"stage {form.name!r} of {model} is told no text: leave the prompt out")
    return form


def complete(form: StageForm, settings: StageSettings) -> StageSettings:
    """Every setting of one stage, by its default where it is not given.

    Raises UsageError for a setting that the stage or its sampler ignores, and for what the stage cannot follow.
    """
    if ignored := [name for name in settings.to_dict() if name not in form.takes]:
        taken = [field.name for field in fields(StageSettings) if field.name in form.takes]
        raise UsageError(
            f"stage {form.name!r} does not take {ignored[0]}: it takes {', '.join(taken) or 'no settings'}"
        )
    settings = settings.with_defaults(form.defaults)
    if settings.sampler is not None:
        try:
            check_sampler(
                settings.sampler,
                eta=settings.eta,
                resample=settings.resample,
                timesteps=settings.timesteps,
            )
        except UsageError as error:
            raise UsageError(f"stage {form.name!r}: {error}") from None
    if form.check is not None:
        form.check(settings)
    return settings


def sides(forms: Sequence[StageForm]) -> tuple[int, ...]:
    """Sides in pixels of the pictures that a chain can end with, smallest first."""
    return tuple(form.size for form in forms if form.size is not None)


def super_res_name(size: int) -> str:
    """The name of the super-resolution stage that gives pictures of this side, in pixels."""
    return f"super-res-{size}"
