"""Runs ONNX nodes with every float tensor in float64, as the ground truth of a rewrite.

The operators are in `compiler.verify.kernels`; the few that `onnx.reference` computes without a
detour through float32 are taken from there. Every other operator is refused, never guessed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from compiler.verify.kernels import ANY_TYPE, KERNELS, reference
from compiler.verify.kernels.call import Array, UnsupportedInFloat64, read_call
from compiler.verify.kernels.constants import is_float, promote

__all__ = ["UnsupportedInFloat64", "evaluate"]


def evaluate(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    opsets: Mapping[str, int],
    *,
    on_node: Callable[[int], None] | None = None,
) -> dict[str, Array]:
    """The values of `outputs`, with every float tensor in float64.

    `nodes` are in topological order; those that no output needs are left out. A constant is looked
    up once, when a node first needs it, and a tensor is freed after its last use, so that
    `constants` may read from disk. `on_node(i)` is called after node i, for a progress bar.
    Feeds win over constants of the same name. Raises UnsupportedInFloat64 for an operator that has
    no float64 evaluation, KeyError for a tensor that nothing gives.
    """
    needed = _needed(nodes, outputs)
    last_use = {name: i for i in sorted(needed) for name in nodes[i].input if name}
    last_use |= dict.fromkeys(outputs, len(nodes))
    values: dict[str, Array] = {}
    for i, node in enumerate(nodes):
        if i in needed:
            _fetch(values, node.input, constants, feeds)
            results = zip(
                node.output, _run(node, [values.get(n) for n in node.input], opsets), strict=False
            )
            values |= {name: value for name, value in results if name in last_use}
            for name in {name for name in node.input if last_use.get(name) == i}:
                values.pop(name, None)
        if on_node is not None:
            on_node(i)
    _fetch(values, outputs, constants, feeds)
    return {name: values[name] for name in outputs}


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> set[int]:
    """The indices of the nodes that `outputs` depend on."""
    wanted, needed = set(outputs), set()
    for i in reversed(range(len(nodes))):
        if wanted.intersection(nodes[i].output):
            needed.add(i)
            wanted.update(name for name in nodes[i].input if name)
    return needed


def _fetch(
    values: dict[str, Array],
    names: Iterable[str],
    constants: Mapping[str, Array],
    feeds: Mapping[str, Array],
) -> None:
    """Promotes those of `names` that are feeds or constants into `values`."""
    for name in names:
        if name and name not in values:
            # One look-up, without `in`: on a lazy mapping that would load the tensor as well.
            values[name] = promote(np.asarray(feeds[name] if name in feeds else constants[name]))


def _run(
    node: onnx.NodeProto, inputs: list[Array | None], opsets: Mapping[str, int]
) -> Sequence[Array]:
    """The outputs of one node, checked to be float64 where they are floats."""
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedInFloat64(node.op_type, f"it belongs to the domain {node.domain}")
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    call = read_call(node, opset)
    if any(x is not None and x.dtype.kind not in "fiubV" for x in inputs):
        raise call.refuse("an input is neither a number nor a boolean")
    integers = not any(x is not None and is_float(x) for x in inputs)
    if node.op_type in (reference.INTEGER if integers else ()) or node.op_type in reference.ANY:
        results = reference.run_reference(node, inputs, {"": opset})
    elif node.op_type in (ANY_TYPE if integers else KERNELS):
        results = KERNELS[node.op_type](call, inputs)
    else:
        raise call.refuse("no implementation is known to be free of float32")
    for result in results:
        if is_float(np.asarray(result)) and np.asarray(result).dtype != np.float64:
            raise call.refuse(f"its implementation returned {result.dtype}")
    return [np.asarray(result) for result in results]
