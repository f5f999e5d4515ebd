"""The stages of a build as the report sees them: nodes, types, and where every node came from."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from compiler.exported import SCOPES_KEY, listed
from compiler.graph import PASS_KEY, REWRITE_KEY, SOURCES_KEY, read_model
from compiler.region import TensorType

# An attribute's text longer than this (a table of values) says nothing to a reader.
_LONGEST_ATTRIBUTE = 120
# Shapes and axes are shown with their values, weights are not.
_MOST_VALUES = 8


@dataclass(frozen=True)
class StageNode:
    """A node of a stage, with its provenance."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    made_by: str = ""
    """The pass that made it; empty for nodes of the source."""
    rewrite: str = ""
    sources: tuple[str, ...] = ()
    """Names of the nodes of the stage before that it was made from."""
    scope: str = ""
    """The module that it belongs to: `network.backbone.encoder.layer.0.attention`."""


@dataclass(frozen=True)
class StageGraph:
    """One stage: its nodes in topological order and the types of its tensors, as text."""

    name: str
    nodes: tuple[StageNode, ...]
    types: Mapping[str, str]
    constants: Mapping[str, str]
    """The tensors with known values; the values as text where they are few, else empty."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, StageNode]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def producers(self) -> dict[str, StageNode]:
        """Who computes a tensor."""
        return {output: node for node in self.nodes for output in node.outputs}

    @cached_property
    def readers(self) -> dict[str, list[StageNode]]:
        """Who reads a tensor."""
        readers: dict[str, list[StageNode]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return readers

    @property
    def op_counts(self) -> Counter[str]:
        """How many nodes of each operator there are."""
        return Counter(node.op for node in self.nodes)


def read_stages(folder: Path, names: Sequence[str]) -> list[StageGraph]:
    """The stages of a build; a node that a pass made is in the scope of what it was made from."""
    scopes: dict[str, str] = {}
    return [_stage(folder / f"{name}.onnx", name, scopes) for name in names]


def _stage(path: Path, name: str, scopes: dict[str, str]) -> StageGraph:
    graph = read_model(path).graph
    here = {node.name for node in graph.node}
    types = {value.name: _type_of(value) for value in [*graph.value_info, *graph.input,
                                                       *graph.output]}  # fmt: skip
    types |= {t.name: str(TensorType(t.data_type, tuple(t.dims))) for t in graph.initializer}
    constants = {tensor.name: _values(tensor) for tensor in graph.initializer}
    constants |= {
        name: "".join(_values(a.t) for a in node.attribute if a.HasField("t"))
        for node in graph.node if node.op_type == "Constant" for name in node.output
    }  # fmt: skip
    nodes = tuple(_node(proto, scopes, here) for proto in graph.node)
    scopes.update({node.name: node.scope for node in nodes})
    return StageGraph(name, nodes, types, constants,
                      tuple(value.name for value in graph.input if value.name not in constants),
                      tuple(value.name for value in graph.output))  # fmt: skip


def _node(proto: onnx.NodeProto, scopes: Mapping[str, str], here: set[str]) -> StageNode:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    made_by, text = metadata.get(PASS_KEY, ""), metadata.get(SOURCES_KEY, "")
    sources = tuple(text.split()) if text not in scopes else (text,)
    if not made_by:
        scope = _scope_in(proto.name, metadata)
    else:
        scope = next((scopes[source] for source in sources if scopes.get(source)), made_by)
        if proto.name not in scopes and sources and all(source in here for source in sources):
            scope = f"{made_by}/{scope}"  # a copy, beside what it is a copy of
        scope = scopes.get(proto.name, scope)
    return StageNode(
        proto.name, proto.op_type, tuple(name for name in proto.input if name),
        tuple(name for name in proto.output if name), tuple(map(_attribute, proto.attribute)),
        made_by, metadata.get(REWRITE_KEY, ""), sources, scope,
    )  # fmt: skip


def _scope_in(name: str, metadata: Mapping[str, str]) -> str:
    """The module around a node, from the exporter's metadata or from a name that is a path."""
    scopes = listed(metadata.get(SCOPES_KEY, ""))
    return scopes[-2] if len(scopes) > 1 else name.strip("/").rpartition("/")[0]


def _attribute(attribute: onnx.AttributeProto) -> str:
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return f"{attribute.name} = <graph>"
    if attribute.type == onnx.AttributeProto.TENSOR:
        kind = TensorType(attribute.t.data_type, tuple(attribute.t.dims))
        return f"{attribute.name} = {kind}"
    text = str(onnx.helper.printable_attribute(attribute))
    return text if len(text) <= _LONGEST_ATTRIBUTE else f"{text[: _LONGEST_ATTRIBUTE - 1]}…"


def _values(tensor: onnx.TensorProto) -> str:
    """The values of a shape, axes or a scale; empty for weights, however small."""
    is_here = tensor.data_location != onnx.TensorProto.EXTERNAL
    if not is_here or math.prod(tensor.dims) > _MOST_VALUES:
        return ""
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype.kind in "iub":
        return str(values.tolist())
    return f"{float(values.item()):.4g}" if values.size == 1 else ""


def _type_of(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return str(TensorType(kind.elem_type, None))
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    return str(TensorType(kind.elem_type, tuple(dims)))


def scope_parts(scope: str) -> list[str]:
    """`network.layer.0/x` → network, layer, 0, x."""
    return [part for part in re.split(r"[./]", scope) if part]
