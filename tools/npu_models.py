"""The ONNX files behind the rows of `python -m tools.npu` that no name of ours stands for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Models whose graph is that of Depth Anything V2's own code (tests/models/official.py), by encoder.
OFFICIAL = {"official-small": "vits", "official-base": "vitb", "official-large": "vitl"}
FILE = "model.onnx"


def file_of(model: str, size: int) -> str:
    """Where a model is written, relative to the output folder."""
    return f"models/{model}-{size}/{FILE}"


def write(folder: Path, model: str, size: int, configs: Mapping[str, Any]) -> None:
    """Exports a model of random weights into the output folder, unless it is there.

    `configs` are configurations of transformers by the names of models; what they leave out is the
    real model's, and weights are random everywhere.
    """
    path = folder / file_of(model, size)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if model in OFFICIAL:
        code = importlib.import_module("tests.models.official")  # tests are not type-checked
        network = code.official_model(OFFICIAL[model])
        written = path.with_name("source.onnx")
        code.export_official(network, written, size, size, "torchscript", 17)
    else:
        written = _write_transformers(path.parent, size, configs[model])
    written.rename(path)


def _write_transformers(folder: Path, size: int, config: Mapping[str, Any]) -> Path:
    """As `hf:FOLDER` exports it: RGB in [0, 255] goes in, and is normalized inside."""
    import models
    from models.depth_anything import MEAN, STD

    processor = {"do_rescale": False, "do_normalize": True, "image_mean": list(MEAN),
                 "image_std": list(STD)}  # fmt: skip
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content), "utf-8")
    source = models.resolve(f"hf:{folder}", size=str(size), weights="twin:0")
    return source.write(folder)
