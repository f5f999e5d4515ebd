"""Constants folded in NumPy: the same values as the ops give, views where data only moves."""

import numpy as np
import pytest

from compiler.folding import FOLDS, MAX_GROWTH_NBYTES, fold_constants
from compiler.region import region_of
from compiler.verify.float64 import evaluate

CONSTANTS = """float[2,3] w, float[2,3] v, float[3] row, float[1,3,1] thin, float[2,6] wide,
    int64[2] turned = {3, 2}, int64[2] kept = {0, -1}, int64[3] cube = {1, 2, 3},
    int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
    int64[1] last = {-1}, int64[1] end = {9223372036854775807},
    int64[1] begin = {-9223372036854775807}, int64[1] back = {-1}, int64[2] outer = {0, 2},
    int64 first = {1}, int64 minus = {-1}, int64 seven = {7}, int64[3] signed = {3, -2, -5},
    int64[2,3] ones = {1, 0, 1, 0, 1, -1}, int64[2,2] pairs = {0, 2, 1, -1},
    int64[2,1] column = {1, 0}, float[2] pair, float[4] halves = {0.5, 1.5, 2.5, -0.5},
    int64[2] picked = {2, -3}, int64[3] counts = {7, 8, 9}, int64[3] parts = {2, 3, 4},
    bool[2,3] mask, bool[2,3] other, float[2,3] positive = {1, 2, 3, 4, 5, 6}"""

CASES = {
    "Transpose": ["Transpose(w)", "Transpose<perm=[1,0]>(w)", "Transpose<perm=[2,0,1]>(thin)"],
    "Reshape": ["Reshape(w, turned)", "Reshape(w, kept)", "Reshape(w, back)"],
    "Unsqueeze": ["Unsqueeze(w, zero)", "Unsqueeze(w, last)", "Unsqueeze(w, outer)"],
    "Squeeze": ["Squeeze(thin, zero)", "Squeeze(thin)"],
    "Concat": ["Concat<axis=0>(w, v)", "Concat<axis=-1>(w, v)", "Concat<axis=0>(one, three)"],
    "Gather": ["Gather(w, first)", "Gather<axis=1>(w, picked)", "Gather<axis=-1>(w, two)"],
    "Expand": ["Expand(row, cube)", "Expand(w, cube)"],
    "Slice": [
        "Slice(w, zero, one)",
        "Slice(w, one, end, last)",
        "Slice(wide, one, end, last, two)",
        "Slice(wide, last, begin, one, back)",
        "Slice(wide, end, begin, one, back)",
        "Slice(wide, three, zero, one, back)",
    ],
    "Where": ["Where(mask, w, v)", "Where(mask, row, v)"],
    "Tile": ["Tile(w, turned)", "Tile(row, two)"],
    "Trilu": ["Trilu(w)", "Trilu<upper=0>(w, first)", "Trilu(wide, minus)"],
    "GatherElements": ["GatherElements(w, ones)", "GatherElements<axis=-1>(w, ones)"],
    "GatherND": ["GatherND(w, pairs)", "GatherND(w, column)"],
    "ScatterND": ["ScatterND(w, pairs, pair)", "ScatterND(w, column, v)"],
    "ConstantOfShape": [
        "ConstantOfShape(cube)",
        "ConstantOfShape<value = int64[1] {7}>(cube)",
        "ConstantOfShape<value = float[1] {0.5}>(turned)",
    ],
    "Shape": ["Shape(w)", "Shape<start=1>(thin)", "Shape<start=0, end=-1>(thin)"],
    "Cast": ["Cast<to=7>(positive)", "Cast<to=1>(counts)", "Cast<to=9>(counts)", "Cast<to=11>(w)"],
    "Add": ["Add(w, v)", "Add(counts, parts)", "Add(w, row)"],
    "Sub": ["Sub(w, v)", "Sub(parts, counts)"],
    "Mul": ["Mul(w, v)", "Mul(counts, parts)"],
    "Div": ["Div(w, v)", "Div(counts, parts)"],
    "Neg": ["Neg(w)", "Neg(counts)"],
    "Sqrt": ["Sqrt(positive)"],
    "Pow": ["Pow(positive, two)"],
    "Log": ["Log(positive)"],
    "Exp": ["Exp(w)"],
    "Abs": ["Abs(w)", "Abs(counts)"],
    "Sign": ["Sign(w)", "Sign(counts)"],
    "Ceil": ["Ceil(w)"],
    "Floor": ["Floor(w)"],
    "Round": ["Round(w)", "Round(halves)"],
    "Min": ["Min(w, v, row)", "Min(counts, parts)"],
    "Max": ["Max(w, v, row)", "Max(counts, parts)", "Max(w)"],
    "Mod": ["Mod(counts, parts)", "Mod(parts, signed)"],
    "Range": ["Range(first, seven, first)", "Range(seven, first, minus)"],
    "ReduceSum": [
        "ReduceSum(w)",
        "ReduceSum<keepdims=0>(w, last)",
        "ReduceSum<noop_with_empty_axes=1>(w)",
        "ReduceSum(counts, zero)",
    ],
    "ReduceProd": ["ReduceProd<keepdims=0>(counts)", "ReduceProd(w, one)"],
    "ReduceMin": ["ReduceMin(w, one)", "ReduceMin<keepdims=0>(counts)"],
    "ReduceMax": ["ReduceMax(w, one)", "ReduceMax<keepdims=0>(counts)"],
    "Reciprocal": ["Reciprocal(w)"],
    "Equal": ["Equal(counts, parts)", "Equal(counts, counts)"],
    "Greater": ["Greater(w, v)"],
    "GreaterOrEqual": ["GreaterOrEqual(w, w)"],
    "Less": ["Less(w, v)"],
    "LessOrEqual": ["LessOrEqual(w, v)"],
    "And": ["And(mask, other)"],
    "Or": ["Or(mask, other)"],
    "Not": ["Not(mask)"],
}


def test_every_fold_is_tested():
    assert set(CASES) == {*FOLDS, "Shape"}


@pytest.mark.parametrize("expression", [e for cases in CASES.values() for e in cases])
def test_folds(graph_of, expression):
    graph = graph_of(f"g () => (y) <{CONSTANTS}> {{ c = {expression} y = Identity(c) }}")
    kind, shape = graph.ir.tensors()["c"].dtype, tuple(graph.ir.tensors()["c"].shape)
    region = region_of(graph, graph.nodes, [graph.ir.tensors()["c"]])
    expected = evaluate(region.nodes, region.exact_constants(), {}, ["c"], region.opsets)["c"]
    fold_constants(graph)
    assert [node.op for node in graph.nodes] == ["Identity"]
    constant = graph.nodes[0].inputs[0]
    assert constant.name == "c"
    assert np.dtype(constant.dtype) == np.dtype(kind)
    assert graph.values(constant).dtype == np.dtype(kind)
    assert graph.values(constant).shape == shape
    np.testing.assert_allclose(graph.exact(constant), expected, rtol=1e-15)
    assert graph.exact(constant).dtype == expected.dtype


def test_moved_weights_are_views(graph_of):
    graph = graph_of("g (float[2] x) => (y) <float[300,2] w> { t = Transpose(w) y = MatMul(x, t) }")
    weights = graph.weight(graph.nodes[0].inputs[0]).unrounded()
    fold_constants(graph)
    moved = graph.weight(graph.nodes[0].inputs[1]).unrounded()
    assert moved.base is not None
    assert not moved.flags.c_contiguous
    np.testing.assert_array_equal(moved, weights.T)


def test_a_chain_is_rounded_once(graph_of):
    """Data movement keeps what arithmetic has not rounded yet."""
    graph = graph_of(
        """g (float[3] x) => (y) <float[2,3] w, float three = {3}, int64[1] flat = {-1}>
        { a = Div(w, three) b = Transpose(a) c = Reshape(b, flat) d = Mul(c, three)
          e = Concat<axis=0>(d, d) y = MatMul(x, x) z = Add(e, y) }"""
    )
    w = graph.exact(graph.ir.tensors()["w"])
    fold_constants(graph)
    (add,) = [node for node in graph.nodes if node.op == "Add"]
    expected = np.concatenate(2 * [((w / 3).T.reshape(-1)) * 3])
    np.testing.assert_array_equal(graph.exact(add.inputs[0]), expected)
    assert graph.values(add.inputs[0]).dtype == np.float32


STEPS = {
    "given": ("d = Ceil(tenths)", True),
    "halved": ("c = Div(eight, two) d = Ceil(c)", True),
    "a square root": ("c = Pow(eight, third) d = Cast<to=7>(c)", True),
    "far from a step": ("c = Log(eight) d = Cast<to=7>(c)", True),
    "rounded up to a step": ("c = Mul(seven, eighth) d = Ceil(c)", False),
    "equal in float64": ("c = Div(two, tenths) d = Equal(c, two)", True),
    "a third of three": ("b = Div(two, six) c = Mul(b, six) d = Floor(c)", False),
    "compared to its like": ("b = Div(two, six) c = Mul(b, six) d = GreaterOrEqual(c, two)", False),
    "no number": ("b = Sub(two, two) c = Log(b) d = Cast<to=7>(c)", False),
}


@pytest.mark.parametrize("what", STEPS)
def test_steps_are_folded_where_rounding_does_not_matter(graph_of, what):
    """8 / 7 in float32 is more than 8 / 7: its seventh multiple is 8 there, and above 8 exactly."""
    body, is_folded = STEPS[what]
    graph = graph_of(
        f"""g () => (y) <float two = {{2}}, float eight = {{64}}, float third = {{0.5}},
        float seven = {{7}}, float eighth = {{1.1428572}}, float six = {{6}},
        float[2] tenths = {{0.1, 0.7}}> {{ {body} y = Identity(d) }}"""
    )
    fold_constants(graph)
    assert (len(graph.nodes) == 1) == is_folded


LEFT = {
    "an input": ("y = Relu(x)", ["Relu"]),
    "an output": ("y = Add(w, w)", ["Add"]),
    "unknown op": ("c = Erf(w) y = Add(x, c)", ["Erf", "Add"]),
    "another domain": ("c = Add(w, w) y = Add(x, c)", ["Add", "Add"]),
    "two outputs": ("a, b = Split<num_outputs=2>(w) c = Add(a, b) y = Add(x, c)",
                    ["Split", "Add", "Add"]),
    "an endless range": ("c = Range(zero, many, unit) y = Add(x, x)", ["Range", "Add"]),
    "a range of floats": ("c = Range(f0, f1, f1) y = Add(x, c)", ["Range", "Add"]),
    "a sum of what is scattered": ('c = ScatterND<reduction="add">(w, at, w) y = Add(x, c)',
                                   ["ScatterND", "Add"]),
    "a remainder by zero": ("c = Mod(n, nought) y = Mul(c, n)", ["Mod", "Mul"]),
    "too large": ("c = Expand(w, huge) y = Add(x, c)", ["Expand", "Add"]),
    "negative division": ("c = Div(minus, n) y = Mul(c, n)", ["Div", "Mul"]),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_alone(graph_of, what):
    body, ops = LEFT[what]
    huge = MAX_GROWTH_NBYTES // 4
    graph = graph_of(
        f"""g (float[2] x) => (y) <float[2] w, int64[2] huge = {{{huge}, 2}},
        int64[1] minus = {{-7}}, int64[1] n = {{2}}, int64 zero = {{0}}, int64 unit = {{1}},
        int64 many = {{1000000000000}}, float f0 = {{0}}, float f1 = {{1}},
        int64[1] nought = {{0}}, int64[2,1] at = {{1, 0}}> {{ {body} }}"""
    )
    if what == "another domain":
        graph.nodes[0].domain = "custom"
    fold_constants(graph)
    assert [node.op for node in graph.nodes] == ops


def test_what_is_folded_says_how(graph_of):
    graph = graph_of(
        "g (float[2] x) => (y) <float[2] w> { a = Neg(w) b = Mul(a, w) y = Add(x, b) }"
    )
    fold_constants(graph)
    assert graph.weight(graph.nodes[0].inputs[1]).how == "Mul(Neg(w), w)"
