"""One subgraph a head, however query, key and value were projected, packed, scaled and masked."""

import math
import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from running import Result, applied, error_in_float32, proofs, refusal

import passes.split_heads
from compiler.components import changed_components
from compiler.graph import Graph, producer_of, reads_of, static_shape
from compiler.heads import Heads
from compiler.rewrite import Applied, apply_pass
from compiler.slicing import Slicer
from compiler.verify.proof import prove
from models import resolve
from passes.canonicalize import Canonicalize
from passes.split_heads import Attention, SplitHeads
from passes.split_queries import SplitQueries
from tests.models.official import export_official, official_model

SIZES = {"N5 H4 D3": (5, 4, 3), "N = H = D": (3, 3, 3), "N = D": (4, 2, 4)}


def ints(name: str, *values: int) -> str:
    return f"int64[{len(values)}] {name} = {{{', '.join(map(str, values))}}}"


class Text:
    """The text of an attention over `tokens` of `heads` · `width` features, in a batch."""

    def __init__(self, tokens: int = 5, heads: int = 4, width: int = 3, batch: int = 1) -> None:
        self.b, self.n, self.h, self.d, self.c = batch, tokens, heads, width, heads * width
        self.inputs = [f"float[{batch},{tokens},{self.c}] x"]
        self.constants = [
            f"float[{self.c},{self.c}] wo", "float scale = {0.7}",
            ints("split", batch, tokens, heads, width), ints("joined", batch, tokens, self.c),
        ]  # fmt: skip
        self.attend = "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) ss = Mul(s, scale)"
        self.softmax = "p = Softmax<axis=-1>(ss)"
        self.merge = "o = MatMul(p, v) ot = Transpose<perm=[0,2,1,3]>(o) m = Reshape(ot, joined)"
        self.project = "y = MatMul(m, wo)"
        self.outputs = "(float[a,b,c] y)"

    def graph(self, qkv: str, *constants: str) -> str:
        declared = ", ".join([*self.constants, *constants])
        body = " ".join([qkv, self.attend, self.softmax, self.merge, self.project])
        return f"g ({', '.join(self.inputs)}) => {self.outputs} <{declared}> {{ {body} }}"

    def separate(self, bias: bool = True) -> str:
        lines, constants = [], []
        for name in "qkv":
            constants.append(f"float[{self.c},{self.c}] w{name}")
            constants.append(f"float[{self.c}] b{name}")
            added = f"{name}2 = Add(b{name}, {name}1)" if bias else f"{name}2 = Identity({name}1)"
            lines.append(
                f"{name}1 = MatMul(x, w{name}) {added} {name}3 = Reshape({name}2, split) "
                f"{name} = Transpose<perm=[0,2,1,3]>({name}3)"
            )
        return self.graph(" ".join(lines), *constants)

    def packed(self, unpack: str, *constants: str) -> str:
        c, d3 = self.c, (self.b, self.n, 3, self.h, self.d)
        return self.graph(
            f"z0 = MatMul(x, w) z = Add(z0, bias) {unpack}",
            f"float[{c},{3 * c}] w", f"float[{3 * c}] bias", ints("apart", *d3), *constants,
        )  # fmt: skip

    def packed_gather(self) -> str:
        picks = " ".join(f"{name} = Gather<axis=0>(t, i{k})" for k, name in enumerate("qkv"))
        indices = [f"int64 i{k} = {{{k}}}" for k in range(3)]
        return self.packed(
            f"r = Reshape(z, apart) t = Transpose<perm=[2,0,3,1,4]>(r) {picks}", *indices
        )

    def packed_split(self) -> str:
        """The thirds are split off before the heads; `unbind` of the dynamo exporter."""
        squeezed = " ".join(f"{name} = Squeeze({name}1, zero)" for name in "qkv")
        return self.packed(
            "r = Reshape(z, apart) t = Transpose<perm=[2,0,3,1,4]>(r) "
            f"q1, k1, v1 = Split<axis=0>(t, ones) {squeezed}",
            ints("ones", 1, 1, 1), ints("zero", 0),
        )  # fmt: skip

    def packed_chunks(self) -> str:
        """`chunk(3, dim=-1)`: three Slices of the columns."""
        lines, constants = [], [ints("ax", -1)]
        for k, name in enumerate("qkv"):
            constants += [ints(f"s{k}", k * self.c), ints(f"e{k}", (k + 1) * self.c)]
            lines.append(
                f"{name}1 = Slice(z, s{k}, e{k}, ax) {name}2 = Reshape({name}1, split) "
                f"{name} = Transpose<perm=[0,2,1,3]>({name}2)"
            )
        return self.packed(" ".join(lines), *constants)

    def packed_per_head(self) -> str:
        """Query, key and value of a head lie together: H·3·D (GPT-NeoX, BLOOM)."""
        d = self.d
        cuts = ints("ds", d, d, d)
        turned = " ".join(f"{name} = Transpose<perm=[0,2,1,3]>({name}1)" for name in "qkv")
        return self.packed(
            f"r = Reshape(z, per_head) q1, k1, v1 = Split<axis=3>(r, ds) {turned}",
            ints("per_head", self.b, self.n, self.h, 3 * d), cuts,
        )  # fmt: skip

    def head_last(self) -> str:
        """C = D·H: the heads are the inner factor, so each one takes strided columns."""
        inner = ints("inner", self.b, self.n, self.d, self.h)
        lines = [f"{name}1 = MatMul(x, w{name}) {name}2 = Reshape({name}1, inner) "
                 f"{name} = Transpose<perm=[0,3,1,2]>({name}2)" for name in "qkv"]  # fmt: skip
        constants = [f"float[{self.c},{self.c}] w{name}" for name in "qkv"]
        return self.graph(" ".join(lines), inner, *constants)

    def head_last_merge(self) -> str:
        """The merged features are D·H as well: the heads stay the last axis until the Reshape."""
        self.merge = "o = MatMul(p, v) ot = Transpose<perm=[0,2,3,1]>(o) m = Reshape(ot, joined)"
        return self.head_last()

    def gemm(self) -> str:
        """Projections on the matrix of all tokens, as onnxsim makes them."""
        lines, constants = [], [ints("rows", self.b * self.n, self.c)]
        for name in "qkv":
            constants += [f"float[{self.c},{self.c}] w{name}", f"float[{self.c}] b{name}"]
            lines.append(
                f"{name}1 = Gemm<transB=1>(rowed, w{name}, b{name}) {name}2 = Reshape({name}1, "
                f"split) {name} = Transpose<perm=[0,2,1,3]>({name}2)"
            )
        return self.graph("rowed = Reshape(x, rows) " + " ".join(lines), *constants)

    def folded_batch(self) -> str:
        """[B·H, N, D], as fairseq and torch's MultiheadAttention write it."""
        self.attend = "kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) ss = Mul(s, scale)"
        self.merge = (
            "o = MatMul(p, v) o4 = Reshape(o, unfold) ot = Transpose<perm=[0,2,1,3]>(o4) "
            "m = Reshape(ot, joined)"
        )
        lines, constants = [], []
        for name in "qkv":
            constants.append(f"float[{self.c},{self.c}] w{name}")
            lines.append(
                f"{name}1 = MatMul(x, w{name}) {name}2 = Reshape({name}1, split) "
                f"{name}3 = Transpose<perm=[0,2,1,3]>({name}2) {name} = Reshape({name}3, fold)"
            )
        shapes = (ints("fold", self.b * self.h, self.n, self.d),
                  ints("unfold", self.b, self.h, self.n, self.d))  # fmt: skip
        return self.graph(" ".join(lines), *constants, *shapes)

    def grouped_keys(self) -> str:
        """GQA: two heads of query share one of key and value, repeated by Expand."""
        groups, width = self.h // 2, self.h // 2 * self.d
        five = ints("five", self.b, groups, 2, self.n, self.d)
        four = ints("four", self.b, self.h, self.n, self.d)
        lines = ["q1 = MatMul(x, wq) q2 = Reshape(q1, split) q = Transpose<perm=[0,2,1,3]>(q2)"]
        for name in "kv":
            lines.append(
                f"{name}1 = MatMul(x, w{name}) {name}2 = Reshape({name}1, few) "
                f"{name}3 = Transpose<perm=[0,2,1,3]>({name}2) {name}4 = Unsqueeze({name}3, two) "
                f"{name}5 = Expand({name}4, five) {name} = Reshape({name}5, four)"
            )
        return self.graph(
            " ".join(lines), five, four, ints("few", self.b, self.n, groups, self.d),
            ints("two", 2), f"float[{self.c},{self.c}] wq", f"float[{self.c},{width}] wk",
            f"float[{self.c},{width}] wv",
        )  # fmt: skip

    def masked(self, mask: str) -> "Text":
        """A mask after the scale: `added` (relative positions, one a head), or `where` (causal)."""
        if mask == "added":
            self.inputs.append(f"float[1,1,1,{self.n}] padding")
            self.constants.append(f"float[1,{self.h},{self.n},{self.n}] position")
            self.attend += " s1 = Add(ss, position) s2 = Add(s1, padding)"
        else:
            self.inputs.append(f"bool[{self.n},{self.n}] seen")
            self.constants.append("float low = {-1000}")
            self.attend += " s2 = Where(seen, ss, low)"
        self.softmax = "p = Softmax<axis=-1>(s2)"
        return self

    def guarded(self) -> "Text":
        """torch's guard against rows that are masked whole, then dropout's scale."""
        self.constants += ["float none = {0}", "float kept = {1.25}"]
        self.softmax = (
            "p1 = Softmax<axis=-1>(ss) bad = IsNaN(p1) p2 = Where(bad, none, p1) p = Mul(p2, kept)"
        )
        return self

    def apart(self) -> "Text":
        """The Softmax as Exp, ReduceSum and Div, as older exporters and quantizers write it."""
        self.constants.append(ints("last", -1))
        self.softmax = (
            "top = ReduceMax<axes=[-1]>(ss) low = Sub(ss, top) e = Exp(low) "
            "total = ReduceSum(e, last) p = Div(e, total)"
        )
        return self

    def scaled_before(self) -> "Text":
        """√scale on query and key each, as torch's scaled_dot_product_attention is exported."""
        self.attend = (
            "kt = Transpose<perm=[0,1,3,2]>(k) qs = Mul(q, scale) ks = Mul(kt, scale) "
            "ss = MatMul(qs, ks)"
        )
        return self


ATTENTIONS = {
    "separate": Text.separate,
    "separate without bias": lambda t: t.separate(bias=False),
    "packed, gathered": Text.packed_gather,
    "packed, split": Text.packed_split,
    "packed, chunked by Slice": Text.packed_chunks,
    "packed per head": Text.packed_per_head,
    "heads innermost": Text.head_last,
    "heads innermost, merged so": Text.head_last_merge,
    "Gemm on rows": Text.gemm,
    "batch folded into heads": Text.folded_batch,
    "scaled before": lambda t: t.scaled_before().packed_gather(),
    "added mask": lambda t: t.masked("added").separate(),
    "guarded against masked rows": lambda t: t.guarded().separate(),
    "softmax taken apart": lambda t: t.apart().packed_gather(),
    "boolean mask": lambda t: t.masked("where").packed_split(),
}


def head_axes(graph: Graph) -> list[str]:
    """The Softmax nodes that still run over more than one matrix of scores."""
    return [
        node.name
        for node in graph.nodes
        if node.op == "Softmax" and any(d > 1 for d in static_shape(node.outputs[0])[:-2])
    ]


def check(result: Result, pass_: SplitHeads, heads: int) -> None:
    """One rewrite, proven; no head axis, no slice left inside; a second run does nothing."""
    assert result.reasons == []
    (rewrite,) = result.done.rewrites
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.detail, proof.error <= 1e-13) == ("pass", "", True)
    assert rewrite.old.outputs == rewrite.new.outputs
    probabilities = "Softmax" if "Softmax" in result.ops else "Exp"
    assert result.ops.count(probabilities) == heads // pass_.group
    again = apply_pass(result.graph.copy(), pass_)
    assert again.rewrites == []


# -- what is left alone ----------------------------------------------------------------------------


ONE_HEAD = "p = Softmax<axis=-1>(x) y = MatMul(p, x)"
NOTHING = {
    "a classifier": (
        "y = Softmax<axis=-1>(x)",
        "no Softmax weighs values, and there is no Attention op",
    ),
    "one head": (ONE_HEAD, "every attention has one head (1 in all)"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_split(case):
    nodes, reason = NOTHING[case]
    text = f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}"
    assert refusal(text, SplitHeads()) == f"nothing to split: {reason}"


BODIES = {
    "If": (
        "g (bool c, float[1,4,6,8] q) => (float[1,4,6,8] y) { y = If(c) <"
        "then_branch = a () => (float[1,4,6,8] o) "
        "{ s = MatMul(q, q_t) p = Softmax<axis=-1>(s) o = MatMul(p, q) }, "
        "else_branch = b () => (float[1,4,6,8] e) { e = Identity(q) }> }"
    ).replace("{ y = If", "{ q_t = Transpose<perm=[0,1,3,2]>(q) y = If"),
    "Loop": (
        "g (int64 n, bool c, float[1,4,6,8] q) => (float[1,4,6,8] y) { y = Loop(n, c, q) <"
        "body = a (int64 i, bool go, float[1,4,6,8] x) => (bool on, float[1,4,6,8] o) "
        "{ on = Identity(go) t = Transpose<perm=[0,1,3,2]>(x) s = MatMul(x, t) "
        "p = Softmax<axis=-1>(s) o = MatMul(p, x) }> }"
    ),
    "Scan": (
        "g (float[3,1,4,6,8] q) => (float[3,1,4,6,8] y) { y = Scan<num_scan_inputs=1, "
        "body = a (float[1,4,6,8] x) => (float[1,4,6,8] o) "
        "{ t = Transpose<perm=[0,1,3,2]>(x) s = MatMul(x, t) p = Softmax<axis=-1>(s) "
        "o = MatMul(p, x) }> (q) }"
    ),
}  # fmt: skip


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitQueries(tile=2)], ids=lambda p: p.name)
@pytest.mark.parametrize("op", BODIES)
def test_what_is_in_a_body_is_left_alone_with_a_reason(op, pass_):
    result = applied(BODIES[op], pass_)
    assert result.done.rewrites == []
    (refused,) = result.done.refusals
    assert refused.place == "o"
    assert re.fullmatch(rf"it is in the body of {op} '.*', which is left as it is", refused.reason)


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitQueries(tile=2)], ids=lambda p: p.name)
def test_what_is_in_a_local_function_is_left_alone_with_a_reason(pass_):
    text = """<ir_version: 9, opset_import: ["" : 18, "my" : 1]>
    g (float[1,4,6,8] x) => (float[1,4,6,8] y) { y = my.attend(x) }
    <domain: "my", opset_import: ["" : 18]>
    attend (q) => (o)
    { t = Transpose<perm=[0,1,3,2]>(q) s = MatMul(q, t) p = Softmax<axis=-1>(s)
      o = MatMul(p, q) }"""
    graph = Graph(onnx.parser.parse_model(text), Path())
    (refused,) = apply_pass(graph, pass_).refusals
    assert refused.reason == "it is in the local function 'attend', which is left as it is"


def test_scores_of_heads_that_the_probabilities_share():
    """One set of probabilities for all heads, which is an output: there are none a head."""
    text = "g (float[1,1,5,5] s, float[1,5,12] x) => (float[1,5,12] y, float[1,1,5,5] p)"
    text += "<float[12,12] w, int64[4] split = {1, 5, 4, 3}, int64[3] joined = {1, 5, 12}> {"
    text += " z = MatMul(x, w) r = Reshape(z, split) v = Transpose<perm=[0,2,1,3]>(r)"
    text += " p = Softmax<axis=-1>(s) o = MatMul(p, v) t = Transpose<perm=[0,2,1,3]>(o)"
    text += " y = Reshape(t, joined) }"
    assert refusal(text, SplitHeads()) == "'p' is also used elsewhere, and has no axis of heads"


def test_a_softmax_over_another_axis():
    text = Text(4, 4, 4)
    text.softmax = "p = Softmax<axis=1>(ss)"
    reason = refusal(text.separate(), SplitHeads())
    assert reason == "the Softmax runs over axis 1 of [1, 4, 4, 4]"


@pytest.mark.parametrize("opset", [11, 12])
def test_a_softmax_before_opset_13_over_the_last_axes(opset):
    """Without an axis it runs over all but the first one."""
    text = Text()
    text.softmax = "p = Softmax(ss)"
    assert "the Softmax runs over axis 1" in refusal(text.separate(), SplitHeads(), opset)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (3, "4 heads can't be divided into groups of 3"),
        (8, "4 heads can't be divided into groups of 8"),
        (4, "it already is one group of 4 heads"),
    ],
)
def test_groups_that_do_not_fit(group, reason):
    assert refusal(Text().separate(), SplitHeads(group=group)) == reason


def test_a_batch_is_not_heads():
    """One head each for two images: what is left after a split of a batch."""
    text = Text(tokens=5, heads=1, width=12, batch=2)
    reason = refusal(text.separate(), SplitHeads())
    assert reason == "axis 0 of 'm' is never merged with the features: a batch"


@pytest.mark.parametrize(
    "project",
    ["y = Relu(m)", "y = MatMul(m, x2)", "y0 = MatMul(m, wo) y = Add(y0, m)", "y = MatMul(wn, m)"],
)
def test_sum_without_a_projection(project):
    text = Text()
    text.inputs.append(f"float[{text.c},2] x2")
    text.constants.append(f"float[3,{text.n}] wn")
    text.project = project
    reason = refusal(text.separate(), SplitHeads(merge="sum"))
    assert reason == "merge=sum: 'm' is not only multiplied by constant weights"


def test_an_unknown_number_of_heads():
    text = "g (float[1,h,5,3] q, float[1,h,3,5] k, float[1,h,5,3] v) => (float[1,5,n] y)"
    text += "<int64[3] joined = {1, 5, -1}> { s = MatMul(q, k) p = Softmax<axis=-1>(s)"
    text += " o = MatMul(p, v) t = Transpose<perm=[0,2,1,3]>(o) y = Reshape(t, joined) }"
    assert refusal(text, SplitHeads()) == "axis 1 of 'o' is dynamic (h): no number of heads"


OP = "g ({} q, {} k, {} v{}) => ({} y{}) {{ y{} = Attention{}(q, k, v{}) }}"


@pytest.mark.parametrize(
    ("text", "pass_", "reason"),
    [
        pytest.param(
            OP.format(*["float[1,2,5,3]"] * 3, ", float[1,2,4,3] pk, float[1,2,4,3] pv",
                      "float[1,2,5,3]", ", float[1,2,9,3] nk, float[1,2,9,3] nv", ", nk, nv", "",
                      ", , pk, pv"),
            SplitHeads(), "the Attention has a cache or more outputs than one", id="cache",
        ),
        pytest.param(
            OP.format("float[1,5,18]", "float[1,5,9]", "float[1,5,9]", "", "float[1,5,18]", "", "",
                      "<q_num_heads=6, kv_num_heads=3>", ""),
            SplitHeads(group=3), "groups of 3 heads would share keys with others: 2 a key",
            id="groups across keys",
        ),
        pytest.param(
            OP.format(*["float[b,h,5,3]"] * 3, "", "float[b,h,5,3]", "", "", "", ""),
            SplitHeads(), "axis 1 of 'y' is dynamic (h): no number of heads", id="dynamic heads",
        ),
    ],
)  # fmt: skip
def test_attention_ops_that_stay(text, pass_, reason):
    assert refusal(text, pass_, 23) == reason


# -- what is split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention(attention, size, tmp_path):
    text = Text(*SIZES[size])
    result = applied(ATTENTIONS[attention](text), SplitHeads())
    check(result, SplitHeads(), text.h)
    assert head_axes(result.graph) == []
    assert result.done.rewrites[0].slices_left == 0
    assert {"Slice", "Gather", "Split"} & set(result.ops) == set()
    if attention != "boolean mask":
        assert error_in_float32(result, SplitHeads(), tmp_path) < 1e-4


@pytest.mark.parametrize("attention", sorted({*ATTENTIONS} - {"batch folded into heads"}))
def test_batch_2(attention):
    text = Text(batch=2)
    result = applied(ATTENTIONS[attention](text), SplitHeads())
    check(result, SplitHeads(), text.h)
    assert {static_shape(n.outputs[0])[:-2] for n in result.graph.nodes if n.op == "Softmax"} <= {
        (2, 1), (2,)
    }  # fmt: skip


def test_batch_2_folded_into_the_heads():
    """[2·H, N, D]: the axis is more than heads, and is left alone."""
    reason = refusal(Text(batch=2).folded_batch(), SplitHeads())
    assert reason == "axis 0 of 'o' is never merged with the features: a batch"


def on_rows(heads: int, width: int, batch: int = 3) -> Text:
    """The projection runs on the matrix of all tokens: the merge joins batch and tokens as well."""
    text = Text(5, heads, width, batch)
    text.constants.append(ints("rows", batch * 5, text.c))
    text.merge = text.merge.replace("joined", "rows")
    text.project, text.outputs = "y = Gemm(m, wo)", "(float[a,c] y)"
    return text


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("form", ["separate", "head_last_merge"])
def test_heads_are_told_from_a_batch_that_is_merged_with_the_tokens(form, width):
    text = on_rows(4, width)
    merge = text.merge
    body = getattr(text, form)()
    if form == "head_last_merge":
        merge = merge.replace("[0,2,1,3]", "[0,2,3,1]")
        body = body.replace(text.merge, merge)
    result = applied(body, SplitHeads())
    check(result, SplitHeads(), 4)


def test_a_batch_that_is_merged_with_the_tokens_is_not_heads():
    reason = refusal(on_rows(1, 12).separate(), SplitHeads())
    assert reason == "axis 0 of 'm' is never merged with the features: a batch"


def test_a_batch_that_ends_up_last_is_not_heads():
    """Tokens first, one head, and a Conv as projection: [N, B, D] becomes [N, D, B]."""
    text = Text(tokens=5, heads=1, width=4, batch=3)
    text.constants.append(ints("rows", 5, 3, 4))
    text.merge = "o = MatMul(p, v) ot = Transpose<perm=[2,0,1,3]>(o) m0 = Reshape(ot, rows) "
    text.merge += "m = Transpose<perm=[0,2,1]>(m0)"
    text.project = "y = Relu(m)"
    reason = refusal(text.separate(), SplitHeads())
    assert reason == "axis 2 of 'm' is never merged with the features: a batch"


# -- Einsum ----------------------------------------------------------------------------------------

EINSUMS = {
    "as MatMul": ("bhij,bhjd->bhid", "v", "o = {} ot = Transpose<perm=[0,2,1,3]>(o)"),
    "tokens first": ("bhij,bjhd->bihd", "v3", "ot = {}"),
    "values first": ("bjhd,bhij->bihd", "v3", "ot = {}"),
}


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitHeads(group=2), SplitHeads(merge="sum")],
                         ids=SplitHeads.text)  # fmt: skip
@pytest.mark.parametrize("shown", ["", ", float[d,e,f,g] p"])
@pytest.mark.parametrize("form", EINSUMS)
def test_an_einsum_that_weighs_the_values(form, shown, pass_):
    equation, values, merge = EINSUMS[form]
    text = Text(batch=2)
    text.outputs = f"(float[a,b,c] y{shown})"
    operands = f"{values}, p" if form == "values first" else f"p, {values}"
    einsum = f'Einsum<equation="{equation}">({operands})'
    text.merge = merge.format(einsum) + " m = Reshape(ot, joined)"
    result = applied(text.separate(), pass_)
    check(result, pass_, 4)
    assert result.done.rewrites[0].slices_left == 0


@pytest.mark.parametrize("equation", ["...ij,...jd->...id", "bhij,bhid->bhjd", "bhij, bhjk -> bhk"])
def test_an_einsum_that_is_no_product_of_matrices(equation):
    """Letters that stand for several axes, a sum over queries, probabilities without queries."""
    text = Text(5, 4, 5)
    text.merge = f'm = Einsum<equation="{equation}">(p, v)'
    text.project, text.outputs = "y = Relu(m)", "(float y)"
    source = text.separate().replace(
        "(float y)", f"(float[{'a,b,c' if 'k' in equation else 'a,b,c,d'}] y)"
    )
    reason = refusal(source, SplitHeads())
    assert reason == f"'m' is no product of matrices in a batch: Einsum '{equation}'"


# -- heads in groups, on two axes ------------------------------------------------------------------


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitHeads(group=2)], ids=SplitHeads.text)
def test_heads_on_two_axes(pass_):
    """Grouped queries without repeated keys: [B, K, G, N, D] by [B, K, 1, N, D]."""
    text = Text(batch=2)
    text.attend = "kt = Transpose<perm=[0,1,2,4,3]>(k) s = MatMul(q, kt) ss = Mul(s, scale)"
    text.merge = (
        "o = MatMul(p, v) o4 = Reshape(o, four) ot = Transpose<perm=[0,2,1,3]>(o4) "
        "m = Reshape(ot, joined)"
    )
    lines = ["q1 = MatMul(x, wq) q2 = Reshape(q1, split) q3 = Transpose<perm=[0,2,1,3]>(q2) "
             "q = Reshape(q3, five)"]  # fmt: skip
    for name in "kv":
        lines.append(
            f"{name}1 = MatMul(x, w{name}) {name}2 = Reshape({name}1, few) "
            f"{name}3 = Transpose<perm=[0,2,1,3]>({name}2) {name} = Unsqueeze({name}3, two)"
        )
    body = text.graph(
        " ".join(lines), "float[12,12] wq", "float[12,6] wk", "float[12,6] wv", ints("two", 2),
        ints("five", 2, 2, 2, 5, 3), ints("four", 2, 4, 5, 3), ints("few", 2, 5, 2, 3),
    )  # fmt: skip
    result = applied(body, pass_)
    check(result, pass_, 4)
    assert result.done.rewrites[0].slices_left == 0


# -- probabilities that are needed elsewhere -------------------------------------------------------

WATCHED = {
    "an output": (Text, ", float[d,e,f,g] p", ""),
    "read by another node": (Text, ", float[d,e,f,g] entropy", " entropy = Log(p)"),
    "before the guard": (lambda: Text().guarded(), ", float[d,e,f,g] entropy",
                         " entropy = Log(p1)"),
    "behind the guard": (lambda: Text().guarded(), ", float[d,e,f,g] p2", ""),
}  # fmt: skip


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitHeads(group=2), SplitHeads(merge="sum")],
                         ids=SplitHeads.text)  # fmt: skip
@pytest.mark.parametrize("watched", WATCHED)
def test_probabilities_that_are_needed_elsewhere(watched, pass_, tmp_path):
    """They are joined from the heads': the same name, the same values, computed once."""
    made, outputs, project = WATCHED[watched]
    text = made()
    text.outputs = f"(float[a,b,c] y{outputs})"
    text.project += project
    result = applied(text.separate(), pass_)
    check(result, pass_, 4)
    assert len(result.done.rewrites[0].old.outputs) == 2
    names = [output.name for output in result.source.graph.output]
    assert [tensor.name for tensor in result.graph.outputs] == names
    if "entropy" not in outputs:
        assert error_in_float32(result, pass_, tmp_path) < 1e-4


def test_a_fault_in_rejoined_probabilities_is_caught(monkeypatch):
    honest = Slicer.rejoined

    def swapped(self, tensor, takes):
        joined = honest(self, tensor, takes)
        node = producer_of(joined)
        one, two = node.inputs[1], node.inputs[2]
        node.inputs[1], node.inputs[2] = two, one
        return joined

    monkeypatch.setattr(Slicer, "rejoined", swapped)
    text = Text()
    text.outputs = "(float[a,b,c] y, float[d,e,f,g] p)"
    result = applied(text.separate(), SplitHeads())
    assert [proof.status for proof in proofs(result, SplitHeads())] == ["fail"]


# -- dynamic sizes ---------------------------------------------------------------------------------

DYNAMIC = {
    "tokens": ("[1,n,12]", "1, -1", "separate"),
    "batch": ("[b,5,12]", "-1, 5", "separate"),
    "batch and tokens": ("[b,n,12]", "0, -1", "separate"),
    "packed tokens": ("[1,n,12]", "1, -1", "packed_gather"),
    "packed, split batch": ("[b,5,12]", "-1, 5", "packed_split"),
    "batch and tokens, packed": ("[b,n,12]", "0, -1", "packed_gather"),
    "chunks": ("[b,n,12]", "0, -1", "packed_chunks"),
    "heads innermost": ("[b,n,12]", "0, -1", "head_last_merge"),
    "guarded": ("[b,n,12]", "0, -1", "guarded"),
    "scaled before": ("[b,n,12]", "0, -1", "scaled_before"),
}


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitHeads(group=2), SplitHeads(merge="sum")],
                         ids=SplitHeads.text)  # fmt: skip
@pytest.mark.parametrize("dynamic", DYNAMIC)
def test_dynamic_sizes(dynamic, pass_):
    """The number of heads has to be known; nothing else."""
    size, leading, form = DYNAMIC[dynamic]
    if form == "head_last_merge" and pass_ != SplitHeads():
        pytest.skip("heads that lie apart are no rows of the projection, and no range")
    text = Text()
    text = text.guarded() if form == "guarded" else text
    text = text.scaled_before() if form == "scaled_before" else text
    body = getattr(text, form)() if form.startswith(("packed", "head")) else text.separate()
    body = body.replace("float[1,5,12] x", f"float{size} x").replace("{1, 5,", f"{{{leading},")
    result = applied(body, pass_)
    check(result, pass_, 4)
    assert result.done.rewrites[0].slices_left == 0


def test_dynamic_sizes_that_a_shape_computes():
    """torch's `view(b, n, 4, 3)`: the first dimensions come from Shape and Gather."""
    body = (
        "sh = Shape(x) b = Gather(sh, zero) n = Gather(sh, one) b1 = Unsqueeze(b, ax) "
        "n1 = Unsqueeze(n, ax) split = Concat<axis=0>(b1, n1, heads) "
        "joined = Concat<axis=0>(b1, n1, all) "
    )
    text = Text()
    text.constants = ["float[12,12] wo", "float scale = {0.7}", "int64 zero = {0}"]
    text.constants += ["int64 one = {1}", ints("ax", 0), ints("heads", 4, 3), ints("all", 12)]
    whole = (
        text.separate()
        .replace("float[1,5,12] x", "float[b,n,12] x")
        .replace("{ q1", f"{{ {body} q1")
    )
    result = applied(whole, SplitHeads())
    check(result, SplitHeads(), 4)
    assert result.done.rewrites[0].slices_left == 0


# -- the Attention op ------------------------------------------------------------------------------

OPS = {
    "three axes": ("[1,5,12]", "[1,7,12]", "[1,7,8]", "[1,5,8]", "q_num_heads=4, kv_num_heads=4"),
    "shared keys": ("[1,5,12]", "[1,7,6]", "[1,7,4]", "[1,5,8]", "q_num_heads=4, kv_num_heads=2"),
    "one key": ("[2,5,12]", "[2,7,3]", "[2,7,2]", "[2,5,8]", "q_num_heads=4, kv_num_heads=1"),
    "four axes": ("[2,4,5,3]", "[2,2,7,3]", "[2,2,7,3]", "[2,4,5,3]", "scale=0.3"),
    "causal": ("[1,5,12]", "[1,5,12]", "[1,5,12]", "[1,5,12]",
               "q_num_heads=4, kv_num_heads=4, is_causal=1"),
    "capped": ("[1,5,12]", "[1,5,12]", "[1,5,12]", "[1,5,12]",
               "q_num_heads=4, kv_num_heads=4, softcap=3.0"),
    "dynamic": ("[b,n,12]", "[b,m,12]", "[b,m,12]", "[b,n,12]", "q_num_heads=4, kv_num_heads=4"),
}  # fmt: skip
OP_MASKS = ["", "float[5,7]", "bool[1,4,5,7]", "float[4,1,7]"]


@pytest.mark.parametrize("pass_", [SplitHeads(), SplitHeads(group=2)], ids=SplitHeads.text)
@pytest.mark.parametrize("form", OPS)
@pytest.mark.parametrize("mask", OP_MASKS)
def test_attention_ops(form, mask, pass_):
    """One Attention a head, with its own slices of query, key, value and mask."""
    q, k, v, y, call = OPS[form]
    if mask and form in ("causal", "capped", "dynamic"):
        pytest.skip("other lengths")
    named = ", mask" if mask else ""
    declared = f", {mask} mask" if mask else ""
    text = (
        f"g (float{q} q, float{k} k, float{v} v{declared}) => (float{y} y) "
        f"{{ y = Attention<{call}>(q, k, v{named}) }}"
    )
    result = applied(text, pass_, 23)
    assert result.reasons == []
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.detail, proof.error <= 1e-13) == ("pass", "", True)
    assert result.ops.count("Attention") == 4 // pass_.group
    assert apply_pass(result.graph.copy(), pass_).rewrites == []


def test_an_attention_op_behind_projections():
    """The weights come apart; nothing else is sliced."""
    lines = " ".join(f"{n} = MatMul(x, w{n})" for n in "qkv")
    weights = ", ".join(f"float[12,12] w{n}" for n in "qkvo")
    text = (
        f"g (float[1,5,12] x) => (float[1,5,12] y) <{weights}> {{ {lines} "
        "a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) y = MatMul(a, wo) }"
    )
    for pass_ in (SplitHeads(), SplitHeads(merge="sum")):
        result = applied(text, pass_, 23)
        (proof,) = proofs(result, pass_)
        assert (proof.status, result.done.rewrites[0].slices_left) == ("pass", 0)
        assert result.ops.count("Attention") == 4
        assert {"Slice", "Gather", "Split"} & set(result.ops) == set()


@pytest.mark.parametrize("sizes", ["1, 5", "0, -1"], ids=["static", "dynamic"])
@pytest.mark.parametrize("pass_", [SplitHeads(), SplitHeads(group=2)], ids=SplitHeads.text)
def test_an_attention_op_between_transposes(pass_, sizes):
    """[B, H, N, D], as PyTorch exports it from opset 23 on."""
    text = Text()
    text.attend, text.softmax = "", ""
    text.merge = "o = Attention<scale=0.4>(q, k, v) "
    text.merge += "ot = Transpose<perm=[0,2,1,3]>(o) m = Reshape(ot, joined)"
    body = text.packed_gather().replace("{1, 5,", f"{{{sizes},")
    body = body.replace("float[1,5,12] x", "float[b,n,12] x") if sizes == "0, -1" else body
    result = applied(body, pass_, 23)
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.detail, proof.error <= 1e-13) == ("pass", "", True)
    assert result.done.rewrites[0].slices_left == 0
    assert result.ops.count("Attention") == 4 // pass_.group
    assert apply_pass(result.graph.copy(), pass_).rewrites == []


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 23])
def test_opsets(opset):
    check(applied(Text().packed_split(), SplitHeads(), opset), SplitHeads(), 4)


def test_keys_that_heads_share():
    text = Text()
    result = applied(text.grouped_keys(), SplitHeads())
    check(result, SplitHeads(), 4)
    # Two key heads for four query heads: each is projected once.
    assert result.ops.count("MatMul") == 4 + 2 + 2 + 2 * 4 + 1


@pytest.mark.parametrize("attention", ["separate", "packed, gathered", "Gemm on rows"])
def test_groups_of_two(attention):
    pass_ = SplitHeads(group=2)
    result = applied(ATTENTIONS[attention](Text()), pass_)
    check(result, pass_, 4)
    softmax = [static_shape(n.outputs[0]) for n in result.graph.nodes if n.op == "Softmax"]
    assert [math.prod(shape[:-2]) for shape in softmax] == [2, 2]


@pytest.mark.parametrize("group", [1, 2])
def test_merge_by_sum(group, tmp_path):
    """Each head is multiplied by its own rows of the projection; there is no Concat."""
    pass_ = SplitHeads(merge="sum", group=group)
    result = applied(Text().separate(), pass_)
    check(result, pass_, 4)
    assert "Concat" not in result.ops
    assert result.ops.count("Add") == 4 // group - 1 + 3 * 4 // group
    rows = {name for name in constants(result.graph) if "wo[" in name}
    wanted = [f"o/wo[{k}:{k + 3 * group}, :]" for k in range(0, 12, 3 * group)]
    assert sorted(rows) == sorted(wanted)
    assert error_in_float32(result, pass_, tmp_path) < 1e-4


def constants(graph: Graph) -> set[str]:
    return {tensor.name for node in graph.nodes for tensor in reads_of(node) if not tensor.inputs}


def test_the_graph_of_a_head():
    """From the weights to the merge, in order; what the heads share stays outside."""
    result = applied(Text().packed_gather(), SplitHeads())
    project = ["MatMul", "Add"]
    head = [*project, *project, "Transpose", "MatMul", "Mul", "Softmax", *project, "MatMul"]
    assert sorted(result.ops) == sorted([*(4 * head), "Concat", "MatMul"])


def test_names_say_which_columns():
    text = Text()
    names = constants(applied(text.separate(), SplitHeads()).graph)
    for name in "qkv":
        columns = [f"{k}:{k + 3}" for k in (0, 3, 6, 9)]
        assert {f"o/w{name}[:, {part}]" for part in columns} <= names
        assert {f"o/b{name}[{part}]" for part in columns} <= names
    assert "wq" not in names


def test_biases_and_strides_in_names():
    names = constants(applied(Text().head_last(), SplitHeads()).graph)
    assert {f"o/wv[:, {k}:12:4]" for k in range(4)} <= names


def test_two_attentions_keep_their_own_weights():
    text = Text()
    once = text.separate()
    body = once[once.index("{ q1") + 1 : -1]
    second = re.sub(r"\b(q|k|v)(\d?)\b", r"\1\2_", body)
    second = re.sub(r"\b(kt|s|ss|p|o|ot|m)\b", r"\1_", second)
    second = second.replace("(x, ", "(y1, ").replace("y =", "y =")
    whole = once[: once.index("{ q1")] + "{" + body.replace("y =", "y1 =") + second + "}"
    result = applied(whole, SplitHeads())
    assert [proof.status for proof in proofs(result, SplitHeads())] == ["pass", "pass"]
    assert [r.title for r in result.done.rewrites] == ["split_heads#0 at o", "split_heads#1 at o_"]
    assert head_axes(result.graph) == []


# -- planted faults --------------------------------------------------------------------------------

FAULTS = {
    "heads swapped": lambda takes: [takes[1], takes[0], *takes[2:]],
    "a head twice": lambda takes: [takes[0], takes[0], *takes[2:]],
    "one column off": lambda takes: [replace(takes[0], start=1, stop=4), *takes[1:]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_heads_is_caught(monkeypatch, fault):
    right = Attention.take
    takes = FAULTS[fault]([right(ATTENTION, head, 1) for head in range(4)])
    monkeypatch.setattr(Attention, "take", lambda _self, first, _count: takes[first])
    result = applied(Text().separate(), SplitHeads())
    assert [proof.status for proof in proofs(result, SplitHeads())] == ["fail"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_projections_rows_is_caught(monkeypatch, fault):
    def summed(slicer, projection, parts, takes):
        return right(slicer, projection, parts, FAULTS[fault](takes))

    right = passes.split_heads._summed
    monkeypatch.setattr(passes.split_heads, "_summed", summed)
    pass_ = SplitHeads(merge="sum")
    result = applied(Text().separate(), pass_)
    assert [proof.status for proof in proofs(result, pass_)] == ["fail"]


# What `take` needs to know of an attention of four heads of width 3.
ATTENTION = Attention("o", Heads([], 4, 1, None, 2, 3))


# -- real exports ----------------------------------------------------------------------------------


def split(path: Path, pass_: SplitHeads | None = None) -> tuple[Graph, Applied]:
    """The model after canonicalize and split_heads; every rewrite of both is proven."""
    graph, canonicalize = Graph.load(path), Canonicalize()
    simplified = canonicalize.simplified(graph)
    for rewrite in changed_components(graph, simplified, "canonicalize"):
        assert prove(rewrite, canonicalize).status == "pass", rewrite.title
    pass_ = pass_ or SplitHeads()
    done = apply_pass(simplified, pass_)
    for rewrite in done.rewrites:
        proof = prove(rewrite, pass_)
        assert (proof.status, proof.detail) == ("pass", ""), rewrite.title
    return simplified, done


def check_all_split(graph: Graph, done: Applied, attentions: int) -> None:
    assert [refusal.reason for refusal in done.refusals] == []
    assert len(done.rewrites) == attentions
    assert [rewrite.slices_left for rewrite in done.rewrites] == attentions * [0]
    assert head_axes(graph) == []
    assert apply_pass(graph, SplitHeads()).rewrites == []


EXPORTS = [
    ("torchscript", 17), ("torchscript", 18), ("torchscript", 20),
    ("dynamo", 17), ("dynamo", 18), ("dynamo", 20),
]  # fmt: skip


@pytest.mark.parametrize(
    ("exporter", "opset", "height", "width"),
    [*((*export, 28, 70) for export in EXPORTS), ("dynamo", 18, 42, 42)],
)
def test_the_official_codes_export(tmp_path, exporter, opset, height, width):
    path = tmp_path / "model.onnx"
    export_official(official_model("tiny"), path, height, width, exporter, opset)
    check_all_split(*split(path), attentions=4)


def test_our_export(tmp_path):
    source = resolve("dav2-small", size="28x42", weights="twin:0", exporter="torchscript")
    check_all_split(*split(source.write(tmp_path)), attentions=12)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["vits", "vitb"])
@pytest.mark.parametrize(("height", "width"), [(70, 70), (56, 98)])
@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
def test_the_official_codes_export_in_full(tmp_path, encoder, exporter, opset, height, width):
    path = tmp_path / "model.onnx"
    export_official(official_model(encoder), path, height, width, exporter, opset)
    check_all_split(*split(path), attentions=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dav2-small", "dav2-base"])
@pytest.mark.parametrize("size", ["70", "56x98"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_our_export_in_full(tmp_path, name, size, exporter):
    source = resolve(name, size=size, weights="twin:0", exporter=exporter)
    check_all_split(*split(source.write(tmp_path)), attentions=12)
