import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler import batching
from compiler.rewrite import PASS_KEY
from passes.flip_average import FlipAverage

HEAD = "g (float[1,3,6,8] x) => (float[1,4,5] y)"
MAP = f"{HEAD} <float[1,3,3,4] w> {{ a = Conv(x, w) b = Relu(a) y = Squeeze(b, one) }}"
MAP = MAP.replace("<float", "<int64[1] one = {1}, float")


@pytest.mark.parametrize("mode", ["copy", "batch"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "g (float[1,3,6,8] x, float[1,3,6,8] z) => (float[1,3,6,8] y) { y = Add(x, z) }",
            "'x' and 'z' are each a float N×C×H×W image: input=NAME says which",
            id="two images",
        ),
        pytest.param(
            "g (float[1,3,6,8] x) => (float[1,3,6,8] y, float[1,6,8,3] z) "
            "{ y = Abs(x) z = Transpose <perm=[0, 2, 3, 1]>(x) }",
            "'y' and 'z' are each a float map …×H×W: output=NAME says which",
            id="two maps",
        ),
        pytest.param(
            "g (int64[1,8] ids, int64[1,8] mask) => (float[1,8,4] y) <float[9,4] t> "
            "{ a = Mul(ids, mask) y = Gather(t, a) }",
            "no input is a float N×C×H×W image: 'ids' is int64[1×8], 'mask' is int64[1×8]",
            id="a text model",
        ),
        pytest.param(
            "g (float[1,3,6,8] x) => (float[1,3,6,8] y, int64 z) { y = Abs(x) z = Size(y) }",
            "Size 'Size_z' reads the output 'y', for another output",
            id="an output that comes from the map",
        ),
        pytest.param(
            "g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }",
            "the input is float[1×8], not a float N×C×H×W image",
            id="no image",
        ),
        pytest.param(
            "g (float[1,6,8,3] x) => (float[1,6,8,3] y) { y = Relu(x) }",
            "the input is float[1×6×8×3], not a float N×C×H×W image",
            id="channels last",
        ),
        pytest.param(
            "g (float[1,3,6,w] x) => (float[1,3,6,w] y) { y = Relu(x) }",
            "the input is float[1×3×6×w], not a float N×C×H×W image",
            id="dynamic",
        ),
        pytest.param(
            "g (float[1,3,6,8] x) => (float[1,3] y) {y = ReduceMean <axes=[2, 3], keepdims=0>(x)}",
            "the output is float[1×3], not a float map …×H×W",
            id="a label, not a map",
        ),
        pytest.param(
            "g (float[1,3,6,8] x) => (float[1,6,8] y) <float[1,6,8] k> { a = Abs(x) y = Abs(k) }",
            "'y' does not depend on 'x'",
            id="an output that is constant",
        ),
    ],
)
def test_refuses(text, reason, mode):
    assert refusal(text, FlipAverage(mode)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "g (float[1,3,6,8] x) => (float[1,3,6,8] y, int64 z) { y = Abs(x) z = Size(x) }",
            "mode=batch: ['z'] are outputs, too (mode=copy takes them)",
            id="another output",
        ),
        pytest.param(
            "g (float[1,3,6,8] x, float[1,3,1,1] p) => (float[1,3,6,8] y) "
            "{ a = Exp(p) y = Mul(x, a) }",
            "mode=batch: Exp 'Exp_a' reads other inputs only (mode=copy does)",
            id="a branch of another input",
        ),
    ],
)
def test_batch_refuses(text, reason):
    assert refusal(text, FlipAverage("batch", input="x", output="y")) == reason


def test_copy_refuses_bodies():
    text = """g (float[1,3,6,8] x) => (float[1,3,6,8] y) <bool c = {1}> {
        a = Relu(x)
        y = If (c) <then_branch = t () => (float[1,3,6,8] p) { p = Abs(a) },
                    else_branch = e () => (float[1,3,6,8] q) { q = Neg(a) }>
    }"""
    assert refusal(text, FlipAverage()) == "If 'If_y' has a body to copy"


def test_a_copy_shares_the_weights(tmp_path):
    result = applied(MAP, FlipAverage())
    assert sorted(result.ops) == sorted(2 * ["Conv", "Relu", "Squeeze", "Gather"] + ["Add", "Mul"])
    convs = [node for node in result.graph.nodes if node.op == "Conv"]
    assert convs[0].inputs[1] is convs[1].inputs[1]
    assert error_in_float32(result, FlipAverage(), tmp_path) < 1e-6


def test_a_batch_has_one_network(tmp_path):
    result = applied(MAP, FlipAverage("batch"))
    assert result.ops == [
        "Gather", "Concat", "Conv", "Relu", "Reshape", "Slice", "Slice", "Gather", "Add", "Mul",
    ]  # fmt: skip
    assert error_in_float32(result, FlipAverage("batch"), tmp_path) < 1e-6


@pytest.mark.parametrize("mode", ["copy", "batch"])
@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_is_proven_in_float64(mode, opset):
    squeeze = MAP if opset >= 13 else MAP.replace("Squeeze(b, one)", "Squeeze <axes=[1]>(b)")
    pass_ = FlipAverage(mode)
    (proof,) = proofs(applied(squeeze, pass_, opset), pass_)
    assert (proof.status, proof.error < 1e-13) == ("pass", True)


@pytest.mark.parametrize("mode", ["copy", "batch"])
def test_branches_that_do_not_see_the_image_are_shared(mode, tmp_path):
    """A mask that the model computes from constants, and a network that reads the image twice."""
    text = """g (float[1,3,6,8] x) => (float[1,3,6,8] y)
    <float[1,3,1,1] k, int64[4] s = {1, 3, 6, 8}> {
        mask = Expand(k, s)
        a = Sigmoid(x)
        b = Add(a, mask)
        y = Mul(b, x)
    }"""
    result = applied(text, FlipAverage(mode))
    assert result.ops.count("Expand") == 1
    assert [proof.status for proof in proofs(result, FlipAverage(mode))] == ["pass"]
    assert error_in_float32(result, FlipAverage(mode), tmp_path) < 1e-6


# -- several inputs and outputs -------------------------------------------------------------------

PROMPTED = """g (float[1,3] p, float[1,3,6,8] x, float[1,3,6,8] k) => (float[1,6,8] y, int64 n)
<int64[2] ax = {2, 3}, float[3,3] w> {
    q = Gemm(p, w) r = Sigmoid(q) s = Unsqueeze(r, ax)
    a = Mul(x, s) b = Add(a, k) c = Cos(k) d = Sub(b, c)
    y = ReduceMean <axes=[1], keepdims=0>(d) n = Size(x)
}"""
PLUGGED = FlipAverage(input="x", output="y")


def test_other_inputs_and_outputs_stay(tmp_path):
    result = applied(PROMPTED, PLUGGED)
    assert [t.name for t in result.graph.inputs] == ["p", "x", "k"]
    assert [t.name for t in result.graph.outputs] == ["y", "n"]
    assert result.ops.count("ReduceMean") == 2
    assert [proof.status for proof in proofs(result, PLUGGED)] == ["pass"]
    assert error_in_float32(result, PLUGGED, tmp_path) < 1e-6


def test_of_several_inputs_the_one_in_colour_is_the_image():
    """Keys and values of a cache have four dimensions, too."""
    text = (
        "g (float[1,2,6,8] keys, float[1,3,6,8] x) => (float[1,3,6,8] y) "
        "{ k = ReduceSum(keys) a = Abs(x) y = Add(a, k) }"
    )
    (rewrite,) = applied(text, FlipAverage()).done.rewrites
    assert [call.inputs["x"] for call in rewrite.calls] == ["x", "flip_average/Gather"]


def test_a_batch_shares_another_input(tmp_path):
    """Each image meets the same k; the batch is repeated where it has to be."""
    text = """g (float[1,3,6,8] x, float[1,3,6,8] k) => (float[1,6,8] y) {
        a = Mul(x, k) b = Sin(a) y = ReduceMean <axes=[1], keepdims=0>(b)
    }"""
    pass_ = FlipAverage("batch", input="x")
    result = applied(text, pass_)
    assert result.ops.count("Sin") == 1
    assert [proof.status for proof in proofs(result, pass_)] == ["pass"]
    assert error_in_float32(result, pass_, tmp_path) < 1e-6


def test_a_flip_of_the_wrong_input_is_found(tmp_path):
    """The oracle mirrors x, and the pass k."""
    result = applied(PROMPTED, FlipAverage(input="k"))
    assert [proof.status for proof in proofs(result, PLUGGED)] == ["fail"]


def test_a_branch_that_is_not_copied_is_found(monkeypatch):
    honest = batching.between
    monkeypatch.setattr(
        batching, "between", lambda graph, _, y: honest(graph, graph.inputs[1:2], y)
    )
    (proof,) = proofs(applied(PROMPTED, PLUGGED), PLUGGED)
    assert (proof.status, "the copy is not the network" in proof.detail) == ("fail", True)


@pytest.mark.parametrize("mode", ["copy", "batch"])
def test_a_second_run_is_refused(mode):
    graph = applied(MAP, FlipAverage(mode)).graph
    (match,) = FlipAverage(mode).match(graph)
    reason = FlipAverage(mode).guard(graph, match)
    assert reason == "the output already is a flip average ('flip_average/Gather')"


def test_every_new_node_says_where_it_comes_from():
    result = applied(MAP, FlipAverage())
    made = [node.metadata.get(PASS_KEY) for node in result.graph.nodes]
    assert made.count("flip_average") == 7


def test_the_oracle_on_a_network_that_is_not_symmetric():
    """f takes the left column: the average is of the left and the right one."""
    image = np.arange(6.0).reshape(1, 1, 2, 3)
    before = applied(MAP, FlipAverage()).before
    actual = FlipAverage().expected(
        lambda inputs: {"y": inputs["x"][..., :1]}, {"x": image}, before
    )["y"]
    np.testing.assert_array_equal(actual, [[[[1.0], [4.0]]]])
