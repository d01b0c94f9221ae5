"""`mmgen batch` that stops after a stage, and goes on with what was picked: the pictures of a run that did neither."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.cli.main import main
from mmgen.images import encode, read_metadata
from mmgen.inputs import open_picture
from mmgen.render import engine, stopped
from mmgen.render.jobs import Job
from mmgen.render.stopped import Stopped, packed, with_draft
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
PROMPTS = 'a red cat\n--prompt "two dogs" -n 2\n--prompt "a boat" --size 16\n'
STEPS = ("--steps", "2", "--set", "prior.steps=2", "--size", "256")
DRAFTS = 3  # of the four pictures, one ends at 16 px


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pictures of a run that does not stop."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "prompts.txt").write_text(PROMPTS, "utf-8")
    args = ("batch", str(folder / "prompts.txt"), "--model", tiny, *STEPS, "-o", str(folder / "out"))
    assert main(args) == 0
    return pictures(folder / "out")


@pytest.fixture
def begun(mmgen_command: Command, tiny: str, tmp_path: Path) -> list[str]:
    """The files of a run that was stopped after the decoder, sorted, in the folder out."""
    (tmp_path / "prompts.txt").write_text(PROMPTS, "utf-8")
    done = mmgen_command(*args_of(tiny), "--stop-after", "decoder")
    assert done.code == 0, done.err
    return sorted(str(path) for path in Path("out").glob("*.decoder.png"))


def args_of(tiny: str) -> tuple[str, ...]:
    return ("batch", "prompts.txt", "--model", tiny, *STEPS, "-o", "out")


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_run_that_stops_keeps_small_pictures_that_carry_their_settings(
    mmgen_command: Command, tiny: str, begun: list[str], whole: dict[str, bytes]
) -> None:
    assert [Path(file).name for file in begun] == [
        f"{Path(name).stem}.decoder.png" for name in sorted(whole)[:DRAFTS]
    ]
    small = sorted(whole)[DRAFTS]
    assert Path("out", small).read_bytes() == whole[small]
    request = read_metadata(begun[0])["request"]
    assert request is not None
    assert request.size == (16, 16)
    assert set(request.stages) == {"prior", "decoder"}
    again = mmgen_command("rerun", begun[0], "--model", tiny, "-o", "again.png")
    assert again.code == 0, again.err
    assert open_picture(Path("again.png")).tobytes() == open_picture(Path(begun[0])).tobytes()


def test_what_was_picked_becomes_what_it_would_have_become(
    mmgen_command: Command, tiny: str, begun: list[str], whole: dict[str, bytes]
) -> None:
    drafts = pictures(Path("out"))
    go_on = ("batch", "--from-stage", "super-res", begun[0], begun[2], begun[0], "--model", tiny, "-o", "out")
    done = mmgen_command(*go_on)
    assert done.code == 0, done.err
    assert "asked for more than once, and drawn once: 1 picture" in done.err
    names = [sorted(whole)[place] for place in (0, 2)]
    assert [Path(line).name for line in done.out.splitlines()] == names
    assert pictures(Path("out")) == drafts | {name: whole[name] for name in names}
    again = mmgen_command(*go_on)
    assert (again.code, again.out) == (0, "")
    assert "0 pictures drawn, 2 were there" in again.err
    rest = mmgen_command(*args_of(tiny))
    assert [Path(line).name for line in rest.out.splitlines()] == [sorted(whole)[1]]
    assert pictures(Path("out")) == drafts | whole


def test_a_picked_picture_that_is_gone_meanwhile_fails_alone(
    mmgen_command: Command,
    tiny: str,
    begun: list[str],
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = engine._image

    def gone(job: Job) -> torch.Tensor:
        if job.start == Path(begun[1]):
            job.start.unlink(missing_ok=True)
        return read(job)

    monkeypatch.setattr(engine, "_image", gone)
    done = mmgen_command("batch", "--from-stage", "super-res", *begun, "--model", tiny, "-o", "finished")
    assert done.code == 1
    assert f"{begun[1]} cannot be read here" in done.err
    kept = {name: data for name, data in whole.items() if not name.startswith(Path(begun[1]).name[:6])}
    assert pictures(Path("finished")).items() <= kept.items()
    assert len(pictures(Path("finished"))) == len(begun) - 1


def test_pictures_may_be_picked_after_every_stage(
    mmgen_command: Command, tiny: str, begun: list[str], whole: dict[str, bytes]
) -> None:
    first = ("--from-stage", "super-res-64", "--stop-after", "super-res-64")
    assert mmgen_command("batch", *first, *begun[:2], "--model", tiny, "-o", "larger").code == 0
    larger = sorted(map(str, Path("larger").glob("*.super-res-64.png")))
    assert [open_picture(Path(file)).size for file in larger] == [(64, 64)] * 2
    os.rename(larger[1], "larger/mine.png")
    last = mmgen_command(
        "batch", "--from-stage", "super-res", "larger/mine.png", "--model", tiny, "-o", "finished"
    )
    assert last.code == 0, last.err
    assert pictures(Path("finished")) == {name: whole[name] for name in sorted(whole)[1:2]}
    mixed = ("--from-stage", "super-res", begun[0], "larger/mine.png")
    assert "give them to one run each" in mmgen_command("batch", *mixed, "--model", tiny).err
    back = ("--from-stage", "super-res", "--stop-after", "decoder", begun[0])
    assert "is behind it" in mmgen_command("batch", *back, "--model", tiny).err


def test_a_run_that_stops_goes_on_where_it_was(mmgen_command: Command, tiny: str, begun: list[str]) -> None:
    before = pictures(Path("out"))
    Path(begun[1]).unlink()
    Path(begun[0]).write_bytes(Path(begun[0]).read_bytes()[:-100])
    args = (*args_of(tiny), "--stop-after", "decoder")
    assert mmgen_command(*args).out.splitlines() == begun[:2]
    assert pictures(Path("out")) == before
    assert mmgen_command(*args).out == ""
    # other settings of what comes later make another draft, though it shows the same
    Path("prompts.txt").write_text("a red cat\n", "utf-8")
    other = mmgen_command(*args, "--set", "super-res-64.steps=3")
    assert len(other.out.splitlines()) == 1


def test_pictures_go_on_in_other_formats(
    mmgen_command: Command, tiny: str, begun: list[str], whole: dict[str, bytes]
) -> None:
    go_on = ("batch", "--from-stage", "super-res", *begun, "--model", tiny, "-o", "jpegs", "--format", "jpeg")
    listed = mmgen_command(*go_on, "--dry-run")
    names = [line.split("\t")[0] for line in listed.out.splitlines()]
    assert names == [f"{Path(name).stem}.jpg" for name in sorted(whole)[:DRAFTS]]
    assert mmgen_command(*go_on).code == 0
    assert sorted(path.name for path in Path("jpegs").glob("*.jpg")) == names


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["prompts.txt", "--stop-after", "prior"], "tiny stops after decoder or super-res-64"),
        (["prompts.txt", "--stop-after", "super-res-256"], "tiny stops after decoder or super-res-64"),
        (["prompts.txt", "--stop-after", "decoder", "--format", "webp"], "--stop-after are png"),
        (["prompts.txt", "more.txt"], "2 files are given"),
        (["--from-stage", "super-res"], "name those of --stop-after"),
        (["--from-stage", "super-res", "nowhere.png"], "there is no file nowhere.png"),
        (["--from-stage", "super-res", "plain.png"], "plain.png holds nothing to go on from"),
        (["--from-stage", "decoder", "DRAFT"], "goes on with super-res-64 or super-res-256"),
        (["--from-stage", "super-res-256", "DRAFT"], "goes on with super-res-64, not with super-res-256"),
        (["--from-stage", "super-res", "DRAFT", "--seed", "0"], "leave --seed out"),
        (["--from-stage", "super-res", "DRAFT", "--set", "decoder.steps=3"], "leave --set out"),
        (["--from-stage", "super-res", "changed.png"], "changed.png was changed"),
        (["--from-stage", "super-res", "damaged.png"], "damaged.png: what it holds to go on from it is damaged"),
        (["--from-stage", "super-res", "elsewhere.png"], "elsewhere.png: what it holds to go on from it is damaged"),
        (["--from-stage", "super-res", "foreign.png"], "foreign.png was begun by tiny 000000000000"),
        (["--from-stage", "super-res", "another.png"], "another.png: what it holds to go on from it is of another"),
        (["prompts.txt", "--memory", "8"], "--memory '8': give a number with its unit"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_before_torch_is_imported(
    bad_files: Path, tiny: str, args: list[str], says: str, mmgen_command: Command
) -> None:
    os.chdir(bad_files)
    given = [next(bad_files.glob("out/*.decoder.png")).name if arg == "DRAFT" else arg for arg in args]
    given = [f"out/{arg}" if arg.endswith(".decoder.png") else arg for arg in given]
    done = mmgen_command("batch", *given, "--model", tiny, "-o", "new")
    assert done.code == 2
    assert says in done.err
    assert not Path("new").exists()


@pytest.fixture(scope="module")
def bad_files(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture that was stopped, and others that are not as they should be."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "prompts.txt").write_text("a cat\n", "utf-8")
    out = str(folder / "out")
    args = [
        "batch",
        str(folder / "prompts.txt"),
        "--model",
        tiny,
        *STEPS,
        "-o",
        out,
        "--stop-after",
        "decoder",
    ]
    assert main(args) == 0
    (path,) = (folder / "out").glob("*.decoder.png")
    request, found = read_metadata(path)["request"], stopped.read(path)
    assert request is not None
    assert found is not None
    image, goal = open_picture(path), found.goal
    Image.new("RGB", (16, 16)).save(folder / "plain.png")

    def write(name: str, picture: Image.Image, held: Stopped) -> None:
        data = with_draft(encode(picture, "png", request), packed(held.goal, held.image))
        (folder / f"{name}.png").write_bytes(data)

    write("changed", Image.new("RGB", (16, 16)), found)
    write("damaged", image, replace(found, image=found.image[:, :2]))
    write("elsewhere", image, replace(found, goal=replace(goal, name="../mine.png")))
    foreign = replace(goal.request, model_digest="0" * 64)
    write("foreign", image, replace(found, goal=replace(goal, request=foreign, key="")))
    another = goal.request.single("a dog", 0)
    write("another", image, replace(found, goal=replace(goal, request=another, key="")))
    return folder


def test_going_on_is_checked_without_torch(bad_files: Path, tiny: str) -> None:
    code = (
        "import sys; from mmgen.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    (draft,) = bad_files.glob("out/*.decoder.png")
    args = ["batch", "--from-stage", "super-res", str(draft), "--model", tiny, "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("000001-a-cat-")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_a_picture_holds_comes_back_bit_by_bit_and_as_it_lay(
    bad_files: Path, tmp_path: Path, memory_format: torch.memory_format
) -> None:
    found = stopped.read(next(bad_files.glob("out/*.decoder.png")))
    assert found is not None
    image = torch.rand(2, 3, 4, 6).contiguous(memory_format=memory_format)[1:]
    data = with_draft(encode(Image.new("RGB", (6, 4)), "png"), packed(found.goal, image.numpy()))
    (tmp_path / "a.png").write_bytes(data)
    back = stopped.read(tmp_path / "a.png")
    assert back is not None
    assert back.goal == found.goal
    assert np.array_equal(back.image, image.numpy())
    assert back.image.strides == image.numpy().strides
    (tmp_path / "a.png").write_bytes(data.replace(b"mmDR", b"mmDr"))
    assert stopped.read(tmp_path / "a.png") is None


def test_too_little_memory_is_refused_before_anything_is_drawn(
    mmgen_command: Command, tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n", "utf-8")
    args = ("batch", "prompts.txt", "--model", tiny, "--steps", "2", "--size", "16", "-o", "out")
    for workers in ("1", "2"):
        done = mmgen_command(*args, "--memory", "1kB", "--workers", workers)
        assert done.code == 3
        assert "at 16 px needs" in done.err
        assert not list(Path("out").glob("*"))
    assert mmgen_command(*args, "--memory", "1GB").code == 0
    assert len(pictures(Path("out"))) == 1
