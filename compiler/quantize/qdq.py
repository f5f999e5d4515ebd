"""QuantizeLinear and DequantizeLinear around the nodes of a model, by onnxruntime's QNN recipe.

Numbers are unsigned and asymmetric (`QUInt8`, `QUInt16`), one scale a tensor: what Qualcomm's NPU
takes for activations, and what it does not send LayerNormalization to the CPU for. Biases are int32
of scale input · weight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxruntime.quantization.fusions import FusionGelu
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from compiler.errors import UserError
from compiler.graph import Graph
from compiler.quantize.approximating import FLOAT
from compiler.quantize.evidence import QDQ_OPS, Feeds, copied, in_memory, told
from compiler.quantize.indexed import IndexedModel

WEIGHTED = frozenset({
    "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "InstanceNormalization",
    "LayerNormalization", "MatMul",
})  # fmt: skip
"""Operators whose constants are weights and biases, with bits of their own."""
EXTREMES = ("ReduceMin", "ReduceMax")
TYPES = {8: QuantType.QUInt8, 16: QuantType.QUInt16}
Ranges = Mapping[str, tuple[float, float]]
"""The least and the largest value of every float tensor that nodes compute or that is an input."""


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Erf patterns as Gelu, in place: the recipe's first step.

    The NPU has a Gelu of whole numbers and no Erf: it would leave each pattern to the CPU.
    """
    with told("onnxruntime's Gelu fusion"):
        wrapped = ONNXModel(model)
        FusionGelu(wrapped).apply()
        wrapped.topological_sort()
    result: onnx.ModelProto = wrapped.model
    return result


def calibrate(
    model: onnx.ModelProto, inputs: Sequence[Feeds],
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Ranges:  # fmt: skip
    """Runs a model and notes the range of every float tensor: one run for each of `inputs`.

    Raises UserError for a tensor that is not finite there.
    """
    names = [name for name, kind in _types(model).items() if kind == TensorProto.FLOAT]
    with told("onnxruntime"):
        session = in_memory(_watching(model, names))
        added = [f"{op}({name})" for op in EXTREMES for name in names]
        seen = []
        for done, feeds in enumerate(inputs):
            progress("calibrating", done, len(inputs))
            seen.append(session.run(added, dict(feeds)))
    lows, highs = np.split(np.array(seen, np.float64), 2, axis=1)
    ranges = zip(lows.min(axis=0).tolist(), highs.max(axis=0).tolist(), strict=True)
    limits_of = dict(zip(names, ranges, strict=True))
    for name, limits in limits_of.items():
        if not np.isfinite(limits).all():
            raise UserError(f"{name!r} has no finite range on the images ({limits}): no scale fits")
    return limits_of


def _watching(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with the extremes of tensors as further outputs."""
    watched = copied(model)
    for op in EXTREMES:
        for name in names:
            reduced = f"{op}({name})"
            watched.graph.node.append(helper.make_node(op, [name], [reduced], keepdims=0))
            found = helper.make_tensor_value_info(reduced, TensorProto.FLOAT, [])
            watched.graph.output.append(found)
    return watched


def quantized(
    model: onnx.ModelProto, ranges: Ranges, bits: int, others: Mapping[str, int]
) -> onnx.ModelProto:
    """A quantized copy of a model in memory, with weights of 8 bits.

    Args:
        model: every node has a name.
        ranges: what `calibrate` found.
        bits: of activations: 8 or 16.
        others: nodes by name whose results have another number of bits: 8, 16 or FLOAT.
    """
    with told("onnxruntime's quantizer"):
        quantizer = _quantizer(copied(model), ranges, bits, others)
        quantizer.model = IndexedModel(quantizer.model.model)
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    result.producer_name = model.producer_name
    result.producer_version = model.producer_version
    return result


def _quantizer(
    model: onnx.ModelProto, ranges: Ranges, bits: int, others: Mapping[str, int]
) -> QDQQuantizer:
    """What `quantize_static` makes of the recipe, with ranges that are known."""
    left = sorted(name for name, own in others.items() if own == FLOAT)
    narrowed = {name: own for name, own in others.items() if own != FLOAT}
    config = get_qnn_qdq_config(
        model, _NoData(), activation_type=TYPES[bits], weight_type=TYPES[8],
        init_overrides=overrides(model, bits, narrowed, set(left)), add_qtype_converts=False,
        nodes_to_exclude=left,
    )  # fmt: skip
    limits = {name: tuple(np.float32(x) for x in limit) for name, limit in ranges.items()}
    return QDQQuantizer(
        model, config.per_channel, False, config.weight_type, config.activation_type,
        TensorsData(CalibrationMethod.MinMax, limits), [], left,
        sorted(config.op_types_to_quantize), config.extra_options,
    )  # fmt: skip


def give_types(graph: Graph) -> None:
    """Types and shapes for what onnx's own inference does not know: Microsoft's Q and DQ."""
    nodes = [node for node in graph.nodes if node.op in QDQ_OPS]
    for node in reversed(nodes):  # what computes an output has got another name
        if node.inputs[0].shape is None:
            node.inputs[0].shape = node.outputs[0].shape
    for node in nodes:
        source, scale, zero_point = node.inputs[:3]
        node.outputs[0].shape = source.shape
        node.outputs[0].dtype = (zero_point if node.op == QDQ_OPS[0] else scale).dtype
        if source.dtype is None:
            source.dtype = scale.dtype


def overrides(
    model: onnx.ModelProto, bits: int, others: Mapping[str, int], left: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """The recipe's overrides for tensors whose producer, or a reader, is not of `bits`.

    A tensor has the bits of what computes it; whoever reads it with others reads a conversion.
    A constant that is no weight (the 2 of x · 2) has those of the node that reads it.
    """
    producers = {name: node.name for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            if name and name not in constants and node.name not in left:
                readers[name].append(node.name)
    found = {
        name: [{"quant_type": TYPES[others[node.name]]}]
        for node in model.graph.node
        if node.op_type not in WEIGHTED and others.get(node.name, bits) != bits
        for name in node.input
        if name in constants
    }
    for name in [*producers, *(i.name for i in model.graph.input if i.name not in constants)]:
        own = others.get(producers.get(name, ""), bits)
        entry: dict[str, Any] = {"quant_type": TYPES[own]} if own != bits else {}
        different = {user for user in readers[name] if others.get(user, bits) != own}
        if different:
            entry["convert"] = {"quant_type": TYPES[24 - own], "recv_nodes": different}
        if entry:
            found[name] = [entry]
    return found


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element types of what the graph is given and its nodes compute."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output if name}
    made |= {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    known: Iterable[onnx.ValueInfoProto] = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in known if v.name in made}


class _NoData(CalibrationDataReader):  # type: ignore[misc]
    """The recipe wants a reader, and reads nothing: the ranges are known."""

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Nothing."""
        return None
