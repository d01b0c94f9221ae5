"""Published folders of Kandinsky 2.1 and 2.2 through our stages, beside the two pipelines of diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    KandinskyPipeline,
    KandinskyPriorPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.kandinsky import pipeline_kandinsky, pipeline_kandinsky_prior
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2, pipeline_kandinsky2_2_prior
from diffusers.schedulers import scheduling_ddpm, scheduling_unclip
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    XLMRobertaTokenizer,
)

import mmgen
from mmgen import inputs
from mmgen.cli.main import main
from mmgen.errors import ModelError, UsageError
from mmgen.images import read_metadata
from mmgen.models.vision import read_vision, zero_embed
from mmgen.noise import Noise
from mmgen.pipelines import vae_stage
from mmgen.pipelines.adapters import movq_colours, threshold_of
from mmgen.pipelines.catalogue import describe, facts, sizes, verify
from mmgen.pipelines.families.family import limit_of
from mmgen.pipelines.families.kandinsky_stages import MovqStage
from mmgen.pipelines.loading import open_model
from mmgen.pipelines.stage import Draft, finish
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.windows import Budget
from mmgen.schedulers.schedules import cosine_betas
from mmgen.types import SAMPLERS, StageSettings
from tests.checkpoints import LETTERS, WORDS, awake, rewrite, write_clip
from tests.render.whole import (
    check_sampler,
    drawn,
    image_of,
    in_parts,
    is_read_per_turn,
    one_by_one,
    three_jobs,
    together,
)

# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red cat on the beach"
WIDTH, SIDE = 32, 16  # of an embedding; of the pictures, from latents of half the side
STEPS = 4
FAST = {"prior": StageSettings(steps=2), "decoder": StageSettings(steps=2)}
TOLERANCE = 1e-4  # of pictures in [-1, 1]
MILD = 1.5  # guidance, where nothing limits x0: more of it drives a random network, and its rounding, out of all bounds
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
LEARNED = {**BETAS, "variance_type": "learned_range"}


def write_kandinsky(folder: Path) -> tuple[Path, Path]:
    """Two folders as diffusers publishes Kandinsky 2.2: of the decoder and of the prior. Pictures of 16 px."""
    decoder = KandinskyV22Pipeline(
        unet=awake(lambda: UNet2DConditionModel(**UNET)),
        movq=awake(lambda: VQModel(**MOVQ)),
        scheduler=DDPMScheduler(**LEARNED, thresholding=True, sample_max_value=2.0),
    )
    decoder.save_pretrained(folder / "decoder")
    KandinskyV22PriorPipeline(**prior_parts(folder)).save_pretrained(folder / "prior")
    return folder / "decoder", folder / "prior"


def write_kandinsky_2_1(folder: Path) -> tuple[Path, Path]:
    """The same of Kandinsky 2.1, whose decoder reads the text, too."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, *(f"▁{word}" for word in WORDS), "<mask>"]
    text = MCLIPConfig(
        numDims=WIDTH, transformerDimensions=24, hidden_size=24, intermediate_size=32, num_attention_heads=2,
        num_hidden_layers=1, vocab_size=len(pieces), max_position_embeddings=80,
    )  # fmt: skip
    decoder = KandinskyPipeline(
        text_encoder=awake(lambda: MultilingualCLIP(text)),
        tokenizer=XLMRobertaTokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)]),
        unet=awake(lambda: UNet2DConditionModel(**UNET_2_1)),
        movq=awake(lambda: VQModel(**MOVQ)),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )
    decoder.save_pretrained(folder / "decoder")
    KandinskyPriorPipeline(**prior_parts(folder)).save_pretrained(folder / "prior")
    return folder / "decoder", folder / "prior"


def prior_parts(folder: Path) -> dict[str, Any]:
    """What both priors have. folder: to write into."""
    write_clip(folder / "clip")
    text = CLIPTextConfig.from_pretrained(folder / "clip" / "text_encoder", projection_dim=WIDTH)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=WIDTH,
    )  # fmt: skip
    return {
        "prior": random_prior(),
        "image_encoder": awake(lambda: CLIPVisionModelWithProjection(vision)),
        "text_encoder": awake(lambda: CLIPTextModelWithProjection(text)),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "clip" / "tokenizer"),
        "scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        "image_processor": CLIPImageProcessor(size=8, crop_size=8),
    }


def random_prior() -> Any:
    prior = awake(
        lambda: PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDTH, num_embeddings=40
        )
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.uniform_(prior.clip_std, 0.5, 1.5)  # a fresh one has zeros, and says nothing
        nn.init.normal_(prior.clip_mean, std=0.3)
    return prior


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
UNET_2_1 = {
    **UNET,
    "cross_attention_dim": WIDTH,
    "encoder_hid_dim": 24,
    "encoder_hid_dim_type": "text_image_proj",
    "addition_embed_type": "text_image",
}
MOVQ = {
    "block_out_channels": (32, 64),  # its norm is of 32 groups, whatever the configuration says
    "layers_per_block": 1,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 12,
    "norm_num_groups": 8,
    "norm_type": "spatial",
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Decoder and prior, to be read, never to be changed."""
    return write_kandinsky(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copies(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """To be changed at will."""
    decoder, prior = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders)
    return decoder, prior


@pytest.fixture(scope="module")
def pipe(folders: tuple[Path, Path]) -> TextToImage:
    return load(folders)


@pytest.fixture(scope="module")
def pipelines(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    """Those of diffusers: decoder and prior."""
    decoder, prior = folders
    return quiet(
        KandinskyV22Pipeline.from_pretrained(decoder), KandinskyV22PriorPipeline.from_pretrained(prior)
    )


@pytest.fixture(scope="module")
def folders_2_1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of 2.1."""
    return write_kandinsky_2_1(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pipe_2_1(folders_2_1: tuple[Path, Path]) -> TextToImage:
    return load(folders_2_1)


def quiet(decoder: Any, prior: Any) -> tuple[Any, Any]:
    for pipeline in (decoder, prior):
        pipeline.set_progress_bar_config(disable=True)
    # of the ratios of its smallest entries float32 leaves three digits
    kept = 1 - torch.tensor(cosine_betas(), dtype=torch.float64)
    prior.scheduler.alphas_cumprod = kept.cumprod(0)
    return decoder, prior


def both(folders: tuple[Path, Path]) -> str:
    """The decoder with its prior, as a model is given."""
    return "{}?prior={}".format(*folders)


def load(folders: tuple[Path, Path]) -> TextToImage:
    return mmgen.load(both(folders), device="cpu", dtype="float32")


def ours(
    pipe: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    *,
    prior: float = 4.0,
    **settings: Any,
) -> Tensor:
    """Pictures in [-1, 1], all in one batch. prior: its guidance; settings: of the decoder."""
    stages = {
        "prior": StageSettings(steps=STEPS, guidance_scale=prior),
        "decoder": StageSettings(**{"steps": STEPS, **settings}),
    }
    return image_of(drawn(pipe, prompts, seeds, negative, stages))


def theirs(
    pipelines: tuple[Any, Any],
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    *,
    prior: float = 4.0,
    guidance_scale: float = 4.0,
) -> Tensor:
    """The same by diffusers, with the noise that we begin with and add at every step.

    It draws the embeddings of prompts and negative prompts as one batch, and we one after the other.
    """
    decoder, before = pipelines
    drawn = Noise(seeds, "prior")
    # none is added in the last step
    of_prior = [[drawn.draw((WIDTH,)) for _ in range(STEPS)] for _ in range(2 if negative else 1)]
    prior_noise = (torch.cat(together) for together in zip(*of_prior, strict=True))
    noise = Noise(seeds, "decoder")
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline_kandinsky_prior, pipeline_kandinsky2_2_prior, scheduling_unclip):
            patch.setattr(module, "randn_tensor", lambda *_, **__: next(prior_noise))
        for module in (pipeline_kandinsky, pipeline_kandinsky2_2, scheduling_ddpm):
            patch.setattr(module, "randn_tensor", lambda shape, **_: noise.draw(shape[1:]))
        told = before(
            list(prompts),
            negative_prompt=[negative] * len(prompts) if negative else None,
            num_inference_steps=STEPS,
            guidance_scale=prior,
        )
        texts = {"prompt": list(prompts), "negative_prompt": [negative] * len(prompts)}
        images: Tensor = decoder(
            image_embeds=told.image_embeds,
            negative_image_embeds=told.negative_image_embeds,
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            output_type="pt",
            **(texts if isinstance(decoder, KandinskyPipeline) else {}),
        ).images
    assert next(prior_noise, None) is None
    return images.clamp(-1, 1)


def difference(mine: Tensor, other: Tensor) -> float:
    assert mine.std() > 0.05, "a grey picture says nothing"
    found = float((mine - other).abs().max())
    print("pictures differ by", found)  # noqa: T201
    return found


@pytest.mark.parametrize(("prior", "guidance_scale"), [(4.0, 4.0), (1.0, 4.0), (4.0, 1.0)])
@pytest.mark.parametrize("negative", ["", "snow at night"])
def test_pictures_are_those_of_diffusers(
    pipe: TextToImage, pipelines: tuple[Any, Any], negative: str, prior: float, guidance_scale: float
) -> None:
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    mine = ours(pipe, *asked, prior=prior, guidance_scale=guidance_scale)
    other = theirs(pipelines, *asked, prior=prior, guidance_scale=guidance_scale)
    assert difference(mine, other) < TOLERANCE


SCHEDULERS: dict[str, tuple[str, Any]] = {
    "clipped": ("ddpm", DDPMScheduler(**LEARNED, clip_sample_range=0.5)),
    "unlimited": ("ddpm", DDPMScheduler(**LEARNED, clip_sample=False)),
    # a file that says nothing of the variance that the network has learned
    "ddim": ("ddim", DDIMScheduler(**BETAS, clip_sample=False)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_the_scheduler_says_of_x0_is_done(
    copies: tuple[Path, Path], pipelines: tuple[Any, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, scheduler = SCHEDULERS[name]
    shutil.rmtree(copies[0] / "scheduler")
    scheduler.save_pretrained(copies[0] / "scheduler")
    rewrite(copies[0] / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])
    monkeypatch.setattr(pipelines[0], "scheduler", scheduler)
    asked = ([PROMPT, "two dogs"], [3, 5], "snow")
    mine = ours(load(copies), *asked, sampler=sampler, guidance_scale=MILD)
    assert difference(mine, theirs(pipelines, *asked, guidance_scale=MILD)) < TOLERANCE


def test_without_a_negative_prompt_guidance_leads_away_from_a_picture_of_zeros(
    pipe: TextToImage, pipelines: tuple[Any, Any]
) -> None:
    prior = pipe.cascade.stages[1]
    empty = zero_embed(prior.networks[1])
    torch.testing.assert_close(empty, pipelines[1].get_zero_embed())  # other memory, other last bits
    plain, blank, snow = (ours(pipe, [PROMPT], [3], negative) for negative in ("", "  ", "snow"))
    assert torch.equal(plain, blank)
    for other in (
        snow,
        ours(pipe, ["two dogs"], [3]),
        ours(pipe, [PROMPT], [5]),
        ours(pipe, [PROMPT], [3], prior=1.0),
        ours(pipe, [PROMPT], [3], guidance_scale=1.0),
    ):
        assert not torch.allclose(plain, other, atol=1e-2)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler", "UniPCMultistepScheduler"])
def test_every_sampler_runs(pipe: TextToImage, sampler: str) -> None:
    check_sampler(pipe, sampler, FAST)


def test_a_batch_gives_the_pictures_of_single_runs(pipe: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = ours(pipe, prompts, seeds, "snow")
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe, [prompt], [seed], "snow")
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_defaults_are_the_familys(pipe: TextToImage, folders: tuple[Path, Path]) -> None:
    request = pipe.request(PROMPT, seeds=[3])
    assert request.stages == {
        "prior": StageSettings(steps=25, sampler="ddpm", guidance_scale=4.0),
        "decoder": StageSettings(steps=50, sampler="ddpm", guidance_scale=4.0),
    }
    assert (pipe.stage_names, pipe.sizes) == (("text", "prior", "decoder", "vae"), (SIDE,))
    assert facts(both(folders)).request(PROMPT, 3) == request
    with pytest.raises(UsageError, match="stage 'decoder' does not take threshold"):
        pipe.request(PROMPT, stages={"decoder": StageSettings(threshold=0.9)})


@pytest.mark.parametrize("negative", ["", "snow"])
def test_every_step_can_be_looked_at(pipe: TextToImage, negative: str) -> None:
    steps = list(pipe.stream(PROMPT, seeds=[3], negative_prompt=negative, stages=FAST))
    prior = 4 if negative else 2
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *(("prior", i, prior) for i in range(1, prior + 1)),
        ("decoder", 1, 2),
        ("decoder", 2, 2),
        ("vae", 1, 1),
    ]
    seen = [step.preview() for step in steps]
    assert seen[:prior] == [[]] * prior
    assert [one[0].size for one in seen[prior:]] == [(8, 8), (8, 8), (SIDE, SIDE)]


def test_half_precision_draws(folders: tuple[Path, Path]) -> None:
    model = mmgen.load(both(folders), "cpu", "bfloat16")
    networks = [network for stage in model.cascade.stages for network in stage.networks]
    assert [network.dtype for network in networks] == [torch.bfloat16] * 5
    for negative in ("", "snow"):
        picture = model(PROMPT, seeds=[3], negative_prompt=negative, stages=FAST).images[0]
        assert np.asarray(picture).std() > 1


# ---- stage by stage ------------------------------------------------------------------------------


def test_stage_by_stage_gives_the_same_bytes(
    pipe: TextToImage, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model, jobs = open_model(both(folders), "cpu", "float32"), three_jobs(pipe, FAST)
    assert together(jobs, model, tmp_path, budget=Budget(memory=0)) == one_by_one(jobs, pipe)
    assert is_read_per_turn(model)


def test_a_run_that_was_stopped_goes_on_with_the_same_pictures(
    pipe: TextToImage, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model, jobs = open_model(both(folders), "cpu", "float32"), three_jobs(pipe, FAST)
    assert in_parts(jobs, model, tmp_path) == one_by_one(jobs, pipe)


def test_the_picture_of_a_movq_is_decoded_in_squares(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_stage, "MIN_SQUARE", 32)
    monkeypatch.setattr(vae_stage, "OVERLAP", 24)
    movq: Any = pipe.cascade.stages[-1].networks[0]
    stage = MovqStage(movq, size=64)
    latent = Noise([3, 5]).draw((4, 32, 32))

    def decoded(stage: vae_stage.VaeStage) -> Tensor:
        image = finish(stage.run(Draft(("", ""), latent=latent), StageSettings(), Noise([3, 5], "vae"))).image
        assert image is not None
        return image

    smaller = stage.smaller()
    assert type(smaller) is MovqStage
    whole, squares = decoded(stage), decoded(smaller)
    with torch.no_grad():
        expected = movq.decode(latent, force_not_quantize=True).sample.clamp(-1, 1)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)
    assert squares.shape == whole.shape == (2, 3, 64, 64)
    assert 0 < (squares - whole).abs().mean() < 0.5 * whole.std()


def test_colours_are_those_that_the_movq_means(pipe: TextToImage) -> None:
    movq: Any = pipe.cascade.stages[-1].networks[0]
    found = movq_colours(movq)
    assert found is not None
    shown = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    with torch.no_grad():
        latent = movq.encode(shown[:, :, None, None].expand(-1, -1, SIDE, SIDE)).latents
    told = latent.mean((2, 3)) @ found[:-1] + found[-1]
    assert (told - shown).square().mean() < 0.5 * shown.square().mean()


# ---- the command line, and what is written -------------------------------------------------------


def test_the_commands_take_such_folders(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(list(args)) == 0
        return capsys.readouterr().out

    out, model = tmp_path / "cat.png", both(folders)
    folder, prior = map(str, folders)
    given = ["--model", folder, "--prior", prior, "--dtype", "float32", "--device", "cpu", "--steps", "2"]
    run(
        "generate",
        PROMPT,
        "--out",
        str(out),
        "--negative",
        "snow",
        "--set",
        "prior.steps=2",
        "--seed",
        "3",
        *given,
    )
    request = read_metadata(out)["request"]
    assert request is not None
    assert request.stages["decoder"].steps == 2
    again = load(folders).run(request).images[0]
    assert again.tobytes() == inputs.open_picture(out).tobytes()
    assert "CLIPVisionModelWithProjection" in run("models", "info", model)
    assert "every file is as it should be" in run("models", "verify", model)


def test_what_is_known_without_weights(folders: tuple[Path, Path], pipe: TextToImage) -> None:
    assert verify(both(folders)) == []
    told = describe(both(folders))
    assert (told["family"], told["digest"]) == ("kandinsky-2.2", pipe.digest)
    assert {part: values["class"] for part, values in told["components"].items()} == {
        "image_encoder": "CLIPVisionModelWithProjection",
        "movq": "VQModel",
        "prior": "PriorTransformer",
        "text_encoder": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel",
    }


def test_what_it_cannot_do_is_said(pipe: TextToImage) -> None:
    picture = Image.new("RGB", (32, 32))
    with pytest.raises(UsageError, match="stage 'decoder' of this model cannot begin with a picture"):
        pipe.edit(picture, PROMPT, seeds=[3], stages=FAST)
    with pytest.raises(UsageError, match="draws from texts alone"):
        pipe.vary(picture)


# ---- what is refused -----------------------------------------------------------------------------


def test_a_decoder_or_a_prior_alone_says_what_is_to_be_given(folders: tuple[Path, Path]) -> None:
    decoder, prior = folders
    for read in (mmgen.load, open_model, facts):
        with pytest.raises(UsageError, match="Give the prior's folder too, with --prior"):
            read(decoder)
        with pytest.raises(ModelError, match=r"draws no pictures by itself: .* this one as --prior"):
            read(prior)
    with pytest.raises(
        ModelError, match=r"give the folder of its decoder as --model, and this one as --prior"
    ):
        sizes(prior)
    found = describe(prior)
    assert (found["stages"], found["sides"]) == ([], [])
    assert found["components"]["prior"]["class"] == "PriorTransformer"
    assert verify(prior) == []


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("decoder/unet", {"in_channels": 9}, "unet: the weights"),
        ("decoder/unet", {"sample_size": None}, r"unet/config\.json: sample_size is None"),
        ("decoder/movq", {"block_out_channels": 8}, r"movq/config\.json: block_out_channels is 8"),
        ("decoder/movq", {"lookup_from_codebook": True}, "movq has lookup_from_codebook"),
        ("prior/prior", {"num_embeddings": 77}, "prior: the weights"),
        ("prior/image_encoder", {"model_type": "clip"}, r"image_encoder/config\.json is of type 'clip'"),
        ("prior/image_encoder", {"image_size": 16}, "image_encoder: the weights have another shape"),
        ("prior/image_encoder", {"num_hidden_layers": 2000}, "num_hidden_layers is 2000"),
        (
            "prior/image_encoder",
            {"auto_map": {"AutoModel": "os.system"}},
            "image_encoder/config.json has auto_map",
        ),
    ],
)
def test_a_component_that_is_something_else(
    copies: tuple[Path, Path], part: str, changes: dict[str, Any], says: str
) -> None:
    rewrite(copies[0].parent / part / "config.json", **changes)
    for read in (mmgen.load, open_model):
        with pytest.raises(ModelError, match=says):
            read(both(copies), "cpu", "float32")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"out_channels": 4}, "unet has out_channels 4, but one that predicts learned-range has 8"),
        ({"encoder_hid_dim": 40}, "unet has encoder_hid_dim 40, but beside the other parts it must be 32"),
        (
            {"addition_embed_type": "image_hint"},
            "unet has addition_embed_type 'image_hint', .* must be 'image'",
        ),
        ({"addition_embed_type": None}, "unet has addition_embed_type None, .* must be 'image'"),
        ({"class_embed_type": "timestep"}, "unet has class_embed_type 'timestep', .* must be None"),
    ],
)
def test_a_unet_that_draws_something_else(
    copies: tuple[Path, Path], changes: dict[str, Any], says: str
) -> None:
    shutil.rmtree(copies[0] / "unet")
    awake(lambda: UNet2DConditionModel(**{**UNET, **changes})).save_pretrained(copies[0] / "unet")
    with pytest.raises(ModelError, match=says):
        load(copies)


def test_an_image_encoder_of_another_width(copies: tuple[Path, Path]) -> None:
    folder = copies[1] / "image_encoder"
    config = CLIPVisionConfig.from_pretrained(folder, projection_dim=24)
    shutil.rmtree(folder)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    with pytest.raises(
        ModelError, match="image_encoder has projection_dim 24, but the prior draws embeddings of 32"
    ):
        load(copies)


def test_a_movq_whose_codebook_has_other_vectors(copies: tuple[Path, Path]) -> None:
    shutil.rmtree(copies[0] / "movq")
    VQModel(**{**MOVQ, "vq_embed_dim": 6}).save_pretrained(copies[0] / "movq")
    with pytest.raises(ModelError, match="movq has vq_embed_dim 6, but its latents have 4 channels"):
        load(copies)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("visual_projection.weight", None, "lack 'visual_projection.weight'"),
        ("visual_projection.weight", torch.full((WIDTH, 16), torch.nan), "hold NaN or infinity"),
        ("text_model.final_layer_norm.bias", torch.zeros(16), "hold also 'text_model.final_layer_norm.bias'"),
        ("vision_model.embeddings.position_ids", torch.arange(5)[None], ""),
    ],
)
def test_the_tensors_of_an_image_encoder(
    copies: tuple[Path, Path], name: str, value: Tensor | None, says: str
) -> None:
    path = copies[1] / "image_encoder" / "model.safetensors"
    tensors = {key: one for key, one in load_file(path).items() if key != name}
    save_file(tensors if value is None else {**tensors, name: value}, path, metadata={"format": "pt"})
    if not says:  # older files hold what is computed
        before = zero_embed(load(copies).cascade.stages[1].networks[1])
        assert torch.equal(before, zero_embed(read_vision(path.parent, torch.float32)))
        return
    with pytest.raises(ModelError, match=says):
        load(copies)


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        ({}, 1.0),
        ({"clip_sample_range": 5.0}, 5.0),
        ({"clip_sample": False, "clip_sample_range": 5.0}, None),
        ({"_class_name": "EulerDiscreteScheduler"}, None),
        ({"thresholding": True, "clip_sample_range": 5.0}, 1.0),
        ({"thresholding": True, "sample_max_value": 2}, 1.0),
    ],
)
def test_what_limits_x0(config: dict[str, Any], bound: float | None) -> None:
    x0 = torch.linspace(-9, 9, 32).reshape(1, 2, 4, 4)
    limited = threshold_of({"_class_name": "DDPMScheduler", **config})(x0)
    assert float(limited.abs().max()) == pytest.approx(9.0 if bound is None else bound)
    if not config.get("thresholding"):
        assert limit_of({"_class_name": "DDPMScheduler", **config}) == bound


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"clip_sample_range": 0}, "clip_sample_range 0: it must be a positive number"),
        ({"clip_sample_range": "1"}, "clip_sample_range '1'"),
        ({"thresholding": True, "sample_max_value": 0.5}, "sample_max_value 0.5, which is no threshold"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": None},
            "dynamic_thresholding_ratio None, which is no",
        ),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 2},
            "dynamic_thresholding_ratio 2, which is no threshold",
        ),
    ],
)
def test_a_limit_that_is_none_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        threshold_of({"_class_name": "DDPMScheduler", **config})


# ---- 2.1 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipelines_2_1(folders_2_1: tuple[Path, Path]) -> tuple[Any, Any]:
    """Those of diffusers: decoder and prior."""
    decoder, prior = folders_2_1
    return quiet(KandinskyPipeline.from_pretrained(decoder), KandinskyPriorPipeline.from_pretrained(prior))


@pytest.mark.parametrize(("negative", "guidance_scale"), [("", MILD), ("snow at night", MILD), ("", 1.0)])
def test_pictures_of_2_1_are_those_of_diffusers(
    pipe_2_1: TextToImage, pipelines_2_1: tuple[Any, Any], negative: str, guidance_scale: float
) -> None:
    asked = ([PROMPT, "two dogs"], [3, 5], negative)
    mine = ours(pipe_2_1, *asked, guidance_scale=guidance_scale)
    other = theirs(pipelines_2_1, *asked, guidance_scale=guidance_scale)
    assert difference(mine, other) < TOLERANCE


def test_a_batch_of_2_1_gives_the_pictures_of_single_runs(pipe_2_1: TextToImage) -> None:
    prompts, seeds = [PROMPT, "two dogs", ""], [3, 5, 7]
    together = ours(pipe_2_1, prompts, seeds, "snow", guidance_scale=MILD)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ours(pipe_2_1, [prompt], [seed], "snow", guidance_scale=MILD)
        torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler"])
def test_every_sampler_runs_with_2_1(pipe_2_1: TextToImage, sampler: str) -> None:
    check_sampler(pipe_2_1, sampler, FAST, most=2)


@pytest.mark.parametrize("draw", [together, in_parts])
def test_2_1_stage_by_stage_and_in_parts_gives_the_same_bytes(
    pipe_2_1: TextToImage, folders_2_1: tuple[Path, Path], tmp_path: Path, draw: Callable[..., Any]
) -> None:
    model, jobs = open_model(both(folders_2_1), "cpu", "float32"), three_jobs(pipe_2_1, FAST)
    assert draw(jobs, model, tmp_path) == one_by_one(jobs, pipe_2_1)
    assert is_read_per_turn(model)


def test_what_is_known_of_2_1_without_weights(pipe_2_1: TextToImage, folders_2_1: tuple[Path, Path]) -> None:
    assert verify(both(folders_2_1)) == []
    told, pipe = describe(both(folders_2_1)), pipe_2_1
    assert (told["family"], told["digest"]) == ("kandinsky-2.1", pipe.digest)
    assert told["components"]["text_encoder"]["class"] == "MultilingualCLIP"
    assert told["components"]["prior_text_encoder"]["class"] == "CLIPTextModelWithProjection"
    assert pipe.stage_names == ("prior-text", "prior", "text", "decoder", "vae")
    request = facts(both(folders_2_1)).request(PROMPT, 3)
    assert request == pipe.request(PROMPT, seeds=[3])
    assert request.stages["decoder"] == StageSettings(steps=100, sampler="ddim", guidance_scale=4.0)


def test_half_precision_draws_with_2_1(folders_2_1: tuple[Path, Path]) -> None:
    model = mmgen.load(both(folders_2_1), "cpu", "bfloat16")
    networks = [network for stage in model.cascade.stages for network in stage.networks]
    assert {network.dtype for network in networks} == {torch.bfloat16}
    assert np.asarray(model(PROMPT, seeds=[3], stages=FAST).images[0]).std() > 1


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("decoder/text_encoder", {"model_type": "bert"}, r"text_encoder/config\.json is of type 'bert'"),
        ("decoder/text_encoder", {"numDims": 16}, "text_encoder: the weights have another shape"),
        ("decoder/model_index.json", {"text_encoder": ["os", "system"]}, "component 'text_encoder' is"),
        ("prior/model_index.json", {"text_encoder": ["os", "system"]}, "component 'text_encoder' is"),
    ],
)
def test_a_component_of_2_1_that_is_something_else(
    folders_2_1: tuple[Path, Path], tmp_path: Path, part: str, changes: dict[str, Any], says: str
) -> None:
    decoder, prior = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders_2_1)
    path = tmp_path / part
    rewrite(path / "config.json" if path.is_dir() else path, **changes)
    with pytest.raises(ModelError, match=says):
        load((decoder, prior))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder_hid_dim": 40}, "unet has encoder_hid_dim 40, but beside the other parts it must be 24"),
        (
            {"cross_attention_dim": 16},
            "unet has cross_attention_dim 16, but beside the other parts it must be 32",
        ),
        (
            {"encoder_hid_dim_type": "text_proj"},
            "has encoder_hid_dim_type 'text_proj', .* must be 'text_image_proj'",
        ),
    ],
)
def test_a_unet_of_2_1_that_is_told_something_else(
    folders_2_1: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    decoder, prior = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders_2_1)
    shutil.rmtree(decoder / "unet")
    UNet2DConditionModel(**{**UNET_2_1, **changes}).save_pretrained(decoder / "unet")
    with pytest.raises(ModelError, match=says):
        load((decoder, prior))
