"""What is computed twice is computed once, and what is not understood stays."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from compiler.components import changed_components
from compiler.graph import Graph
from compiler.verify.proof import prove
from compiler.weights import NewWeight, WeightsFile
from passes.dedupe import Dedupe


def merged(graph: Graph) -> Graph:
    """The graph after the pass; every piece is proven exact, and a second run finds nothing."""
    before = [(node.op, [t.name for t in node.inputs]) for node in graph.nodes]
    after = Dedupe().simplified(graph)
    for rewrite in changed_components(graph, after, "dedupe"):
        proof = prove(rewrite, Dedupe())
        assert (proof.status, proof.error <= 1e-15) == ("pass", True), (rewrite.title, proof)
    again = after.copy()
    assert changed_components(again, Dedupe().simplified(again), "dedupe") == []
    assert [(node.op, [t.name for t in node.inputs]) for node in graph.nodes] == before
    return after


def text(body: str, out: str = "y") -> str:
    return f"""g (float[2,4] x, float[2,4] z, bool c) => ({out}) <float[4,4] w = {{{
        ", ".join(map(str, range(16)))
    }}}, float[4,4] v = {{{", ".join(map(str, range(16)))}}}, float[4,4] u,
        float low = {{-1}}, float least = {{-1}}, float high = {{1}}, float[1] one = {{1}},
        float ratio = {{0.5}},
        int64 k = {{0}}> {{ {body} }}"""


SAME = {
    "an op": ("a = Exp(x) b = Exp(x) y = Add(a, b)", ["Exp", "Add"]),
    "a chain": ("a = Exp(x) b = Exp(x) c1 = Neg(a) d = Neg(b) y = Add(c1, d)",
                ["Exp", "Neg", "Add"]),
    "attributes": ("a = Softmax<axis=1>(x) b = Softmax<axis=1>(x) y = Add(a, b)",
                   ["Softmax", "Add"]),
    "other attributes": ("a = Softmax<axis=1>(x) b = Softmax<axis=0>(x) y = Add(a, b)",
                         ["Softmax", "Softmax", "Add"]),
    "equal weights": ("a = MatMul(x, w) b = MatMul(x, v) y = Mul(a, b)", ["MatMul", "Mul"]),
    "other weights": ("a = MatMul(x, w) b = MatMul(x, u) y = Mul(a, b)",
                      ["MatMul", "MatMul", "Mul"]),
    "operands in another order": ("a = Add(x, z) b = Add(z, x) y = Mul(a, b)", ["Add", "Mul"]),
    "a difference in another order": ("a = Sub(x, z) b = Sub(z, x) y = Mul(a, b)",
                                      ["Sub", "Sub", "Mul"]),
    "a Constant node": ("k1 = Constant<value = float[1] {1}>() a = Mul(x, k1) b = Mul(one, x) "
                        "y = Add(a, b)", ["Constant", "Mul", "Add"]),
    "the outputs of a Split": (
        "a, b = Split<axis=1, num_outputs=2>(x) d, e = Split<axis=1, num_outputs=2>(x) "
        "f = Add(a, e) y = Mul(f, d)", ["Split", "Add", "Mul"]),
    "an optional input left out": (
        "a = Clip(x, low) b = Clip(x, low, ) y = Add(a, b)", ["Clip", "Add"]),
    "Abs of Abs": ("a = Abs(x) b = Abs(a) y = Exp(b)", ["Abs", "Exp"]),
    "three in a row": ("a = Floor(x) b = Floor(a) d = Floor(b) y = Exp(d)", ["Floor", "Exp"]),
    "Abs of Abs that others read": ("a = Abs(x) b = Abs(a) y = Sub(b, a)", ["Abs", "Abs", "Sub"]),
    "Clip of Clip": ("a = Clip(x, low, high) b = Clip(a, least, high) y = Exp(b)",
                     ["Clip", "Exp"]),
    "another Clip": ("a = Clip(x, low, high) b = Clip(a, low) y = Exp(b)",
                     ["Clip", "Clip", "Exp"]),
    "Neg of Neg": ("a = Neg(x) b = Neg(a) y = Exp(b)", ["Neg", "Neg", "Exp"]),
    "Identity": ("a = Identity(x) b = Exp(a) e = Identity(b) y = Neg(e)", ["Exp", "Neg"]),
    "a dead branch": ("a = Exp(x) b = Neg(a) y = Tanh(x)", ["Tanh"]),
    "random numbers": ("a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)",
                       ["RandomNormalLike", "RandomNormalLike", "Add"]),
    "Dropout in training": (
        "a = Dropout(x, ratio, c) b = Dropout(x, ratio, c) y = Add(a, b)",
        ["Dropout", "Dropout", "Add"]),
    "Dropout in inference": ("a = Dropout(x, ratio) b = Dropout(x, ratio) y = Add(a, b)",
                             ["Dropout", "Add"]),
    "nothing": ("a = Exp(x) y = Add(a, z)", ["Exp", "Add"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "ops"), SAME.values(), ids=SAME.keys())
def test_the_same(body, ops, graph_of, tmp_path):
    graph = graph_of(text(body))
    after = merged(graph)
    assert [node.op for node in after.nodes] == ops
    after.save(tmp_path / "model.onnx", WeightsFile(tmp_path / "weights.bin"))
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_outputs_stay(graph_of):
    after = merged(graph_of(text("y = Exp(x) e = Exp(x) b = Identity(y)", "y, e, b")))
    assert [node.op for node in after.nodes] == ["Exp", "Exp", "Identity"]


def test_what_an_output_shares_with_the_inside(graph_of):
    after = merged(graph_of(text("e = Exp(x) y = Exp(x) b = Neg(y) d = Neg(e)", "y, b, d")))
    assert [node.op for node in after.nodes] == ["Exp", "Exp", "Neg", "Neg"]
    assert [node.inputs[0].name for node in after.nodes if node.op == "Neg"] == ["y", "e"]


def test_a_node_of_which_the_model_promises_one_result(graph_of):
    body = (
        "a, b = Split<axis=1, num_outputs=2>(x) y, e = Split<axis=1, num_outputs=2>(x) "
        "f = Add(a, e) d = Mul(f, b)"
    )
    after = merged(graph_of(text(body, "y, d")))
    assert [node.op for node in after.nodes] == ["Split", "Split", "Add", "Mul"]


def test_what_a_body_reads_stays(graph_of):
    body = """a = Exp(x) b = Exp(x) d = Add(a, b)
        e = If (c) <then_branch = t () => (float[2,4] p) { p = Neg(b) },
                    else_branch = f () => (float[2,4] q) { q = Abs(a) }>
        y = Add(d, e)"""
    after = merged(graph_of(text(body)))
    assert [node.op for node in after.nodes] == ["Exp", "Exp", "Add", "If", "Add"]


def test_other_domains_stay(graph_of):
    model = graph_of(text("a = Gelu(x) b = Gelu(x) y = Add(a, b)")).to_model()
    for node in model.graph.node[:2]:
        node.domain = "com.acme"
    model.opset_import.add(domain="com.acme", version=1)
    from pathlib import Path

    after = Dedupe().simplified(Graph(model, Path()))
    assert [node.op for node in after.nodes] == ["Gelu", "Gelu", "Add"]


def test_equal_weights_become_one(graph_of):
    after = merged(graph_of(text("a = MatMul(x, w) b = MatMul(z, v) y = Mul(a, b)")))
    assert [t.name for t in after.constants()] == ["w"]


TYPES: dict[str, Callable] = {
    "another type": lambda w: (w.astype(np.float64), np.float64),
    "another shape": lambda w: (w.reshape(2, 8), np.float32),
    "one bit": lambda w: (np.nextafter(w, np.float32(99)), np.float32),
    "minus zero": lambda w: (np.where(w == 0, np.float32(-0.0), w), np.float32),
}


@pytest.mark.parametrize("kind", TYPES)
def test_weights_that_only_look_equal_stay(kind, graph_of):
    graph = graph_of(
        text("a = Exp(w) b = Exp(v) d = Shape(a) e = Shape(b) y = Concat<axis=0>(d, e)")
    )
    (other,) = [tensor for tensor in graph.constants() if tensor.name == "v"]
    values, dtype = TYPES[kind](np.array(graph.values(other)))
    other._values = NewWeight(values, np.dtype(dtype), "v")
    after = Dedupe().simplified(graph)
    assert [node.op for node in after.nodes].count("Exp") == 2


def test_optional_outputs_that_are_left_out(graph_of):
    body = (
        "a, m = MaxPool<kernel_shape=[2]>(r) b = MaxPool<kernel_shape=[2]>(r) s = Cast<to=1>(m) "
        "t = Add(a, b) y = Add(t, s)"
    )
    model = text(body).replace("float[2,4] x,", "float[1,2,4] r, float[2,4] x,")
    after = merged(graph_of(model))
    assert [node.op for node in after.nodes] == ["MaxPool", "MaxPool", "Cast", "Add", "Add"]


FAULTS = {
    "attributes forgotten": "a = Softmax<axis=1>(x) b = Softmax<axis=0>(x) y = Add(a, b)",
    "weights forgotten": "a = MatMul(x, w) b = MatMul(x, u) y = Mul(a, b)",
}


def test_faults_are_found(graph_of, monkeypatch):
    """A key that leaves out attributes, or what weights hold."""
    from passes import dedupe

    monkeypatch.setattr(dedupe.Merger, "_key", lambda _, node, first=0: (node.op, first))
    for body in FAULTS.values():
        graph = graph_of(text(body))
        (rewrite,) = changed_components(graph, Dedupe().simplified(graph), "dedupe")
        assert prove(rewrite, Dedupe()).status == "fail"
