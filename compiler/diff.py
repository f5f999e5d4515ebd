"""What changed between two graphs: pieces of equal kind are shown once, with their count."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from compiler.components import Values, changed_components
from compiler.graph import Graph
from compiler.region import Region
from compiler.rewrite import Rewrite, Signature


@dataclass(frozen=True)
class Kind:
    """All changes that replace the same ops by the same ops, with the first as the example."""

    old_ops: tuple[str, ...]
    new_ops: tuple[str, ...]
    places: tuple[str, ...]
    attributes: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def title(self) -> str:
        """`12 × : 15 nodes → 61 nodes`."""
        return f"{len(self.places)} × : {len(self.old_ops)} nodes → {len(self.new_ops)} nodes"

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "count": len(self.places), "removed": list(self.old_ops), "added": list(self.new_ops),
            "places": list(self.places), "attributes": list(self.attributes),
            "weights": list(self.weights),
        }  # fmt: skip


@dataclass(frozen=True)
class Diff:
    """The changed signature and the kinds of changes, most nodes first."""

    signature: tuple[str, ...]
    kinds: tuple[Kind, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the graphs are the same."""
        return not self.signature and not self.kinds

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"signature": list(self.signature), "changes": [k.record() for k in self.kinds]}


def diff_graphs(before: Graph, after: Graph) -> Diff:
    """Compares two graphs by the tensors whose names they share, attributes and weights too."""
    groups: dict[tuple[Any, ...], list[Rewrite]] = defaultdict(list)
    for change in changed_components(before, after, "diff"):
        key = (_ops(change.old), tuple(sorted(Counter(_ops(change.new)).items())))
        groups[key].append(change)
    kinds = [_kind(changes) for changes in groups.values()]
    kinds.sort(key=lambda kind: -len(kind.places) * (len(kind.old_ops) + len(kind.new_ops)))
    return Diff(tuple(_signature_changes(Signature.of(before), Signature.of(after))), tuple(kinds))


def counted(ops: Iterable[str]) -> str:
    """`6 × Softmax, 18 × MatMul, Concat`, in order of first appearance."""
    counts = Counter(ops)
    return ", ".join(op if n == 1 else f"{n} × {op}" for op, n in counts.items()) or "nothing"


def _kind(changes: Sequence[Rewrite]) -> Kind:
    first = changes[0]
    places = tuple(change.place for change in changes)
    attributes = tuple(_attribute_changes(first.old.nodes, first.new.nodes))
    return Kind(_ops(first.old), _ops(first.new), places, attributes, tuple(_weight_changes(first)))


def _ops(region: Region) -> tuple[str, ...]:
    return tuple(node.op_type for node in region.nodes)


def _attribute_changes(
    old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]
) -> Iterable[str]:
    was = Counter((n.op_type, text) for n in old for text in _attributes(n))
    now = Counter((n.op_type, text) for n in new for text in _attributes(n))
    for sign, counts in (("-", was - now), ("+", now - was)):
        for (op, text), count in counts.items():
            yield f"{sign} {op}({text})" + (f" × {count}" if count > 1 else "")


def _attributes(node: onnx.NodeProto) -> list[str]:
    return [str(onnx.helper.printable_attribute(attribute)) for attribute in node.attribute]


def _weight_changes(change: Rewrite) -> Iterable[str]:
    was, now = change.old.constants, change.new.constants
    same = {name for name in was.keys() & now.keys() if Values(was[name]) == Values(now[name])}
    for sign, weights in (("-", was), ("+", now)):
        for name in [name for name in weights if name not in same]:
            yield f"{sign} {name} {list(weights[name].shape)}"


def _signature_changes(before: Signature, after: Signature) -> Iterable[str]:
    for what, old, new in (("input", before.inputs, after.inputs),
                           ("output", before.outputs, after.outputs)):  # fmt: skip
        for name in dict.fromkeys([*old, *new]):
            was, now = old.get(name), new.get(name)
            if was != now:
                yield f"{what} {name}: {was or 'absent'} → {now or 'absent'}"
