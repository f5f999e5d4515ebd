"""A sum of two products of matrices becomes one product of matrices that stand side by side.

    MatMul(q[196×64], k[64×196]) + MatMul(rel[196×28], E[28×196])
    MatMul(Concat(q, rel)[196×92], Concat(k, E)[92×196])

Scores and what is added to them by position become one product, so the sum of the scores' size is
neither written nor read; a product of few summed values leaves most of an NPU's matrix unit idle.
Where joining the factors moves more than adding does, they are left. A factor that is the same for
a whole batch is repeated with Expand. It runs before split_heads, which takes the joined product
apart and would leave what is added whole.

Measured on a windowed layer of SAM-B's image encoder at 1024×1024, behind broadcast_as_matmul,
simulated ms on IQ-9075: 60.62 → 56.77; with split_heads and dedupe behind it 32.87 (SA8797 10.97),
where without it 88 ops have no cost and the rest take 413.57. An Expand of weights is left in the
model: the NPU's compiler does it when it compiles. Done here, neither figure moved (67.51 and
67.52, 33.00 and 33.00, before broadcast_as_matmul joined first), and the file grew by 6 MB.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.graph import Graph, Node, Shape, Tensor, is_standard, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType, needed_nodes

# How often the factors are read or written to join them; a sum's size, to add another product.
MOVED_BY_JOINING, MOVED_BY_ADDING = 2, 3


@dataclass(frozen=True)
class Products:
    """A sum of two terms that are products, or sums of products that become one before."""

    result: Tensor

    @property
    def place(self) -> str:
        """The name of the sum."""
        return str(self.result.name)

    @property
    def add(self) -> Node:
        """What computes it."""
        return producer_of(self.result)

    @property
    def products(self) -> list[Node]:
        """What computes its terms."""
        return [producer_of(term) for term in self.add.inputs]

    @property
    def factors(self) -> list[Tensor]:
        """Left and right of the one product, then of the other."""
        return [factor for product in self.products for factor in product.inputs]

    def joined(self) -> tuple[Shape, Shape]:
        """The shapes of the factors side by side; those of the factors are known."""
        first, second = ([static_shape(t) or () for t in p.inputs] for p in self.products)
        batches = [np.broadcast_shapes(a[:-2], b[:-2]) for a, b in zip(first, second, strict=True)]
        n_summed = first[0][-1] + second[0][-1]
        rows, columns = (static_shape(self.result) or ())[-2:]
        return (*batches[0], rows, n_summed), (*batches[1], n_summed, columns)


@dataclass(frozen=True)
class JoinProducts(LocalPass[Products]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """The same sum, in the kernel's order."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to join: no Add has two products of matrices"

    def match(self, graph: Graph) -> Iterator[Products]:
        """Every Add of MatMuls, and of Adds like that."""
        found: set[int] = set()
        for node in needed_nodes(graph):
            sources = [producer_of(t) for t in node.inputs] if _is(node, "Add") else [None]
            if all(_is(source, "MatMul") or id(source) in found for source in sources):
                found.add(id(node))
                yield Products(node.outputs[0])

    def guard(self, graph: Graph, match: Products) -> str | None:
        """Refuses other readers, what is no matrices, sums within them, and large factors."""
        if graph.opset < 8:
            return f"opset {graph.opset} has no Expand (8 and later do)"
        for product in match.products:
            (term,) = product.outputs
            if not _is(product, "MatMul"):
                return f"{term.name!r} stays a sum of products"
            if len(term.outputs) > 1 or graph.is_output(term):
                return f"{term.name!r} is read elsewhere as well, without the other product"
        for factor in match.factors:
            shape, kind = static_shape(factor), TensorType.of(factor)
            if shape is None or 0 in shape or len(shape) < 2 or not kind.is_float:
                return f"{factor.name!r} is {kind}, not matrices of floats"
        for term in match.add.inputs:
            if term.shape[-2:] != match.result.shape[-2:]:
                what = f"{term.name!r} is {TensorType.of(term)}"
                return f"{what}, broadcast within the matrices of {match.place!r}"
        n_factors, n_sum = sum(map(math.prod, match.joined())), math.prod(match.result.shape)
        if MOVED_BY_JOINING * n_factors >= MOVED_BY_ADDING * n_sum:
            return f"the factors of {match.place!r} have {n_factors} values, the sum {n_sum}"
        return None

    def rewrite(self, graph: Graph, match: Products) -> Replacement:
        """Rows of both left factors side by side, columns of both right ones end to end."""
        builder = Builder(graph, match.place)
        (a, b), (c, d) = (product.inputs for product in match.products)
        left, right = match.joined()
        x = _side_by_side(graph, builder, [a, c], left, len(left) - 1)
        y = _side_by_side(graph, builder, [b, d], right, len(right) - 2)
        total = builder.node("MatMul", [x, y], static_shape(match.result))
        return Replacement(builder, [(match.result, total)])


def _is(node: Node | None, op: str) -> bool:
    return node is not None and node.op == op and is_standard(node)


def _side_by_side(
    graph: Graph, builder: Builder, tensors: list[Tensor], shape: Shape, axis: int
) -> Tensor:
    """Two tensors along an axis, repeated over the batch where only the other is there for all."""
    repeated = [
        _expanded(builder, tensor, (*shape[:-2], *(static_shape(tensor) or ())[-2:]))
        for tensor in tensors
    ]
    values = [known for tensor in repeated if (known := graph.exact(tensor)) is not None]
    if len(values) == len(repeated):
        how = " beside ".join(tensor.name for tensor in tensors)
        return builder.constant(np.concatenate(values, axis), tensors[0].dtype, how)
    return builder.node("Concat", repeated, shape, axis=axis)


def _expanded(builder: Builder, tensor: Tensor, shape: Shape) -> Tensor:
    if static_shape(tensor) == shape:
        return tensor
    return builder.node("Expand", [tensor, builder.ints(shape, "batch")], shape)
