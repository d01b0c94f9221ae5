"""Published folders of Karlo through our stages, beside the pipeline of diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip import UnCLIPPipeline, pipeline_unclip
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.schedulers import UnCLIPScheduler, scheduling_unclip
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.adapters import noise_of
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.families.family import limit_of
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.jobs import Job
from mmgen.render.windows import Budget
from mmgen.schedulers.schedules import cosine_betas
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import write_clip, write_deepfloyd
from tests.render.whole import (
    check_sampler,
    drawn,
    image_of,
    in_parts,
    is_read_per_turn,
    load,
    one_by_one,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red cat on the beach"
SMALL, SIDE, WIDTH = 8, 16, 32
STAGES = ("prior", "decoder", "super-res-16")
STEPS = {"prior": 5, "decoder": 5, "super-res-16": 3}
FAST = {name: StageSettings(steps=2) for name in STAGES}
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of pictures in [-1, 1]


def awakened(network: Any, seed: int, *, std: float | None = None) -> Any:
    """The network with weights that say something of all that it is told. std: of its matrices; None: as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, parameter in network.named_parameters():
            if parameter.dim() == 2 and std is not None:
                nn.init.normal_(parameter, std=std)
            elif not parameter.any() and "bias" not in name:
                nn.init.normal_(parameter, std=0.5)
    return network


def write_clip_with_projection(folder: Path, prefix: str = "") -> None:
    """The text encoder of `write_clip`, with a projection as wide as its tokens. prefix: of both folders."""
    write_clip(folder / "clip")
    config = CLIPTextConfig.from_pretrained(folder / "clip" / "text_encoder", projection_dim=WIDTH)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = awakened(CLIPTextModelWithProjection(config), 1, std=0.3)
    encoder.save_pretrained(folder / f"{prefix}text_encoder")
    shutil.move(folder / "clip" / "tokenizer", folder / f"{prefix}tokenizer")
    shutil.rmtree(folder / "clip")


def write_scheduler(folder: Path, name: str, **changes: Any) -> None:
    """As in the published folder, without the betas: its class knew no others."""
    UnCLIPScheduler(**changes).save_pretrained(folder / name)
    rewrite(folder / name / "scheduler_config.json", beta_schedule=None)


_SUPER_RES = {
    "sample_size": SIDE,
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
    "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "prior": (
        PriorTransformer,
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "embedding_dim": WIDTH,
            "num_embeddings": 40,
        },
    ),
    "decoder": (
        UNet2DConditionModel,
        {
            "sample_size": SMALL,
            "in_channels": 3,
            "out_channels": 6,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "cross_attention_dim": 24,
            "class_embed_type": "identity",
            "resnet_time_scale_shift": "scale_shift",
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        },
    ),
    "text_proj": (
        UnCLIPTextProjModel,
        {"clip_embeddings_dim": WIDTH, "time_embed_dim": 64, "cross_attention_dim": 24},
    ),
    "super_res_first": (UNet2DModel, _SUPER_RES),
    "super_res_last": (UNet2DModel, _SUPER_RES),
}


def write_network(folder: Path, name: str, **changes: Any) -> None:
    """One of NETWORKS. changes: of its configuration."""
    kind, config = NETWORKS[name]
    seed = list(NETWORKS).index(name) + 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(**{**config, **changes})
    if name in ("prior", "text_proj"):
        awakened(network, seed)
    if name == "prior":
        network.clip_std.data.fill_(0.7)
    network.save_pretrained(folder / name)


def write_prior(folder: Path) -> None:
    """`folder`/prior, with embeddings that are not of unit norm, and its scheduler."""
    write_network(folder, "prior")
    write_scheduler(folder, "prior_scheduler", prediction_type="sample", clip_sample_range=5.0)


def write_karlo(folder: Path, **changes: dict[str, Any]) -> Path:
    """A folder as Karlo is published: pictures of 8 and 16 px. changes: of the configurations of NETWORKS."""
    write_clip_with_projection(folder)
    write_prior(folder)
    write_scheduler(folder, "decoder_scheduler", variance_type="learned_range")
    write_scheduler(folder, "super_res_scheduler")
    for name in NETWORKS:
        write_network(folder, name, **changes.get(name, {}))
    index = {
        "_class_name": "UnCLIPPipeline",
        "_diffusers_version": "0.11.0.dev0",
        "decoder": ["diffusers", "UNet2DConditionModel"],
        "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
        "prior": ["diffusers", "PriorTransformer"],
        "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
        "super_res_first": ["diffusers", "UNet2DModel"],
        "super_res_last": ["diffusers", "UNet2DModel"],
        "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_proj": ["unclip", "UnCLIPTextProjModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    """Change a file; None takes a key out."""
    values = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), "utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_karlo(tmp_path_factory.mktemp("models") / "karlo")


def ours(
    pipe: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    **settings: StageSettings,
) -> Draft:
    """All in one batch. settings: by the stage's name, up to its first dash, over STEPS."""
    given = {
        name: settings.get(name.split("-")[0], StageSettings()).with_defaults(StageSettings(steps=steps))
        for name, steps in STEPS.items()
    }
    return drawn(pipe, prompts, seeds, negative, given)


class _Negative:
    """A tokenizer that reads a negative prompt where the pipeline, which knows none, says nothing."""

    def __init__(self, tokenizer: Any, negative: str) -> None:
        self._tokenizer, self._negative = tokenizer, negative
        self.model_max_length = tokenizer.model_max_length

    def __call__(self, texts: list[str], **options: Any) -> Any:
        return self._tokenizer([text or self._negative for text in texts], **options)


@pytest.fixture(scope="module")
def networks(folder: Path) -> dict[str, Any]:
    """Those of a pipeline of diffusers, whose own loader does not find all of them."""
    kinds: dict[str, Any] = {
        "prior": PriorTransformer,
        "decoder": UNet2DConditionModel,
        "text_encoder": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "text_proj": UnCLIPTextProjModel,
        "super_res_first": UNet2DModel,
        "super_res_last": UNet2DModel,
    }
    return {name: kind.from_pretrained(folder / name) for name, kind in kinds.items()}


def theirs(
    networks: dict[str, Any],
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str,
    of_prior: float,
    of_decoder: float,
    *,
    single: bool = False,
) -> Tensor:
    """The same by diffusers, with the noise that we begin with and add at every step.

    single: its schedulers' tables stay in float32, in which the share of x in the first step, 7e-5, is rounded to 0.
    """
    names = ("prior_scheduler", "decoder_scheduler", "super_res_scheduler")
    schedulers = {name: UnCLIPScheduler.from_pretrained(folder / name) for name in names}
    betas = torch.tensor(cosine_betas(), dtype=torch.float64)
    for scheduler in () if single else schedulers.values():
        scheduler.betas, scheduler.alphas = betas, 1 - betas
        scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    pipeline = UnCLIPPipeline(**networks, **schedulers)
    pipeline.tokenizer = _Negative(networks["tokenizer"], negative)
    pipeline.set_progress_bar_config(disable=True)
    streams = iter([Noise(seeds, name) for name in STAGES])
    current: list[Noise] = []

    def begin(shape: Sequence[int], **_: Any) -> Tensor:
        current[:] = [next(streams)]
        return current[0].draw(shape[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_unclip, "randn_tensor", begin)
        patch.setattr(scheduling_unclip, "randn_tensor", lambda shape, **_: current[0].draw(shape[1:]))
        images = pipeline(
            list(prompts),
            prior_num_inference_steps=STEPS["prior"],
            decoder_num_inference_steps=STEPS["decoder"],
            super_res_num_inference_steps=STEPS["super-res-16"],
            prior_guidance_scale=of_prior,
            decoder_guidance_scale=of_decoder,
            output_type="np",
        ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize(("of_prior", "of_decoder"), [(1.0, 1.0), (4.0, 8.0), (4.0, 1.0)])
@pytest.mark.parametrize("negative", ["", "snow at night"])
def test_pictures_are_those_of_diffusers(
    pipe: TextToImage,
    networks: dict[str, Any],
    folder: Path,
    negative: str,
    of_prior: float,
    of_decoder: float,
) -> None:
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    guided = {
        "prior": StageSettings(guidance_scale=of_prior),
        "decoder": StageSettings(guidance_scale=of_decoder),
    }
    mine = image_of(ours(pipe, *asked, **guided))
    other = theirs(networks, folder, *asked, of_prior, of_decoder)
    assert mine.std() > 0.05, "a grey picture says nothing"
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_pictures_are_nearly_those_of_diffusers_as_it_rounds(
    pipe: TextToImage, networks: dict[str, Any], folder: Path
) -> None:
    mine = image_of(ours(pipe, [PROMPT], [3]))
    other = theirs(networks, folder, [PROMPT], [3], "", 4.0, 8.0, single=True)
    difference = float((mine - other).abs().max())
    print("pictures differ by", difference)  # noqa: T201
    assert difference < 5e-3


def test_what_the_picture_depends_on(pipe: TextToImage) -> None:
    def one(prompt: str = PROMPT, negative: str = "", **settings: StageSettings) -> Tensor:
        return image_of(ours(pipe, [prompt], [3], negative, **settings))

    plain = one()
    assert torch.equal(plain, one(negative="  "))
    for other in (
        one("two dogs"),
        one(negative="snow"),
        one(prior=StageSettings(guidance_scale=1)),
        one(decoder=StageSettings(guidance_scale=1)),
        one(decoder=StageSettings(threshold=0.5)),
        one(super=StageSettings(steps=2)),
    ):
        assert not torch.allclose(plain, other, atol=1e-2)


def test_embeddings_are_in_the_units_of_clip(pipe: TextToImage, copy: Path) -> None:
    """Shifted and scaled as the prior's weights say, after a bound that its scheduler's file says."""
    rewrite(copy / "prior_scheduler" / "scheduler_config.json", clip_sample_range=0.1)
    far, near = (ours(model, [PROMPT, "two dogs"], [3, 5]).image_embed for model in (pipe, load(copy)))
    assert far is not None
    assert near is not None
    network = pipe.cascade.stages[1].networks[0]
    sizes = [((embed - network.clip_mean) / network.clip_std).abs().max() for embed in (far, near)]
    assert 0.5 < sizes[0] <= 5
    torch.testing.assert_close(sizes[1], torch.tensor(0.1))
    assert not torch.allclose(far.norm(dim=1), torch.ones(2), atol=0.1)


def test_an_embedding_that_is_there_stays(pipe: TextToImage) -> None:
    """The decoder then draws of it, and the prior takes no step."""
    given = torch.linspace(-1, 1, WIDTH)[None]
    stages = pipe.cascade.resolve(FAST)
    steps = list(pipe.cascade.run(Draft((PROMPT,), image_embed=given), stages, [3], Clock(CPU)))  # type: ignore[arg-type]
    assert [step.stage for step in steps] == ["decoder"] * 2 + ["super-res-16"] * 2


def test_the_last_step_is_taken_by_a_network_of_its_own(pipe: TextToImage) -> None:
    first, last = pipe.cascade.stages[-1].networks
    seen: list[str] = []
    hooks = [
        network.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, network in (("first", first), ("last", last))
    ]
    try:
        for sampler in ("ddpm", "heun", "dpmpp-2m", "DPMSolverMultistepScheduler"):
            for steps in (1, 3):
                seen.clear()
                ours(pipe, [PROMPT], [3], super=StageSettings(steps=steps, sampler=sampler))
                assert (seen.count("last"), seen[-1]) == (1, "last")
                assert ("first" in seen) == (steps > 1)
    finally:
        for hook in hooks:
            hook.remove()


def test_a_step_of_unclip_is_one_of_the_same_betas_as_ddpm() -> None:
    """The published files say neither betas nor spacing: their scheduler knows one of each."""
    theirs = UnCLIPScheduler(variance_type="learned_range")
    config = {k: v for k, v in theirs.config.items() if k != "beta_schedule"}
    schedule, kind = noise_of({"_class_name": "UnCLIPScheduler", **config})
    assert kind == "learned-range"
    torch.testing.assert_close(schedule.alpha_bar[1:].float(), theirs.alphas_cumprod, atol=1e-6, rtol=0)
    for steps in (2, 7, 25):
        theirs.set_timesteps(steps)
        assert schedule.times(steps).tolist() == [*theirs.timesteps.tolist(), -1]


@pytest.mark.parametrize(
    ("config", "limit"),
    [({}, 1.0), ({"clip_sample_range": 5}, 5.0), ({"clip_sample": False, "clip_sample_range": 5}, None)],
)
def test_the_limit_of_an_embedding(config: dict[str, Any], limit: float | None) -> None:
    assert limit_of({"_class_name": "UnCLIPScheduler", **config}) == limit


@pytest.mark.parametrize("value", [0, -1.0, "5", True, float("nan"), float("inf"), None])
def test_a_limit_that_is_none(value: Any) -> None:
    with pytest.raises(ModelError, match=r"clip_sample_range .*: it must be a positive number"):
        limit_of({"clip_sample": True, "clip_sample_range": value})


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    check_sampler(pipe, sampler, STAGES)


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = image_of(ours(pipe, prompts, seeds, "snow"))
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = image_of(ours(pipe, [prompt], [seed], "snow"))
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_defaults_are_the_familys(pipe: TextToImage, folder: Path) -> None:
    request = pipe.request(PROMPT, seeds=[3])
    assert request.stages == {
        "prior": StageSettings(steps=25, sampler="ddpm", guidance_scale=4.0),
        "decoder": StageSettings(steps=25, sampler="ddpm", guidance_scale=8.0, threshold="clip"),
        "super-res-16": StageSettings(steps=7, sampler="ddpm", threshold="clip"),
    }
    assert (pipe.stage_names, pipe.sizes) == (("text", *STAGES), (SMALL, SIDE))
    assert facts(folder).request(PROMPT, 3) == request
    for stage, settings in (
        ("super-res-16", StageSettings(noise_level=0.1)),
        ("prior", StageSettings(eta=1.0)),
    ):
        with pytest.raises(UsageError, match=f"stage {stage!r} does not take"):
            pipe.request(PROMPT, stages={stage: settings})


def test_small_pictures_are_drawn_without_the_last_stage(pipe: TextToImage) -> None:
    stages = {name: FAST[name] for name in STAGES[:2]}
    assert pipe(PROMPT, seeds=[3], size=SMALL, stages=stages).images[0].size == (SMALL, SMALL)


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], stages=FAST))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        (name, i, 2) for name in STAGES for i in (1, 2)
    ]
    sizes = [[picture.size for picture in step.preview()] for step in steps]
    assert sizes == [[]] * 2 + [[(SMALL, SMALL)]] * 2 + [[(SIDE, SIDE)]] * 2
    assert [step.t for step in steps[1::2]] == [0, 0, 0]


def test_half_precision_draws(folder: Path) -> None:
    model = mmgen.load(folder, "cpu", "bfloat16")
    dtypes = [network.dtype for stage in model.cascade.stages for network in stage.networks]
    assert dtypes == [torch.bfloat16] * 6
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


# ---- stage by stage ------------------------------------------------------------------------------


def jobs_of(pipe: TextToImage) -> list[Job]:
    small = {name: FAST[name] for name in STAGES[:2]}
    asked: list[tuple[str, str, Any, int]] = [
        (PROMPT, "", FAST, SIDE),
        ("two dogs", "snow", FAST, SIDE),
        ("a boat", "", {**small, "prior": StageSettings(steps=3)}, SMALL),
    ]
    return [
        Job(
            i,
            i,
            pipe.request(prompt, seeds=[i], negative_prompt=negative, stages=stages, size=size),
            f"{i}.png",
        )
        for i, (prompt, negative, stages, size) in enumerate(asked, 1)
    ]


def test_stage_by_stage_gives_the_same_bytes(pipe: TextToImage, folder: Path, tmp_path: Path) -> None:
    model, jobs = open_model(folder, "cpu", "float32"), jobs_of(pipe)
    assert together(jobs, model, tmp_path, budget=Budget(memory=0)) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    pipe: TextToImage, folder: Path, tmp_path: Path
) -> None:
    model, jobs = open_model(folder, "cpu", "float32"), jobs_of(pipe)
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, pipe)


def test_the_prior_of_another_folder(pipe: TextToImage, folder: Path, copy: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    write_network(other, "prior", num_layers=1)
    for name in ("prior", "prior_scheduler"):
        shutil.rmtree(copy / name)
        shutil.copytree(other / name, copy / name)
    models = (pipe, load(copy), load(Path(f"{folder}?prior={other}")))
    own, swapped, joined = (model(PROMPT, seeds=[3], stages=FAST).images[0].tobytes() for model in models)
    assert joined == swapped
    assert joined != own


def test_its_super_resolution_above_another_model(folder: Path, tmp_path: Path) -> None:
    """It is told nothing of what the picture shows, so that it enlarges the pictures of any model."""
    base = write_deepfloyd(tmp_path / "if", sample_size=8)
    model = load(Path(f"{base}?upscaler={folder}"))
    assert (model.stage_names, model.sizes) == (("text", "decoder", "super-res-16"), (8, 16))
    large = model(PROMPT, seeds=[3], stages={name: FAST[name] for name in STAGES[1:]}).images[0]
    assert large.size == (16, 16)
    assert np.asarray(large).std() > 1
    with pytest.raises(ModelError, match="draws pictures of 16 px, and those before have 16 already"):
        load(Path(f"{write_deepfloyd(tmp_path / 'same')}?upscaler={folder}"))


# ---- commands ------------------------------------------------------------------------------------


def test_the_commands_take_such_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out = tmp_path / "cat.png"
    given = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--steps", "3", "--seed", "3"]
    run("generate", PROMPT, "--out", str(out), "--negative", "snow", *given)
    request = read_metadata(out)["request"]
    assert request is not None
    assert load(folder).run(request).images[0].tobytes() == inputs.open_picture(out).tobytes()
    said = run("models", "info", str(folder))
    assert all(name in said for name in ("UnCLIPTextProjModel", "PriorTransformer", "super_res_last"))
    assert run("models", "verify", str(folder))
    assert verify(folder) == []
    assert describe(folder)["family"] == "karlo"


def test_what_it_cannot_do_is_said(pipe: TextToImage) -> None:
    picture = Image.new("RGB", (32, 32))
    with pytest.raises(UsageError, match="cannot begin with a picture"):
        pipe.edit(picture, PROMPT, seeds=[3])
    with pytest.raises(UsageError, match="draws from texts alone"):
        pipe.vary(picture)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["unclip", "diffusers", "diffusers.pipelines.deprecated.unclip.text_proj"])
def test_a_class_that_moved_is_known_by_all_its_names(copy: Path, module: str) -> None:
    rewrite(copy / "model_index.json", text_proj=[module, "UnCLIPTextProjModel"])
    assert facts(copy).sides == (SMALL, SIDE)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"text_proj": ["os", "UnCLIPTextProjModel"]},
            r"component 'text_proj' is \['os', 'UnCLIPTextProjModel'\]",
        ),
        ({"text_proj": ["unclip", "UnCLIPPipeline"]}, "component 'text_proj' is"),
        ({"prior": ["os", "system"]}, r"component 'prior' is \['os', 'system'\]"),
        ({"prior_scheduler": None}, "does not name 'prior_scheduler'"),
        ({"_class_name": "UnCLIPImageVariationPipeline"}, "is of class 'UnCLIPImageVariationPipeline'"),
    ],
)
def test_an_index_that_names_something_else(copy: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(copy / "model_index.json", **changes)
    for read in (load, facts):
        with pytest.raises(ModelError, match=says):
            read(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"prior": {"embedding_dim": 24, "embedding_proj_dim": 32}},
            "prior has embedding_dim 24, but the text enc",
        ),
        ({"prior": {"embedding_proj_dim": 24}}, "prior has embedding_proj_dim 24, but the text encoder"),
        (
            {"prior": {"num_embeddings": 77}},
            "prior has num_embeddings 77, but the text encoder before it has 40",
        ),
        (
            {"prior": {"clip_embed_dim": 24}},
            "prior has clip_embed_dim 24: a prior that draws from texts has 32",
        ),
        ({"prior": {"added_emb_type": None}}, "prior has added_emb_type None"),
        (
            {"decoder": {"out_channels": 3}},
            "decoder has out_channels 3, but beside the other parts it must be 6",
        ),
        ({"decoder": {"in_channels": 4}}, "decoder has in_channels 4"),
        ({"decoder": {"class_embed_type": "timestep"}}, "decoder has class_embed_type 'timestep'"),
        ({"decoder": {"cross_attention_dim": 32}}, "text_proj has cross_attention_dim 24"),
        ({"text_proj": {"time_embed_dim": 32}}, "text_proj has time_embed_dim 32"),
        ({"text_proj": {"clip_embeddings_dim": 24}}, "text_proj has clip_embeddings_dim 24"),
        ({"super_res_last": {"in_channels": 3}}, "super_res_last has in_channels 3"),
        ({"super_res_last": {"sample_size": 32}}, "super_res_last has sample_size 32"),
    ],
)
def test_parts_that_do_not_fit_each_other(copy: Path, changes: dict[str, Any], says: str) -> None:
    for name, fields in changes.items():
        write_network(copy, name, **fields)
    with pytest.raises(ModelError, match=says):
        load(copy)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("prior_scheduler", {"clip_sample_range": "x"}, "clip_sample_range 'x'"),
        ("prior_scheduler", {"variance_type": "learned_range"}, "variance_type 'learned_range' with"),
        ("decoder_scheduler", {"variance_type": "fixed_small_log"}, "decoder has out_channels 6"),
        ("super_res_scheduler", {"prediction_type": "x"}, "prediction_type 'x'"),
        ("super_res_scheduler", {"clip_sample": False}, "super_res_scheduler keeps x0 within None"),
        ("decoder_scheduler", {"clip_sample_range": 2.0}, "decoder_scheduler keeps x0 within 2"),
        ("super_res_scheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000"),
    ],
)
def test_schedulers_that_say_something_else(
    copy: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    rewrite(copy / name / "scheduler_config.json", **changes)
    with pytest.raises(ModelError, match=says):
        load(copy)


def test_a_side_that_is_no_number(copy: Path) -> None:
    rewrite(copy / "super_res_first" / "config.json", sample_size=[16, 16])
    for read in (load, facts):
        with pytest.raises(ModelError, match=r"super_res_first/config\.json: sample_size is \[16, 16\]"):
            read(copy)


def test_a_mask_that_takes_all_memory(copy: Path) -> None:
    """It is as large as the square of the number of tokens, and no file has to hold it."""
    sizes = {"num_attention_heads": 1, "attention_head_dim": 2, "num_embeddings": 10_000}
    rewrite(copy / "prior" / "config.json", **sizes)
    with torch.device("meta"):
        outline = PriorTransformer(**{**NETWORKS["prior"][1], **sizes})
    tensors = {name: torch.ones(value.shape) for name, value in outline.state_dict().items()}
    save_file(tensors, copy / "prior" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        ModelError, match=r"prior/config\.json describes a network with tables of 400,320,064 bytes"
    ):
        load(copy)
