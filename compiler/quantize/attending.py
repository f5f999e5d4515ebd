"""The nodes of every attention: what makes queries, keys and values, the scores, and their Softmax.

On the NPU they are the part of a transformer that gains most from 8 bits, for its Softmax of 16
bits is slow; and every node in between has to have them, or the NPU converts each head there and
back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compiler.attention import Attending, attendings
from compiler.graph import Graph, Node, Tensor, producer_of

_PRODUCTS = frozenset({"Conv", "Einsum", "Gemm", "MatMul"})
_MOVES = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_SCALES = frozenset({"Add", "Div", "Mul", "Sub"})
# Masks, and a Softmax that is taken apart.
_SCORING = frozenset({"Exp", "IsNaN", "Not", "ReduceMax", "ReduceSum", "Softmax", "Where"})


def attention_nodes(graph: Graph) -> list[Node]:
    """The nodes of all attentions: from the projections to the product with the values.

    Where no projection makes queries, keys or values, they begin with the scores. Attention ops,
    and what is in the bodies of If, Loop and Scan or in local functions, are left out.
    """
    found: dict[int, Node] = {}
    for attending in attendings(graph, tiled=True):
        if not attending.inside and not attending.is_whole_op:
            found |= {id(node): node for node in _nodes(graph, attending)}
    return list(found.values())


def _nodes(graph: Graph, attending: Attending) -> list[Node]:
    weighed = {id(tensor) for tensor in attending.probabilities}
    values = [t for t in attending.product.inputs if id(t) not in weighed]
    scoring = _up_to_products(
        attending.probabilities, lambda node: node.op in _MOVES | _SCALES | _SCORING
    )
    queries_and_keys = [t for node in scoring if node.op in _PRODUCTS for t in node.inputs]

    def keeps_projections(node: Node) -> bool:
        computed = [t for t in node.inputs if not graph.is_constant(t)]
        return node.op in _MOVES or (node.op in _SCALES and len(computed) == 1)

    projecting = _up_to_products([*queries_and_keys, *values], keeps_projections)
    return [attending.product, *scoring, *projecting]


def _up_to_products(tensors: Iterable[Tensor], passes: Callable[[Node], bool]) -> list[Node]:
    """The nodes between tensors and the products that they come from, these included."""
    found: dict[int, dict[int, Node]] = {}

    def behind(tensor: Tensor) -> dict[int, Node]:
        node = producer_of(tensor)
        if node is None:
            return {}
        if id(node) not in found:
            found[id(node)] = {id(node): node} if node.op in _PRODUCTS else {}
            if passes(node):
                above = {key: n for source in node.inputs for key, n in behind(source).items()}
                found[id(node)] = {id(node): node, **above} if above else {}
        return found[id(node)]

    return list({key: n for tensor in tensors for key, n in behind(tensor).items()}.values())
