"""Constants folded in NumPy: data movement as views of the mapped weights, arithmetic in float64.

onnxsim folds in float32 through onnxruntime and copies every weight on the way; here an exported
`Transpose(weight)` costs nothing, and what arithmetic there is gets rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from compiler.graph import Graph, Node
from compiler.weights import Array, NewWeight, Weight, is_float, onnx_type_of

# A folded constant may not outgrow what it was made from by more than this: an Expand to the size
# of an attention mask would put megabytes into the file that one op makes at no cost.
MAX_GROWTH_NBYTES = 1 << 20

Fold = Callable[[Node, list[Array]], Array | None]


def fold_constants(graph: Graph) -> None:
    """Replaces, in place, every node whose inputs are all constant and whose op is known here."""
    kept = []
    for node in graph.nodes:
        weight = None if _is_kept(graph, node) else _folded(graph, node)
        if weight is None:
            kept.append(node)
            continue
        tensor = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        tensor.to_constant(np.zeros(0))
        tensor._values = weight
    graph.ir.nodes = kept


def _is_kept(graph: Graph, node: Node) -> bool:
    return len(node.outputs) != 1 or graph.is_output(node.outputs[0]) or bool(node.domain)


def _folded(graph: Graph, node: Node) -> Weight | None:
    """The value of a node's output; None if it isn't constant, or the op isn't known."""
    if node.op in ("Constant", "Identity"):
        return graph.weight(node.outputs[0] if node.op == "Constant" else node.inputs[0])
    fold = FOLDS.get(node.op)
    if fold is None or not all(graph.is_constant(t) for t in node.inputs if t.name):
        return None
    weights = [weight for t in node.inputs if (weight := graph.weight(t)) is not None]
    arrays = [w.unrounded() if node.op in _MOVES else w.exact() for w in weights]
    values = fold(node, arrays)
    grown = 0 if values is None else values.nbytes - sum(array.nbytes for array in arrays)
    if values is None or grown > MAX_GROWTH_NBYTES:
        return None
    dtype = node.outputs[0].dtype
    return NewWeight(values, values.dtype if dtype is None else dtype, _how(graph, node))


def _how(graph: Graph, node: Node) -> str:
    weights = [graph.weight(t) for t in node.inputs]
    names = [w.how if isinstance(w, NewWeight) else t.name
             for w, t in zip(weights, node.inputs, strict=True)]  # fmt: skip
    return f"{node.op}({', '.join(names)})"[:200]  # a long history is for no one to read


def _transpose(node: Node, inputs: list[Array]) -> Array:
    return inputs[0].transpose(node.attrs.get("perm"))


def _reshape(node: Node, inputs: list[Array]) -> Array | None:
    data, shape = inputs
    if node.attrs.get("allowzero", 0):
        return None
    target = [data.shape[k] if d == 0 else int(d) for k, d in enumerate(shape)]
    return data.reshape(target)


def _axes(node: Node, inputs: list[Array]) -> tuple[int, ...] | None:
    axes = node.attrs.get("axes", inputs[1] if len(inputs) > 1 else None)
    return None if axes is None else tuple(int(a) for a in axes)


def _unsqueeze(node: Node, inputs: list[Array]) -> Array:
    axes = _axes(node, inputs)
    assert axes is not None
    return np.expand_dims(inputs[0], axes)


def _squeeze(node: Node, inputs: list[Array]) -> Array:
    return np.squeeze(inputs[0], _axes(node, inputs))


def _concat(node: Node, inputs: list[Array]) -> Array:
    return np.concatenate(inputs, axis=node.attrs["axis"])


def _gather(node: Node, inputs: list[Array]) -> Array:
    return np.take(inputs[0], inputs[1], axis=node.attrs.get("axis", 0))


def _expand(node: Node, inputs: list[Array]) -> Array:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(d) for d in inputs[1]))
    return np.broadcast_to(inputs[0], shape)


def _slice(node: Node, inputs: list[Array]) -> Array | None:
    if len(inputs) < 3:
        return None
    data, starts, ends, *rest = inputs
    axes = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
    index: list[Any] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    sliced: Array = data[tuple(index)]
    return sliced


def _cast(node: Node, inputs: list[Array]) -> Array | None:
    target = onnx_type_of(node.attrs["to"])
    if is_float(target):
        return inputs[0].astype(np.float64)
    return inputs[0].astype(onnx.helper.tensor_dtype_to_np_dtype(target))


def _div(node: Node, inputs: list[Array]) -> Array | None:
    a, b = inputs
    if np.issubdtype(a.dtype, np.integer):
        # ONNX truncates, NumPy floors; shape arithmetic is never negative.
        return None if (a < 0).any() or (b <= 0).any() else a // b
    return a / b


def _constant_of_shape(node: Node, inputs: list[Array]) -> Array:
    value = node.attrs.get("value")
    fill = np.float32(0) if value is None else value.values.reshape(-1)[0]
    return np.broadcast_to(fill, tuple(int(d) for d in inputs[0]))


def _numpy(function: Callable[..., Any]) -> Fold:
    return lambda _node, inputs: np.asarray(function(*inputs))


_MOVES = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "Slice": _slice,
    "Where": _numpy(np.where),
    "ConstantOfShape": _constant_of_shape,
    "Shape": lambda node, inputs: np.array(
        inputs[0].shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64
    ),
}
FOLDS: dict[str, Fold] = {
    **_MOVES,
    "Cast": _cast,
    "Add": _numpy(np.add),
    "Sub": _numpy(np.subtract),
    "Mul": _numpy(np.multiply),
    "Div": _div,
    "Neg": _numpy(np.negative),
    "Sqrt": _numpy(np.sqrt),
    "Pow": _numpy(np.power),
    "Reciprocal": _numpy(lambda a: 1.0 / a),
    "Equal": _numpy(np.equal),
    "Greater": _numpy(np.greater),
    "GreaterOrEqual": _numpy(np.greater_equal),
    "Less": _numpy(np.less),
    "LessOrEqual": _numpy(np.less_equal),
    "And": _numpy(np.logical_and),
    "Or": _numpy(np.logical_or),
    "Not": _numpy(np.logical_not),
}
