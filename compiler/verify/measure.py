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
    nor has a constant that only rounding moves: there the mean is not subtracted. `vacuous` says
    why a comparison that found no difference, or a small one, shows nothing, and is None where it
    does show something.
    """

    centred_l2: float
    max_ratio: float
    vacuous: str | None = None


INFINITE = Error(math.inf, math.inf)
LEAST = 5e-324  # of a difference too small for float64: 0 is for equal tensors alone
# What rounding may move a value by, as a part of it: √n · 2⁻⁵³ in a sum of n = 8000 terms.
FLOAT64_NOISE = 1e-14


def compare(actual: Array, expected: Array, noise: float = FLOAT64_NOISE) -> Error:
    """The error of `actual` against `expected`, computed in float64.

    Values that spread by no more than `noise` of the largest are a constant, but for rounding;
    give it where they were computed in a narrower type than float64.

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
        found, wanted = (t.astype(np.float64, copy=False) for t in (actual, expected))
        return _compare_floats(found, wanted, noise)
    if actual.dtype.kind != expected.dtype.kind or not np.array_equal(actual, expected):
        return INFINITE
    return Error(0.0, 0.0, _vacuous(expected))


def _compare_floats(
    actual: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], noise: float
) -> Error:
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return INFINITE
    # Not finite here means a NaN or infinity that only `actual` has.
    is_whole = bool(finite.all())
    b, d = (expected, actual) if is_whole else (expected[finite], actual[finite])
    if not np.isfinite(d).all():
        return INFINITE
    reason, is_equal = _vacuous(expected), np.array_equal(d, b)
    if reason and not is_equal:
        return INFINITE
    rounded = _rounded_constant(b, noise)
    if not is_equal:
        return _ratios(d, b, rounded)
    return Error(0.0, 0.0, reason or (None if np.isinf(expected).any() else rounded))


def _rounded_constant(b: npt.NDArray[np.float64], noise: float) -> str | None:
    """Why values that rounding alone tells apart show nothing, or None."""
    if b.size < 2:
        return None
    scale = float(np.abs(b).max())
    spread = float(b.max() / scale - b.min() / scale) if scale else 0.0
    if not spread <= noise:
        return None
    return f"constant up to rounding: the values spread by {spread:.1g} of the largest"


def _ratios(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], rounded: str | None) -> Error:
    """The error of `a` against `b`, where both are finite and differ."""
    # A power of two keeps squares and differences inside the range of float64.
    exponent = max(math.frexp(float(np.abs(x).max()))[1] for x in (a, b))
    a, b = (np.asarray(np.ldexp(x, -exponent - 1)) for x in (a, b))
    largest = np.abs(b).max()
    d = np.abs(np.subtract(a, b, out=a), out=a)
    middle = 0.0 if rounded or b.size == 1 else b.mean()
    spread = np.abs(np.subtract(b, middle, out=b), out=b)
    if not spread.any():
        return INFINITE
    if not d.any():
        return Error(LEAST, LEAST, rounded)
    # Scaled by their maxima, differences of 1e-200 still have squares.
    most, widest = d.max(), spread.max()
    part, whole = np.divide(d, most, out=d), np.divide(spread, widest, out=spread)
    norms = np.linalg.norm(part) / np.linalg.norm(whole)
    centred = float(norms) * (float(most) / float(widest))
    return Error(max(centred, LEAST), max(float(most / largest), LEAST), rounded)


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
