"""Published layouts through our stages beside diffusers' own pipelines, with the same random weights, in one run.

    python benchmarks/published.py
    python benchmarks/published.py tiny     # does the code run? its figures say nothing

Every figure is of a process of its own, in turns; the middle one of three is taken. Start-up: from the start of Python
until the model is loaded. Seconds for a picture: the middle of three, after one that is not counted. Peak: the most
that the process had in memory. Same steps, guidance, sampler and side on all lines; tuned: bfloat16, channels last.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).resolve().parents[1]
REPEATS, STEPS = 3, 8
PROMPT = "two cats and a big red balloon on the left of a tree in the snow at night"
OURS = """
import mmgen
from mmgen.types import StageSettings
pipe = mmgen.load(folder, device="cpu", dtype=dtype)
stages = {"decoder": StageSettings(steps=steps, guidance_scale=5.0, sampler=sampler)}
def draw(): return pipe(prompt, seeds=[1], stages=stages, progress=False)[0]
"""
THEIRS = """
import torch, diffusers
diffusers.utils.logging.set_verbosity_error()
pipe = diffusers.DiffusionPipeline.from_pretrained(
    folder, torch_dtype=getattr(torch, dtype), local_files_only=True, safety_checker=None)
if tuned:
    for name in ("unet", "vae"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(memory_format=torch.channels_last)
if sampler == "dpmpp-2m":
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
def draw(): return pipe(prompt, num_inference_steps=steps, guidance_scale=5.0,
                        generator=torch.Generator().manual_seed(1)).images[0]
"""
TIMED = """
import sys, time, json
began = float(sys.argv[1])
folder, dtype, sampler, steps, tuned, prompt = json.loads(sys.argv[2])
{setup}
up = time.time() - began
draw()
spent = []
for _ in range(3):
    at = time.perf_counter(); draw(); spent.append(time.perf_counter() - at)
from mmgen.memory import peak_bytes
print(json.dumps([up, sorted(spent)[1], peak_bytes(__import__("torch").device("cpu"))]))
"""
# name -> (set-up, number format, tuned)
WAYS = {
    "diffusers": (THEIRS, "float32", False),
    "diffusers, tuned": (THEIRS, "bfloat16", True),
    "mmgen, float32": (OURS, "float32", False),
    "mmgen": (OURS, "bfloat16", False),
}


def layouts(place: Path, *, tiny: bool) -> Iterator[tuple[str, Path, str]]:
    """Name, folder and sampler of each layout, with the same random weights at every run."""
    sys.path.append(str(ROOT))  # the tests write the same layouts, smaller
    from plan import IF, SD, VAE

    from tests.checkpoints import write_deepfloyd, write_stable_diffusion

    torch.manual_seed(0)
    latent = write_stable_diffusion(place / "Stable Diffusion", **({} if tiny else VAE))
    if not tiny:
        UNet2DConditionModel(**SD).save_pretrained(latent / "unet")
    yield "Stable Diffusion", latent, "dpmpp-2m"
    yield "DeepFloyd IF, I", write_deepfloyd(place / "IF", **({} if tiny else IF)), "ddpm"


def measure(folder: Path, way: str, sampler: str) -> tuple[float, float, float]:
    """Start-up in seconds, seconds for a picture, and bytes at once."""
    setup, dtype, tuned = WAYS[way]
    told = json.dumps([str(folder), dtype, sampler, STEPS, tuned, PROMPT])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TIMED.format(setup=setup), str(time.time()), told],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-2000:]}")
    up, spent, peak = json.loads(done.stdout.splitlines()[-1])
    return up, spent, peak


def main() -> None:
    """Print a table for each layout."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {STEPS} steps, guidance 5")
    with tempfile.TemporaryDirectory() as place:
        for name, folder, sampler in layouts(Path(place), tiny="tiny" in sys.argv[1:]):
            found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
            for _ in range(1 if "tiny" in sys.argv[1:] else REPEATS):
                for way in WAYS:
                    found[way].append(measure(folder, way, sampler))
            print(f"\n{name:18} {'start-up s':>10} {'a picture s':>11} {'peak MB':>8}")
            for way, rows in found.items():
                up, spent, peak = (statistics.median(column) for column in zip(*rows, strict=True))
                print(f"{way:18} {up:10.2f} {spent:11.2f} {peak / 1e6:8.0f}")


if __name__ == "__main__":
    main()
