"""Calibration, and which numbers of bits go where."""

import numpy as np
import pytest
from onnx import numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from running import run

from compiler.errors import UserError
from compiler.quantize import qdq
from compiler.quantize.approximating import FLOAT
from compiler.quantize.qdq import calibrate, fused, quantized

TEXT = """g (float[1,3,6,8] x) => (float[1,4,6,8] y)
<float[5,3,1,1] w, float[5] b, float[4,5,1,1] v>
{ a = Conv(x, w, b) r = Tanh(a) y = Conv(r, v) }"""


@pytest.fixture
def model(model_of):
    from compiler.graph import infer_shapes

    found = infer_shapes(model_of(TEXT, 17))
    for position, node in enumerate(found.graph.node):
        node.name = f"n{position}"
    return found


def feeds(seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((1, 3, 6, 8)).astype(np.float32)}


def test_ranges_are_the_extremes_over_all_inputs(model):
    ranges = calibrate(model, [feeds(0), feeds(1)])
    assert set(ranges) == {"x", "a", "r", "y"}
    both = [run(model, feeds(seed))["y"] for seed in (0, 1)]
    assert ranges["y"] == (min(y.min() for y in both), max(y.max() for y in both))


def test_what_is_not_finite_is_refused(model):
    with pytest.raises(UserError, match="'x' has no finite range on the images"):
        calibrate(model, [{"x": np.full((1, 3, 6, 8), np.inf, np.float32)}])


def types(model):
    """What computes a tensor from whole numbers, and of which type those are."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        node.output[0]: constants[node.input[2]].dtype.name
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize(("bits", "name"), [(8, "uint8"), (16, "uint16")])
def test_activations_have_the_bits_and_weights_have_eight(model, bits, name):
    result = quantized(model, calibrate(model, [feeds(0)]), bits, {})
    assert set(types(result).values()) == {name}
    weights = {t.name: t.data_type for t in result.graph.initializer}
    assert weights["w_quantized"] == weights["v_quantized"] == 2  # UINT8
    assert weights["b_quantized"] == 6  # INT32


def test_a_node_of_other_bits_reads_and_makes_conversions(model):
    ranges = calibrate(model, [feeds(0)])
    result = quantized(model, ranges, 16, {"n1": 8})
    kinds = types(result)
    assert sorted(kinds.values()) == ["uint16"] * 4 + ["uint8"] * 2
    (tanh,) = [node for node in result.graph.node if node.op_type == "Tanh"]
    producers = {node.output[0]: node for node in result.graph.node}
    source = producers[producers[tanh.input[0]].input[0]]
    assert (source.op_type, kinds[source.output[0]]) == ("QuantizeLinear", "uint8")


@pytest.mark.parametrize("others", [{}, {"n1": 8}, {"n0": 8, "n2": FLOAT}])
def test_indices_change_no_byte(model, others, monkeypatch):
    ranges = calibrate(model, [feeds(0)])
    indexed = quantized(model, ranges, 16, others)
    monkeypatch.setattr(qdq, "IndexedModel", lambda model: ONNXModel(model))
    assert indexed == quantized(model, ranges, 16, others)


def test_a_node_left_in_float_keeps_its_weights(model):
    result = quantized(model, calibrate(model, [feeds(0)]), 8, {"n2": FLOAT})
    (last,) = [node for node in result.graph.node if node.name == "n2"]
    assert last.input[1] == "v"


@pytest.mark.parametrize(("bits", "most"), [(8, 0.05), (16, 0.02)])
def test_the_numbers_are_those_of_the_model_up_to_the_bits(model, bits, most):
    """The weights' 8 bits are what is left at 16."""
    ranges = calibrate(model, [feeds(0)])
    actual = run(quantized(model, ranges, bits, {}), feeds(0))["y"]
    expected = run(model, feeds(0))["y"]
    assert 0 < np.abs(actual - expected).max() / np.ptp(expected) < most


GELU = """g (float[2,3] x) => (float[2,3] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}>
{ a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half) }"""


def test_erf_patterns_become_gelu(model_of):
    model = model_of(GELU, 17)
    x = {"x": np.linspace(-4, 4, 6, dtype=np.float32).reshape(2, 3)}
    expected = run(model, x)["y"]
    result = fused(model)
    assert [node.op_type for node in result.graph.node] == ["Gelu"]
    np.testing.assert_allclose(run(result, x)["y"], expected, rtol=1e-5, atol=1e-6)
