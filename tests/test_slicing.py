"""Every rule on its own, in float64, against slicing the op's output."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.folding import fold_constants
from compiler.graph import Graph, producer_of, static_shape
from compiler.region import region_of
from compiler.rewrite import Builder
from compiler.slicing import RULES, Slicer, Take, takes_before_reshape
from compiler.verify.float64 import evaluate
from compiler.verify.proof import random_inputs

EXAMPLES = settings(max_examples=40)
# Small and few, so that dimensions collide often.
DIM = st.sampled_from([1, 2, 2, 3, 4, 6])


def shapes(low: int, high: int):
    return st.lists(DIM, min_size=low, max_size=high).map(tuple)


@st.composite
def takes(draw, shape: Sequence[int], axes: Sequence[int] | None = None) -> Take:
    """A range, a strided range or a dropped index of one axis."""
    axis = draw(st.sampled_from(list(range(len(shape))) if axes is None else list(axes)))
    length = shape[axis]
    start = draw(st.integers(0, length - 1))
    kind = draw(st.sampled_from(["range", "strided", "drop"]))
    if kind == "drop":
        return Take(axis, start, start + 1, drop=True)
    stop = draw(st.integers(start + 1, length))
    return Take(axis, start, stop, draw(st.integers(2, 3)) if kind == "strided" else 1)


def operand(draw, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`: leading axes left out, others of size one."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(draw(st.sampled_from([d, d, 1])) for d in kept)


def text(shape: Sequence[int]) -> str:
    """In ONNX text `float` is a scalar, and `float[]` a tensor of unknown rank."""
    return f"[{','.join(map(str, shape))}]" if shape else ""


class Pulled:
    """A slice of the tensor `y` of a graph, pulled back, and its values beside the right ones."""

    def __init__(self, graph: Graph, take: Take, tensor: str = "y", seed: int = 0) -> None:
        y = graph.ir.tensors()[tensor]
        self.graph, self.builder = graph, Builder(graph, "test")
        slicer = Slicer(graph, self.builder)
        self.result = slicer.pull(y, take)
        self.builder.prune([self.result])
        made = {id(node) for node in self.builder.nodes}
        left = [producer_of(t) for t in slicer.slices_left.values()]
        self.left = [node for node in left if id(node) in made]
        region = region_of(graph, [*graph.nodes, *self.builder.nodes], [y, self.result])
        feeds = random_inputs(region.inputs, "slicing", seed)
        names = [y.name, self.result.name]
        values = evaluate(region.nodes, region.exact_constants(), feeds, names, region.opsets)
        index = [slice(None)] * values[y.name].ndim
        index[take.axis] = take.start if take.drop else slice(take.start, take.stop, take.step)
        self.expected, self.actual = values[y.name][tuple(index)], values[self.result.name]
        self.y, self.kind = y, self.result.dtype

    def check(self) -> "Pulled":
        assert static_shape(self.result) == self.expected.shape == self.actual.shape
        assert self.kind == self.y.dtype
        np.testing.assert_allclose(self.actual, self.expected, rtol=1e-12, atol=1e-13)
        return self

    @property
    def stopped_at(self) -> list[str]:
        """The graph's tensors that an explicit slice was left on."""
        known = self.graph.ir.tensors()
        return [node.inputs[0].name for node in self.left if node.inputs[0].name in known]

    @property
    def ops(self) -> list[str]:
        return [node.op for node in self.builder.nodes]


def by_rule(graph: Graph, take: Take) -> Pulled:
    """The rule applies: what is sliced is the graph's inputs, never `y`; and it is right."""
    pulled = Pulled(graph, take).check()
    assert set(pulled.stopped_at) <= {tensor.name for tensor in graph.inputs}
    return pulled


def left_alone(graph: Graph, take: Take) -> Pulled:
    """No rule applies: one explicit slice of `y` is left (a Reshape where that is enough)."""
    pulled = Pulled(graph, take).check()
    only_reshaped = take.drop and static_shape(pulled.y)[take.axis] == 1
    assert pulled.stopped_at == ([] if only_reshaped else ["y"])
    assert pulled.ops in (["Reshape"] if only_reshaped else ["Slice"], ["Gather"])
    return pulled


# -- element by element ----------------------------------------------------------------------------

UNARY = """
    Abs Asinh Atan Ceil Celu Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
    LeakyRelu Mish Neg Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Swish Tan Tanh
    ThresholdedRelu
    """
BINARY = "Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Sub Sum"
ON_POSITIVE = {"Log": "Log(p)", "Sqrt": "Sqrt(p)", "Reciprocal": "Reciprocal(p)",
               "Pow": "Pow(p, b)", "Mod": "Mod<fmod=1>(p, q)", "Acosh": "Acosh(p)",
               "Acos": "Acos(t)", "Asin": "Asin(t)", "Atanh": "Atanh(t)"}  # fmt: skip
LOGICAL = {"And": "And(c, d)", "Or": "Or(c, d)", "Xor": "Xor(c, d)", "Not": "Not(c)"}
OTHERS = {
    "Cast": "Cast<to=6>(a)",
    "IsInf": "IsInf(a)",
    "IsNaN": "IsNaN(a)",
    "PRelu": "PRelu(s, b)",
    "Clip": "Clip(a, low, high)",
    "Where": "Where(c, a, b)",
}
ELEMENTWISE = {
    **{op: f"{op}(a)" for op in UNARY.split()},
    **{op: f"{op}(a, b)" for op in BINARY.split()},
    **ON_POSITIVE,
    **LOGICAL,
    **OTHERS,
}


@pytest.mark.parametrize("op", ELEMENTWISE)
@given(data=st.data())
@settings(max_examples=15)
def test_elementwise(graph_of, op, data):
    shape = data.draw(shapes(1, 4))
    a, b, c = (operand(data.draw, shape) for _ in range(3))
    graph = graph_of(
        f"""g (float{text(a)} a, float{text(b)} b, bool{text(c)} c, bool{text(b)} d) => (y)
        <float low = {{-0.5}}, float high = {{0.5}}, float one = {{1}}>
        {{ pa = Abs(a) p = Add(pa, one) pb = Abs(b) q = Add(pb, one)
           ra = Tanh(a) t = Mul(ra, low) s = Add(a, b) y = {ELEMENTWISE[op]} }}""",
        24 if op == "Swish" else 20,
    )
    y = static_shape(graph.ir.tensors()["y"])
    assume(len(y) > 0)
    by_rule(graph, data.draw(takes(y)))


def test_every_elementwise_op_is_tested():
    rule = RULES["Add"]
    assert {op for op, known in RULES.items() if known is rule} == set(ELEMENTWISE)


def test_three_operands_and_a_constant_one(graph_of):
    graph = graph_of(
        """g (float[2,3,4] a, float[3,1] b) => (y) <float[4] k, float[1,3,4] l>
        { y = Max(a, b, k, l) }"""
    )
    pulled = by_rule(graph, Take(2, 1, 3))
    names = [t.name for t in graph.ir.tensors().values()]
    assert "test/k[1:3]" not in names  # not in the graph yet: the driver puts it there
    assert [t.name for t in pulled.builder.nodes[-1].inputs][2:] == [
        "test/k[1:3]",
        "test/l[:, :, 1:3]",
    ]


def test_left_out_operands_stay_left_out(graph_of):
    graph = graph_of("g (float[2,4] a) => (y) <float high = {0.5}> { y = Clip(a, , high) }")
    assert by_rule(graph, Take(1, 1, 3)).builder.nodes[-1].inputs[1].name == ""
    conv = graph_of("g (float[1,2,3] a) => (y) <float[4,2,1] w> { y = Conv(a, w, ) }")
    by_rule(conv, Take(1, 1, 3))


# -- products --------------------------------------------------------------------------------------


@given(data=st.data())
@EXAMPLES
def test_matmul(graph_of, data):
    batch = data.draw(shapes(0, 2))
    n, k, m = (data.draw(DIM) for _ in range(3))
    left, right = (*operand(data.draw, batch), n, k), (*operand(data.draw, batch), k, m)
    graph = graph_of(f"g (float{text(left)} a, float{text(right)} b) => (y) {{ y = MatMul(a, b) }}")
    y = static_shape(graph.ir.tensors()["y"])
    take = data.draw(takes(y))
    if take.drop and take.axis >= len(y) - 2 and y[take.axis] == 1:
        left_alone(graph, take)
    else:
        assert "MatMul" in by_rule(graph, take).ops or take.is_whole(y[take.axis])


@given(data=st.data())
@EXAMPLES
def test_matmul_by_weights(graph_of, data):
    """Columns slice the weights; rows and batch of a projection are not worth a repetition."""
    n, k, m = (data.draw(DIM) for _ in range(3))
    graph = graph_of(f"g (float[2,{n},{k}] a) => (y) <float[{k},{m}] w> {{ y = MatMul(a, w) }}")
    take = data.draw(takes((2, n, m)))
    whole = take.is_whole((2, n, m)[take.axis])
    pulled = Pulled(graph, take).check()
    sliced = pulled.ops == ["MatMul"] and pulled.left == []
    assert sliced == (take.axis == 2 and not take.drop and not whole)
    if take.axis == 2 and take.drop and m > 1:  # an index of the columns is a range of one
        assert (pulled.ops, pulled.left) == (["MatMul", "Reshape"], [])


def test_matmul_with_a_vector_is_left_alone(graph_of):
    for a, b in (("[3,4]", "[4]"), ("[4]", "[4,3]"), ("[2,3,4]", "[4]")):
        graph = graph_of(f"g (float{a} a, float{b} b) => (y) {{ y = MatMul(a, b) }}")
        left_alone(graph, Take(0, 1, 2))


@pytest.mark.parametrize(
    "made",
    ["w = Cast<to=1>(h)", "w = Transpose(t)", "w = Identity(v)", "c = Cast<to=1>(h) w = Abs(c)"],
)
def test_weights_that_are_made_of_constants_are_not_repeated(graph_of, made):
    """Without canonicalize they are no constants yet."""
    graph = graph_of(
        f"""g (float[2,5,4] a) => (y) <float16[4,3] h, float[3,4] t, float[4,3] v>
        {{ b = Relu(a) {made} y = MatMul(b, w) }}"""
    )
    left_alone(graph, Take(1, 0, 2))
    assert by_rule(graph, Take(2, 0, 2)).left == []


@given(data=st.data())
@EXAMPLES
def test_gemm(graph_of, data):
    n, k, m = (data.draw(DIM) for _ in range(3))
    ta, tb = data.draw(st.booleans()), data.draw(st.booleans())
    a, b = (k, n) if ta else (n, k), (m, k) if tb else (k, m)
    bias = data.draw(st.sampled_from([None, (), (1,), (m,), (1, m), (n, 1), (n, m)]))
    constant = data.draw(st.booleans())
    inputs, constants = [f"float{text(a)} a"], [f"float{text(b)} b"]
    if bias is not None:
        constants.append(f"float{text(bias)} c")
    if not constant:
        inputs, constants = inputs + constants, []
    graph = graph_of(
        f"""g ({", ".join(inputs)}) => (y) {"<" + ", ".join(constants) + ">" if constants else ""}
        {{ y = Gemm<transA={int(ta)}, transB={int(tb)}, alpha=0.5, beta=2.0>
               (a, b{"" if bias is None else ", c"}) }}"""
    )
    take = data.draw(takes((n, m)))
    if take.is_whole((n, m)[take.axis]):
        return
    is_reshaped = take.drop and (n, m)[take.axis] == 1
    if not is_reshaped and (take.axis == 1 or not constant):
        by_rule(graph, take)
    else:
        left_alone(graph, take)


@given(take=takes((2, 6, 3, 2)), bias=st.booleans(), group=st.sampled_from([1, 2, 3, 6]))
@EXAMPLES
def test_conv(graph_of, take, bias, group):
    graph = graph_of(
        f"""g (float[2,6,5,4] a) => (y) <float[6,{6 // group},3,3] w, float[6] b>
        {{ y = Conv<group={group}, pads=[1,0,0,0], strides=[2,1]>(a, w{", b" if bias else ""}) }}"""
    )
    assume(not take.is_whole((2, 6, 2, 2)[take.axis]))
    assume(take.axis < 2)
    width = 6 // group
    in_groups = take.step == 1 and take.start % width == take.stop % width == 0
    if take.axis == 1 and (group == 1 or in_groups):
        assert set(by_rule(graph, take).ops) <= {"Conv", "Slice", "Reshape"}
    else:
        left_alone(graph, take)


@given(data=st.data())
@EXAMPLES
def test_einsum(graph_of, data):
    """Labels of one operand, of both, contracted; sizes collide."""
    size = {label: data.draw(DIM) for label in "bhqkd"}
    equation = data.draw(
        st.sampled_from(["bhqd,bhkd->bhqk", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "bhqd,qkd->bhqk"])
    )
    terms, _, result = equation.partition("->")
    a, b = (tuple(size[label] for label in term) for term in terms.split(","))
    graph = graph_of(
        f"""g (float{text(a)} a, float{text(b)} b) => (y)
        {{ y = Einsum<equation="{equation}">(a, b) }}"""
    )
    by_rule(graph, data.draw(takes(tuple(size[label] for label in result))))


@pytest.mark.parametrize("equation", ["...ij,...jk->...ik", "ii,ij->ij", "ij,jk"])
def test_einsum_of_other_kinds_is_left_alone(graph_of, equation):
    graph = graph_of(
        f"""g (float[3,3] a, float[3,3] b) => (y) {{ y = Einsum<equation="{equation}">(a, b) }}"""
    )
    left_alone(graph, Take(0, 1, 2))


def test_a_projection_by_einsum(graph_of):
    """Heads slice the weights; tokens stay together, as in a MatMul."""
    graph = graph_of(
        """g (float[2,5,6] x) => (y) <float[6,4,3] w>
        { y = Einsum<equation="bnc, chd -> bnhd">(x, w) }"""
    )
    pulled = by_rule(graph, Take(2, 1, 2, drop=True))
    assert (pulled.ops, pulled.left) == (["Einsum"], [])
    left_alone(graph, Take(1, 1, 3))


TABLES = {
    "Einsum": 'Einsum<equation="hnd,nkd->hnk">(q, table)',
    "MatMul": "MatMul(q, matrix)",
}


@pytest.mark.parametrize("op", TABLES)
def test_what_comes_down_to_weights_is_multiplied_by_a_table_head_by_head(graph_of, op):
    """Tokens stay together in a projection; a head that was projected is sliced before a table."""
    graph = graph_of(
        f"""g (float[5,8] x) => (y) <float[8,12] w, float[12] b, float[5,7,3] table,
            float[3,7] matrix, int64[3] apart = {{5, 4, 3}}>
        {{ p = MatMul(x, w) z = Add(p, b) r = Reshape(z, apart)
           q = Transpose<perm=[1,0,2]>(r) y = {TABLES[op]} }}"""
    )
    pulled = by_rule(graph, Take(0, 1, 2, drop=True))
    assert (pulled.left, "Add" in pulled.ops) == ([], True)
    assert "Slice" in Pulled(graph, Take(1, 0, 2)).check().ops


# -- reductions, norms, pools ----------------------------------------------------------------------

REDUCTIONS = {
    "ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18, "ReduceProd": 18,
    "ReduceL1": 18, "ReduceL2": 18, "ReduceLogSum": 18, "ReduceLogSumExp": 18,
    "ReduceSumSquare": 18,
}  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
@given(data=st.data())
@settings(max_examples=15)
def test_reduce(graph_of, op, data):
    shape = data.draw(shapes(2, 4))
    rank = len(shape)
    axes = data.draw(st.permutations(range(rank)))[: data.draw(st.integers(1, rank - 1))]
    keeps = data.draw(st.booleans())
    written = [axis - data.draw(st.sampled_from([0, rank])) for axis in axes]
    listed = ", ".join(map(str, written))
    opset = data.draw(st.sampled_from([REDUCTIONS[op] - 1, 20]))
    if opset == 20:
        constant, call = f"<int64[{len(axes)}] axes = {{{listed}}}>", f"<keepdims={int(keeps)}>"
    else:
        constant, call = "", f"<keepdims={int(keeps)}, axes=[{listed}]>"
    names = "p, axes" if constant else "p"
    graph = graph_of(
        f"g (float{text(shape)} a) => (y) {constant} {{ p = Abs(a) y = {op}{call}({names}) }}",
        opset,
    )
    y = static_shape(graph.ir.tensors()["y"])
    stay = [axis for axis in range(rank) if keeps or axis not in axes]
    own = [k for k, axis in enumerate(stay) if axis not in axes]
    by_rule(graph, data.draw(takes(y, own)))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@given(data=st.data())
@settings(max_examples=15)
def test_arg_max(graph_of, op, data):
    shape = data.draw(shapes(2, 4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    graph = graph_of(f"g (float{text(shape)} a) => (y) {{ y = {op}<axis={axis}>(a) }}")
    own = [k for k in range(len(shape)) if k != axis % len(shape)]
    by_rule(graph, data.draw(takes(static_shape(graph.ir.tensors()["y"]), own)))


def test_a_reduction_of_everything_is_left_alone(graph_of):
    graph = graph_of("g (float[2,3] a) => (y) { y = ReduceMean(a) }")
    left_alone(graph, Take(0, 0, 1, drop=True))
    none = graph_of("g (float[2,3] a) => (y) { y = ReduceSum<noop_with_empty_axes=1>(a) }")
    left_alone(none, Take(0, 0, 1))


def test_a_softmax_taken_apart(graph_of):
    graph = graph_of(
        """g (float[2,3,4] a) => (y) <int64[1] last = {-1}>
        { m = ReduceMax(a, last) d = Sub(a, m) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t) }"""
    )
    pulled = by_rule(graph, Take(0, 1, 2, drop=True))
    assert sorted(pulled.ops) == ["Div", "Exp", "Gather", "ReduceMax", "ReduceSum", "Sub"]


CHANNELS = {
    "BatchNormalization": "BatchNormalization(a, g, g, g, p)",
    "InstanceNormalization": "InstanceNormalization(a, g, g)",
    "GroupNormalization": "GroupNormalization<num_groups=2>(a, g, g)",
    "AveragePool": "AveragePool<kernel_shape=[2,2]>(a)",
    "MaxPool": "MaxPool<kernel_shape=[2,2], strides=[2,1]>(a)",
    "GlobalAveragePool": "GlobalAveragePool(a)",
}


@pytest.mark.parametrize("op", CHANNELS)
@given(take=takes((2, 6, 3, 2), (0, 1)))
@settings(max_examples=20)
def test_images_and_channels(graph_of, op, take):
    shape = "float[2,6,4,3]" if op == "GroupNormalization" else ""  # inference knows none
    graph = graph_of(
        f"""g (float[2,6,4,3] a) => ({shape} y) <float[6] g, float[6] v, float half = {{0.5}}>
        {{ w = Abs(v) p = Add(w, half) y = {CHANNELS[op]} }}""",
        21,
    )
    assume(not take.is_whole((2, 6)[take.axis]))
    if op == "GroupNormalization" and take.axis == 1:
        left_alone(graph, take)
    else:
        by_rule(graph, take)


# -- attention -------------------------------------------------------------------------------------


def attention(draw, packed: bool) -> tuple[str, dict[str, int]]:
    """An Attention of opset 23 with any mask, and what its heads and tokens are."""
    few, repeats = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1)]))
    b, n, m, d, e = (draw(st.sampled_from([1, 2, 3])) for _ in range(5))
    h = few * repeats
    forms = [((b, h, n, d), (b, n, h * d)), ((b, few, m, d), (b, m, few * d)),
             ((b, few, m, e), (b, m, few * e))]  # fmt: skip
    q, k, v = (form[packed] for form in forms)
    scores = (b, h, n, m)
    mask = draw(st.sampled_from([None, (n, m), operand(draw, scores)]))
    mask = None if mask is None or len(mask) < 2 or mask[-1] != m else mask
    kind = draw(st.sampled_from(["float", "bool"]))
    inputs = f"float{text(q)} q, float{text(k)} k, float{text(v)} v"
    inputs += "" if mask is None else f", {kind}{text(mask)} mask"
    attributes = [f"q_num_heads={h}, kv_num_heads={few}"] if packed else []
    attributes += draw(st.sampled_from([[], ["scale=0.3"]]))
    attributes += draw(st.sampled_from([[], ["softcap=2.0"]])) if mask is None else []
    names = "q, k, v" if mask is None else "q, k, v, mask"
    call = f"Attention<{', '.join(attributes)}>({names})" if attributes else f"Attention({names})"
    return f"g ({inputs}) => (y) {{ y = {call} }}", {"h": h, "g": repeats, "e": e, "n": n}


@pytest.mark.parametrize("packed", [True, False], ids=["three axes", "four axes"])
@given(data=st.data())
@settings(max_examples=80)
def test_attention(graph_of, packed, data):
    body, size = attention(data.draw, packed)
    graph = graph_of(body, 23)
    y = static_shape(graph.ir.tensors()["y"])
    take = data.draw(takes(y, (0, 1, 2)))
    assume(not take.is_whole(y[take.axis]))
    block = size["e"] if packed else 1
    if take.axis == (2 if packed else 1):
        first, last = take.start // block, (take.stop - 1) // block + 1
        whole = take.step == 1 and take.start % block == take.stop % block == 0
        shares = first % size["g"] == last % size["g"] == 0
        shares = shares or first // size["g"] == (last - 1) // size["g"]
        is_ours = whole and shares
    else:
        is_ours = True
    (by_rule if is_ours else left_alone)(graph, take)


def test_attention_that_sees_by_position_keeps_its_queries(graph_of):
    inputs = "float[1,2,4,3] q, float[1,2,4,3] k, float[1,2,4,3] v"
    graph = graph_of(f"g ({inputs}) => (y) {{ y = Attention<is_causal=1>(q, k, v) }}", 23)
    left_alone(graph, Take(2, 1, 3))
    by_rule(graph, Take(1, 1, 2))


def test_attention_with_a_cache_is_left_alone(graph_of):
    shape = "float[1,2,4,3]"
    graph = graph_of(
        f"g ({shape} q, {shape} k, {shape} v, {shape} pk, {shape} pv) => (y, nk, nv) "
        "{ y, nk, nv = Attention(q, k, v, , pk, pv) }",
        23,
    )
    left_alone(graph, Take(1, 1, 2))


# -- along an axis ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@given(data=st.data())
@EXAMPLES
def test_softmax(graph_of, op, data):
    shape = data.draw(shapes(1, 4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    graph = graph_of(f"g (float{text(shape)} a) => (y) {{ y = {op}<axis={axis}>(a) }}")
    take = data.draw(takes(shape))
    assume(not take.is_whole(shape[take.axis]))
    if take.axis == axis % len(shape):
        left_alone(graph, take)
    else:
        by_rule(graph, take)


def test_softmax_of_old_opsets_is_left_alone(graph_of):
    """Before opset 13 it runs over all axes from its own on."""
    left_alone(graph_of("g (float[2,3,4] a) => (y) { y = Softmax<axis=1>(a) }", 11), Take(0, 0, 1))


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@given(data=st.data())
@EXAMPLES
def test_layer_norm(graph_of, op, data):
    """Gain and bias may broadcast: over the axes before the normalized ones too."""
    shape = data.draw(shapes(2, 4))
    assume(shape[-1] > 1)
    axis = data.draw(st.integers(1, len(shape) - 1))
    first = data.draw(st.sampled_from([0, axis])) if axis > 0 else axis
    gain = data.draw(st.sampled_from([shape[axis:], shape[first:]]))
    written = axis - data.draw(st.sampled_from([0, len(shape)]))
    affine = "a, g, b" if op == "LayerNormalization" else "a, g"
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y) <float{text(gain)} g, float{text(gain)} b>
        {{ y = {op}<axis={written}, epsilon=0.01>({affine}) }}""",
        23,
    )
    take = data.draw(takes(shape))
    assume(not take.is_whole(shape[take.axis]))
    if take.axis < axis:
        by_rule(graph, take)
    else:
        left_alone(graph, take)


# -- data movement ---------------------------------------------------------------------------------


@given(data=st.data())
@EXAMPLES
def test_transpose(graph_of, data):
    shape = data.draw(shapes(1, 4))
    perm = data.draw(st.permutations(range(len(shape))))
    written = data.draw(st.sampled_from([f"<perm={list(perm)}>", ""]))
    graph = graph_of(f"g (float{text(shape)} a) => (y) {{ y = Transpose{written}(a) }}")
    by_rule(graph, data.draw(takes(static_shape(graph.ir.tensors()["y"]))))


@given(data=st.data())
@EXAMPLES
def test_unsqueeze_and_squeeze(graph_of, data):
    shape = data.draw(shapes(1, 3))
    rank = len(shape) + data.draw(st.integers(1, 2))
    axes = data.draw(st.permutations(range(rank)))[: rank - len(shape)]
    written = [axis - data.draw(st.sampled_from([0, rank])) for axis in axes]
    values = f"{{{', '.join(map(str, written))}}}"
    constant = f"<int64[{len(axes)}] axes = {values}>"
    graph = graph_of(f"g (float{text(shape)} a) => (y) {constant} {{ y = Unsqueeze(a, axes) }}")
    wide = static_shape(graph.ir.tensors()["y"])
    by_rule(graph, data.draw(takes(wide)))
    back = graph_of(f"g (float{text(wide)} a) => (y) {constant} {{ y = Squeeze(a, axes) }}")
    by_rule(back, data.draw(takes(shape)))
    bare = graph_of(f"g (float{text(wide)} a) => (y) {{ y = Squeeze(a) }}")
    if squeezed := static_shape(bare.ir.tensors()["y"]):
        by_rule(bare, data.draw(takes(squeezed)))


def test_squeeze_before_opset_13(graph_of):
    graph = graph_of("g (float[1,3,1] a) => (y) { y = Squeeze<axes=[0]>(a) }", 11)
    by_rule(graph, Take(0, 1, 3))
    graph = graph_of("g (float[2,3] a) => (y) { y = Unsqueeze<axes=[1]>(a) }", 11)
    by_rule(graph, Take(2, 1, 3))


@given(data=st.data())
@EXAMPLES
def test_split(graph_of, data):
    shape = data.draw(shapes(1, 3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    length = shape[axis]
    assume(length > 1)
    cut = data.draw(st.integers(1, length - 1))
    how, opset = data.draw(
        st.sampled_from([("sizes", 18), ("count", 18), ("attribute", 11), ("equal", 13)])
    )
    assume(how != "equal" or length % 2 == 0)
    sizes, attributes, second = "", f"axis={axis}", ""
    if how == "sizes":
        sizes, second = f"<int64[2] s = {{{cut}, {length - cut}}}>", ", s"
    attributes += {"count": ", num_outputs=2", "attribute": f", split=[{cut},{length - cut}]"}.get(
        how, ""
    )
    graph = graph_of(
        f"g (float{text(shape)} a) => (y, z) {sizes} {{ y, z = Split<{attributes}>(a{second}) }}",
        opset,
    )
    for output in ("y", "z"):
        part = static_shape(graph.ir.tensors()[output])
        pulled = Pulled(graph, data.draw(takes(part)), output).check()
        assert set(pulled.stopped_at) <= {"a"}


@pytest.mark.parametrize(("length", "first"), [(5, 3), (7, 3), (6, 2)])
def test_split_into_uneven_parts(graph_of, length, first):
    """`num_outputs` rounds the parts up; the last one is what is left."""
    outputs = ["y", "z"] if first == 3 and length == 5 else ["y", "z", "last"]
    graph = graph_of(
        f"""g (float[{length},2] a) => ({", ".join(outputs)})
        {{ {", ".join(outputs)} = Split<axis=0, num_outputs={len(outputs)}>(a) }}"""
    )
    assert static_shape(graph.ir.tensors()["y"]) == (first, 2)
    for output in outputs:
        pulled = Pulled(graph, Take(1, 0, 1), output).check()
        assert pulled.stopped_at == ["a"]


@given(data=st.data())
@EXAMPLES
def test_slice(graph_of, data):
    shape = data.draw(shapes(1, 3))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    bounds = [_bounds(data.draw, shape[axis]) for axis in axes]
    step_given = data.draw(st.booleans())
    columns = {
        "starts": [b[0] for b in bounds],
        "ends": [b[1] for b in bounds],
        "axes": [axis - data.draw(st.sampled_from([0, len(shape)])) for axis in axes],
        "steps": [b[2] if step_given else 1 for b in bounds],
    }
    declared = ", ".join(
        f"int64[{len(axes)}] {name} = {{{', '.join(map(str, values))}}}"
        for name, values in columns.items()
    )
    names = ", ".join(columns if step_given else list(columns)[:3])
    graph = graph_of(f"g (float{text(shape)} a) => (y) <{declared}> {{ y = Slice(a, {names}) }}")
    by_rule(graph, data.draw(takes(static_shape(graph.ir.tensors()["y"]))))


def _bounds(draw, length: int) -> tuple[int, int, int]:
    """Start, end and step of a slice that is not empty; ends may be negative or beyond the axis."""
    start = draw(st.integers(0, length - 1))
    end = draw(st.integers(start + 1, length))
    start = draw(st.sampled_from([start, start - length]))
    ends = [end, 2**63 - 1] + ([end - length] if end < length else [])
    return start, draw(st.sampled_from(ends)), draw(st.integers(1, 3))


def test_slice_backwards_is_left_alone(graph_of):
    """Along its own axis; another one passes."""
    graph = graph_of(
        """g (float[4,3] a) => (y)
        <int64[1] s = {-1}, int64[1] e = {-9}, int64[1] ax = {0}, int64[1] st = {-1}>
        { y = Slice(a, s, e, ax, st) }"""
    )
    left_alone(graph, Take(0, 0, 2))
    by_rule(graph, Take(1, 0, 2))
    by_rule(graph, Take(1, 1, 2, drop=True))


def test_slice_with_computed_bounds_of_another_axis(graph_of):
    graph = graph_of(
        """g (float[3,4] a, int64[1] s, int64[1] e) => (float[3,2] y) <int64[1] ax = {-1}>
        { y = Slice(a, s, e, ax) }"""
    )
    slicer = Slicer(graph, Builder(graph, "test"))
    part = slicer.pull(graph.ir.tensors()["y"], Take(0, 1, 2, drop=True))
    node = producer_of(part)
    assert (node.op, graph.ints(node.inputs[3])) == ("Slice", [0])
    assert producer_of(node.inputs[0]).inputs[0].name == "a"


def test_slice_with_computed_bounds_is_left_alone(graph_of):
    graph = graph_of(
        """g (float[4,3] a, int64[1] s, int64[1] e) => (float[2,3] y) { y = Slice(a, s, e) }"""
    )
    slicer = Slicer(graph, Builder(graph, "test"))
    part = slicer.pull(graph.ir.tensors()["y"], Take(1, 0, 2))
    assert producer_of(part).inputs[0].name == "y"


@given(data=st.data())
@EXAMPLES
def test_gather(graph_of, data):
    shape = data.draw(shapes(1, 3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    length = shape[axis]
    scalar = data.draw(st.booleans())
    count = 1 if scalar else data.draw(st.integers(1, 4))
    chosen = [data.draw(st.integers(-length, length - 1)) for _ in range(count)]
    kind = "int64" if scalar else f"int64[{count}]"
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y) <{kind} i = {{{", ".join(map(str, chosen))}}}>
        {{ y = Gather<axis={axis}>(a, i) }}"""
    )
    y = static_shape(graph.ir.tensors()["y"])
    assume(len(y) > 0)
    by_rule(graph, data.draw(takes(y)))


@given(data=st.data())
@EXAMPLES
def test_gather_by_indices_of_any_shape(graph_of, data):
    """Computed ones too; T5 and Swin look up the biases of positions so."""
    shape, form = data.draw(shapes(1, 3)), data.draw(shapes(0, 2))
    axis, count = data.draw(st.integers(0, len(shape) - 1)), math.prod(form)
    values = [data.draw(st.integers(0, shape[axis] - 1)) for _ in range(count)]
    graph = graph_of(
        f"""g (float{text(shape)} a, int64{text(form)} n) => (y)
        <int64{text(form)} k = {{{", ".join(map(str, values))}}}>
        {{ z = Sub(n, n) i = Add(z, k) y = Gather<axis={axis}>(a, i) }}"""
    )
    y = static_shape(graph.ir.tensors()["y"])
    assume(len(y) > 0)
    by_rule(graph, data.draw(takes(y)))


@given(data=st.data())
@EXAMPLES
def test_gather_elements(graph_of, data):
    shape = data.draw(shapes(1, 3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    form = tuple(data.draw(DIM) if k == axis else d for k, d in enumerate(shape))
    values = [data.draw(st.integers(0, shape[axis] - 1)) for _ in range(math.prod(form))]
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y)
        <int64{text(form)} i = {{{", ".join(map(str, values))}}}>
        {{ y = GatherElements<axis={axis - len(shape)}>(a, i) }}"""
    )
    take = data.draw(takes(form))
    assume(not take.is_whole(form[take.axis]))
    is_reshaped = take.drop and take.axis == axis and form[axis] == 1
    (left_alone if is_reshaped else by_rule)(graph, take)


@given(data=st.data())
@EXAMPLES
def test_gather_nd(graph_of, data):
    shape, form = data.draw(shapes(1, 3)), data.draw(shapes(1, 2))
    depth = data.draw(st.integers(1, len(shape)))
    values = [
        data.draw(st.integers(0, shape[k % depth] - 1)) for k in range(math.prod(form) * depth)
    ]
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y)
        <int64{text((*form, depth))} i = {{{", ".join(map(str, values))}}}>
        {{ y = GatherND(a, i) }}"""
    )
    by_rule(graph, data.draw(takes(static_shape(graph.ir.tensors()["y"]))))


def test_gather_nd_in_batches_is_left_alone(graph_of):
    graph = graph_of(
        """g (float[2,3] a) => (y) <int64[2,2,1] i = {0, 2, 1, 1}>
        { y = GatherND<batch_dims=1>(a, i) }"""
    )
    left_alone(graph, Take(0, 1, 2))


# -- repeating and padding -------------------------------------------------------------------------


@given(data=st.data())
@EXAMPLES
def test_tile(graph_of, data):
    """Within one repetition, or of several whole ones."""
    shape = data.draw(shapes(1, 3))
    repeats = [data.draw(st.integers(1, 3)) for _ in shape]
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y)
        <int64[{len(shape)}] r = {{{", ".join(map(str, repeats))}}}> {{ y = Tile(a, r) }}"""
    )
    y = static_shape(graph.ir.tensors()["y"])
    take = data.draw(takes(y))
    length = shape[take.axis]
    whole = take.step == 1 and take.start % length == take.stop % length == 0
    if take.is_whole(y[take.axis]) or whole or take.start // length == (take.stop - 1) // length:
        by_rule(graph, take)
    else:
        left_alone(graph, take)


@given(data=st.data())
@EXAMPLES
def test_pad(graph_of, data):
    shape = data.draw(shapes(1, 3))
    before, after = ([data.draw(st.integers(0, 2)) for _ in shape] for _ in range(2))
    mode = data.draw(st.sampled_from(["constant", "constant", "edge"]))
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y) <float v = {{0.5}},
            int64[{2 * len(shape)}] p = {{{", ".join(map(str, before + after))}}}>
        {{ y = Pad<mode="{mode}">(a, p, v) }}"""
    )
    y = static_shape(graph.ir.tensors()["y"])
    take = data.draw(takes(y))
    assume(not take.is_whole(y[take.axis]))
    first, last = before[take.axis], before[take.axis] + shape[take.axis]
    is_padded = y[take.axis] > shape[take.axis]
    if is_padded and (mode == "edge" or take.step > 1 or take.stop <= first or take.start >= last):
        left_alone(graph, take)
    else:
        by_rule(graph, take)


def test_pad_of_some_axes(graph_of):
    """As windows are padded (SAM): the channels come apart."""
    graph = graph_of(
        """g (float[1,3,4] a) => (y) <int64[2] p = {1, 2}, int64[1] ax = {-2}, float v = {0}>
        { y = Pad(a, p, v, ax) }"""
    )
    assert by_rule(graph, Take(2, 1, 3)).ops == ["Slice", "Pad"]
    assert by_rule(graph, Take(1, 1, 3)).ops == ["Slice"]
    assert by_rule(graph, Take(1, 3, 6)).ops == ["Slice", "Pad"]
    left_alone(graph, Take(1, 4, 6))


@given(data=st.data())
@EXAMPLES
def test_flatten(graph_of, data):
    shape = data.draw(shapes(2, 4))
    axis = data.draw(st.integers(0, len(shape)))
    graph = graph_of(f"g (float{text(shape)} a) => (y) {{ y = Flatten<axis={axis}>(a) }}")
    y = static_shape(graph.ir.tensors()["y"])
    take = data.draw(takes(y))
    assume(not take.is_whole(y[take.axis]))
    found = takes_before_reshape(shape, y, take)
    (by_rule if found is not None or y[take.axis] == 1 else left_alone)(graph, take)


@given(data=st.data())
@EXAMPLES
def test_constant_of_shape(graph_of, data):
    shape = data.draw(shapes(1, 3))
    graph = graph_of(
        f"""g (float{text(shape)} a) => (y)
        <int64[{len(shape)}] s = {{{", ".join(map(str, shape))}}}>
        {{ c = ConstantOfShape<value = float[1] {{2.5}}>(s) y = Add(a, c) }}"""
    )
    by_rule(graph, data.draw(takes(shape)))


@given(data=st.data())
@EXAMPLES
def test_trilu(graph_of, data):
    shape = data.draw(shapes(2, 4))
    graph = graph_of(f"g (float{text(shape)} a) => (y) {{ y = Trilu<upper=0>(a) }}")
    take = data.draw(takes(shape))
    assume(not take.is_whole(shape[take.axis]))
    (by_rule if take.axis < len(shape) - 2 else left_alone)(graph, take)


@given(data=st.data())
@EXAMPLES
def test_concat(graph_of, data):
    shape = list(data.draw(shapes(1, 3)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    lengths = data.draw(st.lists(DIM, min_size=2, max_size=3))
    parts = [text([*shape[:axis], n, *shape[axis + 1 :]]) for n in lengths]
    inputs = ", ".join(f"float{part} a{k}" for k, part in enumerate(parts))
    names = ", ".join(f"a{k}" for k in range(len(parts)))
    written = axis - data.draw(st.sampled_from([0, len(shape)]))
    graph = graph_of(f"g ({inputs}) => (y) {{ y = Concat<axis={written}>({names}) }}")
    y = static_shape(graph.ir.tensors()["y"])
    take = data.draw(takes(y))
    taken = range(take.start, take.stop, take.step)
    edges = [0, *itertools.accumulate(lengths)]
    inside = any(a <= taken[0] and taken[-1] < b for a, b in itertools.pairwise(edges))
    are_whole = take.step == 1 and {take.start, take.stop} <= {*edges}  # some inputs, all of each
    if take.axis == axis and not inside and not are_whole:
        left_alone(graph, take)
    else:
        by_rule(graph, take)


@given(data=st.data())
@EXAMPLES
def test_expand(graph_of, data):
    shape = data.draw(shapes(1, 4))
    a = operand(data.draw, shape)
    graph = graph_of(
        f"""g (float{text(a)} a) => (y) <int64[{len(shape)}] s = {{{", ".join(map(str, shape))}}}>
        {{ y = Expand(a, s) }}"""
    )
    by_rule(graph, data.draw(takes(shape)))


def test_a_slice_across_concatenated_weights(graph_of):
    """Projections joined: a slice across them is one of each, if nothing is left by that."""
    graph = graph_of(
        """g (float[3,4] x) => (y) <float[4,4] u, float[4,4] w>
        { a = MatMul(x, u) b = MatMul(x, w) y = Concat<axis=1>(a, b) }"""
    )
    pulled = by_rule(graph, Take(1, 2, 6))
    assert (pulled.ops, pulled.left) == (["MatMul", "MatMul", "Concat"], [])
    by_rule(graph, Take(1, 1, 8, 3))
    left_alone(graph_of("g (float[4] a, float[4] b) => (y) { y = Concat<axis=0>(a, b) }"),
               Take(0, 2, 6))  # fmt: skip


def test_tokens_rolled_around(graph_of):
    """Shifted windows (Swin): Slices joined in another order; the features come apart."""
    graph = graph_of(
        """g (float[1,6,4] x) => (y) <float[4,4] w, int64[1] a = {0}, int64[1] b = {2},
            int64[1] c = {6}, int64[1] ax = {1}>
        { z = MatMul(x, w) one = Slice(z, a, b, ax) two = Slice(z, b, c, ax)
          y = Concat<axis=1>(two, one) }"""
    )
    pulled = Pulled(graph, Take(2, 1, 3)).check()
    assert sorted(pulled.ops) == ["Concat", "MatMul", "Slice", "Slice"]


# -- reshape ---------------------------------------------------------------------------------------


def factorizations(count: int, rank: int) -> list[tuple[int, ...]]:
    """Every shape of `rank` with `count` elements, ones included."""
    if rank == 0:
        return [()] if count == 1 else []
    return [
        (first, *rest)
        for first in range(1, count + 1)
        if count % first == 0
        for rest in factorizations(count // first, rank - 1)
    ]


def every_take(shape: Sequence[int]) -> list[Take]:
    return [
        take
        for axis, length in enumerate(shape)
        for start in range(length)
        for take in [
            Take(axis, start, start + 1, drop=True),
            *(
                Take(axis, start, stop, step)
                for stop in range(start + 1, length + 1)
                for step in (1, 2, 3)
            ),
        ]
    ]


def sliced(values: np.ndarray, take: Take) -> np.ndarray:
    index = [slice(None)] * values.ndim
    index[take.axis] = take.start if take.drop else slice(take.start, take.stop, take.step)
    return values[tuple(index)]


@pytest.mark.parametrize("count", [2, 4, 6, 8, 12])
def test_takes_before_reshape_is_the_same_data_in_the_same_order(count):
    """Every pair of shapes up to rank 3, every take: what is found is right."""
    all_shapes = [s for rank in (1, 2, 3) for s in factorizations(count, rank)]
    wrong, count_found = [], 0
    for target in all_shapes:
        flat = np.arange(count).reshape(target)
        wanted = {take: sliced(flat, take).ravel() for take in every_take(target)}
        for source in all_shapes:
            data = np.arange(count).reshape(source)
            for take, expected in wanted.items():
                found = takes_before_reshape(source, target, take)
                if found is None:
                    continue
                count_found += 1
                left = data
                for one in found:
                    inside = 0 <= one.start < one.stop and one.axis < left.ndim
                    left = sliced(left, one) if inside else None
                if left is None or not np.array_equal(left.ravel(), expected):
                    wrong.append((source, target, take, found))
    assert wrong == []
    assert count_found > 0


@pytest.mark.parametrize(
    ("source", "target", "take", "expected"),
    [
        pytest.param((5, 12), (5, 4, 3), Take(1, 1, 2), [Take(1, 3, 6)], id="C = H·D"),
        pytest.param((5, 12), (5, 3, 4), Take(2, 1, 2), [Take(1, 1, 12, 4)], id="C = D·H"),
        pytest.param((9, 9), (9, 3, 3), Take(1, 1, 2), [Take(1, 3, 6)], id="N = H·D"),
        pytest.param(
            (5, 4, 3), (5, 12), Take(1, 3, 6), [Take(1, 1, 2, drop=True)], id="merge of heads"
        ),
        pytest.param((1, 4, 5, 3), (4, 5, 3), Take(0, 1, 2), [Take(1, 1, 2)], id="1·H"),
        pytest.param(
            (2, 4, 5, 3),
            (8, 5, 3),
            Take(0, 6, 7, drop=True),
            [Take(0, 1, 2, drop=True), Take(0, 2, 3, drop=True)],
            id="B·H",
        ),
        pytest.param((5, 36), (5, 3, 4, 3), Take(2, 1, 2), None, id="H of 3·H·D"),
        pytest.param(
            (16, 4, 9, 3),
            (64, 9, 3),
            Take(0, 1, 64, 4),
            [Take(1, 1, 2, drop=True)],
            id="one head of every window of W·H",
        ),
        pytest.param(
            (3, 4),
            (2, 6),
            Take(0, 0, 1),
            None,
            id="no common factors",
        ),
        pytest.param(
            ("b", "n", 12), ("b", "n", 4, 3), Take(2, 1, 2), [Take(2, 3, 6)], id="dynamic"
        ),
        pytest.param(
            (None, None, 4, 3),
            (None, None, 12),
            Take(2, 3, 6),
            [Take(2, 1, 2, drop=True)],
            id="nothing known before the heads",
        ),
        pytest.param(("n", 4, 3), (None, 3), Take(0, 0, 1), None, id="a dynamic axis"),
        pytest.param(
            ("b", 4, "n", 3),
            ("b", 2, 2, "n", 3),
            Take(1, 1, 2),
            [Take(1, 2, 4)],
            id="between dynamic ones",
        ),
        pytest.param((5, 4, 3), (5, 12), Take(1, 2, 4), None, id="across two heads"),
    ],
)
def test_which_slices_are_found_before_a_reshape(source, target, take, expected):
    assert takes_before_reshape(source, target, take) == expected


def test_the_two_axes_of_packed_qkv_compose(graph_of):
    """3·H·D: the outer factor is a range; a head inside of it is a range of that range."""
    graph = graph_of(
        """g (float[1,5,8] x) => (y) <float[8,36] w, float[36] b, int64[5] s = {1, 5, 3, 4, 3},
            int64 one = {1}>
        { m = MatMul(x, w) n = Add(m, b) r = Reshape(n, s) y = Gather<axis=2>(r, one) }"""
    )
    pulled = by_rule(graph, Take(2, 2, 3))
    assert pulled.left == []
    constants = [t.name for node in pulled.builder.nodes for t in node.inputs if not t.inputs]
    assert "test/w[:, 12:24][:, 6:9]" in constants
    assert "test/b[12:24][6:9]" in constants


@given(data=st.data())
@EXAMPLES
def test_reshape(graph_of, data):
    """With or without a rule, the result is right."""
    count = data.draw(st.sampled_from([4, 6, 8, 12, 24]))
    options = st.sampled_from([s for rank in (1, 2, 3, 4) for s in factorizations(count, rank)])
    source, target = data.draw(options), data.draw(options)
    graph = graph_of(
        f"""g (float{text(source)} a) => (y)
        <int64[{len(target)}] s = {{{", ".join(map(str, target))}}}> {{ y = Reshape(a, s) }}"""
    )
    take = data.draw(takes(target))
    pulled = Pulled(graph, take).check()
    found = takes_before_reshape(source, target, take)
    if found is not None or target[take.axis] == 1:
        assert set(pulled.stopped_at) <= {"a"}
    elif not take.is_whole(target[take.axis]):
        assert pulled.stopped_at == ["y"]


# -- all of it -------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=150)
def test_chains_of_data_movement(graph_of, data):
    """Rules compose: random chains of Reshape, Transpose, Slice, Gather, Concat and arithmetic."""
    size = data.draw(st.sampled_from([2, 3, 4]))
    shape: tuple[int, ...] = (size, size, size)  # N = H = D: nothing but the rules tells them apart
    lines, constants, name = [], [], "x"
    for k in range(data.draw(st.integers(1, 5))):
        step = data.draw(
            st.sampled_from(["Reshape", "Transpose", "Gather", "Slice", "Softmax", "Add", "Concat"])
        )
        new = f"t{k}"
        if step == "Reshape":
            options = [s for rank in (2, 3, 4) for s in factorizations(math.prod(shape), rank)]
            shape = data.draw(st.sampled_from(options))
            constants.append(f"int64[{len(shape)}] c{k} = {{{', '.join(map(str, shape))}}}")
            lines.append(f"{new} = Reshape({name}, c{k})")
        elif step == "Transpose":
            perm = data.draw(st.permutations(range(len(shape))))
            shape = tuple(shape[axis] for axis in perm)
            lines.append(f"{new} = Transpose<perm={list(perm)}>({name})")
        elif step == "Gather":
            axis = data.draw(st.integers(0, len(shape) - 1))
            if len(shape) == 1:
                continue
            constants.append(f"int64 c{k} = {{{data.draw(st.integers(0, shape[axis] - 1))}}}")
            lines.append(f"{new} = Gather<axis={axis}>({name}, c{k})")
            shape = (*shape[:axis], *shape[axis + 1 :])
        elif step == "Slice":
            axis = data.draw(st.integers(0, len(shape) - 1))
            start = data.draw(st.integers(0, shape[axis] - 1))
            stop = data.draw(st.integers(start + 1, shape[axis]))
            for kind, value in (("s", start), ("e", stop), ("a", axis)):
                constants.append(f"int64[1] c{k}{kind} = {{{value}}}")
            lines.append(f"{new} = Slice({name}, c{k}s, c{k}e, c{k}a)")
            shape = (*shape[:axis], stop - start, *shape[axis + 1 :])
        elif step == "Softmax":
            axis = data.draw(st.integers(-1, len(shape) - 1))
            lines.append(f"{new} = Softmax<axis={axis}>({name})")
        elif step == "Add":
            constants.append(f"float{text(operand(data.draw, shape))} c{k}")
            lines.append(f"{new} = Add({name}, c{k})")
        else:
            axis = data.draw(st.integers(0, len(shape) - 1))
            lines.append(f"{new} = Concat<axis={axis}>({name}, {name})")
            shape = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
        name = new
    declared = f"<{', '.join(constants)}>" if constants else ""
    graph = graph_of(
        f"g (float[{size},{size},{size}] x) => (y) {declared} "
        f"{{ {' '.join(lines)} y = Identity({name}) }}"
    )
    Pulled(graph, data.draw(takes(shape))).check()


def test_equal_requests_share_one_result(graph_of):
    graph = graph_of("g (float[2,4] a) => (y) { b = Relu(a) c = Exp(b) y = Add(b, c) }")
    assert sorted(by_rule(graph, Take(1, 0, 2)).ops) == ["Add", "Exp", "Relu", "Slice"]


def test_slices_of_one_axis_become_one(graph_of):
    graph = graph_of(
        """g (float[9,4] a) => (y)
        <int64[1] s = {1}, int64[1] e = {9}, int64[1] ax = {0}, int64[1] st = {2}>
        { y = Slice(a, s, e, ax, st) }"""
    )
    pulled = by_rule(graph, Take(0, 1, 4, 2))
    (node,) = pulled.left
    assert [graph.ints(tensor) for tensor in node.inputs[1:]] == [[3], [8], [0], [4]]


def test_an_explicit_slice_of_another_axis_stays_behind(graph_of):
    """Past and present keys joined, then a window of them: the heads come apart all the same."""
    graph = graph_of(
        """g (float[3,8] past, float[4,6] x) => (y) <float[6,8] w,
            int64[1] s = {1}, int64[1] e = {6}, int64[1] ax = {0}>
        { k = MatMul(x, w) joined = Concat<axis=0>(past, k) y = Slice(joined, s, e, ax) }"""
    )
    pulled = Pulled(graph, Take(1, 2, 4)).check()
    assert pulled.stopped_at == ["past"]
    assert sorted(pulled.ops) == ["Concat", "MatMul", "Slice", "Slice"]


def test_an_unknown_op_keeps_its_slice(graph_of):
    graph = graph_of("g (float[2,4] a) => (y) <int64 n = {1}> { y = CumSum(a, n) }")
    assert left_alone(graph, Take(0, 0, 1)).ops == ["Slice"]
    assert left_alone(graph, Take(1, 2, 3, drop=True)).ops == ["Gather"]


def test_a_folded_constant_is_sliced_before_it_is_rounded(graph_of):
    """What a pass made is float64 until it is written; a slice of it has to be so as well."""
    graph = graph_of(
        "g (float[2,4] a) => (y) <float[4] k, float[4] l> { m = Div(k, l) y = Add(a, m) }"
    )
    expected = graph.exact(graph.ir.tensors()["k"]) / graph.exact(graph.ir.tensors()["l"])
    fold_constants(graph)
    slicer = Slicer(graph, Builder(graph, "test"))
    part = slicer.pull(graph.ir.tensors()["y"], Take(1, 1, 3))
    np.testing.assert_array_equal(graph.exact(producer_of(part).inputs[1]), expected[1:3])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((2, 1, 3, "a", 4), (2, 3, "b", 4)),
        ((2, 3, None), (2, 1, 3, None)),
        ((2, 3, "a"), (2, 3, "b")),
    ],
)
def test_what_is_dynamic_on_both_sides_is_equal_if_all_else_is(source, target):
    """An exporter's -1 gets a name of its own."""
    axis = target.index(3)
    (found,) = takes_before_reshape(source, target, Take(axis, 1, 2))
    assert found == Take(source.index(3), 1, 2)


def test_two_dynamic_sizes_may_be_anything():
    assert takes_before_reshape((2, 3, "a", "b"), (3, 2, "c", "d"), Take(0, 1, 2)) is None
