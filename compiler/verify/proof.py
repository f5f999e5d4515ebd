"""Rung 2: every rewrite in float64, at its own cut, with fresh random inputs.

Random full-rank inputs at the cut restore the sensitivity that a whole model hides: with the
default random weights of a network, most planted faults do not reach its output at all.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx

from compiler.components import node_kind
from compiler.region import Region, TensorType
from compiler.rewrite import (
    Contract,
    DeclaredPass,
    Float64,
    Function,
    Pass,
    Rewrite,
    Signature,
)
from compiler.verify.blindness import blind_softmax, probabilities_of
from compiler.verify.float64 import evaluate
from compiler.verify.inputs import cut_input, natural_image
from compiler.verify.kernels.call import UnsupportedInFloat64
from compiler.verify.measure import FLOAT64_NOISE, Error, compare
from compiler.verify.sizes import Sizes, guessed_sizes, is_static

Status = Literal["pass", "fail", "UNVERIFIED"]

# Centred relative L2 in float64. Reassociating a sum of n terms moves it by about √n · 2⁻⁵³: 1e-14
# for the longest sums here; a wrong value of 1 % in one place moves it by 1e-6 and more.
BOUNDS: dict[Contract, float] = {"exact": 1e-12, "algebraic": 1e-10, "declared": 1e-10}
# Ops that only move values: two regions of these must agree in every bit.
DATA_MOVEMENT = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip

# What kernels raise where values or sizes are no inputs of theirs.
REFUSALS = (IndexError, ValueError, RuntimeError, ZeroDivisionError)
# A claim about dynamic sizes is tried with so many choices of them.
BINDINGS = 2
# Ranges of random integers, tried in turn: few of them are indices or sizes for every node.
INTEGERS = ((-12, 12), (0, 6), (0, 3), (0, 2), (0, 1))
MASKS = (0, 2)
# How often masks are drawn again where they hide what there is to see.
MASK_DRAWS = 4
_OF_SHAPES = {"Shape", "Size", "EyeLike"}  # they look at the shape of their input alone


@dataclass(frozen=True)
class Proof:
    """The outcome of one check: the worst error over the cut's outputs, and its bound."""

    status: Status
    error: float
    bound: float
    detail: str = ""


def prove(rewrite: Rewrite, pass_: Pass, seed: int = 0, sizes: Sequence[Sizes] = ()) -> Proof:
    """Checks one rewrite against its pass's contract.

    Args:
        rewrite: the record of the rewrite.
        pass_: the pass that made it; its contract sets the bound.
        seed: of the random inputs at the cut.
        sizes: what dynamic sizes may be, all of which must hold; guessed if there are none.
    """
    bound = _bound(rewrite, pass_.contract)
    try:
        if isinstance(pass_, DeclaredPass):
            return _prove_declared(with_sizes(rewrite, sizes), pass_, bound, seed)
        if not rewrite.old.outputs:
            return Proof("fail", math.inf, bound, "the new nodes read what they should replace")
        return _prove_at_cut(rewrite, bound, seed, sizes)
    except UnsupportedInFloat64 as reason:
        return Proof("UNVERIFIED", math.nan, bound, str(reason))


def _prove_at_cut(rewrite: Rewrite, bound: float, seed: int, sizes: Sequence[Sizes]) -> Proof:
    """The worst of the trials that show something; UNVERIFIED if none does."""
    proofs, refusal = [], ""
    for _, proof in trials(rewrite, bound, seed, sizes):
        if math.isnan(proof.error):
            refusal = refusal or proof.detail
            continue
        proofs.append(proof)
        if len(proofs) == BINDINGS or proof.status == "fail":
            break
    if not proofs:  # random integers, or sizes, that the old nodes can't take
        return Proof("UNVERIFIED", math.nan, bound, refusal)
    # Sizes of 1 may leave nothing to see, where others show it.
    telling = [proof for proof in proofs if proof.status != "UNVERIFIED"]
    return max(telling or proofs, key=lambda proof: (proof.status == "fail", proof.error))


def trials(
    rewrite: Rewrite, bound: float, seed: int, sizes: Sequence[Sizes]
) -> Iterator[tuple[dict[str, Any], Proof]]:
    """Inputs at the cut and the verdict on them, for one choice of dynamic sizes after another."""
    types = {**rewrite.old.inputs, **rewrite.new.inputs}
    for kinds in _bindings(types, rewrite.place, seed, sizes):
        feeds, proof = _trial(rewrite, kinds, bound, seed)
        yield feeds, proof
        if proof.status == "fail":
            return


def _trial(
    rewrite: Rewrite, kinds: Mapping[str, TensorType], bound: float, seed: int
) -> tuple[dict[str, Any], Proof]:
    """The verdict on the first draw that the old nodes take and that tells something."""
    refused = Proof("UNVERIFIED", math.nan, bound)
    last: tuple[dict[str, Any], Proof] | None = None
    for feeds in _draws(kinds, rewrite.place, seed):
        try:
            expected, blind = _expected(rewrite.old, feeds)
        except REFUSALS as error:
            reason = f"the old nodes refuse random inputs: {_first_line(error)}"
            refused = replace(refused, detail=reason)
            continue
        try:
            actual = evaluate_region(rewrite.new, feeds)
        except REFUSALS as error:
            reason = f"the new nodes refuse what the old take: {_first_line(error)}"
            return feeds, Proof("fail", math.inf, bound, reason)
        proof = judge(actual, expected, bound, settled=_settled(rewrite.old))
        if proof.status == "pass" and blind is not None:
            reason = f"the scores of {blind!r} are hidden by a mask or a scale"
            proof = replace(proof, status="UNVERIFIED", detail=reason)
        last = feeds, proof
        if proof.status != "UNVERIFIED":
            return last
    return last or (feeds, refused)


def _draws(kinds: Mapping[str, TensorType], place: str, seed: int) -> Iterator[dict[str, Any]]:
    """Random values for the cut, to be tried in turn.

    Integers come from the widest range first: of indices 0 and 1 alone much would look right that
    is wrong. A mask of any other numbers, or of no zero, may hide everything, and a mask can be a
    float, too: the last draws are of zeros and ones.
    """
    has_integers = any(not kind.is_float for kind in kinds.values())
    for integers in INTEGERS if has_integers else (MASKS,):
        yield random_inputs(kinds, place, seed, integers)
    for draw in range(1, MASK_DRAWS + 1):
        feeds = random_inputs(kinds, f"{place} {draw}", seed, MASKS)
        if has_integers:
            yield feeds
        yield {k: (v > 0).astype(v.dtype) if v.dtype.kind == "f" else v for k, v in feeds.items()}


def _expected(region: Region, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The old values, and a Softmax behind which nothing is to be seen, if there is one."""
    inside = [name for name in probabilities_of(region) if name not in region.outputs]
    shown = {**region.outputs, **{name: region.types[name] for name in inside}}
    values = evaluate_region(replace(region, outputs=shown), feeds)
    blind = blind_softmax(probabilities_of(region), values)
    return {name: values[name] for name in region.outputs}, blind


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _bindings(
    types: Mapping[str, TensorType], place: str, seed: int, sizes: Sequence[Sizes]
) -> Iterator[dict[str, TensorType]]:
    """The types at the cut with numbers for dynamic sizes: as in the model, else at a guess."""
    if is_static(types):
        yield dict(types)
        return
    rng = np.random.default_rng([seed, zlib.crc32(place.encode())])
    for kinds in [choice.bind(types) for choice in sizes] or [dict(types)]:
        guesses = [Sizes({})] if is_static(kinds) else guessed_sizes(kinds, rng)
        yield from (guess.bind(kinds) for guess in guesses)


def with_sizes(rewrite: Rewrite, sizes: Sequence[Sizes]) -> Rewrite:
    """A declared rewrite whose signatures are static, where `sizes` or a guess makes them so."""
    assert rewrite.before is not None
    assert rewrite.after is not None
    signatures = rewrite.before, rewrite.after
    types = {**rewrite.after.inputs, **rewrite.before.inputs, **rewrite.before.outputs}
    guess = next(guessed_sizes(types, np.random.default_rng(0)))
    choice = next(iter(sizes), guess)
    before, after = (Signature(choice.bind(s.inputs), choice.bind(s.outputs)) for s in signatures)
    return replace(rewrite, before=before, after=after)


def _settled(region: Region) -> set[str]:
    """The outputs that no value at the cut can move: constants, and what follows from shapes.

    They were evaluated for good; that such a tensor is constant says nothing against it.
    """
    moved = set(region.inputs)
    for node in region.nodes:
        has_body = any(a.HasField("g") or a.graphs for a in node.attribute)
        if has_body or (node.op_type not in _OF_SHAPES and moved.intersection(node.input)):
            moved |= set(node.output)
    return set(region.outputs) - moved


def judge(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    bound: float,
    *,
    settled: Collection[str] = (),
    noise: float = FLOAT64_NOISE,
) -> Proof:
    """The verdict over all outputs; a vacuous comparison is never a pass.

    The outputs named in `settled` depend on nothing that could have been chosen otherwise; what
    spreads by no more than `noise` does so by rounding.
    """
    errors = {name: compare(actual[name], expected[name], noise) for name in expected}
    name = max(errors, key=lambda key: errors[key].centred_l2)
    worst = errors[name]
    if not worst.centred_l2 <= bound:
        return Proof("fail", worst.centred_l2, bound, f"tensor {name!r}: {_words(worst)}")
    vacuous = [f"{k!r} is {e.vacuous}" for k, e in errors.items() if e.vacuous and k not in settled]
    status: Status = "UNVERIFIED" if vacuous else "pass"
    return Proof(status, worst.centred_l2, bound, "; ".join(vacuous))


def evaluate_region(region: Region, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The region's outputs in float64, with constants before rounding."""
    used = {name: _as_declared(feeds[name], kind) for name, kind in region.inputs.items()}
    return evaluate(
        region.nodes, region.exact_constants(), used, list(region.outputs), region.opsets
    )


def _as_declared(values: Any, kind: TensorType) -> Any:
    """Integers in a region's own type: the other region of a rewrite may declare a narrower one."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.onnx_type)
    is_integer = np.asarray(values).dtype.kind in "iu" and np.dtype(dtype).kind in "iu"
    return np.asarray(values).astype(dtype) if is_integer else values


def random_inputs(
    types: Mapping[str, TensorType], place: str, seed: int, integers: tuple[int, int] = (0, 2)
) -> dict[str, Any]:
    """Fresh random values for cut tensors; the draw depends on the place and the seed only.

    Integers are from the range `integers`, its end excluded.
    """
    rng = np.random.default_rng([seed, zlib.crc32(place.encode())])
    return {name: _random(kind, rng, integers) for name, kind in sorted(types.items())}


def _random(kind: TensorType, rng: np.random.Generator, integers: tuple[int, int]) -> Any:
    shape = _fixed_shape(kind)
    dtype = np.float64 if kind.is_float else onnx.helper.tensor_dtype_to_np_dtype(kind.onnx_type)
    values = cut_input(shape, dtype, rng, valid_range=integers)
    if not kind.is_float:
        return values
    # Some values are large: a Clip that a rewrite forgot has to have something to clip.
    return values * rng.choice([1.0, 8.0], p=[0.875, 0.125], size=values.shape)


def _fixed_shape(kind: TensorType) -> tuple[int, ...]:
    if kind.fixed_shape is None:
        raise UnsupportedInFloat64("dynamic shape", f"a cut tensor has the shape {kind.shape}")
    return kind.fixed_shape


def _bound(rewrite: Rewrite, contract: Contract) -> float:
    ops = {node.op_type for node in [*rewrite.old.nodes, *rewrite.new.nodes]}
    return 0.0 if contract == "exact" and ops <= DATA_MOVEMENT else BOUNDS[contract]


def _words(error: Error) -> str:
    return f"centred relative L2 {error.centred_l2:.3g}, max|d|/max|b| {error.max_ratio:.3g}"


# -- declared passes: the old network is a black box on both sides --------------------------------


def _prove_declared(rewrite: Rewrite, pass_: DeclaredPass[Any], bound: float, seed: int) -> Proof:
    assert rewrite.before is not None
    assert rewrite.after is not None
    for (original, copy, plugs), call in zip(rewrite.copies, rewrite.calls[1:], strict=True):
        difference = difference_of_copy(original, copy, plugs, call.outputs)
        if difference is not None:
            return Proof("fail", float("inf"), bound, f"the copy is not the network: {difference}")
    f, optional = _network(rewrite, seed)
    inputs = image_like_inputs(rewrite.after.inputs, seed)
    expected = pass_.expected(f, inputs, rewrite.before)
    actual = _run_plugged(rewrite, f, {**optional, **inputs})
    proof = judge(actual, {name: expected[name] for name in rewrite.after.outputs}, bound)
    if proof.status == "pass" and rewrite.calls:
        # What a pass does to a map without any contrast is a case of its own.
        flat = partial(flat_box, rewrite.before.outputs)
        expected = pass_.expected(flat, inputs, rewrite.before)
        without_contrast = judge(_run_plugged(rewrite, flat, inputs), expected, bound)
        return without_contrast if without_contrast.status == "fail" else proof
    return proof


def _network(rewrite: Rewrite, seed: int) -> tuple[Function, dict[str, Any]]:
    """The network that new nodes surround, or are on a batch: its optional inputs have values."""
    if rewrite.calls:
        return black_box(rewrite), {}
    optional = optional_values(rewrite, seed)
    return lambda given: evaluate_region(rewrite.old, {**optional, **given}), optional


def optional_values(rewrite: Rewrite, seed: int) -> dict[str, Any]:
    """Random values for what a network reads beside the inputs that its signature names."""
    assert rewrite.before is not None
    named = rewrite.before.inputs
    types = {name: kind for name, kind in rewrite.old.inputs.items() if name not in named}
    return random_inputs(types, rewrite.place, seed)


def image_like_inputs(types: Mapping[str, TensorType], seed: int) -> dict[str, Float64]:
    """Images in [0, 255] for rank 4, else standard normal values; float64.

    Raises UnsupportedInFloat64 for a dynamic shape.
    """
    values = {}
    for name, kind in types.items():
        shape = kind.fixed_shape
        if shape is not None and len(shape) == 4 and kind.is_float:
            values[name] = natural_image(shape, seed).astype(np.float64)
        else:
            values |= random_inputs({name: kind}, name, seed)
    return values


def black_box(rewrite: Rewrite) -> Function:
    """A stand-in with the network's signature: nonlinear, different at every position, cheap.

    The new model uses the network unchanged, so the claim must hold for every function; this one
    shows a wrong size, order, mirror or channel that a smooth depth map might hide.
    """
    assert rewrite.before is not None
    outputs = rewrite.before.outputs

    def stand_in(inputs: Mapping[str, Float64]) -> dict[str, Float64]:
        flat = np.concatenate([inputs[name].reshape(-1) for name in sorted(inputs)])
        results = {}
        for name, kind in outputs.items():
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            shape = _fixed_shape(kind)
            picks = rng.integers(0, flat.size, (4, int(np.prod(shape))))
            phase = rng.standard_normal(picks.shape)
            results[name] = np.sin(flat[picks] / 64 + phase).sum(axis=0).reshape(shape)
        return results

    return stand_in


def flat_box(
    outputs: Mapping[str, TensorType], _inputs: Mapping[str, Float64]
) -> dict[str, Float64]:
    """A stand-in whose maps have no contrast."""
    return {name: np.zeros(_fixed_shape(kind)) for name, kind in outputs.items()}


def _run_plugged(
    rewrite: Rewrite, f: Function, inputs: Mapping[str, Float64]
) -> dict[str, Float64]:
    """The new model, with `f` in place of the network and of its copies."""
    known: dict[str, Any] = dict(inputs)
    region = rewrite.new

    def compute(names: list[str]) -> dict[str, Any]:
        missing = [name for name in names if name not in known]
        constants = region.exact_constants()
        made = evaluate(region.nodes, constants, known, missing, region.opsets) if missing else {}
        return {name: made[name] if name in made else known[name] for name in names}

    for call in rewrite.calls:
        values = compute(list(call.inputs.values()))
        results = f({old: values[tensor] for old, tensor in call.inputs.items()})
        known |= {tensor: results[old] for old, tensor in call.outputs.items()}
    assert rewrite.after is not None
    return compute(list(rewrite.after.outputs))


def difference_of_copy(
    original: Region, copy: Region, plugs: Mapping[str, str], outputs: Mapping[str, str]
) -> str | None:
    """How a copy differs from the network, apart from names and from what `plugs` replaces."""
    if len(original.nodes) != len(copy.nodes):
        return f"{len(copy.nodes)} nodes instead of {len(original.nodes)}"
    names = dict(plugs)
    for old, new in zip(original.nodes, copy.nodes, strict=True):
        if node_kind(old) != node_kind(new) or len(old.input) != len(new.input):
            return f"{new.name!r} is not {old.name!r}"
        for was, now in zip(old.input, new.input, strict=True):
            same_weight = original.constants.get(was) is copy.constants.get(now)
            if names.get(was, was) != now or not same_weight:
                return f"{new.name!r} reads {now!r} where {old.name!r} reads {was!r}"
        names |= dict(zip(old.output, new.output, strict=True))
    wrong = [old for old, tensor in outputs.items() if names.get(old) != tensor]
    return f"{wrong[0]!r} is taken from elsewhere" if wrong else None
