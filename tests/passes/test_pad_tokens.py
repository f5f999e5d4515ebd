"""Rows of zeros that run along with the tokens, and are cut off wherever rows meet."""

import pytest
from mutants import PADDED, PADDED_EQUALLY
from running import Result, applied, error_in_float32, proofs, refusal

from compiler.building import build_stages
from compiler.errors import VerificationError
from compiler.graph import producer_of, static_shape
from compiler.pipeline import parse_pipeline
from compiler.rewrite import apply_pass
from passes.pad_tokens import PadTokens
from passes.split_heads import SplitHeads

BLOCK = (
    "h{i} = LayerNormalization<axis=-1>({x}, gain, bias) "
    "q0{i} = MatMul(h{i}, wq) q{i} = Add(q0{i}, bq) "
    "k0{i} = MatMul(h{i}, wk) k{i} = Transpose<perm=[0,2,1]>(k0{i}) v{i} = MatMul(h{i}, wv) "
    "s{i} = MatMul(q{i}, k{i}) z{i} = Mul(s{i}, scale) {mask} p{i} = Softmax<axis=-1>({z}) "
    "o{i} = MatMul(p{i}, v{i}) "
)


def block(
    n: int = 6, c: int = 4, *, b: int = 1, kind: str = "float", mask: str = "", inputs: str = "",
    constants: str = "", after: str = "y = Add(o, x)", outputs: str = "",
) -> str:  # fmt: skip
    """One head's attention over `n` tokens of width `c`, with its residual connection."""
    weights = ", ".join(f"{kind}[{c},{c}] w{name}" for name in "qkv")
    body = BLOCK.format(i="", x="x", mask=mask, z="m" if mask else "z")
    return (
        f"g ({kind}[{b},{n},{c}] x{inputs}) => ({kind}[{b},{n},{c}] y{outputs}) "
        f"<{weights}, {kind}[{c}] bq, {kind}[{c}] gain, {kind}[{c}] bias, "
        f"{kind}[1] scale{constants}> {{ {body} {after} }}"
    )


def rows(result: Result, op: str) -> list[int]:
    """The rows of every output of an op."""
    return [static_shape(n.outputs[0])[-2] for n in result.graph.nodes if n.op == op]


def check(result: Result, pass_: PadTokens) -> None:
    """One rewrite, proven; a second run finds it done."""
    assert result.reasons == []
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.detail, proof.error <= 1e-13) == ("pass", "", True)
    again = apply_pass(result.graph.copy(), pass_)
    assert again.rewrites == []
    (refused,) = again.refusals
    assert "already are a multiple of" in refused.reason


# -- what is left alone ----------------------------------------------------------------------------


def test_a_multiple_is_left_alone():
    assert refusal(block(8), PadTokens()) == "8 tokens already are a multiple of 8"


def test_no_attention():
    text = "g (float[1,6,4] x) => (float[1,6,4] y) <float[4,4] w> { y = MatMul(x, w) }"
    assert refusal(text, PadTokens()) == (
        "nothing to split: no Softmax weighs values, and there is no Attention op"
    )


def test_a_dynamic_number_of_tokens():
    text = block().replace("[1,6,4]", "[1,N,4]")
    assert "known number of query tokens" in refusal(text, PadTokens())


def test_a_dynamic_batch_is_named():
    text = block().replace("[1,6,4]", "[B,6,4]")
    assert refusal(text, PadTokens()) == "'x' has no known shape"


def test_old_opsets():
    text = block().replace("h = LayerNormalization<axis=-1>(x, gain, bias)", "h = Mul(x, gain)")
    assert refusal(text, PadTokens(), opset=12).startswith("opset 12 has another Slice")


def test_no_multiple():
    assert refusal(block(), PadTokens(multiple=0)) == "multiple=0 is not a number of rows"


HEADS = (
    "g (float[1,6,4] x) => (float[1,6,4] y) <float[4,4] wq, float[4,4] wk, float[4,4] wv, "
    "float[4,4] wo, int64[4] apart = {1,6,2,2}, int64[3] joined = {1,6,4}> { "
    "q0 = MatMul(x, wq) q1 = Reshape(q0, apart) q = Transpose<perm=[0,2,1,3]>(q1) "
    "k0 = MatMul(x, wk) k1 = Reshape(k0, apart) k = Transpose<perm=[0,2,3,1]>(k1) "
    "v0 = MatMul(x, wv) v1 = Reshape(v0, apart) v = Transpose<perm=[0,2,1,3]>(v1) "
    "s = MatMul(q, k) p = Softmax<axis=-1>(s) o = MatMul(p, v) "
    "t = Transpose<perm=[0,2,1,3]>(o) r = Reshape(t, joined) y = MatMul(r, wo) }"
)


def test_heads_in_one_batch_are_for_split_heads_first():
    reason = refusal(HEADS, PadTokens())
    assert reason.startswith("'q' would be cut from padded rows")
    assert reason.endswith("split_heads goes first")


def test_cross_attention_of_other_tokens():
    text = (
        "g (float[1,6,4] x, float[1,5,4] memory) => (float[1,6,4] y) <float[4,4] w> { "
        "q = MatMul(x, w) k = Transpose<perm=[0,2,1]>(memory) s = MatMul(q, k) "
        "p = Softmax<axis=-1>(s) y = MatMul(p, memory) }"
    )
    assert refusal(text, PadTokens()).startswith("'x' would be cut from padded rows, or is all")


# -- what is padded --------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [8, 5, 32])
@pytest.mark.parametrize("n", [6, 7, 9])
def test_tokens_are_padded_and_keys_are_not(n, multiple):
    pass_ = PadTokens(multiple=multiple)
    result = applied(block(n), pass_)
    more = n + -n % multiple
    check(result, pass_)
    assert rows(result, "LayerNormalization") == [more]
    assert rows(result, "Slice") == [n, n, n]  # keys, values, the output
    (softmax,) = [node for node in result.graph.nodes if node.op == "Softmax"]
    assert static_shape(softmax.outputs[0]) == (1, more, n)


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("kind", ["float", "double", "float16"])
def test_types_and_batches(kind, b):
    check(applied(block(b=b, kind=kind), PadTokens()), PadTokens())


@pytest.mark.parametrize(
    ("slices", "is_joined"),
    [
        ("t = Slice(a, one, most, axis)", True),  # without the class token
        ("t = Slice(a, one, most, axis) u = Slice(a, zero, one, axis)", True),
        ("t = Slice(a, last, most, axis)", True),  # from the end: of the tokens that there were
        ("t = Slice(a, zero, most, axis, two)", True),
        ("t = Slice(a, both, ends)", True),  # the axis of the features as well
        ("t = Slice(a, one, most, width)", False),  # no tokens are cut: the padding has to be
        ("t = Slice(a, one, most, axis) u = ReduceSum(a)", False),  # it reads all of them
    ],
)
def test_slices_of_tokens_take_them_from_the_padded_rows(slices, is_joined, tmp_path):
    read = [word for word in ("t", "u") if f"{word} =" in slices]
    sums = " ".join(f"{word}0 = ReduceSum<keepdims=0>({word})" for word in read)
    after = (
        f"a = Add(o, x) {slices} {sums} z0 = Sum({', '.join(f'{w}0' for w in read)}) y = Relu(a)"
    )
    numbers = ", int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] most = {99}"
    numbers += ", int64[1] axis = {1}, int64[1] width = {2}, int64[1] last = {-2}"
    numbers += ", int64[3] both = {0, 1, 1}, int64[3] ends = {1, 6, 3}"
    result = applied(block(after=after, constants=numbers, outputs=", float z0"), PadTokens())
    check(result, PadTokens())
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-5
    found = [node for node in result.graph.nodes if node.op == "Slice"]
    behind = [producer_of(node.inputs[0]) for node in found]
    in_two_steps = any(node is not None and node.op == "Slice" for node in behind)
    assert in_two_steps is not is_joined


def test_a_slice_in_a_body_is_left_there(tmp_path):
    after = """a = Add(o, x) n = Neg(a) y = If(yes) <
        then_branch = f () => (float[1,5,4] t) { t = Slice(a, one, most, one) },
        else_branch = g () => (float[1,5,4] u) { u = Slice(n, one, most, one) }>"""
    numbers = ", int64[1] one = {1}, int64[1] most = {99}, bool yes = {1}"
    text = block(after=after, constants=numbers).replace("[1,6,4] y", "[1,5,4] y")
    result = applied(text, PadTokens())
    check(result, PadTokens())
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-5


MASKS = {
    "of a key": {"inputs": ", float[1,1,6] mask", "mask": "m = Add(z, mask)"},
    "of a pair": {"inputs": ", float[1,6,6] mask", "mask": "m = Add(z, mask)"},
    "constant": {"constants": ", float[6,6] mask", "mask": "m = Add(z, mask)"},
    "guarded": {"constants": ", float zero = {0}",
                "mask": "is_none = IsNaN(z) m = Where(is_none, zero, z)"},
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(mask, tmp_path):
    result = applied(block(**mask), PadTokens())
    check(result, PadTokens())
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-6


def test_what_is_used_elsewhere_keeps_its_rows(tmp_path):
    after = "y = Add(o, x) means = ReduceMean<axes=[1]>(h) last = Softmax<axis=1>(k0)"
    outputs = ", float[1,1,4] means, float[1,6,4] last, float[1,6,4] v"
    result = applied(block(after=after, outputs=outputs), PadTokens())
    check(result, PadTokens())
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-6


def test_two_blocks_are_one_rewrite(tmp_path):
    second = BLOCK.format(i="_2", x="x1", mask="", z="z_2")
    result = applied(block(after=f"x1 = Add(o, x) {second} y = Add(o_2, x1)"), PadTokens())
    check(result, PadTokens())
    assert rows(result, "Softmax") == [8, 8]
    assert len([node for node in result.graph.nodes if node.op == "Concat"]) == 1
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-6


def test_heads_that_were_split(tmp_path):
    result = applied(HEADS, SplitHeads())
    done = apply_pass(result.graph, PadTokens())
    assert [refusal.reason for refusal in done.refusals] == []
    assert rows(result, "Softmax") == [8, 8]
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-6


DEAD = {
    "a reader of the rows": "dead = Relu(o) y = Add(o, x)",
    "an attention": BLOCK.format(i="_2", x="x", mask="", z="z_2") + "y = Add(o, x)",
    "an attention behind": BLOCK.format(i="_2", x="o", mask="", z="z_2") + "y = Add(o, x)",
}


@pytest.mark.parametrize("after", DEAD.values(), ids=DEAD)
def test_what_nothing_needs_does_not_count(after, tmp_path):
    """A build with --no-canonicalize still has dead code."""
    result = applied(block(after=after), PadTokens())
    check(result, PadTokens())
    assert 8 in rows(result, "Softmax")
    assert error_in_float32(result, PadTokens(), tmp_path) < 1e-6


def test_nothing_needs_any_attention():
    assert "known number of query tokens" in refusal(block(after="y = Relu(x)"), PadTokens())


# -- a depth model, and faults in it ---------------------------------------------------------------


def built(source, tmp_path, passes):
    folder = tmp_path / "build"
    folder.mkdir()
    return build_stages(source, parse_pipeline(passes), folder, failures=tmp_path / "failure")


@pytest.mark.parametrize("mutant", PADDED, ids=[m.id.replace(" ", "_") for m in PADDED])
def test_faults_in_a_depth_model_are_found(depth_model, tmp_path, monkeypatch, mutant, one_thread):
    mutant.plant(monkeypatch)
    with pytest.raises(VerificationError, match=r"pad_tokens#0 at \S+"):
        built(depth_model, tmp_path, mutant.passes)


def test_what_is_in_the_padding_does_not_matter(depth_model, tmp_path, monkeypatch, one_thread):
    PADDED_EQUALLY.plant(monkeypatch)
    (*_, stage) = built(depth_model, tmp_path, PADDED_EQUALLY.passes)
    assert stage.report.float64["status"] == stage.report.float32["status"] == "pass"


@pytest.mark.parametrize("passes", ["split_heads,pad_tokens", "split_heads:merge=sum,pad_tokens"])
def test_a_depth_model_runs_with_rows_to_spare(depth_model, tmp_path, passes, one_thread):
    (*_, stage) = built(depth_model, tmp_path, passes)
    tokens = {static_shape(n.outputs[0])[-2] for n in stage.graph.nodes if n.op == "Softmax"}
    assert (stage.report.rewrites, tokens) == (1, {24})
    assert stage.report.float64["status"] == stage.report.float32["status"] == "pass"
