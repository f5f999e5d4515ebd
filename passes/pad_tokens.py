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
from compiler.graph import Graph, Node, Tensor, producer_of, static_shape
from compiler.rewrite import (
    Builder,
    Contract,
    LocalPass,
    Replacement,
    needed_nodes,
    read_elsewhere,
)
from compiler.rows import RowWise, carriers_of, known_rows, row_wise_around, rows_of, with_rows
from compiler.slicing_moves import slice_takes
from compiler.take import Take

# Before it the limits of a Slice were attributes, and a Softmax ran over all axes from its own on.
OLDEST_OPSET = 13


@dataclass(frozen=True)
class Tokens:
    """What is computed row by row around attentions of `numbers` of query tokens."""

    place: str
    numbers: list[int]
    rows: RowWise


@dataclass(frozen=True)
class PadTokens(LocalPass[Tokens]):
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

    def match(self, graph: Graph) -> Iterator[Tokens]:
        """Everything that is computed row by row around the attentions."""
        needed = {id(node) for node in needed_nodes(graph)}
        attended = {
            id(found.result): found.result
            for found in attendings(graph)
            if id(found.product) in needed and found.product.op == "MatMul"
            if rows_of(found.result)
        }
        if attended:
            rows = row_wise_around(
                graph, [t for t in attended.values() if self._padding(known_rows(t))]
            )
            numbers = sorted({known_rows(tensor) for tensor in attended.values()})
            computed = [tensor for tensor in rows.sources if not graph.is_constant(tensor)]
            yield Tokens(next(iter([*computed, *attended.values()])).name, numbers, rows)

    def guard(self, graph: Graph, match: Tokens) -> str | None:
        """Refuses what is a multiple already, and queries that are not made from the same rows."""
        if self.multiple < 1:
            return f"multiple={self.multiple} is not a number of rows"
        if graph.opset < OLDEST_OPSET:
            return f"opset {graph.opset} has another Slice and Softmax ({OLDEST_OPSET} and later)"
        if not match.rows.sources:
            numbers = ", ".join(str(number) for number in match.numbers)
            return f"{numbers} tokens already are a multiple of {self.multiple}"
        return _why_not_padded(match.rows)

    def _padding(self, rows: int) -> int:
        return -rows % max(self.multiple, 1)

    def rewrite(self, graph: Graph, match: Tokens) -> Replacement:
        """Copies the nodes for more rows, and cuts the rows off where something else reads them."""
        builder = Builder(graph, match.place)
        copier = _Copier(builder, match.rows, self._padding)
        for node in match.rows.between:
            copier.copy(node)
        pairs: list[tuple[Tensor, Tensor]] = []
        for old in read_elsewhere(graph, match.rows.between):
            cuts = _token_slices(graph, match.rows, old) if copier.pads(old) else []
            pairs += [(cut.outputs[0], copier.cut(old, takes)) for cut, takes in cuts]
            pairs += [] if cuts else [(old, copier.without_padding(old))]
        return Replacement(builder, pairs)


def _why_not_padded(rows: RowWise) -> str | None:
    """Why padding can't run along, naming the tensor or node at fault."""
    if rows.circular is not None:
        return (
            f"{rows.circular.name!r} would be cut from padded rows, or is all that queries are "
            f"made of and keys are not: where heads are split by Reshape, split_heads goes first"
        )
    unknown = [t for t in rows.tensors if static_shape(t) is None]
    return f"{unknown[0].name!r} has no known shape" if unknown else None


def _token_slices(graph: Graph, rows: RowWise, tensor: Tensor) -> list[tuple[Node, list[Take]]]:
    """The Slices of tokens that read a tensor with what they take, if nothing else does outside.

    They take the same from more rows, which makes a Slice in front of them needless.
    """
    inside = {id(node) for node in rows.between}
    outside = [node for node in tensor.outputs if id(node) not in inside]
    main = {id(node) for node in graph.nodes}  # a Slice in the body of an If stays as it is
    are_slices = all(
        node.op == "Slice" and node.inputs[0] is tensor and id(node) in main for node in outside
    )
    if graph.is_output(tensor) or not are_slices:
        return []
    takes = [slice_takes(graph, node) or [] for node in outside]
    axis = len(tensor.shape) - 2
    cut = [any(take.axis == axis for take in taken) for taken in takes]
    return list(zip(outside, takes, strict=True)) if all(cut) else []


class _Copier:
    """Copies nodes, each tensor with more rows or as it was."""

    def __init__(self, builder: Builder, rows: RowWise, padding: Callable[[int], int]) -> None:
        self.builder, self.padding = builder, padding
        self.row_wise = {id(node) for node in rows.nodes}
        self._sources = {id(tensor) for tensor in rows.sources}
        self._padded: dict[int, Tensor] = {}
        self._plain: dict[int, Tensor] = {}

    def copy(self, node: Node) -> None:
        """Adds the node that computes the same, for the rows that are padded too if row by row."""
        if id(node) not in self.row_wise:
            twin = self.builder.copy(node, [self.without_padding(t) for t in node.inputs])
            pairs = zip(node.outputs, twin.outputs, strict=True)
            self._plain |= {id(old): new for old, new in pairs}
            return
        carriers = {id(tensor) for tensor in carriers_of(node) or ()}
        inputs = [
            self._with_padding(t, node) if id(t) in carriers else self.without_padding(t)
            for t in node.inputs
        ]
        (old,), (new,) = node.outputs, self.builder.copy(node, inputs).outputs
        rows = known_rows(old)
        new.shape = list(with_rows(old, rows + self.padding(rows)))
        self._padded[id(old)] = new

    def pads(self, tensor: Tensor) -> bool:
        """Whether a tensor of the region has more rows now."""
        return id(tensor) in self._padded and id(tensor) not in self._sources

    def cut(self, tensor: Tensor, takes: list[Take]) -> Tensor:
        """What a Slice took of the rows that there were, of those that there are."""
        shape = list(tensor.shape)
        for take in takes:
            shape[take.axis] = take.size
        columns = zip(*[(t.start, t.stop, t.axis, t.step) for t in takes], strict=True)
        limits = [self.builder.ints(values, "tokens") for values in columns]
        return self.builder.node(
            "Slice", [self._padded[id(tensor)], *limits], tuple(shape), source=producer_of(tensor)
        )

    def without_padding(self, tensor: Tensor) -> Tensor:
        """The rows that there were."""
        padded = self._padded.get(id(tensor))
        if padded is not None and id(tensor) not in self._plain and id(tensor) not in self._sources:
            axis, tokens = len(padded.shape) - 2, known_rows(tensor)
            limits = [self.builder.ints([v], str(v)) for v in (0, tokens, axis)]
            self._plain[id(tensor)] = self.builder.node(
                "Slice", [padded, *limits], tensor.shape, source=producer_of(tensor)
            )
        return self._plain.get(id(tensor), tensor)

    def _with_padding(self, tensor: Tensor, reader: Node) -> Tensor:
        if id(tensor) not in self._padded:
            rows, dtype = known_rows(tensor), tensor.dtype
            more = self.padding(rows)
            empty = np.zeros(with_rows(tensor, more), dtype)
            zeros = self.builder.constant(empty, dtype, f"{more} rows")
            shape = with_rows(tensor, rows + more)
            self._padded[id(tensor)] = self.builder.node(
                "Concat", [tensor, zeros], shape, source=reader, axis=len(shape) - 2
            )
        return self._padded[id(tensor)]
