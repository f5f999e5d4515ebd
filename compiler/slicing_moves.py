"""Rules of the slicer for ops that move values: transposing, reshaping, selecting, repeating."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from compiler.graph import Graph, Node, Tensor
from compiler.shapes import NoRule, dims_of, length_of, rank_of
from compiler.slicing_rule import Rule, broadcast
from compiler.take import Take, takes_before_reshape

if TYPE_CHECKING:
    from compiler.slicing import Slicer


def _transpose(s: Slicer, node: Node, take: Take) -> Tensor | None:
    rank = rank_of(node.outputs[0])
    perm = list(node.attrs.get("perm", range(rank - 1, -1, -1)))
    source = replace(take, axis=perm[take.axis])
    pulled = s.pull(node.inputs[0], source)
    if take.drop:
        perm = [source.axis_after(axis) for axis in perm if axis != source.axis]
    if perm == sorted(perm):
        return pulled
    return s.emit(node, [pulled], take, perm=perm)


# -- shapes ----------------------------------------------------------------------------------------


def _reshape(s: Slicer, node: Node, take: Take) -> Tensor | None:
    source, target = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    if target[take.axis] == 1:
        return s.reshaped(node.inputs[0], take.shape(target), node)
    found = takes_before_reshape(source, target, take)
    if found is None:
        return None
    pulled = node.inputs[0]
    for one in found:
        pulled = s.pull(pulled, one)
    reshaped = s.reshaped(pulled, take.shape(target), node)
    return reshaped if reshaped is not None else _as_computed(s, node, pulled, take)


def _as_computed(s: Slicer, node: Node, pulled: Tensor, take: Take) -> Tensor | None:
    """A Reshape whose first dimensions are computed, as those of the old one are."""
    dims = dims_of(node.outputs[0])
    last = max(k for k, d in enumerate(dims) if not isinstance(d, int))
    if node.op != "Reshape" or last >= take.axis:
        return None
    first = s.pull(node.inputs[1], Take(0, 0, last + 1))
    rest = s.builder.ints(take.shape(dims)[last + 1 :], "shape")
    target = s.builder.node("Concat", [first, rest], (len(take.shape(dims)),), axis=0)
    return s.emit(node, [pulled, target], take)


def _unsqueeze(s: Slicer, node: Node, take: Take) -> Tensor | None:
    source, target = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    axes = s.graph.ints(node.inputs[1]) if node.inputs[1:] else node.attrs.get("axes")
    if axes is None:
        return None
    inserted = {axis % len(target) for axis in axes}
    if take.axis in inserted:
        left = [take.axis_after(a) for a in sorted(inserted - {take.axis})]
        return _again(s, node, node.inputs[0], take, left if take.drop else sorted(inserted))
    axis = take.axis - sum(i < take.axis for i in inserted)
    if target[take.axis] != source[axis]:
        raise NoRule(f"axis {axis} of {node.inputs[0].name!r} is dynamic")
    left = [take.axis_after(a) for a in sorted(inserted)]
    return _again(s, node, s.pull(node.inputs[0], replace(take, axis=axis)), take, left)


def _again(s: Slicer, node: Node, part: Tensor, take: Take, axes: list[int]) -> Tensor | None:
    """Another shape: by a Reshape that says it, or by the op itself where that is dynamic."""
    reshaped = s.reshaped(part, take.shape(dims_of(node.outputs[0])), node)
    if reshaped is not None or not axes or s.graph.opset < 13:
        return reshaped
    return s.emit(node, [part, s.builder.ints(axes, "axes")], take)


def _squeeze(s: Slicer, node: Node, take: Take) -> Tensor | None:
    source = dims_of(node.inputs[0])
    given = node.attrs.get("axes") or (s.graph.ints(node.inputs[1]) if node.inputs[1:] else None)
    if given is None and (node.inputs[1:] or None in source):
        return None
    removed = {a % len(source) for a in given} if given else {
        a for a, d in enumerate(source) if d == 1
    }  # fmt: skip
    # A squeezed axis is an index of its own, taken where it was made: behind a Split it never is.
    tensor = node.inputs[0]
    for axis in sorted(removed, reverse=True):
        tensor = s.pull(tensor, Take(axis, 0, 1, drop=True))
    return s.pull(tensor, take)


def _expand(s: Slicer, node: Node, take: Take) -> Tensor | None:
    part = broadcast(s, node, take, node.inputs[0])
    shape = take.shape(dims_of(node.outputs[0]))
    now = dims_of(part)
    if now == shape and None not in shape:
        return part
    now = (*(1,) * (len(shape) - len(now)), *now)
    # A dimension that is there already is asked for as 1.
    written = [1 if d == old and d is not None else d for d, old in zip(shape, now, strict=True)]
    if not all(isinstance(d, int) for d in written):
        return None
    is_static = all(isinstance(d, int) for d in shape)
    return s.emit(node, [part, s.builder.ints(shape if is_static else written, "shape")], take)


def _constant_of_shape(s: Slicer, node: Node, take: Take) -> Tensor | None:
    dims = s.graph.ints(node.inputs[0])
    if dims is None:
        return None
    return s.emit(node, [s.builder.ints(take.shape(tuple(dims)), "shape")], take)


# -- parts -----------------------------------------------------------------------------------------


def split_takes(s: Slicer, node: Node, output: int) -> list[Take]:
    """What one output of a Split takes of its input. Raises NoRule if that is computed."""
    axis = node.attrs.get("axis", 0) % rank_of(node.inputs[0])
    sizes = node.attrs.get("split")
    if sizes is None and len(node.inputs) > 1 and node.inputs[1].name:
        sizes = s.graph.ints(node.inputs[1])
        if sizes is None:
            raise NoRule("computed sizes")
    if sizes is None:
        length, count = length_of(node.inputs[0], axis), len(node.outputs)
        chunk = -(-length // count)
        sizes = [min(chunk, length - chunk * k) for k in range(count)]
    edges = [0, *np.cumsum(sizes).tolist()]
    return [Take(axis, edges[output], edges[output + 1])]


def _split(s: Slicer, node: Node, take: Take) -> Tensor | None:
    return s.composed(node.inputs[0], split_takes(s, node, 0), take)


def _slice(s: Slicer, node: Node, take: Take) -> Tensor | None:
    try:
        own = slice_takes(s.graph, node)
    except NoRule:
        own = None
    if own is not None:
        return s.composed(node.inputs[0], own, take)
    return _slice_elsewhere(s, node, take)


def _slice_elsewhere(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """A Slice with computed bounds, backwards, or of a dynamic axis, when others are sliced."""
    given = s.graph.ints(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3].name else None
    if given is None:
        return None
    data, starts, ends, _, *steps = node.inputs
    axes = [axis % rank_of(data) for axis in given]
    if take.axis in axes:
        return None
    moved = s.builder.ints([take.axis_after(axis) for axis in axes], "axes")
    return s.emit(node, [s.pull(data, take), starts, ends, moved, *steps], take)


def slice_takes(graph: Graph, node: Node) -> list[Take] | None:
    """A Slice node's constant bounds as one take an axis; None if dynamic or with step ≤ 0."""
    rank = rank_of(node.inputs[0])
    if graph.opset < 10:
        return None
    bounds = [graph.ints(t) if t.name else None for t in node.inputs[1:]]
    if any(b is None and t.name for b, t in zip(bounds, node.inputs[1:], strict=True)):
        return None
    starts, ends, axes, steps = (bounds + [None] * 4)[:4]
    assert starts is not None
    assert ends is not None
    takes = []
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[k] if axes else k) % rank
        step = steps[k] if steps else 1
        if step <= 0:
            return None
        first, last, _ = slice(start, end).indices(length_of(node.inputs[0], axis))
        takes.append(Take(axis, first, max(first, last), step))
    return takes


def _concat(s: Slicer, node: Node, take: Take) -> Tensor | None:
    axis = node.attrs["axis"] % rank_of(node.outputs[0])
    if axis != take.axis:
        parts = [s.pull(tensor, take) for tensor in node.inputs]
        return s.emit(node, parts, take, axis=take.axis_after(axis))
    inside = list(_parts_of(node.inputs, take))
    if len(inside) == 1:
        return s.pull(*inside[0])
    # A slice across several parts is one of each, which is worth it if they come for nothing.
    free = [s.pull_free(tensor, one) for tensor, one in inside]
    return None if any(part is None for part in free) else s.emit(node, free, take, axis=axis)


def _parts_of(tensors: Sequence[Tensor], take: Take) -> Iterator[tuple[Tensor, Take]]:
    edge = 0
    for tensor in tensors:
        length = length_of(tensor, take.axis)
        one = take.within(edge, length)
        if one is not None:
            yield tensor, one
        edge += length


# -- by index --------------------------------------------------------------------------------------


def _gather(s: Slicer, node: Node, take: Take) -> Tensor | None:
    data, indices = node.inputs
    axis, rank = node.attrs.get("axis", 0) % rank_of(data), rank_of(indices)
    if rank < 2 and s.graph.is_constant(indices):
        return _gather_known(s, node, take, axis)
    if take.axis < axis:
        return s.emit(node, [s.pull(data, take), indices], take, axis=take.axis_after(axis))
    if take.axis >= axis + rank:
        own = replace(take, axis=take.axis - rank + 1)
        return s.emit(node, [s.pull(data, own), indices], take, axis=axis)
    return s.emit(node, [data, s.pull(indices, replace(take, axis=take.axis - axis))], take)


def _gather_known(s: Slicer, node: Node, take: Take, axis: int) -> Tensor | None:
    """By constant indices: a single one is a slice."""
    data, indices = node.inputs
    values = s.graph.values(indices)
    assert values is not None
    if values.ndim == 1 and take.axis != axis:
        return s.emit(node, [s.pull(data, take), indices], take, axis=take.axis_after(axis))
    chosen = [int(v) % length_of(data, axis) for v in values.reshape(-1)]
    if values.ndim == 0:
        return s.pull(s.pull(data, Take(axis, chosen[0], chosen[0] + 1, drop=True)), take)
    wanted = chosen[take.start : take.stop : take.step]
    if len(wanted) == 1:
        return s.pull(data, replace(take, start=wanted[0], stop=wanted[0] + 1, step=1))
    return s.emit(node, [data, s.builder.ints(wanted, "indices")], take)


def _gather_elements(s: Slicer, node: Node, take: Take) -> Tensor | None:
    data, indices = node.inputs
    axis = node.attrs.get("axis", 0) % rank_of(data)
    if take.axis == axis:
        return None if take.drop else s.emit(node, [data, s.pull(indices, take)], take)
    found = [s.pull(data, take), s.pull(indices, take)]
    return s.emit(node, found, take, axis=take.axis_after(axis))


def _gather_nd(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """The first axes of the result are those of the indices, the rest the data's last ones."""
    data, indices = node.inputs
    if node.attrs.get("batch_dims", 0):
        return None
    first = rank_of(indices) - 1
    if take.axis < first:
        return s.emit(node, [data, s.pull(indices, take)], take)
    own = replace(take, axis=take.axis - first + length_of(indices, first))
    return s.emit(node, [s.pull(data, own), indices], take)


def _trilu(s: Slicer, node: Node, take: Take) -> Tensor | None:
    if take.axis >= rank_of(node.outputs[0]) - 2:
        return None
    return s.emit(node, [s.pull(node.inputs[0], take), *node.inputs[1:]], take)


# -- more of the same ------------------------------------------------------------------------------


def _tile(s: Slicer, node: Node, take: Take) -> Tensor | None:
    data, repeats = node.inputs[0], s.graph.ints(node.inputs[1])
    if repeats is None:
        return None
    length = length_of(data, take.axis)
    first, last = take.start // length, (take.stop - 1) // length
    if first == last:
        within = replace(take, start=take.start - first * length, stop=take.stop - first * length)
        part, count = s.pull(data, within), 1
    elif take.step == 1 and take.start % length == take.stop % length == 0:
        part, count = data, last + 1 - first
    else:
        return None
    counts = [*repeats[: take.axis], *([] if take.drop else [count]), *repeats[take.axis + 1 :]]
    if all(count == 1 for count in counts):
        return part
    return s.emit(node, [part, s.builder.ints(counts, "repeats")], take)


def _pad(s: Slicer, node: Node, take: Take) -> Tensor | None:
    data, rank = node.inputs[0], rank_of(node.inputs[0])
    pads = _pads(s, node, rank)
    if pads is None:
        return None
    before, after = pads[take.axis]
    if before == after == 0:
        part, own = s.pull(data, take), (0, 0)
    elif node.attrs.get("mode", "constant") == "constant" and take.step == 1:
        first, last = take.start - before, take.stop - before
        low, high = max(first, 0), min(last, length_of(data, take.axis))
        if low >= high:
            return None
        part = s.pull(data, replace(take, start=low, stop=high))
        own = (low - first, last - high)
    else:
        return None
    pads[take.axis] = own
    left = [pair for axis, pair in enumerate(pads) if not (take.drop and axis == take.axis)]
    if not any(b or a for b, a in left):
        return part
    written = s.builder.ints([*(b for b, _ in left), *(a for _, a in left)], "pads")
    return s.emit(node, [part, written, *node.inputs[2:3]], take)


def _pads(s: Slicer, node: Node, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) for each axis of a Pad; None if computed, cropping, or before opset 11."""
    given = s.graph.ints(node.inputs[1]) if s.graph.opset >= 11 else None
    axes: list[int] | None = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3].name:
        axes = s.graph.ints(node.inputs[3])
    if given is None or axes is None or min(given) < 0:
        return None
    pads = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        pads[axis % rank] = (given[k], given[len(axes) + k])
    return pads


MOVES: dict[str, Rule] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Trilu": _trilu,
    "Tile": _tile,
    "Pad": _pad,
}
