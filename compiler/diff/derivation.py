"""How a new weight was made of old ones, found by their values: slices, transposes, products."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from compiler.weights import Array, Weight, is_float, onnx_type_of

# Products are compared up to so many roundings of their type.
_ROUNDINGS = 4


def derivation(new: Weight, old: Mapping[str, Weight]) -> str:
    """`qkv.weight[:, 64:128]`, `transposed fc.weight`, `fc.weight · gamma`; nothing if unknown."""
    values = new.load()
    if values.size == 0 or values.dtype == object:
        return ""
    same_type = {name: weight for name, weight in old.items() if weight.dtype == new.dtype}
    for name, weight in same_type.items():
        how = _moved(values, name, weight.load())
        if how:
            return how
    return _product(values, same_type) if is_float(onnx_type_of(new.dtype)) else ""


def composed(how: str) -> str:
    """`qkv[:, 144:160]` for `qkv[:, 96:192][:, 48:64]`: a slice of a slice as one."""
    while (found := _SLICE_OF_SLICE.search(how)) is not None:
        outer, inner = (part.split(", ") for part in found.groups())
        if len(outer) != len(inner):
            return how
        axes = ", ".join(_nested(a, b) for a, b in zip(outer, inner, strict=True))
        how = f"{how[: found.start()]}[{axes}]{how[found.end() :]}"
    return how


_AXES = r"\[((?:\d*:\d*)(?:, \d*:\d*)*)\]"
_SLICE_OF_SLICE = re.compile(_AXES + _AXES)


def _nested(outer: str, inner: str) -> str:
    """The range that `inner` takes of the range `outer`."""
    if ":" in (outer, inner):
        return inner if outer == ":" else outer
    first = int(outer.partition(":")[0])
    return ":".join(str(first + int(end)) for end in inner.split(":"))


def _moved(values: Array, name: str, old: Array) -> str:
    """The slice, transpose or other shape of one old weight that holds exactly these values."""
    if values.shape == old.shape and np.array_equal(values, old):
        return name
    if (
        values.size == old.size
        and values.shape != old.shape
        and np.array_equal(values.reshape(-1), old.reshape(-1))
    ):
        return f"{name} reshaped to {list(values.shape)}"
    if values.ndim == 2 and values.T.shape == old.shape and np.array_equal(values.T, old):
        return f"transposed {name}"
    return next(_slices(values, name, old), "")


def _slices(values: Array, name: str, old: Array) -> Iterator[str]:
    if values.ndim != old.ndim:
        return
    shorter = [a for a in range(old.ndim) if values.shape[a] != old.shape[a]]
    if len(shorter) != 1 or values.shape[shorter[0]] > old.shape[shorter[0]]:
        return
    (axis,), length = shorter, values.shape[shorter[0]]
    rows, first = np.moveaxis(old, axis, 0), np.moveaxis(values, axis, 0)[0]
    starts = np.flatnonzero([np.array_equal(row, first) for row in rows[: len(rows) - length + 1]])
    for start in starts:
        if np.array_equal(rows[start : start + length], np.moveaxis(values, axis, 0)):
            whole = [":"] * axis + [f"{start}:{start + length}"] + [":"] * (old.ndim - axis - 1)
            yield f"{name}[{', '.join(whole)}]"


def _product(values: Array, old: Mapping[str, Weight]) -> str:
    """The product of two old weights, the second a vector along some axis of the first."""
    limit = _ROUNDINGS * float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    exact = {name: weight.exact() for name, weight in old.items()} if limit else {}
    for name, matrix in exact.items():
        for other, vector in exact.items():
            if matrix.shape != values.shape or name == other or not 0 < vector.size < matrix.size:
                continue
            for factor in _along_axes(vector.reshape(-1), matrix):
                if np.allclose(matrix * factor, values.astype(np.float64), rtol=limit, atol=0):
                    return f"{name} · {other}"
    return ""


def _along_axes(vector: Array, matrix: Array) -> Iterator[Array]:
    for axis, size in enumerate(matrix.shape):
        if vector.size in (1, size):
            yield vector.reshape([-1 if a == axis else 1 for a in range(matrix.ndim)])
