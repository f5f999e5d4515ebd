"""A product with constant weights and the bias behind it become one Gemm.

    MatMul(x[1×1370×384], W[384×1536]) → Add b[1536]
    Reshape[1370×384] → Gemm(W, b) → Reshape[1×1370×1536]

In whole numbers an NPU adds a Gemm's bias in 32 bits, before it rounds; the Add alone is an op of
its own that rounds once more and waits for memory. Run it after split_heads and before quantize.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from compiler.graph import Graph, Node, Tensor, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType


@dataclass(frozen=True)
class Linear:
    """The product, its bias, and the Add that joins them."""

    product: Node
    bias: Tensor
    add: Node

    @property
    def place(self) -> str:
        """The name of the sum."""
        return str(self.add.outputs[0].name)


@dataclass(frozen=True)
class LinearAsGemm(LocalPass[Linear]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """The same sum, in the kernel's order."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "no MatMul with constant weights has a constant added to it"

    def match(self, graph: Graph) -> Iterator[Linear]:
        """Every Add of a constant to a MatMul with constant weights."""
        for node in graph.nodes:
            if node.op != "Add" or node.domain:
                continue
            for data, bias in (node.inputs, node.inputs[::-1]):
                product = producer_of(data)
                if product is None or product.op != "MatMul" or product.domain:
                    continue
                if graph.is_constant(bias) and graph.is_constant(product.inputs[1]):
                    yield Linear(product, bias, node)
                    break

    def guard(self, graph: Graph, match: Linear) -> str | None:
        """Refuses other weights, biases and types than Gemm's, dynamic rows, shared products."""
        data, weights = match.product.inputs
        result = match.product.outputs[0]
        if len(result.outputs) > 1 or graph.is_output(result):
            return f"{result.name!r} is used elsewhere as well, without the bias"
        kind, shape = TensorType.of(weights), static_shape(weights)
        if not kind.is_float or shape is None or len(shape) != 2:
            return f"the weights {weights.name!r} are {kind}, not a matrix of floats"
        rows = static_shape(data)
        if rows is None or len(rows) < 2 or 0 in rows:
            return f"{data.name!r} is {TensorType.of(data)}: its rows have to be known"
        bias = static_shape(match.bias)
        if bias is None or math.prod(bias) != shape[1] or bias[-1:] != shape[1:]:
            return f"{match.bias.name!r} is {TensorType.of(match.bias)}, not a value a column"
        if len(bias) > len(rows):
            return f"{match.bias.name!r} has {len(bias)} axes, and the product {len(rows)}"
        return None

    def rewrite(self, graph: Graph, match: Linear) -> Replacement:
        """One Gemm between two Reshapes, which a matrix does without."""
        builder = Builder(graph, match.place)
        data, weights = match.product.inputs
        rows, columns = static_shape(data), static_shape(weights)
        assert rows is not None
        assert columns is not None
        flat = (math.prod(rows[:-1]), rows[-1])
        values = graph.exact(match.bias)
        assert values is not None
        bias = match.bias
        if len(bias.shape) > 1:
            bias = builder.constant(values.reshape(-1), bias.dtype, f"{bias.name} as a vector")
        x = _reshaped(builder, data, flat)
        y = builder.node("Gemm", [x, weights, bias], (flat[0], columns[1]), like=weights)
        return Replacement(
            builder, [(match.add.outputs[0], _reshaped(builder, y, (*rows[:-1], columns[1])))]
        )


def _reshaped(builder: Builder, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if static_shape(tensor) == shape:
        return tensor
    return builder.node("Reshape", [tensor, builder.ints(shape, "shape")], shape)
