"""Builds to report on, and stages from ONNX text."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_depth import PIPELINE

import compiler
from compiler.report import write_report
from compiler.report.stages import StageGraph, read_stages


@pytest.fixture(scope="session")
def built(depth_model, tmp_path_factory) -> Path:
    """The folder of a verified build of the small Depth Anything V2, with its report; read only."""
    folder = tmp_path_factory.mktemp("reported") / "depth"
    compiler.build(str(depth_model), PIPELINE.removeprefix("canonicalize,"), output=folder)
    write_report(folder)
    return folder


@pytest.fixture
def stage_of(model_of, tmp_path) -> Callable[[str], StageGraph]:
    """The stage of a graph given as ONNX text."""

    def read(text: str) -> StageGraph:
        model = model_of(text)
        for node in model.graph.node:
            node.name = node.name or f"node_{node.output[0]}"
        onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "00_source.onnx")
        return read_stages(tmp_path, ["00_source"])[0]

    return read
