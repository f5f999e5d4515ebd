"""Whole numbers of 8 or 16 bits for weights and activations, by onnxruntime's recipe for QNN.

    x[float] → MatMul(W[float]) → y[float]
    x → Quantize → Dequantize → MatMul(Dequantize(W[uint8])) → Quantize → Dequantize → y

Ranges are those of images: a folder of photos (`--images`), or generated ones. The driver measures
what is lost on other images, and reports it; `max_loss=0.02` fails above 2 % AbsRel. To stay below,
with 8 or 16 bits the layers that lose most alone keep float16, as few as it takes; with
`activations=mixed` all have 8 bits but a run of layers from one end, which has 16: in between the
NPU would convert. Images that calibrate choose the layers; where those that judge lose too much
even so, further ones are spared in the same order, which is told. `layers=measure` measures every
layer alone. `attention=8` gives 8 bits to every attention (projections, scores, Softmax, product
with the values) in a model of 16: most of what 8 bits gain, for less than what they lose.

Put it last: split_heads, fold_norm, fold_scale and linear_as_gemm make it faster still. Weights
have 8 bits; Erf patterns become Gelu, for which the NPU has a kernel of whole numbers.

Contract: approximate; measured, not proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from compiler.graph import Graph
from compiler.quantize.approximating import FLOAT, Trial
from compiler.quantize.attending import attention_nodes
from compiler.quantize.evidence import Evidence, copied, embedded, quantized_node, taken_over
from compiler.quantize.layers import layers_of
from compiler.quantize.qdq import calibrate, fused, give_types, quantized
from compiler.quantize.search import Bits
from compiler.rewrite import WHOLE_MODEL, ApproximatePass, Approximation, Refusal, TensorType


@dataclass(frozen=True)
class Quantize(ApproximatePass):
    """See the module."""

    weights: Literal["8"] = "8"
    activations: Literal["16", "8", "mixed"] = "16"
    attention: Literal["same", "8"] = "same"
    max_loss: float = math.inf
    layers: Literal["skip", "measure"] = "skip"

    def refusals(self, graph: Graph) -> list[Refusal]:
        """What has whole numbers in it, floats of other widths than 32 bits, or optional inputs."""
        done = quantized_node(graph)
        if done is not None:
            return [Refusal(WHOLE_MODEL, f"is quantized already: {done.op} {done.name!r}")]
        for tensor in [*graph.inputs, *(t for node in graph.nodes for t in node.outputs)]:
            kind = TensorType.of(tensor)
            if kind.is_float and tensor.dtype != np.float32:
                reason = f"{tensor.name!r} is {kind}: only float32 models are quantized"
                return [Refusal(WHOLE_MODEL, reason)]
        if graph.defaults:  # the recipe takes them for constants
            reason = (
                f"callers may feed {next(iter(graph.defaults))!r}: only constants are quantized"
            )
            return [Refusal(WHOLE_MODEL, reason)]
        return self._attention_refusals(graph)

    def _attention_refusals(self, graph: Graph) -> list[Refusal]:
        """Where `attention=8` says nothing."""
        if self.attention == "same":
            return []
        if self.activations != "16":
            reason = f"attention=8 is for activations=16, not for {self.activations}"
            return [Refusal(WHOLE_MODEL, reason)]
        if not attention_nodes(graph):
            return [Refusal(WHOLE_MODEL, "attention=8: no Softmax weighs values here")]
        return []

    def approximated(self, graph: Graph, evidence: Evidence) -> Approximation:
        """Calibrates once; then tries what has to be tried."""
        model = fused(embedded(graph))
        ranges = calibrate(model, evidence.calibration, evidence.progress)
        bits = 16 if self.activations == "16" else 8
        source = taken_over(copied(model), graph)
        attending = attention_nodes(source) if self.attention == "8" else []
        fewer = {node.name: 8 for node in attending}

        def made(others: Bits) -> onnx.ModelProto:
            return quantized(model, ranges, bits, {**fewer, **others})

        trial = Trial(
            made, layers_of(source),
            16 if self.activations == "mixed" else FLOAT,
            "run" if self.activations == "mixed" else "worst",
            self.max_loss, self.layers == "measure",
        )  # fmt: skip
        others, table = trial.settle(evidence)
        result = taken_over(made(others), graph)
        give_types(result)
        result.sort()
        return Approximation(result, table)
