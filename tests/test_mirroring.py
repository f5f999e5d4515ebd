"""A network of mirrored ops on the image equals the network on the mirrored image.

Every body reads `f`, the image with its columns reversed; `m` is flipped back to the output.
"""

import pytest
from running import applied, error_in_float32, proofs, refusal

from passes.fold_flip import FoldFlip

FOLD = FoldFlip()
WIDTH = 7


def model(body: str, constants: str = "", width: int = WIDTH, out: int | None = None) -> str:
    """x → f (columns reversed) → body → m → y (the last axis reversed)."""
    backwards = ", ".join(map(str, reversed(range(width))))
    back = ", ".join(map(str, reversed(range(out or width))))
    constants = f", {constants}" if constants else ""
    return f"""g (float[2,3,5,{width}] x) => (float[a,b,c,d] y)
    <int64[{width}] r = {{{backwards}}}, int64[{out or width}] back = {{{back}}}{constants}> {{
        f = Gather <axis=3>(x, r)
        {body}
        y = Gather <axis=-1>(m, back)
    }}"""


def ops_of(text: str, folder, opset: int = 17) -> list[str]:
    """The ops of the folded model, which is proven."""
    result = applied(text, FOLD, opset)
    assert result.reasons == []
    (proof,) = proofs(result, FOLD)
    assert (proof.status, proof.detail, proof.error < 1e-13) == ("pass", "", True)
    assert error_in_float32(result, FOLD, folder) < 1e-5
    assert applied_again(result) == []
    return result.ops


def applied_again(result) -> list[object]:
    return list(FOLD.match(result.graph))


VIT = """<float[8,3,4,4] patch, int64[3] tokens = {1, 8, 6}, float[1,1,8] cls, float[1,7,8] pos,
 float[8] gain, float[8] shift, float[8,24] qkv, float[24] qkv_bias, int64[2] rows = {7, 8},
 int64[5] heads = {1, 7, 3, 2, 4}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2},
 float scale = {0.5}, int64[3] merged = {1, 7, 8}, float[8,8] out, float[1,2,7,7] bias,
 int64[1] s0 = {1}, int64[1] s1 = {9223372036854775807}, int64[1] ax = {1},
 int64[4] grid = {0, -1, 2, 3}, float[8,4,2,2] up, int64[4] sizes = {1, 4, 8, 12},
 float[1,4,3,3] last, int64[1] one = {1}, int64[12] r = {11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0},
 float[4,4,1,3] mix> {
    f = Gather <axis=3>(x, r)
    e = Conv <strides=[4, 4]>(f, patch)
    g = Reshape(e, tokens)
    t = Transpose <perm=[0, 2, 1]>(g)
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
    sb = Add(ss, bias)
    a = Softmax <axis=-1>(sb)
    o = MatMul(a, v)
    ot = Transpose <perm=[0, 2, 1, 3]>(o)
    om = Reshape(ot, merged)
    pr = MatMul(om, out)
    j = Add(h, pr)
    z = Slice(j, s0, s1, ax)
    zt = Transpose <perm=[0, 2, 1]>(z)
    zg = Reshape(zt, grid)
    u = ConvTranspose <strides=[2, 2]>(zg, up)
    w = Resize <mode="linear", coordinate_transformation_mode="align_corners">(u, , , sizes)
    x1 = Conv <pads=[0, 2, 0, 0]>(w, mix)
    d = Conv <pads=[1, 1, 1, 1]>(x1, last)
    d1 = Relu(d)
    d2 = Squeeze(d1, one)
    y = Gather <axis=-1>(d2, r)
}"""


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_a_vision_transformer(opset, tmp_path):
    """A class token, position embeddings, a relative position bias, a decoder, uneven padding."""
    ops = ops_of(f"g (float[1,3,8,12] x) => (float[1,8,12] y) {VIT}", tmp_path, opset)
    assert ops.count("Gather") == 3


# body, constants, and the width of the map where it is another
ACCEPTED = {
    "a kernel": ("m = Conv <pads=[1, 1, 1, 1]>(f, w)", "float[4,3,3,3] w"),
    "padding on one side": ("m = Conv <pads=[0, 2, 0, 0]>(f, w)", "float[4,3,1,3] w"),
    "a stride that leaves a rest of padding": (
        "m = Conv <strides=[1, 2], pads=[0, 1, 0, 2]>(f, w)", "float[4,3,1,3] w", 4,
    ),
    "a dilated kernel in groups": (
        "m = Conv <dilations=[1, 2], group=3, pads=[0, 4, 0, 1]>(f, w)", "float[3,1,1,3] w", 8,
    ),
    "a transposed convolution": (
        "m = ConvTranspose <strides=[2, 2], pads=[0, 1, 1, 0]>(f, w)", "float[3,4,2,3] w", 14,
    ),
    "pooling": ("m = MaxPool <kernel_shape=[2, 3], strides=[1, 2], pads=[0, 1, 0, 1]>(f)", "", 4),
    "averages with a rest of padding": (
        "m = AveragePool <kernel_shape=[1, 3], strides=[1, 2], pads=[0, 0, 0, 1], "
        "count_include_pad=1>(f)", "", 3,
    ),
    "constants of every rank": (
        "a = Add(f, k1) b = Mul(a, k3) c = Where(q, b, k0) m = PRelu(c, k4)",
        "float[7] k1, float[3,1,7] k3, float k0 = {2}, float[1,3,5,7] k4, bool[5,7] q",
    ),
    "a sum that leaves no axis": (
        "a = ReduceSum <keepdims=0>(f, one) b = Mul(a, k) m = Unsqueeze(b, one)",
        "int64[1] one = {1}, float[5,7] k",
    ),
    "normalization": (
        "a = BatchNormalization(f, k, b, u, v) c = InstanceNormalization(a, k, b)"
        " m = LayerNormalization(c, g, h)",
        "float[3] k, float[3] b, float[3] u, float[3] v = {1, 2, 3}, float[7] g, float[7] h",
    ),
    "softmax over the columns": ("m = Softmax <axis=3>(f)", ""),
    "a mean over the columns": (
        "a = ReduceMean <axes=[3]>(f) b = Sub(f, a) c = Mul(b, b)"
        " d = ReduceSum(c, three) m = Div(b, d)", "int64[1] three = {3}",
    ),
    "squeeze and excitation": (
        "a = GlobalAveragePool(f) b = Conv(a, w) c = Sigmoid(b) m = Mul(f, c)",
        "float[3,3,1,1] w",
    ),
    "a shape of the mirrored image": (
        "s = Shape(f) a = Reshape(f, t) b = Relu(a) m = Reshape(b, s)", "int64[3] t = {6, 5, 7}",
    ),
    "products of columns": (
        "ft = Transpose <perm=[0, 1, 3, 2]>(f) a = MatMul(f, ft) b = MatMul(a, f)"
        ' c = Einsum <equation="nchw,hk->nckw">(b, e)'
        " m = MatMul(k, c)", "float[5,4] e, float[2,4] k",
    ),
    "rows taken": (
        "a = Slice(f, s, e) b, c = Split <axis=2>(a) d = Concat <axis=2>(c, k, b)"
        " m = Gather <axis=2>(d, i)",
        "int64[3] s = {0, 0, 1}, int64[3] e = {9, 9, 5}, float[2,3,1,7] k, int64[2] i = {3, -5}",
    ),
    "the middle columns": (
        "m = Slice(f, s, e, ax)", "int64[1] s = {2}, int64[1] e = {-2}, int64[1] ax = {3}", 3,
    ),
    "every other column": (
        "m = Slice(f, s, e, ax, st)",
        "int64[1] s = {0}, int64[1] e = {7}, int64[1] ax = {3}, int64[1] st = {2}", 4,
    ),
    "a list of columns": ("m = Gather <axis=3>(f, i)", "int64[3] i = {0, 3, -1}", 3),
    "columns joined": (
        "a = Concat <axis=3>(f, f) m = Reshape(a, s)", "int64[4] s = {2, 3, 10, 7}",
    ),
    "padded": (
        'm = Pad <mode="reflect">(f, p)', "int64[8] p = {0, 0, 1, 2, 0, 0, 0, 1}", 10,
    ),
    "cubic": (
        'm = Resize <mode="cubic", coordinate_transformation_mode="half_pixel">(f, , , s)',
        "int64[4] s = {2, 3, 5, 10}", 10,
    ),
    "nearest, twice as wide": (
        'm = Resize <mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor">(f, , s)', "float[4] s = {1, 1, 2, 2}", 14,
    ),
    "repeated for every column": (
        "a = ReduceMax <axes=[3]>(f) b = Expand(a, s) m = Concat <axis=1>(f, b)",
        "int64[4] s = {2, 3, 5, 7}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_the_flip_is_followed(case, tmp_path):
    body, constants, *out = case
    text = model(body, constants, out=out[0] if out else None)
    result = applied(text, FOLD)
    assert result.ops == [node.op_type for node in result.source.graph.node][1:-1]
    ops_of(text, tmp_path)


def test_windows_of_windows(tmp_path):
    """Columns as windows and columns within: the order is reversed in both."""
    text = model(
        """a = Reshape(f, t) b = Transpose <perm=[0, 3, 2, 4, 1]>(a) c = Reshape(b, u)
           d = Add(c, pos) e = MatMul(d, w) g = Softmax <axis=1>(e) h = Reshape(g, v)
           i = Transpose <perm=[0, 4, 2, 1, 3]>(h) m = Reshape(i, z)""",
        "int64[5] t = {2, 3, 5, 4, 2}, int64[3] u = {8, 10, 3}, float[1,10,3] pos, float[3,3] w,"
        "int64[5] v = {2, 4, 5, 2, 3}, int64[4] z = {2, 3, 5, 8}",
        width=8,
    )
    assert "Gather" not in ops_of(text, tmp_path)


def test_single_columns_are_looked_up(tmp_path):
    """What ends up without columns needs no flip back."""
    text = """g (float[2,3,5,4] x) => (float[2,3,5] y, float[2,3,5,2] z)
    <int64[4] r = {3, 2, 1, 0}, int64 i = {0}, int64[2] j = {-1, 2}> {
        f = Gather <axis=3>(x, r) y = Gather <axis=3>(f, i) z = Gather <axis=3>(f, j)
    }"""
    result = applied(text, FOLD)
    assert result.ops == ["Gather", "Gather"]
    assert [n.inputs[1].values.tolist() for n in result.graph.nodes] == [3, [0, 1]]
    ops_of(text, tmp_path)


REFUSED = {
    "an op without a rule": (
        "m = CumSum(f, three)", "int64 three = {3}",
        "CumSum 'CumSum_m' needs the flip: there is no rule for this op",
    ),
    "a stride that leaves image": (
        "m = Conv <strides=[1, 2]>(f, w)", "float[4,3,1,2] w",
        "Conv 'Conv_m' needs the flip: its windows of 2, 2 apart, leave 1 of 7 + 0 places of "
        "axis 3 over at the end",
    ),
    "a rounded up pool": (
        "m = MaxPool <kernel_shape=[1, 2], strides=[1, 2], pads=[0, 1, 0, 1], ceil_mode=1>(f)", "",
        "MaxPool 'MaxPool_m' needs the flip: its windows of 2, 2 apart, leave 1 of 7 + 2 places "
        "of axis 3 over at the end",
    ),
    "automatic padding": (
        'm = Conv <auto_pad="SAME_UPPER">(f, w)', "float[4,3,1,2] w",
        "Conv 'Conv_m' needs the flip: auto_pad=SAME_UPPER does not say how much is padded where",
    ),
    "output padding": (
        "m = ConvTranspose <strides=[2, 2], output_padding=[0, 1]>(f, w)", "float[3,4,2,2] w",
        "ConvTranspose 'ConvTranspose_m' needs the flip: output_padding=[0, 1] adds at the end",
    ),
    "a kernel that is computed": (
        "k = Abs(x) m = Conv(f, k)", "",
        "Conv 'Conv_m' needs the flip: its weights 'k' are not constant",
    ),
    "a kernel that is mirrored": (
        "m = Conv(w, f)", "float[4,3,9,9] w", "Conv 'Conv_m' needs the flip: 'f' is mirrored",
    ),
    "an image that is not mirrored": (
        "m = Add(f, x)", "", "Add 'Add_m' needs the flip: 'x' is not mirrored along axis 3",
    ),
    "columns and twice as many": (
        "a = Concat <axis=3>(f, f) b = Reshape(a, s) c = Transpose <perm=[0, 1, 2, 4, 3]>(b)"
        " d = Reshape(c, t) m = Add(a, d)",
        "int64[5] s = {2, 3, 5, 2, 7}, int64[4] t = {2, 3, 5, 14}",
        "Add 'Add_m' needs the flip: its operands are mirrored in different ways",
    ),
    "a window that is shifted": (
        "a = Slice(f, s, e, ax) b = Slice(f, z, s, ax) m = Concat <axis=3>(a, b)",
        "int64[1] s = {2}, int64[1] e = {7}, int64[1] ax = {3}, int64[1] z = {0}",
        "Slice 'Slice_a' needs the flip: it takes a part of axis 3 that is not the mirror image "
        "of itself",
    ),
    "rows and columns in one": (
        "a = Transpose <perm=[0, 1, 3, 2]>(f) b = Reshape(a, s) m = Add(b, k)",
        "int64[4] s = {2, 3, 5, 7}, float[1] k",
        "Reshape 'Reshape_b' needs the flip: [2, 3, 7, 5] → [2, 3, 5, 7] mixes axis 2 with others",
    ),
    "a resize from the left": (
        'm = Resize <mode="linear", coordinate_transformation_mode="asymmetric">(f, , , s)',
        "int64[4] s = {2, 3, 5, 10}",
        "Resize 'Resize_m' needs the flip: asymmetric: 7 → 10 differs from end to end",
    ),
    "an image of computed size": (
        'z = Shape(x) m = Resize <mode="linear">(f, , , z)', "",
        "Resize 'Resize_m' needs the flip: 'z' is not constant",
    ),
    "indices": (
        "a = ArgMax <axis=3>(f) c = Cast <to=1>(a) m = Add(c, f)", "",
        "ArgMax 'ArgMax_a' needs the flip: there is no rule for this op",
    ),
    "a pool with indices": (
        "m, i = MaxPool <kernel_shape=[1, 1]>(f) ", "",
        "MaxPool 'MaxPool_m' needs the flip: it also returns indices",
    ),
    "the sum of rows by columns": (
        "a = Transpose <perm=[0, 1, 3, 2]>(x) b = MatMul(f, a) m = MatMul(b, f)", "",
        "MatMul 'MatMul_b' needs the flip: 'a' is not mirrored along axis 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "constants", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_needs_the_flip_is_refused(body, constants, reason):
    text = model(body, constants, out=14 if "Concat <axis=3>(f, f)" in body else None)
    text = text.replace("y = Gather <axis=-1>(m, back)", "y = Abs(m)")
    assert refusal(text, FOLD) == reason


GROUPED = {
    "convolved in groups": (
        "y = Conv <group=2>(f, w)",
        6,
        "Conv 'Conv_y' needs the flip: the channels, in 2 groups, are mirrored",
    ),
    "normalized in groups": (
        "y = GroupNormalization <num_groups=2>(f, k, b)",
        4,
        "GroupNormalization 'GroupNormalization_y' needs the flip: the channels, which it groups, "
        "are mirrored",
    ),
}


@pytest.mark.parametrize(("body", "channels", "reason"), GROUPED.values(), ids=GROUPED.keys())
def test_channels_in_reverse_order_that_are_grouped(body, channels, reason):
    text = f"""g (float[1,4,5,4] x) => (float[1,{channels},5,4] y)
    <int64[4] r = {{3, 2, 1, 0}}, float[6,2,1,1] w, float[4] k, float[4] b> {{
        f = Gather <axis=1>(x, r) {body}
    }}"""
    assert refusal(text, FOLD, opset=21) == reason


def test_a_flipped_output_is_refused():
    assert refusal(model("m = Relu(f) z = Neg(m)").replace("y)", "y, float[2,3,5,7] z)"), FOLD) == (
        "nothing flips the output 'z' back"
    )


def test_a_dynamic_shape_is_refused():
    text = model("m = Relu(f)").replace("float[2,3,5,7] x", "float[n,3,5,7] x")
    assert refusal(text, FOLD) == "nothing to fold: no Gather or Slice reverses an axis"


def test_a_body_is_refused():
    text = model(
        """m = If (c) <then_branch = t () => (float[2,3,5,7] p) { p = Abs(f) },
                       else_branch = e () => (float[2,3,5,7] q) { q = Neg(f) }>""",
        "bool c = {1}",
    )
    assert refusal(text, FOLD) == "If 'If_m' needs the flip: there is no rule for this op"


def test_a_body_between_what_is_mirrored_is_refused():
    """It reads what has no columns any more; a copy of it would read the old one."""
    text = model(
        """h = ReduceMax <axes=[3]>(f)
           s = If (c) <then_branch = t () => (float[2,3,5,1] p) { p = Abs(h) },
                       else_branch = e () => (float[2,3,5,1] q) { q = Neg(h) }>
           m = Mul(f, s)""",
        "bool c = {1}",
    )
    assert refusal(text, FOLD) == "If 'If_s' has a body"
