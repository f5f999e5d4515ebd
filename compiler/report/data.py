"""What the page's pictures and search work on, as compact JSON: every distinct node once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.report.clusters import clusters_of
from compiler.report.drawings import Drawing
from compiler.report.kinds import RewriteKind
from compiler.report.stages import StageGraph, StageNode

# Of more sources than this, a reader wants the number.
_MOST_SOURCES = 20


class _Table:
    """Distinct rows, by position."""

    def __init__(self) -> None:
        self._positions: dict[str, int] = {}
        self.rows: list[Any] = []

    def position(self, row: Any) -> int:
        key = json.dumps(row)
        if key not in self._positions:
            self._positions[key] = len(self.rows)
            self.rows.append(row)
        return self._positions[key]


class PageData:
    """Collects stages and drawings; `json()` is what goes into the page."""

    def __init__(self, stages: Sequence[StageGraph]) -> None:
        self._nodes, self._tensors = _Table(), _Table()
        self._drawings: list[dict[str, Any]] = []
        self.passes = list(dict.fromkeys(n.made_by for s in stages for n in s.nodes if n.made_by))
        self._stages = [self._stage(stage) for stage in stages]

    def add_drawing(self, drawing: Drawing, stage: StageGraph) -> int:
        """Adds a drawing; returns the number that the page finds it by."""
        boxes = [
            [box.kind, box.title, box.count, box.lines,
             [self._node(stage.by_name[name], stage) for name in box.members]
             if box.kind == "op" else []]
            for box in drawing.boxes
        ]  # fmt: skip
        self._drawings.append({"boxes": boxes, "edges": drawing.edges})
        return len(self._drawings) - 1

    def json(self) -> str:
        """As JSON that may stand inside a script element."""
        record = {
            "passes": self.passes, "tensors": self._tensors.rows, "nodes": self._nodes.rows,
            "stages": self._stages, "drawings": self._drawings,
        }  # fmt: skip
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028")

    def _stage(self, stage: StageGraph) -> dict[str, Any]:
        nodes = [self._node(node, stage) for node in stage.nodes]
        clusters = clusters_of(stage)
        return {
            "name": stage.name, "nodes": nodes,
            "clusters": [title for title, _ in clusters],
            "cluster": _assigned([members for _, members in clusters], len(nodes)),
            "inputs": [self._tensor(name, stage) for name in stage.inputs],
            "outputs": [self._tensor(name, stage) for name in stage.outputs],
        }  # fmt: skip

    def _node(self, node: StageNode, stage: StageGraph) -> int:
        sources = [*node.sources[:_MOST_SOURCES]]
        if len(node.sources) > _MOST_SOURCES:
            sources.append(f"… {len(node.sources)} in all")
        return self._nodes.position([
            node.name, node.op, self.passes.index(node.made_by) if node.made_by else -1,
            node.rewrite, sources, node.scope, [*node.attributes],
            [self._tensor(name, stage) for name in node.inputs],
            [self._tensor(name, stage) for name in node.outputs],
        ])  # fmt: skip

    def _tensor(self, name: str, stage: StageGraph) -> int:
        values = stage.constants.get(name)
        return self._tensors.position([name, stage.types.get(name, ""), values])


def _assigned(groups: Sequence[Sequence[int]], count: int) -> list[int]:
    """The group of each of `count` positions."""
    group_of = {i: number for number, members in enumerate(groups) for i in members}
    return [group_of[i] for i in range(count)]


def drawn_kinds(
    data: PageData, kinds: Sequence[RewriteKind], before: StageGraph, after: StageGraph
) -> list[Mapping[str, Any]]:
    """The kinds of a stage as the template shows them, their drawings added to the data."""
    return [
        {
            "kind": kind,
            "before": data.add_drawing(kind.before, before),
            "after": data.add_drawing(kind.after, after),
        }
        for kind in kinds
    ]
