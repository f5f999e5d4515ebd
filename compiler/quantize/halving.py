"""A graph in float16, but for nodes that keep float32, and for what ONNX has in float32 only."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from compiler.graph import Graph, Node, Tensor, producer_of
from compiler.weights import Array, NewWeight

_FLOAT16, _FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
_LIMITS = np.finfo(np.float16)
# They make floats of a type that an attribute says, or hold graphs: they stay as they are.
_UNTOUCHED = frozenset({
    "Bernoulli", "Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "If", "Loop",
    "Multinomial",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Scan",
    "SequenceEmpty",
})  # fmt: skip


def halved(graph: Graph, kept: Collection[str]) -> Graph:
    """A copy in float16 with the same inputs and outputs; nodes named in `kept` keep float32.

    A tensor has the type of what computes it, and is cast for whoever needs another one; a weight
    is stored in each type that is read.
    """
    result = graph.copy()
    casts: dict[tuple[int, np.dtype[np.generic]], Tensor] = {}
    for node in list(result.nodes):
        reads, makes = _wanted(result, node, kept)
        for position, tensor in enumerate(node.inputs):
            wanted = reads[position]
            if tensor.dtype in (_FLOAT16, _FLOAT32) and tensor.dtype != wanted:
                key = (id(tensor), wanted)
                if key not in casts:
                    casts[key] = _as_type(result, tensor, wanted)
                node.inputs[position] = casts[key]
        for position, tensor in enumerate(node.outputs):
            if tensor.dtype == _FLOAT32 and makes[position] == _FLOAT16:
                _narrow(result, node, position, casts)
    result.sort()
    return result


def _narrow(
    graph: Graph, node: Node, position: int, casts: dict[tuple[int, np.dtype[np.generic]], Tensor]
) -> None:
    """Lets a node make float16; an output of the graph is cast back, under its name."""
    tensor = node.outputs[position]
    if not graph.is_output(tensor):
        tensor.dtype = _FLOAT16
        return
    narrow = gs.Variable(graph.fresh_name(f"{tensor.name}/float16"), _FLOAT16, tensor.shape)
    node.outputs[position] = narrow
    casts[id(tensor), _FLOAT16] = narrow
    _add_cast(graph, narrow, tensor)


def _wanted(
    graph: Graph, node: Node, kept: Collection[str]
) -> tuple[list[np.dtype[np.generic]], list[np.dtype[np.generic]]]:
    """The float types that a node reads and makes, by position."""
    known = (not node.domain or node.domain == "ai.onnx") and node.op not in _UNTOUCHED
    if node.name in kept or not known or not onnx.defs.has(node.op):
        return [_FLOAT32] * len(node.inputs), [_FLOAT32] * len(node.outputs)
    schema = onnx.defs.get_schema(node.op, graph.opset)
    sides = ((schema.inputs, node.inputs), (schema.outputs, node.outputs))
    reads, makes = (
        [_type_of(formals[min(i, len(formals) - 1)]) for i in range(len(actual))]
        for formals, actual in sides
    )
    return reads, makes


def _type_of(formal: onnx.defs.OpSchema.FormalParameter) -> np.dtype[np.generic]:
    return _FLOAT16 if "tensor(float16)" in formal.types else _FLOAT32


def _as_type(graph: Graph, tensor: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    """The tensor in another float type: a weight again, or behind a Cast."""
    name = graph.fresh_name(f"{tensor.name}/{dtype}")
    values = graph.values(tensor)
    if values is not None:
        rounded = _rounded(values) if dtype == _FLOAT16 else values.astype(_FLOAT32)
        return gs.Constant(name, NewWeight(rounded, dtype, f"{tensor.name} as {dtype}"))
    result = gs.Variable(name, dtype, tensor.shape)
    _add_cast(graph, tensor, result)
    return result


def _rounded(values: Array) -> Array:
    """Float16 of float32: what is too large is the largest number, what is not 0 is not 0."""
    limit, least = float(_LIMITS.max), float(_LIMITS.smallest_subnormal)
    clipped = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    rounded = clipped.astype(_FLOAT16)
    lost = (rounded == 0) & (values != 0)
    return np.where(lost, np.copysign(least, values).astype(_FLOAT16), rounded)


def _add_cast(graph: Graph, source: Tensor, result: Tensor) -> None:
    kind = TensorProto.FLOAT16 if result.dtype == _FLOAT16 else TensorProto.FLOAT
    cast = gs.Node("Cast", graph.fresh_name(f"{result.name}/Cast"), {"to": kind},
                   [source], [result])  # fmt: skip
    made_by = producer_of(source)
    graph.nodes.insert(0 if made_by is None else len(graph.nodes), cast)
