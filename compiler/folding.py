"""Constants folded in NumPy: data movement as views of the mapped weights, arithmetic in float64.

onnxsim folds in float32 through onnxruntime and copies every weight on the way; here an exported
`Transpose(weight)` costs nothing, and what arithmetic there is gets rounded once.

Where a function jumps (Cast to integers, Ceil, a comparison) float64 could land on the other side
of the step than the model's own type does: `Ceil(7 · 1.1428572)` is 9 in float64 and 8 in float32.
Such a node is folded only where no rounding of its inputs can matter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from compiler.graph import Graph, Node, make_constant
from compiler.weights import Array, NewWeight, Weight, is_float, onnx_type_of

# A folded constant may not outgrow what it was made from by more than this: an Expand to the size
# of an attention mask would put megabytes into the file that one op makes at no cost.
MAX_GROWTH_NBYTES = 1 << 20

# A chain of float operations on constants may be off by this many roundings of its type.
ROUNDINGS = 64

Fold = Callable[[Node, list[Array]], Array | None]


class Folded(NewWeight):
    """A folded constant; `is_precise` if its own type computes the very same value."""

    def __init__(self, values: Array, dtype: Any, how: str, *, is_precise: bool) -> None:
        super().__init__(values, dtype, how)
        self.is_precise = is_precise


def fold_constants(graph: Graph) -> None:
    """Replaces, in place, every node whose inputs are all constant and whose op is known here.

    The Shape of a tensor counts as constant where the sizes are known.
    """
    kept = []
    for node in graph.nodes:
        weight = None if _is_kept(graph, node) else _folded(graph, node)
        if weight is None:
            kept.append(node)
        else:
            make_constant(node, weight)
    graph.ir.nodes = kept


def _is_kept(graph: Graph, node: Node) -> bool:
    return len(node.outputs) != 1 or graph.is_output(node.outputs[0]) or bool(node.domain)


def _folded(graph: Graph, node: Node) -> Weight | None:
    """The value of a node's output; None if it isn't constant, or the op isn't known."""
    if node.op in ("Constant", "Identity"):
        return graph.weight(node.outputs[0] if node.op == "Constant" else node.inputs[0])
    sizes = _sizes(node) if node.op == "Shape" else None
    if sizes is not None:
        return Folded(sizes, np.dtype(np.int64), _how(graph, node), is_precise=True)
    fold = FOLDS.get(node.op)
    if fold is None or not all(graph.is_constant(t) for t in node.inputs if t.name):
        return None
    weights = [weight for t in node.inputs if (weight := graph.weight(t)) is not None]
    arrays = [w.unrounded() if node.op in _MOVES else w.exact() for w in weights]
    with np.errstate(all="ignore"):
        values = fold(node, arrays)
        if values is not None and _jumps(node, weights) and not _is_certain(node, weights, values):
            return None
    grown = 0 if values is None else values.nbytes - sum(array.nbytes for array in arrays)
    if values is None or grown > MAX_GROWTH_NBYTES:
        return None
    dtype = values.dtype if node.outputs[0].dtype is None else node.outputs[0].dtype
    precise = all(map(_is_precise, weights)) and _is_exact(node, values, dtype)
    return Folded(values, dtype, _how(graph, node), is_precise=precise)


def _sizes(node: Node) -> Array | None:
    """What a Shape gives, if the shape of its input says so."""
    shape = node.inputs[0].shape
    sizes = None if shape is None else shape[node.attrs.get("start", 0) : node.attrs.get("end")]
    if sizes is None or not all(isinstance(size, int | np.integer) for size in sizes):
        return None
    return np.array(sizes, np.int64)


def _jumps(node: Node, weights: list[Weight]) -> bool:
    """Whether a small change of the inputs can change the output as a whole."""
    if node.op == "Cast" and is_float(onnx_type_of(node.attrs["to"])):
        return False
    return node.op in _STEPS and any(is_float(onnx_type_of(w.dtype)) for w in weights)


def _is_certain(node: Node, weights: list[Weight], values: Array) -> bool:
    """Whether a step's inputs are exactly known, or far from the step."""
    if all(map(_is_precise, weights)):
        return True
    for signs in ((1, -1), (-1, 1)):
        moved = [_moved(w, sign) for w, sign in zip(weights, signs, strict=False)]
        if not np.array_equal(FOLDS[node.op](node, moved), values):  # type: ignore[arg-type]
            return False
    return True


def _moved(weight: Weight, sign: int) -> Array:
    values = weight.exact()
    if _is_precise(weight):
        return values
    storage = onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(weight.dtype))
    step = ROUNDINGS * float(ml_dtypes.finfo(storage).eps)  # type: ignore[no-untyped-call]
    return np.asarray(values + sign * step * np.maximum(np.abs(values), step))


def _is_precise(weight: Weight) -> bool:
    """Whether the model itself computes this value to the last bit: it is given, or an integer."""
    return not isinstance(weight, Folded) or weight.is_precise


def _is_exact(node: Node, values: Array, dtype: Any) -> bool:
    """Whether the storage type holds the values, and the op in that type gives them."""
    storage = onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(dtype))
    with np.errstate(all="ignore"):
        held = np.array_equal(values.astype(storage).astype(values.dtype), values)
    return node.op not in _APPROXIMATE and held


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
    if not np.isfinite(inputs[0].astype(np.float64)).all():
        return None  # no integer is meant
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


def _fold_left(function: Callable[[Any, Any], Any]) -> Fold:
    return lambda _node, inputs: np.asarray(reduce(function, inputs))


def _reduce(function: Callable[..., Any]) -> Fold:
    def fold(node: Node, inputs: list[Array]) -> Array | None:
        axes = _axes(node, inputs)
        if not axes and node.attrs.get("noop_with_empty_axes", 0):
            return inputs[0]
        keep = bool(node.attrs.get("keepdims", 1))
        result = function(inputs[0], axis=axes or None, keepdims=keep)
        return np.asarray(result, inputs[0].dtype)

    return fold


def _range(node: Node, inputs: list[Array]) -> Array | None:
    start, limit, delta = (x.reshape(()) for x in inputs)
    if not np.issubdtype(start.dtype, np.integer) or not delta:
        return None  # how many floats there are depends on their rounding
    if abs(int(limit) - int(start)) // abs(int(delta)) * start.itemsize > MAX_GROWTH_NBYTES:
        return None
    return np.arange(int(start), int(limit), int(delta), dtype=start.dtype)


def _mod(node: Node, inputs: list[Array]) -> Array | None:
    a, b = inputs
    if node.attrs.get("fmod", 0) or not np.issubdtype(a.dtype, np.integer) or (b == 0).any():
        return None
    return np.asarray(np.mod(a, b))


def _trilu(node: Node, inputs: list[Array]) -> Array:
    k = int(inputs[1].reshape(())) if len(inputs) > 1 else 0
    return np.triu(inputs[0], k) if node.attrs.get("upper", 1) else np.tril(inputs[0], k)


def _gather_elements(node: Node, inputs: list[Array]) -> Array:
    data, indices = inputs
    axis = node.attrs.get("axis", 0) % data.ndim
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return np.asarray(data[tuple(grid)])


def _gather_nd(node: Node, inputs: list[Array]) -> Array | None:
    if node.attrs.get("batch_dims", 0):
        return None
    return np.asarray(inputs[0][tuple(np.moveaxis(inputs[1], -1, 0))])


def _scatter_nd(node: Node, inputs: list[Array]) -> Array | None:
    if node.attrs.get("reduction", "none") != "none":
        return None
    data, indices, updates = inputs
    result = data.copy()
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


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
    "Tile": _numpy(lambda data, repeats: np.tile(data, tuple(int(r) for r in repeats))),
    "Trilu": _trilu,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ConstantOfShape": _constant_of_shape,
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
    "Log": _numpy(np.log),
    "Exp": _numpy(np.exp),
    "Abs": _numpy(np.abs),
    "Sign": _numpy(np.sign),
    "Ceil": _numpy(np.ceil),
    "Floor": _numpy(np.floor),
    "Round": _numpy(np.rint),
    "Min": _fold_left(np.minimum),
    "Max": _fold_left(np.maximum),
    "Mod": _mod,
    "Range": _range,
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
    "ReduceMin": _reduce(np.min),
    "ReduceMax": _reduce(np.max),
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
_STEPS = {"Cast", "Ceil", "Floor", "Round", "Sign",
          "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}  # fmt: skip
# The others give a value that their type holds; IEEE 754, and every pow that is any good.
_APPROXIMATE = {"Log", "Exp", "ReduceSum", "ReduceProd"}
