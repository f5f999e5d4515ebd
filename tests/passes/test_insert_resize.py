import numpy as np
import onnx
import pytest
from running import applied, error_in_float32, proofs, refusal

import compiler
from compiler.region import TensorType
from compiler.rewrite import Signature
from passes.insert_resize import InsertResize

RESIZE = InsertResize(height=9, width=10)


def model(body: str, head: str, constants: str = "int64[1] one = {1}") -> str:
    return f"{head} <{constants}> {{ {body} }}"


MAP = "y = ReduceMean <axes=[1], keepdims=0>(x)"
MAP_4D = "y = ReduceMean <axes=[1]>(x)"
HEAD = "g (float[1,3,6,7] x) => (float[1,6,7] y)"
HEAD_4D = "g (float[1,3,6,7] x) => (float[1,1,6,7] y)"


@pytest.mark.parametrize(
    ("text", "pass_", "opset", "reason"),
    [
        pytest.param(
            model(MAP, "g (float[1,3,9,10] x) => (float[1,9,10] y)"), RESIZE, 17,
            "the model already takes and returns 9×10",
            id="that size already",
        ),
        pytest.param(
            model("y = Add(x, z)", "g (float[1,3,6,7] x, float[1,3,6,7] z) => (float[1,3,6,7] y)"),
            RESIZE, 17,
            "'x' and 'z' are each a float N×C×H×W image: input=NAME says which",
            id="two images",
        ),
        pytest.param(
            model("y = Abs(x) z = Neg(x)",
                  "g (float[1,1,6,7] x) => (float[1,1,6,7] y, float[1,1,6,7] z)"),
            RESIZE, 17,
            "'y' and 'z' are each a float map …×H×W: output=NAME says which",
            id="two maps",
        ),
        pytest.param(
            model("y = Abs(x) z = Neg(x)",
                  "g (float[1,1,6,7] x) => (float[1,1,6,7] y, float[1,1,6,7] z)"),
            InsertResize(9, 10, output="m"), 17,
            "the model has no output 'm', but 'y', 'z'",
            id="no such output",
        ),
        pytest.param(
            model(MAP, HEAD), InsertResize(9, 10, input="image"), 17,
            "the model has no input 'image', but 'x'",
            id="no such input",
        ),
        pytest.param(
            model("y = Add(t, t)", "g (float[1,3,6,7] x, float[1,3,6] t) => (float[1,3,6] y)"),
            InsertResize(9, 10, input="t"), 17,
            "the input 't' is float[1×3×6], not a float N×C×H×W image",
            id="an input that is no image",
        ),
        pytest.param(
            model("e = Gather(table, ids) y = Mul(e, mask)",
                  "g (int64[1,8] ids, float[1,8,1] mask) => (float[1,8,4] y)", "float[9,4] table"),
            RESIZE, 17,
            "no input is a float N×C×H×W image: 'ids' is int64[1×8], 'mask' is float[1×8×1]",
            id="a text model",
        ),
        pytest.param(
            model("y = ReduceMean <axes=[2, 3], keepdims=0>(x) z = Size(x)",
                  "g (float[1,3,6,7] x) => (float[1,3] y, int64 z)"),
            RESIZE, 17,
            "no output is a float map …×H×W: 'y' is float[1×3], 'z' is int64[]",
            id="labels",
        ),
        pytest.param(
            model("y = Abs(x) z = ArgMax <axis=2>(y)",
                  "g (float[1,1,6,7] x) => (float[1,1,6,7] y, int64[1,1,1,7] z)"),
            RESIZE, 17,
            "ArgMax 'ArgMax_z' reads the output 'y', for another output",
            id="an output that comes from the map",
        ),
        pytest.param(
            model("y = Relu(x)", "g (float[1,6,7] x) => (float[1,6,7] y)"), RESIZE, 17,
            "the input is float[1×6×7], not a float N×C×H×W image",
            id="an input without channels",
        ),
        pytest.param(
            model("y = Relu(x)", "g (float[1,6,7,3] x) => (float[1,6,7,3] y)"), RESIZE, 17,
            "the input is float[1×6×7×3], not a float N×C×H×W image",
            id="channels last",
        ),
        pytest.param(
            model(MAP, "g (float[1,3,h,7] x) => (float[1,h,7] y)"), RESIZE, 17,
            "the input is float[1×3×h×7], not a float N×C×H×W image",
            id="dynamic",
        ),
        pytest.param(
            model("a = Cast <to=1>(x) y = Relu(a)", "g (uint8[1,1,6,7] x) => (float[1,1,6,7] y)"),
            RESIZE, 17,
            "the input is uint8[1×1×6×7], not a float N×C×H×W image",
            id="bytes",
        ),
        pytest.param(
            model("y = Relu(x)", "g (float[1,3,6,7] x) => (float[1,3,6,7] y)"), RESIZE, 17,
            "the output is float[1×3×6×7], not N×H×W or N×1×H×W",
            id="an output with channels",
        ),
        pytest.param(
            model(MAP, HEAD), RESIZE, 10,
            "opset 10 has no Resize with align_corners (11 and later do)",
            id="an old opset",
        ),
        pytest.param(
            model(MAP, HEAD), InsertResize(height=0, width=4), 17,
            "height=0:width=4 is not a size",
            id="no pixels",
        ),
    ],
)  # fmt: skip
def test_refuses(text, pass_, opset, reason):
    assert refusal(text, pass_, opset) == reason


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize(
    ("text", "between"),
    [
        pytest.param(model(MAP, HEAD), ["ReduceMean", "Reshape"], id="map of rank 3"),
        pytest.param(model(MAP_4D, HEAD_4D), ["ReduceMean"], id="map of rank 4"),
    ],
)
def test_resizes_before_and_after(text, between, opset, tmp_path):
    result = applied(text, RESIZE, opset)
    assert result.ops == ["Resize", *between, "Resize"]
    assert [(t.name, t.shape) for t in result.graph.inputs] == [("x", [1, 3, 9, 10])]
    assert [(t.name, t.shape) for t in result.graph.outputs] == [("y", [1, 1, 9, 10])]
    # Float32 sample positions are off by up to 2⁻²⁴ of the image's size, values by as much.
    assert error_in_float32(result, RESIZE, tmp_path) < 5e-6


@pytest.mark.parametrize(
    "size", [(9, 10), (3, 2), (1, 1), (6, 5), (13, 21)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_is_proven_in_float64(size, tmp_path):
    pass_ = InsertResize(*size)
    result = applied(model(MAP, HEAD), pass_)
    (proof,) = proofs(result, pass_)
    assert (proof.status in ("pass", "UNVERIFIED"), proof.error < 1e-12) == (True, True)
    assert error_in_float32(result, pass_, tmp_path) < 5e-6


# -- several inputs and outputs -------------------------------------------------------------------

PROMPTED = model(
    "a = Add(x, k) b = Mul(a, p) y = ReduceMean <axes=[1]>(b) n = Size(x) s = Neg(p)",
    "g (float[3,1,1] p, float[1,3,6,7] x, float[1] k) => "
    "(int64 n, float[1,1,6,7] y, float[3,1,1] s)",
)


@pytest.mark.parametrize("output", ["", "y"])
def test_other_inputs_and_outputs_stay(output, tmp_path):
    pass_ = InsertResize(9, 10, output=output)
    text = (
        PROMPTED
        if output
        else PROMPTED.replace("float[3,1,1] s", "float[1] s").replace("s = Neg(p)", "s = Neg(k)")
    )
    result = applied(text, pass_)
    assert [(t.name, tuple(t.shape)) for t in result.graph.inputs] == [
        ("p", (3, 1, 1)), ("x", (1, 3, 9, 10)), ("k", (1,)),
    ]  # fmt: skip
    assert [t.name for t in result.graph.outputs] == ["n", "y", "s"]
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error < 1e-12) == ("pass", True)
    assert error_in_float32(result, pass_, tmp_path) < 5e-6
    (match,) = pass_.match(result.graph)
    assert pass_.guard(result.graph, match) == "the model already takes and returns 9×10"


def test_a_resize_of_the_wrong_input_is_found():
    """The oracle resizes what the pass should have resized."""
    text = model("y = Add(x, z)", "g (float[1,1,6,7] x, float[1,1,6,7] z) => (float[1,1,6,7] y)")
    result = applied(text, InsertResize(6, 5, input="x"))
    said = {name: proofs(result, InsertResize(6, 5, input=name))[0].status for name in "xz"}
    assert said == {"x": "pass", "z": "fail"}


def test_such_a_model_is_built_and_verified_whole(tmp_path):
    """Two images, one with channels last, and an output beside the map."""
    text = """g (float[1,3,6,7] x, float[1,6,7,3] z) => (float[1,6,7] y, float[1,3] mean)
    <float[3,1,1] m = {123.675, 116.28, 103.53}, float[3] n = {10, -20, 30}, int64[2] s = {2, 3},
     float[3,3,1,1] w = {1, 2, 0, -1, 0.5, 1, 2, 0, -3}, float d = {58}> {
        a = Sub(x, m) b = Div(a, d)
        e = Mul(z, n) f = Transpose <perm=[0, 3, 1, 2]>(e)
        g = Conv(b, w) h = Mul(g, f) i = Tanh(h)
        y = ReduceMean <axes=[1], keepdims=0>(i) mean = ReduceMean <axes=[2, 3], keepdims=0>(g)
    }"""
    source = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    onnx.save(source, tmp_path / "model.onnx")
    passes = "insert_resize:height=9:width=10:input=x,fold_norm,flip_average:input=x"
    record = compiler.build(
        str(tmp_path / "model.onnx"), passes, output=tmp_path / "out", verify="full"
    )
    stages = record["stages"][2:]
    assert [stage["rewrites"] for stage in stages] == [1, 2, 1]
    for rung in ("float64", "float32", "whole_float64"):
        assert [stage[rung]["status"] for stage in stages] == ["pass"] * 3
    assert record["inputs"] == {"x": "float[1×3×9×10]", "z": "float[1×6×7×3]"}
    assert record["outputs"] == {"y": "float[1×1×9×10]", "mean": "float[1×3]"}


def test_a_second_run_is_refused():
    graph = applied(model(MAP, HEAD), RESIZE).graph
    (match,) = RESIZE.match(graph)
    assert RESIZE.guard(graph, match) == "the model already takes and returns 9×10"


# -- the oracle -----------------------------------------------------------------------------------


def expected(image: np.ndarray, inner: tuple[int, int], outer: tuple[int, int]) -> np.ndarray:
    """What the pass says it computes when the network is the identity."""
    before = Signature({"x": TensorType(1, (1, 1, *inner))}, {"y": TensorType(1, (1, 1, *inner))})
    pass_ = InsertResize(*outer)
    return pass_.expected(lambda inputs: {"y": inputs["x"]}, {"x": image}, before)["y"]


def test_the_oracle_by_hand():
    image = np.array([[0.0, 4.0], [8.0, 12.0]]).reshape(1, 1, 2, 2)
    three = [[0.0, 2.0, 4.0], [4.0, 6.0, 8.0], [8.0, 10.0, 12.0]]
    np.testing.assert_array_equal(expected(image, (3, 3), (3, 3))[0, 0], three)


def test_the_oracle_keeps_a_plane():
    """Bilinear interpolation with aligned corners is exact on an affine function."""
    rows, columns = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 7), indexing="ij")
    fine_rows, fine_columns = np.meshgrid(
        np.linspace(0, 1, 11), np.linspace(0, 1, 4), indexing="ij"
    )
    plane = (2 * rows - 3 * columns + 1).reshape(1, 1, 5, 7)
    actual = expected(plane, (11, 4), (11, 4))[0, 0]
    np.testing.assert_allclose(actual, 2 * fine_rows - 3 * fine_columns + 1, rtol=0, atol=1e-14)


def test_the_oracle_takes_the_first_sample_for_a_single_one():
    image = np.arange(6.0).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(expected(image, (1, 1), (1, 1))[0, 0], [[0.0]])
