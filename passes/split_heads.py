"""Attention becomes one subgraph per head, from the projections' weights to the merge.

    MatMul[1×N×3C] → Reshape, Transpose … → MatMul → Softmax[1×H×N×N] → MatMul → Transpose, Reshape
    H × (MatMul[1×N×D] ×3 → MatMul → Softmax[1×N×N] → MatMul[1×N×D]) → Concat[1×N×C]

Nothing is known about how query, key and value were packed: each head's columns of the merged
result are pulled back through whatever computes them, down to slices of the projections' weights.
`group=N` keeps N heads in a subgraph; `merge=sum` multiplies each head by its own rows of the
output projection and adds, instead of concatenating first. An Attention op becomes one a group.
Probabilities that something else needs as well are joined from the heads'.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: IQ-9075 44.82 → 44.45 | 17.35 → 17.14,
SA8797 16.89 → 16.08 | 7.02 → 6.86; where q, k and v are packed into one projection, IQ-9075 56.29 →
44.00 at 518.

Contract: exact with `merge=concat`, algebraic with `merge=sum` (the projection's sum is regrouped).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from compiler.attention import no_attention
from compiler.graph import Graph, Node, Tensor
from compiler.heads import Heads, heads_of
from compiler.rewrite import Builder, Contract, LocalPass, Replacement
from compiler.slicing import Slicer, Take, why_whole


@dataclass(frozen=True)
class Attention:
    """An attention of several heads: a Softmax, the product with the values, and the merge."""

    place: str
    heads: Heads

    def take(self, first: int, count: int) -> Take:
        """The slice of the merged result that `count` heads from `first` on make."""
        block = self.heads.block
        return Take(self.heads.merged_axis, first * block, (first + count) * block)


@dataclass(frozen=True)
class SplitHeads(LocalPass[Attention]):
    """See the module."""

    merge: Literal["concat", "sum"] = "concat"
    group: int = 1

    @property
    def contract(self) -> Contract:
        """Concatenation moves data; summing projections regroups a sum."""
        return "exact" if self.merge == "concat" else "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says whether there is no attention, or only such of one head."""
        return no_attention(graph)

    def match(self, graph: Graph) -> Iterator[Attention]:
        """Every Softmax whose probabilities multiply values, with an axis of more than one head."""
        for heads in heads_of(graph):
            yield Attention(heads.tiles[0].result.name, heads)

    def guard(self, graph: Graph, match: Attention) -> str | None:
        """Refuses what has no known heads, uneven groups, and `sum` without a projection."""
        heads = match.heads
        fault = heads.fault(graph)
        if fault is not None:
            return fault
        assert heads.count is not None
        if heads.count == self.group:
            return f"it already is one group of {self.group} heads"
        if heads.count % self.group:
            return f"{heads.count} heads can't be divided into groups of {self.group}"
        repeats = heads.heads_a_key
        if repeats % self.group and self.group % repeats:
            return f"groups of {self.group} heads would share keys with others: {repeats} a key"
        if self.merge == "sum" and heads.projection(graph) is None:
            return f"merge=sum: {heads.merged.name!r} is not only multiplied by constant weights"
        return why_whole(graph, heads.merged, heads.first(self.group))

    def rewrite(self, graph: Graph, match: Attention) -> Replacement:
        """Pulls each group of heads back from the merge, then joins the groups again."""
        builder, heads = Builder(graph, match.place), match.heads
        slicer, old = Slicer(graph, builder), match.heads.merged
        assert heads.count is not None
        firsts = range(0, heads.count, self.group)
        takes = [match.take(first, self.group) for first in firsts]
        parts = [slicer.pull(old, take) for take in takes]
        if self.merge == "concat":
            joined = builder.node("Concat", parts, tuple(old.shape), axis=heads.merged_axis)
        else:
            projection = heads.projection(graph)
            assert projection is not None
            old, joined = projection.outputs[0], _summed(slicer, projection, parts, takes)
        done = [(old, joined)]
        for tensor, axis in heads.kept(graph):
            own = [Take(axis, first, first + self.group) for first in firsts]
            done.append((tensor, slicer.rejoined(tensor, own)))
        builder.prune([new for _, new in done])
        return Replacement(builder, done, slices_left=slicer.count_left())


def _summed(slicer: Slicer, projection: Node, parts: list[Tensor], takes: list[Take]) -> Tensor:
    """Σ over groups of (group · its rows of the projection)."""
    output, weights = projection.outputs[0], projection.inputs[1]
    total = None
    for part, take in zip(parts, takes, strict=True):
        rows = slicer.pull(weights, Take(0, take.start, take.stop))
        shape = tuple(output.shape)
        term = slicer.builder.node("MatMul", [part, rows], shape, source=projection)
        total = term if total is None else slicer.builder.node("Add", [total, term], shape)
    return total
