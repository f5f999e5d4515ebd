"""The official position interpolation against a float64 statement of its formula in NumPy."""

import numpy as np
import pytest
import torch

from models.positions import interpolate_positions


def cubic_matrix(inputs: int, outputs: int, step: float) -> np.ndarray:
    """Keys' cubic convolution (a = -0.75), half-pixel centres, edge samples repeated."""
    matrix = np.zeros((outputs, inputs))
    for row in range(outputs):
        centre = (row + 0.5) * step - 0.5
        first = int(np.floor(centre))
        for tap in range(first - 1, first + 3):
            t = abs(centre - tap)
            if t <= 1:
                weight = 1.25 * t**3 - 2.25 * t**2 + 1
            else:
                weight = -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3
            matrix[row, min(max(tap, 0), inputs - 1)] += weight
    return matrix


def official_formula(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    grid = table[0, 1:].reshape(37, 37, -1)
    down = cubic_matrix(37, rows, 37 / (rows + 0.1))
    across = cubic_matrix(37, columns, 37 / (columns + 0.1))
    resampled = np.einsum("ri,cj,ijk->rck", down, across, grid)
    return np.concatenate([table[0, :1], resampled.reshape(rows * columns, -1)])[None]


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(1, 1370, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("height", "width"),
    [(252, 252), (350, 350), (392, 518), (518, 392), (700, 700), (14, 28)],
    ids=str,
)
def test_equals_the_formula(table, height, width):
    rows, columns = height // 14, width // 14
    ours = interpolate_positions(table, rows, columns).numpy()
    expected = official_formula(table.double().numpy(), rows, columns)
    assert ours.dtype == np.float32
    # Half a unit in the last place of values below 8.
    assert np.abs(ours - expected).max() <= 2**-22


def test_518_keeps_the_table(table):
    assert torch.equal(interpolate_positions(table, 37, 37), table)


def test_passing_the_size_instead_would_be_seen(table):
    grid = table[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    by_size = torch.nn.functional.interpolate(grid, size=(25, 25), mode="bicubic")
    by_size = by_size.permute(0, 2, 3, 1).reshape(1, 625, 8)
    ours = interpolate_positions(table, 25, 25)[:, 1:]
    assert (ours - by_size).abs().max() > 1e-2
