"""What is taken from `onnx.reference` must work in float64: each operator against NumPy.

Values are drawn so that no two are equal in float32 unless they are in float64; an operator that
only moves values must return exactly those.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from compiler.verify.kernels import KERNELS, reference

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6)) * (1 + 1e-12)
ROWS = np.array([[2, 0, 1], [1, 3, 3]])
PADS = np.array([0, 1, 0, 0, 0, 2])
POSITIVE = np.abs(X) + 0.1
SQUARE = RNG.standard_normal((3, 4, 4))
IMAGE = RNG.standard_normal((2, 8, 4, 6))
LAST = np.array([-1])


def depth_to_space(x, mode):
    n, c, h, w = x.shape
    if mode == "DCR":
        return (
            x.reshape(n, 2, 2, c // 4, h, w)
            .transpose(0, 3, 4, 1, 5, 2)
            .reshape(n, -1, 2 * h, 2 * w)
        )
    return x.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, 2 * h, 2 * w)


def space_to_depth(x):
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // 2, 2, w // 2, 2)
        .transpose(0, 3, 5, 1, 2, 4)
        .reshape(n, -1, h // 2, w // 2)
    )


def scattered(x, index, updates):
    x = x.copy()
    np.put_along_axis(x, index, updates, 1)
    return x


def reversed_rows(x, lengths):
    x = x.copy()
    for batch, n in enumerate(lengths):
        x[batch, :n] = x[batch, :n][::-1]
    return x


# name: (node, opset, inputs, expected)
MOVED = {
    "ArgMax": ("y = ArgMax<axis=1>(x)", 13, {"x": X}, X.argmax(1)[:, None]),
    "ArgMin": ("y = ArgMin<axis=2, keepdims=0>(x)", 13, {"x": X}, X.argmin(2)),
    "Compress": (
        "y = Compress<axis=1>(x, c)",
        11,
        {"x": X, "c": [True, False, True]},
        X[:, [0, 2]],
    ),
    "Concat": ("y = Concat<axis=-2>(x, x)", 13, {"x": X}, np.concatenate([X, X], -2)),
    "DepthToSpace": (
        "y = DepthToSpace<blocksize=2>(x)",
        13,
        {"x": IMAGE},
        depth_to_space(IMAGE, "DCR"),
    ),
    "DepthToSpace_crd": (
        'y = DepthToSpace<blocksize=2, mode="CRD">(x)',
        13,
        {"x": IMAGE},
        depth_to_space(IMAGE, "CRD"),
    ),
    "Equal": ("y = Equal(x, z)", 13, {"x": X, "z": X * (1 + 1e-15)}, X * (1 + 1e-15) == X),
    "Expand": ("y = Expand(x, s)", 13, {"x": X[:, :1], "s": [2, 4, 1]}, np.repeat(X[:, :1], 4, 1)),
    "Flatten": ("y = Flatten<axis=2>(x)", 13, {"x": X}, X.reshape(8, 6)),
    "Gather": ("y = Gather<axis=1>(x, i)", 13, {"x": X, "i": ROWS - 1}, X[:, ROWS - 1]),
    "GatherElements": (
        "y = GatherElements<axis=1>(x, i)",
        13,
        {"x": X[:, :, 0], "i": ROWS},
        np.take_along_axis(X[:, :, 0], ROWS, 1),
    ),
    "GatherElements_part": (
        "y = GatherElements<axis=-1>(x, i)",
        13,
        {"x": np.arange(80.0).reshape(2, 40), "i": np.array([[39, -1, 33]])},
        np.array([[39.0, 39.0, 33.0]]),
    ),
    "GatherND": ("y = GatherND(x, i)", 13, {"x": X, "i": [[1, 2], [0, 3]]}, X[[1, 0], [2, 3]]),
    "Greater": ("y = Greater(x, z)", 13, {"x": X, "z": X - 1e-15}, X > X - 1e-15),
    "GreaterOrEqual": ("y = GreaterOrEqual(x, z)", 16, {"x": X, "z": X + 1e-15}, X >= X + 1e-15),
    "Identity": ("y = Identity(x)", 16, {"x": X}, X),
    "IsInf": ("y = IsInf(x)", 20, {"x": X / (X > 0)}, ~(X > 0)),
    "IsNaN": ("y = IsNaN(x)", 20, {"x": np.where(X > 0, X, np.nan)}, ~(X > 0)),
    "Less": ("y = Less(x, z)", 13, {"x": X, "z": X + 1e-15}, X < X + 1e-15),
    "LessOrEqual": ("y = LessOrEqual(x, z)", 16, {"x": X, "z": X - 1e-15}, X <= X - 1e-15),
    "NonZero": ("y = NonZero(x)", 13, {"x": X * 1e-200 * (X > 0)}, np.array(np.nonzero(X > 0))),
    "OneHot": (
        "y = OneHot(i, d, v)",
        11,
        {"i": [1, 0], "d": 3, "v": [0.1, 0.7]},
        np.array([[0.1, 0.7, 0.1], [0.7, 0.1, 0.1]]),
    ),
    "Pad": (
        "y = Pad(x, p, v)",
        18,
        {"x": X, "p": PADS, "v": 0.1},
        np.pad(X, [(0, 0), (1, 0), (0, 2)], constant_values=0.1),
    ),
    "Pad_axes": (
        "y = Pad(x, p, v, a)",
        18,
        {"x": X, "p": [1, 2], "v": 0.1, "a": [-2]},
        np.pad(X, [(0, 0), (1, 2), (0, 0)], constant_values=0.1),
    ),
    "Pad_reflect": (
        'y = Pad<mode="reflect">(x, p)',
        18,
        {"x": X, "p": PADS},
        np.pad(X, [(0, 0), (1, 0), (0, 2)], mode="reflect"),
    ),
    "Pad_edge": (
        'y = Pad<mode="edge">(x, p)',
        18,
        {"x": X, "p": PADS},
        np.pad(X, [(0, 0), (1, 0), (0, 2)], mode="edge"),
    ),
    "Range": ("y = Range(a, b, d)", 11, {"a": 0.1, "b": 2.0, "d": 0.3}, 0.1 + 0.3 * np.arange(7)),
    "Reshape": ("y = Reshape(x, s)", 14, {"x": X, "s": [0, -1, 3]}, X.reshape(2, -1, 3)),
    "ReverseSequence": (
        "y = ReverseSequence<batch_axis=0, time_axis=1>(x, n)",
        10,
        {"x": X, "n": [3, 2]},
        reversed_rows(X, [3, 2]),
    ),
    "ScatterElements": (
        "y = ScatterElements<axis=1>(x, i, u)",
        18,
        {"x": X[:, :, 0], "i": ROWS[:, :2], "u": X[:, :2, 1]},
        scattered(X[:, :, 0], ROWS[:, :2], X[:, :2, 1]),
    ),
    "ScatterND": (
        "y = ScatterND(x, i, u)",
        18,
        {"x": X, "i": [[1]], "u": X[:1]},
        np.stack([X[0], X[0]]),
    ),
    "Shape": ("y = Shape<start=1>(x)", 15, {"x": X}, np.array([4, 6])),
    "Size": ("y = Size(x)", 13, {"x": X}, np.array(48)),
    "Slice": (
        "y = Slice(x, s, e, a, t)",
        13,
        {"x": X, "s": [-1, 1], "e": [-(2**62), 9], "a": [2, 1], "t": [-2, 1]},
        X[:, 1:, ::-2],
    ),
    "Slice_9": ("y = Slice<axes=[1], starts=[1], ends=[-1]>(x)", 9, {"x": X}, X[:, 1:-1]),
    "SpaceToDepth": ("y = SpaceToDepth<blocksize=2>(x)", 13, {"x": IMAGE}, space_to_depth(IMAGE)),
    "Split": ("y, z = Split<axis=1>(x, s)", 13, {"x": X, "s": [1, 3]}, [X[:, :1], X[:, 1:]]),
    "Split_even": (
        "y, z = Split<axis=2, num_outputs=2>(x)",
        18,
        {"x": X},
        [X[..., :3], X[..., 3:]],
    ),
    "Split_11": ("y, z = Split<axis=1, split=[1, 3]>(x)", 11, {"x": X}, [X[:, :1], X[:, 1:]]),
    "Squeeze": ("y = Squeeze(x, a)", 13, {"x": X[:, :1], "a": [1]}, X[:, 0]),
    "Squeeze_11": ("y = Squeeze<axes=[1]>(x)", 11, {"x": X[:, :1]}, X[:, 0]),
    "Tile": ("y = Tile(x, n)", 13, {"x": X, "n": [1, 2, 1]}, np.tile(X, (1, 2, 1))),
    "TopK": (
        "y, i = TopK<axis=-1>(x, k)",
        11,
        {"x": X, "k": [2]},
        [-np.sort(-X)[..., :2], np.argsort(-X)[..., :2]],
    ),
    "Transpose": ("y = Transpose<perm=[2, 0, 1]>(x)", 13, {"x": X}, X.transpose(2, 0, 1)),
    "Trilu": ("y = Trilu<upper=0>(x, k)", 14, {"x": X, "k": 1}, np.tril(X, 1)),
    "Unsqueeze": ("y = Unsqueeze(x, a)", 13, {"x": X, "a": [0, -1]}, X[None, ..., None]),
    "Unsqueeze_11": ("y = Unsqueeze<axes=[1]>(x)", 11, {"x": X}, X[:, None]),
}
LOGIC = {
    "And": (
        "y = And(a, b)",
        {"a": [True, True, False], "b": [True, False, False]},
        [True, False, False],
    ),
    "Or": (
        "y = Or(a, b)",
        {"a": [True, True, False], "b": [True, False, False]},
        [True, True, False],
    ),
    "Xor": (
        "y = Xor(a, b)",
        {"a": [True, True, False], "b": [True, False, False]},
        [False, True, False],
    ),
    "Not": ("y = Not(a)", {"a": [True, False]}, [False, True]),
    "BitwiseAnd": ("y = BitwiseAnd(a, b)", {"a": [6, 5], "b": [3, 4]}, [2, 4]),
    "BitwiseOr": ("y = BitwiseOr(a, b)", {"a": [6, 5], "b": [3, 4]}, [7, 5]),
    "BitwiseXor": ("y = BitwiseXor(a, b)", {"a": [6, 5], "b": [3, 4]}, [5, 1]),
    "BitwiseNot": ("y = BitwiseNot(a)", {"a": [6, -1]}, [-7, 0]),
    "BitShift": (
        'y = BitShift<direction="LEFT">(a, b)',
        {"a": np.uint8([1, 3]), "b": np.uint8([2, 1])},
        [4, 6],
    ),
    "Abs": ("y = Abs(a)", {"a": [-2, 3]}, [2, 3]),
    "Add": ("y = Add(a, b)", {"a": [-2, 3], "b": 4}, [2, 7]),
    "Clip": ("y = Clip(a, b, c)", {"a": [-2, 3], "b": -1, "c": 2}, [-1, 2]),
    "Div": ("y = Div(a, b)", {"a": [-7, 7], "b": 2}, [-3, 3]),
    "Einsum": ('y = Einsum<equation="i,i">(a, b)', {"a": [1, 2], "b": [3, 4]}, 11),
    "Gemm": ("y = Gemm(a, b)", {"a": [[1, 2]], "b": [[3], [4]]}, [[11]]),
    "MatMul": ("y = MatMul(a, b)", {"a": [[1, 2]], "b": [[3], [4]]}, [[11]]),
    "Max": ("y = Max(a, b)", {"a": [-2, 3], "b": 1}, [1, 3]),
    "Min": ("y = Min(a, b)", {"a": [-2, 3], "b": 1}, [-2, 1]),
    "Mod": ("y = Mod(a, b)", {"a": [-7, 7], "b": 3}, [2, 1]),
    "Mul": ("y = Mul(a, b)", {"a": [-2, 3], "b": 4}, [-8, 12]),
    "Neg": ("y = Neg(a)", {"a": [-2, 3]}, [2, -3]),
    "Pow": ("y = Pow(a, b)", {"a": [-2, 3], "b": 2}, [4, 9]),
    "Relu": ("y = Relu(a)", {"a": np.int32([-2, 3])}, [0, 3]),
    "Sign": ("y = Sign(a)", {"a": [-2, 3, 0]}, [-1, 1, 0]),
    "Sub": ("y = Sub(a, b)", {"a": [-2, 3], "b": 4}, [-6, -1]),
    "Where": ("y = Where(c, a, b)", {"c": [True, False], "a": 1, "b": 2}, [1, 2]),
}


def rotary(x, cos, sin):
    """Halves of the last axis as real and imaginary parts; cos and sin (batch, tokens, half)."""
    real, imaginary = np.split(x, 2, -1)
    turned = (real + 1j * imaginary) * (cos + 1j * sin)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


ANGLES = RNG.standard_normal((2, 4, 3))
HEADS = RNG.standard_normal((2, 5, 4, 6))
COMPUTED = {
    "CumSum": ("y = CumSum(x, a)", 14, {"x": X, "a": 1}, np.cumsum(X, 1)),
    "CumSum_back": (
        "y = CumSum<reverse=1, exclusive=1>(x, a)",
        14,
        {"x": X, "a": 1},
        np.cumsum(X[:, ::-1], 1)[:, ::-1] - X,
    ),
    "Det": ("y = Det(x)", 22, {"x": SQUARE}, np.linalg.det(SQUARE)),
    "ReduceL1": ("y = ReduceL1(x, a)", 18, {"x": X, "a": LAST}, np.abs(X).sum(-1, keepdims=True)),
    "ReduceL2": (
        "y = ReduceL2(x, a)",
        18,
        {"x": X, "a": LAST},
        np.sqrt((X**2).sum(-1, keepdims=True)),
    ),
    "ReduceLogSum": (
        "y = ReduceLogSum(x)",
        18,
        {"x": POSITIVE},
        np.log(POSITIVE.sum(keepdims=True)),
    ),
    "ReduceLogSumExp": (
        "y = ReduceLogSumExp<keepdims=0>(x, a)",
        18,
        {"x": X, "a": LAST},
        np.log(np.exp(X).sum(-1)),
    ),
    "ReduceMax": ("y = ReduceMax(x, a)", 18, {"x": X, "a": LAST}, X.max(-1, keepdims=True)),
    "ReduceMean": (
        "y = ReduceMean(x, a)",
        18,
        {"x": X, "a": [0, 2]},
        X.mean((0, 2), keepdims=True),
    ),
    "ReduceMean_13": ("y = ReduceMean<axes=[-1], keepdims=0>(x)", 13, {"x": X}, X.mean(-1)),
    "ReduceMin": ("y = ReduceMin(x, a)", 18, {"x": X, "a": LAST}, X.min(-1, keepdims=True)),
    "ReduceProd": ("y = ReduceProd(x, a)", 18, {"x": X, "a": LAST}, X.prod(-1, keepdims=True)),
    "ReduceSum": ("y = ReduceSum(x, a)", 13, {"x": X, "a": LAST}, X.sum(-1, keepdims=True)),
    "ReduceSum_11": ("y = ReduceSum<axes=[1]>(x)", 11, {"x": X}, X.sum(1, keepdims=True)),
    "ReduceSumSquare": ("y = ReduceSumSquare(x)", 18, {"x": X}, (X**2).sum(keepdims=True)),
    "RotaryEmbedding": (
        "y = RotaryEmbedding(x, c, s)",
        23,
        {"x": HEADS, "c": np.cos(ANGLES), "s": np.sin(ANGLES)},
        rotary(HEADS, np.cos(ANGLES), np.sin(ANGLES)),
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_movement_is_exact(run, name):
    text, opset, feeds, expected = MOVED[name]
    results = run(text, opset, **feeds)
    pairs = (
        zip(results, expected, strict=True) if isinstance(expected, list) else [(results, expected)]
    )
    for result, wanted in pairs:
        assert result.dtype == wanted.dtype
        if name == "Range":
            np.testing.assert_allclose(result, wanted, rtol=1e-15)
        else:
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("name", LOGIC)
def test_integers_and_booleans(run, name):
    text, feeds, expected = LOGIC[name]
    result = run(text, 20, **feeds)
    assert result.dtype == np.asarray(feeds["a"]).dtype
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_sums_have_floats_only(run, op):
    """ONNX has no integer Sum or Mean."""
    assert run(f"y = {op}(a, b)", a=np.float16([1, 2]), b=np.float16([3, 4])).dtype == np.float64


@pytest.mark.parametrize("name", COMPUTED)
def test_arithmetic_is_float64(run, name):
    text, opset, feeds, expected = COMPUTED[name]
    result = run(text, opset, **feeds)
    assert result.dtype == np.float64
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-14)


def test_every_operator_of_the_reference_is_tested_here():
    tested = {name.split("_")[0] for table in (MOVED, LOGIC, COMPUTED) for name in table}
    assert tested >= reference.ANY | reference.INTEGER


def test_every_kernel_is_tested_somewhere():
    text = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    named = set(re.findall(r"\b([A-Z]\w+)\b", text))
    assert set(KERNELS) - named == set()
