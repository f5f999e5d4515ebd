"""A guard against NaN goes where scores are finite, and stays where a mask may hide a whole row."""

from pathlib import Path

import onnx
import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.graph import Graph
from compiler.rewrite import apply_pass
from passes.drop_nan_guard import DropNanGuard

GUARD = "p = Softmax<axis=-1>(s) bad = IsNaN(p) safe = Where(bad, zero, p) y = MatMul(safe, x)"
CONSTANTS = (
    "float[1,1] zero = {0}, float[1] scale = {0.5}, float[1,4] bias, float[3,4] w, float[4] far, "
    "float[1,4] hidden = {0, -inf, 0, 0}, float[1,4] lowest = {0, -3.4e38, 0, 0}, "
    "float[1] huge = {-1e38}, float[1] nought = {0}, float[4] shut = {-inf, -inf, -inf, -inf}, "
    "float[1,4] low = {0, -1e9, 0, 0}, "
    "int64[2] flat = {4, 4}"
)


def attention(scores: str, body: str = GUARD, inputs: str = "float[4,3] x") -> str:
    return f"g ({inputs}) => (float[4,3] y) <{CONSTANTS}> {{ k = Transpose(x) {scores} {body} }}"


FINITE = {
    "products": "s = MatMul(x, k)",
    "products, scaled": "a = MatMul(x, k) s = Mul(a, scale)",
    "products and a constant bias": "a = MatMul(x, k) s = Add(a, bias)",
    "products with weights": "s = MatMul(x, w)",
    "a bias of products": "a = MatMul(x, k) b = MatMul(x, w) c = Reshape(b, flat) s = Add(a, c)",
    "a low bias": "a = MatMul(x, k) s = Add(a, low)",
    "products, divided": "a = MatMul(x, k) s = Div(a, scale)",
    "a Gemm with a bias": "s = Gemm(x, k, bias)",
    "a Gemm": "s = Gemm(x, k)",
    "an Einsum": 's = Einsum<equation="ij,kj->ik">(x, x)',
}


@pytest.mark.parametrize("scores", FINITE.values(), ids=FINITE.keys())
def test_finite_scores_need_no_guard(scores, tmp_path):
    result = applied(attention(scores), DropNanGuard())
    assert result.reasons == []
    assert not {"IsNaN", "Where"} & set(result.ops)
    assert [(proof.status, proof.error) for proof in proofs(result, DropNanGuard())] == [
        ("pass", 0)
    ]
    assert apply_pass(result.graph.copy(), DropNanGuard()).rewrites == []
    assert error_in_float32(result, DropNanGuard(), tmp_path) == 0


REFUSED = {
    "a mask that comes in": (
        "a = MatMul(x, k) s = Add(a, mask)", "float[4,3] x, float[1,4] mask",
        "'mask' comes in: it may mask a whole row of scores"),
    "a mask that is computed": (
        "a = MatMul(x, k) m = Log(a) s = Add(a, m)", "float[4,3] x",
        "'m' is computed by Log: it may mask a whole row of scores"),
    "a constant mask": (
        "a = MatMul(x, k) s = Add(a, hidden)", "float[4,3] x",
        "'hidden' holds numbers that are not finite, or nearly so"),
    "the lowest number": (
        "a = MatMul(x, k) s = Add(a, lowest)", "float[4,3] x",
        "'lowest' holds numbers that are not finite, or nearly so"),
    "a mask in a Gemm": (
        "s = Gemm(x, k, mask)", "float[4,3] x, float[4,4] mask",
        "'mask' comes in: it may mask a whole row of scores"),
    "a constant mask in a Gemm": (
        "s = Gemm(x, k, shut)", "float[4,3] x",
        "'shut' holds numbers that are not finite, or nearly so"),
    "a scale that overflows": (
        "a = MatMul(x, k) s = Mul(a, huge)", "float[4,3] x",
        "'huge' holds numbers that are not finite, or nearly so"),
    "zero as a divisor": (
        "a = MatMul(x, k) s = Div(a, nought)", "float[4,3] x",
        "'nought' divides the scores and may be zero, or nearly so"),
    "products as divisors": (
        "a = MatMul(x, k) b = MatMul(x, w) s = Div(a, b)", "float[4,3] x",
        "'b' divides the scores and may be zero, or nearly so"),
}  # fmt: skip


@pytest.mark.parametrize(("scores", "inputs", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_scores_that_may_be_infinite_keep_it(scores, inputs, reason):
    assert refusal(attention(scores, inputs=inputs), DropNanGuard()) == reason


def test_a_replacement_that_widens_stays():
    text = attention("s = MatMul(x, k)", GUARD.replace("zero", "rows")).replace(
        "[4,3] y", "[2,4,3] y"
    )
    text = text.replace("<float", "<float[2,4,4] rows, float", 1)
    assert "has the shape [2, 4, 4], the probabilities [4, 4]" in refusal(text, DropNanGuard())


OTHERS = {
    "the guard of another tensor": GUARD.replace("IsNaN(p)", "IsNaN(s)"),
    "no Softmax": GUARD.replace("Softmax<axis=-1>", "Relu"),
    "NaN wanted": GUARD.replace("Where(bad, zero, p)", "Where(bad, p, zero)"),
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_guard_is_left(body):
    reason = refusal(attention("s = MatMul(x, k)", body), DropNanGuard())
    assert reason == "nothing to drop: no Where replaces what is NaN of a Softmax"


def half(op: str, factor: float) -> Graph:
    """A guard in bfloat16, of which NumPy and the parser know nothing."""
    make, kind = onnx.helper, onnx.TensorProto.BFLOAT16
    wiring = [
        ("Transpose", "x", "k"), ("MatMul", "x k", "a"), (op, "a b", "s"), ("Softmax", "s", "p"),
        ("IsNaN", "p", "bad"), ("Where", "bad zero p", "y"),
    ]  # fmt: skip
    graph = make.make_graph(
        [make.make_node(op, inputs.split(), [output]) for op, inputs, output in wiring], "g",
        [make.make_tensor_value_info("x", kind, [4, 3])],
        [make.make_tensor_value_info("y", kind, [4, 4])],
        [make.make_tensor("b", kind, [1], [factor]), make.make_tensor("zero", kind, [], [0.0])],
    )  # fmt: skip
    opset = make.make_opsetid("", 20)
    return Graph(make.make_model(graph, opset_imports=[opset], ir_version=8), Path())


@pytest.mark.parametrize(
    ("op", "value", "count"), [("Mul", 0.5, 1), ("Div", 2.0, 1), ("Add", 3e38, 0), ("Div", 0.0, 0)]
)
def test_bfloat16(op, value, count):
    assert len(apply_pass(half(op, value), DropNanGuard()).rewrites) == count
