"""A Softmax that a mask swamps shows nothing, and no proof may rest on it."""

import numpy as np
import pytest
from running import applied, proofs

from compiler.slicing import Slicer
from compiler.verify.blindness import blind_softmax
from compiler.weights import NewWeight
from passes.split_heads import SplitHeads

# Attention over 7 tokens of 4 heads with a mask, from `mask` to `added`, of 1 for what is seen.
ATTENTION = """g (float[2,7,12] x, {kind} mask) => (float[2,7,12] m)
<float[12,12] wq, float[12,12] wk, float[12,12] wv, int64[4] split = {{2, 7, 4, 3}},
 int64[3] joined = {{2, 7, 12}}, int64[2] axes = {{1, 2}}, int64[1] last = {{-1}},
 float one = {{1}}, float low = {{{low}}}, float scale = {{0.06}}, int64 seen = {{1}}>
{{ q1 = MatMul(x, wq) q3 = Reshape(q1, split) q = Transpose<perm=[0,2,1,3]>(q3)
   k1 = MatMul(x, wk) k3 = Reshape(k1, split) kt = Transpose<perm=[0,2,3,1]>(k3)
   v1 = MatMul(x, wv) v3 = Reshape(v1, split) v = Transpose<perm=[0,2,1,3]>(v3)
   z = MatMul(q, kt) s = Mul(z, scale) u = Unsqueeze(mask, axes) {mask} {softmax}
   o = MatMul(p, v) ot = Transpose<perm=[0,2,1,3]>(o) m = Reshape(ot, joined) }}"""
ADDED = "f = Cast<to=1>(u) hidden = Sub(one, f) added = Mul(hidden, low) a = Add(s, added)"
CHOSEN = "is = Equal(u, seen) a = Where(is, s, low)"
SOFTMAX = "p = Softmax<axis=-1>(a)"
EXPONENTS = (
    "top = ReduceMax<axes=[-1]>(a) b = Sub(a, top) e = Exp(b) total = ReduceSum(e, last) "
    "p = Div(e, total)"
)
CASES = {
    "-1e9 times what an integer says": ("int64[2,7]", "-1e9", ADDED, SOFTMAX),
    "the least float": ("int64[2,7]", "-3.4028234663852886e38", ADDED, SOFTMAX),
    "-1e4": ("int32[2,7]", "-1e4", ADDED, SOFTMAX),
    "a comparison": ("int64[2,7]", "-1e9", CHOSEN, SOFTMAX),
    "a float mask": ("float[2,7]", "-1e9", ADDED, SOFTMAX),
    "a Softmax taken apart": ("int64[2,7]", "-1e9", ADDED, EXPONENTS),
}


def text(case: str) -> str:
    kind, low, mask, softmax = CASES[case]
    return ATTENTION.format(kind=kind, low=low, mask=mask, softmax=softmax)


@pytest.mark.parametrize("case", CASES)
def test_what_is_right_is_proven_behind_a_mask(case):
    pass_ = SplitHeads()
    (proof,) = proofs(applied(text(case), pass_), pass_)
    assert (proof.status, proof.error <= 1e-14) == ("pass", True)


@pytest.mark.parametrize("wrong", ["wq", "wk"])
@pytest.mark.parametrize("case", CASES)
def test_scores_that_are_one_percent_off_show_behind_a_mask(case, wrong, monkeypatch):
    honest = Slicer._sliced_constant

    def planted(self, tensor, take):
        part = honest(self, tensor, take)
        if tensor.name == wrong:
            part._values = NewWeight(part._values.unrounded() * 1.01, tensor.dtype, "planted")
        return part

    monkeypatch.setattr(Slicer, "_sliced_constant", planted)
    pass_ = SplitHeads()
    (proof,) = proofs(applied(text(case), pass_), pass_)
    assert proof.status == "fail"


def test_scores_that_nothing_can_show_are_unverified():
    kind, _, _, softmax = CASES["-1e4"]
    mask = "f = Cast<to=1>(u) far = Mul(s, low) a = Add(far, f)"  # one score is all that is left
    pass_ = SplitHeads()
    graph = ATTENTION.format(kind=kind, low="-1e9", mask=mask, softmax=softmax)
    (proof,) = proofs(applied(graph, pass_), pass_)
    assert proof.status == "UNVERIFIED"
    assert proof.detail == "the scores of 'p' are hidden by a mask or a scale"


ROWS = {
    "different": ([[0.2, 0.3, 0.5]], False),
    "one hot": ([[0.0, 1.0, 0.0]], True),
    "uniform": ([[1 / 3, 1 / 3, 1 / 3]], True),
    "uniform over what is seen": ([[0.5, 0.5, 0.0]], True),
    "below all bounds": ([[1 - 1e-9, 1e-9, 0.0]], True),
    "a causal mask": ([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.2, 0.3, 0.5]], False),
    "one row of five": ([[0.4, 0.6, 0.0], *[[1.0, 0.0, 0.0]] * 4], True),
    "one key": ([[1.0], [1.0]], False),
    "no rows": (np.zeros((0, 3)), False),
}


@pytest.mark.parametrize("case", ROWS)
def test_blind(case):
    rows, is_blind = ROWS[case]
    found = blind_softmax(iter(["q", "p"]), {"q": np.array([[0.1, 0.9]]), "p": np.array(rows)})
    assert found == ("p" if is_blind else None)
