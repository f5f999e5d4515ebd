"""A region as an indented expression, with repeated sub-expressions shown once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import onnx

from compiler.diff.model import Expression, Line, Operand, Parameter, Repeat
from compiler.diff.roles import heads_in, roles_of
from compiler.diff.side import Side

# Repetitions of fewer nodes are quicker read than a reference to the first …
_LEAST_FOLDED = 8
# … unless so many of so many nodes stand side by side.
_LEAST_RUN, _LEAST_IN_RUN = 3, 3
# Integers (axes, shapes, indices) are shown by value, up to so many.
_SHOWN_VALUES = 8
BELOW = Operand("below", "·")


@dataclass(frozen=True)
class Item:
    """A node, or a copy of a piece of the network that is shown as one."""

    op: str
    attributes: tuple[str, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """Nodes of one side that belong together; `copies` are parts of it that are mere copies."""

    side: Side
    nodes: tuple[int, ...]
    made: Mapping[str, str] = field(default_factory=dict)
    """How weights were made that the other side does not have."""
    copies: tuple[tuple[int, ...], ...] = ()

    def items(self) -> list[Item]:
        """The nodes, with each copy as one item."""
        copied = {i for copy in self.copies for i in copy}
        single = [i for i in self.nodes if i not in copied]
        return [*(_item(self.side, i) for i in single), *(_copy(self.side, c) for c in self.copies)]

    def ops(self) -> tuple[str, ...]:
        """The op of every node."""
        return tuple(self.side.nodes[i].op_type for i in self.nodes)

    def names(self) -> tuple[str, ...]:
        """The name of every node."""
        return tuple(self.side.nodes[i].name for i in self.nodes)

    def inputs(self) -> dict[str, str]:
        """What the nodes read and none of them computes, weights aside, with types."""
        made = set(self.side.made_by(self.nodes))
        reads = dict.fromkeys(name for i in self.nodes for name in self.side.reads[i] if name)
        return {name: self.side.type_text(name) for name in reads
                if name not in made and name not in self.side.weights}  # fmt: skip

    def outputs(self) -> dict[str, str]:
        """What the nodes compute for others, with types."""
        return {name: self.side.type_text(name) for name in self.side.roots(self.nodes)}

    def weights(self) -> list[str]:
        """The weights that the nodes read, in order."""
        reads = [name for i in self.nodes for name in self.side.reads[i]]
        return list(dict.fromkeys(name for name in reads if name in self.side.weights))


def expression_of(fragment: Fragment, heads: int | None = None) -> Expression:
    """The expression of a fragment.

    Args:
        fragment: what to write.
        heads: how many heads the attention has on the other side: so many repetitions are heads.
    """
    return _Writer(fragment, heads).expression()


def canonical_form(fragment: Fragment) -> Hashable:
    """Equal for fragments that differ in nothing but names and the values of weights.

    Short integer constants count by value: they are shapes, axes and indices.
    """
    forms, side = _Forms(fragment), fragment.side
    numbers: dict[str, int] = {}
    items = dict.fromkeys(item for root in side.roots(fragment.nodes) for item in forms.under(root))
    done = []
    for item in items:
        names = (*item.reads, *item.outputs)
        tensors = tuple(
            (numbers.setdefault(name, len(numbers)), name in side.weights, side.type_text(name),
             _value_text(side, name) if name in side.weights else "")
            for name in names
        )  # fmt: skip
        done.append((item.op, item.attributes, len(item.reads), tensors))
    return tuple(done)


class _Forms:
    """Sub-expressions as keys: equal for those that differ only in leaves of equal types."""

    def __init__(self, fragment: Fragment) -> None:
        self._side = fragment.side
        self.items = fragment.items()
        self.producer = {name: item for item in self.items for name in item.outputs}
        self._known: dict[Hashable, int] = {}
        self._forms: dict[str, Hashable] = {}
        self._under: dict[str, list[Item]] = {}
        roots = fragment.side.roots(fragment.nodes)
        items = dict.fromkeys(item for root in roots for item in self.under(root))
        self.alike: dict[Hashable, list[str]] = defaultdict(list)
        """The computed tensors of every form, in the order of an expression."""
        for name in (name for item in items for name in item.outputs if name):
            self.alike[self.of(name)].append(name)

    def of(self, name: str) -> Hashable:
        """The form of the expression that computes a tensor; a type if it is a leaf."""
        if name not in self._forms:
            for item in self.under(name):
                for tensor in (*item.reads, *item.outputs):
                    if tensor not in self._forms:
                        self._forms[tensor] = self._form(tensor)
            self._forms.setdefault(name, self._form(name))
        return self._forms[name]

    def _form(self, name: str) -> Hashable:
        item = self.producer.get(name)
        if item is None:
            return name in self._side.weights, self._side.type_text(name) if name else ""
        reads = tuple(self._forms[read] for read in item.reads)
        shapes = tuple(self._side.type_text(n) if n else "" for n in item.outputs)
        key = (item.op, item.attributes, shapes, reads, item.outputs.index(name))
        return self._known.setdefault(key, len(self._known))

    def under(self, name: str) -> list[Item]:
        """The items that a tensor depends on, operands before what reads them."""
        if name not in self._under:
            self._under[name] = self._walk(name)
        return self._under[name]

    def _walk(self, name: str) -> list[Item]:
        order: list[Item] = []
        seen: set[str] = set()
        pending = [(name, False)]
        while pending:
            tensor, is_done = pending.pop()
            item = self.producer.get(tensor)
            if item is None or (not is_done and item.outputs[0] in seen):
                continue
            if is_done:
                order.append(item)
                continue
            seen.add(item.outputs[0])
            pending.append((tensor, True))
            pending += [(read, False) for read in reversed(item.reads)]
        return order

    def leaves(self, name: str) -> list[str]:
        """What the expression reads from outside, in the order in which it is written."""
        return [read for item in self.under(name) for read in item.reads
                if read and read not in self.producer]  # fmt: skip


@dataclass
class _Fold:
    """Tensors whose expressions are alike; the first is written, the others are told by a table."""

    unit: str
    names: list[str]


class _Writer:
    """Writes the lines of one expression, operands below their op."""

    def __init__(self, fragment: Fragment, heads: int | None) -> None:
        self._fragment, self._side, self._heads = fragment, fragment.side, heads
        self._forms = _Forms(fragment)
        reads = Counter(n for item in self._forms.items for n in dict.fromkeys(item.reads))
        self._shared = {n for n, count in reads.items() if count > 1 and n in self._forms.producer}
        self._roots = self._side.roots(fragment.nodes)
        self._roles = roles_of(self._side, fragment.nodes)
        self._labels: dict[str, str] = {}
        self._parameters: dict[str, str] = {}
        self._repeats: list[Repeat] = []
        self._lines: list[Line] = []
        self._folds: dict[Hashable, _Fold] = {}
        self._inside: dict[str, Collection[str]] = {}
        """Of what is inside the first of several repetitions, all that is."""

    def expression(self) -> Expression:
        """All lines, and what differs between repetitions."""
        pending = [(name, 0, 1) for name in reversed(self._roots)]
        while pending:
            name, depth, count = pending.pop()
            below = [] if name in self._labels else self._write(name, depth, count)
            pending += [(n, depth + 1, c) for n, c in reversed(below)]
        return Expression(tuple(self._lines), tuple(self._repeats))

    def _write(self, name: str, depth: int, count: int) -> list[tuple[str, int]]:
        """Writes the line of one tensor; returns the tensors to be written below it."""
        item = self._forms.producer[name]
        if name in self._shared:
            self._labels[name] = f"%{len(self._labels) + 1}"
        label = self._labels.get(name, "")
        fold = self._fold_of(name)
        if fold is not None and name in fold.names[1:]:
            note = f"as {fold.unit} 0, with the weights of {fold.unit} {fold.names.index(name)}"
            nodes = sum(len(i.nodes) for i in self._forms.under(name))
            self._lines.append(Line(depth, item.op, self._side.shape(name), (note,), (), label,
                                    nodes=nodes))  # fmt: skip
            return []
        operands, below = self._operands(item)
        self._lines.append(Line(depth, item.op, self._side.shape(name), item.attributes,
                                tuple(operands), label, count,
                                "" if fold is None else fold.unit, len(item.nodes)))  # fmt: skip
        return below

    def _operands(self, item: Item) -> tuple[list[Operand], list[tuple[str, int]]]:
        """What an op reads, and which of it is written below; repetitions side by side once."""
        operands: list[Operand] = []
        below: list[tuple[str, int]] = []
        runs = groupby(item.reads, key=self._run_key)
        for names in (list(dict.fromkeys(run)) for _, run in runs):
            if names[0] not in self._forms.producer or names[0] in self._labels:
                operands.append(self._leaf(names[0]))
            elif self._is_folded(names):
                below.append((names[0], len(names)))
                operands.append(BELOW)
            else:
                below += [(name, 1) for name in names]
                operands += [BELOW] * len(names)
        return ([] if all(o is BELOW for o in operands) else operands), below

    def _run_key(self, name: str) -> Hashable:
        is_leaf = name not in self._forms.producer or name in self._labels
        return (name,) if is_leaf else self._forms.of(name)

    def _is_folded(self, names: list[str]) -> bool:
        """Whether expressions side by side are told by the first of them."""
        size = len(self._forms.under(names[0]))
        is_run = len(names) >= _LEAST_RUN and size >= _LEAST_IN_RUN
        if is_run and self._forms.of(names[0]) not in self._folds:
            self._fold(names)
        fold = self._fold_of(names[0])
        return fold is not None and fold.names[: len(names)] == names

    def _fold_of(self, name: str) -> _Fold | None:
        """The repetitions that a tensor's expression is one of, if it is worth folding."""
        form = self._forms.of(name)
        if form not in self._folds and len(self._forms.under(name)) >= _LEAST_FOLDED:
            around = self._inside.get(name, self._forms.producer)
            alike = [n for n in self._forms.alike[form] if n in around]
            if len(alike) > 1 and alike[0] == name:
                self._fold(alike)
        return self._folds.get(form)

    def _fold(self, names: list[str]) -> None:
        """Notes what differs between expressions of one form, of which the first is written."""
        rows = [self._forms.leaves(name) for name in names]
        if len({len(row) for row in rows}) > 1:
            return
        varying = [c for c in dict.fromkeys(zip(*rows, strict=True)) if len(set(c)) > 1]
        parameters = tuple(self._parameter(column) for column in varying)
        is_head = self._heads == len(names) and any(p.role for p in parameters)
        unit = "head" if is_head else "part"
        inner = {n for item in self._forms.under(names[0]) for n in item.outputs if n}
        self._inside |= dict.fromkeys(inner, inner)
        self._folds[self._forms.of(names[0])] = _Fold(unit, names)
        self._repeats.append(Repeat(unit, len(names), parameters))

    def _parameter(self, column: Sequence[str]) -> Parameter:
        label = self._parameters.setdefault(column[0], f"w{len(self._parameters) + 1}")
        texts = [self._text(name) for name in column]
        parts = [_SLICE.fullmatch(text) for text in texts]
        bases = {part[1] if part else "" for part in parts}
        base = bases.pop() if len(bases) == 1 and all(parts) else ""
        values = tuple(p[2] for p in parts if p) if base else tuple(texts)
        return Parameter(label, self._roles.get(column[0], ""), base, "", values)

    def _leaf(self, name: str) -> Operand:
        if not name:
            return Operand("value", "–")
        if name in self._labels:
            return Operand("label", self._labels[name])
        if name in self._parameters:
            return Operand("weight", self._parameters[name] + self._side.shape(name))
        if name not in self._side.weights:
            return Operand("tensor", name)
        if constant_text(self._side, name):
            return Operand("value", constant_text(self._side, name))
        return Operand("weight", self._text(name) + self._side.shape(name))

    def _text(self, name: str) -> str:
        """A constant's value, how a weight was made, or a name."""
        value = constant_text(self._side, name) if name in self._side.weights else ""
        return value or self._fragment.made.get(name, name)


_SLICE = re.compile(r"(.+?)(\[[^\[\]]*:[^\[\]]*\])")


def constant_text(side: Side, name: str) -> str:
    """The value of a constant that is shown instead of its name, or nothing."""
    return _value_text(side, name) or _scalar_text(side, name)


def _value_text(side: Side, name: str) -> str:
    """The values of a short integer constant, or nothing: a shape, axes, an index."""
    weight = side.weights[name]
    if weight.nbytes > 8 * _SHOWN_VALUES:
        return ""
    values = weight.load()
    return str(values.tolist()) if values.dtype.kind in "iub" else ""


def _scalar_text(side: Side, name: str) -> str:
    """The value of a constant of one element, or nothing."""
    weight = side.weights[name]
    if weight.nbytes > 8:
        return ""
    values = weight.load()
    return f"{values.reshape(-1)[0]:.6g}" if values.size == 1 and values.dtype.kind == "f" else ""


def _item(side: Side, i: int) -> Item:
    node = side.nodes[i]
    attributes = tuple(attribute_text(a) for a in side.attributes(i))
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    reads = tuple(side.reads[i])
    return Item(f"{domain}{node.op_type}", attributes, reads, tuple(node.output), (i,))


def _copy(side: Side, nodes: Sequence[int]) -> Item:
    made = set(side.made_by(nodes))
    reads = dict.fromkeys(n for i in nodes for n in side.reads[i])
    outside = tuple(n for n in reads if n and n not in made and n not in side.weights)
    return Item(
        f"copy of {len(nodes):,} nodes", (), outside, tuple(side.roots(nodes)), tuple(nodes)
    )


def attribute_text(attribute: onnx.AttributeProto) -> str:
    """`perm=[0, 2, 1]`."""
    return f"{attribute.name}={attribute_value(attribute)}"


def attribute_value(attribute: onnx.AttributeProto) -> str:
    """The value of an attribute as people write it."""
    if attribute.HasField("g") or attribute.graphs:
        bodies: Collection[onnx.GraphProto] = [attribute.g] if attribute.HasField("g") else (
            attribute.graphs)  # fmt: skip
        return "{" + f"{sum(len(body.node) for body in bodies)} nodes" + "}"
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return f"tensor{list(value.dims)}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return f"{value:.6g}"
    return str([_plain(v) for v in value]) if isinstance(value, Sequence) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return float(f"{value:.6g}") if isinstance(value, float) else value


def with_bases(expression: Expression, side: Side, scope: str) -> Expression:
    """The expression whose parameters say shape and module of what they are slices of.

    Args:
        expression: of the new region.
        side: the old one, which has the weights that the new ones were made of.
        scope: the module of the place; those of parameters are told from there on.
    """
    return replace(expression, repeats=tuple(
        replace(r, parameters=tuple(_with_base(p, side, scope) for p in r.parameters))
        for r in expression.repeats
    ))  # fmt: skip


def _with_base(parameter: Parameter, side: Side, scope: str) -> Parameter:
    if parameter.base not in side.types:
        return parameter
    module = side.scope([i for i, _ in side.readers[parameter.base]])
    return replace(parameter, base=parameter.base + side.shape(parameter.base),
                   scope="" if module == scope else module.removeprefix(f"{scope}."))  # fmt: skip


__all__ = [
    "Fragment", "attribute_value", "canonical_form", "expression_of", "heads_in", "with_bases",
]  # fmt: skip
