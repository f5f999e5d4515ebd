"""The NPU's simulated latency of Depth Anything V2, stock and ours, side by side in one run.

    python -m tools.npu                      # Small: every row of the README's table
    python -m tools.npu --large              # and Base and Large
    python -m tools.npu --chip sa8797 --markdown

Stock is what the exporter writes, through the provider alone; ours is a pipeline, every rewrite
verified. Weights are twins: random everywhere, so that nothing folds away. What has been built in
the output folder is not built again.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compiler.targets.htp import EDGE_OPS

_ROWS = Path(__file__).with_name("npu.toml")
# The model of a row whose graph is that of Depth Anything V2's own code (tests/models/official.py).
OFFICIAL = "official"


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
    chip: Annotated[str, typer.Option(help="iq-9075, sa8775 or sa8797.")] = "iq-9075",
    large: Annotated[bool, typer.Option("--large", help="Base and Large, too.")] = False,
    output: Annotated[Path, typer.Option("-o", help="Folder of the builds.")] = Path("sweep/npu"),
    markdown: Annotated[bool, typer.Option("--markdown", help="The README's table.")] = False,
) -> None:
    """Prints the table."""
    from compiler.sweep.grid import read_grid
    from compiler.sweep.running import sweep

    description = tomllib.loads(_ROWS.read_text("utf-8"))
    wanted = [row for row in description["rows"] if large or not row.get("large")]
    grid_file = output / "npu.toml"
    output.mkdir(parents=True, exist_ok=True)
    _write_official(output, wanted)
    grid_file.write_text(grid_of(description, wanted), "utf-8")
    record = sweep(read_grid(str(grid_file)), output, chip=chip, verify="final", runs=1)
    rows = rows_of(wanted, record["rows"], chip)
    if markdown:
        print(as_markdown(rows))
    else:
        Console().print(_table(rows))


def grid_of(description: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The sweep's description: two variants a row, `NAME-stock` and `NAME-ours`."""
    pipelines = description["pipelines"]
    lines = ['title = "Simulated latency, stock and ours"']
    for row in rows:
        for kind in ("stock", "ours"):
            passes = row[kind].format(**pipelines)
            lines += [
                "[[axes.row]]",
                f'label = "{row["name"]}-{kind}"',
                *_model_lines(row),
                f'passes = "{passes}"',
            ]
    return "\n".join(lines) + "\n"


def _model_lines(row: Mapping[str, Any]) -> list[str]:
    if row.get("model") == OFFICIAL:
        return [f'model = "{_official_file(row)}"']
    model = row.get("model", "dav2-small")
    return [f'model = "{model}"', f"size = {row['size']}", 'weights = "twin:0"']


def _official_file(row: Mapping[str, Any]) -> str:
    return f"{OFFICIAL}-{row['size']}.onnx"


def _write_official(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Exports the official network, with random weights, where a row needs it."""
    code = importlib.import_module("tests.models.official")  # tests are not type-checked
    for row in rows:
        path = folder / _official_file(row)
        if row.get("model") == OFFICIAL and not path.exists():
            side = row["size"]
            code.export_official(code.official_model(), path, side, side, "torchscript", 17)


def rows_of(
    wanted: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]], chip: str
) -> list[Row]:
    """The table's rows from those of the sweep; targets are of the chip iq-9075."""
    found = {row["variant"]: row for row in measured}
    rows = []
    for row in wanted:
        stock, ours = (found[f"{row['name']}-{kind}"] for kind in ("stock", "ours"))
        target = row.get("target_ms") if chip == "iq-9075" else None
        error = stock["error"] or ours["error"] or _doubt(stock) or _doubt(ours)
        rows.append(Row(row["name"], stock["simulated_ms"], ours["simulated_ms"], target,
                        ours["passes"], error))  # fmt: skip
    return rows


def _doubt(row: Mapping[str, Any]) -> str:
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
