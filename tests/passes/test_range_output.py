import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal, run

from passes.range_output import RangeOutput

TEXT = "g (float[2,3,6,7] x) => (float[2,6,7] y) { a = Relu(x) y = Gather <axis=1>(a, k) }"
TEXT = TEXT.replace("{ a", "<int64 k = {1}> { a", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "g (float[1,6,7] x) => (float[1,6,7] y, float[1,6,7] z) { y = Relu(x) z = Abs(x) }",
            "the model has 2 outputs: ['y', 'z']",
            id="two outputs",
        ),
        pytest.param(
            "g (float[1,6,7] x) => (int64[1,6,7] y) { y = Cast <to=7>(x) }",
            "the output is int64[1×6×7], not a float map for each image",
            id="integers",
        ),
        pytest.param(
            "g (float[7] x) => (float[7] y) { y = Relu(x) }",
            "the output is float[7], not a float map for each image",
            id="numbers without a map",
        ),
    ],
)
def test_refuses(text, reason):
    assert refusal(text, RangeOutput()) == reason


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_scales_each_image_to_0_1(opset, tmp_path):
    result = applied(TEXT, RangeOutput(), opset)
    assert sorted(result.ops) == sorted(
        ["Relu", "Gather", "ReduceMin", "ReduceMax", "Sub", "Max", "Sub", "Div"]
    )
    assert [(t.name, t.shape) for t in result.graph.outputs] == [("y", [2, 6, 7])]
    (proof,) = proofs(result, RangeOutput())
    assert (proof.status, proof.error < 1e-14) == ("pass", True)
    assert error_in_float32(result, RangeOutput(), tmp_path) < 1e-6
    feeds = {"x": np.random.default_rng(0).random((2, 3, 6, 7))}
    y = run(result.graph.to_model(), feeds)["y"]
    np.testing.assert_array_equal(y.min(axis=(1, 2)), [0, 0])
    np.testing.assert_array_equal(y.max(axis=(1, 2)), [1, 1])


@pytest.mark.parametrize("value", [0.0, 7.0, 1e30], ids=str)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_constant_map_becomes_zero(value, dtype):
    text = TEXT.replace("float[", f"{dtype}[")
    result = applied(text, RangeOutput())
    feeds = {"x": np.full((2, 3, 6, 7), min(value, 6e4 if dtype == "float16" else value))}
    y = run(result.graph.to_model(), feeds)["y"]
    np.testing.assert_array_equal(y, np.zeros((2, 6, 7)))
    values = RangeOutput().expected(lambda inputs: {"y": inputs["x"][:, 1]}, feeds, result.before)
    np.testing.assert_array_equal(values["y"], np.zeros((2, 6, 7)))


def test_an_image_of_unknown_size(tmp_path):
    text = "g (float[1,h,w] x) => (float[1,h,w] y) { y = Relu(x) }"
    result = applied(text, RangeOutput())
    y = run(result.graph.to_model(), {"x": np.arange(20.0).reshape(1, 4, 5)})["y"]
    np.testing.assert_allclose(y, np.linspace(0, 1, 20).reshape(1, 4, 5), rtol=1e-6)


def test_a_second_run_is_refused():
    graph = applied(TEXT, RangeOutput()).graph
    (match,) = RangeOutput().match(graph)
    reason = RangeOutput().guard(graph, match)
    assert reason == "the output already is scaled ('range_output/ReduceMin')"
