"""The heat map of an error: where it is, and how far, in percent of the range."""

import matplotlib.image
import numpy as np
import onnx
import pytest

import compiler
import models
from compiler.pictures import depth_of, is_map, write_error_map
from compiler.region import TensorType

MAP = np.linspace(0, 10, 48 * 64).reshape(48, 64)


@pytest.fixture
def painted(tmp_path):
    def paint(new: np.ndarray, name: str = "error") -> np.ndarray:
        write_error_map(tmp_path / f"{name}.png", MAP, new)
        return matplotlib.image.imread(tmp_path / f"{name}.png")

    return paint


def test_an_error_shows_where_it_is(painted):
    wrong = MAP.copy()
    wrong[:24, :32] += 1.0
    assert contrast(painted(wrong)) > 0.3
    assert contrast(painted(MAP, "plain")) < 0.2


def contrast(picture: np.ndarray) -> float:
    """How far the colour at the upper left is from that at the lower middle of the map."""
    height, width = picture.shape[:2]
    corner = picture[height // 4 : height // 3, width // 5 : width // 4, :3]
    opposite = picture[height * 2 // 3 : height * 3 // 4, width // 2 : width * 3 // 5, :3]
    return float(np.abs(corner.mean((0, 1)) - opposite.mean((0, 1))).max())


def test_maps_of_two_sizes_are_compared_at_the_second(painted):
    assert painted(np.zeros((96, 128))).ndim == 3


def test_the_same_maps_give_the_same_bytes(painted, tmp_path):
    for name in ("one", "two"):
        painted(MAP + 0.5, name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 518, 518), True), ((1, 1, 375, 1242), True), ((480, 640), True), ((1, "H", 640), True),
        ((1, 1000), False), ((1, 197, 768), False), ((1, 50, 768), False), ((1, 0, 0), False),
        ((2, 64, 64), False), ((64,), False), (None, False),
    ],
)  # fmt: skip
def test_a_map_is_shaped_like_a_picture(shape, expected):
    assert is_map(TensorType(1, shape)) == expected


def test_a_picture_of_float16_is_rounded_as_its_loss_is(model_of, tmp_path):
    """(x + 1000) − 1000 keeps 0.5 of x in float16, and all of it in onnxruntime's float32."""
    text = """g (float[1,3,8,8] x) => (float[1,1,8,8] y) <float much = {1000}, float part = {0.01}>
    { a = ReduceMax <axes = [1]> (x) s = Mul(a, part) b = Add(s, much) y = Sub(b, much) }"""
    onnx.save(model_of(text, 17), tmp_path / "source.onnx")
    compiler.build(str(tmp_path / "source.onnx"), "float16", output=tmp_path / "build")
    built = tmp_path / "build" / "model.onnx"
    loose = onnx.load(built, load_external_data=False)
    del loose.graph.value_info[:]  # as other tools leave it
    onnx.save(loose, tmp_path / "build" / "loose.onnx")
    for path in (built, tmp_path / "build" / "loose.onnx"):
        depth = depth_of(path, models.sample_image())
        np.testing.assert_array_equal(depth, np.rint(2 * depth) / 2)
    exact = depth_of(tmp_path / "source.onnx", models.sample_image())
    assert 0.1 < np.abs(depth - exact).max() < 0.5


def test_classes_get_no_picture(model_of, tmp_path):
    text = """g (float[1,3,8,8] image) => (float[1,1000] y) <float[3,1000] w>
    { a = GlobalAveragePool(image) b = Flatten(a) c = MatMul(b, w) d = Identity(c) y = Relu(d) }"""
    onnx.save(model_of(text, 17), tmp_path / "source.onnx")
    compiler.build(str(tmp_path / "source.onnx"), "", output=tmp_path / "build")
    assert (tmp_path / "build" / "model.onnx").exists()
    assert not list((tmp_path / "build").glob("*.png"))
