"""`verify A B`: whether any two models of one signature compute the same."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import UserError
from compiler.graph import Graph
from compiler.progress import Progress, nothing
from compiler.region import TensorType
from compiler.rewrite import Signature
from compiler.verify.kernels.call import UnsupportedInFloat64
from compiler.verify.proof import Proof, judge
from compiler.verify.whole import (
    MOST_NOISE,
    Float32Model,
    distance,
    float32_bound,
    float64_model,
    least_bound,
    model_inputs,
    told_noise,
)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same inputs, in both precisions."""

    float64: Proof
    float32: Proof

    @property
    def is_equal(self) -> bool:
        """Whether one precision at least shows that they agree, and none that they differ."""
        verdicts = {self.float64.status, self.float32.status}
        return "pass" in verdicts and "fail" not in verdicts

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"float64": asdict(self.float64), "float32": asdict(self.float32)}


def compare_models(
    a: Path, b: Path, *, inputs: Path | None = None, bound: float | None = None,
    progress: Progress = nothing,
) -> Comparison:  # fmt: skip
    """Compares `b` against `a` in float64 and in onnxruntime's float32.

    Args:
        a: the reference.
        b: the model in question; must have the same inputs and outputs.
        inputs: an `.npz` file with one array an input; generated if None. Optional inputs that it
            doesn't hold have their defaults.
        bound: the largest centred relative L2 error in float64; default: sixteen roundings of the
            models' own float type, for the weights of two files are rounded each for itself.
        progress: told where the float64 evaluation stands.
    """
    graphs = Graph.load(a), Graph.load(b)
    signature = _same_signature(a, b, *(Signature.of(graph) for graph in graphs))
    feeds = _generated(a, signature) if inputs is None else _read(inputs, signature, graphs)
    least = max(least_bound(graph) for graph in graphs)
    limit = least if bound is None else bound
    try:
        exact = [
            float64_model(graph, partial(_show, progress, path, len(graph.nodes)))(feeds)
            for path, graph in zip((a, b), graphs, strict=True)
        ]
        float64 = judge(exact[1], exact[0], limit, noise=min(limit, least))
    except UnsupportedInFloat64 as reason:
        exact, float64 = [], Proof("UNVERIFIED", math.nan, limit, str(reason))
    reference = Float32Model(a)(feeds)
    noise = distance(reference, exact[0], least) if exact else 0.0
    tolerance = float32_bound(noise, least)
    float32 = judge(Float32Model(b)(feeds), reference, tolerance, noise=least)
    if float32.status == "pass" and noise > MOST_NOISE:
        float32 = Proof("UNVERIFIED", float32.error, tolerance, told_noise(noise))
    return Comparison(float64, float32)


def _show(progress: Progress, path: Path, total: int, done: int) -> None:
    progress(f"{path.name} in float64", done, total)


def _same_signature(a: Path, b: Path, ours: Signature, theirs: Signature) -> Signature:
    for what, mine, other in (("inputs", ours.inputs, theirs.inputs),
                              ("outputs", ours.outputs, theirs.outputs)):  # fmt: skip
        if list(mine.items()) != list(other.items()):
            listed = [", ".join(f"{n}: {k}" for n, k in types.items()) for types in (mine, other)]
            raise UserError(f"{a} and {b} have different {what}: {listed[0]} against {listed[1]}")
    return ours


def _generated(path: Path, signature: Signature) -> dict[str, Any]:
    try:
        return model_inputs(signature.inputs)
    except UnsupportedInFloat64 as reason:
        raise UserError(f"{path}: {reason}; give --inputs FILE.npz") from reason


def _read(path: Path, signature: Signature, graphs: Sequence[Graph]) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as .npz: {error}") from error
    missing = sorted(set(signature.inputs) - set(values))
    if missing:
        raise UserError(f"{path}: holds no array for the input {missing[0]!r}")
    kinds = {**signature.inputs, **_given(path, values, graphs)}
    for name, kind in kinds.items():
        if values[name].dtype.kind not in "fiub" or not kind.admits(values[name].shape):
            held = f"{values[name].dtype}{list(values[name].shape)}"
            raise UserError(f"{path}: the array {name!r} is {held}, the input is {kind}")
    return {name: values[name] for name in kinds}


def _given(path: Path, values: Collection[str], graphs: Sequence[Graph]) -> dict[str, TensorType]:
    """The optional inputs that a file holds values of; each model has to take them."""
    ours, theirs = (
        {t.name: TensorType.of(t) for t in graph.optional_inputs if t.name in values}
        for graph in graphs
    )
    if ours != theirs:
        name = min(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
        raise UserError(f"{path}: the models don't both take {name!r} as an input of one type")
    return ours
