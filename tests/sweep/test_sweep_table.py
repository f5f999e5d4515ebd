"""Rows as a table, as CSV and as a plot."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from compiler.sweep.plot import drawn
from compiler.sweep.table import as_csv, as_table, dram_bytes, remarks

EMPTY = {
    "variant": "a", "model": "net.onnx", "weights": "auto", "size": None, "passes": "",
    "nodes": None, "cpu_ms": None, "simulated_ms": None, "simulated_low_ms": None,
    "simulated_high_ms": None, "fill_bytes": None, "spill_bytes": None, "missing_ops": None,
    "cpu_nodes": None, "hub_ms": None, "published_ms": None, "error": None,
}  # fmt: skip
WHOLE = EMPTY | {
    "variant": "b", "nodes": 1097, "cpu_ms": 1234.5678, "simulated_ms": 44.004,
    "simulated_low_ms": 38.09, "simulated_high_ms": 53.16, "fill_bytes": 116_400_000,
    "spill_bytes": 60_000_000, "missing_ops": 0, "cpu_nodes": [], "published_ms": 88.9,
}  # fmt: skip
FAILED = EMPTY | {"variant": "c", "error": "building: pass 'x' rewrote nothing, " + "because " * 20}
RECORD = {"title": "T", "chip": "iq-9075", "device": None, "published": "old tools",
          "notes": [], "cpu": {"runs": 5}, "rows": [EMPTY, WHOLE, FAILED]}  # fmt: skip


def printed(rows) -> list[str]:
    out = Console(file=io.StringIO(), width=100, highlight=False)
    out.print(as_table(rows))
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_csv_has_every_figure_in_full_and_what_is_unknown_empty():
    rows = list(csv.DictReader(io.StringIO(as_csv(RECORD["rows"]))))
    assert [row["variant"] for row in rows] == ["a", "b", "c"]
    b = rows[1]
    assert (b["cpu_ms"], b["simulated_ms"]) == ("1234.5678", "44.004")
    assert (b["fill_bytes"], b["spill_bytes"]) == ("116400000", "60000000")
    assert b["dram_bytes"] == "176400000"
    assert (b["published_ms"], b["error"]) == ("88.9", "")
    assert {rows[0][key] for key in ("nodes", "cpu_ms", "dram_bytes", "published_ms")} == {""}
    assert rows[2]["error"] == FAILED["error"]


def test_dram_traffic_is_both_ways():
    assert dram_bytes(WHOLE) == 176_400_000
    assert dram_bytes(EMPTY) is None


def test_the_table_rounds_and_leaves_out_what_nobody_knows():
    header, a, b = printed([EMPTY, WHOLE])
    expected = "variant nodes CPU ms simulated ms low to high DRAM MB published ms"
    assert header.split() == expected.split()
    assert a == "a"
    assert b.split() == ["b", "1097", "1235", "44.00", "38.09", "to", "53.16", "176.4", "88.9"]
    assert "published" not in printed([EMPTY])[0]


def test_a_device_adds_its_column():
    rows = [WHOLE | {"hub_ms": 33.25}]
    header, line = printed(rows)
    assert "AI Hub ms" in header
    assert line.split()[-2:] == ["33.2", "88.9"]


@pytest.mark.parametrize(
    ("error", "column"),
    [
        ("building: no", "nodes"),
        ("estimating: no", "simulated ms"),
        ("on a phone: no", "AI Hub ms"),
    ],
)
def test_what_failed_is_in_its_column(error, column):
    row = WHOLE | {"nodes": None, "simulated_ms": None, "simulated_low_ms": None, "hub_ms": None}
    columns = as_table([row | {"error": error}]).columns
    assert [c.header for c in columns if any("failed" in cell for cell in c.cells)] == [column]
    assert remarks({**RECORD, "rows": [row | {"error": error}]}, Path("o"))[0] == f"b, {error}"


def test_a_long_reason_is_cut_below_the_table():
    first = remarks(RECORD, Path("out"))[0]
    assert first.startswith("c, building: pass 'x' rewrote nothing")
    assert first.endswith("…")
    assert len(first) < 170


REMARKS = {
    "published figures": ({}, "published: old tools."),
    "missing ops": ({"missing_ops": 2}, "b: ops without a cost in the simulation: 2; don't trust"),
    "nodes on the CPU": (
        {"cpu_nodes": [{}, {}]},
        "b: nodes on the CPU, not the NPU: 2; sweep.json",
    ),
}


@pytest.mark.parametrize("case", REMARKS)
def test_what_has_to_be_known_is_said(case):
    change, expected = REMARKS[case]
    lines = remarks({**RECORD, "rows": [WHOLE | change]}, Path("out"))
    assert any(line.startswith(expected) for line in lines), lines
    clean = remarks({**RECORD, "rows": [WHOLE | {"published_ms": None}]}, Path("out"))
    assert not any(line.startswith(expected) for line in clean)


def test_the_plot_grows_with_what_is_known():
    heights = []
    for rows in ([EMPTY], [WHOLE], [WHOLE, WHOLE | {"variant": "d", "hub_ms": 30.0}]):
        record = {**RECORD, "device": "Galaxy", "rows": rows}
        image = Image.open(io.BytesIO(drawn(record)))
        assert image.width == 1350
        heights.append(image.height)
    assert heights == sorted(set(heights))


def test_a_plot_is_the_same_every_time():
    assert drawn(RECORD) == drawn(RECORD)
