"""A rewrite's region as a drawing: few boxes, what flows in and out, equal branches once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compiler.report.folding import Folded, folded
from compiler.report.stages import StageGraph, StageNode

# A drawing with more boxes than this is no explanation; the rest becomes one box.
MOST_BOXES = 60
# More tensors than this flow into a drawing as one ellipse.
_MOST_ENDS = 12
_LONGEST_NAME = 28

Kind = Literal["op", "bulk", "input", "output"]


@dataclass
class Box:
    """A box of a drawing: a node, equal nodes of equal branches, or a mass of nodes."""

    kind: Kind
    title: str
    count: int = 1
    lines: list[str] = field(default_factory=list)
    """Weights and attributes, a line each."""
    members: list[str] = field(default_factory=list)
    """Names of the nodes in it."""


@dataclass
class Drawing:
    """Boxes, and edges (from, to, type of the tensor) between them by position."""

    boxes: list[Box] = field(default_factory=list)
    edges: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, box: Box) -> int:
        """Adds a box; returns its position."""
        self.boxes.append(box)
        return len(self.boxes) - 1


def draw(
    stage: StageGraph, names: Collection[str], *, copied: Collection[str] = (),
    rest: str = "", made: Mapping[str, str] | None = None,
) -> Drawing:  # fmt: skip
    """The drawing of some nodes of a stage.

    Args:
        stage: the graph that they are in.
        names: of the nodes.
        copied: those of them that are copies of other nodes; one box stands for all.
        rest: the title of a box for all other nodes of the stage; they are left out if empty.
        made: how each new weight was made, by its name.
    """
    chosen, wanted = set(names), set(names) - set(copied)
    own = [node for node in stage.nodes if node.name in wanted]
    classes = folded(own, stage)
    masses = [("a copy of it", [n for n in stage.nodes if n.name in chosen - wanted])]
    if rest:
        masses.append((rest, [node for node in stage.nodes if node.name not in chosen]))
    shown = classes if len(classes) <= MOST_BOXES else classes[:MOST_BOXES]
    masses.append(("and more", [n for c in classes[len(shown) :] for n in c.nodes]))
    drawing, position = Drawing(), dict[str, int]()
    for group in shown:
        box = drawing.add(_box(group, stage, made or {}))
        position |= {node.name: box for node in group.nodes}
    for title, nodes in masses:
        if nodes:
            box = drawing.add(Box("bulk", title, len(nodes), [], [n.name for n in nodes]))
            position |= {node.name: box for node in nodes}
    _connect(drawing, stage, position)
    return drawing


def _box(group: Folded, stage: StageGraph, made: Mapping[str, str]) -> Box:
    first = group.nodes[0]
    count = len(group.nodes)
    return Box("op", first.op, count, [*_weights(first, stage, made), *first.attributes],
               [node.name for node in group.nodes])  # fmt: skip


def _weights(node: StageNode, stage: StageGraph, made: Mapping[str, str]) -> Iterator[str]:
    for name in node.inputs:
        if name in stage.constants:
            values = stage.constants[name] or _shape(stage.types.get(name, ""))
            yield f"{_short(made.get(name, name))}  {values}"


def _short(name: str) -> str:
    """The end of a long name: `…attention.q_proj.bias[0:64]`."""
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _shape(kind: str) -> str:
    """`float[1×3]` → `1×3`; other types keep their name."""
    return kind.removeprefix("float[").removesuffix("]") if kind.startswith("float[") else kind


def _connect(drawing: Drawing, stage: StageGraph, position: Mapping[str, int]) -> None:
    """Edges between boxes, and an ellipse for each tensor that comes in or goes out."""
    edges: dict[tuple[int, int, str], None] = {}
    entering: dict[str, list[int]] = {}
    leaving: dict[str, int] = {}
    for node in (node for node in stage.nodes if node.name in position):
        here = position[node.name]
        for name in node.inputs:
            producer = stage.producers.get(name)
            source = None if producer is None else position.get(producer.name)
            if source is None and name not in stage.constants:
                entering.setdefault(name, []).append(here)
            elif source is not None and source != here:
                edges[source, here, _shape(stage.types.get(name, ""))] = None
        for name in node.outputs:
            if _is_needed_outside(name, stage, position):
                leaving[name] = here
    for name, readers in entering.items():
        end = _end(drawing, "input", name, len(entering))
        edges |= {(end, reader, _shape(stage.types.get(name, ""))): None for reader in readers}
    for name, source in leaving.items():
        end = _end(drawing, "output", name, len(leaving))
        edges[source, end, _shape(stage.types.get(name, ""))] = None
    drawing.edges = list(edges)


def _end(drawing: Drawing, kind: Kind, name: str, of: int) -> int:
    """The ellipse of a tensor; one for all of them where they are many."""
    if of > _MOST_ENDS:
        title = f"{of} tensors"
        found = (i for i, b in enumerate(drawing.boxes) if (b.kind, b.title) == (kind, title))
        position = next(found, None)
        return drawing.add(Box(kind, title)) if position is None else position
    return drawing.add(Box(kind, _short(name)))


def _is_needed_outside(name: str, stage: StageGraph, position: Mapping[str, int]) -> bool:
    readers: Sequence[StageNode] = stage.readers.get(name, [])
    return name in stage.outputs or any(reader.name not in position for reader in readers)
