"""Ground truth: depth maps beside the photos that judge, and how far models are from them.

The truth beside `photo.jpg` is `photo.npy`, or a `photo.png` of 16 bits: depth H×W in any unit,
with 0, NaN or an infinity where it is not known.

Relative depth is known up to a scale and a shift, and most models make its inverse. So as in
Ranftl, Lasinger, Hafner, Schindler and Koltun (2020), "Towards Robust Monocular Depth Estimation"
(MiDaS), each map is aligned with the truth by least squares, image by image: with the inverse of
depth, which is then turned into depth, none above the largest of the truth. A float model whose
maps rise with depth is aligned with depth itself. Maps are resized to the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from compiler.errors import UserError

# A photo and its depth of other proportions do not show the same.
_MOST_DISTORTION = 0.02

Map = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """AbsRel mean |d − d*| / d*, δ1 the share with max(d/d*, d*/d) < 1.25, RMSE in d*'s unit."""

    abs_rel: float
    delta1: float
    rmse: float


def is_depth(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits: no photo, but depth."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with Image.open(path) as image:
            return image.mode.startswith("I")
    except (OSError, ValueError, SyntaxError):  # whoever reads the photo says what is wrong
        return False


def truth_beside(photo: Path) -> Map | None:
    """The depth H×W beside a photo, nan where it is not known; None if there is none.

    Raises UserError for what is no depth of that photo.
    """
    paths = (photo.with_suffix(".npy"), photo.with_suffix(".png"))
    found = [path for path in paths if path.is_file() and (path.suffix == ".npy" or is_depth(path))]
    if not found:
        return None
    depth = _read(found[0])
    with Image.open(photo) as image:
        width, height = ImageOps.exif_transpose(image).size
    if abs(depth.shape[1] / depth.shape[0] * height / width - 1) > _MOST_DISTORTION:
        size = f"{depth.shape[0]}×{depth.shape[1]}"
        raise UserError(f"{found[0]}: depth of {size} is not of {photo.name}, {height}×{width}")
    return depth


def against_truth(
    truth: Mapping[str, Map], before: Mapping[str, Map], after: Mapping[str, Map]
) -> dict[str, Any]:
    """How far two models' maps are from the truth, by the images' names: for `build.json`."""
    before, after = (
        {name: _resized(maps[name], depth.shape) for name, depth in truth.items()}
        for maps in (before, after)
    )
    is_inverse = sum(_correlation(before[name], depth) for name, depth in truth.items()) < 0
    images = [
        {
            "image": name,
            "before": asdict(errors(before[name], depth, is_inverse=is_inverse)),
            "after": asdict(errors(after[name], depth, is_inverse=is_inverse)),
        }
        for name, depth in truth.items()
    ]
    overall = {
        side: {name: float(np.mean([image[side][name] for image in images]))  # type: ignore[index]
               for name in ("abs_rel", "delta1", "rmse")}
        for side in ("before", "after")
    }  # fmt: skip
    return {"aligned_with": "inverse depth" if is_inverse else "depth", **overall, "images": images}


def text(record: Mapping[str, Any]) -> str:
    """`against ground truth (4 images, inverse depth aligned): AbsRel 5.1 → 5.3 %, …`."""
    before, after = record["before"], record["after"]
    count = len(record["images"])
    return (
        f"against ground truth ({count} image{'s' if count > 1 else ''}, {record['aligned_with']} "
        f"aligned): AbsRel {100 * before['abs_rel']:.3g} → {100 * after['abs_rel']:.3g} %, "
        f"δ1 {100 * before['delta1']:.4g} → {100 * after['delta1']:.4g} %, "
        f"RMSE {before['rmse']:.3g} → {after['rmse']:.3g}"
    )


def errors(values: Map, depth: Map, *, is_inverse: bool) -> Errors:
    """The errors of a map, once it is aligned with the depth H×W, or with its inverse."""
    known = np.isfinite(depth) & np.isfinite(values)
    wanted = depth[known]
    target = 1 / wanted if is_inverse else wanted
    columns = np.stack([values[known], np.ones_like(target)], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(columns, target, rcond=None)
    fitted = np.maximum(scale * values[known] + shift, target.min())
    found = 1 / fitted if is_inverse else fitted
    return Errors(
        float(np.mean(np.abs(found - wanted) / wanted)),
        float(np.mean(np.maximum(found / wanted, wanted / found) < 1.25)),
        float(np.sqrt(np.mean((found - wanted) ** 2))),
    )


def _read(path: Path) -> Map:
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
        depth = np.asarray(values, np.float64)
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise UserError(f"{path}: can't be read as depth: {error}") from error
    depth = depth.reshape([d for d in depth.shape if d != 1])
    if depth.ndim != 2:
        raise UserError(f"{path}: depth is H×W, and this is {'×'.join(map(str, values.shape))}")
    known = np.isfinite(depth) & (depth > 0)
    if known.sum() < 2:
        raise UserError(f"{path}: no depth in it: {known.sum()} values are finite and above 0")
    return np.where(known, depth, np.nan)


def _correlation(values: Map, depth: Map) -> float:
    known = np.isfinite(depth) & np.isfinite(values)
    one, two = (each[known] - each[known].mean() for each in (values, depth))
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norms if norms else 0.0


def _resized(values: Map, shape: tuple[int, ...]) -> Map:
    image = Image.fromarray(values.astype(np.float32))
    resized = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64)
