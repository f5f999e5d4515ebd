"""A diff on the terminal: coloured and as wide as it is; plain and 100 columns in a pipe."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from compiler.diff.layout import Row, Style, closing, heading, section, wrapped
from compiler.diff.model import Diff

_PIPED_COLUMNS = 100
_COLOURS: dict[Style, str] = {
    "removed": "red", "added": "green", "title": "bold cyan", "heading": "bold", "dim": "dim",
    "good": "green", "bad": "bold red",
}  # fmt: skip


def print_diff(diff: Diff) -> None:
    """Prints the changes by kind; what doesn't fit a line goes on in the next."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
    for row in rows_of(diff, console.width):
        for line in wrapped(row, console.width):
            console.print(Text(line, _COLOURS.get(row.style, "")), soft_wrap=True)


def rows_of(diff: Diff, width: int) -> list[Row]:
    """All rows in order."""
    rows = heading(diff)
    for kind in diff.kinds:
        part = section(kind, width)
        rows += [Row(""), Row(part.title, "title"), *part.rows]
    ending = closing(diff)
    return [*rows, *([Row(""), *ending] if ending else [])]
