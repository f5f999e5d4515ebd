import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from passes.fold_norm import FoldNorm

MEAN = "float[3,1,1] mean = {123.675, 116.28, 103.53}"
STD = "float[1,3,1,1] std = {58.395, 57.12, 57.375}"
HEAD = "g (float[1,3,6,8] x) => (float[1,3,6,8] y)"


def model(body: str, constants: str = f"{MEAN}, {STD}", head: str = HEAD) -> str:
    return f"{head} <{constants}> {{ {body} }}"


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            model("y = Sub(x, m)", "float[6,8] m", "g (float[1,3,6,8] x) => (float[1,3,6,8] y)"),
            "Sub's constant 'm' is [6, 8], not one value for each of 3 channels",
            id="a constant image",
        ),
        pytest.param(
            model("y = Div(c, x)", "float c = {2}"),
            "Div divides the constant 'c' by the image",
            id="the reciprocal of the image",
        ),
        pytest.param(
            model("y = Div(x, c)", "float[3,1,1] c = {1, 0, 2}"),
            "Div's constant 'c' has a zero",
            id="a zero divisor",
        ),
        pytest.param(
            model("y = Sub(x, c)", "float c = {2}", "g (float[1,3,8] x) => (float[1,3,8] y)"),
            "'x' is float[1×3×8], not a float N×C×H×W tensor of known shape",
            id="not an image",
        ),
        pytest.param(
            model("y = Sub(x, c)", "int32 c = {2}", "g (int32[1,3,6,8] x) => (int32[1,3,6,8] y)"),
            "'x' is int32[1×3×6×8], not a float N×C×H×W tensor of known shape",
            id="integers",
        ),
        pytest.param(
            model("y = Add(x, c)", "float[3,1,1] c", "g (float[1,1,6,8] x) => (float[1,3,6,8] y)"),
            "Add's constant 'c' is [3, 1, 1], not one value for each of 1 channels",
            id="grey made into colour",
        ),
    ],
)
def test_refuses(text, reason):
    assert refusal(text, FoldNorm()) == reason


CONV_HEAD = "g (float[1,3,6,8] x) => (float[1,c,n,m] y)"


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        pytest.param(
            "a = Sub(x, mean) y = Conv <pads=[1, 0, 1, 0]>(a, w)", "float[4,3,3,3] w",
            "into=conv: Conv 'Conv_y' pads the shifted image with zeros (pads=[1, 0, 1, 0])",
            id="padding after a shift",
        ),
        pytest.param(
            'a = Sub(x, mean) y = Conv <auto_pad="SAME_UPPER">(a, w)', "float[4,3,3,3] w",
            "into=conv: Conv 'Conv_y' pads the shifted image with zeros (auto_pad=SAME_UPPER)",
            id="automatic padding after a shift",
        ),
        pytest.param(
            "a = Sub(x, mean) y = Conv <group=3>(a, w)", "float[6,1,3,3] w",
            "into=conv: Conv 'Conv_y' has group=3",
            id="groups",
        ),
        pytest.param(
            "a = Sub(x, mean) b = Relu(a) y = Conv(b, w)", "float[4,3,3,3] w",
            "into=conv: ['Relu'] read it, not one Conv",
            id="something in between",
        ),
        pytest.param(
            "a = Sub(x, mean) b = Conv(a, w) c = Conv(a, w) y = Add(b, c)", "float[4,3,3,3] w",
            "into=conv: ['Conv', 'Conv'] read it, not one Conv",
            id="two readers",
        ),
        pytest.param(
            'a = Sub(x, mean) b = Resize <mode="linear", coordinate_transformation_mode='
            '"tf_crop_and_resize">(a, roi, , s) y = Conv(b, w)',
            "float[4,3,3,3] w, float[8] roi = {0,0,0,0,1,1,2,2}, int64[4] s = {1,3,5,5}",
            "into=conv: Resize 'Resize_b' fills in extrapolation_value (tf_crop_and_resize)",
            id="a Resize that extrapolates",
        ),
    ],
)  # fmt: skip
def test_into_conv_refuses(body, constants, reason):
    text = model(body, f"{MEAN}, {constants}", CONV_HEAD)
    assert refusal(text, FoldNorm(into="conv")) == reason


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(model("y = Relu(x)"), id="no arithmetic"),
        pytest.param(model("a = Relu(x) y = Sub(a, mean)"), id="arithmetic inside the network"),
        pytest.param(model("y = Mul(x, x)"), id="no constant"),
        pytest.param(
            model(
                "y = BatchNormalization(x, c, c, c, v)",
                "float[3] c = {1, 2, 3}, float[3] v = {1, 1, 1}",
            ),
            id="a lone BatchNormalization",
        ),
    ],
)
def test_finds_nothing(text):
    result = applied(text, FoldNorm())
    assert (result.done.rewrites, result.reasons) == ([], [])


# -- rewrites -------------------------------------------------------------------------------------

CHAINS = {
    "mean and std": "a = Sub(x, mean) y = Div(a, std)",
    "one op": "y = Sub(x, mean)",
    "constant on the left": "a = Mul(std, x) b = Sub(mean, a) y = Add(mean, b)",
    "scalars": "a = Div(x, k) b = Add(a, k) c = Sub(k, b) d = Mul(c, std) y = Sub(d, mean)",
    "sub twice": "a = Sub(mean, x) y = Sub(std, a)",
}


@pytest.mark.parametrize("body", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_becomes_one_batch_normalization(body, tmp_path):
    result = applied(model(body, f"{MEAN}, {STD}, float k = {{-2.5}}"), FoldNorm())
    assert result.ops == ["BatchNormalization"]
    assert [proof.status for proof in proofs(result, FoldNorm())] == ["pass"]
    assert proofs(result, FoldNorm())[0].error < 1e-12
    # x·scale is up to a few times larger than the result; each op rounds to 2⁻²⁴.
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6


def test_the_channels_are_taken_from_the_image_not_from_a_scalar():
    result = applied(model("y = Div(x, k)", "float k = {255}"), FoldNorm())
    (node,) = result.graph.nodes
    assert [tuple(t.shape) for t in node.inputs] == [(1, 3, 6, 8), (3,), (3,), (3,), (3,)]
    np.testing.assert_array_equal(result.graph.values(node.inputs[1]), np.float32([1 / 255] * 3))


BEHIND = {
    "cast": (
        "a = Cast <to=1>(x) b = Sub(a, mean) y = Div(b, std)",
        "g (float16[1,3,6,8] x) => (float[1,3,6,8] y)",
        ["Cast", "BatchNormalization"],
    ),
    "resize": (
        'a = Resize <mode="linear">(x, , , s) b = Sub(a, mean) y = Div(b, std)',
        "g (float[1,3,5,4] x) => (float[1,3,6,8] y)",
        ["Resize", "BatchNormalization"],
    ),
    "swapped channels": (
        "a = Gather <axis=1>(x, bgr) y = Sub(a, mean)",
        HEAD,
        ["Gather", "BatchNormalization"],
    ),
}


@pytest.mark.parametrize(("body", "head", "ops"), BEHIND.values(), ids=BEHIND.keys())
def test_the_chain_may_be_behind_data_movement(body, head, ops, tmp_path):
    constants = f"{MEAN}, {STD}, int64[4] s = {{1, 3, 6, 8}}, int64[3] bgr = {{2, 1, 0}}"
    result = applied(model(body, constants, head), FoldNorm())
    assert result.ops == ops
    assert [proof.status for proof in proofs(result, FoldNorm())] == ["pass"]
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6


def test_what_others_read_is_kept(tmp_path):
    head = "g (float[1,3,6,8] x) => (float[1,3,6,8] y, float[1,3,6,8] z)"
    body = "a = Sub(x, mean) b = Div(a, std) y = Relu(b) z = Mul(a, std)"
    result = applied(model(body, head=head), FoldNorm())
    assert sorted(result.ops) == ["BatchNormalization", "Div", "Mul", "Relu"]
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6


def test_an_output_in_the_chain_is_kept(tmp_path):
    head = "g (float[1,3,6,8] x) => (float[1,3,6,8] a, float[1,3,6,8] y)"
    result = applied(model("a = Sub(x, mean) y = Div(a, std)", head=head), FoldNorm())
    assert result.ops == ["BatchNormalization", "Div"]
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6


def test_two_branches_are_two_rewrites():
    body = "a = Sub(x, mean) b = Gather <axis=3>(x, i) c = Sub(b, mean) y = Add(a, c)"
    constants = f"{MEAN}, int64[8] i = {{7, 6, 5, 4, 3, 2, 1, 0}}"
    result = applied(model(body, constants), FoldNorm())
    assert sorted(result.ops) == ["Add", "BatchNormalization", "BatchNormalization", "Gather"]


CONVS = {
    "plain": ("b = Sub(x, mean) a = Div(b, std) y = Conv(a, w)", ["Conv"]),
    "with a bias": ("b = Sub(x, mean) a = Div(b, std) y = Conv(a, w, bias)", ["Conv"]),
    "patches": ("a = Sub(x, mean) y = Conv <strides=[3, 3]>(a, w, bias)", ["Conv"]),
    "valid padding": ('a = Sub(x, mean) y = Conv <auto_pad="VALID">(a, w)', ["Conv"]),
    "padding without a shift": ("a = Div(x, std) y = Conv <pads=[1, 1, 1, 1]>(a, w)", ["Conv"]),
    "behind a linear Resize": (
        'a = Sub(x, mean) b = Resize <mode="linear", coordinate_transformation_mode='
        '"align_corners">(a, , , s) y = Conv(b, w)',
        ["Resize", "Conv"],
    ),
    "behind a nearest Resize": (
        "a = Sub(x, mean) b = Resize(a, , , s) y = Conv(b, w)",
        ["Resize", "Conv"],
    ),
}


@pytest.mark.parametrize(("body", "ops"), CONVS.values(), ids=CONVS.keys())
def test_into_conv(body, ops, tmp_path):
    constants = f"{MEAN}, {STD}, float[4,3,3,3] w, float[4] bias"
    text = model(body, f"{constants}, int64[4] s = {{1, 3, 9, 7}}", CONV_HEAD)
    fold = FoldNorm(into="conv")
    result = applied(text, fold)
    assert (result.ops, result.reasons) == (ops, [])
    assert [proof.status for proof in proofs(result, fold)] == ["pass"]
    assert proofs(result, fold)[0].error < 1e-13
    # 27 products of up to 255 instead of 2.6, rounded to 2⁻²⁴ each.
    assert error_in_float32(result, fold, tmp_path) < 1e-5


@pytest.mark.parametrize("into", ["batchnorm", "conv"])
def test_a_second_run_finds_nothing(into):
    body = "b = Sub(x, mean) a = Div(b, std) y = Conv(a, w)"
    text = model(body, f"{MEAN}, {STD}, float[4,3,3,3] w", CONV_HEAD)
    once = applied(text, FoldNorm(into=into))
    again = list(FoldNorm(into=into).match(once.graph))
    assert again == []
