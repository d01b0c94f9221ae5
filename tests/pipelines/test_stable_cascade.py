"""Published folders of Stable Cascade through our stages, beside the two pipelines of diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.stable_cascade import pipeline_stable_cascade, pipeline_stable_cascade_prior
from diffusers.schedulers import scheduling_ddpm_wuerstchen
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.noise import Noise
from mmgen.pipelines import vae_stage
from mmgen.pipelines.catalogue import describe, facts, verify
from mmgen.pipelines.families.stable_cascade_stages import PaellaStage, WuerstchenSchedule, paella_colours
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.windows import Budget
from mmgen.schedulers.prediction import Prediction
from mmgen.schedulers.samplers import Step, sampler
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import awake, rewrite, write_clip
from tests.render.whole import (
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
SIDE, WIDTH, POOLED = 32, 32, 24  # of the pictures, from maps of 4 and latents of 8; of a text
STEPS = 4
FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=2)}
CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of pictures in [-1, 1]; of latents relative to the largest
UNET = {
    "conditioning_dim": 16,
    "block_out_channels": (16, 32),
    "num_attention_heads": (2, 2),
    "down_num_layers_per_block": (1, 1),
    "up_num_layers_per_block": (1, 1),
    "clip_text_pooled_in_channels": POOLED,
}
PRIOR = {
    **UNET,
    "in_channels": 16,
    "out_channels": 16,
    "clip_text_in_channels": WIDTH,
    "clip_image_in_channels": 20,
    "switch_level": (False,),
}
DECODER = {
    **UNET,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "effnet_in_channels": 16,
    "pixel_mapper_in_channels": 3,
    "up_blocks_repeat_mappers": (2, 1),
    "block_types_per_layer": (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    ),
    "timestep_conditioning_type": ("sca",),
}
# Its scale keeps pictures of random latents, which grow large, within what can be seen.
VQGAN = {"bottleneck_blocks": 1, "embed_dim": 16, "num_vq_embeddings": 8, "scale_factor": 0.01}


def write_stable_cascade(folder: Path, *, scaler: float = 1.0) -> tuple[Path, Path]:
    """Two folders as diffusers publishes Stable Cascade: of the decoder and of the prior. Pictures of 32 px."""
    write_clip(folder / "clip")
    text = CLIPTextConfig.from_pretrained(folder / "clip" / "text_encoder", projection_dim=POOLED)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=20,
    )  # fmt: skip
    both = {
        "text_encoder": awake(lambda: CLIPTextModelWithProjection(text)),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "clip" / "tokenizer"),
        "scheduler": DDPMWuerstchenScheduler(scaler=scaler),
    }
    StableCascadePriorPipeline(
        prior=awake(lambda: StableCascadeUNet(**PRIOR)),
        image_encoder=awake(lambda: CLIPVisionModelWithProjection(vision)),
        feature_extractor=CLIPImageProcessor(size=8, crop_size=8),
        resolution_multiple=256,
        **both,
    ).save_pretrained(folder / "prior")
    StableCascadeDecoderPipeline(
        decoder=awake(lambda: StableCascadeUNet(**DECODER)),
        vqgan=random_vqgan(),
        latent_dim_scale=2.0,
        **both,
    ).save_pretrained(folder / "decoder")
    rewrite(folder / "decoder" / "model_index.json", vqgan=["wuerstchen", "PaellaVQModel"])
    return folder / "decoder", folder / "prior"


def random_vqgan() -> Any:
    vqgan = awake(lambda: PaellaVQModel(**VQGAN))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in vqgan.named_parameters():
            if name.endswith("gammas"):  # fresh ones are zeros, and leave their blocks out
                nn.init.normal_(parameter, std=0.3)
        nn.init.constant_(vqgan.out_block[0].bias, 0.5)  # grey: pictures lie in [0, 1]
    return vqgan


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Decoder and prior, to be read, never to be changed."""
    return write_stable_cascade(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copies(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """To be changed at will."""
    decoder, prior = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders)
    return decoder, prior


@pytest.fixture(scope="module")
def pipe(folders: tuple[Path, Path]) -> TextToImage:
    return load(both(folders))


@pytest.fixture(scope="module")
def pipelines(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    return theirs_of(folders)


def theirs_of(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    """Those of diffusers: decoder and prior. It no longer finds the VQ by its published name: part by part."""
    parts = {
        "decoder": StableCascadeUNet,
        "tokenizer": CLIPTokenizer,
        "text_encoder": CLIPTextModelWithProjection,
        "scheduler": DDPMWuerstchenScheduler,
        "vqgan": PaellaVQModel,
    }
    read = {name: kind.from_pretrained(folders[0] / name) for name, kind in parts.items()}
    found = (
        StableCascadeDecoderPipeline(**read, latent_dim_scale=2.0),
        StableCascadePriorPipeline.from_pretrained(folders[1]),
    )
    for pipeline in found:
        pipeline.set_progress_bar_config(disable=True)
    return found


def both(folders: tuple[Path, Path]) -> Path:
    """The decoder with its prior, as a model is given."""
    return Path("{}?prior={}".format(*folders))


def ours(
    pipe: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    *,
    prior: float = 4.0,
    decoder: float = 1.0,
) -> Draft:
    """All in one batch. prior, decoder: their guidance."""
    stages = {
        "prior": StageSettings(steps=STEPS, guidance_scale=prior),
        "decoder": StageSettings(steps=STEPS, guidance_scale=decoder),
    }
    return drawn(pipe, prompts, seeds, negative, stages)


def theirs(
    pipelines: tuple[Any, Any],
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str,
    prior: float,
    decoder: float,
) -> Draft:
    """The same by diffusers, with the noise that we begin with and add at every step."""
    streams = Noise(seeds, "prior"), Noise(seeds, "decoder")
    drawing: list[Noise] = []
    seen: list[Tensor] = []

    def watch(_pipe: Any, _index: int, _t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(values["latents"])
        return values

    told = {
        "prompt": list(prompts),
        "negative_prompt": [negative] * len(prompts),
        "num_inference_steps": STEPS,
        "output_type": "pt",
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline_stable_cascade, pipeline_stable_cascade_prior, scheduling_ddpm_wuerstchen):
            patch.setattr(module, "randn_tensor", lambda shape, **_: drawing[-1].draw(shape[1:]))
        drawing.append(streams[0])
        embed = pipelines[1](guidance_scale=prior, **told).image_embeddings
        drawing.append(streams[1])
        image = pipelines[0](embed, guidance_scale=decoder, callback_on_step_end=watch, **told).images
    return Draft(tuple(prompts), image_embed=embed, latent=seen[-1], image=2 * image - 1)


def differences(mine: Draft, other: Draft) -> dict[str, float]:
    """Of what the prior drew and of latents relative to the largest, and of pictures."""
    image = image_of(other)
    assert image.std() > 0.05, "a grey picture says nothing"
    assert (image.abs() == 1).float().mean() < 0.2, "what is cut off says nothing"
    found = {"image": float((image_of(mine) - image).abs().max())}
    for name in ("image_embed", "latent"):
        one, two = getattr(mine, name), getattr(other, name)
        found[name] = float((one - two).abs().max() / two.abs().max())
    print("they differ by", found)  # noqa: T201
    return found


@pytest.mark.parametrize(("prior", "decoder"), [(4.0, 1.0), (1.0, 1.0), (4.0, 1.1)])
@pytest.mark.parametrize("negative", ["", "snow at night"])
def test_pictures_are_those_of_diffusers(
    pipe: TextToImage, pipelines: tuple[Any, Any], negative: str, prior: float, decoder: float
) -> None:
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    mine = ours(pipe, *asked, prior=prior, decoder=decoder)
    other = theirs(pipelines, *asked, prior, decoder)
    assert max(differences(mine, other).values()) < TOLERANCE


@pytest.mark.parametrize(("scaler", "s"), [(1.0, 0.008), (2.0, 0.008), (0.5, 0.02)])
def test_the_schedule_is_that_of_diffusers(scaler: float, s: float) -> None:
    ours, theirs = WuerstchenSchedule(scaler, s), DDPMWuerstchenScheduler(scaler, s)
    t = ours.times(20)
    found, expected = ours.alpha(t).square(), theirs._alpha_cumprod(t.float(), CPU)
    assert (float(found[-1]), float(ours.sigma(t[-1]))) == (1.0, 0.0)  # and theirs ends a little before
    torch.testing.assert_close(found[:-1].float(), expected[:-1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.alpha(t) ** 2 + ours.sigma(t) ** 2, torch.ones_like(t))
    betas = torch.tensor(ours.betas(), dtype=torch.float64)
    assert betas.shape == (1000,)
    assert bool(((betas > 0) & (betas < 1)).all())
    assert float((1 - betas).prod()) == pytest.approx(float(found[0]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_pass_where_noise_does_not_fall(name: str) -> None:
    """Of 400 steps the first three are at the noisiest level."""
    schedule, x = WuerstchenSchedule(), torch.ones(1, 1)

    def denoise(x_t: Tensor, _t: Tensor, _s: Tensor) -> Prediction:
        return Prediction(torch.full_like(x_t, 0.25))

    last: Step | None = None
    for last in sampler(name)(denoise, x, schedule.times(400), schedule, Noise([3])):
        assert bool(torch.isfinite(last.x).all())
    assert last is not None
    torch.testing.assert_close(last.x, torch.full_like(x, 0.25))


def test_the_scheduler_bends_the_schedule(tmp_path: Path) -> None:
    folders = write_stable_cascade(tmp_path, scaler=2.0)
    asked = ([PROMPT], [3], "")
    mine, other = ours(load(both(folders)), *asked), theirs(theirs_of(folders), *asked, 4.0, 1.0)
    assert max(differences(mine, other).values()) < TOLERANCE


def test_what_the_picture_depends_on(pipe: TextToImage) -> None:
    plain, blank = (ours(pipe, [PROMPT], [3], negative) for negative in ("", "  "))
    assert torch.equal(image_of(plain), image_of(blank))
    for other in (
        ours(pipe, ["two dogs"], [3]),
        ours(pipe, [PROMPT], [5]),
        ours(pipe, [PROMPT], [3], "snow"),
        ours(pipe, [PROMPT], [3], prior=1.0),
        ours(pipe, [PROMPT], [3], decoder=1.1),
    ):
        assert not torch.allclose(image_of(plain), image_of(other), atol=1e-3)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler", "UniPCMultistepScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    for steps in (1, 3):
        settings = StageSettings(sampler=sampler, steps=steps)  # type: ignore[arg-type]
        stages = {"prior": settings, "decoder": settings}
        once, again = (pipe(PROMPT, seeds=[3], stages=stages).images[0] for _ in range(2))
        assert once.size == (SIDE, SIDE)
        assert np.asarray(once).std() > 1
        assert once.tobytes() == again.tobytes()


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = image_of(ours(pipe, prompts, seeds, "snow"))
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = image_of(ours(pipe, [prompt], [seed], "snow"))
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_defaults_are_the_familys(pipe: TextToImage, folders: tuple[Path, Path]) -> None:
    request = pipe.request(PROMPT, seeds=[3])
    assert request.stages == {
        "prior": StageSettings(steps=20, sampler="ddpm", guidance_scale=4.0),
        "decoder": StageSettings(steps=10, sampler="ddpm", guidance_scale=1.0),
    }
    assert (pipe.stage_names, pipe.sizes) == (("text", "prior", "decoder", "vae"), (SIDE,))
    assert facts(both(folders)).request(PROMPT, 3) == request
    for name, value in (("threshold", 0.9), ("timesteps", "fast27")):
        with pytest.raises(UsageError, match=f"stage 'prior' does not take {name}"):
            pipe.request(PROMPT, stages={"prior": StageSettings(**{name: value})})


def test_every_step_can_be_looked_at(pipe: TextToImage) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], stages=FAST))
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *((name, i, 2) for name in FAST for i in (1, 2)),
        ("vae", 1, 1),
    ]
    sizes = [[picture.size for picture in step.preview()] for step in steps]
    assert sizes == [[]] * 2 + [[(8, 8)]] * 2 + [[(SIDE, SIDE)]]


def test_half_precision_draws(folders: tuple[Path, Path]) -> None:
    model = mmgen.load(both(folders), "cpu", "bfloat16")
    networks = [network for stage in model.cascade.stages for network in stage.networks]
    assert [next(network.parameters()).dtype for network in networks] == [torch.bfloat16] * 4
    stages = {**FAST, "decoder": StageSettings(steps=2, guidance_scale=1.1)}
    picture = model(PROMPT, seeds=[3], negative_prompt="snow", stages=stages).images[0]
    assert np.asarray(picture).std() > 1


def test_colours_are_those_that_the_vq_means(pipe: TextToImage) -> None:
    vqgan: Any = pipe.cascade.stages[-1].networks[0]
    found = paella_colours(vqgan)
    assert found is not None
    shown = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    with torch.no_grad():
        latent = vqgan.encode((shown[:, :, None, None].expand(-1, -1, SIDE, SIDE) + 1) / 2).latents
    told = latent.mean((2, 3)) / vqgan.config.scale_factor @ found[:-1] + found[-1]
    assert (told - shown).square().mean() < 0.5 * shown.square().mean()


def test_the_picture_is_decoded_in_squares(pipe: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_stage, "MIN_SQUARE", 32)
    monkeypatch.setattr(vae_stage, "OVERLAP", 24)
    vqgan: Any = pipe.cascade.stages[-1].networks[0]
    stage = PaellaStage(vqgan, size=64)
    latent = 100 * Noise([3, 5]).draw((4, 16, 16))

    def decoded(stage: vae_stage.VaeStage) -> Tensor:
        return image_of(
            finish(stage.run(Draft(("", ""), latent=latent), StageSettings(), Noise([3, 5], "vae")))
        )

    smaller = stage.smaller()
    assert type(smaller) is PaellaStage
    whole, squares = decoded(stage), decoded(smaller)
    with torch.no_grad():
        expected = 2 * vqgan.decode(latent * vqgan.config.scale_factor).sample.clamp(0, 1) - 1
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)
    assert squares.shape == whole.shape == (2, 3, 64, 64)
    assert (squares - whole).abs().mean() < 0.5 * whole.std()


# ---- stage by stage ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Budget(), Budget(memory=0)])
def test_stage_by_stage_gives_the_same_bytes(
    pipe: TextToImage, folders: tuple[Path, Path], tmp_path: Path, budget: Budget
) -> None:
    model = open_model(both(folders), "cpu", "float32")
    jobs = three_jobs(pipe, FAST, {**FAST, "decoder": StageSettings(steps=3, guidance_scale=1.1)})
    assert together(jobs, model, tmp_path, budget=budget) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    pipe: TextToImage, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model, jobs = open_model(both(folders), "cpu", "float32"), three_jobs(pipe, FAST)
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, pipe)


# ---- the command line, and what is refused -------------------------------------------------------


def test_the_commands_take_such_folders(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out, (decoder, prior) = tmp_path / "cat.png", folders
    given = ["--model", str(decoder), "--prior", str(prior), "--dtype", "float32", "--device", "cpu"]
    asked = ["--negative", "snow", "--steps", "2", "--set", "prior.steps=2", "--seed", "3"]
    run("generate", PROMPT, "--out", str(out), *asked, *given)
    request = read_metadata(out)["request"]
    assert request is not None
    assert request.stages["prior"].steps == request.stages["decoder"].steps == 2
    again = load(both(folders)).run(request).images[0]
    assert again.tobytes() == inputs.open_picture(out).tobytes()
    assert "PaellaVQModel" in run("models", "info", str(both(folders)))
    assert "every file is as it should be" in run("models", "verify", str(both(folders)))


def test_what_is_known_without_weights(folders: tuple[Path, Path], pipe: TextToImage) -> None:
    assert verify(both(folders)) == []
    told = describe(both(folders))
    assert (told["family"], told["digest"]) == ("stable-cascade", pipe.digest)
    # neither what tells it pictures, nor the text encoder once more
    assert {part: values["class"] for part, values in told["components"].items()} == {
        "decoder": "StableCascadeUNet",
        "prior": "StableCascadeUNet",
        "text_encoder": "CLIPTextModelWithProjection",
        "vqgan": "PaellaVQModel",
    }


def test_the_published_numbers_give_the_published_size(copies: tuple[Path, Path]) -> None:
    rewrite(copies[0] / "model_index.json", latent_dim_scale=10.67)
    rewrite(copies[1] / "model_index.json", resolution_multiple=42.67)
    assert facts(both(copies)).sides == (1024,)


def test_a_decoder_or_a_prior_alone_says_what_is_to_be_given(folders: tuple[Path, Path]) -> None:
    decoder, prior = folders
    for read in (load, open_model, facts):
        with pytest.raises(UsageError, match=r"decoder has no 'prior': .* with --prior"):
            read(decoder)
        with pytest.raises(ModelError, match=r"draws no pictures by itself: .* this one as --prior"):
            read(prior)
    assert (describe(prior)["stages"], verify(prior)) == ([], [])


def test_it_cannot_begin_with_a_picture(pipe: TextToImage) -> None:
    with pytest.raises(UsageError, match="of this model cannot begin with a picture"):
        pipe.edit(Image.new("RGB", (SIDE, SIDE)), PROMPT, seeds=[3], stages=FAST)


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        (
            "decoder/scheduler",
            {"_class_name": "DDPMScheduler"},
            "is of class 'DDPMScheduler': models of this",
        ),
        ("prior/scheduler", {"s": 0}, "scheduler config has s 0: it must be a number"),
        ("decoder/scheduler", {"scaler": "1"}, "scheduler config has scaler '1': it must be a number"),
        ("decoder", {"latent_dim_scale": 0.5}, "latent_dim_scale is 0.5 in the index"),
        ("decoder", {"latent_dim_scale": 2.4}, "patch_size is 2, but latents have a side of 9"),
        ("prior", {"resolution_multiple": 1e9}, "resolution_multiple is 1000000000.0 in the index"),
        ("decoder", {"vqgan": ["os", "PaellaVQModel"]}, "component 'vqgan' is"),
        ("prior", {"prior": ["os", "StableCascadeUNet"]}, "component 'prior' is"),
        ("decoder/vqgan", {"levels": 40}, r"vqgan/config\.json: levels is 40, and must be 1 to 8"),
        ("decoder/vqgan", {"scale_factor": 0}, r"vqgan/config\.json: scale_factor is 0"),
        ("decoder/vqgan", {"out_channels": 4}, "vqgan has out_channels 4, but pictures have 3"),
        ("decoder/vqgan", {"embed_dim": 32}, "vqgan: the weights have another shape"),
        ("prior/prior", {"in_channels": 8}, "prior: the weights have another shape"),
    ],
)
def test_a_file_that_says_something_else(
    copies: tuple[Path, Path], part: str, changes: dict[str, Any], says: str
) -> None:
    names = {"scheduler": "scheduler_config.json", "vqgan": "config.json"}
    path = copies[0].parent / part
    name = "model_index.json" if "/" not in part else names.get(path.name, "config.json")
    rewrite(path / name, **changes)
    with pytest.raises(ModelError, match=says):
        load(both(copies))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("prior", {"clip_text_in_channels": 24}, "clip_text_in_channels 24, but beside .* must be 32"),
        ("prior", {"clip_text_pooled_in_channels": 8}, "prior has clip_text_pooled_in_channels 8, but"),
        ("prior", {"effnet_in_channels": 16}, "prior has effnet_in_channels 16, but .* must be None"),
        ("prior", {"out_channels": 8}, "prior has out_channels 8, but beside the other parts it must be 16"),
        ("prior", {"clip_image_in_channels": None}, "prior has no clip_image_in_channels"),
        ("prior", {"pixel_mapper_in_channels": 4}, "prior has pixel_mapper_in_channels 4"),
        ("decoder", {"in_channels": 8, "out_channels": 8}, "decoder has in_channels 8, but .* must be 4"),
        ("decoder", {"effnet_in_channels": 8}, "decoder has effnet_in_channels 8, but .* must be 16"),
        ("decoder", {"clip_text_pooled_in_channels": 8}, "decoder has clip_text_pooled_in_channels 8, but"),
    ],
)
def test_parts_that_do_not_fit_each_other(
    copies: tuple[Path, Path], name: str, changes: dict[str, Any], says: str
) -> None:
    at = next(folder / name for folder in copies if (folder / name).is_dir())
    shutil.rmtree(at)
    StableCascadeUNet(**{**(PRIOR if name == "prior" else DECODER), **changes}).save_pretrained(at)
    with pytest.raises(ModelError, match=says):
        load(both(copies))
