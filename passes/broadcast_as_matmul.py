"""A sum over more than four axes that broadcasts products becomes a MatMul with zeros and ones.

    rel_h[300×14×14×14×1] + rel_w[300×14×14×1×14] → Reshape[300×196×196]
    Concat(rel_h, rel_w)[300×196×28] → MatMul(·, E[28×196])

Column k of E has a one for each value that is added in column k. Attention with decomposed relative
positions adds them like that (SAM, ViTDet, MViT); scores that are part of the sum are added in the
Reshape's shape. An NPU broadcasts over four axes at once; for more it falls back to code that is
slower by orders of magnitude.

Measured on a windowed layer of SAM-B's image encoder at 1024×1024, behind merge_axes and together
with einsum_as_matmul, simulated ms: IQ-9075 231.00 → 60.62; before, 4 ops had no cost in the
simulation, after it none. With the pipeline of tools/npu.toml SA8797 has 10.97. Products are joined
in the shape that they have, with one Reshape behind them for two before: 62.31 → 60.62, and with
join_products 67.51 → 56.77.

Zero times infinity is no number, so what is broadcast has to be a product of finite weights: a mask
is none, nor what a Gemm adds.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from compiler.graph import Graph, Node, Shape, Tensor, is_standard, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType, needed_nodes
from compiler.weights import Array

MOST_AXES = 4
# Of the matrix of zeros and ones; in SAM's global layers it has 1 << 19 values.
MOST_VALUES = 1 << 22
PRODUCTS = frozenset({"Einsum", "Gemm", "MatMul"})
RESHAPING = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Broadcast:
    """A sum of many axes that is read in another shape."""

    result: Tensor
    reshape: Node

    @property
    def place(self) -> str:
        """The name of the sum."""
        return str(self.result.name)

    def terms(self, graph: Graph) -> list[Tensor]:
        """What is added up, through all sums that nothing else reads."""
        found, pending = [], [self.result]
        while pending:
            term = pending.pop(0)
            add, is_shared = producer_of(term), len(term.outputs) > 1 or graph.is_output(term)
            if _is(add, {"Add"}) and (term is self.result or not is_shared):
                pending = [*add.inputs, *pending]
            else:
                found.append(term)
        return found

    def parted(self, graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
        """The terms of the sum's own shape, and those that are broadcast; the shapes are known."""
        terms, shape = self.terms(graph), static_shape(self.result)
        whole = [term for term in terms if static_shape(term) == shape]
        return whole, [term for term in terms if static_shape(term) != shape]

    @property
    def columns(self) -> Shape:
        """The axes of the sum that are the last one behind the Reshape; empty if there are none."""
        shape, target = static_shape(self.result) or (), static_shape(self.reshape.outputs[0])
        found = (shape[k:] for k in range(len(shape)) if target)
        return next((last for last in found if target and math.prod(last) == target[-1]), ())

    def lengths(self, term: Tensor) -> tuple[Shape, Shape]:
        """How long a term is along each axis of the sum, in front of the columns and along them."""
        shape, rank = static_shape(term) or (), len(self.result.shape)
        aligned = (*(1,) * (rank - len(shape)), *shape)
        split = rank - len(self.columns)
        return aligned[:split], aligned[split:]

    def count(self, term: Tensor) -> int:
        """How many values are broadcast along the columns."""
        return math.prod(self.lengths(term)[1])

    def shared(self, terms: Sequence[Tensor]) -> Shape | None:
        """The few axes in front of the values of all terms, if all had them before axes of one."""
        front = self.lengths(terms[0])[0]
        had = [_had(term, (*front, self.count(term))) for term in terms]
        is_left = len(front) >= MOST_AXES or any(tensor is None for tensor in had)
        return None if is_left else front

    def matrix(self, term: Tensor) -> Array:
        """A row for each value that is broadcast, with ones in the columns that it is added in."""
        _, own = self.lengths(term)
        count = self.count(term)
        ones = np.eye(count).reshape(count, *own)
        return np.broadcast_to(ones, (count, *self.columns)).reshape(count, -1)


@dataclass(frozen=True)
class BroadcastAsMatmul(LocalPass[Broadcast]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """Equal in real arithmetic: ones pick what is added, zeros the rest."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return f"nothing to multiply: no Reshape reads an Add of more than {MOST_AXES} axes"

    def match(self, graph: Graph) -> Iterator[Broadcast]:
        """Every Add of many axes that a Reshape reads."""
        for node in needed_nodes(graph):
            is_read = _is(node, {"Reshape"}) and _is(producer_of(node.inputs[0]), {"Add"})
            shape = node.inputs[0].shape if is_read else None
            if shape is not None and len(shape) > MOST_AXES:
                yield Broadcast(node.inputs[0], node)

    def guard(self, graph: Graph, match: Broadcast) -> str | None:
        """Refuses open shapes, other readers, other columns, and what may be infinite."""
        terms, target = match.terms(graph), match.reshape.outputs[0]
        for tensor in (match.result, *terms, target):
            shape = static_shape(tensor)
            if shape is None or 0 in shape or not TensorType.of(tensor).is_float:
                return f"{tensor.name!r} is {TensorType.of(tensor)}, not floats of a fixed shape"
        if len(match.result.outputs) > 1 or graph.is_output(match.result):
            return f"{match.place!r} is read elsewhere as well, with its axes"
        broadcast = match.parted(graph)[1]
        if not broadcast:
            return f"nothing is broadcast in {match.place!r}"
        split = len(match.result.shape) - len(match.columns)
        for term in broadcast:
            if not match.columns or match.lengths(term)[0] != tuple(match.result.shape[:split]):
                return f"{term.name!r} is broadcast beyond the last axis of {target.name!r}"
        return _why_not(graph, match, broadcast)

    def rewrite(self, graph: Graph, match: Broadcast) -> Replacement:
        """One product for all that is broadcast; the other terms are added to it."""
        builder, target = Builder(graph, match.place), match.reshape.outputs[0]
        shape = static_shape(target) or ()
        whole, broadcast = match.parted(graph)
        matrices = [match.matrix(term) for term in broadcast]
        ones = builder.constant(np.concatenate(matrices), target.dtype, "zeros and ones")
        front = match.shared(broadcast) or shape[:-1]
        rows = [_reshaped(builder, term, (*front, match.count(term))) for term in broadcast]
        factor = _reshaped(builder, _joined(builder, rows), (*shape[:-1], sum(map(len, matrices))))
        total = builder.node("MatMul", [factor, ones], shape)
        for term in whole:
            total = builder.node("Add", [_reshaped(builder, term, shape), total], shape)
        return Replacement(builder, [(target, total)])


def _is(node: Node | None, ops: Set[str]) -> TypeGuard[Node]:
    return node is not None and node.op in ops and is_standard(node)


def _why_not(graph: Graph, match: Broadcast, terms: Sequence[Tensor]) -> str | None:
    """Why terms are not multiplied: they may be infinite, or are too many values."""
    for term in terms:
        source = _moved_from(term)
        if not _is(source, PRODUCTS) or len(source.inputs) < 2:
            what = "no computed value" if source is None else f"computed by {source.op}"
            return f"{term.name!r} is {what}, no product: it may be infinite"
        if (tensor := _infinite(graph, source)) is not None:
            return f"{term.name!r} is computed of {tensor.name!r}: it may be infinite"
    count, n_columns = sum(map(match.count, terms)), math.prod(match.columns)
    if count >= n_columns:
        return f"{match.place!r} broadcasts {count} values to no more than {n_columns}"
    if count * n_columns > MOST_VALUES:
        return f"{match.place!r} broadcasts {count} values to {n_columns}: the matrix is too large"
    return None


def _infinite(graph: Graph, product: Node) -> Tensor | None:
    """What a product may get infinities of: a constant that has some, or what a Gemm adds."""
    for position, tensor in enumerate(product.inputs):
        values, is_added = graph.exact(tensor), product.op == "Gemm" and position == 2
        if is_added and tensor.name and values is None:
            return tensor
        if values is not None and not np.isfinite(values).all():
            return tensor
    return None


def _moved_from(tensor: Tensor) -> Node | None:
    """What computes a tensor's values, whatever moved them since."""
    node = producer_of(tensor)
    while _is(node, RESHAPING | {"Transpose"}):
        node = producer_of(node.inputs[0])
    return node


def _joined(builder: Builder, rows: Sequence[Tensor]) -> Tensor:
    """Tensors side by side along their last axis."""
    if len(rows) == 1:
        return rows[0]
    shapes = [static_shape(tensor) or () for tensor in rows]
    last = sum(shape[-1] for shape in shapes)
    shape = (*shapes[0][:-1], last)
    return builder.node("Concat", rows, shape, axis=len(shape) - 1)


def _reshaped(builder: Builder, tensor: Tensor, shape: Shape) -> Tensor:
    """A tensor in another shape, which it may have had before."""
    had = _had(tensor, shape)
    if had is not None:
        return had
    while _is(node := producer_of(tensor), RESHAPING):
        tensor = node.inputs[0]
    return builder.node("Reshape", [tensor, builder.ints(shape, "shape")], shape)


def _had(tensor: Tensor, shape: Shape) -> Tensor | None:
    """A tensor's values in a shape that they had before, if they had it."""
    node = producer_of(tensor)
    while static_shape(tensor) != shape and _is(node, RESHAPING):
        tensor = node.inputs[0]
        node = producer_of(tensor)
    return tensor if static_shape(tensor) == shape else None
