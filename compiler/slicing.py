"""Pulling slices back through a graph: one small rule an op, and no knowledge of any model.

`Slicer.pull(tensor, take)` returns a tensor that equals a slice of `tensor`, computed from slices
of whatever `tensor` is computed from. Constants are sliced at once (as views of the mapped file),
which is how projection weights come apart. Where no rule applies an explicit Slice is left:
correct, and counted. This is tile-and-fuse, as in MLIR's TilingInterface, along any axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.graph import Graph, Node, Shape, Tensor, producer_of, static_shape
from compiler.rewrite import Builder
from compiler.weights import Array, NewWeight


@dataclass(frozen=True)
class Take:
    """`tensor[..., start:stop:step, ...]` along `axis`; `drop` removes the axis (one index)."""

    axis: int
    start: int
    stop: int
    step: int = 1
    drop: bool = False

    @property
    def size(self) -> int:
        """How many indices are taken."""
        return len(range(self.start, self.stop, self.step))

    def shape(self, shape: Shape) -> Shape:
        """The shape of a tensor of `shape` after the slice."""
        kept = () if self.drop else (self.size,)
        return (*shape[: self.axis], *kept, *shape[self.axis + 1 :])

    def axis_after(self, axis: int) -> int:
        """Where another axis of the tensor is after the slice."""
        return axis - (self.drop and axis > self.axis)

    def then(self, take: Take) -> Take:
        """The slice of the same axis that `take` of this slice is."""
        start, step = self.start + take.start * self.step, self.step * take.step
        stop = start + (take.size - 1) * step + 1
        return Take(self.axis, start, stop, step if take.size > 1 else 1, take.drop)

    def is_whole(self, length: int) -> bool:
        """Whether the slice is the whole axis."""
        return not self.drop and (self.start, self.stop, self.step) == (0, length, 1)


Rule = Callable[["Slicer", Node, Take], Tensor | None]


class Slicer:
    """Pulls slices back with the nodes of one builder; equal requests share one result."""

    def __init__(self, graph: Graph, builder: Builder) -> None:
        self.graph = graph
        self.builder = builder
        self.slices_left: dict[int, Tensor] = {}
        self._left_of: dict[int, tuple[Tensor, Take]] = {}
        self._known: dict[tuple[int, Take], Tensor] = {}

    def pull(self, tensor: Tensor, take: Take) -> Tensor:
        """A tensor that equals `take` of `tensor`.

        Args:
            tensor: of static shape.
            take: within the tensor's shape.
        """
        shape = shape_of(tensor)
        if take.is_whole(shape[take.axis]):
            return tensor
        key = (id(tensor), take)
        if key not in self._known:
            self._known[key] = self._pulled(tensor, take)
        return self._known[key]

    def _pulled(self, tensor: Tensor, take: Take) -> Tensor:
        if self.graph.is_constant(tensor):
            return self._sliced_constant(tensor, take)
        if id(tensor) in self._left_of:
            return self._further(*self._left_of[id(tensor)], take)
        node = producer_of(tensor)
        pulled = None if node is None else self._by_rule(node, tensor, take)
        return self._left(tensor, take) if pulled is None else pulled

    def _left(self, tensor: Tensor, take: Take) -> Tensor:
        """An explicit slice, where no rule applies; dropping an axis of size one is none."""
        shape = shape_of(tensor)
        if take.drop and shape[take.axis] == 1:
            return self.reshaped(tensor, take.shape(shape), None)
        left = self._slice_node(tensor, take)
        self.slices_left[id(left)] = left
        self._left_of[id(left)] = (tensor, take)
        return left

    def _further(self, tensor: Tensor, own: Take, take: Take) -> Tensor:
        """A slice of an explicit slice: one of both, or in the other order, which may get on."""
        if own.axis == take.axis and not own.drop:
            return self.pull(tensor, own.then(take))
        first = replace(take, axis=take.axis + (own.drop and take.axis >= own.axis))
        pulled, then = self.pull(tensor, first), replace(own, axis=first.axis_after(own.axis))
        is_left = id(pulled) in self._left_of
        return self._left(pulled, then) if is_left else self.pull(pulled, then)

    def _by_rule(self, node: Node, tensor: Tensor, take: Take) -> Tensor | None:
        rule = RULES.get(node.op)
        is_static = all(static_shape(t) is not None for t in [*node.inputs, tensor] if t.name)
        if rule is None or node.domain not in (None, "", "ai.onnx") or not is_static:
            return None
        if node.op == "Split":
            return _split(self, node, take, [t is tensor for t in node.outputs].index(True))
        return rule(self, node, take) if tensor is node.outputs[0] else None

    def emit(self, node: Node, inputs: Sequence[Tensor], take: Take, **changed: object) -> Tensor:
        """The slice `take` of a node's output, by the same op on other inputs."""
        output = node.outputs[0]
        attributes = {**node.attrs, **changed}
        return self.builder.node(
            node.op, inputs, take.shape(shape_of(output)), like=output, source=node, **attributes
        )

    def reshaped(self, tensor: Tensor, shape: Shape, source: Node | None) -> Tensor:
        """The tensor with another shape: itself, a constant, or a Reshape."""
        if shape_of(tensor) == shape:
            return tensor
        weight = self.graph.weight(tensor)
        if weight is not None:
            values = weight.unrounded().reshape(shape)
            return self._constant(values, tensor, f" as {list(shape)}")
        target = self.builder.ints(shape, "shape")
        return self.builder.node("Reshape", [tensor, target], shape, source=source)

    def _sliced_constant(self, tensor: Tensor, take: Take) -> Tensor:
        weight = self.graph.weight(tensor)
        assert weight is not None
        values = weight.unrounded()
        index: list[slice | int] = [slice(None)] * values.ndim
        index[take.axis] = take.start if take.drop else slice(take.start, take.stop, take.step)
        step = "" if take.step == 1 else f":{take.step}"
        part = str(take.start) if take.drop else f"{take.start}:{take.stop}{step}"
        places = [part if axis == take.axis else ":" for axis in range(values.ndim)]
        return self._constant(values[tuple(index)], tensor, f"[{', '.join(places)}]")

    def _constant(self, values: Array, source: Tensor, how: str) -> Tensor:
        weight = self.graph.weight(source)
        origin = weight.how if isinstance(weight, NewWeight) else source.name
        return self.builder.constant(values, source.dtype, f"{origin}{how}")

    def _slice_node(self, tensor: Tensor, take: Take) -> Tensor:
        axis = self.builder.ints([take.axis], "axis")
        if take.drop:
            index = self.builder.constant(np.array(take.start), np.dtype(np.int64), "index")
            shape = take.shape(shape_of(tensor))
            return self.builder.node("Gather", [tensor, index], shape, axis=take.axis)
        bounds = [self.builder.ints([value], name) for value, name in
                  ((take.start, "start"), (take.stop, "stop"))]  # fmt: skip
        step = self.builder.ints([take.step], "step")
        shape = take.shape(shape_of(tensor))
        return self.builder.node("Slice", [tensor, *bounds, axis, step], shape)


def shape_of(tensor: Tensor) -> Shape:
    """The static shape of a tensor that is known to have one."""
    shape = static_shape(tensor)
    assert shape is not None, f"{tensor.name} has no static shape"
    return shape


# -- the rules: (slicer, node, take of its first output) -> the slice, or None to leave a Slice ---


def _broadcast(s: Slicer, node: Node, take: Take, tensor: Tensor) -> Tensor:
    """The part of an operand that a slice of the broadcast result needs."""
    if not tensor.name:  # an optional operand that is left out
        return tensor
    shape = shape_of(tensor)
    axis = take.axis - (len(shape_of(node.outputs[0])) - len(shape))
    if axis < 0:
        return tensor
    if shape[axis] == 1:
        one = Take(axis, 0, 1, drop=True)
        return s.pull(tensor, one) if take.drop else tensor
    return s.pull(tensor, replace(take, axis=axis))


def _elementwise(s: Slicer, node: Node, take: Take) -> Tensor | None:
    return s.emit(node, [_broadcast(s, node, take, tensor) for tensor in node.inputs], take)


def _matmul(s: Slicer, node: Node, take: Take) -> Tensor | None:
    left, right = node.inputs
    rank, low = len(shape_of(node.outputs[0])), min(len(shape_of(t)) for t in node.inputs)
    if low < 2 or (take.drop and take.axis >= rank - 2):
        return None
    if take.axis == rank - 1:
        columns = replace(take, axis=len(shape_of(right)) - 1)
        return s.emit(node, [left, s.pull(right, columns)], take)
    if take.axis == rank - 2:
        rows = replace(take, axis=len(shape_of(left)) - 2)
        return (
            None if s.graph.is_constant(right) else s.emit(node, [s.pull(left, rows), right], take)
        )
    parts = [_broadcast(s, node, take, tensor) for tensor in node.inputs]
    # Every batch of a projection reads the same weights: slicing before it would only repeat it.
    same = [part is tensor for part, tensor in zip(parts, node.inputs, strict=True)]
    if any(k and s.graph.is_constant(t) for k, t in zip(same, node.inputs, strict=True)):
        return None
    return s.emit(node, parts, take)


def _gemm(s: Slicer, node: Node, take: Take) -> Tensor | None:
    if take.axis != 1 or take.drop:
        return None
    left, right, *bias = node.inputs
    columns = replace(take, axis=0 if node.attrs.get("transB", 0) else 1)
    parts = [left, s.pull(right, columns), *(_broadcast(s, node, take, b) for b in bias)]
    return s.emit(node, parts, take)


def _conv(s: Slicer, node: Node, take: Take) -> Tensor | None:
    if take.axis != 1 or take.drop or node.attrs.get("group", 1) != 1:
        return None
    data, *weights = (tensor for tensor in node.inputs if tensor.name)
    return s.emit(node, [data, *(s.pull(w, replace(take, axis=0)) for w in weights)], take)


def _along_axis(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """Softmax and its like: any axis but the op's own."""
    rank = len(shape_of(node.outputs[0]))
    axis = node.attrs.get("axis", -1 if s.graph.opset >= 13 else 1) % rank
    # Below opset 13 the op runs over all axes from its own on: the same only if that is the last.
    has_own_axis = s.graph.opset >= 13 or (s.graph.opset >= 11 and axis == rank - 1)
    if not has_own_axis or axis == take.axis:
        return None
    moved = take.axis_after(axis) - (rank - take.drop)
    return s.emit(node, [s.pull(node.inputs[0], take)], take, axis=moved)


def _layer_norm(s: Slicer, node: Node, take: Take) -> Tensor | None:
    """LayerNormalization and its like: the axes before `axis`."""
    rank = len(shape_of(node.outputs[0]))
    axis = node.attrs.get("axis", -1) % rank
    if take.axis >= axis:
        return None
    data, *affine = node.inputs
    parts = [s.pull(data, take), *(_broadcast(s, node, take, t) for t in affine)]
    return s.emit(node, parts, take, axis=axis - rank)


def _transpose(s: Slicer, node: Node, take: Take) -> Tensor | None:
    rank = len(shape_of(node.outputs[0]))
    perm = list(node.attrs.get("perm", range(rank - 1, -1, -1)))
    source = replace(take, axis=perm[take.axis])
    pulled = s.pull(node.inputs[0], source)
    if take.drop:
        perm = [source.axis_after(axis) for axis in perm if axis != source.axis]
    if perm == sorted(perm):
        return pulled
    return s.emit(node, [pulled], take, perm=perm)


def _reshape(s: Slicer, node: Node, take: Take) -> Tensor | None:
    source, target = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if target[take.axis] == 1:
        return s.reshaped(node.inputs[0], take.shape(target), node)
    found = takes_before_reshape(source, target, take)
    if found is None:
        return None
    pulled = node.inputs[0]
    for one in found:
        pulled = s.pull(pulled, one)
    return s.reshaped(pulled, take.shape(target), node)


def takes_before_reshape(source: Shape, target: Shape, take: Take) -> list[Take] | None:
    """The slices of a reshape's input that leave a slice of its output, in order; None if none do.

    Row-major order: target index v on an axis of stride `inner` covers flat positions
    (u·length + v)·inner + w. It is one slice of the input where the axis is a factor of one input
    axis (C = H·D gives a range, C = D·H a strided slice), or that input axis is its outer factor;
    it is an index there and then a slice of the rest where it lies within one block of it.
    """
    if 0 in source or 0 in target:
        return None
    length, inner = target[take.axis], math.prod(target[take.axis + 1 :])
    last = take.start + (take.size - 1) * take.step
    for axis, size in enumerate(source):
        stride = math.prod(source[axis + 1 :])
        found = _factor_of(size, stride, length, inner, take) or _merge_of(
            size, stride, length, inner, take
        )
        if found is not None and size > 1:
            return [replace(found, axis=axis)]
        block = max(stride // inner, 1)
        is_outer = size > 1 and size * stride == length * inner == size * block * inner
        if is_outer and take.start // block == last // block:
            index = take.start // block
            within = replace(take, start=take.start - index * block, stop=last + 1 - index * block)
            rest = takes_before_reshape(
                (*source[:axis], *source[axis + 1 :]),
                (*target[: take.axis], block, *target[take.axis + 1 :]),
                within,
            )
            return None if rest is None else [Take(axis, index, index + 1, drop=True), *rest]
    return None


def _factor_of(size: int, stride: int, length: int, inner: int, take: Take) -> Take | None:
    """The output axis is a factor of this input axis (or the same axis)."""
    if inner % stride or (size * stride) % (length * inner):
        return None
    low, high = inner // stride, (size * stride) // (length * inner)
    if high == 1 and low == 1:
        return take
    if high == 1 and take.step == 1:
        return Take(0, take.start * low, take.stop * low)
    if low == 1 and take.size == 1:
        return Take(0, take.start, size, length)
    return None


def _merge_of(size: int, stride: int, length: int, inner: int, take: Take) -> Take | None:
    """This input axis is the outer factor of the output axis, which merges it with others."""
    if stride % inner or size * stride != length * inner or take.step != 1:
        return None
    block = stride // inner
    if take.start % block or take.stop % block:
        return None
    single = take.stop - take.start == block
    return Take(0, take.start // block, take.stop // block, drop=single and block > 1)


def _composed(s: Slicer, tensor: Tensor, own: Sequence[Take], take: Take) -> Tensor:
    """A slice of a slice of other axes, its own first; along the same axis they become one."""
    same = [one.then(take) for one in own if one.axis == take.axis]
    for one in own:
        tensor = tensor if one.axis == take.axis else s.pull(tensor, one)
    return s.pull(tensor, same[0] if same else take)


def _split_bounds(s: Slicer, node: Node) -> tuple[int, list[int]] | None:
    axis = node.attrs.get("axis", 0) % len(shape_of(node.inputs[0]))
    sizes = node.attrs.get("split")
    if sizes is None and len(node.inputs) > 1 and node.inputs[1].name:
        sizes = s.graph.ints(node.inputs[1])
        if sizes is None:
            return None
    if sizes is None:
        length, parts = shape_of(node.inputs[0])[axis], len(node.outputs)
        chunk = -(-length // parts)
        sizes = [min(chunk, length - chunk * k) for k in range(parts)]
    return axis, [0, *np.cumsum(sizes).tolist()]


def _split(s: Slicer, node: Node, take: Take, output: int = 0) -> Tensor | None:
    bounds = _split_bounds(s, node)
    if bounds is None:
        return None
    axis, edges = bounds
    own = Take(axis, edges[output], edges[output + 1])
    return _composed(s, node.inputs[0], [own], take)


def _slice(s: Slicer, node: Node, take: Take) -> Tensor | None:
    own = slice_takes(s.graph, node)
    return None if own is None else _composed(s, node.inputs[0], own, take)


def slice_takes(graph: Graph, node: Node) -> list[Take] | None:
    """A Slice node's constant bounds as one take an axis; None if dynamic or with step ≤ 0."""
    shape = shape_of(node.inputs[0])
    if graph.opset < 10:
        return None
    bounds = [graph.ints(t) if t.name else None for t in node.inputs[1:]]
    if any(b is None and t.name for b, t in zip(bounds, node.inputs[1:], strict=True)):
        return None
    starts, ends, axes, steps = (bounds + [None] * 4)[:4]
    assert starts is not None
    assert ends is not None
    takes = []
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[k] if axes else k) % len(shape)
        step = steps[k] if steps else 1
        if step <= 0:
            return None
        first, last, _ = slice(start, end).indices(shape[axis])
        takes.append(Take(axis, first, max(first, last), step))
    return takes


def _gather(s: Slicer, node: Node, take: Take) -> Tensor | None:
    data, indices = node.inputs
    axis = node.attrs.get("axis", 0) % len(shape_of(data))
    values = s.graph.values(indices)
    if values is None or values.ndim > 1:
        return None
    chosen = [int(v) % shape_of(data)[axis] for v in values.reshape(-1)]
    if values.ndim == 0:
        return s.pull(s.pull(data, Take(axis, chosen[0], chosen[0] + 1, drop=True)), take)
    if take.axis != axis:
        return s.emit(node, [s.pull(data, take), indices], take, axis=take.axis_after(axis))
    wanted = chosen[take.start : take.stop : take.step]
    if len(wanted) == 1:
        return s.pull(data, replace(take, start=wanted[0], stop=wanted[0] + 1, step=1))
    return s.emit(node, [data, s.builder.ints(wanted, "indices")], take)


def _concat(s: Slicer, node: Node, take: Take) -> Tensor | None:
    axis = node.attrs["axis"] % len(shape_of(node.outputs[0]))
    if axis != take.axis:
        parts = [s.pull(tensor, take) for tensor in node.inputs]
        return s.emit(node, parts, take, axis=take.axis_after(axis))
    edge = 0
    for tensor in node.inputs:
        length = shape_of(tensor)[axis]
        last = take.start + (take.size - 1) * take.step
        if edge <= take.start and last < edge + length:
            return s.pull(tensor, replace(take, start=take.start - edge, stop=take.stop - edge))
        edge += length
    return None


def _expand(s: Slicer, node: Node, take: Take) -> Tensor | None:
    part = _broadcast(s, node, take, node.inputs[0])
    shape = take.shape(shape_of(node.outputs[0]))
    if shape_of(part) == shape:
        return part
    return s.emit(node, [part, s.builder.ints(shape, "shape")], take)


def _unsqueeze(s: Slicer, node: Node, take: Take) -> Tensor | None:
    source, target = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    axes = node.attrs.get("axes") or s.graph.ints(node.inputs[1])
    if axes is None:
        return None
    inserted = {axis % len(target) for axis in axes}
    if take.axis in inserted:
        return s.reshaped(node.inputs[0], take.shape(target), node)
    axis = take.axis - sum(i < take.axis for i in inserted)
    assert target[take.axis] == source[axis]
    return s.reshaped(s.pull(node.inputs[0], replace(take, axis=axis)), take.shape(target), node)


def _squeeze(s: Slicer, node: Node, take: Take) -> Tensor | None:
    source = shape_of(node.inputs[0])
    given = node.attrs.get("axes") or (s.graph.ints(node.inputs[1]) if node.inputs[1:] else None)
    if given is None and node.inputs[1:]:
        return None
    removed = {a % len(source) for a in given} if given else {
        a for a, d in enumerate(source) if d == 1
    }  # fmt: skip
    # A squeezed axis is an index of its own, taken where it was made: behind a Split it never is.
    tensor = node.inputs[0]
    for axis in sorted(removed, reverse=True):
        tensor = s.pull(tensor, Take(axis, 0, 1, drop=True))
    return s.pull(tensor, take)


_ELEMENTWISE = (
    "Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mish Mod "
    "Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum "
    "Tan Tanh Where Xor"
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Softmax": _along_axis,
    "LogSoftmax": _along_axis,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Expand": _expand,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
}
