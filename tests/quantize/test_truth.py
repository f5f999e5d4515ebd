"""Ground truth beside photos: what is read, how maps are aligned with it, what a build says."""

import json

import approximated
import numpy as np
import pytest
from approximated import build
from PIL import Image
from typer.testing import CliRunner

from compiler.cli import app
from compiler.errors import UserError
from compiler.pictures import depth_of
from compiler.quantize.images import Images
from compiler.quantize.truth import against_truth, errors, truth_beside
from compiler.verify.inputs import natural_image

DEPTH = np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 8.0]])


def test_a_map_is_aligned_in_scale_and_shift():
    found = errors(np.nan_to_num(DEPTH) * -3 + 7, DEPTH, is_inverse=False)
    assert (found.abs_rel, found.delta1) == (pytest.approx(0, abs=1e-12), 1)
    found = errors(5 / np.nan_to_num(DEPTH, nan=1.0) + 2, DEPTH, is_inverse=True)
    assert (found.abs_rel, found.delta1, found.rmse) == pytest.approx((0, 1, 0), abs=1e-12)


def test_the_errors_are_worked_out_by_hand():
    """(1, 0, 1, 0) is aligned with (4, 1, 3, 2): scale 2, shift 1.5."""
    depth, values = np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    found = errors(values, depth, is_inverse=False)
    assert found.abs_rel == pytest.approx((0.5 / 4 + 0.5 / 1 + 0.5 / 3 + 0.5 / 2) / 4)
    assert found.delta1 == 0.5  # 4 / 3.5 and 3.5 / 3
    assert found.rmse == pytest.approx(0.5)


def test_no_depth_is_above_the_largest_of_the_truth():
    """Aligned inverse depth of 0 or less is as far as anything known is."""
    depth = np.array([[1.0] * 8 + [10.0] * 8])
    values = 1 / depth
    values[0, -1] = -0.1
    found = errors(values, depth, is_inverse=True)
    assert found.rmse < 2


@pytest.mark.parametrize(
    ("depth_from", "kind"), [(lambda x: 2 * x, "depth"), (lambda x: 1 / x, "inverse depth")]
)
def test_the_float_model_says_whether_it_is_inverse_depth(depth_from, kind):
    values = np.linspace(1, 2, 48).reshape(6, 8)
    found = against_truth({"a": depth_from(values)}, {"a": values}, {"a": -values})
    assert found["aligned_with"] == kind
    assert found["before"]["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_maps_are_resized_to_the_truth():
    ramp = np.tile(np.linspace(1, 2, 8), (6, 1))
    large = np.tile(np.linspace(1, 2, 32), (24, 1))
    found = against_truth({"a": large}, {"a": ramp}, {"a": ramp[:, ::-1]})
    assert found["before"]["abs_rel"] < 0.02
    assert found["after"]["abs_rel"] == pytest.approx(found["before"]["abs_rel"], rel=1e-3)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "one.jpg"
    Image.new("RGB", (16, 24)).save(path)
    return path


def test_a_png_of_16_bits_is_depth_and_0_is_unknown(photo):
    values = np.arange(24 * 16, dtype=np.uint16).reshape(24, 16)
    Image.fromarray(values).save(photo.with_suffix(".png"))
    depth = truth_beside(photo)
    assert np.isnan(depth[0, 0])
    assert depth[3, 4] == 3 * 16 + 4


def test_a_photo_is_no_depth(photo):
    Image.new("RGB", (16, 24)).save(photo.with_suffix(".png"))
    assert truth_beside(photo) is None
    assert truth_beside(photo.with_suffix(".png")) is None


BAD = {
    "other proportions": (np.ones((16, 24)), "depth of 16×24 is not of one.jpg, 24×16"),
    "three axes": (np.ones((24, 16, 3)), "depth is H×W, and this is 24×16×3"),
    "nothing known": (np.zeros((24, 16)), "no depth in it: 0 values are finite"),
    "no numbers": (np.full((24, 16), "far"), "can't be read as depth"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_depth_of_the_photo_is_refused(photo, case):
    values, reason = BAD[case]
    np.save(photo.with_suffix(".npy"), values)
    with pytest.raises(UserError, match=reason):
        truth_beside(photo)


@pytest.fixture(scope="module")
def source(model_of, tmp_path_factory):
    return approximated.write(model_of(approximated.TEXT, 17), tmp_path_factory.mktemp("truth"))


@pytest.fixture
def photos(tmp_path, source):
    """Four photos; the truth beside the last is what the float model makes, in centimetres."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        pixels = natural_image((1, 3, 24, 16), seed)[0].transpose(1, 2, 0).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{seed}.jpg")
    depth = 1000 * depth_of(source, folder / "3.jpg")
    Image.fromarray(depth.astype(np.uint16)).save(folder / "3.png")
    return folder


def test_a_build_says_how_far_both_models_are_from_the_truth(source, photos, tmp_path):
    assert [path.name for path in Images(photos).photos()] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    (*_, stage) = build(source, "quantize:activations=8", tmp_path / "b", images=photos)
    truth = stage.report.loss["truth"]
    assert [image["image"] for image in truth["images"]] == ["3.jpg"]
    assert truth["aligned_with"] == "depth"
    assert truth["before"]["abs_rel"] < 1e-4 < truth["after"]["abs_rel"] < 0.01
    assert stage.report.notes[1].startswith("quantize against ground truth (1 image, depth aligned")


def test_the_command_prints_it(source, photos, tmp_path):
    arguments = ["build", str(source), "--passes", "quantize", "--images", str(photos)]
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    assert "02_quantize: ground truth (depth aligned), before → after" in printed
    record = json.loads((tmp_path / "b" / "build.json").read_text())
    assert record["stages"][2]["loss"]["truth"]["after"]["delta1"] == 1


def test_depth_for_a_model_without_a_map_is_refused(model_of, photos, tmp_path):
    text = "g (float[1,3,24,16] x) => (float[1,3,24,16] y) { y = Relu(x) }"
    path = approximated.write(model_of(text, 17), tmp_path)
    with pytest.raises(
        UserError, match="depth beside the photos, and the model makes no depth map"
    ):
        build(path, "quantize", tmp_path / "b", images=photos)
