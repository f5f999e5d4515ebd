"""The map is averaged with the mirrored map of the mirrored image: (f(x) + flip(f(flip x))) / 2.

    x → network → y
    x → network → a;  x → Gather (columns reversed) → copy of the network → Gather → b;  (a + b)·½

`mode=copy` copies the network node for node, and shares its weights. `mode=batch` runs one network
on both images as a batch: the batch axis is followed through every op (compiler/batching.py). The
columns are reversed by Gather: a Slice with step -1 is slow on the NPU.

Contract: declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler import batching
from compiler.graph import Graph, Tensor, static_shape
from compiler.network import Network, node_made_by, not_image_to_map, whole_network
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

    def match(self, graph: Graph) -> Iterator[Network]:
        """The model."""
        yield from whole_network(graph)

    def guard(self, graph: Graph, match: Network) -> str | None:
        """Refuses a second run, anything but one image in and one map out, and a lost batch."""
        done, fault = node_made_by(graph, self.name), not_image_to_map(match)
        if done or fault:
            return f"the output already is a flip average ({done!r})" if done else fault
        (image,), (result,) = match.inputs, match.outputs
        network = batching.between(graph, image, result)
        if not network:
            return f"{result.name!r} does not depend on {image.name!r}"
        if self.mode == "batch":
            return batching.refusal(graph, image, result, count=2)
        bodies = [node for node in network if any(node.subgraphs())]
        return f"{bodies[0].op} {bodies[0].name!r} has a body to copy" if bodies else None

    def rewrite(self, graph: Graph, match: Network) -> Replacement:
        """Adds the mirrored branch and the average."""
        (image,), (result,) = match.inputs, match.outputs
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
        ((name, image),) = inputs.items()
        ((output, straight),) = f({name: image}).items()
        ((_, twin),) = f({name: image[..., ::-1]}).items()
        return {output: (straight + twin[..., ::-1]) / 2}


def _flipped(builder: Builder, tensor: Tensor) -> Tensor:
    """The tensor with its last axis reversed."""
    *_, width = shape = tuple(tensor.shape)
    columns = builder.ints(range(width - 1, -1, -1), "columns reversed")
    return builder.node("Gather", [tensor, columns], shape, axis=len(shape) - 1)


def _copied(
    graph: Graph, builder: Builder, image: Tensor, result: Tensor, mirrored: Tensor
) -> Copy:
    """A copy of what computes `result` from `image`, reading `mirrored`; constants are shared."""
    twins = {id(image): mirrored}
    pairs = []
    for node in batching.between(graph, image, result):
        twin = builder.copy(node, [twins.get(id(tensor), tensor) for tensor in node.inputs])
        twins |= {id(a): b for a, b in zip(node.outputs, twin.outputs, strict=True)}
        pairs.append((node, twin))
    return Copy(pairs, {image.name: mirrored}, {result.name: twins[id(result)]})
