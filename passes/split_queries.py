"""Attention becomes one subgraph per tile of query tokens, each of which attends to all keys.

    MatMul(q, kᵀ)[1×H×1370×1370] → Softmax → MatMul(p, v)[1×H×1370×D]
    ⌈1370 / tile⌉ × (MatMul(q[:, :, a:b], kᵀ) → Softmax → MatMul(·, v)) → Concat[1×H×1370×D]

The scores of a tile fit where those of all queries do not. A tile's rows are pulled back through
masks, position biases and scales to a slice of the queries as the scores' product reads them: all
queries are projected once, and the projection keeps its bias. Keys and values are shared. The last
tile is smaller, or, with `last=full`, begins in the one before and computes some rows again, which
are cut off. Before or after split_heads, in either order; with `last=full` behind it.

Two tiles of 704 are 16 times the 88 rows that tile_softmax:rows=11 has computed at once. With all
1370 rows in one, what the NPU's compiler does behind such a Softmax is no part of its tiles, and
all heads' probabilities are spilled until it is done (350 MB).

Measured on Depth Anything V2 Small at 518, `tile=704:last=full` with tile_softmax:rows=11, against
tile_softmax:rows=10 alone, behind fold_norm, split_heads, fold_scale and hoist_conv, simulated ms:
IQ-9075 37.80 → 36.83, SA8797 15.42 → 15.20 (14.69 without either). Of so few queries tiles pay
nowhere without tile_softmax.

A global layer of SAM-B's image encoder at 1024×1024 has 4096. With the pipeline of tools/npu.toml,
on IQ-9075: 70.28 → 54.46 with `tile=2048`, 56.88 with 1024, 60.38 with `tile=704:last=full`; SA8797
18.82 with 2048. Behind join_products the scores' product reads queries with positions beside them,
which are products of them: those queries are cut behind their projection, before its bias, and each
tile computes its own positions. Cut behind the bias it was 56.42, behind the Concat 66.35.

Contract: exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

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
    last: Literal["short", "full"] = "short"

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
        if self.tile < 1:
            return f"tile={self.tile} is not a number of query tokens"
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
        slicer.compute_whole(match.attending.operands)
        parts: list[Tensor] = []
        for take in match.takes(self.tile):
            again = self.tile - take.size if self.last == "full" else 0
            rows = slicer.pull(old, replace(take, start=take.start - again))
            own = Take(match.axis, again, self.tile)
            parts.append(slicer.cut(rows, own) if again else rows)
        joined = builder.node("Concat", parts, tuple(old.shape), axis=match.axis)
        builder.prune([joined])
        return Replacement(builder, [(old, joined)], slices_left=slicer.count_left())
