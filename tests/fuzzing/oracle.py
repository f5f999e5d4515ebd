"""What must hold of every model that goes through a pipeline, whatever is in it."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from compiler.building import Stage, StageReport, build_stages, run_pass
from compiler.graph import Graph
from compiler.pipeline import parse_pipeline

# Random sizes for dynamic axes, the same for the same name.
SIZES = (3, 2, 5)
# Between two float32 evaluations of one function: about a hundred roundings of values near one.
CLOSE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """The stages behind the source, and the models before and after."""

    source: onnx.ModelProto
    result: onnx.ModelProto
    stages: list[Stage]

    @property
    def names(self) -> list[str]:
        """Of the passes, in order."""
        return [stage.report.name.partition(":")[0] for stage in self.stages]

    def report(self, name: str) -> StageReport:
        return self.stages[self.names.index(name)].report


def built(model: onnx.ModelProto, pipeline: str) -> Outcome:
    """A model through a pipeline, checked in every way that needs no knowledge of the model.

    Our own verification passes; onnx and onnxruntime take the result; on inputs that our
    verification has not seen it computes what the source computes; a second run does nothing.
    """
    passes = parse_pipeline(pipeline)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model, folder / "model.onnx")
        (folder / "build").mkdir()
        stages = build_stages(
            folder / "model.onnx", passes, folder / "build", allow_noop=True,
            failures=folder / "failure",
        )  # fmt: skip
        last = folder / "build" / "model.onnx"
        result = onnx.load(last)
        onnx.checker.check_model(result, full_check=True)
        check_same_function(model, result)
        for pass_ in (p for p in passes if p.name != "canonicalize"):
            graph, again = run_pass(Graph.load(last), pass_)
            assert again.rewrites == [], f"{pass_.text()} rewrites its result once more"
            assert same_bytes(graph.to_model(), onnx.load(last, load_external_data=False))
    return Outcome(model, result, stages[1:])


def same_bytes(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Equal but for what is noted of inner shapes: reading a model again may infer more of them."""
    for one in (model, other):
        del one.graph.value_info[:]
    return model.SerializeToString(deterministic=True) == other.SerializeToString(
        deterministic=True
    )


def check_same_function(source: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Both models in onnxruntime, as written, on the same random inputs."""
    feeds = random_feeds(source)
    expected, actual = run(source, feeds), run(result, feeds)
    assert list(expected) == list(actual)
    for name, values in expected.items():
        assert actual[name].shape == values.shape, name
        assert actual[name].dtype == values.dtype, name
        scale = np.abs(values[np.isfinite(values)]).max(initial=1e-3)
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=CLOSE * scale, err_msg=name)


def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def random_feeds(model: onnx.ModelProto) -> dict[str, Any]:
    """Standard normal floats, fair coins, and integers that are indices of any table here."""
    rng = np.random.default_rng(7)
    numbers: dict[str, int] = {}
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [
            dim.dim_value or numbers.setdefault(dim.dim_param, SIZES[len(numbers) % len(SIZES)])
            for dim in kind.shape.dim
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.standard_normal(shape) if np.dtype(dtype).kind == "f" else rng.integers(
            0, 2, shape)  # fmt: skip
        feeds[value.name] = np.asarray(drawn, dtype)
    return feeds
