"""What depends on dynamic sizes less than it says: sizes and targets as constants, one Transpose.

Reshape(x[batch×tokens×48], Concat(Shape(x)[0], Shape(x)[1], -1, 12))
Reshape(x[batch×tokens×48], [0, 0, 4, 12])

Reshape(x[batch×4×tokens×12] to rank 3) → Transpose(0, 2, 1) → Reshape(to rank 4)
Transpose(x[batch×4×tokens×12], (0, 1, 3, 2))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from compiler.dimensions import Dim, Dimensions, Dims, Size, product
from compiler.graph import Graph, Node, Tensor, make_constant, producer_of
from compiler.weights import Array, NewWeight


def settle_reshapes(graph: Graph) -> bool:
    """Rewrites, in place, what the dimensions allow; whether there was anything."""
    known = Dimensions(graph)
    first = _first_of_each_shape(graph, known)
    changed = [_settle(graph, known, node) or _ask_the_first(known, node, first)
               for node in graph.nodes]  # fmt: skip
    graph.ir.nodes = [node for node in graph.nodes if node.outputs]
    return any(changed)


def _first_of_each_shape(graph: Graph, known: Dimensions) -> dict[Dims, Tensor]:
    """The first tensor of every shape: an input, or what the earliest node computes."""
    found: dict[Dims, Tensor] = {}
    given = [*graph.inputs, *graph.optional_inputs]
    for tensor in [*given, *(t for node in graph.nodes for t in node.outputs)]:
        dims = known.of(tensor)
        if tensor.name and dims is not None:
            found.setdefault(dims, tensor)
    return found


def _ask_the_first(known: Dimensions, node: Node, first: Mapping[Dims, Tensor]) -> bool:
    """Lets a Shape look at the first tensor of that shape: what it looked at may then be dead."""
    dims = known.of(node.inputs[0]) if node.op == "Shape" and node.inputs else None
    if dims is None or first[dims] is node.inputs[0]:
        return False
    node.inputs[0] = first[dims]
    return True


def name_sizes(graph: Graph) -> None:
    """Gives equal sizes equal names, where onnx's inference has a new one for each."""
    known = Dimensions(graph)
    for tensor in (tensor for node in graph.nodes for tensor in node.outputs):
        dims = known.of(tensor)
        if dims is not None and not graph.is_output(tensor):
            tensor.shape = [dim if isinstance(dim, int) else str(dim) for dim in dims]


def _settle(graph: Graph, known: Dimensions, node: Node) -> bool:
    values = known.value(node.outputs[0])
    if values is not None and not graph.is_output(node.outputs[0]):
        return _make_numbers(node, values)
    if node.op == "Expand":
        return _set_target(graph, node, _expand_target(known, node))
    if node.op != "Reshape":
        return False
    return _turn(known, node) or _set_target(graph, node, _reshape_target(graph, known, node))


def _make_numbers(node: Node, values: Array) -> bool:
    """Lets a constant take the place of a node that computes numbers; names stay."""
    is_known = not any(isinstance(value, Size) for value in values.reshape(-1))
    if node.op == "Constant" or not is_known:
        return False
    dtype = np.dtype(node.outputs[0].dtype or np.int64)
    make_constant(node, NewWeight(values.astype(dtype), dtype, f"{node.op} of sizes"))
    return True


def _set_target(graph: Graph, node: Node, target: list[int] | None) -> bool:
    """Lets a node read a constant target instead of a computed one."""
    if target is None:
        return False
    name = graph.fresh_name(f"{node.outputs[0].name}/target")
    values = np.array(target, np.int64)
    node.inputs[1] = gs.Constant(name, NewWeight(values, values.dtype, "target"))
    if node.op == "Reshape":
        node.attrs.pop("allowzero", None)
    return True


def _reshape_target(graph: Graph, known: Dimensions, node: Node) -> list[int] | None:
    """The target: numbers, 0 for what stays in its place, -1 for one more; None if no better."""
    source, result = known.of(node.inputs[0]), known.of(node.outputs[0])
    old = graph.ints(node.inputs[1])
    if source is None or result is None:
        return None
    if old is not None and (-1 not in old or all(isinstance(dim, int) for dim in result)):
        return None  # a constant target that says as much
    target = [_written(dim, source[k : k + 1]) for k, dim in enumerate(result)]
    if target.count(-1) > 1 or (old is not None and -1 in target):
        return None
    return target


def _written(dim: Dim, same_place: Dims) -> int:
    if isinstance(dim, int) and dim > 0:
        return dim
    return 0 if same_place == (dim,) else -1


def _expand_target(known: Dimensions, node: Node) -> list[int] | None:
    """The target, with 1 for what stays: an Expand keeps what its target has 1 for."""
    source, result = known.of(node.inputs[0]), known.of(node.outputs[0])
    is_constant = known.value(node.inputs[1]) is not None and isinstance(
        node.inputs[1], gs.Constant
    )
    if source is None or result is None or is_constant:
        return None
    padded: Dims = (1,) * (len(result) - len(source)) + source
    target = [1 if a == b else b for a, b in zip(padded, result, strict=True)]
    return (
        [d for d in target if isinstance(d, int)]
        if all(isinstance(d, int) for d in target)
        else None
    )


def _turn(known: Dimensions, node: Node) -> bool:
    """Makes the last Reshape of a Reshape, Transpose, Reshape the Transpose that they are."""
    turn = _only(node.inputs[0], "Transpose")
    first = None if turn is None else _only(turn.inputs[0], "Reshape")
    if first is None or turn is None:
        return False
    source, merged = known.of(first.inputs[0]), known.of(first.outputs[0])
    result = known.of(node.outputs[0])
    groups = None if source is None or merged is None else _groups(source, merged)
    if groups is None or source is None or result is None or "perm" not in turn.attrs:
        return False
    order = [axis for place in turn.attrs["perm"] for axis in groups[place]]
    if tuple(source[axis] for axis in order) != result:
        return False
    node.op, node.attrs = "Transpose", {"perm": order}
    node.inputs.clear()
    node.inputs.append(first.inputs[0])
    return True


def _only(tensor: Tensor, op: str) -> Node | None:
    """The node of this kind that computes a tensor which one node reads."""
    node = producer_of(tensor)
    return node if node is not None and node.op == op and len(tensor.outputs) == 1 else None


def _groups(source: Sequence[Dim], merged: Sequence[Dim]) -> list[list[int]] | None:
    """The axes of the source that each axis of a reshape's result is the product of."""
    groups, axes = [], list(range(len(source)))
    for dim in merged:
        group: list[int] = []
        while axes and (not group or product([source[a] for a in group]) != dim):
            group.append(axes.pop(0))
        if product([source[a] for a in group]) != dim:
            return None
        groups.append(group)
    return None if axes else groups
