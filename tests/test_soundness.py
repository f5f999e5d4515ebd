"""What a sceptical reader found: wrong rewrites that once passed, right ones that once failed."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from compiler import batching
from compiler.building import build_stages
from compiler.errors import VerificationError
from compiler.graph import Graph, static_shape
from compiler.pipeline import parse_pipeline
from compiler.rewrite import Builder, GraphPass, LocalPass, Pass, Replacement, apply_pass
from compiler.verify.proof import prove
from passes.flip_average import FlipAverage

HEADER = '<ir_version: 10, opset_import: ["": 18]>\n'


def model(text: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER.replace("18", str(opset)) + text)


def build(folder: Path, source: onnx.ModelProto, passes: list[Pass], verify: str = "each") -> list:
    onnx.save(source, folder / "model.onnx")
    (folder / "build").mkdir()
    stages = build_stages(
        folder / "model.onnx", passes, folder / "build", verify=verify, allow_noop=True,
        failures=folder / "failure",
    )  # fmt: skip
    return [stage.report for stage in stages[1:]]


RIGHT = {
    "folded transpose": "g (float[2,3] x) => (float[2,1] y) <float[1,3] w={1,2,3}> "
    "{t=Transpose(w) y=MatMul(x,t)}",
    "folded product": "g (float[2,3] x) => (float[2,3] y) <float[3] w={1,2,3}> "
    "{t=Mul(w,w) y=Mul(x,t)}",
    "common subexpression": "g (float[2,3] x) => (float[2,3] y) {a=Relu(x) b=Relu(x) y=Add(a,b)}",
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_canonicalize_is_believed(tmp_path, text):
    (report,) = build(tmp_path, model(text), parse_pipeline("canonicalize"))
    assert report.rewrites
    assert report.float64["status"] == report.float32["status"] == "pass"


def test_a_resize_is_allowed_for_in_a_final_comparison(tmp_path):
    text = "g (float[1,3,8,8] x) => (float[1,1,8,8] y) <float[1,3,1,1] w={1,2,3}> {y=Conv(x,w)}"
    passes = parse_pipeline("insert_resize:height=480:width=640,flip_average")
    assert build(tmp_path, model(text), passes, "final")[-1].float32["status"] == "pass"


def test_float16_rounds_as_float16(tmp_path):
    # The text format takes float16 values as their bits: 1, 2 and 3.
    text = """g (float16[1,3,8,8] x) => (float16[1,3,8,8] y) <float16[3,1,1] m={15360,16384,16896}>
        {a=Sub(x,m) y=Mul(a,m)}"""
    (report,) = build(tmp_path, model(text), parse_pipeline("fold_norm"), "full")
    assert report.whole_float64["status"] == "pass"


@dataclass(frozen=True)
class NewerOpset(GraphPass):
    """Softmax without an axis runs over other axes from opset 13 on."""

    def simplified(self, graph: Graph) -> Graph:
        text = graph.to_model()
        text.opset_import[0].version = 13
        return Graph(text, graph.folder)


@pytest.mark.parametrize(
    ("op", "reason"),
    [("Softmax", "test_soundness#0 at y is wrong"), ("Relu", "changed the opset ai.onnx 11 → 13")],
)
def test_another_opset_is_no_small_change(tmp_path, op, reason):
    text = f"g (float[2,3,4] x) => (float[2,3,4] y) {{y={op}(x)}}"
    with pytest.raises(VerificationError, match=reason):
        build(tmp_path, model(text, opset=11), [NewerOpset()])


@dataclass(frozen=True)
class Place:
    place: str
    node: object


@dataclass(frozen=True)
class ForgetsTheCeiling(LocalPass[Place]):
    """Clip to [0, 6] becomes Relu."""

    contract = "exact"

    def match(self, graph):
        return [Place(n.outputs[0].name, n) for n in graph.nodes if n.op == "Clip"]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        builder = Builder(graph, match.place)
        output = match.node.outputs[0]
        relu = builder.node("Relu", [match.node.inputs[0]], static_shape(output))
        return Replacement(builder, [(output, relu)])


def test_cut_inputs_reach_a_ceiling():
    graph = Graph(
        model("""g (float[8,8] x) => (float[8,8] y) <float low={0}, float high={6}>
            {y=Clip(x,low,high)}"""),
        Path(),
    )
    (rewrite,) = apply_pass(graph, ForgetsTheCeiling()).rewrites
    assert prove(rewrite, ForgetsTheCeiling()).status == "fail"


def test_a_node_that_was_not_copied_shows(monkeypatch):
    between = batching.between
    monkeypatch.setattr(
        batching, "between", lambda *a: [node for node in between(*a) if node.op != "Mul"]
    )
    graph = Graph(
        model("""g (float[1,1,4,6] x) => (float[1,1,4,6] y) <float[1] k={1e-8}>
            {b=Relu(x) c=Mul(b,k) y=Add(b,c)}"""),
        Path(),
    )
    (rewrite,) = apply_pass(graph, FlipAverage()).rewrites
    proof = prove(rewrite, FlipAverage())
    assert (proof.status, "2 nodes instead of 3" in proof.detail) == ("fail", True)
