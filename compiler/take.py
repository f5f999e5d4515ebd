"""Slices of one axis, and what they are before a reshape: index arithmetic, no graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

# The dimensions of a tensor: numbers, names of dynamic ones, and None for what nobody knows.
Dims = tuple[Any, ...]


@dataclass(frozen=True)
class Take:
    """`tensor[..., start:stop:step, ...]` along `axis`; `drop` removes the axis (one index)."""

    axis: int
    start: int
    stop: int
    step: int = 1
    drop: bool = False

    @property
    def size(self) -> int:
        """How many indices are taken."""
        return len(self.indices)

    @property
    def indices(self) -> range:
        """The indices that are taken."""
        return range(self.start, self.stop, self.step)

    def shape(self, shape: Dims) -> Dims:
        """The shape of a tensor of `shape` after the slice."""
        kept = () if self.drop else (self.size,)
        return (*shape[: self.axis], *kept, *shape[self.axis + 1 :])

    def axis_after(self, axis: int) -> int:
        """Where another axis of the tensor is after the slice."""
        return axis - (self.drop and axis > self.axis)

    def then(self, take: Take) -> Take:
        """The slice of the same axis that `take` of this slice is."""
        start, step = self.start + take.start * self.step, self.step * take.step
        stop = start + (take.size - 1) * step + 1
        return Take(self.axis, start, stop, step if take.size > 1 else 1, take.drop)

    def within(self, first: int, length: int) -> Take | None:
        """The part of the slice that is in `length` indices from `first` on, counted from there."""
        inside = [index - first for index in self.indices if first <= index < first + length]
        return replace(self, start=inside[0], stop=inside[-1] + 1) if inside else None

    def is_whole(self, length: int) -> bool:
        """Whether the slice is the whole axis."""
        return not self.drop and (self.start, self.stop, self.step) == (0, length, 1)


def takes_before_reshape(source: Dims, target: Dims, take: Take) -> list[Take] | None:
    """The slices of a reshape's input that leave a slice of its output, in order; None if none do.

    In row-major order, runs of axes with equal products hold the same numbers on both sides. Within
    a run, both shapes split one range of numbers into the same factors, of which every axis is a
    product: the slice is a box of these factors, and that is a slice of each input axis (C = H·D
    gives a range, C = D·H a strided slice, an index of B·H an index of each). Dynamic dimensions
    stop at nothing but the runs that they are in.
    """
    if 0 in source or 0 in target or target[take.axis] == 1:
        return None
    for sources, targets in runs(source, target):
        if take.axis in targets:
            sizes, lengths = [source[a] for a in sources], [target[a] for a in targets]
            position = take.axis - targets.start
            found = _takes_within(sizes, lengths, position, replace(take, axis=position))
            if found is not None:
                found = [replace(one, axis=one.axis + sources.start) for one in found]
            return found
    return None


def runs(source: Dims, target: Dims) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of one tensor, in the shortest runs with equal products.

    From the last ones as far as they are known, then from the first ones as far as they are equal.
    """
    i, j = len(source), len(target)
    while i > 0 and j > 0:
        run = _last_run(source[:i], target[:j]) or _unknown(source[:i], target[:j])
        if run is None:
            break
        yield range(run[0], i), range(run[1], j)
        i, j = run
    for axis, (size, length) in enumerate(zip(source[:i], target[:j], strict=False)):
        if size != length or size is None:
            break
        yield range(axis, axis + 1), range(axis, axis + 1)


def _unknown(source: Dims, target: Dims) -> tuple[int, int] | None:
    """Where the last axes begin if they are equal, as all before them have one known product."""
    before, after = source[:-1], target[:-1]
    are_known = all(isinstance(d, int) and d > 0 for d in (*before, *after))
    if are_known and math.prod(before) == math.prod(after):
        return len(before), len(after)
    return None


def _last_run(source: Dims, target: Dims) -> tuple[int, int] | None:
    """Where the shortest equal runs at the ends of two shapes begin."""
    i, j = len(source) - 1, len(target) - 1
    size, length = source[i], target[j]
    if size == length and size is not None:
        return i, j
    while size != length:
        is_source = isinstance(size, int) and isinstance(length, int) and size < length
        if not (isinstance(size, int) and isinstance(length, int)) or not (i if is_source else j):
            return None
        if is_source:
            i -= 1
            size = size * source[i] if isinstance(source[i], int) else None
        else:
            j -= 1
            length = length * target[j] if isinstance(target[j], int) else None
    return None if size is None else (i, j)


def _takes_within(
    sizes: Sequence[int], lengths: Sequence[int], axis: int, take: Take
) -> list[Take] | None:
    """The slices of a run's input axes; those that the output axis merges are dropped if single."""
    if list(sizes) == list(lengths):
        return [take]
    strides, low, total = _strides(sizes), _strides(lengths)[axis], math.prod(sizes)
    high = low * lengths[axis]
    cuts = sorted({*strides, low, high, total})
    if any(outer % inner for inner, outer in pairwise(cuts)):
        is_range = high == total and take.step == 1
        return _interval(sizes, range(take.start * low, take.stop * low)) if is_range else None
    inside = [(b // a, a) for a, b in pairwise(cuts) if low <= a < high][::-1]
    box = _box([size for size, _ in inside], take.indices)
    if box is None:
        return None
    taken = {stride: part for (_, stride), part in zip(inside, box, strict=True)}
    parts: dict[int, range] = {}
    for position, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        own = [(b // a, a) for a, b in pairwise(cuts) if stride <= a < stride * size][::-1]
        joined = _joined([(n, taken.get(a, range(n))) for n, a in own])
        if joined is None:
            return None
        if len(joined) < size:
            parts[position] = joined
    merged = [p for p in parts if low <= strides[p] and strides[p] * sizes[p] <= high]
    return _in_order(parts, merged, take)


def _interval(sizes: Sequence[int], taken: range) -> list[Take] | None:
    """A range of a run's numbers, whose shapes share no factors, as slices of the input axes."""
    box = _box(sizes, taken)
    if box is None:
        return None
    parts = {k: part for k, part in enumerate(box) if len(part) < sizes[k]}
    return _in_order(parts, list(parts), Take(0, 0, len(taken)))


def _in_order(parts: dict[int, range], merged: list[int], take: Take) -> list[Take]:
    """Takes of the axes, one after the other; a single index keeps the last of them as asked."""
    found: list[Take] = []
    dropped = 0
    for position, part in parts.items():
        drop = position in merged and len(part) == 1
        if take.size == 1 and merged and position == merged[-1]:
            drop = take.drop
        found.append(Take(position - dropped, part.start, part.stop, part.step, drop))
        dropped += drop
    return found


def _strides(sizes: Sequence[int]) -> list[int]:
    return [*accumulate(sizes[:0:-1], int.__mul__, initial=1)][::-1]


def _box(sizes: Sequence[int], taken: range) -> list[range] | None:
    """A progression of indices as one progression a factor; None if it is no such box."""
    if len(sizes) == 1:
        return [taken]
    inner, step = math.prod(sizes[1:]), taken.step
    first, last = divmod(taken[0], inner), divmod(taken[-1], inner)
    outer = range(first[0], last[0] + 1)
    if len(outer) == 1:
        rest = range(first[1], last[1] + 1, step)
    elif step % inner == 0:
        outer, rest = range(first[0], last[0] + 1, step // inner), range(first[1], first[1] + 1)
    elif inner % step == 0 and first[1] < step and last[1] >= inner - step:
        rest = range(first[1], inner, step)
    else:
        return None
    parts = _box(sizes[1:], rest)
    return None if parts is None else [outer, *parts]


def _joined(factors: Sequence[tuple[int, range]]) -> range | None:
    """One progression of the indices of an axis, from one a factor; None if it is none."""
    total, outer = 1, range(1)
    for size, inner in factors:
        total *= size
        if len(outer) == 1:
            base = outer.start * size
            outer = range(base + inner.start, base + inner.stop, inner.step)
        elif len(inner) == 1:
            stop = (outer[-1] + 1) * size
            outer = range(outer.start * size + inner.start, stop, outer.step * size)
        elif len(inner) == size and outer.step == 1:
            outer = range(outer.start * size, outer.stop * size)
        else:
            return None
    return outer
