"""Eight hand-drawn sprites that can be told apart, the judge that knows them, and scenes made of them."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from mmgen.evaluation.judge import Judge
from mmgen.storybook import sprites
from mmgen.storybook.catalogue import SPRITES
from mmgen.storybook.scene import Group, Scene
from mmgen.storybook.scenes import LIGHTS, PLACES, RELATIONS, VARIANTS, compose
from mmgen.storybook.sprites import SpriteBank

NAMES = ("cat", "car", "balloon", "house", "fish", "tree", "chair", "butterfly")
SHAPES = {
    "cat": '<path d="M8 12V3l5 4h6l5-4v9c3 3 4 6 4 11v6H4v-6c0-5 1-8 4-11z" fill="#f2a34c"/>'
    '<circle cx="12" cy="13" r="2" fill="#181020"/><circle cx="20" cy="13" r="2" fill="#181020"/>',
    "automobile": '<path d="M1 18l5-8h15l7 8h3v7H1z" fill="#e5243b"/><path d="M8 12h11l4 5H6z" fill="#9fd4ff"/>'
    '<circle cx="8" cy="25" r="4" fill="#181020"/><circle cx="24" cy="25" r="4" fill="#181020"/>',
    "balloon": '<path d="M15 20h2v11h-2z" fill="#3b82f6"/><ellipse cx="16" cy="11" rx="9" ry="11" fill="#e5243b"/>'
    '<circle cx="13" cy="7" r="2" fill="#ffffff"/>',
    "house": '<path d="M4 14h24v17H4z" fill="#e0a060"/><path d="M16 1l16 14H0z" fill="#d0561e"/>'
    '<path d="M17 19h7v6h-7z" fill="#3ba0f6"/><path d="M7 19h6v12H7z" fill="#704028"/>',
    "fish": '<ellipse cx="13" cy="16" rx="13" ry="9" fill="#3b82f6"/><path d="M22 16l10-9v18z" fill="#2563c9"/>'
    '<circle cx="6" cy="14" r="2" fill="#181020"/>',
    "deciduous-tree": '<path d="M13 18h6v14h-6z" fill="#7a4a2b"/><circle cx="16" cy="11" r="11" fill="#3fa34d"/>',
    "chair": '<path d="M6 0h5v15h15v17h-5V22H11v10H6z" fill="#8a5a3c"/>',
    "butterfly": '<circle cx="8" cy="9" r="8" fill="#f08a24"/><circle cx="24" cy="9" r="8" fill="#f08a24"/>'
    '<circle cx="9" cy="24" r="6" fill="#f0a050"/><circle cx="23" cy="24" r="6" fill="#f0a050"/>'
    '<path d="M14 4h4v26h-4z" fill="#40204a"/>',
}


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SpriteBank:
    folder = tmp_path_factory.mktemp("eight")
    icons = {name: {"body": body, "width": 32, "height": 32} for name, body in SHAPES.items()}
    (folder / "icons.json").write_text(json.dumps({"prefix": "eight", "icons": icons}))
    made = SpriteBank(folder / "icons.json", cache=folder / "drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sprites, "DRAWN_PX", 192)  # no test here shows a sprite larger than 48 px
        for name in NAMES:
            for colour in (None, *SPRITES[name].colours):
                made.rgba(name, colour, 16)
    return made


@pytest.fixture(scope="session")
def judge(bank: SpriteBank) -> Judge:
    return Judge(bank, NAMES)


@pytest.fixture(scope="session")
def scene_of() -> Callable[[np.random.Generator], Scene]:
    """Draws a scene of the eight sprites by chance; held-out combinations too."""
    return _scene


def _scene(rng: np.random.Generator) -> Scene:
    shape = ((1,), (2,), (1, 1), (1, 1), (2, 1))[int(rng.integers(5))]
    groups = tuple(
        Group(
            str(name),
            [None, *sorted(SPRITES[name].colours)][int(rng.integers(1 + len(SPRITES[name].colours)))],
            count,
        )
        for name, count in zip(rng.choice(NAMES, len(shape), replace=False), shape, strict=True)
    )
    relation = RELATIONS[int(rng.integers(4))] if shape == (1, 1) else None
    place, light = PLACES[int(rng.integers(len(PLACES)))], LIGHTS[int(rng.integers(len(LIGHTS)))]
    return compose(groups, relation, place, light, None, int(rng.integers(VARIANTS)), rng)
