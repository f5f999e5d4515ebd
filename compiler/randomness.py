"""Which nodes draw random numbers: two of them are never one computation, however alike."""

from __future__ import annotations

from itertools import chain

from compiler.graph import Graph, Node

RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike",
                    "RandomUniform", "RandomUniformLike"})  # fmt: skip


def draws(graph: Graph, node: Node) -> bool:
    """Whether a node draws random numbers: Dropout may where it is not known to be inference."""
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2].name:
        return node.op in RANDOM
    is_training = graph.values(node.inputs[2])
    return is_training is None or bool(is_training.any())


def is_random(graph: Graph) -> bool:
    """Whether any node of a model draws, in the bodies and local functions, too."""
    inner = chain.from_iterable(nodes for _, nodes in graph.bodies())
    return any(draws(graph, node) for node in chain(graph.nodes, inner))
