"""What scales queries or keys scales their scores instead, where a Softmax reads them.

    Mul(q, 0.125) → MatMul(·, kᵀ) → Softmax
    MatMul(q, kᵀ) → Mul(·, 0.125) → Softmax

The NPU computes a Mul right before a Softmax with it; one before the product reads and writes all
queries. PyTorch's scaled_dot_product_attention scales queries and keys by 1/√√D each, the code of
Depth Anything V2 the queries alone. Scores that are not scaled yet are larger, 8 times for heads of
64 features: float16 has room up to 65504.

Measured on the graph of Depth Anything V2's own code (Small, 518 | 350) with the pipelines of
tools/npu.toml, simulated ms: IQ-9075 37.84 → 37.84 | 14.25 → 13.90, SA8797 not known | 5.61 → 5.61;
ViT-B/16 at 224 on IQ-9075 9.63 → 9.68. It pays where padded queries are tiled, and hardly costs.

Contract: algebraic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.graph import Graph, Node, Tensor, is_standard, producer_of
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType, needed_nodes
from compiler.scaling import why_not_held

MOVING = frozenset({"Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Operand:
    """A factor of the scores: `data` times `number`, then moved by `moves`, the first one first."""

    data: Tensor
    number: float
    moves: tuple[Node, ...]


@dataclass(frozen=True)
class Scores:
    """A product of matrices of which an operand is scaled by a number."""

    result: Tensor

    @property
    def place(self) -> str:
        """The name of the product."""
        return str(self.result.name)

    @property
    def product(self) -> Node:
        """What computes it."""
        return producer_of(self.result)

    def operands(self, graph: Graph) -> list[Operand]:
        """Both operands, each with all numbers that it is scaled by."""
        return [_scaled(graph, tensor) for tensor in self.product.inputs]

    def number(self, graph: Graph) -> float:
        """What scales the scores then."""
        return float(np.prod([operand.number for operand in self.operands(graph)]))


@dataclass(frozen=True)
class ScaleScores(LocalPass[Scores]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """A number moves out of a sum of products."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to move: no operand of a MatMul is scaled by one number"

    def match(self, graph: Graph) -> Iterator[Scores]:
        """Every MatMul with an operand that is scaled by a number."""
        for node in needed_nodes(graph):
            if node.op == "MatMul" and is_standard(node):
                found = Scores(node.outputs[0])
                if any(operand.data is not tensor for operand, tensor in
                       zip(found.operands(graph), node.inputs, strict=True)):  # fmt: skip
                    yield found

    def guard(self, graph: Graph, match: Scores) -> str | None:
        """Refuses products that something else than a Softmax reads, and numbers without use."""
        kind = TensorType.of(match.result)
        if match.result.shape is None or not kind.is_float:
            return f"{match.place!r} is {kind}, not floats of a known rank"
        readers = [node.op for node in match.result.outputs if node.op != "Softmax"]
        if readers or graph.is_output(match.result):
            return f"{match.place!r} is read by {readers[0] if readers else 'the caller'}"
        number = np.array([match.number(graph)])
        fault = why_not_held(number, match.result.dtype, np.ones(1))
        return fault and f"{match.place!r} would be scaled by {number[0]:.3g}: {fault}"

    def rewrite(self, graph: Graph, match: Scores) -> Replacement:
        """The product of what was scaled, then scaled."""
        builder = Builder(graph, match.place)
        shape, dtype = tuple(match.result.shape), match.result.dtype
        operands = [_moved(builder, operand) for operand in match.operands(graph)]
        product = builder.node("MatMul", operands, shape, source=match.product)
        number = builder.constant(np.array(match.number(graph)), dtype, "scale of both operands")
        return Replacement(builder, [(match.result, builder.node("Mul", [product, number], shape))])


def _scaled(graph: Graph, tensor: Tensor) -> Operand:
    """A tensor as data that is scaled by one number, then moved; by 1 where nothing scales it."""
    found, number = Operand(tensor, 1.0, ()), 1.0
    moves: list[Node] = []
    node = producer_of(tensor)
    while node is not None and is_standard(node):
        factor = _factor(graph, node)
        if factor is not None:
            data, own = factor
            number *= own
            found = Operand(data, number, tuple(reversed(moves)))
        elif node.op in MOVING:
            data = node.inputs[0]
            moves.append(node)
        else:
            break
        node = producer_of(data)
    return found


def _factor(graph: Graph, node: Node) -> tuple[Tensor, float] | None:
    """What a node multiplies by one number, and the number; None if it does something else."""
    places = {"Mul": (1, 0), "Div": (1,)}.get(node.op, ())
    for place in places:
        data, values = node.inputs[1 - place], graph.exact(node.inputs[place])
        if values is None or values.size != 1 or data.shape is None:
            continue
        if data.shape == node.outputs[0].shape:
            with np.errstate(divide="ignore"):
                value = values.reshape(())
                return data, float(value if node.op == "Mul" else 1 / value)
    return None


def _moved(builder: Builder, operand: Operand) -> Tensor:
    """The data where the operand was."""
    tensor = operand.data
    for node in operand.moves:
        tensor = builder.copy(node, [tensor, *node.inputs[1:]]).outputs[0]
    return tensor
