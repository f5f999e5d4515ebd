"""The heat map of an error: where it is, and how far, in percent of the range."""

import matplotlib.image
import numpy as np
import pytest

from compiler.pictures import write_error_map

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
