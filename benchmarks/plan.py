"""What `mmgen plan` predicts beside what a run takes: bytes at once, and seconds.

    python benchmarks/plan.py
    python benchmarks/plan.py tiny      # does the code run? its figures say nothing

Every figure is of a process of its own, which draws one picture as `mmgen batch` does, the weights of each stage in
memory for its turn. Its peak is what Linux says was the most in memory (VmHWM) since all libraries were there and each
kind of operation had run once; the middle one of three processes is taken. Two models are random weights in the layouts
of Stable Diffusion and DeepFloyd IF.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from mmgen.memory import keep_little, peak_bytes
from mmgen.pipelines.loading import open_model
from mmgen.types import StageSettings

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
PROMPT = "two cats and a big red balloon on the left of a tree in the snow at night"
REPEATS = 3
STEPS = 8  # of the decoder, so that the table is there in a few minutes
SD = {
    "sample_size": 32, "block_out_channels": (128, 256, 384), "layers_per_block": 2, "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
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


@dataclass(frozen=True)
class Trial:
    """One line of the table. warm: a tiny model of the same layout, which is drawn with first."""

    name: str
    model: str
    size: int
    dtype: str
    warm: str


def trials(folder: Path, *, tiny: bool) -> Iterator[Trial]:
    """The bundled model at its sizes, then published layouts of random weights."""
    sys.path.append(str(ROOT))  # the tests write the same layouts, smaller
    from tests.checkpoints import write_deepfloyd, write_stable_diffusion, write_tiny

    warm = [str(write(folder / name)) for name, write in (
        ("storybook", write_tiny), ("latent", write_stable_diffusion), ("pixel", write_deepfloyd)
    )]  # fmt: skip
    if tiny:
        yield Trial("Storybook", warm[0], 64, "float32", warm[0])
        return
    for dtype, size in (("bfloat16", 64), ("bfloat16", 256), ("bfloat16", 1024), ("float32", 1024)):
        yield Trial("storybook", "storybook", size, dtype, warm[0])
    latent = write_stable_diffusion(folder / "Stable Diffusion", **VAE)
    torch.manual_seed(0)
    UNet2DConditionModel(**SD).save_pretrained(latent / "unet")
    yield Trial("Stable Diffusion", str(latent), 256, "float32", warm[1])
    yield Trial("DeepFloyd IF", str(write_deepfloyd(folder / "IF", **IF)), 64, "float32", warm[2])


def main() -> None:
    """Print the table, or measure one run and print it as JSON."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measured(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(
            "| model | px | dtype | weights | predicted MB | measured MB | off by | predicted s | taken s | ratio |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for trial in trials(Path(folder), tiny=sys.argv[1:] == ["tiny"]):
            print(row(trial, predicted(trial), [in_new_process(trial) for _ in range(REPEATS)]), flush=True)


def row(trial: Trial, plan: Mapping[str, Any], runs: list[dict[str, float]]) -> str:
    """One line of the table."""
    peak = statistics.median(run["peak"] for run in runs)
    seconds = statistics.median(run["seconds"] for run in runs)
    figures = (
        f"{plan['weights'] / 1e6:.0f} | {plan['peak'] / 1e6:.0f} | {peak / 1e6:.0f} | {plan['peak'] / peak - 1:+.1%}",
        f"{plan['seconds']:.2f} | {seconds:.2f} | {plan['seconds'] / seconds:.2f}",
    )
    return f"| {trial.name} | {trial.size} | {trial.dtype} | {' | '.join(figures)} |"


def predicted(trial: Trial) -> dict[str, Any]:
    """What `mmgen plan --json` says."""
    command = ["plan", "--model", trial.model, "--size", str(trial.size), "--dtype", trial.dtype,
               "--set", f"decoder.steps={STEPS}"]  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-m", "mmgen.cli.main", *command, "--device", "cpu", "--prompts", "1", "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def in_new_process(trial: Trial) -> dict[str, float]:
    """What `measured` says in a process of its own."""
    command = [sys.executable, __file__, "measure", trial.model, str(trial.size), trial.dtype, trial.warm]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def measured(model: str, size: int, dtype: str, warm: str) -> dict[str, float]:
    """Bytes above what the libraries take, and the seconds of all stages, of one picture."""
    keep_little()  # as `mmgen batch --memory` does
    small = open_model(warm, "cpu", dtype)  # so that libraries have begun all that they begin once
    small.run(small.request(PROMPT, seeds=[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes(CPU)
    opened = open_model(model, "cpu", dtype)
    result = opened.run(
        opened.request(PROMPT, seeds=[1], size=size, stages={"decoder": StageSettings(steps=STEPS)})
    )
    return {
        "peak": peak_bytes(CPU) - before,
        "seconds": sum(record.seconds for record in result.records),
    }


if __name__ == "__main__":
    main()
