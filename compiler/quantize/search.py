"""Which layers lose how much, and how many of the worst must keep more bits to meet a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compiler.quantize.layers import Layer

Bits = Mapping[str, int]
"""Numbers of bits by the nodes' names, where they are not those of the rest."""


@dataclass(frozen=True)
class Sensitivity:
    """What a model loses when this layer alone is approximated (None: not asked), and its bits."""

    layer: str
    nodes: int
    loss: float | None
    spared_bits: int | None = None


def sensitivities(
    layers: Sequence[Layer], loss: Callable[[Bits], float], kept_bits: int,
    progress: Callable[[str, int, int], None],
) -> list[float]:  # fmt: skip
    """The loss of each layer alone: every other one keeps `kept_bits`."""
    found = []
    for done, layer in enumerate(layers):
        progress(f"approximating {layer.title} alone", done, len(layers))
        others = {name: kept_bits for one in layers if one is not layer for name in one.nodes}
        found.append(loss(others))
    return found


def fewest_spared(least: int, most: int, is_met: Callable[[int], bool]) -> int:
    """The least number of the worst layers to spare, from `least` to `most`, by bisection.

    More spared layers are taken to lose less. That `most` do is not asked.
    """
    low, high = least, most
    while low < high:
        middle = (low + high) // 2
        if is_met(middle):
            high = middle
        else:
            low = middle + 1
    return low


def worst_first(losses: Sequence[float]) -> list[int]:
    """The positions of layers, the one that loses most first; the first of equals first."""
    return sorted(range(len(losses)), key=lambda i: -losses[i])
