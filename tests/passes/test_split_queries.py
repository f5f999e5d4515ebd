"""One subgraph a tile of query tokens, each attending to all keys; before or after the heads."""

import math
from dataclasses import replace

import pytest
from running import Result, applied, error_in_float32, proofs, refusal

from compiler.graph import producer_of, static_shape
from compiler.rewrite import apply_pass
from compiler.slicing import RULES, Slicer
from compiler.verify.proof import prove
from passes.split_heads import SplitHeads
from passes.split_queries import Queries, SplitQueries

SHAPES = (
    "int64[4] apart = {B, N, H, D}, int64[4] keys = {B, M, H, D}, int64[3] joined = {B, N, C}, "
    "float scale = {0.5}"
)


def attention(
    n: int = 7, h: int = 2, d: int = 3, *, m: int | None = None, b: int = 1,
    scores: str = "z = Mul(s, scale)", inputs: str = "", constants: str = "",
    softmax: str = "p = Softmax<axis=-1>(z)", outputs: str = "", more: str = "",
) -> str:  # fmt: skip
    """`n` queries and `m` keys of `h` heads of width `d`: separate projections, then the merge."""
    m, c = m or n, h * d
    shapes = SHAPES
    for letter, size in zip("BNHDCM", (b, n, h, d, c, m), strict=True):
        shapes = shapes.replace(f"{letter},", f"{size},").replace(f"{letter}}}", f"{size}}}")
    weights = ", ".join(f"float[{c},{c}] w{name}" for name in "qkvo")
    turned = "Transpose<perm=[0,2,1,3]>"
    return (
        f"g (float[{b},{n},{c}] x, float[{b},{m},{c}] memory{inputs}) => (float[{b},{n},{c}] y"
        f"{outputs}) <{weights}, float[{c}] bq, {shapes}{constants}> {{ "
        f"q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, apart) q = {turned}(q2) "
        f"k0 = MatMul(memory, wk) k1 = Reshape(k0, keys) k = Transpose<perm=[0,2,3,1]>(k1) "
        f"v0 = MatMul(memory, wv) v1 = Reshape(v0, keys) v = {turned}(v1) "
        f"s = MatMul(q, k) {scores} {softmax} o = MatMul(p, v) {more} "
        f"t = {turned}(o) r = Reshape(t, joined) y = MatMul(r, wo) }}"
    )


MASKS = {
    "no mask": {},
    "cross attention": {"m": 5},
    "batch of 2": {"b": 2},
    "padding": {"inputs": ", float[1,1,1,7] mask",
                "scores": "s1 = Mul(s, scale) z = Add(s1, mask)"},
    "positions of a head": {"constants": ", float[1,2,7,7] bias",
                            "scores": "s1 = Mul(s, scale) z = Add(s1, bias)"},
    "causal": {"constants": ", float low = {-100}, float one = {1}, int64[2] square = {7, 7}",
               "scores": "full = Expand(one, square) seen = Trilu<upper=0>(full) "
                         "b1 = Cast<to=9>(seen) s1 = Mul(s, scale) z = Where(b1, s1, low)"},
    "guarded": {"constants": ", float none = {0}",
                "softmax": "p1 = Softmax<axis=-1>(z) n = IsNaN(p1) p = Where(n, none, p1)"},
    "taken apart": {"constants": ", int64[1] last = {-1}",
                    "softmax": "h = ReduceMax(z, last) i = Sub(z, h) e = Exp(i) "
                               "l = ReduceSum(e, last) p = Div(e, l)"},
}  # fmt: skip


def rows(result: Result, op: str = "Softmax") -> list[int]:
    """The query rows of every Softmax (or of what stands for it)."""
    return [static_shape(n.outputs[0])[-2] for n in result.graph.nodes if n.op == op]


def check(result: Result, pass_: SplitQueries, sizes: list[int], op: str = "Softmax") -> None:
    """One rewrite, proven; the tiles have the sizes asked for; a second run finds them done."""
    assert result.reasons == []
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.detail, proof.error <= 1e-13) == ("pass", "", True)
    assert rows(result, op) == sizes
    again = apply_pass(result.graph.copy(), pass_)
    assert again.rewrites == []
    assert all("already are one tile" in refusal.reason for refusal in again.refusals)


# -- what is left alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [0, -4])
def test_no_tile(tile):
    reason = refusal(attention(), SplitQueries(tile=tile), 18)
    assert reason == f"tile={tile} is not a number of query tokens"


@pytest.mark.parametrize("tile", [7, 8, 100])
def test_one_tile(tile):
    reason = refusal(attention(), SplitQueries(tile=tile), 18)
    assert reason == f"7 query tokens already are one tile of at most {tile}"


def test_no_attention():
    text = "g (float[9,4] x) => (float[9,4] y) { y = Softmax<axis=-1>(x) }"
    reason = refusal(text, SplitQueries(tile=2))
    assert reason == "nothing to split: no Softmax weighs values, and there is no Attention op"


def test_two_products_of_the_same_probabilities():
    text = attention(outputs=", float[1,2,7,3] w", more="w = MatMul(p, q)")
    reason = refusal(text, SplitQueries(tile=4))
    assert reason == "'p' is used elsewhere as well: tiles would compute it again"


def test_probabilities_that_are_an_output_too():
    reason = refusal(attention(outputs=", float[1,2,7,7] p"), SplitQueries(tile=4))
    assert reason == "'p' is used elsewhere as well: tiles would compute it again"


def test_a_softmax_over_another_axis():
    text = attention(7, 2, 3, softmax="p = Softmax<axis=2>(z)")
    assert refusal(text, SplitQueries(tile=4)) == "the Softmax runs over axis 2 of [1, 2, 7, 7]"


def test_a_dynamic_number_of_tokens():
    text = attention().replace("float[1,7,6]", "float[1,n,6]").replace("{1, 7,", "{1, -1,")
    reason = refusal(text, SplitQueries(tile=4))
    assert "dynamic, so that no tile has a size" in reason


OP = "g (float[1,7,6] q, float[1,5,6] k, float[1,5,6] v{}) => (float[1,7,6] y{}) {{ y{} = {} }}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            OP.format("", "", "", "Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, k, v)"),
            "the Attention has is_causal: what a query sees depends on its number",
            id="causal",
        ),
        pytest.param(
            OP.format(
                ", float[1,2,2,3] pk, float[1,2,2,3] pv", ", float[1,2,7,3] nk, float[1,2,7,3] nv",
                ", nk, nv", "Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, , pk, pv)",
            ),
            "the Attention has a cache or more outputs than one",
            id="cache",
        ),
    ],
)  # fmt: skip
def test_what_an_attention_op_does_beside(text, reason):
    assert refusal(text, SplitQueries(tile=4), 23) == reason


# -- what is split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("tile", "sizes"), [(4, [4, 3]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_every_attention(mask, tile, sizes, tmp_path):
    """The last tile may be smaller; keys and values are projected once."""
    pass_ = SplitQueries(tile=tile)
    result = applied(attention(**MASKS[mask]), pass_, 18)
    apart = mask == "taken apart"
    check(result, pass_, sizes, "Div" if apart else "Softmax")
    assert result.ops.count("MatMul") == 3 + 2 * len(sizes) + 1
    # Of the queries, and of a mask that is computed.
    assert result.done.rewrites[0].slices_left == len(sizes) * (2 if mask == "causal" else 1)
    if mask != "causal":
        assert error_in_float32(result, pass_, tmp_path) < 1e-4


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("tile", "sizes"), [(4, [4, 4]), (3, [3, 3, 3]), (6, [6, 6])])
def test_a_full_last_tile_begins_in_the_one_before(mask, tile, sizes, tmp_path):
    """Rows that are computed twice are cut off: one Slice more."""
    pass_ = SplitQueries(tile=tile, last="full")
    result = applied(attention(**MASKS[mask]), pass_, 18)
    check(result, pass_, sizes, "Div" if mask == "taken apart" else "Softmax")
    short = applied(attention(**MASKS[mask]), SplitQueries(tile=tile), 18)
    assert result.ops.count("Slice") == short.ops.count("Slice") + 1
    if mask != "causal":
        assert error_in_float32(result, pass_, tmp_path) < 1e-4


def test_a_full_last_tile_where_all_are_full():
    result = applied(attention(6), SplitQueries(tile=3, last="full"))
    assert result.ops == applied(attention(6), SplitQueries(tile=3)).ops


def test_a_full_last_tile_below_opset_10():
    """There the limits of a Slice are attributes: rows are gathered."""
    pass_ = SplitQueries(tile=4, last="full")
    result = applied(attention(), pass_, 9)
    assert (result.ops.count("Slice"), result.ops.count("Gather")) == (0, 3)
    assert [(proof.status, proof.error <= 1e-13) for proof in proofs(result, pass_)] == [
        ("pass", True)
    ]


def test_tokens_keys_and_widths_of_one_size():
    pass_ = SplitQueries(tile=2)
    check(applied(attention(4, 4, 4), pass_), pass_, [2, 2])


def test_a_projection_is_not_repeated():
    """A tile takes its rows of the queries as the scores read them: the bias stays with all."""
    result = applied(attention(), SplitQueries(tile=4))
    (slices,) = {n.inputs[0].name for n in result.graph.nodes if n.op == "Slice"}
    assert slices == "q"
    assert (result.ops.count("Add"), result.ops.count("Transpose")) == (1, 4)


RELATIVE = """g (float[1,6,4] x) => (float[1,6,4] y) <
    float[4,4] wq, float[4,4] wk, float[4,4] wv, float[4] bq, float[2,4,2] rh, float[3,4,3] rw,
    float[1,5,6] ones, float scale = {0.5}, int64[3] map = {2, 3, 4}, int64[3] rows = {1, 6, 2},
    int64[3] columns = {1, 6, 3}> {
    q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(x, wk) k = Transpose<perm=[0, 2, 1]>(k0)
    qs = Mul(q, scale) m = Reshape(q, map) h0 = MatMul(m, rh) h = Reshape(h0, rows)
    t = Transpose<perm=[1, 0, 2]>(m) w0 = MatMul(t, rw) w1 = Transpose<perm=[1, 0, 2]>(w0)
    w = Reshape(w1, columns) u = Concat<axis=2>(qs, h, w) e = Concat<axis=1>(k, ones)
    s = MatMul(u, e) p = Softmax<axis=-1>(s) v = MatMul(x, wv) y = MatMul(p, v) }"""


@pytest.mark.parametrize(
    ("tile", "last", "cut"),
    [(3, "short", {"q0"}), (4, "short", {"q0", "h", "w"}), (5, "full", {"q0", "h", "w", "cut"})],
)
def test_relative_positions_beside_the_queries_are_those_of_a_tile(tile, last, cut, tmp_path):
    """Of a tile of whole rows of the map only the queries are cut, with all that is made of them.

    What stands beside them would be as long as all tokens, and wider.
    """
    pass_ = SplitQueries(tile=tile, last=last)
    result = applied(RELATIVE, pass_)
    sliced = {n.inputs[0].name for n in result.graph.nodes if n.op == "Slice"}
    assert {"cut" if "/" in name else name for name in sliced} == cut
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error <= 1e-13) == ("pass", True)
    assert error_in_float32(result, pass_, tmp_path) < 1e-4


JOINED = {
    "weights": ("float[1,7,2] own", "Concat<axis=2>(q1, own)", 6, {"q0"}),
    "an input": ("float[1] none", "Concat<axis=2>(q1, beside)", 6, {"q0", "beside"}),
    "its own part": ("float[1] none", "Concat<axis=2>(q1, q0)", 8, {"q0"}),
    "itself": ("float[1] none", "Concat<axis=2>(q1, q1)", 8, {"q0"}),
}


@pytest.mark.parametrize(("weights", "join", "width", "cut"), JOINED.values(), ids=JOINED.keys())
def test_what_is_joined_to_queries_is_cut_by_itself(weights, join, width, cut):
    text = f"""g (float[1,7,4] x, float[1,7,2] beside, float[1,{width},7] k, float[1,7,5] v)
        => (float[1,7,5] y) <float[4,4] wq, float[4] bq, {weights}> {{
        q0 = MatMul(x, wq) q1 = Add(q0, bq) u = {join}
        s = MatMul(u, k) p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"""
    result = applied(text, SplitQueries(tile=4))
    assert {n.inputs[0].name for n in result.graph.nodes if n.op == "Slice"} == cut
    assert [proof.status for proof in proofs(result, SplitQueries(tile=4))] == ["pass"]


def test_a_projection_by_weights_that_were_cast_is_not_repeated():
    """As canonicalize folds them, they are stored in float16 here."""
    text = attention().replace("float[6,6] wq", "float16[6,6] hq")
    text = text.replace("{ q0", "{ wq = Cast<to=1>(hq) q0")
    (slices,) = {n.inputs[0].name for n in applied(text, SplitQueries(tile=4)).graph.nodes
                 if n.op == "Slice"}  # fmt: skip
    assert slices == "q"


@pytest.mark.parametrize("tile", [1, 3, 6])
def test_a_tile_of_constant_tokens(tile):
    """A class token stands before the others: its projection is not computed beside theirs."""
    text = attention().replace("float[1,7,6] x,", "float[1,6,6] image,")
    text = text.replace("<float[6,6] wq", "<float[1,1,6] token, float[6,6] wq")
    text = text.replace("{ q0", "{ x = Concat<axis=1>(token, image) q0")
    result = applied(text, SplitQueries(tile=tile))
    assert [proof.status for proof in proofs(result, SplitQueries(tile=tile))] == ["pass"]
    assert sum(n.op == "MatMul" and n.inputs[1].name == "wq" for n in result.graph.nodes) == 1


def test_queries_of_no_known_shape():
    text = "g (float[n] flat, int64[r] shape, float[1,2,7,3] v) => (float o) {"
    text += " s = Reshape(flat, shape) p = Softmax<axis=-1>(s) o = MatMul(p, v) }"
    text = text.replace("(float o)", "(float[a,b,c,d] y)").replace("}", "y = Reshape(o, shape) }")
    reason = refusal(text, SplitQueries(tile=2))
    assert reason == "'o' has no shape: the number of query tokens has to be known"


@pytest.mark.parametrize("equation", ["bhqk,bhkd->bhqd", "bhqk,bhkd->bqhd"])
def test_an_einsum_that_weighs_the_values(equation):
    pass_ = SplitQueries(tile=3)
    text = attention().replace("MatMul(p, v)", f'Einsum<equation="{equation}">(p, v)')
    if equation.endswith("bqhd"):
        text = text.replace("t = Transpose<perm=[0,2,1,3]>(o)", "t = Identity(o)")
    check(applied(text, pass_), pass_, [3, 3, 1])


@pytest.mark.parametrize("form", ["three axes", "four axes"])
@pytest.mark.parametrize("mask", ["", ", float[7,5] mask", ", bool[1,2,7,5] mask"])
def test_an_attention_op(form, mask):
    if form == "three axes":
        shapes, call = ("[1,7,6]", "[1,5,3]", "[1,7,6]"), "q_num_heads=2, kv_num_heads=1"
    else:
        shapes, call = ("[1,2,7,3]", "[1,1,5,3]", "[1,2,7,3]"), "scale=0.25"
    q, k, y = (f"float{shape}" for shape in shapes)
    named = ", mask" if mask else ""
    text = f"g ({q} q, {k} k, {k} v{mask}) => ({y} y) {{ y = Attention<{call}>(q, k, v{named}) }}"
    pass_ = SplitQueries(tile=4)
    result = applied(text, pass_, 23)
    assert result.ops.count("Attention") == 2
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error <= 1e-13) == ("pass", True)
    assert apply_pass(result.graph.copy(), pass_).rewrites == []


ORDERS = {
    "heads first": [SplitHeads(), SplitQueries(tile=4)],
    "queries first": [SplitQueries(tile=4), SplitHeads()],
    "two heads together": [SplitQueries(tile=4), SplitHeads(group=2)],
    "heads added": [SplitQueries(tile=3), SplitHeads(merge="sum")],
    "heads first, a full last tile": [SplitHeads(), SplitQueries(tile=4, last="full")],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask", ["no mask", "positions of a head", "guarded", "cross attention"])
def test_with_split_heads_in_either_order(order, mask):
    first, second = ORDERS[order]
    result = applied(attention(h=4, **_of_four(MASKS[mask])), first, 18)
    done = apply_pass(result.graph, second)
    assert done.refusals == []
    for rewrite in done.rewrites:
        proof = prove(rewrite, second)
        assert (proof.status, proof.detail, proof.error <= 1e-10) == ("pass", "", True)
    groups = {"two heads together": 2}.get(order, 1)
    tiles = 3 if order == "heads added" else 2
    softmax = [static_shape(n.outputs[0]) for n in result.graph.nodes if n.op == "Softmax"]
    assert len(softmax) == tiles * 4 // groups
    assert {math.prod(shape[:-2]) for shape in softmax} == {groups}
    assert result.ops.count("MatMul") == {
        # Keys and values of a group are projected once, whatever the order; so are queries.
        "two heads together": 2 * 3 + 4 * 2 + 1, "heads added": 4 * 3 + 12 * 2 + 4,
    }.get(order, 4 * 3 + 8 * 2 + 1)  # fmt: skip
    for pass_ in (first, second):
        assert apply_pass(result.graph.copy(), pass_).rewrites == []


def test_split_heads_goes_before_a_full_last_tile():
    """It does not follow a tile through the cut to the others, and says so."""
    result = applied(attention(h=4), SplitQueries(tile=4, last="full"), 18)
    done = apply_pass(result.graph, SplitHeads())
    assert done.rewrites == []
    reasons = [refusal.reason for refusal in done.refusals]
    assert len(reasons) == 2
    assert all("is never merged with the features" in reason for reason in reasons)


def _of_four(how: dict[str, object]) -> dict[str, object]:
    constants = str(how.get("constants", "")).replace("float[1,2,7,7]", "float[1,4,7,7]")
    return {**how, "constants": constants}


# -- planted faults --------------------------------------------------------------------------------

FAULTS = {
    "tiles overlap": lambda takes: [takes[0], replace(takes[1], start=2, stop=5)],
    "tiles swapped": lambda takes: [replace(takes[0], start=3, stop=6), replace(takes[1], start=0,
                                                                             stop=3)],
    "one off": lambda takes: [replace(t, start=(t.start + 1) % 4, stop=(t.start + 1) % 4 + 3)
                              for t in takes],
    "a tile twice": lambda takes: [takes[0], takes[0]],
}  # fmt: skip


def statuses(pass_: SplitQueries) -> list[str]:
    result = applied(attention(6, 6, 6), pass_)
    return [proof.status for proof in proofs(result, pass_)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_tiles_is_caught(monkeypatch, fault):
    right = Queries.takes
    monkeypatch.setattr(Queries, "takes", lambda self, tile: FAULTS[fault](right(self, tile)))
    assert statuses(SplitQueries(tile=3)) == ["fail"]


CUTS = {
    "nothing cut": lambda take: replace(take, start=0, stop=take.size),
    "one row late": lambda take: replace(take, start=take.start - 1, stop=take.stop - 1),
    "the last rows cut": lambda take: replace(take, start=0, stop=take.stop - take.start),
}


@pytest.mark.parametrize("fault", CUTS)
def test_a_fault_in_what_is_cut_off_is_caught(monkeypatch, fault):
    right, pass_ = Slicer.cut, SplitQueries(tile=3, last="full")

    def wrong(slicer, tensor, take):
        is_result = tensor.shape[-2] == pass_.tile  # the queries are cut of all rows
        return right(slicer, tensor, CUTS[fault](take) if is_result else take)

    monkeypatch.setattr(Slicer, "cut", wrong)
    result = applied(attention(5, 6, 7), pass_)
    assert [proof.status for proof in proofs(result, pass_)] == ["fail"]


def test_tiles_of_the_keys_are_caught(monkeypatch):
    """As many keys as queries: the shapes fit, the numbers do not."""
    honest = RULES["Softmax"]

    def of_keys(s, node, take):
        if take.axis == 2 and node.op == "Softmax":
            whole = s.pull(node.inputs[0], replace(take, axis=3))
            turned = s.builder.node("Transpose", [whole], (1, 6, 3, 6), perm=[0, 1, 3, 2])
            return s.emit(node, [turned], take)
        return honest(s, node, take)

    monkeypatch.setitem(RULES, "Softmax", of_keys)
    assert statuses(SplitQueries(tile=3)) == ["fail"]


def test_joining_along_another_axis_is_caught(monkeypatch):
    """Three heads' worth of the wrong axis: the shape is right, the order is not."""
    honest = SplitQueries.rewrite

    def joined(self, graph, match):
        proposal = honest(self, graph, match)
        node = producer_of(proposal.outputs[0][1])
        for position, tensor in enumerate(list(node.inputs)):
            node.inputs[position] = proposal.builder.node(
                "Transpose", [tensor], (1, 3, 6, 6), perm=[0, 2, 1, 3]
            )
        node.attrs["axis"] = 1
        return proposal

    monkeypatch.setattr(SplitQueries, "rewrite", joined)
    assert statuses(SplitQueries(tile=3)) == ["fail"]
