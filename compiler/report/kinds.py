"""The rewrites of a stage by kind, each with the drawings of its first place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compiler.diff.changes import Change, alike
from compiler.report.drawings import Box, Drawing, draw
from compiler.report.stages import StageGraph
from compiler.rewrites import RecordedRewrite


@dataclass(frozen=True)
class Spot:
    """A rewrite, and a node by which the map shows where it is."""

    rewrite: RecordedRewrite
    node: str
    is_new: bool
    """Whether it is one of the stage after the rewrite."""

    @classmethod
    def of(cls, rewrite: RecordedRewrite, change: Change) -> Spot:
        """The first new node, or the first old one where nothing is left."""
        new, old = change.new.names(), change.old.names()
        return cls(rewrite, (*new, *old, "")[0], bool(new))


@dataclass(frozen=True)
class RewriteKind:
    """Equal changes, with the first one drawn before and after."""

    places: tuple[Spot, ...]
    removed: str
    added: str
    before: Drawing
    after: Drawing

    @property
    def worst(self) -> RecordedRewrite:
        """The rewrite with the largest error."""
        rewrites = [spot.rewrite for spot in self.places]
        return max(rewrites, key=lambda one: float((one.float64 or {}).get("error") or 0))


def kinds_of(changes: Iterable[Change], before: StageGraph, after: StageGraph) -> list[RewriteKind]:
    """The kinds of a stage's rewrites, in the order of their first places."""
    return [_kind(group, before, after) for group in alike(changes)]


def _kind(group: Sequence[Change], before: StageGraph, after: StageGraph) -> RewriteKind:
    spots = tuple(Spot.of(c.rewrite, c) for c in group if c.rewrite is not None)
    first, rewrite = group[0], spots[0].rewrite
    # The whole model is the old region: it is left as it is, inside the new one.
    rest = "" if first.old.nodes or rewrite.inputs else "the network"
    copied = {first.new.side.nodes[i].name for copy in first.new.copies for i in copy}
    nodes = first.new.side.nodes
    added = counted([nodes[i].op_type for i in first.new.nodes if nodes[i].name not in copied])
    if copied:
        added += f", and a copy of {len(copied)} nodes"
    new = draw(after, first.new.names(), copied=copied, rest=rest, made=rewrite.weights)
    return RewriteKind(
        spots, counted(first.old.ops()), added,
        _or_ends(draw(before, first.old.names(), rest=rest), rewrite), _or_ends(new, rewrite),
    )  # fmt: skip


def _or_ends(drawing: Drawing, rewrite: RecordedRewrite) -> Drawing:
    """The drawing; of a region without a node what is left of it: its outputs, known by now."""
    if not drawing.boxes:
        drawing.boxes = [Box("output", f"{name}, without a node") for name in rewrite.outputs]
    return drawing


def counted(ops: Sequence[str]) -> str:
    """`18 × MatMul, Concat`, in order of first appearance."""
    counts = Counter(ops)
    return ", ".join(op if n == 1 else f"{n} × {op}" for op, n in counts.items()) or "nothing"
