"""What an approximate pass is given to measure by, and the models that it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.errors import UserError
from compiler.graph import Graph, Node
from compiler.weights import EMBED_BELOW_NBYTES

Feeds = Mapping[str, NDArray[Any]]
"""Arrays by the names of a model's inputs."""

# Protobuf's limit: the tools that approximate hold a model in memory in one piece.
LARGEST_NBYTES = 2**31 - 2**24


@dataclass(frozen=True)
class Evidence:
    """Inputs to calibrate with and to choose by, and a judge with other inputs.

    `loss` of a model in memory is a number that is 0 for the model before, on inputs that
    calibrate; with `quick` on fewer of them: good enough to rank layers by. `judged` is the loss
    that will be reported: what is chosen by it is no longer judged by inputs that it has not seen.
    """

    calibration: Sequence[Feeds]
    loss: Callable[[onnx.ModelProto, bool], float]
    judged: Callable[[onnx.ModelProto], float]
    progress: Callable[[str, int, int], None] = field(default=lambda _what, _done, _total: None)


QDQ_OPS = ("QuantizeLinear", "DequantizeLinear")


def quantized_node(graph: Graph) -> Node | None:
    """A node that turns floats into whole numbers or back, if there is one."""
    return next((node for node in graph.nodes if node.op in QDQ_OPS), None)


@contextmanager
def told(tool: str) -> Iterator[None]:
    """Turns what a tool of onnxruntime raises about a model into one line.

    They raise any kind of error, some by accident, for models that they can't take.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{tool} can't take this model: {reason}") from error


def embedded(graph: Graph) -> onnx.ModelProto:
    """The graph with all of its weights inside. Raises UserError where that is too large."""
    weights = {t.name: t._values for t in graph.initializers()}
    nbytes = sum(int(weight.nbytes) for weight in weights.values())
    if nbytes > LARGEST_NBYTES:
        raise UserError(
            f"the weights are {nbytes / 1e9:.1f} GB: quantize and float16 hold a model in memory, "
            f"where ONNX allows {LARGEST_NBYTES / 1e9:.1f} GB; take a smaller model"
        )
    model = graph.to_model()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].load(), tensor.name))
    return model


def in_memory(model: onnx.ModelProto) -> ort.InferenceSession:
    """A model that is on no disk, in onnxruntime, as it is written: float16 is rounded."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    written = rounding(copied(model)).SerializeToString()
    return ort.InferenceSession(written, options, providers=["CPUExecutionProvider"])


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in place, such that onnxruntime rounds every result in float16.

    Its CPU computes them in float32 and takes Casts back and forth out, at every level: nothing is
    rounded and nothing overflows. Two nodes of float16 in a row, it leaves alone.
    """
    graph = model.graph
    known = [*graph.value_info, *graph.output]
    halves = {v.name for v in known if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        chains = [(name, f"{name}/computed", f"{name}/rounded")
                  for name in node.output if name in halves]  # fmt: skip
        for name, computed, _ in chains:
            node.output[list(node.output).index(name)] = computed
        graph.node.append(node)
        for name, computed, rounded in chains:
            graph.node.append(onnx.helper.make_node("Identity", [computed], [rounded]))
            graph.node.append(onnx.helper.make_node("Identity", [rounded], [name]))
    return model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be edited."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def taken_over(model: onnx.ModelProto, before: Graph) -> Graph:
    """The graph of an approximation of `before`; weights that it left alone stay where they are.

    `model` is edited on the way.
    """
    kept = {t.name: t._values for t in before.initializers()}
    same = {
        tensor.name: kept[tensor.name]
        for tensor in model.graph.initializer
        if tensor.name in kept and _is_same(tensor, kept[tensor.name])
    }
    for tensor in model.graph.initializer:
        if tensor.name in same:
            stub = onnx.TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims,
                data_location=onnx.TensorProto.EXTERNAL,
            )  # fmt: skip
            tensor.CopyFrom(stub)
    graph = Graph(model, before.folder, same)
    graph.metadata = before.metadata
    return graph


def _is_same(tensor: onnx.TensorProto, weight: Any) -> bool:
    if weight.nbytes < EMBED_BELOW_NBYTES:
        return False
    return bool(numpy_helper.to_array(tensor).tobytes() == weight.load().tobytes())
