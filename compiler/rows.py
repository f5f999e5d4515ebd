"""What is computed row by row: each row of a result from the same rows of some operands alone.

Rows are the axis before the last: the tokens of a transformer. An elementwise op, a MatMul with
weights, a LayerNormalization or a Softmax along the last axis treat every row alike and none with
another, so more rows can run along with those that there are. Where rows meet, as in the keys and
values of an attention, they can't. No rule knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.graph import Graph, Node, Shape, Tensor, producer_of
from compiler.rewrite import needed_nodes

ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Erf", "Gelu", "Identity", "IsNaN", "Mul", "Neg",
                         "Not", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh",
                         "Where"})  # fmt: skip
OVER_LAST_AXIS = frozenset({"LayerNormalization", "Softmax"})


@dataclass(frozen=True)
class RowWise:
    """What is computed row by row around some tensors, and what it is computed from.

    `sources` are the tensors that the rows come from, `nodes` those that follow them row by row, in
    order, and `between` these and what lies between them (keys and values on their way).
    """

    sources: list[Tensor]
    nodes: list[Node]
    between: list[Node]

    @property
    def tensors(self) -> list[Tensor]:
        """The sources, and all that is computed."""
        return [*self.sources, *(tensor for node in self.between for tensor in node.outputs)]

    @property
    def circular(self) -> Tensor | None:
        """A source that depends on the rows itself; or the first, where nothing lies in between."""
        inside = {id(node) for node in self.between}
        again = [tensor for tensor in self.sources if id(producer_of(tensor)) in inside]
        if not again and len(self.between) == len(self.nodes):
            again = self.sources
        return next(iter(again), None)


def row_wise_around(graph: Graph, tensors: list[Tensor]) -> RowWise:
    """Follows rows back from the tensors to where they come from, then forth again.

    Args:
        graph: in topological order.
        tensors: with a known number of rows (`rows_of`); the outputs depend on them.
    """
    nodes, sources = _followed_back(tensors)
    needed = needed_nodes(graph) if tensors else []
    reached = {id(node.outputs[0]) for node in nodes.values()} | {id(t) for t in sources}
    for node in needed:
        carriers = carriers_of(node) or []
        is_fed = any(id(tensor) in reached for tensor in carriers)
        if is_fed and all(id(t) in reached or graph.is_constant(t) for t in carriers):
            nodes[id(node)] = node
            reached.add(id(node.outputs[0]))
    ordered = [node for node in needed if id(node) in nodes]
    return RowWise(sources, ordered, _between(needed, ordered))


def _followed_back(tensors: list[Tensor]) -> tuple[dict[int, Node], list[Tensor]]:
    """The nodes that compute row by row what leads to some tensors, and where the rows are from."""
    pending, nodes, sources = list(tensors), {}, {}
    while pending:
        tensor = pending.pop()
        node = producer_of(tensor)
        carriers = None if node is None else carriers_of(node)
        if node is None or not carriers:
            sources[id(tensor)] = tensor
        elif id(node) not in nodes:
            nodes[id(node)] = node
            pending += carriers
    return nodes, list(sources.values())


def _between(graph: list[Node], nodes: list[Node]) -> list[Node]:
    """The nodes, in order, and every other of a graph on a way from one of them to another."""
    chosen, reached, needed = {id(n) for n in nodes}, set(), set()
    for node in graph:
        if id(node) in chosen or any(id(producer_of(t)) in reached for t in node.inputs):
            reached.add(id(node))
    for node in reversed(graph):
        if id(node) in chosen or id(node) in needed:
            needed |= {id(node), *(id(producer_of(t)) for t in node.inputs)}
    return [node for node in graph if id(node) in reached and id(node) in needed]


def carriers_of(node: Node) -> list[Tensor] | None:
    """The inputs whose rows the rows of the node's one output are made of, each of its own alone.

    None where rows are mixed, moved or of unknown number.
    """
    outputs = [tensor for tensor in node.outputs if tensor.name]
    rows = rows_of(outputs[0]) if len(outputs) == 1 and not node.domain else None
    if rows is None or not node.inputs:
        return None
    last = len(outputs[0].shape) - 1
    if node.op in OVER_LAST_AXIS:
        return [node.inputs[0]] if node.attrs.get("axis", -1) in (-1, last) else None
    if node.op == "MatMul":
        return [node.inputs[0]] if all(rows_of(t) is not None for t in node.inputs) else None
    if node.op == "Concat":
        return list(node.inputs) if node.attrs["axis"] in (-1, last) else None
    if node.op in ELEMENTWISE and all(t.shape is not None for t in node.inputs):
        return [t for t in node.inputs if rows_of(t) == rows] or None
    return None


def rows_of(tensor: Tensor) -> int | None:
    """The length of the axis before the last, if it is known and more than one."""
    shape = tensor.shape
    rows = None if shape is None or len(shape) < 2 else shape[-2]
    return rows if isinstance(rows, int) and rows > 1 else None


def known_rows(tensor: Tensor) -> int:
    """The length of the axis before the last, where it is known to be known."""
    rows = rows_of(tensor)
    assert rows is not None
    return rows


def with_rows(tensor: Tensor, rows: int) -> Shape:
    """The tensor's shape with another number of rows."""
    return (*tensor.shape[:-2], rows, tensor.shape[-1])
