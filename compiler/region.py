"""Regions: pieces of a graph between cut tensors, as plain ONNX nodes and lazy constants.

A rewrite is recorded as two regions over the same cut. The record outlives the graph: verification,
diffs and reproducers all work on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import onnx

from compiler.graph import Graph, Node, Tensor, export_node, producer_of, reads_of, sorted_nodes
from compiler.weights import Array, Weight, is_float, onnx_type_of

# Behind the name of a tensor of the old graph where the new region means another by that name.
BEFORE = "/before"


@dataclass(frozen=True)
class TensorType:
    """The ONNX element type and shape of a cut tensor; None or a name is a dynamic dimension."""

    onnx_type: int
    shape: tuple[int | str | None, ...] | None

    @classmethod
    def of(cls, tensor: Tensor) -> TensorType:
        """The type of a graphsurgeon tensor."""
        shape = None if tensor.shape is None else tuple(tensor.shape)
        return cls(0 if tensor.dtype is None else onnx_type_of(tensor.dtype), shape)

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """The shape where every dimension is a number, else None."""
        sizes = tuple(d for d in self.shape or () if isinstance(d, int))
        return sizes if self.shape is not None and len(sizes) == len(self.shape) else None

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits; dynamic dimensions take any size."""
        if self.shape is None:
            return True
        sizes = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(
            d == size for d, size in sizes if isinstance(d, int)
        )

    def refined(self, other: TensorType | None) -> TensorType:
        """The type with the sizes that only `other`, said of the same tensor, has as numbers."""
        if other is None or other.shape is None or other.onnx_type != self.onnx_type:
            return self
        shape = self.shape or (None,) * len(other.shape)
        if len(shape) != len(other.shape):
            return self
        sizes = zip(shape, other.shape, strict=True)
        return TensorType(self.onnx_type, tuple(b if isinstance(b, int) and not isinstance(a, int)
                                                else a for a, b in sizes))  # fmt: skip

    @property
    def is_float(self) -> bool:
        """Whether the tensor is promoted to float64 in proofs."""
        return is_float(self.onnx_type)

    def __str__(self) -> str:
        name = onnx.TensorProto.DataType.Name(self.onnx_type).lower() if self.onnx_type else "?"
        dims = "×".join("?" if d is None else str(d) for d in self.shape or ())
        return f"{name}[{'?' if self.shape is None else dims}]"


@dataclass(frozen=True)
class Region:
    """Nodes in topological order, the tensors at their cut, and the constants that they use."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    constants: Mapping[str, Weight]
    opsets: Mapping[str, int]
    types: Mapping[str, TensorType] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The region as a stand-alone ONNX model in its own types, weights embedded."""
        initializers = [
            onnx.numpy_helper.from_array(np.asarray(weight.load(), order="C"), name)
            for name, weight in self.constants.items()
        ]
        graph = onnx.helper.make_graph(
            list(self.nodes), "region", _value_infos(self.inputs), _value_infos(self.outputs),
            initializers,
        )  # fmt: skip
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in sorted(self.opsets.items())]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def exact_constants(self) -> Mapping[str, Array]:
        """The constants before rounding (floats in float64), each loaded when it is asked for."""
        return _Exact(self.constants)


class _Exact(Mapping[str, Array]):
    """The constants of a region in float64, loaded one at a time."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Array:
        return self._weights[name].exact()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def region_of(graph: Graph, nodes: Sequence[Node], outputs: Iterable[Tensor]) -> Region:
    """The region of `nodes` (in topological order) that computes `outputs`.

    Its inputs are what the nodes read and none of them computes; Constant nodes among the inputs
    count as constants.
    """
    made = {id(tensor) for node in nodes for tensor in node.outputs}
    inputs: dict[str, TensorType] = {}
    constants: dict[str, Weight] = {}
    for node in nodes:
        for tensor in reads_of(node):
            weight = graph.weight(tensor)
            if weight is not None:
                constants[tensor.name] = weight
            elif tensor.name and id(tensor) not in made:
                inputs[tensor.name] = TensorType.of(tensor)
    outputs = list(outputs)
    given = {tensor.name: graph.weight(tensor) for tensor in outputs}
    constants |= {name: weight for name, weight in given.items() if weight is not None}
    return Region(
        tuple(export_node(node) for node in nodes if node.op != "Constant"),
        inputs,
        {tensor.name: TensorType.of(tensor) for tensor in outputs},
        constants,
        graph.opsets,
        {tensor.name: TensorType.of(tensor) for node in nodes for tensor in node.outputs},
    )


def whole(graph: Graph) -> Region:
    """The whole graph as one region: its inputs, optional ones too, and outputs are the cut."""
    region = region_of(graph, graph.nodes, graph.outputs)
    given = [*graph.inputs, *graph.optional_inputs]
    inputs = {tensor.name: TensorType.of(tensor) for tensor in given}
    return replace(region, inputs=inputs)


def ancestors(
    tensors: Iterable[Tensor], stop: set[int], reads: Callable[[Node], list[Tensor]] = reads_of
) -> list[Node]:
    """The nodes that the tensors depend on, in any order, back to `stop` (ids of tensors)."""
    return list(_walk_back(tensors, stop, reads))


def _walk_back(
    tensors: Iterable[Tensor], stop: set[int], reads: Callable[[Node], list[Tensor]]
) -> Iterator[Node]:
    seen: set[int] = set()
    pending = [tensor for tensor in tensors if id(tensor) not in stop]
    while pending:
        node = producer_of(pending.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            yield node
            pending += [t for t in reads(node) if id(t) not in stop]


def cut_inputs(graph: Graph, nodes: Sequence[Node]) -> list[Tensor]:
    """What the nodes read and none of them computes, constants aside."""
    made = {id(tensor) for node in nodes for tensor in node.outputs}
    reads = {id(t): t for node in nodes for t in reads_of(node) if t.name and id(t) not in made}
    return [tensor for tensor in reads.values() if not graph.is_constant(tensor)]


def shared_context(
    graph: Graph, cut: Sequence[Tensor], settled: Collection[str] = ()
) -> list[Node]:
    """The nodes that belong to both regions, so that the cut's inputs can be chosen freely.

    Where one cut tensor is computed from another or from constants alone (or is an integer that
    random values would make invalid), independent random values would compare the two regions on
    inputs that cannot occur; the nodes behind it then become part of both regions. The walk ends
    at the tensors named in `settled`, whose values are known by other means, and at those of which
    only the shape is asked: an input has its shape whatever its values are.
    """
    cut_ids = {id(tensor) for tensor in cut}
    known = {id(t) for node in graph.nodes for t in node.outputs if t.name in settled}
    context: dict[int, Node] = {}
    for tensor in cut:
        is_random = tensor.dtype is None or is_float(onnx_type_of(tensor.dtype))
        stop = (cut_ids | known) - {id(tensor)}
        # Alone it needs no walk through the whole model, whose cost would grow with the model.
        if id(tensor) in known or (not stop and is_random and is_fed(graph, tensor)):
            continue
        behind = ancestors([tensor], stop, _values_read)
        made = {id(t) for node in behind for t in node.outputs} | known
        reads = [t for node in behind for t in _values_read(node)]
        free = [t for t in reads if t.name and id(t) not in made and not graph.is_constant(t)]
        leaves = [t for t in free if id(t) not in cut_ids]
        if len(leaves) < len(free) or not leaves or not is_random:
            context |= {id(node): node for node in behind}
    return sorted_nodes(list(context.values()))


def is_fed(graph: Graph, tensor: Tensor) -> bool:
    """Whether the values of a tensor depend on those of an input."""
    walked = _walk_back([tensor], set(), _values_read)
    leaves = chain([tensor], (t for node in walked for t in _values_read(node)))
    return any(t.name and producer_of(t) is None and not graph.is_constant(t) for t in leaves)


def _values_read(node: Node) -> list[Tensor]:
    return [] if node.op in ("Shape", "Size") else reads_of(node)


def _value_infos(types: Mapping[str, TensorType]) -> list[onnx.ValueInfoProto]:
    return [
        onnx.helper.make_tensor_value_info(name, kind.onnx_type, kind.shape)
        for name, kind in types.items()
    ]
