"""Resize and Upsample, as one interpolation after another along each axis.

Source: the text of the Resize schema, opsets 10 to 19. Where it leaves a choice: align_corners and
tf_crop_and_resize take the integer length of the result, as onnxruntime does (`onnx.reference`
takes scale * length); sizes from scales are computed in float32, as shape inference does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compiler.verify.kernels.call import Array, Call, Kernel, fresh, optional, required, tensor

Vector = npt.NDArray[np.float64]
CHUNK_NBYTES = 4 << 20  # the terms of a sum are added while they are in the cache


@dataclass(frozen=True)
class Axis:
    """How one axis is resized: lengths in elements, the scale of coordinates, roi in [0, 1]."""

    index: int
    length: int
    resized: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    def coordinates(self, mode: str) -> Vector:
        """Where each element of the result lies in the source, in elements."""
        return COORDINATES[mode](np.arange(self.resized, dtype=np.float64), self)


def _half_pixel(x: Vector, axis: Axis) -> Vector:
    return (x + 0.5) / axis.scale - 0.5


def _half_pixel_symmetric(x: Vector, axis: Axis) -> Vector:
    adjustment = axis.resized / (axis.scale * axis.length)
    return axis.length / 2 * (1 - adjustment) + _half_pixel(x, axis)


def _pytorch_half_pixel(x: Vector, axis: Axis) -> Vector:
    return _half_pixel(x, axis) if axis.resized > 1 else np.zeros_like(x)


def _align_corners(x: Vector, axis: Axis) -> Vector:
    return x * (axis.length - 1) / max(axis.resized - 1, 1)


def _tf_crop_and_resize(x: Vector, axis: Axis) -> Vector:
    last = axis.length - 1
    if axis.resized == 1:
        return np.full_like(x, 0.5 * (axis.start + axis.end) * last)
    return axis.start * last + x * (axis.end - axis.start) * last / (axis.resized - 1)


Coordinates = Callable[[Vector, Axis], Vector]
COORDINATES: dict[str, Coordinates] = {
    "align_corners": _align_corners,
    "asymmetric": lambda x, axis: x / axis.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "tf_crop_and_resize": _tf_crop_and_resize,
}

NEAREST: dict[str, Callable[[Vector], Vector]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}


def _triangle(distance: Vector) -> Vector:
    return np.asarray(np.maximum(1 - np.abs(distance), 0))


def _cubic(distance: Vector, a: float) -> Vector:
    """Keys' kernel, equation (4) of https://ieeexplore.ieee.org/document/1163711."""
    t = np.abs(distance)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = np.where(t < 2, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a, 0.0)
    return np.asarray(np.where(t <= 1, near, far))


def _taps(axis: Axis, given: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], Vector]:
    """Source indices and weights, both (taps, resized), of a linear or cubic interpolation."""
    x = axis.coordinates(given["coordinate_transformation_mode"])
    stretch = max(1.0, 1 / axis.scale) if given["antialias"] else 1.0
    reach = math.ceil((1 if given["mode"] == "linear" else 2) * stretch)
    index = np.floor(x).astype(np.int64) + np.arange(1 - reach, 1 + reach)[:, None]
    distance = (index - x) / stretch
    linear = given["mode"] == "linear"
    weight = _triangle(distance) if linear else _cubic(distance, given["cubic_coeff_a"])
    if given["exclude_outside"]:
        weight = np.where((index >= 0) & (index < axis.length), weight, 0.0)
    if given["exclude_outside"] or stretch > 1:
        total = weight.sum(0)
        weight /= np.where(total == 0, 1.0, total)  # 0 only where the crop is extrapolated
    return np.clip(index, 0, axis.length - 1), weight


def _nearest_index(axis: Axis, given: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    x = axis.coordinates(given["coordinate_transformation_mode"])
    nearest = NEAREST[given["nearest_mode"]](x)
    return np.clip(nearest, 0, axis.length - 1).astype(np.int64)


def _interpolate(x: torch.Tensor, axis: Axis, given: Mapping[str, Any]) -> torch.Tensor:
    """`x` resized along one axis."""
    if given["mode"] == "nearest":
        return x.index_select(axis.index, torch.from_numpy(_nearest_index(axis, given)))
    index, weight = (torch.from_numpy(part) for part in _taps(axis, given))
    outer, inner = x.shape[: axis.index].numel(), x.shape[axis.index + 1 :].numel()
    source = x.reshape(outer, axis.length, inner)
    out = fresh((outer, axis.resized, inner))
    step = max(1, CHUNK_NBYTES // max(1, axis.resized * inner * 8))
    for first in range(0, outer, step):
        _weighted_sum(source[first : first + step], index, weight, out[first : first + step])
    return out.reshape(*x.shape[: axis.index], axis.resized, *x.shape[axis.index + 1 :])


def _weighted_sum(
    x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, out: torch.Tensor
) -> None:
    """out[:, i] = sum over taps t of weight[t, i] * x[:, index[t, i]]."""
    torch.mul(x.index_select(1, index[0]), weight[0][:, None], out=out)
    for source, gain in zip(index[1:], weight[1:], strict=True):
        out.addcmul_(x.index_select(1, source), gain[:, None])


def _axes(call: Call, x: Array, inputs: list[Array | None]) -> list[Axis]:
    """The axes that `roi`, `scales` or `sizes` speak of."""
    roi, scales, sizes = (v if v is not None and v.size else None for v in inputs)
    indices = [a % x.ndim for a in call.attributes.get("axes") or range(x.ndim)]
    lengths = [x.shape[i] for i in indices]
    if scales is None:
        resized, factors = _from_sizes(call, lengths, [int(n) for n in required(sizes)])
    else:
        factors = [float(s) for s in scales]
        resized = [
            int(np.float32(n) * np.float32(s)) for n, s in zip(lengths, factors, strict=True)
        ]
    cropping = call.attributes["coordinate_transformation_mode"] == "tf_crop_and_resize"
    bounds = [0.0] * len(indices) + [1.0] * len(indices)
    if cropping:
        bounds = [float(v) for v in required(roi)]
    starts, ends = bounds[: len(indices)], bounds[len(indices) :]
    return list(map(Axis, indices, lengths, resized, factors, starts, ends))


def _from_sizes(
    call: Call, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[Sequence[int], list[float]]:
    factors = [n / length for n, length in zip(sizes, lengths, strict=True)]
    policy = call.attributes["keep_aspect_ratio_policy"]
    if policy == "stretch":
        return sizes, factors
    scale = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(scale * n + 0.5) for n in lengths], [scale] * len(factors)


DEFAULTS = {  # attributes that an older version of the schema does not have
    "antialias": 0,
    "coordinate_transformation_mode": "asymmetric",
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "keep_aspect_ratio_policy": "stretch",
    "nearest_mode": "floor",
}


def _resize(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, *rest = optional(inputs, 4)
    if call.version < 11:  # X, scales
        rest = [None, rest[0], None]
    call = Call(call.op, call.version, {**DEFAULTS, **call.attributes}, call.outputs)
    source = required(x)
    axes = _axes(call, source, rest)
    _check(call, axes)
    result = tensor(source)
    for axis in axes:
        if not _is_identity(axis, call):
            result = _interpolate(result, axis, call.attributes)
    return [_extrapolated(result, axes, call.attributes).numpy()]


def _upsample(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    if call.version < 9:
        raise call.refuse("only the version of opset 9 is implemented")
    return _resize(call, inputs)


def _check(call: Call, axes: Sequence[Axis]) -> None:
    mode, coordinates = (call.attributes[k] for k in ("mode", "coordinate_transformation_mode"))
    if mode not in ("nearest", "linear", "cubic"):
        raise call.refuse(f"mode={mode}")
    if coordinates not in COORDINATES:  # tf_half_pixel_for_nn, in opsets 11 and 12
        raise call.refuse(f"coordinate_transformation_mode={coordinates}")
    if mode == "nearest" and call.attributes["antialias"]:
        raise call.refuse("antialias is not defined for mode=nearest")
    if mode == "nearest" and call.version < 11 and any(axis.scale < 1 for axis in axes):
        raise call.refuse(
            f"nearest downsampling in version {call.version} leaves the rounding open"
        )


def _is_identity(axis: Axis, call: Call) -> bool:
    cropping = call.attributes["coordinate_transformation_mode"] == "tf_crop_and_resize"
    return axis.scale == 1 and not (cropping and (axis.start, axis.end) != (0.0, 1.0))


def _extrapolated(x: torch.Tensor, axes: Sequence[Axis], given: Mapping[str, Any]) -> torch.Tensor:
    """`x` with the extrapolation value wherever a coordinate of the crop lies outside."""
    if given["coordinate_transformation_mode"] != "tf_crop_and_resize":
        return x
    result = x.clone()
    for axis in axes:
        place = axis.coordinates("tf_crop_and_resize")
        outside = np.flatnonzero((place < 0) | (place > axis.length - 1))
        result.index_fill_(axis.index, torch.from_numpy(outside), given["extrapolation_value"])
    return result


KERNELS: dict[str, Kernel] = {"Resize": _resize, "Upsample": _upsample}
