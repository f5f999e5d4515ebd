"""One network on a batch equals the network on each image: `flip_average:mode=batch` proves it."""

import pytest
from running import applied, error_in_float32, proofs, refusal

from passes.flip_average import FlipAverage

BATCH = FlipAverage("batch")
X = "g (float[1,3,4,6] x) => (float[a,b,c] y)"


def same(text: str, folder, opset: int = 17) -> None:
    result = applied(text, BATCH, opset)
    assert result.reasons == []
    (proof,) = proofs(result, BATCH)
    assert (proof.status, proof.detail, proof.error < 1e-13) == ("pass", "", True)
    assert error_in_float32(result, BATCH, folder) < 1e-5


VIT = """g (float[1,3,8,12] x) => (float[1,8,12] y)
<float[8,3,4,4] patch, int64[3] tokens = {1, 8, 6}, float[1,1,8] cls, float[1,7,8] pos,
 float[8] gain, float[8] shift, float[8,24] qkv, float[24] qkv_bias, int64[2] rows = {7, 8},
 int64[5] heads = {1, 7, 3, 2, 4}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2},
 float scale = {0.5}, int64[3] back = {1, 7, 8}, float[8,8] out,
 int64[1] s0 = {1}, int64[1] s1 = {9223372036854775807}, int64[1] ax = {1},
 int64[4] grid = {0, -1, 2, 3}, float[8,4,2,2] up, int64[4] sizes = {1, 4, 8, 12},
 float[1,4,1,1] last, int64[1] one = {1}> {
    e = Conv <strides=[4, 4]>(x, patch)
    f = Reshape(e, tokens)
    t = Transpose <perm=[0, 2, 1]>(f)
    c = Concat <axis=1>(cls, t)
    h = Add(c, pos)
    n = LayerNormalization(h, gain, shift)
    m = Reshape(n, rows)
    p = Gemm(m, qkv, qkv_bias)
    p5 = Reshape(p, heads)
    p5t = Transpose <perm=[2, 0, 3, 1, 4]>(p5)
    q = Gather <axis=0>(p5t, i0)
    k = Gather <axis=0>(p5t, i1)
    v = Gather <axis=0>(p5t, i2)
    kt = Transpose <perm=[0, 1, 3, 2]>(k)
    s = MatMul(q, kt)
    ss = Mul(s, scale)
    a = Softmax <axis=-1>(ss)
    o = MatMul(a, v)
    ot = Transpose <perm=[0, 2, 1, 3]>(o)
    om = Reshape(ot, back)
    pr = MatMul(om, out)
    r = Add(h, pr)
    z = Slice(r, s0, s1, ax)
    zt = Transpose <perm=[0, 2, 1]>(z)
    zg = Reshape(zt, grid)
    u = ConvTranspose <strides=[2, 2]>(zg, up)
    w = Resize <mode="linear", coordinate_transformation_mode="align_corners">(u, , , sizes)
    d = Conv(w, last)
    d1 = Relu(d)
    y = Squeeze(d1, one)
}"""


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_a_vision_transformer(opset, tmp_path):
    """Tokens as matrix rows (Gemm), packed QKV, a class token, position embeddings, a Resize."""
    same(VIT, tmp_path, opset)


ACCEPTED = {
    "rows with a constant for each": (
        "<int64[2] s = {12, 6}, float[12,1] k, int64[3] t = {3, 4, 6}>"
        "{ a = Reshape(x, s) b = Add(a, k) y = Reshape(b, t) }"
    ),
    "batch axis inside": (
        "<int64[3] s = {1, 4, 6}, int64[1] two = {2}, int64[1] three = {3}, int64[1] ax = {1}>"
        "{ a = Slice(x, two, three, ax) b = Transpose <perm=[2, 0, 3, 1]>(a)"
        "  c = Softmax <axis=0>(b) d = Transpose <perm=[1, 3, 0, 2]>(c) y = Reshape(d, s) }"
    ),
    "constant as the left factor": (
        "<float[4,4] k, int64[3] s = {3, 4, 6}> { a = MatMul(k, x) y = Reshape(a, s) }"
    ),
    "stacked constants": (
        "<float[12,6,2] k, int64[3] s = {12, 1, 6}>{ a = Reshape(x, s) y = MatMul(a, k) }"
    ),
    "a whole slice of the batch": (
        "<int64[2] s = {0, 1}, int64[2] e = {1, 3}, int64[1] one = {1}>"
        "{ a = Slice(x, s, e) b = ReduceMax <axes=[1]>(a) y = Squeeze(b, one) }"
    ),
    "a mean over space": (
        "<int64[1] one = {1}> { a = ReduceMean <axes=[1], keepdims=0>(x)"
        "  b = ReduceMean <axes=[-1], keepdims=1>(a) y = Sub(a, b) }"
    ),
    "split and concat": (
        "<float[1,1,6] k, int64[1] ax = {1}> { a = ReduceSum(x, ax) b = Squeeze(a, ax)"
        "  c, d = Split <axis=1>(b) y = Concat <axis=1>(d, k, c) }"
    ),
    "reduced before the batch axis": (
        "{ a = Transpose <perm=[1, 0, 2, 3]>(x) y = ReduceMax <axes=[0], keepdims=0>(a) }"
    ),
    "mean and clip": (
        "<float low = {10}, float high = {200}, int64[1] ax = {1}>"
        "{ a = Clip(x, low, high) b = ReduceSum(a, ax) y = Squeeze(b, ax) }"
    ),
    "mirrored by a slice": (
        "<int64[1] s = {-1}, int64[1] e = {-99}, int64[1] ax = {3}, int64[1] st = {-1},"
        " int64[1] one = {1}, float[2,3,1,1] w>"
        "{ a = Slice(x, s, e, ax, st) b = Conv(a, w) c = DepthToSpace <blocksize=1>(b)"
        "  y = ReduceSum <keepdims=0>(c, one) }"
    ),
    "expanded": (
        "<int64[4] s = {1, 3, 4, 6}, float[1,1,1,6] w, int64[3] t = {1, 12, 6}>"
        "{ a = ReduceMean <axes=[2]>(x) b = Expand(a, s) c = Mul(b, w) y = Reshape(c, t) }"
    ),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_the_batch_is_followed(text, tmp_path):
    same(f"{X} {text}", tmp_path)


REFUSED = {
    "mixed by a Reshape": (
        "<int64[3] s = {4, 3, 6}> { a = Transpose <perm=[1, 0, 2, 3]>(x) y = Reshape(a, s) }",
        "Reshape 'Reshape_y' can't run on a batch: "
        "[3, 1, 4, 6] → [4, 3, 6] mixes axis 1 with others",
    ),
    "broadcast": (
        "<float[5,1,4,6] k, int64[1] one = {1}>"
        "{ a = Add(x, k) y = ReduceSum <keepdims=0>(a, one) }",
        "Add 'Add_a' can't run on a batch: "
        "[1, 3, 4, 6] becomes [5, 3, 4, 6], and axis 0 is the batch",
    ),
    "summed by a MatMul": (
        "<int64[2] s = {12, 6}, float[5,12] k, int64[3] t = {1, 5, 6}>"
        "{ a = Reshape(x, s) b = MatMul(k, a) y = Reshape(b, t) }",
        "MatMul 'MatMul_b' can't run on a batch: it sums over the batch",
    ),
    "rows times rows": (
        "<int64[2] s = {12, 6}, int64[3] t = {1, 12, 12}>"
        "{ a = Reshape(x, s) b = Transpose(a) c = MatMul(a, b) y = Reshape(c, t) }",
        "MatMul 'MatMul_c' can't run on a batch: "
        "its operands are batched along different axes [0, 1]",
    ),
    "softmax over tokens of all images": (
        "<int64[2] s = {12, 6}, int64[3] t = {3, 4, 6}>"
        "{ a = Reshape(x, s) b = Softmax <axis=0>(a) y = Reshape(b, t) }",
        "Softmax 'Softmax_b' can't run on a batch: it works along axis 0, and the batch is axis 0",
    ),
    "picked": (
        "<int64 i = {0}> { y = Gather <axis=0>(x, i) }",
        "Gather 'Gather_y' can't run on a batch: it picks along axis 0, the batch",
    ),
    "reduced": (
        "{ y = ReduceMean <axes=[0], keepdims=0>(x) }",
        "ReduceMean 'ReduceMean_y' can't run on a batch: it reduces axis 0, the batch",
    ),
    "half of the rows": (
        "<int64[2] s = {12, 6}, int64[1] zero = {0}, int64[1] six = {6}, int64[3] t = {1, 6, 6}>"
        "{ a = Reshape(x, s) b = Slice(a, zero, six, zero) y = Reshape(b, t) }",
        "Slice 'Slice_b' can't run on a batch: it takes part of axis 0, the batch",
    ),
    "stacked on the batch": (
        "<float[1,3,4,6] k, int64[1] one = {1}>"
        "{ a = Concat <axis=0>(x, k) y = ReduceSum <keepdims=0>(a, one) }",
        "Concat 'Concat_a' can't run on a batch: it joins along axis 0, and the batch is axis [0]",
    ),
    "kernels from the image": (
        "<float[1,3,9,9] k, int64[1] one = {1}> { a = Conv(k, x) y = Squeeze(a, one) }",
        "Conv 'Conv_a' can't run on a batch: 'x' differs from image to image",
    ),
    "an op without a rule": (
        '<int64[1] one = {1}> { a = Einsum <equation="nchw->nhw">(x) y = Abs(a) }',
        "Einsum 'Einsum_a' can't run on a batch: there is no rule for this op",
    ),
    "a shape of the image": (
        "<int64[3] t = {3, 4, 6}> { s = Shape(x) f = Reshape(x, s) y = Reshape(f, t) }",
        "Shape 'Shape_s' can't run on a batch: there is no rule for this op",
    ),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_lost_batch_is_refused(text, reason):
    assert refusal(f"{X} {text}", BATCH) == reason
