"""How far two tensors are apart: the error measure of every proof and report.

Cosine, plain L2 and element-wise relative error mislead on depth maps, whose mean can be a thousand
times their spread; the centred relative L2 norm does not change when both maps are shifted.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Error:
    """The distance of an actual tensor from an expected one; both numbers are without a unit.

    `centred_l2` is |d| / |b - mean b| and `max_ratio` is max |d| / max |b|, for d = actual -
    expected and b = expected, over the elements where b is finite; a single value has no spread,
    so there the mean is not subtracted. `vacuous` says why a comparison that found no difference
    shows nothing, and is None where it does show something.
    """

    centred_l2: float
    max_ratio: float
    vacuous: str | None = None


INFINITE = Error(math.inf, math.inf)
LEAST = 5e-324  # of a difference too small for float64: 0 is for equal tensors alone


def compare(actual: Array, expected: Array) -> Error:
    """The error of `actual` against `expected`, computed in float64.

    Infinite where no number would do: shapes or kinds of type differ, integers, booleans or strings
    differ at all, NaN and infinities are not in the same places, or `expected` is constant and
    `actual` is not that constant.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    floats = _is_float(expected)
    if actual.shape != expected.shape or floats != _is_float(actual):
        return INFINITE
    if floats:
        # The scores of thousands of tokens are gigabytes: nothing is copied without need.
        wide = (array.astype(np.float64, copy=False) for array in (actual, expected))
        return _compare_floats(*wide)
    if actual.dtype.kind != expected.dtype.kind or not np.array_equal(actual, expected):
        return INFINITE
    return Error(0.0, 0.0, _vacuous(expected))


def _compare_floats(actual: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> Error:
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return INFINITE
    # Not finite here means a NaN or infinity that only `actual` has.
    is_whole = bool(finite.all())
    b, d = (expected, actual) if is_whole else (expected[finite], actual[finite])
    if not np.isfinite(d).all():
        return INFINITE
    reason = _vacuous(expected)
    if np.array_equal(d, b):
        return Error(0.0, 0.0, reason)
    return INFINITE if reason else _ratios(d, b)


def _ratios(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Error:
    """The error of `a` against `b`, where both are finite and differ."""
    # A power of two keeps squares and differences inside the range of float64.
    exponent = max(math.frexp(float(np.abs(x).max()))[1] for x in (a, b))
    a, b = (np.asarray(np.ldexp(x, -exponent - 1)) for x in (a, b))
    largest = np.abs(b).max()
    d = np.abs(np.subtract(a, b, out=a), out=a)
    spread = np.abs(np.subtract(b, b.mean() if b.size > 1 else 0.0, out=b), out=b)
    if not spread.any():
        return INFINITE
    if not d.any():
        return Error(LEAST, LEAST)
    # Scaled by their maxima, differences of 1e-200 still have squares.
    most, widest = d.max(), spread.max()
    part, whole = np.divide(d, most, out=d), np.divide(spread, widest, out=spread)
    norms = np.linalg.norm(part) / np.linalg.norm(whole)
    centred = float(norms) * (float(most) / float(widest))
    return Error(max(centred, LEAST), max(float(most / largest), LEAST))


def _vacuous(expected: Array) -> str | None:
    """Why agreement with `expected` shows nothing, or None."""
    if expected.size == 0:
        return "empty: there are no values"
    if _is_float(expected):
        if not np.isfinite(expected).any():
            return "no value is finite"
        # Infinities that were put somewhere on purpose, as in a mask, are values like any other.
        numbers = ~np.isnan(expected)
        expected = expected if numbers.all() else expected[numbers]
    first = expected.flat[0]
    if expected.size > 1 and bool((expected == first).all()):
        return f"constant: every value is {first}"
    return None


def _is_float(array: Array) -> bool:
    """Whether the array holds real numbers, ml_dtypes' bfloat16 and float8 included."""
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))
