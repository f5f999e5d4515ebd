"""Axes that a Transpose moves together are merged, between Reshapes and from five axes on."""

import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from compiler.graph import static_shape
from compiler.rewrite import apply_pass
from passes.merge_axes import MergeAxes


def moved(
    axes: tuple[int, ...], order: tuple[int, ...], body: str = "y = Reshape(t, flat)",
    out: str = "float[{0}] y",
) -> str:  # fmt: skip
    count = int(np.prod(axes))
    perm = f"perm=[{', '.join(map(str, order))}]"
    return (
        f"g (float[{count}] x) => ({out.format(count)}) <int64[{len(axes)}] axes = "
        f"{{{', '.join(map(str, axes))}}}, int64[1] flat = {{-1}}, int64[2] two = {{2, -1}}> "
        f"{{ r = Reshape(x, axes) t = Transpose<{perm}>(r) {body} }}"
    )


MERGED = {
    "windows": ((1, 8, 7, 8, 7, 6), (0, 1, 3, 2, 4, 5), (8, 7, 8, 42), [0, 2, 1, 3]),
    "windows back": ((1, 2, 3, 7, 5, 6), (0, 1, 3, 2, 4, 5), (2, 3, 7, 30), [0, 2, 1, 3]),
    "five axes": ((2, 3, 4, 5, 6), (0, 3, 4, 1, 2), (2, 12, 30), [0, 2, 1]),
    "ones between": ((2, 1, 3, 1, 4, 1), (4, 1, 0, 3, 2, 5), (6, 4), [1, 0]),
    "four in a circle": ((2, 3, 4, 5, 7), (2, 4, 0, 1, 3), (6, 4, 5, 7), [1, 3, 0, 2]),
    "nothing moves": ((2, 3, 1, 4, 5), (0, 1, 2, 3, 4), (120,), [0]),
}


@pytest.mark.parametrize(("axes", "order", "shape", "perm"), MERGED.values(), ids=MERGED.keys())
def test_axes_that_stay_together_are_one(axes, order, shape, perm, tmp_path):
    result = applied(moved(axes, order), MergeAxes())
    assert (result.ops, result.reasons) == (["Reshape", "Transpose", "Reshape"], [])
    transpose = result.graph.nodes[1]
    assert (static_shape(transpose.inputs[0]), transpose.attrs["perm"]) == (shape, perm)
    assert [(proof.status, proof.error) for proof in proofs(result, MergeAxes())] == [("pass", 0)]
    assert apply_pass(result.graph.copy(), MergeAxes()).rewrites == []
    assert error_in_float32(result, MergeAxes(), tmp_path) == 0


WINDOWS = ((1, 2, 3, 4, 5, 6), (0, 1, 3, 2, 4, 5))


def test_every_reader_gets_its_shape(tmp_path):
    body = "y = Reshape(t, flat) z = Reshape(t, two)"
    result = applied(moved(*WINDOWS, body, "float[{0}] y, float[2,360] z"), MergeAxes())
    assert result.ops == ["Reshape", "Transpose", "Reshape", "Reshape"]
    assert [proof.status for proof in proofs(result, MergeAxes())] == ["pass"]
    assert error_in_float32(result, MergeAxes(), tmp_path) == 0


def test_windows_cut_twice(tmp_path):
    body = "a = Reshape(t, axes) u = Transpose<perm=[0, 1, 3, 2, 4, 5]>(a) y = Reshape(u, flat)"
    result = applied(moved((1, 2, 3, 3, 5, 6), WINDOWS[1], body), MergeAxes())
    shapes = [len(node.outputs[0].shape) for node in result.graph.nodes if node.op == "Transpose"]
    assert (shapes, result.reasons) == ([4, 4], [])
    assert [proof.status for proof in proofs(result, MergeAxes())] == ["pass", "pass"]
    assert error_in_float32(result, MergeAxes(), tmp_path) == 0


REFUSED = {
    "all part": (
        moved((2, 3, 4, 5, 6), (4, 3, 2, 1, 0)), "no two axes of 't' stay together"),
    "another reader": (
        moved(*WINDOWS, "y = Reshape(t, flat) z = Relu(t)", "float[{0}] y, float[1,2,4,3,5,6] z"),
        "'t' is read by Relu, which needs its axes"),
    "an output": (
        moved(*WINDOWS, "y = Reshape(t, flat)", "float[{0}] y, float[1,2,4,3,5,6] t"),
        "'t' is read by the caller, which needs its axes"),
    "nobody": (
        moved(*WINDOWS, "y = Relu(x)"),
        "nothing to merge: no Transpose of more than 4 axes reads a Reshape"),
    "four axes": (
        moved((2, 3, 4, 5), (0, 1, 3, 2)),
        "nothing to merge: no Transpose of more than 4 axes reads a Reshape"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(text, reason):
    assert refusal(text, MergeAxes()) == reason


def test_an_open_shape_is_left():
    text = moved(*WINDOWS).replace("(float[720] x)", "(float[N] x)").replace("{1, 2,", "{1, -1,")
    text = text.replace("(float[720] y)", "(float[M] y)")
    assert refusal(text, MergeAxes()) == "'t' has no fixed shape, or is empty"
