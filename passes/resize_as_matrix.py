"""A Resize of few channels becomes multiplications by its two interpolation matrices.

    image[N×C×h×w] → Resize (linear) → [N×C×H×W]
    form=matmul: image → MatMul(rows[H×h], ·) → MatMul(·, columns[w×W]) → [N×C×H×W]
    form=conv:   image → Transpose → Conv[H×h×1×1] → Transpose → Conv[W×w×1×1] → Transpose

A linear or cubic Resize, antialiased or not, is linear in the samples along each axis: element i of
the result is row i of a matrix times the samples. The matrices are computed in float64 from ONNX's
definition of every coordinate_transformation_mode but tf_crop_and_resize, whose values outside are
no samples. First comes the axis that makes for fewer multiplications. `form=auto` takes MatMul for
one channel, and for more convolutions over the axis as channels. A map of more channels than
`channels` stays: there the multiplications cost more than the Resize.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: both Resizes of a 480×640 pipeline,
behind split_heads: IQ-9075 48.16 → 46.04 | 20.27 → 17.69, SA8797 17.50 → 16.86 | 8.04 → 7.03.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from compiler.graph import Graph, Node, Tensor
from compiler.interpolation import Matrix, NotLinear, matrices_of, mode_of
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType
from compiler.shapes import dims_of
from compiler.take import Dims

IMAGE = (0, 1, 2, 3)
KINDS = ("float", "float16", "double")  # what Conv takes in every opset


@dataclass(frozen=True)
class Resizing:
    """A Resize node."""

    place: str
    node: Node

    @property
    def data(self) -> Tensor:
        """What is resized."""
        return self.node.inputs[0]


@dataclass(frozen=True)
class ResizeAsMatrix(LocalPass[Resizing]):
    """See the module."""

    form: Literal["auto", "matmul", "conv"] = "auto"
    channels: int = 4

    @property
    def contract(self) -> Contract:
        """Weighted sums of two or four samples become sums over all of them."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to multiply: no Resize"

    def match(self, graph: Graph) -> Iterator[Resizing]:
        """Every Resize."""
        for node in graph.nodes:
            if node.op == "Resize" and node.domain in (None, "", "ai.onnx"):
                yield Resizing(node.outputs[0].name, node)

    def guard(self, graph: Graph, match: Resizing) -> str | None:
        """Refuses wide maps, what is no image, and what interpolates nothing or otherwise."""
        kind = TensorType.of(match.data)
        if str(kind).partition("[")[0] not in KINDS or len(kind.shape or ()) != 4:
            return f"{match.data.name!r} is {kind}, not a float N×C×H×W map"
        channels = dims_of(match.data)[1]
        if not isinstance(channels, int) or channels > self.channels:
            return f"{match.data.name!r} has {channels} channels (channels={self.channels})"
        if mode_of(match.node) == "nearest":
            return "mode=nearest copies samples: there are no sums"
        try:
            matrices = matrices_of(graph, match.node)
        except NotLinear as reason:
            return str(reason)
        other = [axis for axis in matrices if axis < 2]
        if other or not matrices:
            return f"axis {other[0]} is resized, too" if other else "every scale is 1"
        return None

    def rewrite(self, graph: Graph, match: Resizing) -> Replacement:
        """Multiplies by one matrix after the other."""
        builder = Builder(graph, match.place)
        matrices, data = matrices_of(graph, match.node), match.data
        is_conv = self.form == "conv" or (self.form == "auto" and dims_of(data)[1] > 1)
        resized = (_convolved if is_conv else _multiplied)(builder, data, matrices)
        return Replacement(builder, [(match.node.outputs[0], resized)])


def _in_order(matrices: dict[int, Matrix]) -> list[tuple[int, Matrix]]:
    """The axes with their matrices, in the order that takes fewer multiplications a channel.

    Rows first take H·h·w and then H·W·w, columns first h·W·w and then H·h·W.
    """
    lengths = {axis: matrix.shape[1] for axis, matrix in matrices.items()}

    def multiplications(first: int) -> int:
        then = {**lengths, first: len(matrices[first])}
        return sum(
            len(matrices[axis]) * math.prod(sizes.values())
            for axis, sizes in ((first, lengths), *((a, then) for a in matrices if a != first))
        )

    first = min(matrices, key=multiplications)
    return sorted(matrices.items(), key=lambda item: item[0] != first)


def _multiplied(builder: Builder, data: Tensor, matrices: dict[int, Matrix]) -> Tensor:
    """Rows are resized by a matrix from the left, columns by one from the right."""
    for axis, matrix in _in_order(matrices):
        shape = _resized(dims_of(data), axis, len(matrix))
        how = f"{'rows' if axis == 2 else 'columns'} {matrix.shape[1]} to {len(matrix)}"
        weights = builder.constant(matrix if axis == 2 else matrix.T, data.dtype, how)
        operands = [weights, data] if axis == 2 else [data, weights]
        data = builder.node("MatMul", operands, shape)
    return data


def _convolved(builder: Builder, data: Tensor, matrices: dict[int, Matrix]) -> Tensor:
    """Each axis in turn becomes that of the channels, which a 1×1 convolution mixes."""
    layout: tuple[int, ...] = IMAGE
    for axis, matrix in _in_order(matrices):
        layout, before = _swapped(layout, axis), layout
        data = _transposed(builder, data, before, layout)
        how = f"{'rows' if axis == 2 else 'columns'} {matrix.shape[1]} to {len(matrix)}"
        kernel = builder.constant(matrix[:, :, None, None], data.dtype, how)
        shape = _resized(dims_of(data), 1, len(matrix))
        data = builder.node("Conv", [data, kernel], shape, kernel_shape=[1, 1])
    return _transposed(builder, data, layout, IMAGE)


def _swapped(layout: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The layout with `axis` where the channels are expected."""
    return tuple({layout[1]: axis, axis: layout[1]}.get(one, one) for one in layout)


def _transposed(
    builder: Builder, data: Tensor, before: tuple[int, ...], after: tuple[int, ...]
) -> Tensor:
    """The data, whose axes are those of an image in the order `before`, in the order `after`."""
    order = [before.index(axis) for axis in after]
    shape = tuple(dims_of(data)[place] for place in order)
    return builder.node("Transpose", [data], shape, perm=order)


def _resized(shape: Dims, axis: int, length: int) -> Dims:
    return (*shape[:axis], length, *shape[axis + 1 :])
