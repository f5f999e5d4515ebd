"""Convolutions and poolings against loops over every element."""

import itertools
import math

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.verify.float64 import UnsupportedInFloat64
from compiler.verify.kernels import convolution

TOLERANCE = 1e-12  # sums of at most some hundred terms of size one


def attributes(**values):
    pairs = (f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in values.items())
    return ", ".join(pairs).replace("'", '"')


def naive_conv(x, w, strides, dilations, pads, group):
    """Cross-correlation with zeros around, one product at a time."""
    axes = x.ndim - 2
    pairs = list(zip(pads[:axes], pads[axes:], strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *pairs])
    spread = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    out = [(n - e) // s + 1 for n, e, s in zip(x.shape[2:], spread, strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for m, place in itertools.product(range(w.shape[0]), itertools.product(*map(range, out))):
        first = m // (w.shape[0] // group) * w.shape[1]
        for c, tap in itertools.product(
            range(w.shape[1]), itertools.product(*map(range, w.shape[2:]))
        ):
            at = tuple(
                o * s + t * d for o, s, t, d in zip(place, strides, tap, dilations, strict=True)
            )
            y[(slice(None), m, *place)] += w[(m, c, *tap)] * x[(slice(None), first + c, *at)]
    return y


def naive_transpose(x, w, strides, dilations, pads, extra, group):
    """Every input element, multiplied by the kernel, is added to the result."""
    axes = x.ndim - 2
    spread = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    full = [
        (n - 1) * s + e + p for n, s, e, p in zip(x.shape[2:], strides, spread, extra, strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[1] * group, *full))
    for c, place in itertools.product(
        range(w.shape[0]), itertools.product(*map(range, x.shape[2:]))
    ):
        first = c // (w.shape[0] // group) * w.shape[1]
        for m, tap in itertools.product(
            range(w.shape[1]), itertools.product(*map(range, w.shape[2:]))
        ):
            at = tuple(
                o * s + t * d for o, s, t, d in zip(place, strides, tap, dilations, strict=True)
            )
            y[(slice(None), first + m, *at)] += w[(c, m, *tap)] * x[(slice(None), c, *place)]
    crop = [slice(b, n - a) for b, a, n in zip(pads[:axes], pads[axes:], full, strict=True)]
    return y[(..., *crop)]


@st.composite
def geometries(draw, kernels=(1, 3)):
    axes = draw(st.integers(1, 3))
    side = 6 if axes < 3 else 4

    def several(low, high, count=axes):
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    return {
        "size": several(2, side),
        "kernel": several(*kernels),
        "strides": several(1, 3),
        "dilations": several(1, 2),
        "pads": several(0, 2, 2 * axes),
    }


@settings(max_examples=120, deadline=None)
@given(geometries(), st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 1), (2, 1, 2)]), st.booleans())
def test_conv(run, g, channels, with_bias):
    """`channels` are groups, inputs per group and outputs per group."""
    group, per_in, per_out = channels
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, group * per_in, *g["size"]))
    w = rng.standard_normal((group * per_out, per_in, *g["kernel"]))
    spread = [(k - 1) * d + 1 for k, d in zip(g["kernel"], g["dilations"], strict=True)]
    axes = len(spread)
    room = zip(g["size"], g["pads"], g["pads"][axes:], spread, strict=False)
    assume(all(n + b + a >= e for n, b, a, e in room))
    wanted = naive_conv(x, w, g["strides"], g["dilations"], g["pads"], group)
    bias = rng.standard_normal(group * per_out) if with_bias else None
    given_ = attributes(group=group, **{k: g[k] for k in ("strides", "dilations", "pads")})
    if with_bias:
        result = run(f"y = Conv<{given_}>(x, w, b)", x=x, w=w, b=bias)
        wanted = wanted + bias.reshape(-1, *[1] * axes)
    else:
        result = run(f"y = Conv<{given_}>(x, w)", x=x, w=w)
    np.testing.assert_allclose(result, wanted, atol=TOLERANCE)


@settings(max_examples=120, deadline=None)
@given(geometries(), st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 2)]), st.integers(0, 1))
def test_conv_transpose(run, g, channels, extra):
    group, per_in, per_out = channels
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, group * per_in, *g["size"]))
    w = rng.standard_normal((group * per_in, per_out, *g["kernel"]))
    b = rng.standard_normal(group * per_out)
    extras = tuple(min(extra, s - 1) for s in g["strides"])
    wanted = naive_transpose(x, w, g["strides"], g["dilations"], g["pads"], extras, group)
    assume(wanted.size)
    given_ = attributes(
        group=group, output_padding=extras, **{k: g[k] for k in ("strides", "dilations", "pads")}
    )
    result = run(f"y = ConvTranspose<{given_}>(x, w, b)", x=x, w=w, b=b)
    wanted = wanted + b.reshape(-1, *[1] * (x.ndim - 2))
    np.testing.assert_allclose(result, wanted, atol=TOLERANCE)


def in_onnxruntime(text, **feeds):
    """The node in float32, which tells conventions apart though not digits."""
    inputs = ", ".join(f"float[{','.join(map(str, v.shape))}] {k}" for k, v in feeds.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g ({inputs}) => (float[] y) {{ {text} }}'
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {k: v.astype(np.float32) for k, v in feeds.items()})[0]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize("size", [(9, 12), (10, 7)], ids=str)
def test_auto_pad_as_onnxruntime(run, rng, op, auto_pad, size):
    x, w = rng.standard_normal((1, 2, *size)), rng.standard_normal((3, 2, 3, 4))
    given_ = f'auto_pad="{auto_pad}", strides=[2, 3], kernel_shape=[3, 4]'
    feeds = {"x": x, "w": w} if op == "Conv" else {"x": x}
    text = f"y = {op}<{given_}>({', '.join(feeds)})"
    np.testing.assert_allclose(
        run(text, 18, **feeds), in_onnxruntime(text, **feeds), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "given_",
    [
        'auto_pad="SAME_UPPER", strides=[2, 2]',
        'auto_pad="SAME_LOWER", strides=[2, 2]',
        "output_shape=[10, 13], strides=[2, 2]",
        "pads=[1, 0, 0, 2], strides=[2, 3], output_padding=[1, 2]",
    ],
)
def test_transposed_geometry_as_onnxruntime(run, rng, given_):
    x, w = rng.standard_normal((1, 2, 5, 6)), rng.standard_normal((2, 3, 3, 4))
    text = f"y = ConvTranspose<{given_}>(x, w)"
    wanted = in_onnxruntime(text, x=x, w=w)
    np.testing.assert_allclose(run(text, 18, x=x, w=w), wanted, rtol=1e-4, atol=1e-5)


def test_a_transposed_output_larger_than_possible_is_refused(run):
    with pytest.raises(UnsupportedInFloat64, match="output_shape is larger"):
        run("y = ConvTranspose<output_shape=[9]>(x, w)", x=np.ones((1, 1, 3)), w=np.ones((1, 1, 2)))


@pytest.mark.parametrize("strip", [1, 3000, 1 << 30], ids=["a_row", "some_rows", "all_rows"])
def test_strips_do_not_show(run, rng, monkeypatch, strip):
    monkeypatch.setattr(convolution, "STRIP_NBYTES", strip)
    x, w = rng.standard_normal((2, 4, 17, 9)), rng.standard_normal((6, 2, 3, 2))
    pads, strides, dilations = (1, 0, 2, 1), (2, 1), (2, 1)
    given_ = attributes(group=2, pads=pads, strides=strides, dilations=dilations)
    wanted = naive_conv(x, w, strides, dilations, pads, 2)
    result = run(f"y = Conv<{given_}>(x, w)", x=x, w=w)
    np.testing.assert_allclose(result, wanted, atol=TOLERANCE)


def naive_pool(x, g, ceil_mode, reduce):
    """`reduce` of the window's values, NaN for padding; windows start before the padding's end."""
    axes = len(g["size"])
    before, after = g["pads"][:axes], g["pads"][axes:]
    spread = [(k - 1) * d + 1 for k, d in zip(g["kernel"], g["dilations"], strict=True)]
    out = []
    for n, b, a, e, s in zip(g["size"], before, after, spread, g["strides"], strict=True):
        count = (math.ceil if ceil_mode else math.floor)((n + b + a - e) / s) + 1
        while ceil_mode and (count - 1) * s >= n + b:
            count -= 1
        out.append(count)
    y = np.empty((*x.shape[:2], *out))
    for place in itertools.product(*map(range, out)):
        values = []
        for tap in itertools.product(*map(range, g["kernel"])):
            at = [
                o * s + t * d - b
                for o, s, t, d, b in zip(
                    place, g["strides"], tap, g["dilations"], before, strict=True
                )
            ]
            inside = all(0 <= i < n for i, n in zip(at, g["size"], strict=True))
            padded = all(i < n + a for i, n, a in zip(at, g["size"], after, strict=True))
            values.append(x[(..., *at)] if inside else padded)
        y[(..., *place)] = reduce(values)
    return y


def _maximum(values):
    return np.max([v for v in values if not isinstance(v, bool)], axis=0)


def _mean(values):
    inside = [v for v in values if not isinstance(v, bool)]
    return np.sum(inside, axis=0) / len(inside)


def _mean_with_padding(values):
    inside = [v for v in values if not isinstance(v, bool)]
    return np.sum(inside, axis=0) / (len(inside) + sum(v for v in values if isinstance(v, bool)))


POOLS = {
    "max": ("MaxPool", "", _maximum),
    "average": ("AveragePool", "", _mean),
    "with_padding": ("AveragePool", ", count_include_pad=1", _mean_with_padding),
}


@pytest.mark.parametrize("pool", POOLS)
@settings(max_examples=60, deadline=None)
@given(geometries(kernels=(2, 3)), st.integers(0, 1))
def test_pools(run, pool, g, ceil_mode):
    op, extra, reduce = POOLS[pool]
    g["pads"] = tuple(min(p, 1) for p in g["pads"])  # less than a kernel: no window is empty
    g["dilations"] = (1,) * len(g["size"])
    x = np.random.default_rng(0).standard_normal((2, 2, *g["size"]))
    room = zip(g["size"], g["kernel"], strict=True)
    assume(all(n >= k for n, k in room))
    wanted = naive_pool(x, g, ceil_mode, reduce)
    given_ = attributes(
        kernel_shape=g["kernel"], strides=g["strides"], pads=g["pads"], ceil_mode=ceil_mode
    )
    result = run(f"y = {op}<{given_}{extra}>(x)", x=x)
    np.testing.assert_allclose(result, wanted, atol=TOLERANCE)


def test_dilated_pools(run, rng):
    x = rng.standard_normal((1, 2, 9, 8))
    g = {
        "size": (9, 8),
        "kernel": (3, 2),
        "strides": (1, 2),
        "dilations": (2, 3),
        "pads": (1, 0, 0, 1),
    }
    given_ = attributes(
        kernel_shape=g["kernel"], strides=g["strides"], pads=g["pads"], dilations=g["dilations"]
    )
    for op, _, reduce in (POOLS["max"], POOLS["average"]):
        result = run(f"y = {op}<{given_}>(x)", x=x)
        np.testing.assert_allclose(result, naive_pool(x, g, 0, reduce), atol=TOLERANCE)


def test_global_pools(run, rng):
    x = rng.standard_normal((2, 3, 4, 5))
    mean = run("y = GlobalAveragePool(x)", x=x)
    np.testing.assert_allclose(mean, x.mean((2, 3), keepdims=True), rtol=1e-13)
    np.testing.assert_array_equal(run("y = GlobalMaxPool(x)", x=x), x.max((2, 3), keepdims=True))


def test_indices_of_maxima_are_refused(run):
    with pytest.raises(UnsupportedInFloat64, match="indices of the maxima"):
        run("y, i = MaxPool<kernel_shape=[2]>(x)", x=np.ones((1, 1, 4)))
