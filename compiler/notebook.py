"""Builds and diffs as they show themselves: tables in a notebook, and as text in a terminal."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

_COLUMNS = ("pass", "rewrites", "refused", "nodes", "seconds", "float64", "float32 ≤ bound")
_COLOURS = {"pass": "#1e8449", "fail": "#c0392b", "UNVERIFIED": "#b9770e"}
_STYLES = {
    "removed": "color:#c0392b", "added": "color:#1e8449", "title": "color:#1f5fbf;font-weight:bold",
    "heading": "font-weight:bold", "dim": "opacity:.7", "good": "color:#1e8449",
    "bad": "color:#c0392b;font-weight:bold",
}  # fmt: skip


class BuildRecord(dict[str, Any]):
    """What `build.json` holds, and the folder that was built; shows itself as the build's table."""

    def __init__(self, record: Mapping[str, Any], folder: Path) -> None:
        """Takes the record over.

        Args:
            record: what `build.json` holds.
            folder: where the build is.
        """
        super().__init__(record)
        self.folder = folder

    def __repr__(self) -> str:
        """The table as text: `print(record)`, or the value at the end of a cell."""
        rows = [list(_COLUMNS), *(_cells(stage) for stage in self["stages"])]
        return "\n".join([*_aligned(rows), *_remarks(self), f"{self.folder / 'model.onnx'}"])

    def _repr_html_(self) -> str:
        """The table, the remarks and the depth picture, for notebooks."""
        head = "".join(f"<th style='text-align:right'>{escape(c)}</th>" for c in _COLUMNS)
        rows = "".join(_html_row(stage) for stage in self["stages"])
        remarks = "".join(f"<div>{escape(remark)}</div>" for remark in _remarks(self))
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{remarks}"
            f"<div><code>{escape(str(self.folder / 'model.onnx'))}</code></div>"
            f"{_picture(self.folder / 'depth.png')}"
        )


class StyledLine(Protocol):
    """A line of a diff's text."""

    @property
    def text(self) -> str:
        """The line itself."""

    @property
    def style(self) -> str:
        """`removed`, `added`, `title` or another style."""


def lines_html(lines: Iterable[StyledLine]) -> str:
    """The lines of a diff as a notebook shows them: as in the terminal, coloured."""
    return "".join(
        f"<div style='white-space:pre;font-family:monospace;{_STYLES.get(line.style, '')}'>"
        f"{escape(line.text) or '&nbsp;'}</div>"
        for line in lines
    )


def _cells(stage: Mapping[str, Any]) -> list[str]:
    is_source = not stage["contract"]
    after = stage["nodes_after"]
    return [
        stage["name"],
        "" if is_source else str(stage["rewrites"]),
        "" if is_source else str(len(stage["refusals"])),
        str(after) if is_source else f"{stage['nodes_before']} → {after}",
        f"{stage['seconds']:.1f} + {stage['verify_seconds']:.1f}",
        *_checks(stage),
    ]


def _checks(stage: Mapping[str, Any]) -> list[str]:
    loss = stage.get("loss")
    if loss:  # measured, not proven
        return ["approximate", f"{loss['measure']} {loss['value']:.2%}"]
    return [_proof(stage["float64"]), _proof(stage["float32"], with_bound=True)]


def _proof(proof: Mapping[str, Any] | None, *, with_bound: bool = False) -> str:
    if proof is None:
        return "–"
    if proof["status"] == "UNVERIFIED" or proof["error"] is None:
        return str(proof["status"])
    return f"{proof['error']:.1e}" + (f" ≤ {proof['bound']:.0e}" if with_bound else "")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _remarks(record: Mapping[str, Any]) -> list[str]:
    return [
        text
        for stage in record["stages"]
        for text in [
            *(f"{stage['name']} left {r['place']} alone: {r['reason']}" for r in stage["refusals"]),
            *stage["notes"],
        ]
    ]


def _html_row(stage: Mapping[str, Any]) -> str:
    name, *cells = _cells(stage)
    colours = [""] * (len(cells) - 2) + [_colour(stage["float64"]), _colour(stage["float32"])]
    return (
        f"<tr><td style='text-align:left'><code>{escape(name)}</code></td>"
        + "".join(f"<td style='text-align:right{colour}'>{escape(cell)}</td>"
                  for cell, colour in zip(cells, colours, strict=True))
        + "</tr>"
    )  # fmt: skip


def _colour(proof: Mapping[str, Any] | None) -> str:
    return "" if proof is None else f";color:{_COLOURS[proof['status']]}"


def _picture(path: Path) -> str:
    """The depth picture inside the notebook, which may be opened elsewhere."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    alternative = "image, depth before, depth after, difference"
    return f"<img alt='{alternative}' src='data:image/png;base64,{data}'>"
