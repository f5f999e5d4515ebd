"""Changes from the record of a build: its own rewrites, proven one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.building import sha256
from compiler.diff.changes import Change
from compiler.diff.copies import is_one_thing
from compiler.diff.derivation import composed
from compiler.diff.expression import Fragment
from compiler.diff.model import Error
from compiler.diff.side import Side
from compiler.errors import UserError
from compiler.graph import REWRITE_KEY, SOURCES_KEY
from compiler.records import read_record
from compiler.rewrites import REWRITES_NAME, RecordedRewrite, read_rewrites


@dataclass(frozen=True)
class Record:
    """The rewrites that lead from one stage of a build to a later one."""

    steps: tuple[Path, ...]
    rewrites: Mapping[str, Sequence[RecordedRewrite]]
    float32: Mapping[str, Mapping[str, Any] | None]
    """Of the whole model of a stage, after its pass."""

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any], stages: Iterable[str]) -> Record:
        """Of these stages of a build. Raises UserError without a readable record of rewrites."""
        float32 = {stage["stage"]: stage["float32"] for stage in record["stages"]}
        steps = tuple(folder / f"{stage}.onnx" for stage in stages)
        return cls(steps, read_rewrites(folder), float32)

    def changes(self, first: Side) -> Iterator[tuple[Side, list[Change]]]:
        """Every later stage, with its rewrites."""
        before = first
        for path in self.steps[1:]:
            after = Side.load(path)
            kept = _kept(before, after)
            float32 = Error.of(self.float32.get(path.stem))
            found = [_change(rewrite, before, after, kept, float32)
                     for rewrite in self.rewrites.get(path.stem, [])]  # fmt: skip
            yield after, found
            before = after


def record_between(before: Path, after: Path) -> Record | None:
    """The record from one file of a build to a later one; None if none joins the two.

    A file that is not, byte for byte, what the build wrote has no record.
    """
    folder = before.parent
    if folder.resolve() != after.parent.resolve() or not (folder / REWRITES_NAME).exists():
        return None
    try:
        record = read_record(folder)
        written: dict[str, str] = record["files"]
        names = [stage["stage"] for stage in record["stages"]]
        first, last = (names[-1] if p.name == "model.onnx" else p.stem for p in (before, after))
        if first not in names or last not in names or names.index(first) >= names.index(last):
            return None
        found = Record.read(folder, record, names[names.index(first) : names.index(last) + 1])
    except (UserError, KeyError, TypeError):
        return None  # one of another schema is none
    files = {folder / REWRITES_NAME, before, after, *found.steps}
    is_whole = all(p.exists() and written.get(p.name) == sha256(p) for p in files)
    return found if is_whole else None


def _change(
    rewrite: RecordedRewrite, before: Side, after: Side, kept: Mapping[str, Sequence[str]],
    float32: Error | None,
) -> Change:  # fmt: skip
    same = kept.get(rewrite.title.partition(" at ")[0], ())
    old = _indices(before, [*rewrite.removed, *same])
    new = _indices(after, [*rewrite.added, *same])
    made = {name: composed(how) for name, how in rewrite.weights.items()}
    return Change(
        rewrite.place, Fragment(before, old), Fragment(after, new, made, _copies(after, new)),
        rewrite=rewrite, float32=float32,
    )  # fmt: skip


def _kept(before: Side, after: Side) -> dict[str, list[str]]:
    """By rewrite, the nodes that kept their names and read something else now."""
    was = {node.name: node for node in before.nodes}
    kept: dict[str, list[str]] = defaultdict(list)
    for node in after.nodes:
        rewrite = next((e.value for e in node.metadata_props if e.key == REWRITE_KEY), "")
        if rewrite and node != was.get(node.name, node):
            kept[rewrite].append(node.name)
    return kept


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
    return (tuple(copied),) if is_one_thing(side, nodes, copied) else ()


def _does_the_same(side: Side, one: int, other: int) -> bool:
    a, b = side.nodes[one], side.nodes[other]
    weights = [[n for n in side.reads[i] if n in side.weights] for i in (one, other)]
    same_attributes = list(a.attribute) == list(b.attribute)
    return a.op_type == b.op_type and same_attributes and weights[0] == weights[1]
