"""The whole model as a match: what passes that wrap a network ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.graph import PASS_KEY, Graph, Tensor, static_shape
from compiler.region import TensorType


@dataclass(frozen=True)
class Network:
    """The whole model between its inputs and its outputs."""

    place: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def whole_network(graph: Graph) -> Iterator[Network]:
    """The one match that every model has."""
    yield Network(graph.outputs[0].name, graph.inputs, graph.outputs)


def not_image_to_map(network: Network) -> str | None:
    """Why a model isn't from one float image N×C×H×W to one float map …×H×W; None if it is."""
    names = [[t.name for t in tensors] for tensors in (network.inputs, network.outputs)]
    if len(names[0]) != 1 or len(names[1]) != 1:
        return f"the model maps {names[0]} to {names[1]}, not one image to one map"
    (image,), (result,) = network.inputs, network.outputs
    kinds = TensorType.of(image), TensorType.of(result)
    if len(static_shape(image) or ()) != 4 or not kinds[0].is_float:
        return f"the input is {kinds[0]}, not a float N×C×H×W image"
    if len(static_shape(result) or ()) < 3 or not kinds[1].is_float:
        return f"the output is {kinds[1]}, not a float map …×H×W"
    return None


def node_made_by(graph: Graph, pass_name: str) -> str | None:
    """The name of a node that an earlier run of a pass made, if there is one."""
    made = (n for n in graph.nodes if getattr(n, "metadata", {}).get(PASS_KEY) == pass_name)
    return next((node.name for node in made), None)
