"""LoRA files of every layout, fused by us beside diffusers, and files that are made to fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmgen.errors import ModelError, UsageError
from mmgen.noise import Noise
from mmgen.pipelines import loading, lora
from mmgen.pipelines.catalogue import facts
from mmgen.pipelines.loading import build_network, open_model, read_component
from mmgen.pipelines.reference import Lora, Reference
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.types import StageSettings
from tests.checkpoints import write_stable_diffusion
from tests.pipelines.test_sdxl import write_sdxl
from tests.pipelines.test_stable_diffusion import FAST, PROMPT
from tests.pipelines.test_whole import BUILDERS, sd3, write
from tests.render.whole import drawn, image_of, load

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
UNET_XL = (
    f"down_blocks.1.{BLOCK}.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    f"mid_block.{BLOCK}.attn2.to_out.0",
    f"up_blocks.0.{BLOCK}.ff.net.0.proj",
    "up_blocks.0.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
)
TRANSFORMER = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.add_k_proj",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.1.ff.net.0.proj",
)
TEXT = tuple(
    f"encoder.layers.{i}.{name}"
    for i in (0, 1)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.out_proj", "mlp.fc1")
)
PATHS = {"unet": UNET, "text_encoder": TEXT}
# Of those with a projection, whose inner model has a name.
TEXT_PROJECTED = tuple(f"text_model.{path}" for path in TEXT)
PATHS_XL = {"unet": UNET_XL, "text_encoder": TEXT, "text_encoder_2": TEXT_PROJECTED}
PATHS_SD3 = {
    "transformer": TRANSFORMER,
    "text_encoder": TEXT_PROJECTED,
    "text_encoder_2": TEXT_PROJECTED,
}
MODELS: dict[str, tuple[Callable[[Path], Path], dict[str, tuple[str, ...]]]] = {
    "sd": (write_stable_diffusion, PATHS),
    "sdxl": (write_sdxl, PATHS_XL),
    "sd3": (lambda folder: write(folder, sd3), PATHS_SD3),
}
SAMPLERS = {"sd": "ddim", "sdxl": "euler"}
CUT = "its header is longer than the file"

Changes = dict[str, dict[str, tuple[Tensor, Tensor]]]


class Model(NamedTuple):
    """A folder, to be read, never to be changed; what a file changes in it; and its picture without."""

    folder: Path
    changes: Changes
    picture: Tensor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """By the names of MODELS."""
    root = tmp_path_factory.mktemp("models")

    def model(kind: str) -> Model:
        write, paths = MODELS[kind]
        folder = write(root / kind)
        return Model(folder, random_changes(folder, paths, seed=1), picture(load(folder), kind))

    return cache(model)


@pytest.fixture(scope="module")
def folder(models: Callable[[str], Model]) -> Path:
    return models("sd").folder


@pytest.fixture(scope="module")
def changes(models: Callable[[str], Model]) -> Changes:
    return models("sd").changes


@pytest.fixture
def file(changes: Changes, tmp_path: Path) -> Path:
    """One of kohya's, to be changed at will."""
    return write_kohya(tmp_path, changes)


def network(folder: Path, component: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    part = read_component(folder, component, index, dtype)
    found: nn.Module = part.model if component.startswith("text_encoder") else part
    return found


def random_changes(folder: Path, paths: Mapping[str, Sequence[str]], seed: int) -> Changes:
    """Lower and upper tensors for layers of components, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    found: Changes = {}
    for component, of_it in paths.items():
        layers = dict(network(folder, component).named_modules())
        found[component] = {}
        for path in of_it:
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
    folder: Path,
    changes: Changes,
    settings: Mapping[str, Any] | None = None,
    old: bool = False,
    saver: Any = None,
) -> Path:
    """As diffusers saves it. old: with the names of its older versions. saver: a pipeline; None: as changes say."""
    given: dict[str, Any] = {}
    for component, parts in changes.items():
        is_text = component.startswith("text_encoder")
        ends = ("lora_A", "lora_B")
        if old:
            ends = ("lora_linear_layer.down", "lora_linear_layer.up") if is_text else ("lora.down", "lora.up")
        given[f"{component}_lora_layers"] = {
            f"{_called(component, path)}.{end}.weight": tensor.contiguous()
            for path, pair in parts.items()
            for end, tensor in zip(ends, pair, strict=True)
        }
        if settings:
            own = {**settings, "target_modules": list(parts)}
            given[f"{component}_lora_adapter_metadata"] = (
                {**own, "alpha_pattern": {"q_proj": 5}} if is_text else own
            )
    savers = {"transformer": StableDiffusion3Pipeline, "text_encoder_2": StableDiffusionXLPipeline}
    saver = saver or next((one for name, one in savers.items() if name in changes), StableDiffusionPipeline)
    saver.save_lora_weights(folder, **given)
    return folder / "pytorch_lora_weights.safetensors"


def _called(component: str, path: str) -> str:
    """A layer in files, where every text encoder has the floor that some have lost."""
    floor = "text_model." if component.startswith("text_encoder") else ""
    return floor + path.removeprefix(floor)


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
KOHYA_XL = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def write_kohya(folder: Path, changes: Changes, rename: Callable[[str], str] = str) -> Path:
    """As kohya's trainer saves it. rename: what a layer of the U-Net is called."""
    tensors = {}
    prefixes = KOHYA_XL if "text_encoder_2" in changes else KOHYA
    for component, parts in changes.items():
        for path, (down, up) in parts.items():
            called = rename(path) if component == "unet" else _called(component, path)
            layer = prefixes[component] + called.replace(".", "_")
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up.contiguous()}
            tensors[f"{layer}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def first_names(path: str) -> str:
    """What a layer of the tiny U-Nets is called in the layout of the first Stable Diffusion, as for XL."""
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
    "kohya, first names": lambda folder, changes: write_kohya(folder, changes, first_names),
}


def reference(folder: Path, *files: tuple[Path, float]) -> str:
    return str(Reference(str(folder), loras=tuple(Lora(str(path), weight) for path, weight in files)))


def fused(folder: Path, *files: tuple[Path, float]) -> TextToImage:
    return load(reference(folder, *files))  # type: ignore[arg-type]


def theirs(folder: Path, file: Path, weight: float) -> Tensor:
    """A picture by diffusers, of the noise that we begin with; see the tests of the families."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=weight)
    if type(pipeline) is StableDiffusionPipeline:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False
        )
    images: Tensor = pipeline(
        [PROMPT],
        negative_prompt=["snow"],
        generator=Noise([3], "decoder").generators,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    return 2 * images - 1


def picture(pipe: TextToImage, kind: str = "sd") -> Tensor:
    settings = StageSettings(steps=STEPS, sampler=SAMPLERS.get(kind), guidance_scale=3.0)
    return image_of(drawn(pipe, [PROMPT], [3], "snow", {"decoder": settings}))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("sd", layout) for layout in LAYOUTS if "first" not in layout),
        ("sdxl", "peft with settings"),
        ("sdxl", "kohya, first names"),
        ("sd3", "peft"),
    ],
)
def test_pictures_are_those_of_diffusers(
    models: Callable[[str], Model], kind: str, layout: str, tmp_path: Path
) -> None:
    model = models(kind)
    file = LAYOUTS[layout](tmp_path, model.changes)
    image, other = picture(fused(model.folder, (file, WEIGHT)), kind), theirs(model.folder, file, WEIGHT)
    assert image.std() > 0.05, "a grey picture says nothing"
    assert not torch.allclose(image, model.picture, atol=1e-2)
    difference = float((image - other).abs().max())
    print(kind, layout, "differs by", difference)  # noqa: T201
    assert difference < TOLERANCE


@pytest.mark.parametrize("kind", ["flux", "sana", "z-image", "qwen-image"])
def test_transformers_are_given_the_weights_of_diffusers(kind: str, tmp_path: Path) -> None:
    """Their pictures are compared without a LoRA, in the tests of these families."""
    folder = write(tmp_path / kind, BUILDERS[kind])
    before = network(folder, "transformer")
    paths = [
        path
        for path, layer in before.named_modules()
        if isinstance(layer, nn.Linear) and path.endswith((".to_q", ".to_v", ".to_out.0"))
    ]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    changes = random_changes(folder, {"transformer": paths}, seed=2)
    write_peft(tmp_path, changes, saver=pipeline)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=WEIGHT)
    pipeline.unload_lora_weights()
    (stage,) = [one for one in fused(folder, (file, WEIGHT)).cascade.stages if one.name == "decoder"]
    mine, wanted = stage.networks[0].state_dict(), pipeline.transformer.state_dict()
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(mine[name], value, atol=1e-6, rtol=1e-5)
    for path in paths:
        assert not torch.allclose(mine[f"{path}.weight"], before.state_dict()[f"{path}.weight"], atol=1e-2)


# ---- what is added -------------------------------------------------------------------------------


@pytest.mark.parametrize("component", PATHS)
def test_the_product_is_added_and_nothing_stays_behind(
    component: str, folder: Path, changes: Changes, file: Path
) -> None:
    part, before = network(folder, component), network(folder, component)
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*.safetensors")}
    lora.fuse(part, lora.look(file), component, WEIGHT)
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
    other = write_peft(tmp_path, random_changes(folder, PATHS, seed=2))
    first, second = (network(folder, "unet") for _ in range(2))
    for part, order in ((first, ((file, 0.5), (other, -0.3))), (second, ((other, -0.3), (file, 0.5)))):
        for path, weight in order:
            lora.fuse(part, lora.look(path), "unet", weight)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], atol=1e-6, rtol=0)
    lora.fuse(first, lora.look(file), "unet", -0.5)
    lora.fuse(first, lora.look(other), "unet", 0.3)
    for name, value in network(folder, "unet").state_dict().items():
        torch.testing.assert_close(value, first.state_dict()[name], atol=1e-5, rtol=0)


def test_weights_that_are_read_for_their_turn_are_changed_too(folder: Path, file: Path) -> None:
    model = reference(folder, (file, WEIGHT))
    whole, opened = fused(folder, (file, WEIGHT)), open_model(model, "cpu", "float32")
    models = (whole, opened, load(folder))
    one, other, plain = (pipe(PROMPT, seeds=[3], stages=FAST, progress=False)[0].tobytes() for pipe in models)
    assert one == other != plain
    assert whole.name == f"{folder.name}?lora={file.name}:{WEIGHT:g}"
    assert len({whole.digest, *(facts(one).digest for one in (folder, reference(folder, (file, 0.5))))}) == 3


def test_with_weight_0_the_model_is_itself(models: Callable[[str], Model], file: Path) -> None:
    model = models("sd")
    assert torch.equal(picture(fused(model.folder, (file, 0.0))), model.picture)


@pytest.mark.parametrize("component", PATHS)
def test_the_number_format_stays(component: str, folder: Path, file: Path) -> None:
    part, before = (network(folder, component, torch.bfloat16) for _ in range(2))
    lora.fuse(part, lora.look(file), component)
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
    part, before, held = network(folder, "unet"), network(folder, "unet"), lora.look(file)
    lora.fuse(part, held, "unet")
    down, up = changes["unet"][UNET[0]]
    name = f"{UNET[0]}.weight"
    wanted = before.state_dict()[name] + ALPHA * up[:, :1] @ down[:1]
    torch.testing.assert_close(part.state_dict()[name], wanted, atol=1e-5, rtol=0)
    assert held.parts.keys() == {"unet"}


# ---- what is refused -----------------------------------------------------------------------------

FIRST = f"{UNET[0]}.lora_"


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
        ({"down": torch.ones(0, 8)}, r"has nothing in 'lora_unet_.*lora_down\.weight': get it again"),
        ({"hada_w1_a": torch.ones(8, RANK)}, r"hada_w1_a', which is of no LoRA that mmgen can add"),
        ({"dora_scale": torch.ones(8, 1)}, r"dora_scale', which is of no LoRA"),
    ],
)
def test_a_file_that_is_no_lora(file: Path, changed: dict[str, Tensor | None], says: str) -> None:
    rewrite(file, **changed)
    with pytest.raises(ModelError, match=rf"kohya\.safetensors.*{says}"):
        lora.look(file)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"down": torch.ones(RANK, 4)},
            rf"unet: .* another shape for '{FIRST}A.weight' \(\[3, 4\], not \[3, 8\]\)",
        ),
        ({"up": torch.ones(8, RANK + 1)}, rf"another shape for '{FIRST}B.weight' \(\[8, 4\], not \[8, 3\]\)"),
        ({"up": torch.ones(8, RANK, 1, 1)}, r"\(\[8, 3, 1, 1\], not \[8, 3\]\): they do not fit this model"),
        ({"down": torch.ones(()), "alpha": None}, r"\(\[\], not \[1, 8\]\)"),
        ({"up": torch.ones(8, RANK, dtype=torch.int32)}, f"hold no fractions in '{FIRST}B.weight'"),
        ({"alpha": torch.ones(2)}, r"alpha' is no number for two tensors"),
        ({"up": None}, r"alpha' is no number for two tensors"),
        ({"up": None, "alpha": None}, "the names for unet are of no known kind"),
        ({"down": None, "alpha": None}, "the names for unet are of no known kind"),
    ],
)
def test_tensors_that_fit_no_layer_are_refused_before_one_is_read(
    folder: Path,
    file: Path,
    changed: dict[str, Tensor | None],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rewrite(file, **changed)
    unet, held = network(folder, "unet"), lora.look(file)
    outline = build_network(folder / "unet", type(unet))
    monkeypatch.setattr(lora, "read_tensors", never)
    for refuse in (
        lambda: lora.check(held, {"unet": outline, "text_encoder": network(folder, "text_encoder")}),
        lambda: lora.fuse(unet, held, "unet"),
    ):
        with pytest.raises(ModelError, match=rf"kohya\.safetensors.*{says}"):
            refuse()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"down": torch.full((RANK, 8), torch.nan)}, r"lora_down\.weight' hold NaN or infinity"),
        ({"alpha": torch.tensor(torch.inf)}, r"alpha' hold NaN or infinity"),
    ],
)
def test_numbers_that_can_draw_nothing(
    folder: Path,
    file: Path,
    changed: dict[str, Tensor | None],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are found before the weights of the model are read."""
    monkeypatch.setattr(loading, "_read", never)
    rewrite(file, **changed)
    with pytest.raises(ModelError, match=rf"kohya\.safetensors: the weights .*{says}"):
        fused(folder, (file, WEIGHT))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int64])
def test_an_alpha_may_be_a_whole_number(folder: Path, file: Path, dtype: torch.dtype) -> None:
    found = []
    for alpha in (torch.tensor(2.0), torch.tensor(2, dtype=dtype)):
        rewrite(file, alpha=alpha)
        found.append(network(folder, "unet"))
        lora.fuse(found[-1], lora.look(file), "unet", WEIGHT)
    floats, whole = (part.state_dict() for part in found)
    assert all(torch.equal(value, whole[name]) for name, value in floats.items())


def test_a_file_that_changes_meanwhile(folder: Path, file: Path) -> None:
    unet, held = network(folder, "unet"), lora.look(file)
    rewrite(file, down=torch.ones(RANK, 8))
    with pytest.raises(ModelError, match=r"kohya\.safetensors has changed since it was checked: start again"):
        lora.fuse(unet, held, "unet")


def never(*_: object) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    "name", ["unet.down_blocks.9.conv", "unet.conv_norm_out", "text_encoder.encoder.layers.7.mlp.fc1"]
)
def test_a_layer_that_is_not_there(folder: Path, tmp_path: Path, name: str) -> None:
    component, _, path = name.partition(".")
    tensors = {f"{name}.lora_{end}.weight": torch.ones(2, 2) for end in "AB"}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        ModelError, match=rf"x\.safetensors, {component}: .* hold also '{path}.lora_A.weight'"
    ):
        lora.fuse(network(folder, component), lora.look(tmp_path / "x.safetensors"), component)


def test_one_of_two_tensors(folder: Path, tmp_path: Path) -> None:
    save_file({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"unet: the weights lack 'conv_in.lora_B.weight'"):
        lora.fuse(network(folder, "unet"), lora.look(tmp_path / "x.safetensors"), "unet")


def test_a_file_for_another_kind_of_model(folder: Path, tmp_path: Path) -> None:
    save_file(
        {f"lora_te2_a.lora_{end}.weight": torch.ones(2, 2) for end in ("down", "up")},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ModelError, match=r"x\.safetensors changes text_encoder_2, and the model has no such"):
        lora.check(lora.look(tmp_path / "x.safetensors"), {"unet": network(folder, "unet")})


def test_files_that_are_damaged_or_of_another_kind(folder: Path, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    for name in ("x.ckpt", "x.pt", "x.bin", "x"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n")
        with pytest.raises(ModelError, match=f"^{name} is refused: only safetensors is read"):
            lora.look(tmp_path / name)
    for content, says in ((data[:100], CUT), (data[:-5], "cut off or damaged"), (b"", CUT)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=says):
            lora.look(file)
    save_file({}, file)
    with pytest.raises(ModelError, match=r"kohya\.safetensors has nothing in it"):
        lora.look(file)
    with pytest.raises(ModelError, match=r"the LoRA none\.safetensors is not there: give a"):
        lora.look(tmp_path / "none.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in _tensors(data, tmp_path).items()}, file)
    with pytest.raises(ModelError, match="is filled with zeros"):
        fused(folder, (file, WEIGHT))


def test_a_file_that_is_too_large(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"kohya\.safetensors has [0-9,]+ bytes: of a LoRA at most 1,000"):
        lora.look(file)


def test_what_is_no_lora_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"model.diffusion_model.out.2.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(lora, "safe_open", never)
    with pytest.raises(ModelError, match="which is of no LoRA that mmgen can add"):
        lora.look(tmp_path / "model.safetensors")


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
        lora.fuse(network(folder, "unet"), lora.look(tmp_path / "x.safetensors"), "unet")


def test_a_sum_that_is_no_number(folder: Path, file: Path) -> None:
    rewrite(file, alpha=torch.tensor(3e38))
    part = network(folder, "unet")
    with pytest.raises(ModelError, match=r"kohya\.safetensors with weight 10 gives NaN or infinity"):
        lora.fuse(part, lora.look(file), "unet", 10.0)
    assert not any("lora" in name for name, _ in part.named_modules())


def test_without_peft_it_is_said_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'mmgen\[lora\]'"):
        lora.look(file)
