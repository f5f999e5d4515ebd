"""Scales of tensors, and what becomes of them across an op: small rules, and no model's name.

A scale is an array of a tensor's rank that it is multiplied by: each axis has the tensor's length,
or length 1. `backwards` turns the scale of what a node computes into scales of its operands that
come to the same; `forwards` turns the scale of an operand into that of the result, or into scales
of other operands. Ops that move values move their scales; MatMul, Gemm, Conv and ConvTranspose hand
them to their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from compiler.graph import Graph, Node, Tensor, is_standard
from compiler.rewrite import Float64
from compiler.shapes import dims_of, length_of, shape_of
from compiler.slicing_moves import slice_takes
from compiler.take import Dims, runs
from compiler.weights import NewWeight, onnx_type_of

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
# What takes a part of a tensor.
PARTS = frozenset({"Slice", "Split", "Gather"})

# Operands, by position, with their scales.
Operands = dict[int, Float64]


class NoFold(Exception):  # noqa: N818 - a refusal, not an error
    """Why a scale can't be taken."""


def backwards(graph: Graph, node: Node, tensor: Tensor, scale: Float64) -> list[Operands]:
    """The ways to scale what a node computes: operands to be scaled instead, all of one way.

    Raises NoFold or NoRule if there is none.

    Args:
        graph: that of the node.
        node: of any op.
        tensor: the one of its outputs that is to be scaled.
        scale: of that tensor.
    """
    rule = BACKWARDS.get(node.op) if is_standard(node) else None
    if rule is None:
        raise NoFold(f"{node.op} {node.name!r} computes it")
    return rule(graph, node, tensor, scale)


def forwards(graph: Graph, node: Node, position: int, scale: Float64) -> Float64 | Operands:
    """The scale of what a node computes from a scaled operand, or of other operands instead.

    Raises NoFold or NoRule if there is neither.
    """
    rule = FORWARDS.get(node.op) if is_standard(node) else None
    if rule is None:
        raise NoFold(f"{node.op} {node.name!r} reads it")
    return rule(graph, node, position, scale)


def factor_position(graph: Graph, node: Node) -> int | None:
    """The position of a Mul's one constant operand, or of a Div's constant divisor."""
    if node.op not in ("Mul", "Div") or not is_standard(node):
        return None
    known = [graph.is_constant(tensor) for tensor in node.inputs]
    if known == [False, True]:
        return 1
    return 0 if known == [True, False] and node.op == "Mul" else None


def exact(graph: Graph, constant: Tensor) -> Float64:
    """The values of what is known to be a constant, before rounding."""
    values = graph.exact(constant)
    assert values is not None
    return values


def fitted(scale: Float64, tensor: Tensor) -> Float64:
    """The scale with as many axes as the tensor, which it may not make larger."""
    dims = dims_of(tensor)
    extra = max(scale.ndim - len(dims), 0)
    own = scale.reshape((1,) * (len(dims) - scale.ndim + extra) + scale.shape)
    is_larger = any(size != 1 for size in own.shape[:extra])
    pairs = zip(own.shape[extra:], dims, strict=True)
    if is_larger or any(size not in (1, dim) for size, dim in pairs):
        raise NoFold(f"{tensor.name!r} is {list(dims)}, not {list(scale.shape)} like its scale")
    return own.reshape(own.shape[extra:])


def why_not_held(product: Float64, dtype: Any, scale: Float64 | None = None) -> str | None:
    """Why a type can't hold values, naming one: it is infinite there, or nothing at all.

    Nothing at all: 0, with everything else that the same element of `scale` was to make.
    """
    with np.errstate(all="ignore"):
        rounded = NewWeight(product, dtype, "").load().astype(np.float64)
    storage = onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(dtype))
    infinite = ~np.isfinite(rounded)
    if infinite.any():
        return f"{product[infinite][0]:.3g} is too large for {storage}"
    if scale is None:
        return None
    shape = (1,) * (product.ndim - scale.ndim) + scale.shape
    others = tuple(axis for axis, size in enumerate(shape[-product.ndim :]) if size == 1)
    most, kept = (np.abs(v).max(others, keepdims=True, initial=0.0) for v in (product, rounded))
    vanished = most[(most > 0) & (kept == 0)]
    return f"{vanished[0]:.3g} is 0 in {storage}" if vanished.size else None


def narrow(scale: Float64) -> Float64:
    """The scale with length 1 along every axis that it doesn't vary along."""
    for axis in range(scale.ndim):
        first = np.take(scale, [0], axis)
        scale = first if (scale == first).all() else scale
    return scale


def _varies(scale: Float64, *axes: int) -> bool:
    return any(scale.shape[axis] != 1 for axis in axes)


def _along(scale: Float64, axis: int) -> Float64:
    """The scale's values along an axis, as a vector. Raises NoFold if it varies along others."""
    if scale.size != scale.shape[axis]:
        raise NoFold(f"a scale of {list(scale.shape)} varies along more than axis {axis}")
    return scale.reshape(-1)


# -- backwards -------------------------------------------------------------------------------------


def _matmul(graph: Graph, node: Node, _: Tensor, scale: Float64) -> list[Operands]:
    """Rows of the left operand, columns of the right one; a constant operand if there is one."""
    if min(len(dims_of(tensor)) for tensor in node.inputs) < 2:
        raise NoFold(f"MatMul {node.name!r} multiplies a vector")
    ways = [{side: scale} for side in (0, 1) if not _varies(scale, -1 - side)]
    if not ways:
        raise NoFold(f"the scale of MatMul {node.name!r} varies along its rows and its columns")
    return sorted(ways, key=lambda way: not graph.is_constant(node.inputs[min(way)]))


def _gemm(_: Graph, node: Node, __: Tensor, scale: Float64) -> list[Operands]:
    columns = _along(scale, 1)
    weights = columns.reshape((-1, 1) if node.attrs.get("transB", 0) else (1, -1))
    return [{1: weights, **_bias(node, columns)}]


def _conv(_: Graph, node: Node, __: Tensor, scale: Float64) -> list[Operands]:
    channels = _along(scale, 1)
    return [{1: _column(channels, node), **_bias(node, channels)}]


def _conv_transpose(_: Graph, node: Node, __: Tensor, scale: Float64) -> list[Operands]:
    """Weights are [input channels, output channels / group, …]; channels are group by group."""
    channels = _along(scale, 1)
    return [{1: _by_group(channels, node), **_bias(node, channels)}]


def _bias(node: Node, channels: Float64) -> dict[int, Float64]:
    return {2: channels} if len(node.inputs) > 2 and node.inputs[2].name else {}


def _column(channels: Float64, node: Node) -> Float64:
    """Values for the first axis of a kernel."""
    return channels.reshape(-1, *[1] * (len(dims_of(node.inputs[1])) - 1))


def _by_group(channels: Float64, node: Node) -> Float64:
    """Values for the second axis of a kernel, which counts the channels of one group."""
    kernel, groups = shape_of(node.inputs[1]), node.attrs.get("group", 1)
    each = np.broadcast_to(channels, groups * kernel[1]).reshape(groups, kernel[1])
    values = np.repeat(each, kernel[0] // groups, axis=0)
    return values.reshape(*values.shape, *[1] * (len(kernel) - 2))


def _sum(_: Graph, node: Node, __: Tensor, scale: Float64) -> list[Operands]:
    return [dict.fromkeys(range(len(node.inputs)), scale)]


def _product(graph: Graph, node: Node, _: Tensor, scale: Float64) -> list[Operands]:
    """Another product with a constant is passed."""
    position = factor_position(graph, node)
    if position is None:
        raise NoFold(f"{node.op} {node.name!r} computes it from two tensors")
    return [{1 - position: scale}]


def _transposed_back(_: Graph, node: Node, __: Tensor, scale: Float64) -> list[Operands]:
    return [{0: np.transpose(scale, np.argsort(_order(node, scale.ndim)))}]


def _reshaped_back(_: Graph, node: Node, tensor: Tensor, scale: Float64) -> list[Operands]:
    return [{0: _reshaped(scale, dims_of(tensor), dims_of(node.inputs[0]))}]


def _part_back(graph: Graph, node: Node, tensor: Tensor, scale: Float64) -> list[Operands]:
    """The scale where the part is, and 1 elsewhere."""
    index = _index(graph, node, [t is tensor for t in node.outputs].index(True))
    sizes, lengths = iter(scale.shape), dims_of(node.inputs[0])
    shape = []
    for place, length in zip(index, lengths, strict=True):
        size = 1 if isinstance(place, int) else next(sizes)
        shape.append(size if place == slice(None) else length)
    whole = np.ones(shape)
    whole[index] = scale
    return [{0: whole}]


def _joined_back(_: Graph, node: Node, __: Tensor, scale: Float64) -> list[Operands]:
    axis = node.attrs["axis"] % scale.ndim
    if not _varies(scale, axis):
        return [dict.fromkeys(range(len(node.inputs)), scale)]
    edges = np.cumsum([length_of(tensor, axis) for tensor in node.inputs])[:-1]
    return [dict(enumerate(np.split(scale, edges, axis)))]


# (graph, node, its output, the output's scale) -> ways to scale it: operands with their scales.
BACKWARDS: dict[str, Callable[[Graph, Node, Tensor, Float64], list[Operands]]] = {
    "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _conv_transpose,
    "Add": _sum, "Sub": _sum, "Mul": _product, "Div": _product, "Concat": _joined_back,
    "Transpose": _transposed_back, **dict.fromkeys(RESHAPES, _reshaped_back),
    **dict.fromkeys(PARTS, _part_back),
}  # fmt: skip

# -- forwards --------------------------------------------------------------------------------------

Step = Float64 | Operands


def _matmul_on(graph: Graph, node: Node, position: int, scale: Float64) -> Step:
    other = 1 - position
    if min(scale.ndim, len(dims_of(node.inputs[other]))) < 2:
        raise NoFold(f"MatMul {node.name!r} multiplies a vector")
    contracted = scale.ndim - 1 - position
    if graph.is_constant(node.inputs[other]):
        values = _along(scale, contracted)
        return {other: values.reshape((-1, 1) if position == 0 else (1, -1))}
    if _varies(scale, contracted):
        raise NoFold(f"MatMul {node.name!r} sums over the channels of the scale")
    return _of_rank(scale, node)


def _gemm_on(_: Graph, node: Node, position: int, scale: Float64) -> Step:
    if position != 0:
        raise NoFold(f"Gemm {node.name!r} reads it as input {position}")
    values = _along(scale, 0 if node.attrs.get("transA", 0) else 1)
    return {1: values.reshape((1, -1) if node.attrs.get("transB", 0) else (-1, 1))}


def _conv_on(_: Graph, node: Node, position: int, scale: Float64) -> Step:
    """Weights are [output channels, input channels / group, …]; zeros for padding stay zeros."""
    if position != 0:
        raise NoFold(f"Conv {node.name!r} reads it as input {position}")
    return {1: _by_group(_along(scale, 1), node)}


def _conv_transpose_on(_: Graph, node: Node, position: int, scale: Float64) -> Step:
    if position != 0:
        raise NoFold(f"ConvTranspose {node.name!r} reads it as input {position}")
    return {1: _column(_along(scale, 1), node)}


def _product_on(graph: Graph, node: Node, position: int, scale: Float64) -> Step:
    if factor_position(graph, node) != 1 - position:
        raise NoFold(f"{node.op} {node.name!r} reads it beside another tensor")
    return _of_rank(scale, node)


def _transposed_on(_: Graph, node: Node, __: int, scale: Float64) -> Step:
    return np.transpose(scale, _order(node, scale.ndim))


def _reshaped_on(_: Graph, node: Node, __: int, scale: Float64) -> Step:
    return _reshaped(scale, dims_of(node.inputs[0]), dims_of(node.outputs[0]))


def _part_on(graph: Graph, node: Node, _: int, scale: Float64) -> Step:
    if len(node.outputs) != 1:
        raise NoFold(f"{node.op} {node.name!r} takes it apart")
    return parts_of(graph, node, scale)[0]


def _joined_on(_: Graph, node: Node, position: int, scale: Float64) -> Step:
    """The scale where the tensor comes in, and 1 for the others."""
    axis = node.attrs["axis"] % scale.ndim
    lengths = [length_of(tensor, axis) for tensor in node.inputs]
    shape = [sum(lengths) if a == axis else size for a, size in enumerate(scale.shape)]
    whole, first = np.ones(shape), sum(lengths[:position])
    whole[(*[slice(None)] * axis, slice(first, first + lengths[position]))] = scale
    return whole


# (graph, node, which input, its scale) -> the output's scale, or constant operands with theirs.
FORWARDS: dict[str, Callable[[Graph, Node, int, Float64], Step]] = {
    "MatMul": _matmul_on, "Gemm": _gemm_on, "Conv": _conv_on, "ConvTranspose": _conv_transpose_on,
    "Mul": _product_on, "Div": _product_on, "Concat": _joined_on, "Transpose": _transposed_on,
    **dict.fromkeys(RESHAPES, _reshaped_on), **dict.fromkeys(PARTS, _part_on),
}  # fmt: skip


# -- moving values ---------------------------------------------------------------------------------


def _of_rank(scale: Float64, node: Node) -> Float64:
    return scale.reshape((1,) * (len(dims_of(node.outputs[0])) - scale.ndim) + scale.shape)


def _order(node: Node, rank: int) -> list[int]:
    return list(node.attrs.get("perm", range(rank - 1, -1, -1)))


def _reshaped(scale: Float64, source: Dims, target: Dims) -> Float64:
    """The scale of a reshaped tensor: runs of axes with equal products hold the same numbers."""
    full, shape = list(scale.shape), [1] * len(target)
    left = {axis for axis in range(scale.ndim) if _varies(scale, axis)}
    for sources, targets in runs(source, target):
        if _varies(scale, *sources):
            for axis in sources:
                full[axis] = source[axis]
            for axis in targets:
                shape[axis] = target[axis]
            left -= set(sources)
    if left or not all(isinstance(size, int) for size in [*full, *shape]):
        raise NoFold(f"the scale can't be followed from {list(source)} to {list(target)}")
    return np.broadcast_to(scale, full).reshape(shape)


def parts_of(graph: Graph, node: Node, scale: Float64) -> list[Float64]:
    """The scales of what a Slice, Split or Gather takes of a tensor."""
    scales = []
    for output in range(len(node.outputs)):
        index = _index(graph, node, output)
        shape = list(scale.shape)
        for axis, place in enumerate(index):
            if place != slice(None):
                shape[axis] = length_of(node.inputs[0], axis)
        scales.append(np.broadcast_to(scale, shape)[index])
    return scales


def _index(graph: Graph, node: Node, output: int) -> tuple[slice | int, ...]:
    """What an output is of the input, as in NumPy."""
    source = node.inputs[0]
    index: list[slice | int] = [slice(None)] * len(dims_of(source))
    axis = node.attrs.get("axis", 0) % len(index)
    if node.op == "Gather":
        indices = graph.values(node.inputs[1])
        if indices is None or indices.size != 1 or indices.ndim > 1:
            raise NoFold(f"Gather {node.name!r} takes no single index")
        first = int(indices.reshape(-1)[0]) % length_of(source, axis)
        index[axis] = slice(first, first + 1) if indices.ndim else first
    elif node.op == "Split":
        edges = [0, *np.cumsum([length_of(tensor, axis) for tensor in node.outputs]).tolist()]
        index[axis] = slice(edges[output], edges[output + 1])
    else:
        takes = slice_takes(graph, node)
        if takes is None:
            raise NoFold(f"Slice {node.name!r} has computed or negative steps")
        for take in takes:
            if not take.is_whole(length_of(source, take.axis)):
                index[take.axis] = slice(take.start, take.stop, take.step)
    return tuple(index)
