"""Rows of zeros are added to the tokens, up to a multiple, and run through the network unseen.

    x[1×626×C] → LayerNormalization → … → Add[1×626×C]
    x[1×626×C] → Concat(·, 0[6×C]) → LayerNormalization → … → Add[1×632×C] → Slice[1×626×C]

    keys:    MatMul(h[1×626×C], w) → Transpose → scores[1×626×626]
             MatMul(h[1×632×C], w) → Slice[1×626×D] → Transpose → scores[1×632×626]

A row of what a transformer computes depends on other rows through keys and values alone: those are
cut back to the tokens that there are, and so is whatever else mixes rows or leaves the network.
Memory on the NPU is laid out in blocks of 8 rows: without a remainder blocks need not be rearranged
for keys and values. Where the heads are split by Reshape, split_heads goes first.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: IQ-9075 39.61 → 42.35 (harmful) |
15.29 → 14.44, SA8797 not known | 5.91 → 5.80.

Contract: exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from compiler.attention import attendings, no_attention
from compiler.graph import Graph, Node, Shape, Tensor, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement

ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Erf", "Gelu", "Identity", "IsNaN", "Mul", "Neg",
                         "Not", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh",
                         "Where"})  # fmt: skip
OVER_LAST_AXIS = {"LayerNormalization": -1, "Softmax": -1}
# Before it the limits of a Slice were attributes, and a Softmax ran over all axes from its own on.
OLDEST_OPSET = 13


@dataclass(frozen=True)
class Rows:
    """What is computed row by row around attentions, and what it is computed from.

    `tokens` are the numbers of query tokens that there are. `sources` are the tensors whose rows
    are padded, `row_wise` the nodes that follow them, in order, and `between` those and what lies
    between them (keys and values on their way).
    """

    place: str
    tokens: list[int]
    sources: list[Tensor]
    row_wise: list[Node]
    between: list[Node]


@dataclass(frozen=True)
class PadTokens(LocalPass[Rows]):
    """See the module."""

    multiple: int = 8

    @property
    def contract(self) -> Contract:
        """Every row that there was is computed as before."""
        return "exact"

    def missing(self, graph: Graph) -> str:
        """Says that there is no attention, or none of queries in a known number of rows."""
        if any(True for _ in attendings(graph)):
            return "no attention is a MatMul with a known number of query tokens"
        return no_attention(graph)

    def match(self, graph: Graph) -> Iterator[Rows]:
        """Everything that is computed row by row around the attentions."""
        attended = {
            id(found.result): found.result
            for found in attendings(graph)
            if not found.inside and found.product.op == "MatMul" and _rows_of(found.result)
        }
        if attended:
            uneven = [t for t in attended.values() if self._padding(_known_rows(t))]
            tokens = sorted({_known_rows(tensor) for tensor in attended.values()})
            place = next(iter(attended.values())).name
            yield _rows(graph, place, tokens, uneven)

    def guard(self, graph: Graph, match: Rows) -> str | None:
        """Refuses what is a multiple already, and queries that are not made from the same rows."""
        if self.multiple < 1:
            return f"multiple={self.multiple} is not a number of rows"
        if graph.opset < OLDEST_OPSET:
            return f"opset {graph.opset} has another Slice and Softmax ({OLDEST_OPSET} and later)"
        if not match.sources:
            numbers = ", ".join(str(number) for number in match.tokens)
            return f"{numbers} tokens already are a multiple of {self.multiple}"
        again = _padded_again(match)
        if again is not None:
            return (
                f"{again.name!r} would be cut from padded rows, or is all that queries are made of "
                f"and keys are not: where heads are split by Reshape, split_heads goes first"
            )
        unknown = [t for t in _computed(match) if static_shape(t) is None]
        return f"{unknown[0].name!r} has no known shape" if unknown else None

    def _padding(self, rows: int) -> int:
        return -rows % max(self.multiple, 1)

    def rewrite(self, graph: Graph, match: Rows) -> Replacement:
        """Copies the nodes for more rows, and cuts the rows off where something else reads them."""
        builder = Builder(graph, match.place)
        copier = _Copier(builder, match, self._padding)
        for node in match.between:
            copier.copy(node)
        inside = {id(node) for node in match.between}
        outputs = [
            (old, copier.without_padding(old))
            for node in match.between
            for old in node.outputs
            if graph.is_output(old) or any(id(user) not in inside for user in old.outputs)
        ]
        return Replacement(builder, outputs)


class _Copier:
    """Copies nodes, each tensor with more rows or as it was."""

    def __init__(self, builder: Builder, match: Rows, padding: Callable[[int], int]) -> None:
        self.builder, self.padding = builder, padding
        self.row_wise = {id(node) for node in match.row_wise}
        self._sources = {id(tensor) for tensor in match.sources}
        self._padded: dict[int, Tensor] = {}
        self._plain: dict[int, Tensor] = {}

    def copy(self, node: Node) -> None:
        """Adds the node that computes the same, for the rows that are padded too if row by row."""
        if id(node) not in self.row_wise:
            twin = self.builder.copy(node, [self.without_padding(t) for t in node.inputs])
            pairs = zip(node.outputs, twin.outputs, strict=True)
            self._plain |= {id(old): new for old, new in pairs}
            return
        carriers = {id(tensor) for tensor in _carriers(node) or ()}
        inputs = [
            self._with_padding(t, node) if id(t) in carriers else self.without_padding(t)
            for t in node.inputs
        ]
        (old,), (new,) = node.outputs, self.builder.copy(node, inputs).outputs
        rows = _known_rows(old)
        new.shape = list(_with_rows(old, rows + self.padding(rows)))
        self._padded[id(old)] = new

    def without_padding(self, tensor: Tensor) -> Tensor:
        """The rows that there were."""
        padded = self._padded.get(id(tensor))
        if padded is not None and id(tensor) not in self._plain and id(tensor) not in self._sources:
            axis, tokens = len(padded.shape) - 2, _known_rows(tensor)
            limits = [self.builder.ints([v], str(v)) for v in (0, tokens, axis)]
            self._plain[id(tensor)] = self.builder.node(
                "Slice", [padded, *limits], tensor.shape, source=producer_of(tensor)
            )
        return self._plain.get(id(tensor), tensor)

    def _with_padding(self, tensor: Tensor, reader: Node) -> Tensor:
        if id(tensor) not in self._padded:
            rows, dtype = _known_rows(tensor), tensor.dtype
            more = self.padding(rows)
            empty = np.zeros(_with_rows(tensor, more), dtype)
            zeros = self.builder.constant(empty, dtype, f"{more} rows")
            shape = _with_rows(tensor, rows + more)
            self._padded[id(tensor)] = self.builder.node(
                "Concat", [tensor, zeros], shape, source=reader, axis=len(shape) - 2
            )
        return self._padded[id(tensor)]


def _rows(graph: Graph, place: str, tokens: list[int], attended: list[Tensor]) -> Rows:
    """Follows rows back from what was attended to, then forth again."""
    row_wise, sources = _followed_back(attended)
    padded = {id(node.outputs[0]) for node in row_wise.values()} | {id(t) for t in sources}
    for node in graph.nodes if attended else ():
        carriers = _carriers(node)
        is_fed = carriers is not None and any(id(tensor) in padded for tensor in carriers)
        if is_fed and all(id(t) in padded or graph.is_constant(t) for t in carriers or ()):
            row_wise[id(node)] = node
            padded.add(id(node.outputs[0]))
    computed = [tensor.name for tensor in sources if not graph.is_constant(tensor)]
    ordered = [node for node in graph.nodes if id(node) in row_wise]
    return Rows(next(iter(computed), place), tokens, sources, ordered, _between(graph, ordered))


def _padded_again(match: Rows) -> Tensor | None:
    """A tensor to be padded that depends on padded rows, or the first where nothing else does."""
    inside = {id(node) for node in match.between}
    again = [tensor for tensor in match.sources if id(producer_of(tensor)) in inside]
    if not again and len(match.between) == len(match.row_wise):
        again = match.sources
    return next(iter(again), None)


def _followed_back(attended: list[Tensor]) -> tuple[dict[int, Node], list[Tensor]]:
    """The nodes that compute row by row what leads to some tensors, and where the rows are from."""
    pending, row_wise, sources = list(attended), {}, {}
    while pending:
        tensor = pending.pop()
        node = producer_of(tensor)
        carriers = None if node is None else _carriers(node)
        if node is None or not carriers:
            sources[id(tensor)] = tensor
        elif id(node) not in row_wise:
            row_wise[id(node)] = node
            pending += carriers
    return row_wise, list(sources.values())


def _between(graph: Graph, row_wise: list[Node]) -> list[Node]:
    """The nodes, in order, and every other that lies on a way from one of them to another."""
    chosen, reached, needed = {id(n) for n in row_wise}, set(), set()
    for node in graph.nodes:
        if id(node) in chosen or any(id(producer_of(t)) in reached for t in node.inputs):
            reached.add(id(node))
    for node in reversed(graph.nodes):
        if id(node) in chosen or id(node) in needed:
            needed |= {id(node), *(id(producer_of(t)) for t in node.inputs)}
    return [node for node in graph.nodes if id(node) in reached and id(node) in needed]


def _carriers(node: Node) -> list[Tensor] | None:
    """The inputs whose rows the rows of the node's one output are made of, each of its own alone.

    None where rows are mixed, moved or of unknown number.
    """
    outputs = [tensor for tensor in node.outputs if tensor.name]
    rows = _rows_of(outputs[0]) if len(outputs) == 1 and not node.domain else None
    if rows is None or not node.inputs:
        return None
    rank = len(outputs[0].shape)
    if node.op in OVER_LAST_AXIS:
        axis = node.attrs.get("axis", OVER_LAST_AXIS[node.op])
        return [node.inputs[0]] if axis in (-1, rank - 1) else None
    if node.op == "MatMul":
        return [node.inputs[0]] if all(_rows_of(t) is not None for t in node.inputs) else None
    if node.op == "Concat":
        return list(node.inputs) if node.attrs["axis"] in (-1, rank - 1) else None
    if node.op in ELEMENTWISE and all(t.shape is not None for t in node.inputs):
        return [t for t in node.inputs if _rows_of(t) == rows] or None
    return None


def _rows_of(tensor: Tensor) -> int | None:
    """The length of the axis before the last, if it is known and more than one."""
    shape = tensor.shape
    rows = None if shape is None or len(shape) < 2 else shape[-2]
    return rows if isinstance(rows, int) and rows > 1 else None


def _known_rows(tensor: Tensor) -> int:
    rows = _rows_of(tensor)
    assert rows is not None
    return rows


def _with_rows(tensor: Tensor, rows: int) -> Shape:
    return (*tensor.shape[:-2], rows, tensor.shape[-1])


def _computed(match: Rows) -> list[Tensor]:
    return [*match.sources, *(tensor for node in match.between for tensor in node.outputs)]
