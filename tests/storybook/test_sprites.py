"""The bank draws what it says, at every size, without pale edges."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmgen.errors import ModelError
from mmgen.storybook.catalogue import COLOURS, SPRITES
from mmgen.storybook.sprites import ByteCache, SpriteBank, area_resize, recolour

ICONS = Path(__file__).with_name("icons.json")


@settings(deadline=None)
@given(
    arrays(np.float32, (24, 24, 2), elements=st.floats(0, 1, width=32)),
    st.integers(1, 24),
)
def test_area_resize_keeps_the_mean_and_the_range(image, px):
    small = area_resize(image, px)
    assert small.shape == (px, px, 2)
    np.testing.assert_allclose(small.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=1e-5)
    assert small.min() >= image.min() - 1e-5
    assert small.max() <= image.max() + 1e-5


@pytest.mark.parametrize("px", [13, 16, 20, 44, 96, 97, 176])
def test_edges_have_no_halo(bank, px):
    """A sprite of one colour stays that colour up to its last, nearly transparent pixel, whatever the size."""
    for name in ("balloon", "umbrella"):
        rgba = bank.rgba(name, "green" if name == "balloon" else "red", px)
        edge = (rgba[..., 3] > 0.05) & (rgba[..., 3] < 0.95)
        assert edge.any()
        assert (rgba[..., :3] <= rgba[..., 3:] + 1e-5).all()
        straight = rgba[edge][:, :3] / rgba[edge][:, 3:]
        solid = rgba[rgba[..., 3] > 0.999][:, :3]
        brightest = solid.max(axis=0)
        assert (straight <= brightest + 0.02).all()


def test_a_sprite_fills_its_box_and_stands_on_its_lower_edge(bank):
    for name in SPRITES:
        alpha = bank.rgba(name, None, 64)[..., 3] > 0.1
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        assert rows[-1] == 63
        assert max(len(rows), len(columns)) >= 63
        assert abs(columns[0] - (63 - columns[-1])) <= 1


def test_every_colour_gives_its_hue(bank):
    """Most of the painted sprite has the named hue, and black and white differ in lightness alone."""
    for colour in COLOURS:
        name = next(n for n in ("umbrella", "tree") if colour in SPRITES[n].colours)
        rgba = bank.rgba(name, colour, 32)
        solid = rgba[rgba[..., 3] > 0.99][:, :3]
        r, g, b = np.median(solid, axis=0)
        if colour == "white":
            assert min(r, g, b) > 0.85
        elif colour == "black":
            assert max(r, g, b) < 0.25
        else:
            hue = np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))
            assert abs((hue - COLOURS[colour].hue + 180) % 360 - 180) < 8


def test_shading_survives_paint():
    shaded = np.zeros((1, 5, 4), np.float32)
    shaded[..., 3] = 1
    shaded[0, :, 0] = (0.4, 0.5, 0.6, 0.7, 0.8)
    painted = recolour(shaded, SPRITES["balloon"], COLOURS["blue"])
    assert (np.diff(painted[0, :, 2]) > 0).all()


def test_colours_out_of_the_world_are_refused(bank):
    with pytest.raises(ValueError, match="cannot be 'red'"):
        bank.rgba("apple", "red", 16)
    with pytest.raises(ValueError, match="natural colours only"):
        bank.rgba("snowman", "blue", 16)
    with pytest.raises(ValueError, match="px is 0"):
        bank.rgba("apple", None, 0)


def test_drawings_are_read_only_and_the_same_from_disk(tmp_path):
    first = SpriteBank(ICONS, cache=tmp_path)
    drawn = first.rgba("cat", "blue", 20)
    with pytest.raises(ValueError, match="read-only"):
        drawn[:] = 0
    again = SpriteBank(ICONS, cache=tmp_path).rgba("cat", "blue", 20)
    np.testing.assert_allclose(again, drawn, atol=1.5 / 255)


def test_missing_or_damaged_icons_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"npm pack @iconify-json/fluent-emoji@1\.2\.7"):
        SpriteBank(tmp_path / "none.json")
    monkeypatch.setenv("MMGEN_SPRITES", str(tmp_path / "elsewhere.json"))
    with pytest.raises(ModelError, match="elsewhere"):
        SpriteBank()
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ModelError, match="not an Iconify JSON"):
        SpriteBank(tmp_path / "bad.json", cache=tmp_path).rgba("cat", None, 8)
    (tmp_path / "few.json").write_text(json.dumps({"icons": {"dog": {"body": "<path/>"}}}))
    with pytest.raises(ModelError, match="no icon 'cat'"):
        SpriteBank(tmp_path / "few.json", cache=tmp_path).rgba("cat", None, 8)


def test_the_cache_drops_what_was_used_least_recently():
    cache = ByteCache(250)
    for key in "abc":
        cache.put(key, np.zeros(100, np.uint8))
        cache.get("a")
    assert cache.get("a") is not None
    assert cache.get("b") is None
    cache.put("c", np.zeros(100, np.uint8))
    assert cache.get("a") is not None


def test_natural_colours_and_paint_do_not_overlap():
    for name, kind in SPRITES.items():
        assert kind.natural not in kind.colours, name
        assert kind.colours <= set(COLOURS)
        assert len(kind.singular.told) == len(kind.plural.told)
