"""The benchmarks beside other ways: every piece runs at tiny size and compares equal work. No time is asserted."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mmgen
from mmgen.noise import Noise
from tests.checkpoints import write_tiny

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
# diffusers 0.42 hands float32 torch tensors to numpy 2 in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The folder of the scripts on the path, as when one of them is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that draws by a prior, as the bundled one."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def beside() -> ModuleType:
    return import_module("beside_diffusers")


@pytest.fixture(scope="module")
def peers(beside, folder):
    return beside.load_peers(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_prints_nothing_when_imported(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import_module(name)
    assert capsys.readouterr().out == ""


def test_ways_take_turns() -> None:
    done: list[str] = []
    ways = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    taken = import_module("side_by_side").interleaved(ways, 2)
    assert "".join(done) == "ababab"
    assert set(taken) == {"a", "b"}
    assert all(seconds > 0 for seconds in taken.values())


def test_both_loops_draw_the_same_picture(beside, peers, folder: Path) -> None:
    exact = mmgen.load(folder, "cpu", "float32")
    most, mean = beside.apart(peers.untuned, exact)
    assert most <= 1
    assert mean < beside.SAME
    assert "0.0" in beside.check_work(peers, exact)


def test_other_work_is_refused(beside, peers, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = mmgen.load(folder, "cpu", "float32")
    monkeypatch.setattr(
        beside.diffusers_loop, "Noise", lambda seeds, name: Noise(seeds, name + " of another")
    )
    with pytest.raises(SystemExit, match="not the same work"):
        beside.check_work(peers, exact)


def test_untuned_is_as_it_comes_and_tuned_is_ours(peers) -> None:
    untuned, tuned = (parts["decoder"] for parts in (peers.untuned, peers.tuned))
    ours = peers.pipe.cascade.stages[peers.pipe.stage_names.index("decoder")].network
    assert untuned.dtype == torch.float32
    assert tuned.dtype == ours.dtype
    for name, weight in tuned.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name])
        assert weight.stride() == ours.state_dict()[name].stride()
    assert untuned.patches_in.weight.is_contiguous()


@pytest.mark.parametrize("piece", ["decoder_step", "network_call", "whole_cascade", "thresholding"])
def test_each_piece_takes_time_in_every_way(beside, peers, piece: str) -> None:
    measured = {
        "decoder_step": lambda: beside.decoder_step(peers, 1),
        "network_call": lambda: beside.network_call(peers, (32, 32, 32), 1)[0],
        "whole_cascade": lambda: beside.whole_cascade(peers, 2, 1),
        "thresholding": lambda: beside.thresholding(8, 2, 1),
    }
    taken = measured[piece]()
    tuned = set() if piece == "thresholding" else {"tuned"}
    assert set(taken) == {"untuned", "mmgen"} | tuned
    assert all(0 < seconds < math.inf for seconds in taken.values())


def test_a_stock_network_has_the_arithmetic_of_the_bundled_decoder(beside) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        beside.diffusers_loop.stock_unet(64, beside.STOCK, 384)(
            torch.ones(2, 3, 64, 64), torch.ones(2), torch.ones(2, 14, 384)
        )
    assert counter.get_total_flops() == pytest.approx(6.2e9, rel=0.05)


@pytest.mark.parametrize("way", ["untuned", "mmgen"])
def test_a_start_is_a_process_that_ends_well(beside, folder: Path, way: str) -> None:
    done = subprocess.run(
        beside.starts(folder)[way], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_row_leaves_open_what_there_is_not(beside) -> None:
    assert beside.row("a", {"untuned": 0.2, "tuned": 0.1, "mmgen": 0.05}, 0.025) == (
        "| a | 200.00 | 100.00 | 50.00 | 4.00 | 2.00 | 25.00 |"
    )
    assert beside.row("a", {"untuned": 0.2, "mmgen": 0.05}) == "| a | 200.00 | - | 50.00 | 4.00 | - | - |"


def test_kept_features_at_every_step_change_nothing_and_leave_the_network_as_it_was(peers) -> None:
    kept, side = import_module("kept_features"), import_module("side_by_side")
    stage, draft = side.decoder_and_draft(peers.pipe, "a cat")
    level = stage.network.middle
    pictures = [kept.decode(stage, draft, kept.Way(4, period)) for period in (1, 1, 2)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert stage.network.middle is level


def test_a_kept_level_is_computed_at_every_second_call_and_takes_its_text() -> None:
    from mmgen.nn.blocks import AttentionBlock, Blocks

    level = Blocks([AttentionBlock(16, 8, head_dim=16)])
    torch.nn.init.normal_(level[0].out.weight)
    layer = import_module("kept_features").Kept(level, 2)
    tokens, left = level[0].text_keys_values(torch.ones(1, 2, 8)), []
    outputs = []
    for i in range(3):
        kv = iter([tokens, tokens])
        outputs.append(layer(torch.full((1, 16, 2, 2), 1.0 + i), torch.ones(1), kv, None))
        left.append(len(list(kv)))
    assert outputs[1] is outputs[0]
    assert not torch.equal(outputs[2], outputs[0])
    assert left == [1, 1, 1]


def test_kept_features_are_measured_beside_fewer_steps(peers) -> None:
    outcomes = import_module("kept_features").measure(peers.pipe, 1)
    assert {way.period for way in outcomes} == {1, 2, 3}
    assert len({way.steps for way in outcomes if way.period > 1}) == 1
    assert all(outcome.seconds > 0 and 0 < outcome.difference < 255 for outcome in outcomes.values())


@pytest.mark.parametrize(
    ("kept", "gains"),
    [((0.6, 1.0), True), ((0.6, 4.0), False), ((1.1, 0.5), False), ((0.4, 4.0), False)],
    ids=[
        "near and fast",
        "fewer steps are nearer",
        "slower than all steps",
        "fast, and fewer steps are nearer",
    ],
)
def test_the_verdict_on_kept_features(kept: tuple[float, float], gains: bool) -> None:
    script = import_module("kept_features")
    outcomes = {
        script.Way(32): script.Outcome(1.0, 0.4),
        script.Way(32, 2): script.Outcome(*kept),
        script.Way(19): script.Outcome(0.6, 2.0),
        script.Way(13): script.Outcome(0.4, 3.0),
    }
    assert bool(script.gains(outcomes)) is gains


def test_a_compiled_network_is_measured_beside_its_own_call(peers) -> None:
    script = import_module("compiled")
    taken = script.beside_eager(peers.pipe, lambda network: network, 1)
    assert set(taken) == {"first", "difference", "steps", "eager", "compiled"}
    assert taken["difference"] == 0
    assert taken["steps"] == 32


def test_when_compiling_pays() -> None:
    pays_after = import_module("compiled").pays_after
    taken = {"first": 32.0, "steps": 32.0, "eager": 0.03}
    assert pays_after(taken | {"compiled": 0.02}) == pytest.approx(100)
    assert pays_after(taken | {"compiled": 0.03}) == math.inf


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler no-such-compiler" in import_module("compiled").in_new_process("storybook")


def test_a_dry_run_is_measured_beside_what_it_cannot_leave_out(tmp_path: Path) -> None:
    script = import_module("dry_run")
    path = script.write(tmp_path / "prompts.txt", 3)
    seconds, most = script.dry_run(path)
    assert 0 < seconds < math.inf
    assert most > 2**20
    assert all(0 <= taken < math.inf for taken in script.floor(path))
    path.write_text("--promt x")
    with pytest.raises(SystemExit, match="ended with 2"):
        script.dry_run(path)
