"""What scales queries and keys scales the scores, where a Softmax alone reads them."""

from dataclasses import replace

import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.rewrite import apply_pass
from passes import scale_scores
from passes.scale_scores import ScaleScores


def scores(
    queries: str = "a = Mul(q, s)", keys: str = "b = Transpose<perm=[0, 2, 1]>(k)",
    behind: str = "y = Softmax<axis=-1>(z)", out: str = "float[1,5,7] y", constants: str = "",
    kind: str = "float",
) -> str:  # fmt: skip
    text = (
        f"g (float[1,5,4] q, float[1,7,4] k, float[1,5,7] mask) => ({out}) "
        f"<float s = {{0.5}}, float r = {{3}}{constants}> "
        f"{{ {queries} {keys} z = MatMul(a, b) {behind} }}"
    )
    return text.replace("float", kind)


KEYS = "b = Transpose<perm=[0, 2, 1]>(k)"
SCALED = {
    "queries": ({}, ["Transpose", "MatMul", "Mul", "Softmax"], 0.5),
    "queries, the number first": (
        {"queries": "a = Mul(s, q)"}, ["Transpose", "MatMul", "Mul", "Softmax"], 0.5),
    "divided": (
        {"queries": "a = Div(q, r)"}, ["Transpose", "MatMul", "Mul", "Softmax"], 1 / 3),
    "keys, before they are turned": (
        {"queries": "a = Identity(q)", "keys": "c = Mul(k, r) b = Transpose<perm=[0, 2, 1]>(c)"},
        ["Identity", "Transpose", "MatMul", "Mul", "Softmax"], 3),
    "both": (
        {"keys": "c = Transpose<perm=[0, 2, 1]>(k) b = Mul(c, r)"},
        ["Transpose", "MatMul", "Mul", "Softmax"], 1.5),
    "twice": (
        {"queries": "c = Mul(q, s) d = Identity(c) a = Div(d, r)"},
        ["Identity", "Transpose", "MatMul", "Mul", "Softmax"], 0.5 / 3),
    "what reads the scaled queries, too": (
        {"behind": "y = Softmax<axis=-1>(z) w = Relu(a)", "out": "float[1,5,7] y, float[1,5,4] w"},
        ["Mul", "Transpose", "MatMul", "Mul", "Softmax", "Relu"], 0.5),
    "two readers": (
        {"behind": "y = Softmax<axis=-1>(z) w = Softmax<axis=1>(z)",
         "out": "float[1,5,7] y, float[1,5,7] w"},
        ["Transpose", "MatMul", "Mul", "Softmax", "Softmax"], 0.5),
}  # fmt: skip


@pytest.mark.parametrize(("how", "ops", "number"), SCALED.values(), ids=SCALED.keys())
def test_the_number_moves_behind_the_product(how, ops, number, tmp_path):
    result = applied(scores(**how), ScaleScores())
    assert (sorted(result.ops), result.reasons) == (sorted(ops), [])
    (mul,) = (n for n in result.graph.nodes if n.op == "Mul" and n.outputs[0].outputs[0].op
              == "Softmax")  # fmt: skip
    assert float(result.graph.exact(mul.inputs[1])) == pytest.approx(number, rel=1e-7)
    (proof,) = proofs(result, ScaleScores())
    assert (proof.status, proof.detail, proof.error <= 1e-14) == ("pass", "", True)
    assert apply_pass(result.graph.copy(), ScaleScores()).rewrites == []
    assert error_in_float32(result, ScaleScores(), tmp_path) < 1e-6


REFUSED = {
    "a mask": (
        {"behind": "m = Add(z, mask) y = Softmax<axis=-1>(m)"}, "'z' is read by Add"),
    "an output": (
        {"out": "float[1,5,7] y, float[1,5,7] z"}, "'z' is read by the caller"),
    "no scores": (
        {"behind": "y = Relu(z)"}, "'z' is read by Relu"),
    "nothing scales": (
        {"queries": "a = Relu(q)"},
        "nothing to move: no operand of a MatMul is scaled by one number"),
    "a number a feature": (
        {"queries": "a = Mul(q, t)", "constants": ", float[4] t = {1, 2, 3, 4}"},
        "nothing to move: no operand of a MatMul is scaled by one number"),
    "divides a number": (
        {"queries": "a = Div(s, q)"},
        "nothing to move: no operand of a MatMul is scaled by one number"),
    "by zero": (
        {"queries": "a = Div(q, o)", "constants": ", float o = {0}"},
        "'z' would be scaled by inf: inf is too large for float32"),
    "too small together": (
        {"queries": "a = Mul(q, t)", "keys": f"{KEYS.replace('b =', 'c =')} b = Mul(c, t)",
         "constants": ", float t = {1e-30}"},
        "'z' would be scaled by 1e-60: 1e-60 is 0 in float32"),
}  # fmt: skip


@pytest.mark.parametrize(("how", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(how, reason):
    assert refusal(scores(**how), ScaleScores()) == reason


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_floats(kind):
    text = scores(kind=kind).replace(" = {0.5}", "").replace(" = {3}", "")  # drawn at random
    result = applied(text, ScaleScores())
    assert sorted(result.ops) == ["MatMul", "Mul", "Softmax", "Transpose"]
    assert [proof.status for proof in proofs(result, ScaleScores())] == ["pass"]


def test_queries_of_an_open_number():
    text = scores().replace("[1,5,4]", "[n,m,4]").replace("[1,7,4]", "[n,7,4]")
    result = applied(text.replace("[1,5,7]", "[n,m,7]"), ScaleScores())
    assert sorted(result.ops) == ["MatMul", "Mul", "Softmax", "Transpose"]
    assert [proof.status for proof in proofs(result, ScaleScores())] == ["pass"]


FAULTS = {
    "forgotten": lambda operand: replace(operand, number=1.0),
    "squared": lambda operand: replace(operand, number=operand.number**2),
    "1 % off": lambda operand: replace(operand, number=operand.number * 1.01),
    "upside down": lambda operand: replace(operand, number=1 / operand.number),
    "not moved": lambda operand: replace(operand, moves=()),
    "moved twice": lambda operand: replace(operand, moves=operand.moves * 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(monkeypatch, fault):
    """Keys as many as features, so that every shape fits."""
    honest = scale_scores._scaled
    monkeypatch.setattr(scale_scores, "_scaled", lambda *given: FAULTS[fault](honest(*given)))
    text = scores("a = Identity(q)", "c = Mul(k, r) b = Transpose<perm=[0, 2, 1]>(c)")
    result = applied(text.replace("1,7,4", "1,4,4").replace("1,5,7", "1,5,4"), ScaleScores())
    assert [proof.status for proof in proofs(result, ScaleScores())] == ["fail"]


def test_an_operand_that_keeps_its_number_is_caught(monkeypatch):
    honest = scale_scores._moved

    def scaled(builder, operand):
        kept = honest(builder, operand)
        number = builder.constant(np.array(operand.number), kept.dtype, "again")
        return builder.node("Mul", [kept, number], tuple(kept.shape))

    monkeypatch.setattr(scale_scores, "_moved", scaled)
    result = applied(scores(), ScaleScores())
    assert [proof.status for proof in proofs(result, ScaleScores())] == ["fail"]
