"""Numbers for dynamic sizes: of each symbol one, the same wherever it stands.

Different symbols get different small numbers, so that a size taken for another shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.region import BEFORE, TensorType

Shape = tuple[int, ...]
Types = Mapping[str, TensorType]

DISTINCT = (2, 3, 5, 7, 4, 6, 9, 11, 8, 13)
# Image models take multiples of their patches or of their coarsest feature map.
SCALES = (1, 2, 4, 8, 14, 16, 28, 32, 64)
MAX_GUESSES = 48


@dataclass(frozen=True)
class Sizes:
    """One choice: what symbols stand for, and what shape each tensor of the model then has."""

    symbols: Mapping[str, int]
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def bind(self, types: Types) -> dict[str, TensorType]:
        """The types with numbers for dynamic sizes, as far as these are known."""
        return {name: self._bound(name, kind) for name, kind in types.items()}

    def _bound(self, name: str, kind: TensorType) -> TensorType:
        known = self.shapes.get(name.removesuffix(BEFORE))
        if known is not None and kind.admits(known):
            return replace(kind, shape=known)
        if kind.shape is None:
            return kind
        sizes = [self._size(key, d) for key, d in zip(_keys(name, kind), kind.shape, strict=True)]
        return replace(kind, shape=tuple(sizes))

    def _size(self, key: str, size: int | str | None) -> int | str | None:
        """The number for a size, which may be a sum of others: `past_length + 1`."""
        if isinstance(size, int):
            return size
        parts = [part.strip() for part in key.split("+")]
        numbers = [int(p) if p.isdecimal() else self.symbols.get(p) for p in parts]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else self.symbols.get(key, size)


def is_static(types: Types) -> bool:
    """Whether every size is a number."""
    return all(kind.fixed_shape is not None for kind in types.values())


def symbols_of(types: Types) -> dict[str, int]:
    """The symbols in order of their first place, with the axis of that place."""
    found: dict[str, int] = {}
    for name, kind in types.items():
        for axis, (key, size) in enumerate(zip(_keys(name, kind), kind.shape or (), strict=True)):
            if not isinstance(size, int):
                for part in (part.strip() for part in key.split("+")):
                    if not part.isdecimal():
                        found.setdefault(part, axis)
    return found


def likely_sizes(types: Types) -> Iterator[Sizes]:
    """Sizes for the inputs of a model: small and different ones first, then what images need."""
    symbols = symbols_of(types)
    for scale, turn in itertools.product(SCALES, range(2)):
        numbers = DISTINCT[turn:] + DISTINCT[:turn]
        yield Sizes({
            symbol: number * (scale if axis else 1)
            for (symbol, axis), number in zip(symbols.items(), itertools.cycle(numbers))
        })  # fmt: skip
    for same in (1, 2, 8):
        yield Sizes(dict.fromkeys(symbols, same))


def guessed_sizes(types: Types, rng: np.random.Generator) -> Iterator[Sizes]:
    """Sizes for a cut of which nothing is known but its symbols."""
    symbols = list(symbols_of(types))
    yield Sizes(dict(zip(symbols, itertools.cycle(DISTINCT), strict=False)))
    yield Sizes(dict(zip(symbols, itertools.cycle(DISTINCT[1:]), strict=False)))
    for _ in range(MAX_GUESSES):
        drawn = rng.choice(np.arange(1, 17), len(symbols), replace=len(symbols) > 16)
        yield Sizes({symbol: int(size) for symbol, size in zip(symbols, drawn, strict=True)})


def _keys(name: str, kind: TensorType) -> list[str]:
    """A name for every dimension: its own, or that of its place."""
    return [size if isinstance(size, str) and size else f"{name}[{axis}]"
            for axis, size in enumerate(kind.shape or ())]  # fmt: skip
