"""Writes `report.html` of a build's folder: tables by the template, pictures by the page itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from compiler.building import write_whole
from compiler.diff.recorded import Record
from compiler.diff.side import Side
from compiler.records import read_record
from compiler.report.data import PageData, drawn_kinds
from compiler.report.kinds import kinds_of
from compiler.report.stages import StageGraph, read_stages

REPORT_NAME = "report.html"
LAYOUT = "dagre-3.1.3"
_PICTURES = {
    "depth.png": "The image, the depth of the source model, the depth of the built one, and their "
    "difference.",
    "depth_error.png": "Error heat map: where the depth changed, and by how much.",
}


def write_report(folder: Path) -> Path:
    """Writes the report into the folder of a build, from what is there, and returns its path.

    Raises UserError if the folder is not a build, or one of a version that kept no rewrites.
    """
    record = read_record(folder)
    reports = record["stages"]
    names = [stage["stage"] for stage in reports]
    rewrites, stages = Record.read(folder, record, names), read_stages(folder, names)
    data = PageData(stages)
    changed = rewrites.changes(Side.load(rewrites.steps[0]))
    kinds = {
        after.name: drawn_kinds(data, kinds_of(changes, before, after), before, after)
        for (before, after), (_, changes) in zip(pairwise(stages), changed, strict=True)
    }
    page = _environment().get_template("report.html.jinja").render(
        record=record, stages=reports, kinds=kinds, summary=_summary(reports), passes=data.passes,
        op_counts=_op_counts(stages), sizes=_sizes(folder, record),
        pictures=_pictures(folder), data=data.json(), asset=_asset, layout=LAYOUT,
    )  # fmt: skip
    path = folder / REPORT_NAME
    write_whole(path, page.encode())
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compiler.report", "assets"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"error": _error, "size": _size, "headroom": _headroom}
    return environment


def _asset(name: str) -> str:
    """A file of ours to stand in a style or script element; it holds no end tag."""
    text = resources.files("compiler.report").joinpath("assets", name).read_text("utf-8")
    return text.partition("//# sourceMappingURL")[0]


def _summary(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    proofs = [stage[rung] for stage in stages for rung in ("float64", "float32", "whole_float64")
              if stage[rung]]  # fmt: skip
    statuses = {proof["status"] for proof in proofs}
    status = next((s for s in ("fail", "UNVERIFIED", "pass") if s in statuses), "not verified")
    is_approximate = any(stage.get("loss") for stage in stages)
    return {
        "status": "approximate" if is_approximate and status == "pass" else status,
        "rewrites": sum(stage["rewrites"] for stage in stages),
        "refusals": sum(len(stage["refusals"]) for stage in stages),
        "seconds": sum(stage["seconds"] for stage in stages),
        "verify_seconds": sum(stage["verify_seconds"] for stage in stages),
        "float64": _worst(stages, "float64"),
        "float32": _worst(stages, "float32"),
        "estimates": [stage["estimate"] for stage in stages if stage["estimate"]],
    }


def _worst(stages: Sequence[Mapping[str, Any]], rung: str) -> Mapping[str, Any] | None:
    """The check that came closest to its bound."""
    proofs = [stage[rung] for stage in stages if stage[rung] and stage[rung]["error"] is not None]
    return max(proofs, key=lambda proof: float(proof["error"] / proof["bound"]), default=None)


def _op_counts(stages: Sequence[StageGraph]) -> list[tuple[str, list[int]]]:
    """(operator, its count in each stage), the most frequent of the last stage first."""
    counts = [stage.op_counts for stage in stages]
    ops = sorted({op for count in counts for op in count}, key=lambda op: (-counts[-1][op], op))
    return [(op, [count[op] for count in counts]) for op in ops]


def _sizes(folder: Path, record: Mapping[str, Any]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in record["files"]
            if (folder / name).exists()}  # fmt: skip


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """(caption, data URI) of each picture that the build has."""
    return [
        (
            caption,
            f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}",
        )
        for name, caption in _PICTURES.items()
        if (folder / name).exists()
    ]


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value else "0"


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes} B"


def _headroom(proof: Mapping[str, Any]) -> float:
    """How much of its bound an error takes, in percent."""
    if proof["error"] is None or not proof["bound"]:
        return 100.0
    return min(100.0, 100 * float(proof["error"] / proof["bound"]))
