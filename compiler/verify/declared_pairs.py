"""A failed declared rewrite as two models: what is expected is a table, the oracle being no ONNX.

The oracle calls the old network. Where the new model feeds the network with other values than the
oracle does, these are what is wrong; else it is what becomes of the network's results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from compiler.components import node_kind
from compiler.region import Region, TensorType
from compiler.rewrite import DeclaredPass, Function, Rewrite
from compiler.verify.float64 import evaluate
from compiler.verify.measure import compare
from compiler.verify.proof import (
    black_box,
    evaluate_region,
    flat_box,
    image_like_inputs,
    optional_values,
    random_inputs,
    with_sizes,
)
from compiler.verify.reduction import ANY, Pair, between, region_between, with_one_signature
from compiler.verify.sizes import Sizes
from compiler.weights import NewWeight

Values = dict[str, Any]
Call = tuple[Values, Values]

# More numbers than that are not kept to find where a batched network goes wrong: 0.5 GB.
MOST_VALUES = 1 << 26


def pair_of_declared(
    rewrite: Rewrite, pass_: DeclaredPass[Any], bound: float, seed: int, sizes: Sequence[Sizes]
) -> Pair | None:
    """Two models for the first thing that is wrong; None if nothing is found."""
    for (original, copy, plugs), call in zip(rewrite.copies, rewrite.calls[1:], strict=True):
        found = _pair_of_copy(original, copy, plugs, call.outputs, seed)
        if found is not None:
            return found
    static = with_sizes(rewrite, sizes)
    assert static.before is not None
    assert static.after is not None
    inputs: Values = dict(image_like_inputs(static.after.inputs, seed))
    if not static.calls:
        return _pair_of_batch(static, pass_, inputs, optional_values(static, seed), bound)
    for f in (black_box(static), partial(flat_box, static.before.outputs)):
        found = _pair_of_plugs(static, pass_, f, inputs, bound)
        if found is not None:
            return found
    return None


def _table(new: Region, name: str, values: Any, feeds: Values, agreeing: Sequence[str]) -> Pair:
    """A pair whose old side gives the expected values, whatever it is fed."""
    held = {"expected": NewWeight(np.asarray(values), np.dtype(np.float32), "the oracle's values")}
    node = onnx.helper.make_node("Identity", ["expected"], [name])
    old = Region((node,), {}, {name: ANY}, held, new.opsets, new.types)
    return with_one_signature(Pair(old, new, feeds, tuple(agreeing), name, is_table=True))


# -- the network as a black box, called by the new nodes -------------------------------------------


def _pair_of_plugs(
    rewrite: Rewrite, pass_: DeclaredPass[Any], f: Function, inputs: Values, bound: float
) -> Pair | None:
    assert rewrite.before is not None
    assert rewrite.after is not None
    calls, recorded = _recorded(f)
    expected = pass_.expected(recorded, inputs, rewrite.before)
    known, region = dict(inputs), rewrite.new
    for number, call in enumerate(rewrite.calls):
        fed = _computed(region, known, list(call.inputs.values()))
        given = {old: fed[tensor] for old, tensor in call.inputs.items()}
        theirs = [one for one, _ in calls]
        if not any(_differing(given, one, bound) is None for one in theirs) and theirs:
            wanted = theirs[min(number, len(theirs) - 1)]
            name = call.inputs[_differing(given, wanted, bound) or next(iter(given))]
            (old,) = [old for old, tensor in call.inputs.items() if tensor == name]
            return _cone(region, name, wanted[old], known)
        results = f(given)
        known |= {tensor: results[old] for old, tensor in call.outputs.items()}
    actual = _computed(region, known, list(rewrite.after.outputs))
    wrong = _differing(actual, expected, bound)
    return None if wrong is None else _cone(region, wrong, expected[wrong], known)


def _recorded(f: Function) -> tuple[list[Call], Function]:
    """A function that keeps what it is called with and what it returns."""
    calls: list[Call] = []

    def call(inputs: Mapping[str, Any]) -> Values:
        calls.append((dict(inputs), f(inputs)))
        return calls[-1][1]

    return calls, call


def _computed(region: Region, known: Values, names: list[str]) -> Values:
    missing = [name for name in names if name not in known]
    constants = region.exact_constants()
    made = evaluate(region.nodes, constants, known, missing, region.opsets) if missing else {}
    return {name: made[name] if name in made else known[name] for name in names}


def _differing(actual: Mapping[str, Any], expected: Mapping[str, Any], bound: float) -> str | None:
    """The first tensor that differs."""
    errors = {name: compare(actual[name], expected[name]).centred_l2 for name in expected}
    return next((name for name, error in errors.items() if not error <= bound), None)


def _cone(region: Region, name: str, expected: Any, known: Values) -> Pair:
    """The new nodes from what is known to the tensor that is wrong."""
    if name in known:  # the new model takes one tensor for another: there is no node to blame
        nodes = [onnx.helper.make_node("Identity", [name], [f"{name}/taken"])]
        cone, result = region_between(region, nodes, {}, f"{name}/taken"), f"{name}/taken"
    else:
        cone, result = region_between(region, between(region, name, known), {}, name), name
    feeds = {read: known[read] for read in cone.inputs}
    return _table(cone, result, expected, feeds, list(feeds))


# -- a copy that is not the network ----------------------------------------------------------------


def _pair_of_copy(
    original: Region, copy: Region, plugs: Mapping[str, str], outputs: Mapping[str, str], seed: int
) -> Pair | None:
    """The first node of the network and its copy that differ, on the same random inputs."""
    names = dict(plugs)
    for old, new in zip(original.nodes, copy.nodes, strict=False):
        if not new.output:  # nothing reads this copy, so it was dropped: something reads the other
            names |= {name: f"{name}/copy" for name in old.output}
            continue
        wanted = _reading(old, names)
        same_weights = all(original.constants.get(was) is copy.constants.get(now)
                           for was, now in zip(old.input, new.input, strict=False))  # fmt: skip
        if node_kind(old) != node_kind(new) or wanted != list(new.input) or not same_weights:
            return node_pair(original, copy, old, new, seed, wanted)
        names |= dict(zip(old.output, new.output, strict=True))
    return None


def _reading(node: onnx.NodeProto, names: Mapping[str, str]) -> list[str]:
    return [names.get(name, name) for name in node.input]


def node_pair(
    source: Region, other: Region, old: onnx.NodeProto, new: onnx.NodeProto, seed: int,
    wanted: Sequence[str] | None = None,
) -> Pair:  # fmt: skip
    """One node of each region, on the same random inputs.

    Args:
        source: the region of `old`.
        other: the region of `new`.
        old: the node as it should be.
        new: the node as it is.
        seed: of the inputs.
        wanted: what `new` should read where `old` reads its inputs; the same if None, whatever it
            is called.
    """
    names = list(new.input if wanted is None else wanted)
    twin = onnx.NodeProto()
    twin.CopyFrom(old)
    twin.input[:], twin.output[:] = names, new.output
    back = dict(zip(names, old.input, strict=False))
    types = {**other.types, **other.inputs}
    types |= {now: {**source.types, **source.inputs}.get(was, ANY)
              for now, was in back.items() if was not in source.constants}  # fmt: skip
    constants = {now: source.constants[was] for now, was in back.items()
                 if was in source.constants}  # fmt: skip
    sides = [
        region_between(replace(region, types=types, inputs={}, constants=held), [node], {},
                       new.output[0])
        for region, node, held in ((source, twin, constants), (other, new, other.constants))
    ]  # fmt: skip
    inputs: dict[str, TensorType] = {**sides[0].inputs, **sides[1].inputs}
    feeds: Values = dict(random_inputs(inputs, new.name, seed))
    return with_one_signature(Pair(sides[0], sides[1], feeds, tuple(feeds), new.output[0]))


# -- one network on a batch ------------------------------------------------------------------------


def _pair_of_batch(
    rewrite: Rewrite, pass_: DeclaredPass[Any], inputs: Values, optional: Values, bound: float
) -> Pair | None:
    """From what holds the values of every call of the oracle, to what should and does not."""
    assert rewrite.before is not None
    calls, recorded = _recorded(partial(evaluate_region, rewrite.old))
    expected = pass_.expected(lambda x: recorded({**optional, **x}), inputs, rewrite.before)
    inputs = {**optional, **inputs}
    references = [_reference(rewrite.old, call) for call in calls]
    values = _new_values(rewrite.new, inputs, references)
    known = dict(inputs)
    for name in [n for node in rewrite.new.nodes for n in node.output if n in values]:
        right = list(_right_values(values[name], references, bound))
        if any(_same(values[name], one, bound) for one in right):
            known[name] = values[name]
        elif right:
            return _cone(rewrite.new, name, right[0], known)
    wrong_output = _differing(values, expected, bound)
    if wrong_output is None:
        return None
    return _cone(rewrite.new, wrong_output, expected[wrong_output], known)


def _reference(network: Region, call: Call) -> Values:
    """What a call of the network makes: every tensor, if they are not too many numbers."""
    shapes = [kind.fixed_shape for kind in network.types.values()]
    if sum(math.prod(shape) for shape in shapes if shape is not None) > MOST_VALUES:
        return {**call[0], **call[1]}
    made = [name for node in network.nodes for name in node.output if name]
    values = evaluate_region(replace(network, outputs=dict.fromkeys(made, ANY)), call[0])
    return {**call[0], **values}


def _new_values(region: Region, inputs: Values, references: Sequence[Values]) -> Values:
    """The outputs, and the new tensors that are as large as all calls' tensors together, or one."""
    sizes = {np.size(value) * count for value in references[0].values()
             for count in (1, len(references))}  # fmt: skip
    wanted = dict(region.outputs)
    for name, kind in region.types.items():
        if kind.fixed_shape is not None and math.prod(kind.fixed_shape) in sizes:
            wanted[name] = kind
    return evaluate_region(replace(region, outputs=wanted), inputs)


def _right_values(values: Any, references: Sequence[Values], bound: float) -> Iterator[Any]:
    """What a tensor may be meant to hold: a tensor of one call, or, from its start on, of all."""
    for name, first in references[0].items():
        every = [reference[name] for reference in references]
        yield from (one for one in every if _same(values, one, bound))
        if np.size(values) != np.size(first) * len(every) or np.size(first) <= 1:
            continue
        for axis in range(values.ndim):
            extent = values.shape[axis] // len(every)
            start = values.take(range(extent), axis)
            if start.size == np.size(first) and _same(start, first, bound):
                yield np.concatenate([np.reshape(one, start.shape) for one in every], axis)


def _same(values: Any, other: Any, bound: float) -> bool:
    squeezed = [tuple(d for d in np.shape(one) if d != 1) for one in (values, other)]
    if squeezed[0] != squeezed[1]:
        return False
    return bool(compare(np.reshape(values, np.shape(other)), other).centred_l2 <= bound)
