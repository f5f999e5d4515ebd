"""What two models declare: which inputs and outputs are which, and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from compiler.diff.numbering import Numbered
from compiler.diff.side import Side
from compiler.region import TensorType
from compiler.rewrite import Signature

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Interface:
    """Pairs of inputs and of outputs by their names in both models."""

    inputs: Pairs
    outputs: Pairs

    def input_keys(self, old: Side, new: Side) -> tuple[dict[str, str], dict[str, str]]:
        """What each input of the old and of the new model is called for both."""
        twins = {b: a for a, b in self.inputs}
        return {a: f"old {a}" for a in old.signature.inputs}, {
            b: f"old {twins[b]}" if b in twins else f"new {b}" for b in new.signature.inputs
        }


def interfaces(old: Side, new: Side) -> list[Interface]:
    """The ways to pair what two models declare, most trusted last: by order, and by name."""
    ours, theirs = old.signature, new.signature
    by_order = Interface(
        _in_order([*ours.inputs], [*theirs.inputs]), _in_order(old.outputs, new.outputs)
    )
    by_name = Interface(
        _by_name([*ours.inputs], [*theirs.inputs]), _by_name(old.outputs, new.outputs)
    )
    return [by_name] if by_order == by_name else [by_order, by_name]


def _in_order(old: Sequence[str], new: Sequence[str]) -> Pairs:
    return tuple(zip(old, new, strict=False))


def _by_name(old: Sequence[str], new: Sequence[str]) -> Pairs:
    """Equal names belong together, the rest in order."""
    common = [name for name in old if name in new]
    rest = _in_order([n for n in old if n not in new], [n for n in new if n not in old])
    return (*((name, name) for name in common), *rest)


def declared_changes(old: Side, new: Side, pairs: Interface) -> Iterator[str]:
    """Types, inputs and outputs that are gone or new, their order, and versions."""
    for what, known, ours, theirs in (
        ("input", pairs.inputs, old.signature.inputs, new.signature.inputs),
        ("output", pairs.outputs, old.signature.outputs, new.signature.outputs),
    ):
        yield from _changed_types(what, known, ours, theirs)
        order = [b for a in ours for x, b in known if x == a]
        if order != [name for name in theirs if name in order]:
            yield f"order of {what}s: {', '.join(ours)} → {', '.join(theirs)}"
    yield from _changed_relations(old.signature, new.signature, pairs)
    for domain in sorted({*old.opsets, *new.opsets}):
        was, now = old.opsets.get(domain, "absent"), new.opsets.get(domain, "absent")
        if was != now:
            yield f"opset{' of ' + domain if domain else ''}: {was} → {now}"
    if old.ir_version != new.ir_version:
        yield f"IR version: {old.ir_version} → {new.ir_version}"


def _changed_types(
    what: str, pairs: Pairs, old: Mapping[str, TensorType], new: Mapping[str, TensorType]
) -> Iterator[str]:
    twins = dict(pairs)
    for name, kind in old.items():
        now = new.get(twins.get(name, ""))
        if now is None or not _same_type(kind, now):
            yield f"{what} {name}: {kind} → {now or 'absent'}"
    for name in (name for name in new if name not in twins.values()):
        yield f"{what} {name}: absent → {new[name]}"


def _changed_relations(old: Signature, new: Signature, pairs: Interface) -> Iterator[str]:
    """Which dynamic sizes must be equal to each other, if that differs."""
    twins = [
        (f"{what} {a}", ours[a], theirs[b])
        for what, known, ours, theirs in (
            ("input", pairs.inputs, old.inputs, new.inputs),
            ("output", pairs.outputs, old.outputs, new.outputs),
        )
        for a, b in known
    ]
    first_of: tuple[dict[str, int], dict[str, int]] = {}, {}
    sizes = 0
    for name, was, now in twins:
        both = zip(was.shape or (), now.shape or (), strict=False)
        for d in [(a, b) for a, b in both if not isinstance(a, int) and not isinstance(b, int)]:
            sizes += 1
            firsts = [known.setdefault(size, sizes) if size else sizes
                      for known, size in zip(first_of, d, strict=True)]  # fmt: skip
            if firsts[0] != firsts[1]:
                yield f"{name}: {was} → {now}: other sizes are equal to each other"
                return


def aside_changes(old: Numbered, new: Numbered) -> Iterator[str]:
    """Weights that a caller may replace, and quantization annotations."""
    ours, theirs = (Counter(side.tensors[n] for n in side.side.defaults) for side in (old, new))
    for side, gone, change in ((old, ours - theirs, "yes → no"), (new, theirs - ours, "no → yes")):
        for name in (n for n in side.side.defaults if side.tensors[n] in gone):
            yield f"weight {name} may be given as an input: {change}"
    if _annotations(old) != _annotations(new):
        counts = [len(side.side.annotations) for side in (old, new)]
        yield f"quantization annotations: {counts[0]} → {counts[1]}, of other tensors or values"


def _annotations(side: Numbered) -> Counter[Hashable]:
    return Counter(
        (side.tensors.get(one.tensor_name),
         tuple(sorted((e.key, side.tensors.get(e.value, e.value)) for e in
                      one.quant_parameter_tensor_names)))
        for one in side.side.annotations
    )  # fmt: skip


def _same_type(old: TensorType, new: TensorType) -> bool:
    """Whether types agree; names of dynamic sizes are names."""

    def sizes(kind: TensorType) -> list[int] | None:
        return None if kind.shape is None else [d if isinstance(d, int) else -1 for d in kind.shape]

    return old.onnx_type == new.onnx_type and sizes(old) == sizes(new)


def renamed(pairs: Interface) -> Iterator[str]:
    """Inputs and outputs of other names."""
    for what, known in (("input", pairs.inputs), ("output", pairs.outputs)):
        for a, b in known:
            if a != b:
                yield f"the {what} {a} is called {b}"
