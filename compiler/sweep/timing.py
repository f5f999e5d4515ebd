"""Latency on this machine's CPU: all models in one process, in turns, so that noise hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype

from compiler.graph import Graph
from compiler.progress import Progress, nothing
from compiler.rewrite import Signature
from compiler.verify.whole import model_inputs


def cpu_ms(
    models: Mapping[str, Path], runs: int, budget: int, progress: Progress = nothing,
    statistic: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:  # fmt: skip
    """The median latency of each model in ms, over `runs` rounds in which each runs once.

    Another `statistic` of the rounds may be asked for: the least, where the machine is busy.

    Sessions are onnxruntime's default, optimized; a first run of each is not counted. Once this
    process holds more than `budget` bytes, further sessions are made anew in each round. Models
    with a dynamic input have no latency.
    """
    inputs = {label: found for label, path in models.items() if (found := _inputs(path))}
    kept: dict[str, ort.InferenceSession] = {}
    seconds: dict[str, list[float]] = {label: [] for label in inputs}
    for number in range(runs):
        for place, (label, feeds) in enumerate(inputs.items()):
            progress(f"timing {label}", number * len(inputs) + place, runs * len(inputs))
            session = kept.get(label) or _warm(models[label], feeds)
            start = time.perf_counter()
            session.run(None, feeds)
            seconds[label].append(time.perf_counter() - start)
            if _resident_nbytes() < budget:
                kept[label] = session
    return {label: 1e3 * statistic(times) for label, times in seconds.items()}


def _inputs(path: Path) -> dict[str, NDArray[Any]] | None:
    """An image, or random values, for every input; None for a dynamic one."""
    types = Signature.of(Graph.load(path)).inputs
    if any(kind.fixed_shape is None for kind in types.values()):
        return None
    return {
        name: np.asarray(values).astype(tensor_dtype_to_np_dtype(types[name].onnx_type))
        for name, values in model_inputs(types).items()
    }


def _warm(path: Path, feeds: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    session.run(None, feeds)
    return session


def _resident_nbytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
