"""What is computed twice is computed once: equal expressions, equal constants, vain repeats.

    Transpose(x) → a, Transpose(x) → b      MatMul(x, W), MatMul(x, W′ = W)      Abs → Abs
    Transpose(x) → a and b                  MatMul(x, W)                         Abs

Two nodes are equal if operator, attributes and inputs are; constants count by type and content,
and Add, Mul … with their operands in any order. Passes leave such things behind, and so do
exporters where one module is called twice; `canonicalize`, which runs before them, does not look
into weights. What draws random numbers, holds a body (If, Loop, Scan) or is no operator of ONNX is
left alone, and so is what a body reads. The model's outputs keep a node of their own.

Contract: exact; the driver finds what changed and proves each piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compiler.graph import Graph, Node, Tensor, export_node, is_standard, producer_of
from compiler.randomness import draws
from compiler.region import ancestors
from compiler.rewrite import Contract, GraphPass
from compiler.weights import Weight

COMMUTATIVE = frozenset({"Add", "And", "Equal", "Mul", "Or", "Xor"})
# f(f(x)) = f(x), where attributes and other inputs are the same.
IDEMPOTENT = frozenset({"Abs", "Cast", "Ceil", "Clip", "Floor", "Relu", "Round", "Sign", "Trilu"})


@dataclass(frozen=True)
class Dedupe(GraphPass):
    """See the module."""

    contract: ClassVar[Contract] = "exact"

    def simplified(self, graph: Graph) -> Graph:
        """One walk in topological order: what a node reads has been settled before it."""
        result = graph.copy()
        merger = Merger(result)
        for node in result.nodes:
            merger.visit(node)
        needed = {id(node) for node in ancestors(result.outputs, set())}
        for node in result.nodes:
            if id(node) not in needed:
                node.inputs.clear()
                node.outputs.clear()
        result.ir.nodes = [node for node in result.nodes if id(node) in needed]
        return result


class Merger:
    """Lets the readers of a tensor read an earlier one that equals it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = {id(node) for node in graph.nodes}
        self._first: dict[Hashable, Any] = {}
        self._constants: dict[Hashable, Tensor] = {}
        self._contents: dict[int, Hashable] = {}

    def visit(self, node: Node) -> None:
        """Settles what a node reads, and leaves its readers to an earlier node that equals it."""
        self._settle_constants(node)
        if not self._is_understood(node):
            return
        inner = producer_of(node.inputs[0])
        if inner is not None and self._repeats(node, inner):
            node.inputs[0] = inner.inputs[0]
            self._first[self._key(node)] = node
        first: Node = self._first.setdefault(self._key(node), node)
        if not self._is_free(node):
            return
        if node.op == "Identity":
            _replace(node.outputs[0], node.inputs[0])
        elif first is not node:
            for old, new in zip(node.outputs, first.outputs, strict=True):
                _replace(old, new)

    def _settle_constants(self, node: Node) -> None:
        for position, tensor in enumerate(list(node.inputs)):
            content = self._content(tensor)
            if content is not None:
                node.inputs[position] = self._constants.setdefault(content, tensor)

    def _repeats(self, node: Node, inner: Node) -> bool:
        """Whether a node does again what the one before it did, for this node alone."""
        (result, *_) = inner.outputs
        if node.op not in IDEMPOTENT or node.op != inner.op or not self._is_understood(inner):
            return False
        is_needed = len(result.outputs) > 1 or self._graph.is_output(result)
        return not is_needed and self._key(node, 1) == self._key(inner, 1)

    def _key(self, node: Node, first: int = 0) -> Hashable:
        """Equal for nodes that do the same with the same inputs, of which those before `first`."""
        attributes = export_node(node).attribute
        texts = tuple(sorted(a.SerializeToString(deterministic=True) for a in attributes))
        inputs = [self._content(t) or t.name for t in node.inputs[first:]]
        while inputs and inputs[-1] == "":  # optional and left out
            inputs.pop()
        if node.op in COMMUTATIVE:
            inputs.sort(key=str)
        named = tuple(bool(tensor.name) for tensor in node.outputs)
        return (node.op, named, texts, tuple(inputs))

    def _content(self, tensor: Tensor) -> Hashable | None:
        """Equal for constants of the same type, shape and bytes; None for what is none."""
        weight = self._graph.weight(tensor)
        if weight is not None and id(weight) not in self._contents:
            self._contents[id(weight)] = _digest(weight)
        return None if weight is None else self._contents[id(weight)]

    def _is_understood(self, node: Node) -> bool:
        """Whether equal inputs make equal outputs, as far as we know."""
        is_known = is_standard(node) and not draws(self._graph, node)
        return is_known and len(node.inputs) > 0 and not list(node.subgraphs())

    def _is_free(self, node: Node) -> bool:
        """Whether only nodes read the results: the model promises none, and no body captures one.

        Else they would stay, and nothing would say that they equal what others read instead.
        """
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        is_promised = any(self._graph.is_output(tensor) for tensor in node.outputs)
        return not is_promised and all(id(reader) in self._nodes for reader in readers)


def _replace(old: Tensor, new: Tensor) -> None:
    for node in list(old.outputs):
        for position, tensor in enumerate(list(node.inputs)):
            if tensor is old:
                node.inputs[position] = new


def _digest(weight: Weight) -> Hashable:
    values = weight.unrounded()
    kind = (str(weight.dtype), str(values.dtype), values.shape)
    if values.dtype == object:
        return (*kind, tuple(values.reshape(-1).tolist()))
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return (*kind, hashlib.blake2b(flat.data, digest_size=16).digest())
