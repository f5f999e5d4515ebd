"""The pipeline for a target, measured on the model itself: `build --target htp --chip iq-9075`.

All recommended passes are measured together and with each left out; one that costs is left out. If
they can't be measured together, what can with one left out takes their place. The result is the
fastest of what was measured, so that it is never slower than the stock model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
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
from compiler.tuning.space import Candidate, Space
from compiler.workers.tasks import memory_budget

Target = Literal["htp", "cpu"]
IDLE = "finds nothing to do"


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
    source: Path, passes: str, target: Target, chip: str | None, scratch: Path,
    images: Path | None = None, progress: Progress = nothing,
) -> Recommendation:  # fmt: skip
    """The fastest of the recommended pipelines for a model file, measured without verification.

    Args:
        source: the model, as exported.
        passes: what every pipeline has: a resize, a flip average.
        target: `htp`, simulated for `chip`, or `cpu`, timed on this machine.
        chip: a chip without a simulation is judged by those that have one.
        scratch: an existing folder for the time being, on a disk that holds some builds.
        images: for approximate passes, as `compiler.build` takes them.
        progress: told (what, done, total).

    Raises UserError where nothing can be measured, or the stock model can't be.
    """
    judge = judge_for(target, chip)
    base = tuple(pipeline_text([pass_]) for pass_ in parse_pipeline(passes))
    space = Space.around(base)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        stock = Path(folder) / STOCK
        stock.mkdir()
        stages = build_stages(
            source, parse_pipeline(",".join(["canonicalize", *base])), stock, allow_noop=True,
            verify="none", failures=stock, images=images,
        )  # fmt: skip
        bench = Measuring(
            stages[1].path, stock, judge, memory_budget(None), verify="none", images=images,
            progress=progress,
        )  # fmt: skip
        best, together = _fastest(bench, space)
    measured = list(bench.known.values())
    reasons = _reasons(space, judge, measured, best, together)
    return Recommendation(target, chip, best, measured, reasons)


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


@dataclass(frozen=True)
class _Together:
    """Passes measured together, and with each of those left out that does something."""

    passes: Candidate
    figures: Figures
    without: Mapping[str, Figures]

    @property
    def costly(self) -> list[str]:
        """The passes that cost, the worst first; where all can't be measured, what prevents it."""
        bound = self.figures.score * (1 - LEAST_GAIN)
        found = [text for text, left in self.without.items() if left.score < bound]
        return sorted(found, key=lambda text: self.without[text].score)


def _fastest(bench: Measuring, space: Space) -> tuple[Figures, _Together]:
    """The best of stock, all recommended passes, each left out, and all left out that cost."""
    (stock,) = bench.measure([space.base])
    if stock.error:
        raise UserError(f"the model as it is can't be measured: {stock.error}")
    together = _measured_together(bench, space, space.recommended())
    while together.figures.error and together.costly:
        passes = _without(together.passes, together.costly[:1])
        together = _measured_together(bench, space, passes)
    rest = bench.measure([_without(together.passes, together.costly)])
    found = [stock, together.figures, *together.without.values(), *rest]
    best = min((f for f in found if not f.error), key=lambda f: (f.score, len(f.effective)))
    return best, together


def _measured_together(bench: Measuring, space: Space, passes: Candidate) -> _Together:
    (figures,) = bench.measure([passes])
    working = [
        text for text in passes
        if text not in space.base and (figures.error or text in figures.effective.split(","))
    ]  # fmt: skip
    left = bench.measure([_without(passes, [text]) for text in working])
    return _Together(passes, figures, dict(zip(working, left, strict=True)))


def _without(candidate: Candidate, texts: Sequence[str]) -> Candidate:
    return tuple(text for text in candidate if text not in texts)


def _reasons(
    space: Space, judge: Judge, measured: Sequence[Figures], best: Figures, together: _Together
) -> list[str]:
    """A line for each recommended pass: what it is worth, why it is left out."""
    everything = space.recommended()
    whole = next(f for f in measured if f.pipeline == ",".join(everything))
    where, kept = " and ".join(judge.places), best.effective.split(",")
    lines = [f"measured on {where}; stock is {_stock_share(measured[0])}, all recommended passes "
             f"{_share(whole)}"]  # fmt: skip
    for text in everything:
        if text not in space.base:
            built = [f for f in measured if not f.error and text in f.pipeline.split(",")]
            is_idle = bool(built) and all(text not in f.effective.split(",") for f in built)
            verdict = IDLE if is_idle else _verdict(text, kept, together, whole)
            lines.append(f"{text}: {verdict}")
    return lines


def _verdict(text: str, kept: Sequence[str], together: _Together, whole: Figures) -> str:
    taken = "taken" if text in kept else "left out"
    if text not in together.without:
        return f"{taken}, with it {_share(whole)}"
    return f"{taken}, without it {_share(together.without[text])}"


def _stock_share(stock: Figures) -> str:
    missing = max((m.missing_ops for m in stock.measurements), default=0)
    return f"100 % or more ({missing} of its ops have no cost)" if missing else "100 %"


def _share(figures: Figures) -> str:
    """The latency as a part of the stock model's, or why there is none."""
    return f"no build: {figures.error}" if figures.error else f"{figures.score:.1%}"
