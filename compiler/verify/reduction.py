"""Makes two regions that disagree smaller: from what agrees last to what differs first.

Two regions share the names of their cut alone, so inside they are aligned by value: a new tensor
agrees if it equals an old one, or a slice of one. From the output that differs the walk goes back
through the new nodes, as long as an old value put in the place of an input makes the result right:
that input then is what is wrong, and the old value what it should be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from compiler.region import Region, TensorType
from compiler.verify.float64 import evaluate
from compiler.verify.measure import compare
from compiler.verify.proof import REFUSALS, evaluate_region
from compiler.verify.views import View, views_equal_to, views_of_shape
from compiler.weights import NewWeight, Weight, onnx_type_of

Values = Mapping[str, Any]

# What counts as equal where the bound is zero: sums that were taken in another order.
LEAST_BOUND = 1e-12
# A pair of at most so many nodes a side can be read; of a larger one the sides share no inputs.
READABLE = 20
# So many old values are tried for one wrong tensor.
CANDIDATES = 256


@dataclass(frozen=True)
class Pair:
    """Two regions of one signature, and values for their inputs on which they disagree."""

    old: Region
    new: Region
    feeds: Values
    last_agreeing: tuple[str, ...] = ()
    """What agrees, `new tensor = old tensor[slice]`."""
    first_diverging: str = ""
    is_table: bool = False
    """Whether the old side is but the expected values, the oracle being no ONNX."""

    @property
    def nodes(self) -> int:
        """Of the larger region."""
        return max(len(self.old.nodes), len(self.new.nodes))


def reduced(pair: Pair, bound: float) -> Pair:
    """The smallest pair found that still disagrees by more than `bound`.

    Raises what the evaluation raises of regions that have none.
    """
    limit = max(bound, LEAST_BOUND)
    aligned = _Aligned(pair, limit)
    wrong, expected = aligned.first_diverging()
    found = [with_one_signature(pair)]
    for sliced, shared in ((True, True), (False, True), (False, False)):
        one = _cut(aligned, wrong, expected, sliced=sliced, shared=shared)
        if one is not None and disagrees(one, limit):
            found.append(one)
            if one.nodes <= READABLE:
                return one
    return min(found, key=lambda one: one.nodes)


def disagrees(pair: Pair, bound: float) -> bool:
    """Whether some output of the regions differs by more than `bound` in float64."""
    old, new = (evaluate_region(region, pair.feeds) for region in (pair.old, pair.new))
    return any(not compare(new[name], old[name]).centred_l2 <= bound for name in old)


class _Aligned:
    """The values of all tensors of both regions, and which of them agree."""

    def __init__(self, pair: Pair, bound: float) -> None:
        self.pair = pair
        self.bound = bound
        self.old = all_values(pair.old, pair.feeds)
        self.new = all_values(pair.new, pair.feeds)
        self._known: dict[tuple[str, str], View | None] = {}
        self._makers = {name: node for node in pair.new.nodes for name in node.output if name}

    def first_diverging(self) -> tuple[str, View]:
        """The wrong tensor that the walk back from the outputs ends at, and what it should be."""
        errors = {name: compare(self.new[name], self.old[name]).centred_l2
                  for name in self.pair.old.outputs}  # fmt: skip
        wrong = max(errors, key=lambda name: errors[name])
        expected = View.whole(wrong, self.old[wrong].shape)
        while (step := self._step_back(wrong, expected)) is not None:
            wrong, expected = step
        return wrong, expected

    def agreeing(self, name: str, expected: View) -> View | None:
        """The old values that a new tensor equals, of those not computed from `expected`."""
        if name in self.pair.new.inputs:
            return View.whole(name, self.new[name].shape)
        key = name, expected.name
        if key not in self._known:
            self._known[key] = self._agreeing(name, expected)
        return self._known[key]

    def _agreeing(self, name: str, expected: View) -> View | None:
        for other in self._pool(expected):
            for view in views_equal_to(self.new[name], other, self.old[other]):
                if self.equals(self.new[name], view):
                    return view
        return None

    def leaves(self, wrong: str, expected: View) -> dict[str, View]:
        """The last agreeing tensors that the wrong one is computed from."""
        found: dict[str, View] = {}
        seen, pending = {wrong}, self.reads(wrong)
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            view = self.agreeing(name, expected)
            if view is None:
                pending += self.reads(name)
            else:
                found[name] = view
        return found

    def reads(self, name: str) -> list[str]:
        """What the node that computes a new tensor reads, constants aside."""
        constants = self.pair.new.constants
        return [i for i in self._makers[name].input if i and i not in constants]

    def same_names(self, expected: View, given: Collection[str]) -> dict[str, Any]:
        """Old tensors that the new nodes compute, too: the old side needs not go behind them."""
        common = [name for name in self._pool(expected) if name in self.new and name not in given]
        return {name: self.old[name] for name in common
                if self.equals(self.new[name], View.whole(name, self.old[name].shape))}  # fmt: skip

    def _step_back(self, wrong: str, expected: View) -> tuple[str, View] | None:
        if wrong not in self._makers:
            return None
        inputs = dict.fromkeys(self.reads(wrong))
        unmatched = [name for name in inputs if self.agreeing(name, expected) is None]
        if self._makers[wrong].op_type == "Concat":
            return self._wrong_part(wrong, expected, unmatched)
        for name in unmatched:
            for view in self._candidates(name, expected):
                if self._repairs(wrong, expected, name, view):
                    return name, view
        return None

    def _wrong_part(
        self, wrong: str, expected: View, unmatched: Sequence[str]
    ) -> tuple[str, View] | None:
        """The first part of a Concat that agrees with nothing, and differs from its slice."""
        node = self._makers[wrong]
        axis = onnx.helper.get_node_attr_value(node, "axis") % self.new[wrong].ndim
        start = 0
        for name in node.input:
            extent = np.shape(self._given(name))[axis]
            view = expected.part(axis, start, start + extent)
            start += extent
            if name in unmatched and view is not None and not self.equals(self.new[name], view):
                return name, view
        return None

    def _given(self, name: str) -> Any:
        return self.new[name] if name in self.new else self.pair.new.constants[name].load()

    def _candidates(self, name: str, expected: View) -> Iterator[View]:
        """Old values of the shape of a new tensor, the nearest to `expected` first."""
        count = 0
        for other in self._pool(expected):
            if np.asarray(self.old[other]).dtype != np.asarray(self.new[name]).dtype:
                continue
            for view in views_of_shape(self.new[name].shape, other, self.old[other].shape):
                yield view
                count += 1
                if count == CANDIDATES:
                    return

    def _repairs(self, wrong: str, expected: View, name: str, view: View) -> bool:
        """Whether the node computes what is expected once it reads old values for one input."""
        node, region = self._makers[wrong], self.pair.new
        feeds = {i: self.new[i] for i in self.reads(wrong)} | {name: view.of(self.old)}
        constants = region.exact_constants()
        result = evaluate([node], constants, feeds, [wrong], region.opsets)[wrong]
        return result.shape == expected.shape and self.equals(result, expected)

    def equals(self, values: Any, view: View) -> bool:
        """Whether an array has the values of a view."""
        return values.shape == view.shape and bool(
            compare(values, view.of(self.old)).centred_l2 <= self.bound
        )

    def _pool(self, expected: View) -> list[str]:
        """The old tensors that do not depend on the one in question, the latest first."""
        behind = {expected.name}
        for node in self.pair.old.nodes:
            if behind.intersection(node.input):
                behind |= set(node.output)
        return [name for name in reversed(self.old) if name not in behind]


def all_values(region: Region, feeds: Values) -> dict[str, Any]:
    """Every tensor of a region in float64, inputs first, constants aside."""
    made = [name for node in region.nodes for name in node.output if name]
    values = evaluate_region(replace(region, outputs=dict.fromkeys(made, ANY)), feeds)
    constant = {n: region.exact_constants()[n] for n in region.outputs if n in region.constants}
    return {**{name: np.asarray(value) for name, value in feeds.items()}, **constant, **values}


# -- cutting ---------------------------------------------------------------------------------------


def _cut(
    aligned: _Aligned, wrong: str, expected: View, *, sliced: bool, shared: bool
) -> Pair | None:
    """The pair between the last agreeing tensors and the first diverging one, if there is one.

    Args:
        aligned: both regions with their values.
        wrong: the new tensor that is wrong.
        expected: what it should be.
        sliced: feed both sides with slices of old tensors, where the old nodes take them.
        shared: both sides read the same inputs; else each new tensor that agrees is an input of its
            own, with the old values.
    """
    leaves = aligned.leaves(wrong, expected)
    held = _held(leaves.values(), sliced=sliced)
    if held is None or expected.name in held:
        return None
    feeds = {name: view.cut(aligned.old[name]) for name, view in held.items()}
    feeds |= aligned.same_names(expected, feeds)
    inside = {name for node in aligned.pair.old.nodes for name in node.output}
    output = f"{wrong}/new" if wrong in inside and str(expected) != wrong else wrong
    old = _old_side(aligned, expected, output, feeds)
    if old is None:
        return None
    new = _new_side(aligned.pair.new, (wrong, output), leaves, feeds, shared=shared)
    feeds = {name: aligned.old[name] for name in old.inputs} | feeds
    if not shared:
        feeds |= {name: view.of(aligned.old) for name, view in leaves.items()}
    agreeing = tuple(f"{name} = {view}" for name, view in leaves.items())
    diverging = wrong if str(expected) == wrong else f"{wrong}, should be {expected}"
    return with_one_signature(Pair(old, new, feeds, agreeing, diverging))


def _held(views: Iterable[View], *, sliced: bool) -> dict[str, View] | None:
    """What of each old tensor is fed; None if a slice is to be, and not one slice does."""
    held: dict[str, View] = {}
    for view in views:
        fed = view if sliced else View.whole(view.name, view.full)
        other = held.setdefault(view.name, fed)
        if (other.axis, other.slice) != (fed.axis, fed.slice):
            return None
    return held


def _old_side(aligned: _Aligned, expected: View, output: str, feeds: Values) -> Region | None:
    """The old nodes from the inputs to what is expected; None if they do not take the slices."""
    source = aligned.pair.old
    nodes = between(source, expected.name, feeds)
    every = {**aligned.old, **feeds}
    try:
        result = evaluate(nodes, source.exact_constants(), every, [expected.name], source.opsets)
    except REFUSALS:
        return None
    made = np.asarray(result[expected.name])
    views = [View(expected.name, made.shape, expected.shape)]
    views += [expected] if made.shape == expected.full else []
    for view in views:
        if np.prod(view.sliced_shape) == np.prod(view.shape) and aligned.equals(
            view.of({expected.name: made}), expected
        ):
            parts = _view_nodes(view, expected.name, output)
            return region_between(source, [*nodes, *parts.nodes], parts.constants, output)
    return None


def _new_side(
    source: Region, wrong: tuple[str, str], leaves: Mapping[str, View], feeds: Values,
    *, shared: bool,
) -> Region:  # fmt: skip
    """The new nodes from the last agreeing tensors to the wrong one, under its name outside."""
    nodes = between(source, wrong[0], leaves)
    made = {name for node in nodes for name in node.output}
    names = {name: f"{name}/new" for name in made if name in feeds} | dict([wrong])
    first: list[onnx.NodeProto] = []
    constants: dict[str, Weight] = {}
    for name, view in leaves.items() if shared else ():
        given = np.shape(feeds[view.name])
        fed = View(view.name, given, view.shape) if given != view.full else view
        if fed.slice is None and given == view.shape:
            names[name] = view.name
            continue
        parts = _view_nodes(fed, view.name, name)
        first += parts.nodes
        constants |= parts.constants
    return region_between(
        source, [*first, *(_renamed(n, names) for n in nodes)], constants, wrong[1]
    )


@dataclass(frozen=True)
class _Parts:
    nodes: list[onnx.NodeProto]
    constants: dict[str, Weight]


def _view_nodes(view: View, source: str, result: str) -> _Parts:
    """Slice and Reshape nodes, as far as they are needed, that make `result` of a tensor."""
    parts = _Parts([], {})
    if view.slice is not None:
        start, stop, step = view.slice
        values = {"starts": start, "ends": stop, "axes": view.axis, "steps": step}
        parts.constants.update(_ints(f"{result}/{k}", [v]) for k, v in values.items())
        inputs = [source, *parts.constants]
        parts.nodes.append(onnx.helper.make_node("Slice", inputs, [f"{result}/slice"]))
    if view.shape != view.sliced_shape:
        name, weight = _ints(f"{result}/shape", view.shape)
        parts.constants[name] = weight
        before = parts.nodes[-1].output[0] if parts.nodes else source
        parts.nodes.append(onnx.helper.make_node("Reshape", [before, name], [f"{result}/reshape"]))
    if not parts.nodes and source != result:
        parts.nodes.append(onnx.helper.make_node("Identity", [source], [result]))
    if parts.nodes:
        parts.nodes[-1].output[0] = result
    return parts


def _ints(name: str, values: Sequence[int]) -> tuple[str, Weight]:
    array = np.array(values, np.int64)
    return name, NewWeight(array, array.dtype, name)


def between(region: Region, name: str, stops: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes that a tensor is computed by, back to `stops`."""
    wanted, found = {name} - set(stops), []
    for node in reversed(region.nodes):
        if wanted.intersection(node.output):
            found.append(node)
            wanted |= set(node.input) - set(stops)
    return found[::-1]


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.input[:] = [names.get(name, name) for name in node.input]
    twin.output[:] = [names.get(name, name) for name in node.output]
    return twin


def region_between(
    source: Region, nodes: Sequence[onnx.NodeProto], more: Mapping[str, Weight], output: str
) -> Region:
    """The region of some nodes, with what types are known."""
    read = {name for node in nodes for name in node.input if name}
    made = {name for node in nodes for name in node.output}
    constants = {n: w for n, w in {**source.constants, **more}.items() if n in read | {output}}
    types = {**source.inputs, **source.outputs, **source.types}
    inputs = {name: types.get(name, ANY) for name in sorted(read - made - set(constants))}
    outputs = {output: types.get(output, ANY)}
    return Region(tuple(nodes), inputs, outputs, constants, source.opsets, types)


def with_one_signature(pair: Pair) -> Pair:
    """The pair with equal inputs and outputs of fixed shapes, and feeds of their storage types."""
    inputs = {**pair.new.inputs, **pair.old.inputs}
    types = {name: _typed(kind, pair.feeds[name]) for name, kind in sorted(inputs.items())}
    feeds = {name: _stored(pair.feeds[name], kind) for name, kind in types.items()}
    old, new = (replace(region, inputs=types) for region in (pair.old, pair.new))
    values = [evaluate_region(region, feeds) for region in (old, new)]
    if any(np.shape(values[0][name]) != np.shape(values[1][name]) for name in old.outputs):
        return with_one_signature(replace(pair, old=_shapes_of(old), new=_shapes_of(new)))
    known = {**new.outputs, **{n: k for n, k in old.outputs.items() if k.onnx_type}}
    outputs = {name: _typed(known[name], values[0][name]) for name in old.outputs}
    old, new = (replace(region, outputs=outputs) for region in (old, new))
    return replace(pair, old=old, new=new, feeds=feeds)


def _typed(kind: TensorType, values: Any) -> TensorType:
    array = np.asarray(values)
    guessed = TensorProto.FLOAT if array.dtype.kind == "f" else onnx_type_of(array.dtype)
    return TensorType(kind.onnx_type or guessed, tuple(array.shape))


def _stored(values: Any, kind: TensorType) -> Any:
    """Values as a file of NumPy arrays can hold them."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.onnx_type))
    return np.asarray(values).astype(dtype if dtype.kind in "fiub" else np.float32)


def _shapes_of(region: Region) -> Region:
    """The region with the shapes of its outputs for outputs: those can be compared."""
    nodes = [onnx.helper.make_node("Shape", [name], [f"{name}/dims"]) for name in region.outputs]
    outputs = {f"{name}/dims": ANY for name in region.outputs}
    return replace(region, nodes=(*region.nodes, *nodes), outputs=outputs)


ANY = TensorType(0, None)
