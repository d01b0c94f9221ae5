"""One scene is the same picture at every resolution, and what it says is what it shows."""

import numpy as np
import pytest

from mmgen.storybook import data
from mmgen.storybook.render import render, render_window
from mmgen.storybook.scene import GRID, Item, Scene
from mmgen.storybook.scenes import LIGHTS, PLACES, horizon

SCENES = data.scenes(7, 0, 24)


def shrink(image, px):
    k = image.shape[0] // px
    return image.reshape(px, k, px, k, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("scene", SCENES[:12], ids=lambda s: s.caption[:30])
def test_small_is_the_area_mean_of_large(bank, scene):
    large = render(scene, 256, bank)
    for px in (32, 64):
        away = np.abs(shrink(large, px) - render(scene, px, bank))
        assert away.mean() < 2
        assert np.percentile(away, 99) < 24


@pytest.mark.parametrize("place", PLACES)
def test_every_place_at_512_is_the_place_at_64(bank, place):
    for light in ("sunset", "starry night"):
        scene = Scene((), None, place, light, None, 3, (), "")
        away = np.abs(shrink(render(scene, 512, bank), 64) - render(scene, 64, bank))
        assert away.mean() < 1.5


def test_a_window_is_a_part_of_the_whole(bank):
    for scene in SCENES[:6]:
        whole = render(scene, 512, bank)
        part = render_window(scene, 512, (96, 200, 128), bank)
        assert np.abs(whole[200:328, 96:224].astype(int) - part).max() <= 1


def test_sizes_and_windows_that_cannot_be_are_refused(bank):
    with pytest.raises(ValueError, match="multiples of 32"):
        render(SCENES[0], 48, bank)
    with pytest.raises(ValueError, match="does not lie inside"):
        render_window(SCENES[0], 64, (40, 0, 32), bank)


def test_every_item_is_drawn_where_it_stands(bank):
    for scene in SCENES:
        full = render(scene, 64, bank).astype(int)
        for i, item in enumerate(scene.items):
            rest = scene.items[:i] + scene.items[i + 1 :]
            empty = Scene(
                scene.groups, None, scene.place, scene.light, scene.backdrop, scene.variant, rest, ""
            )
            changed = np.abs(full - render(empty, 64, bank)).max(axis=-1) > 20
            box = changed[
                2 * item.top : 2 * (item.top + item.size), 2 * item.left : 2 * (item.left + item.size)
            ]
            assert box.mean() > 0.15


def test_shadows_fall_on_the_ground_only(bank):
    def darker_below(place, top):
        item = Item("apple", None, 10, top, 10)
        empty = Scene((), None, place, "day", None, 0, (), "")
        full = Scene((), None, place, "day", None, 0, (item,), "")
        strip = slice(2 * (top + 10), 2 * (top + 10) + 2)
        after, before = (render(s, 64, bank)[strip, 20:40].astype(int) for s in (full, empty))
        return (before - after).max()

    assert darker_below("grass", 18) > 10
    assert darker_below("grass", 3) == 0
    assert darker_below("ocean", 18) == 0


def test_the_horizon_is_inside_the_picture():
    for place in PLACES:
        for variant in range(8):
            assert GRID // 2 <= horizon(place, variant) <= 22


def test_lights_differ_everywhere(bank):
    """Light is an axis of its own: each place has four clearly different skies or walls."""
    for place in PLACES:
        means = [
            render(Scene((), None, place, light, None, 0, (), ""), 32, bank)[:12].mean(axis=(0, 1))
            for light in dict.fromkeys(LIGHTS)
        ]
        for i, a in enumerate(means):
            for b in means[i + 1 :]:
                assert np.abs(a - b).max() > 12
