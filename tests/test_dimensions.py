"""Sizes by name: what they are said to be holds for every choice of the dynamic ones."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from compiler.dimensions import Dimensions, Size, product, quotient

HEAD = "g (float[b,n,48] x, float[b,m,48] z, int64[b,n] ids) => (y)"
INTS = ", ".join(f"int64[1] v{k} = {{{k}}}" for k in (0, 1, 2, 4, 12, 48))
CONSTANTS = (
    f"<{INTS}, int64[1] minus = {{-1}}, int64 s0 = {{0}}, int64 s1 = {{1}}, int64 s2 = {{2}}, "
    "int64 s4 = {4}, int64[4] heads = {0, 0, -1, 12}, int64[3] joined = {0, -1, 48}, "
    "int64[4] both = {-1, 4, 0, 12}, int64[1] most = {9223372036854775807}, float[48,48] w, "
    "float[1,9,48] table>"
)
SIZES = "s = Shape(x) b = Gather(s, v0) n = Gather(s, v1) "
CASES = {
    "a -1 is what is left": ("y = Reshape(x, heads)", "b n 4 12"),
    "a computed target": (f"{SIZES} t = Concat<axis=0>(b, n, minus, v12) y = Reshape(x, t)",
                          "b n 4 12"),
    "a product": (f"{SIZES} p = Mul(b, n) t = Concat<axis=0>(p, v48) y = Reshape(x, t)",
                  "b·n 48"),
    "scalars": (
        "s = Shape(x) b = Gather(s, s0) n = Gather(s, s1) p = Mul(b, n) q = Mul(p, s4) "
        "u = Unsqueeze(q, v0) t = Concat<axis=0>(u, v12) y = Reshape(x, t)", "4·b·n 12"),
    "a quotient": (
        f"{SIZES} p = Mul(b, v4) q = Div(p, v4) t = Concat<axis=0>(q, n, minus) "
        "y = Reshape(x, t)", "b n 48"),
    "part of a Shape": ("t = Shape<start=0, end=2>(x) u = Concat<axis=0>(t, v4, minus) "
                        "y = Reshape(x, u)", "b n 4 12"),
    "Size": ("s = Size(x) u = Unsqueeze(s, v0) y = Reshape(x, u)", "48·b·n"),
    "merged and split again": (
        f"{SIZES} h = Reshape(x, heads) m = Transpose<perm=[0,2,1,3]>(h) k = Mul(b, v4) "
        "t = Concat<axis=0>(k, n, v12) f = Reshape(m, t) u = Concat<axis=0>(b, v4, n, v12) "
        "y = Reshape(f, u)", "b 4 n 12"),
    "Cast and Squeeze": (
        "s = Shape(x) c = Cast<to=6>(s) d = Cast<to=7>(c) e = Slice(d, v0, v1) f = Squeeze(e) "
        "g = Unsqueeze(f, v0) t = Concat<axis=0>(g, minus, v48) y = Reshape(x, t)", "b n 48"),
    "a size is never -1": (
        f"{SIZES} t = Concat<axis=0>(b, minus, minus) e = Equal(t, minus) "
        "w2 = Where(e, v1, t) "
        "r = Slice(x, v0, v1, v1) y = Expand(r, w2)", "b (1 min n) 48"),
    "Expand": (f"{SIZES} t = Concat<axis=0>(b, n, v48) f = Slice(x, v0, v1, v1) "
               "y = Expand(f, t)", "b n 48"),
    "positions up to the length": (f"{SIZES} p = Slice(table, v0, n, v1) y = Add(x, p)",
                                   "b n 48"),
    "a Slice to the end": ("y = Slice(x, v0, most, v1)", "b n 48"),
    "a Slice leaves other axes": (f"{SIZES} y = Slice(x, v1, n, v1)",
                                  "b (n slice 1 slice n slice 1) 48"),
    "a Range": (f"{SIZES} k = Squeeze(n, v0) y = Range(s0, k, s1)", "n"),
    "a Tile": (f"{SIZES} t = Concat<axis=0>(v1, n, v2) y = Tile(x, t)", "b n·n 96"),
    "filled": (f"{SIZES} t = Concat<axis=0>(b, n) y = ConstantOfShape(t)", "b n"),
    "two lengths": ("a = Transpose<perm=[0,2,1]>(z) y = MatMul(x, a)", "b n m"),
    "one after the other": ("y = Concat<axis=1>(x, z)", "b y.1 48"),
    "the same sum has the same name": (
        "s = Shape(x) t = Shape(z) n = Gather(s, v1) m = Gather(t, v1) p = Add(n, m) "
        "q = Add(m, n) b = Gather(s, v0) f = Concat<axis=0>(b, p) e = Concat<axis=0>(b, q) "
        "g = ConstantOfShape(f) h = ConstantOfShape(e) y = Add(g, h)", "b (m + n)"),
    "a batch that may be 1": ("y = MatMul(x, w)", "b n 48"),
    "an unknown vector": ("s = Shape(x) t = NonZero(s) y = Cast<to=7>(t)", "1 t.1"),
}  # fmt: skip


def graph_text(nodes: str) -> str:
    return f"{HEAD} {CONSTANTS} {{ {nodes} }}"


@pytest.mark.parametrize("case", CASES)
def test_dimensions_of(graph_of, case):
    nodes, expected = CASES[case]
    graph = graph_of(graph_text(nodes))
    (result,) = graph.outputs
    dims = Dimensions(graph).of(result)
    assert dims is not None
    assert " ".join(map(str, dims)) == expected


SIZE_CHOICES = [{"b": 2, "n": 5, "m": 3}, {"b": 3, "n": 7, "m": 4}, {"b": 1, "n": 1, "m": 2}]


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_of_any_tensor_holds_when_the_model_runs(model_of, graph_of, case):
    """Numbers are right, and equal names are equal sizes, throughout the graph."""
    text = graph_text(CASES[case][0])
    known, model = Dimensions(graph_of(text)), model_of(text)
    names = [name for node in model.graph.node for name in node.output]
    run = ReferenceEvaluator(model, verbose=0)
    for sizes in SIZE_CHOICES:
        inputs = {
            "x": np.zeros((sizes["b"], sizes["n"], 48), np.float32),
            "z": np.zeros((sizes["b"], sizes["m"], 48), np.float32),
            "ids": np.zeros((sizes["b"], sizes["n"]), np.int64),
        }
        values = dict(zip(names, run.run(names, inputs, intermediate=False), strict=True))
        atoms: dict[str, int] = dict(sizes)
        for node in graph_of(text).nodes:
            tensor = node.outputs[0]
            dims, shape = known.of(tensor), np.shape(values[tensor.name])
            assert dims is not None
            assert len(dims) == len(shape)
            for dim, size in zip(dims, shape, strict=True):
                if isinstance(dim, Size) and len(dim.atoms) == 1 and dim.factor == 1:
                    atoms.setdefault(dim.atoms[0], size)
                assert size == number(dim, atoms), (tensor.name, dims, shape)


def number(dim: int | Size, atoms: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    return dim.factor * int(np.prod([atoms[atom] for atom in dim.atoms]))


N, B = Size(1, ("n",)), Size(1, ("b",))


@pytest.mark.parametrize(
    ("total", "part", "expected"),
    [
        (48 * N * B, 12 * B, 4 * N), (N * 48, N, 48), (N, N, 1), (12, 4, 3), (N * N, N, N),
        (12 * N, 5, None), (N, B, None), (12, N, None), (N, 0, None),
    ],
)  # fmt: skip
def test_quotients(total, part, expected):
    assert quotient(total, part) == expected


def test_products():
    assert product([2, N, 3, B]) == Size(6, ("b", "n"))
    assert (product([]), product([N, 0])) == (1, 0)
    assert (N + 0, N - 0) == (N, N)
    assert N + B == B + N != N
    assert 1 - N != N - 1


NESTED = "g (float[a,3] x, float[b,3] y, float[c,3] z) => (o)"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("p = Add(x, y) q = Add(y, x) o = Add(p, q)", "(a broadcast b)"),
        ("p = Add(x, y) q = Add(p, z) r = Add(y, q) o = Add(r, p)", "(a broadcast b broadcast c)"),
        ("p = Concat<axis=0>(x, y) o = Add(p, z)", "(c broadcast p.0)"),
    ],
)
def test_sizes_that_may_be_one_are_told_once(graph_of, nodes, expected):
    graph = graph_of(f"{NESTED} {{ {nodes} }}")
    dims = Dimensions(graph).of(graph.outputs[0])
    assert dims is not None
    assert str(dims[0]) == expected
