"""Copies of what is still there: new nodes that do to other tensors what nodes beside them do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from compiler.diff.alignment import Copying
from compiler.diff.numbering import Numbered
from compiler.diff.side import Side

# Fewer nodes than this are quicker read than a reference to what they are a copy of.
_LEAST_COPIED = 20


def copies_in(new: Numbered, nodes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The nodes among these new ones that are a copy of others, if there is one worth a name."""
    original = Copying(new, nodes).of_new
    copied = tuple(i for i in nodes if i in original)
    while unlike := _wired_otherwise(new, copied, original):
        original = {i: o for i, o in original.items() if i not in unlike}
        copied = tuple(i for i in copied if i in original)
    return (copied,) if is_one_thing(new.side, nodes, copied) else ()


def is_one_thing(side: Side, nodes: Sequence[int], copied: Sequence[int]) -> bool:
    """Whether the copied ones of these nodes are many, and can be shown as one."""
    return len(copied) >= _LEAST_COPIED and not _is_reentered(side, nodes, set(copied))


def _wired_otherwise(new: Numbered, copied: Sequence[int], original: Mapping[int, int]) -> set[int]:
    """The nodes that do not read a copy wherever their originals read what is copied."""
    originals = set(original.values())
    return {i for i in copied if not _is_wired_alike(new, i, original, originals)}


def _is_wired_alike(
    new: Numbered, i: int, original: Mapping[int, int], originals: Collection[int]
) -> bool:
    side = new.side
    for a, b in zip(side.reads[original[i]], side.reads[i], strict=True):
        maker, producer = side.producer.get(a), side.producer.get(b)
        if producer is None or maker is None or producer not in original:
            if maker in originals or producer in original:
                return False
        elif maker != original[producer] or _slot(new, maker, a) != _slot(new, producer, b):
            return False
    return True


def _slot(new: Numbered, node: int, name: str) -> int:
    return list(new.side.nodes[node].output).index(name)


def _is_reentered(side: Side, nodes: Sequence[int], copied: Collection[int]) -> bool:
    """Whether something beside the copy reads it and is read by it."""
    made = set(side.made_by(copied))
    behind = set(made)
    for i in (i for i in nodes if i not in copied):
        if behind.intersection(side.reads[i]):
            behind.update(side.nodes[i].output)
    fed = behind - made
    return any(fed.intersection(side.reads[i]) for i in copied)
