"""Finds the rewrites between two graphs whose tensors keep their names.

A tensor that both graphs compute under the same name is taken to mean the same; every piece of the
old graph that changed is paired with the piece of the new graph that computes the same tensors.
The pairs are claims, and each is proven on its own: if all hold, then by induction along the graph
every shared tensor is equal, whoever made the new graph, and however.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace
from functools import cache
from typing import TypeVar, cast

import numpy as np
import onnx

from compiler.graph import (
    PASS_KEY,
    REWRITE_KEY,
    SOURCES_KEY,
    Graph,
    Node,
    export_node,
    reads_of,
    sorted_nodes,
)
from compiler.region import BEFORE, Region, TensorType, cut_inputs, region_of, shared_context
from compiler.rewrite import Rewrite, few_names, history
from compiler.weights import Weight

T = TypeVar("T")


def changed_components(before: Graph, after: Graph, pass_name: str) -> list[Rewrite]:
    """The rewrites that turn `before` into `after`, in the order of the old graph.

    The new nodes of `after` get their provenance on the way. Dead code that was dropped is in no
    rewrite: nothing that is left depends on it.
    """
    shared = _variables(before) & _variables(after)
    constants = {tensor.name: cast(Weight, tensor._values) for tensor in after.constants()}
    folded = {name: constants[name] for name in sorted(_variables(before) & set(constants))}
    old_nodes, new_nodes = _changed(before, after, folded), _changed(after, before, folded)
    is_old = {id(node) for node in old_nodes}
    tensors = {t.name: t for node in before.nodes for t in [*node.inputs, *node.outputs]}
    kinds = {t.name: TensorType.of(t) for node in after.nodes for t in node.outputs}
    rewrites: list[Rewrite] = []
    for group in _components(before, after, [*old_nodes, *new_nodes], shared | set(folded)):
        old = [node for node in group if id(node) in is_old]
        new = [node for node in group if id(node) not in is_old]
        outputs = [t for node in old for t in node.outputs if t.name in shared or t.name in folded]
        if outputs:
            texts = {_signature(before, node, folded)[0] for node in old}
            rewritten = [node for node in new if _signature(after, node, folded)[0] not in texts]
            _record_provenance(rewritten, old, pass_name, len(rewrites))
            read = [tensors[t.name] for t in cut_inputs(after, new) if t.name in tensors]
            cut = {id(tensor): tensor for tensor in [*cut_inputs(before, old), *read]}
            context = shared_context(before, list(cut.values()), folded)
            every = list({id(node): node for node in [*context, *old]}.values())
            old_region = region_of(before, sorted_nodes(every), outputs)
            new_region = _fed_by(
                region_of(before, context, []), region_of(after, sorted_nodes(new), outputs)
            )
            old_region, new_region = (
                _with_types(_with_constants(region, folded), kinds)
                for region in (old_region, new_region)
            )
            place = outputs[0].name
            rewrites.append(Rewrite(pass_name, len(rewrites), place, old_region, new_region))
    return rewrites


def _record_provenance(new: list[Node], old: list[Node], name: str, index: int) -> None:
    sources = few_names([node.name for node in old])
    for node in new:
        node.metadata = {PASS_KEY: name, REWRITE_KEY: f"{name}#{index}", SOURCES_KEY: sources}
        node.metadata |= history(f"{name}#{index}", old)


def _fed_by(context: Region, new: Region) -> Region:
    """The new region behind the context, which holds nodes of the old graph.

    What only the context means by a name gets another one.
    """
    made = {name for node in new.nodes for name in node.output if name}
    both = context.constants.keys() & new.constants.keys()
    other = {n for n in both if Values(context.constants[n]) != Values(new.constants[n])}
    clash = {name: f"{name}{BEFORE}" for name in sorted(made | other)}
    nodes = tuple(_renamed(node, clash) for node in context.nodes)
    given = {name for node in nodes for name in node.output}
    inputs = {name: kind for name, kind in new.inputs.items() if name not in given}
    return replace(
        new, nodes=(*nodes, *new.nodes), inputs={**_keys(context.inputs, clash), **inputs},
        constants={**_keys(context.constants, clash), **new.constants},
        types={**_keys(context.types, clash), **new.types},
    )  # fmt: skip


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node with other names for tensors, inside its bodies as well."""
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.input[:] = [names.get(name, name) for name in node.input]
    twin.output[:] = [names.get(name, name) for name in node.output]
    for body in _bodies(twin):
        inner = [_renamed(n, names) for n in body.node]
        del body.node[:]
        body.node.extend(inner)
        for output in body.output:
            output.name = names.get(output.name, output.name)
    return twin


def _with_types(region: Region, known: Mapping[str, TensorType]) -> Region:
    """The region with the sizes of its inputs that the other graph knows as numbers."""
    inputs = {name: kind.refined(known.get(name.removesuffix(BEFORE)))
              for name, kind in region.inputs.items()}  # fmt: skip
    return replace(region, inputs=inputs)


def _keys(mapping: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    return {names.get(name, name): value for name, value in mapping.items()}


def _with_constants(region: Region, folded: dict[str, Weight]) -> Region:
    """The region with the folded tensors that it reads or gives as constants.

    That a folded tensor has this value is a claim of its own, with its own rewrite.
    """
    made = {name for node in region.nodes for name in node.output}
    names = {n for n in [*region.inputs, *region.outputs] if n in folded and n not in made}
    inputs = {name: kind for name, kind in region.inputs.items() if name not in names}
    constants = {**region.constants, **{name: folded[name] for name in sorted(names)}}
    return replace(region, inputs=inputs, constants=constants)


def _changed(graph: Graph, other: Graph, folded: Collection[str]) -> list[Node]:
    known = {_signature(other, node, folded) for node in other.nodes}
    return [
        node
        for node in graph.nodes
        if node.op != "Constant" and _signature(graph, node, folded) not in known
    ]


def _signature(graph: Graph, node: Node, folded: Collection[str]) -> tuple[Hashable, Hashable]:
    """What a node does, and its operator's version."""
    proto = export_node(node)
    known = {t.name: graph.weight(t) for t in reads_of(node) if t.name not in folded}
    weights = {name: weight for name, weight in known.items() if weight is not None}
    return node_key(proto, weights, {}), meaning(proto, graph.opsets)


def node_key(
    node: onnx.NodeProto, weights: Mapping[str, Weight], names: Mapping[str, str]
) -> Hashable:
    """Equal for nodes that compute the same tensors in the same way, up to provenance.

    Weights are compared by value; a tensor in `names` counts under the name that it has there.
    """
    inputs = tuple(
        Values(weights[name]) if name in weights else names.get(name, name) for name in node.input
    )
    outputs = tuple(names.get(name, name) for name in node.output)
    captured = tuple((n, Values(weights[n])) for n in _names_in_bodies(node) if n in weights)
    return (node_kind(node), inputs, outputs, captured)


def meaning(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Hashable:
    """Equal for equal nodes if they also mean the same: the versions of a node's operators."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = opsets.get(domain, opsets.get("ai.onnx", 0) if not domain else 0)
    version = _version(node.op_type, domain, opset)
    return version, tuple(meaning(n, opsets) for body in _bodies(node) for n in body.node)


@cache
def _version(op: str, domain: str, opset: int) -> int:
    """The opset in which an operator last changed; the opset itself for an unknown one."""
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def node_kind(node: onnx.NodeProto) -> Hashable:
    """Equal for nodes of the same operator with the same attributes."""
    attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
    return (node.op_type, node.domain, attributes)


def _names_in_bodies(node: onnx.NodeProto) -> list[str]:
    """Every tensor name that the bodies of If, Loop and Scan read, in order."""
    inner = [n for body in _bodies(node) for n in body.node]
    return [name for n in inner for name in [*n.input, *_names_in_bodies(n)]]


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [b for a in node.attribute for b in ([a.g] if a.HasField("g") else a.graphs)]


class Values:
    """A weight as a key: equal if type, shape and every byte are; read only if that can be."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._kind = (str(weight.dtype), tuple(weight.shape))

    def __hash__(self) -> int:
        return hash(self._kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Values) or self._kind != other._kind:
            return False
        sources = [getattr(value._weight, "source", None) for value in (self, other)]
        if self._weight is other._weight or (sources[0] is not None and sources[0] == sources[1]):
            return True
        one, two = (np.ascontiguousarray(v._weight.load()).reshape(-1) for v in (self, other))
        if one.dtype == object:
            return bool((one == two).all())
        return np.array_equal(one.view(np.uint8), two.view(np.uint8))


def _variables(graph: Graph) -> set[str]:
    names = {t.name for node in graph.nodes if node.op != "Constant" for t in node.outputs}
    inputs = [*graph.inputs, *graph.optional_inputs]
    return (names | {tensor.name for tensor in inputs}) - {""}


def _components(
    before: Graph, after: Graph, nodes: list[Node], boundary: set[str]
) -> list[list[Node]]:
    """Nodes joined by tensors that only one graph has, in order of their first node."""
    parent = list(range(len(nodes)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for position, node in enumerate(nodes):
        reads = reads_of(node)
        inner = {t.name for t in reads if not (before.is_constant(t) or after.is_constant(t))}
        # The two producers of a shared tensor belong together: that is what is to be proven.
        made = {f"made {t.name}" for t in node.outputs if t.name in boundary}
        inner |= {t.name for t in node.outputs}
        for key in sorted(inner - boundary - {""}) + sorted(made):
            parent[find(position)] = find(first.setdefault(key, position))
    groups: dict[int, list[Node]] = {}
    for position, node in enumerate(nodes):
        groups.setdefault(find(position), []).append(node)
    return list(groups.values())
