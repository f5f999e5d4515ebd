"""Computed targets of Reshape and Expand become constants, and detours one Transpose."""

import onnx
import pytest

from compiler.components import changed_components
from compiler.graph import Graph
from compiler.verify.proof import prove
from passes.canonicalize import Canonicalize

HEAD = "g (float[b,n,48] x) => (y)"
CONSTANTS = (
    "<int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] v4 = {4}, "
    "int64[1] v6 = {6}, int64[1] v12 = {12}, int64[1] v48 = {48}, int64[1] minus = {-1}, "
    "int64[4] heads = {0, 0, -1, 12}, int64[4] zeros = {0, 1, 4, 12}, "
    "int64[4] b4n = {0, 0, 4, 12}>"
)
SIZES = "s = Shape(x) b = Gather(s, v0) n = Gather(s, v1) "
# Nodes, and what is left: ops, and the targets.
CASES = {
    "a computed target": (
        f"{SIZES} t = Concat<axis=0>(b, n, minus, v12) r = Reshape(x, t) y = Relu(r)",
        ["Reshape", "Relu"], [[0, 0, 4, 12]]),
    "every head's own": (
        f"{SIZES} t = Concat<axis=0>(b, n, minus, v12) k = Slice(x, v0, v12, v2) "
        "q = Reshape(x, t) p = Reshape(k, t) y = Add(q, p)",
        ["Slice", "Reshape", "Reshape", "Add"], [[0, 0, 4, 12], [0, 0, 1, 12]]),
    "a constant that says less": ("r = Reshape(x, heads) y = Relu(r)", ["Reshape", "Relu"],
                                  [[0, 0, 4, 12]]),
    "merged": (f"{SIZES} p = Mul(b, n) t = Concat<axis=0>(p, v48) r = Reshape(x, t) y = Relu(r)",
               ["Reshape", "Relu"], [[-1, 48]]),
    "two sizes out of one stay": (
        f"{SIZES} p = Concat<axis=0>(minus, v48) f = Reshape(x, p) a = Relu(f) "
        "t = Concat<axis=0>(b, n, v48) y = Reshape(a, t)",
        ["Shape", "Gather", "Gather", "Reshape", "Relu", "Concat", "Reshape"],
        [[-1, 48], None]),
    "zeros are no copies": (
        f"{SIZES} t = Concat<axis=0>(b, n, v4, v12) r = Reshape<allowzero=1>(x, t) y = Relu(r)",
        ["Reshape", "Relu"], [[0, 0, 4, 12]]),
    "an Expand": (
        f"{SIZES} h = Reshape(x, b4n) u = Unsqueeze(h, v2) "
        "t = Concat<axis=0>(b, n, v6, v4, v12) e = Expand(u, t) y = Relu(e)",
        ["Reshape", "Unsqueeze", "Expand", "Relu"], [[0, 0, 4, 12], [1, 1, 6, 1, 1]]),
    "a Shape of what has the input's": (
        "a = Exp(x) f = Shape(a) b = Gather(f, v0) r = ConstantOfShape(b) k = ReduceSum(r) "
        "c = Sin(x) y = Add(c, k)",
        ["Shape", "Gather", "ConstantOfShape", "ReduceSum", "Sin", "Add"], []),
    "a detour of keys": (
        f"{SIZES} h = Reshape(x, b4n) k = Transpose<perm=[0,2,1,3]>(h) m = Mul(b, v4) "
        "t = Concat<axis=0>(m, n, v12) f = Reshape(k, t) r = Transpose<perm=[0,2,1]>(f) "
        "u = Concat<axis=0>(b, v4, v12, n) y1 = Reshape(r, u) y = Relu(y1)",
        ["Reshape", "Transpose", "Relu"], [[0, 0, 4, 12]]),
}  # fmt: skip


def canonical(graph: Graph) -> Graph:
    """Every change is proven, and there is nothing left to change."""
    pass_ = Canonicalize()
    after = pass_.simplified(graph)
    rewrites = changed_components(graph, after, "canonicalize")
    assert rewrites
    assert [prove(rewrite, pass_).status for rewrite in rewrites] == ["pass"] * len(rewrites)
    assert changed_components(after.copy(), pass_.simplified(after), "canonicalize") == []
    return after


def targets(graph: Graph) -> list[list[int] | None]:
    reading = [node for node in graph.nodes if node.op in ("Reshape", "Expand")]
    return [graph.ints(node.inputs[1]) for node in reading]


@pytest.mark.parametrize("case", CASES)
def test_what_depends_on_dynamic_sizes_less_than_it_says(graph_of, case):
    nodes, ops, left = CASES[case]
    after = canonical(graph_of(f"{HEAD} {CONSTANTS} {{ {nodes} }}"))
    assert [node.op for node in after.nodes] == ops
    assert targets(after) == left
    onnx.checker.check_model(after.to_model(), full_check=True)


# Nodes between `x` and `y`, from heads[b×4×n×12] to the detour's end.
KEPT = {
    "another split": "r = Transpose<perm=[0,2,1]>(f) u = Concat<axis=0>(b, v12, v4, n) "
                     "y1 = Reshape(r, u)",
    "the merged axis moves": "r = Transpose<perm=[1,0,2]>(f) "
                             "u = Concat<axis=0>(b, n, v4, v12) y1 = Reshape(r, u)",
    "something else reads it": "r = Transpose<perm=[0,2,1]>(f) u = Concat<axis=0>(b, v4, v12, n) "
                               "y0 = Reshape(r, u) o = ReduceMax(r) y1 = Mul(y0, o)",
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_a_detour_that_is_no_transpose_stays(graph_of, case):
    nodes = (
        f"{SIZES} h = Reshape(x, b4n) k = Transpose<perm=[0,2,1,3]>(h) m = Mul(b, v4) "
        f"t = Concat<axis=0>(m, n, v12) f = Reshape(k, t) {KEPT[case]} y = Relu(y1)"
    )
    after = Canonicalize().simplified(graph_of(f"{HEAD} {CONSTANTS} {{ {nodes} }}"))
    assert [node.op for node in after.nodes].count("Reshape") == 3


def test_a_static_detour_is_a_transpose_too(graph_of):
    after = canonical(
        graph_of(
            "g (float[2,4,5,12] x) => (y) <int64[3] t = {8, 5, 12}, int64[4] u = {2, 4, 12, 5}> "
            "{ f = Reshape(x, t) r = Transpose<perm=[0,2,1]>(f) y1 = Reshape(r, u) y = Relu(y1) }"
        )
    )
    assert [(n.op, n.attrs.get("perm")) for n in after.nodes] == [
        ("Transpose", [0, 1, 3, 2]), ("Relu", None)
    ]  # fmt: skip


def test_a_static_target_stays_as_it_is(graph_of):
    graph = graph_of(
        "g (float[2,5,48] x) => (y) <int64[4] t = {0, 0, -1, 12}> { r = Reshape(x, t) y = Relu(r) }"
    )
    assert targets(Canonicalize().simplified(graph)) == [[0, 0, -1, 12]]
