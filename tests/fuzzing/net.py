"""A network that is written down op by op, as torch would: values know their shapes.

How constants are stored and how dynamic shapes are spelled are matters of style, drawn once a net.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Size(int):
    """A size that the model does not say: a number with a name, `batch` or `batch*heads`."""

    name: str

    def __new__(cls, value: int, name: str) -> "Size":
        size = super().__new__(cls, value)
        size.name = name
        return size


def product(sizes: Sequence[int]) -> int:
    """The product, with a name if any factor has one."""
    value = math.prod(int(size) for size in sizes)
    names = [s.name if isinstance(s, Size) else str(s) for s in sizes if s != 1 or is_dynamic(s)]
    return Size(value, "*".join(names)) if any(map(is_dynamic, sizes)) else value


def is_dynamic(size: int) -> bool:
    return isinstance(size, Size)


@dataclass(frozen=True)
class Value:
    """A tensor of the network."""

    name: str
    shape: tuple[int, ...]
    type: int = TensorProto.FLOAT

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Style:
    """How the same network may be written down."""

    opset: int = 17
    constants: str = "initializer"  # or "node"
    weights: str = "plain"  # or "transposed", "float16", "identity"
    shapes: str = "copied"  # 0 and -1 for dynamic sizes; or "computed" from Shape


class Net:
    """Nodes in the order in which they are asked for."""

    def __init__(self, style: Style, seed: int) -> None:
        self.style = style
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.values: list[Value] = []
        self._weights: dict[object, Value] = {}
        self._where: dict[str, tuple[Value, int]] = {}
        self._count = 0

    # -- leaves ------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> Value:
        """A graph input; asked for twice it is the same."""
        if name not in self.inputs:
            self.inputs[name] = self._seen(Value(name, tuple(shape), kind))
        return self.inputs[name]

    def output(self, value: Value, name: str | None = None) -> None:
        """A graph output: the value itself, or a second consumer of it under another name."""
        if name is not None:
            value = self.op("Neg", [value], value.shape, name=name)
        self.outputs[value.name] = value

    def constant(self, values: object, dtype: object = np.float32) -> Value:
        """A constant, as an initializer or a Constant node."""
        array = np.asarray(values, dtype)
        tensor = numpy_helper.from_array(array, self._fresh("constant"))
        if self.style.constants == "node":
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.initializers[tensor.name] = tensor
        return Value(tensor.name, array.shape, tensor.data_type)

    def ints(self, *values: int) -> Value:
        return self.constant([int(v) for v in values], np.int64)

    def weight(self, key: object, *shape: int, spread: float | None = None) -> Value:
        """A random weight, stored as the style says; the same key gives the same one again."""
        if key not in self._weights:
            scale = 1 / math.sqrt(shape[-2]) if spread is None and len(shape) > 1 else spread or 0.5
            values = scale * self.rng.standard_normal([int(d) for d in shape])
            self._weights[key] = self._stored(values)
        return self._weights[key]

    def _stored(self, values: np.ndarray) -> Value:
        if self.style.weights == "float16":
            return self.cast(self.constant(values, np.float16), TensorProto.FLOAT)
        if self.style.weights == "transposed" and values.ndim >= 2:
            perm = list(range(values.ndim))[::-1]
            return self.transpose(self.constant(values.transpose(perm)), perm)
        if self.style.weights == "identity":
            constant = self.constant(values)
            return self.op("Identity", [constant], constant.shape)
        return self.constant(values)

    # -- ops ---------------------------------------------------------------------------------------

    def op(
        self, kind: str, inputs: Sequence[Value | None], shape: Sequence[int], *,
        type_: int | None = None, name: str | None = None, **attributes: object,
    ) -> Value:  # fmt: skip
        """A node with one output."""
        first = next((v.type for v in inputs if v is not None), TensorProto.FLOAT)
        result = Value(name or self._fresh(kind.lower()), tuple(shape), type_ or first)
        names = ["" if v is None else v.name for v in inputs]
        self.nodes.append(helper.make_node(kind, names, [result.name], **attributes))
        return self._seen(result)

    def binary(self, kind: str, a: Value, b: Value | float, type_: int | None = None) -> Value:
        """Add, Mul …, with broadcasting."""
        b = b if isinstance(b, Value) else self.constant(b)
        return self.op(kind, [a, b], broadcast(a.shape, b.shape), type_=type_)

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        shape = broadcast(broadcast(condition.shape, a.shape), b.shape)
        return self.op("Where", [condition, a, b], shape, type_=a.type)

    def unary(self, kind: str, x: Value, **attributes: object) -> Value:
        return self.op(kind, [x], x.shape, **attributes)

    def cast(self, x: Value, to: int) -> Value:
        return self.op("Cast", [x], x.shape, type_=to, to=to)

    def matmul(self, a: Value, b: Value) -> Value:
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.op("MatMul", [a, b], shape)

    def einsum(self, equation: str, *values: Value) -> Value:
        terms, _, result = equation.partition("->")
        sizes = {
            label: size
            for term, value in zip(terms.split(","), values, strict=True)
            for label, size in zip(term, value.shape, strict=True)
        }
        return self.op("Einsum", values, [sizes[label] for label in result], equation=equation)

    def softmax(self, x: Value) -> Value:
        return self.unary("Softmax", x, axis=-1)

    def reduce(self, kind: str, x: Value, axis: int, keepdims: int = 1) -> Value:
        axis %= x.rank
        kept = (1,) if keepdims else ()
        shape = (*x.shape[:axis], *kept, *x.shape[axis + 1 :])
        if self.style.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, [x, self.ints(axis)], shape, keepdims=keepdims)
        return self.op(kind, [x], shape, axes=[axis], keepdims=keepdims)

    def layer_norm(self, x: Value, key: object) -> Value:
        gain, shift = (self.weight((key, part), x.shape[-1]) for part in ("gain", "shift"))
        return self.op("LayerNormalization", [x, gain, shift], x.shape, axis=-1)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if list(perm) == sorted(perm):
            return x
        return self.op("Transpose", [x], [x.shape[axis] for axis in perm], perm=list(perm))

    def unsqueeze(self, x: Value, *axes: int) -> Value:
        shape = list(x.shape)
        for axis in sorted(axes):
            shape.insert(axis, 1)
        return self.op("Unsqueeze", [x, self.ints(*axes)], shape)

    def squeeze(self, x: Value, axis: int) -> Value:
        axis %= x.rank
        return self.op("Squeeze", [x, self.ints(axis)], [*x.shape[:axis], *x.shape[axis + 1 :]])

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
        axis %= x.rank
        names = [self._fresh("part") for _ in sizes]
        lengths = self.ints(*sizes)
        node = helper.make_node("Split", [x.name, lengths.name], names, axis=axis)
        self.nodes.append(node)
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return [self._seen(Value(n, s, x.type)) for n, s in zip(names, shapes, strict=True)]

    def slice(self, x: Value, start: int, stop: int, axis: int) -> Value:
        axis %= x.rank
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        bounds = [self.ints(value) for value in (start, stop, axis)]
        return self.op("Slice", [x, *bounds], shape)

    def gather(self, x: Value, indices: int | Sequence[int] | Value, axis: int) -> Value:
        axis %= x.rank
        chosen = indices if isinstance(indices, Value) else self.constant(indices, np.int64)
        shape = (*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :])
        return self.op("Gather", [x, chosen], shape, axis=axis)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        first = values[0]
        axis %= first.rank
        sizes = [value.shape[axis] for value in values]
        total: int = sum(int(size) for size in sizes)
        if any(map(is_dynamic, sizes)):
            names = (s.name if isinstance(s, Size) else str(s) for s in sizes)
            total = Size(total, "and".join(names))
        return self.op("Concat", values, [*first.shape[:axis], total, *first.shape[axis + 1 :]],
                       axis=axis)  # fmt: skip

    # -- shapes ------------------------------------------------------------------------------------

    def reshape(self, x: Value, *shape: int) -> Value:
        """A Reshape to sizes that may be dynamic."""
        if self.style.shapes == "computed" and any(map(is_dynamic, shape)):
            return self.op("Reshape", [x, self.shape(*shape)], shape)
        written = [
            size if not is_dynamic(size) else 0 if _is_kept(x, axis, size) else -1
            for axis, size in enumerate(shape)
        ]
        if written.count(-1) > 1:
            return self.op("Reshape", [x, self.shape(*shape)], shape)
        return self.op("Reshape", [x, self.ints(*written)], shape)

    def shape(self, *sizes: int) -> Value:
        """A vector of sizes, computed where they are dynamic."""
        if not any(map(is_dynamic, sizes)):
            return self.ints(*sizes)
        return self.concat([self._length(size) for size in sizes], 0)

    def _length(self, size: int) -> Value:
        if not isinstance(size, Size):
            return self.ints(size)
        if size.name in self._where:
            value, axis = self._where[size.name]
            shape = self.op("Shape", [value], [value.rank], type_=TensorProto.INT64)
            return self.gather(shape, [axis], 0)
        factors = [
            self.ints(int(name)) if name.isdecimal() else self._length(Size(0, name))
            for name in size.name.split("*")
        ]
        total = factors[0]
        for factor in factors[1:]:
            total = self.binary("Mul", total, factor)
        return total

    # -- the model ---------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        """The network as a checked model."""
        graph = helper.make_graph(
            self.nodes, "g", [_declared(v) for v in self.inputs.values()],
            [_declared(v) for v in self.outputs.values()], list(self.initializers.values()),
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.style.opset)]
        version = 8 if self.style.opset < 20 else 10
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _fresh(self, wish: str) -> str:
        self._count += 1
        return f"{wish}_{self._count}"

    def _seen(self, value: Value) -> Value:
        for axis, size in enumerate(value.shape):
            if isinstance(size, Size) and "*" not in size.name:
                self._where.setdefault(size.name, (value, axis))
        if value.type == TensorProto.FLOAT:
            self.values.append(value)
        return value


def broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """NumPy's rule; a dynamic size wins over a number."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True)
    return tuple(x if is_dynamic(x) or (not is_dynamic(y) and x != 1) else y for x, y in pairs)


def _is_kept(x: Value, axis: int, size: Size) -> bool:
    here = x.shape[axis] if axis < x.rank else 1
    return isinstance(here, Size) and here.name == size.name


def _declared(value: Value) -> onnx.ValueInfoProto:
    # What is computed from dynamic sizes has no name of its own in a model.
    shape = [
        (s.name if s.name.isidentifier() else None) if isinstance(s, Size) else int(s)
        for s in value.shape
    ]
    return helper.make_tensor_value_info(value.name, value.type, shape)
