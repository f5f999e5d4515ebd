"""Which tensors of an attention lead to its query, key and value: for people, by structure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from compiler.diff.side import Side

_ORDER = ("query", "key", "value")


def roles_of(side: Side, nodes: Collection[int]) -> dict[str, str]:
    """The role of every tensor behind query, key or value: `key`, or `query, key, value`.

    Of several attentions, the nearest counts: behind the last one is the whole network.
    """
    inside = set(nodes)
    nearest: dict[str, tuple[int, set[str]]] = {}
    for named in _attentions(side, inside):
        found: dict[str, tuple[int, set[str]]] = {}
        for role, tensor in named:
            for name, distance in _behind(side, tensor, inside).items():
                known, roles = found.get(name, (distance, set()))
                found[name] = min(known, distance), roles | {role}
        for name, (distance, roles) in found.items():
            if name not in nearest or distance < nearest[name][0]:
                nearest[name] = distance, roles
    return {n: ", ".join(role for role in _ORDER if role in r) for n, (_, r) in nearest.items()}


def heads_in(side: Side, nodes: Collection[int]) -> int | None:
    """The number of heads of the first Softmax: the axis before queries and keys, if it is one."""
    for i in nodes:
        if side.nodes[i].op_type == "Softmax":
            kind = side.types.get(side.nodes[i].output[0])
            sizes = () if kind is None or kind.shape is None else kind.shape
            if len(sizes) > 2 and isinstance(sizes[-3], int):
                return sizes[-3]
    return None


def _attentions(side: Side, nodes: set[int]) -> Iterator[list[tuple[str, str]]]:
    """(role, tensor) of query, key and value of every Softmax whose probabilities weigh values."""
    for i in sorted(nodes):
        if side.nodes[i].op_type == "Softmax":
            product = _product_behind(side, i, nodes)
            weighing = _product_ahead(side, i, nodes)
            if product is not None and weighing is not None:
                tensors = [*side.nodes[product].input[:2], side.nodes[weighing].input[1]]
                yield list(zip(_ORDER, tensors, strict=True))


def _product_behind(side: Side, i: int, nodes: set[int]) -> int | None:
    """The MatMul whose result a Softmax normalizes: scale, mask and type changes aside."""
    while side.nodes[i].op_type != "MatMul":
        before = [p for name in side.nodes[i].input if (p := side.producer.get(name)) in nodes]
        if not before:
            return None
        # A mask that is computed is shorter than the way to the scores; the first operand leads.
        i = before[0]
    return i


def _product_ahead(side: Side, i: int, nodes: set[int]) -> int | None:
    """The MatMul that probabilities enter first, through ops of one operand."""
    while True:
        users = [(u, slot) for u, slot in side.readers[side.nodes[i].output[0]] if u in nodes]
        for user, slot in users:
            if side.nodes[user].op_type == "MatMul":
                return user if slot == 0 else None
        if len(users) != 1:
            return None
        i = users[0][0]


def _behind(side: Side, tensor: str, nodes: set[int]) -> dict[str, int]:
    """Everything that a tensor is computed from inside the region, with its distance."""
    distance, pending = {tensor: 0}, deque([tensor])
    while pending:
        name = pending.popleft()
        producer = side.producer.get(name)
        for read in side.reads[producer] if producer in nodes else ():
            if read not in distance:
                distance[read] = distance[name] + 1
                pending.append(read)
    return distance
