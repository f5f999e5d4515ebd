"""A guard against rows that are masked whole goes away where no row can be masked.

    scores → Softmax → p → Where(IsNaN(p), 0, p)
    scores → Softmax → p

PyTorch writes it behind every scaled_dot_product_attention: a Softmax of a row of −∞ is NaN. Scores
that are products, with constants added, multiplied or divided by at most, none of them huge and no
divisor tiny, are never −∞ as long as the products themselves are finite; a mask that is computed or
comes in may be, and keeps its guard. On the NPU the guard costs far more than its arithmetic, as
probabilities have to leave the chip's memory.

Measured, 224×224, simulated ms: ViT-B/16, IQ-9075 16.51 → 11.77, SA8797 3.92 → 3.40; DINOv2-B,
IQ-9075 28.98 → 16.96, SA8797 6.14 → 5.34.

Contract: exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from compiler.graph import Graph, Node, Tensor, is_standard, producer_of
from compiler.rewrite import Builder, Contract, LocalPass, Replacement
from compiler.weights import onnx_type_of

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
            test: Node = producer_of(node.inputs[0]) if _is_one_of({"Where"}, node) else None
            if not _is_one_of({"IsNaN"}, test) or test.inputs[0] is not node.inputs[2]:
                continue
            if _is_one_of({"Softmax"}, producer_of(node.inputs[2])):
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
    pending = [(scores, "Add")]
    for tensor, op in pending:
        node: Node = producer_of(tensor)
        if graph.is_constant(tensor):
            if not _is_small(graph, tensor, op):
                return f"{tensor.name!r} holds numbers that are not finite, or nearly so"
        elif not _is_one_of(PRODUCTS | ARITHMETIC | MOVEMENT, node):
            origin = "comes in" if node is None else f"is computed by {node.op}"
            return f"{tensor.name!r} {origin}: it may mask a whole row of scores"
        elif node.op == "Div" and not _is_divisor(graph, node.inputs[1]):
            return f"{node.inputs[1].name!r} divides the scores and may be zero, or nearly so"
        else:
            pending += [(other, node.op) for other in _added(graph, node)]
    return None


def _is_one_of(ops: Collection[str], node: Node | None) -> bool:
    return node is not None and node.op in ops and is_standard(node)


def _added(graph: Graph, node: Node) -> list[Tensor]:
    """What a node computes with or moves; of a product what is constant, or added to it."""
    if node.op in PRODUCTS:
        bias = node.inputs[2:] if node.op == "Gemm" else []
        is_bias = {id(tensor) for tensor in bias}
        return [t for t in node.inputs if t.name and (graph.is_constant(t) or id(t) in is_bias)]
    return list(node.inputs if node.op in ARITHMETIC else node.inputs[:1])


def _is_small(graph: Graph, constant: Tensor, op: str) -> bool:
    """Whether what is computed with a constant stays finite.

    A sum does below a quarter of the largest number, a product below its root.
    """
    values, largest = graph.exact(constant), _largest(constant)
    bound = largest / 4 if op in ("Add", "Sub", *MOVEMENT) else math.sqrt(largest)
    return values is not None and bool(np.all(np.abs(values) <= bound))


def _is_divisor(graph: Graph, tensor: Tensor) -> bool:
    """Whether a quotient stays finite: a constant, and none of its values nearly zero."""
    values = graph.exact(tensor)
    return values is not None and bool(np.all(np.abs(values) >= 1 / math.sqrt(_largest(tensor))))


def _largest(tensor: Tensor) -> float:
    storage = onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(tensor.dtype))
    return float(ml_dtypes.finfo(storage).max)  # type: ignore[no-untyped-call]
