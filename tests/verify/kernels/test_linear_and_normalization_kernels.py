"""Products, normalizations and attention against plain NumPy in float64."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.verify.float64 import UnsupportedInFloat64

CLOSE = {"rtol": 1e-13, "atol": 1e-13}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 1, 3, 4), (5, 4, 6)),
        ((4,), (4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (4,)),
        ((2, 0, 4), (4, 3)),
    ],
    ids=str,
)
def test_matmul(run, rng, a, b):
    x, y = rng.standard_normal(a), rng.standard_normal(b)
    np.testing.assert_allclose(run("z = MatMul(x, y)", x=x, y=y), x @ y, **CLOSE)


def test_matmul_of_views(run, rng):
    x, y = rng.standard_normal((4, 3, 5)), rng.standard_normal((6, 10))
    left, right = x.transpose(1, 0, 2), y[::-1, ::2].T
    result = run("z = MatMul(x, y)", x=left, y=right)
    np.testing.assert_allclose(result, left @ right, **CLOSE)


@pytest.mark.parametrize("c", [None, (), (5,), (3, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
def test_gemm(run, rng, c, flips):
    a = rng.standard_normal((4, 3) if flips[0] else (3, 4))
    b = rng.standard_normal((5, 4) if flips[1] else (4, 5))
    given_ = f"alpha=0.5, beta=1.5, transA={flips[0]}, transB={flips[1]}"
    wanted = 0.5 * (a.T if flips[0] else a) @ (b.T if flips[1] else b)
    if c is None:
        result = run(f"y = Gemm<{given_}>(a, b)", a=a, b=b)
    else:
        extra = rng.standard_normal(c)
        wanted = wanted + 1.5 * extra
        result = run(f"y = Gemm<{given_}>(a, b, c)", a=a, b=b, c=extra)
    np.testing.assert_allclose(result, wanted, **CLOSE)


@pytest.mark.parametrize(
    "equation", ["bhid, bhjd -> bhij", "...ij,...jk", "bhid,bhjd->ij", "BhiD,BhjD->jB"]
)
def test_einsum(run, rng, equation):
    a, b = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 3, 4, 4))
    wanted = np.einsum(equation, a, b)
    result = run(f'y = Einsum<equation="{equation}">(a, b)', a=a, b=b)
    np.testing.assert_allclose(result, wanted, **CLOSE)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=st.floats(-50, 50),
    ),
    st.integers(-4, 3),
)
def test_softmax(run, x, axis):
    axis %= x.ndim
    old = x.reshape(int(np.prod(x.shape[:axis])), -1)
    for opset, view, along in [(13, x, axis), (11, old, 1)]:
        wanted = softmax(view, along).reshape(x.shape)
        result = run(f"y = Softmax<axis={axis}>(x)", opset, x=x)
        np.testing.assert_allclose(result, wanted, **CLOSE)
        with np.errstate(divide="ignore"):
            result = run(f"y = LogSoftmax<axis={axis}>(x)", opset, x=x)
        shifted = view - view.max(along, keepdims=True)
        wanted = shifted - np.log(np.exp(shifted).sum(along, keepdims=True))
        np.testing.assert_allclose(result, wanted.reshape(x.shape), **CLOSE)


def test_softmax_to_thirty_digits(run):
    x = np.array([-700.0, -1.25, 0.1, 3.3])
    powers = [mpmath.exp(mpmath.mpf(float(v))) for v in x]
    wanted = [float(p / sum(powers)) for p in powers]
    np.testing.assert_allclose(run("y = Softmax(x)", x=x), wanted, rtol=1e-13)


def standardized(x, axes, epsilon):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)


EPSILON = float(np.float32(0.03))


@pytest.mark.parametrize("axis", [-1, 1, -3])
def test_layer_normalization(run, rng, axis):
    x = 100 + rng.standard_normal((2, 3, 4))
    gain, bias = rng.standard_normal(x.shape[axis:]), rng.standard_normal(4)
    axes = tuple(range(axis % 3, 3))
    wanted = standardized(x, axes, EPSILON) * gain
    given_ = f"<axis={axis}, epsilon=0.03>"
    result, mean, inverse = run(
        f"y, m, i = LayerNormalization{given_}(x, g, b)", x=x, g=gain, b=bias
    )
    np.testing.assert_allclose(result, wanted + bias, atol=1e-12)
    np.testing.assert_allclose(mean, x.mean(axes, keepdims=True), **CLOSE)
    deviation = np.sqrt(x.var(axes, keepdims=True) + EPSILON)
    np.testing.assert_allclose(inverse, 1 / deviation, atol=1e-12)
    plain = run(f"y = LayerNormalization{given_}(x, g)", x=x, g=gain)
    np.testing.assert_allclose(plain, wanted, atol=1e-12)


@pytest.mark.parametrize("opset", [9, 14, 15])
def test_batch_normalization(run, rng, opset):
    x, (g, b, m) = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 3))
    v = rng.uniform(0.1, 2, 3)
    gain, bias, mean, variance = (p.reshape(3, 1, 1) for p in (g, b, m, v))
    text = "y = BatchNormalization<epsilon=0.03>(x, g, b, m, v)"
    wanted = (x - mean) / np.sqrt(variance + EPSILON) * gain + bias
    np.testing.assert_allclose(run(text, opset, x=x, g=g, b=b, m=m, v=v), wanted, **CLOSE)


def test_batch_normalization_in_training_is_refused(run):
    one = np.ones(1)
    text = "y = BatchNormalization<training_mode=1>(x, g, b, m, v)"
    with pytest.raises(UnsupportedInFloat64, match="only inference"):
        run(text, x=np.ones((2, 1)), g=one, b=one, m=one, v=one)


def test_instance_and_group_normalization(run, rng):
    x = rng.standard_normal((2, 6, 4, 5))
    gain, bias = rng.standard_normal((2, 6))
    wide = (gain.reshape(6, 1, 1), bias.reshape(6, 1, 1))
    result = run("y = InstanceNormalization<epsilon=0.03>(x, g, b)", x=x, g=gain, b=bias)
    np.testing.assert_allclose(
        result, standardized(x, (2, 3), EPSILON) * wide[0] + wide[1], **CLOSE
    )
    text = "y = GroupNormalization<num_groups=2, epsilon=0.03>(x, g, b)"
    grouped = standardized(x.reshape(2, 2, 3, 4, 5), (2, 3, 4), EPSILON)
    whole = grouped.reshape(x.shape)
    result = run(text, 21, x=x, g=gain, b=bias)
    np.testing.assert_allclose(result, whole * wide[0] + wide[1], **CLOSE)
    old = run(text, 18, x=x, g=gain[:2], b=bias[:2])
    per_group = (gain[:2].reshape(2, 1, 1, 1), bias[:2].reshape(2, 1, 1, 1))
    np.testing.assert_allclose(
        old, (grouped * per_group[0] + per_group[1]).reshape(x.shape), **CLOSE
    )


def test_rms_and_lp_normalization(run, rng):
    x, gain = rng.standard_normal((2, 3, 4)), rng.standard_normal(4)
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * gain
    result = run("y = RMSNormalization<epsilon=0.03>(x, g)", 23, x=x, g=gain)
    np.testing.assert_allclose(result, wanted, **CLOSE)
    x[0, 0] = 0
    for p, norm in [(1, np.abs(x).sum(1)), (2, np.sqrt((x**2).sum(1)))]:
        result = run(f"y = LpNormalization<p={p}, axis=1>(x)", 22, x=x)
        np.testing.assert_allclose(result, x / norm[:, None], **CLOSE)
    assert not run("y = LpNormalization(x)", 22, x=np.zeros((2, 3))).any()


@pytest.mark.parametrize("size", [1, 3, 4])
def test_lrn(run, rng, size):
    x = rng.standard_normal((2, 6, 4, 5))
    alpha, beta, bias = (float(np.float32(v)) for v in (0.2, 0.7, 1.3))
    wanted = np.empty_like(x)
    for c in range(6):
        window = slice(max(0, c - (size - 1) // 2), c + size // 2 + 1)
        total = (x[:, window] ** 2).sum(1)
        wanted[:, c] = x[:, c] / (bias + alpha / size * total) ** beta
    result = run(f"y = LRN<size={size}, alpha=0.2, beta=0.7, bias=1.3>(x)", x=x)
    np.testing.assert_allclose(result, wanted, **CLOSE)


# Attention, one query at a time.


def attend(q, k, v, scale, bias):
    """(batch, heads, tokens, size) with one key and value head for each group of query heads."""
    out = np.zeros((*q.shape[:3], v.shape[3]))
    group = q.shape[1] // k.shape[1]
    bias = np.broadcast_to(bias, (*q.shape[:3], k.shape[2]))
    for b, h, i in np.ndindex(q.shape[:3]):
        logits = k[b, h // group] @ q[b, h, i] * scale + bias[b, h, i]
        if np.isfinite(logits).any():
            out[b, h, i] = softmax(logits) @ v[b, h // group]
    return out


@pytest.fixture
def qkv(rng):
    return [rng.standard_normal(s) for s in [(2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 3)]]


def named(arrays):
    return dict(zip("qkv", arrays, strict=True))


def packed(x):
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def test_attention_of_four_and_three_axes(run, qkv):
    wanted = attend(*qkv, 0.5, 0)
    np.testing.assert_allclose(run("y = Attention(q, k, v)", 23, **named(qkv)), wanted, **CLOSE)
    flat = named(map(packed, qkv))
    text = "y = Attention<q_num_heads=6, kv_num_heads=3, scale=0.25>(q, k, v)"
    wanted = packed(attend(*qkv, 0.25, 0))
    np.testing.assert_allclose(run(text, 23, **flat), wanted, **CLOSE)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1, 5, 7), (2, 6, 5, 7), (2, 1, 5, 6)], ids=str)
def test_attention_masks(run, rng, qkv, shape):
    """A mask that is too short hides the last keys; a query that sees nothing gives zeros."""
    allowed = rng.random(shape) < 0.6
    allowed[..., 2, :] = False
    additive = rng.standard_normal(shape)
    short = [(0, 0)] * (len(shape) - 1) + [(0, 7 - shape[-1])]
    hidden = np.pad(np.where(allowed, 0, -np.inf), short, constant_values=-np.inf)
    biased = np.pad(additive, short, constant_values=-np.inf)
    text = "y = Attention(q, k, v, m)"
    for mask, bias in [(allowed, hidden), (additive, biased)]:
        wanted = attend(*qkv, 0.5, bias)
        np.testing.assert_allclose(run(text, 24, **named(qkv), m=mask), wanted, **CLOSE)


def where(rule):
    """-inf where `rule` of query i and key j says no."""
    i, j = np.indices((5, 7))
    return np.where(rule(i, j), 0, -np.inf)


def test_attention_rules(run, qkv):
    causal = run("y = Attention<is_causal=1>(q, k, v)", 23, **named(qkv))
    np.testing.assert_allclose(causal, attend(*qkv, 0.5, where(lambda i, j: j <= i)), **CLOSE)
    text = "y = Attention<left_window_size=2, right_window_size=1>(q, k, v)"
    near = where(lambda i, j: (i - 2 <= j) & (j <= i + 1))
    np.testing.assert_allclose(run(text, 25, **named(qkv)), attend(*qkv, 0.5, near), **CLOSE)


def test_attention_with_a_cache(run, rng, qkv):
    q, k, v = qkv
    text = "y, pk, pv = Attention<is_causal=1>(q, k, v, , a, b)"
    split = {"q": q, "k": k[:, :, 2:], "v": v[:, :, 2:], "a": k[:, :, :2], "b": v[:, :, :2]}
    result, present_key, present_value = run(text, 23, **split)
    np.testing.assert_allclose(result, attend(*qkv, 0.5, where(lambda i, j: j <= i + 2)), **CLOSE)
    np.testing.assert_array_equal(present_key, k)
    np.testing.assert_array_equal(present_value, v)


def test_attention_with_padded_keys(run, qkv):
    seen = np.array([6, 4])
    text = "y = Attention<is_causal=1>(q, k, v, , , , n)"
    bias = np.stack([where(lambda i, j, n=n: (j <= i + n - 5) & (j < n)) for n in seen])
    wanted = attend(*qkv, 0.5, bias[:, None])
    np.testing.assert_allclose(run(text, 24, **named(qkv), n=seen), wanted, **CLOSE)


def test_attention_softcap_and_scores(run, qkv):
    q, k, v = (x[:, :3] for x in qkv)
    raw = q @ k.transpose(0, 1, 3, 2) * 0.5
    probabilities = softmax(np.tanh(raw / 2) * 2)
    for mode, shown in [(0, raw), (3, probabilities)]:
        text = f"y, , , s = Attention<softcap=2.0, qk_matmul_output_mode={mode}>(q, k, v)"
        result, scores = run(text, 23, q=q, k=k, v=v)
        np.testing.assert_allclose(result, probabilities @ v, **CLOSE)
        np.testing.assert_allclose(scores, shown, **CLOSE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y, , , s = Attention<qk_matmul_output_mode=1>(q, k, v)", "changed its meaning"),
        ("y = Attention<softcap=2.0, is_causal=1>(q, k, v)", "disagree on which comes first"),
    ],
)
def test_attention_where_versions_disagree_is_refused(run, qkv, text, reason):
    with pytest.raises(UnsupportedInFloat64, match=reason):
        run(text, 23, **named(qkv))
