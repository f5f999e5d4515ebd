"""What people see: tables, progress and notices, through rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from compiler.compare import Comparison
    from compiler.targets.attribution import Share
    from compiler.targets.chips import Chip
    from compiler.targets.htp import CpuNode, Estimate
    from compiler.targets.preflight import Finding

# A pipe has no width of its own: 100 columns hold every table.
_out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
_err = Console(stderr=True, highlight=False)
_COLOURS = {"pass": "green", "fail": "red", "UNVERIFIED": "yellow"}
# Of long lists so many items are shown.
_LISTED = 12
# Rows of a time table that nobody could see on the whole's bar are added up, in parts of the whole.
_SMALLEST_SHOWN = 0.005


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, for terminals."""
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}", justify="left"), BarColumn(),
        TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), console=_err,
        transient=True, disable=not _err.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show


def notice(text: str) -> None:
    """A line that the user should know about, on stderr."""
    _err.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)


def print_build(record: dict[str, Any], folder: Path) -> None:
    """The table of a build, a line a pass, and where everything is."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("pass", overflow="fold")
    for column in ("rewrites", "refused", "nodes", "seconds", "float64", "float32 ≤ bound"):
        table.add_column(column, justify="right", no_wrap=True)
    estimates = [stage["estimate"] for stage in record["stages"]]
    if any(estimates):
        table.add_column("NPU ms", justify="right", no_wrap=True)
    for before, stage in zip([None, *estimates], record["stages"], strict=False):
        latency = [_latency(stage["estimate"], before)] if any(estimates) else []
        table.add_row(*_build_row(stage), *latency)
    _out.print(table)
    _print_remarks(record)
    for line in record.get("target", {}).get("reasons", ()):
        _out.print(f"[dim]{escape(line)}[/]")
    size = sum(path.stat().st_size for path in folder.iterdir())
    _out.print(
        f"\n[bold]{escape(str(folder / 'model.onnx'))}[/]  ({size / 1e6:.0f} MB in the folder)"
    )
    if (folder / "depth.png").exists():
        _out.print(escape(f"{folder / 'depth.png'}  image, depth before, depth after, difference"))
    _out.print(escape(f"{folder / 'report.html'}  what each pass did, drawn; one page"))


def _latency(estimate: dict[str, Any] | None, before: dict[str, Any] | None) -> str:
    """A stage's milliseconds, with what its pass gained or lost."""
    if estimate is None:
        return "–"
    if before is None:
        return f"{estimate['latency_ms']:.2f}"
    change = estimate["latency_ms"] - before["latency_ms"]
    colour = "green" if change < 0 else "red" if change > 0 else "dim"
    return f"{estimate['latency_ms']:.2f} [{colour}]{change:+.2f}[/]"


def _build_row(stage: dict[str, Any]) -> list[str]:
    before, after = stage["nodes_before"], stage["nodes_after"]
    nodes = f"{before} → {after}" if stage["contract"] else str(after)
    counts = (
        [str(stage["rewrites"]), str(len(stage["refusals"]))] if stage["contract"] else ["", ""]
    )
    seconds = f"{stage['seconds']:.1f} + {stage['verify_seconds']:.1f}"
    checks = [_error(stage["float64"]), _error(stage["float32"], with_bound=True)]
    loss = stage.get("loss")
    if loss:  # measured, not proven
        checks = ["approximate", f"{loss['measure']} {loss['value']:.2%}"]
    return [escape(stage["name"].replace(":", "\n  ")), *counts, nodes, seconds, *checks]


def _error(proof: dict[str, Any] | None, *, with_bound: bool = False) -> str:
    if proof is None:
        return "–"
    colour = _COLOURS[proof["status"]]
    if proof["status"] == "UNVERIFIED":
        return f"[{colour}]UNVERIFIED[/]"
    bound = f" ≤ {proof['bound']:.0e}" if with_bound else ""
    return f"[{colour}]{proof['error']:.1e}[/]{bound}"


def _print_remarks(record: dict[str, Any]) -> None:
    stages = record["stages"]
    _out.print(
        "[dim]seconds: pass + its verification. float64: the worst rewrite at its own cut.\n"
        "float32: the whole model. Errors are |difference| / |values − their mean| (L2).[/]"
    )
    for stage in stages:
        for refusal in stage["refusals"]:
            _out.print(
                escape(f"{stage['name']} left {refusal['place']} alone: {refusal['reason']}")
            )
        for note in stage["notes"]:
            _out.print(f"[yellow]{escape(note)}[/]")
        if stage["slices_left"]:
            _out.print(escape(f"{stage['name']}: {stage['slices_left']} slices left"))
        for rung in ("float64", "float32"):
            if stage[rung] and stage[rung]["status"] == "UNVERIFIED":
                _out.print(f"[yellow]{escape(stage['name'])} UNVERIFIED in {rung}:[/] "
                           f"{escape(stage[rung]['detail'])}")  # fmt: skip


def print_comparison(comparison: Comparison) -> None:
    """A line a precision."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("precision", "verdict", "error", "bound", ""):
        table.add_column(column)
    for name, proof in (("float64", comparison.float64), ("float32", comparison.float32)):
        verdict = (
            "differs"
            if proof.status == "fail"
            else "equal"
            if proof.status == "pass"
            else "UNVERIFIED"
        )
        table.add_row(name, f"[{_COLOURS[proof.status]}]{verdict}[/]", f"{proof.error:.3g}",
                      f"{proof.bound:.3g}", escape(proof.detail))  # fmt: skip
    _out.print(table)


def print_estimates(estimates: Sequence[tuple[str, Estimate]], chip: Chip) -> None:
    """A line a model; ratios are to the first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    for column in ("ms", "low to high", "ratio", "fill MB", "spill MB", "binary MB"):
        table.add_column(column, justify="right", no_wrap=True)
    first = estimates[0][1]
    for name, e in estimates:
        megabytes = [f"{n / 1e6:.1f}" for n in (e.fill_bytes, e.spill_bytes, e.context_bytes)]
        span = f"{e.latency_low_ms:.2f} to {e.latency_high_ms:.2f}"
        ratio = f"{e.latency_ms / first.latency_ms:.2f}"
        table.add_row(escape(name), f"{e.latency_ms:.2f}", span, ratio, *megabytes)
    _out.print(table)
    _out.print(f"[dim]simulated for {chip.description}, float16; fill and spill: DRAM traffic[/]")
    for name, e in estimates:
        if e.missing_ops:
            text = f"{name}: {e.missing_ops} ops have no cost; don't trust its latency"
            _out.print(f"[yellow]{escape(text)}[/]")
        _print_cpu_nodes(name, e.cpu_nodes)
    columns = _distinct([name for name, _ in estimates])
    _print_time_table("kind of op", columns, [e.attribution.by_op for _, e in estimates])
    _print_time_table("made by pass", columns, [e.attribution.by_pass for _, e in estimates])
    _out.print(
        "\n[dim]A cycle belongs to the ops that compute in it, in equal parts; when none does, to"
        "\nthose whose data is on its way (waiting). Fused: one NPU op for several nodes.[/]"
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Short names for models: the file's, with as many folders as it takes to tell them apart."""
    parts = [Path(name).with_suffix("").parts for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(own[-count:]) for own in parts]
        if len(set(short)) == len(set(names)):
            break
    return short


def _print_time_table(
    title: str, models: Sequence[str], tables: Sequence[tuple[Share, ...]]
) -> None:
    """Milliseconds a row and model; for a single model also what they are made of."""
    from compiler.targets.attribution import NOT_ATTRIBUTED

    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.add_column(title, overflow="fold")
    names = ["ms"] if len(tables) == 1 else [f"{name} ms" for name in models]
    for column in (
        *names,
        *(["share", "waiting ms", "DRAM MB", "ops"] if len(tables) == 1 else []),
    ):
        table.add_column(column, justify="right", overflow="fold")
    by_name = [{share.name: share for share in shares} for shares in tables]
    totals = [sum(share.ms for share in shares) for shares in tables]

    def most(row: str) -> float:
        return max(s[row].ms / total for s, total in zip(by_name, totals, strict=True) if row in s)

    rows = sorted({name for shares in by_name for name in shares}, key=lambda row: -most(row))
    small = [row for row in rows if row != NOT_ATTRIBUTED and most(row) < _SMALLEST_SHOWN]
    for row in (row for row in rows if row not in small):
        shares = [s.get(row) for s in by_name]
        cells = [f"{share.ms:.2f}" if share else "–" for share in shares]
        if len(tables) == 1 and shares[0]:
            cells += [f"{100 * shares[0].ms / totals[0]:.1f} %", f"{shares[0].waiting_ms:.2f}",
                      f"{shares[0].dram_bytes / 1e6:.1f}", str(shares[0].ops)]  # fmt: skip
        table.add_row(escape(row), *cells)
    if small:
        rest = [sum(s[row].ms for row in small if row in s) for s in by_name]
        table.add_row(f"[dim]{len(small)} smaller rows[/]", *(f"[dim]{ms:.2f}[/]" for ms in rest))
    _out.print()
    _out.print(table)


def print_compiled(output: Path, on_cpu: Sequence[CpuNode]) -> None:
    """Where the binary and its wrapper went, and what the NPU did not take."""
    _out.print(escape(f"{output}  {output.stat().st_size / 1e6:.1f} MB"))
    _out.print(escape(f"{output.with_suffix('.onnx')}  the ONNX wrapper around it"))
    _print_cpu_nodes(str(output), on_cpu)


def print_emulation(record: dict[str, Any]) -> None:
    """How far the NPU's numerics are from float32, and where the picture went."""
    _out.print(
        f"{100 * record['centred_l2']:.3g} % from float32 (|difference| / |values − their mean|), "
        f"{100 * record['max_ratio']:.3g} % of the largest value at most"
    )
    for node in record["cpu_nodes"]:
        _out.print(f"[yellow]{escape(f'on the CPU, in float32: {node}')}[/]", soft_wrap=True)
    _out.print(escape(f"{record['picture']}  image, float32, {record['chip']}, difference"))


def print_findings(findings: Sequence[Finding], target: str) -> None:
    """A line a rule and reason, with the places that it is about; errors first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "rule", "where", "what is wrong", "what to do"):
        table.add_column(column, overflow="fold")
    alike: dict[tuple[bool, str, str, str], list[str]] = {}
    for f in findings:
        alike.setdefault((f.is_error, f.rule, f.problem, f.cure), []).append(f.place)
    for (is_error, rule, problem, cure), places in alike.items():
        kind = "[red]refused[/]" if is_error else "[yellow]warning[/]"
        where = [*places[:3], *([f"… {len(places)} in all"] if len(places) > 3 else [])]
        table.add_row(kind, *map(escape, (rule, "\n".join(where), problem, cure)))
    if findings:
        _out.print(table)
    if not any(finding.is_error for finding in findings):
        _out.print(f"nothing refused by {target}" + (", but see above" if findings else ""))


def _print_cpu_nodes(name: str, nodes: Sequence[CpuNode]) -> None:
    if nodes:
        _out.print(f"[yellow]{escape(f'{name}: {len(nodes)} on the CPU, not the NPU:')}[/]")
    for line in _listed([str(node) for node in nodes]):
        _out.print(f"[yellow]  {escape(line)}[/]", soft_wrap=True)


def print_catalogue(entries: Sequence[dict[str, Any]]) -> None:
    """A line a pass."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("pass", "does", "options", "contract"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(f"[bold]{entry['name']}[/]", escape(entry["does"]),
                      escape("\n".join(_option(*o) for o in entry["options"].items())),
                      escape(entry["contract"].partition(" ")[0].rstrip(",;.")))  # fmt: skip
    _out.print(table)


def _option(name: str, option: dict[str, Any]) -> str:
    values = option["values"]
    choices = "|".join(values) if isinstance(values, list) else values
    default = "" if option["default"] in (None, "") else f" ({option['default']})"
    return f"{name}={choices}{default}"


def print_pass(entry: dict[str, Any]) -> None:
    """A pass whole."""
    _out.print(f"[bold]{entry['name']}[/]: {escape(entry['does'])}\n\n{escape(entry['text'])}")
    for name, option in entry["options"].items():
        _out.print(escape(f"\n    :{_option(name, option)}"))


def _listed(items: Sequence[str]) -> list[str]:
    more = len(items) - _LISTED
    return [*items[:_LISTED], *([f"… and {more} more"] if more > 0 else [])]


def print_run(record: dict[str, Any]) -> None:
    """Where the depth went, and its range."""
    height, width = record["shape"]
    _out.print(escape(f"{record['picture']}  {height}×{width}, {record['min']:.4g} to "
                      f"{record['max']:.4g}, mean {record['mean']:.4g}"))  # fmt: skip
    _out.print(escape(f"{record['values']}  the values, float32"))
