"""The rows of a Softmax become a matrix of rows, of which the NPU's compiler takes other tiles.

    scores[1×N×K] → Mul 1/√D → Softmax → [1×N×K]
    scores → Reshape[1×N/t×t×K] → Mul 1/√D → Softmax → Reshape[1×N×K]

No number changes. The NPU computes a Softmax tile by tile, in its on-chip memory; how large a tile
is follows from the shape, and wide rows get a costly one: above 1344 keys a row costs 45 % more.
What scales and shifts the scores by one number goes between the Reshapes, too: the NPU computes it
with the Softmax, which a Reshape in between would prevent (39.6 → 62.2 ms).

Measured on Depth Anything V2 Small, 518 (N = 1370, rows=10) | 350 (behind pad_tokens:multiple=20:
N = 640, rows=20), simulated ms, behind fold_norm, split_heads, fold_scale and hoist_conv:
IQ-9075 39.61 → 37.80 | 14.56 → 14.16, SA8797 14.69 → 15.42 | 5.77 → 5.87. It costs where the chip
has memory enough: let `tune` or `build --target` decide. What counts is how many rows the NPU takes
at once, 8 times `rows` as long as they fit into 256 KiB: of 1370 keys 88 (rows=11) cost as much as
64 (rows=8). split_queries makes tiles of queries that 11 divides: 36.83 ms.

Contract: exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from compiler.graph import Graph, Node, is_standard, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType

SCALING = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass(frozen=True)
class Rows:
    """A Softmax node."""

    place: str
    softmax: Node

    def scaling(self, graph: Graph) -> list[Node]:
        """What scales and shifts the scores by one number each, in order, for the Softmax alone."""
        found: list[Node] = []
        node = producer_of(self.softmax.inputs[0])
        while node is not None and _is_scaling(graph, node):
            found.insert(0, node)
            node = producer_of(node.inputs[_place_of_data(graph, node)])
        return found


@dataclass(frozen=True)
class TileSoftmax(LocalPass[Rows]):
    """See the module."""

    rows: int = 10

    @property
    def contract(self) -> Contract:
        """Each row is computed as before."""
        return "exact"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to tile: no Softmax"

    def match(self, graph: Graph) -> Iterator[Rows]:
        """Every Softmax."""
        for node in graph.nodes:
            if node.op == "Softmax" and is_standard(node):
                yield Rows(node.outputs[0].name, node)

    def guard(self, graph: Graph, match: Rows) -> str | None:
        """Refuses unknown sizes, other axes than the last, and rows that make no full tiles."""
        scores = match.softmax.inputs[0]
        shape = static_shape(scores)
        if shape is None or len(shape) < 2 or 0 in shape:
            return f"{scores.name!r} is {TensorType.of(scores)}: its rows have to be known"
        axis = match.softmax.attrs.get("axis", -1 if graph.opset >= 13 else 1)
        if axis not in (-1, len(shape) - 1):
            return f"the Softmax runs over axis {axis} of {list(shape)}"
        if self.rows < 2 or shape[-2] <= self.rows or shape[-2] % self.rows:
            return f"{scores.name!r} has {shape[-2]} rows: they make no tiles of {self.rows}"
        return None

    def rewrite(self, graph: Graph, match: Rows) -> Replacement:
        """A Softmax of one more axis between two Reshapes."""
        builder = Builder(graph, match.place)
        scaling = match.scaling(graph)
        first = scaling[0] if scaling else match.softmax
        scores = first.inputs[_place_of_data(graph, first)]
        *batch, rows, keys = scores.shape
        tiles = (*batch, rows // self.rows, self.rows, keys)
        tiled = builder.node("Reshape", [scores, builder.ints(tiles, "tiles of rows")], tiles)
        for node in scaling:
            inputs = list(node.inputs)
            inputs[_place_of_data(graph, node)] = tiled
            tiled = builder.copy(node, inputs).outputs[0]
            tiled.shape = list(tiles)
        weighed = builder.node("Softmax", [tiled], tiles, source=match.softmax, axis=len(tiles) - 1)
        flat = builder.ints(scores.shape, "rows again")
        result = builder.node("Reshape", [weighed, flat], scores.shape)
        return Replacement(builder, [(match.softmax.outputs[0], result)])


def _is_scaling(graph: Graph, node: Node) -> bool:
    """Whether a node computes with one number for all, and a single node reads its result."""
    if node.op not in SCALING or not is_standard(node):
        return False
    result, data = node.outputs[0], node.inputs[_place_of_data(graph, node)]
    other = graph.weight(node.inputs[1 - _place_of_data(graph, node)])
    is_one = other is not None and math.prod(other.shape) == 1
    same = static_shape(data) == static_shape(result) is not None
    return is_one and same and len(result.outputs) == 1 and not graph.is_output(result)


def _place_of_data(graph: Graph, node: Node) -> int:
    """Which input is computed: the other one of 1/√D · scores may come first."""
    return int(len(node.inputs) > 1 and graph.is_constant(node.inputs[0]))
