"""How good the judge itself is: on rendered scenes, where the truth is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmgen.evaluation.judge import Judge
from mmgen.evaluation.prompts import include
from mmgen.evaluation.verdict import Entry, verdict
from mmgen.storybook.catalogue import SPRITES
from mmgen.storybook.render import render
from mmgen.storybook.scene import GRID, Item, Scene
from mmgen.storybook.scenes import sample_scene
from mmgen.storybook.sprites import SpriteBank

Picture = NDArray[np.uint8]
Rng = np.random.Generator
Report = Callable[[str, Scene, tuple[str, ...]], None]


def entry_of(scene: Scene) -> Entry:
    """What a prompt that says all of the scene would ask for."""
    scenery = {"place": scene.place, "light": scene.light, "backdrop": scene.backdrop}
    said = {name: value for name, value in scenery.items() if value is not None}
    return {
        "tag": "truth",
        "prompt": scene.caption,
        "include": include(scene.groups, scene.relation),
        "exclude": [],
        **said,
    }


def measure_judge(
    n: int,
    judge: Judge | None = None,
    bank: SpriteBank | None = None,
    scene_of: Callable[[Rng], Scene] = sample_scene,
    names: Collection[str] = tuple(SPRITES),
    report: Report | None = None,
) -> dict[str, tuple[float, int]]:
    """Over n scenes, the share of pictures judged as they should be, and their number, by name of the test.

    "truth" and all perturbations must pass; every mutation ("one ... changed") and adversary must fail.
    scene_of, names: where scenes come from, and the sprites they are made of.
    report: called with the name, the scene and the reasons of every picture judged otherwise.
    """
    drawer = bank or SpriteBank()
    eye = judge or Judge(drawer)
    right: dict[str, list[bool]] = {}
    previous = None
    for i in range(n):
        rng = np.random.default_rng((0x6A756467, i))
        scene = scene_of(rng)
        entry = entry_of(scene)
        for name, picture, passes in _cases(scene, previous, rng, drawer, names):
            found = verdict(eye.see(Image.fromarray(picture)), entry)
            right.setdefault(name, []).append(found.strict == passes)
            if report and found.strict != passes:
                report(name, scene, found.reasons)
        previous = scene
    return {name: (sum(values) / len(values), len(values)) for name, values in right.items()}


def table(figures: Mapping[str, tuple[float, int]]) -> str:
    """The measured figures as plain text, a line for each test."""
    lines = [f"{'':<22}{'right':>8}{'pictures':>10}"]
    return "\n".join(
        [*lines, *(f"{name:<22}{share:8.4f}{count:10d}" for name, (share, count) in figures.items())]
    )


def _cases(
    scene: Scene, previous: Scene | None, rng: Rng, bank: SpriteBank, names: Collection[str]
) -> Iterator[tuple[str, Picture, bool]]:
    """(name, picture, whether it should pass): the truth, and one of each kind of change that this scene allows."""
    picture = render(scene, 64, bank)
    yield "truth", picture, True
    for name, changed in perturbations(picture, rng).items():
        yield name, changed, True
    for name, mutated in mutations(scene, rng, names).items():
        yield name, render(mutated, 64, bank), False
    yield "blank", np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8), False
    yield "empty scene", render(replace(scene, items=()), 64, bank), False
    yield "noise", rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), False
    yield "clutter", render(cluttered(scene, rng), 64, bank), False
    if previous is not None and previous.groups != scene.groups:
        yield "shuffled", render(previous, 64, bank), False


def perturbations(picture: Picture, rng: Rng) -> Mapping[str, Picture]:
    """The same picture, a little worse: each must leave the verdict as it is."""
    side = int(rng.integers(4))
    return {
        "jpeg 85": _jpeg(picture, 85),
        "brightness +8 %": np.clip(picture * 1.08, 0, 255).astype(np.uint8),
        "brightness -8 %": (picture * 0.92).astype(np.uint8),
        "blur 0.5 px": _blurred(picture, 0.5),
        "shift 1 px": _shifted(picture, *((1, 0), (-1, 0), (0, 1), (0, -1))[side]),
    }


def mutations(scene: Scene, rng: Rng, names: Collection[str] = tuple(SPRITES)) -> dict[str, Scene]:
    """The scene with one atom changed, for each kind of atom that it has. names: the sprites to change to."""
    found: dict[str, Scene] = {"one object changed": _other_sprite(scene, rng, names)}
    item = scene.items[0]
    colours = [c for c in (None, *sorted(SPRITES[item.sprite].colours)) if c != item.colour]
    if colours:
        group = scene.groups[0]
        other = colours[int(rng.integers(len(colours)))]
        painted = tuple(replace(i, colour=other) for i in scene.items[: group.count])
        found["one colour changed"] = replace(scene, items=painted + scene.items[group.count :])
    if scene.relation is not None:
        found["relation mirrored"] = replace(scene, items=_mirrored(scene))
    if len(scene.items) > 1:
        found["one missing"] = replace(scene, items=scene.items[:-1])
    if more := _one_more(scene, rng):
        found["one too many"] = replace(scene, items=(*scene.items, more))
    if len(scene.groups) == 2 and (swapped := _exchanged(scene)):
        found["colours exchanged"] = replace(scene, items=swapped)
    return found


def cluttered(scene: Scene, rng: Rng) -> Scene:
    """The scene with ten more of its sprites strewn over it."""
    strewn = [
        replace(scene.items[n % len(scene.items)], left=int(left), top=int(top), size=9)
        for n, (left, top) in enumerate(rng.integers(0, GRID - 9, (10, 2)))
    ]
    return replace(scene, items=(*scene.items, *strewn))


def _other_sprite(scene: Scene, rng: Rng, names: Collection[str]) -> Scene:
    """The last item's sprite becomes another that can have the same colour."""
    last = scene.items[-1]
    taken = {i.sprite for i in scene.items}
    fits = [
        s
        for s in sorted(names)
        if s not in taken and (last.colour is None or last.colour in SPRITES[s].colours)
    ]
    other = replace(last, sprite=fits[int(rng.integers(len(fits)))])
    return replace(scene, items=(*scene.items[:-1], other))


def _mirrored(scene: Scene) -> tuple[Item, ...]:
    if scene.relation in ("left of", "right of"):
        return tuple(replace(i, left=GRID - i.left - i.size) for i in scene.items)
    return tuple(replace(i, top=GRID - i.top - i.size) for i in scene.items)


def _one_more(scene: Scene, rng: Rng) -> Item | None:
    """Another of the first item, where there is room; None if there is none."""
    first = scene.items[0]
    for _ in range(60):
        left, top = (int(v) for v in rng.integers(1, GRID - 8, 2))
        if all(
            left + 8 <= i.left or i.left + i.size <= left or top + 8 <= i.top or i.top + i.size <= top
            for i in scene.items
        ):
            return replace(first, left=left, top=top, size=8)
    return None


def _exchanged(scene: Scene) -> tuple[Item, ...] | None:
    """The two groups' colours exchanged; None if they cannot be, or are the same."""
    a, b = scene.groups
    fits = all(c is None or c in SPRITES[s].colours for s, c in ((a.sprite, b.colour), (b.sprite, a.colour)))
    if a.colour == b.colour or not fits:
        return None
    return tuple(replace(i, colour=b.colour if n < a.count else a.colour) for n, i in enumerate(scene.items))


def _jpeg(picture: Picture, quality: int) -> Picture:
    held = BytesIO()
    Image.fromarray(picture).save(held, format="JPEG", quality=quality)
    return np.asarray(Image.open(held).convert("RGB"))


def _blurred(picture: Picture, sigma: float) -> Picture:
    """A true Gaussian over 5 pixels; Pillow's own blur is a box at this width."""
    taps = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    taps /= taps.sum()
    wide = np.pad(picture.astype(np.float64), ((2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(t * wide[i : i + picture.shape[0]] for i, t in enumerate(taps))
    both = sum(t * np.asarray(rows)[:, i : i + picture.shape[1]] for i, t in enumerate(taps))
    return (np.asarray(both) + 0.5).astype(np.uint8)


def _shifted(picture: Picture, x: int, y: int) -> Picture:
    wide = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return wide[1 - y : 1 - y + picture.shape[0], 1 - x : 1 - x + picture.shape[1]]
