"""What an approximation costs, in the measures of depth estimation.

AbsRel, δ1 and RMSE are those of Eigen, Puhrsch and Fergus (2014), "Depth Map Prediction from a
Single Image using a Multi-Scale Deep Network", which everyone in the field reports, Depth Anything
too. The reference d* is the float model's own map, taken as it is: nothing is aligned. Relative
depth may be 0, where a ratio means nothing: below FLOOR of the reference map's range both maps
count as that much in ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.pictures import is_map
from compiler.quantize.evidence import Feeds
from compiler.region import TensorType
from compiler.verify.measure import compare

FLOOR = 0.05
DELTA = 1.25

Runner = Callable[[Feeds], Mapping[str, NDArray[Any]]]
"""Runs a model: arrays by the outputs' names from arrays by the inputs' names."""

Judged = Mapping[str, tuple[Feeds, Mapping[str, NDArray[Any]]]]
"""By the images' names: inputs of a model, and the outputs that are expected of them."""


@dataclass(frozen=True)
class ImageLoss:
    """The loss on one image. `snr_db` is over all outputs; the rest is the first one's map's.

    `abs_rel` is mean |d − d*| / d*, `delta1` the share of pixels with max(d/d*, d*/d) < 1.25,
    `rmse` √(mean (d − d*)²) in the map's own unit. Where the model makes no map they are nan.
    """

    image: str
    snr_db: float
    abs_rel: float = math.nan
    delta1: float = math.nan
    rmse: float = math.nan


@dataclass(frozen=True)
class Loss:
    """The loss over images: means, of the SNR the least."""

    images: tuple[ImageLoss, ...]

    @property
    def is_map(self) -> bool:
        """Whether the model makes a map, so that the measures of depth mean something."""
        return not math.isnan(self.images[0].abs_rel)

    @property
    def measure(self) -> str:
        """What `value` is."""
        return "AbsRel" if self.is_map else "relative error"

    @property
    def value(self) -> float:
        """The number that `max_loss` bounds: AbsRel, or |d| / |values − mean| without a map."""
        if self.is_map:
            return self.mean("abs_rel")
        return max(10 ** (-one.snr_db / 20) for one in self.images)

    def mean(self, name: str) -> float:
        """The mean of a measure over the images."""
        return float(np.mean([getattr(one, name) for one in self.images]))

    def record(self) -> dict[str, Any]:
        """For `build.json`."""
        overall = {name: self.mean(name) for name in ("abs_rel", "delta1", "rmse")}
        return {
            "measure": self.measure, "value": self.value, **overall,
            "snr_db": min(one.snr_db for one in self.images),
            "images": [asdict(one) for one in self.images],
        }  # fmt: skip

    def text(self) -> str:
        """`AbsRel 0.34 %, δ1 100 %, RMSE 0.0056, SNR 32.1 dB or more, 4 images`."""
        count = f"{len(self.images)} image{'s' if len(self.images) > 1 else ''}"
        snr = f"SNR {min(one.snr_db for one in self.images):.1f} dB or more, {count}"
        if not self.is_map:
            return f"{self.measure} {100 * self.value:.2g} %, {snr}"
        return (
            f"AbsRel {100 * self.mean('abs_rel'):.2g} %, δ1 {100 * self.mean('delta1'):.4g} %, "
            f"RMSE {self.mean('rmse'):.2g}, {snr}"
        )


def depth_loss(
    reference: Path, candidate: Path, images: Mapping[str, Feeds], *, runner: Runner | None = None
) -> Loss:
    """What `candidate` loses against `reference`, on `images` by name (inputs of both models).

    `runner` runs the candidate in onnxruntime's place, on the NPU's numerics for instance.
    """
    from compiler.verify.whole import Float32Model

    expected, run = Float32Model(reference), runner or Float32Model(candidate)
    return loss_of(run, {name: (feeds, expected(feeds)) for name, feeds in images.items()})


def loss_of(run: Runner, judged: Judged) -> Loss:
    """The loss of a model against expected outputs, by the images' names."""
    return Loss(
        tuple(image_loss(name, run(feeds), wanted) for name, (feeds, wanted) in judged.items())
    )


def image_loss(
    image: str, actual: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
) -> ImageLoss:
    """The loss on one image, given both models' outputs."""
    error = max(compare(actual[name], expected[name]).centred_l2 for name in expected)
    snr = -20 * math.log10(error) if 0 < error < math.inf else math.copysign(math.inf, 1 - error)
    first = next(iter(expected))
    kind = TensorType(0, tuple(expected[first].shape))
    if not is_map(kind) or expected[first].size < 2:
        return ImageLoss(image, snr)
    return ImageLoss(image, snr, *map_loss(actual[first], expected[first]))


def map_loss(actual: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float, float]:
    """AbsRel, δ1 and RMSE of a map against another one: infinite where that alone is finite.

    Pixels where the other one is not finite have no say; nan if it has none that is.
    """
    d, wanted = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    d, wanted = d[np.isfinite(wanted)], wanted[np.isfinite(wanted)]
    if not wanted.size:
        return math.nan, math.nan, math.nan
    if not np.isfinite(d).all():
        return math.inf, 0.0, math.inf
    floor = max(FLOOR * float(np.ptp(wanted)), float(np.finfo(np.float32).tiny))
    difference = np.abs(d - wanted)
    ratio = np.maximum(d, floor) / np.maximum(wanted, floor)
    near = np.maximum(ratio, 1 / ratio) < DELTA
    return (
        float(np.mean(difference / np.maximum(np.abs(wanted), floor))),
        float(np.mean(near)),
        float(np.sqrt(np.mean(difference**2))),
    )


def worst_image(loss: Loss) -> str:
    """The image that a model loses most on."""
    return min(loss.images, key=lambda one: one.snr_db).image
