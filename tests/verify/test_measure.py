import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.verify.measure import Error, compare

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
TENSORS = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=5), elements=FINITE)


@given(TENSORS, st.integers(0, 200), st.floats(allow_nan=True))
def test_only_equal_tensors_have_no_error(x, place, value):
    actual = x.copy()
    actual.flat[place % x.size] = value
    error = compare(actual, x)
    equal = np.array_equal(actual, x)
    assert (error.centred_l2 == 0, error.max_ratio == 0) == (equal, equal)
    assert not math.isnan(error.centred_l2)


def test_the_definition_by_hand():
    expected, actual = np.array([1.0, 3.0]), np.array([1.0, 3.5])
    assert compare(actual, expected) == Error(0.5 / math.sqrt(2), 0.5 / 3)


@given(TENSORS)
def test_a_tensor_equals_itself(x):
    error = compare(x, x.copy())
    assert (error.centred_l2, error.max_ratio) == (0, 0)


@given(TENSORS, st.integers(-900, 900))
def test_the_error_does_not_depend_on_the_unit(x, exponent):
    assume(np.ptp(x) > 1e-3)
    actual = x.copy()
    actual.flat[0] += 0.5
    plain = compare(actual, x)
    scaled = compare(np.ldexp(actual, exponent), np.ldexp(x, exponent))
    assert scaled.centred_l2 == pytest.approx(plain.centred_l2, rel=1e-12)
    assert scaled.max_ratio == pytest.approx(plain.max_ratio, rel=1e-12)


def test_a_depth_map_far_from_zero_is_measured_by_its_relief():
    relief = np.random.default_rng(0).standard_normal((40, 50))
    noise = 1e-3 * np.random.default_rng(1).standard_normal((40, 50))
    near = compare(relief + noise, relief)
    far = compare(1e4 + relief + noise, 1e4 + relief)
    assert far.centred_l2 == pytest.approx(near.centred_l2, rel=1e-6)
    assert far.max_ratio < 1e-3 * near.max_ratio


def test_float32_maps_are_compared_in_float64():
    expected = np.full(1 << 20, 1e4, np.float32) + np.arange(1 << 20, dtype=np.float32) / 1024
    actual = np.nextafter(expected, np.float32(np.inf))
    wide, b = actual.astype(np.float64), expected.astype(np.float64)
    wanted = np.linalg.norm(wide - b) / np.linalg.norm(b - b.mean())
    assert compare(actual, expected).centred_l2 == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("exponent", [-1070, 1022], ids=["denormal", "near_overflow"])
def test_extreme_magnitudes_neither_vanish_nor_overflow(exponent):
    expected = np.ldexp(np.array([1.0, -1.0]), exponent)
    assert compare(-expected, expected).centred_l2 == 2
    assert compare(expected, expected) == Error(0, 0)


def test_a_difference_of_one_denormal_is_seen():
    error = compare(np.array([1.0, 5e-324]), np.array([1.0, 0.0]))
    assert 0 < error.max_ratio < 1e-300
    assert 0 < error.centred_l2 < 1e-300


@pytest.mark.parametrize("value", [0.0, 0.1, -3.5])
def test_a_constant_says_so_when_equal_and_fails_when_not(value):
    expected = np.full((3, 4), value)
    assert compare(expected.copy(), expected) == Error(0, 0, f"constant: every value is {value}")
    actual = expected.copy()
    actual[1, 2] = np.nextafter(value, np.inf)
    assert compare(actual, expected).centred_l2 == math.inf


def test_a_wrong_constant_is_no_pass():
    assert compare(np.ones(3), np.zeros(3)) == Error(math.inf, math.inf)


NOISY = {
    "float64": (1e-14, 2.0**-53),
    "float32": (16 * 2.0**-24, 2.0**-24),
    "float16": (16 * 2.0**-11, 2.0**-11),
}


@pytest.mark.parametrize(("noise", "rounding"), NOISY.values(), ids=NOISY.keys())
@pytest.mark.parametrize("value", [1.0, -3e5, 1e-300, 1e300])
def test_what_rounding_makes_of_a_constant_is_vacuous_and_no_fault(noise, rounding, value):
    steps = np.random.default_rng(0).integers(-4, 5, (2, 64))
    actual, expected = value * (1 + rounding * steps)
    for one, error in ((actual, 8 * rounding), (np.full(64, value), 4 * rounding), (expected, 0)):
        found = compare(one, expected, noise)
        assert found.centred_l2 <= error
        assert found.vacuous.startswith("constant up to rounding: ")


@pytest.mark.parametrize(("noise", "rounding"), NOISY.values(), ids=NOISY.keys())
def test_another_constant_is_a_difference_though_both_are_rounded(noise, rounding):
    steps = np.random.default_rng(0).integers(-4, 5, (2, 64))
    actual, expected = 1 + rounding * steps
    for wrong in (1.01, 1 + 100 * rounding, -1, 0, 2):
        found = compare(wrong * actual, expected, noise)
        assert found.centred_l2 == pytest.approx(abs(wrong - 1), rel=0.1)
    one_wrong = actual.copy()
    one_wrong[7] *= 1.5
    assert compare(one_wrong, expected, noise).centred_l2 == pytest.approx(0.5 / 8, rel=0.01)


@pytest.mark.parametrize(("noise", "rounding"), NOISY.values(), ids=NOISY.keys())
def test_what_spreads_by_more_than_rounding_is_measured_by_its_spread(noise, rounding):
    expected = 1 + 100 * rounding * np.arange(64) / 63
    found = compare(expected[::-1], expected, noise)
    assert found.centred_l2 == pytest.approx(2)
    assert found.vacuous is None
    assert compare(expected, expected, noise) == Error(0, 0)


def test_a_mask_around_a_rounded_constant_shows_where_it_is():
    mask = np.array([1.0, np.nextafter(1, 2), -np.inf, 1.0])
    assert compare(mask.copy(), mask) == Error(0, 0)
    assert compare(mask[::-1], mask).centred_l2 == math.inf
    assert compare(np.array([1.0, 1.0, -np.inf, 1.0]), mask).vacuous is not None


def test_a_single_value_is_measured_against_itself():
    assert compare(np.array(1.5), np.array(1.0)) == Error(0.5, 0.5)
    assert compare(np.array(1.5), np.array(1.5)) == Error(0, 0)
    assert compare(np.array(1.5), np.array(0.0)).centred_l2 == math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_must_be_in_the_same_places(bad):
    expected = np.array([1.0, bad, 3.0, 4.0])
    assert compare(expected.copy(), expected) == Error(0, 0)
    assert compare(np.array([1.0, 2.0, 3.0, 4.0]), expected).centred_l2 == math.inf
    assert compare(expected, np.array([1.0, 2.0, 3.0, 4.0])).centred_l2 == math.inf
    assert compare(np.array([bad, 1.0, 3.0, 4.0]), expected).centred_l2 == math.inf


def test_opposite_infinities_differ():
    assert compare(np.array([np.inf, 1, 2]), np.array([-np.inf, 1, 2])).centred_l2 == math.inf


def test_non_finite_values_are_left_out_of_the_norms():
    with_nan = compare(np.array([1.0, 3.5, np.nan]), np.array([1.0, 3.0, np.nan]))
    assert with_nan == compare(np.array([1.0, 3.5]), np.array([1.0, 3.0]))


def test_nothing_finite_or_nothing_at_all_is_vacuous():
    assert compare(np.full(2, np.nan), np.full(2, np.nan)).vacuous == "no value is finite"
    assert compare(np.full(2, np.inf), np.full(2, np.inf)).vacuous == "no value is finite"
    assert compare(np.empty((0, 3)), np.empty((0, 3))).vacuous == "empty: there are no values"


def test_infinities_among_equal_numbers_are_a_mask():
    mask = np.array([0.0, -np.inf, -np.inf, 0.0])
    assert compare(mask.copy(), mask) == Error(0, 0)
    assert compare(np.array([0.0, 0.0, -np.inf, 0.0]), mask).centred_l2 == math.inf
    assert compare(np.array([0.0, -np.inf, -np.inf, 1e-300]), mask).centred_l2 == math.inf
    with_nan = np.array([2.0, np.nan, 2.0])
    assert compare(with_nan, with_nan).vacuous == "constant: every value is 2.0"


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.ones((2, 3)), np.ones((3, 2))),
        (np.ones((1, 3)), np.ones(3)),
        (np.array([1, 2]), np.array([1.0, 2.0])),
        (np.array([True, False]), np.array([1, 0])),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([True, True]), np.array([True, False])),
    ],
    ids=["shape", "rank", "int_for_float", "bool_for_int", "int_value", "bool_value"],
)
def test_what_no_number_can_measure_is_infinite(actual, expected):
    assert compare(actual, expected) == Error(math.inf, math.inf)


def test_equal_integers_pass_and_constant_ones_are_vacuous():
    assert compare(np.array([1, 2]), np.array([1, 2])) == Error(0, 0)
    assert compare(np.array([7, 7]), np.array([7, 7])).vacuous == "constant: every value is 7"


def test_float_types_may_differ():
    expected = np.array([1.0, 2.0, 4.0])
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16):
        assert compare(expected.astype(dtype), expected) == Error(0, 0)
