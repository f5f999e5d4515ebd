"""Attention becomes one subgraph per tile of query tokens, each of which attends to all keys.

    MatMul(q, kᵀ)[1×H×1370×1370] → Softmax → MatMul(p, v)[1×H×1370×D]
    ⌈1370 / tile⌉ × (MatMul(q[:, :, a:b], kᵀ) → Softmax → MatMul(·, v)) → Concat[1×H×1370×D]

The scores of a tile fit where those of all queries do not. A tile's rows are pulled back through
masks, position biases and scales to a slice of the queries, behind their projection; keys and
values are shared. The last tile may be smaller. Before or after split_heads, in either order.

Contract: exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.attention import Attending, attendings, no_attention
from compiler.graph import Graph, Tensor
from compiler.rewrite import Builder, Contract, LocalPass, Replacement
from compiler.slicing import Slicer, Take, why_whole


@dataclass(frozen=True)
class Queries:
    """An attention, and the axis of its result that the query tokens are along."""

    place: str
    attending: Attending
    axis: int

    @property
    def tokens(self) -> int | str | None:
        """How many query tokens there are; a name or None where that is dynamic."""
        count: int | str | None = self.attending.result.shape[self.axis]
        return count

    def takes(self, tile: int) -> list[Take]:
        """The tiles of the result, in order."""
        assert isinstance(self.tokens, int)
        firsts = range(0, self.tokens, tile)
        return [Take(self.axis, first, min(first + tile, self.tokens)) for first in firsts]


@dataclass(frozen=True)
class SplitQueries(LocalPass[Queries]):
    """See the module."""

    tile: int

    @property
    def contract(self) -> Contract:
        """Every row is computed as before."""
        return "exact"

    def missing(self, graph: Graph) -> str:
        """Says that there is no attention."""
        return no_attention(graph)

    def match(self, graph: Graph) -> Iterator[Queries]:
        """Every Softmax whose probabilities multiply values, and every Attention op."""
        for found in attendings(graph):
            shape = found.result.shape
            if shape is None or len(shape) >= 2:
                yield Queries(found.result.name, found, 0 if shape is None else found.query_axis)

    def guard(self, graph: Graph, match: Queries) -> str | None:
        """Refuses what is one tile, other uses of the probabilities, and tokens without number."""
        found = match.attending
        fault = found.fault(graph)
        if fault is not None:
            return fault
        if found.result.shape is None:
            return f"{match.place!r} has no shape: the number of query tokens has to be known"
        if not isinstance(match.tokens, int):
            name = "of unknown number" if match.tokens is None else repr(match.tokens)
            return f"the query tokens are {name}: dynamic, so that no tile has a size"
        if match.tokens <= self.tile:
            return f"{match.tokens} query tokens already are one tile of at most {self.tile}"
        shared = found.used_elsewhere(graph)
        if shared:
            return f"{shared[0].name!r} is used elsewhere as well: tiles would compute it again"
        fault = found.op_fault(by_query=True)
        return fault or why_whole(graph, found.result, match.takes(self.tile)[0])

    def rewrite(self, graph: Graph, match: Queries) -> Replacement:
        """Pulls each tile back from the product with the values, then joins them again."""
        builder = Builder(graph, match.place)
        slicer, old = Slicer(graph, builder), match.attending.result
        parts: list[Tensor] = [slicer.pull(old, take) for take in match.takes(self.tile)]
        joined = builder.node("Concat", parts, tuple(old.shape), axis=match.axis)
        builder.prune([joined])
        return Replacement(builder, [(old, joined)], slices_left=slicer.count_left())
