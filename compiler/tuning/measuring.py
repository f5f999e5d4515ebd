"""Candidates measured by workers in parallel; each pipeline, and each model, once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compiler.errors import UserError
from compiler.progress import Progress, nothing
from compiler.tuning.figures import Figures
from compiler.tuning.judges import Judge
from compiler.tuning.space import Candidate
from compiler.workers.tasks import Needs, Outcome, Task, run_tasks

STOCK = "stock"
_KIND = ("candidate",)
_NEVER = float("inf")


@dataclass
class Measuring:
    """Measures pipelines on `source`, the canonical model, beside the build `stock` of it.

    `verify` is how each candidate is verified before it is judged: `final` or `none`. `images` are
    for approximate passes, as `compiler.build` takes them. `budget` is the memory for all workers,
    in bytes; `deadline` in seconds of the monotonic clock. `changed` is told after every candidate;
    workers keep the file descriptors `locks` open.
    """

    source: Path
    stock: Path
    judge: Judge
    budget: int
    verify: Literal["final", "none"] = "final"
    images: Path | None = None
    deadline: float = _NEVER
    locks: Sequence[int] = ()
    progress: Progress = nothing
    changed: Callable[[], object] = lambda: None
    known: dict[str, Figures] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)

    def is_over(self) -> bool:
        """Whether the time is spent."""
        return time.monotonic() > self.deadline

    def measure(self, candidates: Sequence[Candidate]) -> list[Figures]:
        """The figures of candidates, in their order; the stock model has to be the first ever.

        What isn't known when the time is spent has figures without measurements. Raises UserError
        where the disk is full.
        """
        texts = [",".join(candidate) for candidate in candidates]
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        at_once = os.cpu_count() or 1
        while new and not self.is_over():
            # The stock model runs alone: what it measures, the others are measured beside.
            chunk = new[: at_once if self.known else 1]
            self._run(chunk)
            new = new[len(chunk) :]
        late = "no time left: give more --minutes"
        return [self.known.get(text, Figures(text, error=late)) for text in texts]

    def _run(self, pipelines: Sequence[str]) -> None:
        tasks = [Task(text or STOCK, _KIND, self._job(text)) for text in pipelines]
        slots = None if self.judge.is_parallel else 1
        run_tasks(
            tasks, self._keep, needs=self.needs, budget=self.budget, slots=slots,
            what=f"{len(self.known)} measured; now", progress=self.progress, keep_open=self.locks,
        )  # fmt: skip

    def _job(self, pipeline: str) -> dict[str, Any]:
        measured = [figures for figures in self.known.values() if figures.measurements]
        return {
            "does": "candidate", "source": str(self.source), "stock": str(self.stock),
            "pipeline": pipeline, "verify": self.verify, "judge": asdict(self.judge),
            "images": self.images and str(self.images),
            "known": {m.where: m.stock_ms for figures in measured for m in figures.measurements},
            "measured": [figures.effective for figures in measured],
        }  # fmt: skip

    def _keep(self, task: Task, outcome: Outcome) -> None:
        pipeline = task.job["pipeline"]
        if outcome.is_disk_full:  # it would be the same for every other candidate
            raise UserError(f"{outcome.error}; free it or choose -o")
        if outcome.error:
            figures = Figures(pipeline, error=outcome.error)
        else:
            figures = Figures.of(outcome.record)
        if not self.known:  # the stock model beside itself: what a clock sees there is noise
            same = tuple(replace(m, ms=m.stock_ms) for m in figures.measurements)
            figures = replace(figures, measurements=same)
        twins = (f for f in self.known.values() if f.effective == figures.effective)
        twin = next((f for f in twins if f.measurements), None)
        if twin is not None and not figures.error:
            figures = replace(figures, measurements=twin.measurements)
        self.known[pipeline] = figures
        self.changed()
