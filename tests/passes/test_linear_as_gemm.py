"""MatMul and Add become Gemm where that is what they are, and nowhere else."""

import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.rewrite import apply_pass
from passes.linear_as_gemm import LinearAsGemm

CONSTANTS = (
    "float[4,6] w, float[6] b, float[1,1,6] deep, float[1] one, float[5,6] table, "
    "float[6,1] tall, "
    "float[2,4,6] stack, float[1,1,1,6] deeper, float[6] c"
)


def linear(body: str, out: str = "float[2,5,6] y", data: str = "float[2,5,4] x") -> str:
    return f"g ({data}) => ({out}) <{CONSTANTS}> {{ {body} }}"


REWRITTEN = {
    "a batch of rows": ("p = MatMul(x, w) y = Add(p, b)", "float[2,5,6] y", "float[2,5,4] x",
                        ["Reshape", "Gemm", "Reshape"]),
    "bias first": ("p = MatMul(x, w) y = Add(b, p)", "float[2,5,6] y", "float[2,5,4] x",
                   ["Reshape", "Gemm", "Reshape"]),
    "a matrix": ("p = MatMul(x, w) y = Add(p, b)", "float[5,6] y", "float[5,4] x", ["Gemm"]),
    "four axes": ("p = MatMul(x, w) y = Add(p, b)", "float[2,3,5,6] y", "float[2,3,5,4] x",
                  ["Reshape", "Gemm", "Reshape"]),
    "a bias with axes": ("p = MatMul(x, w) y = Add(p, deep)", "float[2,5,6] y", "float[2,5,4] x",
                         ["Reshape", "Gemm", "Reshape"]),
    "two in a row": ("p = MatMul(x, w) q = Add(p, b) y = Add(q, c)", "float[2,5,6] y",
                     "float[2,5,4] x", ["Reshape", "Gemm", "Reshape", "Add"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "out", "data", "ops"), REWRITTEN.values(), ids=REWRITTEN.keys())
def test_what_becomes_a_gemm(body, out, data, ops, tmp_path):
    result = applied(linear(body, out, data), LinearAsGemm())
    assert (result.ops, result.reasons) == (ops, [])
    (proof,) = proofs(result, LinearAsGemm())
    assert proof.status == "pass"
    assert proof.error < 1e-14
    assert apply_pass(result.graph.copy(), LinearAsGemm()).rewrites == []
    assert error_in_float32(result, LinearAsGemm(), tmp_path) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types(dtype):
    text = linear("p = MatMul(x, w) y = Add(p, b)").replace("float[", f"{dtype}[")
    result = applied(text, LinearAsGemm())
    assert result.ops == ["Reshape", "Gemm", "Reshape"]
    assert [proof.status for proof in proofs(result, LinearAsGemm())] == ["pass"]


REFUSED = {
    "the product is read elsewhere": (
        "p = MatMul(x, w) q = Add(p, b) y = Mul(p, q)", "float[2,5,6] y", "float[2,5,4] x",
        "'p' is used elsewhere as well, without the bias"),
    "a stack of weights": (
        "p = MatMul(x, stack) y = Add(p, b)", "float[2,5,6] y", "float[2,5,4] x",
        "the weights 'stack' are float[2×4×6], not a matrix of floats"),
    "a bias for each row": (
        "p = MatMul(x, w) y = Add(p, table)", "float[2,5,6] y", "float[2,5,4] x",
        "'table' is float[5×6], not a value a column"),
    "a number for each of as many rows": (
        "p = MatMul(x, w) y = Add(p, tall)", "float[2,6,6] y", "float[2,6,4] x",
        "'tall' is float[6×1], not a value a column"),
    "one number": (
        "p = MatMul(x, w) y = Add(p, one)", "float[2,5,6] y", "float[2,5,4] x",
        "'one' is float[1], not a value a column"),
    "a bias with more axes": (
        "p = MatMul(x, w) y = Add(p, deeper)", "float[1,2,5,6] y", "float[2,5,4] x",
        "'deeper' has 4 axes, and the product 3"),
    "a vector": (
        "p = MatMul(x, w) y = Add(p, b)", "float[6] y", "float[4] x",
        "'x' is float[4]: its rows have to be known"),
    "dynamic rows": (
        "p = MatMul(x, w) y = Add(p, b)", "float[N,5,6] y", "float[N,5,4] x",
        "'x' is float[N×5×4]: its rows have to be known"),
    "no rows": (
        "p = MatMul(x, w) y = Add(p, b)", "float[0,5,6] y", "float[0,5,4] x",
        "'x' is float[0×5×4]: its rows have to be known"),
    "computed weights": (
        "v = Tanh(w) p = MatMul(x, v) y = Add(p, b)", "float[2,5,6] y", "float[2,5,4] x",
        "no MatMul with constant weights has a constant added to it"),
    "a residual": (
        "p = MatMul(x, w) y = Add(p, p)", "float[2,5,6] y", "float[2,5,4] x",
        "no MatMul with constant weights has a constant added to it"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "out", "data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_left_alone(body, out, data, reason):
    assert refusal(linear(body, out, data), LinearAsGemm()) == reason


def test_a_product_that_is_an_output_is_left_alone():
    text = linear("p = MatMul(x, w) y = Add(p, b)", "float[2,5,6] p, float[2,5,6] y")
    assert refusal(text, LinearAsGemm()) == "'p' is used elsewhere as well, without the bias"
