"""One bank of tiny drawings for all tests of this folder: simple shapes under the icon ids of the real set."""

from pathlib import Path

import pytest

from mmgen.storybook.sprites import SpriteBank

ICONS = Path(__file__).with_name("icons.json")


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SpriteBank:
    return SpriteBank(ICONS, cache=tmp_path_factory.mktemp("sprites"))
