"""A Resize of few channels becomes multiplications by its two interpolation matrices.

    image[N×C×h×w] → Resize (linear) → [N×C×H×W]
    form=matmul: image → MatMul(rows[H×h], ·) → MatMul(·, columns[w×W]) → [N×C×H×W]
    form=conv:   image → Transpose → Conv[H×h×1×1] → Transpose → Conv[W×w×1×1] → Transpose
    form=turned: image → MatMul(·, columns) → Transpose → MatMul(·, rowsᵀ) → Conv → Transpose

A linear or cubic Resize, antialiased or not, is linear in the samples along each axis: element i of
the result is row i of a matrix times the samples. The matrices are computed in float64 from ONNX's
definition of every coordinate_transformation_mode but tf_crop_and_resize, whose values outside are
no samples. First comes the axis that makes for fewer multiplications. A map of more channels than
`channels` stays: there the multiplications cost more than the Resize.

`form=turned` is for what only convolutions read that make less of it, such as a patch embedding:
they take the map with its axes exchanged, and their small results are turned back. `form=auto`
takes it where there is one of them, else MatMul for one channel, and for more channels convolutions
over the axis as channels.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: both Resizes of a 480×640 pipeline,
behind split_heads, fold_scale and hoist_conv (and pad_tokens at 350), no matrices → conv → turned:
IQ-9075 45.14 → 43.39 → 42.51 | 17.83 → 15.59 → 14.60, SA8797 16.05 → 15.57 → 15.14 | 6.99 → 6.05 →
5.84. Two convolutions (flip_average, fold_flip) gain nothing by being turned: 28.35 → 28.54.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.graph import Graph, Node, Tensor, is_standard
from compiler.interpolation import Matrix, NotLinear, matrices_of, mode_of
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType
from compiler.shapes import dims_of
from compiler.take import Dims

IMAGE = (0, 1, 2, 3)
TURNED = (0, 1, 3, 2)
SPATIAL = frozenset({"dilations", "kernel_shape", "pads", "strides"})
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

    form: Literal["auto", "matmul", "conv", "turned"] = "auto"
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
            if node.op == "Resize" and is_standard(node):
                yield Resizing(node.outputs[0].name, node)

    def guard(self, graph: Graph, match: Resizing) -> str | None:
        """Refuses wide maps, what is no image, and what interpolates nothing or otherwise."""
        kind = TensorType.of(match.data)
        if str(kind).partition("[")[0] not in KINDS or len(kind.shape or ()) != 4:
            return f"{match.data.name!r} is {kind}, not a float N×C×H×W map"
        if 0 in dims_of(match.data):
            return f"{match.data.name!r} is {kind}: it is empty"
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
        if self.form == "turned" and not _shrinking(graph, match.node.outputs[0]):
            return f"{match.place!r} is read by more than convolutions that make less of it"
        return None

    def rewrite(self, graph: Graph, match: Resizing) -> Replacement:
        """Multiplies by one matrix after the other."""
        builder = Builder(graph, match.place)
        matrices, data = matrices_of(graph, match.node), match.data
        convs = _shrinking(graph, match.node.outputs[0])
        if self.form == "turned" or (self.form == "auto" and len(convs) == 1):
            turned = _multiplied_turned(builder, data, matrices)
            results = [_read_turned(graph, builder, conv, turned) for conv in convs]
            return Replacement(builder, results)
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
        if axis == 3:
            data = _from_right(builder, data, matrix, _how(axis, matrix))
        else:
            weights = builder.constant(matrix, data.dtype, _how(axis, matrix))
            shape = _resized(dims_of(data), axis, len(matrix))
            data = builder.node("MatMul", [weights, data], shape)
    return data


def _multiplied_turned(builder: Builder, data: Tensor, matrices: dict[int, Matrix]) -> Tensor:
    """The resized map with its rows and columns exchanged: both matrices come from the right."""
    if 3 in matrices:
        data = _from_right(builder, data, matrices[3], _how(3, matrices[3]))
    data = _transposed(builder, data, IMAGE, TURNED)
    if 2 in matrices:
        data = _from_right(builder, data, matrices[2], _how(2, matrices[2]))
    return data


def _from_right(builder: Builder, data: Tensor, matrix: Matrix, how: str) -> Tensor:
    """The last axis of the data resized."""
    weights = builder.constant(matrix.T, data.dtype, how)
    return builder.node("MatMul", [data, weights], _resized(dims_of(data), 3, len(matrix)))


def _how(axis: int, matrix: Matrix) -> str:
    return f"{'rows' if axis == 2 else 'columns'} {matrix.shape[1]} to {len(matrix)}"


def _read_turned(graph: Graph, builder: Builder, conv: Node, data: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution of the turned map, its result turned back."""
    result = conv.outputs[0]
    kernel = graph.exact(conv.inputs[1])
    assert kernel is not None
    weights = builder.constant(
        np.swapaxes(kernel, 2, 3), conv.inputs[1].dtype, f"{conv.inputs[1].name}, turned"
    )
    turned = builder.copy(conv, [data, weights, *conv.inputs[2:]])
    turned.attrs.update({name: _exchanged(conv.attrs[name]) for name in SPATIAL & {*conv.attrs}})
    turned.outputs[0].shape = [dims_of(result)[place] for place in TURNED]
    return result, _transposed(builder, turned.outputs[0], TURNED, IMAGE)


def _exchanged(values: Sequence[int]) -> list[int]:
    """What an attribute says of rows and columns, of columns and rows; or of both ends of them."""
    return [values[i ^ 1] for i in range(len(values))]


def _shrinking(graph: Graph, resized: Tensor) -> list[Node]:
    """The convolutions that read a map, if nothing else does and each makes less of it."""
    readers = [node for node in graph.nodes if any(t is resized for t in node.inputs)]
    is_read_elsewhere = graph.is_output(resized) or len(readers) != len(resized.outputs)
    are_fit = all(_makes_less(graph, node, resized) for node in readers)
    return readers if are_fit and not is_read_elsewhere else []


def _makes_less(graph: Graph, node: Node, data: Tensor) -> bool:
    if node.op != "Conv" or not is_standard(node):
        return False
    if node.inputs[0] is not data or not graph.is_constant(node.inputs[1]):
        return False
    sizes = [dims_of(tensor)[1:] for tensor in (node.outputs[0], data)]
    are_known = all(isinstance(size, int) for dims in sizes for size in dims)
    return are_known and math.prod(sizes[0]) < math.prod(sizes[1])


def _convolved(builder: Builder, data: Tensor, matrices: dict[int, Matrix]) -> Tensor:
    """Each axis in turn becomes that of the channels, which a 1×1 convolution mixes."""
    layout: tuple[int, ...] = IMAGE
    for axis, matrix in _in_order(matrices):
        layout, before = _swapped(layout, axis), layout
        data = _transposed(builder, data, before, layout)
        kernel = builder.constant(matrix[:, :, None, None], data.dtype, _how(axis, matrix))
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
