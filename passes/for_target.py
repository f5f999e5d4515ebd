"""Lowers a model to what a target takes: older versions; 32-bit indices, inputs and outputs.

    opset 23, IR version 13: i[int64] → Gather(x, i) → ArgMax → k[int64]
    opset 20, IR version 10: i[int32] → Cast → Gather(x, i) → ArgMax → Cast → k[int32]

`for_target:aihub` cures what `check --target aihub` finds. The opset is lowered where every node
means the same in the older one, or can be written so; else it stays, and each node that is in the
way is named. An int64 input or output becomes int32: values beyond that are given up. That a model
has one data file of its own is done at the upload (`compiler.targets.package`).

Contract: algebraic; each node whose operator changed in between is proven at its own cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from compiler.graph import Graph, Node, Tensor
from compiler.opsets import drop_newer_attributes, obstacle
from compiler.rewrite import GraphPass, Refusal, Signature, TensorType
from compiler.weights import NewWeight

OPSET, IR_VERSION = 20, 10
# Operators whose indices, the second input, may have 32 bits.
INDEXED = ("Gather", "GatherElements", "ScatterElements")
_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)


@dataclass(frozen=True)
class ForTarget(GraphPass):
    """See the module."""

    target: Literal["aihub"]

    def simplified(self, graph: Graph) -> Graph:
        """Narrows what has 64 bits, then declares the older versions."""
        result = graph.copy()
        for node in result.nodes:
            if node.op in INDEXED:
                _narrow_indices(result, node)
        for tensor in result.inputs:
            if tensor.dtype == _INT64:
                _narrow_input(result, tensor)
        for tensor in result.outputs:
            if tensor.dtype == _INT64 and tensor.inputs:
                _narrow_output(result, tensor)
        if not _in_the_way(graph):
            for node in result.nodes:
                drop_newer_attributes(node, OPSET)
            result.set_versions(self.opset(graph.opset), min(graph.ir_version, IR_VERSION))
        result.sort()
        return result

    def refusals(self, graph: Graph) -> list[Refusal]:
        """What keeps the opset from being lowered, and outputs that can't be narrowed."""
        wide = [t.name for t in graph.outputs if graph.is_constant(t) and t.dtype == _INT64]
        return [*_in_the_way(graph), *(Refusal(name, "is a constant") for name in wide)]

    def opset(self, before: int) -> int:
        """At most 20."""
        return min(before, OPSET)

    def signature(self, before: Signature) -> Signature:
        """int32 for int64."""
        return Signature(_narrowed(before.inputs), _narrowed(before.outputs))


def _in_the_way(graph: Graph) -> list[Refusal]:
    """The nodes and functions that do not mean the same in opset 20."""
    if graph.opset <= OPSET:
        return []
    reasons = [(node.outputs[0].name, obstacle(node, graph.opset, OPSET)) for node in graph.nodes]
    functions = [Refusal(f.name, "is a local function: inline it") for f in graph.functions()]
    return [*functions, *(Refusal(name, reason) for name, reason in reasons if reason)]


def _narrowed(types: Mapping[str, TensorType]) -> dict[str, TensorType]:
    return {
        name: replace(kind, onnx_type=TensorProto.INT32)
        if kind.onnx_type == TensorProto.INT64
        else kind
        for name, kind in types.items()
    }


def _narrow_indices(graph: Graph, node: Node) -> None:
    """Constant indices get 32 bits, where their values fit."""
    indices = node.inputs[1]
    values = graph.values(indices) if indices.dtype == _INT64 else None
    if values is not None and np.array_equal(values, values.astype(_INT32)):
        name = graph.fresh_name(f"{indices.name}/int32")
        weight = NewWeight(values.astype(_INT32), _INT32, f"{indices.name} in 32 bits")
        node.inputs[1] = gs.Constant(name, weight)


def _narrow_input(graph: Graph, tensor: Tensor) -> None:
    """The input keeps its name; what reads it reads its Cast."""
    wide = _wide(graph, tensor)
    if tensor.outputs:
        _redirect(tensor, wide)
        _add_cast(graph, tensor, wide, TensorProto.INT64)


def _narrow_output(graph: Graph, tensor: Tensor) -> None:
    """The output keeps its name, and is the Cast of what was computed."""
    wide = _wide(graph, tensor)
    (producer,) = tensor.inputs
    producer.outputs[next(i for i, t in enumerate(producer.outputs) if t is tensor)] = wide
    _redirect(tensor, wide)
    _add_cast(graph, wide, tensor, TensorProto.INT32)


def _wide(graph: Graph, tensor: Tensor) -> Tensor:
    tensor.dtype = _INT32
    return gs.Variable(graph.fresh_name(f"{tensor.name}/int64"), _INT64, tensor.shape)


def _redirect(old: Tensor, new: Tensor) -> None:
    for user in list(old.outputs):
        for position in [i for i, tensor in enumerate(user.inputs) if tensor is old]:
            user.inputs[position] = new


def _add_cast(graph: Graph, source: Tensor, result: Tensor, to: int) -> None:
    name = graph.fresh_name(f"{result.name}/Cast")
    graph.nodes.append(gs.Node("Cast", name, {"to": to}, [source], [result]))
