"""Every family of the zoo through split_heads: what was found, split, refused, and proven.

    python -m tools.zoo                                   # all of them: minutes
    python -m tools.zoo --family swin --family t5 --exporter torchscript
    python -m tools.zoo --family vit --opset 23 --json    # one Attention op a layer
    python -m tools.zoo --dynamic --exporter dynamo       # batches of any size, texts of any length

Exit code 1 if anything is wrong, left unexplained or unverified.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.records import json_text
from compiler.rewrite import WHOLE_MODEL

if TYPE_CHECKING:
    import onnx

    from models.zoo import Family, ZooExporter

# What stands between probabilities and values: guards, casts, and moving data.
_PASSED_ON = frozenset(
    {"Cast", "Dropout", "Identity", "IsNaN", "Mul", "Not", "Reshape", "Transpose", "Where"}
)
EXPORTERS = ("dynamo", "torchscript", "skl2onnx")
_SEVERITY = ("pass", "UNVERIFIED", "fail")
_COLOURS = {"pass": "green", "UNVERIFIED": "yellow", "fail": "red"}


@dataclass
class Row:
    """One family from one exporter."""

    family: str
    exporter: str
    opset: int | None = None
    expected: int = 0
    """How many attentions of several heads the network has."""
    one_head: int = 0
    """How many attentions of one head it has, which stay as they are."""
    attentions: int = 0
    """Softmax and Attention ops of the canonicalized model that weigh values."""
    split: int = 0
    refusals: list[dict[str, str]] = field(default_factory=list)
    slices_left: int = 0
    float64: dict[str, Any] | None = None
    """The worst proof of a rewrite, of both passes."""
    float32: dict[str, Any] | None = None
    seconds: float = 0.0
    """Of the build with its verification, without the export."""
    is_dynamic: bool = False
    """Whether batches may have any size, and texts any length."""
    is_unchanged: bool = False
    """Whether split_heads left every byte as it was, and"""
    note: str = ""
    """why there is nothing to split in it."""
    unsupported: str | None = None
    """Why it can't be exported."""
    failure: str | None = None

    @property
    def several_heads(self) -> int:
        """Attentions of several heads: in the graph, or in the network if that has more."""
        return max(self.expected, self.attentions - self.one_head)

    @property
    def unexplained(self) -> int:
        """Attentions of several heads that were neither split nor refused with a reason."""
        return self.several_heads - self.split - len(self.refusals)

    @property
    def status(self) -> str:
        """The worst that happened: pass, UNVERIFIED, fail."""
        is_wrong = self.failure is not None or self.unexplained != 0
        is_wrong = is_wrong or (self.note != "" and not self.is_unchanged)
        if self.unsupported is not None:
            return "pass"
        proofs = [proof["status"] for proof in (self.float64, self.float32) if proof is not None]
        return "fail" if is_wrong else max(proofs, key=_SEVERITY.index, default="pass")


def measure(
    family: Family,
    exporter: ZooExporter,
    folder: Path,
    *,
    opset: int | None = None,
    attention: Literal["eager", "sdpa"] | None = None,
    is_dynamic: bool = False,
) -> Row:
    """Exports a family and builds it in `folder`; what goes wrong is in the row."""
    row = Row(
        family.name, exporter, opset, family.attentions, family.one_head, is_dynamic=is_dynamic
    )
    row.unsupported = family.unsupported.get(exporter)
    if is_dynamic and family.fixed is not None:
        row.unsupported = family.fixed
    if not family.is_installed:
        row.unsupported = "not installed: pip install -e '.[zoo]' -c constraints.txt"
    if row.unsupported is None:
        try:
            _build(row, family, exporter, folder, opset, attention)
        except Exception as error:  # a table of everything has to outlive a bug of ours as well
            row.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return row


def _build(
    row: Row, family: Family, exporter: ZooExporter, folder: Path, opset: int | None,
    attention: Literal["eager", "sdpa"] | None,
) -> None:  # fmt: skip
    import onnx

    import compiler
    from models.zoo import write

    path = write(
        family, folder, exporter, opset=opset, attention=attention, is_dynamic=row.is_dynamic
    )
    versions = onnx.load(path, load_external_data=False).opset_import
    row.opset = next(opset.version for opset in versions if opset.domain in ("", "ai.onnx"))
    start = time.perf_counter()
    build = folder / f"{path.stem}_build"
    record = compiler.build(str(path), "split_heads", output=build, allow_noop=True)
    row.seconds = time.perf_counter() - start
    canonical = onnx.load(build / "01_canonicalize.onnx", load_external_data=False)
    row.attentions = count_attentions(canonical.graph)
    _fill(row, record)


def _fill(row: Row, record: dict[str, Any]) -> None:
    split = record["stages"][-1]
    row.split = split["rewrites"]
    row.refusals = [r for r in split["refusals"] if r["place"] != WHOLE_MODEL]
    row.slices_left = split["slices_left"]
    row.float64 = _worst([stage["float64"] for stage in record["stages"]])
    row.float32 = _worst([stage["float32"] for stage in record["stages"]])
    row.note = "; ".join(r["reason"] for r in split["refusals"] if r["place"] == WHOLE_MODEL)
    files = record["files"]
    row.is_unchanged = files["01_canonicalize.onnx"] == files["02_split_heads.onnx"]


def _worst(proofs: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The proof of the worst status, and of several the one with the greatest error."""
    known = [proof for proof in proofs if proof is not None]
    return max(known, key=lambda p: (_SEVERITY.index(p["status"]), p["error"] or 0.0), default=None)


def count_attentions(graph: onnx.GraphProto) -> int:
    """How many Softmax ops weigh values (a product reads their probabilities), and Attention ops.

    It knows nothing of how split_heads finds them.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return sum(
        node.op_type == "Attention" or (node.op_type == "Softmax" and _weighs_values(node, users))
        for node in graph.node
    )


def _weighs_values(softmax: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> bool:
    seen = {softmax.output[0]}
    pending = list(seen)
    while pending:
        for user in users.get(pending.pop(), []):
            if user.op_type in ("MatMul", "Einsum"):
                return True
            if user.op_type in _PASSED_ON and user.output[0] not in seen:
                seen.add(user.output[0])
                pending.append(user.output[0])
    return False


def main(
    family: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    exporter: Annotated[
        list[str] | None, typer.Option(help="dynamo, torchscript, skl2onnx; repeatable.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of the export; else 18 and 17.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="eager or sdpa; else what transformers takes.")
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Batches of any size, texts of any length.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Builds each family from each exporter and prints a table."""
    # A pipe has no width of its own: 110 columns hold the table.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    errors = Console(stderr=True)
    rows = []
    for row in _rows(family, exporter, opset, attention, is_dynamic=dynamic):
        errors.print(f"[dim]{row.family} {row.exporter} {row.seconds:.1f} s[/]")
        rows.append(row)
    if as_json:
        print(json_text([{**asdict(row), "unexplained": row.unexplained} for row in rows]))
    else:
        print_rows(rows, console)
    raise typer.Exit(int(any(row.status != "pass" for row in rows)))


def _rows(
    names: list[str] | None, exporters: list[str] | None, opset: int | None, attention: str | None,
    *, is_dynamic: bool,
) -> Iterator[Row]:  # fmt: skip
    from models.zoo import FAMILIES

    known = [family.name for family in FAMILIES]
    _check("family", names, known)
    _check("exporter", exporters, EXPORTERS)
    if attention not in (None, "eager", "sdpa"):
        raise typer.BadParameter(f"--attention is eager or sdpa, not {attention!r}")
    for family in FAMILIES:
        for exporter in family.exporters:
            if family.name in (names or known) and exporter in (exporters or family.exporters):
                with tempfile.TemporaryDirectory() as folder:
                    yield measure(
                        family, exporter, Path(folder), opset=opset, is_dynamic=is_dynamic,
                        attention=attention,  # type: ignore[arg-type]
                    )  # fmt: skip


def _check(what: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in given or []:
        if name not in known:
            raise typer.BadParameter(f"no {what} {name!r}: {', '.join(known)}")


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """The table, what was refused or went wrong, and a summary."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("family", no_wrap=True)
    table.add_column("exporter", no_wrap=True)
    for column in (
        "opset", "found", "split", "one head", "refused", "slices", "float64", "float32 ≤ bound",
        "s",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.family), row.exporter, *_cells(row))
    console.print(table)
    for row in rows:
        for colour, line in _remarks(row):
            text = f"[{colour}]{escape(f'{row.family} {row.exporter}: {line}')}[/]"
            console.print(text, soft_wrap=True)
    console.print(_summary(rows), soft_wrap=True)


def _cells(row: Row) -> list[str]:
    opset = "–" if row.opset is None else str(row.opset)
    if row.unsupported is not None or row.failure is not None:
        return [opset, "[red]failed[/]" if row.failure else "[dim]no export[/]"]
    split = (
        str(row.split) if row.unexplained == 0 else f"[red]{row.split} of {row.several_heads}[/]"
    )
    return [opset, str(row.attentions), split, str(row.one_head), str(len(row.refusals)),
            str(row.slices_left), _error(row.float64), _error(row.float32, with_bound=True),
            f"{row.seconds:.1f}"]  # fmt: skip


def _error(proof: dict[str, Any] | None, *, with_bound: bool = False) -> str:
    if proof is None:
        return "–"
    if proof["status"] == "UNVERIFIED":
        return "[yellow]UNVERIFIED[/]"
    bound = f" ≤ {proof['bound']:.0e}" if with_bound else ""
    return f"[{_COLOURS[proof['status']]}]{proof['error']:.1e}[/]{bound}"


def _remarks(row: Row) -> Iterator[tuple[str, str]]:
    if row.unsupported is not None:
        yield "dim", row.unsupported
    if row.failure is not None:
        yield "red", row.failure
    elif row.unsupported is None and row.unexplained:
        more = "s" if row.unexplained != 1 else ""
        yield "red", f"{row.unexplained} attention{more} neither split nor refused"
    if row.note and row.is_unchanged:
        yield "dim", f"unchanged, byte for byte: {row.note}"
    elif row.note:
        yield "red", f"changed, though there is {row.note}"
    for refusal in row.refusals:
        yield "default", f"left {refusal['place']} alone: {refusal['reason']}"
    for rung, proof in (("float64", row.float64), ("float32", row.float32)):
        if proof is not None and proof["status"] != "pass":
            yield _COLOURS[proof["status"]], f"{rung}: {proof['status']}: {proof['detail']}"


def _summary(rows: Sequence[Row]) -> str:
    built = [row for row in rows if row.failure is None and row.unsupported is None]
    failed = sum(row.failure is not None for row in rows)
    split, several = sum(row.split for row in rows), sum(row.several_heads for row in built)
    return (
        f"{len({row.family for row in rows})} families, {len(built)} models built, {failed} failed;"
        f" {split} of {several} attentions split, {sum(len(row.refusals) for row in rows)} refused,"
        f" {sum(row.slices_left for row in rows)} slices left,"
        f" {sum(row.status == 'UNVERIFIED' for row in rows)} unverified,"
        f" {sum(row.seconds for row in rows):.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
