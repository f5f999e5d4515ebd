"""The model takes height×width images and returns a height×width map, resized bilinearly.

    image[1×3×h×w] → network → map[1×h×w]
    image[1×3×H×W] → Resize → network → Reshape → Resize → map[1×1×H×W]

Both resizes are bilinear with aligned corners: output sample i of n lies at i·(m-1)/(n-1) of the m
input samples, at 0 if n = 1. There is no antialiasing. `insert_resize:height=480:width=640`. Other
inputs and outputs stay as they are; where several are images or maps, `input=NAME:output=NAME` says
which.

Contract: declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from compiler.graph import Graph, Shape, Tensor
from compiler.network import Network, image_and_map, not_image_to_map, whole_network
from compiler.rewrite import (
    Builder,
    DeclaredPass,
    Float64,
    Function,
    Replacement,
    Signature,
    TensorType,
)


@dataclass(frozen=True)
class InsertResize(DeclaredPass[Network]):
    """See the module."""

    height: int
    width: int
    input: str = ""
    output: str = ""

    def match(self, graph: Graph) -> Iterator[Network]:
        """The model."""
        yield from whole_network(graph)

    def guard(self, graph: Graph, match: Network) -> str | None:
        """Refuses what has no float image or no map, or several, and a model of that size."""
        if min(self.height, self.width) < 1:
            return f"height={self.height}:width={self.width} is not a size"
        if graph.opset < 11:
            return f"opset {graph.opset} has no Resize with align_corners (11 and later do)"
        fault = not_image_to_map(match, self.input, self.output)
        if fault:
            return fault
        tensors = match.image_and_map(self.input, self.output)
        image, result = (tuple(tensor.shape) for tensor in tensors)
        if len(result) > 4 or (len(result) == 4 and result[1] != 1):
            return f"the output is {TensorType.of(tensors[1])}, not N×H×W or N×1×H×W"
        if image[2:] == result[-2:] == (self.height, self.width):
            return f"the model already takes and returns {self.height}×{self.width}"
        return None

    def rewrite(self, graph: Graph, match: Network) -> Replacement:
        """Puts one Resize before and one after."""
        image, result = match.image_and_map(self.input, self.output)
        builder = Builder(graph, self.name)
        whole = builder.new_input(image, (*image.shape[:2], self.height, self.width))
        resized = _resize(graph, builder, whole, tuple(image.shape))
        planes = (result.shape[0], 1, *result.shape[-2:])
        if len(result.shape) == 3:
            result_4d = builder.node("Reshape", [result, builder.ints(planes, "N×1×H×W")], planes)
        else:
            result_4d = result
        final = _resize(graph, builder, result_4d, (*planes[:2], self.height, self.width))
        return Replacement(builder, [(image, resized), (result, final)], [(image, whole)])

    def expected(
        self, f: Function, inputs: Mapping[str, Float64], before: Signature
    ) -> dict[str, Float64]:
        """bilinear(f(bilinear(image)))."""
        name, output = image_and_map(before, self.input, self.output)
        height, width = (d for d in (before.inputs[name].shape or ())[2:] if isinstance(d, int))
        results = f({**inputs, name: _bilinear(inputs[name], height, width)})
        planes = results[output].reshape(len(results[output]), 1, *results[output].shape[-2:])
        return {**results, output: _bilinear(planes, self.height, self.width)}


def _resize(graph: Graph, builder: Builder, tensor: Tensor, shape: Shape) -> Tensor:
    """A bilinear Resize to `shape`; before opset 13 an input can't be left out, only empty."""
    unused = (
        gs.Variable.empty() if graph.opset >= 13
        else builder.constant(np.zeros(0), np.dtype(np.float32), "unused")
    )  # fmt: skip
    return builder.node(
        "Resize", [tensor, unused, unused, builder.ints(shape, "sizes")], shape,
        mode="linear", coordinate_transformation_mode="align_corners",
    )  # fmt: skip


def _bilinear(image: Float64, height: int, width: int) -> Float64:
    """`image` at evenly spaced positions, from the first to the last sample of both last axes."""
    for axis, size in ((-2, height), (-1, width)):
        # Positions as exact fractions: whole samples, and the rest over size - 1.
        last, steps = image.shape[axis] - 1, max(size - 1, 1)
        before, rest = np.divmod(np.arange(size) * last, steps)
        after = np.minimum(before + 1, last)
        weight = (rest / steps).reshape((-1,) + (1,) * (-1 - axis))
        image = np.take(image, before, axis) * (1 - weight) + np.take(image, after, axis) * weight
    return image
