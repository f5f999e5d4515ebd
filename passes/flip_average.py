"""The map is averaged with the mirrored map of the mirrored image: (f(x) + flip(f(flip x))) / 2.

    x → network → y
    x → network → a;  x → Gather (columns reversed) → copy of the network → Gather → b;  (a + b)·½

`mode=copy` copies the network node for node, and shares its weights. `mode=batch` runs one network
on both images as a batch: the batch axis is followed through every op (compiler/batching.py). The
columns are reversed by Gather: a Slice with step -1 is slow on the NPU. After `mode=copy`,
`fold_flip` mirrors the copy's weights, and nothing is flipped any more. Other inputs are the same
for both, other outputs those of the image as it is; where several are images or maps,
`input=NAME:output=NAME` says which.

Contract: declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler import batching
from compiler.graph import Graph, Tensor, static_shape
from compiler.network import (
    Network,
    image_and_map,
    node_made_by,
    not_image_to_map,
    whole_network,
)
from compiler.rewrite import (
    Builder,
    Copy,
    DeclaredPass,
    Float64,
    Function,
    Replacement,
    Signature,
)


@dataclass(frozen=True)
class FlipAverage(DeclaredPass[Network]):
    """See the module."""

    mode: Literal["copy", "batch"] = "copy"
    input: str = ""
    output: str = ""

    def match(self, graph: Graph) -> Iterator[Network]:
        """The model."""
        yield from whole_network(graph)

    def guard(self, graph: Graph, match: Network) -> str | None:
        """Refuses a second run, no image or no map, or several, and a lost batch."""
        done = node_made_by(graph, self.name)
        fault = not_image_to_map(match, self.input, self.output)
        if done or fault:
            return f"the output already is a flip average ({done!r})" if done else fault
        image, result = match.image_and_map(self.input, self.output)
        network = batching.between(graph, [image], result)
        if not network:
            return f"{result.name!r} does not depend on {image.name!r}"
        if self.mode == "batch":
            return _why_not_batch(graph, match, image, result)
        copied = batching.between(graph, match.inputs, result)
        bodies = [node for node in copied if any(node.subgraphs())]
        return f"{bodies[0].op} {bodies[0].name!r} has a body to copy" if bodies else None

    def rewrite(self, graph: Graph, match: Network) -> Replacement:
        """Adds the mirrored branch and the average."""
        image, result = match.image_and_map(self.input, self.output)
        builder = Builder(graph, self.name)
        mirrored = _flipped(builder, image)
        copies = []
        if self.mode == "copy":
            copies = [_copied(graph, builder, image, result, mirrored)]
            straight, twin = result, copies[0].outputs[result.name]
        else:
            straight, twin = batching.batched(graph, builder, image, result, [image, mirrored])
        shape = static_shape(result)
        total = builder.node("Add", [straight, _flipped(builder, twin)], shape)
        half = builder.constant(np.array(0.5), result.dtype, "half")
        average = builder.node("Mul", [total, half], shape)
        return Replacement(builder, [(result, average)], copies=copies)

    def expected(
        self, f: Function, inputs: Mapping[str, Float64], before: Signature
    ) -> dict[str, Float64]:
        """Both maps with NumPy's own flip."""
        name, output = image_and_map(before, self.input, self.output)
        results = f(inputs)
        twin = f({**inputs, name: inputs[name][..., ::-1]})[output]
        return {**results, output: (results[output] + twin[..., ::-1]) / 2}


def _why_not_batch(graph: Graph, match: Network, image: Tensor, result: Tensor) -> str | None:
    """Why one network can't run on both images."""
    if len(match.outputs) > 1:
        names = [tensor.name for tensor in match.outputs if tensor is not result]
        return f"mode=batch: {names} are outputs, too (mode=copy takes them)"
    network = {id(node) for node in batching.between(graph, [image], result)}
    for node in batching.between(graph, match.inputs, result):
        if id(node) not in network:
            return f"mode=batch: {node.op} {node.name!r} reads other inputs only (mode=copy does)"
    return batching.refusal(graph, image, result, count=2)


def _flipped(builder: Builder, tensor: Tensor) -> Tensor:
    """The tensor with its last axis reversed."""
    *_, width = shape = tuple(tensor.shape)
    columns = builder.ints(range(width - 1, -1, -1), "columns reversed")
    return builder.node("Gather", [tensor, columns], shape, axis=len(shape) - 1)


def _copied(
    graph: Graph, builder: Builder, image: Tensor, result: Tensor, mirrored: Tensor
) -> Copy:
    """A copy of what computes `result`, reading `mirrored` for `image`; constants are shared.

    What computes it from other inputs alone is copied, too: a copy is proven against the network.
    """
    twins = {id(image): mirrored}
    pairs = []
    for node in batching.between(graph, graph.inputs, result):
        twin = builder.copy(node, [twins.get(id(tensor), tensor) for tensor in node.inputs])
        twins |= {id(a): b for a, b in zip(node.outputs, twin.outputs, strict=True)}
        pairs.append((node, twin))
    plugs = {tensor.name: twins.get(id(tensor), tensor) for tensor in graph.inputs}
    return Copy(pairs, plugs, {result.name: twins[id(result)]})
