"""What `mmgen plan` predicts beside what a run takes: bytes at once, and seconds.

    python benchmarks/plan.py
    python benchmarks/plan.py tiny      # does the code run? its figures say nothing

Every figure is of a process of its own, which draws as `mmgen batch --memory` does, the weights of each stage in memory
for its turn. Its peak is what Linux says was the most in memory (VmHWM) since all libraries were there and each kind of
operation had run once; seconds are those of all stages, without the reading of weights, which plan leaves out too. The
models beside storybook are random weights in the layouts of Stable Diffusion, DeepFloyd IF, Stable Diffusion XL and
Karlo. Held out: no constant in mmgen that says bytes was chosen by that line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from mmgen.memory import peak_bytes
from mmgen.pipelines.text_to_image import TextToImage
from mmgen.render.engine import Done, draw
from mmgen.render.jobs import Job
from mmgen.render.planning import plan_batch
from mmgen.render.pool import Setup
from mmgen.render.windows import batches, windows
from mmgen.types import Request, StageSettings

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
PROMPT = "two cats and a big red balloon on the left of a tree in the snow at night"
STEPS = 8  # of the decoder, so that the table is there in a few minutes
ROOM = 16 * 10**9  # more than any line takes
SD = {
    "sample_size": 32, "block_out_channels": (128, 256, 384), "layers_per_block": 2, "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
# pictures that take more than weights, with heads as wide as those of the other one
LARGE = {"sample_size": 64, "block_out_channels": (32, 64, 128), "attention_head_dim": 2}
VAE = {
    "block_out_channels": (64, 128, 256, 256), "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
IF = {
    "sample_size": 64, "block_out_channels": (128, 256, 384), "layers_per_block": 2, "attention_head_dim": 64,
    "norm_num_groups": 32, "cross_attention_dim": 256, "addition_embed_type_num_heads": 2,
    "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
}  # fmt: skip
XL = {
    "sample_size": 32, "block_out_channels": (96, 192, 384), "layers_per_block": 2, "norm_num_groups": 32,
    "attention_head_dim": (2, 4, 8), "transformer_layers_per_block": (1, 2, 4),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
}  # fmt: skip
KARLO: Mapping[str, dict[str, Any]] = {
    "prior": {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 8},
    "decoder": {
        "sample_size": 64, "block_out_channels": (128, 256, 384), "layers_per_block": 2, "attention_head_dim": 64,
        "norm_num_groups": 32, "cross_attention_dim": 256,
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
    },
    "text_proj": {"cross_attention_dim": 256, "time_embed_dim": 512},
    "super_res_last": {
        "sample_size": 256, "block_out_channels": (32, 64, 128), "norm_num_groups": 32,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 3, "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One line of the table. warm: a tiny model of the same layout, which is drawn with first. at_once: pictures."""

    name: str
    model: str
    size: int
    dtype: str
    warm: str
    held_out: bool = False
    at_once: int = 1

    def setup(self) -> Setup:
        return Setup(self.model, "png", "cpu", self.dtype, memory=ROOM)


def trials(folder: Path, *, tiny: bool) -> Iterator[Trial]:
    """The bundled model at its sizes, then published layouts of random weights."""
    sys.path.append(str(ROOT))  # the tests write the same layouts, smaller
    from tests.checkpoints import write_deepfloyd, write_stable_diffusion, write_tiny

    warm = [str(write(folder / name)) for name, write in (
        ("storybook", write_tiny), ("latent", write_stable_diffusion), ("pixel", write_deepfloyd)
    )]  # fmt: skip
    if tiny:
        yield Trial("Storybook", warm[0], 64, "float32", warm[0], at_once=2)
        return
    for dtype, size in (("bfloat16", 64), ("bfloat16", 256), ("bfloat16", 1024), ("float32", 1024)):
        yield Trial("storybook", "storybook", size, dtype, warm[0])
    latent = write_stable_diffusion(folder / "Stable Diffusion", **VAE)
    torch.manual_seed(0)
    UNet2DConditionModel(**SD).save_pretrained(latent / "unet")
    yield Trial("Stable Diffusion", str(latent), 256, "float32", warm[1])
    yield Trial("DeepFloyd IF", str(write_deepfloyd(folder / "IF", **IF)), 64, "float32", warm[2])
    yield Trial("storybook", "storybook", 256, "float32", warm[0], held_out=True)
    for size in (256, 1024):
        yield Trial("storybook", "storybook", size, "bfloat16", warm[0], held_out=True, at_once=4)
    large = write_stable_diffusion(folder / "large", **VAE)
    torch.manual_seed(0)
    UNet2DConditionModel(**{**SD, **LARGE}).save_pretrained(large / "unet")
    yield Trial("Stable Diffusion", str(large), 512, "float32", warm[1], held_out=True)
    yield from larger(folder)


def larger(folder: Path) -> Iterator[Trial]:
    """Layouts that nothing was chosen by."""
    from tests.pipelines.test_karlo import write_karlo
    from tests.pipelines.test_sdxl import write_sdxl

    warm = str(write_sdxl(folder / "tiny XL"))
    wide = write_sdxl(folder / "XL", unet=XL, vae=VAE)
    yield Trial("Stable Diffusion XL", str(wide), 256, "float32", warm, held_out=True)
    yield Trial("Stable Diffusion XL", str(wide), 256, "bfloat16", warm, held_out=True)
    warm = str(write_karlo(folder / "tiny Karlo"))
    karlo = write_karlo(folder / "Karlo", **KARLO)
    first = {
        **json.loads((karlo / "super_res_first" / "config.json").read_text("utf-8")),
        **KARLO["super_res_last"],
    }
    UNet2DModel.from_config(first).save_pretrained(karlo / "super_res_first")
    yield Trial("Karlo", str(karlo), 256, "float32", warm, held_out=True)


def main() -> None:
    """Print the table, or what one process says of one line, as JSON."""
    if sys.argv[1:2] in (["predicted"], ["measured"]):
        say = predicted if sys.argv[1] == "predicted" else measured
        print(json.dumps(say(Trial(**json.loads(sys.argv[2])))))
        return
    print(f"{torch.get_num_threads()} of this machine's cores")
    figures = "predicted MB | measured MB | off by | predicted s | taken s | ratio"
    print(f"| model | px | dtype | pictures | weights | {figures} |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials(Path(folder), tiny=sys.argv[1:2] == ["tiny"]):
            said = [in_new_process(what, trial) for what in ("predicted", "measured")]
            print(row(trial, *said), flush=True)


def row(trial: Trial, plan: Mapping[str, float], run: Mapping[str, float]) -> str:
    """One line of the table."""
    peak, seconds = run["peak"], run["seconds"]
    figures = (
        f"{plan['weights'] / 1e6:.0f} | {plan['peak'] / 1e6:.0f} | {peak / 1e6:.0f} | {plan['peak'] / peak - 1:+.1%}",
        f"{plan['seconds']:.2f} | {seconds:.2f} | {plan['seconds'] / seconds:.2f}",
    )
    name = f"{trial.name}, held out" if trial.held_out else trial.name
    return f"| {name} | {trial.size} | {trial.dtype} | {trial.at_once} | {' | '.join(figures)} |"


def in_new_process(what: str, trial: Trial) -> dict[str, float]:
    """What `predicted` or `measured` says in a process of its own."""
    command = [sys.executable, __file__, what, json.dumps(asdict(trial))]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def opened(trial: Trial) -> TextToImage:
    """As `mmgen batch --memory` opens it, but that on a CPU too it may draw several at once."""
    model = trial.setup().open()
    model.batch_size = trial.at_once
    return model


def asked(model: TextToImage, trial: Trial, seed: int) -> Request:
    return model.request(
        PROMPT, seeds=[seed], size=trial.size, stages={"decoder": StageSettings(steps=STEPS)}
    )


def predicted(trial: Trial) -> dict[str, float]:
    """What `mmgen plan --memory SIZE --prompts N` says."""
    model = opened(trial)
    plan = plan_batch(model, asked(model, trial, 0), trial.setup().budget(model), trial.at_once)
    assert plan.seconds is not None
    return {"weights": plan.weights, "peak": plan.peak, "seconds": plan.seconds}


def measured(trial: Trial) -> dict[str, float]:
    """Bytes above what the libraries take, and the seconds of all stages and pictures."""
    small = Setup(trial.warm, "png", "cpu", trial.dtype, memory=ROOM).open()
    small.run(small.request(PROMPT, seeds=[1]))  # so that libraries have begun all that they begin once
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes(CPU)
    model, done = opened(trial), list[Done]()
    jobs = [Job(i, i, asked(model, trial, i), f"{i}.png") for i in range(1, trial.at_once + 1)]
    budget = trial.setup().budget(model)
    with tempfile.TemporaryDirectory() as folder:
        cut = windows(batches(jobs, model.batch_size), lambda _job: False, model.sizes, budget)
        draw(cut, done.append, model=model, folder=Path(folder), budget=budget)
    assert all(one.image is not None for one in done)
    return {"peak": peak_bytes(CPU) - before, "seconds": sum(one.seconds for one in done)}


if __name__ == "__main__":
    main()
