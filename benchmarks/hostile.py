"""What it costs to refuse a folder that is corrupt or hostile: `python benchmarks/hostile.py`.

Each case is a copy of the bundled model with one thing wrong, without its manifest unless the case is about that; two
are of a single file, and of a LoRA for the model. A fresh process imports mmgen, then loads the folder or the file;
counted are seconds, and bytes beyond its peak until then.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "decoder/diffusion_pytorch_model.safetensors"
MOST_SECONDS, MOST_BYTES = 2.0, 500_000_000
LOAD = """
import sys, time
import torch, mmgen
from mmgen.errors import ModelError
from mmgen.memory import peak_bytes
from mmgen.pipelines import loading
import diffusers.models, transformers  # what any model needs
cpu = torch.device("cpu")
before, began = peak_bytes(cpu), time.perf_counter()
try:
    mmgen.load(sys.argv[1], device="cpu")
except ModelError as error:
    print(time.perf_counter() - began, peak_bytes(cpu) - before, error)
else:
    sys.exit("it was loaded")
"""


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def flipped(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1000] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def flipped_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data.replace(b'"BF16"', b'"CF16"', 1))


def zero_filled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))


def shard(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        names = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        index = {"weight_map": dict.fromkeys(names, name)}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")

    return write


def link(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere.safetensors")


def long_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((100_000_000).to_bytes(8, "little") + b" " * 100_000_000)


def endless_shape(folder: Path) -> None:
    entry = {"dtype": "BF16", "shape": [10**12], "data_offsets": [0, 2 * 10**12]}
    text = json.dumps({"x": entry}).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


def endless_network(folder: Path) -> None:
    config = json.loads((folder / "decoder/config.json").read_text("utf-8"))
    config["channels"] = [16_000, 16_000]
    (folder / "decoder/config.json").write_text(json.dumps(config), "utf-8")


def class_of_os(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["decoder"] = ["os", "system"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")


class Canary:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("sang"),)  # type: ignore[return-value]


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).with_suffix(".bin").write_bytes(pickle.dumps(Canary()))


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, folder / WEIGHTS)


def many_layers(folder: Path) -> str:
    """A single file that names 70,000 layers."""
    text = "cond_stage_model.transformer.text_model."
    shapes = {
        "model.diffusion_model.x": [1],
        "first_stage_model.x": [1],
        f"{text}embeddings.token_embedding.weight": [1, 64],
        **{f"{text}encoder.layers.{i}.mlp.fc1.weight": [1, 1] for i in range(70_000)},
    }
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    data, path = json.dumps(header, separators=(",", ":")).encode(), folder.parent / "whole.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(end))
    return str(path)


def lora_of_nan(folder: Path) -> str:
    path = folder.parent / "lora.safetensors"
    shapes = {"A": (256, 256), "B": (1024, 256)}  # of rank 256, for layers of 256 that become 1024
    save_file(
        {
            f"prior.trunk.{i}.inner.lora_{end}.weight": torch.full(shape, torch.nan)
            for i in range(4)
            for end, shape in shapes.items()
        },
        path,
    )
    return f"{folder}?lora={path}"


# name -> (what is wrong, whether the manifest stays); what is to be loaded, if it is not the folder, is returned
CASES: dict[str, tuple[Callable[[Path], str | None], bool]] = {
    "cut off": (truncated, False),
    "one bit flipped, with manifest": (flipped, True),
    "one bit of a header flipped": (flipped_header, False),
    "filled with zeros": (zero_filled, False),
    "a shard that is missing": (shard("gone-00001-of-00001.safetensors"), False),
    "a shard ../../etc/passwd": (shard("../../etc/passwd"), False),
    "a link out of the folder": (link, False),
    "a header of 100 MB": (long_header, False),
    "a shape of 1e12": (endless_shape, False),
    "a configuration of 1e11 weights": (endless_network, False),
    'the class ["os", "system"]': (class_of_os, False),
    "a pickle": (pickled, False),
    "NaN": (not_a_number, False),
    "a single file of 70,000 layers": (many_layers, False),
    "a LoRA of NaN": (lora_of_nan, False),
}


def main() -> None:
    """Print a line for each case. Exit code 1 if one cost too much."""
    import mmgen
    from mmgen.pipelines.sources import find

    bundled, dear = find("storybook"), 0
    print(f"mmgen {mmgen.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'what is wrong':34} {'seconds':>8} {'MB':>6}  refused because")
    for name, (spoil, manifest) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(bundled, Path(place) / "model"))
            if not manifest:
                (folder / "manifest.json").unlink()
            asked = spoil(folder) or str(folder)
            done = subprocess.run(
                [sys.executable, "-c", LOAD, asked],
                capture_output=True,
                text=True,
                check=True,
                cwd=place,
            )
            assert not (Path(place) / "sang").exists()
        seconds, peak, why = done.stdout.strip().split(" ", 2)
        dear += float(seconds) > MOST_SECONDS or int(peak) > MOST_BYTES
        print(f"{name:34} {float(seconds):8.2f} {int(peak) / 1e6:6.0f}  {why}")
    sys.exit(1 if dear else 0)


if __name__ == "__main__":
    main()
