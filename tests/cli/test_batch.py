"""`mmgen batch`: what comes of a prompt file; that no end of a run loses anything, tests/faults shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from mmgen.cli.main import main
from mmgen.cli.planned import MAX_ERRORS
from mmgen.images import read_metadata
from tests.checkpoints import write_tiny
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
PROMPTS = 'a {red|blue} cat\n# not this\n--prompt "two dogs" -n 2 --steps 3\na house at night\n'
SIZE = ("--size", "64", "--steps", "2")
PICTURES = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text(PROMPTS, "utf-8")
    return str(tmp_path / "prompts.txt")


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run makes."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "prompts.txt").write_text(PROMPTS, "utf-8")
    assert (
        main(["batch", str(folder / "prompts.txt"), "--model", tiny, *SIZE, "-o", str(folder / "out")]) == 0
    )
    made = pictures(folder / "out")
    assert len(made) == PICTURES
    return made


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def files_by_key(folder: Path) -> dict[str, str]:
    entries = map(json.loads, (folder / "manifest.jsonl").read_text("utf-8").splitlines())
    return {entry["key"]: entry["file"] for entry in entries}


def assert_whole(folder: Path, expected: dict[str, bytes]) -> None:
    assert pictures(folder) == expected
    assert sorted(os.listdir(folder)) == sorted([*expected, "manifest.jsonl"])


def test_a_run_that_is_repeated_draws_nothing(
    mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]
) -> None:
    first = mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out")
    assert first.code == 0, first.err
    assert [Path(line).name for line in first.out.splitlines()] == sorted(whole)
    assert_whole(Path("out"), whole)
    again = mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out")
    assert (again.code, again.out) == (0, "")
    assert f"0 pictures drawn, {PICTURES} were there" in again.err
    assert_whole(Path("out"), whole)


def test_a_picture_is_the_one_that_generate_draws(
    mmgen_command: Command, tiny: str, whole: dict[str, bytes]
) -> None:
    name = next(name for name in whole if "house" in name)
    drawn = mmgen_command(
        "generate", "a house at night", "--model", tiny, *SIZE, "--seed", "0", "-o", "one.png"
    )
    assert drawn.code == 0, drawn.err
    assert Path("one.png").read_bytes() == whole[name]


def test_what_is_missing_is_drawn_again_and_what_was_renamed_is_found(
    mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]
) -> None:
    assert mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out").code == 0
    lost, renamed, *_ = sorted(whole)
    Path("out", lost).unlink()
    Path("out", renamed).rename("out/mine.png")
    Path("out/manifest.jsonl").unlink()
    again = mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out")
    assert [Path(line).name for line in again.out.splitlines()] == [lost]
    made = pictures(Path("out"))
    assert made.pop("mine.png") == whole[renamed]
    assert made == {name: data for name, data in whole.items() if name != renamed}


def test_a_dry_run_names_what_will_be_drawn_without_torch(
    tiny: str, prompts: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    code = (
        "import sys; from mmgen.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    args = ["batch", prompts, "--model", tiny, *SIZE, "-o", str(tmp_path / "out"), "--dry-run", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [job["name"] for job in listed] == sorted(whole)
    assert [job["line"] for job in listed] == [1, 3, 3, 4]
    assert not (tmp_path / "out").exists()


def test_everything_that_is_wrong_with_a_file_is_said_and_nothing_drawn(
    mmgen_command: Command, tiny: str, prompts: str
) -> None:
    Path(prompts).write_text('a cat\n--promt "x"\n{a|b\n--prompt "x" --steps 0\n', "utf-8")
    done = mmgen_command("batch", prompts, "--model", tiny, "-o", "out")
    assert done.code == 2
    assert [line.split(": ")[1].rpartition(", line ")[2].split(",")[0] for line in done.err.splitlines()] == [
        "2",
        "3",
        "4",
    ]
    assert "did you mean 'prompt'?" in done.err
    assert not Path("out").exists()


def test_what_the_model_does_not_draw_is_said_with_all_else(
    mmgen_command: Command, tiny: str, prompts: str
) -> None:
    lines = [
        '--prompt "a" --size 17',
        "a cat",
        '--prompt "a" --set upscaler.steps=2',
        "{a",
        '--prompt "a" --steps 0',
    ]
    Path(prompts).write_text("\n".join(lines), "utf-8")
    done = mmgen_command("batch", prompts, "--model", tiny, "-o", "out")
    assert done.code == 2
    said = done.err.splitlines()
    assert [line.split(", line ")[1][0] for line in said] == ["1", "3", "4", "5"]
    assert "tiny cannot draw 17x17" in said[0]
    assert "no stage 'upscaler'" in said[1]
    Path(prompts).write_text('--prompt "a" --size 17\n' * 30, "utf-8")
    assert len(mmgen_command("batch", prompts, "--model", tiny, "-o", "out").err.splitlines()) == MAX_ERRORS


def test_a_negative_prompt_of_the_run_stands_for_many_too(
    mmgen_command: Command, tiny: str, prompts: str
) -> None:
    Path(prompts).write_text('a cat\n--prompt "a dog" --negative "rain"\n', "utf-8")
    args = ("batch", prompts, "--model", tiny, *SIZE, "--negative", "{snow|fog}", "--dry-run", "--json")
    listed = mmgen_command(*args, "--combinatorial").objects()
    negatives = [job["request"]["negative_prompt"] for job in listed]
    assert negatives == ["snow", "fog", "rain"]
    assert mmgen_command(*args).objects()[0]["request"]["negative_prompt"] in negatives[:2]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "no prompt file was given"),
        (["none.txt"], 2, "none.txt"),
        (["prompts.doc"], 2, "no prompt file by its name"),
        (["prompts.txt", "--model", "storybok"], 3, "no model 'storybok'"),
        (["prompts.txt", "--name", "{indx}"], 2, "no field 'indx'"),
        (["prompts.txt", "--set", "decoder.stepz=3"], 2, "no setting 'stepz'"),
        (["prompts.txt", "--set", "decodr.steps=3"], 2, "--set decodr: no such stage"),
        (["prompts.txt", "--wildcards", "nowhere"], 2, "--wildcards nowhere"),
        (["prompts.txt", "--sampler", "eulr"], 2, "eulr"),
        (["prompts.txt", "--out", ""], 2, "--out ''"),
        (["prompts.txt", "--rebuild-manifest"], 2, "leave the prompt file out"),
        (["--rebuild-manifest", "--out", "nowhere"], 2, "there is no such folder"),
        (["--rebuild-manifest", "--dry-run", "--out", "."], 2, "--dry-run writes nothing"),
    ],
)
@pytest.mark.usefixtures("prompts")
def test_what_cannot_be_meant_is_said(mmgen_command: Command, args: list[str], code: int, says: str) -> None:
    done = mmgen_command("batch", *args)
    assert done.code == code
    assert says in done.err
    assert not Path("mmgen-out").exists()


def test_prompts_come_from_standard_input(mmgen_command: Command, tiny: str) -> None:
    stdin = b"prompt,seed\na cat,7\n"
    done = mmgen_command("batch", "-", "--kind", "csv", "--model", tiny, *SIZE, "-o", "out", stdin=stdin)
    assert done.code == 0, done.err
    request = read_metadata(done.out.strip())["request"]
    assert request is not None
    assert (request.prompts, request.seeds) == (("a cat",), (7,))


def test_events_are_json(mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]) -> None:
    events = mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out", "--json").objects()
    files = [Path(event["file"]).name for event in events if event["event"] == "picture"]
    assert files == sorted(whole)
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["text", "prior", "decoder", "super-res-64"]


def test_a_name_that_is_taken_fails_its_picture_alone_and_before_it_is_drawn(
    mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]
) -> None:
    name = sorted(whole)[0]
    Path("out").mkdir()
    Path("out", name).write_bytes(b"mine")
    args = ("batch", prompts, "--model", tiny, *SIZE, "-o", "out")
    done = mmgen_command(*args)
    assert done.code == 1
    assert "exists already and is another picture" in done.err
    assert f"{PICTURES - 1} pictures drawn, 1 failed" in done.err
    assert pictures(Path("out")) == {**whole, name: b"mine"}
    again = mmgen_command(*args, "--json")
    assert again.code == 1
    assert [event["event"] for event in again.objects()] == ["failed"]
    assert mmgen_command(*args, "--overwrite").code == 0
    assert pictures(Path("out")) == whole


def test_force_draws_what_is_there(
    mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]
) -> None:
    args = ("batch", prompts, "--model", tiny, *SIZE, "-o", "out")
    assert mmgen_command(*args).code == 0
    renamed = sorted(whole)[0]
    Path("out", renamed).rename("out/mine.png")
    again = mmgen_command(*args, "--force")
    assert len(again.out.splitlines()) == PICTURES
    assert pictures(Path("out")) == {("mine.png" if name == renamed else name): whole[name] for name in whole}


def test_force_replaces_nothing_but_the_same_picture(
    mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]
) -> None:
    Path("out").mkdir()
    Path("out", sorted(whole)[0]).write_bytes(b"mine")
    done = mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out", "--force")
    assert done.code == 1
    assert Path("out", sorted(whole)[0]).read_bytes() == b"mine"


def test_a_pipe_is_read_as_a_file_is(mmgen_command: Command, tiny: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_text, args=("a cat\na dog\n",))
    writer.start()
    done = mmgen_command("batch", str(tmp_path / "pipe"), "--model", tiny, *SIZE, "-o", "out", "--dry-run")
    writer.join()
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 2


def test_a_scheduler_that_diffusers_has_not_is_said_before_anything_is_drawn(
    mmgen_command: Command, tiny: str, prompts: str
) -> None:
    args = ("batch", prompts, "--model", tiny, *SIZE, "-o", "out", "--sampler", "NoSuchScheduler")
    done = mmgen_command(*args)
    assert done.code == 2
    assert "NoSuchScheduler" in done.err
    assert os.listdir("out") == []


def test_time_may_be_up(mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]) -> None:
    args = ("batch", prompts, "--model", tiny, *SIZE, "-o", "out")
    done = mmgen_command(*args, "--max-minutes", "1e-9")
    assert done.code == 1
    assert f"{PICTURES} left: run the command again" in done.err
    assert not pictures(Path("out"))
    assert mmgen_command(*args).code == 0
    assert_whole(Path("out"), whole)


def test_the_manifest_is_made_anew_from_the_pictures(
    mmgen_command: Command, tiny: str, prompts: str, whole: dict[str, bytes]
) -> None:
    assert mmgen_command("batch", prompts, "--model", tiny, *SIZE, "-o", "out").code == 0
    kept = files_by_key(Path("out"))
    Path("out/manifest.jsonl").unlink()
    done = mmgen_command("batch", "--rebuild-manifest", "-o", "out")
    assert done.code == 0
    assert f"{PICTURES} pictures" in done.err
    assert files_by_key(Path("out")) == kept
    assert_whole(Path("out"), whole)
