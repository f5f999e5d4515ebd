"""Valid changes to a real model: it computes what it did, and looks a little different."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

SMALL_NBYTES = 1 << 16


class Mutant:
    """A model that is being changed, and the types of its tensors."""

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.types = {v.name: v for v in [*inferred.value_info, *inferred.input, *inferred.output]}
        self.made = [name for node in self.graph.node for name in node.output if name]
        self.is_own = {v.name for v in [*self.graph.input, *self.graph.output]}
        self._names = {*self.made, *self.is_own, *(t.name for t in self.graph.initializer)}

    def floats(self) -> list[str]:
        """Computed float tensors of static shape, no outputs of the graph."""
        return [n for n in self.made if n not in self.is_own and self.shape(n) is not None
                and self.types[n].type.tensor_type.elem_type == TensorProto.FLOAT]  # fmt: skip

    def shape(self, name: str) -> list[int] | None:
        value = self.types.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        dims = value.type.tensor_type.shape.dim
        return [d.dim_value for d in dims] if all(d.HasField("dim_value") for d in dims) else None

    def fresh(self) -> str:
        count = len(self._names)
        while f"mutant_{count}" in self._names:
            count += 1
        name = f"mutant_{count}"
        self._names.add(name)
        return name

    def constant(self, values: object, dtype: object) -> str:
        name = self.fresh()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def behind(self, name: str, *nodes: NodeProto) -> None:
        """All that read `name` read the output of the last of `nodes` instead."""
        place = next(k for k, node in enumerate(self.graph.node) if name in node.output)
        new = nodes[-1].output[0]
        for node in self.graph.node:
            node.input[:] = [new if old == name else old for old in node.input]
        self._insert(place + 1, nodes)

    def _insert(self, place: int, nodes: Sequence[NodeProto]) -> None:
        kept = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*kept[:place], *nodes, *kept[place:]])

    def replace(self, name: str, *nodes: NodeProto) -> None:
        """Other nodes compute `name`."""
        kept = list(self.graph.node)
        place = next(k for k, node in enumerate(kept) if name in node.output)
        del self.graph.node[:]
        self.graph.node.extend([*kept[:place], *nodes, *kept[place + 1 :]])


def renamed(draw, mutant: Mutant) -> None:
    """Names that a tool may trip over."""
    pattern = draw(st.sampled_from(["t{}", "/a//b.{}", "ä {}", "{}"]))
    inner = [n for n in mutant.made if n not in mutant.is_own]
    names = {name: pattern.format(k) for k, name in enumerate(inner)}
    if set(names.values()) & ({i.name for i in mutant.graph.initializer} | mutant.is_own):
        return
    for node in mutant.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    del mutant.graph.value_info[:]


def shown(draw, mutant: Mutant) -> None:
    """An intermediate becomes an output."""
    name = draw(st.sampled_from(mutant.floats()))
    value = ValueInfoProto()
    value.CopyFrom(mutant.types[name])
    mutant.graph.output.append(value)
    for known in [v for v in mutant.graph.value_info if v.name == name]:
        mutant.graph.value_info.remove(known)


def passed_through(draw, mutant: Mutant) -> None:
    """Identity, x + 0, x · 1."""
    name, new = draw(st.sampled_from(mutant.floats())), mutant.fresh()
    op = draw(st.sampled_from(["Identity", "Add", "Mul"]))
    more = [] if op == "Identity" else [mutant.constant(op == "Mul", np.float32)]
    mutant.behind(name, helper.make_node(op, [name, *more], [new]))


def turned_twice(draw, mutant: Mutant) -> None:
    name, there, back = draw(st.sampled_from(mutant.floats())), mutant.fresh(), mutant.fresh()
    rank = len(mutant.shape(name))
    perm = draw(st.permutations(range(rank)))
    if rank == 0:  # onnx.helper can't write an empty list
        return
    inverse = [int(k) for k in np.argsort(perm)]
    mutant.behind(
        name,
        helper.make_node("Transpose", [name], [there], perm=list(perm)),
        helper.make_node("Transpose", [there], [back], perm=inverse),
    )


def reshaped_twice(draw, mutant: Mutant) -> None:
    name, there, back = draw(st.sampled_from(mutant.floats())), mutant.fresh(), mutant.fresh()
    flat, own = mutant.constant([-1], np.int64), mutant.constant(mutant.shape(name), np.int64)
    mutant.behind(
        name,
        helper.make_node("Reshape", [name, flat], [there]),
        helper.make_node("Reshape", [there, own], [back]),
    )


def constants_as_nodes(draw, mutant: Mutant) -> None:
    tensors = [t for t in mutant.graph.initializer if t.ByteSize() < SMALL_NBYTES]
    for tensor in tensors:
        mutant.graph.initializer.remove(tensor)
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    mutant._insert(0, nodes)


def constants_as_initializers(draw, mutant: Mutant) -> None:
    for node in [n for n in mutant.graph.node if n.op_type == "Constant"]:
        (attribute,) = node.attribute
        if attribute.name == "value" and node.output[0] not in mutant.is_own:
            tensor = attribute.t
            tensor.name = node.output[0]
            mutant.graph.initializer.append(tensor)
            mutant.graph.node.remove(node)


def in_another_order(draw, mutant: Mutant) -> None:
    """Topological, but as late or as early as any other."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    waiting = list(mutant.graph.node)
    known = {"", *(v.name for v in mutant.graph.input), *(t.name for t in mutant.graph.initializer)}
    order = []
    while waiting:
        ready = [k for k, node in enumerate(waiting) if known.issuperset(node.input)]
        node = waiting.pop(ready[rng.integers(len(ready))])
        order.append(node)
        known.update(node.output)
    del mutant.graph.node[:]
    mutant.graph.node.extend(order)


def computed_twice(draw, mutant: Mutant) -> None:
    """One of a tensor's consumers reads a copy of the node that computes it."""
    name = draw(st.sampled_from(mutant.floats()))
    node = next(n for n in mutant.graph.node if name in n.output)
    users = [n for n in mutant.graph.node if name in n.input]
    if len(node.output) > 1 or not users:
        return
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name, twin.output[0] = mutant.fresh(), mutant.fresh()
    user = draw(st.sampled_from(users))
    user.input[:] = [twin.output[0] if old == name else old for old in user.input]
    place = next(k for k, one in enumerate(mutant.graph.node) if name in one.output)
    mutant._insert(place + 1, [twin])


def half_weights(draw, mutant: Mutant) -> None:
    """Matrices are stored in float16 and cast: the function changes here, not in a pass."""
    for tensor in list(mutant.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            stored = numpy_helper.from_array(half, f"{tensor.name}_half")
            cast = helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT)
            mutant.graph.initializer.remove(tensor)
            mutant.graph.initializer.append(stored)
            mutant._insert(0, [cast])


def gemm_for_matmul(draw, mutant: Mutant) -> None:
    """Products with a matrix of weights run on rows: Reshape, Gemm, Reshape."""
    weights = {t.name: t.dims for t in mutant.graph.initializer if len(t.dims) == 2}
    for node in [n for n in mutant.graph.node if n.op_type == "MatMul"]:
        shape = mutant.shape(node.input[0])
        if node.input[1] in weights and shape is not None and node.output[0] not in mutant.is_own:
            width = weights[node.input[1]][1]
            rows, wide = mutant.fresh(), mutant.fresh()
            flat = mutant.constant([-1, shape[-1]], np.int64)
            own = mutant.constant([*shape[:-1], width], np.int64)
            mutant.replace(
                node.output[0],
                helper.make_node("Reshape", [node.input[0], flat], [rows]),
                helper.make_node("Gemm", [rows, node.input[1]], [wide]),
                helper.make_node("Reshape", [wide, own], [node.output[0]]),
            )


MUTATIONS: tuple[Callable[[object, Mutant], None], ...] = (
    renamed, shown, passed_through, turned_twice, reshaped_twice, constants_as_nodes,
    constants_as_initializers, in_another_order, computed_twice, half_weights, gemm_for_matmul,
)  # fmt: skip


@st.composite
def mutated(draw, model: ModelProto) -> tuple[ModelProto, list[str]]:
    """The model after one to four mutations, and their names."""
    names = []
    for mutation in draw(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=4)):
        mutant = Mutant(model)
        mutation(draw, mutant)
        model = mutant.model
        names.append(mutation.__name__)
    onnx.checker.check_model(model, full_check=True)
    return model, names
