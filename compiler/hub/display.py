"""Tables of jobs and profiles, through rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from compiler.hub.profile import Group, Profile

# A pipe has no width of its own: 100 columns hold every table.
_out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
_COLOURS = {"SUCCESS": "green", "FAILED": "red"}


def print_jobs(jobs: Sequence[dict[str, Any]]) -> None:
    """A line a job."""
    if not jobs:
        _out.print("no jobs yet")
        return
    table = _table(("job", "kind", "status", "device", "created", "name"))
    for job in jobs:
        status = f"[{_COLOURS.get(job['status'], 'yellow')}]{escape(job['status'])}[/]"
        row = (job["kind"], None, job["device"], job["created"], job["name"])
        table.add_row(job["id"], *(status if c is None else escape(c) for c in row))
    _out.print(table)
    for job in jobs:
        if job["reason"]:
            _out.print(f"[red]{escape(job['id'])}:[/] {escape(job['reason'])}", soft_wrap=True)


def print_devices(devices: Sequence[dict[str, str]]) -> None:
    """A line a device."""
    table = _table(("device", "version", "chipset"))
    for device in devices:
        table.add_row(*(escape(device[key]) for key in ("name", "os", "chipset")))
    _out.print(table)


def print_done(record: dict[str, Any]) -> None:
    """What a chain did: its jobs, with whom they are shared, and where its files are."""
    rows = [("compile", record["job"])]
    rows += [("run", run["job"]) for run in record["runs"] if run["job"]["id"]]
    _out.print(escape(f"{record['device']}  {record['options']}"), soft_wrap=True)
    for kind, job in rows:
        status = f"[{_COLOURS.get(job['status'], 'yellow')}]{escape(job['status'])}[/]"
        line = f"  {kind:8}{escape(job['id']):12}{status}  {escape(job['url'])}"
        _out.print(line, soft_wrap=True)
    if record["shared_with"]:
        _out.print(escape(f"  shared with {', '.join(record['shared_with'])}"), soft_wrap=True)


def print_profile(profile: Profile) -> None:
    """Latency and memory, then three tables: compute units, passes, slowest layers."""
    memory, load = profile.peak_memory_bytes, profile.first_load_ms
    words = [f"[bold]{profile.latency_ms:.2f} ms[/] latency"]
    words += [f"{memory / 1e6:.0f} MB peak memory"] if memory else []
    words += [f"{load:.0f} ms to load at first"] if load else []
    _out.print("\n" + ", ".join(words))
    for title, groups in (("compute unit", profile.compute_units), ("pass", profile.passes)):
        if groups:
            _out.print()
            _out.print(_groups_table(title, groups, profile.unit))
    if profile.slowest:
        _out.print()
        _out.print(_layers_table(profile))
    _out.print()


def print_depth(depth: dict[str, Any]) -> None:
    """Where the device's depth went, and how far it is from the local one."""
    height, width = depth["shape"]
    span = f"{height}×{width}, {depth['min']:.4g} to {depth['max']:.4g}"
    _out.print(escape(f"{depth['picture']}  depth on the device, {span}"), soft_wrap=True)
    _out.print(escape(f"{depth['values']}  the values, float32"), soft_wrap=True)
    if depth["error"] is None:
        _out.print("[dim]give the model in place of the job to compare with the depth here[/]")
    else:
        _out.print(f"[bold]{depth['error']:.2e}[/] |device − here| / |here − its mean| (L2)")


def print_file(path: str, what: str) -> None:
    """Where a file is."""
    _out.print(escape(f"{path}  {what}"), soft_wrap=True)


def _groups_table(title: str, groups: Sequence[Group], unit: str) -> Table:
    table = _table((title,), ("layers", unit, "share"))
    for group in groups:
        numbers = (str(group.layers), f"{group.cost:,}", f"{group.share:.1%}")
        table.add_row(escape(group.name), *numbers)
    return table


def _layers_table(profile: Profile) -> Table:
    made_by = ("made by",) if profile.passes else ()
    table = _table(("slowest layer", "op", "on", *made_by), (profile.unit, "share"))
    for layer in profile.slowest:
        words = (layer.name, layer.op, layer.compute_unit, layer.made_by)[: 3 + len(made_by)]
        numbers = (f"{layer.cost:,}", f"{layer.share:.1%}")
        table.add_row(*map(escape, words), *numbers)
    return table


def _table(words: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for word in words:
        table.add_column(word, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table
