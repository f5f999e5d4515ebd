"""Equal branches of a region as one: six heads are drawn once, with × 6."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.report.stages import StageGraph, StageNode

# The order of the inputs of these says only which branch comes first.
_JOINING = ("Concat", "Add", "Sum", "Max", "Min")


@dataclass(frozen=True)
class Folded:
    """Nodes that play the same part in equal branches, in topological order."""

    nodes: tuple[StageNode, ...]
    """All of them; a sum of three branches takes two."""


def folded(nodes: Sequence[StageNode], stage: StageGraph) -> list[Folded]:
    """The nodes of a region, those with equal ancestors and equal uses together."""
    units = _chains(nodes, stage)
    above = _keys_above(units, stage)
    below = _keys_below(units, stage)
    classes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in range(len(units)):
        classes[above[i], below[i]].append(i)
    return [
        Folded(tuple(node for i in members for node in units[i])) for members in classes.values()
    ]


def _chains(nodes: Sequence[StageNode], stage: StageGraph) -> list[list[StageNode]]:
    """The nodes, but sums of sums that nothing else reads in one list, at the last one's place."""
    inside = {node.name for node in nodes}
    grown: dict[str, list[StageNode]] = {}
    units: list[list[StageNode]] = []
    for node in nodes:
        unit = [member for part in _summands(node, stage) for member in grown.pop(part.name, [])]
        unit.append(node)
        if len(unit) > 1:
            units = [other for other in units if other[0] not in unit]
        units.append(unit)
        readers = stage.readers[node.outputs[0]] if node.outputs else []
        is_read_once = len(readers) == 1 and readers[0].name in inside
        if _is_sum(node, stage) and is_read_once and node.outputs[0] not in stage.outputs:
            grown[node.name] = unit
    return units


def _is_sum(node: StageNode, stage: StageGraph) -> bool:
    return node.op == "Add" and not stage.constants.keys() & set(node.inputs)


def _summands(node: StageNode, stage: StageGraph) -> list[StageNode]:
    if not _is_sum(node, stage):
        return []
    return [stage.producers[name] for name in node.inputs if name in stage.producers]


class _Numbers:
    """Equal keys get equal numbers: nested keys stay small."""

    def __init__(self) -> None:
        self._of: dict[object, int] = {}

    def of(self, key: object) -> int:
        return self._of.setdefault(key, len(self._of))


def _keys_above(units: Sequence[Sequence[StageNode]], stage: StageGraph) -> list[int]:
    """A number a unit, equal where the whole computation up to it is."""
    numbers, keys = _Numbers(), []
    made: dict[str, tuple[object, ...]] = {}
    for unit in units:
        own = {output for node in unit for output in node.outputs}
        reads = tuple(
            made.get(name) or _outside(name, stage)
            for node in unit for name in node.inputs if name not in own
        )  # fmt: skip
        last = unit[-1]
        types = tuple(stage.types.get(name) for name in last.outputs)
        key = numbers.of((last.op, last.attributes, types, reads))
        keys.append(key)
        made |= {name: ("made", key, slot) for slot, name in enumerate(last.outputs)}
    return keys


def _outside(name: str, stage: StageGraph) -> tuple[object, ...]:
    """Weights are alike if their types are: each head has its own."""
    return ("constant", stage.types.get(name)) if name in stage.constants else ("cut", name)


def _keys_below(units: Sequence[Sequence[StageNode]], stage: StageGraph) -> list[int]:
    """A number a unit, equal where all that is computed from it inside the region is."""
    numbers = _Numbers()
    uses: dict[str, list[tuple[int, int]]] = defaultdict(list)
    keys: list[int] = []
    for unit in reversed(units):
        last = unit[-1]
        leaving = tuple(sorted(name for name in last.outputs if _leaves(name, uses, stage)))
        below = tuple(tuple(sorted(uses[name])) for name in last.outputs)
        key = numbers.of((last.op, below, leaving))
        keys.append(key)
        for node in unit:
            for slot, name in enumerate(node.inputs):
                uses[name].append((key, 0 if node.op in _JOINING else slot))
    return keys[::-1]


def _leaves(name: str, uses: Mapping[str, object], stage: StageGraph) -> bool:
    return name in stage.outputs or not uses.get(name)
