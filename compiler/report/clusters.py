"""Groups of nodes for the map: a few dozen boxes that can be laid out one by one.

Nodes of one module belong together. Where the exporter kept no modules, runs of the topological
order do: between them few tensors are alive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from compiler.report.stages import StageGraph, StageNode, scope_parts

# A layout takes longer than its number of nodes grows; a box of a hundred is still readable.
LARGEST = 110
_RUN = 50


def clusters_of(stage: StageGraph) -> list[tuple[str, list[int]]]:
    """(title, positions of nodes in the stage) for every group, in topological order."""
    paths = [scope_parts(node.scope) for node in stage.nodes]
    groups: list[tuple[str, list[int]]] = []
    for members in _by_scope(list(range(len(stage.nodes))), paths, 0):
        title = ".".join(_common([paths[i] for i in members]))
        groups += [(title, piece) for piece in _connected(members, stage.nodes)]
    return sorted(groups, key=lambda group: group[1][0])


def _by_scope(members: list[int], paths: Sequence[list[str]], depth: int) -> list[list[int]]:
    if len(members) <= LARGEST:
        return [members]
    children: dict[str | None, list[int]] = defaultdict(list)
    for i in members:
        children[paths[i][depth] if depth < len(paths[i]) else None].append(i)
    own = children.pop(None, [])
    groups = [own[start : start + _RUN] for start in range(0, len(own), _RUN)]
    if len(own) <= LARGEST:
        groups = [own] if own else []
    for child in children.values():
        groups += _by_scope(child, paths, depth + 1)
    return groups


def _connected(members: Sequence[int], nodes: Sequence[StageNode]) -> list[list[int]]:
    """The pieces of a group that are connected inside it: else one box is at both ends."""
    root = {i: i for i in members}

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    producer = {output: i for i in members for output in nodes[i].outputs}
    for i in members:
        for name in nodes[i].inputs:
            if name in producer:
                root[find(producer[name])] = find(i)
    pieces: dict[int, list[int]] = defaultdict(list)
    for i in members:
        pieces[find(i)].append(i)
    return list(pieces.values())


def _common(paths: Sequence[list[str]]) -> list[str]:
    """The longest path that all begin with."""
    steps = zip(*paths, strict=False)
    return [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]
