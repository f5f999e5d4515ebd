"""Products that are broadcast over more than four axes become one product with zeros and ones."""

import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.graph import static_shape
from compiler.rewrite import apply_pass
from passes import broadcast_as_matmul
from passes.broadcast_as_matmul import Broadcast, BroadcastAsMatmul

CONSTANTS = (
    "float[5,3] table, float[5,4] wide, float[5,12] far, float[5,3] other, int64[1] three = {3}, "
    "int64[1] four = {4}, int64[1] last = {-1}, int64[1] second = {-2}, "
    "int64[3] flat = {2, 6, 12}, int64[5] deep = {2, 2, 3, 3, 4}, "
    "int64[5] low = {2, 2, 3, 3, 1}, int64[2] matrix = {12, 12}, int64[2] rows = {2, -1}, "
    "int64[2] tall = {-1, 5}, int64[4] split = {2, 2, 3, 12}, float[2,2,3,3,1] mask"
)
ROWS = "h = MatMul(x, table) a = Unsqueeze(h, last)"
COLUMNS = "v = MatMul(x, wide) b = Unsqueeze(v, second)"


def summed(body: str, out: str = "float[2,6,12] y", data: str = "float[2,2,3,5] x") -> str:
    """Products h of 3 and v of 4 values a query, of 2×2×3 queries, become 2×2×3×3×4 by a and b."""
    return f"g ({data}) => ({out}) <{CONSTANTS}> {{ {body} }}"


BOTH = f"{ROWS} {COLUMNS} s = Add(a, b) y = Reshape(s, flat)"
SCORES = "p = MatMul(x, far) r = Reshape(p, deep)"
PRODUCT = ["MatMul", "MatMul", "Concat", "Reshape", "MatMul"]

REWRITTEN = {
    "rows and columns": (BOTH, PRODUCT),
    "columns and rows": (BOTH.replace("Add(a, b)", "Add(b, a)"), PRODUCT),
    "onto scores": (
        f"{ROWS} {COLUMNS} {SCORES} q = Add(r, a) s = Add(q, b) y = Reshape(s, flat)",
        [*PRODUCT, "MatMul", "Reshape", "Add"]),
    "scores last": (
        f"{ROWS} {COLUMNS} {SCORES} q = Add(a, b) s = Add(q, r) y = Reshape(s, flat)",
        [*PRODUCT, "MatMul", "Reshape", "Add"]),
    "rows alone": (
        f"{ROWS} {SCORES} s = Add(a, r) y = Reshape(s, flat)",
        ["MatMul", "Reshape", "MatMul", "MatMul", "Reshape", "Add"]),
    "the same twice": (
        f"{ROWS} {COLUMNS} d = Add(a, a) s = Add(d, b) y = Reshape(s, flat)",
        PRODUCT),
    "in the shape that it had": (
        f"{ROWS} {COLUMNS} s = Add(a, b) z = Reshape(s, split) y = Reshape(z, flat)",
        ["MatMul", "MatMul", "Concat", "MatMul", "Reshape"]),
    "one with other axes before": (
        "z = Reshape(x, tall) h = MatMul(z, table) a = Reshape(h, low) "
        f"{COLUMNS} s = Add(a, b) y = Reshape(s, flat)",
        ["Reshape", "MatMul", "MatMul", "Reshape", "Reshape", "Concat", "MatMul"]),
    "turned before": (
        "h = MatMul(x, table) t = Transpose<perm=[0, 1, 2, 3]>(h) a = Unsqueeze(t, last) "
        f"{COLUMNS} s = Add(a, b) y = Reshape(s, flat)",
        [*PRODUCT, "Transpose"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "ops"), REWRITTEN.values(), ids=REWRITTEN.keys())
def test_what_becomes_a_product(body, ops, tmp_path):
    result = applied(summed(body), BroadcastAsMatmul())
    assert sorted(result.ops) == sorted(ops)
    assert result.reasons == []
    check(result, tmp_path)


def check(result, tmp_path):
    """The proof holds, nothing has five axes, a second run finds nothing, float32 agrees."""
    assert max(len(static_shape(node.outputs[0])) for node in result.graph.nodes) <= 4
    (proof,) = proofs(result, BroadcastAsMatmul())
    assert proof.status == "pass"
    assert proof.error < 1e-14
    assert apply_pass(result.graph.copy(), BroadcastAsMatmul()).rewrites == []
    assert error_in_float32(result, BroadcastAsMatmul(), tmp_path) < 1e-6


def test_products_of_five_axes_are_joined_with_fewer(tmp_path):
    text = summed(BOTH, data="float[1,2,2,3,5] x")
    result = applied(text, BroadcastAsMatmul())
    assert sorted(result.ops) == sorted([*PRODUCT, "Reshape"])
    (join,) = [node for node in result.graph.nodes if node.op == "Concat"]
    assert static_shape(join.outputs[0]) == (2, 6, 7)
    assert [proof.status for proof in proofs(result, BroadcastAsMatmul())] == ["pass"]
    assert error_in_float32(result, BroadcastAsMatmul(), tmp_path) < 1e-6


def test_the_matrix_repeats_rows_and_tiles_columns():
    result = applied(summed(BOTH), BroadcastAsMatmul())
    ones = result.graph.values(result.graph.nodes[-1].inputs[1])
    assert np.array_equal(ones[:3], np.repeat(np.eye(3), 4, axis=1))
    assert np.array_equal(ones[3:], np.tile(np.eye(4), (1, 3)))


@pytest.mark.parametrize("opset", [13, 18, 22])
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types_and_opsets(dtype, opset):
    text = summed(BOTH).replace("float[", f"{dtype}[")
    result = applied(text, BroadcastAsMatmul(), opset)
    assert sorted(result.ops) == sorted(PRODUCT)
    assert [proof.status for proof in proofs(result, BroadcastAsMatmul())] == ["pass"]


def test_einsums_are_products_and_reshapes_insert_axes(tmp_path):
    body = (
        'h = Einsum<equation="abqc,ck->abqk">(x, table) a = Reshape(h, low) '
        f"{COLUMNS} s = Add(a, b) y = Reshape(s, flat)"
    )
    result = applied(summed(body), BroadcastAsMatmul())
    assert sorted(result.ops) == sorted(["Einsum", *PRODUCT[1:]])
    check(result, tmp_path)


def test_terms_of_fewer_axes_are_aligned_from_behind(tmp_path):
    body = f"{SCORES} h = MatMul(one, table) a = Unsqueeze(h, last) s = Add(r, a)"
    text = summed(f"{body} y = Reshape(s, rows)", "float[1,144] y")
    text = text.replace("x)", "x, float[3,5] one)", 1).replace("{2, -1}", "{1, -1}")
    result = applied(text, BroadcastAsMatmul())
    assert result.reasons == []
    assert static_shape(result.graph.nodes[-2].inputs[1]) == (9, 144)
    assert [proof.status for proof in proofs(result, BroadcastAsMatmul())] == ["pass"]
    assert error_in_float32(result, BroadcastAsMatmul(), tmp_path) < 1e-6


def test_what_others_read_stays(tmp_path):
    body = f"{BOTH} z = Relu(a) w = Relu(h)"
    out = "float[2,6,12] y, float[2,2,3,3,1] z, float[2,2,3,3] w"
    result = applied(summed(body, out), BroadcastAsMatmul())
    assert sorted(result.ops) == sorted([*PRODUCT, "Unsqueeze", "Relu", "Relu"])
    assert [proof.status for proof in proofs(result, BroadcastAsMatmul())] == ["pass"]
    assert error_in_float32(result, BroadcastAsMatmul(), tmp_path) < 1e-6


REFUSED = {
    "another reader": (
        f"{BOTH} z = Relu(s)", "float[2,6,12] y, float[2,2,3,3,4] z",
        "'s' is read elsewhere as well, with its axes"),
    "an output": (
        BOTH, "float[2,6,12] y, float[2,2,3,3,4] s",
        "'s' is read elsewhere as well, with its axes"),
    "a part of the sum is an output": (
        f"{ROWS} {COLUMNS} {SCORES} q = Add(a, b) s = Add(q, r) y = Reshape(s, flat)",
        "float[2,6,12] y, float[2,2,3,3,4] q", "nothing is broadcast in 's'"),
    "nothing is broadcast": (
        f"{SCORES} s = Add(r, r) y = Reshape(s, flat)", "float[2,6,12] y",
        "nothing is broadcast in 's'"),
    "a mask": (
        f"{COLUMNS} s = Add(mask, b) y = Reshape(s, flat)", "float[2,6,12] y",
        "'mask' is no computed value, no product: it may be infinite"),
    "what a mask is added to": (
        f"{ROWS} m = Exp(a) {COLUMNS} s = Add(m, b) y = Reshape(s, flat)", "float[2,6,12] y",
        "'m' is computed by Exp, no product: it may be infinite"),
    "a mask that an Einsum moves": (
        'm = Einsum<equation="ABCDE->ABCDE">(mask) '
        f"{COLUMNS} s = Add(m, b) y = Reshape(s, flat)", "float[2,6,12] y",
        "'m' is computed by Einsum, no product: it may be infinite"),
    "a mask that a Gemm adds": (
        "z = Reshape(x, tall) m = Reshape(mask, bias) h = Gemm(z, table, m) a = Reshape(h, low) "
        f"{COLUMNS} s = Add(a, b) y = Reshape(s, flat)", "float[2,6,12] y",
        "'a' is computed of 'm': it may be infinite"),
    "infinite weights": (
        f"h = MatMul(x, endless) a = Unsqueeze(h, last) {COLUMNS} s = Add(a, b) "
        "y = Reshape(s, flat)", "float[2,6,12] y",
        "'a' is computed of 'endless': it may be infinite"),
    "more than the last axis": (
        f"{ROWS} {COLUMNS} s = Add(a, b) y = Reshape(s, fours)",
        "float[36,4] y", "'b' is broadcast beyond the last axis of 'y'"),
    "axes that the Reshape cuts": (
        f"{ROWS} {COLUMNS} s = Add(a, b) y = Reshape(s, sixes)", "float[24,6] y",
        "'a' is broadcast beyond the last axis of 'y'"),
    "nobody": (
        f"{ROWS} {COLUMNS} y = Add(a, b)", "float[2,2,3,3,4] y",
        "nothing to multiply: no Reshape reads an Add of more than 4 axes"),
    "a difference": (
        BOTH.replace("Add", "Sub"), "float[2,6,12] y",
        "nothing to multiply: no Reshape reads an Add of more than 4 axes"),
    "four axes": (
        "h = MatMul(x, table) s = Add(h, h) y = Reshape(s, rows)", "float[2,18] y",
        "nothing to multiply: no Reshape reads an Add of more than 4 axes"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "out", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(body, out, reason):
    text = summed(body, out).replace(
        "<float",
        "<int64[2] fours = {-1, 4}, int64[2] sixes = {24, 6}, int64[2] bias = {12, 3}, "
        f"float[5,1] endless = {{{', '.join(['inf', *'1234'])}}}, float",
        1,
    )
    assert refusal(text, BroadcastAsMatmul()) == reason


def test_as_many_values_as_columns_are_left():
    text = summed(BOTH, "float[2,6,4] y", "float[2,2,3,5] x")
    text = text.replace("[5,3] table", "[5,2] table").replace("[5,4] wide", "[5,2] wide")
    text = text.replace("{2, 6, 12}", "{2, 6, 4}")
    reason = "'s' broadcasts 4 values to no more than 4"
    assert refusal(text, BroadcastAsMatmul()) == reason


def test_a_matrix_that_would_be_huge_is_left():
    """It is not made to be counted, either: it would take 16 GB."""
    text = summed(BOTH, "float[1,1,1000000] y", "float[1,1,1,5] x")
    text = text.replace("[5,3] table", "[5,1000] table").replace("[5,4] wide", "[5,1000] wide")
    text = text.replace("{2, 6, 12}", "{1, 1, 1000000}")
    reason = "'s' broadcasts 2000 values to 1000000: the matrix is too large"
    assert refusal(text, BroadcastAsMatmul()) == reason


def test_an_open_shape_is_left():
    text = summed(BOTH, "float[B,6,12] y", "float[B,2,3,5] x").replace("{2, 6, 12}", "{-1, 6, 12}")
    reason = "'s' is float[B×2×3×3×4], not floats of a fixed shape"
    assert refusal(text, BroadcastAsMatmul()) == reason


def test_whole_numbers_are_left():
    text = summed(BOTH).replace("float[", "int32[")
    reason = "'s' is int32[2×2×3×3×4], not floats of a fixed shape"
    assert refusal(text, BroadcastAsMatmul()) == reason


# -- planted faults --------------------------------------------------------------------------------


def other_matrix(change):
    """The matrix of ones is changed."""

    def plant(monkeypatch):
        right = Broadcast.matrix
        monkeypatch.setattr(
            Broadcast, "matrix", lambda self, term: change(right(self, term), term.name)
        )

    return plant


def swapped_operands(monkeypatch):
    right = broadcast_as_matmul._joined
    monkeypatch.setattr(broadcast_as_matmul, "_joined", lambda b, rows: right(b, rows[::-1]))


def a_term_forgotten(monkeypatch):
    right = Broadcast.parted
    monkeypatch.setattr(Broadcast, "parted", lambda s, g: ([], right(s, g)[1]))


def tiled(matrix, name):
    return np.tile(np.eye(3), (1, 3)) if name == "a" else matrix


def repeated(matrix, name):
    return np.repeat(np.eye(3), 3, axis=1) if name == "b" else matrix


FAULTS = {
    "rows are tiled": other_matrix(tiled),
    "columns are repeated": other_matrix(repeated),
    "the matrix is upside down": other_matrix(lambda matrix, _: matrix[::-1]),
    "from right to left": other_matrix(lambda matrix, _: matrix[:, ::-1]),
    "zeros and ones swapped": other_matrix(lambda matrix, _: 1 - matrix),
    "a one too few": other_matrix(lambda matrix, _: matrix * (np.arange(9) < 8)),
    "the operands are swapped": swapped_operands,
    "the scores are forgotten": a_term_forgotten,
}


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_caught(plant, monkeypatch):
    body = f"{ROWS} {COLUMNS} {SCORES} q = Add(r, a) s = Add(q, b) y = Reshape(s, flat)"
    text = summed(body, "float[2,6,9] y").replace("[5,4] wide", "[5,3] wide")
    text = text.replace("[5,12] far", "[5,9] far").replace("{2, 6, 12}", "{2, 6, 9}")
    text = text.replace("{2, 2, 3, 3, 4}", "{2, 2, 3, 3, 3}")
    right = applied(text, BroadcastAsMatmul())
    assert [proof.status for proof in proofs(right, BroadcastAsMatmul())] == ["pass"]
    plant(monkeypatch)
    wrong = applied(text, BroadcastAsMatmul())
    assert [proof.status for proof in proofs(wrong, BroadcastAsMatmul())] == ["fail"]
