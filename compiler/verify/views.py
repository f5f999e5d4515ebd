"""Slices of tensors as values: which part of one tensor another tensor is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]

# Constant tensors would fit everywhere: so many places are looked at.
PLACES = 4
# What counts as the same number when places are looked for; whole slices are compared properly.
NEAR = 1e-9


@dataclass(frozen=True)
class View:
    """A slice along one axis of the tensor `name` at most, in the shape that the other side has."""

    name: str
    full: Shape
    shape: Shape
    axis: int = 0
    slice: tuple[int, int, int] | None = None
    """Start, end and step along the axis; None for all of it."""

    @classmethod
    def whole(cls, name: str, shape: Sequence[int]) -> View:
        """All of a tensor, as it is."""
        return cls(name, tuple(shape), tuple(shape))

    @property
    def sliced_shape(self) -> Shape:
        """The shape before the other side's ones are added or removed."""
        if self.slice is None:
            return self.full
        extent = len(range(*self.slice))
        return (*self.full[: self.axis], extent, *self.full[self.axis + 1 :])

    def cut(self, values: Any) -> Any:
        """The slice, in the tensor's own rank."""
        if self.slice is None:
            return values
        return values[(slice(None),) * self.axis + (slice(*self.slice),)]

    def of(self, values: Mapping[str, Any]) -> Any:
        """The values of the view."""
        return self.cut(values[self.name]).reshape(self.shape)

    def part(self, axis: int, start: int, stop: int) -> View | None:
        """A slice of the view along one of its axes, if that is one slice of the tensor."""
        extent = self.shape[axis]
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        if (start, stop) == (0, extent):
            return self
        if stop > extent or (self.slice is not None and self.shape != self.sliced_shape):
            return None
        if self.slice is None:
            own = _axis_in(self.full, self.shape, axis)
            return None if own is None else View(self.name, self.full, shape, own, (start, stop, 1))
        if axis != self.axis:
            return None
        first, _, step = self.slice
        return View(self.name, self.full, shape, axis,
                    (first + start * step, first + stop * step, step))  # fmt: skip

    def __str__(self) -> str:
        if self.slice is None:
            return self.name
        start, stop, step = self.slice
        text = f"{start}:{stop}" + (f":{step}" if step != 1 else "")
        return f"{self.name}[{', '.join([':'] * self.axis + [text])}]"


def views_of_shape(shape: Shape, name: str, full: Shape) -> Iterator[View]:
    """The slices of a tensor that have a shape up to ones: aligned blocks, and combs of them."""
    for axis, extent in _families(shape, full):
        if extent is None:
            yield View(name, full, shape)
            continue
        count = full[axis] // extent
        for i in range(count):
            yield View(name, full, shape, axis, (i * extent, (i + 1) * extent, 1))
        if extent > 1 and count * extent == full[axis]:
            for i in range(count):
                yield View(name, full, shape, axis, (i, i + (extent - 1) * count + 1, count))


def views_equal_to(values: Any, name: str, other: Any) -> Iterator[View]:
    """The slices of a tensor whose first numbers are those of `values`; the rest is to be seen."""
    values, other = np.asarray(values), np.asarray(other)
    if values.dtype != other.dtype or not values.size:
        return
    for axis, extent in _families(values.shape, other.shape):
        if extent is None:
            yield View(name, other.shape, values.shape)
            continue
        line = np.moveaxis(other, axis, 0).reshape(other.shape[axis], -1)[:, 0]
        wanted = values.reshape((*other.shape[:axis], extent, *other.shape[axis + 1 :]))
        firsts = np.moveaxis(wanted, axis, 0).reshape(extent, -1)[:, 0]
        for start, step in _places(line, firsts):
            stop = start + (extent - 1) * step + 1
            yield View(name, other.shape, values.shape, axis, (start, stop, step))


def _families(shape: Shape, full: Shape) -> Iterator[tuple[int, int | None]]:
    """The axes of `full`, and how much of each, that give `shape` up to ones; None: all of it."""
    wanted = _without_ones(shape)
    if wanted == _without_ones(full):
        yield 0, None
        return
    size, total = math.prod(shape), math.prod(full)
    for axis, length in enumerate(full):
        rest = total // length if length else 0
        extent = size // rest if rest and size % rest == 0 else 0
        sliced = (*full[:axis], extent, *full[axis + 1 :])
        if 0 < extent < length and _without_ones(sliced) == wanted:
            yield axis, extent


def _places(line: Any, firsts: Any) -> Iterator[tuple[int, int]]:
    """Starts and steps at which the numbers of a line are those wanted."""
    starts = np.flatnonzero(_near(line, firsts[0]))[:PLACES]
    if len(firsts) == 1:
        yield from ((int(start), 1) for start in starts)
        return
    seconds = np.flatnonzero(_near(line, firsts[1]))[:PLACES]
    for start in starts:
        for step in (int(second - start) for second in seconds if second > start):
            found = line[start : start + (len(firsts) - 1) * step + 1 : step]
            if len(found) == len(firsts) and bool(_near(found, firsts).all()):
                yield int(start), step


def _near(values: Any, wanted: Any) -> Any:
    if values.dtype.kind != "f":
        return values == wanted
    return np.isclose(values, wanted, rtol=NEAR, atol=NEAR, equal_nan=True)


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _axis_in(full: Shape, shape: Shape, axis: int) -> int | None:
    """The axis of `full` that an axis of the same shape, up to ones, is."""
    if _without_ones(full) != _without_ones(shape) or shape[axis] == 1:
        return None
    rank = len(_without_ones(shape[:axis]))
    return [own for own, size in enumerate(full) if size != 1][rank]
