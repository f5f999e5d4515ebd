"""What is known of a tensor's shape, and the refusal that says that it is not enough."""

from __future__ import annotations

import numpy as np

from compiler.graph import Shape, Tensor, static_shape
from compiler.take import Dims


class NoRule(Exception):  # noqa: N818 - a refusal, not an error
    """A rule does not know enough about a tensor; an explicit slice is left."""


def dims_of(tensor: Tensor) -> Dims:
    """The dimensions of a tensor: numbers, names, None. Raises NoRule if its rank is unknown."""
    if tensor.shape is None:
        raise NoRule(f"{tensor.name!r} has no shape")
    return tuple(
        int(d) if isinstance(d, int | np.integer) else d or None for d in tensor.shape
    )  # fmt: skip


def rank_of(tensor: Tensor) -> int:
    """The rank of a tensor. Raises NoRule if it is unknown."""
    return len(dims_of(tensor))


def length_of(tensor: Tensor, axis: int) -> int:
    """The length of an axis. Raises NoRule if it is dynamic."""
    length = dims_of(tensor)[axis]
    if not isinstance(length, int) or length < 0:
        raise NoRule(f"axis {axis} of {tensor.name!r} is dynamic")
    return length


def shape_of(tensor: Tensor) -> Shape:
    """The static shape of a tensor. Raises NoRule if it has none."""
    shape = static_shape(tensor)
    if shape is None:
        raise NoRule(f"{tensor.name!r} has no static shape")
    return shape
