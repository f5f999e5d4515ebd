"""The NPU's simulated latency, stock and ours, side by side in one run.

    python -m tools.npu                      # Depth Anything V2 Small
    python -m tools.npu large zoo            # Base and Large; other models at their real sizes
    python -m tools.npu --chip sa8797 --markdown

Stock is what the exporter writes, through the provider alone; ours is a pipeline, every rewrite
verified. Weights are twins: random everywhere, so that nothing folds away. What has been built in
the output folder is not built again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compiler.targets.htp import EDGE_OPS
from tools.npu_models import OFFICIAL, file_of, write

DESCRIPTION = tomllib.loads(Path(__file__).with_name("npu.toml").read_text("utf-8"))
Described = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A line: a model or a pipeline, stock beside ours, in simulated ms; None where it failed."""

    name: str
    stock_ms: float | None
    ours_ms: float | None
    target_ms: float | None
    pipeline: str
    error: str

    @property
    def ratio(self) -> float | None:
        """Ours in parts of stock."""
        if self.stock_ms is None or self.ours_ms is None:
            return None
        return self.ours_ms / self.stock_ms


def main(
    groups: Annotated[list[str] | None, typer.Argument(help=", ".join(DESCRIPTION["rows"]))] = None,
    chip: Annotated[str, typer.Option(help="iq-9075, sa8775 or sa8797.")] = "iq-9075",
    output: Annotated[Path, typer.Option("-o", help="Folder of the builds.")] = Path("sweep/npu"),
    markdown: Annotated[bool, typer.Option("--markdown", help="The README's table.")] = False,
) -> None:
    """Prints the table of some groups of rows."""
    from compiler.sweep.grid import read_grid
    from compiler.sweep.running import sweep

    wanted = rows_in(groups or ["small"])
    grid_file = output / "npu.toml"
    output.mkdir(parents=True, exist_ok=True)
    for row in wanted:
        if _is_exported(row):
            write(output, row["model"], row["size"], DESCRIPTION["models"])
    grid_file.write_text(grid_of(wanted), "utf-8")
    record = sweep(read_grid(str(grid_file)), output, chip=chip, verify="final", runs=1)
    rows = rows_of(wanted, record["rows"], chip)
    if markdown:
        print(as_markdown(rows))
    else:
        Console().print(_table(rows))


def rows_in(groups: Sequence[str]) -> list[Described]:
    """The described rows of groups, in their order. Raises typer.BadParameter for another name."""
    known: Mapping[str, list[Described]] = DESCRIPTION["rows"]
    for group in groups:
        if group not in known:
            raise typer.BadParameter(f"no group {group!r}: there are {', '.join(known)}")
    return [row for group in dict.fromkeys(groups) for row in known[group]]


def grid_of(rows: Sequence[Described]) -> str:
    """The sweep's description: each variant once, though rows may share what is stock to them."""
    lines = ['title = "Simulated latency, stock and ours"']
    for description, label in _first_labels(rows).items():
        lines += ["[[axes.row]]", f'label = "{label}"', *description]
    return "\n".join(lines) + "\n"


def _first_labels(rows: Sequence[Described]) -> dict[tuple[str, ...], str]:
    """Each description of a variant, labelled `NAME-stock` or `NAME-ours` by its first row."""
    labels: dict[tuple[str, ...], str] = {}
    for row in rows:
        for kind in ("stock", "ours"):
            labels.setdefault(_description(row, kind), f"{row['name']}-{kind}")
    return labels


def _description(row: Described, kind: str) -> tuple[str, ...]:
    passes = row.get(kind, "").format(**DESCRIPTION["pipelines"])
    return (*_model_lines(row), f'passes = "{passes}"')


def _is_exported(row: Described) -> bool:
    return row["model"] in OFFICIAL or row["model"] in DESCRIPTION["models"]


def _model_lines(row: Described) -> list[str]:
    if _is_exported(row):
        return [f'model = "{file_of(row["model"], row["size"])}"']
    return [f'model = "{row["model"]}"', f"size = {row['size']}", 'weights = "twin:0"']


def rows_of(wanted: Sequence[Described], measured: Sequence[Described], chip: str) -> list[Row]:
    """The table's rows from those of the sweep; targets are of the chip iq-9075."""
    found, labels = {row["variant"]: row for row in measured}, _first_labels(wanted)
    rows = []
    for row in wanted:
        stock, ours = (found[labels[_description(row, kind)]] for kind in ("stock", "ours"))
        target = row.get("target_ms") if chip == "iq-9075" else None
        error = stock["error"] or ours["error"] or _doubt(stock) or _doubt(ours)
        rows.append(Row(row["name"], stock["simulated_ms"], ours["simulated_ms"], target,
                        ours["passes"], error))  # fmt: skip
    return rows


def _doubt(row: Described) -> str:
    """Why a simulation is not to be trusted."""
    if row["missing_ops"]:
        return f"{row['missing_ops']} ops without a cost"
    strays = [node for node in row["cpu_nodes"] or () if node["op"] not in EDGE_OPS]
    return f"{len(strays)} nodes on the CPU" if strays else ""


def as_markdown(rows: Sequence[Row]) -> str:
    """The table for the README."""
    lines = ["| | stock ms | ours ms | ratio | target ms |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None)
    for column in ("", "stock ms", "ours ms", "ratio", "target ms"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    numbers = (row.stock_ms, row.ours_ms, row.ratio, row.target_ms)
    cells = ["–" if number is None else f"{number:.2f}" for number in numbers]
    return [row.name + (f" ({row.error})" if row.error else ""), *cells]


if __name__ == "__main__":
    typer.run(main)
