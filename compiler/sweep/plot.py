"""A sweep as a bar chart."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's colours: apart for every eye, and in grey.
_SERIES = {
    "simulated_ms": ("simulated, {chip}, with its bounds", "#0072B2"),
    "hub_ms": ("AI Hub, {device}", "#E69F00"),
    "published_ms": ("published", "#999999"),
}


def drawn(record: Mapping[str, Any]) -> bytes:
    """The PNG: a group of bars a variant, a bar for each latency that is known."""
    rows = record["rows"]
    shown = [key for key in _SERIES if any(row[key] is not None for row in rows)]
    bars = sum(row[key] is not None for row in rows for key in shown)
    figure = Figure(figsize=(9, 1.8 + 0.22 * bars + 0.2 * len(rows)), layout="constrained")
    axis = figure.subplots()
    centres, place = [], 0.0
    for row in rows:
        known = [key for key in shown if row[key] is not None]
        centres.append(place + (max(len(known), 1) - 1) / 2)
        for offset, key in enumerate(known):
            _bar(axis, place + offset, row, key)
        place += max(len(known), 1) + 0.9
    axis.set_yticks(centres, [row["variant"] for row in rows])
    axis.invert_yaxis()
    axis.margins(x=0.1, y=0.02)
    _frame(figure, axis, record, shown)
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png", metadata={"Software": None})
    return content.getvalue()


def _bar(axis: Any, place: float, row: Mapping[str, Any], key: str) -> None:
    value, end = row[key], row[key]
    axis.barh(place, value, height=0.9, color=_SERIES[key][1])
    low, high = row["simulated_low_ms"], row["simulated_high_ms"]
    if key == "simulated_ms" and low is not None and high is not None:
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], color="black",
                      elinewidth=1, capsize=2.5)  # fmt: skip
        end = high
    doubt = " *" if key == "simulated_ms" and row["missing_ops"] else ""
    offset = {"xytext": (4, 0), "textcoords": "offset points"}
    axis.annotate(f"{value:.1f}{doubt}", (end, place), **offset, va="center", fontsize=8)


def _frame(figure: Figure, axis: Any, record: Mapping[str, Any], shown: list[str]) -> None:
    axis.set_xlabel("ms")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title(record["title"], loc="left", fontsize=11)
    for key in shown:
        name, colour = _SERIES[key]
        axis.barh(0, 0, color=colour, label=name.format_map(record))
    if shown:
        axis.legend(loc="lower right", frameon=False, fontsize=9)
    notes = []
    if "published_ms" in shown and record["published"]:
        notes.append(f"published: {record['published']}")
    if any(row["missing_ops"] for row in record["rows"]):
        notes.append("* ops without a cost: not to be trusted")
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=8, color="#555555")
