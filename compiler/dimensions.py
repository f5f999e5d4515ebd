"""What is known of dynamic sizes: a number, or a product of names; equal texts are equal sizes.

onnx's shape inference gives a size that it can't name a new name, and never cancels: the heads of
`Reshape([batch, tokens, 48], [batch, tokens, -1, 12])` are unknown to it, and here they are 4. What
is computed in a way that nothing is known about is named after that computation, so that the same
computation of the same sizes has the same name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import onnx

from compiler.folding import FOLDS
from compiler.graph import Graph, Node, Tensor, export_node, static_shape
from compiler.weights import Array, onnx_type_of

# What computes sizes has an entry a dimension, or a few.
MAX_ENTRIES = 32
# Exporters write "to the end" as the greatest number of one of the integer types.
_END = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Size:
    """A dynamic size: `factor` times the sizes that `atoms` name, in order of their names."""

    factor: int
    atoms: tuple[str, ...]

    def __str__(self) -> str:
        return "·".join([*([] if self.factor == 1 else [str(self.factor)]), *self.atoms])

    def __mul__(self, other: Dim) -> Dim:
        other = Size(other, ()) if isinstance(other, int) else other
        return _size(self.factor * other.factor, [*self.atoms, *other.atoms])

    def __add__(self, other: Dim) -> Dim:
        return self if other == 0 else _expression("+", *sorted([self, other], key=str))

    def __sub__(self, other: Dim) -> Dim:
        return self if other == 0 else _expression("-", self, other)

    def __rsub__(self, other: Dim) -> Dim:
        return _expression("-", other, self)

    __rmul__ = __mul__
    __radd__ = __add__


Dim = int | Size
Dims = tuple[Dim, ...]


class Dimensions:
    """The sizes of every tensor of a graph, as they are now."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._dims: dict[str, Dims | None] = {}
        self._values: dict[str, Array] = {}
        self._named: dict[str, Size] = {}
        for tensor in [*graph.inputs, *graph.optional_inputs]:
            self._learn(tensor, [None] * len(tensor.shape or ()))
        for node in graph.nodes:
            self._visit(node)

    def of(self, tensor: Tensor) -> Dims | None:
        """The dimensions of a tensor; None if its rank is unknown."""
        if tensor.name not in self._dims and self._graph.is_constant(tensor):
            return static_shape(tensor)
        return self._dims.get(tensor.name)

    def value(self, tensor: Tensor) -> Array | None:
        """The values of a short vector of sizes, or of one size: numbers and sizes, as objects."""
        if tensor.name in self._values:
            return self._values[tensor.name]
        weight = self._graph.weight(tensor)
        if weight is None or weight.nbytes > MAX_ENTRIES * 8:
            return None
        values = weight.load()
        if values.ndim > 1 or values.dtype.kind not in "bi":
            return None
        return np.array([v.item() for v in values.reshape(-1)], object).reshape(values.shape)

    def _visit(self, node: Node) -> None:
        dims = None
        if not all(static_shape(output) is not None for output in node.outputs if output.name):
            rule = _RULES.get(node.op)
            dims = None if rule is None or node.domain else rule(self, node)
        inferred = {} if dims is not None else self._inferred(node)
        for position, output in enumerate(node.outputs):
            known = dims if position == 0 and dims is not None else inferred.get(output.name)
            self._learn(output, known)
        value = _value(self, node)
        if value is not None and value.ndim <= 1 and value.size <= MAX_ENTRIES:
            self._values[node.outputs[0].name] = value

    def _learn(self, tensor: Tensor, dims: Sequence[Dim | None] | None) -> None:
        """Takes dimensions over; a number that the graph has is better than a name."""
        stated = tensor.shape
        if dims is None and stated is None:
            self._dims[tensor.name] = None
            return
        if dims is None or (stated is not None and len(stated) != len(dims)):
            dims = [None] * len(stated)
        numbers = [None] * len(dims) if stated is None else stated
        self._dims[tensor.name] = tuple(
            int(number) if isinstance(number, int | np.integer)
            else dim if dim is not None
            else self._fresh(tensor, axis, number)
            for axis, (number, dim) in enumerate(zip(numbers, dims, strict=True))
        )  # fmt: skip

    def _fresh(self, tensor: Tensor, axis: int, name: object) -> Size:
        """A dynamic size of an input is what its name says; any other is named after its place."""
        given = [*self._graph.inputs, *self._graph.optional_inputs]
        is_input = any(tensor is one for one in given)
        return _size(1, [str(name) if is_input and name else f"{tensor.name}.{axis}"])  # type: ignore[return-value]

    def _inferred(self, node: Node) -> dict[str, list[Dim | None]]:
        """What onnx infers for one node, from the names that are known here."""
        version = self._graph.opsets.get(node.domain or "")
        if version is None or any(True for _ in node.subgraphs()):
            return {}
        types = {t.name: kind for t in node.inputs if t.name and (kind := self._type(t))}
        if len(types) < len({t.name for t in node.inputs if t.name}):
            return {}
        try:
            schema = onnx.defs.get_schema(node.op, version, node.domain or "")
            found = onnx.shape_inference.infer_node_outputs(
                schema, export_node(node), types, self._data(node)
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError):
            return {}
        return {name: [self._read(d) for d in kind.tensor_type.shape.dim]
                for name, kind in found.items() if kind.tensor_type.HasField("shape")}  # fmt: skip

    def _type(self, tensor: Tensor) -> onnx.TypeProto | None:
        dims = self.of(tensor)
        if dims is None or tensor.dtype is None:
            return None
        self._named |= {str(dim): dim for dim in dims if isinstance(dim, Size)}
        shape = [dim if isinstance(dim, int) else str(dim) for dim in dims]
        return onnx.helper.make_tensor_type_proto(onnx_type_of(tensor.dtype), shape)

    def _data(self, node: Node) -> dict[str, onnx.TensorProto]:
        weights = {t.name: w for t in node.inputs if (w := self._graph.weight(t)) is not None}
        return {
            name: onnx.numpy_helper.from_array(weight.load(), name)
            for name, weight in weights.items()
            if weight.nbytes <= MAX_ENTRIES * 8
        }

    def _read(self, dim: onnx.TensorShapeProto.Dimension) -> Dim | None:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        return self._named.get(dim.dim_param)


# -- sizes -----------------------------------------------------------------------------------------


def _size(factor: int, atoms: Sequence[str]) -> Dim:
    return Size(factor, tuple(sorted(atoms))) if atoms and factor else factor


def _expression(op: str, *parts: Dim | str) -> Dim:
    """A size of which only this is known: how it is computed."""
    return _size(1, [f"({f' {op} '.join(map(str, parts))})"])


def product(dims: Sequence[Dim]) -> Dim:
    """The number of values of a tensor."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def quotient(total: Dim, part: Dim) -> Dim | None:
    """total / part, where that is a product again."""
    above = Size(total, ()) if isinstance(total, int) else total
    below = Size(part, ()) if isinstance(part, int) else part
    if not below.factor or above.factor % below.factor:
        return None
    if Counter(below.atoms) - Counter(above.atoms):
        return None
    left = Counter(above.atoms) - Counter(below.atoms)
    return _size(above.factor // below.factor, list(left.elements()))


def _least(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return a if a == b else _expression("min", *sorted([a, b], key=str))


def _broadcast(a: Dim, b: Dim) -> Dim:
    """The size of two that broadcast: equal, or one of them 1."""
    for one, other in ((a, b), (b, a)):
        if one in (1, other) or (isinstance(other, int) and other > 1):
            return other
        if _is_capped(one, other):
            return other  # min(c, n) is n, or 1, or no size that broadcasts
    parts = {*_operands(a, "broadcast"), *_operands(b, "broadcast")}
    return _expression("broadcast", *sorted(parts))


def _is_capped(size: Dim, whole: Dim) -> bool:
    """Whether a size is min(c, whole) with a number c above 0."""
    parts = _operands(size, "min")
    caps = [part for part in parts if part.isdecimal() and int(part) > 0]
    return len(caps) == 1 and [part for part in parts if part not in caps] == [str(whole)]


def _operands(size: Dim, op: str) -> list[str]:
    """The texts that an expression of this kind joins; of any other size its own text."""
    text, depth, parts = str(size), 0, [""]
    if not (text.startswith("(") and text.endswith(")")):
        return [text]
    for word in text[1:-1].split(" "):
        if word == op and depth == 0:
            parts.append("")
        else:
            parts[-1] = f"{parts[-1]} {word}".strip()
            depth += word.count("(") - word.count(")")
            if depth < 0:  # the first parenthesis is not closed by the last: a product
                return [text]
    return parts if len(parts) > 1 else [text]


# -- the dimensions of an op's output --------------------------------------------------------------


def _reshape(known: Dimensions, node: Node) -> Dims | None:
    source, target = known.of(node.inputs[0]), known.value(node.inputs[1])
    if source is None or target is None or target.ndim != 1:
        return None
    copies = not node.attrs.get("allowzero", 0)
    entries = [source[k] if d == 0 and copies and k < len(source) else d
               for k, d in enumerate(target)]  # fmt: skip
    if entries.count(-1) == 1:
        total, rest = product(source), product([d for d in entries if d != -1])
        entries[entries.index(-1)] = _divided(total, rest)
    return None if None in entries or -1 in entries else tuple(entries)


def _expand(known: Dimensions, node: Node) -> Dims | None:
    source, target = known.of(node.inputs[0]), known.value(node.inputs[1])
    return None if source is None or target is None else _together([source, tuple(target)])


def _elementwise(known: Dimensions, node: Node) -> Dims | None:
    dims = [known.of(tensor) for tensor in node.inputs]
    return None if None in dims else _together(dims)  # type: ignore[arg-type]


def _together(shapes: Sequence[Dims]) -> Dims:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(dims)) + dims for dims in shapes]
    return tuple(reduce(_broadcast, axis) for axis in zip(*padded, strict=True))


def _slice(known: Dimensions, node: Node) -> Dims | None:
    dims, given = known.of(node.inputs[0]), [known.value(t) for t in node.inputs[1:] if t.name]
    if dims is None or len(given) < 2 or any(values is None for values in given):
        return None
    starts, ends, *rest = [values.tolist() for values in given]  # type: ignore[union-attr]
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    sliced = list(dims)
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(axis, int):
            return None
        sliced[axis] = _sliced(dims[axis], *cut)
    return tuple(sliced)


def _sliced(length: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    if all(isinstance(part, int) for part in (length, start, end, step)):
        return len(range(*slice(start, end, step).indices(length)))  # type: ignore[arg-type]
    if (start, step) == (0, 1) and (isinstance(end, Size) or end >= 0):
        return length if isinstance(end, int) and end >= _END else _least(length, end)
    return _expression("slice", length, start, end, step)


def _tile(known: Dimensions, node: Node) -> Dims | None:
    dims, repeats = known.of(node.inputs[0]), known.value(node.inputs[1])
    if dims is None or repeats is None or len(dims) != repeats.size:
        return None
    return tuple(size * count for size, count in zip(dims, repeats, strict=True))


def _filled(known: Dimensions, node: Node) -> Dims | None:
    shape = known.value(node.inputs[0])
    return None if shape is None else tuple(shape)


def _range(known: Dimensions, node: Node) -> Dims | None:
    start, limit, step = (known.value(tensor) for tensor in node.inputs)
    if start is None or limit is None or step is None or (start.item(), step.item()) != (0, 1):
        return None
    return (limit.item(),)


def _matmul(known: Dimensions, node: Node) -> Dims | None:
    a, b = (known.of(tensor) for tensor in node.inputs)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    return (*_together([a[:-2], b[:-2]]), a[-2], b[-1])


_Rule = Callable[[Dimensions, Node], Dims | None]
_ELEMENTWISE = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean",
    "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_RULES: dict[str, _Rule] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "ConstantOfShape": _filled,
    "MatMul": _matmul,
    "Range": _range,
    "Tile": _tile,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}

# -- values that are sizes -------------------------------------------------------------------------

# Of `folding`: movement and sums of integers, which hold of names as well.
_FOLDED = ("Add", "Concat", "Gather", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze",
           "Where")  # fmt: skip


def _value(known: Dimensions, node: Node) -> Array | None:
    """The sizes that a node computes; None if it computes something else."""
    if node.domain or len(node.outputs) != 1:
        return None
    if node.op in ("Shape", "Size"):
        return _value_of_shape(known, node)
    values = [known.value(tensor) for tensor in node.inputs if tensor.name]
    if not values or any(value is None for value in values):
        return None
    result = _of_values(node, values)  # type: ignore[arg-type]
    array = np.asarray(result, object)
    return None if result is None or any(v is None for v in array.reshape(-1)) else array


def _of_values(node: Node, values: list[Array]) -> Any:
    if node.op in ("Cast", "Identity"):
        is_float = node.op == "Cast" and onnx_type_of(node.attrs["to"]) not in _INTEGERS
        return None if is_float else values[0]
    function = _EXACT.get(node.op)
    if function is not None:
        return np.frompyfunc(function, 2, 1)(*values) if len(values) == 2 else None
    if node.op not in _FOLDED:
        return None
    plain = _NUMBERS.get(node.op, slice(0))
    if any(isinstance(v, Size) for value in values[plain] for v in value.reshape(-1)):
        return None
    values[plain] = [v.astype(bool if node.op == "Where" else np.int64) for v in values[plain]]
    return FOLDS[node.op](node, values)


def _value_of_shape(known: Dimensions, node: Node) -> Array | None:
    dims = known.of(node.inputs[0])
    if dims is None:
        return None
    if node.op == "Size":
        return np.array(product(dims), object)
    return np.array([*dims[node.attrs.get("start", 0) : node.attrs.get("end")], None], object)[:-1]


def _equals(a: Any, b: Any) -> bool | None:
    """Whether two sizes are equal; None if that depends. A size is never negative."""
    if isinstance(a, Size) or isinstance(b, Size):
        is_negative = any(isinstance(x, int) and x < 0 for x in (a, b))
        return True if a == b else False if is_negative else None
    return bool(a == b)


def _divided(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a >= 0 and b > 0 else None
    exact = quotient(a, b)
    return _expression("/", a, b) if exact is None else exact


_EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "Div": _divided,
    "Equal": _equals,
    "Min": _least,
}
# Which inputs have to be numbers: indices and axes, and the condition of a Where.
_NUMBERS = {
    **dict.fromkeys(("Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"), slice(1, None)),
    "Where": slice(1),
}
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)

__all__ = ["Dim", "Dimensions", "Dims", "Size", "product", "quotient"]
