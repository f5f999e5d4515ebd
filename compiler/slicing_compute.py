"""Rules of the slicer for ops that compute: element by element, products, norms, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compiler.graph import Node, Tensor
from compiler.shapes import NoRule, dims_of, length_of, rank_of
from compiler.slicing_rule import Rule, broadcast, parts
from compiler.take import Take

if TYPE_CHECKING:
    from compiler.slicing import Slicer


def _elementwise(s: Slicer, node: Node, take: Take) -> Tensor | None:
    return s.emit(node, parts(s, node, take, node.inputs), take)


# -- products --------------------------------------------------------------------------------------


def _matmul(s: Slicer, node: Node, take: Take) -> Tensor | None:
    left, right = node.inputs
    rank, low = rank_of(node.outputs[0]), min(rank_of(t) for t in node.inputs)
    if low < 2 or (take.drop and take.axis >= rank - 2):
        return None
    if take.axis == rank - 1:
        columns = replace(take, axis=rank_of(right) - 1)
        return s.emit(node, [left, s.pull(right, columns)], take)
    if take.axis == rank - 2:
        rows = replace(take, axis=rank_of(left) - 2)
        return _on_weights(s, node, take, [(left, rows), (right, None)])
    wanted = [(t, _batch_take(node, take, t)) for t in node.inputs]
    return _on_weights(s, node, take, wanted)


def _batch_take(node: Node, take: Take, tensor: Tensor) -> Take | None:
    """The slice of an operand that a slice of the product's batch needs; None for all of it."""
    axis = take.axis - (rank_of(node.outputs[0]) - rank_of(tensor))
    return None if axis < 0 else _part_of(node, take, tensor, axis)


def _part_of(node: Node, take: Take, tensor: Tensor, axis: int) -> Take | None:
    """The slice of an operand's axis that becomes the sliced one; None for all of it."""
    dims = dims_of(tensor)
    if dims[axis] == 1:
        return Take(axis, 0, 1, drop=True) if take.drop else None
    if dims[axis] != dims_of(node.outputs[0])[take.axis]:
        raise NoRule(f"axis {axis} of {tensor.name!r} may be broadcast")
    return replace(take, axis=axis)


def _on_weights(
    s: Slicer,
    node: Node,
    take: Take,
    wanted: Sequence[tuple[Tensor, Take | None]],
    **changed: object,
) -> Tensor | None:
    """A product of slices; one that would only repeat the same weights is sliced afterwards.

    That is so unless the other operand comes down to slices of weights itself: tokens multiplied by
    a projection stay together, a head's query multiplied by a table of positions does not.
    """
    repeats = any(one is None and s.is_weight(t) for t, one in wanted)
    pull = s.pull_past_weights if repeats else s.pull
    found = [tensor if one is None else pull(tensor, one) for tensor, one in wanted]
    return None if any(part is None for part in found) else s.emit(node, found, take, **changed)


def _einsum(s: Slicer, node: Node, take: Take) -> Tensor | None:
    equation = node.attrs["equation"].replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if "." in equation or not arrow or any(len(set(t)) < len(t) for t in terms.split(",")):
        return None
    label, wanted = result[take.axis], []
    for tensor, term in zip(node.inputs, terms.split(","), strict=True):
        one = _part_of(node, take, tensor, term.index(label)) if label in term else None
        wanted.append((tensor, one))
    changed = equation.replace(label, "") if take.drop else equation
    return _on_weights(s, node, take, wanted, equation=changed)


def _gemm(s: Slicer, node: Node, take: Take) -> Tensor | None:
    if take.drop:
        return None
    left, right, *bias = node.inputs
    turned = node.attrs.get("transB" if take.axis == 1 else "transA", 0)
    own = replace(take, axis=1 - take.axis if turned else take.axis)
    if take.axis == 1:  # the columns of the weights: every part reads all of the data
        found = [left, s.pull(right, own)]
    else:
        pull = s.pull_past_weights if s.is_weight(right) else s.pull
        found = [pull(left, own), right]
    if found[0] is None:
        return None
    return s.emit(node, [*found, *parts(s, node, take, bias)], take)


def _conv(s: Slicer, node: Node, take: Take) -> Tensor | None:
    data, *weights = (tensor for tensor in node.inputs if tensor.name)
    if take.drop or take.axis > 1:
        return None
    if take.axis == 0:
        part = s.pull_past_weights(data, take)
        return None if part is None else s.emit(node, [part, *weights], take)
    groups = node.attrs.get("group", 1)
    sliced = [s.pull(w, replace(take, axis=0)) for w in weights]
    if groups == 1:
        return s.emit(node, [data, *sliced], take)
    own = _groups(length_of(node.outputs[0], 1), groups, take)
    if own is None:
        return None
    width = length_of(weights[0], 1)
    part = s.pull(data, Take(1, own.start * width, own.stop * width))
    return s.emit(node, [part, *(s.pull(w, replace(take, axis=0)) for w in weights)], take,
                  group=own.size)  # fmt: skip


def _groups(length: int, groups: int, take: Take) -> Take | None:
    """The groups (heads, channels) that a range of an axis of all groups is; None if none."""
    block = length // groups
    if take.step != 1 or take.start % block or take.stop % block:
        return None
    return Take(0, take.start // block, take.stop // block)


# -- along an axis ---------------------------------------------------------------------------------


def _along_axis(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """Softmax and its like: any axis but the op's own."""
    rank = rank_of(node.outputs[0])
    axis = node.attrs.get("axis", -1 if s.graph.opset >= 13 else 1) % rank
    # Below opset 13 the op runs over all axes from its own on: the same only if that is the last.
    has_own_axis = s.graph.opset >= 13 or (s.graph.opset >= 11 and axis == rank - 1)
    if not has_own_axis or axis == take.axis:
        return None
    moved = take.axis_after(axis) - (rank - take.drop)
    return s.emit(node, [s.pull(node.inputs[0], take)], take, axis=moved)


def _layer_norm(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """LayerNormalization and its like: the axes before `axis`."""
    rank = rank_of(node.outputs[0])
    axis = node.attrs.get("axis", -1) % rank
    if take.axis >= axis:
        return None
    data, *affine = node.inputs
    found = [s.pull(data, take), *(broadcast(s, node, take, t) for t in affine)]
    return s.emit(node, found, take, axis=axis - rank)


def _channel_norm(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """BatchNormalization, InstanceNormalization: images, and channels with their own gain."""
    if take.drop or take.axis > 1 or node.attrs.get("training_mode", 0):
        return None
    data, *affine = node.inputs
    if take.axis == 1:
        affine = [s.pull(tensor, replace(take, axis=0)) for tensor in affine]
    return s.emit(node, [s.pull(data, take), *affine], take)


def _group_norm(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """GroupNormalization: images; its groups have other meanings in other opsets."""
    if take.drop or take.axis != 0:
        return None
    data, *affine = node.inputs
    return s.emit(node, [s.pull(data, take), *affine], take)


def _per_channel(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """Pooling: images and channels."""
    if take.drop or take.axis > 1 or len(node.outputs) > 1:
        return None
    return s.emit(node, [s.pull(node.inputs[0], take)], take)


def _reduce(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """ReduceSum and its like, ArgMax: the axes that stay."""
    data, rank = node.inputs[0], rank_of(node.inputs[0])
    axes = _reduced_axes(s, node, rank)
    if axes is None:
        return None
    keeps = bool(node.attrs.get("keepdims", 1))
    stay = [axis for axis in range(rank) if keeps or axis not in axes]
    axis = stay[take.axis]
    if axis in axes:  # of size one
        return None
    own = replace(take, axis=axis)
    left = [own.axis_after(a) for a in sorted(axes)]
    part = s.pull(data, own)
    if node.op.startswith("Arg"):
        return s.emit(node, [part], take, axis=left[0])
    if len(node.inputs) > 1 or "axes" not in node.attrs:
        return s.emit(node, [part, s.builder.ints(left, "axes")], take)
    return s.emit(node, [part], take, axes=left)


def _reduced_axes(s: Slicer, node: Node, rank: int) -> set[int] | None:
    if node.op.startswith("Arg"):
        return {node.attrs.get("axis", 0) % rank}
    given = node.attrs.get("axes")
    if given is None and len(node.inputs) > 1 and node.inputs[1].name:
        given = s.graph.ints(node.inputs[1])
    # Without axes all are reduced, or none: there is nothing to slice, or nothing to do.
    return {axis % rank for axis in given} if given else None


# -- attention -------------------------------------------------------------------------------------


def _attention(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """Attention: batch, heads (of the key too, as they are grouped), and queries, each read all."""
    query, key, value, *more = node.inputs
    if any(t.name for t in [*more[1:], *node.outputs[1:]]):  # a cache
        return None
    if take.drop:
        return None
    mask = more[0] if more and more[0].name else None
    packed = rank_of(query) == 3
    is_head = take.axis == (2 if packed else 1)
    if is_head:
        return _heads(s, node, take, mask)
    is_query = take.axis == (1 if packed else 2)
    if take.axis != 0 and not (is_query and not _sees_by_position(node)):
        return None
    found = [s.pull(query, take), *([key, value] if is_query else
             [s.pull(key, take), s.pull(value, take)])]  # fmt: skip
    masked = _mask_part(s, mask, replace(take, axis=2 if is_query else 0))
    return s.emit(node, [*found, *masked], take)


def _heads(s: Slicer, node: Node, take: Take, mask: Tensor | None) -> Tensor | None:
    query, key, value = node.inputs[:3]
    packed = rank_of(query) == 3
    axis = 2 if packed else 1
    few = node.attrs["kv_num_heads"] if packed else length_of(key, 1)
    many = node.attrs["q_num_heads"] if packed else length_of(query, 1)
    if many % few:
        raise NoRule(f"{few} heads of {key.name!r} are not shared by {many} of {query.name!r}")
    own = _groups(length_of(node.outputs[0], axis), many, take)
    shared = None if own is None else _shared_heads(own, many // few)
    if own is None or shared is None:
        return None
    found = []
    for tensor, heads, of in ((query, own, many), (key, shared, few), (value, shared, few)):
        width = length_of(tensor, axis) // of
        found.append(s.pull(tensor, Take(axis, heads.start * width, heads.stop * width)))
    counts = {"q_num_heads": own.size, "kv_num_heads": shared.size}
    changed = {name: count for name, count in counts.items() if name in node.attrs}
    return s.emit(node, [*found, *_mask_part(s, mask, replace(own, axis=1))], take, **changed)


def _shared_heads(heads: Take, repeats: int) -> Take | None:
    """The heads of the key that heads of the query read, `repeats` each."""
    first, last = heads.start // repeats, (heads.stop - 1) // repeats
    even = heads.start % repeats == 0 and heads.stop % repeats == 0
    return Take(0, first, last + 1) if even or first == last else None


def _mask_part(s: Slicer, mask: Tensor | None, take: Take) -> list[Tensor]:
    """The part of a mask that a slice of (batch, heads, queries, keys) sees."""
    if mask is None:
        return []
    axis = take.axis - (4 - rank_of(mask))
    is_same = axis < 0 or dims_of(mask)[axis] == 1
    return [mask if is_same else s.pull(mask, replace(take, axis=axis))]


def _sees_by_position(node: Node) -> bool:
    """Whether what a query sees depends on its number."""
    windows = [node.attrs.get(f"{side}_window_size", -1) for side in ("left", "right")]
    return bool(node.attrs.get("is_causal", 0)) or any(size >= 0 for size in windows)


_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Div Dropout Elu "
    "Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
    "ThresholdedRelu Where Xor"
)
_REDUCTIONS = (
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare"
)
COMPUTE: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv,
    "Softmax": _along_axis,
    "LogSoftmax": _along_axis,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "BatchNormalization": _channel_norm,
    "InstanceNormalization": _channel_norm,
    "GroupNormalization": _group_norm,
    "AveragePool": _per_channel,
    "MaxPool": _per_channel,
    "GlobalAveragePool": _per_channel,
    "Attention": _attention,
}
