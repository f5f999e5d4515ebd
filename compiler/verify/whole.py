"""Rungs 3 and 4: whole models in onnxruntime's float32, and in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from compiler.errors import UserError
from compiler.graph import Graph, infer_shapes
from compiler.quantize.evidence import rounding
from compiler.region import TensorType, whole
from compiler.rewrite import Float64, Function
from compiler.verify.float64 import UnsupportedInFloat64, evaluate
from compiler.verify.inputs import image_inputs
from compiler.verify.measure import compare
from compiler.verify.proof import image_like_inputs
from compiler.verify.sizes import Sizes, is_static, likely_sizes
from compiler.weights import Weight, onnx_type_of

# A rewritten float32 model may be this many times as far from its reference as the source model is
# from its own float64 values: both sides round, and a folded constant rounds once more.
NOISE_MULTIPLE = 4.0
# Roundings that a graph of a few ops may show where its source shows none.
LEAST_ROUNDINGS = 16
# Where the source has no float64 evaluation its noise is unknown: only what is grossly wrong fails.
GROSS_ERROR = 0.01
# Above it the source's float32 says nothing of a rewritten model: its runtime computes something
# else than ONNX says, or it is chaotic.
MOST_NOISE = 0.1
# onnxruntime computes a Resize's sample positions in float32: near 640 they are 2⁻¹⁵ of a pixel
# off, and so is the value, in steps to the next pixel. A graph that gains a Resize gains this.
RESIZE_BOUND = 2.0**-15

ort.set_default_logger_severity(3)
# Where the external weights of a model are that is given as bytes.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_LOAD_ERRORS = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
                ort_errors.InvalidProtobuf, ort_errors.NotImplemented,
                ort_errors.RuntimeException)  # fmt: skip


class Float32Model:
    """A model in onnxruntime on the CPU: as written, or as users run it (optimized).

    What is float16 is computed in float32 all the same, unless every result is to be `rounded`.
    Raises UserError for a model that onnxruntime can't load, or can't run on given inputs.
    """

    def __init__(self, path: Path, *, optimized: bool = False, rounded: bool = False) -> None:
        self._path = path
        model = _rounding(path).SerializeToString() if rounded else str(path)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what it refuses is raised, and told once
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        )
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
        providers = ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(model, options, providers=providers)
        except _LOAD_ERRORS as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: onnxruntime can't load it: {reason}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]
        self._types, self._optional = (
            {i.name: _NUMPY_TYPES.get(i.type, np.float32) for i in found}
            for found in (self._session.get_inputs(), self._session.get_overridable_initializers())
        )

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Float64]:
        """Runs the model; inputs are rounded to the model's types, outputs come as float64.

        Optional inputs that are not among `inputs` have their defaults.
        """
        given = {name: kind for name, kind in self._optional.items() if name in inputs}
        feeds: dict[str, Any] = {
            name: np.asarray(inputs[name]).astype(kind)
            for name, kind in {**self._types, **given}.items()
        }
        try:
            values = self._session.run(self.outputs, feeds)
        except _LOAD_ERRORS as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._path}: onnxruntime can't run it: {reason}") from error
        return {
            name: value.astype(np.float64) if getattr(value, "dtype", _ANY).kind == "f" else value
            for name, value in zip(self.outputs, values, strict=True)
        }


def _rounding(path: Path) -> onnx.ModelProto:
    return rounding(infer_shapes(onnx.load(path, load_external_data=False)))


def float64_model(graph: Graph, on_node: Callable[[int], None] | None = None) -> Function:
    """The whole graph as a function in float64; raises UnsupportedInFloat64 when it is called.

    Optional inputs that it isn't given have their defaults, as in onnxruntime.
    """
    region = whole(graph)

    def run(inputs: Mapping[str, Float64]) -> dict[str, Float64]:
        constants = region.exact_constants()
        defaults = {name: cast(Weight, t._values).exact() for name, t in graph.defaults.items()}
        return evaluate(
            region.nodes,
            constants,
            {**defaults, **inputs},
            list(region.outputs),
            region.opsets,
            on_node=on_node,
        )

    return run


def memoized(function: Function) -> Function:
    """The function with its last two results kept: stages are compared on the same inputs."""
    known: list[tuple[dict[str, Float64], dict[str, Any]]] = []

    def call(inputs: Mapping[str, Float64]) -> dict[str, Any]:
        for given, result in known:
            if all(np.array_equal(given[name], inputs[name], equal_nan=True) for name in inputs):
                return result
        known.append((dict(inputs), function(inputs)))
        del known[:-2]
        return known[-1][1]

    return call


def model_inputs(types: Mapping[str, TensorType], seed: int = 0) -> dict[str, Float64]:
    """Representative inputs that float32 holds exactly, so that both precisions see the same."""
    return {
        name: value.astype(np.float32).astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in image_like_inputs(types, seed).items()
    }


def accepted_sizes(path: Path, types: Mapping[str, TensorType], wanted: int = 2) -> list[Sizes]:
    """Numbers for a model's dynamic sizes that onnxruntime takes; empty if no likely ones do.

    Raises UserError for a model that onnxruntime can't load.
    """
    if is_static(types):
        return [Sizes({})]
    model, found = Float32Model(path), []
    for choice in likely_sizes(types):
        with suppress(UnsupportedInFloat64, UserError):
            model(model_inputs(choice.bind(types)))
            found.append(choice)
        if len(found) == wanted:
            break
    return found


def with_shapes(path: Path, types: Mapping[str, TensorType], sizes: Sizes) -> Sizes:
    """The sizes with the shape that every tensor of the model has with them, by running it."""
    model = onnx.load(path, load_external_data=False)
    given = {output.name for output in model.graph.output}
    made = {name for node in model.graph.node for name in node.output} - given - {""}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made))
    beside = path.with_name(f".{path.name}.shapes")  # where its weights are
    try:
        beside.write_bytes(model.SerializeToString())
        values = Float32Model(beside)(model_inputs(sizes.bind(types)))
    except (UserError, UnsupportedInFloat64):  # what can't be known is guessed
        return sizes
    finally:
        beside.unlink(missing_ok=True)
    shapes = {name: value.shape for name, value in values.items() if hasattr(value, "shape")}
    return Sizes(sizes.symbols, shapes)


def battery(types: Mapping[str, TensorType], seed: int = 0) -> dict[str, dict[str, Float64]]:
    """For a model of one RGB image: images by name, those that break kernels among them."""
    inputs: dict[str, dict[str, Float64]] = {}
    match list(types.items()):
        case [(name, TensorType(shape=(int() as n, 3, int() as height, int() as width)))]:
            images = image_inputs((n, 3, height, width), seed)
            inputs |= {k: {name: image.astype(np.float64)} for k, image in images.items()}
    return inputs


def agrees(actual: Mapping[str, Any], expected: Mapping[str, Any], bound: float) -> bool:
    """Whether max|d| ≤ bound · max|b|, with NaN and infinities in the same places.

    For images whose maps may have no contrast, where a centred error would divide by rounding.
    What is no real number has to be equal.
    """
    for name, b in expected.items():
        a, finite = actual[name], np.isfinite(b)
        if b.dtype.kind != "f":
            if not np.array_equal(a, b):
                return False
            continue
        if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return False
        scale = np.abs(b[finite]).max(initial=0.0)
        if not np.abs(a[finite] - b[finite]).max(initial=0.0) <= bound * scale:
            return False
    return True


def least_bound(graph: Graph) -> float:
    """The least error that a model must be allowed: sixteen roundings of its narrowest float."""
    kinds = {kind.onnx_type for kind in whole(graph).types.values()}
    kinds |= {onnx_type_of(tensor.dtype) for tensor in graph.inputs}
    narrowest = max((_ROUNDING[kind] for kind in kinds if kind in _ROUNDING), default=2.0**-24)
    return LEAST_ROUNDINGS * narrowest


def distance(actual: Mapping[str, Any], expected: Mapping[str, Any], least: float) -> float:
    """The worst centred relative L2 over the outputs; see `least_bound` for `least`."""
    return max(compare(actual[name], expected[name], least).centred_l2 for name in expected)


def float32_bound(noise: float, least: float) -> float:
    """How far a rewritten float32 model may be from a reference that is `noise` off its float64.

    Args:
        noise: nan where the reference has no float64.
        least: what roundings show where there is no noise.
    """
    return max(NOISE_MULTIPLE * noise, least) if math.isfinite(noise) else GROSS_ERROR


def told_noise(noise: float) -> str:
    """Why nothing is verified by the noise of a source: there is none, or it drowns all else."""
    if math.isnan(noise):
        return "the source has no float64 evaluation to measure its noise by"
    return f"the source's float32 is {noise:.2g} off its own float64: nothing else would show"


_ANY = np.dtype(object)  # of a sequence
_ROUNDING: dict[int, float] = {
    TensorProto.FLOAT: 2.0**-24, TensorProto.FLOAT16: 2.0**-11, TensorProto.BFLOAT16: 2.0**-8,
}  # fmt: skip
_NUMPY_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}  # fmt: skip
