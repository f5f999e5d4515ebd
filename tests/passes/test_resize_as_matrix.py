import numpy as np
import pytest
from running import applied, error_in_float32, proofs, refusal

from passes import resize_as_matrix
from passes.resize_as_matrix import ResizeAsMatrix

SIZES = "<int64[4] s = {2, 3, 9, 4}>"
LINEAR = 'Resize <mode="linear", coordinate_transformation_mode="align_corners">(x, , , s)'


def model(resize: str = LINEAR, head: str = "float[2,3,6,8] x", constants: str = SIZES) -> str:
    return f"g ({head}) => (float[a,b,c,d] y) {constants} {{ y = {resize} }}"


@pytest.mark.parametrize(
    ("text", "pass_", "reason"),
    [
        pytest.param(
            model(head="float[2,5,6,8] x", constants="<int64[4] s = {2, 5, 9, 4}>"),
            ResizeAsMatrix(), "'x' has 5 channels (channels=4)", id="a wide map",
        ),
        pytest.param(
            model(), ResizeAsMatrix(channels=1), "'x' has 3 channels (channels=1)",
            id="wider than asked for",
        ),
        pytest.param(
            model('Resize <mode="linear">(x, , t)', "float[2,c,6,8] x",
                  "<float[4] t = {1, 1, 2, 2}>"),
            ResizeAsMatrix(), "'x' has c channels (channels=4)", id="who knows how wide",
        ),
        pytest.param(
            model("Resize(x, , , s)"), ResizeAsMatrix(),
            "mode=nearest copies samples: there are no sums", id="nearest",
        ),
        pytest.param(
            model('Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
                  "(x, r, , s)",
                  constants="<int64[4] s = {2, 3, 9, 4}, float[8] r = {0, 0, 0, 0, 1, 1, 1, 1}>"),
            ResizeAsMatrix(), "coordinate_transformation_mode=tf_crop_and_resize is not supported",
            id="a crop",
        ),
        pytest.param(
            model(constants="<int64[4] s = {2, 6, 9, 4}>"), ResizeAsMatrix(),
            "axis 1 is resized, too", id="channels are resized",
        ),
        pytest.param(
            model(constants="<int64[4] s = {2, 3, 6, 8}>"), ResizeAsMatrix(), "every scale is 1",
            id="nothing to do",
        ),
        pytest.param(
            model(head="uint8[2,3,6,8] x").replace("(float[a", "(uint8[a"), ResizeAsMatrix(),
            "'x' is uint8[2×3×6×8], not a float N×C×H×W map", id="bytes",
        ),
        pytest.param(
            model(head="float[2,3,8] x", constants="<int64[3] s = {2, 3, 4}>").replace(",d]", "]"),
            ResizeAsMatrix(), "'x' is float[2×3×8], not a float N×C×H×W map", id="a signal",
        ),
        pytest.param(
            model(head="float[2,3,6,8] x, int64[4] s", constants=""), ResizeAsMatrix(),
            "'s' is not constant", id="a size that is an input",
        ),
        pytest.param(
            model('Resize <mode="linear">(x, , t)', "float[2,3,h,8] x",
                  "<float[4] t = {1, 1, 2, 2}>"),
            ResizeAsMatrix(), "axis 2 of 'x' is dynamic", id="a dynamic height",
        ),
        pytest.param(
            model('Resize <mode="linear">(x, , t)', constants="<float[4] t = {1, 1, 2, 1.1}>"),
            ResizeAsMatrix(), "axis 3 keeps its 8 samples at a scale of 1.1, where runtimes differ",
            id="a length that rounds to itself",
        ),
        pytest.param(
            model('Resize <mode="linear">(x, , t)', "float[0,3,6,8] x",
                  "<float[4] t = {1, 1, 2, 2}>"),
            ResizeAsMatrix(), "'x' is float[0×3×6×8]: it is empty", id="nothing",
        ),
        pytest.param(
            "g (float[1,3,6,8] x) => (float[1,3,6,8] y) { y = Abs(x) }", ResizeAsMatrix(),
            "nothing to multiply: no Resize", id="no Resize",
        ),
    ],
)  # fmt: skip
def test_refuses(text, pass_, reason):
    assert refusal(text, pass_) == reason


def test_refuses_an_old_opset():
    text = 'Resize <mode="linear">(x, s)'
    text = model(text, constants="<float[4] s = {1, 1, 2, 2}>")
    reason = "opset 10 leaves a Resize's coordinates open (11 does not)"
    assert refusal(text, ResizeAsMatrix(), opset=10) == reason


MULTIPLIED = ["MatMul", "MatMul"]
CONVOLVED = ["Transpose", "Conv", "Transpose", "Conv", "Transpose"]


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
@pytest.mark.parametrize(
    ("form", "channels", "ops"),
    [
        ("matmul", 1, MULTIPLIED), ("matmul", 3, MULTIPLIED), ("conv", 1, CONVOLVED),
        ("conv", 3, CONVOLVED), ("auto", 1, MULTIPLIED), ("auto", 3, CONVOLVED),
    ],
)  # fmt: skip
def test_forms(form, channels, ops, opset, tmp_path):
    unused = "x, u, u, s" if opset < 13 else "x, , , s"
    text = model(
        LINEAR.replace("x, , , s", unused),
        f"float[2,{channels},6,8] x",
        f"<int64[4] s = {{2, {channels}, 9, 4}}, float[0] u = {{}}>",
    )
    pass_ = ResizeAsMatrix(form)
    result = applied(text, pass_, opset)
    assert (result.ops, result.reasons) == (ops, [])
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error < 1e-14) == ("pass", True)
    assert error_in_float32(result, pass_, tmp_path) < 1e-5


@pytest.mark.parametrize("form", ["matmul", "conv"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(9, 4), (12, 16), (3, 2), (6, 5), (7, 8), (1, 1)])
@pytest.mark.parametrize(
    "coordinates",
    ["align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"],
)
@pytest.mark.parametrize("antialias", [0, 1])
def test_is_proven_in_every_mode(form, mode, sizes, coordinates, antialias):
    text = model(
        f'Resize <mode="{mode}", coordinate_transformation_mode="{coordinates}", '
        f"antialias={antialias}, axes=[2, 3]>(x, , , s)",
        constants=f"<int64[2] s = {{{sizes[0]}, {sizes[1]}}}>",
    )
    pass_ = ResizeAsMatrix(form)
    result = applied(text, pass_, 19)
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error < 1e-13) == ("pass", True)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_a_kept_aspect_ratio(policy, tmp_path):
    text = model(
        f'Resize <mode="linear", axes=[2, 3], keep_aspect_ratio_policy="{policy}">(x, , , s)',
        constants="<int64[2] s = {9, 20}>",
    )
    result = applied(text, ResizeAsMatrix(), 18)
    assert (result.ops, result.reasons) == (CONVOLVED, [])
    assert [proof.status for proof in proofs(result, ResizeAsMatrix())] == ["pass"]
    assert error_in_float32(result, ResizeAsMatrix(), tmp_path) < 1e-5


@pytest.mark.parametrize(
    ("source", "target", "axes"),
    [
        pytest.param((480, 640), (518, 518), ["columns", "rows"], id="columns shrink"),
        pytest.param((518, 518), (480, 640), ["rows", "columns"], id="rows shrink"),
        pytest.param((10, 10), (20, 30), ["rows", "columns"], id="columns grow more"),
        pytest.param((10, 10), (30, 20), ["columns", "rows"], id="rows grow more"),
        pytest.param((10, 10), (10, 20), ["columns"], id="columns only"),
    ],
)
@pytest.mark.parametrize("form", ["matmul", "conv"])
def test_the_order_takes_fewer_multiplications(source, target, axes, form):
    text = model(
        head=f"float[1,1,{source[0]},{source[1]}] x",
        constants=f"<int64[4] s = {{1, 1, {target[0]}, {target[1]}}}>",
    )
    result = applied(text, ResizeAsMatrix(form))
    made = [node.inputs[k].name for node in result.graph.nodes for k in range(len(node.inputs))]
    constants = [name.partition("/")[2].split()[0] for name in made if " to " in name]
    assert constants == axes


def test_a_dynamic_batch_keeps_its_name(tmp_path):
    text = model('Resize <mode="linear">(x, , t)', "float[n,3,6,8] x",
                 "<float[4] t = {1, 1, 2, 1.5}>").replace("[a,b,c,d]", "[n,3,12,12]")  # fmt: skip
    for pass_ in (ResizeAsMatrix("matmul"), ResizeAsMatrix("conv")):
        result = applied(text, pass_)
        assert result.reasons == []
        assert result.graph.outputs[0].shape == ["n", 3, 12, 12]
        assert [proof.status for proof in proofs(result, pass_)] == ["pass"]


@pytest.mark.parametrize("form", ["matmul", "conv"])
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floats(form, dtype):
    text = model(head=f"{dtype}[2,3,6,8] x").replace("(float[a", f"({dtype}[a")
    result = applied(text, ResizeAsMatrix(form))
    assert [proof.status for proof in proofs(result, ResizeAsMatrix(form))] == ["pass"]
    assert {str(t.dtype) for t in result.graph.constants()} == {dtype.replace("double", "float64")}


def test_a_map_that_is_read_twice_and_an_output(tmp_path):
    text = f"""g (float[2,3,6,8] x) => (float[2,3,9,4] r, float[2,3,9,4] y) {SIZES} {{
        r = {LINEAR} a = Relu(r) y = Add(a, r)
    }}"""
    result = applied(text, ResizeAsMatrix())
    assert result.ops == [*CONVOLVED, "Relu", "Add"]
    assert [proof.status for proof in proofs(result, ResizeAsMatrix())] == ["pass"]
    assert error_in_float32(result, ResizeAsMatrix(), tmp_path) < 1e-5


TURNED = ["MatMul", "Transpose", "MatMul", "Conv", "Transpose"]
# Each of these makes less of 3×9×4 = 108 numbers, and treats rows and columns differently.
PATCHES = [
    "<float[5,3,3,2] w> { r = %s y = Conv <strides = [3, 2]> (r, w) }",
    "<float[5,3,3,2] w, float[5] b> { r = %s y = Conv <strides = [3, 2]> (r, w, b) }",
    "<float[2,3,3,2] w> { r = %s y = Conv <pads = [1, 0, 2, 1], strides = [2, 3]> (r, w) }",
    "<float[3,1,2,3] w> { r = %s y = Conv <group = 3, dilations = [3, 1]> (r, w) }",
    '<float[1,3,3,2] w> { r = %s y = Conv <auto_pad = "SAME_UPPER", strides = [2, 1]> (r, w) }',
    '<float[1,3,3,2] w> { r = %s y = Conv <auto_pad = "SAME_LOWER", strides = [2, 1]> (r, w) }',
    '<float[1,3,3,2] w> { r = %s y = Conv <auto_pad = "VALID", kernel_shape = [3, 2]> (r, w) }',
]


def patched(body: str, resize: str = LINEAR) -> str:
    return f"g (float[2,3,6,8] x) => (float[a,b,c,d] y) {SIZES} {body % resize}".replace(
        "> <", ", "
    )


@pytest.mark.parametrize("form", ["auto", "turned"])
@pytest.mark.parametrize("body", PATCHES)
def test_a_convolution_that_makes_less_of_it_takes_it_turned(body, form, tmp_path):
    pass_ = ResizeAsMatrix(form)
    result = applied(patched(body), pass_)
    assert (result.ops, result.reasons) == (TURNED, [])
    (proof,) = proofs(result, pass_)
    assert (proof.status, proof.error < 1e-14) == ("pass", True)
    assert error_in_float32(result, pass_, tmp_path) < 1e-5


@pytest.mark.parametrize(
    ("sizes", "ops"),
    [
        ("{2, 3, 9, 8}", ["Transpose", "MatMul", "Conv", "Transpose"]),
        ("{2, 3, 6, 4}", ["MatMul", "Transpose", "Conv", "Transpose"]),
    ],
)
def test_one_axis_is_turned_too(sizes, ops):
    result = applied(patched(PATCHES[0]).replace("{2, 3, 9, 4}", sizes), ResizeAsMatrix("turned"))
    assert (result.ops, result.reasons) == (ops, [])
    assert [proof.status for proof in proofs(result, ResizeAsMatrix())] == ["pass"]


def test_two_convolutions_of_one_map_are_turned_when_asked_for(tmp_path):
    text = patched(
        "<float[5,3,3,2] w, float[5,3,3,2] v> { r = %s p = Conv <strides = [3, 2]> (r, w) "
        "q = Conv <strides = [3, 2]> (r, v) y = Mul(p, q) }"
    )
    pass_ = ResizeAsMatrix("turned")
    result = applied(text, pass_)
    assert result.ops == [*TURNED, "Conv", "Transpose", "Mul"]
    assert [proof.status for proof in proofs(result, pass_)] == ["pass"]
    assert error_in_float32(result, pass_, tmp_path) < 1e-5
    assert applied(text, ResizeAsMatrix()).ops == [*CONVOLVED, "Conv", "Conv", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        "<float[5,3,1,1] w> { r = %s y = Conv(r, w) }",
        "<float[5,3,3,2] w> { r = %s f = Relu(r) y = Conv <strides = [3, 2]> (f, w) }",
        "<float[5,3,3,2] w> { r = %s k = Conv(r, w) m = ReduceMax(r) y = Add(k, m) }",
        "<float[1,3,9,4] z> { r = %s y = Conv(z, r) }",
    ],
    ids=["makes more", "is not next", "is not alone", "takes it as a kernel"],
)  # fmt: skip
def test_what_other_nodes_read_is_not_turned(body):
    assert applied(patched(body), ResizeAsMatrix()).ops[:5] == CONVOLVED
    reason = "'r' is read by more than convolutions that make less of it"
    assert refusal(patched(body), ResizeAsMatrix("turned")) == reason


def test_a_kernel_that_is_computed_is_not_turned():
    text = f"""g (float[2,3,6,8] x, float[5,3,3,2] w) => (float[a,b,c,d] y) {SIZES} {{
        r = {LINEAR} y = Conv <strides = [3, 2]> (r, w)
    }}"""
    assert applied(text, ResizeAsMatrix()).ops == [*CONVOLVED, "Conv"]


def test_a_second_run_finds_nothing():
    graph = applied(model(), ResizeAsMatrix()).graph
    assert list(ResizeAsMatrix().match(graph)) == []


FAULTS = {
    "rows for columns": lambda m: {2: m[3][:, ::-1], 3: m[3]},
    "upside down": lambda m: {**m, 2: m[2][::-1]},
    "one weight": lambda m: {**m, 3: m[3] + 1e-6 * np.eye(*m[3].shape)},
    "the last row is the one before": lambda m: {**m, 2: np.vstack([m[2][:-1], m[2][-2:-1]])},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("form", ["matmul", "conv"])
def test_faults_are_found(fault, form, monkeypatch):
    honest = resize_as_matrix.matrices_of
    monkeypatch.setattr(resize_as_matrix, "matrices_of", lambda *args: fault(honest(*args)))
    text = model(head="float[2,3,8,8] x", constants="<int64[4] s = {2, 3, 9, 9}>")
    result = applied(text, ResizeAsMatrix(form))
    assert [proof.status for proof in proofs(result, ResizeAsMatrix(form))] == ["fail"]


TURNED_WRONG = {
    "the kernel stays": ("np.swapaxes", lambda kernel, *_: kernel),
    "strides and pads stay": ("_exchanged", list),
    "pads stay": ("SPATIAL", frozenset({"strides"})),
    "strides stay": ("SPATIAL", frozenset({"pads"})),
}


@pytest.mark.parametrize("fault", TURNED_WRONG.values(), ids=TURNED_WRONG.keys())
def test_faults_in_a_turned_convolution_are_found(fault, monkeypatch):
    name, wrong = fault
    conv = "Conv <pads = [1, 1, 1, 0], strides = [3, 2]> (r, w)"
    text = patched(f"<float[3,3,3,3] w> {{ r = %s y = {conv} }}")
    text = text.replace("{2, 3, 9, 4}", "{2, 3, 9, 9}")
    with monkeypatch.context() as patch:
        patch.setattr(f"passes.resize_as_matrix.{name}", wrong)
        result = applied(text, ResizeAsMatrix())
    assert result.ops == TURNED
    assert [proof.status for proof in proofs(result, ResizeAsMatrix())] == ["fail"]
