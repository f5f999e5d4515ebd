"""Depth maps as pictures, in a perceptual colour map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from matplotlib.figure import Figure
from numpy.typing import NDArray

import models
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.region import TensorType
from compiler.rewrite import Signature
from compiler.verify.whole import Float32Model

# Perceptually uniform: equal steps of depth are equal steps to the eye, also in print.
COLOUR_MAP = "inferno"

# The most that one side of a map is of the other; KITTI's pictures are 1242×375.
_LONGEST = 3.5

Map = NDArray[np.float64]
# Runs a model: arrays by the inputs' names to arrays by the outputs' names, the first one first.
Runner = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


def image_size(signature: Signature) -> tuple[str, int, int] | None:
    """(name, height, width) of the one RGB image that a model takes; None if it takes others."""
    if len(signature.inputs) != 1:
        return None
    name, kind = next(iter(signature.inputs.items()))
    match kind.shape:
        case (_, 3, int() as height, int() as width):
            return name, height, width
    return None


def is_map(kind: TensorType) -> bool:
    """Whether an output is one map: H×W, shaped like a picture, with nothing but ones before.

    What is longer (1×1000 classes, 197×768 tokens) is taken for no map.
    """
    shape = kind.shape
    if shape is None or len(shape) < 2 or any(d != 1 for d in shape[:-2]):
        return False
    sides = [d for d in shape[-2:] if isinstance(d, int)]
    return not sides or 0 < max(sides) <= _LONGEST * min(sides)


def depth_of(path: Path, photo: Path, run: Runner | None = None) -> Map:
    """The first output of a model for a photo, H×W. UserError if it isn't an image model.

    `run` computes the outputs from the inputs; onnxruntime does on the CPU if it is None, with
    every result rounded in a model of float16, as its loss is measured.
    """
    graph = Graph.load(path)
    signature = Signature.of(graph)
    size = image_size(signature)
    if size is None or not is_map(next(iter(signature.outputs.values()))):
        shapes = ", ".join(f"{name}: {kind}" for name, kind in signature.inputs.items())
        raise UserError(f"{path}: not a model from one RGB image to one map (it takes {shapes})")
    name, height, width = size
    dtype = onnx.helper.tensor_dtype_to_np_dtype(signature.inputs[name].onnx_type)
    feeds = {name: models.load_image(photo, height, width).astype(dtype)}
    if run is None:
        halves = any(t.dtype == np.float16 for node in graph.nodes for t in node.outputs)
        run = Float32Model(path, optimized=not halves, rounded=halves)
    outputs = run(feeds)
    values = np.asarray(next(iter(outputs.values())), dtype=np.float64)
    return values.reshape(values.shape[-2:])


def write_depth_picture(path: Path, photo: Path, before: Path, after: Path) -> None:
    """The photo, the depth before and after a pipeline, and their difference, in one PNG.

    Beside `depth.png`, `depth_error.png` is the heat map of the error. Models that don't turn one
    RGB image into one map get no pictures.
    """
    signatures = [Signature.of(Graph.load(model)) for model in (before, after)]
    if not all(image_size(s) and is_map(next(iter(s.outputs.values()))) for s in signatures):
        return
    old, new = depth_of(before, photo), depth_of(after, photo)
    write_comparison(path, photo, old, new)
    write_error_map(path.with_name(f"{path.stem}_error.png"), old, new)


def write_comparison(
    path: Path, photo: Path, old: Map, new: Map, names: tuple[str, str] = ("before", "after")
) -> None:
    """The photo, two depth maps H×W of it (perhaps of two sizes), and their difference, as PNG.

    The first map is resized to the second's size; both share one scale of colours.
    """
    resized = _resized(old, new.shape)
    image = models.load_image(photo, *new.shape)[0].transpose(1, 2, 0) / 255
    aspect = new.shape[0] / new.shape[1]
    figure = Figure(figsize=(16, 3.5 * aspect + 0.5), layout="constrained")
    axes = figure.subplots(1, 4)
    limits = {"vmin": min(resized.min(), new.min()), "vmax": max(resized.max(), new.max())}
    _draw(figure, axes[0], image, "image", None)
    _draw(figure, axes[1], resized, f"depth {names[0]} ({_size(old)})", limits)
    _draw(figure, axes[2], new, f"depth {names[1]} ({_size(new)})", limits)
    spread = max(float(np.abs(new - resized).max()), 1e-12)
    share = 100 * spread / max(float(np.ptp(resized)), 1e-12)
    title = f"{names[1]} − {names[0]}, at most {share:.2g} % of range"
    _draw(figure, axes[3], new - resized, title, {"vmin": -spread, "vmax": spread}, "RdBu_r")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def write_error_map(path: Path, old: Map, new: Map) -> None:
    """Where and how far two depth maps H×W differ, in percent of the first one's range, as PNG.

    The first map is resized to the second's size.
    """
    resized = _resized(old, new.shape)
    percent = 100 * np.abs(new - resized) / max(float(np.ptp(resized)), 1e-12)
    figure = Figure(figsize=(8, 7.2 * new.shape[0] / new.shape[1]), layout="constrained")
    title = f"|after − before|, % of range: mean {percent.mean():.2g}, at most {percent.max():.2g}"
    most = max(float(percent.max()), 2e-5)  # what float32 rounds is no error to be seen
    _draw(figure, figure.subplots(), percent, title, {"vmin": 0, "vmax": most})
    figure.savefig(path, dpi=100, metadata={"Software": None})


def write_depth(path: Path, depth: Map) -> None:
    """A depth map alone, a pixel a value, in the colour map."""
    import matplotlib.image

    matplotlib.image.imsave(path, depth, cmap=COLOUR_MAP, metadata={"Software": ""})


def _draw(
    figure: Figure, axis: Any, values: Map, title: str, limits: dict[str, float] | None,
    colours: str = COLOUR_MAP,
) -> None:  # fmt: skip
    picture = axis.imshow(values, cmap=colours, **(limits or {}))
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()
    if limits:
        figure.colorbar(picture, ax=axis, fraction=0.046, pad=0.02)


def _resized(depth: Map, shape: Sequence[int]) -> Map:
    from PIL import Image

    image = Image.fromarray(depth.astype(np.float32))
    resized = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64)


def _size(depth: Map) -> str:
    return f"{depth.shape[0]}×{depth.shape[1]}"
