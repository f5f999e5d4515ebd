"""Numbers for tensors: equal numbers, on either side, mean equal computations, names aside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import onnx

from compiler.components import meaning
from compiler.diff.side import Side, meaningful_attributes
from compiler.weights import Array, Weight

# So many bytes tell most weights apart, before whole ones are compared.
_SAMPLED_NBYTES = 1024
ABSENT = -1


class Numbers:
    """Hands out numbers for keys: the same key has the same number in both models."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._weights: dict[Hashable, list[tuple[int, Array]]] = defaultdict(list)

    def of(self, *key: Hashable) -> int:
        """The number of a key."""
        return self._known.setdefault(key, len(self._known))

    def of_weight(self, weight: Weight) -> int:
        """The number of a weight's type, shape and bytes; each weight is read about once."""
        source = getattr(weight, "source", None)
        kind = (str(weight.dtype), tuple(weight.shape))
        if source is not None and ("weight", kind, source) in self._known:
            return self._known["weight", kind, source]
        values = _as_bytes(weight.load())
        sample = values[:: max(1, values.size // _SAMPLED_NBYTES)].tobytes()
        alike = self._weights[kind, sample]
        number = next((n for n, other in alike if np.array_equal(values, other)), None)
        if number is None:
            number = self.of("weight", kind, sample, len(alike))
            alike.append((number, values))
        if source is not None:
            self._known["weight", kind, source] = number
        return number


def _as_bytes(values: Array) -> Array:
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype == object:
        return np.frombuffer(repr(flat.tolist()).encode(), np.uint8)
    return flat.view(np.uint8)


class Numbered:
    """A side with the number of every tensor, and of what every node does to its operands."""

    def __init__(self, side: Side, numbers: Numbers, inputs: Mapping[str, Hashable]) -> None:
        """Numbers a side.

        Args:
            side: one model.
            numbers: shared by both sides.
            inputs: what each graph input is called for both.
        """
        self.side, self._numbers = side, numbers
        self.weights = {name: numbers.of_weight(w) for name, w in side.weights.items()}
        self.tensors = {name: numbers.of("input", key) for name, key in inputs.items()}
        self.tensors |= self.weights
        self.ops = [self._whole_op(i) for i in range(len(side.nodes))]
        self.values: list[int] = []
        for i, node in enumerate(side.nodes):
            reads = tuple(self.tensors.get(name, ABSENT) for name in side.reads[i])
            self.values.append(numbers.of("node", self.ops[i], reads))
            for j, name in enumerate(node.output):
                self.tensors[name] = numbers.of("output", self.values[i], j)

    def local(self, i: int) -> tuple[int, tuple[int, ...]]:
        """What a node does, up to the tensors that it reads: its op, and its weights' numbers."""
        return self.ops[i], tuple(self.weights.get(name, ABSENT) for name in self.side.reads[i])

    def _whole_op(self, i: int) -> int:
        """The number of a node's op; what its bodies capture counts by its position."""
        slots: dict[str, int] = {}
        for k, name in enumerate(self.side.reads[i]):
            slots.setdefault(name, self._numbers.of("slot", k))
        return self._op(self.side.nodes[i], slots, 0)

    def _op(self, node: onnx.NodeProto, known: Mapping[str, int], level: int) -> int:
        """The number of an operator in its version, with its attributes and bodies."""
        attributes = meaningful_attributes(node, self.side.opsets)
        plain = tuple(_plain(a) for a in attributes if not _bodies(a))
        bodies = tuple(
            (a.name, tuple(self._body(body, known, level + 1) for body in _bodies(a)))
            for a in attributes
            if _bodies(a)
        )
        outputs = tuple(bool(name) for name in node.output)
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self.side.functions.get((node.domain, node.op_type))
        called = None if function is None else function.SerializeToString(deterministic=True)
        version = meaning(node, self.side.opsets)
        return self._numbers.of("op", node.op_type, domain, version, plain, bodies, outputs, called)

    def _body(self, body: onnx.GraphProto, outer: Mapping[str, int], level: int) -> Hashable:
        """What a body of If, Loop or Scan computes; it sees the tensors around it."""
        known = dict(outer)
        for i, value in enumerate(body.input):
            known[value.name] = self._numbers.of("body input", level, i)
        for tensor in body.initializer:
            known[tensor.name] = self._numbers.of("body weight", _plain_tensor(tensor))
        for node in body.node:
            reads = tuple(known.get(name, ABSENT) for name in node.input)
            value = self._numbers.of("node", self._op(node, known, level), reads)
            for j, name in enumerate(node.output):
                known[name] = self._numbers.of("output", value, j)
        return tuple(known.get(value.name, ABSENT) for value in body.output)


def _bodies(attribute: onnx.AttributeProto) -> Sequence[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _plain(attribute: onnx.AttributeProto) -> bytes:
    """An attribute's bytes without what has no meaning: the name of a tensor in it, its text."""
    if not attribute.HasField("t") and not attribute.doc_string:
        return bytes(attribute.SerializeToString(deterministic=True))
    twin = onnx.AttributeProto()
    twin.CopyFrom(attribute)
    twin.doc_string = ""
    if twin.HasField("t"):
        twin.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(twin.t)))
    return bytes(twin.SerializeToString(deterministic=True))


def _plain_tensor(tensor: onnx.TensorProto) -> Hashable:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return bytes(tensor.SerializeToString(deterministic=True))
    values = onnx.numpy_helper.to_array(tensor)
    return tensor.data_type, tuple(tensor.dims), _as_bytes(values).tobytes()
