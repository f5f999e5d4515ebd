"""What is said before anything is sent to the NPU or the cloud, held against the NPU's compiler."""

import importlib.util
import json
import time

import onnx
import pytest
from typer.testing import CliRunner

import compiler
from compiler.cli import app
from compiler.errors import UserError
from compiler.targets.chips import CHIPS
from compiler.targets.htp import compile_for
from compiler.targets.operators import CONSTANT_INPUTS, TAKEN, UP_TO_RANK_4
from compiler.targets.preflight import NEWEST, check

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="onnxruntime-qnn is not installed (extra htp)",
)
# What is around a quantized node goes where that node goes.
AROUND = ("QuantizeLinear", "DequantizeLinear")
IQ_9075 = CHIPS["iq-9075"]
R3, R4, R5 = "float[1,8,16]", "float[1,8,16,16]", "float[1,2,4,8,16]"


def same(op: str, shape: str = R3, before: str = "", after: str = "", constants: str = "") -> str:
    """One node that keeps the type of what it reads."""
    return f"g ({shape} x) => ({shape} y) {constants} {{ y = {op}{before}(x{after}) }}"


def pool(op: str, attributes: str, shape: str, made: str) -> str:
    return f"g ({shape} x) => ({made} y) {{ y = {op}<{attributes}>(x) }}"


def norm(shape: str, attributes: str = "", size: str = "16", extra: str = "") -> str:
    made = f"{shape} y, float[1,8,1] m" if extra else f"{shape} y"
    return f"""g ({shape} x) => ({made}) <float[{size}] s, float[{size}] b>
        {{ y{extra} = LayerNormalization{attributes}(x, s, b) }}"""


def batch_norm(shape: str) -> str:
    return f"""g ({shape} x) => ({shape} y) <float[8] s, float[8] b, float[8] m, float[8] v>
        {{ y = BatchNormalization(x, s, b, m, v) }}"""


def resize(attributes: str, before: str = "1,8,16,16", after: str = "1,8,24,24") -> str:
    rank = len(before.split(","))
    return f"""g (float[{before}] x) => (float[{after}] y) <int64[{rank}] k = {{{after}}}>
        {{ y = Resize<{attributes}>(x, , , k) }}"""


def einsum(equation: str, one: str, two: str, made: str) -> str:
    return f"""g (float[{one}] x, float[{two}] z) => (float[{made}] y)
        {{ y = Einsum<equation="{equation}">(x, z) }}"""


def reduce(op: str, axes: str, made: str, attributes: str = "") -> str:
    return f"""g ({R5} x) => ({made} y) <int64[{len(axes.split(","))}] a = {{{axes}}}>
        {{ y = {op}{attributes}(x, a) }}"""


def cast(source: str, target: str, number: int) -> str:
    return f"g ({source}[8] x) => ({target}[8] y) {{ y = Cast<to={number}>(x) }}"


def scatter(reduction: str) -> str:
    return f"""g (float[8,16] x, float[3,16] u) => (float[8,16] y) <int64[3,1] i = {{0, 2, 4}}>
        {{ y = ScatterND<reduction="{reduction}">(x, i, u) }}"""


def quantized(values: str, weights: str, node: str) -> str:
    """A node between QuantizeLinear and DequantizeLinear; those at the edges stay on the CPU."""
    zero = {"uint8": 128, "int8": 0, "uint16": 32768, "int16": 0}
    ones = ",".join([str(zero[weights] + 1)] * 256)
    shape, extra = ("16,16", "") if node == "MatMul" else ("16", ", c")
    ones = ones if node == "MatMul" else ",".join(ones.split(",")[:16])
    return f"""g ({R3} x) => ({R3} y) <float s = {{0.1}}, {values} z = {{{zero[values]}}},
        {weights}[{shape}] w = {{{ones}}}, {weights} v = {{{zero[weights]}}},
        int32[16] b = {{{",".join(["1"] * 16)}}}, float t = {{0.01}}, int32 u = {{0}}>
        {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
           e = DequantizeLinear(w, s, v) c = DequantizeLinear(b, t, u) r = {node}(d, e{extra})
           p = QuantizeLinear(r, s, z) y = DequantizeLinear(p, s, z) }}"""


def gelu(last: str) -> str:
    constants = "float r = {1.4142135}, float one = {1}, float h = {0.5}"
    return f"""g ({R3} x) => ({R3} y) <{constants}>
        {{ d = Div(x, r) e = Erf(d) {last} }}"""


def slice_of(inputs: str, constants: str) -> str:
    return f"""g ({R4} x{inputs}) => (float[1,4,16,16] y) <{constants} int64[1] a = {{1}}>
        {{ y = Slice(x, s, e, a) }}"""


def attention(mask: str) -> str:
    heads = "float[1,2,8,16]"
    return f"""g ({heads} q, {heads} k, {heads} v, {mask}[8,8] m) => ({heads} y)
        {{ y = Attention(q, k, v, m) }}"""


def pad(attributes: str, inputs: str, constants: str) -> str:
    return f"""g (float[8,16] x) => (float[10,18] y) <int64[4] p = {{1, 1, 1, 1}}{constants}>
        {{ y = Pad{attributes}(x, p{inputs}) }}"""


def gemm(attributes: str) -> str:
    return f"""g (float[8,16] x) => (float[8,4] y) <float[16,4] w, float[4] b>
        {{ y = Gemm{attributes}(x, w, b) }}"""


NEAREST = 'mode="nearest",coordinate_transformation_mode="{}",nearest_mode="{}"'
ARGMAX = "g (float[8,16] x) => (int64[8,1] y) {{ y = ArgMax<axis=1{}>(x) }}"
BRANCHES = """g (float[8] x, bool c) => (float[8] y) {{ y = If(c) <
    then_branch = t () => (float[8] u) {{ u = {}(x) }},
    else_branch = e () => (float[8] v) {{ v = Neg(x) }}> }}"""

# what: (a graph with a node that is left, the nearest that is taken, the finding's rule and words)
PAIRS = {
    "no such operator": (same("Sinh"), same("Sin"), "operator", "the NPU has no Sinh"),
    "ReduceL1": (reduce("ReduceL1", "4", "float[1,2,4,8,1]"),
                 reduce("ReduceSum", "4", "float[1,2,4,8,1]"), "operator", "no ReduceL1"),
    "rank 6": (same("Relu", "float[1,1,2,4,8,16]"), same("Relu", R5), "rank",
               "rank 6; the NPU takes Relu up to rank 5"),
    "rank 5 of Tanh": (same("Tanh", R5), same("Tanh", R4), "rank", "takes Tanh up to rank 4"),
    "rank 5 of LayerNormalization": (norm(R5), norm(R4), "rank", "up to rank 4"),
    "rank 5 of BatchNormalization": (batch_norm("float[1,8,4,4,4]"), batch_norm(R4), "rank",
                                     "up to rank 4"),
    "rank 5 of MaxPool": (pool("MaxPool", "kernel_shape=[2,2,2]", "float[1,8,8,8,8]",
                               "float[1,8,7,7,7]"),
                          pool("MaxPool", "kernel_shape=[2,2]", R4, "float[1,8,15,15]"),
                          "rank", "up to rank 4"),
    "rank 5 of ReduceMax": (reduce("ReduceMax", "3,4", "float[1,2,4,1,1]"),
                            reduce("ReduceMax", "4", "float[1,2,4,8,1]"), "rank",
                            "several axes of rank 5"),
    "several axes of LayerNormalization": (norm(R3, "<axis=1>", "8,16"), norm(R3, "<axis=2>"),
                                           "attribute", "it normalizes axes 1 to 2"),
    "mean of LayerNormalization": (norm(R3, extra=", m"), norm(R3), "outputs", "second output"),
    "dilations of MaxPool": (
        pool("MaxPool", "kernel_shape=[2,2],dilations=[2,2]", R4, "float[1,8,14,14]"),
        pool("MaxPool", "kernel_shape=[2,2],dilations=[1,1]", R4, "float[1,8,15,15]"),
        "attribute", "MaxPool with dilations"),
    "Resize with antialias": (resize('mode="linear",antialias=1', after="1,8,8,8"),
                              resize('mode="linear"', after="1,8,8,8"), "attribute", "antialias"),
    "Resize of channels": (resize('mode="linear"', after="1,16,24,24"), resize('mode="linear"'),
                           "attribute", "first two axes"),
    "Resize of rank 2": (resize('mode="linear"', "16,16", "24,24"),
                         resize('mode="linear"', "1,16,16", "1,16,24"), "attribute", "rank 2"),
    "Resize half_pixel_symmetric": (
        resize('mode="linear",coordinate_transformation_mode="half_pixel_symmetric"'),
        resize('mode="linear",coordinate_transformation_mode="align_corners"'),
        "attribute", "half_pixel_symmetric"),
    "Resize cubic half_pixel_symmetric": (
        resize('mode="cubic",coordinate_transformation_mode="half_pixel_symmetric"'),
        resize('mode="cubic",coordinate_transformation_mode="asymmetric"'),
        "attribute", "half_pixel_symmetric"),
    "Resize to the nearest": (resize(NEAREST.format("asymmetric", "ceil")),
                              resize(NEAREST.format("asymmetric", "floor")), "attribute",
                              "asymmetric and ceil at rank 4"),
    "Resize to the nearest at rank 3": (
        resize(NEAREST.format("half_pixel", "ceil"), "1,8,16", "1,8,24"),
        resize(NEAREST.format("half_pixel", "ceil")), "attribute", "half_pixel and ceil at rank 3"),
    "computed Slice": (slice_of(", int64[1] s, int64[1] e", ""),
                       slice_of("", "int64[1] s = {0}, int64[1] e = {4},"),
                       "constant", "its input 's' is computed"),
    "computed Expand": ("g (float[1,16] x, int64[2] s) => (float[8,16] y) { y = Expand(x, s) }",
                        "g (float[1,16] x) => (float[8,16] y) <int64[2] s = {8, 16}> "
                        "{ y = Expand(x, s) }", "constant", "its input 's' is computed"),
    "a triangle": ("g (float[8,16] x) => (float[128] y) <int64[1] s = {128}> "
                   "{ a = Trilu(x) y = Reshape<allowzero=1>(a, s) }",
                   "g (float[8,16] x) => (float[128] y) <int64[1] s = {128}, float[8,16] m> "
                   "{ a = Mul(x, m) y = Reshape<allowzero=1>(a, s) }", "operator", "Trilu"),
    "alpha of Gemm": (gemm("<alpha=0.5>"), gemm("<beta=0.0>"), "attribute", "alpha or beta"),
    "last index of ArgMax": (ARGMAX.format(",select_last_index=1"), ARGMAX.format(""), "attribute",
                             "select_last_index=1"),
    "exclusive CumSum": (same("CumSum", R3, "<exclusive=1>", ", k", "<int64 k = {1}>"),
                         same("CumSum", R3, "", ", k", "<int64 k = {1}>"), "attribute",
                         "exclusive=1"),
    "p of LpNormalization": (same("LpNormalization", R3, "<p=1>"), same("LpNormalization"),
                             "attribute", "p=1"),
    "mode of Pad": (pad('<mode="wrap">', "", ""), pad('<mode="reflect">', "", ""), "attribute",
                    "mode wrap"),
    "axes of Pad": (pad("", ", v, a", ", float v = {0}, int64[2] a = {0, 1}"),
                    pad("", ", v", ", float v = {0}"), "attribute", "Pad with axes"),
    "reduction of ScatterND": (scatter("max"), scatter("add"), "attribute", "reduction max"),
    "Einsum with heads inside": (
        einsum("bqhd,bkhd->bhqk", "1,8,2,16", "1,9,2,16", "1,2,8,9"),
        einsum("bhqd,bhkd->bhqk", "1,2,8,16", "1,2,9,16", "1,2,8,9"), "attribute",
        "Einsum 'bqhd,bkhd->bhqk'"),
    "Einsum without batch on one side": (
        einsum("bij,jk->bik", "2,8,16", "16,4", "2,8,4"),
        einsum("bij,bjk->bik", "2,8,16", "2,16,4", "2,8,4"), "attribute", "Einsum"),
    "Einsum of relative positions": (
        einsum("bhwc,wck->bhwk", "1,4,4,16", "4,16,8", "1,4,4,8"),
        einsum("bhwc,wkc->bhwk", "1,4,4,16", "4,8,16", "1,4,4,8"), "attribute", "Einsum"),
    "float64": (same("Relu", "double[8]"), same("Relu", "float16[8]"), "type", "double values"),
    "int64 Transpose": ("g (int64[2,8] x) => (int64[8,2] y) { y = Transpose(x) }",
                        "g (int32[2,8] x) => (int32[8,2] y) { y = Transpose(x) }", "type",
                        "Transpose of int64 values"),
    "uint8 arithmetic": (same("Abs", "uint8[8]"), same("Abs", "int32[8]"), "type", "uint8 values"),
    "Cast to int8": (cast("float", "int8", 3), cast("float", "uint8", 2), "type", "float to int8"),
    "Cast from double": (cast("double", "float", 1), cast("float16", "float", 1), "type",
                         "double to float"),
    "an integer exponent": (same("Pow", R3, "", ", k", "<int64 k = {3}>"),
                            same("Pow", R3, "", ", k", "<float k = {3}>"), "type",
                            "float32 values with an exponent of int64"),
    "cubic scales that are rounded": (
        resize('mode="cubic"', "1,1,4,4", "1,1,3,3").replace("int64[4] k = {1,1,3,3}",
            "float[4] k = {1, 1, 0.8, 0.8}").replace("(x, , , k)", "(x, , k)"),
        resize('mode="cubic"', "1,1,4,4", "1,1,3,3"), "attribute", "cubic Resize whose scales"),
    "batches of GatherND": (
        "g (float[2,8,16] x) => (float[2,16] y) <int64[2,1] i = {0, 1}> "
        "{ y = GatherND<batch_dims=1>(x, i) }",
        "g (float[8,16] x) => (float[2,16] y) <int64[2,1] i = {0, 1}> { y = GatherND(x, i) }",
        "attribute", "GatherND with batch_dims=1"),
    "norm of LpPool": (pool("LpPool", "kernel_shape=[2,2],p=3", R4, "float[1,8,15,15]"),
                       pool("LpPool", "kernel_shape=[2,2],p=1", R4, "float[1,8,15,15]"),
                       "attribute", "LpPool with p=3"),
    "Max of one": (same("Max"), same("Max", R3, "", ", k", "<float k = {1}>"), "operator",
                   "Max of one tensor"),
    "a mask of bool": (attention("bool"), attention("float"), "type", "a mask of bool"),
    "Erf outside of a GELU": (gelu("y = Neg(e)"),
                              gelu("a = Add(e, one) m = Mul(x, a) y = Mul(m, h)"), "operator",
                              "outside of an exact GELU"),
    "a branch": (BRANCHES.format("Sinh"), BRANCHES.format("Sin"), "operator", "If with Sinh"),
    "a size that depends on values": (
        "g (float[8,16] x) => (int64[2,n] y) { y = NonZero(x) }",
        "g (float[8,16] x) => (int64[2,128] y) { y = NonZero(x) }", "dynamic shape",
        "depends on values"),
    "int8 weights of LayerNormalization": (
        quantized("uint8", "int8", "LayerNormalization"),
        quantized("uint8", "uint8", "LayerNormalization"), "quantized",
        "uint8 values with int8 weights"),
    "uint16 weights of MatMul": (quantized("uint8", "uint16", "MatMul"),
                                 quantized("uint8", "int8", "MatMul"), "quantized",
                                 "uint8 values with uint16 weights"),
}  # fmt: skip
OPSETS = {
    "a mask of bool": 23,
    "uint16 weights of MatMul": 21,
    "int8 weights of LayerNormalization": 21,
}

# These stop the NPU's compiler, so each has a model of its own.
STOPPING = {
    "rank 5 of Sign": (same("Sign", R5), same("Sign", R4), "rank", 20),
    "rank 5 of Tan": (same("Tan", R5), same("Tan", R4), "rank", 20),
    "rank 5 of GroupNormalization": (
        same("GroupNormalization", "float[1,8,4,4,4]", "<num_groups=2>", ", s, b",
             "<float[8] s, float[8] b>"),
        same("GroupNormalization", R4, "<num_groups=2>", ", s, b", "<float[8] s, float[8] b>"),
        "rank", 21),
    "Mish": (f"g ({R3} x) => ({R3} y) {{ a = Add(x, x) y = Mish(a) }}",
             f"g ({R3} x) => ({R3} y) {{ s = Softplus(x) t = Tanh(s) y = Mul(x, t) }}",
             "operator", 20),
    "nothing inside": ("g (float[0,16] x) => (float[16,0] y) { y = Transpose(x) }",
                       "g (float[1,16] x) => (float[16,1] y) { y = Transpose(x) }",
                       "empty tensor", 20),
}  # fmt: skip


def saved(model: onnx.ModelProto, folder, name="model.onnx"):
    path = folder / name
    onnx.save(model, path)
    return path


def apart_from_edges(findings):
    """Without what is said of the QuantizeLinear and DequantizeLinear at inputs and outputs."""
    return [f for f in findings if f.op not in AROUND]


@pytest.mark.parametrize("what", PAIRS)
def test_what_is_left_to_the_cpu(model_of, tmp_path, what):
    text, _, rule, words = PAIRS[what]
    path = saved(model_of(text, OPSETS.get(what, 20)), tmp_path)
    (finding,) = apart_from_edges(check(path, "htp"))
    assert (finding.rule, finding.is_error) == (rule, False)
    assert words in finding.problem
    assert finding.cure
    assert finding.op in str(finding)


@pytest.mark.parametrize("what", PAIRS)
def test_the_nearest_that_is_taken(model_of, tmp_path, what):
    path = saved(model_of(PAIRS[what][1], OPSETS.get(what, 20)), tmp_path)
    assert apart_from_edges(check(path, "htp")) == []


@pytest.mark.parametrize("what", STOPPING)
def test_what_stops_the_compiler(model_of, tmp_path, what):
    text, taken, rule, opset = STOPPING[what]
    (finding,) = check(saved(model_of(text, opset), tmp_path), "htp")
    assert (finding.rule, finding.is_error) == (rule, True)
    assert check(saved(model_of(taken, opset), tmp_path), "htp") == []


def joined(models: dict[str, onnx.ModelProto], opset: int) -> onnx.ModelProto:
    """One model of graphs that have nothing to do with each other; nodes are named after theirs."""
    whole = onnx.GraphProto(name="whole")
    for number, (what, model) in enumerate(models.items()):
        part = onnx.compose.add_prefix_graph(model.graph, f"{number}/")
        for position, node in enumerate(part.node):
            node.name = f"{what}/{position}"
        for field in ("node", "input", "output", "initializer"):
            getattr(whole, field).extend(getattr(part, field))
    ir_version = 10
    return onnx.helper.make_model(
        whole, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version
    )


@needs_wheel
@pytest.mark.parametrize("opset", [20, 21, 23])
def test_the_compiler_agrees(model_of, tmp_path, opset):
    """All of the above in one model: the compiler leaves the nodes of the findings, no others."""
    chosen = {what: pair for what, pair in PAIRS.items() if OPSETS.get(what, 20) == opset}
    models = {f"{what}, left": model_of(pair[0], opset) for what, pair in chosen.items()}
    models |= {f"{what}, taken": model_of(pair[1], opset) for what, pair in chosen.items()}
    path = saved(joined(models, opset), tmp_path)
    left = compile_for(path, IQ_9075, tmp_path / "npu.bin")
    said = {finding.node for finding in check(path, "htp") if finding.op not in AROUND}
    assert said == {node.name for node in left if node.op not in AROUND}


UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu Hardmax
    HardSigmoid Identity LeakyRelu Log LogSoftmax LpNormalization Neg Reciprocal Relu Round Selu
    Shrink Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu
"""
BINARY = "Add Sub Mul Div Pow Max Min Mean Sum PRelu"


def agree(models: dict[str, onnx.ModelProto], folder, opset: int = 20) -> None:
    path = saved(joined(models, opset), folder)
    left = compile_for(path, IQ_9075, folder / "npu.bin")
    assert {f.node for f in check(path, "htp")} == {node.name for node in left}


CASTS = {"float": 1, "uint8": 2, "uint16": 4, "int8": 3, "int16": 5, "int32": 6, "int64": 7,
         "bool": 9, "float16": 10, "double": 11, "uint32": 12, "uint64": 13}  # fmt: skip


@needs_wheel
def test_the_compiler_agrees_on_casts(model_of, tmp_path):
    pairs = [(a, b) for a in CASTS for b in CASTS if a != b]
    agree({f"{a} to {b}": model_of(cast(a, b, CASTS[b])) for a, b in pairs}, tmp_path)


# Each in float, int32 and the types that somebody may still have in a graph.
TYPED = {
    "Add": "g (T[2,8] x, T[2,8] z) => (T[2,8] y) { y = Add(x, z) }",
    "Mul": "g (T[2,8] x, T[2,8] z) => (T[2,8] y) { y = Mul(x, z) }",
    "Sub": "g (T[2,8] x, T[2,8] z) => (T[2,8] y) { y = Sub(x, z) }",
    "Div": "g (T[2,8] x, T[2,8] z) => (T[2,8] y) { y = Div(x, z) }",
    "Max": "g (T[2,8] x, T[2,8] z) => (T[2,8] y) { y = Max(x, z) }",
    "Equal": "g (T[2,8] x, T[2,8] z) => (bool[2,8] y) { y = Equal(x, z) }",
    "Less": "g (T[2,8] x, T[2,8] z) => (bool[2,8] y) { y = Less(x, z) }",
    "Abs": "g (T[2,8] x) => (T[2,8] y) { y = Abs(x) }",
    "Neg": "g (T[2,8] x) => (T[2,8] y) { y = Neg(x) }",
    "Where": "g (bool[2,8] c, T[2,8] x, T[2,8] z) => (T[2,8] y) { y = Where(c, x, z) }",
    "Transpose": "g (T[2,8] x) => (T[8,2] y) { y = Transpose(x) }",
    "Concat": "g (T[2,8] x) => (T[4,8] y) { y = Concat<axis=0>(x, x) }",
    "Gather": "g (T[2,8] x) => (T[8] y) <int64 i = {1}> { y = Gather(x, i) }",
    "Reshape": "g (T[2,8] x) => (T[16] y) <int64[1] s = {16}> { y = Reshape(x, s) }",
    "ReduceSum": "g (T[2,8] x) => (T[2,1] y) <int64[1] a = {1}> { y = ReduceSum(x, a) }",
    "ReduceMax": "g (T[2,8] x) => (T[2,1] y) <int64[1] a = {1}> { y = ReduceMax(x, a) }",
    "Slice": "g (T[2,8] x) => (T[1,8] y) <int64[1] s = {0}, int64[1] e = {1}> "
             "{ y = Slice(x, s, e) }",
    "Pad": "g (T[8,16] x) => (T[10,18] y) <int64[4] p = {1, 1, 1, 1}> { y = Pad(x, p) }",
    "Tile": "g (T[2,8] x) => (T[4,8] y) <int64[2] r = {2, 1}> { y = Tile(x, r) }",
}  # fmt: skip


@needs_wheel
@pytest.mark.parametrize("kind", ["float16", "int32", "int64", "bool", "uint8", "double"])
def test_the_compiler_agrees_on_types(model_of, tmp_path, kind):
    arithmetic = {"Add", "Mul", "Sub", "Div", "Max", "Less", "Abs", "Neg", "ReduceSum"}
    arithmetic |= {"Where"}  # onnxruntime has none of these for bool
    unknown = {"bool": arithmetic, "uint8": {"Neg", "ReduceSum"}}.get(kind, set())
    texts = {op: text.replace("T[", f"{kind}[") for op, text in TYPED.items() if op not in unknown}
    texts["taken"] = same("Relu")  # a model of which it takes nothing is refused
    agree({op: model_of(text) for op, text in texts.items()}, tmp_path)


LOGICAL = R5.replace("float", "bool")
MORE = {
    "ConvTranspose": "g (float[1,8,8,8] x) => (float[1,4,12,12] y) <float[8,4,3,3] w> "
                     "{ y = ConvTranspose<dilations=[2,2]>(x, w) }",
    "AveragePool": pool("AveragePool", "kernel_shape=[2,2],dilations=[3,3]", R4,
                        "float[1,8,13,13]"),
    "LpPool": pool("LpPool", "kernel_shape=[3,3],strides=[2,2],ceil_mode=1", R4, "float[1,8,8,8]"),
    "Mod": "g (float[8] x, float[8] z) => (float[8] y) { y = Mod<fmod=1>(x, z) }",
    "CumSum": same("CumSum", R3, "<reverse=1>", ", k", "<int64 k = {1}>"),
    "GridSample": "g (float[1,8,16,16] x, float[1,4,4,2] z) => (float[1,8,4,4] y) "
                  '{ y = GridSample<mode="cubic">(x, z) }',
    "ScatterElements": "g (float[8] x, float[2] u) => (float[8] y) <int64[2] i = {0, 2}> "
                       '{ y = ScatterElements<reduction="add">(x, i, u) }',
    "ReduceMean": f"g ({R3} x) => ({R3} y) {{ y = ReduceMean<noop_with_empty_axes=1>(x) }}",
    "centers": "g (float[1,8,4] b, float[1,1,8] s) => (int64[3,3] y) <int64[1] k = {3}, "
               "float[1] i = {0.5}, float[1] t = {0.1}> "
               "{ y = NonMaxSuppression<center_point_box=1>(b, s, k, i, t) }",
    "not at rank 5": same("Not", LOGICAL),
    "And at rank 5": f"g ({LOGICAL} x, {LOGICAL} z) => ({LOGICAL} y) {{ y = And(x, z) }}",
    "InstanceNormalization at rank 5": same(
        "InstanceNormalization", R5, "", ", s, b", "<float[2] s, float[2] b>"),
    "LRN at rank 5": same("LRN", R5, "<size=3>"),
    "CumSum at rank 5": same("CumSum", R5, "", ", k", "<int64 k = {1}>"),
    "ArgMax at rank 5": f"g ({R5} x) => (int64[1,2,4,8,1] y) {{ y = ArgMax<axis=4>(x) }}",
    "TopK at rank 5": f"g ({R5} x) => (float[1,2,4,8,3] y, int64[1,2,4,8,3] i) "
                      "<int64[1] k = {3}> { y, i = TopK(x, k) }",
    "GlobalMaxPool at rank 5": "g (float[1,8,4,4,4] x) => (float[1,8,1,1,1] y) "
                               "{ y = GlobalMaxPool(x) }",
    "ReduceL2 at rank 5": reduce("ReduceL2", "4", "float[1,2,4,8,1]"),
    "GatherND at rank 5": f"g ({R5} x) => (float[1,2,4,8,16] y) <int64[1,1] i = {{0}}> "
                          "{ y = GatherND(x, i) }",
    "a computed Clip": "g (float[8] x, float b) => (float[8] y) <float a = {0}> "
                       "{ y = Clip(x, a, b) }",
    "a computed Split": "g (float[8] x, int64[2] s) => (float[4] y, float[4] z) "
                        "{ y, z = Split(x, s) }",
    "a computed Tile": "g (float[1,8] x, int64[2] s) => (float[4,8] y) { y = Tile(x, s) }",
    "a computed Pad": "g (float[8] x, int64[2] s) => (float[10] y) { y = Pad(x, s) }",
    "a computed TopK": "g (float[8] x, int64[1] k) => (float[3] y, int64[3] i) "
                       "{ y, i = TopK(x, k) }",
    "a computed ReduceMax": "g (float[8,4] x, int64[1] k) => (float[8,1] y) "
                            "{ y = ReduceMax(x, k) }",
    "a computed BatchNormalization": "g (float[1,8,4] x, float[8] s) => (float[1,8,4] y) "
                                     "<float[8] b, float[8] m, float[8] v> "
                                     "{ y = BatchNormalization(x, s, b, m, v) }",
    "a computed OneHot": "g (int64[8] x, float[2] v) => (float[8,4] y) <int64 d = {4}> "
                         "{ y = OneHot(x, d, v) }",
    # Taken, though one might think otherwise.
    "a computed Reshape": "g (float[8,4] x, int64[1] s) => (float[32] y) { y = Reshape(x, s) }",
    "a computed Gather": "g (float[8,4] x, int64[3] i) => (float[3,4] y) { y = Gather(x, i) }",
    "computed sizes": "g (float[1,8,4,4] x, int64[4] s) => (float[1,8,8,8] y) "
                      '{ y = Resize<mode="linear">(x, , , s) }',
    "negative indices": "g (float[8,4] x) => (float[2,4] y) <int64[2] i = {0, -1}> "
                        "{ y = Gather(x, i) }",
    "allowzero": "g (float[8,4] x) => (float[32] y) <int64[1] s = {32}> "
                 "{ y = Reshape<allowzero=1>(x, s) }",
    "a negative step": f"g ({R3} x) => ({R3} y) <int64[1] s = {{-1}}, int64[1] e = {{-99}}, "
                       "int64[1] a = {2}, int64[1] t = {-1}> { y = Slice(x, s, e, a, t) }",
    "MatMul at rank 5": "g (float[1,2,4,8,16] x, float[1,2,4,16,8] z) => (float[1,2,4,8,8] y) "
                        "{ y = MatMul(x, z) }",
}  # fmt: skip
TAKEN_ANYWAY = ["a computed Reshape", "a computed Gather", "computed sizes", "negative indices",
                "allowzero", "a negative step", "MatMul at rank 5"]  # fmt: skip


@needs_wheel
def test_the_compiler_agrees_on_more(model_of, tmp_path):
    agree({what: model_of(text) for what, text in MORE.items()}, tmp_path)


@pytest.mark.parametrize("what", MORE)
def test_more(model_of, tmp_path, what):
    findings = check(saved(model_of(MORE[what]), tmp_path), "htp")
    assert [finding.is_error for finding in findings] == [False] * (what not in TAKEN_ANYWAY)


@needs_wheel
@pytest.mark.parametrize("shape", [R4, R5], ids=["rank 4", "rank 5"])
def test_the_compiler_agrees_on_arithmetic(model_of, tmp_path, shape):
    models = {op: model_of(same(op, shape)) for op in UNARY.split()}
    for op in BINARY.split():
        models[op] = model_of(same(op, shape).replace("x)", f"x, {shape} z)", 1).replace(
            "(x) }", "(x, z) }"))  # fmt: skip
    path = saved(joined(models, 20), tmp_path)
    left = compile_for(path, IQ_9075, tmp_path / "npu.bin")
    assert {finding.op for finding in check(path, "htp")} == {node.op for node in left}


@needs_wheel
@pytest.mark.parametrize("what", STOPPING)
def test_the_compiler_stops(model_of, tmp_path, what):
    text, taken, _, opset = STOPPING[what]
    with pytest.raises(UserError):
        compile_for(saved(model_of(text, opset), tmp_path), IQ_9075, tmp_path / "npu.bin")
    assert compile_for(saved(model_of(taken, opset), tmp_path), IQ_9075, tmp_path / "npu.bin") == ()


# -- the model and its files -----------------------------------------------------------------------

RELU = "g (float[1,8,16] x) => (float[1,8,16] y) { y = Relu(x) }"
MATMUL = "g (float[4,32] x) => (float[4,32] y) <float[32,32] w> { y = MatMul(x, w) }"


def found(path, target="aihub"):
    return [(f.rule, f.place, f.is_error) for f in check(path, target)]


@pytest.mark.parametrize("target", NEWEST)
def test_a_model_without_faults(model_of, tmp_path, target):
    assert check(saved(model_of(RELU), tmp_path), target) == []


@pytest.mark.parametrize("target", NEWEST)
def test_the_newest_versions(model_of, tmp_path, target):
    model = model_of(RELU)
    newest_ir, newest_opset = NEWEST[target]
    model.ir_version, model.opset_import[0].version = newest_ir, newest_opset
    assert check(saved(model, tmp_path), target) == []
    model.ir_version, model.opset_import[0].version = newest_ir + 1, newest_opset + 1
    assert found(saved(model, tmp_path), target) == [
        ("IR version", "model.onnx", True), ("opset", "model.onnx", True)
    ]  # fmt: skip


def test_the_versions_name_their_cure(model_of, tmp_path):
    path = saved(model_of(RELU, 21), tmp_path)
    (finding,) = check(path, "aihub")
    assert str(finding) == (
        "error [opset] model.onnx: opset 21; aihub takes 20 or older; "
        "lower it: --passes for_target:aihub"
    )


@needs_wheel
@pytest.mark.parametrize("rule", ["IR version", "opset"])
def test_the_provider_agrees_on_versions(model_of, tmp_path, rule):
    """One more than the newest, and it does not load; tests above hold what we say."""
    for more in (0, 1):
        model = model_of(RELU)
        if rule == "opset":
            model.opset_import[0].version = NEWEST["htp"][1] + more
        else:
            model.ir_version = NEWEST["htp"][0] + more
        path = saved(model, tmp_path)
        if more:
            with pytest.raises(UserError):
                compile_for(path, IQ_9075, tmp_path / "npu.bin")
        else:
            assert compile_for(path, IQ_9075, tmp_path / "npu.bin") == ()


@pytest.mark.parametrize("target", NEWEST)
def test_a_dynamic_input_is_named_once(model_of, tmp_path, target):
    text = "g (float[n,8,16] x) => (float[n,8,16] y) { a = Relu(x) b = Exp(a) y = Neg(b) }"
    (finding,) = check(saved(model_of(text), tmp_path), target)
    assert (finding.rule, finding.tensor, finding.is_error) == ("dynamic shape", "x", True)
    assert "input of shape n×8×16" in finding.problem


@needs_wheel
def test_the_compiler_refuses_dynamic_inputs(model_of, tmp_path):
    path = saved(model_of("g (float[n,8] x) => (float[n,8] y) { y = Relu(x) }"), tmp_path)
    with pytest.raises(UserError):
        compile_for(path, IQ_9075, tmp_path / "npu.bin")


def test_wide_inputs_and_outputs(model_of, tmp_path):
    text = """g (int64[8] i, int32[8] j) => (int64[8] k, int32[8] l)
        { k = Add(i, i) l = Add(j, j) }"""
    path = saved(model_of(text), tmp_path)
    assert found(path) == [("64-bit input", "'i'", True), ("64-bit output", "'k'", False)]
    assert check(path, "htp") == []


def test_what_is_folded_says_nothing(model_of, tmp_path):
    """Shape arithmetic on fixed sizes, and constants of operators that the NPU has not."""
    text = """g (float[8,16] x) => (float[16,8] y) <int64[1] i = {1}, int64[1] j = {0}, float[3] c>
        { s = Shape(x) a = Gather(s, i) b = Gather(s, j) t = Concat<axis=0>(a, b)
          y = Reshape(x, t) d = Sinh(c) }"""
    assert check(saved(model_of(text), tmp_path), "htp") == []


def test_another_domain(model_of, tmp_path):
    model = model_of(RELU)
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "QuickGelu"
    model.graph.node[0].name = "gelu"
    (finding,) = check(saved(model, tmp_path), "htp")
    assert str(finding) == (
        "warning [domain] QuickGelu 'gelu' → 'y': an operator of the domain 'com.microsoft', "
        "which is not looked into; export without it"
    )


@pytest.fixture
def stored(model_of, tmp_path):
    """A model with its weights in model.data."""
    path = tmp_path / "model.onnx"
    onnx.save(model_of(MATMUL), path, save_as_external_data=True, location="model.data",
              size_threshold=0)  # fmt: skip
    return path


def relocated(path, location):
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    return saved(model, path.parent)


def test_one_data_file_is_right(stored):
    assert check(stored, "aihub") == check(stored, "htp") == []


@pytest.mark.parametrize("target", NEWEST)
@pytest.mark.parametrize(
    ("location", "words"),
    [
        pytest.param("gone.data", "does not exist", id="missing"),
        pytest.param("/elsewhere/model.data", "is outside the model's folder", id="absolute"),
        pytest.param("../model.data", "is outside the model's folder", id="outside"),
    ],
)
def test_weights_that_are_not_there(stored, target, location, words):
    (finding,) = check(relocated(stored, location), target)
    assert (finding.rule, finding.place, finding.is_error) == ("weights", "'w'", True)
    assert words in finding.problem


def test_a_truncated_weights_file(stored):
    data = stored.with_name("model.data")
    data.write_bytes(data.read_bytes()[:-1])
    (finding,) = check(stored, "htp")
    assert (finding.rule, "beyond the end" in finding.problem) == ("weights", True)
    assert finding.cure == "the file is truncated"


LAYOUTS = {
    "another model": ("model.data", "other.onnx", r"other models in its folder (other.onnx)"),
    "a name that is not known": ("weights.raw", "", "weights in weights.raw, which is neither"),
    "a folder below": ("below/model.data", "", "weights in a folder below"),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_a_folder_that_the_client_refuses(stored, what):
    client = pytest.importorskip("qai_hub.client", reason="qai-hub is not installed (extra hub)")
    location, other, words = LAYOUTS[what]
    (stored.parent / location).parent.mkdir(exist_ok=True)
    stored.with_name("model.data").rename(stored.parent / location)
    if other:
        (stored.parent / other).write_bytes(stored.read_bytes())
    (finding,) = check(relocated(stored, location), "aihub")
    assert (finding.rule, finding.is_error) == ("external data", False)
    assert words in finding.problem
    assert check(stored, "htp") == []
    with pytest.raises(client.UserError):
        client._determine_model_type(stored.parent)


def test_a_file_beyond_protobuf(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)  # a hole: it takes no room
    (finding,) = check(path, "htp")
    assert (finding.rule, finding.is_error) == ("file size", True)


@pytest.mark.parametrize("content", [b"nothing", b""], ids=["no ONNX", "empty"])
def test_what_is_no_model(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not an ONNX"):
        check(path, "htp")


def test_the_tables_are_about_known_operators():
    assert set(CONSTANT_INPUTS) | UP_TO_RANK_4 <= TAKEN
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert known >= TAKEN


# -- the command -----------------------------------------------------------------------------------


def test_the_command_says_what_is_refused(model_of, tmp_path):
    path = saved(model_of(RELU, 21), tmp_path)
    done = CliRunner().invoke(app, ["check", str(path), "--target", "aihub"])
    assert done.exit_code == 1
    assert "refused" in done.stdout
    assert "--passes for_target:aihub" in " ".join(done.stdout.split())
    done = CliRunner().invoke(app, ["check", str(path), "--target", "aihub", "--json"])
    (record,) = json.loads(done.stdout)
    assert (record["rule"], record["is_error"], record["file"]) == ("opset", True, "model.onnx")


def test_the_command_on_a_build(depth_model, tmp_path):
    """A build's folder: nothing is refused, and nothing is left to the CPU."""
    compiler.build(str(depth_model), "split_heads", output=tmp_path / "build", verify="none")
    for target in NEWEST:
        done = CliRunner().invoke(app, ["check", str(tmp_path / "build"), "--target", target])
        assert (done.exit_code, done.stdout) == (0, f"nothing refused by {target}\n")


def test_warnings_are_no_failure(model_of, tmp_path):
    path = saved(model_of(same("Sinh")), tmp_path)
    done = CliRunner().invoke(app, ["check", str(path)])
    assert done.exit_code == 0
    assert "the NPU has no Sinh" in " ".join(done.stdout.split())
    assert "nothing refused by htp, but see above" in done.stdout


def test_the_weights_are_not_read(stored, monkeypatch):
    monkeypatch.setattr(compiler.weights.MappedWeight, "load", lambda _self: pytest.fail("loaded"))
    data = stored.with_name("model.data")
    data.write_bytes(b"\0" * data.stat().st_size)
    assert check(stored, "htp") == []


def test_thousands_of_nodes_take_a_moment(model_of, tmp_path):
    body = "".join(f" a{i + 1} = Relu(a{i})" for i in range(2000))
    text = f"g ({R3} a0) => ({R3} y) {{{body} y = Relu(a2000) }}"
    path = saved(model_of(text), tmp_path)
    start = time.process_time()
    assert check(path, "htp") == []
    assert time.process_time() - start < 4  # half a second on an idle machine
