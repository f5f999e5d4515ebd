"""What is known of a candidate: how fast it is beside the stock model, and how exact."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """A latency somewhere, beside the stock model's in the same place, in ms.

    `missing_ops` of the stock model have no cost in the simulation: its latency is at least that.
    """

    where: str
    ms: float
    stock_ms: float
    missing_ops: int = 0

    @property
    def ratio(self) -> float:
        """Below 1 where the candidate is faster."""
        return self.ms / self.stock_ms


@dataclass(frozen=True)
class Figures:
    """A candidate's record.

    `effective` is the pipeline without the passes that found nothing: it names the model. `float64`
    is the worst error of a rewrite at its cut, `float32` the whole model's, `loss` that of an
    approximate pass (None if there is none). `error` says why there are no measurements.
    """

    pipeline: str
    effective: str = ""
    measurements: tuple[Measurement, ...] = ()
    float64: float | None = None
    float32: float | None = None
    loss: float | None = None
    error: str = ""

    @property
    def score(self) -> float:
        """The geometric mean of the ratios: over chips, and over schedules of each."""
        if not self.measurements:
            return math.inf
        return statistics.geometric_mean(m.ratio for m in self.measurements)

    @property
    def ms(self) -> float:
        """The latency in the first place that was asked for."""
        return self.measurements[0].ms if self.measurements else math.inf

    @property
    def deviation(self) -> float:
        """How far the numbers are from the source model's: the loss, or float32's rounding."""
        return self.loss if self.loss is not None else self.float32 or 0.0

    def record(self) -> dict[str, Any]:
        """For tune.json."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Figures:
        """From tune.json."""
        measurements = tuple(Measurement(**m) for m in record["measurements"])
        return cls(**{**record, "measurements": measurements})


def pareto(candidates: Iterable[Figures]) -> list[Figures]:
    """Those that no other beats in both score and deviation, fastest first; one a model."""
    front: list[Figures] = []
    usable = [c for c in candidates if c.measurements]
    for one in sorted(usable, key=lambda c: (c.score, _class(c), c.deviation)):
        if all(_class(one) < _class(other) for other in front):
            front.append(one)
    return front


def _class(figures: Figures) -> float:
    """Exact candidates deviate by the rounding of float32 alone: none is better than another."""
    return 0.0 if figures.loss is None else figures.loss
