"""Binary search for the first bad model of a row, and what is said on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compiler.bisect.checks import Verdict


@dataclass(frozen=True)
class Interval:
    """Positions of a row: the last one known to be good, and the first known to be bad."""

    good: int
    bad: int

    @property
    def left(self) -> int:
        """How many may be the culprit."""
        return self.bad - self.good


def first_bad(
    count: int, verdict: Callable[[int], Verdict], told: Callable[[Interval, int, Verdict], None]
) -> Interval:
    """The smallest interval found, given that position 0 is good and position `count` is bad.

    A position that can't be told is passed over, as by `git bisect skip`.
    """
    found, skipped = Interval(0, count), set[int]()
    while True:
        middle = (found.good + found.bad) // 2
        open_ones = [k for k in range(found.good + 1, found.bad) if k not in skipped]
        if not open_ones:
            return found
        position = min(open_ones, key=lambda k: abs(k - middle))
        said = verdict(position)
        match said:
            case "good":
                found = Interval(position, found.bad)
            case "bad":
                found = Interval(found.good, position)
            case "skip":
                skipped.add(position)
        told(found, position, said)
