"""Removes what exporters leave behind: Identity, Constant nodes, shape arithmetic, dead code.

    Shape → Gather → Concat → Reshape[?]      Identity → MatMul(x, Transpose(W))      x + 0
    Reshape[1×1370×384]                       MatMul(x, Wᵀ)                           x

Constants are folded in NumPy float64 (`compiler.folding`), then onnxsim simplifies the structure.
onnxsim gets the graph without its weights: each is an input to it, so it can neither round them nor
copy them, and a graph of any size takes a fraction of a second. It takes two random draws for one,
so in a model with any it merges no equal nodes.

Contract: algebraic; the driver finds what changed and proves each piece.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnxsim

from compiler.folding import fold_constants
from compiler.graph import Graph, Node, Tensor, static_shape
from compiler.randomness import is_random
from compiler.reshapes import name_sizes, settle_reshapes
from compiler.rewrite import GraphPass
from compiler.weights import EMBED_BELOW_NBYTES, is_float, onnx_type_of

# Each round makes the graph smaller; real exports take one or two.
MAX_ROUNDS = 8
# An optimizer of onnxsim's, by name.
MERGES_EQUAL_NODES = "eliminate_common_subexpression"


@dataclass(frozen=True)
class Canonicalize(GraphPass):
    """See the module."""

    def simplified(self, graph: Graph) -> Graph:
        """Folds and drops, around onnxsim, until nothing is left: each uncovers work."""
        result = _settled(graph.copy())
        for _ in range(MAX_ROUNDS):
            before = _wiring(result)
            smaller = _through_onnxsim(result)
            found = _wiring(smaller)
            result = _settled(smaller)
            is_done = _wiring(result) == found and _is_static(result)
            if is_done or _wiring(result) == before:
                break
        if not _is_static(result):
            name_sizes(result)
        return result


def _wiring(graph: Graph) -> list[tuple[str, ...]]:
    return [(node.op, *(t.name for t in [*node.inputs, *node.outputs])) for node in graph.nodes]


def _is_static(graph: Graph) -> bool:
    """Whether every shape is known, so that one more look would see nothing new."""
    return all(static_shape(t) is not None for node in graph.nodes for t in node.outputs if t.name)


def _settled(graph: Graph) -> Graph:
    """Folds constants and settles reshapes, and again with the shapes that this makes known."""
    for _ in range(MAX_ROUNDS):
        is_done = not _fold(graph) or _is_static(graph)
        if not settle_reshapes(graph) and is_done:
            break
        held = {t.name: t._values for t in graph.initializers() if _is_held(t)}
        graph = Graph(graph.to_model(stubs=held), graph.folder, held)
    return graph


def _fold(graph: Graph) -> bool:
    """Folds constants, drops what does nothing or is not needed; whether there was anything."""
    count = len(graph.nodes)
    fold_constants(graph)
    for node in list(graph.nodes):
        source = _same_as(graph, node)
        if source is not None and not graph.is_output(node.outputs[0]):
            _bypass(node, source)
    _drop_dead(graph)
    return len(graph.nodes) < count


def _same_as(graph: Graph, node: Node) -> Tensor | None:
    """The tensor that a node's output equals anyway: Identity, x + 0, x · 1, a Cast to itself."""
    if node.op == "Identity" or (node.op == "Dropout" and len(node.inputs) == 1):
        return node.inputs[0]
    if node.op == "Cast" and node.inputs[0].dtype == node.outputs[0].dtype is not None:
        return node.inputs[0]
    neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(node.op)
    if neutral is None:
        return None
    sides = [(0, 1), (1, 0)] if node.op in ("Add", "Mul") else [(0, 1)]
    for kept, constant in sides:
        values = graph.values(node.inputs[constant])
        same = static_shape(node.inputs[kept]) == static_shape(node.outputs[0]) is not None
        if values is not None and same and np.all(values == neutral):
            return node.inputs[kept]
    return None


def _bypass(node: Node, source: Tensor) -> None:
    output = node.outputs[0]
    for user in list(output.outputs):
        for position, tensor in enumerate(list(user.inputs)):
            if tensor is output:
                user.inputs[position] = source


def _drop_dead(graph: Graph) -> None:
    outputs = {id(tensor) for tensor in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if any(tensor.outputs or id(tensor) in outputs for tensor in node.outputs):
            kept.append(node)
        else:
            node.inputs.clear()
            node.outputs.clear()
    graph.ir.nodes = kept[::-1]


def _through_onnxsim(graph: Graph) -> Graph:
    """onnxsim on the weightless graph; the weights are put back by name."""
    optional = graph.defaults  # which onnxsim takes for constants
    held = {
        t.name: t._values for t in graph.initializers() if t.name in optional or _is_held(t)
    }  # fmt: skip
    model = graph.to_model(stubs=held)
    stubs = [tensor for tensor in model.graph.initializer if tensor.name in held]
    visible = [tensor for tensor in model.graph.initializer if tensor.name not in held]
    stand_ins = [
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in stubs if t.name not in optional
    ]  # fmt: skip
    given, declared = model.graph.input, model.graph.output
    skipped = [MERGES_EQUAL_NODES] if is_random(graph) else None
    with _silence():  # of each node that it can't fold onnxsim says so
        bare = _with(model, visible, [*given, *stand_ins])
        model, _ = onnxsim.simplify(bare, skipped_optimizers=skipped)
    model = _with(model, [*model.graph.initializer, *stubs], given)
    # A size that only onnxsim knows is no one's promise; `Graph` infers what the model itself says.
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend(declared)
    result = Graph(model, graph.folder, held)
    _restore_metadata(result, graph)
    return result


@contextmanager
def _silence() -> Iterator[None]:
    """Drops what C++ code writes to the process's standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:  # noqa: PTH123 - /dev/null is no path to speak of
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _restore_metadata(graph: Graph, before: Graph) -> None:
    """onnxsim drops the metadata of nodes, and adds a page about itself to the model's."""
    graph.metadata = before.metadata
    known = {(node.op, node.outputs[0].name): node.metadata for node in before.nodes}
    for node in graph.nodes:
        node.metadata = dict(known.get((node.op, node.outputs[0].name), {}))


def _with(
    model: onnx.ModelProto,
    initializers: Sequence[onnx.TensorProto],
    inputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.initializer[:], changed.graph.input[:]
    changed.graph.initializer.extend(initializers)
    changed.graph.input.extend(inputs)
    return changed


def _is_held(tensor: Tensor) -> bool:
    """Floats and large tensors are held back, but for scales that shape inference has to see."""
    is_scale = any(user.op in ("Resize", "Upsample") for user in tensor.outputs)
    is_large = tensor._values.nbytes >= EMBED_BELOW_NBYTES
    return is_large or (is_float(onnx_type_of(tensor.dtype)) and not is_scale)
