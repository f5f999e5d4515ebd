"""Which nodes an attention is, and that they alone have 8 bits."""

import approximated
import onnx
import pytest
from onnx import numpy_helper

from compiler.errors import UserError
from compiler.quantize.attending import attention_nodes

# One head: separate projections with biases, a scale, a mask; then the projection of the result.
PLAIN = """g (float[5,4] x, float[5,5] mask) => (float[5,4] y)
<float[4,4] wq, float[4,4] wk, float[4,4] wv, float[4,4] wo, float[4] b, float half = {0.5},
 float[4] one, float[4] zero>
{
    n = LayerNormalization(x, one, zero)
    q0 = MatMul(n, wq) q = Add(q0, b) qs = Mul(q, half)
    k = MatMul(n, wk) kt = Transpose(k)
    v = MatMul(n, wv)
    s = MatMul(qs, kt) m = Neg(mask) sm = Add(s, m) p = Softmax(sm) o = MatMul(p, v)
    out = MatMul(o, wo) y = Add(x, out)
}"""
# No projections: what is attended to is the residual stream itself.
BARE = """g (float[5,4] x) => (float[5,4] y) <float[4,4] w>
{
    a = MatMul(x, w) r = Add(x, a)
    rt = Transpose(r) s = MatMul(r, rt) p = Softmax(s) o = MatMul(p, r) y = Add(r, o)
}"""
# q, k and v in one projection; a Softmax that is taken apart.
PACKED = """g (float[5,4] x) => (float[5,4] y)
<float[4,12] w, int64[1] a = {1}, int64[3] parts = {4, 4, 4}>
{
    qkv = MatMul(x, w) q, k, v = Split <axis = 1> (qkv, parts)
    kt = Transpose(k) s = MatMul(q, kt) e = Exp(s) z = ReduceSum(e, a) p = Div(e, z)
    o = MatMul(p, v) y = Relu(o)
}"""
# The same behind tile_softmax, and a Reshape of which the keys are no axis.
TILED = BARE.replace(
    "<float[4,4] w>", "<float[4,4] w, int64[3] t = {1, 5, 5}, int64[2] f = {5, 5}>"
)
TILED = TILED.replace("p = Softmax(s)", "st = Reshape(s, t) pt = Softmax(st) p = Reshape(pt, f)")
MIXED = TILED.replace("t = {1, 5, 5}", "t = {5, 5, 1}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, "q0 q qs k kt v s sm p o"),
        (BARE, "s p o"),
        (PACKED, "qkv q kt s e z p o"),
        (TILED, "s st pt p o"),
        (MIXED, ""),
        ("g (float[5,4] x) => (float[5,4] y) { y = Softmax(x) }", ""),
    ],
    ids=["plain", "bare", "packed", "tiled", "mixed", "none"],
)
def test_an_attention_reaches_from_its_projections_to_the_values(graph_of, text, expected):
    found = {node.outputs[0].name for node in attention_nodes(graph_of(text))}
    assert found == set(expected.split())


def test_scores_that_are_doubled_often_cost_no_more_than_their_nodes(graph_of):
    doubled = " ".join(f"s{i + 1} = Add(s{i}, s{i})" for i in range(64))
    text = BARE.replace("s = MatMul(r, rt)", f"s0 = MatMul(r, rt) {doubled}")
    found = attention_nodes(graph_of(text.replace("Softmax(s)", "Softmax(s64)")))
    assert len(found) == 64 + 3


IMAGE = """g (float[1,3,8,8] image) => (float[1,1,8,8] depth)
<float[24,16] w, float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,8] wo, float[8] b,
 float small = {0.01}, float quarter = {0.25}, int64[2] rows = {8, 24}, int64[4] map = {1, 1, 8, 8}>
{
    i = Mul(image, small) t = Transpose <perm = [0, 2, 1, 3]> (i) r = Reshape(t, rows)
    x = MatMul(r, w)
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose <perm = [1, 0]> (k)
    s0 = MatMul(q, kt) s = Mul(s0, quarter) p = Softmax <axis = -1> (s) o = MatMul(p, v)
    y = MatMul(o, wo) e = Abs(y) f = Add(e, b) depth = Reshape(f, map)
}"""


def stored(model: onnx.ModelProto) -> dict[str, str]:
    """The types of the whole numbers that tensors become, by the tensors' names."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        node.input[0].removesuffix("_QuantizeLinear_Input"): constants[node.input[2]].dtype.name
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_attention_has_eight_bits_and_the_rest_sixteen(model_of, tmp_path):
    source = approximated.write(model_of(IMAGE, 17), tmp_path)
    (*_, stage) = approximated.build(source, "quantize:attention=8", tmp_path / "b")
    types = stored(onnx.load(stage.path))
    assert {types[name] for name in ("q", "k", "v", "s0", "s", "p", "o")} == {"uint8"}
    assert {types[name] for name in ("image", "i", "x", "y", "e", "f")} == {"uint16"}
    (*_, whole) = approximated.build(source, "quantize", tmp_path / "w")
    assert whole.report.loss["value"] < stage.report.loss["value"] < 0.1


def test_layers_that_are_spared_are_so_with_their_attention(model_of, tmp_path):
    source = approximated.write(model_of(IMAGE, 17), tmp_path)
    (*_, plain) = approximated.build(source, "quantize:attention=8", tmp_path / "b")
    bound = plain.report.loss["value"] / 4
    passes = f"quantize:attention=8:max_loss={bound}"
    (*_, stage) = approximated.build(source, passes, tmp_path / "s")
    assert stage.report.loss["value"] <= bound
    assert len(stored(onnx.load(stage.path))) < len(stored(onnx.load(plain.path)))


@pytest.mark.parametrize(
    ("text", "passes", "reason"),
    [
        (approximated.TEXT, "quantize:attention=8", "attention=8: no Softmax weighs values here"),
        (IMAGE, "quantize:attention=8:activations=8", "for activations=16, not for 8"),
        (IMAGE, "quantize:attention=8:activations=mixed", "for activations=16, not for mixed"),
    ],
)
def test_where_it_says_nothing_it_is_refused(model_of, tmp_path, text, passes, reason):
    source = approximated.write(model_of(text, 17), tmp_path)
    with pytest.raises(UserError, match=reason):
        approximated.build(source, passes, tmp_path / "b")
