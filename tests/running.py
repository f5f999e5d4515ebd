"""Runs what a pass did to a small model: its proof in float64, and the models in onnxruntime."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import parser

from compiler.graph import Graph
from compiler.rewrite import Applied, DeclaredPass, LocalPass, Signature, apply_pass
from compiler.verify.proof import Proof, prove
from compiler.weights import WeightsFile


@dataclasses.dataclass
class Result:
    """A graph after a pass, the pass's record, and the graph's model before."""

    graph: Graph
    done: Applied
    source: onnx.ModelProto
    before: Signature

    @property
    def reasons(self) -> list[str]:
        return [refusal.reason for refusal in self.done.refusals]

    @property
    def ops(self) -> list[str]:
        return [node.op for node in self.graph.nodes]


def applied(text: str, pass_: LocalPass, opset: int = 17) -> Result:
    """The pass on a graph's text, `g (float[…] x) => (…) <constants> {…}`, in the given opset.

    Constants without values are weights: they get random ones.
    """
    source = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    _draw_weights(source.graph)
    onnx.checker.check_model(source, full_check=True)
    graph = Graph(onnx.ModelProto.FromString(source.SerializeToString()), Path())
    before = Signature.of(graph)
    return Result(graph, apply_pass(graph, pass_), source, before)


def _draw_weights(graph: onnx.GraphProto) -> None:
    rng = np.random.default_rng(1)
    made = {name for node in graph.node for name in node.output}
    for weight in [value for value in graph.value_info if value.name not in made]:
        kind = weight.type.tensor_type
        values = rng.standard_normal([d.dim_value for d in kind.shape.dim])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(dtype), weight.name))
        graph.value_info.remove(weight)


def refusal(text: str, pass_: LocalPass, opset: int = 17) -> str:
    """Why the pass left the model alone; the model is unchanged."""
    result = applied(text, pass_, opset)
    assert result.ops == [node.op_type for node in result.source.graph.node]
    (reason,) = result.reasons
    return reason


def proofs(result: Result, pass_: LocalPass) -> list[Proof]:
    """The verifier's word on every rewrite."""
    return [prove(rewrite, pass_) for rewrite in result.done.rewrites]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs in float32, as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    wanted = {i.name: np.float16 if "16" in i.type else np.float32 for i in session.get_inputs()}
    typed = {name: value.astype(wanted[name]) for name, value in feeds.items()}
    return dict(zip(names, session.run(names, typed), strict=True))


def error_in_float32(result: Result, pass_: LocalPass, folder: Path, seed: int = 0) -> float:
    """The saved model against the source (through the pass's oracle): max|d| over max|expected|."""
    result.graph.save(folder / "model.onnx", WeightsFile(folder / "weights.bin"))
    saved = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(saved, full_check=True)
    rng = np.random.default_rng(seed)
    feeds = {
        t.name: (255 * rng.random(t.shape)).astype(np.float32).astype(np.float64)
        for t in result.graph.inputs
    }
    actual, expected = run(saved, feeds), _expected(result, pass_, feeds)
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
    declared = {t.name: tuple(t.shape) for t in result.graph.outputs}
    assert {k: v.shape for k, v in actual.items()} == declared
    return max(
        float(np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max())
        for name in expected
    )


def _expected(result: Result, pass_: LocalPass, feeds: dict[str, np.ndarray]):
    def source(inputs):
        return {k: v.astype(np.float64) for k, v in run(result.source, inputs).items()}

    if isinstance(pass_, DeclaredPass):
        return pass_.expected(source, feeds, result.before)
    return source(feeds)
