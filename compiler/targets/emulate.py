"""The NPU's own float16 or integer numerics on this machine, against float32.

Qualcomm's emulator computes as the chip does. Its time has nothing to do with the chip's: that is
what `estimate` simulates. The NPU's float16 has neither infinity nor NaN: it saturates at ±131008
(measured: 1/0 gives 131008, 0/0 gives 0, log(-2) gives -8.7), so overflow shows as error alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UserError
from compiler.graph import Graph, Node, static_shape
from compiler.pictures import Map, depth_of
from compiler.progress import Progress, nothing
from compiler.targets.chips import Chip
from compiler.targets.htp import CpuNode, refused_nodes, require_wheel, run_provider
from compiler.verify.measure import Error, compare
from compiler.verify.whole import Float32Model

# Measured with onnxruntime-qnn 2.7.0, which emulates on one core.
EMULATED_GFLOP_A_SECOND = 0.5
PREPARATION_SECONDS = 10


@dataclass(frozen=True)
class Emulation:
    """Depth maps H×W of one photo from one model, on the CPU in float32 and as the NPU computes.

    `cpu_nodes` are left to the CPU, which computes them in float32 here, too.
    """

    float32: Map
    npu: Map
    error: Error
    cpu_nodes: tuple[CpuNode, ...]


def emulate(model: Path, photo: Path, chip: Chip, progress: Progress = nothing) -> Emulation:
    """Runs a model on a photo as `chip` would, and in float32.

    Raises UserError where the wheel is missing or the model isn't from one image to one map.
    """
    require_wheel()
    float32 = depth_of(model, photo, Float32Model(model, optimized=True))
    expected = expected_seconds(model)
    left: list[CpuNode] = []

    def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs, on_cpu = _emulated(model, chip, feeds, progress, expected)
        left.extend(on_cpu)
        return outputs

    npu = depth_of(model, photo, run)
    return Emulation(float32, npu, compare(npu, float32), tuple(left))


def expected_seconds(model: Path) -> int:
    """About how long the emulation of a model takes, from its arithmetic."""
    graph = Graph.load(model)
    gflop = sum(flops(graph, node) for node in graph.nodes) / 1e9
    return math.ceil(PREPARATION_SECONDS + gflop / EMULATED_GFLOP_A_SECOND)


def flops(graph: Graph, node: Node) -> int:
    """Floating-point operations of a matrix product or convolution (two a multiply-add), else 0.

    Zero too where shapes are not known.
    """
    shapes = [static_shape(tensor) for tensor in (*node.inputs[:2], *node.outputs)]
    if node.op not in ("MatMul", "Gemm", "Conv", "ConvTranspose") or None in shapes:
        return 0
    first, second, result = (shape or () for shape in shapes[:3])
    if node.op == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    if node.op == "Conv":
        return 2 * math.prod(result) * math.prod(second[1:])
    summed = first[-2] if node.op == "Gemm" and node.attrs.get("transA") else first[-1]
    return 2 * math.prod(result) * summed


def _emulated(
    model: Path, chip: Chip, feeds: Mapping[str, NDArray[Any]], progress: Progress, expected: int
) -> tuple[dict[str, NDArray[Any]], list[CpuNode]]:
    """The outputs, and the nodes that the NPU left. Raises UserError if it left all of them."""

    def tick(seconds: float) -> None:
        progress(f"emulating {chip.description}, seconds", round(seconds), expected)

    graph = Graph.load(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        typed = [feeds[t.name].astype(t.dtype) for t in graph.inputs]
        np.savez(folder / "inputs.npz", *typed)
        job = {"inputs": str(folder / "inputs.npz"), "outputs": str(folder / "outputs.npz"),
               "trace": str(folder)}  # fmt: skip
        run_provider(model, chip, folder, job, tick)
        with np.load(folder / "outputs.npz") as arrays:
            values = list(arrays.values())
        on_cpu = refused_nodes(folder)
    if on_cpu is None:
        raise UserError(f"{model}: the NPU takes none of its nodes; `check` says why")
    return dict(zip((t.name for t in graph.outputs), values, strict=True)), on_cpu
