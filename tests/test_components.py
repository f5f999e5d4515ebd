"""What changed between two graphs, as claims that are each proven on their own."""

import pytest

from compiler.components import changed_components
from compiler.graph import PASS_KEY, REWRITE_KEY, SOURCES_KEY, Graph
from compiler.region import whole
from compiler.rewrite import ORIGIN_KEY, PASSES_KEY
from compiler.verify.proof import prove
from compiler.weights import NewWeight
from passes.canonicalize import Canonicalize

SOURCE = """g (float[2,4] x) => (float[2,4] y, float[2,4] z)
<float[4,4] w, float[4,4] v, float[4] b, float one = {1}, int64[2] s = {2, 4}>
{ a = MatMul(x, w) c = Add(a, b) d = Mul(c, one) e = Relu(d) f = Reshape(e, s)
  y = MatMul(f, v) z = Softmax<axis=-1>(c) }"""

# What the new graph has instead of some text of the old one: right changes, and wrong ones.
RIGHT = {
    "nothing": [],
    "a name inside": [("a", "a2")],
    "x · 1": [("d = Mul(c, one) e = Relu(d)", "e = Relu(c)")],
    "a Reshape to the same shape": [("f = Reshape(e, s)", "f = Identity(e)")],
    "a Reshape less": [("f = Reshape(e, s)\n  y = MatMul(f, v)", "y = MatMul(e, v)")],
    "two orders of a sum": [("c = Add(a, b)", "c = Add(b, a)")],
    "two places": [("d = Mul(c, one) e = Relu(d)", "e = Relu(c)"), ("Add(a, b)", "Add(b, a)")],
}
WRONG = {
    "an operand": [("c = Add(a, b)", "c = Sub(a, b)")],
    "an attribute": [("Softmax<axis=-1>", "Softmax<axis=0>")],
    "a small constant": [("float one = {1}", "float one = {1.01}")],
    "an activation": [("d = Mul(c, one) e = Relu(d)", "e = Abs(c)")],
    "a weight": [("y = MatMul(f, v)", "y = MatMul(f, w)")],
    "a left-out bias": [("c = Add(a, b)", "c = Identity(a)")],
    "a source": [("z = Softmax<axis=-1>(c)", "z = Softmax<axis=-1>(a)")],
}


def changed(graph_of, edits: list[tuple[str, str]], text: str = SOURCE) -> tuple[Graph, Graph]:
    new = text
    for old, replacement in edits:
        if old == "a":
            new = new.replace("a = MatMul", f"{replacement} = MatMul").replace("(a,", "(a2,")
            continue
        assert old in new
        new = new.replace(old, replacement)
    return graph_of(text), graph_of(new)


def statuses(before: Graph, after: Graph) -> list[str]:
    rewrites = changed_components(before, after, "canonicalize")
    return [prove(rewrite, Canonicalize()).status for rewrite in rewrites]


@pytest.mark.parametrize("change", RIGHT)
def test_right_changes_are_proven(graph_of, change):
    before, after = changed(graph_of, RIGHT[change])
    found = statuses(before, after)
    assert set(found) <= {"pass"}
    assert len(found) == (0 if change == "nothing" else 2 if change == "two places" else 1)


@pytest.mark.parametrize("change", WRONG)
def test_wrong_changes_are_caught(graph_of, change):
    assert "fail" in statuses(*changed(graph_of, WRONG[change]))


def test_a_wrong_change_among_right_ones_is_found_by_name(graph_of):
    before, after = changed(graph_of, [*RIGHT["x · 1"], *WRONG["an attribute"]])
    rewrites = changed_components(before, after, "canonicalize")
    verdicts = {r.place: prove(r, Canonicalize()).status for r in rewrites}
    assert verdicts == {"e": "pass", "z": "fail"}


def test_weights_with_other_values_are_a_change(graph_of):
    """Large weights without a file are compared by what they compute."""
    text = "g (float[2,64] x) => (y) <float[64,64] w> { y = MatMul(x, w) }"
    assert statuses(graph_of(text), graph_of(text, seed=2)) == ["fail"]
    assert set(statuses(graph_of(text), graph_of(text))) <= {"pass"}


def test_a_copy_is_no_change(graph_of):
    graph = graph_of(SOURCE)
    assert changed_components(graph, graph.copy(), "canonicalize") == []


FOLDED = """g (float[4] x) => (float[4] y)
<float[4] k, float three = {3}> { m = Mul(k, three) n = Add(x, m) y = Relu(n) }"""


def with_constant(graph: Graph, factor: float) -> Graph:
    """The graph with `m` as a constant of `factor` · k."""
    mul = graph.nodes[0]
    values, m = graph.exact(mul.inputs[0]) * factor, mul.outputs[0]
    mul.inputs.clear()
    mul.outputs.clear()
    m.to_constant(values)
    m._values = NewWeight(values, "float32", "folded")
    graph.ir.nodes = graph.nodes[1:]
    return graph


def test_a_folded_constant_is_a_claim_of_its_own(graph_of):
    after = with_constant(graph_of(FOLDED), 3)
    (rewrite,) = changed_components(graph_of(FOLDED), after, "canonicalize")
    assert rewrite.place == "m"
    assert prove(rewrite, Canonicalize()).status == "pass"


@pytest.mark.parametrize("factor", [3.0001, -3, 1])
def test_a_wrongly_folded_constant_is_caught(graph_of, factor):
    assert "fail" in statuses(graph_of(FOLDED), with_constant(graph_of(FOLDED), factor))


def test_a_constant_output_that_was_wrongly_folded_is_caught(graph_of):
    text = """g (float[4] x) => (float[4] y, float[4] m) <float[4] k, float three = {3}>
    { m = Mul(k, three) y = Add(x, x) }"""
    assert statuses(graph_of(text), with_constant(graph_of(text), 3)) == ["pass"]
    assert statuses(graph_of(text), with_constant(graph_of(text), 2)) == ["fail"]


def test_dropped_dead_code_is_no_rewrite(graph_of):
    before = graph_of("g (float[2] x) => (y) { a = Exp(x) b = Neg(a) y = Relu(x) }")
    after = graph_of("g (float[2] x) => (y) { y = Relu(x) }")
    assert changed_components(before, after, "canonicalize") == []


def test_new_nodes_get_their_provenance(graph_of):
    before, after = changed(graph_of, RIGHT["x · 1"])
    changed_components(before, after, "canonicalize")
    assert [node.metadata for node in after.nodes if node.metadata] == [
        {
            PASS_KEY: "canonicalize",
            REWRITE_KEY: "canonicalize#0",
            SOURCES_KEY: "Mul_d Relu_e",
            PASSES_KEY: "canonicalize#0",
            ORIGIN_KEY: "Mul_d Relu_e",
        }
    ]


def test_rewrites_are_in_the_order_of_the_old_graph(graph_of):
    before, after = changed(graph_of, [*WRONG["an attribute"], *WRONG["an operand"]])
    rewrites = changed_components(before, after, "canonicalize")
    assert [(r.index, r.place) for r in rewrites] == [(0, "c"), (1, "z")]


def test_cut_tensors_that_depend_on_each_other(graph_of):
    """x² = |x|·|x| holds because `a` is |x|, which both graphs compute."""
    text = "g (float[3] x) => (y, z) { a = Abs(x) y = Mul(x, x) z = Relu(a) }"
    assert statuses(*changed(graph_of, [("Mul(x, x)", "Mul(a, a)")], text)) == ["pass"]
    assert statuses(*changed(graph_of, [("Mul(x, x)", "Mul(a, x)")], text)) == ["fail"]


def test_what_a_branch_captures_is_compared(graph_of):
    text = """g (float[4] x, bool c) => (y) <float[4] w = {1, 2, 3, 4}>
    { a = Abs(x) y = If(c) <then_branch = t () => (float[4] u) { u = Add(a, w) },
                            else_branch = e () => (float[4] v) { v = Abs(a) }> }"""
    assert changed_components(graph_of(text), graph_of(text), "canonicalize") == []
    assert statuses(*changed(graph_of, [("3, 4}", "3, 5}")], text)) == ["UNVERIFIED"]


EQUAL_BY_THEIR_ORIGIN = """g (float[2,3] x) => (float[2,3] y, float[2,3] z)
<float one = {1}, float[3,3] w> { a = MatMul(x, w) b = Mul(a, one) c = Relu(b) y = Neg(c)
  d = MatMul(x, w) e = Relu(d) z = Exp(e) }"""


@pytest.mark.parametrize(("takes", "found"), [("c", {"pass"}), ("a", {"pass", "fail"})])
def test_a_tensor_of_another_change_keeps_what_it_is(graph_of, takes, found):
    """z may read c, which is e by where both come from, and which has changed itself."""
    new = EQUAL_BY_THEIR_ORIGIN.replace("b = Mul(a, one) c = Relu(b)", "c = Relu(a)")
    new = new.replace("d = MatMul(x, w) e = Relu(d) z = Exp(e)", f"z = Exp({takes})")
    before, after = graph_of(EQUAL_BY_THEIR_ORIGIN), graph_of(new)
    assert set(statuses(before, after)) == found


def test_what_is_made_anew_is_not_what_the_context_knows(graph_of):
    """r is old(a); the new a must not take its place, and a wrong one is seen."""
    text = """g (float[3] x) => (float[3] y) <float[3] w, float one = {1}>
    { k = Mul(x, one) a = Add(k, w) r = Abs(a) p = Mul(k, r) y = Sub(p, a) }"""
    for sign, found in {"Add": ["pass"], "Sub": ["fail"]}.items():
        new = text.replace("k = Mul(x, one) a = Add(k, w)", f"a = {sign}(x, w)")
        assert statuses(graph_of(text), graph_of(new.replace("Mul(k, r)", "Mul(x, r)"))) == found


def test_an_output_that_is_a_constant_is_in_its_region(graph_of):
    graph = graph_of("g (float[3] x) => (float[3] y, float[3] w) <float[3] w> { y = Relu(x) }")
    assert list(whole(graph).constants) == ["w"]


SIZES = """g (float[n,4] x) => (float[n,4] y) <float one = {1}, int64 zero = {0}>
{ a = Mul(x, one) s = Shape(a) e = Exp(a) f = Reshape(e, s) y = Softmax(f) }"""


def test_a_tensor_whose_shape_alone_is_asked_for_is_free(graph_of):
    """The nodes between it and the rest of the cut are no part of the proof."""
    after = graph_of(SIZES.replace("f = Reshape(e, s) y = Softmax(f)", "y = Softmax(e)"))
    (rewrite,) = changed_components(graph_of(SIZES), after, "canonicalize")
    assert [node.op_type for node in rewrite.old.nodes] == ["Shape", "Reshape", "Softmax"]
    assert prove(rewrite, Canonicalize()).status == "pass"
