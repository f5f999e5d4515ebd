"""What exporters leave behind goes, the weights stay as they are, and every piece is proven."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import passes.canonicalize as module
from compiler.components import changed_components
from compiler.folding import FOLDS
from compiler.graph import Graph
from compiler.verify.proof import prove
from compiler.verify.structure import checker_faults
from compiler.weights import MappedWeight, WeightsFile
from passes.canonicalize import Canonicalize
from tests.models.official import export_official, official_model

LEFTOVERS = {
    "nothing to do": ("y = Relu(x)", ["Relu"]),
    "Identity chain": ("a = Identity(x) b = Identity(a) c = Relu(b) d = Identity(c) y = Exp(d)",
                       ["Relu", "Exp"]),
    "Constant node": ("c = Constant<value = float[1] {3}>() y = Mul(x, c)", ["Mul"]),
    "shape arithmetic": (
        "s = Shape(x) i = Constant<value = int64 {0}>() n = Gather(s, i) u = Unsqueeze(n, zero) "
        "m = Constant<value = int64[1] {-1}>() t = Concat<axis=0>(m, u) r = Reshape(x, t) "
        "y = Softmax<axis=-1>(r)", ["Reshape", "Softmax"]),
    "x + 0": ("a = Relu(x) b = Add(a, none) c = Sub(b, none) y = Exp(c)", ["Relu", "Exp"]),
    "0 + x": ("a = Relu(x) b = Add(none, a) y = Exp(b)", ["Relu", "Exp"]),
    "x · 1 and x / 1": ("a = Relu(x) b = Mul(a, unit) c = Div(b, unit) y = Exp(c)",
                        ["Relu", "Exp"]),
    "1 / x stays": ("a = Exp(x) b = Div(unit, a) y = Tanh(b)", ["Exp", "Div", "Tanh"]),
    "0 - x stays": ("a = Exp(x) b = Sub(none, a) y = Tanh(b)", ["Exp", "Sub", "Tanh"]),
    "a 0 that broadcasts stays": ("a = Relu(x) b = Add(a, tall) y = Exp(b)",
                                  ["Relu", "Add", "Exp"]),
    "Cast to itself": ("a = Relu(x) b = Cast<to=1>(a) y = Exp(b)", ["Relu", "Exp"]),
    "Dropout": ("a = Relu(x) b = Dropout(a) y = Exp(b)", ["Relu", "Exp"]),
    "dead code": ("a = Exp(x) b = Neg(a) y = Relu(x)", ["Relu"]),
    "transposed weights": ("t = Transpose(w) y = MatMul(x, t)", ["MatMul"]),
    "constant arithmetic": ("k = Mul(w, w) l = Neg(k) y = MatMul(x, l)", ["MatMul"]),
}  # fmt: skip


def text(body: str) -> str:
    return f"""g (float[2,16] x) => (y) <float[16,16] w, float none = {{0}}, float[1] unit = {{1}},
    float[3,1,1] tall = {{0, 0, 0}}, int64[1] zero = {{0}}> {{ {body} }}"""


def canonicalized(graph: Graph) -> Graph:
    """The simplified graph; every piece of it is proven, and a second run finds nothing."""
    pass_ = Canonicalize()
    after = pass_.simplified(graph)
    for rewrite in changed_components(graph, after, "canonicalize"):
        proof = prove(rewrite, pass_)
        assert (proof.status, proof.error <= 1e-13) == ("pass", True), (rewrite.title, proof)
    again = after.copy()
    assert changed_components(again, pass_.simplified(again), "canonicalize") == []
    return after


@pytest.mark.parametrize("what", LEFTOVERS)
def test_leftovers(graph_of, tmp_path, what):
    body, ops = LEFTOVERS[what]
    graph = canonicalized(graph_of(text(body)))
    assert [node.op for node in graph.nodes] == ops
    graph.save(tmp_path / "model.onnx", WeightsFile(tmp_path / "weights.bin"))
    assert checker_faults(tmp_path / "model.onnx") == []


def test_the_signature_stays(graph_of):
    """Identities that are outputs, outputs that are constant, inputs that nothing reads."""
    graph = graph_of(
        """g (float[9] x, float[2] unused) => (float[9] y, float[2] k, int64[2] s, float[9] z)
        <float[2] w, int64[2] i = {1, 2}> { y = Identity(x) k = Mul(w, w) s = Add(i, i)
        a = Relu(x) z = Identity(a) }"""
    )
    after = canonicalized(graph)
    assert [t.name for t in after.inputs] == ["x", "unused"]
    assert [t.name for t in after.outputs] == ["y", "k", "s", "z"]
    assert [t.dtype for t in after.outputs] == [t.dtype for t in graph.outputs]


def test_the_source_is_not_changed(graph_of):
    graph = graph_of(text(LEFTOVERS["shape arithmetic"][0]))
    before = graph.to_model()
    Canonicalize().simplified(graph)
    assert graph.to_model() == before


def test_weights_stay_where_they_are(model_of, tmp_path):
    """onnxsim sees none of them: the same mapped bytes before and after."""
    body = "a = Identity(x) c = MatMul(a, w) d = MatMul(c, w) k = Mul(d, unit) y = Relu(k)"
    path = tmp_path / "model.onnx"
    onnx.save(model_of(text(body)), path, save_as_external_data=True, location="data.bin")
    graph = Graph.load(path)
    after = canonicalized(graph)
    (weight,) = [t._values for t in after.constants()]
    assert isinstance(weight, MappedWeight)
    assert weight.source == graph.weight(graph.ir.tensors()["w"]).source
    assert weight.source[0] == tmp_path / "data.bin"


def test_weights_are_not_rounded(graph_of):
    """Denormals, infinities and the last bit of small weights, which onnxsim could fold."""
    graph = graph_of(
        """g (float[2,2] x) => (y)
        <float[2,2] w = {0.1, 1e-42, 3.4028235e38, -0.0}, float[2] b = {1e-45, 1}>
        { a = Identity(x) c = MatMul(a, w) y = Add(c, b) }"""
    )
    before = {t.name: graph.values(t).tobytes() for t in graph.constants()}
    after = canonicalized(graph)
    assert {t.name: after.values(t).tobytes() for t in after.constants()} == before


def test_folded_values_are_rounded_once(graph_of, tmp_path):
    graph = graph_of(
        "g (float[2,3] x) => (y) <float[3] v, float third = {3}> "
        "{ a = Div(v, third) b = Div(a, third) c = Mul(b, third) d = Identity(c) y = Mul(x, d) }"
    )
    exact = graph.exact(graph.ir.tensors()["v"]) / 3
    after = canonicalized(graph)
    after.save(tmp_path / "model.onnx", WeightsFile(tmp_path / "weights.bin"))
    model = onnx.load(tmp_path / "model.onnx")
    (values,) = map(onnx.numpy_helper.to_array, model.graph.initializer)
    np.testing.assert_array_equal(values, exact.astype(np.float32))


def test_a_resize_keeps_its_scales(graph_of):
    graph = graph_of(
        """g (float[1,2,4,4] x) => (y) <float[4] scales = {1, 1, 2, 2}>
        { a = Identity(x) b = Resize<mode="linear">(a, , scales) y = Relu(b) }"""
    )
    after = canonicalized(graph)
    assert [node.op for node in after.nodes] == ["Resize", "Relu"]
    assert tuple(after.outputs[0].shape) == (1, 2, 8, 8)


def test_metadata_and_branches(graph_of):
    graph = graph_of(
        """g (float[4] x, bool c) => (y) <float[4] w>
        { a = Identity(x) b = Mul(a, w)
          y = If(c) <then_branch = t () => (float[4] u) { u = Add(b, w) },
                     else_branch = e () => (float[4] v) { v = Sub(b, a) }> }"""
    )
    graph.metadata["licence"] = "MIT"
    graph.nodes[1].metadata = {"namespace": "encoder"}
    after = Canonicalize().simplified(graph)
    assert after.metadata == {"licence": "MIT"}
    assert [(node.op, node.metadata) for node in after.nodes] == [
        ("Mul", {"namespace": "encoder"}), ("If", {})
    ]  # fmt: skip
    body = after.to_model().graph.node[1].attribute[0].g
    assert list(body.node[0].input) == ["b", "w"]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_an_export(tmp_path, exporter):
    path = tmp_path / "model.onnx"
    export_official(official_model("tiny"), path, 28, 42, exporter, 18)
    graph = Graph.load(path)
    after = canonicalized(graph)
    ops = {node.op for node in after.nodes}
    assert not {"Identity", "Constant", "Shape", "Cast", "ConstantOfShape"} & ops
    assert len(after.nodes) <= len(graph.nodes)


# -- planted faults --------------------------------------------------------------------------------


def verdicts(graph: Graph) -> list[str]:
    after = Canonicalize().simplified(graph)
    rewrites = changed_components(graph, after, "canonicalize")
    return [prove(rewrite, Canonicalize()).status for rewrite in rewrites]


def test_a_wrong_bypass_is_caught(monkeypatch, graph_of):
    """x · 2 taken for x."""
    right = module._same_as
    monkeypatch.setattr(
        module, "_same_as", lambda g, n: n.inputs[0] if n.op == "Mul" else right(g, n)
    )
    graph = graph_of("g (float[3] x) => (y) <float[1] k = {2}> { a = Mul(x, k) y = Relu(a) }")
    assert verdicts(graph) == ["fail"]


def test_a_wrong_simplification_is_caught(monkeypatch, graph_of):
    """onnxsim does not see weights, but it could still wire them wrongly."""

    def swapped(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        node = next(node for node in model.graph.node if node.op_type == "Sub")
        node.input[:] = reversed(node.input)
        return model, True

    monkeypatch.setattr(module.onnxsim, "simplify", swapped)
    graph = graph_of("g (float[3] x) => (y) <float[3] k> { a = Sub(x, k) y = Relu(a) }")
    assert verdicts(graph) == ["fail"]


def test_a_swapped_weight_is_caught(monkeypatch, graph_of):
    right = module._through_onnxsim

    def swapped(graph: Graph) -> Graph:
        after = right(graph)
        v, w = (after.ir.tensors()[name] for name in "vw")
        v._values, w._values = w._values, v._values
        return after

    monkeypatch.setattr(module, "_through_onnxsim", swapped)
    graph = graph_of(
        "g (float[2,16] x) => (y) <float[16,16] v, float[16,16] w> "
        "{ a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }"
    )
    assert set(verdicts(graph)) == {"fail"}


def test_a_wrong_fold_is_caught(monkeypatch, graph_of):
    monkeypatch.setitem(FOLDS, "Div", lambda _node, inputs: inputs[1] / inputs[0])
    graph = graph_of(
        "g (float[3] x) => (y) <float[3] a, float[3] b> { c = Div(a, b) y = Mul(x, c) }"
    )
    assert "fail" in verdicts(graph)


# -- what other families' exports hold -------------------------------------------------------------


def test_it_runs_until_nothing_is_left(monkeypatch, graph_of):
    """onnxsim sees more in its own result where shapes have become known; here, one node a run."""

    def one_step(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        first, second, *_ = model.graph.node
        if second.op_type == "Abs":
            second.input[0] = first.input[0]
            model.graph.node.remove(first)
        return model, True

    monkeypatch.setattr(module.onnxsim, "simplify", one_step)
    text = "g (float[n] x) => (float[n] y) { a = Abs(x) b = Abs(a) c = Abs(b) y = Exp(c) }"
    after = Canonicalize().simplified(graph_of(text))
    assert [node.op for node in after.nodes] == ["Abs", "Exp"]


HALVED = """g (float[1,2,7,6] x) => (float[1,2,h,w] y)
<int64 i2 = {2}, int64 i3 = {3}, float half = {2}, int64[1] axis = {0}, int64[2] head = {1, 2}>
{ s = Shape(x) h = Gather(s, i2) w = Gather(s, i3) hf = Cast<to=1>(h) wf = Cast<to=1>(w)
  hh = Div(hf, half) wh = Div(wf, half) hc = Ceil(hh) wc = Floor(wh) hi = Cast<to=7>(hc)
  wi = Cast<to=7>(wc) hu = Unsqueeze(hi, axis) wu = Unsqueeze(wi, axis)
  z = ConstantOfShape(axis) c = Concat<axis=0>(head, hu, wu)
  e = Slice(x, starts, ends, axes) r = Reshape(e, c) y = Relu(r) }"""


def test_shape_arithmetic_through_floats_is_folded(graph_of):
    """Ceil and Floor of sizes; onnxsim is not shown floats, so that it can't round them."""
    text = HALVED.replace("axis = {0}, ", "axis = {0}, int64[2] starts = {0, 0}, "
                          "int64[2] ends = {4, 3}, int64[2] axes = {2, 3}, ")  # fmt: skip
    before = graph_of(text)
    after = Canonicalize().simplified(before)
    assert [node.op for node in after.nodes] == ["Slice", "Relu"]
    assert after.outputs[0].shape == [1, 2, 4, 3]
    assert all(p.status == "pass" for p in proofs_of(before, after))


def proofs_of(before: Graph, after: Graph) -> list:
    rewrites = changed_components(before, after, "canonicalize")
    return [prove(rewrite, Canonicalize()) for rewrite in rewrites]


def test_what_only_a_body_reads_keeps_its_values(graph_of, tmp_path):
    graph = graph_of("""g (float[4] x, bool c) => (float[4] y) <float[4] w = {1, 2, 3, 4}>
    { a = Abs(x) i = Identity(a) y = If(c) <then_branch = t () => (float[4] u) { u = Add(i, w) },
                                            else_branch = e () => (float[4] v) { v = Neg(i) }> }""")
    after = Canonicalize().simplified(graph)
    after.save(tmp_path / "model.onnx", WeightsFile(tmp_path / "weights.bin"))
    (w,) = onnx.load(tmp_path / "model.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(w), [1, 2, 3, 4])


DRAWN = {
    "normal like": ("a = RandomNormalLike(x) b = RandomNormalLike(x)", 2),
    "uniform": ("a = RandomUniform<shape=[2,16]>() b = RandomUniform<shape=[2,16]>()", 2),
    "Bernoulli": ("p = Sigmoid(x) a = Bernoulli(p) b = Bernoulli(p)", 2),
    "Dropout in training": ("a = Dropout(x, half, yes) b = Dropout(x, half, yes)", 2),
    "Dropout, perhaps in training": ("a = Dropout(x, half, c) b = Dropout(x, half, c)", 2),
    "Dropout in inference": ("a, m = Dropout(x, half, no) b, n = Dropout(x, half, no)", 1),
    "nothing": ("a = Exp(x) b = Exp(x)", 1),
}  # fmt: skip


@pytest.mark.parametrize(("body", "count"), DRAWN.values(), ids=DRAWN.keys())
def test_two_draws_are_two_for_all_that(body, count, graph_of):
    """a / b is not 1 where both are drawn."""
    text = f"""g (float[2,16] x, bool c) => (y) <float half = {{0.5}}, bool yes = {{1}},
    bool no = {{0}}> {{ {body} y = Div(a, b) }}"""
    after = Canonicalize().simplified(graph_of(text, 17))
    divide = after.nodes[-1]
    assert divide.op == "Div"
    assert len({tensor.name for tensor in divide.inputs}) == count


def test_two_calls_of_a_function_that_draws_are_two():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[4,5] x) => (float[4,5] y) { a = local.noise(x) b = local.noise(x) y = Sub(a, b) }
    <domain: "local", opset_import: ["" : 17]>
    noise (x) => (z) { z = RandomNormalLike(x) }""")
    after = Canonicalize().simplified(Graph(model, Path()))
    assert [node.op for node in after.nodes] == ["noise", "noise", "Sub"]
