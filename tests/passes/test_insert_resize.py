import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

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
            "the model maps ['x', 'z'] to ['y'], not one image to one map",
            id="two inputs",
        ),
        pytest.param(
            model("y = Abs(x) z = Size(x)", "g (float[1,1,6,7] x) => (float[1,1,6,7] y, int64 z)"),
            RESIZE, 17,
            "the model maps ['x'] to ['y', 'z'], not one image to one map",
            id="two outputs",
        ),
        pytest.param(
            model("y = Relu(x)", "g (float[1,6,7] x) => (float[1,6,7] y)"), RESIZE, 17,
            "the input is float[1×6×7], not a float N×C×H×W image",
            id="an input without channels",
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
