"""A flip goes into the weights of the network behind it, which then takes the image as it is.

    x → Gather (columns reversed) → Conv(k, pads l, r) → … Add(positions) … → Gather (reversed) → y
    x → Conv(k mirrored, pads r, l) → … Add(positions mirrored) … → y

Behind `flip_average` nothing is flipped any more: flip(f(flip x)) is f with every op exchanged for
its mirror image (compiler/mirroring.py). Kernels, their padding and constants that lie along the
columns are mirrored. Tokens keep the order of the image: a product of matrices and a Softmax take
them in any order. Colours in reverse order go into the first convolution in the same way. A flip is
followed until another one undoes it or an op makes one number of the axis; it stays where an op
knows left from right.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: behind split_heads and flip_average,
IQ-9075 88.03 → 88.18 | 33.52 → 31.04, SA8797 32.26 → 32.09 | 13.98 → 12.52.

Contract: algebraic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from compiler.graph import Graph, Node, Tensor, reads_of
from compiler.mirroring import Step, Unmirrorable, flip_of, rebuilt, steps_behind
from compiler.rewrite import (
    Builder,
    Contract,
    LocalPass,
    Replacement,
    needed_nodes,
    read_elsewhere,
)


@dataclass(frozen=True)
class Flip:
    """A flip, and what becomes of every node that sees it; or why it has to stay."""

    place: str
    node: Node
    steps: list[Step] = field(default_factory=list)
    fault: str | None = None


@dataclass(frozen=True)
class FoldFlip(LocalPass[Flip]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """A mirrored convolution adds the same products in another order."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to fold: no Gather or Slice reverses an axis"

    def match(self, graph: Graph) -> Iterator[Flip]:
        """Every flip but those that undo another, or have to stay as one before them has to."""
        undone: set[int] = set()
        behind: set[int] = set()
        for node in needed_nodes(graph):
            is_behind = any(id(tensor) in behind for tensor in reads_of(node))
            if id(node) not in undone and flip_of(graph, node) is not None:
                try:
                    steps = steps_behind(graph, node)
                    undone |= {id(step.node) for step in steps}
                    yield Flip(node.outputs[0].name, node, steps)
                except Unmirrorable as reason:
                    if not is_behind:
                        yield Flip(node.outputs[0].name, node, fault=str(reason))
                    is_behind = True
            if is_behind:
                behind |= {id(tensor) for tensor in node.outputs}

    def guard(self, graph: Graph, match: Flip) -> str | None:
        """Refuses a flip that an op, or an output, needs."""
        return match.fault

    def rewrite(self, graph: Graph, match: Flip) -> Replacement:
        """The nodes again, on what was there before the flip."""
        builder = Builder(graph, match.place)
        new = {id(match.node.outputs[0]): match.node.inputs[0]}
        for step in match.steps:
            inputs = [new.get(id(tensor), tensor) for tensor in step.node.inputs]
            outputs = rebuilt(graph, builder, step, inputs)
            new |= {id(old): one for old, one in zip(step.node.outputs, outputs, strict=True)}
        done: list[tuple[Tensor, Tensor]] = []
        for old in read_elsewhere(graph, [step.node for step in match.steps]):
            one = new[id(old)]
            if any(one is other for _, other in done):  # two flips undo this one
                one = builder.node("Identity", [one], tuple(one.shape))
            done.append((old, one))
        return Replacement(builder, done)
