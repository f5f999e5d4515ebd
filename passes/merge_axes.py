"""Axes that a Transpose moves together become one, where Reshapes stand around it.

    Reshape[1×8×7×8×7×96] → Transpose(0, 1, 3, 2, 4, 5) → Reshape[64×49×96]
    Reshape[8×7×8×672]    → Transpose(0, 2, 1, 3)       → Reshape[64×49×96]

Windows are cut out of images like that (Swin, SAM). Axes of length one vanish. An NPU moves four
axes at once; for more it falls back to code that is slower by orders of magnitude, so Transposes
of up to four axes are left as they are.

Measured on Swin-T at 224×224, simulated ms: IQ-9075 143.12 → 8.87, SA8797 5.01 → 4.11; before,
30 ops had no cost in the simulation, after it none.

Contract: exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from compiler.graph import Graph, Node, Shape, Tensor, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, needed_nodes

MOST_AXES = 4


@dataclass(frozen=True)
class Moved:
    """A tensor of many axes that a Transpose computes from what a Reshape computes."""

    result: Tensor

    @property
    def place(self) -> str:
        """The tensor's name."""
        return str(self.result.name)

    @property
    def transpose(self) -> Node:
        """What computes the tensor."""
        return producer_of(self.result)

    @property
    def reshape(self) -> Node:
        """What computes the tensor before it is transposed."""
        return producer_of(self.transpose.inputs[0])

    def groups(self, shape: Shape) -> list[list[int]]:
        """The axes longer than one in the result's order, those that stay together in one list."""
        long = [axis for axis, length in enumerate(shape) if length != 1]
        follows = dict(itertools.pairwise(long))
        order = self.transpose.attrs.get("perm", range(len(shape))[::-1])
        groups: list[list[int]] = []
        for axis in (axis for axis in order if axis in long):
            if groups and follows.get(groups[-1][-1]) == axis:
                groups[-1].append(axis)
            else:
                groups.append([axis])
        return groups


@dataclass(frozen=True)
class MergeAxes(LocalPass[Moved]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """The same values move to the same places."""
        return "exact"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return f"nothing to merge: no Transpose of more than {MOST_AXES} axes reads a Reshape"

    def match(self, graph: Graph) -> Iterator[Moved]:
        """Every Transpose of many axes that are a Reshape's."""
        for node in needed_nodes(graph):
            source = producer_of(node.inputs[0]) if node.op == "Transpose" else None
            shape = node.outputs[0].shape
            is_deep = shape is not None and len(shape) > MOST_AXES
            if is_deep and source is not None and source.op == "Reshape":
                yield Moved(node.outputs[0])

    def guard(self, graph: Graph, match: Moved) -> str | None:
        """Refuses sizes that are open, axes that all part, and readers that need them."""
        shape = static_shape(match.transpose.inputs[0])
        if shape is None or 0 in shape:
            return f"{match.place!r} has no fixed shape, or is empty"
        if len(match.groups(shape)) in (0, len(shape)):
            return f"no two axes of {match.place!r} stay together"
        others = [node.op for node in match.result.outputs if not _reshapes(node, match.result)]
        if others or graph.is_output(match.result):
            reader = others[0] if others else "the caller"
            return f"{match.place!r} is read by {reader}, which needs its axes"
        if any(static_shape(node.outputs[0]) is None for node in match.result.outputs):
            return f"{match.place!r} is reshaped to a shape that is not fixed"
        return None

    def rewrite(self, graph: Graph, match: Moved) -> Replacement:
        """The same of fewer axes, and each reader's Reshape anew."""
        shape = static_shape(match.transpose.inputs[0]) or ()
        groups, builder = match.groups(shape), Builder(graph, match.place)
        lengths = {group[0]: math.prod(shape[axis] for axis in group) for group in groups}
        before, after = sorted(lengths), list(lengths)
        data = _reshaped(builder, match.reshape, tuple(lengths[axis] for axis in before))
        moved = builder.node(
            "Transpose", [data], tuple(lengths.values()), source=match.transpose,
            perm=[before.index(axis) for axis in after],
        )  # fmt: skip
        results = []
        for reader in match.result.outputs:
            (old,) = reader.outputs
            results.append((old, _reshaped(builder, reader, static_shape(old) or (), moved)))
        return Replacement(builder, results)


def _reshapes(node: Node, tensor: Tensor) -> bool:
    return bool(node.op == "Reshape" and node.inputs[0] is tensor)


def _reshaped(builder: Builder, reshape: Node, shape: Shape, data: Tensor | None = None) -> Tensor:
    """A Reshape's data, or other data, in another shape."""
    inputs = [data or reshape.inputs[0], builder.ints(shape, "merged axes")]
    return builder.node("Reshape", inputs, shape, source=reshape)
