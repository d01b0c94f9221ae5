"""LoRA files of every layout, fused by us beside diffusers, and files that are made to fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmgen.errors import ModelError, UsageError
from mmgen.noise import Noise
from mmgen.pipelines import lora
from mmgen.pipelines.loading import build_network, open_model, read_component
from mmgen.pipelines.reference import Lora, Reference
from mmgen.pipelines.text_to_image import TextToImage
from tests.checkpoints import write_stable_diffusion
from tests.pipelines.test_stable_diffusion import PROMPT, SIDE, ours
from tests.render.whole import load

# As in the tests of Stable Diffusion.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
RANK, ALPHA, WEIGHT, STEPS = 3, 2.0, 0.7, 2
TOLERANCE = 1e-4  # of pictures in [-1, 1]
BLOCK = "attentions.0.transformer_blocks.0"
UNET = (
    *(
        f"{where}.{BLOCK}.attn1.{name}"
        for where in ("down_blocks.0", "up_blocks.1")
        for name in ("to_q", "to_v")
    ),
    f"mid_block.{BLOCK}.attn2.to_k",
    f"down_blocks.0.{BLOCK}.attn2.to_out.0",
    f"down_blocks.0.{BLOCK}.ff.net.0.proj",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
)
TEXT = tuple(
    f"encoder.layers.{i}.{name}"
    for i in (0, 1)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.out_proj", "mlp.fc1")
)
PATHS = {"unet": UNET, "text_encoder": TEXT}
INDEX = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}
CUT = "its header is longer than the file"

Changes = dict[str, dict[str, tuple[Tensor, Tensor]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, never to be changed."""
    return write_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def changes(folder: Path) -> Changes:
    return random_changes(folder, seed=1)


@pytest.fixture
def file(changes: Changes, tmp_path: Path) -> Path:
    """One of kohya's, to be changed at will."""
    return write_kohya(tmp_path, changes)


def network(folder: Path, component: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    part = read_component(folder, component, INDEX, dtype)
    found: nn.Module = part.model if component == "text_encoder" else part
    return found


def random_changes(folder: Path, seed: int) -> Changes:
    """Lower and upper tensors for layers of both components, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    found: Changes = {}
    for component, paths in PATHS.items():
        layers = dict(network(folder, component).named_modules())
        found[component] = {}
        for path in paths:
            out, *of = layers[path].weight.shape  # type: ignore[misc]
            scale = 0.5 / torch.tensor(of).prod().sqrt()  # type: ignore[attr-defined]
            down = scale * torch.randn(RANK, *of, generator=generator)
            found[component][path] = (
                down,
                torch.randn(out, RANK, *[1] * (len(of) - 1), generator=generator),
            )
    return found


# ---- the layouts ---------------------------------------------------------------------------------


def write_peft(
    folder: Path, changes: Changes, settings: Mapping[str, Any] | None = None, old: bool = False
) -> Path:
    """As diffusers saves it. old: with the names of its older versions."""
    names = {
        "unet": ("lora.down", "lora.up"),
        "text_encoder": ("lora_linear_layer.down", "lora_linear_layer.up"),
    }
    layers: dict[str, dict[str, Tensor]] = {}
    for component, parts in changes.items():
        ends = names[component] if old else ("lora_A", "lora_B")
        layers[component] = {
            f"{_before(component)}{path}.{end}.weight": tensor.contiguous()
            for path, pair in parts.items()
            for end, tensor in zip(ends, pair, strict=True)
        }
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=settings and {**settings, "target_modules": list(UNET)},
        text_encoder_lora_adapter_metadata=settings
        and {**settings, "target_modules": list(TEXT), "alpha_pattern": {"q_proj": 5}},
    )
    return folder / "pytorch_lora_weights.safetensors"


def _before(component: str) -> str:
    return "text_model." if component == "text_encoder" else ""


def write_kohya(folder: Path, changes: Changes, rename: Callable[[str], str] = str) -> Path:
    """As kohya's trainer saves it. rename: what a layer of the U-Net is called."""
    tensors = {}
    for component, parts in changes.items():
        prefix = "lora_unet_" if component == "unet" else "lora_te_"
        for path, (down, up) in parts.items():
            called = rename(path) if component == "unet" else _before(component) + path
            layer = prefix + called.replace(".", "_")
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up.contiguous()}
            tensors[f"{layer}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def first_names(path: str) -> str:
    """What a layer of the tiny U-Net is called in the layout of the first Stable Diffusion, as for XL."""
    block, _, rest = path.partition(".")
    if block == "mid_block":
        return rest.replace("attentions.0", "middle_block.1", 1)
    index, inner, layer, tail = rest.split(".", 3)
    place = 2 * int(index) + int(layer) + (block == "down_blocks")
    name = "input_blocks" if block == "down_blocks" else "output_blocks"
    tail = tail.replace("conv1", "in_layers.2") if inner == "resnets" else tail
    return f"{name}.{place}.{int(inner == 'attentions')}.{tail}"


LAYOUTS: dict[str, Callable[[Path, Changes], Path]] = {
    "peft": write_peft,
    "peft with settings": lambda folder, changes: write_peft(
        folder, changes, {"r": RANK, "lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 1}}
    ),
    "rank-stabilised": lambda folder, changes: write_peft(
        folder, changes, {"r": RANK, "lora_alpha": 2, "use_rslora": True}
    ),
    "diffusers, older": lambda folder, changes: write_peft(folder, changes, old=True),
    "kohya": write_kohya,
}


def reference(folder: Path, *files: tuple[Path, float]) -> str:
    return str(Reference(str(folder), loras=tuple(Lora(str(path), weight) for path, weight in files)))


def fused(folder: Path, *files: tuple[Path, float]) -> TextToImage:
    return load(reference(folder, *files))  # type: ignore[arg-type]


def theirs(folder: Path, file: Path, weight: float) -> Tensor:
    """A picture by diffusers, of the noise that we begin with; see the tests of Stable Diffusion."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=weight)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    with torch.no_grad():
        latent = pipeline(
            [PROMPT],
            negative_prompt=["snow"],
            latents=Noise([3], "decoder").draw((4, SIDE // 2, SIDE // 2)),
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            output_type="latent",
        ).images
        image: Tensor = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return image.clamp(-1, 1)


def picture(pipe: TextToImage) -> Tensor:
    return ours(pipe, [PROMPT], [3], "snow", steps=STEPS, sampler="ddim", guidance_scale=3.0)[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_are_those_of_diffusers(layout: str, folder: Path, changes: Changes, tmp_path: Path) -> None:
    file = LAYOUTS[layout](tmp_path, changes)
    image, other = picture(fused(folder, (file, WEIGHT))), theirs(folder, file, WEIGHT)
    assert image.std() > 0.05, "a grey picture says nothing"
    assert not torch.allclose(image, picture(load(folder)), atol=1e-2)
    difference = float((image - other).abs().max())
    print(layout, "differs by", difference)  # noqa: T201
    assert difference < TOLERANCE


def test_names_of_the_first_layout_are_the_same_layers(
    folder: Path, changes: Changes, tmp_path: Path, file: Path
) -> None:
    (tmp_path / "first").mkdir()
    first = write_kohya(tmp_path / "first", changes, first_names)
    assert any("input_blocks" in key for key in load_file(first))
    one, other = (network(folder, "unet") for _ in range(2))
    lora.fuse(one, lora.read(file), "unet")
    lora.fuse(other, lora.read(first), "unet")
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# ---- what is added -------------------------------------------------------------------------------


@pytest.mark.parametrize("component", PATHS)
def test_the_product_is_added_and_nothing_stays_behind(
    component: str, folder: Path, changes: Changes, file: Path
) -> None:
    part, before = network(folder, component), network(folder, component)
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*.safetensors")}
    lora.fuse(part, lora.read(file), component, WEIGHT)
    old = before.state_dict()
    assert part.state_dict().keys() == old.keys()
    assert vars(part).keys() == vars(before).keys()
    assert [type(one) for one in part.modules()] == [type(one) for one in before.modules()]
    assert not any(parameter.requires_grad for parameter in part.parameters())
    for name, value in part.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if path in changes[component] and leaf == "weight":
            down, up = changes[component][path]
            product = (up.flatten(1) @ down.flatten(1)).reshape(value.shape)
            torch.testing.assert_close(value, old[name] + WEIGHT * ALPHA / RANK * product, atol=1e-5, rtol=0)
            assert not torch.allclose(value, old[name], atol=1e-2)
        else:
            assert torch.equal(value, old[name]), name
    assert files == {path: hashlib.sha256(path.read_bytes()).digest() for path in files}


def test_several_add_up_in_any_order(folder: Path, file: Path, tmp_path: Path) -> None:
    other = write_peft(tmp_path, random_changes(folder, seed=2))
    first, second = (network(folder, "unet") for _ in range(2))
    for part, order in ((first, ((file, 0.5), (other, -0.3))), (second, ((other, -0.3), (file, 0.5)))):
        for path, weight in order:
            lora.fuse(part, lora.read(path), "unet", weight)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], atol=1e-6, rtol=0)
    lora.fuse(first, lora.read(file), "unet", -0.5)
    lora.fuse(first, lora.read(other), "unet", 0.3)
    for name, value in network(folder, "unet").state_dict().items():
        torch.testing.assert_close(value, first.state_dict()[name], atol=1e-5, rtol=0)


def test_weights_that_are_read_for_their_turn_are_changed_too(folder: Path, file: Path) -> None:
    model = reference(folder, (file, WEIGHT))
    whole, opened = fused(folder, (file, WEIGHT)), open_model(model, "cpu", "float32")
    one, other = (pipe(PROMPT, seeds=[3], progress=False)[0] for pipe in (whole, opened))
    assert one.tobytes() == other.tobytes() != load(folder)(PROMPT, seeds=[3], progress=False)[0].tobytes()
    assert whole.name == f"{folder.name}?lora={file.name}:{WEIGHT:g}"
    assert len({whole.digest, load(folder).digest, fused(folder, (file, 0.5)).digest}) == 3


def test_with_weight_0_the_model_is_itself(folder: Path, file: Path) -> None:
    assert torch.equal(picture(fused(folder, (file, 0.0))), picture(load(folder)))


@pytest.mark.parametrize("component", PATHS)
def test_the_number_format_stays(component: str, folder: Path, file: Path) -> None:
    part, before = (network(folder, component, torch.bfloat16) for _ in range(2))
    lora.fuse(part, lora.read(file), component)
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    path = f"{PATHS[component][0]}.weight"
    assert not torch.equal(part.state_dict()[path], before.state_dict()[path])


def test_layers_may_differ_in_rank_and_be_of_one_component(
    folder: Path, file: Path, changes: Changes
) -> None:
    tensors = load_file(file)
    layer = "lora_unet_" + UNET[0].replace(".", "_")
    kept = {key: value for key, value in tensors.items() if key.startswith("lora_unet_")}
    kept[f"{layer}.lora_down.weight"] = kept[f"{layer}.lora_down.weight"][:1].contiguous()
    kept[f"{layer}.lora_up.weight"] = kept[f"{layer}.lora_up.weight"][:, :1].contiguous()
    save_file(kept, file)
    part, before, held = network(folder, "unet"), network(folder, "unet"), lora.read(file)
    lora.fuse(part, held, "unet")
    down, up = changes["unet"][UNET[0]]
    name = f"{UNET[0]}.weight"
    wanted = before.state_dict()[name] + ALPHA * up[:, :1] @ down[:1]
    torch.testing.assert_close(part.state_dict()[name], wanted, atol=1e-5, rtol=0)
    text = network(folder, "text_encoder")
    lora.fuse(text, held, "text_encoder")
    for key, value in network(folder, "text_encoder").state_dict().items():
        assert torch.equal(value, text.state_dict()[key])


# ---- what is refused -----------------------------------------------------------------------------


def rewrite(file: Path, **tensors: Tensor | None) -> None:
    """Tensors of the first layer of the U-Net, by what their names end with, changed or taken out."""
    held = load_file(file)
    layer = "lora_unet_" + UNET[0].replace(".", "_")
    for end, value in tensors.items():
        key = f"{layer}.{ {'down': 'lora_down.weight', 'up': 'lora_up.weight'}.get(end, end) }"
        if value is None:
            del held[key]
        else:
            held[key] = value
    save_file(held, file)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"down": torch.full((RANK, 8), torch.nan)}, r"hold NaN or infinity"),
        ({"alpha": torch.tensor(torch.inf)}, r"alpha' hold NaN or infinity"),
        ({"alpha": torch.ones(2)}, r"alpha' is no number for two tensors"),
        ({"up": None}, r"alpha' is no number for two tensors"),
        ({"up": torch.ones(8, RANK, dtype=torch.int32)}, "must be of fractions"),
        ({"hada_w1_a": torch.ones(8, RANK)}, r"hada_w1_a', which is of no LoRA that mmgen can add"),
        ({"dora_scale": torch.ones(8, 1)}, r"dora_scale', which is of no LoRA"),
    ],
)
def test_a_file_that_is_no_lora(file: Path, changed: dict[str, Tensor | None], says: str) -> None:
    rewrite(file, **changed)
    with pytest.raises(ModelError, match=rf"kohya\.safetensors.*{says}"):
        lora.read(file)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"down": torch.ones(RANK, 4)},
            r"to_q is changed by tensors of \(3, 4\) and \(8, 3\), .* are \(8, 8\)",
        ),
        ({"up": torch.ones(8, RANK + 1)}, r"is changed by tensors of \(3, 8\) and \(8, 4\)"),
        ({"up": torch.ones(8, RANK, 1, 1)}, "is changed by tensors of"),
        ({"up": None, "alpha": None}, "the names for unet are of no known kind"),
        ({"down": None, "alpha": None}, "the names for unet are of no known kind"),
    ],
)
def test_tensors_that_fit_no_layer(
    folder: Path, file: Path, changed: dict[str, Tensor | None], says: str
) -> None:
    rewrite(file, **changed)
    held = lora.read(file)
    with torch.device("meta"):
        outline = build_network(folder / "unet", type(network(folder, "unet")))
    for refuse in (
        lambda: lora.check(held, {"unet": outline, "text_encoder": network(folder, "text_encoder")}),
        lambda: lora.fuse(network(folder, "unet"), held, "unet"),
    ):
        with pytest.raises(ModelError, match=says):
            refuse()


@pytest.mark.parametrize(
    "name", ["unet.down_blocks.9.conv", "unet.conv_norm_out", "text_encoder.encoder.layers.7.mlp.fc1"]
)
def test_a_layer_that_is_not_there(folder: Path, tmp_path: Path, name: str) -> None:
    component, _, path = name.partition(".")
    tensors = {f"{name}.lora_{end}.weight": torch.ones(2, 2) for end in "AB"}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=rf"x\.safetensors holds '{path}.lora_A.weight'.* no such layer"):
        lora.fuse(network(folder, component), lora.read(tmp_path / "x.safetensors"), component)


def test_one_of_two_tensors(folder: Path, tmp_path: Path) -> None:
    save_file({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="holds one of the two tensors for conv_in of unet"):
        lora.fuse(network(folder, "unet"), lora.read(tmp_path / "x.safetensors"), "unet")


def test_a_file_for_another_kind_of_model(folder: Path, tmp_path: Path) -> None:
    save_file(
        {f"lora_te2_a.lora_{end}.weight": torch.ones(2, 2) for end in ("down", "up")},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ModelError, match=r"x\.safetensors changes text_encoder_2, and the model has no such"):
        lora.check(lora.read(tmp_path / "x.safetensors"), {"unet": network(folder, "unet")})


def test_files_that_are_damaged_or_of_another_kind(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    for name in ("x.ckpt", "x.pt", "x.bin", "x"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n")
        with pytest.raises(ModelError, match=f"^{name} is refused: only safetensors is read"):
            lora.read(tmp_path / name)
    for content, says in ((data[:100], CUT), (data[:-5], "cut off or damaged"), (b"", CUT)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=says):
            lora.read(file)
    with pytest.raises(ModelError, match="it is no file"):
        lora.read(tmp_path / "none.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in _tensors(data, tmp_path).items()}, file)
    with pytest.raises(ModelError, match="is filled with zeros"):
        lora.read(file)


def test_a_file_that_is_too_large(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"kohya\.safetensors has [0-9,]+ bytes: of a LoRA at most 1,000"):
        lora.read(file)


def test_what_is_no_lora_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError

    save_file({"model.diffusion_model.out.2.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(lora, "safe_open", read)
    with pytest.raises(ModelError, match="which is of no LoRA that mmgen can add"):
        lora.read(tmp_path / "model.safetensors")


def _tensors(data: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "whole.safetensors").write_bytes(data)
    return load_file(folder / "whole.safetensors")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("[1]", "is no JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ({"unet.r": 2}, "gives no lora_alpha"),
        ({"unet.lora_alpha": "x"}, "gives no lora_alpha"),
        ({"unet.lora_alpha": float("nan")}, "gives the lora_alpha nan"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": [1]}, "gives no lora_alpha"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": "conv_in"}, "gives no lora_alpha"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(": 1}}, r"has '\(', which is no name of a layer"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(c+)+$": 1}}, "which is no name of a layer"),
    ],
)
def test_settings_that_cannot_be_meant(folder: Path, tmp_path: Path, settings: Any, says: str) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    tensors = {
        "unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(8, 2, 1, 1),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(ModelError, match=says):
        lora.fuse(network(folder, "unet"), lora.read(tmp_path / "x.safetensors"), "unet")


def test_a_sum_that_is_no_number(folder: Path, file: Path) -> None:
    rewrite(file, alpha=torch.tensor(3e38))
    part = network(folder, "unet")
    with pytest.raises(ModelError, match=r"kohya\.safetensors with weight 10 gives NaN or infinity"):
        lora.fuse(part, lora.read(file), "unet", 10.0)
    assert not any("lora" in name for name, _ in part.named_modules())


def test_without_peft_it_is_said_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'mmgen\[lora\]'"):
        lora.read(file)
