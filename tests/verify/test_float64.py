"""The evaluator: what it promotes, loads, frees and refuses. The operators are in `kernels/`."""

import gc
import tracemalloc
import weakref
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from compiler.verify.float64 import UnsupportedInFloat64, evaluate

RNG = np.random.default_rng(0)


def parsed(text):
    """The nodes of `{ ... }`, and constants of no interest."""
    return onnx.parser.parse_graph(f"g () => () {text}").node


def run(text, outputs="y", constants=None, opset=20, **feeds):
    feeds = {name: np.asarray(value) for name, value in feeds.items()}
    values = evaluate(parsed(text), constants or {}, feeds, outputs.split(), {"": opset})
    return values.get(outputs, values)


class Lazy(Mapping):
    """Constants as from a file: counts every load, `in` included, and every array still alive."""

    def __init__(self, arrays):
        self.arrays, self.loads, self.alive = arrays, [], weakref.WeakSet()

    def __getitem__(self, name):
        self.loads.append(name)
        array = self.arrays[name].copy().view(Traced)
        array.flags.writeable = False
        self.alive.add(array)
        return array

    def __iter__(self):
        return iter(self.arrays)

    def __len__(self):
        return len(self.arrays)


class Traced(np.ndarray):
    """An array that can be referred to weakly and hashed."""

    __hash__ = object.__hash__


def test_a_chain_is_computed_in_float64():
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    w = RNG.standard_normal((4, 5)).astype(np.float32)
    y = run("{ h = MatMul(x, w) s = Sigmoid(h) y = Softmax(s) }", constants={"w": w}, x=x)
    s = 1 / (1 + np.exp(-(x.astype(np.float64) @ w.astype(np.float64))))
    wanted = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, wanted, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, np.float64])
def test_feeds_and_constants_of_every_float_type_are_promoted(dtype):
    x, c = np.array([1.5, 2.25], dtype), np.array([0.1, 3.0], dtype)
    values = run("{ y = Add(x, c) }", "y x c", {"c": c}, x=x)
    assert {v.dtype for v in values.values()} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(values["y"], x.astype(np.float64) + c.astype(np.float64))


def test_integers_and_booleans_stay():
    values = run("{ i = Identity(a) j = Not(b) }", "i j", a=np.int32([1]), b=[True])
    assert values["i"].dtype == np.int32
    assert values["j"].dtype == np.bool_


def test_a_cast_to_a_short_float_does_not_round():
    third = np.array([1 / 3])
    for to in (1, 10, 11, 16):  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
        np.testing.assert_array_equal(run(f"{{ y = Cast<to={to}>(x) }}", x=third), third)
    half = np.array([1], np.float16)
    np.testing.assert_array_equal(run("{ y = CastLike(x, h) }", x=third, h=half), third)


def test_casts_between_kinds():
    assert run("{ y = Cast<to=7>(x) }", x=[-1.7, 2.9]).tolist() == [-1, 2]
    assert run("{ y = Cast<to=9>(x) }", x=[0.0, 0.2]).tolist() == [False, True]
    assert run("{ y = Cast<to=1>(x) }", x=[1, 2]).dtype == np.float64
    assert run("{ y = CastLike(x, h) }", x=[1.5], h=np.int32([1])).dtype == np.int32


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{ y = Constant<value = float[2] {0.5, 0.1}>() }", np.float32([0.5, 0.1])),
        ("{ y = Constant<value_float = 0.1>() }", np.float32(0.1)),
        ("{ y = Constant<value_floats = [0.1, 0.2]>() }", np.float32([0.1, 0.2])),
        ("{ y = Constant<value_int = 3>() }", np.int64(3)),
        ("{ y = Constant<value_ints = [3, 4]>() }", np.int64([3, 4])),
        ("{ y = ConstantOfShape<value = float[1] {0.1}>(s) }", np.full((2, 3), np.float32(0.1))),
        ("{ y = ConstantOfShape(s) }", np.zeros((2, 3))),
        ("{ y = ConstantOfShape<value = int64[1] {7}>(s) }", np.full((2, 3), 7)),
        ("{ c = ConstantOfShape(s) y = EyeLike<k=1>(c) }", np.eye(2, 3, 1)),
    ],
)
def test_values_made_by_nodes_are_promoted(text, wanted):
    y = run(text, s=[2, 3])
    assert y.dtype == (np.int64 if wanted.dtype == np.int64 else np.float64)
    np.testing.assert_array_equal(y, wanted)


def test_dropout_is_the_identity_unless_it_trains():
    x = RNG.standard_normal(5)
    values = run("{ y, m = Dropout(x) }", "y m", x=x)
    np.testing.assert_array_equal(values["y"], x)
    assert values["m"].all()
    with pytest.raises(UnsupportedInFloat64, match="random"):
        run("{ y = Dropout(x, r, t) }", x=x, r=0.5, t=True)


def test_constants_are_looked_up_once_and_only_if_used():
    constants = Lazy({name: np.ones(3, np.float32) for name in "abcd"})
    y = run("{ h = Add(x, a) d2 = Mul(h, c) y = Mul(h, a) }", constants=constants, x=np.ones(3))
    assert y.tolist() == [2, 2, 2]
    assert constants.loads == ["a"]  # c feeds a node that no output needs


def test_loaded_constants_are_not_kept():
    constants = Lazy({name: np.ones(3, np.float64) for name in "ab"})
    alive = []

    def count(_):
        gc.collect()
        alive.append(len(constants.alive))

    nodes = parsed("{ h = Add(x, a) i = Relu(h) j = Add(i, b) y = Relu(j) }")
    evaluate(nodes, constants, {"x": np.ones(3)}, ["y"], {"": 20}, on_node=count)
    assert constants.loads == ["a", "b"]
    assert alive == [0, 0, 0, 0]


def test_tensors_are_freed_after_their_last_use():
    """Thirty tensors of 8 MB are made; at most the input and two results are alive at a time."""
    steps = " ".join(f"h{i} = Neg(h{i - 1})" for i in range(1, 30))
    nodes = parsed(f"{{ h0 = Neg(x) {steps} y = ReduceSum(h29) }}")
    x = np.ones(1 << 20)
    tracemalloc.start()
    try:
        evaluate(nodes, {}, {"x": x}, ["y"], {"": 20})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * x.nbytes


def test_promoted_constants_are_freed():
    steps = " ".join(f"h{i} = Add(h{i - 1}, c{i})" for i in range(1, 20))
    nodes = parsed(f"{{ h0 = Neg(x) {steps} y = ReduceSum(h19) }}")
    constants = {f"c{i}": np.ones(1 << 19, np.float32) for i in range(20)}
    tracemalloc.start()
    try:
        evaluate(nodes, constants, {"x": np.ones(1 << 19)}, ["y"], {"": 20})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4.5 * (8 << 19)


def test_an_output_that_is_used_again_survives():
    values = run("{ h = Neg(x) y = Neg(h) }", "h y", x=[1.0])
    assert (values["h"].item(), values["y"].item()) == (-1, 1)


def test_feeds_are_never_written_to():
    x = np.full((4, 4), 2.0)
    text = "{ a = Identity(x) b = Transpose(a) c = Gemm(a, b, b) d = Softmax(b) y = Relu(d) }"
    run(text, "c y", x=x)
    assert (x == 2).all()


def test_read_only_and_reversed_arrays():
    x = np.broadcast_to(np.float64([1.0, -2.0]), (3, 2))
    np.testing.assert_array_equal(run("{ y = Relu(x) }", x=x), np.maximum(x, 0))
    text = "{ r = Slice(x, s, e, a, t) y = Relu(r) }"
    feeds = {"s": [-1], "e": [-9], "a": [0], "t": [-1]}
    wanted = np.array([3.0, 2.0, 1.0])
    np.testing.assert_array_equal(run(text, x=np.array([1.0, 2.0, 3.0]), **feeds), wanted)


def test_feeds_win_over_constants():
    assert run("{ y = Neg(c) }", constants={"c": np.ones(1)}, c=[5.0]).tolist() == [-5]


def test_progress_is_reported_for_every_node():
    seen = []
    nodes = parsed("{ a = Neg(x) unused = Neg(x) y = Neg(a) }")
    evaluate(nodes, {}, {"x": np.ones(1)}, ["y"], {"": 20}, on_node=seen.append)
    assert seen == [0, 1, 2]


def test_missing_optional_inputs_and_outputs():
    values = run("{ , i = TopK(x, k) y = Clip(x, , h) }", "i y", x=[3.0, 1.0], k=[1], h=2.0)
    assert values["i"].tolist() == [0]
    assert values["y"].tolist() == [2, 1]


def test_a_tensor_that_nothing_gives():
    with pytest.raises(KeyError, match="nowhere"):
        run("{ y = Neg(nowhere) }")


@pytest.mark.parametrize(
    ("text", "opset", "op", "reason"),
    [
        ("{ y = com.microsoft.Gelu(x) }", 20, "Gelu", "domain com.microsoft"),
        ("{ y = GridSample(x, x) }", 20, "GridSample", "free of float32"),
        ("{ y = RandomNormalLike(x) }", 20, "RandomNormalLike", "free of float32"),
        ("{ y = QuantizeLinear(x, s) }", 20, "QuantizeLinear", "free of float32"),
        ("{ y = DequantizeLinear(i, s) }", 20, "DequantizeLinear", "free of float32"),
        ("{ y = Gelu(x) }", 19, "Gelu", "unknown in opset 19"),
        ("{ y = Nonsense(x) }", 20, "Nonsense", "unknown in opset 20"),
        ("{ y = Cast<to=17>(x) }", 20, "Cast", "FLOAT8E4M3FN is no plain number type"),
        ("{ y = Cast<to=8>(x) }", 20, "Cast", "STRING is no plain number type"),
        ('{ y = Constant<value_string = "a">() }', 20, "Constant", "value_string"),
        ("{ y = MaxPool<kernel_shape=[1]>(i) }", 20, "MaxPool", "free of float32"),
        ("{ y = Mod(x, x) }", 20, "Mod", "only defined for integers"),
        ("{ y = Identity(t) }", 20, "Identity", "neither a number nor a boolean"),
        ("{ y = If<then_branch = a () => (float z) { z = Neg(x) }, "
         "else_branch = b () => (float z) { z = Abs(x) }>(c) }", 20, "If", "free of float32"),
    ],
)  # fmt: skip
def test_refusals_name_the_operator_and_the_reason(text, opset, op, reason):
    feeds = {"x": [1.0], "s": 0.5, "i": np.uint8([[[1]]]), "t": ["text"], "c": True}
    with pytest.raises(UnsupportedInFloat64, match=reason) as caught:
        run(text, opset=opset, **feeds)
    assert caught.value.op == op


def test_float32_from_a_kernel_is_refused(monkeypatch):
    from compiler.verify.kernels import KERNELS

    monkeypatch.setitem(KERNELS, "Tanh", lambda call, inputs: [np.tanh(np.float32(inputs[0]))])
    with pytest.raises(UnsupportedInFloat64, match="returned float32"):
        run("{ y = Tanh(x) }", x=[0.3])
