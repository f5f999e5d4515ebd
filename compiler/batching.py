"""One network on several images at once: the batch axis is followed through every op.

A batched tensor has, along one axis, the images one after the other: the images are the outer
factor of that axis. Where the axis had length 1 it becomes a batch axis; where an exporter had
folded it away (tokens as rows of a matrix, [1·N×C]) the rows of one image follow those of the
other. Each op has a small rule that says where the batch is in its output; a rule that finds the op
mixing images, or losing their order, says so and nothing is built. No rule knows a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.graph import Graph, Node, Shape, Tensor, static_shape
from compiler.region import ancestors
from compiler.rewrite import Builder
from compiler.slicing import shape_of, slice_takes


class Unbatchable(Exception):  # noqa: N818 - a refusal, not an error
    """Why an op can't run on a batch."""


@dataclass(frozen=True)
class Step:
    """How one node is rebuilt: where its outputs are batched, and which inputs change.

    `ints` are new integer constants (shapes, sizes) and `repeat` the axes along which operands that
    are the same for every image are repeated, both by the input's position.
    """

    node: Node
    axis: int
    ints: dict[int, list[int]] = field(default_factory=dict)
    repeat: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Operands:
    """What a rule sees: a node, the batched axis of each of its inputs (or None), the count."""

    graph: Graph
    node: Node
    axes: Sequence[int | None]
    count: int

    @property
    def axis(self) -> int:
        """The batched axis of the first input."""
        if self.axes[0] is None:
            raise Unbatchable("its first input is the same for every image")
        return self.axes[0]

    @property
    def source(self) -> Shape:
        """The first input's shape, for one image."""
        return shape_of(self.node.inputs[0])

    @property
    def target(self) -> Shape:
        """The first output's shape, for one image."""
        return shape_of(self.node.outputs[0])

    def only_first(self) -> int:
        """The batched axis of the first input, when no other input is batched."""
        others = [
            t.name
            for t, a in zip(self.node.inputs[1:], self.axes[1:], strict=True)
            if a is not None
        ]
        if others:
            raise Unbatchable(f"{others[0]!r} differs from image to image")
        return self.axis

    def batched(self, shape: Shape, axis: int) -> list[int]:
        """A shape for all images."""
        return [d * self.count if a == axis else d for a, d in enumerate(shape)]


Rule = Callable[[Operands], Step]


def between(graph: Graph, sources: Sequence[Tensor], result: Tensor) -> list[Node]:
    """The nodes that depend on `sources` and that `result` depends on, in topological order."""
    reached = {id(source) for source in sources}
    needed, nodes = {id(node) for node in ancestors([result], set(reached))}, []
    for node in graph.nodes:
        bodies = [inner for body in node.subgraphs(recursive=True) for inner in body.nodes]
        read = [tensor for reader in (node, *bodies) for tensor in reader.inputs]
        if id(node) in needed and any(id(tensor) in reached for tensor in read):
            reached |= {id(tensor) for tensor in node.outputs}
            nodes.append(node)
    return nodes


def refusal(graph: Graph, source: Tensor, result: Tensor, count: int) -> str | None:
    """Why the network from `source` to `result` can't run on a batch, naming the op; or None."""
    try:
        _steps(graph, source, result, count)
    except Unbatchable as reason:
        return str(reason)
    return None


def batched(
    graph: Graph, builder: Builder, source: Tensor, result: Tensor, images: Sequence[Tensor]
) -> list[Tensor]:
    """What the network computes for each of `images`, by one network on all of them.

    Args:
        graph: where `refusal` has no objection.
        builder: gets the new nodes.
        source: the network's input, of which each image has the shape and type.
        result: the network's output.
        images: what the network is to run on.
    """
    count = len(images)
    steps = _steps(graph, source, result, count)
    shape = _stretched(shape_of(source), 0, count)
    twins = {id(source): builder.node("Concat", images, shape, axis=0)}
    for step in steps:
        inputs = [twins.get(id(tensor), tensor) for tensor in step.node.inputs]
        outputs = _rebuilt(graph, builder, step, inputs, count)
        twins |= {id(a): b for a, b in zip(step.node.outputs, outputs, strict=True)}
    axis, length = steps[-1].axis, shape_of(result)[steps[-1].axis]
    parts = []
    for k in range(count):
        bounds = [[k * length], [(k + 1) * length], [axis]]
        ints = [builder.ints(v, what) for v, what in zip(bounds, _BOUNDS, strict=True)]
        parts.append(builder.node("Slice", [twins[id(result)], *ints], shape_of(result)))
    return parts


_BOUNDS = ("start", "stop", "axis")


def _steps(graph: Graph, source: Tensor, result: Tensor, count: int) -> list[Step]:
    axes: dict[int, int] = {id(source): 0}
    steps = []
    for node in between(graph, [source], result):
        step = _step(Operands(graph, node, [axes.get(id(t)) for t in node.inputs], count))
        axes |= {id(tensor): step.axis for tensor in node.outputs}
        steps.append(step)
    return steps


def _stretched(shape: Shape, axis: int, count: int) -> Shape:
    return (*shape[:axis], shape[axis] * count, *shape[axis + 1 :])


def _step(o: Operands) -> Step:
    node, tensors = o.node, [*o.node.inputs, *o.node.outputs]
    unknown = [t.name for t in tensors if t.name and static_shape(t) is None]
    try:
        if unknown:
            raise Unbatchable(f"{unknown[0]!r} has no static shape")
        if node.op not in RULES or node.domain not in (None, "", "ai.onnx"):
            raise Unbatchable("there is no rule for this op")
        return RULES[node.op](o)
    except Unbatchable as reason:
        raise Unbatchable(f"{node.op} {node.name!r} can't run on a batch: {reason}") from None


def _rebuilt(
    graph: Graph, builder: Builder, step: Step, inputs: list[Tensor], count: int
) -> list[Tensor]:
    node = step.node
    for position, values in step.ints.items():
        inputs[position : position + 1] = [builder.ints(values, "for the batch")]
    for position, axis in step.repeat.items():
        inputs[position] = _repeated(graph, builder, inputs[position], axis, count)
    if node.op in _RESHAPES:
        shape = _stretched(shape_of(node.outputs[0]), step.axis, count)
        return [builder.node("Reshape", inputs[:2], shape, source=node)]
    outputs: list[Tensor] = builder.copy(node, inputs).outputs
    for output in outputs:
        if output.name:
            output.shape = list(_stretched(shape_of(output), step.axis, count))
    return outputs


def _repeated(graph: Graph, builder: Builder, tensor: Tensor, axis: int, count: int) -> Tensor:
    """An operand that is the same for every image, once for each."""
    values = graph.exact(tensor)
    if values is not None:
        how = f"{tensor.name}, {count} times"
        return builder.constant(np.concatenate([values] * count, axis), tensor.dtype, how)
    shape = _stretched(shape_of(tensor), axis, count)
    return builder.node("Concat", [tensor] * count, shape, axis=axis)


# -- the rules: where the batch is in the output, and which inputs change for it -------------------


def _elementwise(o: Operands) -> Step:
    (place, *more) = {axis for axis in _aligned(o) if axis is not None}
    if more:
        raise Unbatchable(f"its operands are batched along different axes {[place, *more]}")
    return Step(o.node, place, repeat=_broadcast(o, place))


def _aligned(o: Operands) -> list[int | None]:
    """Where each operand's batch is in the broadcast output."""
    rank = len(o.target)
    pairs = zip(o.node.inputs, o.axes, strict=True)
    return [None if axis is None else axis + rank - len(shape_of(t)) for t, axis in pairs]


def _broadcast(o: Operands, place: int) -> dict[int, int]:
    """The operands to repeat, by position, where the output's axis `place` is the batch."""
    repeat = {}
    for position, tensor in enumerate(o.node.inputs):
        shape = shape_of(tensor) if tensor.name else ()
        axis = place - len(o.target) + len(shape)
        length = shape[axis] if axis >= 0 else 1
        if o.axes[position] is None and length > 1:
            repeat[position] = axis
        if o.axes[position] is not None and length != o.target[place]:
            raise Unbatchable(
                f"{list(shape)} becomes {list(o.target)}, and axis {axis} is the batch"
            )
    return repeat


def _matmul(o: Operands) -> Step:
    rank, (left, right) = len(o.target), _aligned(o)
    if min(len(shape_of(tensor)) for tensor in o.node.inputs) < 2:
        raise Unbatchable("an operand is a vector")
    if left == rank - 1 or right == rank - 2:
        raise Unbatchable("it sums over the batch")
    (place, *more) = {axis for axis in (left, right) if axis is not None}
    if more:
        raise Unbatchable(f"its operands are batched along different axes {[left, right]}")
    return Step(o.node, place, repeat=_broadcast(o, place) if place < rank - 2 else {})


def _gemm(o: Operands) -> Step:
    if o.axes[1] is not None or o.axis == (0 if o.node.attrs.get("transA", 0) else 1):
        raise Unbatchable("it sums over the batch, or multiplies by a batch")
    bias = [shape_of(tensor) for tensor in o.node.inputs[2:] if tensor.name]
    if o.axes[2:] not in ([], [None]) or (bias and len(bias[0]) == 2 and bias[0][0] > 1):
        raise Unbatchable(f"its third operand {list(bias[0])} is not one row")
    return Step(o.node, 0)


def _images(o: Operands) -> Step:
    """Convolutions, pooling and normalization of N×C×…: every image on its own."""
    if o.only_first() != 0:
        raise Unbatchable(f"the batch is axis {o.axis} of its input, not axis 0")
    if len(o.node.outputs) > 1 or o.node.attrs.get("training_mode", 0):
        raise Unbatchable("it also returns indices or statistics of the whole batch")
    return Step(o.node, 0)


def _along_axis(default: int) -> Rule:
    """Ops that work along one axis and keep the rank; any other axis may be the batch."""

    def rule(o: Operands) -> Step:
        flattens = o.node.op in ("Softmax", "LogSoftmax") and o.graph.opset < 13
        axis = o.node.attrs.get("axis", 1 if flattens else default) % len(o.source)
        if o.only_first() == axis or (flattens and o.axis > axis):
            raise Unbatchable(f"it works along axis {axis}, and the batch is axis {o.axis}")
        return Step(o.node, o.axis)

    return rule


def _layer_norm(o: Operands) -> Step:
    axis = o.node.attrs.get("axis", -1) % len(o.source)
    if o.only_first() >= axis:
        raise Unbatchable(f"it normalizes from axis {axis} on, and the batch is axis {o.axis}")
    return Step(o.node, o.axis)


def _transpose(o: Operands) -> Step:
    perm = list(o.node.attrs.get("perm", range(len(o.source) - 1, -1, -1)))
    return Step(o.node, perm.index(o.axis))


def _reshape(o: Operands) -> Step:
    """In row-major order the batch stays where it is: before as many elements as it was before."""
    behind = math.prod(o.source[o.axis :])
    places = [a for a in range(len(o.target)) if math.prod(o.target[a:]) == behind]
    if not places:
        raise Unbatchable(f"{list(o.source)} → {list(o.target)} mixes axis {o.axis} with others")
    return Step(o.node, places[0], ints={1: o.batched(o.target, places[0])})


def _expand(o: Operands) -> Step:
    place = o.axis + len(o.target) - len(o.source)
    if o.target[place] != o.source[o.axis]:
        raise Unbatchable(f"axis {place} is broadcast over the batch")
    return Step(o.node, place, ints={1: o.batched(o.target, place)})


def _concat(o: Operands) -> Step:
    axis, places = o.node.attrs["axis"] % len(o.target), {a for a in o.axes if a is not None}
    if len(places) > 1 or axis in places:
        raise Unbatchable(f"it joins along axis {axis}, and the batch is axis {sorted(places)}")
    (place,) = places
    return Step(o.node, place, repeat={k: place for k, a in enumerate(o.axes) if a is None})


def _slice(o: Operands) -> Step:
    axes = o.graph.ints(o.node.inputs[3]) if len(o.node.inputs) > 3 else None
    rank = len(o.source)
    if o.graph.opset >= 10 and axes is not None and o.only_first() not in [a % rank for a in axes]:
        return Step(o.node, o.axis)
    takes = slice_takes(o.graph, o.node)
    if takes is None or not all(
        take.is_whole(o.source[o.axis]) for take in takes if take.axis == o.only_first()
    ):
        raise Unbatchable(f"it takes part of axis {o.axis}, the batch")
    stops = [t.stop * (o.count if t.axis == o.axis else 1) for t in takes]
    return Step(o.node, o.axis, ints={1: [t.start for t in takes], 2: stops})


def _gather(o: Operands) -> Step:
    axis = o.node.attrs.get("axis", 0) % len(o.source)
    if o.only_first() == axis:
        raise Unbatchable(f"it picks along axis {axis}, the batch")
    moved = len(shape_of(o.node.inputs[1])) - 1 if o.axis > axis else 0
    return Step(o.node, o.axis + moved)


def _reduce(o: Operands) -> Step:
    given = o.node.attrs.get("axes")
    if given is None and len(o.node.inputs) > 1 and o.node.inputs[1].name:
        given = o.graph.ints(o.node.inputs[1])
    if not given:
        raise Unbatchable("it reduces all axes")
    axes = {axis % len(o.source) for axis in given}
    if o.only_first() in axes:
        raise Unbatchable(f"it reduces axis {o.axis}, the batch")
    gone = 0 if o.node.attrs.get("keepdims", 1) else sum(axis < o.axis for axis in axes)
    return Step(o.node, o.axis - gone)


def _resize(o: Operands) -> Step:
    """Sizes change for the batch; its scale stays 1."""
    attributes, rank = o.node.attrs, len(o.source)
    axes = [axis % rank for axis in attributes.get("axes", range(rank))]
    crops = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if crops or o.source[o.only_first()] != o.target[o.axis]:
        raise Unbatchable(f"it resizes {list(o.source)} to {list(o.target)}, with the batch axis")
    sizes = o.node.inputs[3:]
    if not sizes or o.axis not in axes:
        return Step(o.node, o.axis)
    return Step(o.node, o.axis, ints={3: [o.batched(o.target, o.axis)[axis] for axis in axes]})


def _pad(o: Operands) -> Step:
    if o.target[o.only_first()] != o.source[o.axis]:
        raise Unbatchable(f"it pads axis {o.axis}, the batch")
    return Step(o.node, o.axis)


_ELEMENTWISE = (
    "Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish Identity LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg "
    "Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum "
    "Tan Tanh Where Xor"
)
_IMAGES = (
    "AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool "
    "GlobalMaxPool GroupNormalization InstanceNormalization MaxPool SpaceToDepth"
)
_REDUCTIONS = "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_IMAGES.split(), _images),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(_RESHAPES, _reshape),
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _along_axis(-1),
    "MatMul": _matmul,
    "Pad": _pad,
    "RMSNormalization": _layer_norm,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _along_axis(-1),
    "Split": _along_axis(0),
    "Transpose": _transpose,
}
