"""The changes between two graphs whose nodes are paired: pieces that were removed and added, and
nodes that stayed with another attribute, weight or operand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from compiler.diff.alignment import Pairing
from compiler.diff.changes import Change
from compiler.diff.copies import copies_in
from compiler.diff.expression import Fragment, attribute_value
from compiler.weights import NewWeight, Weight


@dataclass(frozen=True)
class Slot:
    """An operand that a paired node, or an output of the models, takes from elsewhere now."""

    reader: int | None
    position: int
    old: str
    new: str


def changes_between(pairing: Pairing) -> tuple[list[Change], list[str]]:
    """All changes, pieces first, and the outputs that are another tensor of both models now."""
    pieces = _Pieces(pairing)
    return [*pieces.pieces(), *pieces.stayed()], list(pieces.moved_outputs())


class _Pieces:
    def __init__(self, pairing: Pairing) -> None:
        self._pairing, self._old, self._new = pairing, pairing.old, pairing.new
        self._unpair_changed_neighbours()
        self._slots = [*self._rewired(), *self._rewired_outputs()]

    def moved_outputs(self) -> Iterator[str]:
        """Outputs that another tensor of both models is now."""
        for slot in self._slots:
            if slot.reader is None and not any(self._ends(slot)):
                name = self._pairing.outputs[slot.position][0]
                was, now = slot.old, self._old_name(slot.new)
                what = f"{was} → {now}" if was != now else "other values"
                yield f"output {name}: {what}"

    # -- which tensors are the same ----------------------------------------------------------------

    def _is_same(self, a: str, b: str) -> bool:
        """Whether a tensor of the old graph is that of the new one, by the pairs behind them."""
        old, new = self._old, self._new
        i, j = old.side.producer.get(a), new.side.producer.get(b)
        if i is None or j is None:
            return i is j and old.tensors.get(a) == new.tensors.get(b)
        slots = list(old.side.nodes[i].output).index(a), list(new.side.nodes[j].output).index(b)
        return self._pairing.of_old.get(i) == j and slots[0] == slots[1]

    def _old_name(self, b: str) -> str:
        """What the old graph calls a tensor of the new one, if it has it."""
        j = self._new.side.producer.get(b)
        if j is not None and j in self._pairing.of_new:
            twin = self._old.side.nodes[self._pairing.of_new[j]]
            slot = list(self._new.side.nodes[j].output).index(b)
            return str(twin.output[slot]) if slot < len(twin.output) else b
        if j is None:
            number = self._new.tensors.get(b)
            return next((n for n in self._old.tensors if self._old.tensors[n] == number), b)
        return b

    def _both_weights(self, a: str, b: str) -> bool:
        return a in self._old.weights and b in self._new.weights

    # -- what changed of a pair --------------------------------------------------------------------

    def _is_changed(self, i: int, j: int) -> bool:
        """Whether attributes or weights differ, operands aside."""
        if self._old.ops[i] != self._new.ops[j]:
            return True
        reads = self._old.side.reads[i], self._new.side.reads[j]
        return len(reads[0]) != len(reads[1]) or any(
            self._both_weights(a, b) and self._old.weights[a] != self._new.weights[b]
            for a, b in zip(*reads, strict=True)
        )

    def _unpair_changed_neighbours(self) -> None:
        """A changed node beside removed or added ones is part of that change."""
        for i, j in list(self._pairing.of_old.items()):
            if self._is_changed(i, j) and self._has_unpaired_neighbour(i, j):
                self._pairing.unpair(i)

    def _has_unpaired_neighbour(self, i: int, j: int) -> bool:
        for side, node, done in ((self._old.side, i, self._pairing.of_old),
                                 (self._new.side, j, self._pairing.of_new)):  # fmt: skip
            around = [side.producer[name] for name in side.reads[node] if name in side.producer]
            around += [r for name in side.nodes[node].output for r, _ in side.readers.get(name, ())]
            if any(other not in done for other in around):
                return True
        return False

    # -- rewired operands --------------------------------------------------------------------------

    def _rewired(self) -> Iterator[Slot]:
        for i, j in self._pairing.of_old.items():
            reads = self._old.side.reads[i], self._new.side.reads[j]
            for position, (a, b) in enumerate(zip(*reads, strict=False)):
                if not self._both_weights(a, b) and not self._is_same(a, b):
                    yield Slot(i, position, a, b)

    def _rewired_outputs(self) -> Iterator[Slot]:
        for position, (a, b) in enumerate(self._pairing.outputs):
            if not self._is_same(a, b):
                yield Slot(None, position, a, b)

    def _ends(self, slot: Slot) -> tuple[bool, bool]:
        """Whether a removed node made the old operand, and an added one makes the new one."""
        i, j = self._old.side.producer.get(slot.old), self._new.side.producer.get(slot.new)
        return (i is not None and i not in self._pairing.of_old,
                j is not None and j not in self._pairing.of_new)  # fmt: skip

    # -- pieces ------------------------------------------------------------------------------------

    def pieces(self) -> Iterator[Change]:
        """What was removed and added, piece by piece."""
        for members in self._groups():
            old = tuple(k for side, k in members if side == "old")
            new = tuple(k for side, k in members if side == "new")
            removed = Fragment(self._old.side, old)
            added = Fragment(self._new.side, new, copies=copies_in(self._new, new))
            tensors = [*removed.outputs(), *added.outputs(), "nothing"]
            texts = () if old and new else tuple(self._bypasses(removed, added))
            yield Change(tensors[0], removed, added, texts, (len(texts),))

    def _groups(self) -> list[list[tuple[str, int]]]:
        """Unpaired nodes, joined by tensors and by the operands that they give instead."""
        old, new, done = self._old.side, self._new.side, self._pairing
        nodes = [("old", i) for i in range(len(old.nodes)) if i not in done.of_old]
        nodes += [("new", j) for j in range(len(new.nodes)) if j not in done.of_new]
        joined = _Joined(nodes)
        for name, k in nodes:
            side = old if name == "old" else new
            for tensor in side.reads[k]:
                joined.join((name, k), (name, side.producer.get(tensor, -1)))
        for slot in self._slots:
            ends = ("old", old.producer.get(slot.old, -1)), ("new", new.producer.get(slot.new, -1))
            joined.join(*ends)
        return joined.groups()

    def _bypasses(self, removed: Fragment, added: Fragment) -> Iterator[str]:
        """Who reads what in place of a removed tensor, or through an added one."""
        made = {*removed.outputs(), *added.outputs()}
        told = dict.fromkeys((s.old, s.new) for s in self._slots
                             if {s.old, s.new} & made and s.old != s.new)  # fmt: skip
        for a, b in told:
            outputs = [s for s in self._slots if (s.old, s.new, s.reader) == (a, b, None)]
            who = f"the output {self._pairing.outputs[outputs[0].position][0]}" if outputs else ""
            readers = sum(s.reader is not None for s in self._slots if (s.old, s.new) == (a, b))
            who = who or f"the reader{'s' * (readers != 1)} of {a}"
            yield f"{who} {'is' if outputs else 'read' + 's' * (readers == 1)} {self._old_name(b)}"

    # -- nodes that stayed -------------------------------------------------------------------------

    def stayed(self) -> Iterator[Change]:
        """The nodes that stayed with another attribute, weight or operand."""
        moved: dict[int, list[Slot]] = {}
        for slot in self._slots:
            if slot.reader is not None and not any(self._ends(slot)):
                moved.setdefault(slot.reader, []).append(slot)
        for i, j in sorted(self._pairing.of_old.items()):
            told = [*self._attributes(i, j), *self._weights(i, j), *self._moves(moved.get(i, []))]
            if told:
                sort = tuple(key for key, _ in told)
                old, new = Fragment(self._old.side, (i,)), Fragment(self._new.side, (j,))
                tensor = next((n for n in self._old.side.nodes[i].output if n), "nothing")
                yield Change(tensor, old, new, tuple(text for _, text in told), sort)

    def _attributes(self, i: int, j: int) -> Iterator[tuple[Hashable, str]]:
        if self._old.ops[i] == self._new.ops[j]:
            return
        was, now = ({a.name: a for a in side.attributes(k)}
                    for side, k in ((self._old.side, i), (self._new.side, j)))  # fmt: skip
        texts = [
            text
            for name in dict.fromkeys([*was, *now])
            if (text := changed_attribute(was.get(name), now.get(name)))
        ]
        versions = [side.version(k) for side, k in ((self._old.side, i), (self._new.side, j))]
        if versions[0] != versions[1]:
            texts.append(f"version of the operator: {versions[0]} → {versions[1]}")
        for text in texts or ["what its bodies, or the local function that it calls, compute"]:
            yield text, text

    def _weights(self, i: int, j: int) -> Iterator[tuple[Hashable, str]]:
        old, new = self._old.side, self._new.side
        for slot, (a, b) in enumerate(zip(old.reads[i], new.reads[j], strict=False)):
            if self._both_weights(a, b) and self._old.weights[a] != self._new.weights[b]:
                text = f"weight {a}{old.shape(a)}: {changed_values(old.weights[a], new.weights[b])}"
                yield ("weight", slot, old.type_text(a), new.type_text(b)), text

    def _moves(self, slots: list[Slot]) -> Iterator[tuple[Hashable, str]]:
        if len(slots) == 2 and slots[0].old == self._old_name(slots[1].new) and (
            slots[1].old == self._old_name(slots[0].new)
        ):  # fmt: skip
            first, second = slots
            text = f"inputs {first.position} and {second.position} are swapped: "
            yield "swapped", f"{text}{first.old}, {second.old} → {second.old}, {first.old}"
            return
        for slot in slots:
            text = f"input {slot.position}: {slot.old or 'absent'} → "
            yield ("input", slot.position), text + (self._old_name(slot.new) or "absent")


class _Joined:
    """Disjoint sets of nodes, told in the order of their first members."""

    def __init__(self, nodes: list[tuple[str, int]]) -> None:
        self._parent = {node: node for node in nodes}

    def _root(self, node: tuple[str, int]) -> tuple[str, int]:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def join(self, one: tuple[str, int], two: tuple[str, int]) -> None:
        """Joins two nodes; what is no member is ignored."""
        if one in self._parent and two in self._parent:
            self._parent[self._root(two)] = self._root(one)

    def groups(self) -> list[list[tuple[str, int]]]:
        """All sets."""
        found: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for node in self._parent:
            found.setdefault(self._root(node), []).append(node)
        return list(found.values())


def changed_attribute(old: onnx.AttributeProto | None, new: onnx.AttributeProto | None) -> str:
    """`attribute axis: 1 → 2`, of a body the ops that it has more or less of; or nothing."""
    was, now = ("absent" if a is None else attribute_value(a) for a in (old, new))
    name = (old or new or onnx.AttributeProto()).name
    if old is None or new is None or was != now:
        return f"attribute {name}: {was} → {now}"
    if old.HasField("t") and new.HasField("t"):
        tensors = [onnx.numpy_helper.to_array(a.t) for a in (old, new)]
        same = tensors[0].dtype == tensors[1].dtype and tensors[0].tobytes() == tensors[1].tobytes()
        weights = [NewWeight(values, values.dtype, name) for values in tensors]
        return "" if same else f"attribute {name}: {changed_values(*weights)}"
    ops = [Counter(node.op_type for node in a.g.node) for a in (old, new)]
    gone, come = (", ".join((a - b).elements()) or "nothing" for a, b in (ops, ops[::-1]))
    return f"attribute {name}: in its body {gone} → {come}" if ops[0] != ops[1] else ""


def changed_values(old: Weight, new: Weight) -> str:
    """`1 of 1,600 elements differs, [0, 3]: 0.5 → 0.25`; type or shape if they differ."""
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"{old.dtype}{list(old.shape)} → {new.dtype}{list(new.shape)}"
    a, b = np.asarray(old.load()), np.asarray(new.load())
    if a.dtype.kind in "fc":  # bit for bit, as weights are compared: −0 is not 0
        width = f"u{a.dtype.itemsize}" if a.dtype.kind == "f" else "u1"
        differs = np.ascontiguousarray(a).view(width) != np.ascontiguousarray(b).view(width)
        differs = differs.reshape(*a.shape, -1).any(-1) if differs.shape != a.shape else differs
    else:
        differs = a != b
    count, first = int(differs.sum()), np.argwhere(differs)[0]
    where = tuple(first)
    worst = ""
    if a.dtype.kind in "fiu" and count > 1:
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
        worst = f", by {gap:.3g} at most"
    verb = "differs" if count == 1 else "differ"
    values = f"{[int(n) for n in first]}: {_number(a[where])} → {_number(b[where])}"
    return f"{count:,} of {a.size:,} elements {verb}{worst}, {'first ' * (count > 1)}{values}"


def _number(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, np.floating) else str(value)
