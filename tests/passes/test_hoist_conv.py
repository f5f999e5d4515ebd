"""A 1×1 convolution goes in front of a Resize where that is cheaper, and nowhere else."""

import numpy as np
import pytest
from running import Result, applied, error_in_float32, proofs

from compiler.graph import static_shape
from compiler.rewrite import apply_pass
from passes.hoist_conv import HoistConv

CONSTANTS = (
    "float[6,4,1,1] w, float[6] bias, float[3,4,1,1] few, float[3] three, float[6,2,1,1] grouped, "
    "float[4,6,1,1] back, float[6,4,3,3] wide, int64[4] sizes = {1, 4, 10, 14}, "
    "int64[2] two = {10, 14}, float[4] scales = {1, 1, 2, 2}, int64[1] zero = {0}, "
    "int64[1] one = {1}, int64[1] four = {4}, int64[1] rows = {2}, int64[1] columns = {3}, "
    "int64[1] nine = {9}, int64[1] step = {2}, float[4] other = {1, 2, 2, 2}"
)


def image(body: str, out: str = "float[1,6,10,14] y", data: str = "float[1,4,5,7] x") -> str:
    return f"g ({data}) => ({out}) <{CONSTANTS}> {{ {body} }}"


def check(text: str, ops: list[str], tmp_path, opset: int = 18) -> Result:
    """Every convolution behind a Resize is moved, and proven; a second run finds nothing."""
    result = applied(text, HoistConv(), opset)
    assert (result.ops, result.reasons) == (ops, [])
    verdicts = [(proof.status, proof.error < 1e-13) for proof in proofs(result, HoistConv())]
    assert verdicts == [("pass", True)] * len(verdicts) != []
    assert apply_pass(result.graph.copy(), HoistConv()).rewrites == []
    assert error_in_float32(result, HoistConv(), tmp_path) < 2e-6
    return result


RESIZES = {
    "nearest": "Resize(x, , scales)",
    "bilinear": 'Resize<mode="linear">(x, , scales)',
    "corners aligned, to a size": (
        'Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , sizes)'),
    "cubic": 'Resize<mode="cubic", cubic_coeff_a=-0.5>(x, , scales)',
    "two axes": 'Resize<mode="linear", axes=[2, 3]>(x, , , two)',
    "axes from behind": 'Resize<mode="linear", axes=[-1, -2]>(x, , , turned)',
}  # fmt: skip


@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES.keys())
@pytest.mark.parametrize("inputs", ["few", "few, three"])
def test_kinds_of_resizes(resize, inputs, tmp_path):
    text = image(f"a = {resize} y = Conv(a, {inputs})", "float[1,3,10,14] y")
    text = text.replace("int64[2] two", "int64[2] turned = {14, 10}, int64[2] two")
    result = check(text, ["Conv", "Resize"], tmp_path)
    assert [static_shape(node.outputs[0]) for node in result.graph.nodes] == [
        (1, 3, 5, 7),
        (1, 3, 10, 14),
    ]


@pytest.mark.parametrize("opset", [10, 11, 13, 18])
def test_opsets(opset, tmp_path):
    resize = "Resize(x, scales)" if opset == 10 else "Resize(x, noroi, scales)"
    text = image(f"a = {resize} y = Conv(a, w, bias)").replace(
        "<float", "<float[0] noroi, float", 1
    )
    check(text, ["Conv", "Resize"], tmp_path, opset)


MORE = {
    "fewer channels": ("a = Resize(x, , scales) y = Conv(a, few)", "float[1,3,10,14] y",
                       ["Conv", "Resize"]),
    "two groups": ("a = Resize(x, , scales) y = Conv<group=2>(a, grouped)", "float[1,6,10,14] y",
                   ["Conv", "Resize"]),
    "automatic padding, of nothing": (
        'a = Resize(x, , scales) y = Conv<auto_pad="SAME_UPPER">(a, w)', "float[1,6,10,14] y",
        ["Conv", "Resize"]),
    "two convolutions": (
        "a = Resize(x, , scales) b = Conv(a, w, bias) y = Conv(b, back)", "float[1,4,10,14] y",
        ["Conv", "Conv", "Resize"]),
    "two Resizes": (
        "a = Resize(x, , scales) b = Resize(a, , scales) y = Conv(b, w)", "float[1,6,20,28] y",
        ["Conv", "Resize", "Resize"]),
    "a crop in between": (
        "a = Resize(x, , scales) b = Slice(a, one, nine, rows) y = Conv(b, w)",
        "float[1,6,8,14] y", ["Conv", "Resize", "Slice"]),
    "every other column": (
        "a = Resize(x, , scales) b = Slice(a, zero, nine, columns, step) y = Conv(b, few)",
        "float[1,3,10,5] y", ["Conv", "Resize", "Slice"]),
    "a Resize that others read, in front of one that they don't": (
        "a = Resize(x, , scales) b = Resize(a, , scales) c = Conv(b, few) r = Relu(a) "
        "s = Resize(r, , scales) d = Conv(s, few) y = Add(c, d)", "float[1,3,20,28] y",
        ["Resize", "Conv", "Resize", "Relu", "Conv", "Resize", "Add"]),
    "three sizes": (
        'u = Unsqueeze(x, four) a = Resize<mode="linear", axes=[2, 3]>(u, , , two) '
        "v = Unsqueeze(w, four) y = Conv(a, v)", "float[1,6,10,14,1] y",
        ["Unsqueeze", "Unsqueeze", "Conv", "Resize"]),
    "computed weights": (
        "v = Tanh(kernel) a = Resize(x, , scales) y = Conv(a, v)", "float[1,6,10,14] y",
        ["Tanh", "Conv", "Resize"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "out", "ops"), MORE.values(), ids=MORE.keys())
def test_what_else_moves(body, out, ops, tmp_path):
    data = "float[1,4,5,7] x" + (", float[6,4,1,1] kernel" if "kernel" in body else "")
    check(image(body, out, data), ops, tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types(dtype):
    text = (
        f"g ({dtype}[1,4,5,7] x) => ({dtype}[1,6,10,14] y) <{dtype}[6,4,1,1] w, {dtype}[6] bias, "
        "float[4] scales = {1, 1, 2, 2}> { a = Resize(x, , scales) y = Conv(a, w, bias) }"
    )
    result = applied(text, HoistConv(), 18)
    assert (result.ops, result.reasons) == (["Conv", "Resize"], [])
    assert [proof.status for proof in proofs(result, HoistConv())] == ["pass"]


REFUSALS = {
    "an output": (
        "a = Resize(x, , scales) y = Conv(a, w)", "float[1,6,10,14] y, float[1,4,10,14] a",
        "'a' is also an output"),
    "another reader": (
        "a = Resize(x, , scales) b = Conv(a, w) c = Conv(a, w) y = Add(b, c)",
        "float[1,6,10,14] y", "'a' is used elsewhere as well"),
    "a smaller image": (
        "a = Resize(x, , less) y = Conv(a, w)", "float[1,6,2,3] y",
        "it would take 876 products instead of 168"),
    "more channels than the pixels are worth": (
        'a = Resize<mode="linear">(x, , bit) y = Conv(a, w)', "float[1,6,6,8] y",
        "it would take 1992 products instead of 1920"),
    "strides": (
        "a = Resize(x, , scales) y = Conv<strides=[2, 2]>(a, w)", "float[1,6,5,7] y",
        "Conv 'Conv_y' has strides=[2, 2]"),
    "padding": (
        "a = Resize(x, , scales) y = Conv<pads=[1, 0, 0, 0]>(a, w)", "float[1,6,11,14] y",
        "Conv 'Conv_y' has pads=[1, 0, 0, 0]"),
    "extrapolation": (
        'a = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
        "(x, roi, scales) y = Conv(a, w)", "float[1,6,10,14] y",
        "Resize 'Resize_a' fills in extrapolation_value (tf_crop_and_resize)"),
    "channels": (
        "a = Resize(x, , other) y = Conv(a, eight)", "float[1,6,10,14] y",
        "Resize 'Resize_a' changes the number of channels or images"),
    "an aspect ratio": (
        'a = Resize<keep_aspect_ratio_policy="not_larger", axes=[2, 3]>(x, , , two) '
        "y = Conv(a, w)", "float[1,6,10,14] y",
        "Resize 'Resize_a' has keep_aspect_ratio_policy=not_larger"),
    "a slice of channels": (
        "a = Resize(x, , scales) b = Slice(a, zero, step, one) y = Conv(b, two_of)",
        "float[1,6,10,14] y", "Slice 'Slice_b' takes some of the channels or images"),
    "a step backwards": (
        "a = Resize(x, , scales) b = Slice(a, nine, zero, rows, minus) y = Conv(b, w)",
        "float[1,6,9,14] y", "Slice 'Slice_b' has computed bounds, or a negative step"),
    "a convolution that stays": (
        "a = Resize(x, , less) b = Conv(a, w) y = Conv(b, back)", "float[1,4,2,3] y",
        "Conv 'Conv_b' computes 'b', which stays where it is"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses(what):
    body, out, reason = REFUSALS[what]
    more = (
        "float[4] less = {1, 1, 0.5, 0.5}, float[4] bit = {1, 1, 1.2, 1.2}, float[8] roi, "
        "float[6,8,1,1] eight, float[6,2,1,1] two_of, int64[1] minus = {-1}, "
    )
    result = applied(image(body, out).replace("<float", f"<{more}float", 1), HoistConv(), 18)
    assert result.ops == [node.op_type for node in result.source.graph.node]
    assert result.reasons[-1] == reason


def test_refuses_computed_sizes():
    text = image("a = Resize(x, , , s) y = Conv(a, w)", "float[1,6,10,14] y",
                 "float[1,4,5,7] x, int64[4] s")  # fmt: skip
    result = applied(text, HoistConv(), 18)
    (reason,) = result.reasons
    assert "its size has to be known" in reason or "computed" in reason


def test_refuses_dynamic_images():
    text = image("a = Resize(x, , scales) y = Conv(a, w)", "float[1,6,h,w] y", "float[1,4,m,n] x")
    (reason,) = applied(text, HoistConv(), 18).reasons
    assert reason.startswith("'x' is float[1×4×m×n]: its size has to be known")


@pytest.mark.parametrize(
    "body",
    ["y = Conv(x, w)", "a = Resize(x, , scales) y = Conv<pads=[1,1,1,1]>(a, wide)",
     "a = Resize(x, , scales) r = Relu(a) y = Conv(r, w)"],
)  # fmt: skip
def test_nothing_to_move(body):
    result = applied(image(body, "float[1,6,h,v] y"), HoistConv(), 18)
    assert result.reasons == ["nothing to move: no 1×1 convolution reads a Resize"]


def test_only_sums_of_one_let_a_bias_pass(monkeypatch):
    """What the refusal of extrapolation is for: without it the bias would be lost outside."""
    from passes import hoist_conv

    monkeypatch.setattr(hoist_conv, "_why_not_linear", lambda *_: None)
    body = (
        'a = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
        "(x, roi, scales) y = Conv(a, w, bias)"
    )
    text = image(body).replace("<float", "<float[8] roi = {0, 0, -1, -1, 1, 1, 2, 2}, float", 1)
    result = applied(text, HoistConv(), 18)
    assert [proof.status for proof in proofs(result, HoistConv())] == ["fail"]


def test_the_costs_are_those_of_the_products(tmp_path):
    """Where the bilinear Resize of more channels costs as much as is gained, nothing moves."""
    gains = []
    for channels in (2, 8, 32, 64):
        text = (
            f"g (float[1,4,5,7] x) => (float[1,{channels},6,8] y) <float[{channels},4,1,1] w, "
            'float[4] bit = {1, 1, 1.2, 1.2}> { a = Resize<mode="linear">(x, , bit) '
            "y = Conv(a, w) }"
        )
        gains.append(len(applied(text, HoistConv(), 18).done.rewrites))
    before = [48 * 4 * (4 + c) for c in (2, 8, 32, 64)]
    after = [35 * 4 * c + 48 * 4 * c for c in (2, 8, 32, 64)]
    assert gains == [int(a < b) for a, b in zip(after, before, strict=True)]
    assert np.sum(gains) == 1


def test_it_moves_no_further_than_is_worth_it(tmp_path):
    """Between a Resize to fewer pixels and one to more there are the fewest."""
    text = (
        "g (float[1,4,20,20] x) => (float[1,2,8,8] y) <float[2,4,1,1] w, "
        "float[4] less = {1, 1, 0.2, 0.2}, float[4] more = {1, 1, 2, 2}> { "
        'a = Resize<mode="linear">(x, , less) b = Resize<mode="linear">(a, , more) y = Conv(b, w) }'
    )
    check(text, ["Resize", "Conv", "Resize"], tmp_path)
