"""Published folders of Stable unCLIP through our stages, beside the pipeline of diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import pipeline_stable_unclip
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.clock import Clock
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.windows import Budget
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import BETAS, write_stable_diffusion
from tests.pipelines.test_karlo import WIDTH, rewrite, write_clip_with_projection, write_prior
from tests.render.whole import (
    check_sampler,
    drawn,
    image_of,
    in_parts,
    is_read_per_turn,
    load,
    one_by_one,
    three_jobs,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red cat on the beach"
STEPS, SIDE = 5, 16  # DDIM of diffusers misses its own next step where 1000 is no multiple of the steps
FAST = {name: StageSettings(steps=2) for name in ("prior", "decoder")}
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of pictures in [-1, 1]; of latents relative to the largest


def write_decoder(folder: Path, *, normalizer: int = WIDTH, **unet: Any) -> None:
    """Make the U-Net of a folder one that is told embeddings, and write what normalises these.

    normalizer: width of its embeddings. unet: changes of its configuration.
    """
    old = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = UNet2DConditionModel(
            **{
                **{k: v for k, v in old.items() if not k.startswith("_")},
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": 2 * WIDTH,
                **unet,
            }
        )
        scale = StableUnCLIPImageNormalizer(normalizer)
        scale.mean.data.normal_()
        scale.std.data.uniform_(0.5, 2)
    network.save_pretrained(folder / "unet")
    scale.save_pretrained(folder / "image_normalizer")


def write_stable_unclip(folder: Path) -> Path:
    """A folder as diffusers publishes Stable unCLIP: pictures of 16 px from latents of 8."""
    write_stable_diffusion(folder)
    write_clip_with_projection(folder, "prior_")
    write_prior(folder)
    write_decoder(folder)
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    of_prior = {"prediction_type": "sample", "variance_type": "fixed_small_log", "clip_sample_range": 5.0}
    DDPMScheduler(**cosine, **of_prior).save_pretrained(folder / "prior_scheduler")
    DDPMScheduler(**cosine).save_pretrained(folder / "image_noising_scheduler")
    ddim = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    ddim.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableUnCLIPPipeline",
        "_diffusers_version": "0.15.0.dev0",
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
        "prior": ["diffusers", "PriorTransformer"],
        "prior_scheduler": ["diffusers", "DDPMScheduler"],
        "prior_text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "prior_tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_stable_unclip(tmp_path_factory.mktemp("models") / "unclip")


def ours(
    pipe: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    *,
    prior: float = 4.0,
    **settings: Any,
) -> Draft:
    """All in one batch. prior: its guidance. settings: of the decoder."""
    stages = {
        "prior": StageSettings(steps=STEPS, guidance_scale=prior),
        "decoder": StageSettings(**{"steps": STEPS, "sampler": "ddim", **settings}),
    }
    return drawn(pipe, prompts, seeds, negative, stages)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """That of diffusers."""
    found = StableUnCLIPPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def theirs(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str,
    prior: float,
    decoder: float,
    noise_level: int,
) -> tuple[Tensor, Tensor]:
    """Latents and pictures by diffusers, with the noise that we begin with and add.

    It draws in this order: the prior's noise, what is added to the embedding, and the decoder's.
    """
    of_prior, of_decoder = Noise(seeds, "prior"), Noise(seeds, "decoder")
    streams = iter([of_prior, of_decoder, of_decoder])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipeline_stable_unclip, "randn_tensor", lambda shape, **_: next(streams).draw(shape[1:])
        )
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: of_prior.draw(shape[1:]))
        latent = pipeline(
            list(prompts),
            negative_prompt=[negative] * len(prompts),
            prior_num_inference_steps=STEPS,
            num_inference_steps=STEPS,
            prior_guidance_scale=prior,
            guidance_scale=decoder,
            noise_level=noise_level,
            output_type="latent",
        ).images
    with torch.no_grad():
        image = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return latent, image.clamp(-1, 1)


@pytest.mark.parametrize(
    ("prior", "decoder", "noise_level"), [(1.0, 1.0, 0), (4.0, 10.0, 0), (4.0, 10.0, 250), (4.0, 1.0, 999)]
)
@pytest.mark.parametrize("negative", ["", "snow at night"])
def test_pictures_are_those_of_diffusers(
    pipe: TextToImage, pipeline: Any, negative: str, prior: float, decoder: float, noise_level: int
) -> None:
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    mine = ours(pipe, *asked, prior=prior, guidance_scale=decoder, noise_level=noise_level / 1000)
    latent, image = theirs(pipeline, *asked, prior, decoder, noise_level)
    assert image.std() > 0.05, "a grey picture says nothing"
    assert mine.latent is not None
    differences = (
        float((mine.latent - latent).abs().max() / latent.abs().max()),
        float((image_of(mine) - image).abs().max()),
    )
    print("latents and pictures differ by", differences)  # noqa: T201
    assert max(differences) < TOLERANCE


def test_what_the_picture_depends_on(pipe: TextToImage) -> None:
    def one(prompt: str = PROMPT, negative: str = "", **settings: Any) -> Draft:
        return ours(pipe, [prompt], [3], negative, **settings)

    plain = one()
    assert torch.equal(image_of(plain), image_of(one(negative="  ")))
    for other in (one("two dogs"), one(negative="snow"), one(guidance_scale=1), one(noise_level=0.5)):
        assert not torch.allclose(image_of(plain), image_of(other), atol=1e-3)
    # a negative prompt is the decoder's alone
    assert torch.equal(plain.image_embed, one(negative="snow").image_embed)  # type: ignore[arg-type]
    assert not torch.allclose(plain.image_embed, one(prior=1.0).image_embed, atol=1e-3)  # type: ignore[arg-type]


def test_the_embedding_decides(pipe: TextToImage) -> None:
    """Of one text and one seed, other embeddings are other pictures."""
    stages = pipe.cascade.resolve(FAST)
    images = [
        image_of(finish(pipe.cascade.run(Draft((PROMPT,), image_embed=embed), stages, [3], Clock(CPU))))  # type: ignore[arg-type]
        for embed in (torch.zeros(1, WIDTH), torch.full((1, WIDTH), 2.0))
    ]
    assert not torch.allclose(*images, atol=1e-3)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "PNDMScheduler", "UniPCMultistepScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    check_sampler(pipe, sampler, FAST)


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = image_of(ours(pipe, prompts, seeds, "snow", noise_level=0.2))
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = image_of(ours(pipe, [prompt], [seed], "snow", noise_level=0.2))
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_defaults_are_the_familys(pipe: TextToImage, folder: Path) -> None:
    request = pipe.request(PROMPT, seeds=[3])
    assert request.stages == {
        "prior": StageSettings(steps=25, sampler="ddpm", guidance_scale=4.0),
        "decoder": StageSettings(steps=20, sampler="dpmpp-2m", guidance_scale=10.0, noise_level=0.0),
    }
    assert (pipe.stage_names, pipe.sizes) == (("prior-text", "prior", "text", "decoder", "vae"), (SIDE,))
    assert facts(folder).request(PROMPT, 3) == request
    with pytest.raises(UsageError, match="stage 'decoder' does not take threshold"):
        pipe.request(PROMPT, stages={"decoder": StageSettings(threshold=0.9)})


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], stages=FAST))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *((name, i, 2) for name in FAST for i in (1, 2)),
        ("vae", 1, 1),
    ]
    sizes = [[picture.size for picture in step.preview()] for step in steps]
    assert sizes == [[]] * 2 + [[(8, 8)]] * 2 + [[(SIDE, SIDE)]]


def test_half_precision_draws(folder: Path) -> None:
    model = mmgen.load(folder, "cpu", "bfloat16")
    kinds = [next(n.parameters()).dtype for stage in model.cascade.stages for n in stage.networks]
    assert kinds == [torch.bfloat16] * 5 + [torch.float32]
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


# ---- stage by stage ------------------------------------------------------------------------------


def test_stage_by_stage_gives_the_same_bytes(pipe: TextToImage, folder: Path, tmp_path: Path) -> None:
    model = open_model(folder, "cpu", "float32")
    jobs = three_jobs(pipe, FAST, {**FAST, "decoder": StageSettings(steps=3, noise_level=0.3)})
    assert together(jobs, model, tmp_path, budget=Budget(memory=0)) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    pipe: TextToImage, folder: Path, tmp_path: Path
) -> None:
    model = open_model(folder, "cpu", "float32")
    jobs = three_jobs(pipe, FAST, {**FAST, "decoder": StageSettings(steps=3, noise_level=0.3)})
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, pipe)


# ---- with the prior of another folder ------------------------------------------------------------

OF_PRIOR = ("prior", "prior_scheduler", "prior_text_encoder", "prior_tokenizer")


def apart(folder: Path, out: Path) -> tuple[Path, Path]:
    """The decoder as it is published alone, and its prior in a folder of Karlo, as much as there is of it."""
    decoder, karlo = (Path(shutil.copytree(folder, out / name)) for name in ("decoder", "karlo"))
    image = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"], "prior": None}
    others = dict.fromkeys(OF_PRIOR[1:])
    rewrite(decoder / "model_index.json", _class_name="StableUnCLIPImg2ImgPipeline", **image, **others)
    for name in OF_PRIOR:
        shutil.rmtree(decoder / name)
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(karlo / name)
        (karlo / f"prior_{name}").rename(karlo / name)
    changes = {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}
    gone = ("prior_text_encoder", "prior_tokenizer", "unet", "vae", "image_normalizer")
    rewrite(karlo / "model_index.json", _class_name="UnCLIPPipeline", **changes, **dict.fromkeys(gone))
    return decoder, karlo


def test_a_decoder_alone_takes_the_prior_of_another_folder(
    pipe: TextToImage, folder: Path, tmp_path: Path
) -> None:
    decoder, karlo = apart(folder, tmp_path)
    joined = Path(f"{decoder}?prior={karlo}")
    one, other = (model(PROMPT, seeds=[3], stages=FAST).images[0].tobytes() for model in (pipe, load(joined)))
    assert one == other
    assert facts(joined).sides == (SIDE,)
    with pytest.raises(UsageError, match=r"decoder has no 'prior': .* with --prior"):
        load(decoder)


def test_a_prior_of_other_embeddings_does_not_fit(folder: Path, tmp_path: Path) -> None:
    decoder, _ = apart(folder, tmp_path)
    write_decoder(decoder, normalizer=24)
    with pytest.raises(ModelError, match="image_normalizer has embedding_dim 24, but beside the other parts"):
        load(Path(f"{decoder}?prior={folder}"))


# ---- commands, and what is refused ---------------------------------------------------------------


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
    assert all(name in said for name in ("StableUnCLIPImageNormalizer", "prior_text_encoder"))
    assert verify(folder) == []
    assert describe(folder)["family"] == "stable-unclip"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_normalizer": ["os", "StableUnCLIPImageNormalizer"]}, "component 'image_normalizer' is"),
        ({"image_noising_scheduler": None}, "does not name 'image_noising_scheduler'"),
        ({"prior_text_encoder": ["transformers", "CLIPTextModel"]}, "component 'prior_text_encoder' is"),
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
            {"normalizer": 24},
            "image_normalizer has embedding_dim 24, but beside the other parts it must be 32",
        ),
        ({"class_embed_type": None}, "unet has class_embed_type None, but"),
        ({"projection_class_embeddings_input_dim": 32}, "unet has projection_class_embeddings_input_dim 32"),
        ({"cross_attention_dim": 24}, "unet has cross_attention_dim 24, but the text encoder has 32"),
        ({"in_channels": 8}, "unet has in_channels 8, but the VAE has 4"),
    ],
)
def test_parts_that_do_not_fit_each_other(copy: Path, changes: dict[str, Any], says: str) -> None:
    write_decoder(copy, **changes)
    with pytest.raises(ModelError, match=says):
        load(copy)
