"""The pipeline for a target, measured on the model itself: `build --target htp --chip iq-9075`.

All recommended passes are measured together and with each left out; one that costs is left out. The
result is the fastest of what was measured, so that it is never slower than the stock model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compiler.building import build_stages
from compiler.errors import UserError
from compiler.pipeline import parse_pipeline, pipeline_text
from compiler.progress import Progress, nothing
from compiler.targets.chips import CHIPS, chip_named
from compiler.tuning.figures import Figures
from compiler.tuning.judges import Judge
from compiler.tuning.measuring import STOCK, Measuring
from compiler.tuning.search import LEAST_GAIN
from compiler.tuning.space import Candidate, Space, name_of
from compiler.workers.tasks import memory_budget

Target = Literal["htp", "cpu"]


@dataclass(frozen=True)
class Recommendation:
    """A pipeline, and what was measured on the way to it: the stock model first."""

    target: Target
    chip: str | None
    best: Figures
    measured: Sequence[Figures]
    reasons: Sequence[str]

    def record(self) -> dict[str, Any]:
        """For build.json."""
        return {
            "name": self.target, "chip": self.chip, "pipeline": self.best.effective,
            "reasons": list(self.reasons),
            "measured": [figures.record() for figures in self.measured],
        }  # fmt: skip


def recommend(
    source: Path, passes: str, target: Target, chip: str | None, progress: Progress = nothing
) -> Recommendation:
    """The fastest of the recommended pipelines for a model file, measured without verification.

    Args:
        source: the model, as exported.
        passes: what every pipeline has: a resize, a flip average.
        target: `htp`, simulated for `chip`, or `cpu`, timed on this machine.
        chip: a chip without a simulation is judged by those that have one.

    Raises UserError where nothing can be measured, or the stock model can't be.
    """
    judge = judge_for(target, chip)
    base = tuple(pipeline_text([pass_]) for pass_ in parse_pipeline(passes))
    space = Space.around(base)
    with tempfile.TemporaryDirectory() as folder:
        stock = Path(folder) / STOCK
        stock.mkdir()
        stages = build_stages(
            source, parse_pipeline(",".join(["canonicalize", *base])), stock, allow_noop=True,
            verify="none", failures=stock,
        )  # fmt: skip
        bench = Measuring(
            stages[1].path, stock, judge, memory_budget(None), verify="none", progress=progress
        )
        best = _fastest(bench, space)
    measured = list(bench.known.values())
    return Recommendation(target, chip, best, measured, _reasons(space, bench, judge, best))


def judge_for(target: Target, chip: str | None) -> Judge:
    """The judge of a target. Raises UserError for what can't be measured here."""
    if target == "cpu":
        if chip is not None:
            raise UserError(f"--target cpu is this machine's: it takes no --chip {chip}")
        return Judge()
    found = chip_named(chip or "iq-9075")
    simulated = [c.name for c in CHIPS.values() if c.gives_estimates]
    judge = Judge((found.name,) if found.gives_estimates else tuple(simulated), schedules=1)
    judge.check()
    return judge


def _fastest(bench: Measuring, space: Space) -> Figures:
    """The best of stock, all recommended passes, each left out, and all left out that cost."""
    (stock,) = bench.measure([space.base])
    if stock.error:
        raise UserError(f"the model as it is can't be measured: {stock.error}")
    everything = space.recommended()
    (whole,) = bench.measure([everything])
    without = {text: _without(everything, [text]) for text in everything if text not in space.base}
    figures = dict(zip(without, bench.measure(list(without.values())), strict=True))
    costly = [text for text, left in figures.items() if left.score < whole.score * (1 - LEAST_GAIN)]
    found = [stock, whole, *figures.values(), *bench.measure([_without(everything, costly)])]
    return min((f for f in found if not f.error), key=lambda f: (f.score, len(f.effective)))


def _without(candidate: Candidate, texts: Sequence[str]) -> Candidate:
    return tuple(text for text in candidate if text not in texts)


def _reasons(space: Space, bench: Measuring, judge: Judge, best: Figures) -> list[str]:
    """A line for each recommended pass: what it is worth, why it is left out."""
    everything = space.recommended()
    whole = bench.known[",".join(everything)]
    where = " and ".join(judge.places)
    lines = [f"measured on {where}; stock is 100 %, all recommended passes {whole.score:.1%}"]
    kept = {name_of(text) for text in best.effective.split(",")}
    for text in everything:
        if text in space.base:
            continue
        left = bench.known[",".join(_without(everything, [text]))]
        lines.append(f"{text}: {_verdict(name_of(text) in kept, whole, left, text)}")
    return lines


def _verdict(is_kept: bool, whole: Figures, left: Figures, text: str) -> str:
    if whole.error:
        return f"not taken: {whole.error}"
    if text not in whole.effective.split(","):
        return "finds nothing to do"
    change = f"without it {left.score:.1%}"
    return f"taken, {change}" if is_kept else f"left out, {change}"
