"""Changes at one place each, and how equal ones become a kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from compiler.diff.derivation import derivation
from compiler.diff.expression import (
    Fragment,
    canonical_form,
    expression_of,
    heads_in,
    with_bases,
)
from compiler.diff.model import Error, Expression, Kind, Origin, Place, Region
from compiler.diff.numbering import Numbers
from compiler.diff.side import Side
from compiler.rewrites import RecordedRewrite
from compiler.weights import Weight

# How weights were made is searched for among so many pairs: a rewrite has few, and models that have
# nothing in common have millions of values to compare.
_MOST_PAIRS = 1000
# A new weight's values are told, up to so many.
_SHOWN_VALUES = 4


@dataclass(frozen=True)
class Change:
    """The old and the new nodes of one place, and what happened to nodes that stayed."""

    tensor: str
    old: Fragment
    new: Fragment
    details: tuple[str, ...] = ()
    sort: tuple[Hashable, ...] = ()
    """What of the details makes two changes different kinds: everything but names and values."""
    rewrite: RecordedRewrite | None = None
    """What a build recorded of it."""
    float32: Error | None = None

    @property
    def pass_name(self) -> str:
        """The pass that did it, if a build recorded that."""
        return "" if self.rewrite is None else self.rewrite.title.partition("#")[0]

    def place(self) -> Place:
        """Where it is."""
        scope = self.old.side.scope(self.old.nodes) or self.new.side.scope(self.new.nodes)
        return Place(self.tensor, scope, Error.of(self.rewrite.float64) if self.rewrite else None)


def alike(changes: Iterable[Change]) -> list[list[Change]]:
    """Changes in groups of those that differ in names and the values of weights alone."""
    groups: dict[Hashable, list[Change]] = defaultdict(list)
    for change in changes:
        forms = canonical_form(change.old), canonical_form(change.new)
        groups[change.pass_name, change.sort, forms].append(change)
    return list(groups.values())


def kinds_of(changes: Iterable[Change]) -> list[Kind]:
    """Equal changes as one kind each, in order of the first."""
    return [_kind(group) for group in alike(changes)]


def _kind(changes: Sequence[Change]) -> Kind:
    first = changes[0]
    places = tuple(change.place() for change in changes)
    heads = heads_in(first.old.side, first.old.nodes)
    new = first.new if first.new.made else replace(first.new, made=_derived(first))
    shown = with_bases(expression_of(new, heads), first.old.side, places[0].scope)
    return Kind(
        first.pass_name, places,
        _region(first.old, expression_of(first.old)), _region(new, shown),
        first.details, tuple(_origins(new, first.old.side)), first.float32,
        (first.old.names(), first.new.names()),
    )  # fmt: skip


def _region(fragment: Fragment, expression: Expression) -> Region:
    return Region(fragment.ops(), fragment.inputs(), fragment.outputs(), expression)


def _derived(change: Change) -> Mapping[str, str]:
    """How the weights that only the new nodes read were made of those that the old ones read."""
    old = {name: change.old.side.weights[name] for name in change.old.weights()}
    mine = {name: change.new.side.weights[name] for name in change.new.weights()}
    fresh = _only_in(mine, old)
    if len(fresh) * len(old) > _MOST_PAIRS:
        return {}
    found = {name: derivation(mine[name], old) for name in fresh if mine[name].shape}
    return {name: how for name, how in found.items() if how}


def _only_in(mine: Mapping[str, object], others: Mapping[str, object]) -> list[str]:
    numbers = Numbers()
    known = {numbers.of_weight(weight) for weight in others.values()}  # type: ignore[arg-type]
    return [n for n, w in mine.items() if numbers.of_weight(w) not in known]  # type: ignore[arg-type]


def _origins(new: Fragment, old: Side) -> Iterable[Origin]:
    """The weights that the new nodes read and the old model does not have by that name."""
    for name in new.weights():
        how = new.made.get(name, "")
        if how or name not in old.weights:
            weight = new.side.weights[name]
            yield Origin(name, tuple(weight.shape), how, _short_values(weight))


def _short_values(weight: Weight) -> str:
    if weight.nbytes > 8 * _SHOWN_VALUES:
        return ""
    values = weight.load()
    short = values.size <= _SHOWN_VALUES and values.dtype.kind in "fiub"
    return f"[{', '.join(f'{v:.6g}' for v in values.reshape(-1).tolist())}]" if short else ""
