"""A model that was broken on its way gets one clear line and exit code 2, whatever broke."""

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, parser

from compiler.cli import main

ATTENTION = """<ir_version: 8, opset_import: ["": 18]>
g (float[1,5,8] x, bool flag) => (float[1,5,8] y, float[1,5,8] z)
<float[8,24] packed, float[24] bias, float[8,8] project, float two = {2},
 int64[5] split = {1, 5, 3, 2, 4}, int64[3] merge = {1, 5, 8}, int64 i0 = {0}, int64 i1 = {1},
 int64 i2 = {2}>
{ a = MatMul(x, packed) b = Add(a, bias) r = Reshape(b, split)
  t = Transpose<perm=[2,0,3,1,4]>(r)
  q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2)
  kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) d = Div(s, two) p = Softmax<axis=-1>(d)
  o = MatMul(p, v) ot = Transpose<perm=[0,2,1,3]>(o) m = Reshape(ot, merge)
  w = MatMul(m, project) n = Identity(w) y = Add(n, x)
  z = If(flag) <then_branch = yes () => (float[1,5,8] u) { u = Relu(n) },
                else_branch = no () => (float[1,5,8] e) { e = Neg(n) }> }"""


def whole_model() -> onnx.ModelProto:
    model = parser.parse_model(ATTENTION)
    rng = np.random.default_rng(0)
    for name, shape in {"packed": (8, 24), "bias": (24,), "project": (8, 8)}.items():
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def names_in(graph: onnx.GraphProto) -> list[str]:
    values = [*graph.input, *graph.initializer]
    return [*(v.name for v in values), *(n for node in graph.node for n in node.output), "", "none"]


def mutilate(draw: st.DrawFn, model: onnx.ModelProto) -> None:
    """One fault of a random kind at a random place."""
    graph = model.graph
    kind = draw(st.sampled_from(sorted(FAULTS)))
    FAULTS[kind](draw, graph, model)


def node_removed(draw, graph, model):
    graph.node.pop(draw(st.integers(0, len(graph.node) - 1)))


def edge_rewired(draw, graph, model):
    node = draw(st.sampled_from([n for n in graph.node if n.input]))
    node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(names_in(graph)))


def output_renamed(draw, graph, model):
    node = draw(st.sampled_from(list(graph.node)))
    node.output[0] = draw(st.sampled_from(names_in(graph)))


def operator_changed(draw, graph, model):
    ops = ["Relu", "Add", "Conv", "Softmax", "Concat", "Loop", "Resize", "NoSuchOp", ""]
    draw(st.sampled_from(list(graph.node))).op_type = draw(st.sampled_from(ops))


def attribute_changed(draw, graph, model):
    attributes = [a for n in graph.node for a in n.attribute if a.type != a.GRAPH]
    attribute = draw(st.sampled_from(attributes))
    attribute.i, attribute.type = draw(st.integers(-9, 9)), draw(st.sampled_from([1, 2, 6, 7]))
    if attribute.ints:
        del attribute.ints[draw(st.integers(0, len(attribute.ints) - 1)) :]


def type_lied_about(draw, graph, model):
    value = draw(st.sampled_from([*graph.input, *graph.output, *graph.value_info]))
    value.type.tensor_type.elem_type = draw(st.sampled_from([0, 1, 7, 8, 9, 10, 11, 99]))


def shape_lied_about(draw, graph, model):
    value = draw(st.sampled_from([*graph.input, *graph.output, *graph.value_info]))
    dims = value.type.tensor_type.shape.dim
    if dims:
        dims[draw(st.integers(0, len(dims) - 1))].dim_value = draw(st.integers(-2, 9))


def weight_lied_about(draw, graph, model):
    tensor = draw(st.sampled_from(list(graph.initializer)))
    change = draw(st.sampled_from(["dims", "type", "values", "external", "name"]))
    if change == "dims":
        tensor.dims.append(draw(st.integers(-1, 3)))
    elif change == "type":
        tensor.data_type = draw(st.sampled_from([0, 1, 6, 7, 8, 11, 16, 99]))
    elif change == "values":
        tensor.raw_data = tensor.raw_data[: draw(st.integers(0, 9))]
    elif change == "external":
        tensor.data_location = TensorProto.EXTERNAL
    else:
        tensor.name = draw(st.sampled_from(names_in(graph)))


def order_changed(draw, graph, model):
    nodes = draw(st.permutations(list(graph.node)))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def twice(draw, graph, model):
    field = draw(st.sampled_from([graph.node, graph.input, graph.output, graph.initializer]))
    if field:
        field.add().CopyFrom(draw(st.sampled_from(list(field))))


def body_cut(draw, graph, model):
    branches = [a.g for n in graph.node for a in n.attribute if a.type == a.GRAPH]
    if branches:
        branch = draw(st.sampled_from(branches))
        change = draw(st.sampled_from(["nodes", "outputs", "reads"]))
        if change == "nodes":
            del branch.node[:]
        elif change == "outputs":
            del branch.output[:]
        elif branch.node:
            branch.node[0].input[0] = draw(st.sampled_from(names_in(graph)))


def header_changed(draw, graph, model):
    if draw(st.booleans()):
        model.ir_version = draw(st.sampled_from([0, 1, 99]))
    else:
        model.opset_import[0].version = draw(st.sampled_from([-1, 0, 1, 6, 12, 99]))


FAULTS = {
    f.__name__: f
    for f in (
        node_removed, edge_rewired, output_renamed, operator_changed, attribute_changed,
        type_lied_about, shape_lied_about, weight_lied_about, order_changed, twice, body_cut,
        header_changed,
    )
}  # fmt: skip


@st.composite
def mutilated(draw) -> bytes:
    model = whole_model()
    for _ in range(draw(st.integers(1, 2))):
        mutilate(draw, model)
    data = model.SerializeToString()
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def outcome(data: bytes) -> tuple[int, str]:
    """Exit code and standard error of a build of the model's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        argv = ["compiler", "build", str(path), "--passes", "split_heads", "--allow-noop", "-o",
                str(Path(folder) / "out")]  # fmt: skip
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            try:
                with mock.patch.object(sys, "argv", argv):
                    main()
            except SystemExit as end:
                return int(end.code or 0), err.getvalue()
    raise AssertionError("the program did not end")


def test_the_model_is_sound_before():
    code, err = outcome(whole_model().SerializeToString())
    assert (code, err) == (0, "")


@seed(4)
@settings(max_examples=100)
@given(mutilated())
def test_a_mutilated_model_gets_one_line(data):
    """What is still a model is built; anything else is refused. A proof never fails."""
    code, err = outcome(data)
    assert code in (0, 2), err
    if code == 2:
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
