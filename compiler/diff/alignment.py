"""Pairs the nodes of two graphs by what they compute; names are a hint where nothing else tells.

First the nodes that compute the same from the inputs on. Then, from the outputs backwards, from
weights that only one node has, and from neighbours that are paired already, nodes that do the same
to other operands; at last such nodes of one op whose attributes or weights changed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence

from compiler.diff.numbering import ABSENT, Numbered

Agree = Callable[[int, int], bool]
Local = tuple[int, tuple[int, ...]]


class Pairing:
    """Which node of the old graph is which of the new one."""

    def __init__(self, old: Numbered, new: Numbered, outputs: Sequence[tuple[str, str]]) -> None:
        """Pairs them; `outputs` are the pairs of the models' outputs by name."""
        self.old, self.new, self.outputs = old, new, outputs
        self._start(range(len(old.values)), range(len(new.values)))
        self._pair_alike()
        self._pair_by_weights()
        self._spread(self._does_the_same)
        self._pair_by_names()
        self._spread(self._does_the_same)
        self._spread(self._is_of_one_op)

    def _start(self, ours: Collection[int], theirs: Collection[int]) -> None:
        """With no pair, and the nodes of both graphs that may be in one."""
        self.of_old: dict[int, int] = {}
        self.of_new: dict[int, int] = {}
        self._ours, self._theirs = ours, theirs

    def unpair(self, old: int) -> None:
        """Takes a pair apart: one node was removed, another added."""
        del self.of_new[self.of_old.pop(old)]

    def _add(self, old: int, new: int) -> None:
        self.of_old[old], self.of_new[new] = new, old

    def _pair_alike(self) -> None:
        """Pairs nodes of equal numbers; of several such those of equal use, reader or name."""
        ends = zip(*self.outputs, strict=True) if self.outputs else ((), ())
        sides = self.old, self.new
        uses = [side.uses(names) for side, names in zip(sides, ends, strict=True)]
        names = [[node.output[0] if node.output else "" for node in s.side.nodes] for s in sides]
        for old, new in (uses, [s.readers() for s in sides], names, [s.ops for s in sides]):
            self._pair_equal(
                list(zip(self.old.values, old, strict=True)),
                list(zip(self.new.values, new, strict=True)),
            )

    def _pair_equal(self, old: Sequence[Hashable], new: Sequence[Hashable]) -> None:
        """Pairs the free nodes of equal keys, in order."""
        free: dict[Hashable, deque[int]] = defaultdict(deque)
        for j, key in enumerate(new):
            if j not in self.of_new:
                free[key].append(j)
        for i, key in enumerate(old):
            if i not in self.of_old and free.get(key):
                self._add(i, free[key].popleft())

    def _pair_by_weights(self) -> None:
        """Pairs the nodes that no other resembles: the same op with the same weights."""
        old = _by_local(self.old, (i for i in self._ours if i not in self.of_old))
        new = _by_local(self.new, (j for j in self._theirs if j not in self.of_new))
        for key, nodes in old.items():
            is_marked = any(number != ABSENT for number in key[1])
            if is_marked and len(nodes) == len(new.get(key, ())) == 1:
                self._add(nodes[0], new[key][0])

    def _pair_by_names(self) -> None:
        """Pairs nodes that do the same and compute tensors of the same name."""
        for i, node in enumerate(self.old.side.nodes):
            names = [name for name in node.output if name]
            j = self.new.side.producer.get(names[0]) if names else None
            if j is not None and self._are_free(i, j) and self._does_the_same(i, j):
                self._add(i, j)

    def _spread(self, agree: Agree) -> None:
        """Pairs the neighbours of pairs, as long as there are such that agree."""
        pending = deque([*self._at_outputs(), *self._neighbours_of(list(self.of_old))])
        while pending:
            i, j = pending.popleft()
            if self._are_free(i, j) and agree(i, j):
                self._add(i, j)
                pending += self._neighbours_of([i])

    def _at_outputs(self) -> Iterator[tuple[int, int]]:
        for old, new in self.outputs:
            i, j = self.old.side.producer.get(old), self.new.side.producer.get(new)
            if i is not None and j is not None:
                yield i, j

    def _neighbours_of(self, nodes: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Producers of what a pair reads in one place, and its only readers of one kind."""
        old, new = self.old.side, self.new.side
        for i in nodes:
            j = self.of_old[i]
            for a, b in zip(old.reads[i], new.reads[j], strict=False):
                if a in old.producer and b in new.producer:
                    yield old.producer[a], new.producer[b]
            for a, b in zip(old.nodes[i].output, new.nodes[j].output, strict=False):
                yield from self._readers_of(a, b)

    def _readers_of(self, a: str, b: str) -> Iterator[tuple[int, int]]:
        ours, theirs = defaultdict(list), defaultdict(list)  # type: ignore[var-annotated]
        for side, nodes, done, name, found in (
            (self.old.side, self._ours, self.of_old, a, ours),
            (self.new.side, self._theirs, self.of_new, b, theirs),
        ):
            for node, slot in side.readers.get(name, ()):
                if node in nodes and node not in done:
                    found[side.nodes[node].op_type, slot].append(node)
        for key, readers in ours.items():
            if len(readers) == len(theirs.get(key, ())) == 1:
                yield readers[0], theirs[key][0]

    def _are_free(self, i: int, j: int) -> bool:
        is_free = i not in self.of_old and j not in self.of_new
        return is_free and i in self._ours and j in self._theirs

    def _does_the_same(self, i: int, j: int) -> bool:
        return self.old.local(i) == self.new.local(j)

    def _is_of_one_op(self, i: int, j: int) -> bool:
        """The same op in as many operands, of which as many are weights."""
        old, new = self.old.side, self.new.side
        a, b = old.nodes[i], new.nodes[j]
        given = [[name in side.weights for name in side.reads[k]] for side, k in
                 ((old, i), (new, j))]  # fmt: skip
        same_op = (a.op_type, a.domain, len(a.output)) == (b.op_type, b.domain, len(b.output))
        return same_op and sorted(given[0]) == sorted(given[1])


class Copying(Pairing):
    """Which node of a graph is copied by which of some others in it."""

    def __init__(self, graph: Numbered, copies: Collection[int]) -> None:
        """Looks for what `copies`, nodes of the graph, are copies of among its other nodes."""
        self.old = self.new = graph
        self.outputs = ()
        theirs = frozenset(copies)
        self._start(frozenset(range(len(graph.values))) - theirs, theirs)
        self._pair_by_weights()
        self._spread(self._does_the_same)


def _by_local(side: Numbered, nodes: Iterable[int]) -> dict[Local, list[int]]:
    found: dict[Local, list[int]] = defaultdict(list)
    for i in nodes:
        found[side.local(i)].append(i)
    return found
