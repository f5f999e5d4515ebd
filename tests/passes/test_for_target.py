"""Older versions and narrower integers: what can be lowered is, proven; what can't is named."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest

import passes.for_target as module
from compiler import opsets
from compiler.building import build_stages
from compiler.errors import VerificationError
from compiler.graph import PASS_KEY, Graph
from compiler.pipeline import parse_pipeline, pipeline_text
from compiler.rewrite import GraphPass
from compiler.targets.preflight import check
from passes.for_target import ForTarget

PASS = ForTarget("aihub")


def model(text: str, opset: int, ir_version: int = 13) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}'
    )


def built(folder, source: onnx.ModelProto, pass_: GraphPass = PASS, verify: str = "full"):
    """The last stage of a verified build with this pass alone, and its model."""
    onnx.save(source, folder / "model.onnx")
    (folder / "build").mkdir()
    stage = build_stages(
        folder / "model.onnx", [pass_], folder / "build", verify=verify, failures=folder / "failure"
    )[-1]
    return stage.report, onnx.load(stage.path)


def versions(built_model: onnx.ModelProto) -> tuple[int, int]:
    return built_model.opset_import[0].version, built_model.ir_version


# -- left alone ------------------------------------------------------------------------------------

IN_THE_WAY = {
    "a newer operator": (
        "g (float[2,4] x) => (float[2,4] y) <float[4] s = {1,2,3,4}> "
        "{ y = RMSNormalization(x, s) }",
        23, "RMSNormalization is new in opset 23"),
    "another meaning": (
        "g (float[1,4,3] x) => (float[1,4,3] y) <float[4] s = {1,2,3,4}, float[4] b = {0,0,0,0}> "
        "{ y = GroupNormalization<num_groups=2>(x, s, b) }",
        21, "GroupNormalization scales groups, not channels, before opset 21"),
    "another norm of zeros": ("g (float[2,4] x) => (float[2,4] y) { y = LpNormalization(x) }",
                              22, "LpNormalization divides by a norm of 0 before opset 22"),
    "other windows": (
        "g (float[1,1,5,5] x) => (float[1,1,3,3] y) "
        "{ y = MaxPool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(x) }",
        22, "MaxPool with ceil_mode has other windows before opset 22"),
    "a newer attribute": (
        "g (int8[2,4] x) => (float[2,4] y) <float[2,2] s = {1,2,3,4}> "
        "{ y = DequantizeLinear<axis=1,block_size=2>(x, s) }",
        21, "DequantizeLinear has no 'block_size' before opset 21"),
    "a newer type": (
        "g (bfloat16[2,4] x) => (bfloat16[2,4] y) { y = Softplus(x) }",
        22, "Softplus takes no bfloat16 in opset 20"),
    "a newer operator in a branch": (
        "g (float[4] x, bool c) => (float[4] y) { y = If(c) <"
        "then_branch = t () => (float[4] u) { u = Swish(x) }, "
        "else_branch = e () => (float[4] v) { v = Neg(x) }> }",
        24, "Swish is new in opset 24"),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_refuses(what):
    """The opset stays, with the reason; and so does the IR version, which the opset may need."""
    text, opset, reason = IN_THE_WAY[what]
    graph = Graph(model(text, opset), None)
    (refusal,) = PASS.refusals(graph)
    assert (refusal.place, refusal.reason) == ("y", reason)
    after = PASS.simplified(graph)
    assert (after.opset, after.ir_version) == (opset, 13)


def test_a_local_function_is_in_the_way():
    text = """g (float[4] x) => (float[4] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["" : 21]> twice (x) => (y) { y = Add(x, x) }"""
    source = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21, "mine" : 1]> {text}'
    )
    (refusal,) = PASS.refusals(Graph(source, None))
    assert refusal == module.Refusal("twice", "is a local function: inline it")


def test_a_constant_output_stays():
    text = "g (float[4] x) => (float[4] y, int64[2] k) <int64[2] k = {1, 2}> { y = Neg(x) }"
    graph = Graph(model(text, 20), None)
    assert PASS.refusals(graph) == [module.Refusal("k", "is a constant")]
    assert PASS.simplified(graph).outputs[1].dtype == np.int64


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_nothing_to_do(tmp_path, opset):
    """A model that is fine already is no error, and comes out as it was."""
    source = model("g (float[4] x) => (float[4] y) { y = Neg(x) }", opset, 8)
    report, after = built(tmp_path, source)
    assert (report.rewrites, report.refusals, versions(after)) == (0, [], (opset, 8))


# -- lowered ---------------------------------------------------------------------------------------

LOWERED = {
    "an operator that did not change": ("y = Add(x, x)", 23, 0),
    "types were added": ("a = Transpose(x) y = Transpose(a)", 23, 2),
    "a newer attribute with its default": (
        'a = Cast<to=10,round_mode="up">(x) y = Cast<to=1>(a)', 25, 2),
    "convolution": ("r = Reshape(x, s) c = Conv(r, w) y = Reshape(c, t)", 22, 3),
}  # fmt: skip


@pytest.mark.parametrize("what", LOWERED)
def test_lowers_the_opset(tmp_path, what):
    body, opset, rewrites = LOWERED[what]
    text = f"""g (float[4,4] x) => (float[4,4] y) <int64[4] s = {{1,1,4,4}}, int64[2] t = {{4,4}},
        float[1,1,1,1] w = {{3}}> {{ {body} }}"""
    report, after = built(tmp_path, model(text, opset))
    assert (report.rewrites, report.refusals, versions(after)) == (rewrites, [], (20, 10))
    assert not any(a.name == "round_mode" for node in after.graph.node for a in node.attribute)
    if rewrites:
        assert report.float64["status"] == report.float32["status"] == "pass"
    assert check(tmp_path / "build" / "01_for_target.onnx", "aihub") == []


def test_the_ir_version_alone(tmp_path):
    report, after = built(tmp_path, model("g (float[4] x) => (float[4] y) { y = Neg(x) }", 17, 12))
    assert (report.rewrites, versions(after)) == (0, (17, 10))


def test_the_makers_of_nodes_stay_known(tmp_path):
    """A node that is as it was, but for its opset, was still made by the pass that made it."""
    source = model("g (float[4,4] x) => (float[4,4] y) { y = Transpose(x) }", 23)
    source.graph.node[0].metadata_props.add(key=PASS_KEY, value="fold_norm")
    _, after = built(tmp_path, source)
    assert [p.value for p in after.graph.node[0].metadata_props] == ["fold_norm"]


def test_narrows_inputs_and_outputs(tmp_path):
    text = """g (float[16,16] x, int64[3] i) => (int64[3] k, float[3,16] z)
        { a = Gather(x, i) k = ArgMax<axis=1,keepdims=0>(a) b = Gather(x, k) z = Add(a, b) }"""
    source = model(text, 17, 8)
    report, after = built(tmp_path, source)
    assert (report.rewrites, report.float64["status"], report.float32["status"]) == (
        2, "pass", "pass"
    )  # fmt: skip
    assert [node.op_type for node in after.graph.node].count("Cast") == 2
    assert check(tmp_path / "build" / "01_for_target.onnx", "aihub") == []
    feeds = {"x": np.random.default_rng(0).random((16, 16), np.float32), "i": np.array([7, 0, 3])}
    k, z = onnxruntime.InferenceSession(source.SerializeToString()).run(None, feeds)
    feeds["i"] = feeds["i"].astype(np.int32)
    narrow_k, narrow_z = onnxruntime.InferenceSession(after.SerializeToString()).run(None, feeds)
    assert (narrow_k.dtype, k.dtype) == (np.int32, np.int64)
    np.testing.assert_array_equal(narrow_k, k)
    np.testing.assert_array_equal(narrow_z, z)


def test_an_input_that_nothing_reads(tmp_path):
    text = "g (float[4] x, int64[3] i) => (float[4] y) { y = Neg(x) }"
    _, after = built(tmp_path, model(text, 17, 8))
    assert [node.op_type for node in after.graph.node] == ["Neg"]
    assert after.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT32


def test_an_input_that_a_branch_reads(tmp_path):
    text = """g (float[4] x, int64[2] i, bool c) => (float[2] y) { y = If(c) <
        then_branch = t () => (float[2] u) { u = Gather(x, i) },
        else_branch = e () => (float[2] v) { w = Neg(x) v = Gather(w, i) }> }"""
    report, after = built(tmp_path, model(text, 17, 8), verify="each")
    assert report.float64["status"] == "UNVERIFIED"  # no branches in float64, and it says so
    feeds = {"x": np.arange(4, dtype=np.float32), "i": np.array([2, 3], np.int32)}
    session = onnxruntime.InferenceSession(after.SerializeToString())
    for choice in (True, False):
        (y,) = session.run(None, {**feeds, "c": np.array(choice)})
        np.testing.assert_array_equal(y, [2, 3] if choice else [-2, -3])


@pytest.mark.parametrize(
    ("op", "shape", "inputs"),
    [("Gather", "2", "x, i"), ("GatherElements", "2", "x, i"), ("ScatterElements", "4", "x, i, u")],
)
def test_narrows_constant_indices(tmp_path, op, shape, inputs):
    text = f"""g (float[4] x) => (float[{shape}] y) <int64[2] i = {{3, 0}}, float[2] u = {{5, 6}}>
        {{ y = {op}({inputs}) }}"""
    report, after = built(tmp_path, model(text, 17, 8))
    assert (report.rewrites, report.float64["status"]) == (1, "pass")
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    assert kinds["i/int32"] == onnx.TensorProto.INT32


def test_indices_that_need_64_bits_stay(tmp_path):
    """GatherND takes no others; a value beyond int32 has no other form."""
    text = f"""g (float[4] x) => (float[2] y, float[1] z)
        <int64[2,1] i = {{3, 0}}, int64[1] j = {{{2**31}}}>
        {{ y = GatherND(x, i) z = Gather(x, j) }}"""
    graph = Graph(model(text, 17, 8), None)
    after = PASS.simplified(graph)
    assert {str(t.dtype) for t in after.constants()} == {"int64"}


def test_the_pipeline_takes_the_target_alone():
    (pass_,) = parse_pipeline("for_target:aihub")
    assert pass_ == PASS
    assert parse_pipeline(pipeline_text([pass_])) == [pass_]


# -- planted faults --------------------------------------------------------------------------------

SIGNED = "g (float[8] x, int64[3] i) => (int64[3] k) { a = Gather(x, i) k = Cast<to=7>(a) }"
INDICES = "g (float[512] x) => (float[2] y) <int64[2] i = {300, 2}> { y = Gather(x, i) }"


def rejection(tmp_path, text: str, opset: int = 17, pass_: GraphPass = PASS) -> str:
    with pytest.raises(VerificationError) as error:
        built(tmp_path, model(text, opset), pass_)
    return str(error.value)


def test_a_wrong_input_type_is_caught(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_INT32", np.dtype(np.uint8))
    text = "g (float[8] x, int64[3] i) => (float[3] y) { y = Gather(x, i) }"
    assert "changed the model's inputs or outputs" in rejection(tmp_path, text)


def test_a_wrong_cast_is_caught(monkeypatch, tmp_path):
    right = module._add_cast
    monkeypatch.setattr(module, "_add_cast", lambda g, a, b, to: right(g, a, b, 1))
    assert "is malformed" in rejection(tmp_path, SIGNED)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[8] x) => (int64[8] y) { a = Round(x) y = Cast<to=7>(a) }",
        "g (float[8] x, int64[3] i) => (float[3] y) { y = Gather(x, i) }",
        "g (int64[3] i, int64[3] j) => (int64[3] y) { y = Add(i, j) }",
    ],
    ids=["output", "indices", "arithmetic"],
)
def test_a_cast_through_fewer_bits_is_caught(monkeypatch, tmp_path, text):
    """The types are right, the values are not: only the proof shows it."""

    def narrow(graph, source, result, to):
        inner = module.gs.Variable(graph.fresh_name("bool"), np.dtype(np.bool_), source.shape)
        right(graph, source, inner, onnx.TensorProto.BOOL)
        right(graph, inner, result, to)

    right = module._add_cast
    monkeypatch.setattr(module, "_add_cast", narrow)
    assert "for_target#0 at y is wrong" in rejection(tmp_path, text)


def test_wrong_indices_are_caught(monkeypatch, tmp_path):
    right = module.NewWeight
    monkeypatch.setattr(module, "NewWeight", lambda v, kind, how: right(v[::-1], kind, how))
    assert "for_target#0 at y is wrong" in rejection(tmp_path, INDICES)


def test_an_output_of_another_node_is_caught(monkeypatch, tmp_path):
    right = module._add_cast

    def swapped(graph, source, result, to):
        other = next(t for t in graph.inputs if t.name == "j") if result.name == "k" else source
        right(graph, other, result, to)

    monkeypatch.setattr(module, "_add_cast", swapped)
    text = """g (int64[3] i, int32[3] j) => (int64[3] k) <int64[3] c = {5, 6, 7}>
        { k = Add(i, c) }"""
    assert "for_target#0 at k is wrong" in rejection(tmp_path, text)


def test_an_operator_that_changed_is_caught(monkeypatch, tmp_path):
    """GroupNormalization scaled groups: declaring opset 20 alone changes what it means."""
    monkeypatch.setattr(opsets, "CHANGED", {})
    text, opset, _ = IN_THE_WAY["another meaning"]
    assert "01_for_target" in rejection(tmp_path, text, opset)


def test_an_operator_that_changed_without_a_trace_is_caught(monkeypatch, tmp_path):
    """Softmax without an axis: valid in both opsets, with another result."""
    monkeypatch.setattr(module, "OPSET", 11)
    text = "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }"
    assert "for_target#0 at y is wrong" in rejection(tmp_path, text, 13)


def test_a_newer_operator_is_caught(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_in_the_way", lambda _graph: [])
    text, opset, _ = IN_THE_WAY["a newer operator"]
    assert "01_for_target" in rejection(tmp_path, text, opset)


@dataclass(frozen=True)
class Undeclared(ForTarget):
    """Lowers the opset, and declares nothing."""

    def opset(self, before: int) -> int:
        return before if before > 20 else 20


def test_an_undeclared_opset_is_caught(monkeypatch, tmp_path):
    right = Graph.set_versions
    monkeypatch.setattr(Graph, "set_versions", lambda self, _opset, ir: right(self, 20, ir))
    text = "g (float[2,4] x) => (float[4,2] y) { y = Transpose(x) }"
    message = rejection(tmp_path, text, 23, Undeclared("aihub"))
    assert "changed the opset ai.onnx 23 → 20" in message


@dataclass(frozen=True)
class NarrowsFloats(ForTarget):
    """Lowers more than it declares."""

    def signature(self, before):
        return before


def test_an_undeclared_signature_is_caught(tmp_path):
    message = rejection(tmp_path, SIGNED, pass_=NarrowsFloats("aihub"))
    assert "changed the model's inputs or outputs" in message
