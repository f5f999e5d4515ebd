import numpy as np
import pytest

from compiler.verify.inputs import cut_input, image_inputs, natural_image

SHAPE = (1, 3, 70, 98)


def test_the_seed_decides_everything():
    first, again, other = (image_inputs(SHAPE, seed) for seed in (5, 5, 6))
    for name, image in first.items():
        np.testing.assert_array_equal(image, again[name])
    assert not np.array_equal(first["natural"], other["natural"])
    a, b = (cut_input((3, 4), np.float32, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_float_cut_is_standard_normal_and_of_full_rank(dtype):
    x = cut_input((60, 50), dtype, np.random.default_rng(0))
    assert x.dtype == dtype
    assert np.linalg.matrix_rank(x.astype(np.float64)) == 50
    assert abs(x.mean(dtype=np.float64)) < 0.1
    assert x.std(dtype=np.float64) == pytest.approx(1, abs=0.1)


def test_a_float64_cut_uses_all_of_float64():
    x = cut_input((100,), np.float64, np.random.default_rng(0))
    assert np.count_nonzero(x != x.astype(np.float32)) > 90


def test_integer_and_boolean_cuts():
    rng = np.random.default_rng(0)
    x = cut_input((1000,), np.int64, rng, valid_range=(2, 9))
    assert x.dtype == np.int64
    assert set(x) == set(range(2, 9))
    assert set(cut_input((100,), np.uint8, rng)) == set(range(8))
    flags = cut_input((1000,), np.bool_, rng)
    assert flags.dtype == np.bool_
    assert 400 < flags.sum() < 600


def test_a_scalar_cut_is_an_array():
    x = cut_input((), np.float32, np.random.default_rng(0))
    assert (x.shape, x.dtype) == ((), np.float32)


def test_a_natural_image_has_the_spectrum_of_photographs():
    image = natural_image((1, 3, 512, 512), 0)[0].mean(0)
    window = np.hanning(512)[:, None] * np.hanning(512)
    power = np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    band = (frequency > 0.02) & (frequency < 0.25)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.3)  # power is the square of the amplitude


def test_a_natural_image_is_whole_numbers_that_fill_the_range():
    image = natural_image(SHAPE, 0)
    assert image.dtype == np.float32
    assert image.shape == SHAPE
    np.testing.assert_array_equal(image, image.astype(np.uint8))
    assert np.mean((image > 0) & (image < 255)) > 0.95
    assert image.std() == pytest.approx(48, abs=8)


@pytest.mark.parametrize("seed", range(5))
def test_the_channels_are_alike_but_not_equal(seed):
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        image = natural_image((1, 3, 96, 96), seed)[0]
        correlation = np.corrcoef(image[a].ravel(), image[b].ravel())[0, 1]
        assert 0.3 < correlation < 0.98


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[..., ::-1],
        lambda x: x[..., ::-1, :],
        lambda x: x[:, ::-1],
        lambda x: np.roll(x, 1, -1),
        lambda x: x.swapaxes(2, 3),
    ],
    ids=["mirrored", "upside_down", "bgr", "shifted", "transposed"],
)
def test_no_symmetry_hides_a_fault(seed, change):
    image = natural_image((1, 3, 96, 96), seed)
    assert np.abs(change(image) - image).mean() > 1


def test_the_battery():
    images = image_inputs(SHAPE, 0)
    assert {image.shape for image in images.values()} == {SHAPE}
    assert {image.dtype for image in images.values()} == {np.dtype(np.float32)}
    for name, image in images.items():
        if name not in ("large", "nan", "denormals"):
            np.testing.assert_array_equal(image, image.astype(np.uint8), err_msg=name)
    assert [np.unique(images[f"constant_{v}"]).tolist() for v in (0, 128, 255)] == [
        [0],
        [128],
        [255],
    ]
    assert np.count_nonzero(images["impulse"]) == 3
    assert np.isnan(images["nan"]).sum() == 3
    board = images["checkerboard"]
    assert (board[..., 1:] != board[..., :-1]).all()
    assert (board[..., 1:, :] != board[..., :-1, :]).all()
    assert 5e3 <= images["large"].min() <= images["large"].max() <= 1e4


def test_denormals_are_denormal_and_not_zero():
    image = image_inputs(SHAPE, 0)["denormals"]
    assert 0 < image.min() <= image.max() < np.finfo(np.float32).tiny


def test_the_impulse_is_off_the_centre_and_off_the_mirror():
    image = image_inputs(SHAPE, 0)["impulse"]
    assert not np.array_equal(image, image[..., ::-1])
    assert not np.array_equal(image, image[..., ::-1, :])
