import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.rewrite import apply_pass
from passes.pad_tokens import PadTokens
from passes.split_heads import SplitHeads
from passes.split_queries import SplitQueries
from passes.tile_softmax import TileSoftmax

OPS = ["Reshape", "Softmax", "Reshape"]


def model(softmax="Softmax(x)", shape="2,12,5"):
    return f"g (float[{shape}] x) => (float[{shape}] y) {{ y = {softmax} }}"


@pytest.mark.parametrize("rows", [2, 3, 4, 6])
@pytest.mark.parametrize(
    ("softmax", "shape", "opset"),
    [
        ("Softmax(x)", "2,12,5", 17), ("Softmax <axis = -1> (x)", "12,5", 13),
        ("Softmax <axis = 3> (x)", "2,3,12,5", 20), ("Softmax(x)", "12,5", 11),
        ("Softmax <axis = 2> (x)", "2,12,5", 11),
    ],
)  # fmt: skip
def test_rows_become_tiles(softmax, shape, opset, rows, tmp_path):
    pass_ = TileSoftmax(rows)
    result = applied(model(softmax, shape), pass_, opset)
    assert (result.ops, result.reasons) == (OPS, [])
    *_, keys = (int(n) for n in shape.split(","))
    assert list(result.graph.nodes[1].outputs[0].shape)[-3:] == [12 // rows, rows, keys]
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error < 1e-15) == ("pass", True)
    assert error_in_float32(result, pass_, tmp_path) < 1e-7


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        (model(), 5, "'x' has 12 rows: they make no tiles of 5"),
        (model(), 12, "'x' has 12 rows: they make no tiles of 12"),
        (model(), 1, "'x' has 12 rows: they make no tiles of 1"),
        (model(), 0, "'x' has 12 rows: they make no tiles of 0"),
        (model("Softmax <axis = 1> (x)"), 4, "the Softmax runs over axis 1 of [2, 12, 5]"),
        (model(shape="n,12,5"), 4, "'x' is float[n×12×5]: its rows have to be known"),
        (model(shape="5"), 4, "'x' is float[5]: its rows have to be known"),
        (model("Softmax(x)", "0,12,5"), 4, "'x' is float[0×12×5]: its rows have to be known"),
        (model("Relu(x)"), 4, "nothing to tile: no Softmax"),
    ],
)
def test_refuses(text, rows, reason):
    assert refusal(text, TileSoftmax(rows)) == reason


def test_an_old_softmax_over_several_axes_is_refused():
    reason = "the Softmax runs over axis 1 of [2, 12, 5]"
    assert refusal(model("Softmax(x)"), TileSoftmax(4), opset=11) == reason


@pytest.mark.parametrize(
    ("scaling", "ops"),
    [
        ("s = Mul(x, half)", ["Reshape", "Mul", "Softmax", "Reshape"]),
        ("s = Mul(half, x)", ["Reshape", "Mul", "Softmax", "Reshape"]),
        ("r = Div(x, half) s = Sub(half, r)", ["Reshape", "Div", "Sub", "Softmax", "Reshape"]),
        ("s = Add(x, mask)", ["Add", *OPS]),
        ("s = Pow(x, half)", ["Pow", *OPS]),
        ("r = Mul(x, half) s = Add(r, r)", ["Mul", "Add", *OPS]),
    ],
)
def test_what_scales_the_scores_goes_with_it(scaling, ops, tmp_path):
    text = f"""g (float[2,12,5] x) => (float[2,12,5] y) <float half = {{2}}, float[12,5] mask> {{
        {scaling} y = Softmax(s)
    }}"""
    result = applied(text, TileSoftmax(4))
    assert result.ops == ops
    assert [proof.status for proof in proofs(result, TileSoftmax(4))] == ["pass"]
    assert error_in_float32(result, TileSoftmax(4), tmp_path) < 1e-6


def test_scaled_scores_that_are_read_elsewhere_stay(tmp_path):
    text = """g (float[2,12,5] x) => (float[2,12,5] s, float[2,12,5] y) <float half = {0.5}> {
        s = Mul(x, half) y = Softmax(s)
    }"""
    assert applied(text, TileSoftmax(4)).ops == ["Mul", *OPS]


def test_an_output_that_is_read_as_well(tmp_path):
    text = """g (float[2,12,5] x) => (float[2,12,5] p, float[2,12,5] y) {
        p = Softmax(x) y = Relu(p)
    }"""
    result = applied(text, TileSoftmax(4))
    assert result.ops == [*OPS, "Relu"]
    assert [proof.status for proof in proofs(result, TileSoftmax(4))] == ["pass"]
    assert error_in_float32(result, TileSoftmax(4), tmp_path) < 1e-7


def test_a_second_run_finds_nothing():
    result = applied(model(), TileSoftmax(4))
    (again,) = TileSoftmax(4).match(result.graph)
    assert "4 rows: they make no tiles of 4" in TileSoftmax(4).guard(result.graph, again)


@pytest.mark.parametrize("later", [SplitHeads(), SplitQueries(4), PadTokens()])
def test_what_has_to_come_before_says_so(later):
    text = """g (float[2,12,5] x) => (float[2,12,12] y) {
        k = Transpose<perm=[0,2,1]>(x) s = MatMul(x, k) p = Softmax(s) y = MatMul(p, s)
    }"""
    (refused,) = apply_pass(applied(text, TileSoftmax(4)).graph, later).refusals
    assert "'p/Softmax' is reshaped before it weighs values (as by tile_softmax)" in refused.reason


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_softmax_over_another_axis_is_found(axis, monkeypatch):
    honest = TileSoftmax.rewrite

    def rewrite(self, graph, match):
        proposal = honest(self, graph, match)
        proposal.builder.nodes[1].attrs["axis"] = axis
        return proposal

    monkeypatch.setattr(TileSoftmax, "rewrite", rewrite)
    result = applied(model(), TileSoftmax(4))
    assert [proof.status for proof in proofs(result, TileSoftmax(4))] == ["fail"]
