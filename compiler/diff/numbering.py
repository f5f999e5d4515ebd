"""Numbers for tensors: equal numbers, on either side, mean equal computations, names aside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from compiler.components import meaning
from compiler.diff.side import Side, meaningful_attributes
from compiler.randomness import RANDOM
from compiler.weights import Array, Weight

# So many bytes tell most weights apart, before whole ones are compared.
_SAMPLED_NBYTES = 1024
ABSENT = -1
# Two of these are never one computation, however alike they are.
_RANDOM = RANDOM | {"Dropout"}


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
        operators = _Operators(side, numbers)
        self.ops = [operators.of(node, side.reads[i]) for i, node in enumerate(side.nodes)]
        self.values: list[int] = []
        for i, node in enumerate(side.nodes):
            reads = tuple(self._number(name) for name in side.reads[i])
            self.values.append(numbers.of("node", self.ops[i], reads))
            for j, name in enumerate(node.output):
                self.tensors[name] = numbers.of("output", self.values[i], j)

    def _number(self, name: str) -> int:
        if name and name not in self.tensors:
            self.tensors[name] = self._numbers.of("unknown", name)
        return self.tensors[name] if name else ABSENT

    def local(self, i: int) -> tuple[int, tuple[int, ...]]:
        """What a node does, up to the tensors that it reads: its op, and its weights' numbers."""
        return self.ops[i], tuple(self.weights.get(name, ABSENT) for name in self.side.reads[i])

    def uses(self, outputs: Sequence[str]) -> list[int]:
        """The number of all that is computed from each node, up to these outputs of the model."""
        uses = [ABSENT] * len(self.side.nodes)
        for i in reversed(range(len(uses))):
            ends = tuple(
                (tuple(k for k, other in enumerate(outputs) if other == name),
                 tuple(sorted((self.values[r], uses[r], slot)
                              for r, slot in self.side.readers.get(name, ()))))
                for name in self.side.nodes[i].output
            )  # fmt: skip
            uses[i] = self._numbers.of("use", ends)
        return uses

    def readers(self) -> list[Hashable]:
        """What reads each node's outputs, up to the other tensors that it reads."""
        return [
            tuple(tuple(sorted((self.local(r), slot) for r, slot in self.side.readers.get(n, ())))
                  for n in node.output)
            for node in self.side.nodes
        ]  # fmt: skip


@dataclass(frozen=True)
class _Names:
    """What names mean inside a body or a local function, and which versions operators have."""

    known: Mapping[str, int]
    opsets: Mapping[str, int]
    level: int = 0


class _Operators:
    """Numbers for operators: version, attributes, bodies, and the local functions they call."""

    def __init__(self, side: Side, numbers: Numbers) -> None:
        self._side, self._numbers = side, numbers
        self._functions: dict[tuple[str, str], Hashable] = {}

    def of(self, node: onnx.NodeProto, reads: Iterable[str]) -> int:
        """The number of a node's operator; what its bodies capture counts by its position."""
        slots: dict[str, int] = {}
        for k, name in enumerate(reads):
            slots.setdefault(name, self._numbers.of("slot", k))
        return self._op(node, _Names(slots, self._side.opsets))

    def _op(self, node: onnx.NodeProto, names: _Names) -> int:
        attributes = meaningful_attributes(node, names.opsets)
        plain = tuple(_plain(a, self._side.folder) for a in attributes if not _bodies(a))
        inner = _Names(names.known, names.opsets, names.level + 1)
        bodies = tuple(
            (a.name, tuple(self._body(body, inner) for body in _bodies(a)))
            for a in attributes
            if _bodies(a)
        )
        outputs = tuple(bool(name) for name in node.output)
        domain = "" if node.domain == "ai.onnx" else node.domain
        called = self._called((node.domain, node.op_type))
        version = meaning(node, names.opsets)
        return self._numbers.of("op", node.op_type, domain, version, plain, bodies, outputs, called)

    def _called(self, key: tuple[str, str]) -> Hashable:
        """What a local function computes, the names inside it aside; None if it is none."""
        function = self._side.functions.get(key)
        if function is not None and key not in self._functions:
            self._functions[key] = "itself"  # a function that calls itself ends here
            opsets = {entry.domain: entry.version for entry in function.opset_import}
            known = {n: self._numbers.of("argument", i) for i, n in enumerate(function.input)}
            defaults = tuple(_plain(a, self._side.folder) for a in function.attribute_proto)
            names = _Names(known, opsets)
            results = self._computed(function.node, function.output, names)
            self._functions[key] = (results, tuple(function.attribute), defaults)
        return self._functions.get(key)

    def _body(self, body: onnx.GraphProto, outer: _Names) -> Hashable:
        """What a body of If, Loop or Scan computes; it sees the tensors around it."""
        known = dict(outer.known)
        for i, value in enumerate(body.input):
            known[value.name] = self._numbers.of("body input", outer.level, i)
        for tensor in body.initializer:
            held = _plain_tensor(tensor, self._side.folder)
            known[tensor.name] = self._numbers.of("body weight", held)
        for sparse in body.sparse_initializer:
            known[sparse.values.name] = self._numbers.of("sparse", _sparse(sparse))
        names = _Names(known, outer.opsets, outer.level)
        return self._computed(body.node, [value.name for value in body.output], names)

    def _computed(
        self, nodes: Iterable[onnx.NodeProto], outputs: Iterable[str], names: _Names
    ) -> tuple[int, ...]:
        """The numbers of what nodes compute."""
        known, drawn = dict(names.known), Counter[str]()
        for node in nodes:
            if node.op_type in _RANDOM:
                drawn[node.op_type] += 1
            op = self._op(node, _Names(known, names.opsets, names.level))
            reads = tuple(self._read(known, name) for name in node.input)
            value = self._numbers.of("node", op, reads, drawn[node.op_type])
            for j, name in enumerate(node.output):
                known[name] = self._numbers.of("output", value, j)
        return tuple(self._read(known, name) for name in outputs)

    def _read(self, known: Mapping[str, int], name: str) -> int:
        return known.get(name, self._numbers.of("unknown", name)) if name else ABSENT


def _bodies(attribute: onnx.AttributeProto) -> Sequence[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _plain(attribute: onnx.AttributeProto, folder: Path) -> Hashable:
    """An attribute without what has no meaning: the name of a tensor in it, its text."""
    if attribute.HasField("t"):
        return attribute.name, _plain_tensor(attribute.t, folder)
    twin = onnx.AttributeProto()
    twin.CopyFrom(attribute)
    twin.doc_string = ""
    return bytes(twin.SerializeToString(deterministic=True))


def _plain_tensor(tensor: onnx.TensorProto, folder: Path) -> Hashable:
    values = onnx.numpy_helper.to_array(tensor, str(folder))
    return tensor.data_type, tuple(tensor.dims), _as_bytes(values).tobytes()


def _sparse(tensor: onnx.SparseTensorProto) -> Hashable:
    """A sparse tensor without the names in it."""
    parts = tensor.values, tensor.indices
    return (tuple(tensor.dims), *(_plain_tensor(part, Path()) for part in parts))
