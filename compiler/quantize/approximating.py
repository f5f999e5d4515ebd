"""One approximation of a whole model: tried whole, layer by layer, and with the worst spared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from compiler.quantize.evidence import Evidence
from compiler.quantize.layers import Layer
from compiler.quantize.search import (
    Bits,
    Sensitivity,
    fewest_spared,
    sensitivities,
    worst_first,
)

FLOAT = 32
"""The number of bits of a layer that is left as it is."""


@dataclass(frozen=True)
class Trial:
    """How a pass approximates: `made(bits)` with other numbers of bits for some nodes.

    `spared_bits` are what a spared layer gets instead. `spares` says which: those that lose most
    alone, or a run from one end (where neighbours have other numbers of bits the NPU converts).
    """

    made: Callable[[Bits], onnx.ModelProto]
    layers: Sequence[Layer]
    spared_bits: int
    spares: Literal["worst", "run"]
    max_loss: float
    measures_layers: bool

    def settle(self, evidence: Evidence) -> tuple[Bits, list[Sensitivity]]:
        """Which nodes get other bits so that the loss is met, and what each layer loses alone.

        Layers are measured if that is asked for, or if the worst have to be known.
        """

        def loss(bits: Bits, quick: bool) -> float:
            return evidence.loss(self.made(bits), quick)

        is_met = math.isinf(self.max_loss) or loss({}, False) <= self.max_loss
        if is_met and not self.measures_layers:
            return {}, []
        losses: list[float] = []
        if self.measures_layers or self.spares == "worst":
            losses = sensitivities(
                self.layers, lambda bits: loss(bits, True), FLOAT, evidence.progress
            )
        spared: list[int] = []
        if not is_met:
            runs = [self._spared(order, lambda bits: loss(bits, False))
                    for order in self._orders(losses)]  # fmt: skip
            spared = min(runs, key=lambda run: len(self._sparing(run)))
        table = [
            Sensitivity(layer.title, len(layer.nodes), losses[i] if losses else None,
                        self.spared_bits if i in spared else None)
            for i, layer in enumerate(self.layers)
        ]  # fmt: skip
        return self._sparing(spared), table

    def _orders(self, losses: Sequence[float]) -> list[list[int]]:
        """The orders that layers may be spared in: the worst first, or from either end."""
        if self.spares == "worst":
            return [worst_first(losses)]
        ends = list(range(len(self.layers)))
        return [ends, ends[::-1]]

    def _spared(self, order: Sequence[int], loss: Callable[[Bits], float]) -> list[int]:
        """As few of the layers, in this order, as it takes to meet the bound."""
        count = fewest_spared(len(order), lambda n: loss(self._sparing(order[:n])) <= self.max_loss)
        return list(order[:count])

    def _sparing(self, layers: Sequence[int]) -> Bits:
        return {name: self.spared_bits for i in layers for name in self.layers[i].nodes}
