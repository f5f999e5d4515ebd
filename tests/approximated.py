"""A small image-to-map model, and what is asked of builds with an approximate pass."""

import shutil
from pathlib import Path

import onnx
from onnx import numpy_helper

from compiler.building import Stage, build_stages
from compiler.pipeline import parse_pipeline

TEXT = """g (float[1,3,24,16] image) => (float[1,1,24,16] depth)
<float[16,3,3,3] first, float[16] first_bias, float[16,16,3,3] second, float[16] second_bias,
 float[1,16,1,1] last, float[1] last_bias = {20}, float small = {0.004}>
{
    scaled = Mul(image, small)
    a = Conv <pads = [1, 1, 1, 1]> (scaled, first, first_bias)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, second, second_bias)
    d = Sigmoid(c)
    depth = Conv(d, last, last_bias)
}"""


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "source.onnx"
    onnx.save(model, path)
    return path


def build(source: Path, passes: str, folder: Path, **options) -> list[Stage]:
    """The stages of a pipeline, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    failures = folder.with_name("failure")
    return build_stages(source, parse_pipeline(passes), folder, failures=failures, **options)


def ops(stage: Stage) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in stage.graph.nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
    return counts


def change(path: Path, name: str, factor: float = 1, shift: int = 0) -> None:
    """Scales or shifts a constant of a model file."""
    model = onnx.load(path)
    (constant,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(constant)
    changed = (values * factor + shift).astype(values.dtype)
    constant.CopyFrom(numpy_helper.from_array(changed, name))
    onnx.save(model, path)


def reread(path: Path, tensor: str, position: int, other: str) -> None:
    """Lets the DequantizeLinear of a tensor read another scale or zero point."""
    model = onnx.load(path)
    (node,) = [n for n in model.graph.node if n.output[0] == f"{tensor}_DequantizeLinear_Output"]
    node.input[position] = other
    onnx.save(model, path)
