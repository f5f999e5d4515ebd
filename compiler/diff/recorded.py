"""Changes from the record of a build: its own rewrites, proven one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.building import sha256
from compiler.diff.changes import Change
from compiler.diff.derivation import composed
from compiler.diff.expression import Fragment
from compiler.diff.model import Error
from compiler.diff.side import Side
from compiler.errors import UserError
from compiler.graph import SOURCES_KEY, Graph
from compiler.records import read_record
from compiler.rewrites import REWRITES_NAME, RecordedRewrite, read_rewrites


def steps_between(before: Path, after: Path) -> list[Path] | None:
    """The stages from one file of a build to a later one; None if no record joins the two.

    A file that is not, byte for byte, what the build wrote has no record.
    """
    folder = before.parent
    if folder.resolve() != after.parent.resolve() or not (folder / REWRITES_NAME).exists():
        return None
    try:
        record = read_record(folder)
        read_rewrites(folder)  # one of another schema is none
        written: dict[str, str] = record["files"]
        names = [f"{stage['stage']}.onnx" for stage in record["stages"]]
    except (UserError, KeyError, TypeError):
        return None
    first, last = (names[-1] if p.name == "model.onnx" else p.name for p in (before, after))
    if first not in names or last not in names or names.index(first) >= names.index(last):
        return None
    steps = names[names.index(first) : names.index(last) + 1]
    joined = {before.name, after.name, REWRITES_NAME, *steps}
    if any(written.get(n) != sha256(folder / n) for n in joined if (folder / n).exists()):
        return None
    return [folder / name for name in steps] if all((folder / n).exists() for n in steps) else None


def recorded_changes(steps: Sequence[Path], first: Graph) -> tuple[list[Change], Graph]:
    """The rewrites of a build's stages, and the graph of the last stage."""
    folder = steps[0].parent
    rewrites, stages = read_rewrites(folder), read_record(folder)["stages"]
    float32 = {stage["stage"]: stage["float32"] for stage in stages}
    graph, before = first, Side(first)
    changes: list[Change] = []
    for path in steps[1:]:
        graph = Graph.load(path)
        after = Side(graph)
        for rewrite in rewrites.get(path.stem, []):
            changes.append(_change(rewrite, before, after, float32.get(path.stem)))
        before = after
    return changes, graph


def _change(rewrite: RecordedRewrite, before: Side, after: Side, float32: Any) -> Change:
    old = _indices(before, rewrite.removed)
    new = _indices(after, rewrite.added)
    made = {name: composed(how) for name, how in rewrite.weights.items()}
    return Change(
        rewrite.place, Fragment(before, old),
        Fragment(after, new, made, _copies(after, new)),
        pass_name=rewrite.title.partition("#")[0],
        float64=Error.of(rewrite.float64), float32=Error.of(float32),
    )  # fmt: skip


def _indices(side: Side, names: Sequence[str]) -> tuple[int, ...]:
    wanted = set(names)
    return tuple(i for i, node in enumerate(side.nodes) if node.name in wanted)


def _copies(side: Side, nodes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The added nodes that do what a node that is still there does: a copy of the network."""
    by_name = {node.name: i for i, node in enumerate(side.nodes)}
    added = set(nodes)
    copied = []
    for i in nodes:
        sources = [e.value for e in side.nodes[i].metadata_props if e.key == SOURCES_KEY]
        original = by_name.get(sources[0]) if sources else None
        if original is not None and original not in added and _does_the_same(side, i, original):
            copied.append(i)
    return (tuple(copied),) if len(copied) > 1 else ()


def _does_the_same(side: Side, one: int, other: int) -> bool:
    a, b = side.nodes[one], side.nodes[other]
    weights = [[n for n in side.reads[i] if n in side.weights] for i in (one, other)]
    same_attributes = list(a.attribute) == list(b.attribute)
    return a.op_type == b.op_type and same_attributes and weights[0] == weights[1]
