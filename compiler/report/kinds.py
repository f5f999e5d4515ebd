"""The rewrites of a stage by kind: those that replace the same ops by the same ops."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from compiler.report.drawings import Box, Drawing, draw
from compiler.report.stages import StageGraph
from compiler.rewrites import RecordedRewrite


@dataclass(frozen=True)
class Change:
    """A rewrite, and the names of all nodes that it is about in the stages around it."""

    rewrite: RecordedRewrite
    old: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def wraps_the_model(self) -> bool:
        """Whether the whole model is its old region: it is left as it is, inside the new one."""
        return not self.old and not self.rewrite.inputs


@dataclass(frozen=True)
class RewriteKind:
    """Equal changes, with the first one drawn before and after."""

    changes: tuple[Change, ...]
    removed: str
    added: str
    before: Drawing
    after: Drawing

    @property
    def worst(self) -> RecordedRewrite:
        """The rewrite with the largest error."""
        rewrites = [change.rewrite for change in self.changes]
        return max(rewrites, key=lambda one: float((one.float64 or {}).get("error") or 0))


def kinds_of(
    rewrites: Sequence[RecordedRewrite], before: StageGraph, after: StageGraph
) -> list[RewriteKind]:
    """The kinds of a stage's rewrites, in the order of their first places."""
    groups: dict[tuple[object, ...], list[Change]] = defaultdict(list)
    for change in _changes(rewrites, before, after):
        new = Counter(_ops(change.new, after))
        groups[tuple(_ops(change.old, before)), frozenset(new.items())].append(change)
    return [_kind(group, before, after) for group in groups.values()]


def _changes(
    rewrites: Sequence[RecordedRewrite], before: StageGraph, after: StageGraph
) -> Iterator[Change]:
    """Nodes that only read something else keep their names: their provenance tells of them."""
    kept: dict[str, list[str]] = defaultdict(list)
    for node in after.nodes:
        if node.rewrite and node != before.by_name.get(node.name, node):
            kept[node.rewrite].append(node.name)
    for one in rewrites:
        same = tuple(n for n in kept[one.title.partition(" at ")[0]] if n not in one.added)
        yield Change(one, (*one.removed, *same), (*one.added, *same))


def _kind(group: Sequence[Change], before: StageGraph, after: StageGraph) -> RewriteKind:
    first = group[0]
    rest = "the network" if first.wraps_the_model else ""
    copied = _copies(first.rewrite, after)
    added = counted(_ops([name for name in first.new if name not in copied], after))
    if copied:
        added += f", and a copy of {len(copied)} nodes"
    return RewriteKind(
        tuple(group), counted(_ops(first.old, before)), added,
        _or_ends(draw(before, first.old, rest=rest), first.rewrite),
        _or_ends(
            draw(after, first.new, copied=copied, rest=rest, made=first.rewrite.weights),
            first.rewrite,
        ),
    )  # fmt: skip


def _or_ends(drawing: Drawing, rewrite: RecordedRewrite) -> Drawing:
    """The drawing; of a region without a node what is left of it: its outputs, known by now."""
    if not drawing.boxes:
        drawing.boxes = [Box("output", f"{name}, without a node") for name in rewrite.outputs]
    return drawing


def _copies(rewrite: RecordedRewrite, after: StageGraph) -> Collection[str]:
    """The added nodes whose one source is still there beside them."""
    added = set(rewrite.added)
    nodes = [after.by_name[name] for name in rewrite.added if name in after.by_name]
    return {
        node.name for node in nodes
        if len(node.sources) == 1 and node.sources[0] in after.by_name
        and node.sources[0] not in added
    }  # fmt: skip


def _ops(names: Sequence[str], stage: StageGraph) -> list[str]:
    return [stage.by_name[name].op for name in names if name in stage.by_name]


def counted(ops: Sequence[str]) -> str:
    """`18 × MatMul, Concat`, in order of first appearance."""
    counts = Counter(ops)
    return ", ".join(op if n == 1 else f"{n} × {op}" for op, n in counts.items()) or "nothing"
