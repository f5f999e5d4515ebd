import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from passes import fold_norm
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
        pytest.param(
            model("y = Sub(x, c)", "float[1,1,1,1,1] c",
                  "g (float[1,1,6,8] x) => (float[1,1,1,6,8] y)"),
            "Sub's constant 'c' is [1, 1, 1, 1, 1], not one value for each of 1 channels",
            id="a constant of higher rank",
        ),
        pytest.param(
            model("y = Sub(x, c)", "float[2,1,1,1] c",
                  "g (float[2,3,6,8] x) => (float[2,3,6,8] y)"),
            "Sub's constant 'c' is [2, 1, 1, 1], not one value for each of 3 channels",
            id="a value for each image",
        ),
        pytest.param(
            model("y = Sub(x, c)", "float[8] c"),
            "the channels are axis 3 of float[1×3×6×8], and no Transpose makes them axis 1",
            id="a value for each column",
        ),
        pytest.param(
            model("a = Sub(x, c) y = Transpose <perm=[0, 2, 3, 1]>(a)", "float[3] c",
                  "g (float[1,6,8,3] x) => (float[1,8,3,6] y)"),
            "the channels are axis 3 of float[1×6×8×3], and no Transpose makes them axis 1",
            id="channels last, put elsewhere",
        ),
        pytest.param(
            model("a = Sub(x, c) y = Transpose <perm=[0, 3, 1, 2]>(a)", "float[3] c",
                  "g (float[1,6,8,3] x) => (float[1,3,6,8] y, float[1,6,8,3] a)"),
            "the channels are axis 3 of float[1×6×8×3], and no Transpose makes them axis 1",
            id="channels last, and an output",
        ),
        pytest.param(
            model("f = Cast <to=1>(m) r = Unsqueeze(f, axes) a = Sub(one, r) y = Mul(a, large)",
                  "int64[2] axes = {1, 2}, float one = {1}, float large = {-10000}",
                  "g (int64[1,8] m) => (float[1,1,1,8] y)"),
            "'r' is float[1×1×1×8]: a row of values is no image",
            id="the mask of a text",
        ),
        pytest.param(
            model("y = Sub(x, mean)", MEAN, "g (float[1,c,6,8] x) => (float[1,3,6,8] y)"),
            "'x' is float[1×c×6×8], not a float N×C×H×W tensor of known shape",
            id="an unknown number of channels",
        ),
    ],
)  # fmt: skip
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
    nothing = "nothing to fold: no input goes into arithmetic with a constant"
    assert (result.done.rewrites, result.reasons) == ([], [nothing])


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


# -- channels last, grey images, several inputs ----------------------------------------------------

LAST = {
    "mean and std": "a = Sub(x, m) b = Div(a, s) y = Transpose <perm=[0, 3, 1, 2]>(b)",
    "a scalar first": "a = Mul(x, k) b = Sub(a, m) y = Transpose <perm=[0, 3, 1, 2]>(b)",
    "scalars": "a = Sub(x, k) b = Div(a, k) y = Transpose <perm=[0, 3, 1, 2]>(b)",
    "rows and columns swapped": "a = Sub(m, x) y = Transpose <perm=[0, 3, 2, 1]>(a)",
}
LAST_CONSTANTS = (
    "float[3] m = {123.675, 116.28, 103.53}, float[1,1,1,3] s = {58.395, 57.12, 57.375}, "
    "float k = {-2.5}"
)
LAST_HEAD = "g (float[1,6,8,3] x) => (float[1,3,h,w] y)"


@pytest.mark.parametrize("body", LAST.values(), ids=LAST.keys())
def test_channels_last(body, tmp_path):
    result = applied(model(body, LAST_CONSTANTS, LAST_HEAD), FoldNorm())
    assert (result.ops, result.reasons) == (["Transpose", "BatchNormalization"], [])
    (proof,) = proofs(result, FoldNorm())
    assert (proof.status, proof.error < 1e-12) == ("pass", True)
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6
    assert list(FoldNorm().match(result.graph)) == []


def test_channels_last_into_conv(tmp_path):
    body = f"{LAST['mean and std'].replace('y =', 'c =')} y = Conv(c, w)"
    text = model(
        body, f"{LAST_CONSTANTS}, float[4,3,3,3] w", "g (float[1,6,8,3] x) => (float[1,4,4,6] y)"
    )
    fold = FoldNorm(into="conv")
    result = applied(text, fold)
    assert (result.ops, result.reasons) == (["Transpose", "Conv"], [])
    assert [proof.status for proof in proofs(result, fold)] == ["pass"]
    assert error_in_float32(result, fold, tmp_path) < 1e-5


def test_scalars_before_another_transpose_are_channels_first():
    """A Transpose of patches says nothing about channels."""
    text = model("a = Div(x, k) y = Transpose <perm=[0, 2, 3, 1]>(a)", "float k = {255}",
                 "g (float[1,3,6,8] x) => (float[1,6,8,3] y)")  # fmt: skip
    result = applied(text, FoldNorm())
    assert result.ops == ["BatchNormalization", "Transpose"]
    assert result.graph.nodes[0].inputs[1].shape == (3,)


GREY = {
    "one channel": ("a = Sub(x, k) y = Div(a, c)", ["BatchNormalization"]),
    "one channel, last": (
        "t = Transpose <perm=[0, 2, 3, 1]>(x) a = Sub(t, v) b = Div(a, k) "
        "y = Transpose <perm=[0, 3, 1, 2]>(b)",
        ["Transpose", "Transpose", "BatchNormalization"],
    ),
    "made into colour before": (
        "rgb = Concat <axis=1>(x, x, x) a = Sub(rgb, mean) y = Div(a, std)",
        ["Concat", "BatchNormalization"],
    ),
    "expanded before": (
        "rgb = Expand(x, shape) a = Sub(rgb, mean) y = Div(a, std)",
        ["Expand", "BatchNormalization"],
    ),
}


@pytest.mark.parametrize(("body", "ops"), GREY.values(), ids=GREY.keys())
def test_grey_images(body, ops, tmp_path):
    constants = (
        f"{MEAN}, {STD}, float k = {{0.5}}, float[1,1,1] c = {{0.25}}, float[1] v = {{3}}, "
        "int64[4] shape = {1, 3, 6, 8}"
    )
    result = applied(
        model(body, constants, "g (float[1,1,6,8] x) => (float[1,n,6,8] y)"), FoldNorm()
    )
    assert (result.ops, result.reasons) == (ops, [])
    assert [proof.status for proof in proofs(result, FoldNorm())] == ["pass"]
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6


def test_every_input_is_normalized_for_itself(tmp_path):
    inputs = "float[1,3,6,8] x, float[1,6,8,3] z, float[1,4] t"
    text = model(
        """a = Sub(x, mean) b = Div(a, std) c = Sub(z, m) d = Transpose <perm=[0, 3, 1, 2]>(c)
           y = Add(b, d) u = Mul(t, k)""",
        f"{MEAN}, {STD}, float[3] m = {{1, 2, 3}}, float k = {{2}}",
        f"g ({inputs}) => (float[1,3,6,8] y, float[1,4] u)",
    )
    result = applied(text, FoldNorm())
    assert sorted(result.ops) == [
        "Add", "BatchNormalization", "BatchNormalization", "Mul", "Transpose",
    ]  # fmt: skip
    assert result.reasons == ["'t' is float[1×4], not a float N×C×H×W tensor of known shape"]
    assert [proof.status for proof in proofs(result, FoldNorm())] == ["pass", "pass"]
    assert error_in_float32(result, FoldNorm(), tmp_path) < 1e-6


def test_a_dynamic_batch_keeps_its_name():
    result = applied(model("a = Sub(x, mean) y = Div(a, std)", head=DYNAMIC), FoldNorm())
    assert (result.ops, result.reasons) == (["BatchNormalization"], [])
    assert result.graph.outputs[0].shape == ["n", 3, "h", 8]


DYNAMIC = "g (float[n,3,h,8] x) => (float[n,3,h,8] y)"


AS_MATRICES = {
    "products": (
        "r = MatMul(rows, x) c = MatMul(r, columns)",
        "float[2,3] rows = {1, 0, 0, 0.25, 0.5, 0.25}, "
        "float[4,2] columns = {1, 0, 0, 0.5, 0, 0.5, 0, 0}",
    ),
    "convolutions": (
        "a = Transpose <perm=[0, 2, 1, 3]>(x) r = Conv(a, rows)"
        " b = Transpose <perm=[0, 3, 2, 1]>(r)"
        " d = Conv(b, columns) c = Transpose <perm=[0, 2, 3, 1]>(d)",
        "float[2,3,1,1] rows = {1, 0, 0, 0.25, 0.5, 0.25}, "
        "float[2,4,1,1] columns = {1, 0, 0, 0, 0, 0.5, 0.5, 0}",
    ),
}


@pytest.mark.parametrize(("body", "constants"), AS_MATRICES.values(), ids=AS_MATRICES.keys())
@pytest.mark.parametrize("into", ["batchnorm", "conv"])
def test_behind_the_matrices_of_a_resize(body, constants, into, tmp_path):
    """`resize_as_matrix` may run first."""
    text = model(
        f"{body} s = Sub(c, mean) t = Div(s, std) y = Conv <strides=[1, 2]>(t, w)",
        f"{MEAN}, {STD}, {constants}, float[4,3,1,2] w",
        "g (float[1,3,3,4] x) => (float[1,4,n,m] y)",
    )
    fold = FoldNorm(into=into)
    result = applied(text, fold)
    assert result.reasons == []
    assert result.ops[-1] == "Conv"
    assert not {"Sub", "Div"} & set(result.ops)
    assert [proof.status for proof in proofs(result, fold)] == ["pass"]
    assert error_in_float32(result, fold, tmp_path) < 1e-5


@pytest.mark.parametrize(("body", "constants"), AS_MATRICES.values(), ids=AS_MATRICES.keys())
def test_before_the_matrices_of_a_resize_it_goes_no_further(body, constants):
    """Only a Resize is known to commute with it: `fold_norm` has to run first there."""
    text = model(
        f"s = Sub(x, mean) z = Div(s, std) {body.replace('x)', 'z)')} y = Conv(c, w)",
        f"{MEAN}, {STD}, {constants}, float[4,3,1,1] w",
        "g (float[1,3,3,4] x) => (float[1,4,n,m] y)",
    )
    first = "MatMul" if "MatMul" in body else "Transpose"
    assert refusal(text, FoldNorm(into="conv")) == (f"into=conv: ['{first}'] read it, not one Conv")


def test_behind_other_products_nothing_is_looked_for():
    """Weights that do not sum to one are no interpolation."""
    text = model("a = Conv(x, w) b = MatMul(a, v) y = Mul(b, k)",
                 "float[3,3,1,1] w, float[8,8] v, float[3,1,1] k")  # fmt: skip
    assert refusal(text, FoldNorm()) == (
        "nothing to fold: no input goes into arithmetic with a constant"
    )


NO_MATRIX = {
    "in groups": ("Conv<group=3>(x, w)", "float[3,1,1,1] w = {1, 1, 1}"),
    "with a bias": ("Conv(x, w, b)", "float[3,3,1,1] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}, float[3] b"),
}


@pytest.mark.parametrize(("conv", "constants"), NO_MATRIX.values(), ids=NO_MATRIX.keys())
def test_behind_more_than_a_matrix_nothing_is_looked_for(conv, constants):
    text = model(f"a = {conv} y = Mul(a, k)", f"{constants}, float[3,1,1] k")
    assert refusal(text, FoldNorm()) == (
        "nothing to fold: no input goes into arithmetic with a constant"
    )


MUTANTS = {
    "channels in another order": lambda scale, shift: (scale[::-1], shift[::-1]),
    "a forgotten shift": lambda scale, shift: (scale, 0 * shift),
    "a scale off by 1 %": lambda scale, shift: (1.01 * scale, shift),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("into", ["batchnorm", "conv"])
def test_faults_with_channels_last_are_found(mutant, into, monkeypatch):
    honest = fold_norm._affine
    monkeypatch.setattr(fold_norm, "_affine", lambda *args: MUTANTS[mutant](*honest(*args)))
    body = f"{LAST['mean and std'].replace('y =', 'c =')} y = Conv(c, w)"
    head = LAST_HEAD.replace("3,h,w", "4,4,6")
    fold = FoldNorm(into=into)
    result = applied(model(body, f"{LAST_CONSTANTS}, float[4,3,3,3] w", head), fold)
    assert [proof.status for proof in proofs(result, fold)] == ["fail"]


@pytest.mark.parametrize("into", ["batchnorm", "conv"])
def test_a_second_run_finds_nothing(into):
    body = "b = Sub(x, mean) a = Div(b, std) y = Conv(a, w)"
    text = model(body, f"{MEAN}, {STD}, float[4,3,3,3] w", CONV_HEAD)
    once = applied(text, FoldNorm(into=into))
    again = list(FoldNorm(into=into).match(once.graph))
    assert again == []


@pytest.mark.parametrize("into", ["batchnorm", "conv"])
def test_a_scale_that_its_type_cannot_hold(into):
    text = model("y = Div(x, tiny)", "float[3,1,1] tiny = {1, 1e-39, 1}")
    reason = "a scale or shift up to 'y' can't be held: 1e+39 is too large for float32"
    assert refusal(text, FoldNorm(into)) == reason


HELD = "a scale or shift up to 'y' can't be held: "
BEYOND = {
    "a scale of 0": ("a = Mul(x, c) y = Mul(a, c)", "1e-30", f"{HELD}1e-60 is 0 in float32"),
    "a shift": ("a = Sub(x, c) y = Mul(a, c)", "1e30", f"{HELD}-1e+60 is too large for float32"),
    "weights": ("a = Mul(x, c) y = Conv(a, w)", "2e38", "2e+39 is too large for float32"),
    "weights of 0": ("a = Mul(x, c) y = Conv(a, v)", "1e-44", "9.81e-47 is 0 in float32"),
    "a bias": ("a = Add(x, c) y = Conv(a, w)", "2e38", "2e+39 is too large for float32"),
}


@pytest.mark.parametrize(("body", "value", "reason"), BEYOND.values(), ids=BEYOND.keys())
def test_values_that_their_type_cannot_hold(body, value, reason):
    """They would be infinite, or 0, where the model's own are not."""
    into, head = ("conv", CONV_HEAD) if "Conv" in body else ("batchnorm", HEAD)
    if into == "conv":
        reason = f"into=conv: the weights of Conv 'Conv_y' can't be held: {reason}"
    constants = (f"float[3,1,1] c = {{1, {value}, 1}}, float[1,3,1,1] w = {{10, 10, 0}}, "
                 "float[1,3,1,1] v = {0.01, 0.01, 0}")  # fmt: skip
    assert refusal(model(body, constants, head), FoldNorm(into)) == reason


@pytest.mark.parametrize(("into", "std"), [("batchnorm", 1e-37), ("conv", 1e-37), ("conv", 1e37)])
def test_a_scale_near_the_end_of_its_type_is_folded(into, std):
    constants = f"float[3,1,1] std = {{1, {std}, 1}}, float[4,3,3,3] w"
    result = applied(model("a = Div(x, std) y = Conv(a, w)", constants, CONV_HEAD), FoldNorm(into))
    assert result.reasons == []


BODIES = {
    "all of it": ("", "c = Sub(x, mean) o = Div(c, std)"),
    "half of it": ("c = Sub(x, mean)", "o = Div(c, std)"),
}


@pytest.mark.parametrize(("outside", "inside"), BODIES.values(), ids=BODIES.keys())
def test_what_a_body_computes_is_left_alone(outside, inside):
    text = f"""g (float[1,3,6,8] x, bool k) => (float[1,3,6,8] y) <{MEAN}, {STD}> {{ {outside}
        y = If(k) <then_branch = t () => (float[1,3,6,8] o) {{ {inside} }},
                   else_branch = e () => (float[1,3,6,8] p) {{ p = Abs(x) }}>
    }}"""
    assert refusal(text, FoldNorm()) == (
        "'o' is computed in the body of an If, Loop or Scan: it stays"
    )
