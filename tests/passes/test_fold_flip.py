import re

import numpy as np
import pytest
from mutants import FLIP_FOLDED
from running import applied, error_in_float32, proofs, refusal

from compiler import mirroring
from compiler.building import build_stages
from compiler.graph import Graph, producer_of
from compiler.pipeline import parse_pipeline
from compiler.rewrite import apply_pass
from compiler.verify.proof import prove
from passes.flip_average import FlipAverage
from passes.fold_flip import FoldFlip

FOLD = FoldFlip()
REVERSED = "int64[4] r = {3, 2, 1, 0}"


def test_refuses_a_model_without_a_flip():
    text = """g (float[2,3,5,4] x) => (float[2,3,4,4] y)
    <int64[4] r = {3, 2, 1, 0}, int64[4] s = {3, 2, 0, 1}> {
        a = Gather <axis=3>(x, s) y = Gather <axis=2>(a, r)
    }"""
    assert refusal(text, FOLD) == "nothing to fold: no Gather or Slice reverses an axis"


def test_refuses_flipped_integers():
    text = f"""g (int64[2,3,5,4] x) => (int64[2,3,5,4] y) <{REVERSED}> {{
        a = Gather <axis=3>(x, r) y = Gather <axis=3>(a, r)
    }}"""
    assert refusal(text, FOLD) == "nothing to fold: no Gather or Slice reverses an axis"


@pytest.mark.parametrize(
    "flip",
    [
        pytest.param("Gather <axis=3>({}, r)", id="Gather"),
        pytest.param("Gather <axis=-1>({}, n)", id="Gather, counted from the end"),
        pytest.param("Slice({}, s, e, a, t)", id="Slice"),
    ],
)
def test_flips_of_every_spelling(flip, tmp_path):
    text = f"""g (float[2,3,5,4] x) => (float[2,6,5,4] y)
    <{REVERSED}, int64[4] n = {{-1, -2, -3, -4}}, int64[1] s = {{-1}}, int64[1] e = {{-9}},
     int64[1] a = {{3}}, int64[1] t = {{-1}}, float[6,3,3,3] w> {{
        f = {flip.format("x")} c = Conv <pads=[1, 1, 1, 1]>(f, w) y = {flip.format("c")}
    }}"""
    result = applied(text, FOLD)
    assert (result.ops, result.reasons) == (["Conv"], [])
    assert [proof.status for proof in proofs(result, FOLD)] == ["pass"]
    assert error_in_float32(result, FOLD, tmp_path) < 1e-5


def test_colours_in_reverse_order_go_into_the_convolution(tmp_path):
    text = """g (float[1,3,5,4] x) => (float[1,6,5,4] y)
    <int64[3] bgr = {2, 1, 0}, float[3,1,1] mean, float[6,3,1,1] w> {
        f = Gather <axis=1>(x, bgr) c = Sub(f, mean) y = Conv(c, w)
    }"""
    result = applied(text, FOLD)
    assert result.ops == ["Sub", "Conv"]
    assert [proof.status for proof in proofs(result, FOLD)] == ["pass"]
    assert error_in_float32(result, FOLD, tmp_path) < 1e-5


def test_one_flip_undone_twice_and_one_beside_it(tmp_path):
    text = f"""g (float[2,3,5,4] x) => (float[2,3,5,4] y, float[2,3,5,4] z, float[2,3,5,4] v)
    <{REVERSED}, float[4] k> {{
        f = Gather <axis=3>(x, r) a = Mul(f, k)
        y = Gather <axis=3>(a, r) b = Gather <axis=3>(a, r) z = Neg(b)
        v = Gather <axis=3>(f, r)
    }}"""
    result = applied(text, FOLD)
    assert sorted(result.ops) == ["Identity", "Identity", "Mul", "Neg"]
    assert [proof.status for proof in proofs(result, FOLD)] == ["pass"]
    assert error_in_float32(result, FOLD, tmp_path) < 1e-5


DEAD = {
    "nothing reads the flip": ("f = Gather <axis=3>(x, r) y = Abs(x)", None),
    "a reader of the flip": (
        "f = Gather <axis=3>(x, r) b = Abs(f) a = Neg(f) y = Gather <axis=3>(a, r)", "Neg"),
    "a reader of what is flipped": (
        "f = Gather <axis=3>(x, r) a = Neg(f) b = Abs(a) y = Gather <axis=3>(a, r)", "Neg"),
    "a reader that knows left from right": (
        "f = Gather <axis=3>(x, r) a = Neg(f) b = CumSum(a, three) y = Gather <axis=3>(a, r)",
        "Neg"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "op"), DEAD.values(), ids=DEAD)
def test_what_nothing_needs_does_not_count(body, op, tmp_path):
    """A build with --no-canonicalize still has dead code."""
    text = f"""g (float[2,3,5,4] x) => (float[2,3,5,4] y) <{REVERSED}, int64 three = {{3}}> {{
        {body}
    }}"""
    result = applied(text, FOLD)
    assert [proof.status for proof in proofs(result, FOLD)] == ([] if op is None else ["pass"])
    (y,) = result.graph.outputs
    last = producer_of(y)
    assert (last.op, last.inputs[0].name) == (op or "Abs", "x")
    assert apply_pass(result.graph, FOLD).rewrites == []
    assert error_in_float32(result, FOLD, tmp_path) < 1e-5


def test_of_a_flip_that_stays_only_the_first_is_told():
    """The one that would have undone it is not at fault."""
    text = f"""g (float[2,3,5,4] x) => (float[2,3,5,4] y) <{REVERSED}, int64 three = {{3}}> {{
        f = Gather <axis=3>(x, r) a = CumSum(f, three) b = Gather <axis=3>(a, r) y = Add(x, b)
    }}"""
    assert refusal(text, FOLD) == "CumSum 'CumSum_a' needs the flip: there is no rule for this op"


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floats(dtype):
    text = f"""g ({dtype}[2,3,5,4] x) => ({dtype}[2,6,5,4] y) <{REVERSED}, {dtype}[6,3,3,3] w> {{
        f = Gather <axis=3>(x, r) c = Conv <pads=[1, 1, 1, 1]>(f, w) y = Gather <axis=3>(c, r)
    }}"""
    result = applied(text, FOLD)
    assert [proof.status for proof in proofs(result, FOLD)] == ["pass"]
    assert {str(t.dtype) for t in result.graph.constants()} == {dtype.replace("double", "float64")}


def test_the_straight_network_is_left_alone():
    """Of the copy, only what is mirrored has weights of its own."""
    text = """g (float[1,3,4,6] x) => (float[1,4,6] y)
    <float[4,3,1,3] w, float[4,4,1,1] v, int64[1] one = {1}> {
        a = Conv <pads=[0, 1, 0, 1]>(x, w) b = Conv(a, v) y = ReduceSum <keepdims=0>(b, one)
    }"""
    result = applied(text, FlipAverage())
    before = [node for node in result.graph.nodes if "flip_average" not in node.name]
    apply_pass(result.graph, FOLD)
    assert all(any(node is kept for kept in result.graph.nodes) for node in before)
    assert "Gather" not in result.ops
    kernels = [node.inputs[1] for node in result.graph.nodes if node.op == "Conv"]
    assert len({id(kernel) for kernel in kernels}) == 3
    (mirrored,) = [k for k in kernels if "mirrored" in k.name]
    straight = next(k for k in kernels if k.name == "w")
    np.testing.assert_array_equal(mirrored.values, straight.values[..., ::-1])


# -- the proof ------------------------------------------------------------------------------------

NEARLY_SYMMETRIC = """g (float[1,3,8,8] x) => (float[1,1,8,8] y)
<int64[8] r = {7, 6, 5, 4, 3, 2, 1, 0}, float[1,16,16] pos, float[16,3,2,2] patch,
 float[16,16] q, float[16] scale, float[1,16,8,8] k, float[1,16,3,3] last, float[16,16,2,2] up,
 int64[3] rows = {1, 16, 16}, int64[4] grid = {1, 16, 4, 4}> {
    f = Gather <axis=3>(x, r)
    a = Conv <strides=[2, 2]>(f, patch) b = Reshape(a, rows) c = Transpose <perm=[0, 2, 1]>(b)
    d = Add(c, pos) e = MatMul(d, q) g = Softmax(e) h = Mul(g, scale) i = Add(d, h)
    j = Transpose <perm=[0, 2, 1]>(i) l = Reshape(j, grid)
    m = ConvTranspose <strides=[2, 2]>(l, up) n = Conv <pads=[1, 1, 1, 1]>(m, last)
    y = Gather <axis=3>(n, r)
}"""
ALONG = {"pos": (1, (1, 4, 4, 16), 2), "patch": (0, (16, 3, 2, 2), 3), "up": (0, (16, 16, 2, 2), 3),
         "last": (0, (1, 16, 3, 3), 3)}  # fmt: skip


@pytest.mark.parametrize("asymmetry", [1e-3, 1e-6])
@pytest.mark.parametrize("weight", ALONG)
def test_a_weight_that_is_almost_its_own_mirror_image(weight, asymmetry, monkeypatch):
    """Left as it is, it is wrong by little, and found."""
    _, shape, axis = ALONG[weight]
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(shape)
    values = noise + np.flip(noise, axis) + asymmetry * rng.standard_normal(shape)
    honest = mirroring._permuted

    def permuted(graph, builder, tensor, mirror):
        if tensor.name == weight:
            return tensor
        return honest(graph, builder, tensor, mirror)

    for planted in (False, True):
        if planted:
            monkeypatch.setattr(mirroring, "_permuted", permuted)
        result = folded_with(weight, values)
        statuses = [proof.status for proof in proofs(result, FOLD)]
        assert statuses == ["fail" if planted else "pass"]


def folded_with(weight: str, values: np.ndarray):
    """The model with one weight given; its LayerScale is as small as an untrained one's."""
    listed = {weight: values, "scale": np.full(16, 1e-5)}
    text = NEARLY_SYMMETRIC
    for name, given in listed.items():
        numbers = ", ".join(f"{v:.9g}" for v in given.reshape(-1))
        text = re.sub(rf"(float\[[\d,]+\] {name})(?=[,>])", rf"\1 = {{{numbers}}}", text)
    return applied(text, FOLD)


@pytest.mark.parametrize("mutant", FLIP_FOLDED, ids=[m.id.replace(" ", "_") for m in FLIP_FOLDED])
def test_faults_in_a_depth_model_are_found(depth_model, monkeypatch, mutant, one_thread):
    mutant.plant(monkeypatch)
    graph = Graph.load(depth_model)
    apply_pass(graph, FlipAverage())
    (rewrite,) = apply_pass(graph, FOLD).rewrites
    assert prove(rewrite, FOLD).status == "fail"


@pytest.mark.parametrize("passes", ["flip_average,fold_flip", "split_heads,flip_average,fold_flip"])
def test_a_depth_model_has_no_flip_left(depth_model, tmp_path, passes, one_thread):
    (*_, stage) = built(depth_model, tmp_path, passes)
    reversing = [
        node
        for node in stage.graph.nodes
        if node.op == "Gather" and stage.graph.ints(node.inputs[1])[:2] == [55, 54]
    ]
    assert (stage.report.rewrites, reversing) == (1, [])
    assert stage.report.float64["status"] == stage.report.float32["status"] == "pass"


def built(source, tmp_path, passes):
    folder = tmp_path / "build"
    folder.mkdir()
    return build_stages(source, parse_pipeline(passes), folder, failures=tmp_path / "failure")
