"""Resize against torch, against onnxruntime, and against the schema's text, pixel by pixel."""

import itertools
import math

import numpy as np
import onnx.parser
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.verify.float64 import UnsupportedInFloat64

MODES = ["nearest", "linear", "cubic"]
COORDINATES = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


# The schema's text, for one pixel at a time.


def source_place(i, length, resized, scale, start, end, mode):
    """x_original of the schema."""
    match mode:
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            offset = length / 2 * (1 - resized / (scale * length))
            return offset + ((i + 0.5) / scale - 0.5)
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if resized > 1 else 0.0
        case "align_corners":
            return i * (length - 1) / (resized - 1) if resized > 1 else 0.0
        case "asymmetric":
            return i / scale
        case "tf_crop_and_resize" if resized > 1:
            return start * (length - 1) + i * (end - start) * (length - 1) / (resized - 1)
        case "tf_crop_and_resize":
            return 0.5 * (start + end) * (length - 1)


def rounded(x, mode):
    below = math.floor(x)
    match mode:
        case "floor":
            return below
        case "ceil":
            return math.ceil(x)
        case "round_prefer_floor":
            return below if x - below <= 0.5 else below + 1
        case "round_prefer_ceil":
            return below if x - below < 0.5 else below + 1


def kernel_value(t, given):
    t, a = abs(t), given["cubic_coeff_a"]
    if given["mode"] == "linear":
        return max(0.0, 1 - t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def shares(x, length, scale, given):
    """[(source index, weight)] of one coordinate."""
    if given["mode"] == "nearest":
        index = rounded(x, given["nearest_mode"])
        return [(min(max(index, 0), length - 1), 1.0)]
    stretch = max(1.0, 1 / scale) if given["antialias"] else 1.0
    around = range(math.floor(x - 2 * stretch) - 1, math.ceil(x + 2 * stretch) + 2)
    pairs = [(i, kernel_value((i - x) / stretch, given)) for i in around]
    if given["exclude_outside"]:
        pairs = [(i, w) for i, w in pairs if 0 <= i < length]
    total = sum(w for _, w in pairs)
    return [(min(max(i, 0), length - 1), w / total) for i, w in pairs if w]


def naive(x, resized, scales, roi, given):
    """Every pixel as a sum over its neighbours on all axes at once."""
    out = np.empty(resized)
    bounds = zip(roi[: x.ndim], roi[x.ndim :], strict=True)
    axes = list(zip(x.shape, resized, scales, bounds, strict=True))
    mode = given["coordinate_transformation_mode"]
    for pixel in itertools.product(*map(range, resized)):
        places = [
            source_place(i, n, m, s, *bound, mode)
            for i, (n, m, s, bound) in zip(pixel, axes, strict=True)
        ]
        outside = [not 0 <= p <= n - 1 for p, n in zip(places, x.shape, strict=True)]
        if mode == "tf_crop_and_resize" and any(outside):
            out[pixel] = given["extrapolation_value"]
            continue
        parts = [shares(p, n, s, given) for p, (n, _, s, _) in zip(places, axes, strict=True)]
        out[pixel] = sum(
            x[tuple(i for i, _ in combination)] * math.prod(w for _, w in combination)
            for combination in itertools.product(*parts)
        )
    return out


def node(given, inputs="x, roi, scales, sizes"):
    def text(value):
        return f'"{value}"' if isinstance(value, str) else repr(value)

    attributes = ", ".join(f"{name}={text(value)}" for name, value in given.items())
    return f"y = Resize<{attributes}>({inputs})"


@st.composite
def attributes(draw):
    mode = draw(st.sampled_from(MODES))
    return {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from(COORDINATES)),
        "nearest_mode": draw(st.sampled_from(NEAREST)),
        "cubic_coeff_a": draw(st.sampled_from([-0.75, -0.5])),
        "exclude_outside": draw(st.integers(0, 1)) if mode != "nearest" else 0,
        "antialias": draw(st.integers(0, 1)) if mode != "nearest" else 0,
        "extrapolation_value": 0.25,
    }


SIDE = st.integers(1, 7)
SCALE = st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.25, 1.7, 2.0, 2.6])
EDGE = st.sampled_from([-0.25, 0.0, 0.125, 0.75, 1.0, 1.25])
FROM_SCALES = "x, roi, scales"
FROM_SIZES = "x, roi, , sizes"


@settings(max_examples=250, deadline=None)
@given(attributes(), st.tuples(SIDE, SIDE), st.tuples(SCALE, SCALE), st.tuples(*[EDGE] * 4))
def test_scales_follow_the_schema(run, given, shape, scales, roi):
    scales = [float(np.float32(s)) for s in scales]
    resized = [int(np.float32(n) * np.float32(s)) for n, s in zip(shape, scales, strict=True)]
    assume(all(resized))
    x = np.random.default_rng(0).standard_normal(shape)
    result = run(node(given, FROM_SCALES), x=x, roi=roi, scales=np.float32(scales))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, naive(x, resized, scales, roi, given), atol=1e-13)


@settings(max_examples=250, deadline=None)
@given(attributes(), st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.tuples(*[EDGE] * 4))
def test_sizes_follow_the_schema(run, given, shape, sizes, roi):
    x = np.random.default_rng(0).standard_normal(shape)
    scales = [m / n for n, m in zip(shape, sizes, strict=True)]
    result = run(node(given, FROM_SIZES), x=x, roi=roi, sizes=np.int64(sizes))
    np.testing.assert_allclose(result, naive(x, sizes, scales, roi, given), atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(3)), st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE), st.booleans())
def test_axes_choose_what_is_resized(run, order, sizes, shape, negative):
    chosen = order[:2]
    given = {"mode": "linear", "axes": [a - 3 * negative for a in chosen]}
    x = np.random.default_rng(0).standard_normal(shape)
    full = list(shape)
    for axis, size in zip(chosen, sizes, strict=True):
        full[axis] = size
    wanted = run(node({"mode": "linear"}, FROM_SIZES), x=x, roi=[], sizes=np.int64(full))
    result = run(node(given, FROM_SIZES), x=x, roi=[], sizes=np.int64(sizes))
    np.testing.assert_allclose(result, wanted, atol=1e-13)


@pytest.mark.parametrize(
    ("policy", "shape"), [("not_larger", (4, 7)), ("not_smaller", (6, 11)), ("stretch", (4, 11))]
)
def test_aspect_ratio_policies(run, rng, policy, shape):
    """4 x 7 to 4 x 11: the ratios are 1 and 11/7; 4 * 11/7 = 6.29."""
    given = {"mode": "linear", "keep_aspect_ratio_policy": policy}
    x = rng.standard_normal((4, 7))
    result = run(node(given, FROM_SIZES), x=x, roi=[], sizes=np.int64([4, 11]))
    assert result.shape == shape
    if policy == "not_smaller":
        full = {**given, "cubic_coeff_a": 0, "exclude_outside": 0, "antialias": 0}
        full["coordinate_transformation_mode"] = "half_pixel"
        np.testing.assert_allclose(result, naive(x, shape, [11 / 7] * 2, [0] * 4, full), atol=1e-13)


def test_the_size_from_a_scale_is_that_of_shape_inference(run):
    """0.7 in float32 is a little less than 0.7: 6.9999999 in float64, 7 in float32."""
    result = run('y = Resize<mode="nearest">(x, , s)', x=np.zeros(10), s=np.float32([0.7]))
    assert result.shape == (7,)


# torch has the same conventions under other names.
TORCH = [
    ("linear", "align_corners", {"mode": "bilinear", "align_corners": True}),
    ("linear", "half_pixel", {"mode": "bilinear", "align_corners": False}),
    ("cubic", "align_corners", {"mode": "bicubic", "align_corners": True}),
    ("cubic", "half_pixel", {"mode": "bicubic", "align_corners": False}),
    ("nearest", "half_pixel", {"mode": "nearest-exact"}),
]


def torch_attributes(mode, coordinates):
    return {
        "mode": mode,
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": "round_prefer_ceil",
    }


@pytest.mark.parametrize(("mode", "coordinates", "options"), TORCH)
@pytest.mark.parametrize("sizes", [(37, 50), (14, 9), (29, 31), (1, 64)], ids=str)
def test_sizes_as_torch(run, rng, mode, coordinates, options, sizes):
    x = rng.standard_normal((2, 3, 29, 31))
    given = torch_attributes(mode, coordinates)
    result = run(node(given, FROM_SIZES), x=x, roi=[], sizes=np.int64([2, 3, *sizes]))
    wanted = torch.nn.functional.interpolate(torch.from_numpy(x), sizes, **options)
    np.testing.assert_allclose(result, wanted.numpy(), atol=2e-13)


@pytest.mark.parametrize(("mode", "coordinates", "options"), TORCH)
@pytest.mark.parametrize("scales", [(2.0, 1.75), (0.625, 0.875), (1.3125, 2.0)], ids=str)
def test_scales_as_torch(run, rng, mode, coordinates, options, scales):
    """Scales that float32 holds, and whose product with the side is no whole number."""
    x = rng.standard_normal((1, 2, 21, 30))
    given = torch_attributes(mode, coordinates)
    result = run(node(given, FROM_SCALES), x=x, roi=[], scales=np.float32([1, 1, *scales]))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(x), scale_factor=scales, recompute_scale_factor=False, **options
    )
    np.testing.assert_allclose(result, wanted.numpy(), atol=2e-13)


@pytest.mark.parametrize(("mode", "torch_mode"), [("linear", "bilinear"), ("cubic", "bicubic")])
def test_antialias_as_torch(run, rng, mode, torch_mode):
    """torch leaves out what lies outside, and takes a = -0.5 for an antialiased cubic."""
    x = rng.standard_normal((1, 2, 40, 50))
    given = {"mode": mode, "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5}
    result = run(node(given, FROM_SIZES), x=x, roi=[], sizes=np.int64([1, 2, 13, 17]))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(x), (13, 17), mode=torch_mode, antialias=True
    )
    np.testing.assert_allclose(result, wanted.numpy(), atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coordinates", [c for c in COORDINATES if c != "tf_crop_and_resize"])
@pytest.mark.parametrize("target", [(1.5, 2.0), (0.5, 0.75), (13, 5), (1, 8)], ids=str)
def test_conventions_as_onnxruntime(run, rng, mode, coordinates, target):
    if mode != "linear" and coordinates == "half_pixel_symmetric":
        pytest.skip("onnxruntime has it for linear only" if mode == "cubic" else "ties")
    by_scale = isinstance(target[0], float)
    kind, dtype = ("scales", "float") if by_scale else ("sizes", "int64")
    given = {"mode": mode, "coordinate_transformation_mode": coordinates}
    text = node(given, "x, , scales" if by_scale else "x, , , sizes")
    values = np.array([1, 1, *target], np.float32 if by_scale else np.int64)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[n, c, h, w] x, {dtype}[4] {kind})'
        f" => (float[p, q, r, s] y) {{ {text} }}"
    )
    x = rng.standard_normal((1, 1, 8, 10)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = session.run(None, {"x": x, kind: values})[0]
    result = run(text, 18, x=x, **{kind: values})
    np.testing.assert_allclose(result, wanted, atol=1e-5)


def test_a_large_image_is_computed_in_pieces(run, rng):
    x = rng.standard_normal((2, 9, 120, 130))
    given = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    result = run(node(given, FROM_SIZES), x=x, roi=[], sizes=np.int64([2, 9, 240, 321]))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(x), (240, 321), mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(result, wanted.numpy(), atol=1e-13)


@pytest.mark.parametrize(
    "text", ['y = Resize<mode="MODE">(x, s)', 'y = Upsample<mode="MODE">(x, s)']
)
def test_old_versions_are_asymmetric(run, rng, text):
    x, scales = rng.standard_normal((3, 4)), np.float32([2, 1.5])
    opset = 10 if "Resize" in text else 9
    up = run(text.replace("MODE", "nearest"), opset, x=x, s=scales)
    rows, columns = np.arange(6) // 2, np.floor(np.arange(6) / 1.5).astype(int)
    np.testing.assert_array_equal(up, x[rows][:, columns])
    given = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    wanted = run(node(given, FROM_SCALES), x=x, roi=[], scales=scales)
    np.testing.assert_array_equal(run(text.replace("MODE", "linear"), opset, x=x, s=scales), wanted)


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        ('y = Resize<mode="nearest">(x, s)', 10, "leaves the rounding open"),
        ('y = Resize<mode="nearest", antialias=1>(x, , s)', 18, "antialias is not defined"),
    ],
)
def test_what_the_schema_leaves_open_is_refused(run, text, opset, reason):
    with pytest.raises(UnsupportedInFloat64, match=reason):
        run(text, opset, x=np.zeros((4, 4)), s=np.float32([0.5, 0.5]))
