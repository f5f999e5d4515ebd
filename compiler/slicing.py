"""Pulling slices back through a graph: one small rule an op, and no knowledge of any model.

`Slicer.pull(tensor, take)` returns a tensor that equals a slice of `tensor`, computed from slices
of whatever `tensor` is computed from. Constants are sliced at once (as views of the mapped file),
which is how projection weights come apart. Where no rule applies an explicit Slice is left:
correct, and counted. This is tile-and-fuse, as in MLIR's TilingInterface, along any axis.

The rules are in `compiler.slicing_moves` and `compiler.slicing_compute`. Only the sliced axis has
to be of known length; others may be dynamic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compiler.graph import Graph, Node, Tensor, producer_of
from compiler.region import is_fed
from compiler.rewrite import Builder
from compiler.shapes import NoRule, dims_of, length_of, shape_of
from compiler.slicing_compute import COMPUTE
from compiler.slicing_moves import MOVES, slice_takes, split_takes
from compiler.slicing_rule import Rule
from compiler.take import Dims, Take, takes_before_reshape
from compiler.weights import Array, NewWeight

RULES: dict[str, Rule] = {**COMPUTE, **MOVES}
# How far a slice is followed to see whether it comes down to constants alone.
PROBE_STEPS = 64
# How many ops may stand between a stored weight and its use: Cast, Transpose, a Reshape or two.
STEPS_FROM_CONSTANT = 8


class Slicer:
    """Pulls slices back with the nodes of one builder; equal requests share one result."""

    def __init__(self, graph: Graph, builder: Builder) -> None:
        self.graph = graph
        self.builder = builder
        self.slices_left: dict[int, Tensor] = {}
        self._left_of: dict[int, tuple[Tensor, Take]] = {}
        self._known: dict[tuple[int, Take], Tensor] = {}
        self._not_free: set[tuple[int, Take]] = set()
        self._computed_whole: set[int] = set()
        self._steps: int | None = None

    def pull(self, tensor: Tensor, take: Take) -> Tensor:
        """A tensor that equals `take` of `tensor`.

        Args:
            tensor: of known length along the axis.
            take: within that length.
        """
        if take.is_whole(length_of(tensor, take.axis)):
            return tensor
        key = (id(tensor), take)
        if key not in self._known:
            self._count_step()
            self._known[key] = self._pulled(tensor, take)
        return self._known[key]

    def compute_whole(self, tensors: Sequence[Tensor]) -> None:
        """Has each of these computed whole, and cut by an explicit slice, unless a part is free."""
        self._computed_whole |= {id(tensor) for tensor in tensors}

    def rejoined(self, tensor: Tensor, takes: Sequence[Take]) -> Tensor:
        """All of a tensor from slices of one axis, those that others made of it where there are."""
        parts, shape = [], dims_of(tensor)
        for take in takes:
            single = self._known.get((id(tensor), replace(take, drop=True)))
            parts.append(self.pull(tensor, take) if single is None else
                         self._with_axis(single, take.axis, take.shape(shape)))  # fmt: skip
        return self.builder.node("Concat", parts, shape, axis=takes[0].axis)

    def _with_axis(self, tensor: Tensor, axis: int, shape: Dims) -> Tensor:
        if self.graph.opset < 13:
            return self.builder.node("Unsqueeze", [tensor], shape, axes=[axis])
        return self.builder.node("Unsqueeze", [tensor, self.builder.ints([axis], "axis")], shape)

    def without_axis(self, part: Tensor, take: Take) -> Tensor:
        """A slice of one index without its axis."""
        shape = take.shape(dims_of(part))
        reshaped = self.reshaped(part, shape, None)
        if reshaped is not None:
            return reshaped
        if self.graph.opset < 13:
            return self.builder.node("Squeeze", [part], shape, axes=[take.axis])
        return self.builder.node("Squeeze", [part, self.builder.ints([take.axis], "axis")], shape)

    def pull_free(self, tensor: Tensor, take: Take) -> Tensor | None:
        """The same where no explicit slice is left behind it, within a few steps; else None."""
        key = (id(tensor), take)
        if self._steps is not None:
            return self.pull(tensor, take)
        if key in self._not_free:
            return None
        self._steps = PROBE_STEPS
        try:
            return self.pull(tensor, take)
        except NotFree:
            self._not_free.add(key)
            return None
        finally:
            self._steps = None

    def pull_past_weights(self, tensor: Tensor, take: Take) -> Tensor | None:
        """`pull_free` past a product with weights that every slice reads; past one only."""
        if self._steps is not None:
            raise NotFree
        part = self.pull_free(tensor, take)
        # What comes down to constants alone is a part of the product that the others have as well.
        return part if part is None or is_fed(self.graph, part) else None

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a constant, or one that was cast, transposed … on its way here."""
        for _ in range(STEPS_FROM_CONSTANT):
            node = producer_of(tensor)
            if self.graph.is_constant(tensor) or node is None or not node.inputs:
                break
            if not all(self.graph.is_constant(t) or not t.name for t in node.inputs[1:]):
                break
            tensor = node.inputs[0]
        return self.graph.is_constant(tensor)

    def count_left(self) -> int:
        """How many explicit slices are among the builder's nodes."""
        made = {id(node) for node in self.builder.nodes}
        return sum(id(producer_of(left)) in made for left in self.slices_left.values())

    def _count_step(self) -> None:
        if self._steps is not None:
            self._steps -= 1
            if self._steps < 0:
                raise NotFree

    def _pulled(self, tensor: Tensor, take: Take) -> Tensor:
        if self.graph.is_constant(tensor):
            return self._sliced_constant(tensor, take)
        if id(tensor) in self._left_of:
            return self._further(*self._left_of[id(tensor)], take)
        if id(tensor) in self._computed_whole and self._steps is None:
            return self.pull_free(tensor, take) or self._left(tensor, take)
        node = producer_of(tensor)
        pulled = None if node is None else self._by_rule(node, tensor, take)
        if pulled is None and node is not None and take.drop and length_of(tensor, take.axis) > 1:
            # A product has rows and columns always: an index of them is a range of one, reshaped.
            kept = self._by_rule(node, tensor, replace(take, drop=False))
            pulled = None if kept is None else self.without_axis(kept, take)
        return self._left(tensor, take) if pulled is None else pulled

    def _left(self, tensor: Tensor, take: Take) -> Tensor:
        """An explicit slice, where no rule applies; dropping an axis of size one is none."""
        shape = dims_of(tensor)
        if take.drop and shape[take.axis] == 1:
            reshaped = self.reshaped(tensor, take.shape(shape), None)
            if reshaped is not None:
                return reshaped
        if self._steps is not None:
            raise NotFree
        left = self.cut(tensor, take)
        self.slices_left[id(left)] = left
        self._left_of[id(left)] = (tensor, take)
        return left

    def _further(self, tensor: Tensor, own: Take, take: Take) -> Tensor:
        """A slice of an explicit slice: one of both, or in the other order, which may get on."""
        if own.axis == take.axis and not own.drop:
            return self.pull(tensor, own.then(take))
        first = replace(take, axis=take.axis + (own.drop and take.axis >= own.axis))
        pulled, then = self.pull(tensor, first), replace(own, axis=first.axis_after(own.axis))
        is_left = id(pulled) in self._left_of
        return self._left(pulled, then) if is_left else self.pull(pulled, then)

    def _by_rule(self, node: Node, tensor: Tensor, take: Take) -> Tensor | None:
        rule = RULES.get(node.op)
        if rule is None or node.domain not in (None, "", "ai.onnx"):
            return None
        try:
            if node.op == "Split":
                output = [t is tensor for t in node.outputs].index(True)
                return self.composed(node.inputs[0], split_takes(self, node, output), take)
            return rule(self, node, take) if tensor is node.outputs[0] else None
        except NoRule:
            return None

    def composed(self, tensor: Tensor, own: Sequence[Take], take: Take) -> Tensor:
        """A slice of a slice of other axes, its own first; along the same axis they become one."""
        same = [one.then(take) for one in own if one.axis == take.axis]
        for one in own:
            tensor = tensor if one.axis == take.axis else self.pull(tensor, one)
        return self.pull(tensor, same[0] if same else take)

    def emit(self, node: Node, inputs: Sequence[Tensor], take: Take, **changed: object) -> Tensor:
        """The slice `take` of a node's output, by the same op on other inputs."""
        output = node.outputs[0]
        attributes = {**node.attrs, **changed}
        return self.builder.node(
            node.op, inputs, take.shape(dims_of(output)), like=output, source=node, **attributes
        )

    def reshaped(self, tensor: Tensor, shape: Dims, source: Node | None) -> Tensor | None:
        """The tensor with another shape: itself, a constant, or a Reshape; None if too dynamic."""
        now = dims_of(tensor)
        if now == shape and None not in now:
            return tensor
        weight = self.graph.weight(tensor)
        if weight is not None:
            values = weight.unrounded().reshape(shape)
            return self._constant(values, tensor, f" as {list(shape)}")
        written = _written(now, shape)
        if written is None:
            return None
        target = self.builder.ints(written, "shape")
        return self.builder.node("Reshape", [tensor, target], shape, source=source)

    def _sliced_constant(self, tensor: Tensor, take: Take) -> Tensor:
        weight = self.graph.weight(tensor)
        assert weight is not None
        values = weight.unrounded()
        index: list[slice | int] = [slice(None)] * values.ndim
        index[take.axis] = take.start if take.drop else slice(take.start, take.stop, take.step)
        step = "" if take.step == 1 else f":{take.step}"
        part = str(take.start) if take.drop else f"{take.start}:{take.stop}{step}"
        places = [part if axis == take.axis else ":" for axis in range(values.ndim)]
        return self._constant(values[tuple(index)], tensor, f"[{', '.join(places)}]")

    def _constant(self, values: Array, source: Tensor, how: str) -> Tensor:
        weight = self.graph.weight(source)
        origin = weight.how if isinstance(weight, NewWeight) else source.name
        return self.builder.constant(values, source.dtype, f"{origin}{how}")

    def cut(self, tensor: Tensor, take: Take) -> Tensor:
        """An explicit slice, whatever computes the tensor."""
        axis = self.builder.ints([take.axis], "axis")
        shape = take.shape(dims_of(tensor))
        if take.drop:
            index = self.builder.constant(np.array(take.start), np.dtype(np.int64), "index")
            return self.builder.node("Gather", [tensor, index], shape, axis=take.axis)
        if self.graph.opset < 10:
            indices = self.builder.ints(list(take.indices), "indices")
            return self.builder.node("Gather", [tensor, indices], shape, axis=take.axis)
        bounds = [self.builder.ints([value], name) for value, name in
                  ((take.start, "start"), (take.stop, "stop"))]  # fmt: skip
        step = self.builder.ints([take.step], "step")
        return self.builder.node("Slice", [tensor, *bounds, axis, step], shape)


def why_whole(graph: Graph, tensor: Tensor, take: Take) -> str | None:
    """Why a part of a tensor can't be computed without all of it; None if it can."""
    builder = Builder(graph, "probe")
    slicer = Slicer(graph, builder)
    part = slicer.pull(tensor, take)
    is_left = id(part) in slicer.slices_left and producer_of(part).inputs[0] is tensor  # type: ignore[union-attr]
    builder.prune([])
    node = producer_of(tensor)
    where = "" if node is None else f": {node.op} {node.name!r}"
    return f"no part of {tensor.name!r} can be computed alone{where}" if is_left else None


class NotFree(Exception):  # noqa: N818 - an answer, not an error
    """An explicit slice would be left."""


def _written(now: Dims, shape: Dims) -> list[int] | None:
    """A Reshape's target: 0 copies a dynamic dimension of the same place, and one may be -1."""
    written = [
        d if isinstance(d, int) else 0 if d is not None and now[k : k + 1] == (d,) else -1
        for k, d in enumerate(shape)
    ]
    return written if written.count(-1) < 2 else None


__all__ = [
    "RULES", "NoRule", "Slicer", "Take", "shape_of", "slice_takes", "takes_before_reshape",
    "why_whole",
]  # fmt: skip
