"""A sweep's rows as a table for people, and as CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = Mapping[str, Any]

# A reason below the table is cut to this many characters; sweep.json has it whole.
_FEW_WORDS = 160


def as_csv(rows: Sequence[Row]) -> str:
    """A line a variant, with every key of the record and `dram_bytes`, fill and spill together."""
    text = io.StringIO()
    keys = [key for key in rows[0] if key != "cpu_nodes"]
    keys.insert(keys.index("spill_bytes") + 1, "dram_bytes")
    writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "dram_bytes": dram_bytes(row)} for row in rows)
    return text.getvalue()


def dram_bytes(row: Row) -> int | None:
    """Traffic with DRAM in one inference, both ways; None without an estimate."""
    fill, spill = row["fill_bytes"], row["spill_bytes"]
    return None if fill is None or spill is None else fill + spill


def as_table(rows: Sequence[Row]) -> Table:
    """A line a variant; columns in which nothing is known are left out, but for the simulation."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("variant", overflow="fold")
    columns = _columns(rows)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row["variant"]), *(column(row) for column in columns.values()))
    return table


def remarks(record: Mapping[str, Any], folder: Path) -> list[str]:
    """What a reader has to know beside the table, a line each; first why variants failed."""
    rows = record["rows"]
    runs = record["cpu"]["runs"]
    lines = [f"{row['variant']}, {_few_words(row['error'])}" for row in rows if row["error"]]
    lines += [f"CPU: median of {runs} interleaved runs, this machine. Simulated: {record['chip']}, "
             "float16. DRAM: fill + spill."]  # fmt: skip
    if any(row["published_ms"] for row in rows) and record["published"]:
        lines.append(f"published: {record['published']}.")
    for row in rows:
        if row["missing_ops"]:
            lines.append(f"{row['variant']}: ops without a cost in the simulation: "
                         f"{row['missing_ops']}; don't trust its latency")  # fmt: skip
        if row["cpu_nodes"]:
            lines.append(f"{row['variant']}: nodes on the CPU, not the NPU: "
                         f"{len(row['cpu_nodes'])}; sweep.json names them")  # fmt: skip
    lines.append(f"{folder / 'sweep.csv'}  the table; sweep.json: all of it; sweep.png: the plot")
    return lines


def print_sweep(record: Mapping[str, Any], folder: Path) -> None:
    """The table, and what has to be known beside it, on stdout."""
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    out.print(f"[bold]{escape(record['title'])}[/]")
    out.print(as_table(record["rows"]))
    for line in remarks(record, folder):
        out.print(f"[dim]{escape(line)}[/]")


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """The cells of a row by the column's name."""
    columns: dict[str, Callable[[Row], str]] = {
        "nodes": lambda row: _cell(row, "nodes", 0),
        "CPU ms": lambda row: _cell(row, "cpu_ms", 0 if (row["cpu_ms"] or 0) >= 100 else 1),
        "simulated ms": lambda row: _cell(row, "simulated_ms", 2),
        "low to high": _span,
        "DRAM MB": _megabytes,
    }
    for name, key in (("AI Hub ms", "hub_ms"), ("published ms", "published_ms")):
        if any(row[key] is not None or _has_failed(row, key) for row in rows):
            columns[name] = partial(_cell, key=key, digits=1)
    return columns


def _cell(row: Row, key: str, digits: int) -> str:
    if _has_failed(row, key):
        return "[red]failed[/]"
    return "" if row[key] is None else f"{row[key]:.{digits}f}"


def _has_failed(row: Row, key: str) -> bool:
    """Whether a row's error is about this figure: errors begin with what was being done."""
    doing = (row["error"] or "").replace(":", " ").partition(" ")[0]
    return {"building": "nodes", "estimating": "simulated_ms", "on": "hub_ms"}.get(doing) == key


def _megabytes(row: Row) -> str:
    nbytes = dram_bytes(row)
    return "" if nbytes is None else f"{nbytes / 1e6:.1f}"


def _span(row: Row) -> str:
    low, high = row["simulated_low_ms"], row["simulated_high_ms"]
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _few_words(reason: str) -> str:
    return reason if len(reason) <= _FEW_WORDS else f"{reason[: _FEW_WORDS - 1]}…"
