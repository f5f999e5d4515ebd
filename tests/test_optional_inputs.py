"""What a caller may feed is no constant: every pass leaves it, and the default beside it."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from compiler.building import build_stages
from compiler.errors import UserError, VerificationError
from compiler.pipeline import parse_pipeline
from compiler.rewrite import Builder, GraphPass, LocalPass, Replacement
from compiler.weights import NewWeight

LINEAR = """g (float[1,5,8] x, float[8,8] w, float[8] b) => (float[1,5,8] y)
    { i = Identity(b) j = Add(i, i) a = MatMul(x, w) c = MatMul(x, w) d = Mul(a, b) e = Add(c, j)
      y = Add(d, e) }"""
NORM = """g (float[1,3,4,4] x, float[1,3,1,1] mean, float[1,3,1,1] std) => (float[1,3,4,4] y)
    { a = Sub(x, mean) y = Div(a, std) }"""
ATTENTION = """g (float[1,5,8] x, float[8,24] w, float[24] b) => (float[1,5,8] y)
    <int64[5] s = {1, 5, 3, 2, 4}, int64[3] r = {1, 5, 8}, int64 n = {0}, int64 o = {1},
     int64 p = {2}>
    { a = MatMul(x, w) packed = Add(a, b) five = Reshape(packed, s)
      t = Transpose <perm = [2, 0, 3, 1, 4]> (five)
      q = Gather(t, n) k = Gather(t, o) v = Gather(t, p)
      kt = Transpose <perm = [0, 1, 3, 2]> (k) scores = MatMul(q, kt) weights = Softmax(scores)
      h = MatMul(weights, v) back = Transpose <perm = [0, 2, 1, 3]> (h) y = Reshape(back, r) }"""
IMAGE = """g (float[1,3,8,8] image, float[1,3,3,3] w, float[8,8] b) => (float[1,1,8,8] y)
    { a = Conv <pads = [1, 1, 1, 1]> (image, w) y = Add(a, b) }"""


def model_with_defaults(text, ir_version=8):
    """All inputs but the first are weights as well, in exports that keep initializers as inputs."""
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(3)
    for value in model.graph.input[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weight = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, value.name))
    return model


def build(text, passes, tmp_path, *, ir_version=8, verify="full"):
    """The source's path and the stages."""
    folder = tmp_path / "b"
    folder.mkdir()
    source = tmp_path / "source.onnx"
    onnx.save(model_with_defaults(text, ir_version), source)
    passes = parse_pipeline(passes) if isinstance(passes, str) else passes
    return source, build_stages(source, passes, folder, verify=verify, failures=tmp_path / "f")


def outputs_of(path, names=None, seed=1):
    """What onnxruntime makes of random values for all inputs, or for those that are named."""
    given = onnx.load(path, load_external_data=False).graph.input
    rng, feeds = np.random.default_rng(seed), {}
    for value in given:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = 3 * rng.standard_normal(shape).astype(np.float32)
    chosen = {k: v for k, v in feeds.items() if names is None or k in names}
    return ort.InferenceSession(str(path)).run(None, chosen)[0]


REWRITTEN = {
    "canonicalize": LINEAR,
    "dedupe": LINEAR,
    "split_heads": ATTENTION,
    "split_queries:tile=2": ATTENTION,
}


@pytest.mark.parametrize(("passes", "text"), REWRITTEN.items(), ids=REWRITTEN.keys())
def test_what_is_rewritten_takes_what_a_caller_feeds(tmp_path, passes, text):
    source, stages = build(text, passes, tmp_path)
    report = stages[-1].report
    statuses = [report.float64, report.float32, report.whole_float64]
    assert [proof["status"] for proof in statuses] == ["pass"] * 3
    for names in (None, "x"):
        wanted = outputs_of(source, names)
        np.testing.assert_allclose(outputs_of(stages[-1].path, names), wanted, 1e-4, 1e-4)
    assert np.abs(outputs_of(source) - outputs_of(source, "x")).max() > 1


@pytest.mark.parametrize(
    ("passes", "text", "reason"),
    [
        ("fold_norm", NORM, "no input goes into arithmetic with a constant"),
        ("fold_scale", LINEAR, "no tensor is multiplied by a constant"),
        ("linear_as_gemm", LINEAR, "no MatMul with constant weights"),
        ("quantize", IMAGE, "callers may feed 'w': only constants are quantized"),
    ],
)
def test_what_would_be_folded_is_left(tmp_path, passes, text, reason):
    with pytest.raises(UserError, match=reason):
        build(text, passes, tmp_path)


@pytest.mark.parametrize(
    "passes",
    ["flip_average", "flip_average:mode=batch", "insert_resize:height=6:width=6", "range_output"],
)
def test_what_is_declared_is_proven_for_any_value(tmp_path, passes):
    _, stages = build(IMAGE, passes, tmp_path)
    report = stages[-1].report
    statuses = [report.float64, report.float32, report.whole_float64]
    assert [proof["status"] for proof in statuses] == ["pass"] * 3
    given = onnx.load(stages[-1].path, load_external_data=False).graph
    assert [value.name for value in given.input] == ["image", "w", "b"]
    assert {"w", "b"} <= {tensor.name for tensor in given.initializer}


def test_float16_takes_what_a_caller_feeds(tmp_path):
    source, stages = build(IMAGE, "float16", tmp_path)
    wanted = outputs_of(source)
    assert np.abs(outputs_of(stages[-1].path) - wanted).max() < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("passes", ["canonicalize,flip_average", "canonicalize,float16"])
def test_a_large_default_is_kept_in_the_file_of_weights(tmp_path, passes):
    source, stages = build(IMAGE.replace("8,8", "16,16"), passes, tmp_path)
    places = [stage.graph.defaults["b"]._values.source for stage in stages]
    assert places[0][0] == stages[0].path.with_name("weights.bin")
    assert places == places[:1] * len(stages)
    given = onnx.load(stages[-1].path).graph
    assert [value.name for value in given.input] == ["image", "w", "b"]
    wanted = onnx.load(source).graph.initializer
    assert {t.name: numpy_helper.to_array(t).tolist() for t in wanted}.items() <= {
        t.name: numpy_helper.to_array(t).tolist() for t in given.initializer
    }.items()


def test_the_build_says_what_is_no_constant(tmp_path):
    _, stages = build(LINEAR, "canonicalize", tmp_path)
    assert stages[0].report.notes[0].startswith("callers may feed 'w', 'b' (initializers that")


def test_where_all_weights_had_to_be_inputs_they_are_constants(tmp_path):
    source, stages = build(NORM, "fold_norm", tmp_path, ir_version=3)
    assert [node.op for node in stages[-1].graph.nodes] == ["BatchNormalization"]
    assert stages[0].report.notes == []
    wanted = outputs_of(source, "x")
    np.testing.assert_allclose(outputs_of(stages[-1].path), wanted, 1e-4, 1e-4)


# -- planted faults --------------------------------------------------------------------------------


@dataclass(frozen=True)
class OtherDefault(GraphPass):
    """Changes a default, which no node shows."""

    contract = "exact"

    def simplified(self, graph):
        result = graph.copy()
        values = 2 * result.defaults["b"]._values.load()
        result.defaults["b"]._values = NewWeight(values, values.dtype, "twice")
        return result


@dataclass(frozen=True)
class FoldsTheDefault(LocalPass):
    """Takes the default for a constant: −(−b) of the file's b for Identity(b)."""

    contract = "algebraic"

    def match(self, graph):
        found = [node for node in graph.nodes if node.op == "Identity"]
        return [SimpleNamespace(place=node.outputs[0].name, node=node) for node in found]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        (result,) = match.node.outputs
        builder = Builder(graph, match.place)
        values = graph.defaults["b"]._values.exact()
        tensor = builder.constant(values, result.dtype, "the default")
        for _ in range(2):
            tensor = builder.node("Neg", [tensor], values.shape)
        return Replacement(builder, [(result, tensor)])


def test_a_default_taken_for_a_constant_fails_at_its_cut(tmp_path):
    with pytest.raises(VerificationError, match=r"is wrong: tensor 'i': centred relative L2"):
        build(LINEAR, [FoldsTheDefault()], tmp_path)


def test_another_default_is_seen(tmp_path):
    with pytest.raises(VerificationError, match="changed the optional inputs or their defaults"):
        build(LINEAR, [OtherDefault()], tmp_path)
