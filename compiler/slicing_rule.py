"""What a rule of the slicer is, and what rules share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from compiler.graph import Node, Tensor
from compiler.shapes import NoRule, dims_of, rank_of
from compiler.take import Take

if TYPE_CHECKING:
    from compiler.slicing import Slicer

# (slicer, node, take of its first output) -> the slice, or None to leave a Slice.
Rule = Callable[["Slicer", Node, Take], Tensor | None]


def broadcast(s: Slicer, node: Node, take: Take, tensor: Tensor) -> Tensor:
    """The part of an operand that a slice of the broadcast result needs."""
    if not tensor.name:  # an optional operand that is left out
        return tensor
    shape = dims_of(tensor)
    axis = take.axis - (rank_of(node.outputs[0]) - len(shape))
    if axis < 0:
        return tensor
    if shape[axis] == 1:
        one = Take(axis, 0, 1, drop=True)
        return s.pull(tensor, one) if take.drop else tensor
    if shape[axis] != dims_of(node.outputs[0])[take.axis]:
        raise NoRule(f"axis {axis} of {tensor.name!r} may be broadcast")
    return s.pull(tensor, replace(take, axis=axis))


def parts(s: Slicer, node: Node, take: Take, tensors: list[Tensor]) -> list[Tensor]:
    """The parts of operands that broadcast to the result."""
    return [broadcast(s, node, take, tensor) for tensor in tensors]
