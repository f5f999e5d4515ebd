"""An Einsum that multiplies matrices becomes a MatMul, and no other does."""

from pathlib import Path

import pytest
from onnx import parser
from running import applied, error_in_float32, proofs, refusal

from compiler.graph import Graph, static_shape
from compiler.rewrite import apply_pass
from passes import einsum_as_matmul
from passes.einsum_as_matmul import EinsumAsMatmul, Letters

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "h": 6, "w": 7, "k": 8, "i": 2, "j": 3}


def einsum(equation: str, weights: bool = False, dtype: str = "float") -> str:
    """An Einsum of the inputs x and w, or of x and the weights w; each letter has its size."""
    terms, _, out = equation.replace(" ", "").partition("->")
    x, w, y = (
        f"{dtype}[{', '.join(str(SIZES[k]) for k in term)}]" for term in (*terms.split(","), out)
    )
    inputs, constants = (f"{x} x", f"<{w} w>") if weights else (f"{x} x, {w} w", "")
    return f'g ({inputs}) => ({y} y) {constants} {{ y = Einsum<equation="{equation}">(x, w) }}'


PRODUCTS = {
    "a product of matrices": ("cd,dk->ck", ["MatMul"]),
    "rows of a batch": ("abc,cd->abd", ["MatMul"]),
    "a batch": ("abcd,abdk->abck", ["MatMul"]),
    "positions along the first axis": ("bhwc,hkc->bhwk", ["MatMul"]),
    "positions along the second": ("bhwc,wkc->bhwk", ["Transpose", "MatMul", "Transpose"]),
    "positions in the left operand": ("hkc,bhwc->bhwk", ["MatMul", "Reshape", "Transpose"]),
    "columns first": ("bic,bkc->bki", ["MatMul", "Transpose"]),
    "the batch last": ("icb,ckb->ikb", ["Transpose", "MatMul", "Transpose"]),
    "two axes summed": ("bcd,cdk->bk", ["Reshape", "MatMul"]),
    "summed in another order": ("bcd,dck->bk", ["Reshape", "MatMul"]),
    "two axes of columns": ("bc,chw->bhw", ["MatMul", "Reshape"]),
    "three axes of rows": ("abhc,ck->abhk", ["MatMul"]),
    "heads and features": ("bkc,chd->bhkd", ["MatMul", "Reshape", "Transpose"]),
    "spaces": ("b h w c , w k c -> b h w k", ["Transpose", "MatMul", "Transpose"]),
}


@pytest.mark.parametrize(("equation", "ops"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_what_becomes_a_matmul(equation, ops, tmp_path):
    result = applied(einsum(equation, weights=True), EinsumAsMatmul())
    assert (result.ops, result.reasons) == (ops, [])
    check(result, tmp_path)


@pytest.mark.parametrize("equation", [equation for equation, _ in PRODUCTS.values()])
def test_both_operands_may_be_computed(equation, tmp_path):
    result = applied(einsum(equation), EinsumAsMatmul())
    assert "MatMul" in result.ops
    assert "Einsum" not in result.ops
    most = max(len(term) for term in equation.replace(" ", "").replace("->", ",").split(","))
    assert max(len(static_shape(node.outputs[0])) for node in result.graph.nodes) <= most
    check(result, tmp_path)


def check(result, tmp_path):
    """The proof holds, a second run finds nothing, and float32 agrees."""
    (proof,) = proofs(result, EinsumAsMatmul())
    assert proof.status == "pass"
    assert proof.error < 1e-14
    assert apply_pass(result.graph.copy(), EinsumAsMatmul()).rewrites == []
    assert error_in_float32(result, EinsumAsMatmul(), tmp_path) < 1e-6


def test_weights_are_turned_once():
    result = applied(einsum("bhwc,wkc->bhwk", weights=True), EinsumAsMatmul())
    product = result.graph.nodes[1]
    assert [static_shape(tensor) for tensor in product.inputs] == [(3, 7, 6, 4), (7, 4, 8)]


def test_weights_that_are_matrices_stay():
    result = applied(einsum("abc,cd->abd", weights=True), EinsumAsMatmul())
    assert [tensor.name for tensor in result.graph.nodes[0].inputs] == ["x", "w"]


@pytest.mark.parametrize("opset", [12, 13, 18, 22])
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types_and_opsets(dtype, opset):
    result = applied(einsum("bhwc,wkc->bhwk", weights=True, dtype=dtype), EinsumAsMatmul(), opset)
    assert result.ops == ["Transpose", "MatMul", "Transpose"]
    assert [proof.status for proof in proofs(result, EinsumAsMatmul())] == ["pass"]


def test_the_product_may_be_an_output_and_read_as_well(tmp_path):
    text = einsum("bc,cd->bd").replace("} ", "}").replace("[3, 5] y)", "[3, 5] y, float[3, 5] z)")
    text = text.replace("(x, w) }", "(x, w) z = Relu(y) }")
    result = applied(text, EinsumAsMatmul())
    assert result.ops == ["MatMul", "Relu"]
    assert error_in_float32(result, EinsumAsMatmul(), tmp_path) < 1e-6


REFUSED = {
    "a sum within one operand": "bcd,ck->bk",
    "a product of elements": "bc,bc->bc",
    "a product of vectors": "c,c->",
    "rows alone": "bc,c->b",
    "columns alone": "c,cd->d",
    "nothing is summed": "bc,bd->bcd",
    "a diagonal": "bb,bc->c",
}


@pytest.mark.parametrize("equation", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_product_of_matrices(equation):
    text = einsum(equation).replace("float[]", "float")
    reason = f"'y' is no product of matrices in a batch: Einsum '{equation}'"
    assert refusal(text, EinsumAsMatmul()) == reason


@pytest.mark.parametrize("equation", ["...c,cd->...d", "bc,cd"])
def test_equations_that_do_not_name_each_axis(equation):
    text = einsum("bc,cd->bd").replace("bc,cd->bd", equation)
    reason = f"'y' is no product of matrices in a batch: Einsum '{equation}'"
    assert refusal(text, EinsumAsMatmul()) == reason


OTHERS = {
    "an open size": (
        einsum("bc,cd->bd").replace("float[3, 4] x", "float[B, 4] x").replace("[3, 5]", "[B, 5]"),
        "'x' is float[B×4], not floats of a fixed shape"),
    "nothing": (
        einsum("bc,cd->bd").replace("[3, 4]", "[0, 4]").replace("[3, 5]", "[0, 5]"),
        "'x' is float[0×4], not floats of a fixed shape"),
    "whole numbers": (
        einsum("bc,cd->bd", dtype="int32"), "'x' is int32[3×4], not floats of a fixed shape"),
    "one for many": (
        einsum("bac,bcd->bad").replace("[3, 4, 5] w", "[1, 4, 5] w"),
        "'x' has 3 of 'b', the other 1"),
    "three operands": (
        'g (float[3,4] x, float[4,5] w) => (float[3,3] y) '
        '{ y = Einsum<equation="bc,cd,ad->ba">(x, w, z) }'.replace("w)", "w, float[3,5] z)", 1),
        "nothing to multiply: no Einsum has two operands"),
    "one operand": (
        'g (float[3,4] x) => (float[4,3] y) { y = Einsum<equation="bc->cb">(x) }',
        "nothing to multiply: no Einsum has two operands"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), OTHERS.values(), ids=OTHERS.keys())
def test_refusals(text, reason):
    assert refusal(text, EinsumAsMatmul()) == reason


INVALID = {
    "too few axes": (einsum("bc,cd->bd").replace("[4, 5] w", "[4] w"),
                     "'w' is float[4], which has not the axes 'cd'"),
    "too many": (einsum("bc,cd->bd").replace("[3, 4] x", "[3, 4, 5] x"),
                 "'x' is float[3×4×5], which has not the axes 'bc'"),
    "one term": (einsum("bc,cd->bd").replace("bc,cd->bd", "bc->bc"),
                 "'y' is no product of matrices in a batch: Einsum 'bc->bc'"),
    "three terms": (einsum("bc,cd->bd").replace("bc,cd->bd", "bc,cd,de->be"),
                    "'y' is no product of matrices in a batch: Einsum 'bc,cd,de->be'"),
    "no equation": (einsum("bc,cd->bd").replace('<equation="bc,cd->bd">', ""),
                    "'y' is no product of matrices in a batch: Einsum ''"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), INVALID.values(), ids=INVALID.keys())
def test_what_the_checker_would_refuse_is_refused_with_a_reason(text, reason):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    done = apply_pass(Graph(model, Path()), EinsumAsMatmul())
    assert [refusal.reason for refusal in done.refusals] == [reason]
    assert done.rewrites == []


# -- planted faults --------------------------------------------------------------------------------


def skipped(name: str, at: int):
    """Leaves out the helper's `at`-th call: its tensor stays as it is."""

    def plant(monkeypatch):
        right, calls = getattr(einsum_as_matmul, name), []

        def wrong(builder, tensor, change):
            calls.append(tensor)
            return tensor if len(calls) == at + 1 else right(builder, tensor, change)

        monkeypatch.setattr(einsum_as_matmul, name, wrong)

    return plant


def other_way(monkeypatch):
    monkeypatch.setattr(
        einsum_as_matmul, "_places", lambda letters, order: [order.index(k) for k in letters]
    )


def swapped_batch(monkeypatch):
    right = Letters.batch.fget
    monkeypatch.setattr(Letters, "batch", property(lambda self: right(self)[::-1]))
    right_summed = Letters.summed.fget
    monkeypatch.setattr(Letters, "summed", property(lambda self: right_summed(self)[::-1]))


def sums_in_each_own_order(monkeypatch):
    right = einsum_as_matmul._places

    def wrong(letters, order):
        places = right(letters, order)
        return sorted(places) if len(letters) == len(order) == 3 else places

    monkeypatch.setattr(einsum_as_matmul, "_places", wrong)


FAULTS = {
    "the data is not turned": ("bhwc,wkc->bhwk", skipped("_transposed", 0)),
    "the weights are not turned": ("bc,kc->bk", skipped("_transposed", 0)),
    "the result is not turned": ("bhwc,wkc->bhwk", skipped("_transposed", 2)),
    "turned the other way": ("iabc,bck->akbi", other_way),
    "summed in each operand's own order": ("bcd,dck->bk", sums_in_each_own_order),
}


@pytest.mark.parametrize(("equation", "plant"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_caught(equation, plant, monkeypatch):
    monkeypatch.setattr("test_einsum_as_matmul.SIZES", dict.fromkeys(SIZES, 3))
    right = applied(einsum(equation), EinsumAsMatmul())
    assert [proof.status for proof in proofs(right, EinsumAsMatmul())] == ["pass"]
    plant(monkeypatch)
    wrong = applied(einsum(equation), EinsumAsMatmul())
    assert [proof.status for proof in proofs(wrong, EinsumAsMatmul())] == ["fail"]


def test_what_is_of_the_batch_and_what_is_summed_may_come_in_any_order(monkeypatch):
    swapped_batch(monkeypatch)
    for equation in ("abcd,abdk->abck", "bcd,cdk->bk"):
        result = applied(einsum(equation), EinsumAsMatmul())
        assert [proof.status for proof in proofs(result, EinsumAsMatmul())] == ["pass"]
