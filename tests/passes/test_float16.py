"""Float16: what becomes of a model, and what it loses."""

import approximated
import numpy as np
import onnx
import pytest
from approximated import build, ops

from compiler.errors import UserError, VerificationError
from compiler.graph import Graph
from compiler.quantize.images import Images


@pytest.fixture(scope="module")
def source(model_of, tmp_path_factory):
    return approximated.write(model_of(approximated.TEXT, 17), tmp_path_factory.mktemp("float16"))


def test_what_becomes_of_a_model(source, tmp_path):
    (*_, stage) = build(source, "float16", tmp_path / "b")
    assert ops(stage) == {"Cast": 2, "Mul": 1, "Conv": 3, "Relu": 1, "Sigmoid": 1}
    onnx.checker.check_model(str(stage.path), full_check=True)
    assert [str(t.dtype) for t in (*stage.graph.inputs, *stage.graph.outputs)] == ["float32"] * 2
    weights = [t for t in stage.graph.constants() if len(t.shape) == 4]
    assert {str(t.dtype) for t in weights} == {"float16"}
    assert 0 < stage.report.loss["value"] < 2e-3
    assert stage.report.notes[0].startswith("float16 is approximate: AbsRel ")


def test_layers_that_lose_most_keep_float32(source, tmp_path):
    (*_, whole) = build(source, "float16", tmp_path / "a")
    bound = 0.7 * whole.report.loss["value"]
    (*_, stage) = build(source, f"float16:max_loss={bound}", tmp_path / "b")
    assert stage.report.loss["value"] <= bound
    assert 32 in {row["spared_bits"] for row in stage.report.layers}
    kinds = {str(n.outputs[0].dtype) for n in stage.graph.nodes if n.op != "Cast"}
    assert kinds == {"float16", "float32"}


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ("float16,float16", "is in float16 already"),
        ("quantize,float16", "is quantized: DequantizeLinear"),
    ],
)
def test_what_is_refused(source, tmp_path, passes, reason):
    with pytest.raises(UserError, match=f"pass 'float16' rewrote nothing: model: {reason}"):
        build(source, passes, tmp_path / "b")


def test_a_model_of_doubles_is_refused(model_of, tmp_path):
    text = "g (double[1,3,8,8] x) => (double[1,3,8,8] y) { y = Relu(x) }"
    path = approximated.write(model_of(text), tmp_path)
    with pytest.raises(UserError, match="computes nothing in float32"):
        build(path, "float16", tmp_path / "b")


def test_a_proven_pass_may_follow(source, tmp_path):
    """Its reference is the float16 model, whose own rounding is the bound."""
    *_, stage = build(source, "float16,fold_norm:into=conv", tmp_path / "b", allow_noop=True)
    if stage.rewrites:
        assert stage.report.float64["status"] == "pass"
        assert stage.report.float32["status"] == "pass"
    assert stage.report.loss is None


def test_constants_that_are_nodes_stay_as_they_are(model_of, tmp_path):
    text = """g (float[1,3,8,8] x) => (float[1,3,8,8] y)
    { c = Constant <value = float {0.25}> () a = Mul(x, c) y = Relu(a) }"""
    (*_, stage) = build(approximated.write(model_of(text), tmp_path), "float16", tmp_path / "b")
    assert {str(n.outputs[0].dtype) for n in stage.graph.nodes if n.op == "Mul"} == {"float16"}
    assert stage.report.loss["snr_db"] > 60


OVERFLOWING = "a = Mul(x, big) b = ReduceMax <axes = [1]> (a) y = Mul(b, small)"


@pytest.mark.parametrize(
    "body",
    [OVERFLOWING, OVERFLOWING.replace("Mul(b, small)", "Sub(b, b)")],
    ids=["infinite", "nan"],
)
def test_what_float16_does_not_hold_fails(model_of, tmp_path, body):
    """In float32, as onnxruntime's CPU would compute it, all is well."""
    text = f"""g (float[1,3,8,8] x) => (float[1,1,8,8] y)
    <float big = {{3000}}, float small = {{0.001}}> {{ {body} }}"""
    path = approximated.write(model_of(text, 17), tmp_path)
    with pytest.raises(VerificationError, match="01_float16 makes values that are no numbers"):
        build(path, "float16", tmp_path / "b")


def test_every_result_is_rounded(model_of, tmp_path):
    """(x + 1000) − 1000 keeps 0.5 of x ∈ [0, 255] in float16, and all of it in float32."""
    text = """g (float[1,3,8,8] x) => (float[1,1,8,8] y) <float much = {1000}, float half = {0.01}>
    { a = ReduceMax <axes = [1]> (x) s = Mul(a, half) b = Add(s, much) y = Sub(b, much) }"""
    (*_, stage) = build(approximated.write(model_of(text, 17), tmp_path), "float16", tmp_path / "b")
    feeds = next(iter(Images().judging(Graph.load(stage.path)).values()))["x"]
    scaled = feeds.max(axis=1).astype(np.float16) * np.float16(0.01)
    rounded = (scaled + np.float16(1000)) - np.float16(1000)
    expected = (feeds.max(axis=1) * np.float32(0.01)).astype(np.float64)
    rmse = float(np.sqrt(np.mean((rounded - expected) ** 2)))
    assert stage.report.loss["images"][0]["rmse"] == pytest.approx(rmse, rel=0.01)
