"""Rung 1: the stage is a valid model with the signature that its contract allows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import onnx

from compiler.building import run_pass
from compiler.components import Values, meaning, node_key
from compiler.graph import Graph
from compiler.region import Region, TensorType, whole
from compiler.rewrite import (
    WHOLE_MODEL,
    ApproximatePass,
    DeclaredPass,
    GraphPass,
    Pass,
    Rewrite,
    Signature,
)


def structure_faults(
    before: Signature, after: Path, pass_: Pass, rewrites: Sequence[Rewrite]
) -> list[str]:
    """What is wrong with a stage; empty if nothing is.

    Args:
        before: the signature of the stage before.
        after: the stage, as it was written.
        pass_: the pass that made it.
        rewrites: what the pass is recorded to have done.
    """
    malformed = checker_faults(after)
    if malformed:
        return [f"{_culprit(fault, rewrites)} is malformed: {fault}" for fault in malformed]
    now = Signature.of(Graph.load(after))
    if isinstance(pass_, DeclaredPass) or _is_allowed(now, before, pass_, after):
        return []
    return [f"{pass_.name} changed the model's inputs or outputs"]


def _is_allowed(now: Signature, before: Signature, pass_: Pass, after: Path) -> bool:
    """Whether each input and output is as it was, or as the pass declares it.

    An output may also have got a number where its size had a mere name, if that number follows
    from the inputs: the model says more about the same values then.
    """
    declared = pass_.signature(before) if isinstance(pass_, GraphPass) else before
    inputs = _either(now.inputs, before.inputs, declared.inputs)
    outputs = _either(now.outputs, before.outputs, declared.outputs)
    if now.same_as(Signature(inputs, outputs)):
        return True
    derived = _derived_outputs(after)
    for name, was in outputs.items():
        if name in now.outputs and _refines(now.outputs[name], was, derived[name]):
            outputs[name] = now.outputs[name]
    return now.same_as(Signature(inputs, outputs))


def _refines(kind: TensorType, before: TensorType, derived: TensorType) -> bool:
    """Whether a type differs from the one before in sizes that follow from the inputs alone."""
    if kind.onnx_type != before.onnx_type or kind.shape is None:
        return False
    rank = len(kind.shape)
    was, follows = (t.shape or (None,) * rank for t in (before, derived))
    return len(was) == len(follows) == rank and all(
        now == old or (isinstance(now, int) and not isinstance(old, int) and now == new)
        for now, old, new in zip(kind.shape, was, follows, strict=True)
    )


def _derived_outputs(path: Path) -> dict[str, TensorType]:
    """The outputs' types as they follow from the inputs', whatever the file declares."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return dict(Signature.of(Graph(model, path.parent)).outputs)


def _either(
    now: Mapping[str, TensorType],
    before: Mapping[str, TensorType],
    declared: Mapping[str, TensorType],
) -> dict[str, TensorType]:
    """Of every tensor the declared type where it has that now, else the one it had."""
    return {name: declared[name] if now.get(name) == declared[name] else kind
            for name, kind in before.items()}  # fmt: skip


def record_faults(before: Path, after: Path, pass_: Pass, rewrites: Sequence[Rewrite]) -> list[str]:
    """What a stage holds beside the rewrites that have been proven; empty if nothing.

    Args:
        before: the stage before, as it was written.
        after: the stage, as it was written.
        pass_: the pass that made it.
        rewrites: what the pass is recorded to have done.
    """
    old, new = Graph.load(before), Graph.load(after)
    changed = _unrecorded(old, new, rewrites)
    again = _second_run(new, pass_)
    return [
        *_changed_semantics(old, new, pass_),
        *(f"{pass_.name} changed {name!r} outside of its rewrites" for name in changed),
        *(f"a second run of {pass_.name} rewrites {place!r} once more" for place in again),
    ]


def _changed_semantics(before: Graph, after: Graph, pass_: Pass) -> list[str]:
    """What changes the meaning of nodes that look the same: opsets, functions, defaults."""
    old, new = before.opsets, after.opsets
    opsets = [f"{d or 'ai.onnx'} {v} → {new[d]}" for d, v in old.items()
              if new.get(d, v) not in (v, _declared(pass_, d, v))]  # fmt: skip
    faults = [f"{pass_.name} changed the opset {change}" for change in opsets]
    if before.functions() != after.functions():
        faults.append(f"{pass_.name} changed the model's functions")
    if _defaults(before) != _defaults(after):
        faults.append(f"{pass_.name} changed the optional inputs or their defaults")
    return faults


def _defaults(graph: Graph) -> dict[str, tuple[TensorType, Values]]:
    return {t.name: (TensorType.of(t), Values(graph.defaults[t.name]._values))
            for t in graph.optional_inputs}  # fmt: skip


def _declared(pass_: Pass, domain: str, version: int) -> int:
    is_default = domain in ("", "ai.onnx")
    return pass_.opset(version) if isinstance(pass_, GraphPass) and is_default else version


def _culprit(fault: str, rewrites: Sequence[Rewrite]) -> str:
    """The rewrite whose new node a message names (the longest such name), else just the stage."""
    named = [
        (len(node.name), rewrite.title)
        for rewrite in rewrites
        for node in rewrite.new.nodes
        if node.name and node.name in fault
    ]
    return max(named, default=(0, "the stage"))[1]


def _unrecorded(before: Graph, after: Graph, rewrites: Sequence[Rewrite]) -> list[str]:
    """The nodes of `after` that neither were there before nor are in the record of a rewrite.

    What is proven is the record; this shows that the file holds it, and nothing else is new.
    """
    names = {old: now for r in rewrites for call in r.calls[:1]
             for old, now in [*call.inputs.items(), *call.outputs.items()]}  # fmt: skip
    source, result = whole(before), whole(after)
    claims = {name: r.new.constants[name] for r in rewrites for name in r.new.outputs
              if name in r.new.constants}  # fmt: skip
    constants = {**source.constants, **claims}
    known = {(node_key(n, constants, names), meaning(n, source.opsets)) for n in source.nodes}
    for rewrite in rewrites:
        for region in (rewrite.new, *(copy for _, copy, _ in rewrite.copies)):
            known |= {_key(node, region) for node in region.nodes}
    return [node.name for node in result.nodes if _key(node, result) not in known]


def _key(node: onnx.NodeProto, region: Region) -> tuple[Hashable, Hashable]:
    return node_key(node, region.constants, {}), meaning(node, region.opsets)


def checker_faults(path: Path) -> list[str]:
    """onnx.checker with strict shape inference, on the file as it is."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError
    ) as error:  # fmt: skip
        return [str(error).strip().splitlines()[0]]
    return []


def _second_run(graph: Graph, pass_: Pass) -> list[str]:
    """The places that the pass would rewrite once more; a declared change may be made twice."""
    if isinstance(pass_, DeclaredPass):
        return []
    if isinstance(pass_, ApproximatePass):
        return [] if pass_.refusals(graph) else [WHOLE_MODEL]
    _, again = run_pass(graph, pass_)
    return [rewrite.place for rewrite in again.rewrites]
