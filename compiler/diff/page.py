"""A diff as one self-contained HTML page, light or dark as the reader's machine is."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader

from compiler.diff.layout import closing, heading, section
from compiler.diff.model import Diff

# Tables of a page may be wider than a terminal's.
_COLUMNS = 140


def page(diff: Diff) -> str:
    """The HTML text; it has what the text diff has."""
    loader = PackageLoader("compiler.diff", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=False)
    sections = [section(kind, _COLUMNS) for kind in diff.kinds]
    return environment.get_template("page.html").render(
        before=diff.before, after=diff.after, heading=heading(diff), sections=sections,
        closing=closing(diff),
    )  # fmt: skip


def write_page(diff: Diff, path: Path) -> None:
    """Writes the page, making the folder if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(diff), encoding="utf-8")
