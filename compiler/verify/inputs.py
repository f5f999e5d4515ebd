"""Inputs that make differences visible: random tensors for cuts, and a battery of images.

Everything is drawn from a seeded generator, so a failure can be replayed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DENORMAL = np.float32(1e-40)  # the least normal number is 1.2e-38
# Rows are what a channel takes from three independent images: the channels of a photograph are
# alike (correlations of 0.5 to 0.9) but not equal, so that swapped channels show.
CHANNEL_MIX = np.array([[0.9, 0.4, 0.1], [0.9, -0.1, 0.4], [0.9, -0.4, -0.2]])


def cut_input(
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    rng: np.random.Generator,
    valid_range: tuple[int, int] = (0, 8),
) -> Array:
    """A random tensor for a cut: nothing in it is zero, repeated, symmetric or of low rank.

    Floats are standard normal, drawn in float64 and rounded to `dtype`; booleans are fair coins;
    integers are uniform in `valid_range` (low, high), high excluded: the size of the axis that
    indices point into, for instance.
    """
    wanted = np.dtype(dtype)
    if wanted.kind == "b":
        return rng.integers(0, 2, tuple(shape)).astype(wanted)
    if wanted.kind in "iu":
        return rng.integers(*valid_range, tuple(shape), dtype=np.int64).astype(wanted)
    return np.asarray(rng.standard_normal(tuple(shape))).astype(wanted)


def natural_image(shape: Sequence[int], seed: int) -> Array:
    """An image (N, C, H, W) with the 1/f amplitude spectrum of photographs, whole numbers in
    [0, 255] as float32. Its mean is 128 and its standard deviation 48, as far as clipping allows.
    """
    rng = np.random.default_rng(seed)
    batch, channels, height, width = shape
    images = [[_pink(height, width, rng) for _ in range(3)] for _ in range(batch)]
    rows = CHANNEL_MIX[np.arange(channels) % 3]
    mixed = np.einsum("ck,nkhw->nchw", rows, np.reshape(images, (batch, 3, height, width)))
    mixed += 0.1 * rng.standard_normal((1, channels, 1, 1))  # a cast of colour
    return np.asarray(np.clip(np.rint(128 + 48 * mixed), 0, 255), np.float32)


def _pink(height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise (height, width) whose amplitudes fall as 1 / frequency; mean 0, deviation 1.

    The frequencies are those of a larger image, of which this is a corner: its edges do not meet.
    """
    tall, wide = height + height // 2 + 8, width + width // 2 + 8
    down, across = np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide)
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((tall, wide))) / frequency
    image = np.fft.irfft2(spectrum, (tall, wide))[:height, :width]
    centred = image - image.mean()
    return np.asarray(centred / max(centred.std(), 1e-12))


def image_inputs(shape: Sequence[int], seed: int) -> dict[str, Array]:
    """Named float32 images (1, 3, H, W): a natural one, and what breaks kernels.

    Values are in [0, 255], except for `denormals`, `large` (1e4) and `nan`.
    """
    rng = np.random.default_rng(seed)
    shape = tuple(shape)
    height, width = shape[-2:]
    rows, columns = np.indices((height, width))
    natural = natural_image(shape, seed)
    impulse, nan = np.zeros(shape), natural.copy()
    spot = (..., height // 3, 2 * width // 3)  # off the centre and off the diagonal
    impulse[spot], nan[spot] = 255, np.nan
    images = {
        "natural": natural,
        "noise": rng.integers(0, 256, shape),
        "impulse": impulse,
        "checkerboard": np.broadcast_to(255 * ((rows + columns) % 2), shape),
        "constant_0": np.zeros(shape),
        "constant_128": np.full(shape, 128),
        "constant_255": np.full(shape, 255),
        "denormals": DENORMAL * rng.integers(1, 100, shape),
        "large": np.full(shape, 1e4) * rng.uniform(0.5, 1.0, shape),
        "nan": nan,
    }
    return {name: np.ascontiguousarray(image, np.float32) for name, image in images.items()}
