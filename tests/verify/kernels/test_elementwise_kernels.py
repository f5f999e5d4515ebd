"""Every elementwise kernel against mpmath with 100 digits, or NumPy where that is exact enough."""

import math

import mpmath
import numpy as np
import pytest

from compiler.verify.kernels import elementwise

mpmath.mp.dps = 100
TOLERANCE = 1e-13  # a few hundred units in the last place of float64; float32 is at 1e-7
LINE = np.random.default_rng(0).uniform(-4, 4, 60)
TAIL = np.array([-30.0, -12.5, -0.0, 0.0, 1e-9, 20.1, 35.0])  # where shortcuts are taken
POINTS = {  # where the function is not defined on the whole line
    "Acos": np.tanh(LINE),
    "Acosh": 1 + LINE**2,
    "Asin": np.tanh(LINE),
    "Atanh": np.tanh(LINE),
    "Log": LINE**2,
    "Reciprocal": LINE,
    "Sqrt": LINE**2,
}
MP = mpmath


def _softplus(x):
    return MP.log(1 + MP.exp(x))


def _sigmoid(x):
    return 1 / (1 + MP.exp(-x))


def _elu(x, a=1.0):
    return x if x > 0 else a * MP.expm1(x)


def _clip(x, low, high):
    return min(max(x, low), high)


def f32(value):
    """The attribute as the file holds it."""
    return mpmath.mpf(float(np.float32(value)))


FUNCTIONS = {
    "Abs": (abs, ""),
    "Acos": (MP.acos, ""),
    "Acosh": (MP.acosh, ""),
    "Asin": (MP.asin, ""),
    "Asinh": (MP.asinh, ""),
    "Atan": (MP.atan, ""),
    "Atanh": (MP.atanh, ""),
    "Ceil": (MP.ceil, ""),
    "Celu": (lambda x: max(x, 0) + min(0, f32(0.7) * MP.expm1(x / f32(0.7))), "alpha=0.7"),
    "Cos": (MP.cos, ""),
    "Cosh": (MP.cosh, ""),
    "Elu": (lambda x: _elu(x, f32(0.7)), "alpha=0.7"),
    "Erf": (MP.erf, ""),
    "Exp": (MP.exp, ""),
    "Floor": (MP.floor, ""),
    "Gelu": (lambda x: x * MP.erfc(-x / MP.sqrt(2)) / 2, ""),
    "HardSigmoid": (lambda x: _clip(f32(0.3) * x + f32(0.4), 0, 1), "alpha=0.3, beta=0.4"),
    "HardSwish": (lambda x: x * _clip(x / 6 + MP.mpf(1) / 2, 0, 1), ""),
    "LeakyRelu": (lambda x: x if x >= 0 else f32(0.1) * x, "alpha=0.1"),
    "Log": (MP.log, ""),
    "Mish": (lambda x: x * MP.tanh(_softplus(x)), ""),
    "Neg": (lambda x: -x, ""),
    "Reciprocal": (lambda x: 1 / x, ""),
    "Relu": (lambda x: max(x, 0), ""),
    "Round": (MP.nint, ""),
    "Selu": (lambda x: f32(1.3) * _elu(x, f32(1.7)), "alpha=1.7, gamma=1.3"),
    "Shrink": (
        lambda x: x - f32(0.2) if x > 1 else x + f32(0.2) if x < -1 else 0,
        "lambd=1.0, bias=0.2",
    ),
    "Sigmoid": (_sigmoid, ""),
    "Sign": (MP.sign, ""),
    "Sin": (MP.sin, ""),
    "Sinh": (MP.sinh, ""),
    "Softplus": (_softplus, ""),
    "Softsign": (lambda x: x / (1 + abs(x)), ""),
    "Sqrt": (MP.sqrt, ""),
    "Swish": (lambda x: x * _sigmoid(f32(1.3) * x), "alpha=1.3"),
    "Tan": (MP.tan, ""),
    "Tanh": (MP.tanh, ""),
    "ThresholdedRelu": (lambda x: x if x > f32(0.3) else 0, "alpha=0.3"),
}


def exact(function, x):
    return np.array([float(function(mpmath.mpf(float(v)))) for v in x.flat]).reshape(x.shape)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_function(run, op):
    function, attributes = FUNCTIONS[op]
    x = POINTS.get(op, np.concatenate([LINE, TAIL]))
    text = f"y = {op}<{attributes}>(x)" if attributes else f"y = {op}(x)"
    result = run(text, 24, x=x)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, exact(function, x), rtol=TOLERANCE, atol=1e-300)


def test_gelu_tanh(run):
    def formula(x):
        inner = MP.sqrt(2 / MP.pi) * (x + MP.mpf("0.044715") * x**3)
        return x * (1 + MP.tanh(inner)) / 2

    x = np.concatenate([LINE, TAIL[1:]])
    result = run('y = Gelu<approximate="tanh">(x)', x=x)
    np.testing.assert_allclose(result, exact(formula, x), rtol=TOLERANCE)


BINARY = {
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Sub": np.subtract,
}


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("shapes", [((3, 1, 5), (4, 1)), ((), (2, 2)), ((0, 3), (3,))])
def test_arithmetic_broadcasts(run, rng, op, shapes):
    a, b = (rng.standard_normal(shape) for shape in shapes)
    result = run(f"y = {op}(a, b)", a=a, b=b)
    np.testing.assert_array_equal(result, BINARY[op](a, b))


def test_variadic_operators(run, rng):
    a, b, c = rng.standard_normal((3, 4)), rng.standard_normal(4), rng.standard_normal((3, 1))
    np.testing.assert_allclose(run("y = Sum(a, b, c)", a=a, b=b, c=c), a + b + c, rtol=1e-15)
    np.testing.assert_allclose(run("y = Mean(a, b, c)", a=a, b=b, c=c), (a + b + c) / 3, rtol=1e-15)
    np.testing.assert_array_equal(run("y = Max(a)", a=a), a)


def test_power(run, rng):
    base, exponent = rng.uniform(0.1, 9, 50), rng.uniform(-3, 3, 50)
    wanted = [float(mpmath.mpf(a) ** mpmath.mpf(b)) for a, b in zip(base, exponent, strict=True)]
    np.testing.assert_allclose(run("y = Pow(a, b)", a=base, b=exponent), wanted, rtol=TOLERANCE)
    np.testing.assert_array_equal(run("y = Pow(a, b)", a=-base, b=np.int64(2)), base**2)
    whole = run("y = Pow(a, b)", a=np.array([2, 3]), b=np.array([0.5, 2.0]))
    assert whole.dtype == np.int64
    assert whole.tolist() == [1, 9]


@pytest.mark.parametrize(
    ("text", "opset", "extra", "bounds"),
    [
        ("y = Clip(x, a, b)", 13, {"a": -0.1, "b": 0.3}, (-0.1, 0.3)),
        ("y = Clip(x, a)", 13, {"a": -0.1}, (-0.1, math.inf)),
        ("y = Clip(x, , b)", 13, {"b": 0.3}, (-math.inf, 0.3)),
        ("y = Clip<min=-0.5, max=0.25>(x)", 10, {}, (-0.5, 0.25)),
        ("y = Clip(x, a, b)", 13, {"a": 0.6, "b": 0.3}, (0.3, 0.3)),
    ],
    ids=["both", "lower", "upper", "attributes", "crossed"],
)
def test_clip(run, rng, text, opset, extra, bounds):
    x = rng.standard_normal(40)
    np.testing.assert_array_equal(run(text, opset, x=x, **extra), np.clip(x, *bounds))


def test_prelu_mod_where(run, rng):
    x, slope = rng.standard_normal((2, 3, 4)), rng.standard_normal((3, 1))
    wanted = np.where(x < 0, slope * x, x)
    np.testing.assert_array_equal(run("y = PRelu(x, s)", x=x, s=slope), wanted)
    np.testing.assert_array_equal(run("y = Mod<fmod=1>(x, s)", x=x, s=slope), np.fmod(x, slope))
    chosen = run("y = Where(c, x, s)", c=x > 0, x=x, s=slope)
    np.testing.assert_array_equal(chosen, np.where(x > 0, x, slope))


def test_integer_division_truncates(run):
    assert run("y = Div(a, b)", a=[-7, 7], b=[2, 2]).tolist() == [-3, 3]


@pytest.mark.parametrize("op", ["Relu", "Max", "Add", "Sigmoid", "Clip", "Gelu", "Softplus"])
def test_nan_goes_through(run, op):
    text = f"y = {op}(x, z)" if op in ("Max", "Add", "Clip") else f"y = {op}(x)"
    assert np.isnan(run(text, x=[np.nan, 1.0], z=0.0)[0])


def test_every_elementwise_kernel_is_tested_here():
    others = {"Clip", "Max", "Mean", "Min", "Mod", "PRelu", "Pow", "Sum", "Where"}
    assert set(elementwise.KERNELS) == set(FUNCTIONS) | set(BINARY) | others
