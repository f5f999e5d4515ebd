"""The measures of depth, against numbers that are worked out by hand."""

import math

import numpy as np
import pytest

from compiler.quantize.loss import image_loss, loss_of, map_loss

EXPECTED = np.array([[1.0, 2.0], [4.0, 5.0]])


def test_the_measures_of_a_map():
    actual = EXPECTED + np.array([[0.1, 0.0], [0.0, -1.0]])
    abs_rel, delta1, rmse = map_loss(actual, EXPECTED)
    assert abs_rel == pytest.approx((0.1 / 1 + 1 / 5) / 4)
    assert delta1 == 0.75  # 5 / 4 is not below 1.25
    assert rmse == pytest.approx(math.sqrt((0.01 + 1) / 4))


def test_equal_maps_lose_nothing():
    assert map_loss(EXPECTED, EXPECTED) == (0, 1, 0)
    assert map_loss(np.zeros((2, 2)), np.zeros((2, 2))) == (0, 1, 0)


def test_ratios_are_of_a_twentieth_of_the_range_at_least():
    expected = np.array([[0.0, 2.0]])
    abs_rel, delta1, _ = map_loss(np.array([[0.01, 2.0]]), expected)
    assert abs_rel == pytest.approx(0.01 / 0.1 / 2)
    assert delta1 == 1
    assert map_loss(np.array([[0.2, 2.0]]), expected)[1] == 0.5


def test_a_map_scaled_by_a_tenth_more():
    abs_rel, delta1, _ = map_loss(1.1 * EXPECTED, EXPECTED)
    assert (abs_rel, delta1) == (pytest.approx(0.1), 1)


def test_the_first_output_is_the_map_and_snr_is_over_all():
    expected = {"depth": EXPECTED[None, None], "logits": np.arange(6.0)}
    loss = image_loss("photo", {**expected, "logits": expected["logits"] + 0.01}, expected)
    assert (loss.abs_rel, loss.delta1, loss.rmse) == (0, 1, 0)
    assert loss.snr_db == pytest.approx(20 * math.log10(np.std(np.arange(6.0)) / 0.01))


def test_without_a_map_the_loss_is_the_error_of_the_worst_image():
    expected = {"logits": np.arange(6.0).reshape(1, 2, 3, 1)}
    losses = {"good": 0.01, "bad": 0.05}
    judged = {name: ({"x": np.array(off)}, expected) for name, off in losses.items()}
    loss = loss_of(lambda feeds: {"logits": expected["logits"] + feeds["x"]}, judged)
    assert not loss.is_map
    assert loss.value == pytest.approx(0.05 / np.std(np.arange(6.0)))
    assert loss.text().startswith("relative error 2.9 %, SNR 30.7 dB or more, 2 images")


def test_the_mean_over_images():
    judged = {str(k): ({"x": np.array(k)}, {"depth": EXPECTED}) for k in (1.0, 1.02, 1.04)}
    loss = loss_of(lambda feeds: {"depth": EXPECTED * feeds["x"]}, judged)
    assert loss.value == pytest.approx(0.02)
    assert loss.record()["images"][2]["abs_rel"] == pytest.approx(0.04)
    assert loss.record()["measure"] == "AbsRel"


@pytest.mark.parametrize("wrong", [np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_what_is_no_number_is_no_small_loss(wrong):
    loss = loss_of(lambda _: {"depth": wrong}, {"photo": ({}, {"depth": EXPECTED})})
    assert loss.value == math.inf
    assert loss.measure == "AbsRel"
    assert loss.record()["snr_db"] == -math.inf


def test_pixels_that_the_reference_does_not_have_do_not_count():
    expected = np.array([[1.0, np.nan], [4.0, 5.0]])
    assert map_loss(expected * 1.1, expected)[0] == pytest.approx(0.1)
