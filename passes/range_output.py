"""The map is scaled to [0, 1] per image: its minimum becomes 0, its maximum 1.

    network → map[N×…]
    network → (map - min) / max(max - min, 2⁻¹⁴)

Minimum and maximum are over all axes but the first. A constant map becomes 0, without NaN: 2⁻¹⁴ is
the smallest normal float16, so that the division is safe on an NPU that computes in float16. A map
whose range is smaller than that counts as noise and stays below 1.

Contract: declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.graph import Graph, Tensor, static_shape
from compiler.network import Network, node_made_by, whole_network
from compiler.rewrite import (
    Builder,
    DeclaredPass,
    Float64,
    Function,
    Replacement,
    Signature,
    TensorType,
)

SMALLEST_RANGE = 2.0**-14


@dataclass(frozen=True)
class RangeOutput(DeclaredPass[Network]):
    """See the module."""

    def match(self, graph: Graph) -> Iterator[Network]:
        """The model."""
        yield from whole_network(graph)

    def guard(self, graph: Graph, match: Network) -> str | None:
        """Refuses a second application, several outputs, and an output that is not a float map."""
        done = node_made_by(graph, self.name)
        if done:
            return f"the output already is scaled ({done!r})"
        if len(match.outputs) != 1:
            return f"the model has {len(match.outputs)} outputs: {[t.name for t in match.outputs]}"
        (result,) = match.outputs
        if result.shape is None or len(result.shape) < 2 or not TensorType.of(result).is_float:
            return f"the output is {TensorType.of(result)}, not a float map for each image"
        return None

    def rewrite(self, graph: Graph, match: Network) -> Replacement:
        """Adds ReduceMin, ReduceMax and the arithmetic."""
        (result,) = match.outputs
        builder = Builder(graph, self.name)
        low = _reduced(graph, builder, "ReduceMin", result)
        high = _reduced(graph, builder, "ReduceMax", result)
        one = static_shape(low)
        smallest = builder.constant(np.array(SMALLEST_RANGE), result.dtype, "smallest range")
        span = builder.node("Max", [builder.node("Sub", [high, low], one), smallest], one)
        shape = static_shape(result)
        shifted = builder.node("Sub", [result, low], shape)
        return Replacement(builder, [(result, builder.node("Div", [shifted, span], shape))])

    def expected(
        self, f: Function, inputs: Mapping[str, Float64], before: Signature
    ) -> dict[str, Float64]:
        """Each image's map, shifted and scaled on its own."""
        ((name, result),) = f(inputs).items()
        spans = [max(float(np.ptp(image)), SMALLEST_RANGE) for image in result]
        images = [(y - y.min()) / span for y, span in zip(result, spans, strict=True)]
        return {name: np.stack(images)}


def _reduced(graph: Graph, builder: Builder, op: str, tensor: Tensor) -> Tensor:
    """The extreme of each image; `axes` is an attribute before opset 18, an input since."""
    axes, known = list(range(1, len(tensor.shape))), static_shape(tensor)
    shape = None if known is None else (known[0], *[1] * len(axes))
    if graph.opset < 18:
        return builder.node(op, [tensor], shape, axes=axes, keepdims=1)
    return builder.node(op, [tensor, builder.ints(axes, "axes")], shape, keepdims=1)
