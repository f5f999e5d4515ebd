"""What `tune` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.tuning.figures import Figures

# Rows of the table of runners-up.
_SHOWN = 8


def print_tuning(record: Mapping[str, Any], folder: Path) -> None:
    """The Pareto table, the runners-up, how much of the gain is luck, and the winning pipeline."""
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    candidates = [Figures.of(candidate) for candidate in record["candidates"]]
    best = Figures.of(record["best"])
    out.print(_table(candidates, best, record["pareto"]))
    for line in remarks(candidates, best):
        out.print(f"[dim]{escape(line)}[/]")
    stopped = "" if record["finished"] else "  (the time was up: run it again to go on)"
    out.print(f"{len(candidates)} candidates{stopped}; {folder / 'tune.png'}, tune.json\n")
    out.print(f"[bold]--passes {escape(best.effective or chr(34) * 2)}[/]", soft_wrap=True)
    out.print(escape(f"built and verified: {folder / 'best'}"))


def remarks(candidates: list[Figures], best: Figures) -> list[str]:
    """How much faster the best is, and how much of that survives other schedules and chips."""
    here, mean = best.measurements[0], 1 - best.score
    lines = [f"{here.where}: {here.stock_ms:.2f} → {here.ms:.2f} ms, {here.ratio - 1:+.1%}"]
    if len(best.measurements) > 1:
        each = ", ".join(f"{m.where} {m.ratio - 1:+.1%}" for m in best.measurements)
        gain = 1 - here.ratio
        kept = f"{mean / gain:.0%} of the gain survives" if gain > 0 else "no gain"
        lines.append(f"the mean over {len(best.measurements)} schedules: {-mean:+.1%}; {kept} "
                     f"({each})")  # fmt: skip
    failed = [c for c in candidates if c.error]
    lines += [f"left out: {c.pipeline or 'stock'}: {c.error}" for c in failed]
    return lines


def _table(candidates: list[Figures], best: Figures, front: list[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("pipeline", overflow="fold")
    for name in ("ms", "mean", "float64", "float32", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for figures in _shown(candidates, best, front):
        mark = "pareto" if figures.effective in front else ""
        mark = "[green]best[/]" if figures.effective == best.effective else mark
        table.add_row(mark, *_cells(figures))
    return table


def _shown(candidates: list[Figures], best: Figures, front: list[str]) -> list[Figures]:
    """The best, the Pareto front and the runners-up, each model once; the stock model last."""
    stock, *others = candidates
    ranked = sorted((c for c in others if c.measurements), key=lambda c: c.score)
    unique = {c.effective: c for c in reversed(ranked) if c.effective != stock.effective}
    wanted = {best.effective, *front, *list(reversed(unique))[:_SHOWN]}
    found = [c for c in unique.values() if c.effective in wanted]
    return [*sorted(found, key=lambda c: c.score), stock]


def _cells(figures: Figures) -> list[str]:
    return [
        escape(figures.effective.replace(",", ", ") or "stock"),
        f"{figures.ms:.2f}",
        f"{figures.score:.1%}",
        *("–" if e is None else f"{e:.1e}" for e in (figures.float64, figures.float32)),
        "–" if figures.loss is None else f"{figures.loss:.2%}",
    ]
