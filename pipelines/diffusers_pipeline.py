"""The face for programs that hold a pipeline of diffusers: its components and its arguments, over our own stages."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers.schedulers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from torch import Tensor
from transformers import BertModel

from mmgen.component import read_json
from mmgen.errors import ModelError, UsageError
from mmgen.images import to_pil
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.efficient_unet import EfficientUNet
from mmgen.models.prior import DiffusionPrior
from mmgen.models.text import TextEncoder
from mmgen.models.unet import UNet
from mmgen.pipelines.cascade import Cascade
from mmgen.pipelines.catalogue import fitting_side
from mmgen.pipelines.checkpoint import VOCABULARY, write_manifest
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.decoder_stage import DecoderStage
from mmgen.pipelines.families import FAMILIES, PUBLISHED
from mmgen.pipelines.loading import read_component, read_words, write_checkpoint
from mmgen.pipelines.notebook import View, drain, step_end
from mmgen.pipelines.sources import locate
from mmgen.pipelines.stage import Draft
from mmgen.schedulers.interop import MmgenScheduler, adapted
from mmgen.schedulers.samplers import Step
from mmgen.types import MAX_SEED, StageSettings, check_prompt

OnStepEnd = Callable[["MmgenPipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]
SCHEDULER = "scheduler"


class MmgenPipeline(DiffusionPipeline):
    """A cascade as a pipeline of diffusers: its components can be looked at, replaced, moved and cast.

    scheduler: what takes the decoder from noise to picture, of our own an MmgenScheduler (which is its sampler alone:
    its betas are those of other networks), or any of diffusers that `schedulers.adapted` takes; None: the family's
    sampler. index: what model_index.json says beside the components: name, family and the family's options. words: all
    that the model knows, None if that cannot be told.
    Raises ModelError for components that are not of the family or do not fit each other, UsageError for a scheduler
    that cannot be a sampler; for those that are put in later, when they are used.
    """

    _optional_components = [SCHEDULER]  # noqa: RUF012  # as in diffusers
    _callback_tensor_inputs = ["x0", "stage"]  # noqa: RUF012

    def __init__(
        self,
        text_encoder: BertModel,
        tokenizer: Any,
        dual_encoder: DualEncoder,
        prior: DiffusionPrior,
        decoder: EfficientUNet | UNet,
        super_res: EfficientUNet | UNet,
        scheduler: Any = None,
        *,
        index: Mapping[str, Any] | None = None,
        words: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            dual_encoder=dual_encoder,
            prior=prior,
            decoder=decoder,
            super_res=super_res,
            scheduler=scheduler,
        )
        self.register_to_config(index=dict(index or {}))
        self.words = words
        self._cascade()  # for its errors

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] = "storybook",
        *,
        dtype: torch.dtype = torch.float32,
        scheduler: Any = None,
    ) -> MmgenPipeline:
        """A pipeline on the CPU, from a bundled model or a checkpoint folder, as `mmgen.load` reads them.

        This is the way in: `DiffusionPipeline.from_pretrained` looks for classes in diffusers alone and does not find
        this one. scheduler: instead of the folder's own, if it has one. Raises ModelError for a folder that is no sound
        checkpoint. Nothing is fetched and no code of the folder is run.
        """
        checkpoint = locate(Path(pretrained_model_name_or_path), fetch=False, check=True)
        if checkpoint.is_joined or checkpoint.base.file:
            raise UsageError(f"{checkpoint.name} is no single folder: load it with mmgen.load")
        folder, index, family = checkpoint.base.folder, checkpoint.base.index, checkpoint.family
        if index["family"] in PUBLISHED.values():
            raise ModelError(
                f"{folder.name} has a pipeline of its own, {index['_class_name']}: load it with that class of "
                "diffusers, or with mmgen.load"
            )
        parts = {name: read_component(folder, name, index, dtype) for name in family.components}
        encoder = parts.pop("text_encoder")
        said = {k: v for k, v in index.items() if not k.startswith("_") and k not in family.components}
        return cls(
            encoder.model,
            encoder.tokenizer,
            **parts,
            scheduler=_read_scheduler(folder / SCHEDULER) if scheduler is None else scheduler,
            index=said,
            words=read_words(folder),
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write an ordinary checkpoint folder, with the sha256 of every file.

        Both `from_pretrained` and `mmgen.load` read it; `mmgen.load` draws with samplers and passes the scheduler by.
        Raises ModelError, before anything is written, for a component that could not be loaded again.
        """
        folder = Path(save_directory)
        if folder.exists() and any(folder.iterdir()):
            raise ModelError(f"{folder} is not empty: save into a new folder")
        self._cascade()
        if self.scheduler is not None:
            _scheduler_class(type(self.scheduler).__name__)
        super().save_pretrained(folder)
        options = dict(self.config.index)
        name, family = str(options.pop("name", folder.name)), options.pop("family")
        words = frozenset() if self.words is None else self.words
        write_checkpoint(folder, name=name, family=family, options=options, words=words)
        if self.words is None:
            # an empty vocabulary would say that the model knows no word
            (folder / VOCABULARY).unlink()
            write_manifest(folder)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x0", "stage"),
    ) -> Any:
        """Draw every prompt num_images_per_prompt times, all in one batch, prompt by prompt.

        height, width: a side that the model draws, its largest if None. num_inference_steps, guidance_scale: of the
        decoder, the family's own if None. negative_prompt: one text for all pictures.
        generator: the seed of each picture is drawn from its own generator, or from the only one, picture by picture;
        None: from torch's. So a picture of a batch is the one that its generator gives alone.
        output_type: "pil"; "pt", [B, 3, H, W]; "np", [B, H, W, 3]; these are float32 in [0, 1].
        callback_on_step_end: called as (pipe, step_index, timestep, callback_kwargs) after every step of every stage,
        as `mmgen.pipelines.notebook.step_end` says, with those of "x0" and "stage" that are asked for.
        Returns an ImagePipelineOutput, or the tuple (images,) without return_dict.
        Raises UsageError where a value cannot be meant, NonFiniteError if a network fails.
        """
        if output_type not in _SHOWN:
            raise UsageError(f"no output_type {output_type!r}: choose one of {', '.join(_SHOWN)}")
        prompts, negative = _texts(prompt, num_images_per_prompt), negative_prompt or ""
        check_prompt(negative, what="negative prompt", may_be_empty=True)
        views = [self._bars(), *self._callbacks(callback_on_step_end, callback_on_step_end_tensor_inputs)]
        cascade = self._cascade()
        largest = cascade.sizes[-1]
        size = (largest if width is None else width, largest if height is None else height)
        cascade = cascade.up_to(fitting_side(size, cascade.sizes, type(self).__name__))
        ours = self.scheduler.config.sampler if isinstance(self.scheduler, MmgenScheduler) else None
        settings = StageSettings(steps=num_inference_steps, sampler=ours, guidance_scale=guidance_scale)
        stages, seeds = cascade.resolve({"decoder": settings}), _seeds(generator, len(prompts))
        # `drain` is typed for results
        run: Any = cascade.run(Draft(prompts, negative), stages, seeds, Clock(self.device))
        draft: Any = drain(run, views)
        images = _SHOWN[output_type](draft.image)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _cascade(self) -> Cascade:
        """The components as they are now, joined as their family joins them."""
        index = self.config.index
        family = FAMILIES.get(index.get("family"))
        if family is None or family.join is None:
            raise ModelError(f"index is {index}: it must name its family, one of {', '.join(FAMILIES)}")
        for name, kinds in family.components.items():
            if tuple(self.config[name]) not in kinds:
                found, known = type(getattr(self, name)).__name__, " or ".join(kind for _, kind in kinds)
                raise ModelError(
                    f"component {name!r} is {found}, and could not be loaded again: give {known}"
                )
        if self.tokenizer is None:
            raise ModelError("component 'tokenizer' is missing: give that of the text encoder")
        parts = {name: getattr(self, name) for name in family.components}
        encoder = TextEncoder(self.text_encoder, self.tokenizer, layer=index.get("text_layer", -1))
        try:
            stages = family.join({**parts, "text_encoder": encoder}, index)
        except ValueError as error:
            raise ModelError(f"the components do not fit: {error}") from None
        if self.scheduler is None or isinstance(self.scheduler, MmgenScheduler):
            return Cascade(stages)
        return Cascade([self._scheduled(s) if isinstance(s, DecoderStage) else s for s in stages])

    def _scheduled(self, stage: DecoderStage) -> DecoderStage:
        """The same stage, which the scheduler takes from noise to picture."""
        return DecoderStage(
            stage.network,
            stage.defaults,
            uses_image_embed=stage.uses_image_embed,
            prior=stage.prior,
            by=adapted(self.scheduler),
        )

    def _bars(self) -> View:
        """A bar for each stage, as `set_progress_bar_config` says."""
        shown: dict[str, Any] = {}

        def show(step: Step) -> None:
            if step.stage not in shown:
                shown[step.stage] = self.progress_bar(total=step.total)
            shown[step.stage].update()
            if step.index == step.total:
                shown[step.stage].close()

        return show

    def _callbacks(self, callback: OnStepEnd | None, names: Sequence[str]) -> list[View]:
        if unknown := [name for name in names if name not in self._callback_tensor_inputs]:
            raise UsageError(
                f"callback_on_step_end_tensor_inputs has {unknown[0]!r}: "
                f"choose of {', '.join(self._callback_tensor_inputs)}"
            )
        if callback is None:
            return []
        asked = callback

        def called(_pipe: Any, index: int, t: float, given: dict[str, Any]) -> Mapping[str, Any] | None:
            return asked(self, index, t, {name: given[name] for name in names})

        return [step_end(self, called)]


def _shares(image: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], as diffusers has its pictures."""
    return (image / 2 + 0.5).clamp(0, 1)


_SHOWN: Mapping[str, Callable[[Tensor], Any]] = {
    "pil": to_pil,
    "np": lambda image: _shares(image).permute(0, 2, 3, 1).cpu().numpy(),
    "pt": _shares,
}


def _texts(prompt: str | Sequence[str], count: int) -> tuple[str, ...]:
    """Every prompt `count` times. Raises UsageError unless they can be drawn."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"num_images_per_prompt is {count!r}: draw at least one")
    if not isinstance(prompt, str | list | tuple) or not prompt:
        raise UsageError(f"prompt is {prompt!r}: say what to draw, in a text or a list of texts")
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    for text in prompts:
        check_prompt(text)
    return tuple(text for text in prompts for _ in range(count))


def _seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """One seed for each picture. Raises UsageError for a list of another length."""
    each: Sequence[torch.Generator | None]
    if generator is None or isinstance(generator, torch.Generator):
        each = [generator] * count
    elif isinstance(generator, list | tuple) and all(isinstance(one, torch.Generator) for one in generator):
        each = generator
    else:
        raise UsageError(
            f"generator is {generator!r}: give a torch.Generator, or a list with one for each picture"
        )
    if len(each) != count:
        raise UsageError(f"{len(each)} generators for {count} pictures: give one, or one for each")
    devices = ["cpu" if one is None else one.device for one in each]
    drawn = zip(each, devices, strict=True)
    return [int(torch.randint(MAX_SEED, (), generator=one, device=device)) for one, device in drawn]


def _read_scheduler(folder: Path) -> Any:
    """The scheduler of a checkpoint; None if it has none."""
    if not folder.is_dir():
        return None
    named = read_json(folder / SchedulerMixin.config_name).get("_class_name")
    return _scheduler_class(str(named)).from_pretrained(folder)


def _scheduler_class(name: str) -> Any:
    kind = MmgenScheduler if name == MmgenScheduler.__name__ else getattr(diffusers.schedulers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ModelError(
            f"scheduler {name!r} is not of diffusers, and could not be loaded again: "
            "leave it out of the folder, and give it to from_pretrained"
        )
    return kind
