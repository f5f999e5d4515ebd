"""What a graph holds survives loading and saving; what is no graph gets one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from compiler.errors import UserError
from compiler.graph import (
    Graph,
    export_node,
    producer_of,
    sorted_nodes,
    static_shape,
)
from compiler.weights import WeightsFile


def saved(graph: Graph, folder: Path, name: str = "model") -> onnx.ModelProto:
    """Writes the graph as a stage; the checker has to accept it."""
    path = folder / f"{name}.onnx"
    graph.save(path, WeightsFile(folder / "weights.bin"))
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "source.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def values_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


# -- round trips -----------------------------------------------------------------------------------

EVERYTHING = """
g (float[2,8] x, float[2,8] unused) => (float[2,8] y, float[2,8] z)
<float[8,64] large, float[64,8] back, float[8] small, float scale = {0.5}, int64[2] shape = {2, 8}>
{
    a = MatMul(x, large)
    b = MatMul(a, back)
    c = Add(b, small)
    d = Mul(c, scale)
    e = Clip(d, , scale)
    y = Reshape(e, shape)
    z, mean, deviation = LayerNormalization<axis=-1, epsilon=0.001>(y, small)
}
"""


def test_everything_survives(model_of, tmp_path):
    source = model_of(EVERYTHING)
    graph = Graph.load(written(source, tmp_path))
    model = saved(graph, tmp_path)
    assert [n.SerializeToString() for n in model.graph.node] == [
        n.SerializeToString() for n in named(source).graph.node
    ]
    assert values_of(model).keys() == values_of(source).keys()
    for name, values in values_of(source).items():
        again = values_of(model)[name]
        assert (again.dtype, again.shape, again.tobytes()) == (
            values.dtype, values.shape, values.tobytes()
        )  # fmt: skip
    assert [i.name for i in model.graph.input] == ["x", "unused"]
    assert [o.name for o in model.graph.output] == ["y", "z"]
    assert model.opset_import == source.opset_import
    assert model.ir_version == source.ir_version


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    return model


def test_only_large_weights_are_outside(model_of, tmp_path):
    graph = Graph.load(written(model_of(EVERYTHING), tmp_path))
    graph.save(tmp_path / "model.onnx", WeightsFile(tmp_path / "weights.bin"))
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    outside = {t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert outside == {"large", "back"}


def test_names_of_nodes_are_unique_and_kept(model_of):
    model = model_of("g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    for node, name in zip(model.graph.node, ["same", "same", ""], strict=True):
        node.name = name
    assert [n.name for n in Graph(model, Path()).nodes] == ["same", "same_1", "Relu_y"]


def test_a_fresh_name_is_one_that_nothing_has(model_of):
    graph = Graph(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"), Path())
    assert [graph.fresh_name(n) for n in ("z", "z", "x", "Relu_y")] == [
        "z",
        "z_1",
        "x_1",
        "Relu_y_1",
    ]


def test_metadata_of_the_model_and_its_nodes(model_of, tmp_path):
    model = model_of(EVERYTHING)
    helper.set_model_props(model, {"licence": "CC-BY-NC-4.0", "author": "x"})
    model.graph.node[3].metadata_props.add(key="namespace", value="encoder.layer.3")
    again = saved(Graph.load(written(model, tmp_path)), tmp_path)
    assert {p.key: p.value for p in again.metadata_props} == {
        "licence": "CC-BY-NC-4.0", "author": "x",
    }  # fmt: skip
    metadata = [{p.key: p.value for p in node.metadata_props} for node in again.graph.node]
    assert metadata == [{}, {}, {}, {"namespace": "encoder.layer.3"}, {}, {}, {}]


def test_attributes_survive_as_they_are(tmp_path):
    """Empty lists have a type; graphsurgeon would lose it."""
    node = helper.make_node(
        "Custom", ["x"], ["y"], name="c", domain="custom", ints=[1, 2], text="t", floats=[0.5],
        scalar=2.5, tensor=numpy_helper.from_array(np.eye(2)), strings=["a", "b"],
    )  # fmt: skip
    for name, kind in (("no_ints", onnx.AttributeProto.INTS), ("none", onnx.AttributeProto.FLOATS)):
        node.attribute.add(name=name, type=kind)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [value], [out]), opset_imports=opsets)
    path = written(model, tmp_path)
    for graph in (Graph.load(path), Graph.load(path).copy()):
        assert export_node(graph.nodes[0]) == node
        assert graph.opsets == {"": 18, "custom": 1}
    assert saved(Graph.load(path), tmp_path).graph.node[0] == node


def test_a_changed_attribute_is_written(model_of):
    graph = Graph(model_of("g (float[2,3] x) => (y) { y = Softmax<axis=0>(x) }"), Path())
    graph.nodes[0].attrs["axis"] = 1
    assert export_node(graph.nodes[0]).attribute[0].i == 1


def test_scalars_stay_rank_0(model_of, tmp_path):
    graph = Graph.load(written(model_of(EVERYTHING), tmp_path))
    for again in (graph, graph.copy()):
        scale = again.ir.tensors()["scale"]
        assert again.values(scale).shape == ()
        assert static_shape(scale) == ()
        saved(again, tmp_path)
        assert again.values(again.ir.tensors()["scale"]).shape == ()


@pytest.mark.parametrize("count", [6, 600], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE", "INT4", "UINT4", "INT8", "BOOL",
                                  "FLOAT8E4M3FN", "INT32"])  # fmt: skip
def test_types_of_weights(kind, count, tmp_path):
    onnx_type = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(onnx_type)
    values = (np.arange(2 * count).reshape(2, count) % 7).astype(dtype)
    weight = numpy_helper.from_array(values, "w")
    assert weight.data_type == onnx_type
    node = helper.make_node("Identity", ["w"], ["y"], name="n")
    output = helper.make_tensor_value_info("y", onnx_type, [2, count])
    model = helper.make_model(helper.make_graph([node], "g", [], [output], [weight]),
                              opset_imports=[helper.make_opsetid("", 23)], ir_version=11,
                              )  # fmt: skip
    graph = Graph.load(written(model, tmp_path))
    for again in (graph, graph.copy()):
        np.testing.assert_array_equal(again.values(again.nodes[0].inputs[0]), values)
    first = saved(graph, tmp_path)
    np.testing.assert_array_equal(values_of(first)["w"], values)
    assert first.graph.initializer[0].data_type == onnx_type
    reloaded = Graph.load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(reloaded.values(reloaded.nodes[0].inputs[0]), values)
    second = tmp_path / "second"
    second.mkdir()
    np.testing.assert_array_equal(values_of(saved(reloaded, second))["w"], values)


def test_the_same_bytes_every_time(model_of, tmp_path):
    source = written(model_of(EVERYTHING), tmp_path)
    files = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        saved(Graph.load(source), folder)
        files.append([(p.name, p.read_bytes()) for p in sorted(folder.iterdir())])
    assert files[0] == files[1]
    third = tmp_path / "third"
    third.mkdir()
    saved(Graph.load(tmp_path / "first" / "model.onnx"), third)
    assert files[0] == [(p.name, p.read_bytes()) for p in sorted(third.iterdir())]


def test_stages_share_weights(model_of, tmp_path):
    """Saving twice adds nothing; only what is new is appended."""
    graph = Graph.load(written(model_of(EVERYTHING), tmp_path))
    weights = WeightsFile(tmp_path / "weights.bin")
    graph.save(tmp_path / "00.onnx", weights)
    nbytes = weights.path.stat().st_size
    graph.copy().save(tmp_path / "01.onnx", weights)
    assert weights.path.stat().st_size == nbytes
    assert (tmp_path / "00.onnx").read_bytes() == (tmp_path / "01.onnx").read_bytes()


def test_a_copy_is_independent(model_of):
    graph = Graph(model_of(EVERYTHING), Path())
    copy = graph.copy()
    copy.nodes[0].op = "Gemm"
    copy.nodes[1].inputs.clear()
    copy.metadata["new"] = "1"
    assert graph.nodes[0].op == "MatMul"
    assert len(graph.nodes[1].inputs) == 2
    assert graph.metadata == {}


# -- subgraphs -------------------------------------------------------------------------------------

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x, bool c) => (float[4] y)
<float[4] outside = {1, 2, 3, 4}>
{
    doubled = Add(x, x)
    y = If(c) <
        then_branch = t () => (float[4] a)
            <float[4] inside = {5, 6, 7, 8}> { b = Mul(doubled, outside) a = Add(b, inside) },
        else_branch = e () => (float[4] d)
            <float[4] inside = {9, 9, 9, 9}> { d = Sub(doubled, inside) }
    >
}
"""


def test_branches_and_what_they_capture(tmp_path):
    import onnxruntime

    source = parser.parse_model(BRANCHES)
    path = written(source, tmp_path)
    model = saved(Graph.load(path).copy(), tmp_path)
    assert model.graph.node[-1].attribute == source.graph.node[-1].attribute
    assert [t.name for t in model.graph.initializer] == ["outside"]
    x = np.array([1, -1, 2, 3], np.float32)
    for condition in (True, False):
        results = [
            onnxruntime.InferenceSession(str(p)).run(None, {"x": x, "c": np.array(condition)})[0]
            for p in (path, tmp_path / "model.onnx")
        ]
        np.testing.assert_array_equal(*results)


def test_a_captured_tensor_keeps_its_producer_first():
    graph = Graph(parser.parse_model(BRANCHES), Path())
    assert [n.op for n in sorted_nodes(graph.nodes[::-1])] == ["Add", "If"]


# -- order -----------------------------------------------------------------------------------------


def test_sorting_keeps_the_order_where_it_can(model_of):
    graph = Graph(
        model_of("g (float[2] x) => (y) { a = Relu(x) b = Exp(x) c = Add(a, b) y = Abs(c) }"),
        Path(),
    )
    order = [graph.nodes[k] for k in (3, 1, 2, 0)]
    assert [n.op for n in sorted_nodes(order)] == ["Exp", "Relu", "Add", "Abs"]
    assert [n.op for n in sorted_nodes(graph.nodes)] == ["Relu", "Exp", "Add", "Abs"]


def test_ten_thousand_nodes_in_a_row(model_of):
    """graphsurgeon's toposort recurses, and would overflow the stack."""
    body = " ".join(f"t{k + 1} = Relu(t{k})" for k in range(10_000))
    graph = Graph(model_of(f"g (float[1] t0) => (float[1] t10000) {{ {body} }}"), Path())
    graph.ir.nodes = graph.nodes[::-1]
    graph.sort()
    assert [n.outputs[0].name for n in graph.nodes] == [f"t{k + 1}" for k in range(10_000)]


# -- bad files -------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        Graph.load(path)
    (line,) = str(error.value).splitlines()
    return line


def test_files_that_are_no_models(model_of, tmp_path):
    good = model_of(EVERYTHING).SerializeToString()
    texts = {
        "garbage": b"\x93NUMPY\x01" * 40,
        "empty": b"",
        "text": b"hello\n" * 10,
        "cut": good[: len(good) // 2],
        "zeros": bytes(1000),
        "html": b"<html>404</html>",
    }
    for name, content in texts.items():
        path = tmp_path / name
        path.write_bytes(content)
        line = refused(path)
        assert str(path) in line, name
        assert "not an ONNX" in line, name
    assert refused(tmp_path / "absent.onnx").endswith("no such file")
    assert refused(tmp_path).endswith("is a folder, not an .onnx file")


@pytest.mark.parametrize("fraction", [0.2, 0.9, 0.99, 0.999])
def test_truncated_files(model_of, tmp_path, fraction):
    content = model_of(EVERYTHING).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(fraction * len(content))])
    assert "truncated" in refused(path) or "nothing" in refused(path)


BROKEN = {
    "cyclic": ("a = Add(x, b) b = Relu(a) y = Exp(b)", "reads 'b', which nothing before it"),
    "out of order": ("y = Relu(a) a = Exp(x)", "reads 'a', which nothing before it computes"),
    "missing tensor": ("y = Add(x, lost)", "reads 'lost', which nothing before it computes"),
    "doubled tensor": ("a = Relu(x) a = Exp(x) y = Abs(a)", "two places define the tensor 'a'"),
    "doubled in one node": ("y, y = Split<num_outputs=2>(x)", "two places define the tensor 'y'"),
    "input computed": ("x = Relu(x) y = Exp(x)", "two places define the tensor 'x'"),
    "output not computed": ("z = Relu(x)", "nothing computes the model's output 'y'"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_graphs(tmp_path, fault):
    body, words = BROKEN[fault]
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) {{ {body} }}'
    line = refused(written(parser.parse_model(text), tmp_path))
    assert words in line


def test_two_initializers_of_one_name(model_of, tmp_path):
    model = model_of(EVERYTHING)
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    assert "two places define the tensor" in refused(written(model, tmp_path))


def listed_weight(model_of, tmp_path, ir_version):
    """A graph whose file lists its weight among the inputs."""
    model = model_of("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "w"))
    model.ir_version = ir_version
    return Graph.load(written(model, tmp_path))


def test_an_initializer_that_has_to_be_an_input_is_a_constant(model_of, tmp_path):
    """Models before IR version 4 list their weights among the inputs."""
    graph = listed_weight(model_of, tmp_path, 3)
    assert [t.name for t in graph.inputs] == ["x"]
    np.testing.assert_array_equal(graph.values(graph.nodes[0].inputs[1]), [1, 2])
    again = saved(graph, tmp_path)
    assert values_of(again).keys() == {"w"}
    assert again.ir_version == 4
    onnx.checker.check_model(again, full_check=True)


@pytest.mark.parametrize("copied", [False, True])
def test_an_initializer_that_is_also_an_input_is_a_default(model_of, tmp_path, copied):
    graph = listed_weight(model_of, tmp_path, 4)
    graph = graph.copy() if copied else graph
    assert [t.name for t in graph.inputs] == ["x"]
    assert not graph.is_constant(graph.nodes[0].inputs[1])
    again = saved(graph, tmp_path)
    assert [value.name for value in again.graph.input] == ["x", "w"]
    np.testing.assert_array_equal(values_of(again)["w"], [1, 2])


def test_embedded_bytes_that_do_not_fit_the_shape(model_of, tmp_path):
    model = model_of(EVERYTHING)
    large = next(t for t in model.graph.initializer if t.name == "large")
    large.raw_data = large.raw_data[:-4]
    assert "'large'" in refused(written(model, tmp_path))


def test_an_output_that_is_constant(model_of, tmp_path):
    model = model_of(
        "g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Relu(x) }"
    )
    again = saved(Graph.load(written(model, tmp_path)), tmp_path)
    np.testing.assert_array_equal(values_of(again)["w"], [1, 2])


# -- cost ------------------------------------------------------------------------------------------

LOAD_AND_SAVE = """
import resource, sys, time
from pathlib import Path
from compiler.graph import Graph
from compiler.weights import WeightsFile
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
folder = Path(sys.argv[1])
graph = Graph.load(folder / "source.onnx")
copy = graph.copy()
part = copy.values(copy.nodes[0].inputs[1])[:2, 100:200]
assert part.sum() == 0
copy.save(folder / "saved.onnx", WeightsFile(folder / "weights.bin"))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, (after - before) / 1024)
"""


def test_weights_that_nobody_asks_for_stay_on_disk(model_of, tmp_path):
    """A model of 3 GB, in a sparse file: loaded, copied and saved in a moment."""
    rows = 3 * 2**30 // 4 // 1024
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1024, rows])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", 0), ("length", 4 * 1024 * rows)):
        weight.external_data.add(key=key, value=str(value))
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(4 * 1024 * rows)
    model = model_of(f"g (float[1,1024] x) => (float[1,{rows}] y) {{ y = MatMul(x, w) }}")
    model.graph.initializer.append(weight)
    written(model, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_SAVE, str(tmp_path)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 2
    assert megabytes < 60
    assert (tmp_path / "saved.onnx").stat().st_size < 1000


def test_constants_are_known(model_of):
    graph = Graph(
        model_of(
            """g (float[2] x) => (y) {
            a = Constant<value_ints=[3, 4]>() b = Constant<value_float=0.5>()
            c = Constant<value = float[2] {1, 2}>() d = Mul(c, b) y = Add(x, d) }"""
        ),
        Path(),
    )
    tensors = graph.ir.tensors()
    assert graph.ints(tensors["a"]) == [3, 4]
    assert (graph.values(tensors["b"]).dtype, graph.values(tensors["b"]).shape) == (np.float32, ())
    np.testing.assert_array_equal(graph.exact(tensors["c"]), [1.0, 2.0])
    assert graph.exact(tensors["c"]).dtype == np.float64
    assert graph.values(tensors["d"]) is None
    assert not graph.is_constant(tensors["x"])
    assert producer_of(tensors["x"]) is None


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
def test_a_sparse_weight_keeps_its_values(tmp_path, rows, as_node):
    """graphsurgeon reads packed ones as zeros, and drops those of Constant nodes."""
    where = np.array([[0, 1], [2, 3]] if rows else [1, 11], np.int64)
    values = numpy_helper.from_array(np.array([2.5, -1], np.float32), "w")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(where, "at"), [3, 4])
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[2,3] x) => (float[2,4] y) { y = MatMul(x, w) }""")
    if as_node:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=tensor))
    else:
        model.graph.sparse_initializer.append(tensor)
    result = saved(Graph.load(written(model, tmp_path)), tmp_path)
    evaluator = onnx.reference.ReferenceEvaluator(result)
    expected = np.zeros((3, 4), np.float32)
    expected[0, 1], expected[2, 3] = 2.5, -1
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    if not as_node:  # the reference evaluator does not take a Constant's sparse value
        np.testing.assert_array_equal(evaluator.run(None, {"x": x})[0], x @ expected)
    else:
        (attribute,) = result.graph.node[0].attribute
        np.testing.assert_array_equal(
            numpy_helper.to_array(attribute.sparse_tensor.values), np.float32([2.5, -1])
        )
