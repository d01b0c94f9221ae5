"""What a stage takes beside its weights, by a run of it on the meta device, where tensors have a shape and no numbers.

All that the stage does is done there, in two steps: network, guidance, threshold and sampler. Counted are the bytes of
all tensors that it makes and that are alive at once, and of every operation the arithmetic and the bytes that it reads
and writes. What a library takes for its own work within one operation is not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmgen.memory import Room, on_meta, weight_bytes
from mmgen.noise import Noise
from mmgen.pipelines.editing import Known
from mmgen.pipelines.stage import Draft, Stage, finish
from mmgen.pipelines.super_res_stage import SuperResStage
from mmgen.pipelines.vae_stage import VaeStage
from mmgen.render.drafts import map_tensors, rows_of
from mmgen.types import SAMPLERS, StageSettings

# Of the room that is there: allocators leave gaps, and kernels have workspaces.
WORKING_SHARE = 0.8
GRAIN = 32  # tokens or pixels, within which sizes are not told apart
STEPS = 2  # in which a run on the meta device is as large as it gets: most samplers look back one step
# What the exponential of a score takes beside its products: of widths from 16 to 64 on a CPU, in either format.
SCORE = 50
_ATEN = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# these read what they give, not all of what they are given
_LOOK_UP = (_ATEN.embedding, _ATEN.index, _ATEN.index_select, _ATEN.gather)

Kind = Literal["convolution", "product", "attention", "other"]


class Work(NamedTuple):
    """What one operation asks of a machine.

    kind: of its arithmetic. flop: floating-point operations, SCORE for an exponential. bytes: that it reads and writes;
    none of both where it gives a part of a tensor, or another view of it. shared: of these, those that were there
    before, as weights are, and are read once for several pictures.
    """

    kind: Kind
    flop: int
    bytes: int
    shared: int = 0


@dataclass(frozen=True)
class Cost:
    """What one picture takes in a stage.

    bytes: alive at once, beside the weights; 1 at least. work: its operations, and how often each is done. draft: what
    the stage gives, on the meta device.
    """

    bytes: int
    work: Mapping[Work, int]
    draft: Draft


@dataclass(frozen=True)
class Fit:
    """How a stage runs in the room that is there.

    stage: what runs, in smaller squares where somebody asked for less memory. each: bytes of one picture, None where
    they cannot be told. free: bytes that pictures may take. most: of them at once, one at least; None: not known.
    """

    stage: Stage
    each: int | None
    free: int
    most: int | None

    @property
    def tight(self) -> bool:
        """Whether a single picture is estimated to take more than there is."""
        return self.each is not None and self.each > self.free


def stage_weights(stage: Stage) -> int:
    """Bytes of all networks of a stage."""
    return sum(map(weight_bytes, stage.networks))


def picture_bytes(stage: Stage, draft: Draft, settings: StageSettings) -> int | None:
    """What a picture of a draft takes in a stage, in bytes; None where shapes alone do not say it."""
    found = _cost(stage, draft, settings, STEPS)
    return None if found is None else found.bytes


def cost(stage: Stage, draft: Draft, settings: StageSettings) -> Cost | None:
    """What a picture of a draft takes in a stage, whose every setting is given; None as above.

    Guidance counts at every step, also where an interval leaves it out.
    """
    found = _cost(stage, draft, settings, STEPS)
    if found is None or settings.steps is None:
        return found
    one = _cost(stage, draft, settings, 1)
    assert one is not None
    more = settings.steps * (settings.resample or 1) - 1
    # a step between the first and the last does what two steps do more than one
    work = {
        key: one.work.get(key, 0) + more * (found.work.get(key, 0) - one.work.get(key, 0))
        for key in found.work.keys() | one.work.keys()
    }
    return replace(found, work=work)


def fit(
    stage: Stage,
    each: Callable[[Stage], int | None],
    room: Room,
    taken: int,
) -> Fit:
    """How many pictures a stage takes at once in this room, and in which squares.

    each: bytes of a picture, as `picture_bytes`. taken: bytes of the room that weights take, and that unfinished
    pictures may. Pictures in smaller squares are others, so that only who asks for less memory gets them.
    """
    free = max(0, int(WORKING_SHARE * (room.bytes - taken)))
    needed = each(stage)
    while room.asked and needed is not None and needed > free and (smaller := in_smaller_squares(stage)):
        less = each(smaller)
        if less is None or less >= needed:  # many squares hold more than they spare
            break
        stage, needed = smaller, less
    return Fit(stage, needed, free, None if needed is None else max(1, free // needed))


def in_smaller_squares(stage: Stage) -> SuperResStage | VaeStage | None:
    """The same stage in less memory; None where it has no squares, or smaller ones would be too small."""
    return stage.smaller() if isinstance(stage, SuperResStage | VaeStage) else None


def alike(draft: Draft) -> Hashable:
    """Equal for drafts whose pictures take about the same: all their sides are, rounded up to GRAIN."""
    sides: list[Hashable] = []

    def note(name: str, value: Tensor) -> Tensor:
        sides.append((name, *(-(-side // GRAIN) for side in value.shape[1:])))
        return value

    map_tensors(draft, note)
    if draft.text is None:  # it will be as long as the longest
        sides.append(max(map(len, (*draft.prompts, draft.negative_prompt))) // GRAIN)
    return tuple(sides)


@torch.inference_mode()
def _cost(stage: Stage, draft: Draft, settings: StageSettings, steps: int) -> Cost | None:
    longest = (max(draft.prompts, key=len),)
    one = replace(map_tensors(rows_of(draft, slice(1)), lambda _, value: value.to("meta")), prompts=longest)
    counted = Counted()
    try:
        with on_meta(stage.networks), counted:
            one = replace(one, known=_to_meta(draft.known))
            behind = finish(stage.run(one, _shortened(settings, steps), Noise([0], stage.name)))
    except Exception:  # noqa: BLE001 - a library's network may ask for numbers, and each fails in its own way
        return None
    return Cost(max(1, counted.most), counted.work, behind)


def _to_meta(known: Known | None) -> Known | None:
    if known is None:
        return None
    repaint = None if known.repaint is None else known.repaint.to("meta")
    return replace(known, image=known.image.to("meta"), repaint=repaint)


def _shortened(settings: StageSettings, steps: int) -> StageSettings:
    """Settings for a few steps. A scheduler of diffusers computes with numbers: one of ours stands in for it."""
    if settings.steps is None:
        return settings
    ours = settings.sampler in SAMPLERS
    return replace(
        settings,
        steps=min(steps, settings.steps),
        sampler=settings.sampler if ours else "dpmpp-2m",
        guidance_interval=None,
        resample=None,
        timesteps=None,
    )


class Counted(TorchDispatchMode):
    """Counts what runs under it on the meta device, in inference mode.

    most: the largest number of bytes of tensors that were made under it and alive at once. work: how often each
    operation was done so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self.work = Counter[Work]()
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._given: set[int] = set()  # of these, those that were not made under it

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if func is _ATEN._local_scalar_dense.default and args[0].is_meta:
            return True  # whether numbers are finite, as far as anything here asks
        self._see((args, given), new=False)
        if func is _ATEN.scaled_dot_product_attention.default:
            return self._attention(*args, **given)
        out = NotImplemented
        if _COMPOSITE not in func.py_kernels:  # those are for compilers, and other than what a device runs
            with self:  # so that what an operation is made of is seen
                out = func.decompose(*args, **given)
        if out is NotImplemented:
            out = func(*args, **given)
            self.work[_work(func, args, given, out, self._shared((args, given)))] += 1
        self._see(out, new=True)
        return out

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_more: Any, **_named: Any
    ) -> Tensor:
        """As the fused kernels of all devices: no scores, and a mask of truth values becomes one of numbers.

        On the meta device it would be computed by plain matrix products, whose scores are larger than all else.
        """
        given = None if attn_mask is None else attn_mask.to(q.dtype)
        self._see(given, new=True)
        *rows, width = q.shape
        # heads stand behind tokens in memory, as these kernels give it
        out = q.transpose(1, 2).new_empty((rows[0], rows[2], rows[1], v.shape[-1])).transpose(1, 2)
        flop = torch.Size(rows).numel() * k.shape[-2] * (2 * (width + v.shape[-1]) + SCORE)
        self.work[Work("attention", flop, _moved((q, k, v, given, out)), self._shared((q, k, v)))] += 1
        self._see(out, new=True)
        return out

    def _see(self, values: Any, *, new: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._known:
                continue
            size = storage.nbytes() if new else 0
            if not new:
                self._given.add(storage._cdata)
            self._known[storage._cdata] = weakref.ref(storage, self._gone(storage._cdata, size))
            self._now += size
            self.most = max(self.most, self._now)

    def _gone(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            del self._known[key]
            self._given.discard(key)
            self._now -= size

        return forget

    def _shared(self, values: Any) -> int:
        given = [
            value
            for value in tree_leaves(values)
            if isinstance(value, Tensor) and value.untyped_storage()._cdata in self._given
        ]
        return _moved(given)


def _work(func: Any, args: Any, given: Any, out: Any, shared: int) -> Work:
    """What an operation that has just been done on the meta device asks of a machine."""
    packet = func._overloadpacket
    if func.is_view:
        return Work("other", 0, 0)
    if packet in _LOOK_UP:
        return Work("other", 0, 2 * _moved(out))
    moved = _moved((args, given, out))
    if (formula := flop_registry.get(packet)) is None:
        return Work("other", 0, moved, shared)
    kind: Kind = "convolution" if packet is _ATEN.convolution else "product"
    return Work(kind, formula(*args, **given, out_val=out), moved, shared)


def _moved(values: Any) -> int:
    """Bytes of the tensors among these."""
    return sum(value.nbytes for value in tree_leaves(values) if isinstance(value, Tensor))
