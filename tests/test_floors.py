"""No arrow runs upwards: ground <- schedulers <- pipelines <- {storybook, training, render, evaluation} <- cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mmgen

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "ground": 0, "schedulers": 1, "pipelines": 2,
    "storybook": 3, "training": 3, "render": 3, "evaluation": 3, "server": 3, "cli": 4,
}  # fmt: skip
MAPPED = (
    "schedulers",
    "pipelines",
    "cli",
)  # they lie at the top of the tree and are installed inside the package
LAZY = mmgen._PUBLIC


def _modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    files = [
        (path, ("mmgen", *path.relative_to(ROOT / "mmgen").parts)) for path in (ROOT / "mmgen").rglob("*.py")
    ]
    for folder in MAPPED:
        files += [(path, ("mmgen", *path.relative_to(ROOT).parts)) for path in (ROOT / folder).rglob("*.py")]
    return {".".join(parts).removesuffix(".py").removesuffix(".__init__"): path for path, parts in files}


MODULES = _modules()


def room(module: str) -> str:
    """The room of a module: its own name if it has a floor, the ground otherwise."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "ground"


def imports(module: str, source: str) -> Iterator[str]:
    """Every module that a source text imports, at any depth, also for types alone; lazy names by where they lie."""
    package = (
        module.split(".") if MODULES.get(module, Path()).name == "__init__.py" else module.split(".")[:-1]
    )
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                lazy = LAZY.get(alias.name) if origin == "mmgen" else None
                yield lazy or (f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in MODULES else origin)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mmgen"
        ):
            yield LAZY.get(node.attr, "mmgen")


def wrong_arrows(module: str, source: str) -> list[str]:
    """What a module imports from a floor above its own, or past the package's name."""
    wrong = []
    for name in imports(module, source):
        if name.split(".")[0] in MAPPED:
            wrong.append(f"{module} imports {name}, a second copy of mmgen.{name}")
        elif name.split(".")[0] == "mmgen" and FLOORS[room(name)] > FLOORS[room(module)]:
            wrong.append(f"{module} imports {name} from the floor above")
    return wrong


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_arrow_runs_upwards(module: str) -> None:
    assert wrong_arrows(module, MODULES[module].read_text("utf-8")) == []


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for name in imports(module, path.read_text("utf-8")):
            if name.split(".")[0] == "mmgen" and room(name) != room(module):
                arrows.setdefault(room(module), set()).add(room(name))
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"rooms import each other: {' -> '.join(error.args[1])}")
    assert order[0] == "ground"


def test_the_package_names_higher_floors_only_as_strings() -> None:
    assert set(imports("mmgen", MODULES["mmgen"].read_text("utf-8"))) <= {
        "importlib",
        "pathlib",
        "typing",
        "__future__",
    }
    assert set(LAZY.values()) <= set(MODULES)


def test_only_known_rooms_are_there() -> None:
    folders = {path.parent.name for path in (ROOT / "mmgen").glob("*/__init__.py")}
    assert folders - set(FLOORS) == {"nn", "models"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mmgen.types", "import mmgen.schedulers.steps"),
        ("mmgen.types", "from mmgen.pipelines import stage"),
        ("mmgen.types", "from mmgen import load"),
        ("mmgen.types", "import mmgen\ndef f():\n    mmgen.load('x')"),
        ("mmgen.nn.blocks", "from ..schedulers import steps"),
        ("mmgen.schedulers.steps", "def f():\n    from mmgen.pipelines.stage import Draft"),
        ("mmgen.pipelines.stage", "if TYPE_CHECKING:\n    from mmgen.training.start import start"),
        ("mmgen.pipelines.stage", "from schedulers.samplers import Step"),
        ("mmgen.storybook.scene", "import cli.main"),
        ("mmgen.evaluation.judge", "from mmgen.cli import main"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert wrong_arrows(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mmgen.cli.main", "import mmgen\nfrom mmgen import load\nfrom mmgen.types import Request"),
        ("mmgen.evaluation.judge", "from mmgen.storybook.scene import Scene"),
        ("mmgen.schedulers.steps", "import torch\nfrom . import schedules"),
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert wrong_arrows(module, source) == []


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, mmgen, mmgen.types, mmgen.images, mmgen.cli.main; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_loads_no_torch() -> None:
    code = "import sys; from mmgen.cli.main import main; sys.exit(main(['--help']) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
