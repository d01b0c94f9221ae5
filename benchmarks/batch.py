"""Many prompts stage by stage, beside a loop of single calls and beside one process per prompt.

    python benchmarks/batch.py
    python benchmarks/batch.py tiny     # does the code run? its figures say nothing

The loop keeps a whole model of random weights in memory, 350 to 820 MB per stage in float32; stage by stage one of
them is there at a time. Each way is a process of its own: seconds from loading to the last picture, and the most memory
that the process had. Both must draw the same pictures. One process per prompt is `mmgen generate` with the bundled
model, whole processes on both sides.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from side_by_side import CPU, conditions
from transformers import BertConfig, BertModel

import mmgen
from mmgen.memory import peak_bytes
from mmgen.models.dual_encoder import DualEncoder
from mmgen.models.efficient_unet import EfficientUNet
from mmgen.models.prior import DiffusionPrior
from mmgen.pipelines.catalogue import describe
from mmgen.pipelines.loading import open_model, write_checkpoint
from mmgen.pipelines.sources import find
from mmgen.render.engine import Done, draw
from mmgen.render.jobs import Job
from mmgen.render.windows import Budget, batches, windows
from mmgen.types import StageSettings

STAGES = ("text_encoder", "prior", "decoder", "super_res")  # the component that is large in each stage
LEAST = 300_000_000  # bytes of each
MEMORY, SPEED = 0.5, 5.0  # the aims: at most of the loop's, at least as fast as a process per prompt
FEW = {"prior": StageSettings(steps=4), "decoder": StageSettings(steps=4)}


@dataclass(frozen=True)
class Scale:
    """How large the benchmark is. text, prior, channels: widths; layers: of text and prior; prompts: of each part."""

    text: int
    prior: int
    channels: int
    layers: int
    prompts: tuple[int, int]


FULL = Scale(text=1024, prior=1280, channels=1280, layers=10, prompts=(48, 20))
TINY = Scale(text=32, prior=32, channels=32, layers=1, prompts=(3, 2))


def prompts(count: int) -> list[str]:
    """So many different ones."""
    parts = product(
        ("a red", "two blue", "a big"), ("cat", "dog", "boat", "car"), ("beach", "grass", "street", "snow")
    )
    return [f"{many} {thing} on the {place}" for many, thing, place in islice(parts, count)]


def write_random(folder: Path, scale: Scale) -> None:
    """A checkpoint of random weights that draws 16 and 64 px, most of it where pictures are smallest."""
    for name, network in _networks(scale):
        network.save_pretrained(folder / name)
    shutil.copytree(find("storybook") / "tokenizer", folder / "tokenizer")
    (folder / "README.md").write_text("# Random weights\n", "utf-8")
    options = {"text_layer": -1, "image_embed": "prior"}
    write_checkpoint(folder, name="random", family="storybook", options=options, words=frozenset())


def _networks(scale: Scale) -> Iterator[tuple[str, Any]]:
    """One at a time, so that they are not in memory together."""
    torch.manual_seed(0)
    text, image = scale.text, 16
    told = {"text_dim": text, "pooled_dim": text}
    deep = {"channels": (32, scale.channels), "blocks": (1, 3), "vector_dim": 64, "head_dim": 32}
    config = BertConfig(
        hidden_size=text,
        num_hidden_layers=scale.layers,
        num_attention_heads=text // 32,
        intermediate_size=4 * text,
    )
    yield "text_encoder", BertModel(config, add_pooling_layer=False)
    yield (
        "dual_encoder",
        DualEncoder(image_size=16, stem=2, channels=(16,), blocks=(1,), text_dim=text, embed_dim=image),
    )
    yield "prior", DiffusionPrior(embed_dim=image, width=scale.prior, layers=scale.layers, **told)
    yield (
        "decoder",
        EfficientUNet(
            sample_size=16,
            stem=2,
            attention=(False, True),
            text_width=64,
            text_layers=1,
            image_dim=image,
            **told,
            **deep,
        ),
    )
    yield (
        "super_res",
        EfficientUNet(
            sample_size=64, stem=4, attention=(False, False), low_res=True, residual_scale=0.25, **deep
        ),
    )


def check_sizes(folder: Path) -> str:
    """What the stages hold, in one line. SystemExit if one is smaller than the claim."""
    held = {name: describe(folder)["components"][name]["bytes"] for name in STAGES}
    if small := [name for name, size in held.items() if size < LEAST]:
        raise SystemExit(f"{small[0]} holds {held[small[0]]:,} bytes: it must be {LEAST:,}")
    return ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in held.items())


def loop(folder: str, count: int) -> dict[int, bytes]:
    """Every prompt by a call of its own, the model in memory."""
    pipe = mmgen.load(folder, "cpu", "float32")
    return {
        seed: pipe(prompt, seeds=[seed], size=64, stages=FEW, progress=False)[0].tobytes()
        for seed, prompt in enumerate(prompts(count), 1)
    }


def stage_major(folder: str, count: int) -> dict[int, bytes]:
    """The same pictures, stage by stage."""
    return _rendered(folder, count, "float32", FEW)


def bundled(_folder: str, count: int) -> dict[int, bytes]:
    """Pictures of the bundled model, in the number format and the steps that it draws in."""
    return _rendered("storybook", count, None, {})


def _rendered(
    name_or_folder: str, count: int, dtype: str | None, stages: dict[str, StageSettings]
) -> dict[int, bytes]:
    model = open_model(name_or_folder, "cpu", dtype)
    jobs = [
        Job(seed, seed, model.request(prompt, seeds=[seed], size=64, stages=stages), f"{seed}.png")
        for seed, prompt in enumerate(prompts(count), 1)
    ]
    drawn: dict[int, bytes] = {}

    def keep(done: Done) -> None:
        assert done.image is not None, done.error
        drawn[done.job.index] = done.image.tobytes()

    with tempfile.TemporaryDirectory() as out:
        cut = windows(batches(jobs, model.batch_size), lambda _job: False, model.sizes, Budget())
        draw(cut, keep, model=model, folder=Path(out))
    return dict(sorted(drawn.items()))


WAYS = {"loop": loop, "stage-major": stage_major, "bundled": bundled}


def measured(way: str, folder: str, count: int) -> dict[str, Any]:
    """Seconds, peak memory and the pictures' sha256 of one way, in this process."""
    started = time.perf_counter()
    drawn = WAYS[way](folder, count)
    seconds = time.perf_counter() - started
    pictures = hashlib.sha256(b"".join(drawn.values())).hexdigest()
    return {"seconds": seconds, "peak": peak_bytes(CPU), "pictures": pictures, "count": len(drawn)}


def in_new_process(way: str, folder: Path, count: int) -> dict[str, Any]:
    """The same, in a process of its own; with "whole", the seconds of the process."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, way, str(folder), str(count)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{way}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "whole": time.perf_counter() - started}


def process_per_prompt(count: int) -> float:
    """Seconds of one `mmgen generate` after the other."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        for seed, prompt in enumerate(prompts(count), 1):
            command = [
                "generate",
                prompt,
                "--size",
                "64",
                "--seed",
                str(seed),
                "--device",
                "cpu",
                "--out",
                out,
            ]
            subprocess.run(
                [sys.executable, "-m", "mmgen.cli.main", *command], check=True, capture_output=True
            )
    return time.perf_counter() - started


def beside_the_loop(folder: Path, count: int) -> None:
    """Print the first table and its verdict. SystemExit if the pictures are not the same."""
    loops, ours = in_new_process("loop", folder, count), in_new_process("stage-major", folder, count)
    if loops["pictures"] != ours["pictures"]:
        raise SystemExit("not the same work: the loop and the engine drew other pictures")
    print(f"| {count} prompts at 64 px | seconds | peak memory, GB |\n|---|---|---|")
    print(f"| loop of single calls | {loops['seconds']:.1f} | {loops['peak'] / 1e9:.2f} |")
    print(f"| stage by stage | {ours['seconds']:.1f} | {ours['peak'] / 1e9:.2f} |")
    time_ratio, memory_ratio = ours["seconds"] / loops["seconds"], ours["peak"] / loops["peak"]
    met = time_ratio <= 1 and memory_ratio <= MEMORY
    print(
        f"\nTime {time_ratio:.2f}, memory {memory_ratio:.2f} of the loop's: {'met' if met else 'missed'}.\n"
    )


def beside_processes(folder: Path, count: int) -> None:
    """Print the second table and its verdict."""
    alone, together = process_per_prompt(count), in_new_process("bundled", folder, count)["whole"]
    print(f"| {count} prompts at 64 px, bundled model | seconds |\n|---|---|")
    print(f"| one process per prompt | {alone:.1f} |\n| one process, stage by stage | {together:.1f} |")
    print(f"\n{alone / together:.1f} times as fast: {'met' if alone / together >= SPEED else 'missed'}.")


def main() -> None:
    """Print both tables, or measure the way that the command line names."""
    if len(sys.argv) > 2:
        way, folder, count = sys.argv[1:]
        print(json.dumps(measured(way, folder, int(count))))
        return
    scale = TINY if sys.argv[1:] == ["tiny"] else FULL
    print(f"{conditions()}\n")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "random"
        write_random(folder, scale)
        if scale is FULL:
            print(f"{check_sizes(folder)}\n")
        beside_the_loop(folder, scale.prompts[0])
        beside_processes(folder, scale.prompts[1])


if __name__ == "__main__":
    main()
