import pytest
from running import applied, error_in_float32, proofs, refusal

from passes.squeeze_first import SqueezeFirst

CONSTANTS = """<float[1] two = {2}, float half = {0.5}, float[1,1,4,5] map, int64[1] one = {1},
    int64[3] shape = {2, 4, 5}, int64[2] rows = {2, 20}, int64[4] same = {2, 1, 4, 5}>"""


def model(body: str, outputs: str = "float[2,4,5] y") -> str:
    return f"g (float[2,1,4,5] x) => ({outputs}) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("r = Relu(x) y = Squeeze(r, one)", ["Squeeze", "Relu"]),
        ("r = Relu(x) y = Reshape(r, shape)", ["Reshape", "Relu"]),
        ("a = Mul(x, two) b = Sigmoid(a) y = Squeeze(b, one)", ["Squeeze", "Mul", "Sigmoid"]),
        ("r = Clip(x, half, ) y = Squeeze(r, one)", ["Squeeze", "Clip"]),
        ("r = Clip(x, , half) y = Squeeze(r, one)", ["Squeeze", "Clip"]),
        ("a = Add(x, map) b = Relu(a) y = Squeeze(b, one)", ["Add", "Squeeze", "Relu"]),
        ("a = Sin(x) b = Relu(a) y = Squeeze(b, one)", ["Sin", "Squeeze", "Relu"]),
    ],
)
def test_the_axis_goes_first(body, ops, tmp_path):
    result = applied(model(body), SqueezeFirst())
    assert (result.ops, result.reasons) == (ops, [])
    (proof,) = proofs(result, SqueezeFirst())
    assert (proof.status, proof.error < 1e-15) == ("pass", True)
    assert error_in_float32(result, SqueezeFirst(), tmp_path) < 1e-7
    assert tuple(result.graph.outputs[0].shape) == (2, 4, 5)


def test_both_axes_of_one_image():
    text = """g (float[1,1,4,5] x) => (float[4,5] y) <int64[2] axes = {0, 1}> {
        r = Relu(x) y = Squeeze(r, axes) }"""
    result = applied(text, SqueezeFirst())
    assert result.ops == ["Squeeze", "Relu"]
    assert [proof.status for proof in proofs(result, SqueezeFirst())] == ["pass"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Relu(x) q = Neg(r) s = Squeeze(r, one) t = Squeeze(q, one) y = Add(s, t)",
         "'r' is read elsewhere as well"),
        ("r = Mul(x, map) y = Squeeze(r, one)", "'map' is float[1×1×4×5], not one number"),
        ("r = Mul(x, x) y = Squeeze(r, one)", "'x' is float[2×1×4×5], not one number"),
        ("r = Sub(half, x) y = Squeeze(r, one)", "'half' is float[], 'r' float[2×1×4×5]"),
    ],
)  # fmt: skip
def test_refuses(body, reason):
    assert reason in applied(model(body), SqueezeFirst()).reasons


NOTHING = "nothing to move: no map of one channel is squeezed behind an elementwise op"


@pytest.mark.parametrize(
    "text",
    [
        model("r = Relu(x) y = Reshape(r, rows)", "float[2,20] y"),
        model("r = Relu(x) y = Reshape(r, same)", "float[2,1,4,5] y"),
        model("r = Sin(x) y = Squeeze(r, one)"),
        "g (float[1,2,4,5] x) => (float[2,4,5] y) <int64[1] first = {0}> "
        "{ r = Relu(x) y = Squeeze(r, first) }",
        "g (float[n,1,4,5] x) => (float[n,4,5] y) <int64[1] one = {1}> "
        "{ r = Relu(x) y = Squeeze(r, one) }",
    ],
    ids=["rows are joined", "nothing is dropped", "another op", "two channels", "a dynamic batch"],
)
def test_what_is_no_such_map_is_left_alone(text):
    assert refusal(text, SqueezeFirst()) == NOTHING


def test_a_result_that_is_an_output_stays():
    text = model("r = Relu(x) y = Squeeze(r, one)", "float[2,4,5] y, float[2,1,4,5] r")
    assert refusal(text, SqueezeFirst()) == "'r' is read elsewhere as well"


def test_a_second_run_finds_nothing():
    text = model("a = Mul(x, two) b = Sigmoid(a) y = Squeeze(b, one)")
    assert list(SqueezeFirst().match(applied(text, SqueezeFirst()).graph)) == []


def test_an_op_that_is_lost_on_the_way_is_found(monkeypatch):
    honest = SqueezeFirst.rewrite

    def rewrite(self, graph, match):
        proposal = honest(self, graph, match)
        proposal.builder.nodes[-1].op = "Tanh"
        return proposal

    monkeypatch.setattr(SqueezeFirst, "rewrite", rewrite)
    text = model("a = Mul(x, two) b = Sigmoid(a) y = Squeeze(b, one)")
    result = applied(text, SqueezeFirst())
    assert [proof.status for proof in proofs(result, SqueezeFirst())] == ["fail"]
