"""Latency against error, a point a candidate."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure as Drawing

from compiler.tuning.figures import Figures, pareto

# Okabe and Ito's colours: apart for every eye, and in grey.
_EXACT, _APPROXIMATE, _FRONT = "#0072B2", "#E69F00", "#D55E00"
# float32 gives no candidate an error of zero; a line that a logarithm can show.
_LEAST_ERROR = 1e-9


def drawn(candidates: Sequence[Figures], best: Figures) -> bytes:
    """The PNG: the mean latency relative to the stock model's against the error, from 0 up."""
    drawing = Drawing(figsize=(8, 4.6), layout="constrained")
    axis = drawing.subplots()
    usable = [c for c in candidates if c.measurements]
    for label, colour, exact in (("exact", _EXACT, True), ("approximate", _APPROXIMATE, False)):
        group = [c for c in usable if (c.loss is None) is exact]
        if group:
            axis.scatter(*_points(group), s=22, color=colour, label=label, zorder=2)
    front = pareto(usable)
    axis.plot(*_points(front), color=_FRONT, linewidth=1, zorder=1, label="none is better in both")
    axis.scatter(*_points([best]), s=110, facecolors="none", edgecolors=_FRONT, zorder=3,
                 label=f"chosen, {best.ms:.2f} ms")  # fmt: skip
    axis.set_yscale("log")
    axis.set_xlim(left=0)
    axis.set_xlabel("latency, % of the stock model's, mean over chips and schedules")
    axis.set_ylabel("error: float32's rounding, or the loss")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    content = io.BytesIO()
    drawing.savefig(content, dpi=150, format="png", metadata={"Software": None})
    return content.getvalue()


def _points(candidates: Sequence[Figures]) -> tuple[list[float], list[float]]:
    scores = [100 * c.score for c in candidates]
    return scores, [max(c.deviation, _LEAST_ERROR) for c in candidates]
