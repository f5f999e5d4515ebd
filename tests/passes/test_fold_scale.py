"""Scales go into the weights on either side, through what moves values; or why not."""

from collections.abc import Callable

import numpy as np
import pytest
from running import Result, applied, error_in_float32, proofs, refusal

from compiler.graph import static_shape
from compiler.rewrite import apply_pass
from compiler.verify.proof import prove
from compiler.weights import NewWeight
from passes import fold_scale
from passes.fold_scale import FoldScale
from passes.split_heads import SplitHeads

ALL = FoldScale(scalars="fold")


def check(text: str, ops: list[str], tmp_path, pass_: FoldScale = ALL, opset: int = 17) -> Result:
    """Every scale is folded and proven; the ops that are left; a second run finds nothing."""
    result = applied(text, pass_, opset)
    assert (result.ops, result.reasons) == (ops, [])
    verdicts = [(proof.status, proof.error < 1e-13) for proof in proofs(result, pass_)]
    assert verdicts == [("pass", True)] * len(verdicts) != []
    assert apply_pass(result.graph.copy(), pass_).rewrites == []
    assert error_in_float32(result, pass_, tmp_path) < 2e-5
    return result


def tokens(body: str, constants: str = "", out: str = "float[2,6,5] y") -> str:
    weights = "float[4,5] w, float[5] b, float[5] gamma, float[4] early, float half = {0.5}"
    return f"g (float[2,6,4] x) => ({out}) <{weights}{constants}> {{ {body} }}"


# -- backwards, into what computes the tensor ------------------------------------------------------

BACKWARDS = {
    "MatMul": ("a = MatMul(x, w) y = Mul(a, gamma)", ["MatMul"]),
    "bias": ("a = MatMul(x, w) c = Add(a, b) y = Mul(c, gamma)", ["MatMul", "Add"]),
    "bias first": ("a = MatMul(x, w) c = Add(b, a) y = Mul(gamma, c)", ["MatMul", "Add"]),
    "subtracted": ("a = MatMul(x, w) c = Sub(b, a) y = Mul(c, gamma)", ["MatMul", "Sub"]),
    "Div": ("a = MatMul(x, w) c = Add(a, b) y = Div(c, gamma)", ["MatMul", "Add"]),
    "one bias for all": ("a = MatMul(x, w) c = Add(a, half) y = Mul(c, gamma)",
                         ["MatMul", "Add"]),
    "two in a row": ("a = MatMul(x, w) c = Mul(a, gamma) y = Mul(c, b)", ["MatMul"]),
    "three, one of them a number": (
        "a = MatMul(x, w) c = Mul(a, half) d = Div(c, b) y = Mul(gamma, d)", ["MatMul"]),
    "a number": ("a = MatMul(x, w) c = Add(a, b) y = Mul(c, half)", ["MatMul", "Add"]),
    "in front of a residual": ("a = MatMul(x, w) c = Mul(a, gamma) r = Tanh(c) y = Add(r, c)",
                               ["MatMul", "Tanh", "Add"]),
    "Transpose": (
        "a = MatMul(x, w) t = Transpose<perm=[2,0,1]>(a) c = Mul(t, tall) "
        "y = Transpose<perm=[1,2,0]>(c)", ["MatMul", "Transpose", "Transpose"]),
    "Reshape": (
        "a = MatMul(x, w) r = Reshape(a, flat) c = Mul(r, gamma) y = Reshape(c, back)",
        ["MatMul", "Reshape", "Reshape"]),
    "Unsqueeze and Squeeze": (
        "a = MatMul(x, w) u = Unsqueeze(a, two) s = Squeeze(u, two) y = Mul(s, gamma)",
        ["MatMul", "Unsqueeze", "Squeeze"]),
    "weights that are turned": (
        "t = Transpose(turned) a = MatMul(x, t) y = Mul(a, gamma)", ["Transpose", "MatMul"]),
    "weights on the left": (
        "t = Transpose<perm=[0,2,1]>(x) a = MatMul(left, t) c = Mul(a, rows) "
        "y = Transpose<perm=[0,2,1]>(c)", ["Transpose", "MatMul", "Transpose"]),
}  # fmt: skip
MORE = (
    ", float[5,1,1] tall, int64[2] flat = {12, 5}, int64[3] back = {2, 6, 5}, int64[1] two = {2}, "
    "float[5,4] turned, float[5,4] left, float[5,1] rows"
)


@pytest.mark.parametrize(("body", "ops"), BACKWARDS.values(), ids=BACKWARDS.keys())
def test_backwards(body, ops, tmp_path):
    check(tokens(body, MORE), ops, tmp_path)


def image(body: str, out: str, kernel: str, bias: int = 6) -> str:
    return (
        f"g (float[2,4,5,7] x) => ({out}) <{kernel}, float[{bias}] bias, float[{bias},1,1] gamma, "
        f"float[1,4,1,1] early> {{ {body} }}"
    )


CONVS = {
    "Conv": ("Conv<pads=[1,1,1,1]>", "float[6,4,3,3] w", "float[2,6,5,7] y"),
    "Conv of two groups": ("Conv<group=2>", "float[6,2,3,3] w", "float[2,6,3,5] y"),
    "ConvTranspose": ("ConvTranspose<strides=[2,2]>", "float[4,6,2,2] w", "float[2,6,10,14] y"),
    "ConvTranspose of two groups": (
        "ConvTranspose<strides=[2,2],group=2>", "float[4,3,2,2] w", "float[2,6,10,14] y"),
}  # fmt: skip


@pytest.mark.parametrize(("op", "kernel", "out"), CONVS.values(), ids=CONVS.keys())
@pytest.mark.parametrize("inputs", ["w", "w, bias"])
def test_convolutions_on_either_side(op, kernel, out, inputs, tmp_path):
    name = op.partition("<")[0]
    check(image(f"a = {op}(x, {inputs}) y = Mul(a, gamma)", out, kernel), [name], tmp_path)
    check(image(f"a = Div(x, early) y = {op}(a, {inputs})", out, kernel), [name], tmp_path)
    both = f"a = Mul(x, early) c = {op}(a, {inputs}) y = Div(c, gamma)"
    check(image(both, out, kernel), [name], tmp_path)


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=0.5,beta=2.0>"])
@pytest.mark.parametrize("third", ["", ", b", ", half", ", full"])
def test_gemm_on_either_side(attributes, third, tmp_path):
    kernel = "float[5,4] w" if "transB" in attributes else "float[4,5] w"
    gemm = f"Gemm{attributes}(c, w{third})"
    text = (
        f"g (float[3,4] x) => (float[3,5] y) <{kernel}, float[5] b, float[1] half = {{0.5}}, "
        f"float[3,5] full, float[5] gamma, float[4] early> "
        f"{{ c = Mul(x, early) d = {gemm} y = Mul(d, gamma) }}"
    )
    check(text, ["Gemm"], tmp_path)


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_of_a_turned_input(trans, tmp_path):
    shape = "4,3" if trans else "3,4"
    scale = "float[4,1] early" if trans else "float[4] early"
    text = (
        f"g (float[{shape}] x) => (float[3,5] y) <float[4,5] w, {scale}> "
        f"{{ c = Mul(x, early) y = Gemm<transA={trans}>(c, w) }}"
    )
    check(text, ["Gemm"], tmp_path)


# -- forwards, into what reads it ------------------------------------------------------------------

FORWARDS = {
    "MatMul": ("a = Mul(x, early) y = MatMul(a, w)", ["MatMul"]),
    "Div": ("a = Div(x, early) y = MatMul(a, w)", ["MatMul"]),
    "two in a row": ("a = Mul(x, early) c = Div(a, early) y = MatMul(c, w)", ["MatMul"]),
    "divided by one, times another": (
        "a = Div(x, early) c = Mul(a, half) y = MatMul(c, w)", ["MatMul"]),
    "Transpose and Reshape": (
        "a = Mul(x, early) t = Transpose<perm=[1,0,2]>(a) r = Reshape(t, flat) c = MatMul(r, w) "
        "d = Reshape(c, turned) y = Transpose<perm=[1,0,2]>(d)",
        ["Transpose", "Reshape", "MatMul", "Reshape", "Transpose"]),
    "channels of two axes": (
        "r = Reshape(x, pairs) a = Mul(r, pair) s = Reshape(a, whole) y = MatMul(s, w)",
        ["Reshape", "Reshape", "MatMul"]),
    "Slice": (
        "a = Mul(wide, wider) s = Slice(a, one, five, last) y = MatMul(s, w)",
        ["Slice", "MatMul"]),
    "Gather": (
        "g0 = Unsqueeze(x, none) a = Mul(g0, early) s = Gather<axis=0>(a, zero) y = MatMul(s, w)",
        ["Unsqueeze", "Gather", "MatMul"]),
    "Concat": (
        "a = Mul(x, early) c = Concat<axis=2>(wide, a, x) y = MatMul(c, large)",
        ["Concat", "MatMul"]),
    "Concat of tokens": (
        "a = Mul(x, early) b0 = Mul(x, early) c = Concat<axis=1>(a, b0) d = MatMul(c, w) "
        "y = Slice(d, none, six, one)", None),
    "on the right": (
        "t = Transpose<perm=[0,2,1]>(x) a = Mul(t, rows) c = MatMul(left, a) "
        "y = Transpose<perm=[0,2,1]>(c)", ["Transpose", "MatMul", "Transpose"]),
    "through a product of tensors": (
        "q = Tanh(x) t = Transpose<perm=[0,2,1]>(q) s = MatMul(q, t) p = Softmax<axis=-1>(s) "
        "e = Mul(x, early) a = MatMul(p, e) y = MatMul(a, w)",
        ["Tanh", "Transpose", "MatMul", "Softmax", "MatMul", "MatMul"]),
}  # fmt: skip
WIDE = (
    ", int64[2] flat = {12, 4}, int64[3] turned = {6, 2, 5}, int64[4] pairs = {2, 6, 2, 2}, "
    "float[2,2] pair, int64[3] whole = {2, 6, 4}, float[5] wider, int64[1] one = {1}, "
    "int64[1] five = {5}, int64[1] last = {-1}, int64[1] none = {0}, int64 zero = {0}, "
    "float[13,5] large, int64[1] six = {6}, float[4,1] rows, float[5,4] left"
)


@pytest.mark.parametrize(("body", "ops"), FORWARDS.values(), ids=FORWARDS.keys())
def test_forwards(body, ops, tmp_path):
    text = tokens(body, WIDE).replace("g (", "g (float[2,6,5] wide, ")
    if ops is None:  # the weights serve rows of which one half only has the scale
        reason = refusals_of(text)[0]
        assert "more than axis 2" in reason
        return
    check(text, ops, tmp_path)


def refusals_of(text: str, pass_: FoldScale = ALL) -> list[str]:
    return applied(text, pass_).reasons


BODIES = {
    "the reader": ("s = Mul(x, early)", "o = MatMul(s, w)", "o"),
    "another part": (
        "a = MatMul(x, wide) p = Slice(a, none, five, last) s = Mul(p, gamma)",
        "q = Slice(a, five, ten, last) o = Add(q, s)", "q"),
}  # fmt: skip


@pytest.mark.parametrize(("outside", "inside", "inner"), BODIES.values(), ids=BODIES.keys())
def test_what_a_body_computes_is_left_alone(outside, inside, inner):
    text = f"""g (float[2,4] x, bool k) => (float[2,5] y) <float[4,5] w, float[4,10] wide,
        float[4] early, float[5] gamma, int64[1] none = {{0}}, int64[1] five = {{5}},
        int64[1] ten = {{10}}, int64[1] last = {{1}}, int64[2] shape = {{2, 5}}> {{ {outside}
        y = If(k) <then_branch = t () => (float[2,5] o) {{ {inside} }},
                   else_branch = e () => (float[2,5] z) {{ z = ConstantOfShape(shape) }}>
    }}"""
    reason = f"{inner!r} is computed in the body of an If, Loop or Scan: it stays"
    assert refusal(text, ALL) == reason


RANKS = {
    "a number": ("a = MatMul(x, w) y = Mul(a, s)", "float[1,1,1,1] s", "'s' has 4 axes, and 'a' 3"),
    "channels": ("a = MatMul(x, w) y = Div(a, s)", "float[1,1,1,5] s", "'s' has 4 axes, and 'a' 3"),
    "forwards": ("a = Mul(x, s) y = MatMul(a, w)", "float[1,1,1,4] s", "'s' has 4 axes, and 'x' 3"),
}


@pytest.mark.parametrize(("body", "constant", "reason"), RANKS.values(), ids=RANKS.keys())
def test_a_product_of_more_axes_stays(body, constant, reason):
    assert refusal(tokens(body, f", {constant}", "float[1,2,6,5] y"), ALL) == reason


def test_a_bias_of_more_axes_is_scaled(tmp_path):
    body = "a = MatMul(x, w) c = Add(a, tall) y = Mul(c, gamma)"
    text = tokens(body, ", float[1,1,1,5] tall", "float[1,2,6,5] y")
    check(text, ["MatMul", "Add"], tmp_path)


# -- attention -------------------------------------------------------------------------------------


SCALED = {"q": "q", "k": "k", "both": "qk", "scores": "", "none": ""}
PACKED = (
    "p0 = MatMul(x, wp) p1 = Add(p0, bp) p2 = Reshape(p1, three) "
    "p3 = Transpose<perm=[2,0,3,1,4]>(p2) {q} = Gather<axis=0>(p3, i0) "
    "{k} = Gather<axis=0>(p3, i1) v = Gather<axis=0>(p3, i2)"
)


def attention(where: str, h: int = 2, d: int = 3, n: int = 4, *, packed: bool = False) -> str:
    """Attention of `h` heads with a scale of q, of k, of both, or of the scores, and LayerScale."""
    c, turned = h * d, "Transpose<perm=[0,2,1,3]>"
    names = {m: f"{m}_plain" if m in SCALED[where] else m for m in "qkv"}
    project = PACKED.format(**names) if packed else " ".join(
        f"{m}0 = MatMul(x, w{m}) {m}1 = Add({m}0, b{m}) {m}2 = Reshape({m}1, apart) "
        f"{names[m]} = {turned}({m}2)" for m in "qkv"
    )  # fmt: skip
    scales = " ".join(f"{m} = Mul({names[m]}, s)" for m in SCALED[where])
    scores = "t0 = MatMul(q, kt) t = Mul(t0, s)" if where == "scores" else "t = MatMul(q, kt)"
    weights = ", ".join(f"float[{c},{c}] w{m}, float[{c}] b{m}" for m in "qkvo")
    return (
        f"g (float[1,{n},{c}] x) => (float[1,{n},{c}] y) <{weights}, float[{c}] gamma, "
        f"float[{c},{3 * c}] wp, float[{3 * c}] bp, int64 i0 = {{0}}, int64 i1 = {{1}}, "
        f"int64 i2 = {{2}}, int64[5] three = {{1, {n}, 3, {h}, {d}}}, "
        f"int64[4] apart = {{1, {n}, {h}, {d}}}, int64[3] joined = {{1, {n}, {c}}}, "
        f"float s = {{0.5}}> {{ {project} {scales} kt = Transpose<perm=[0,1,3,2]>(k) {scores} "
        f"a = Softmax<axis=-1>(t) o = MatMul(a, v) r0 = {turned}(o) r = Reshape(r0, joined) "
        f"y0 = MatMul(r, wo) y1 = Add(y0, bo) y2 = Mul(y1, gamma) y = Add(y2, x) }}"
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", ["q", "k", "both", "none"])
def test_scales_of_queries_and_keys(where, packed, tmp_path):
    result = applied(attention(where, packed=packed), ALL)
    assert (result.ops.count("Mul"), result.reasons) == (0, [])
    assert [proof.status for proof in proofs(result, ALL)] == ["pass"] * len(result.done.rewrites)
    assert len(result.done.rewrites) == {"both": 3, "none": 1}.get(where, 2)
    assert apply_pass(result.graph.copy(), ALL).rewrites == []
    assert error_in_float32(result, ALL, tmp_path) < 1e-4


def test_a_scale_of_the_scores_goes_into_the_queries(tmp_path):
    result = applied(attention("scores"), ALL)
    assert (result.ops.count("Mul"), result.reasons) == (0, [])
    assert [proof.status for proof in proofs(result, ALL)] == ["pass", "pass"]
    made = [c._values.how for c in result.graph.constants() if hasattr(c._values, "how")]
    assert made == ["wq · s", "bq · s", "wo · gamma", "bo · gamma"]


def test_a_scale_of_the_scores_of_a_packed_projection_stays():
    """q · s and k would both be made anew, and the scores be computed from one of them."""
    result = applied(attention("scores", packed=True), ALL)
    (reason,) = result.reasons
    assert "is computed from another part of the same product" in reason
    assert result.ops.count("Mul") == 1


@pytest.mark.parametrize("merge", ["concat", "sum"])
@pytest.mark.parametrize("is_first", [True, False])
def test_before_or_after_split_heads(merge, is_first, tmp_path):
    """Either order leaves no product with a constant, and 2 heads."""
    split = SplitHeads(merge=merge)
    first, second = (ALL, split) if is_first else (split, ALL)
    result = applied(attention("scores"), first)
    assert {proof.status for proof in proofs(result, first)} == {"pass"}
    done = apply_pass(result.graph, second)
    assert done.refusals == []
    assert [prove(rewrite, second).status for rewrite in done.rewrites] == ["pass"] * len(
        done.rewrites
    )
    assert (result.ops.count("Mul"), result.ops.count("Softmax")) == (0, 2)
    assert error_in_float32(result, ALL, tmp_path) < 1e-4


def test_scalars_are_kept_by_default(tmp_path):
    result = applied(attention("scores"), FoldScale())
    assert (result.ops.count("Mul"), result.reasons) == (1, [])
    assert len(result.done.rewrites) == 1
    reason = refusal(tokens("a = MatMul(x, w) y = Mul(a, half)"), FoldScale())
    assert reason == (
        "nothing to fold: no tensor is multiplied by a constant for each channel "
        "(scalars=fold takes single numbers as well)"
    )


def test_a_kept_scalar_is_passed(tmp_path):
    check(tokens("a = MatMul(x, w) c = Mul(a, half) y = Mul(c, gamma)"), ["MatMul", "Mul"],
          tmp_path, FoldScale())  # fmt: skip
    check(tokens("a = Mul(x, early) c = Div(a, half) y = MatMul(c, w)"), ["Div", "MatMul"],
          tmp_path, FoldScale())  # fmt: skip


def test_what_two_packed_parts_share(tmp_path):
    text = (
        "g (float[2,3] x) => (float[2,4] y, float[2,4] z, float[2,4] u) <float[3,12] w, "
        "float[12] b, float[4] gamma, int64[3] sizes = {4, 4, 4}> "
        "{ a = MatMul(x, w) c = Add(a, b) p, z, q = Split<axis=1>(c, sizes) y = Mul(p, gamma) "
        "r = Div(q, gamma) u = Tanh(r) }"
    )
    check(text, ["MatMul", "Add", "Split", "Tanh"], tmp_path)


# -- other types and opsets ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_other_types(dtype):
    text = (
        f"g ({dtype}[2,6,4] x) => ({dtype}[2,6,5] y) <{dtype}[4,5] w, {dtype}[5] b, "
        f"{dtype}[5] gamma> {{ a = MatMul(x, w) c = Add(a, b) y = Mul(c, gamma) }}"
    )
    result = applied(text, ALL)
    assert (result.ops, result.reasons) == (["MatMul", "Add"], [])
    assert [proof.status for proof in proofs(result, ALL)] == ["pass"]
    assert {str(t.dtype) for t in result.graph.constants()} == {str(result.graph.inputs[0].dtype)}


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17])
def test_opsets(opset, tmp_path):
    check(tokens("a = MatMul(x, w) t = Transpose<perm=[0,2,1]>(a) c = Mul(t, rows) "
                 "y = Transpose<perm=[0,2,1]>(c)", ", float[5,1] rows"),
          ["MatMul", "Transpose", "Transpose"], tmp_path, opset=opset)  # fmt: skip


def test_a_dynamic_batch(tmp_path):
    text = tokens("a = MatMul(x, w) c = Add(a, b) y = Mul(c, gamma)", out="float[n,6,5] y")
    result = applied(text.replace("float[2,6,4] x", "float[n,6,4] x"), ALL)
    assert (result.ops, result.reasons) == (["MatMul", "Add"], [])
    assert [proof.status for proof in proofs(result, ALL)] == ["pass"]
    assert result.graph.outputs[0].shape == ["n", 6, 5]


# -- refusals --------------------------------------------------------------------------------------

REFUSALS = {
    "a product that is used elsewhere": (
        "a = MatMul(x, w) c = Mul(a, gamma) r = Exp(a) y = Add(c, r)",
        "backwards: 'a' is used elsewhere as well; forwards: Add 'Add_y' reads it"),
    "a product that is an output": (
        "a = MatMul(x, w) y = Mul(a, gamma)",
        "backwards: 'a' is also an output; forwards: 'y' is also an output"),
    "shared weights": (
        "a = MatMul(x, w) c = Mul(a, gamma) d = MatMul(x, w) y = Add(c, d)",
        "backwards: the weights 'w' are shared by 2 nodes; forwards: Add 'Add_y' reads it"),
    "an input": (
        "a = Mul(x, early) e = Exp(a) y = MatMul(e, w)",
        "backwards: 'x' is an input; forwards: Exp 'Exp_e' reads it"),
    "two readers": (
        "a = Mul(x, early) c = MatMul(a, w) d = MatMul(a, other) y = Add(c, d)",
        "backwards: 'x' is an input; forwards: 'a' is used elsewhere as well"),
    "what is not linear": (
        "a = MatMul(x, w) r = Relu(a) y = Mul(r, gamma)",
        "backwards: Relu 'Relu_r' computes it; forwards: 'y' is also an output"),
    "a scale of tokens": (
        "a = Mul(x, token) y = MatMul(a, w)",
        "backwards: 'x' is an input; forwards: a scale of [1, 6, 1] varies along more than axis 2"),
    "a scale of tokens and channels": (
        "a = MatMul(x, w) y = Mul(a, both)",
        "backwards: the scale of MatMul 'MatMul_a' varies along its rows and its columns; "
        "forwards: 'y' is also an output"),
    "a zero to divide by": (
        "a = MatMul(x, w) y = Div(a, hole)", "Div's constant 'hole' has a zero"),
    "a zero in front of a division": (
        "a = Mul(x, holes) c = Div(a, early) y = Exp(c)",
        "backwards: 'x' is an input; forwards: 'early' can't be divided by a zero of the scale"),
    "a constant that makes the tensor larger": (
        "a = MatMul(x, w) c = Mul(a, larger) y = Slice(c, axis, one, axis)",
        "'a' is [2, 6, 5], not [3, 1, 1, 1] like its scale"),
    "a reshape that mixes channels and tokens": (
        "a = MatMul(x, w) r = Reshape(a, mixed) c = Mul(r, three) y = Reshape(c, back)",
        "backwards: the scale of MatMul 'MatMul_a' varies along its rows and its columns"),
    "what is shifted, but no input": (
        "r = Relu(x) h = Add(r, early) s = Mul(h, early) e = Exp(s) y = MatMul(e, w)",
        "backwards: Relu 'Relu_r' computes it; forwards: Exp 'Exp_e' reads it"),
    "a shifted input": (
        "a = Sub(x, token) s = Mul(a, early) y = MatMul(s, w)",
        "'a' is a shifted input: fold_norm takes both"),
    "a shifted input, turned": (
        "t = Transpose<perm=[1,0,2]>(x) a = Add(early, t) s = Div(a, early) y = MatMul(s, w)",
        "'a' is a shifted input: fold_norm takes both"),
    "two tensors": (
        "a = MatMul(x, w) e = Exp(a) p = Mul(e, a) y = Mul(p, gamma)",
        "backwards: Mul 'Mul_p' computes it from two tensors; forwards: 'y' is also an output"),
    "a vector": (
        "a = MatMul(x, vector) c = Mul(a, six) u = Unsqueeze(c, axis) y = Exp(u)",
        "backwards: MatMul 'MatMul_a' multiplies a vector; forwards: Exp 'Exp_y' reads it"),
    "several channels of a Gather": (
        "a = MatMul(x, w) g = Gather<axis=2>(a, pair) y = Mul(g, two)",
        "backwards: Gather 'Gather_g' takes no single index; forwards: 'y' is also an output"),
    "beside another tensor": (
        "a = Mul(x, early) r = Relu(x) c = Mul(a, r) y = MatMul(c, w)",
        "backwards: 'x' is an input; forwards: Mul 'Mul_c' reads it beside another tensor"),
    "a sum over its channels": (
        "a = Mul(x, early) r = Relu(x) t = Transpose<perm=[0,2,1]>(r) y = MatMul(a, t)",
        "backwards: 'x' is an input; forwards: MatMul 'MatMul_y' sums over the channels of the"),
    "one half of a Split": (
        "a = Mul(x, early) s, t = Split<axis=2>(a) c = Add(s, t) y = MatMul(c, narrow)",
        "backwards: 'x' is an input; forwards: Split 'Split_s' takes it apart"),
}  # fmt: skip
FAULTY = (
    ", float[4,5] other, float[6,1] token, float[6,5] both, float[5] hole = {1, 2, 0, 3, 4}, "
    "float[4] holes = {1, 0, 2, 3}, float[3,1,1,1] larger, int64[1] axis = {0}, "
    "int64[3] mixed = {4, 5, 3}, float[3] three, int64[3] back = {2, 6, 5}, float[4] vector, "
    "float[6] six, int64[1] one = {1}, float[2,5] narrow, int64[2] pair = {1, 3}, float[2] two"
)
OUTPUTS = {
    "a product that is an output": "float[2,6,5] y, float[2,6,5] a",
    "a shifted input, turned": "float[6,2,5] y",
    "several channels of a Gather": "float[2,6,2] y",
    "a sum over its channels": "float[2,6,6] y",
    "a vector": "float[1,2,6] y",
    "a constant that makes the tensor larger": "float[1,2,6,5] y",
    "a zero in front of a division": "float[2,6,4] y",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses(what):
    body, reason = REFUSALS[what]
    result = applied(tokens(body, FAULTY, OUTPUTS.get(what, "float[2,6,5] y")), ALL)
    assert result.reasons[0].startswith(reason), result.reasons[0]


def test_refuses_integers():
    text = "g (int32[2,3] x) => (int32[2,3] y) <int32[3] c = {1, 2, 3}> { y = Mul(x, c) }"
    assert refusal(text, ALL) == "'x' is int32[2×3], not float"


def refusal_with(text: str, name: str, values: float) -> str:
    """The refusal where a constant has values that ONNX's text can't write."""
    graph = applied(text, FoldScale()).graph
    (constant,) = [tensor for tensor in graph.constants() if tensor.name == name]
    constant._values = NewWeight(np.array(values), constant.dtype, name)
    (refused,) = apply_pass(graph, ALL).refusals
    return refused.reason


SCALAR = "g ({0}[3,2] x) => ({0}[3,2] y) <{0}[2,2] w, {0} c> {{ a = MatMul(x, w) y = Mul(a, c) }}"


def test_refuses_infinity():
    assert refusal_with(SCALAR.format("float"), "c", np.inf) == "Mul's constant 'c' is not finite"


def test_refuses_a_channel_that_would_vanish():
    """Of the whole tensor it would be nothing that shows in a norm; of its channel it is all."""
    text = """g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1e-6, 1e-6, 1e-6, 1e-6},
        float[2] c = {1, 1e-40}> { a = MatMul(x, w) y = Mul(a, c) }"""
    assert "'w' times its scale does not fit: 1e-46 is 0 in float32" in refusal(text, ALL)
    held = text.replace("1e-40", "1e-37")
    assert applied(held, ALL).ops == ["MatMul"]


@pytest.mark.parametrize("scale", [6e4, 1e-7])
def test_refuses_what_float16_can_not_hold(scale):
    reason = refusal_with(SCALAR.format("float16"), "c", scale)
    assert reason.startswith("backwards: 'w' times its scale does not fit float16")


def test_refuses_what_is_empty():
    text = (
        "g (float[0,3] x) => (float[0,2] y) <float[3] c, float[3,2] w> "
        "{ a = Mul(x, c) y = MatMul(a, w) }"
    )
    assert refusal(text, ALL) == "'x' is float[0×3]: it is empty"


def test_refuses_an_unknown_number_of_channels():
    text = (
        "g (float[n,c] x) => (float[n,2] y) <float[3] s, float[3,2] w> "
        "{ a = Mul(x, s) y = MatMul(a, w) }"
    )
    assert refusal(text, ALL).startswith("'x' is ['n', 'c'], not [3] like its scale")


def test_a_long_way(tmp_path):
    way = " ".join(f"t{k + 1} = Transpose<perm=[0,2,1]>(t{k})" for k in range(40))
    text = tokens(f"t0 = MatMul(x, w) {way} y = Mul(t40, gamma)")
    assert refusal(text, ALL).startswith("backwards: more than 32 ops are in between")


def test_what_a_body_reads_is_used():
    text = """g (float[2,4] x, bool c) => (float[2,5] y, float[2,5] z)
        <float[4,5] w, float[5] gamma> {
        a = MatMul(x, w)  y = Mul(a, gamma)
        z = If (c) <then_branch = t () => (float[2,5] u) { u = Exp(a) },
                    else_branch = e () => (float[2,5] v) { v = Neg(a) }>
    }"""
    reason = refusal(text, ALL)
    assert reason == "backwards: 'a' is used elsewhere as well; forwards: 'y' is also an output"


# -- planted faults --------------------------------------------------------------------------------


def plant(name: str, wrong: Callable) -> Callable:
    honest = fold_scale._scaled_constant

    def scaled(graph, tensor, scale, reader):
        plan = honest(graph, tensor, scale, reader)
        if tensor.name == name:
            plan.scale = wrong(plan.scale)
        return plan

    return scaled


FAULTS = {
    "the bias forgotten": ("b", np.ones_like),
    "the weights forgotten": ("w", np.ones_like),
    "twice": ("w", lambda scale: scale**2),
    "the reciprocal": ("w", lambda scale: 1 / scale),
    "channels in another order": ("w", lambda scale: scale[..., ::-1]),
    "one for all": ("w", lambda scale: scale[..., :1] + 0 * scale),
    "off by 1 %": ("b", lambda scale: 1.01 * scale),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault, monkeypatch):
    monkeypatch.setattr(fold_scale, "_scaled_constant", plant(*FAULTS[fault]))
    result = applied(tokens("a = MatMul(x, w) c = Add(a, b) y = Mul(c, gamma)"), ALL)
    assert [proof.status for proof in proofs(result, ALL)] == ["fail"]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if FAULTS[fault][0] == "w"])
def test_faults_of_rows_are_found(fault, monkeypatch):
    wrong = FAULTS[fault][1]
    monkeypatch.setattr(fold_scale, "_scaled_constant", plant("w", lambda scale: wrong(scale.T).T))
    result = applied(tokens("a = Mul(x, early) y = MatMul(a, w)"), ALL)
    assert [proof.status for proof in proofs(result, ALL)] == ["fail"]


def test_a_scale_of_rows_does_not_go_into_square_weights():
    """Tokens and channels are equally many: the wrong axis would fit."""
    text = (
        "g (float[1,4,4] x) => (float[1,4,4] y) <float[4,4] w, float[4,1] token> "
        "{ e = Exp(x) a = MatMul(e, w) y = Mul(a, token) }"
    )
    assert refusal(text, ALL).startswith("backwards: Exp 'Exp_e' computes it")


def test_the_model_keeps_its_shapes(tmp_path):
    result = check(tokens("a = MatMul(x, w) c = Add(a, half) y = Mul(c, gamma)"),
                   ["MatMul", "Add"], tmp_path)  # fmt: skip
    assert [static_shape(node.outputs[0]) for node in result.graph.nodes] == [(2, 6, 5)] * 2
