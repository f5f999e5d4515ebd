"""The ladder of checks, and `verify A B`: what is wrong fails, what can't be shown says so."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import mutants
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compiler import verify
from compiler.building import build_stages
from compiler.compare import compare_models
from compiler.errors import UserError, VerificationError
from compiler.graph import Graph, producer_of
from compiler.pipeline import parse_pipeline
from compiler.region import TensorType
from compiler.rewrite import Builder, LocalPass, Replacement, Signature, apply_pass
from compiler.verify.proof import BOUNDS, Proof, judge, prove
from compiler.verify.structure import structure_faults
from compiler.verify.whole import accepted_sizes, with_shapes
from passes.canonicalize import Canonicalize
from passes.fold_norm import FoldNorm
from passes.split_heads import SplitHeads

IMAGE = "g (float[1,3,6,8] x) => (float[1,3,6,8] y) <float[3,1,1] mean, float[3,1,1] std>"
NORM = f"{IMAGE} {{ a = Sub(x, mean) b = Div(a, std) y = Tanh(b) }}"
PLAIN = NORM.replace("Tanh", "Abs")


@pytest.fixture
def build(tmp_path):
    """Builds a file, or a model, into an empty folder; returns the stages."""

    def run(model, passes, mode="each"):
        path = tmp_path / "source.onnx"
        if isinstance(model, Path):
            path = model
        else:
            onnx.save(model, path)
        folder = tmp_path / "build"
        folder.mkdir()
        pipeline = parse_pipeline(passes) if isinstance(passes, str) else passes
        return build_stages(path, pipeline, folder, verify=mode, failures=tmp_path / "failure")

    return run


def planted(name: str, monkeypatch) -> str:
    """Plants a fault; returns the pipeline that has it."""
    (mutant,) = [m for m in [*mutants.WRONG, *mutants.EQUIVALENT] if m.id == name]
    mutant.plant(monkeypatch)
    return mutant.passes


# -- verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(0.0, "pass"), (0.9e-10, "pass"), (1.1e-10, "fail"), (1.0, "fail"), (math.nan, "fail")],
)
def test_the_verdict_is_by_the_bound(error, status):
    expected = np.array([1.0, -1.0, 1.0, -1.0])
    assert judge({"y": expected * (1 + error)}, {"y": expected}, 1e-10).status == status


def test_the_worst_output_decides_and_is_named():
    good, bad = np.arange(4.0), np.array([0.0, 1.0, 2.0, 4.0])
    proof = judge({"a": good, "b": bad}, {"a": good, "b": good}, 1e-10)
    assert proof.status == "fail"
    assert "'b'" in proof.detail


def test_agreement_on_constants_shows_nothing():
    constant = np.full(5, 3.0)
    assert judge({"y": constant}, {"y": constant}, 1e-10).status == "UNVERIFIED"
    assert judge({"y": constant + 1e-15}, {"y": constant}, 1e-10).status == "fail"
    varied = np.arange(5.0)
    proof = judge({"y": constant, "z": varied}, {"y": constant, "z": varied}, 1e-10)
    assert (proof.status, "'y' is constant" in proof.detail) == ("UNVERIFIED", True)
    assert judge({"y": constant}, {"y": constant}, 1e-10, settled={"y"}).status == "pass"


@pytest.mark.parametrize(
    ("actual", "status"),
    [([1.0, math.nan, 3.0], "pass"), ([1.0, 2.0, 3.0], "fail"), ([1.0, math.nan, math.nan], "fail"),
     ([1.0, math.inf, 3.0], "fail")],
    ids=["same places", "a number for a NaN", "one NaN more", "infinite"],
)  # fmt: skip
def test_nans_must_be_in_the_same_places(actual, status):
    expected = np.array([1.0, math.nan, 3.0])
    assert judge({"y": np.array(actual)}, {"y": expected}, 1e-10).status == status


# -- rewrites --------------------------------------------------------------------------------------


def test_a_rewrite_is_proven_to_the_bound_of_its_contract(graph_of):
    graph = graph_of(NORM)
    (rewrite,) = apply_pass(graph, FoldNorm()).rewrites
    proof = prove(rewrite, FoldNorm())
    assert proof.status == "pass"
    assert proof.error <= proof.bound == BOUNDS["algebraic"]


def test_the_inputs_of_a_proof_follow_the_seed(graph_of):
    graph = graph_of(NORM)
    (rewrite,) = apply_pass(graph, FoldNorm()).rewrites
    errors = {prove(rewrite, FoldNorm(), seed).error for seed in (0, 0, 1, 2)}
    assert 1 < len(errors) <= 3


def test_data_movement_must_agree_in_every_bit(graph_of):
    class Identity(LocalPass):
        contract = "exact"

        def match(self, graph):
            yield next(node for node in graph.nodes if node.op == "Transpose")

        def guard(self, graph, match):
            return None

        def rewrite(self, graph, match):
            builder = Builder(graph, "moved")
            shape = tuple(match.outputs[0].shape)
            return Replacement(
                builder, [(match.outputs[0], builder.node("Transpose", [match.inputs[0]], shape))]
            )

    graph = graph_of("g (float[2,3] x) => (float[3,2] y) { y = Transpose(x) }")
    graph.nodes[0].place = "y"
    (rewrite,) = apply_pass(graph, Identity()).rewrites
    assert prove(rewrite, Identity()) == Proof("pass", 0.0, 0.0)


@pytest.mark.parametrize("mode", ["each", "final", "full"])
def test_a_model_with_an_op_without_float64_is_unverified_as_a_whole(model_of, build, mode):
    model = model_of(NORM.replace("Tanh(b)", "LpPool <kernel_shape = [1, 1]> (b)"))
    *_, stage = build(model, "fold_norm", mode)
    assert stage.report.float64["status"] == "pass", "the rewrite itself is proven"
    assert stage.report.float32["status"] == "UNVERIFIED"
    assert mode != "full" or stage.report.whole_float64["status"] == "UNVERIFIED"


def test_a_rewrite_with_an_op_without_float64_is_unverified(model_of, build):
    model = model_of(NORM.replace("y = Tanh(b)", "c = Identity(b) y = Hardmax(c)"))
    *_, stage = build(model, "canonicalize")
    assert stage.report.float64["status"] == "UNVERIFIED"
    assert "Hardmax" in stage.report.float64["detail"]


# ONNX interpolates an axis whose scale is 1.1, onnxruntime copies one that keeps its length.
OTHERWISE = """g (float[1,3,8,7] x) => (float[1,3,8,7] y) <float[4] s = {1, 1, 1, 1.1}>
{ i = Identity(x) r = Resize <mode = "linear"> (i, , s) y = Relu(r) }"""


def test_a_source_that_its_runtime_computes_otherwise_verifies_nothing(model_of, build):
    *_, stage = build(model_of(OTHERWISE, 17), "canonicalize")
    assert stage.report.float32["status"] == "UNVERIFIED"
    assert "off its own float64: nothing else would show" in stage.report.float32["detail"]


def test_models_that_their_runtime_computes_otherwise_are_compared_in_float64_alone(pair):
    comparison = compare_models(*pair(text=OTHERWISE))
    assert (comparison.float64.status, comparison.float32.status) == ("pass", "UNVERIFIED")
    assert comparison.is_equal


def test_a_constant_model_is_unverified(model_of, build):
    model = model_of(
        f"{IMAGE} <float zero = {{0}}> ".replace("> <", ", ")
        + "{ a = Sub(x, mean) b = Div(a, std) c = Mul(b, zero) y = Relu(c) }"
    )
    stages = build(model, "fold_norm")
    assert stages[-1].report.float32["status"] == "UNVERIFIED"
    assert "constant" in stages[-1].report.float32["detail"]


# -- what is beside the rewrites -------------------------------------------------------------------


class Restless(FoldNorm):
    """A pass whose result it rewrites again."""

    name = "fold_norm"

    def match(self, graph):
        norms = [node for node in graph.nodes if node.op == "BatchNormalization"]
        return [Again(node) for node in norms] or super().match(graph)

    def guard(self, graph, match):
        return None if isinstance(match, Again) else super().guard(graph, match)

    def rewrite(self, graph, match):
        if not isinstance(match, Again):
            return super().rewrite(graph, match)
        builder = Builder(graph, "again")
        twin = builder.copy(match.node, list(match.node.inputs))
        return Replacement(builder, [(match.node.outputs[0], twin.outputs[0])])


class Again:
    def __init__(self, node):
        self.node = node
        self.place = node.outputs[0].name


def test_a_pass_that_does_not_settle_is_rejected(model_of, build):
    with pytest.raises(VerificationError, match="a second run of fold_norm rewrites"):
        build(model_of(NORM), [Restless()])


def test_a_changed_signature_needs_a_declared_pass(model_of, build):
    class Wider(FoldNorm):
        name = "fold_norm"

        def rewrite(self, graph, match):
            proposal = super().rewrite(graph, match)
            graph.inputs[0].shape = [1, 3, 12, 8]
            return proposal

    with pytest.raises(VerificationError):
        build(model_of(NORM), [Wider()])


def test_a_stage_that_is_no_valid_model_names_the_rewrite(depth_model, build, monkeypatch):
    passes = planted("head left out", monkeypatch)
    with pytest.raises(VerificationError, match=r"split_heads#1 at \S+ is malformed"):
        build(depth_model, passes)


# -- whole models ----------------------------------------------------------------------------------


@pytest.fixture
def blind(monkeypatch):
    """Rung 2 is switched off."""
    monkeypatch.setattr(verify, "prove", lambda *_, **__: Proof("pass", 0.0, 1.0))


@pytest.mark.usefixtures("blind")
def test_the_whole_float32_model_shows_a_large_fault(depth_model, build, monkeypatch):
    passes = planted("q and k swapped", monkeypatch)
    with pytest.raises(VerificationError, match="the whole model in float32 differs"):
        build(depth_model, passes)


@pytest.mark.usefixtures("blind")
def test_the_whole_float64_model_shows_a_small_fault(depth_model, build, monkeypatch):
    """One weight element by 1 %: too little for float32, and enough for rung 4."""
    passes = planted("one weight element x1.01", monkeypatch)
    with pytest.raises(VerificationError, match=r"the whole model in float(32|64) differs"):
        build(depth_model, passes, "full")


@pytest.mark.parametrize("mode", ["each", "final", "full"])
def test_declared_passes_pass_whole(depth_model, build, mode):
    resize = "insert_resize:height=64:width=72"
    stages = build(depth_model, f"{resize},fold_norm,flip_average,range_output", mode)
    last = stages[-1].report
    assert last.float64["status"] == last.float32["status"] == "pass"
    assert mode != "full" or last.whole_float64["status"] == "pass"


# -- reproducers -----------------------------------------------------------------------------------


def test_a_reproducer_holds_both_regions_and_shows_the_difference(
    depth_model, build, monkeypatch, tmp_path
):
    with pytest.raises(VerificationError) as failure:
        build(depth_model, planted("scale x1.01", monkeypatch))
    folder = failure.value.reproducer
    assert folder == tmp_path / "failure"
    record = json.loads((folder / "failure.json").read_text())
    assert record["rewrite"].startswith("split_heads#1 at ")
    replayed = compare_models(
        folder / "old.onnx", folder / "new.onnx", inputs=folder / "inputs.npz",
        bound=record["bound"],
    )  # fmt: skip
    assert replayed.float64.status == "fail"
    assert replayed.float64.error == pytest.approx(record["error"], rel=1e-6)
    old, new = (onnx.load(folder / name) for name in ("old.onnx", "new.onnx"))
    assert [o.name for o in old.graph.output] == [o.name for o in new.graph.output]
    assert len(old.graph.node) < 30, "one attention, not the network"


def test_a_declared_rewrite_leaves_its_region(depth_model, build, monkeypatch):
    with pytest.raises(VerificationError) as failure:
        build(depth_model, planted("half missing, copy", monkeypatch))
    folder = failure.value.reproducer
    onnx.checker.check_model(onnx.load(folder / "new.onnx"))
    record = json.loads((folder / "failure.json").read_text())
    assert (record["pass"], record["seed"]) == ("flip_average", 0)


# -- verify A B ------------------------------------------------------------------------------------


@pytest.fixture
def pair(model_of, tmp_path):
    """Two files: NORM, and NORM after a change."""

    def write(change=lambda model: None, text=NORM, other=None):
        paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
        models = [model_of(text), model_of(other or text)]
        change(models[1])
        for path, model in zip(paths, models, strict=True):
            onnx.save(model, path)
        return paths

    return write


def scaled(name: str, factor: float):
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[0] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def test_a_model_equals_itself(pair):
    comparison = compare_models(*pair())
    assert comparison.is_equal
    assert (comparison.float64.error, comparison.float32.error) == (0.0, 0.0)


def test_a_folded_model_equals_its_source_up_to_rounding(depth_model, build, tmp_path):
    build(depth_model, "fold_norm:into=conv,split_heads:merge=sum", "none")
    comparison = compare_models(depth_model, tmp_path / "build" / "model.onnx")
    assert comparison.is_equal
    assert comparison.float64.error > 0


@pytest.mark.parametrize("factor", [2, 1.1, 1.01, -1])
def test_one_weight_makes_a_difference(pair, factor):
    comparison = compare_models(*pair(scaled("mean", factor), text=PLAIN))
    assert comparison.float64.status == "fail"
    assert not comparison.is_equal


def test_a_bound_can_be_given(pair):
    paths = pair(scaled("mean", 1.01), text=PLAIN)
    assert compare_models(*paths, bound=0.1).float64.status == "pass"
    assert compare_models(*paths, bound=1e-12).float64.status == "fail"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (NORM.replace("] x", "] z").replace("(x", "(z"), "different inputs: x: float"),
        (NORM.replace("] y", "] z").replace("y =", "z ="), "different outputs: y: float"),
        (NORM.replace("6,8", "8,6"), "different inputs"),
    ],
    ids=["input's name", "output's name", "shape"],
)
def test_other_signatures_are_refused(pair, other, said):
    with pytest.raises(UserError, match=said):
        compare_models(*pair(other=other))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.ones((1, 3, 6, 8))}, "no array for the input 'x'"),
        ({"x": np.ones((1, 3, 8, 6))}, "'x'"),
        ({"x": np.array(["a"])}, "'x'"),
    ],
    ids=["another name", "another shape", "text"],
)
def test_unfit_inputs_are_refused(pair, tmp_path, arrays, said):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(UserError, match=said):
        compare_models(*pair(), inputs=tmp_path / "in.npz")


DEFAULT = "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 1}> { y = Mul(x, w) }"


@pytest.mark.parametrize(("given", "status"), [({}, "pass"), ({"w": [3, 4]}, "fail")])
def test_optional_inputs_are_fed_where_the_file_holds_them(pair, tmp_path, given, status):
    """x · w² is x · w as long as nobody feeds another w than the default."""
    np.savez(tmp_path / "in.npz", **{k: np.float32(v) for k, v in {"x": [1, 2], **given}.items()})
    squared = DEFAULT.replace("y = Mul(x, w)", "v = Mul(w, w) y = Mul(x, v)")
    models = pair(text=DEFAULT, other=squared)
    comparison = compare_models(*models, inputs=tmp_path / "in.npz")
    assert (comparison.float64.status, comparison.float32.status) == (status, status)


def test_an_optional_input_of_one_model_alone_is_refused(pair, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.float32([1, 2]), w=np.float32([3, 4]))
    models = pair(text=DEFAULT, other=DEFAULT.replace(", float[2] w)", ")"))
    with pytest.raises(UserError, match="don't both take 'w' as an input"):
        compare_models(*models, inputs=tmp_path / "in.npz")


def test_inputs_that_are_no_npz_are_refused(pair, tmp_path):
    (tmp_path / "in.npz").write_text("no")
    with pytest.raises(UserError, match=r"in\.npz"):
        compare_models(*pair(), inputs=tmp_path / "in.npz")


def test_a_dynamic_shape_needs_inputs(pair, tmp_path):
    paths = pair(text=NORM.replace("6,8", "h,w"))
    with pytest.raises(UserError, match="--inputs"):
        compare_models(*paths)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).random((1, 3, 5, 7)))
    assert compare_models(*paths, inputs=tmp_path / "in.npz").is_equal


def test_a_model_without_float64_is_compared_in_float32(pair):
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[1,4,4,2] grid> {
        y = GridSample(x, grid) }"""
    comparison = compare_models(*pair(text=text))
    assert (comparison.float64.status, comparison.float32.status) == ("UNVERIFIED", "pass")
    assert comparison.is_equal
    other = compare_models(*pair(scaled("grid", 0.5), text=text))
    assert not other.is_equal


def test_a_dynamic_model_is_proven_at_sizes_that_it_takes(model_of, build):
    text = NORM.replace("6,8", "h,w").replace("y = Tanh", "c = Identity(b) y = Tanh")
    *_, stage = build(model_of(text.replace("Tanh(b)", "Tanh(c)")), "canonicalize")
    assert stage.report.rewrites > 0
    assert stage.report.float64["status"] == stage.report.float32["status"] == "pass"


def test_an_output_may_say_more_of_its_sizes_than_before(model_of, build):
    """But no more than follows from the inputs."""
    text = """g (float[2,6] x) => (float[2,n] y) <int64[2] s = {2, 6}>
        { a = Identity(x) b = Reshape(a, s) y = Relu(b) }"""
    model = model_of(text)
    *_, stage = build(model, "canonicalize")
    assert stage.graph.outputs[0].shape == [2, 6]
    assert stage.report.float64["status"] == "pass"


@pytest.mark.parametrize(
    ("takes", "before", "claims", "is_allowed"),
    [
        ("2,4", "n,4", "2,4", True), ("2,4", "n,m", "2,4", True), ("2,4", "n,4", "3,4", False),
        ("k,4", "n,4", "2,4", False), ("k,4", "n,4", "m,4", False), ("k,4", "2,4", "n,4", False),
        ("k,4", "n,4", "n,4", True), ("k,4", "n,m", "n,4", True),
    ],
    ids=["refined", "both", "another number", "a number from nowhere", "renamed", "forgotten",
         "as it was", "the known one refined"],
)  # fmt: skip
def test_sizes_of_outputs_may_only_be_refined(
    model_of, tmp_path, takes, before, claims, is_allowed
):
    def sizes(text):
        return TensorType(1, tuple(int(d) if d.isdigit() else d for d in text.split(",")))

    after = model_of(f"g (float[{takes}] x) => (float[{claims}] y) {{ y = Relu(x) }}")
    onnx.save(after, tmp_path / "after.onnx")
    was = Signature({"x": sizes(takes)}, {"y": sizes(before)})
    found = structure_faults(was, tmp_path / "after.onnx", Canonicalize(), [])
    assert (not found) == is_allowed


def test_random_numbers_are_not_compared(model_of, build):
    text = (
        "g (float[4] x) => (float[4] y) { i = Identity(x) r = RandomNormalLike(i) y = Add(i, r) }"
    )
    *_, stage = build(model_of(text), "canonicalize")
    assert "draws random numbers" in stage.report.float32["detail"]
    assert stage.report.float32["status"] == "UNVERIFIED"


def test_a_model_that_runs_on_nothing_is_refused(model_of, build):
    text = """g (float[a,6] x) => (float[b] y) <int64[2] s = {5, 7}>
        { i = Identity(x) r = Reshape(i, s) y = ReduceMax<keepdims=0>(r) }"""
    with pytest.raises(UserError, match=r"onnxruntime can't run it.*Reshape"):
        build(
            model_of(text.replace("float[b]", "float").replace("float[a", "float[2")),
            "canonicalize",
        )


DYNAMIC = {
    "a named batch": "g (float[n,6] x) => (float[n,6] y) { y = Softmax(x) }",
    "any rank's sizes": "g (float[a,b,c] x) => (float[a,b,c] y) { y = Softmax(x) }",
    "a product of sizes": """g (float[n,4,h,w] x) => (float[n,m,4] y)
        <int64[3] s = {0, 4, -1}> { r = Reshape(x, s) t = Transpose<perm=[0,2,1]>(r)
        y = Softmax(t) }""",
    "a sum of sizes": """g (float[past,4] x, float[new,4] z, float["past + new",4] m)
        => (float[k,4] y) { c = Concat<axis=0>(x, z) a = Add(c, m) y = Softmax(a) }""",
    "multiples of a patch": """g (float[n,3,h,w] x) => (float[n,8,a,b] y)
        <float[8,3,16,16] k, float[16,1,1] edge> { c = Conv<strides=[16,16]>(x, k)
        y = Softmax(c) }""",
}


@dataclass(frozen=True)
class Softmax:
    place: str
    node: object


@dataclass(frozen=True)
class SoftmaxOver(LocalPass[Softmax]):
    """Every Softmax, over another axis or as it is."""

    axis: int
    contract = "algebraic"

    def match(self, graph):
        return [Softmax(n.outputs[0].name, n) for n in graph.nodes if n.op == "Softmax"]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        builder = Builder(graph, match.place)
        like = match.node.inputs[0]
        log = builder.node("LogSoftmax", [like], None, axis=self.axis)
        return Replacement(builder, [(match.node.outputs[0], builder.node("Exp", [log], None))])


@pytest.mark.parametrize("text", DYNAMIC.values(), ids=DYNAMIC)
@pytest.mark.parametrize(("axis", "status"), [(-1, "pass"), (0, "fail")])
def test_a_cut_with_dynamic_sizes_is_proven(graph_of, text, axis, status):
    (rewrite,) = apply_pass(graph_of(text), SoftmaxOver(axis)).rewrites
    assert prove(rewrite, SoftmaxOver(axis)).status == status


@pytest.mark.parametrize("text", DYNAMIC.values(), ids=DYNAMIC)
def test_sizes_that_a_model_takes_are_found(model_of, tmp_path, text):
    onnx.save(model_of(text), tmp_path / "model.onnx")
    types = Signature.of(Graph.load(tmp_path / "model.onnx")).inputs
    first, second = accepted_sizes(tmp_path / "model.onnx", types)
    assert first.symbols != second.symbols
    shapes = with_shapes(tmp_path / "model.onnx", types, first).shapes
    assert "y" in shapes


SUMS = """g (float[1,40,77] x) => (float[1,40] y) <int64[1] last = {2}>
    { p = Softmax(x) y = ReduceSum <keepdims = 0> (p, last) }"""


@dataclass(frozen=True)
class SumAsProduct(LocalPass[Softmax]):
    """The sum of a Softmax, which is 1 but for rounding, as a product with a vector of `weight`."""

    weight: float
    contract = "algebraic"

    def match(self, graph):
        return [Softmax(n.outputs[0].name, n) for n in graph.nodes if n.op == "ReduceSum"]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        builder = Builder(graph, match.place)
        values = producer_of(match.node.inputs[0]).inputs[0]
        log = builder.node("LogSoftmax", [values], (1, 40, 77), axis=-1)
        exponential = builder.node("Exp", [log], (1, 40, 77))
        ones = builder.constant(np.full(77, self.weight), np.dtype(np.float32), "a sum")
        total = builder.node("MatMul", [exponential, ones], (1, 40))
        return Replacement(builder, [(match.node.outputs[0], total)])


def test_a_result_that_only_rounding_moves_is_unverified(model_of, build):
    """An honest rewrite is no fault, and nothing was shown: in float64, float32, and as a whole."""
    *_, stage = build(model_of(SUMS, 17), [SumAsProduct(1)], "full")
    for proof in (stage.report.float64, stage.report.float32, stage.report.whole_float64):
        assert proof["status"] == "UNVERIFIED"
        assert "constant" in proof["detail"]
        assert proof["error"] <= 1e-6


@pytest.mark.parametrize("weight", [1 + 1e-5, 0.99, -1, 2])
def test_another_result_that_only_rounding_moves_is_a_fault(model_of, build, weight):
    with pytest.raises(VerificationError, match="tensor 'y'"):
        build(model_of(SUMS, 17), [SumAsProduct(weight)])


@pytest.mark.parametrize(("weight", "status"), [(1, "UNVERIFIED"), (1.001, "fail")])
def test_whole_models_whose_outputs_only_rounding_moves(model_of, tmp_path, weight, status):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    onnx.save(model_of(SUMS, 17), paths[0])
    graph = Graph.load(paths[0])
    apply_pass(graph, SumAsProduct(weight))
    onnx.save(graph.to_model(), paths[1])
    comparison = compare_models(*paths)
    assert (comparison.float64.status, comparison.float32.status) == (status, status)


@dataclass(frozen=True)
class Capped(LocalPass[Softmax]):
    """Relu as a Clip at 100: more than random values at the cut, and natural images, come to."""

    contract = "algebraic"

    def match(self, graph):
        return [Softmax(n.outputs[0].name, n) for n in graph.nodes if n.op == "Relu"]

    def guard(self, graph, match):
        return None

    def rewrite(self, graph, match):
        builder, (data,) = Builder(graph, match.place), match.node.inputs
        ends = [builder.constant(np.array(v), np.dtype(np.float32), "an end") for v in (0.0, 100.0)]
        capped = builder.node("Clip", [data, *ends], (1, 3, 8, 8))
        return Replacement(builder, [(match.node.outputs[0], capped)])


def test_an_output_that_shows_nothing_spares_the_others_no_image(model_of, build):
    text = """g (float[1,3,8,8] image) => (float[1,3,8,8] y, float[1,1,8,8] z)
        <float part = {0.3}, int64[1] channels = {1}>
        { p = Softmax <axis = 1> (image) z = ReduceSum(p, channels)
          a = Mul(image, part) y = Relu(a) }"""
    with pytest.raises(VerificationError, match="on the image 'large'"):
        build(model_of(text, 17), [Capped()], "full")


def test_every_image_is_compared_for_an_output_that_is_no_number(model_of, build):
    text = """g (float[1,3,8,8] image) => (bool[1,3,8,8] y) <float half = {128}>
        { a = Identity(image) y = Greater(a, half) }"""
    *_, stage = build(model_of(text, 17), "canonicalize", "full")
    assert stage.report.whole_float64["status"] == "pass"


def test_split_heads_is_exact(depth_model):
    graph = Graph.load(depth_model)
    done = apply_pass(graph, SplitHeads())
    assert {prove(rewrite, SplitHeads()).bound for rewrite in done.rewrites} == {BOUNDS["exact"]}
