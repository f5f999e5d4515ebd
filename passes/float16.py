"""Floats of 16 bits for weights and activations; inputs and outputs stay as they are.

    x[float] → MatMul(W[float]) → y[float]
    x[float] → Cast → MatMul(W[float16]) → Cast → y[float]

Each operator that ONNX defines for float16 computes in it; others, and those of other domains,
keep float32 between Casts. The driver measures what is lost on images (`--images`), and reports it;
`max_loss=0.001` fails above 0.1 % AbsRel. To stay below, the layers that lose most alone keep
float32, as few as it takes; they are chosen by other images than those that judge, as in quantize.
`layers=measure` measures every layer alone.

Contract: approximate; measured, not proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.graph import Graph
from compiler.quantize.approximating import FLOAT, Trial
from compiler.quantize.evidence import Evidence, embedded, quantized_node
from compiler.quantize.halving import halved
from compiler.quantize.layers import layers_of
from compiler.rewrite import WHOLE_MODEL, ApproximatePass, Approximation, Refusal


@dataclass(frozen=True)
class Float16(ApproximatePass):
    """See the module."""

    max_loss: float = math.inf
    layers: Literal["skip", "measure"] = "skip"

    def refusals(self, graph: Graph) -> list[Refusal]:
        """A quantized model, one that has float16 in it, and one that has no float32."""
        done = quantized_node(graph)
        if done is not None:
            return [Refusal(WHOLE_MODEL, f"is quantized: {done.op} {done.name!r}")]
        tensors = [t for node in graph.nodes for t in node.outputs if t.dtype is not None]
        for tensor in tensors:
            if tensor.dtype == np.float16:
                return [Refusal(WHOLE_MODEL, f"is in float16 already: {tensor.name!r}")]
        if not any(tensor.dtype == np.float32 for tensor in tensors):
            return [Refusal(WHOLE_MODEL, "computes nothing in float32")]
        return []

    def approximated(self, graph: Graph, evidence: Evidence) -> Approximation:
        """Converts all of it, or all but what loses too much."""
        trial = Trial(
            lambda kept: embedded(halved(graph, kept)), layers_of(graph), FLOAT, "worst",
            self.max_loss, self.layers == "measure",
        )  # fmt: skip
        kept, table = trial.settle(evidence)
        return Approximation(halved(graph, kept), table)
