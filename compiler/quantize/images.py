"""The images that a model is calibrated with, and others that it is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import models
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.pictures import image_size
from compiler.quantize.evidence import Feeds
from compiler.quantize.truth import Map, is_depth, truth_beside
from compiler.rewrite import Pass, Signature
from compiler.verify.inputs import natural_image

CALIBRATED, JUDGED = 8, 4
"""How many images of each kind are generated; the last one judged is a photograph."""
MOST_CALIBRATED, MOST_JUDGED = 64, 16
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_SEED = {"calibration": 1000, "judging": 2000}


def approximates(passes: Sequence[Pass]) -> bool:
    """Whether any of the passes is calibrated with images, and judged by them."""
    return any(pass_.contract == "approximate" for pass_ in passes)


@dataclass(frozen=True)
class Images:
    """A folder of photos, or None for generated images of the same spectrum.

    Of a folder every other photo is for calibration, in the order of names, and the rest judges.
    Depth maps beside them are ground truth (`compiler.quantize.truth`).
    """

    folder: Path | None = None

    def calibration(self, graph: Graph) -> Mapping[str, Feeds]:
        """Inputs of a model by the images' names. UserError if it doesn't take one image."""
        return self._feeds(graph, "calibration")

    def judging(self, graph: Graph) -> Mapping[str, Feeds]:
        """The same, of images that the model is not calibrated with."""
        return self._feeds(graph, "judging")

    def truth(self) -> dict[str, Map]:
        """The depth H×W beside the photos that judge, by their names, where there is any."""
        if self.folder is None:
            return {}
        found = {photo.name: truth_beside(photo) for photo in self._mine("judging")}
        return {name: depth for name, depth in found.items() if depth is not None}

    def photos(self) -> list[Path]:
        """The folder's photos. UserError if there are fewer than two."""
        assert self.folder is not None
        if not self.folder.is_dir():
            raise UserError(f"--images {self.folder}: no such folder")
        files = sorted(p for p in self.folder.iterdir() if p.suffix.lower() in _SUFFIXES)
        found = [path for path in files if not is_depth(path)]
        if len(found) < 2:
            raise UserError(
                f"--images {self.folder}: {len(found) or 'no'} photo{'' if found else 's'} "
                f"({', '.join(sorted(_SUFFIXES))}): two at least, one to calibrate with and "
                "another to judge by"
            )
        return found

    def _mine(self, purpose: str) -> list[Path]:
        if purpose == "calibration":
            return self.photos()[::2][:MOST_CALIBRATED]
        return self.photos()[1::2][:MOST_JUDGED]

    def _feeds(self, graph: Graph, purpose: str) -> dict[str, Feeds]:
        name, shape, dtype = _image_input(graph)
        height, width = shape[2:]
        if self.folder is not None:
            return {p.name: {name: models.load_image(p, height, width).astype(dtype)}
                    for p in self._mine(purpose)}  # fmt: skip
        count = CALIBRATED if purpose == "calibration" else JUDGED - 1
        seeds = range(_SEED[purpose], _SEED[purpose] + count)
        feeds = {f"generated {seed}": natural_image(shape, seed).astype(dtype) for seed in seeds}
        if purpose == "judging":
            photo = models.sample_image()
            feeds[photo.name] = models.load_image(photo, height, width).astype(dtype)
        return {label: {name: image} for label, image in feeds.items()}


def _image_input(graph: Graph) -> tuple[str, tuple[int, int, int, int], np.dtype[np.generic]]:
    """Name, shape and type of the one image that a model takes. Raises UserError."""
    signature = Signature.of(graph)
    size = image_size(signature)
    takes = ", ".join(f"{name}: {kind}" for name, kind in signature.inputs.items())
    if size is None:
        raise UserError(
            "approximate passes are calibrated and judged with images: this model takes no single "
            f"RGB image of a known size ({takes})"
        )
    name, height, width = size
    batch = signature.inputs[name].shape
    assert batch is not None
    if batch[0] not in (1, None) and isinstance(batch[0], int):
        raise UserError(f"approximate passes take models of one image, not of {batch[0]} ({takes})")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(signature.inputs[name].onnx_type)
    return name, (1, 3, height, width), dtype
