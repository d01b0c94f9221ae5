"""`mmgen sweep`: every value has its picture and its place on the sheet, and what is there is not drawn again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen.cli.sweep import MAX_VALUES, _axes, _axis, _label, _sheet, _sheet_size
from mmgen.images import encode, read_metadata
from mmgen.render import manifest
from mmgen.render.manifest import Entry
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
CELL = 256
SMALL = ("--size", "64", "--steps", "2", "-o", "out")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


def settings(path: Path) -> tuple[float | None, int]:
    """(guidance, seed) of a picture."""
    request = read_metadata(path)["request"]
    assert request is not None
    return request.stages["decoder"].guidance_scale, request.seeds[0]


def sheets(folder: str = "out") -> list[Path]:
    return sorted(Path(folder).glob("sweep-*.png"))


def drawn(folder: str = "out") -> dict[tuple[float | None, int], Path]:
    return {settings(path): path for path in Path(folder).glob("0*.png")}


def assert_cell(sheet: Image.Image, left: int, top: int, path: Path | None) -> None:
    """The picture, 64 px and not enlarged, in the middle of the cell; None: nothing."""
    cell = np.asarray(sheet.crop((left, top, left + CELL, top + CELL)))
    expected = np.full_like(cell, 255)
    if path is not None:
        with Image.open(path) as image:
            expected[96:160, 96:160] = np.asarray(image)
    assert np.array_equal(cell, expected)


def test_two_settings_make_a_sheet_and_a_folder_that_goes_on(mmgen_command: Command, tiny: str) -> None:
    args = [
        "sweep",
        "a red cat",
        "--vary",
        "decoder.guidance=2,4,6",
        "--vary",
        "seed=3..4",
        "--model",
        tiny,
        *SMALL,
    ]
    done = mmgen_command(*args)
    assert done.code == 0, done.err
    found, [path] = drawn(), sheets()
    assert set(found) == {(guidance, seed) for guidance in (2, 4, 6) for seed in (3, 4)}
    assert path.name.startswith("sweep-a-red-cat-")
    assert done.out.splitlines()[-1] == str(path)
    assert set(done.out.splitlines()[:-1]) == set(map(str, found.values()))
    with Image.open(path) as sheet:
        width, height = sheet.size
        left, top = width - 3 * CELL, height - 2 * CELL
        for (guidance, seed), picture in found.items():
            assert guidance is not None
            assert_cell(sheet, left + CELL * (round(guidance) // 2 - 1), top + CELL * (seed - 3), picture)
        grey = np.asarray(sheet.convert("L"))
    assert all((grey[:top, left + CELL * at :][:, :CELL] < 128).any() for at in range(3))
    assert all((grey[top + CELL * at :, :left][:CELL] < 128).any() for at in range(2))
    before = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    again = mmgen_command(*args)
    assert (again.code, again.out) == (0, f"{path}\n")
    assert "0 pictures drawn, 6 were there" in again.err
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == before
    lost = found[4, 3]
    lost.unlink()
    assert mmgen_command(*args).out == f"{lost}\n{path}\n"
    assert path.read_bytes() == before[path.name]
    assert sorted(os.listdir("out")) == sorted(before)


def test_the_pictures_are_those_of_a_batch(mmgen_command: Command, tiny: str) -> None:
    sweep = ["sweep", "a {red|blue} cat", "--vary", "steps=2,3", "--model", tiny, "--size", "64", "-o", "out"]
    done = mmgen_command(*sweep)
    assert done.code == 0, done.err
    requests = [read_metadata(path)["request"] for path in sorted(Path("out").glob("0*.png"))]
    assert [request.prompts for request in requests if request] == [("a {red|blue} cat",)] * 2  # as it stands
    prompt = r"a \{red\|blue\} cat"
    Path("prompts.csv").write_text(f"prompt,steps\n{prompt},2\n{prompt},3\n{prompt},4\n", "utf-8")
    batch = mmgen_command("batch", "prompts.csv", "--model", tiny, "--size", "64", "-o", "out")
    assert "1 picture drawn, 2 were there" in batch.err
    assert len(batch.out.splitlines()) == 1
    lines = (Path("out") / manifest.NAME).read_text("utf-8").splitlines()
    assert sorted(json.loads(line)["file"] for line in lines) == sorted(
        path.name for path in Path("out").glob("0*.png")
    )


def test_one_setting_is_a_row_and_a_second_sweep_keeps_the_first_sheet(
    mmgen_command: Command, tiny: str
) -> None:
    for values in ("0,7", "0,8"):
        done = mmgen_command("sweep", "a cat", "--vary", f"seed={values}", "--model", tiny, *SMALL)
        assert done.code == 0, done.err
    assert len(sheets()) == 2
    found = {seed: path for (_, seed), path in drawn().items()}
    assert set(found) == {0, 7, 8}
    with Image.open(sheets()[0]) as sheet:
        assert sheet.width == 2 * CELL
        assert_cell(sheet, 0, sheet.height - CELL, found[0])


def test_a_picture_that_failed_leaves_its_cell_empty(mmgen_command: Command, tiny: str) -> None:
    args = ["sweep", "a cat", "--vary", "seed=0,1", "--model", tiny, *SMALL]
    listed = mmgen_command(*args, "--dry-run", "--json").objects()
    assert not Path("out").exists()
    Path("out").mkdir()
    manifest.append(Path("out"), Entry(listed[1]["key"], "failed", error="NaN"))
    done = mmgen_command(*args)
    assert done.code == 1
    assert "1 picture could not be drawn" in done.err
    [path] = sheets()
    with Image.open(path) as sheet:
        assert_cell(sheet, 0, sheet.height - CELL, drawn()[settings(next(Path("out").glob("0*.png")))])
        assert_cell(sheet, CELL, sheet.height - CELL, None)
    done = mmgen_command(*args, "--retry-failed", "--json")
    assert done.code == 0, done.err
    assert done.objects()[-1] == {"event": "sheet", "file": str(path)}
    assert sheets() == [path]
    with Image.open(path) as sheet:
        assert_cell(sheet, CELL, sheet.height - CELL, Path("out", listed[1]["name"]))


def test_where_all_failed_there_is_no_sheet(mmgen_command: Command, tiny: str) -> None:
    args = ["sweep", "a cat", "--vary", "seed=0", "--model", tiny, *SMALL]
    [listed] = mmgen_command(*args, "--dry-run", "--json").objects()
    Path("out").mkdir()
    manifest.append(Path("out"), Entry(listed["key"], "failed", error="NaN"))
    assert mmgen_command(*args).code == 1
    assert os.listdir("out") == [manifest.NAME]


def test_a_dry_run_lists_the_pictures_row_by_row(mmgen_command: Command) -> None:
    done = mmgen_command(
        "sweep", "a fox", "--vary", "seed=1..3", "--vary", "sampler=ddim, heun", "--dry-run", "--json"
    )
    assert done.code == 0, done.err
    listed = [job["request"] for job in done.objects()]
    cells = [(request["stages"]["decoder"]["sampler"], request["seeds"][0]) for request in listed]
    assert cells == [(sampler, seed) for sampler in ("ddim", "heun") for seed in (1, 2, 3)]
    done = mmgen_command("sweep", "a fox", "--vary", "size=64,256", "--seed", "5", "--dry-run", "--json")
    listed = [job["request"] for job in done.objects()]
    assert [(request["size"], request["seeds"]) for request in listed] == [([64, 64], [5]), ([256, 256], [5])]


def test_values_are_read_as_they_are_meant() -> None:
    axis = _axis("decoder.guidance=2, 4.5,6..8")
    assert axis.option == "decoder.guidance_scale"
    assert list(axis.values.values()) == [2.0, 4.5, 6.0, 7.0, 8.0]
    assert axis.labels[:2] == ["decoder.guidance 2", "decoder.guidance 4.5"]
    assert _axis("threshold=0.99,clip").values == {"0.99": 0.99, "clip": "clip"}
    assert _axis("super-res-256.noise_level=0,0.2").option == "super-res-256.noise_level"
    assert len(_axis(f"seed=1..{MAX_VALUES}").values) == MAX_VALUES


def test_long_labels_stay_in_their_places(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encode(Image.new("RGB", (64, 64), "red"), "png"))
    axes = _axes([f"seed={2**63 - 2},{2**63 - 1}", "super-res-1024.guidance_rescale=0.1,0.2"])
    for cell in (32, 64, 256):
        sheet = _sheet([file] * 4, axes, cell)
        assert sheet.size == _sheet_size(axes, cell)
        pixels = np.asarray(sheet)
        top = sheet.height - 2 * cell
        other = np.asarray(_sheet([file] * 4, _axes(["seed=1,2", "size=1,2"]), cell))
        assert (pixels[top:, cell:] == other[top:, cell:]).all()
        assert (pixels[top:, :cell].min(axis=2) == 255)[:, 0].all()
        assert (pixels[0] == 255).all()


def test_a_label_shows_its_value_first_of_all() -> None:
    assert _label("guidance", "2.5", 256) == "guidance 2.5"
    assert _label("super-res-256.noise_level", "0.25", 64).splitlines()[-1] == "0.25"
    assert _label("super-res-256.noise_level", "0.25", 32).splitlines()[-1] == "0.25"
    assert "".join(_label("seed", str(2**63 - 1), 64).splitlines()[-3:]) == str(2**63 - 1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--vary", "seed"], "--vary 'seed': write NAME=VALUES, such as seed=1..4"),
        (["--vary", "=1"], "write NAME=VALUES"),
        (["--vary", "seed="], "write NAME=VALUES"),
        (["--vary", "seed=4..1"], "--vary seed=4..1: 4..1 goes down: write 1..4"),
        (["--vary", "seed=1..9999999999"], "more than 1,000 values: give fewer"),
        (["--vary", "seed=1,2,1"], "1 is given twice: keep one"),
        (["--vary", "guidance=2,2.0"], "2.0 is given twice: keep one"),
        (["--vary", "guidance=2,,4"], "decoder.guidance_scale is '': give a number"),
        (["--vary", "guidance=0.5..2"], "decoder.guidance_scale is '0.5..2': give a number"),
        (["--vary", "seed=-1"], "seed is -1: it must lie between 0 and"),
        (["--vary", "steps=0"], "steps is 0: it must lie between 1 and 1000"),
        (["--vary", "sampler=ddim,nix"], "no sampler 'nix'"),
        (["--vary", "prompt=a,b"], "--vary prompt: it is none of seed, size, steps"),
        (["--vary", "eta=0,1"], "--vary eta: it is none of"),
        (["--vary", "decoder.nix=0,1"], "--vary decoder.nix: it is none of"),
        (["--vary", ".steps=1,2"], "--vary .steps: it is none of"),
        (["--vary", "nix.steps=1,2"], "--vary, nix.steps 1: no stage 'nix'"),
        (["--vary", "size=64,100"], "--vary, size 100: storybook cannot draw 100x100"),
        (
            ["--vary", "sampler=ddim,euler", "--vary", "decoder.eta=0,1"],
            "--vary, sampler euler, decoder.eta 0: stage",
        ),
        (["--vary", "guidance=1,2", "--vary", "decoder.guidance_scale=3,4"], "are the same: keep one"),
        (["--vary", "seed=1", "--vary", "size=64", "--vary", "steps=1"], "--vary is given 3 times"),
        (["--vary", "seed=1,2", "--seed", "3"], "--vary seed says what one value is given for besides"),
        (["--vary", "steps=1,2", "--steps", "3"], "--vary steps says what one value"),
        (["--vary", "decoder.eta=0,1", "--set", "decoder.eta=1"], "--vary decoder.eta says what one value"),
        (["--vary", "seed=0..999", "--vary", "steps=1..999"], "give fewer pictures"),
        (["--vary", "seed=1,2", "--size", "100"], "storybook cannot draw 100x100"),
        (["--vary", "seed=1,2", "--set", "nix.steps=1"], "--set nix: no such stage"),
        (["--vary", "seed=1,2", "-o", ""], "give a folder"),
        (["--vary", "seed=1,2", "--model", ""], "--model is empty"),
        ([], "Missing option '--vary'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant(mmgen_command: Command, args: list[str], words: str) -> None:
    done = mmgen_command("sweep", "a fox", *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_an_empty_prompt_is_refused(mmgen_command: Command) -> None:
    done = mmgen_command("sweep", " ", "--vary", "seed=1,2")
    assert (done.code, done.err) == (2, "error: the prompt is empty: say what to draw\n")


def test_a_dry_run_and_a_wrong_value_import_no_torch() -> None:
    code = (
        "import sys; from mmgen.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    for values, expected in (("1..4", 0), ("64,x", 2)):
        words = [sys.executable, "-c", code, "sweep", "a fox", "--vary", f"seed={values}", "--dry-run"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stderr
