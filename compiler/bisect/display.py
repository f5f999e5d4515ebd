"""What a bisection prints."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

# A pipe has no width of its own: 100 columns hold every line.
_out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def print_step(text: str) -> None:
    """A step of the search, as it is taken."""
    _out.print(escape(text), soft_wrap=True)


def print_bisection(record: dict[str, Any]) -> None:
    """The first bad pass and rewrite, what it cost to find them, and where the reproducer is."""
    titles = record["rewrites"]
    what = titles[0] if len(titles) == 1 else f"one of {', '.join(titles)} (the check can't tell)"
    _out.print(f"[bold]{escape(what)}[/] is the first bad rewrite, of pass {record['number']} of "
               f"{record['passes']} ({escape(record['pass'])})", soft_wrap=True)  # fmt: skip
    if record["detail"]:
        _out.print(escape(record["detail"]), soft_wrap=True)
    _out.print(f"{record['checks']} models checked in {record['seconds']:.0f} s")
    if record["reproducer"]:
        replay = "replay.sh and a text for a bug report" if record["replays"] else "what is known"
        _out.print(escape(f"{record['reproducer']}  {replay}"), soft_wrap=True)
