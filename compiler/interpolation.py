"""What a Resize does along an axis, as a matrix: its result is linear in the samples there.

Row i of an axis's matrix holds the weights of all samples in element i of the result. Source: the
text of the Resize schema, opsets 11 to 19. The matrices are dense and in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Node
from compiler.shapes import NoRule, length_of, rank_of

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

FIRST_OPSET = 11  # before it, the schema leaves the coordinates open
DEFAULTS = {
    "antialias": 0,
    "coordinate_transformation_mode": "half_pixel",
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "keep_aspect_ratio_policy": "stretch",
    "mode": "nearest",
    "nearest_mode": "round_prefer_floor",
}


class NotLinear(Exception):  # noqa: N818 - a refusal, not an error
    """Why a Resize has no matrices, naming the value at fault."""


@dataclass(frozen=True)
class Axis:
    """An axis of `length` samples, resized to `resized` by `scale` (their ratio, or nearly)."""

    length: int
    resized: int
    scale: float

    def half_pixel(self, at: Vector) -> Vector:
        """Positions in the source where pixels are squares, and corners are aligned."""
        return (at + 0.5) / self.scale - 0.5

    def half_pixel_symmetric(self, at: Vector) -> Vector:
        """The same, with the part of a pixel that the result lacks shared by both ends."""
        missing = 1 - self.resized / (self.scale * self.length)
        return self.half_pixel(at) + missing * self.length / 2

    def pytorch_half_pixel(self, at: Vector) -> Vector:
        """The same, but a single pixel is the first."""
        return self.half_pixel(at) if self.resized > 1 else 0 * at

    def align_corners(self, at: Vector) -> Vector:
        """From the first to the last sample, evenly."""
        return at * (self.length - 1) / max(self.resized - 1, 1)

    def asymmetric(self, at: Vector) -> Vector:
        """From the first sample on, evenly."""
        return at / self.scale


COORDINATES: dict[str, Callable[[Axis, Vector], Vector]] = {
    "align_corners": Axis.align_corners,
    "asymmetric": Axis.asymmetric,
    "half_pixel": Axis.half_pixel,
    "half_pixel_symmetric": Axis.half_pixel_symmetric,
    "pytorch_half_pixel": Axis.pytorch_half_pixel,
}
ROUNDING: dict[str, Callable[[Vector], Vector]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}


def mode_of(node: Node) -> str:
    """How a Resize interpolates: nearest, linear or cubic."""
    return str(node.attrs.get("mode", DEFAULTS["mode"]))


def matrices_of(graph: Graph, node: Node) -> dict[int, Matrix]:
    """The matrix [resized×length] of every axis that a Resize changes, by axis.

    Raises NotLinear for what is no matrix, or not known well enough to be one.
    """
    given = {**DEFAULTS, **node.attrs}
    if graph.opset < FIRST_OPSET:
        raise NotLinear(f"opset {graph.opset} leaves a Resize's coordinates open (11 does not)")
    coordinates = given["coordinate_transformation_mode"]
    if coordinates not in COORDINATES:
        raise NotLinear(f"coordinate_transformation_mode={coordinates} is not supported")
    if given["mode"] not in ("nearest", "linear", "cubic"):
        raise NotLinear(f"mode={given['mode']} is not supported")
    if given["mode"] == "nearest" and given["antialias"]:
        raise NotLinear("antialias is not defined for mode=nearest")
    try:
        return {axis: _matrix(size, given) for axis, size in _axes(graph, node, given).items()}
    except NoRule as reason:
        raise NotLinear(str(reason)) from None


def _axes(graph: Graph, node: Node, given: Mapping[str, Any]) -> dict[int, Axis]:
    """The axes whose scale is not 1."""
    source, target = node.inputs[0], node.outputs[0]
    rank = rank_of(source)
    indices = [axis % rank for axis in given.get("axes") or range(rank)]
    scales, sizes = _known(graph, node, 2), _known(graph, node, 3)
    if (scales is None) == (sizes is None):
        raise NotLinear("neither its sizes nor its scales are known")
    if scales is None:
        assert sizes is not None
        ratios = [n / length_of(source, a) for n, a in zip(sizes, indices, strict=True)]
        policy = given["keep_aspect_ratio_policy"]
        one = {"not_larger": min(ratios), "not_smaller": max(ratios)}.get(policy)
        scales = ratios if one is None else [one] * len(ratios)
    found = {a: s for a, s in zip(indices, scales, strict=True) if s != 1}
    axes = {a: Axis(length_of(source, a), length_of(target, a), s) for a, s in found.items()}
    for a, axis in axes.items():
        if axis.length == axis.resized:  # ONNX Runtime copies what ONNX would shift a little
            raise NotLinear(
                f"axis {a} keeps its {axis.length} samples at a scale of {axis.scale:g}, where "
                f"runtimes differ"
            )
    return axes


def _known(graph: Graph, node: Node, position: int) -> list[float] | None:
    """The numbers of an optional input that is a constant; None if it is left out or empty."""
    if len(node.inputs) <= position or not node.inputs[position].name:
        return None
    values = graph.exact(node.inputs[position])
    if values is None:
        raise NotLinear(f"{node.inputs[position].name!r} is not constant")
    return [float(value) for value in values.reshape(-1)] or None


def _matrix(axis: Axis, given: Mapping[str, Any]) -> Matrix:
    """The matrix of one axis; samples outside are those at the ends."""
    if not axis.length or not axis.resized:
        raise NotLinear(f"{axis.length} samples become {axis.resized}")
    at = COORDINATES[given["coordinate_transformation_mode"]](axis, np.arange(float(axis.resized)))
    stretch = max(1.0, 1 / axis.scale) if given["antialias"] else 1.0
    if given["mode"] == "nearest":
        places = ROUNDING[given["nearest_mode"]](at)[:, None]
        weights = np.ones_like(places)
    else:
        margin = math.ceil(2 * stretch) + 1
        places = np.arange(-margin, axis.length + margin) + 0 * at[:, None]
        weights = _kernel(np.abs(places - at[:, None]) / stretch, given)
        if given["exclude_outside"]:
            weights *= (places >= 0) & (places < axis.length)
        if given["exclude_outside"] or stretch > 1:
            weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((axis.resized, axis.length))
    columns = np.clip(places, 0, axis.length - 1).astype(np.int64)
    np.add.at(matrix, (np.arange(axis.resized)[:, None], columns), weights)
    return matrix


def _kernel(t: Matrix, given: Mapping[str, Any]) -> Matrix:
    """The weight of a sample at a distance: a triangle, or Keys' cubic with the coefficient a."""
    if given["mode"] == "linear":
        return np.asarray(np.maximum(1 - t, 0))
    a = given["cubic_coeff_a"]
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.asarray(np.where(t <= 1, near, np.where(t < 2, far, 0)))
