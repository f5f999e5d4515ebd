"""The layers of a graph: pieces in its order that few tensors lead into and out of.

A residual network is narrowest behind each addition to the residual stream: that is where it is
cut, whatever its exporter or earlier passes named the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from compiler.exported import SCOPES_KEY, listed
from compiler.graph import Graph, Node

# As many as can be quantized one by one in a few minutes.
MOST_LAYERS = 16


@dataclass(frozen=True)
class Layer:
    """Nodes that follow each other, by name, and what the exporter called their module."""

    title: str
    nodes: tuple[str, ...]


def layers_of(graph: Graph, most: int = MOST_LAYERS) -> list[Layer]:
    """At most `most` layers, which hold every node once, in order.

    The heaviest piece is cut at its narrowest place, the one nearest its middle, again and again.
    """
    widths = _widths(graph)
    weights = [_weight(graph, node) for node in graph.nodes]
    sums = [0, *accumulate(weights)]
    pieces = [(0, len(graph.nodes))]
    while len(pieces) < most:
        largest = max(pieces, key=lambda piece: (piece[1] - piece[0] > 1) * _sum(sums, piece))
        start, end = largest
        if end - start < 2:
            break
        middle = (sums[start] + sums[end]) / 2
        cut = min(range(start + 1, end), key=lambda i: (widths[i - 1], abs(sums[i] - middle)))
        position = pieces.index(largest)
        pieces[position : position + 1] = [(start, cut), (cut, end)]
    layers = [graph.nodes[start:end] for start, end in pieces]
    return [Layer(_title(nodes), tuple(node.name for node in nodes)) for nodes in layers if nodes]


def _sum(sums: Sequence[int], piece: tuple[int, int]) -> int:
    return sums[piece[1]] - sums[piece[0]]


def _widths(graph: Graph) -> list[int]:
    """How many computed tensors are alive behind each node: made so far, and read later."""
    last = {id(t): i for i, node in enumerate(graph.nodes) for t in node.inputs}
    last |= {id(t): len(graph.nodes) for t in graph.outputs}
    change = [0] * (len(graph.nodes) + 1)
    for i, node in enumerate(graph.nodes):
        for tensor in node.outputs:
            if last.get(id(tensor), i) > i:
                change[i] += 1
                change[last[id(tensor)]] -= 1
    widths, alive = [], 0
    for step in change[:-1]:
        alive += step
        widths.append(alive)
    return widths


def _weight(graph: Graph, node: Node) -> int:
    """The bytes of weights that a node reads, and one for itself."""
    return 1 + sum(int(w.nbytes) for t in node.inputs if (w := graph.weight(t)) is not None)


def _title(nodes: Sequence[Node]) -> str:
    """The innermost module that most of the nodes are in; else the first node and the last.

    Nodes that earlier passes made are in none.
    """
    scopes = [listed(getattr(node, "metadata", {}).get(SCOPES_KEY, "")) for node in nodes]
    paths = [scope[-2].split(".") for scope in scopes if len(scope) > 1 and scope[-2]]
    counts = Counter(".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1))
    most = [name for name, count in counts.items() if 2 * count > len(paths)]
    return max(most, key=len) if most else f"{nodes[0].name} … {nodes[-1].name}"
