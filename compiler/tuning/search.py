"""The search: one choice at a time, as long as one makes the best candidate faster.

A candidate has a handful of choices that hardly depend on each other, and a measurement takes half
a minute: coordinate descent finds in two or three rounds what a grid would in hundreds of builds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from compiler.tuning.figures import Figures
from compiler.tuning.space import Candidate, Space

# Less than this part of the latency is no gain; a longer pipeline has to earn it.
LEAST_GAIN = 0.001

Measure = Callable[[Sequence[Candidate]], Sequence[Figures]]


def search(
    space: Space, measure: Measure, *, is_over: Callable[[], bool], max_loss: float = math.inf
) -> Figures | None:
    """What is known of the best candidate found; None if none could be measured.

    Args:
        space: what may be tried.
        measure: gives the figures of candidates, in their order; known ones at no cost.
        is_over: whether the time is spent; asked between batches.
        max_loss: what a candidate may lose; more is not taken. (A pass has a bound of its own.)

    The stock pipeline and the recommended one come first, then every slot's alternatives at the
    best so far, round by round until a round gains nothing, then the order of its passes.
    """
    walk = _Walk(space, measure, max_loss)
    walk.step([space.base, space.recommended()])
    gained = True
    while gained and not is_over():
        gained = False
        for slot in space.slots:
            gained |= not is_over() and walk.step(space.alternatives(walk.best, slot))
        if not gained and not is_over():
            gained = walk.step(list(space.reordered(walk.best)))
    return walk.figures


class _Walk:
    """The best so far, and how it is replaced."""

    def __init__(self, space: Space, measure: Measure, max_loss: float) -> None:
        self.best: Candidate = space.base
        self.figures: Figures | None = None
        self._measure, self._max_loss = measure, max_loss

    def step(self, candidates: Sequence[Candidate]) -> bool:
        """Measures candidates, takes the best if it is better, and says whether it was."""
        found = list(zip(candidates, self._measure(candidates), strict=True))
        before = self.best
        for candidate, figures in sorted(found, key=lambda pair: pair[1].score):
            if self._is_better(candidate, figures):
                self.best, self.figures = candidate, figures
        return self.best != before

    def _is_better(self, candidate: Candidate, figures: Figures) -> bool:
        if self.figures is None:
            return not figures.error
        if figures.error or (figures.loss or 0.0) > self._max_loss:
            return False
        if len(candidate) < len(self.best):
            return figures.score < self.figures.score * (1 + LEAST_GAIN)
        return figures.score < self.figures.score * (1 - LEAST_GAIN)
