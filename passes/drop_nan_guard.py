"""A guard against rows that are masked whole goes away where no row can be masked.

    scores → Softmax → p → Where(IsNaN(p), 0, p)
    scores → Softmax → p

PyTorch writes it behind every scaled_dot_product_attention: a Softmax of a row of −∞ is NaN. Scores
that are products, with finite constants added or multiplied at most, are never −∞ as long as the
model's numbers are finite; a mask that is computed or comes in may be, and keeps its guard. On the
NPU the guard costs far more than its arithmetic, as probabilities have to leave the chip's memory.

Measured, 224×224, simulated ms: ViT-B/16, IQ-9075 16.51 → 11.77, SA8797 3.92 → 3.40; DINOv2-B,
IQ-9075 28.98 → 16.96, SA8797 6.14 → 5.34.

Contract: exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.graph import Graph, Node, Tensor, producer_of
from compiler.rewrite import Builder, Contract, LocalPass, Replacement

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
MOVEMENT = frozenset({"Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Guarded:
    """Probabilities in which NaN is replaced."""

    result: Tensor

    @property
    def place(self) -> str:
        """The tensor's name."""
        return str(self.result.name)

    @property
    def where(self) -> Node:
        """What replaces them."""
        return producer_of(self.result)

    @property
    def softmax(self) -> Node:
        """What computes them."""
        return producer_of(self.where.inputs[2])

    @property
    def probabilities(self) -> Tensor:
        """The tensor without replacements."""
        return self.where.inputs[2]


@dataclass(frozen=True)
class DropNanGuard(LocalPass[Guarded]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """Nothing is computed any more."""
        return "exact"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to drop: no Where replaces what is NaN of a Softmax"

    def match(self, graph: Graph) -> Iterator[Guarded]:
        """Every Where that takes a Softmax's result except where that is NaN."""
        for node in graph.nodes:
            test = producer_of(node.inputs[0]) if node.op == "Where" else None
            if test is None or test.op != "IsNaN" or test.inputs[0] is not node.inputs[2]:
                continue
            softmax = producer_of(node.inputs[2])
            if softmax is not None and softmax.op == "Softmax":
                yield Guarded(node.outputs[0])

    def guard(self, graph: Graph, match: Guarded) -> str | None:
        """Refuses scores that may be infinite, and a replacement that widens the probabilities."""
        kept, given = match.probabilities.shape, match.result.shape
        if kept is None or kept != given:
            return f"{match.place!r} has the shape {given}, the probabilities {kept}"
        return _why_infinite(graph, match.softmax.inputs[0])

    def rewrite(self, graph: Graph, match: Guarded) -> Replacement:
        """The probabilities as they are."""
        return Replacement(Builder(graph, match.place), [(match.result, match.probabilities)])


def _why_infinite(graph: Graph, scores: Tensor) -> str | None:
    """What may make a whole row of scores infinite; None if products and finite constants do."""
    pending = [scores]
    for tensor in pending:
        node = producer_of(tensor)
        if graph.is_constant(tensor):
            if not _is_small(graph, tensor):
                return f"{tensor.name!r} holds numbers that are not finite, or nearly so"
        elif node is None or node.op not in PRODUCTS | ARITHMETIC | MOVEMENT:
            origin = "comes in" if node is None else f"is computed by {node.op}"
            return f"{tensor.name!r} {origin}: it may mask a whole row of scores"
        elif node.op not in PRODUCTS:
            pending += _operands(node)
    return None


def _operands(node: Node) -> list[Tensor]:
    """What a node computes with, or the one tensor that it moves."""
    return list(node.inputs if node.op in ARITHMETIC else node.inputs[:1])


def _is_small(graph: Graph, constant: Tensor) -> bool:
    """Whether a sum with a constant stays finite: no value is above half of the largest number."""
    values = graph.exact(constant)
    return values is not None and bool(np.all(np.abs(values) <= np.finfo(constant.dtype).max / 2))
