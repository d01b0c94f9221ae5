"""The trainer: it continues exactly, loses nothing when killed, and refuses what cannot be trained."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mmgen.errors import ModelError, UsageError
from mmgen.models import presets
from mmgen.models.efficient_unet import EfficientUNet
from mmgen.models.text import TextEncoder
from mmgen.pipelines.super_res_stage import enlarge
from mmgen.training import muon, recipes, start, trainer
from mmgen.training.data import Batch, FolderSource, Order
from mmgen.training.degrade import Redraw
from mmgen.training.losses import ROUND, contrastive_loss
from mmgen.training.recipes import DecoderRecipe, DualEncoderRecipe, PriorRecipe, SuperResRecipe
from mmgen.training.trainer import Budget, State, train
from tests.checkpoints import write_bert

FILES = ("trained.safetensors", "ema.safetensors", "optimizer.safetensors")


class Decoder(DecoderRecipe):
    """Without its sheet, and stopped as by Ctrl-C or a broken disk where a test says so."""

    stop_at: int | None = None
    poison: Callable[[int], bool] = staticmethod(lambda _index: False)

    def loss(self, order: Order, drawn: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if order.index == self.stop_at:
            raise KeyboardInterrupt
        loss, figures = super().loss(order, drawn, generator)
        return (loss * math.nan if self.poison(order.index) else loss), figures

    def sheet(self, network: torch.nn.Module, path: Path) -> dict[str, float]:
        return {"drawn": 1.0}


@pytest.fixture
def recipe(pictures: Path, encoder: TextEncoder) -> Callable[..., Decoder]:
    def make(stop_at: int | None = None, **options: Any) -> Decoder:
        torch.manual_seed(0)
        made = Decoder(presets.decoder_tiny(), FolderSource(pictures, 0), encoder, batch=4, **options)
        made.stop_at = stop_at
        return made

    return make


@pytest.fixture(autouse=True)
def save_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(muon, "MATRIX_SIDE", 8)  # tiny networks have no larger ones
    monkeypatch.setattr(trainer, "WARMUP_STEPS", 2)  # so that the decay shows within six steps


def first(recipe: Any, index: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    order = recipe.order(index, 0.9)
    return recipe.loss(order, recipe.source.draw(order), generator)


def quiet(line: str) -> None:
    pass


def run(recipe: Decoder, out: Path, steps: int = 6, *, resume: bool = False, seed: int = 0) -> State:
    return train(recipe, out, Budget(steps=steps), seed=seed, resume=resume, say=quiet)


def tensors(out: Path) -> dict[str, Tensor]:
    return {f"{file}/{k}": v for file in FILES for k, v in load_file(out / "checkpoint" / file).items()}


def same(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stopped(recipe: Callable[..., Decoder], out: Path, at: int = 3) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe(stop_at=at), out)


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(
    recipe: Callable[..., Decoder], tmp_path: Path
) -> None:
    whole = run(recipe(), tmp_path / "whole")
    stopped(recipe, tmp_path / "parts")
    assert not same(tmp_path / "whole", tmp_path / "parts")
    resumed = run(recipe(), tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert (resumed.step, resumed.pictures) == (whole.step, whole.pictures) == (6, 6 * 4 + 2 * 4)
    names = [name for name in tensors(tmp_path / "whole") if name.startswith("optimizer")]
    assert {name.rsplit(".", 1)[1] for name in names} == {"momentum", "step", "exp_avg", "exp_avg_sq"}


def test_workers_draw_what_the_run_itself_would_have_drawn(
    recipe: Callable[..., Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe(), tmp_path / "alone", 4)
    monkeypatch.setattr(trainer, "workers", lambda _device: 2)
    run(recipe(), tmp_path / "helped", 4)
    assert same(tmp_path / "alone", tmp_path / "helped")


def test_ctrl_c_ends_the_run_after_its_step_and_loses_nothing(
    recipe: Callable[..., Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1e9)
    made = recipe()
    made.poison = lambda index: bool(index == 3 and os.kill(os.getpid(), signal.SIGINT))  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "checkpoint" / "state.json").read_text("utf-8"))["step"] == 4
    run(recipe(), tmp_path / "parts", resume=True)
    run(recipe(), tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_data_that_cannot_be_read_loses_nothing(
    recipe: Callable[..., Decoder], tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1e9)
    made = recipe()
    made.poison = lambda index: index == 2 and [p.write_bytes(b"") for p in pictures.glob("*.png")] == []  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        run(made, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text("utf-8"))["step"] == 3


def test_another_seed_is_another_run(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "one", 2)
    run(recipe(), tmp_path / "two", 2, seed=1)
    assert not same(tmp_path / "one", tmp_path / "two")


def test_the_learning_rate_follows_the_whole_budget() -> None:
    budget = Budget(steps=100)

    def factor(step: int) -> float:
        return budget.lr_factor(State("decoder", 0, step=step))

    assert [factor(0), factor(1), factor(70)] == [0.5, 1.0, 1.0]
    assert factor(85) == pytest.approx(0.5)
    assert factor(100) == 0
    half = Budget(minutes=2).progress(State("decoder", 0, seconds=60))
    assert half == 0.5


@pytest.mark.parametrize(
    "amounts",
    [
        {"minutes": 0},
        {"minutes": math.nan},
        {"minutes": -1},
        {"minutes": math.inf},
        {"steps": 0},
        {},
        {"minutes": 1, "steps": 1},
    ],
)
def test_a_budget_that_cannot_be_spent(amounts: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"budget|minutes or steps"):
        Budget(**amounts)


def test_the_loss_falls_on_two_pictures(
    recipe: Callable[..., Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1e9)
    monkeypatch.setattr(recipes, "SMALL_UNTIL", 0.0)
    made = recipe(lr=5e-3)
    made.source.items = made.source.items[:2]  # type: ignore[attr-defined]
    before, after = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            before.append(first(made, seed, generator)[0].item())
    run(made, tmp_path / "run", 60)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            after.append(first(made, seed, generator)[0].item())
    assert sum(after) < 0.6 * sum(before)


def test_the_trained_network_can_be_loaded(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "run", 2)
    network = EfficientUNet.from_pretrained(tmp_path / "run" / "decoder", torch_dtype=torch.float32)
    average = load_file(tmp_path / "run" / "checkpoint" / "ema.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(value, average[name].bfloat16().float())
    entry = json.loads((tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()[-1])
    assert (entry["part"], entry["step"]) == ("decoder", 2)
    assert math.isfinite(entry["loss"])
    assert entry["drawn"] == 1


def test_only_the_newest_checkpoint_is_kept(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "run", 3)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint", "decoder", "log.jsonl"]
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text("utf-8"))["step"] == 3


# Killed while it saves.


@pytest.mark.parametrize("file", ["ema.safetensors", "optimizer.safetensors"])
def test_a_save_that_breaks_off_leaves_the_one_before(
    recipe: Callable[..., Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    run(recipe(), tmp_path / "whole")
    out, save, saves = tmp_path / "run", trainer.save_file, []

    def breaks(values: dict[str, Tensor], path: Path) -> None:
        saves.append(path)
        if len(saves) > 3 * 3 and path.name == file:  # in the fourth checkpoint
            raise OSError("no space left")
        save(values, path)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_file", breaks)
        with pytest.raises(OSError, match="no space left"):
            run(recipe(), out)
    assert (out / "checkpoint-new").is_dir()
    assert run(recipe(), out, resume=True).step == 6
    assert same(out, tmp_path / "whole")
    assert not (out / "checkpoint-new").exists()


@pytest.mark.parametrize("keeps", ["both", "only new", "only old", "a broken new"])
def test_a_run_killed_between_the_renames_is_not_lost(
    recipe: Callable[..., Decoder], tmp_path: Path, keeps: str
) -> None:
    run(recipe(), tmp_path / "whole")
    out = tmp_path / "run"
    stopped(recipe, out)
    if keeps in ("both", "a broken new"):
        shutil.copytree(out / "checkpoint", out / "checkpoint-old")
    os.replace(out / "checkpoint", out / ("checkpoint-old" if keeps == "only old" else "checkpoint-new"))
    if keeps == "a broken new":
        (out / "checkpoint-new" / "state.json").write_text('{"part": "dec', "utf-8")
    with pytest.raises(UsageError, match="holds a run"):
        run(recipe(), out)
    run(recipe(), out, resume=True)
    assert same(out, tmp_path / "whole")


def test_a_first_save_that_breaks_off_is_no_run(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoint-new").mkdir(parents=True)
    (out / "checkpoint-new" / "network.safetensors").write_bytes(b"half")
    with pytest.raises(UsageError, match="run holds no run to resume"):
        run(recipe(), out, resume=True)
    assert run(recipe(), out, 1).step == 1


# Gradients that are not finite.


def test_a_step_that_is_not_finite_is_skipped(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    made = recipe(stop_at=3)
    made.poison = lambda index: index == 2  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "skipped")
    stopped(recipe, tmp_path / "two", at=2)
    assert same(tmp_path / "skipped", tmp_path / "two")
    assert json.loads((tmp_path / "skipped" / "checkpoint" / "state.json").read_text("utf-8"))["step"] == 3


def test_twenty_in_a_row_end_the_run(
    recipe: Callable[..., Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1e9)
    made = recipe()
    asked: list[int] = []
    made.poison = lambda index: asked.append(index) or index != 5  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(ModelError, match=r"20 steps in a row .* lower the learning rate"):
        run(made, tmp_path / "run", 100)
    assert asked[-1] == 25


# What is refused.


def test_a_run_is_neither_overwritten_nor_invented(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run holds no run to resume"):
        run(recipe(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    run(recipe(), tmp_path / "run", 1)
    before = tensors(tmp_path / "run")
    with pytest.raises(UsageError, match="run holds a run: continue it with --resume"):
        run(recipe(), tmp_path / "run", 1)
    after = tensors(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_of_another_part_is_not_resumed(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "run", 1)
    made = recipe()
    made.part = "prior"
    with pytest.raises(UsageError, match="run trains the decoder, not the prior"):
        run(made, tmp_path / "run", 2, resume=True)


def test_a_run_of_another_seed_is_not_resumed(recipe: Callable[..., Decoder], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "run", 1, seed=5)
    with pytest.raises(UsageError, match="run was begun with seed 5: give --seed 5"):
        run(recipe(), tmp_path / "run", 2, resume=True)


def test_start_asks_for_what_is_missing(tmp_path: Path, pictures: Path) -> None:
    def begin(part: str, data: str = str(pictures), **options: Any) -> None:
        start.start(part, data, tmp_path / "run", Budget(steps=1), **options)

    with pytest.raises(UsageError, match="no part 'decodr' to train: choose one of dual-encoder, prior"):
        begin("decodr")
    with pytest.raises(UsageError, match="mmgen train dual-encoder --data storybook --out RUN"):
        begin("prior")
    with pytest.raises(UsageError, match="no text encoder in nothing: give --text FOLDER"):
        begin("decoder", text=tmp_path / "nothing")
    with pytest.raises(UsageError, match="give 'storybook' or a folder"):
        begin("super-res", "nowhere")
    with pytest.raises(UsageError, match="--text and --dual-encoder go with --decoder"):
        begin("super-res", text=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_given_weights(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "super_res_storybook", presets.super_res_tiny)
    torch.manual_seed(3)
    given = presets.super_res_tiny()
    trainer.save_network(given, tmp_path / "given")
    recipe = start._recipe("super-res", str(pictures), tmp_path / "given", None, None, None, 0)
    for name, value in recipe.network.state_dict().items():
        assert torch.equal(value, given.state_dict()[name].bfloat16().float())
        assert value.dtype == torch.float32
    assert recipe.network.training
    assert all(p.requires_grad for p in recipe.network.parameters())


def test_weights_to_begin_with_must_fit(tmp_path: Path, pictures: Path) -> None:
    def begin(init: Path, resume: bool = False) -> None:
        start.start("super-res", str(pictures), tmp_path / "run", Budget(steps=1), init=init, resume=resume)

    trainer.save_network(presets.super_res_tiny(), tmp_path / "given")
    with pytest.raises(ModelError, match=r"given has sample_size 64, the super-res has 256"):
        begin(tmp_path / "given")
    with pytest.raises(UsageError, match="give either --resume or --init"):
        begin(tmp_path / "given", resume=True)
    trainer.save_network(presets.decoder_tiny(), tmp_path / "other")
    with pytest.raises(ModelError, match=r"other has sample_size 16, the super-res has 256"):
        begin(tmp_path / "other")
    (tmp_path / "given" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"given/config.json"):
        begin(tmp_path / "given")
    assert not (tmp_path / "run").exists()


def test_start_without_a_dual_encoder_folder(tmp_path: Path, pictures: Path) -> None:
    text_folder = write_bert(tmp_path / "text", num_hidden_layers=start.TEXT_LAYER)
    with pytest.raises(UsageError, match=r"no dual encoder in .*nothing: give the folder"):
        start.start(
            "prior",
            str(pictures),
            tmp_path / "run",
            Budget(steps=1),
            text=text_folder,
            dual_encoder=tmp_path / "nothing",
        )


def test_a_fresh_decoder_begins_with_the_unfolding_that_the_dual_encoder_learned(
    tmp_path: Path, pictures: Path
) -> None:
    text = write_bert(tmp_path / "text", num_hidden_layers=start.TEXT_LAYER)
    dual = presets.dual_encoder_storybook()
    trainer.save_network(dual, tmp_path / "dual")
    made = start._recipe("decoder", str(pictures), None, text, tmp_path / "dual", None, 0)
    assert torch.equal(made.network.unfold.linear.weight, dual.unfold.linear.weight.bfloat16().float())
    alone = start._recipe("decoder", str(pictures), None, text, None, None, 0)
    assert not torch.equal(alone.network.unfold.linear.weight, made.network.unfold.linear.weight)


# Every recipe takes a step.


def test_every_recipe_gives_a_loss_that_teaches(pictures: Path, encoder: TextEncoder) -> None:
    source, dual = FolderSource(pictures, 0), presets.dual_encoder_tiny().eval()
    recipes: list[Any] = [
        DecoderRecipe(presets.decoder_tiny(), source, encoder, dual, batch=3),
        DualEncoderRecipe(presets.dual_encoder_tiny(), source, encoder, batch=3),
        PriorRecipe(presets.prior_tiny(), source, encoder, dual, batch=3),
        SuperResRecipe(presets.super_res_tiny(), source, batch=3, crop=32),
        SuperResRecipe(
            presets.super_res_tiny(), source, Redraw(presets.decoder_tiny().eval(), encoder, dual), crop=32
        ),
    ]
    for made in recipes:
        loss, figures = first(made, 0, torch.Generator().manual_seed(0))
        loss.backward()
        assert math.isfinite(loss.item())
        assert loss.item() > 0
        assert all(math.isfinite(value) for value in figures.values())
        assert any(p.grad is not None and p.grad.any() for p in made.network.parameters()), made.part
    assert not any(p.grad is not None for p in dual.parameters())


def test_super_resolution_pays_for_edges_and_more_for_what_is_wrong_in_the_small_picture(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "MAX_BLUR", 0.0)
    monkeypatch.setattr(recipes, "MAX_NOISE_LEVEL", 0.0)
    recipe = SuperResRecipe(presets.super_res_tiny(), FolderSource(pictures, 0), batch=3, crop=32)
    order = recipe.order(0, 0.0)
    drawn = recipe.source.draw(order)
    # untrained it says that nothing lacks
    x0 = drawn.tensor(torch.device("cpu"))
    lacks = (x0 - enlarge(avg_pool2d(x0, 4))) / 0.25
    expected = (lacks.square() + ROUND**2).sqrt().mean()
    expected = expected + 2 * (avg_pool2d(lacks, 4).square() + ROUND**2).sqrt().mean()
    loss, _ = recipe.loss(order, drawn, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, expected)


def test_two_batches_of_three_go_from_the_decoder_up(pictures: Path, encoder: TextEncoder) -> None:
    redraw = Redraw(presets.decoder_tiny().eval(), encoder, None)
    recipe = SuperResRecipe(presets.super_res_tiny(), FolderSource(pictures, 0), redraw, crop=32)
    orders = [recipe.order(index, 0.5) for index in range(6)]
    assert [(o.count, o.px, o.source_size) for o in orders] == 2 * [
        (6, 64, None),
        (6, 64, None),
        (24, 32, 256),
    ]


def test_autocast_does_not_blur_the_contrastive_loss() -> None:
    image, text = torch.nn.functional.normalize(
        torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)), dim=2
    )
    exact = contrastive_loss(image, text, torch.tensor(4.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(image, text, torch.tensor(4.0)), exact)


def test_a_sheet_shows_the_prompts(pictures: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    from PIL import Image

    made = DecoderRecipe(presets.decoder_tiny(), FolderSource(pictures, 0), encoder)
    made.sheet(made.network, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 16 * 2, 4 * 16 * 2)
