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

        def is_met(bits: Bits) -> bool:
            return evidence.loss(self.made(bits), False) <= self.max_loss

        def is_enough(bits: Bits) -> bool:
            return evidence.judged(self.made(bits)) <= self.max_loss

        met_by_all = math.isinf(self.max_loss) or (is_met({}) and is_enough({}))
        if met_by_all and not self.measures_layers:
            return {}, []
        losses: list[float] = []
        if self.measures_layers or self.spares == "worst":
            losses = sensitivities(
                self.layers, lambda bits: evidence.loss(self.made(bits), True), FLOAT,
                evidence.progress,
            )  # fmt: skip
        spared = [] if met_by_all else self._spared(self._orders(losses), is_met, is_enough)
        return self._sparing(spared), self._table(losses, spared)

    def _table(self, losses: Sequence[float], spared: Sequence[int]) -> list[Sensitivity]:
        return [
            Sensitivity(layer.title, len(layer.nodes), losses[i] if losses else None,
                        self.spared_bits if i in spared else None)
            for i, layer in enumerate(self.layers)
        ]  # fmt: skip

    def _orders(self, losses: Sequence[float]) -> list[list[int]]:
        """The orders that layers may be spared in: the worst first, or from either end."""
        if self.spares == "worst":
            return [worst_first(losses)]
        ends = list(range(len(self.layers)))
        return [ends, ends[::-1]]

    def _spared(
        self, orders: Sequence[list[int]], is_met: Callable[[Bits], bool],
        is_enough: Callable[[Bits], bool],
    ) -> list[int]:  # fmt: skip
        """As few of the layers, in one of the orders, as it takes to meet the bound.

        `is_met` chooses the order and the number. Where that is not enough for the images that
        judge, more are spared in the same order, so that these decide no more than where to stop.
        """

        def fewest(order: list[int], least: int, asked: Callable[[Bits], bool]) -> list[int]:
            count = fewest_spared(least, len(order), lambda n: asked(self._sparing(order[:n])))
            return order[:count]

        runs = [fewest(order, 1, is_met) for order in orders]
        spared = min(runs, key=lambda run: len(self._sparing(run)))
        order = orders[runs.index(spared)]
        if len(spared) == len(order) or is_enough(self._sparing(spared)):
            return spared
        return fewest(order, len(spared) + 1, is_enough)

    def _sparing(self, layers: Sequence[int]) -> Bits:
        return {name: self.spared_bits for i in layers for name in self.layers[i].nodes}
