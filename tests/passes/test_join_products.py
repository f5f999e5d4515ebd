"""Two products that are added become one product of what stands side by side."""

import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.graph import static_shape
from compiler.rewrite import apply_pass
from passes import join_products
from passes.join_products import JoinProducts

BODY = "p = MatMul(q, k) r = MatMul(x, e) y = Add(p, r)"


def added(body: str = BODY, more: str = "", out: str = "float[2,3,16,12] y", **shapes: str) -> str:
    """Products of q and k, and of x and the weights e, of heads 2×3."""
    shape = {"q": "2,3,16,4", "k": "2,3,4,12", "x": "2,3,16,2", "e": "2,12", **shapes}
    inputs = ", ".join(f"float[{shape[name]}] {name}" for name in "qkx")
    return f"g ({inputs}{more}) => ({out}) <float[{shape['e']}] e, float[12] b> {{ {body} }}"


JOINED = ["Concat", "Expand", "Concat", "MatMul"]
PRODUCTS = {
    "weights for all heads": (added(), JOINED),
    "the other way around": (added(BODY.replace("Add(p, r)", "Add(r, p)")), JOINED),
    "weights for each head": (added(e="2,3,2,12"), ["Concat", "Concat", "MatMul"]),
    "weights for each of the last axis": (added(e="3,2,12"), JOINED),
    "rows for all": (added(x="16,2", e="2,3,2,12"), JOINED),
    "a length of one": (added(x="2,1,16,2", e="2,3,2,12"), JOINED),
    "matrices": (added(q="16,4", k="4,12", x="16,2", out="float[16,12] y"),
                 ["Concat", "Concat", "MatMul"]),
    "factors that are nearly as large": (added(q="2,3,16,8", k="2,3,8,12"), JOINED),
    "the sum repeats a product": (added(x="2,1,16,2"), ["Expand", *JOINED]),
    "each batch is in one factor alone": (
        added(q="2,1,16,4", k="3,4,12", x="2,1,16,2", e="2,12"), JOINED),
}  # fmt: skip


@pytest.mark.parametrize(("text", "ops"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_what_is_joined(text, ops, tmp_path):
    result = applied(text, JoinProducts())
    assert (sorted(result.ops), result.reasons) == (sorted(ops), [])
    check(result, tmp_path)


def check(result, tmp_path, count=1):
    """The proofs hold, a second run finds nothing, and float32 agrees."""
    done = proofs(result, JoinProducts())
    assert [(proof.status, proof.error < 1e-14) for proof in done] == [("pass", True)] * count
    assert apply_pass(result.graph.copy(), JoinProducts()).rewrites == []
    assert error_in_float32(result, JoinProducts(), tmp_path) < 1e-6


def test_three_products_become_one(tmp_path):
    text = added("p = MatMul(q, k) r = MatMul(x, e) s = Add(p, r) o = MatMul(u, v) y = Add(o, s)",
                 ", float[2,3,16,1] u, float[2,3,1,12] v",
                 q="2,3,16,3", k="2,3,3,12", e="2,3,2,12")  # fmt: skip
    result = applied(text, JoinProducts())
    assert result.ops == ["Concat", "Concat", "Concat", "Concat", "MatMul"]
    assert static_shape(result.graph.nodes[-1].inputs[0]) == (2, 3, 16, 6)
    check(result, tmp_path, count=2)


def test_the_sum_may_be_read_and_be_an_output(tmp_path):
    result = applied(added(f"{BODY} z = Softmax(y)", out="float[2,3,16,12] y, float[2,3,16,12] z"),
                     JoinProducts())  # fmt: skip
    assert sorted(result.ops) == sorted([*JOINED, "Softmax"])
    check(result, tmp_path)


@pytest.mark.parametrize("opset", [11, 13, 22])
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types_and_opsets(dtype, opset):
    result = applied(added().replace("float[", f"{dtype}["), JoinProducts(), opset)
    assert sorted(result.ops) == sorted(JOINED)
    assert [proof.status for proof in proofs(result, JoinProducts())] == ["pass"]


def test_weights_are_joined_once(tmp_path):
    """Of two factors that are constants, nothing is left to do when the model runs."""
    text = "g (float[16,2] q, float[16,3] x) => (float[16,12] y) <float[2,12] k, float[3,12] e>"
    result = applied(f"{text} {{ {BODY} }}", JoinProducts())
    assert result.ops == ["Concat", "MatMul"]
    check(result, tmp_path)


def test_an_opset_without_expand():
    assert refusal(added(), JoinProducts(), 7) == "opset 7 has no Expand (8 and later do)"


REFUSED = {
    "a product is read elsewhere": (
        added(f"{BODY} z = Relu(r)", out="float[2,3,16,12] y, float[2,3,16,12] z"),
        "'r' is read elsewhere as well, without the other product"),
    "a product is an output": (
        added(out="float[2,3,16,12] y, float[2,3,16,12] p"),
        "'p' is read elsewhere as well, without the other product"),
    "the same product twice": (
        added(BODY.replace("Add(p, r)", "Add(r, r)")),
        "'r' is read elsewhere as well, without the other product"),
    "a row for all rows": (
        added(x="1,2"), "'r' is float[1×12], broadcast within the matrices of 'y'"),
    "vectors": (
        added(q="4", k="4,12", x="2", e="2,12", out="float[12] y"),
        "'q' is float[4], not matrices of floats"),
    "an open size": (
        added(q="B,3,16,4", k="B,3,4,12", x="B,3,16,2", out="float[B,3,16,12] y"),
        "'q' is float[B×3×16×4], not matrices of floats"),
    "nothing": (
        added(q="0,3,16,4", k="0,3,4,12", x="0,3,16,2", out="float[0,3,16,12] y"),
        "'q' is float[0×3×16×4], not matrices of floats"),
    "factors that are as large": (
        added(q="2,3,16,9", k="2,3,9,12"),
        "the factors of 'y' have 1848 values, the sum 1152"),
    "whole numbers": (
        added().replace("float[", "int32["), "'q' is int32[2×3×16×4], not matrices of floats"),
    "a bias": (
        added("p = MatMul(q, k) y = Add(p, b)"),
        "nothing to join: no Add has two products of matrices"),
    "a difference": (
        added(BODY.replace("Add", "Sub")),
        "nothing to join: no Add has two products of matrices"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(text, reason):
    assert refusal(text, JoinProducts()) == reason


def test_a_sum_that_stays_is_told_of_its_reader():
    text = added("p = MatMul(q, k) r = MatMul(x, e) s = Add(p, r) o = MatMul(u, v) y = Add(o, s)",
                 ", float[2,3,16,1] u, float[2,3,1,12] v",
                 "float[2,3,16,12] y, float[2,3,16,12] p")  # fmt: skip
    result = applied(text, JoinProducts())
    assert result.done.rewrites == []
    assert result.reasons == [
        "'p' is read elsewhere as well, without the other product",
        "'s' stays a sum of products",
    ]


# -- planted faults --------------------------------------------------------------------------------


def swapped(axis: int):
    """Along this axis the second factor comes first."""

    def plant(monkeypatch):
        right = join_products._side_by_side

        def wrong(graph, builder, tensors, shape, along):
            turned = tensors[::-1] if along == len(shape) + axis else tensors
            return right(graph, builder, turned, shape, along)

        monkeypatch.setattr(join_products, "_side_by_side", wrong)

    return plant


def other_factors(monkeypatch):
    """The first product counts twice."""
    right = join_products._side_by_side
    monkeypatch.setattr(
        join_products, "_side_by_side", lambda g, b, t, *where: right(g, b, [t[0], t[0]], *where)
    )


FAULTS = {
    "left factors swapped": swapped(-1),
    "right factors swapped": swapped(-2),
    "one product twice": other_factors,
}


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_caught(plant, monkeypatch):
    text = added(q="2,3,16,2", k="2,3,2,12", e="2,3,2,12")
    assert [proof.status for proof in proofs(applied(text, JoinProducts()), JoinProducts())] == [
        "pass"
    ]
    plant(monkeypatch)
    wrong = applied(text, JoinProducts())
    assert [proof.status for proof in proofs(wrong, JoinProducts())] == ["fail"]


def test_factors_may_stand_in_any_order_if_both_sides_do(monkeypatch):
    swapped(-1)(monkeypatch)
    swapped(-2)(monkeypatch)
    result = applied(added(), JoinProducts())
    assert [proof.status for proof in proofs(result, JoinProducts())] == ["pass"]
