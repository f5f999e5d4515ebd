"""A diff as rows of text, for terminals and pages alike: what is said, in which order, and cut."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.diff.model import (
    Diff,
    Error,
    Kind,
    Line,
    Origin,
    Place,
    Region,
    Repeat,
)
from compiler.diff.side import common_start

Style = Literal["removed", "added", "same", "title", "heading", "plain", "dim", "good", "bad"]

# Longer expressions lose their middle, longer lists their end; --json has everything.
_EXPRESSION_LINES, _LAST_LINES = 44, 6
_LISTED_PLACES, _LISTED_WEIGHTS, _LISTED_REPETITIONS = 48, 12, 24
_TABLE_ROWS = 48
_DEEPEST = 20


@dataclass(frozen=True)
class Row:
    """A line of one style; `hang` is how far its continuation is indented if it is wrapped."""

    text: str
    style: Style = "plain"
    hang: int = 4


@dataclass(frozen=True)
class Section:
    """A kind of change: its title and all that is said about it."""

    title: str
    rows: tuple[Row, ...]


def heading(diff: Diff) -> list[Row]:
    """The two models, and what they declare differently."""
    rows = [Row(f"--- {diff.before}   {diff.nodes[0]:,} nodes", "removed"),
            Row(f"+++ {diff.after}   {diff.nodes[1]:,} nodes", "added")]  # fmt: skip
    rows += [Row(text, "heading") for text in diff.signature]
    rows += [Row(text, "dim") for text in diff.renamed]
    return rows + ([Row("no difference")] if diff.is_empty else [])


def closing(diff: Diff) -> list[Row]:
    """For readers of files without a record: how to get at errors, where that can be."""
    if diff.from_record or not diff.kinds:
        return []
    text = "No build recorded these changes, so no error is known"
    if diff.is_comparable:
        names = " ".join(shlex.quote(name) for name in (diff.before, diff.after) if name)
        how = f"python -m compiler verify {names or 'A B'}"
        return [Row(f"{text}. Both models in float64 and float32: {how}", "dim", 0)]
    why = "models of other inputs or outputs can't be run against each other"
    return [Row(f"{text}: {why}.", "dim", 0)]


def section(kind: Kind, width: int) -> Section:
    """All about one kind; tables are made for `width` columns."""
    scope = kind.places[0].scope
    body = [*_errors(kind), *_places(kind.places), *_cut(kind), *_details(kind)]
    expressions = [*_regions(kind, scope)]
    tables = [row for r in kind.new.expression.repeats for row in _repetitions(kind, r, width)]
    if len(tables) > _TABLE_ROWS:
        more = f"… and {len(tables) - _TABLE_ROWS:,} more rows; --json has all"
        tables = [*tables[:_TABLE_ROWS], Row(more, "dim")]
    rows = [*body, *expressions, *tables, *_new_weights(kind, scope)]
    if scope and any("…." in row.text for row in rows):
        rows.append(Row(f"… is {scope}, the first place", "dim"))
    title = f"{kind.title}   {kind.pass_name}".rstrip()
    return Section(title, tuple(rows))


def wrapped(row: Row, width: int) -> list[str]:
    """The lines of a row that fit a width, none of its text lost."""
    lead = len(row.text) - len(row.text.lstrip())
    return textwrap.wrap(
        row.text, width, subsequent_indent=" " * min(lead + row.hang, width // 2),
        drop_whitespace=True, break_on_hyphens=False,
    ) or [""]  # fmt: skip


def _errors(kind: Kind) -> Iterator[Row]:
    count = len(kind.places)
    where = "at the cut" if count == 1 else f"at the worst of {count} cuts"
    errors = {f"float64 {where}": kind.float64, "float32 of the whole model": kind.float32}
    told = [f"{name} {_error(error)}" for name, error in errors.items() if error is not None]
    failed = any(error is not None and error.status != "pass" for error in errors.values())
    if kind.pass_name and not told:
        yield Row("error: not measured, for the build was not verified", "dim")
    if told:
        yield Row("error: " + ", ".join(told), "bad" if failed else "good")


def _error(error: Error) -> str:
    if error.status == "UNVERIFIED":
        return f"UNVERIFIED ({error.detail})"
    verdict = "≤" if error.status == "pass" else "FAILS"
    return f"{error.error:.1e} {verdict} {error.bound:.0e}"


def _places(places: Sequence[Place]) -> Iterator[Row]:
    scopes = [place.scope.split(".") for place in places if place.scope]
    common = common_start(scopes) if len(scopes) == len(places) > 1 else []
    # `layer.0` says more than `0`.
    numbered = any(scope[len(common) :][:1] and scope[len(common)].isdigit() for scope in scopes)
    prefix = ".".join(common[:-1] if numbered else common)
    named = [_place(place, prefix) for place in places[:_LISTED_PLACES]]
    more = len(places) - len(named)
    text = ", ".join(named) + (f" … and {more} more" if more else "")
    yield Row(f"in {prefix}: {text}" if prefix else f"at {text}")


def _place(place: Place, prefix: str) -> str:
    scope = place.scope.removeprefix(prefix).removeprefix(".")
    return f"{scope} ({place.tensor})" if scope else place.tensor


def _cut(kind: Kind) -> Iterator[Row]:
    reads, gives = {**kind.old.inputs, **kind.new.inputs}, {**kind.old.outputs, **kind.new.outputs}
    sides = [", ".join(f"{name} {text}" for name, text in side.items()) for side in (reads, gives)]
    yield Row(f"cut: {sides[0] or 'nothing'} → {sides[1] or 'nothing'}", "dim")


def _details(kind: Kind) -> Iterator[Row]:
    for text in kind.details:
        yield Row(text, "heading")


def _regions(kind: Kind, scope: str) -> Iterator[Row]:
    old, new = (_lines(region, scope) for region in (kind.old, kind.new))
    if old == new:
        yield from (Row(f"  {text}", "same") for text in old)
        return
    yield from (Row(f"- {text}", "removed") for text in old)
    yield from (Row(f"+ {text}", "added") for text in new)


def _lines(region: Region, scope: str) -> list[str]:
    texts = [_line(line, scope) for line in region.expression.lines]
    if len(texts) <= _EXPRESSION_LINES:
        return texts
    first = _EXPRESSION_LINES - _LAST_LINES - 1
    left_out = len(texts) - first - _LAST_LINES
    return [*texts[:first], f"… {left_out:,} more lines …", *texts[-_LAST_LINES:]]


def _line(line: Line, scope: str) -> str:
    count = f"{line.count} {line.unit}s × " if line.count > 1 else ""
    label = f"{line.label} = " if line.label else ""
    words = [f"{count}{label}{line.op}{line.shape}", *line.attributes]
    if line.operands:
        words.append(f"({', '.join(_short(o.text, scope) for o in line.operands)})")
    if line.nodes > 1 and not line.op.startswith("copy of"):
        words.append(f"({line.nodes:,} nodes)")
    return "  " * min(line.depth, _DEEPEST) + " ".join(words)


def _short(name: str, scope: str) -> str:
    """A name without the module of the place."""
    return name.replace(f"{scope}.", "….") if scope else name


def _repetitions(kind: Kind, repeat: Repeat, width: int) -> Iterator[Row]:
    if not repeat.parameters:
        return
    scope = kind.places[0].scope
    where = ", at the first place" if len(kind.places) > 1 else ""
    yield Row(f"what the {repeat.count} {repeat.unit}s read{where}:", "heading")
    for p in repeat.parameters:
        source = " ".join(filter(None, [_short(p.base, scope), f"({p.scope})" if p.scope else ""]))
        named = source or _listed([_short(v, scope) for v in p.values], _LISTED_REPETITIONS)
        yield Row(f"  {p.label:3} {p.role:5} {named}", hang=10)
    yield from _table(repeat, width)


def _table(repeat: Repeat, width: int) -> Iterator[Row]:
    """A line a repetition, with the slices that it takes; in several blocks if it is too wide."""
    columns = [[f"{p.label} {p.role}".strip(), *p.values] for p in repeat.parameters if p.base]
    left = [f"  {repeat.unit}", *(f"  {row}" for row in range(repeat.count))]
    for block in _blocks(columns, width - len(left[0]) - 2):
        sizes = [max(map(len, column)) for column in block]
        for i in range(min(repeat.count, _LISTED_REPETITIONS) + 1):
            cells = [column[i].ljust(size) for column, size in zip(block, sizes, strict=True)]
            style: Style = "plain" if i else "dim"
            yield Row(f"{left[i]:{len(left[0])}}  {'  '.join(cells)}".rstrip(), style)
    if columns and repeat.count > _LISTED_REPETITIONS:
        yield Row(f"  … and {repeat.count - _LISTED_REPETITIONS} more", "dim")


def _blocks(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    block: list[list[str]] = []
    used = 0
    for column in columns:
        size = max(map(len, column)) + 2
        if block and used + size > width:
            yield block
            block, used = [], 0
        block.append(column)
        used += size
    if block:
        yield block


def _new_weights(kind: Kind, scope: str) -> Iterator[Row]:
    """The new weights that no table tells."""
    parameters = [p for repeat in kind.new.expression.repeats for p in repeat.parameters]
    told = {p.base.rpartition("[")[0] + value for p in parameters for value in p.values}
    rest = [w for w in kind.weights if (w.how or w.name) not in told and (w.values or not w.how)]
    rest = [w for w in rest if not _is_told_inline(kind, w)]
    if rest:
        yield Row("new weights:", "heading")
    for weight in rest[:_LISTED_WEIGHTS]:
        name = _short(weight.how or weight.name, scope)
        values = f" = {weight.values}" if weight.values else " (no old weight gives its values)"
        yield Row(f"  {name}[{'×'.join(map(str, weight.shape))}]{values}", hang=10)
    if len(rest) > _LISTED_WEIGHTS:
        yield Row(f"  … and {len(rest) - _LISTED_WEIGHTS} more", "dim")


def _is_told_inline(kind: Kind, weight: Origin) -> bool:
    """Whether the expression has the values instead of the name."""
    name = f"{weight.how or weight.name}[{'×'.join(map(str, weight.shape))}]"
    lines = kind.new.expression.lines
    return not any(o.kind == "weight" and o.text == name for line in lines for o in line.operands)


def _listed(items: Iterable[str], limit: int) -> str:
    items = list(items)
    more = f" … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
