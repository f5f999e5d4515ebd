"""Attention becomes one subgraph per head, from the projections' weights to the merge.

    MatMul[1×N×3C] → Reshape, Transpose … → MatMul → Softmax[1×H×N×N] → MatMul → Transpose, Reshape
    H × (MatMul[1×N×D] ×3 → MatMul → Softmax[1×N×N] → MatMul[1×N×D]) → Concat[1×N×C]

Nothing is known about how query, key and value were packed: each head's columns of the merged
result are pulled back through whatever computes them, down to slices of the projections' weights.
`group=N` keeps N heads in a subgraph; `merge=sum` multiplies each head by its own rows of the
output projection and adds, instead of concatenating first.

Contract: exact with `merge=concat`, algebraic with `merge=sum` (the projection's sum is regrouped).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from compiler.graph import Graph, Node, Shape, Tensor, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement
from compiler.slicing import Slicer, Take

# What probabilities pass through on their way to the values and stay probabilities, a head a slice.
_KEPT_BY = frozenset({"Cast", "Identity", "IsNaN", "Mul", "Not", "Where"})


@dataclass(frozen=True)
class Attention:
    """A Softmax over scores, the product with the values, and where the heads are merged.

    `probabilities` are the Softmax's output and what is computed from it element by element (a
    Cast, PyTorch's guard against rows that are masked whole, dropout), up to the product.
    """

    place: str
    softmax: Node
    probabilities: list[Tensor]
    product: Node
    heads: int
    merged: Tensor
    axis: int
    block: int

    @property
    def path(self) -> list[Tensor]:
        """The tensors from the product of all heads to the one before the merged result."""
        tensors = [self.product.outputs[0]]
        while tensors[-1] is not self.merged:
            tensors.append(tensors[-1].outputs[0].outputs[0])
        return tensors[:-1]

    def take(self, first: int, count: int) -> Take:
        """The slice of the merged result that `count` heads from `first` on make."""
        return Take(self.axis, first * self.block, (first + count) * self.block)


@dataclass(frozen=True)
class SplitHeads(LocalPass[Attention]):
    """See the module."""

    merge: Literal["concat", "sum"] = "concat"
    group: int = 1

    @property
    def contract(self) -> Contract:
        """Concatenation moves data; summing projections regroups a sum."""
        return "exact" if self.merge == "concat" else "algebraic"

    def match(self, graph: Graph) -> Iterator[Attention]:
        """Every Softmax whose probabilities multiply values, with an axis of more than one head."""
        for softmax in graph.nodes:
            probabilities = _probabilities(softmax) if softmax.op == "Softmax" else []
            product = _value_product(probabilities)
            merge = None if product is None else _merge_of_heads(product)
            if product is not None and merge is not None:
                yield Attention(product.outputs[0].name, softmax, probabilities, product, *merge)

    def guard(self, graph: Graph, match: Attention) -> str | None:
        """Refuses shared probabilities, uneven groups, and `sum` without a projection to split."""
        shape = static_shape(match.softmax.outputs[0])
        axis = match.softmax.attrs.get("axis", -1 if graph.opset >= 13 else 1)
        if shape is None or axis not in (-1, len(shape) - 1):
            return f"the Softmax runs over axis {axis} of {match.softmax.outputs[0].shape}"
        shown = next((t for t in match.path if graph.is_output(t)), None)
        if shown is not None:
            return f"{shown.name!r} is also an output: all heads would be computed twice"
        if _is_used_elsewhere(graph, match):
            return "the attention probabilities are also used elsewhere; a split would repeat them"
        if match.block == 1 and match.axis < len(match.merged.shape) - 1:
            name = match.merged.name
            return f"axis {match.axis} of {name!r} is never merged with the features: a batch"
        if match.heads == self.group:
            return f"it already is one group of {self.group} heads"
        if match.heads % self.group:
            return f"{match.heads} heads can't be divided into groups of {self.group}"
        if self.merge == "sum" and _projection(graph, match) is None:
            return f"merge=sum: {match.merged.name!r} is not only multiplied by constant weights"
        return None

    def rewrite(self, graph: Graph, match: Attention) -> Replacement:
        """Pulls each group of heads back from the merge, then joins the groups again."""
        builder = Builder(graph, match.place)
        slicer = Slicer(graph, builder)
        firsts = range(0, match.heads, self.group)
        takes = [match.take(first, self.group) for first in firsts]
        parts = [slicer.pull(match.merged, take) for take in takes]
        old = match.merged
        if self.merge == "concat":
            joined = builder.node("Concat", parts, static_shape(old), axis=match.axis)
        else:
            projection = _projection(graph, match)
            assert projection is not None
            old, joined = projection.outputs[0], _summed(slicer, projection, parts, takes)
        builder.prune([joined])
        made = {id(node) for node in builder.nodes}
        left = sum(id(producer_of(t)) in made for t in slicer.slices_left.values())
        return Replacement(builder, [(old, joined)], slices_left=left)


def _probabilities(softmax: Node) -> list[Tensor]:
    """The Softmax's output, and what is computed from it and constants element by element."""
    found = [softmax.outputs[0]]
    for tensor in found:
        for user in tensor.outputs:
            result = user.outputs[0]
            if user.op in _KEPT_BY and all(result is not known for known in found):
                found.append(result)
    return found


def _value_product(probabilities: list[Tensor]) -> Node | None:
    """The MatMul of the probabilities with the values."""
    for tensor in probabilities:
        for user in tensor.outputs:
            if user.op == "MatMul" and user.inputs[0] is tensor:
                return user
    return None


def _is_used_elsewhere(graph: Graph, match: Attention) -> bool:
    """Whether anything but the product reads the probabilities."""
    inside = {id(match.product)} | {id(producer_of(tensor)) for tensor in match.probabilities}
    return any(
        graph.is_output(tensor) or any(id(user) not in inside for user in tensor.outputs)
        for tensor in match.probabilities
    )


def _merge_of_heads(product: Node) -> tuple[int, Tensor, int, int] | None:
    """(heads, merged tensor, its axis, block): head h is merged[h·block:(h+1)·block] along axis."""
    shape = static_shape(product.outputs[0])
    if shape is None:
        return None
    axes = [axis for axis in range(len(shape) - 2) if shape[axis] > 1]
    followed = [(shape[axis], *_follow(product.outputs[0], axis)) for axis in axes]
    # Of several batch-like axes, the heads are merged with the features, or are next to them.
    return max(followed, key=lambda merge: (merge[3], merge[2]), default=None)


def _follow(tensor: Tensor, axis: int) -> tuple[Tensor, int, int]:
    """Follows an axis through data movement to the last tensor where its indices are blocks."""
    block = 1
    while len(tensor.outputs) == 1:
        moved = _moved(tensor.outputs[0], tensor, axis, block)
        if moved is None:
            break
        tensor, axis, block = tensor.outputs[0].outputs[0], *moved
    return tensor, axis, block


def _moved(node: Node, tensor: Tensor, axis: int, block: int) -> tuple[int, int] | None:
    """Where a Transpose or Reshape moves (axis, block); None if it does something else to it."""
    source, target = static_shape(tensor), static_shape(node.outputs[0])
    if source is None or target is None or node.inputs[0] is not tensor:
        return None
    if node.op == "Transpose":
        perm = node.attrs.get("perm", list(range(len(source) - 1, -1, -1)))
        return list(perm).index(axis), block
    if node.op in ("Reshape", "Squeeze", "Unsqueeze") and block == 1:
        return _reshaped(source, target, axis)
    return None


def _reshaped(source: Shape, target: Shape, axis: int) -> tuple[int, int] | None:
    """The axis of a reshape's result whose blocks are the indices of an axis of its input."""
    stride, span = math.prod(source[axis + 1 :]), math.prod(source[axis:])
    for position, size in enumerate(target):
        inner = math.prod(target[position + 1 :])
        if size > 1 and size * inner == span and stride % inner == 0:
            return position, stride // inner
    return None


def _projection(graph: Graph, match: Attention) -> Node | None:
    """The MatMul of the merged heads with constant weights, if that is all that reads them."""
    users = match.merged.outputs
    if len(users) != 1 or users[0].op != "MatMul" or users[0].inputs[0] is not match.merged:
        return None
    weights = users[0].inputs[1]
    is_last = match.axis == len(match.merged.shape) - 1
    return users[0] if is_last and graph.is_constant(weights) and len(weights.shape) == 2 else None


def _summed(slicer: Slicer, projection: Node, parts: list[Tensor], takes: list[Take]) -> Tensor:
    """Σ over groups of (group · its rows of the projection)."""
    output, weights = projection.outputs[0], projection.inputs[1]
    total = None
    for part, take in zip(parts, takes, strict=True):
        rows = slicer.pull(weights, Take(0, take.start, take.stop))
        shape = static_shape(output)
        term = slicer.builder.node("MatMul", [part, rows], shape, source=projection)
        total = term if total is None else slicer.builder.node("Add", [total, term], shape)
    return total
